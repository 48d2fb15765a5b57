package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// facts is what the mesh needs to know from the rest of the member. The mesh
// calls it with its own lock held: the methods must return at once and must
// not call the mesh. What they return is not modified.
type facts interface {
	// Run is the random id of this process.
	Run() string
	// Origin is what is durably known of the member's beginning.
	Origin() origin
	// Generation of the cluster's history, -1 while this member, being empty,
	// does not know it.
	Generation() int64
	// SessionEpoch is the epoch of this member's session, 0 without one.
	SessionEpoch() int64
	// SessionOf returns a node's session as the view shows it: its epoch, 0 for
	// none, and the id of the process that holds it. It never goes back.
	SessionOf(node string) (epoch int64, run string)
	// LastWrite is when this session's last guarded write was acknowledged.
	LastWrite() time.Time
	// WritesSince is since when guarded writes have been acknowledged without a
	// gap of more than half the stall timeout.
	WritesSince() time.Time
	// Voters are the names of all voting members.
	Voters() []string
	// Maintenance is true from when this member announces that its writes will
	// stand still until one went through again.
	Maintenance() bool
}

// meshEvents are called from the mesh's goroutines, without its lock, possibly
// at the same time and out of order: each is a reason to look, and what counts
// is what the mesh answers then. They must not block.
type meshEvents struct {
	// Agreed: a majority agrees, or agrees anew, that the session is over.
	Agreed func(suspect string, epoch int64)
	// Voted: this member began to vote for the loss that asker wants.
	Voted func(asker, suspect string, epoch int64)
	// Died: the process that holds the session has ended.
	Died func(node string)
	// EvidenceChanged: there is other evidence than before.
	EvidenceChanged func(node string, epoch int64, words string)
	// NewerGeneration: a member of a newer generation was met.
	NewerGeneration func(node string, generation int64)
	// HelloChanged: [mesh.Hellos] has changed.
	HelloChanged func()
}

type meshConfig struct {
	// Node is this member, Peers are all other configured ones.
	Node  string
	Peers []string
	// Silence, Join and Stall are the timeouts of those names.
	Silence, Join, Stall time.Duration
	// Version of this build, shown to peers.
	Version string
	Log     *slog.Logger
	// Listener yields authenticated connections of other members; the mesh
	// closes it. Nil without peers.
	Listener net.Listener
	// Dial opens an authenticated connection to a peer. Its error must wrap
	// ECONNREFUSED if, and only if, nobody listens there.
	Dial func(ctx context.Context, peer string) (net.Conn, error)
	// Identify returns the name in the certificate of the other end.
	Identify func(net.Conn) (string, error)
	// Lifelines beside the connections; nil for none.
	Lifelines *meshLifelines
	// Point is called before and after a vote is sent; nil for nothing.
	Point  func(Point)
	Events meshEvents
}

// Floors and pauses that do not follow from the silence timeout.
const (
	// handshakeFloor is the least time for a dial or a hello: on a busy host a
	// TLS handshake takes longer than a small silence timeout would allow.
	handshakeFloor = 250 * time.Millisecond
	// firstRedial is the first pause between dials; it doubles up to a tenth
	// of the silence timeout. A dying process may still accept for a moment.
	firstRedial = time.Millisecond
	// refusalPause follows what will not change soon: a foreign certificate, an
	// old generation.
	refusalPause = time.Second
	// lostFloor is the least time after which unacknowledged data ends a link.
	lostFloor = time.Second
)

var (
	errReplaced  = errors.New("replaced by a newer connection")
	errOldRun    = errors.New("the process is another now")
	errOutOfTurn = fmt.Errorf("%w: message out of turn", errFrame)
)

// mesh keeps the connections with all other members, exchanges pulses on them
// and holds the decisions that follow: trust, evidence, agreement.
//
// Every member dials every other. What it dialed carries its own pulses and
// questions out, and echoes and votes back.
type mesh struct {
	cfg   meshConfig
	facts facts
	log   *slog.Logger
	peers map[string]*peer
	wake  chan struct{} // ends the loop's wait

	mu      sync.Mutex // guards the fields below and those of the peers
	watcher *watcher
	trust   *trust
	ballots *ballots
	booth   booth
	// acting is what the last pulses said.
	acting bool
	// nextPulse is when pulses are due, timer is set to when anything is.
	nextPulse time.Time
	timer     *time.Timer
	// standingNow is what standing answers until the lock is taken again, nil if it
	// was not asked yet.
	standingNow *standing
	// calls are the events that unlock delivers.
	calls []func()
}

// peer is one other member.
type peer struct {
	name string
	// redial ends the pause between dials.
	redial chan struct{}

	seen    *observed
	out, in *link // dialed and accepted, nil if not up
	hello   *helloMsg
	// evidence and epoch are what was last acted on.
	evidence evidence
	epoch    int64
	nextAsk  time.Time
	// trouble says why the last dial failed.
	trouble string
}

// newMesh returns a mesh that does nothing until Run.
func newMesh(cfg meshConfig, f facts) *mesh {
	if cfg.Point == nil {
		cfg.Point = func(Point) {}
	}
	w := &watcher{timing: timing{silence: cfg.Silence, join: cfg.Join, stall: cfg.Stall}, started: time.Now()}
	m := &mesh{
		cfg: cfg, facts: f, log: cfg.Log.With("component", "mesh"),
		peers: map[string]*peer{}, wake: make(chan struct{}, 1),
		watcher: w, trust: newTrust(w.timing, cfg.Node), ballots: newBallots(cfg.Node), booth: booth{},
	}
	for _, name := range cfg.Peers {
		m.peers[name] = &peer{name: name, redial: make(chan struct{}, 1), seen: &observed{watcher: w, writeAge: -1}}
	}
	return m
}

// Run takes part in the mesh until ctx ends or the listener fails. On return
// all goroutines of the mesh have ended and the listener is closed.
func (m *mesh) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	m.watcher.started = time.Now()
	m.watcher.last = time.Time{}
	m.timer = time.NewTimer(0)
	m.mu.Unlock()
	defer m.timer.Stop()
	var wg sync.WaitGroup
	take := func(l net.Listener, welcome func(context.Context, net.Conn) error) {
		wg.Go(func() {
			<-ctx.Done()
			_ = l.Close()
		})
		wg.Go(func() { cancel(m.accept(ctx, &wg, l, welcome)) })
	}
	if m.cfg.Listener != nil {
		take(m.cfg.Listener, m.welcome)
	}
	if m.cfg.Lifelines != nil {
		take(m.cfg.Lifelines.Listener, m.heed)
	}
	for _, p := range m.peers {
		wg.Go(func() { m.dial(ctx, p) })
	}
	wg.Go(func() { m.loop(ctx) })
	wg.Wait()
	return context.Cause(ctx)
}

// lock takes the lock and then the time: what was read before the lock was
// free is never younger than now.
func (m *mesh) lock() (now time.Time) {
	m.mu.Lock()
	now = time.Now()
	m.watcher.at(now)
	m.standingNow = nil
	return now
}

// unlock gives the lock back and delivers events.
func (m *mesh) unlock() {
	calls := m.calls
	m.calls = nil
	m.mu.Unlock()
	for _, call := range calls {
		call()
	}
}

// Check returns nil while this member may act, else an error that wraps
// ErrNoTrust and says why not.
func (m *mesh) Check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.standingNow = nil
	return m.trust.check(time.Now(), m.standing())
}

// standing of this member, as it was when it was first asked for under this lock:
// one message asks several times, and each time all voters are listed.
func (m *mesh) standing() standing {
	if m.standingNow == nil {
		m.standingNow = &standing{epoch: m.facts.SessionEpoch(), wrote: m.facts.LastWrite(), voters: m.facts.Voters()}
	}
	return *m.standingNow
}

// Agreement returns the agreement, as of now, that this session is over. Every
// attempt to commit a loss needs one that is valid when it is sent, and until
// the attempt has ended this member, like those that voted, gives the suspect
// no reason to trust itself.
func (m *mesh) Agreement(suspect string, epoch int64) (agreement, bool) {
	now := m.lock()
	defer m.unlock()
	p := m.peers[suspect]
	if p == nil {
		return agreement{}, false
	}
	m.review(now, p)
	a, ok := m.agreed(now, p, epoch)
	if ok && p.evidence&^evDead != 0 {
		p.seen.withhold(now.Add(withholdFor))
	}
	return a, ok
}

func (m *mesh) agreed(now time.Time, p *peer, epoch int64) (agreement, bool) {
	if p.epoch != epoch {
		return agreement{}, false
	}
	return m.ballots.agreed(now, p.name, epoch, p.seen.evidence(now, m.own(now)), m.standing().voters)
}

// Suspected reports whether this member has evidence against the session.
func (m *mesh) Suspected(node string, epoch int64) bool {
	now := m.lock()
	defer m.unlock()
	p := m.peers[node]
	if p == nil {
		return false
	}
	m.review(now, p)
	return p.epoch == epoch && p.evidence != 0
}

// Supported reports whether this member could act with the help of that one
// alone, as far as that is concerned. A voter that has just started does not help
// yet.
func (m *mesh) Supported(by string) bool {
	now := m.lock()
	defer m.unlock()
	return m.trust.voters[by].supports(now, m.facts.SessionEpoch(), m.trust.trustFor())
}

// Alive tells the mesh that the alive key of a session expired, or that it
// exists (again).
func (m *mesh) Alive(node string, epoch int64, expired bool) {
	now := m.lock()
	defer m.unlock()
	if p := m.peers[node]; p != nil {
		m.review(now, p)
		p.seen.alive(epoch, expired)
		m.review(now, p)
	}
}

// Refresh tells the mesh that the view shows other sessions than before. It
// would find out at the next pulse; told at once, it also tells the nodes
// concerned at once.
func (m *mesh) Refresh() {
	now := m.lock()
	defer m.unlock()
	for _, p := range m.peers {
		m.review(now, p)
	}
}

// Nudge sends pulses at once: what they say of this member has changed.
func (m *mesh) Nudge() {
	now := m.lock()
	defer m.unlock()
	m.pulseAll(now)
}

// Hellos returns the latest hello of every peer that is connected.
func (m *mesh) Hellos() map[string]helloMsg {
	m.mu.Lock()
	defer m.mu.Unlock()
	hs := map[string]helloMsg{}
	for name, p := range m.peers {
		if p.hello != nil {
			hs[name] = *p.hello
		}
	}
	return hs
}

// PeerStatus is what one member sees of another.
type PeerStatus struct {
	Name string
	// Dialed and Accepted tell which of the two connections are up.
	Dialed, Accepted bool
	// Trouble says why the dialed one is not.
	Trouble string
	// Heard is the age of the last pulse, negative if there was none.
	Heard time.Duration
	// Run, Version, Epoch and Acting are what the peer says of itself.
	Run, Version string
	Epoch        int64
	Acting       bool
	// WriteAge is the age of its last write when it pulsed, negative for none.
	WriteAge time.Duration
	// Evidence against its present session in words, "" if there is none.
	Evidence string
}

// Snapshot returns what this member sees of all others, sorted by name.
func (m *mesh) Snapshot() []PeerStatus {
	now := m.lock()
	defer m.unlock()
	var all []PeerStatus
	for _, p := range m.peers {
		s := PeerStatus{
			Name: p.name, Dialed: p.out != nil, Accepted: p.in != nil, Trouble: p.trouble,
			Heard: -1, Run: p.seen.peerRun, Epoch: p.seen.peerEpoch, Acting: p.seen.acting,
			WriteAge: p.seen.writeAge, Evidence: p.seen.evidence(now, m.own(now)).String(),
		}
		if !p.seen.heardAt.IsZero() {
			s.Heard = now.Sub(p.seen.heardAt)
		}
		if p.hello != nil {
			s.Version = p.hello.Version
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// loop does what is due by time: pulses, repeated questions, silence.
func (m *mesh) loop(ctx context.Context) {
	for ctx.Err() == nil {
		now := m.lock()
		if !now.Before(m.nextPulse) {
			m.pulseAll(now)
		}
		for _, p := range m.peers {
			m.review(now, p)
			if p.evidence != 0 && !now.Before(p.nextAsk) {
				m.ask(now, p)
			}
		}
		m.setTimer(now)
		m.unlock()
		select {
		case <-m.timer.C:
		case <-m.wake:
		case <-ctx.Done():
		}
	}
}

// setTimer sets the timer to when something is due next.
func (m *mesh) setTimer(now time.Time) {
	next := m.nextPulse
	for _, p := range m.peers {
		at := next
		switch {
		case p.evidence != 0:
			at = p.nextAsk
		case p.epoch != 0:
			at = p.seen.silentAt()
		}
		if at.Before(next) {
			next = at
		}
	}
	m.timer.Reset(next.Sub(now))
}

// pulseEvery is the time between two pulses, if nothing makes them come earlier.
func (m *mesh) pulseEvery() time.Duration { return m.cfg.Silence / pulsesPerSilence }

func (m *mesh) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// deliver puts an event aside until the lock is free.
func (m *mesh) deliver(call func()) { m.calls = append(m.calls, call) }

// own tells how this member fares.
func (m *mesh) own(now time.Time) own {
	s := m.standing()
	return own{acting: m.trust.holds(now, s), wrote: s.wrote, writesSince: m.facts.WritesSince()}
}

// review looks at the evidence against a peer's present session and does what
// follows from a change.
func (m *mesh) review(now time.Time, p *peer) {
	epoch, run := m.facts.SessionOf(p.name)
	renewed := p.seen.session(now, epoch, run)
	e := p.seen.evidence(now, m.own(now))
	was := p.evidence
	if renewed {
		was = 0
		if p.in != nil && p.in.echoed != 0 {
			// What it learns from this echo it should not learn a pulse later:
			// that its new session is known, or that its session is over.
			m.echo(now, p, p.in.echoed)
		}
	}
	if e != p.evidence || renewed && e != 0 {
		m.evidenceChanged(p, epoch, e)
	}
	if f := m.cfg.Events.Died; f != nil && e&evDead != 0 && was&evDead == 0 {
		m.deliver(func() { f(p.name) })
	}
	p.evidence, p.epoch = e, epoch
	for _, paper := range m.booth.vote(now, p.name, epoch, e) {
		m.cast(p, paper, e)
	}
	if e != 0 && was == 0 {
		m.ask(now, p)
		m.poke()
	}
	if e&evAliveExpired != 0 && was&evAliveExpired == 0 {
		m.reportAgreed(now, p)
	}
}

func (m *mesh) evidenceChanged(p *peer, epoch int64, e evidence) {
	words := e.String()
	if words == "" {
		m.log.Info("evidence cleared", "peer", p.name, "session", epoch)
	} else {
		m.log.Info("evidence", "peer", p.name, "session", epoch, "evidence", words)
	}
	if f := m.cfg.Events.EvidenceChanged; f != nil {
		m.deliver(func() { f(p.name, epoch, words) })
	}
}

// cast sends a vote about p's session to who asked for it.
func (m *mesh) cast(p *peer, paper ballotPaper, e evidence) {
	if paper.Yes && e&^evDead != 0 {
		p.seen.withhold(paper.received.Add(withholdFor))
	}
	if asker := m.peers[paper.to]; asker != nil && asker.in != nil {
		m.cfg.Point(pointVoteSending)
		asker.in.send(&message{Vote: &paper.voteMsg})
		m.cfg.Point(pointVoteSent)
	}
	if f := m.cfg.Events.Voted; f != nil && paper.first {
		m.deliver(func() { f(paper.to, paper.Suspect, paper.Epoch) })
	}
}

// ask puts the question about p's session to all other voters.
func (m *mesh) ask(now time.Time, p *peer) {
	p.nextAsk = now.Add(askEvery)
	msg := message{Ask: new(askMsg)}
	*msg.Ask = m.ballots.ask(now, p.name, p.epoch)
	msg.Ask.Dead = (p.evidence & evDead).String()
	for _, v := range m.standing().voters {
		if q := m.peers[v]; q != nil && q != p && q.out != nil {
			q.out.send(&msg)
		}
	}
	if p.evidence&(evAliveExpired|evDead) != 0 {
		m.reportAgreed(now, p) // may need no answer, so none will renew it
	}
}

func (m *mesh) reportAgreed(now time.Time, p *peer) {
	f := m.cfg.Events.Agreed
	if f == nil {
		return
	}
	if _, ok := m.agreed(now, p, p.epoch); ok {
		epoch := p.epoch
		m.deliver(func() { f(p.name, epoch) })
	}
}

// pulseAll sends a pulse to every peer.
func (m *mesh) pulseAll(now time.Time) {
	m.acting = m.trust.holds(now, m.standing())
	m.nextPulse = now.Add(m.pulseEvery())
	for _, p := range m.peers {
		m.pulse(now, p)
	}
}

// pulseIfChanged sends pulses if the last ones said something else of trust.
func (m *mesh) pulseIfChanged(now time.Time) {
	if m.trust.holds(now, m.standing()) != m.acting {
		m.pulseAll(now)
	}
}

func (m *mesh) pulse(now time.Time, p *peer) {
	if p.out == nil {
		return
	}
	seq, heard := m.trust.pulse(now, p.name)
	p.out.send(&message{Pulse: &pulseMsg{
		Seq: seq, Heard: heard, Run: m.facts.Run(), Epoch: m.facts.SessionEpoch(), Generation: m.facts.Generation(),
		Acting: m.acting, WriteAge: milliseconds(now, m.facts.LastWrite()), Maintenance: m.facts.Maintenance(),
	}})
}

// echo answers a pulse of p with what the view shows of p's session.
func (m *mesh) echo(now time.Time, p *peer, seq uint64) {
	l := p.in
	if p.seen.withholds(now, l.run) {
		return
	}
	if l.namedFrom == 0 || l.named != p.seen.epoch {
		l.named, l.namedFrom = p.seen.epoch, seq
	}
	l.echoed = seq
	l.send(&message{Echo: &echoMsg{Seq: seq, Epoch: p.seen.epoch}})
}

// fromAcceptor handles what comes back on a connection that this member dialed.
func (m *mesh) fromAcceptor(p *peer, l *link, msg *message) error {
	now := m.lock()
	defer m.unlock()
	if p.out != l {
		return errReplaced
	}
	switch {
	case msg.Echo != nil:
		if err := m.trust.echo(p.name, msg.Echo, m.facts.SessionEpoch()); err != nil {
			return err
		}
		m.pulseIfChanged(now)
	case msg.Vote != nil:
		m.ballots.vote(p.name, msg.Vote)
		if suspect := m.peers[msg.Vote.Suspect]; suspect != nil && msg.Vote.Yes {
			m.review(now, suspect)
			m.reportAgreed(now, suspect)
		}
	case msg.Pulse != nil, msg.Ask != nil, msg.Hello != nil:
		return errOutOfTurn
	}
	return nil
}

// fromDialer handles what comes in on a connection that p dialed.
func (m *mesh) fromDialer(p *peer, l *link, msg *message) error {
	now := m.lock()
	defer m.unlock()
	if p.in != l {
		return errReplaced
	}
	switch {
	case msg.Pulse != nil:
		return m.pulsed(now, p, l, msg.Pulse)
	case msg.Ask != nil:
		if suspect := m.peers[msg.Ask.Suspect]; suspect != nil {
			m.booth.ask(now, p.name, msg.Ask)
			m.ballots.declared(now, p.name, msg.Ask)
			m.review(now, suspect)
			if msg.Ask.Dead != "" {
				m.reportAgreed(now, suspect)
			}
		}
	case msg.Echo != nil, msg.Vote != nil, msg.Hello != nil:
		return errOutOfTurn
	}
	return nil
}

func (m *mesh) pulsed(now time.Time, p *peer, l *link, msg *pulseMsg) error {
	if msg.Seq <= l.seq || msg.Run != l.run {
		return fmt.Errorf("%w: pulse out of order", errFrame)
	}
	l.seq = msg.Seq
	if m.generation(p.name, msg.Generation) != "" {
		return nil // of another history: it gets no echo, so it will not act
	}
	p.seen.pulse(now, msg, l.answered(msg, p.seen.epoch))
	m.review(now, p)
	m.echo(now, p, msg.Seq)
	if m.nextPulse.Sub(now) < m.pulseEvery()/2 {
		// All members come to pulse together, and an idle one wakes up less often.
		m.pulseAll(now)
		m.setTimer(now)
	}
	return nil
}

// generation compares a peer's generation with this member's and returns what
// is wrong, if anything.
func (m *mesh) generation(peer string, theirs int64) string {
	own := m.facts.Generation()
	switch {
	case own < 0 || theirs < 0 || own == theirs:
		return ""
	case theirs < own:
		return fmt.Sprintf("generation %d is over: this is generation %d", theirs, own)
	}
	if f := m.cfg.Events.NewerGeneration; f != nil {
		m.deliver(func() { f(peer, theirs) })
	}
	return fmt.Sprintf("generation %d is newer than ours, %d", theirs, own)
}

// linkUp makes l the dialed or the accepted connection with p. The newest
// counts: a peer that opens another has given up the one before.
func (m *mesh) linkUp(p *peer, l *link, dialed bool, h *helloMsg) {
	now := m.lock()
	defer m.unlock()
	slot, other := &p.in, &p.out
	if dialed {
		slot, other = other, slot
	}
	m.drop(now, p, slot, errReplaced)
	if *other != nil && (*other).run != l.run {
		m.drop(now, p, other, errOldRun)
	}
	*slot = l
	p.hello = h
	p.seen.linkUp(l.run, h.Epoch, dialed)
	m.log.Info("peer connected", "peer", p.name, "dialed", dialed, "run", l.run, "version", h.Version)
	m.review(now, p)
	if dialed {
		p.trouble = ""
		m.trust.linkUp(p.name)
		m.pulse(now, p)
	}
	if f := m.cfg.Events.HelloChanged; f != nil {
		m.deliver(f)
	}
}

// drop ends the connection in the slot, if there is one.
func (m *mesh) drop(now time.Time, p *peer, slot **link, why error) {
	l := *slot
	if l == nil {
		return
	}
	*slot = nil
	l.cut(why)
	p.seen.linkDown(now)
	if slot == &p.out {
		m.trust.linkDown(p.name)
	} else {
		m.booth.forget(p.name)
		m.ballots.forget(p.name)
	}
}

// linkDown notes that l ended.
func (m *mesh) linkDown(p *peer, l *link) {
	now := m.lock()
	defer m.unlock()
	switch l {
	case p.out:
		m.drop(now, p, &p.out, nil)
	case p.in:
		m.drop(now, p, &p.in, nil)
		if p.out != nil {
			// If the process died, this finds out; no need to wait for the next.
			m.pulse(now, p)
		} else {
			select {
			case p.redial <- struct{}{}:
			default:
			}
		}
	default:
		return // replaced
	}
	m.log.Info("peer disconnected", "peer", p.name, "reason", l.why())
	m.parted(p)
	m.review(now, p)
}

// parted forgets the hello of a peer with which no connection is up.
func (m *mesh) parted(p *peer) {
	if p.out == nil && p.in == nil {
		p.hello = nil
		if f := m.cfg.Events.HelloChanged; f != nil {
			m.deliver(f)
		}
	}
}
