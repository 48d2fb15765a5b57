package coord

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAgreement(t *testing.T) {
	three := []string{"c1", "c2", "w1"}
	five := []string{"c1", "c2", "c3", "w1", "w2"}
	yes := func(number uint64) *voteMsg {
		return &voteMsg{Suspect: "c1", Epoch: 10, Number: number, Yes: true, Evidence: "silence"}
	}
	no := func(number uint64) *voteMsg { return &voteMsg{Suspect: "c1", Epoch: 10, Number: number} }
	asked := func(times ...time.Duration) *ballots {
		b := newBallots("c2")
		for _, d := range times {
			b.ask(at(d), "c1", 10)
		}
		return b
	}
	tests := []struct {
		name   string
		b      *ballots
		votes  func(b *ballots)
		voters []string
		own    evidence
		now    time.Duration
		want   []string
	}{
		{name: "majority of three", b: asked(0), voters: three, own: evRefused, want: []string{"c2", "w1"},
			votes: func(b *ballots) { b.vote("w1", yes(1)) }},
		{name: "nobody else", b: asked(0), voters: three, own: evRefused, votes: func(*ballots) {}},
		{name: "own evidence gone", b: asked(0), voters: three,
			votes: func(b *ballots) { b.vote("w1", yes(1)) }},
		{name: "one yes of five", b: asked(0), voters: five, own: evSilence,
			votes: func(b *ballots) { b.vote("w1", yes(1)) }},
		{name: "two yes of five", b: asked(0), voters: five, own: evSilence, want: []string{"c2", "w1", "w2"},
			votes: func(b *ballots) { b.vote("w1", yes(1)); b.vote("w2", yes(1)) }},
		{name: "the suspect has no vote", b: asked(0), voters: three, own: evSilence,
			votes: func(b *ballots) { b.vote("c1", yes(1)) }},
		{name: "a stranger has no vote", b: asked(0), voters: three, own: evSilence,
			votes: func(b *ballots) { b.vote("x9", yes(1)) }},
		{name: "just before the vote is void", b: asked(0), voters: three, own: evSilence, now: 200*ms - 1, want: []string{"c2", "w1"},
			votes: func(b *ballots) { b.vote("w1", yes(1)) }},
		{name: "void, counted from when its number was sent", b: asked(0, 150*ms), voters: three, own: evSilence, now: 200 * ms,
			votes: func(b *ballots) { b.vote("w1", yes(1)) }},
		{name: "renewed", b: asked(0, 150*ms), voters: three, own: evSilence, now: 349 * ms, want: []string{"c2", "w1"},
			votes: func(b *ballots) { b.vote("w1", yes(1)); b.vote("w1", yes(2)) }},
		{name: "withdrawn", b: asked(0), voters: three, own: evSilence,
			votes: func(b *ballots) { b.vote("w1", yes(1)); b.vote("w1", no(1)) }},
		{name: "withdrawn, then an older yes", b: asked(0, 10*ms), voters: three, own: evSilence,
			votes: func(b *ballots) { b.vote("w1", no(2)); b.vote("w1", yes(1)) }},
		{name: "a number never sent", b: asked(0), voters: three, own: evSilence,
			votes: func(b *ballots) { b.vote("w1", yes(2)) }},
		{name: "a vote about another session", b: asked(0), voters: three, own: evSilence,
			votes: func(b *ballots) {
				b.vote("w1", &voteMsg{Suspect: "c1", Epoch: 9, Number: 1, Yes: true})
			}},
		{name: "asked by one that knows of the death", b: newBallots("c2"), voters: three, own: evNewRun, want: []string{"c2", "w1"},
			votes: func(b *ballots) {
				b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7, Dead: "refused"})
			}},
		{name: "asked so, and only silence here", b: newBallots("c2"), voters: three, own: evSilence,
			votes: func(b *ballots) {
				b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7, Dead: "refused"})
			}},
		{name: "asked by one that has other evidence", b: newBallots("c2"), voters: three, own: evRefused,
			votes: func(b *ballots) { b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7}) }},
		{name: "asked so too long ago", b: newBallots("c2"), voters: three, own: evRefused, now: 200 * ms,
			votes: func(b *ballots) {
				b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7, Dead: "refused"})
			}},
		{name: "asked so about a former session", b: asked(0), voters: three, own: evRefused,
			votes: func(b *ballots) {
				b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 9, Number: 7, Dead: "refused"})
			}},
		{name: "asked so by the suspect", b: newBallots("c2"), voters: three, own: evRefused,
			votes: func(b *ballots) {
				b.declared(at(0), "c1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7, Dead: "refused"})
			}},
		{name: "asked so on a connection that ended", b: newBallots("c2"), voters: three, own: evRefused,
			votes: func(b *ballots) {
				b.declared(at(0), "w1", &askMsg{Suspect: "c1", Epoch: 10, Number: 7, Dead: "refused"})
				b.forget("w1")
			}},
		{name: "this member has no vote", b: asked(0), voters: []string{"c1", "c3", "w1"}, own: evSilence,
			votes: func(b *ballots) { b.vote("c3", yes(1)); b.vote("w1", yes(1)) }},
		{name: "alive expired counts as a majority", b: newBallots("c2"), voters: three, own: evSilence | evAliveExpired, want: []string{"c2"},
			votes: func(*ballots) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.votes(tt.b)
			got, ok := tt.b.agreed(at(tt.now), "c1", 10, tt.own, tt.voters)
			if ok != (tt.want != nil) || !slices.Equal(got.Voters, tt.want) {
				t.Errorf("agreed are %v (%v), want %v", got.Voters, ok, tt.want)
			}
		})
	}
}

func TestAgreementNamesEvidence(t *testing.T) {
	b := newBallots("c2")
	b.ask(at(0), "c1", 10)
	b.vote("w1", &voteMsg{Suspect: "c1", Epoch: 10, Number: 1, Yes: true, Evidence: "new run"})
	got, _ := b.agreed(at(0), "c1", 10, evRefused, []string{"c1", "c2", "w1"})
	want := agreement{Voters: []string{"c2", "w1"}, Evidence: "c2: refused; w1: new run", Ended: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVotes(t *testing.T) {
	type paper struct {
		Number uint64
		Yes    bool
		First  bool
	}
	ask := func(number uint64) func(booth, time.Duration) {
		return func(b booth, d time.Duration) {
			b.ask(at(d), "c2", &askMsg{Suspect: "c1", Epoch: 10, Number: number})
		}
	}
	// Each step is at a time; then the member votes with its evidence.
	type step struct {
		at    time.Duration
		do    func(booth, time.Duration)
		epoch int64
		seen  evidence
		want  []paper
	}
	nothing := func(booth, time.Duration) {}
	tests := []struct {
		name  string
		steps []step
	}{
		{"yes at once", []step{
			{0, ask(1), 10, evRefused, []paper{{1, true, true}}},
			{0, nothing, 10, evRefused, nil},
		}},
		{"yes pushed when evidence comes", []step{
			{0, ask(1), 10, 0, nil},
			{199 * ms, nothing, 10, evRefused, []paper{{1, true, true}}},
		}},
		{"not pushed when the question is too old", []step{
			{0, ask(1), 10, 0, nil},
			{200 * ms, nothing, 10, evRefused, nil},
		}},
		{"repeated for each number", []step{
			{0, ask(1), 10, evRefused, []paper{{1, true, true}}},
			{50 * ms, ask(2), 10, evRefused, []paper{{2, true, false}}},
		}},
		{"withdrawn", []step{
			{0, ask(1), 10, evSilence, []paper{{1, true, true}}},
			{50 * ms, nothing, 10, 0, []paper{{1, false, false}}},
			{60 * ms, nothing, 10, 0, nil},
			{70 * ms, nothing, 10, evSilence, []paper{{1, true, true}}},
		}},
		{"withdrawn with the number that just came", []step{
			{0, ask(1), 10, evSilence, []paper{{1, true, true}}},
			{50 * ms, ask(2), 10, 0, []paper{{2, false, false}}},
		}},
		{"an older question comes late", []step{
			{0, ask(2), 10, evSilence, []paper{{2, true, true}}},
			{50 * ms, ask(1), 10, evSilence, nil},
		}},
		{"our view shows another session", []step{
			{0, ask(1), 11, evSilence, nil},
			{50 * ms, nothing, 10, evSilence, []paper{{1, true, true}}},
			{60 * ms, nothing, 11, evSilence, []paper{{1, false, false}}},
		}},
		{"asker gone", []step{
			{0, ask(1), 10, 0, nil},
			{10 * ms, func(b booth, _ time.Duration) { b.forget("c2") }, 10, evSilence, nil},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := booth{}
			for i, s := range tt.steps {
				s.do(b, s.at)
				var got []paper
				for _, p := range b.vote(at(s.at), "c1", s.epoch, s.seen) {
					got = append(got, paper{p.Number, p.Yes, p.first})
				}
				if diff := cmp.Diff(s.want, got); diff != "" {
					t.Fatalf("step %d: %s", i, diff)
				}
			}
		})
	}
}

// The safety property. One suspect pulses, voters echo, ask each other, vote and
// send the loss transaction; every message may be delayed for any time,
// connections may break, and each node has its own clock, which may be off and
// up to 5 % fast or slow. At no instant may the suspect trust itself while some
// voter holds a valid agreement of a majority that it is silent, or has an
// attempt at the transaction on its way.

const modelEpoch, modelRun = 10, "r1"

type modelClock struct{ offset, rate float64 }

// read returns what the node's clock shows at a true time.
func (c modelClock) read(now time.Duration) time.Time {
	return epochZero.Add(time.Duration(c.offset*float64(time.Second)) + time.Duration(float64(now)*c.rate))
}

type modelVoter struct {
	name    string
	clock   modelClock
	seen    *observed
	ballots *ballots
	booth   booth
	// attempted is when its last attempt to commit the loss has ended.
	attempted time.Time
}

// modelPipe carries messages in order, with any delay.
type modelPipe struct {
	from, to string
	queue    []message
	blocked  bool
}

type model struct {
	now   time.Duration
	names []string // all voters; the first is the suspect
	clock modelClock
	trust *trust
	seen  map[string]*modelVoter
	pipes map[[2]string]*modelPipe
	order [][2]string
	// instants with trust, with an agreement and with an attempt on its way
	trusted, agreed, attempts int
	// mutations, to show that the property can fail
	noWithhold bool
}

func newModel(n int, clocks func() modelClock) *model {
	tm := timing{silence: 200 * ms, join: 300 * ms, stall: time.Hour}
	m := &model{seen: map[string]*modelVoter{}, pipes: map[[2]string]*modelPipe{}, clock: clocks()}
	for i := range n {
		m.names = append(m.names, fmt.Sprintf("n%d", i))
	}
	m.trust = newTrust(tm, m.names[0])
	for _, name := range m.names[1:] {
		m.seen[name] = &modelVoter{name: name, clock: clocks()}
		m.start(m.seen[name])
		m.trust.linkUp(name)
	}
	for _, a := range m.names {
		for _, b := range m.names {
			if a != b {
				m.pipes[[2]string{a, b}] = &modelPipe{from: a, to: b}
				m.order = append(m.order, [2]string{a, b})
			}
		}
	}
	return m
}

// start begins a voter's process, which remembers nothing of an earlier one.
func (m *model) start(v *modelVoter) {
	now := v.clock.read(m.now)
	v.ballots, v.booth = newBallots(v.name), booth{}
	v.seen = &observed{watcher: &watcher{timing: m.trust.timing, started: now}, writeAge: -1}
	v.seen.session(now, modelEpoch, modelRun)
	v.seen.linkUp(modelRun, modelEpoch, true)
}

// restart ends a voter's process and begins another. Its votes that are on the
// way may still arrive. Its questions do not, because a connection carries those
// of one process only: the numbers of the next begin anew.
func (m *model) restart(v *modelVoter) {
	m.reconnect(v.name)
	for _, k := range m.order {
		switch p := m.pipes[k]; {
		case p.to == v.name:
			p.queue = nil
		case p.from == v.name:
			p.queue = slices.DeleteFunc(p.queue, func(msg message) bool { return msg.Ask != nil })
		}
	}
	for _, other := range m.seen {
		other.booth.forget(v.name)
	}
	m.start(v)
}

func (m *model) put(from, to string, msg message) {
	p := m.pipes[[2]string{from, to}]
	p.queue = append(p.queue, msg)
}

func (m *model) pulse() {
	for _, v := range m.names[1:] {
		seq, heard := m.trust.pulse(m.clock.read(m.now), v)
		m.put(m.names[0], v, message{Pulse: &pulseMsg{Seq: seq, Heard: heard, Run: modelRun, Epoch: modelEpoch, Acting: true, WriteAge: -1}})
	}
}

// review does what the mesh does when something may have changed the evidence.
func (m *model) review(v *modelVoter) evidence {
	now := v.clock.read(m.now)
	e := v.seen.evidence(now, own{})
	for _, paper := range v.booth.vote(now, m.names[0], modelEpoch, e) {
		if paper.Yes && !m.noWithhold {
			v.seen.withhold(paper.received.Add(withholdFor))
		}
		m.put(v.name, paper.to, message{Vote: &paper.voteMsg})
	}
	return e
}

func (m *model) ask(v *modelVoter) {
	if m.review(v) == 0 {
		return
	}
	msg := v.ballots.ask(v.clock.read(m.now), m.names[0], modelEpoch)
	for _, other := range m.names[1:] {
		if other != v.name {
			m.put(v.name, other, message{Ask: &msg})
		}
	}
}

// agreement is what the voter may act on.
func (m *model) agreement(v *modelVoter) (agreement, bool) {
	now := v.clock.read(m.now)
	return v.ballots.agreed(now, m.names[0], modelEpoch, v.seen.evidence(now, own{}), m.names)
}

// attempt sends the loss transaction if the voter has an agreement.
func (m *model) attempt(v *modelVoter) {
	if _, ok := m.agreement(v); !ok {
		return
	}
	now := v.clock.read(m.now)
	if !m.noWithhold {
		v.seen.withhold(now.Add(withholdFor))
	}
	v.attempted = now.Add(lossAttempt)
}

// deliver hands over the oldest message of a pipe.
func (m *model) deliver(p *modelPipe) {
	if len(p.queue) == 0 {
		return
	}
	msg := p.queue[0]
	p.queue = p.queue[1:]
	if p.to == m.names[0] {
		if msg.Echo != nil {
			_ = m.trust.echo(p.from, msg.Echo, modelEpoch)
		}
		return
	}
	v := m.seen[p.to]
	now := v.clock.read(m.now)
	switch {
	case msg.Pulse != nil:
		v.seen.pulse(now, msg.Pulse, false)
		m.review(v)
		if !v.seen.withholds(now, modelRun) {
			m.put(v.name, m.names[0], message{Echo: &echoMsg{Seq: msg.Pulse.Seq, Epoch: modelEpoch}})
		}
	case msg.Ask != nil:
		v.booth.ask(now, p.from, msg.Ask)
		m.review(v)
	case msg.Vote != nil:
		v.ballots.vote(p.from, msg.Vote)
	}
}

// reconnect breaks the suspect's connection to a voter and opens a new one.
func (m *model) reconnect(v string) {
	m.pipes[[2]string{m.names[0], v}].queue = nil
	m.pipes[[2]string{v, m.names[0]}].queue = nil
	m.trust.linkDown(v)
	m.trust.linkUp(v)
}

// check returns who holds an agreement against the suspect, or acts on one,
// while the suspect trusts itself.
func (m *model) check() error {
	mine := m.clock.read(m.now)
	trusts := m.trust.holds(mine, standing{epoch: modelEpoch, wrote: mine, voters: m.names})
	if trusts {
		m.trusted++
	}
	for _, name := range m.names[1:] {
		v := m.seen[name]
		if a, ok := m.agreement(v); ok {
			m.agreed++
			if trusts {
				return fmt.Errorf("at %v the suspect trusts itself while %s agree: %s", m.now, a.Voters, a.Evidence)
			}
		}
		if v.clock.read(m.now).Before(v.attempted) {
			m.attempts++
			if trusts {
				return fmt.Errorf("at %v the suspect trusts itself while %s declares it lost", m.now, name)
			}
		}
	}
	return nil
}

// drive runs random schedules until one breaks the property.
func (m *model) drive(t *rapid.T) error {
	pipe := func() *modelPipe { return m.pipes[rapid.SampledFrom(m.order).Draw(t, "pipe")] }
	voter := func() *modelVoter { return m.seen[rapid.SampledFrom(m.names[1:]).Draw(t, "voter")] }
	for range rapid.IntRange(20, 200).Draw(t, "steps") {
		switch rapid.IntRange(0, 11).Draw(t, "action") {
		case 0, 1: // usual life for a while
			for range rapid.IntRange(1, 6).Draw(t, "ticks") {
				m.now += 20 * ms
				m.pulse()
				for _, name := range m.names[1:] {
					m.ask(m.seen[name])
				}
				if err := m.settle(); err != nil {
					return err
				}
			}
		case 2:
			m.now += time.Duration(rapid.IntRange(1, 250).Draw(t, "ms")) * ms
		case 3:
			m.pulse()
		case 4:
			m.ask(voter())
		case 5, 6:
			m.deliver(pipe())
		case 7:
			p := pipe()
			p.blocked = !p.blocked
		case 8: // everything about the suspect stands still
			on := rapid.Bool().Draw(t, "on")
			for k, p := range m.pipes {
				if k[0] == m.names[0] || k[1] == m.names[0] {
					p.blocked = on
				}
			}
		case 9:
			m.reconnect(voter().name)
		case 10:
			m.restart(voter())
		case 11:
			m.attempt(voter())
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	return nil
}

// settle delivers all that is not blocked.
func (m *model) settle() error {
	for again := true; again; {
		again = false
		for _, k := range m.order {
			p := m.pipes[k]
			for !p.blocked && len(p.queue) > 0 {
				m.deliver(p)
				again = true
				if err := m.check(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func modelClocks(t *rapid.T) func() modelClock {
	return func() modelClock {
		return modelClock{
			offset: rapid.Float64Range(-1000, 1000).Draw(t, "offset"),
			rate:   rapid.Float64Range(0.95, 1.05).Draw(t, "rate"),
		}
	}
}

func TestNoTrustWhileBeingDeclaredLost(t *testing.T) {
	var trusted, agreed, attempts int
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapid.SampledFrom([]int{3, 5}).Draw(t, "voters"), modelClocks(t))
		if err := m.drive(t); err != nil {
			t.Fatal(err)
		}
		trusted, agreed, attempts = trusted+m.trusted, agreed+m.agreed, attempts+m.attempts
	})
	t.Logf("instants: %d with trust, %d with an agreement, %d with an attempt on its way", trusted, agreed, attempts)
	if trusted == 0 || agreed == 0 || attempts == 0 {
		t.Error("the schedules never got there: the property was not tested")
	}
}

// Why a voter withholds echoes after a yes: its vote reaches the asker, and
// before its withdrawal does, the suspect is heard again.
func TestWithholdingIsNeeded(t *testing.T) {
	perfect := func() modelClock { return modelClock{rate: 1} }
	for _, without := range []bool{false, true} {
		m := newModel(3, perfect)
		m.noWithhold = without
		suspect, voter, asker := "n0", "n1", "n2"
		m.now = time.Second // long after the start
		// All three are well; then nothing of the suspect arrives any more.
		m.pulse()
		if err := m.settle(); err != nil {
			t.Fatal(err)
		}
		m.now += 200 * ms
		m.ask(m.seen[asker])
		if err := m.settle(); err != nil { // the vote arrives: agreement
			t.Fatal(err)
		}
		if m.agreed == 0 {
			t.Fatal("no agreement on a silent suspect")
		}
		// The voter hears the suspect again; its withdrawal is still on the way.
		m.pulse()
		m.deliver(m.pipes[[2]string{suspect, voter}])
		m.deliver(m.pipes[[2]string{voter, suspect}])
		if err := m.check(); (err != nil) != without {
			t.Errorf("without withholding %v: %v", without, err)
		}
	}
}
