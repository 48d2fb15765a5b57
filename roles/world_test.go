package roles

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The world around the engine, for property tests: one request, its store, owners
// that come and go, agents with journals, and a network that delivers what it was
// ever given at any time, any number of times, or never.
//
// The agents follow the rules that real ones follow. What the world checks is that
// with such agents the engine keeps its promises, whatever happens in between.
type world struct {
	t       *rapid.T
	stored  store
	owner   State
	former  []State // of owners that were frozen and may go on
	revised int64   // last revision of the claim
	epoch   uint64  // generation
	agents  map[string]*machine
	hello   map[string]Journal // what the owner knows of agents
	net     []message
	known   map[string]Step    // step records as stored last
	status  RequestStatus      // as stored last
	held    bool               // by a new generation or an operator, until one releases it
	reran   bool               // an operator has had something run again
	inserts int                // of steps
	repeat  map[attemptID]bool // whether the step was repeatable when the attempt was over
	choices map[string]string
	ends    map[attemptID]string // how attempts ended in truth; none: not at all
	tick    int
}

// message is what an owner or an agent has sent. Exactly one field is set.
type message struct {
	command *command
	event   Event
	floor   *Fence // an agent refuses: not above its floor
}

type command struct {
	Effect
	final bool
}

// attemptID names an attempt of a step.
type attemptID struct {
	step    string
	attempt int
}

// entry is what a journal has of an attempt.
type entry struct {
	state     AttemptState
	spawnable bool // intended: the agent will start it by itself
	code      int
	killed    bool
}

// machine is an agent with its journal and its processes.
type machine struct {
	w       *world
	name    string
	journal Journal
	knows   bool // the request
	fence   Fence
	floor   Fence
	entries map[attemptID]*entry
	highest map[string]int // attempt of each step
	gone    []string       // ids of journals that it had
	// The truth, which no reinstallation forgets.
	starts  map[attemptID]int
	running map[attemptID]bool
}

func newWorld(t *rapid.T, p *Process) *world {
	w := &world{
		t:      t,
		epoch:  1,
		agents: make(map[string]*machine),
		hello:  make(map[string]Journal),
		known:  make(map[string]Step),

		choices: make(map[string]string),
		repeat:  make(map[attemptID]bool),
		ends:    make(map[attemptID]string),
	}
	for _, name := range []string{"a1", "a2"} {
		m := &machine{w: w, name: name, starts: make(map[attemptID]int)}
		m.reinstall()
		w.agents[name] = m
		w.hello[name] = m.journal
	}
	r, err := NewRequest(p, RequestOptions{ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewState(r, w.epoch)
	if err != nil {
		t.Fatal(err)
	}
	w.status = s.Record.Status
	w.stored.put(t, s, Change{Record: true})
	w.revised++
	if rapid.Bool().Draw(t, "accepted by its first owner") {
		w.accept(s)
		return w
	}
	w.stored.accepted = w.revised
	w.takeOver()
	return w
}

// accept claims and dispatches the request in the transaction that accepts it.
func (w *world) accept(s State) {
	w.stored.accepted = AtAcceptance
	w.owner = s
	w.happens(Claimed{Fence{Generation: w.epoch, Revision: AtAcceptance}})
	for _, e := range Pending(w.owner) {
		if (e.Kind == EffectChooseAgent || e.Kind == EffectExpand) && rapid.Bool().Draw(w.t, "an agent is there") {
			w.perform(e)
		}
	}
	w.stored.accepted = w.revised
	w.owner = w.owner.Accepted(w.revised)
	w.happens(Claimed{w.owner.Fence})
}

// takeOver lets a new owner load the request and claim it.
func (w *world) takeOver() {
	w.revised++
	fence := Fence{Generation: w.epoch, Revision: w.revised}
	s, err := Load(w.stored.spec, w.stored.record, w.stored.steps, w.owner.Fence, w.stored.accepted)
	if err != nil {
		w.t.Fatal(err)
	}
	w.owner = s
	w.happens(Claimed{fence})
}

// happens lets the owner take in an event: next, store, answer.
func (w *world) happens(ev Event) {
	w.tick++
	before := snapshot(w.t, w.owner)
	s, change, err := Next(w.owner, ev, Stamp(fmt.Sprint(w.tick)))
	if _, operator := ev.(order); operator && (errors.Is(err, ErrConflict) || errors.Is(err, ErrInvalid)) {
		return // operators may be late, and mistaken
	}
	if err != nil {
		w.t.Fatalf("%+v: %v", ev, err)
	}
	switch ev := ev.(type) {
	case Claimed:
		w.held = w.held || s.Fence.Generation > w.owner.Fence.Generation && w.owner.Fence != Fence{}
	case Hold:
		w.held = w.held || ev.Step == ""
	case Release:
		w.held = w.held && ev.Step != ""
	case Rerun:
		w.reran = true
	}
	if snapshot(w.t, w.owner) != before {
		w.t.Fatalf("%+v changed its input", ev)
	}
	w.stored.put(w.t, s, change)
	w.stored.check(w.t, s)
	w.audit(s, change, ev)
	w.owner = s
	for _, e := range change.Replies {
		w.send(e)
	}
}

// audit checks what was stored against what was stored before, and against the
// truth.
func (w *world) audit(s State, change Change, ev Event) {
	if w.status.Final() && s.Record.Status != w.status {
		w.t.Fatalf("%+v: final status %s became %s", ev, w.status, s.Record.Status)
	}
	if !w.status.Final() && s.Record.Status.Final() && s.Record.Cancel == nil && s.Record.Finish == nil {
		w.checkOutcome(s)
	}
	w.status = s.Record.Status
	for _, name := range change.Steps {
		i := s.Index(name)
		st, def := *s.Steps[i], s.Def(i)
		was := w.known[st.Name]
		if was.Status == "" {
			was.Status = StepWaiting
		}
		if _, again := ev.(Rerun); was.Status.Final() && st.Status != was.Status && !again {
			w.t.Fatalf("%+v: step %s was %s and became %s", ev, st.Name, was.Status, st.Status)
		}
		if st.Attempt != was.Attempt {
			if st.Attempt != was.Attempt+1 || st.Status != StepDispatched {
				w.t.Fatalf("%+v: step %s: attempt %d became %d, %s", ev, st.Name, was.Attempt, st.Attempt, st.Status)
			}
			w.checkDispatch(s, st, was, def, ev)
		}
		if was.Status == StepInDoubt && st.Status.derived() && (st.Decision == nil || st.Decision.As != VerdictRerun) && st.Failures == was.Failures {
			w.t.Fatalf("%+v: step %s left doubt by itself", ev, st.Name)
		}
		if was.Status.out() && st.Status.derived() {
			w.repeat[attemptID{name, was.Attempt}] = def.Repeatable // an operator may change it later
		}
		w.checkTruth(st, was, def, ev)
		w.known[st.Name] = st
	}
}

// checkDispatch checks that a new attempt may be made, on that agent.
func (w *world) checkDispatch(s State, st, was Step, def *StepDef, ev Event) {
	if s.Record.Cancel != nil || w.held {
		w.t.Fatalf("%+v: step %s dispatched in a request that is cancelled or held", ev, st.Name)
	}
	if was.Hold != nil || was.Skipped() {
		w.t.Fatalf("%+v: step %s dispatched, which is held or to be skipped", ev, st.Name)
	}
	w.checkInstance(s, st, ev)
	selector := def.Agent.String()
	if agent := w.choices[selector]; agent != "" && agent != st.Agent || !def.Agent.Matches(st.Agent, def.Agent.Labels) {
		w.t.Fatalf("%+v: step %s dispatched to %s, but %s means %s", ev, st.Name, st.Agent, selector, agent)
	}
	w.choices[selector] = st.Agent
	if was.Attempt == 0 {
		return
	}
	rerun := was.Decision != nil && was.Decision.As == VerdictRerun
	end := w.ends[attemptID{st.Name, was.Attempt}]
	if end == "" && slices.Contains(w.agents[was.Agent].gone, was.Dispatch.Journal.ID) {
		end = "unknown" // the journal that it was sent to has gone: nobody takes the start
	}
	repeatable := w.repeat[attemptID{st.Name, was.Attempt}]
	switch {
	case end == "":
		w.t.Fatalf("%+v: step %s: attempt %d follows one that has not ended", ev, st.Name, st.Attempt)
	case end == "success" && !rerun && !repeatable:
		w.t.Fatalf("%+v: step %s: attempt %d follows a success", ev, st.Name, st.Attempt)
	case end == "unknown" && !rerun && !repeatable:
		w.t.Fatalf("%+v: step %s: attempt %d follows an unknown end", ev, st.Name, st.Attempt)
	}
}

// checkOutcome compares the outcome of a request that nobody cancelled with what
// its definition says.
func (w *world) checkOutcome(s State) {
	status := func(i int) StepStatus { return s.Steps[i].Status }
	counts := func(i int) StepStatus { // for what needs it
		if s.Steps[i].Passed {
			return StepSucceeded
		}
		return status(i)
	}
	want := RequestSucceeded
	for i, st := range s.Steps {
		if w.checkParent(s, i) {
			continue
		}
		needs := make([]StepStatus, 0, len(s.Steps))
		recovered := false
		for j := range s.Steps {
			if slices.Contains(s.Def(i).Needs, s.Steps[j].Name) {
				needs = append(needs, counts(j))
			}
			if slices.Contains(s.Def(j).Needs, st.Name) && s.Def(j).Recovers && status(j) == StepSucceeded {
				recovered = true
			}
		}
		runs := map[Condition]bool{
			OnAlways:  true,
			OnFailure: slices.Contains(needs, StepFailed),
			OnSuccess: !slices.ContainsFunc(needs, func(s StepStatus) bool { return s != StepSucceeded }),
		}[s.Def(i).On]
		// What was decided before an operator let its needs run again stays decided.
		if !w.reran && runs != (status(i) != StepSkipped || st.Passed) {
			w.t.Fatalf("%s: step %s, on: %s", summary(s), st.Name, s.Def(i).On)
		}
		if status(i) == StepFailed && !recovered {
			want = RequestFailed
		}
	}
	if s.Record.Status != want {
		w.t.Fatalf("%s: should have %s", summary(s), want)
	}
}

// checkTruth compares a status that the agent's word has decided with what its
// processes did.
func (w *world) checkTruth(st, was Step, def *StepDef, ev Event) {
	if st.Status == was.Status && st.Attempt == was.Attempt {
		return
	}
	if _, operator := ev.(order); operator || st.Attempt == 0 {
		return
	}
	id := attemptID{st.Name, st.Attempt}
	switch end := w.ends[id]; st.Status {
	case StepSucceeded:
		if end != "success" {
			w.t.Fatalf("%+v: step %s %s, but in truth attempt %d ended %q", ev, st.Name, st.Status, st.Attempt, end)
		}
	case StepFailed:
		if end != "failure" && end != "never" {
			w.t.Fatalf("%+v: step %s %s, but in truth attempt %d ended %q", ev, st.Name, st.Status, st.Attempt, end)
		}
	case StepCancelled:
		_, unsent := ev.(Cancel)
		if end := w.ends[id]; w.agents[st.Agent].running[id] || !unsent && (end == "unknown" || end == "success") {
			w.t.Fatalf("%+v: step %s is cancelled, but in truth attempt %d ended %q", ev, st.Name, st.Attempt, end)
		}
	case StepInDoubt:
		if def.Repeatable && w.owner.Record.Cancel == nil && st.Unknowns < maxUnknowns {
			w.t.Fatalf("%+v: step %s is repeatable and in doubt", ev, st.Name)
		}
	}
}

func (w *world) started(id attemptID) int {
	n := 0
	for _, m := range w.agents {
		n += m.starts[id]
	}
	return n
}

// send puts an effect on the network.
func (w *world) send(e Effect) {
	w.net = append(w.net, message{command: &command{Effect: e, final: w.owner.Record.Status.Final()}})
}

// perform does an effect of the present owner.
func (w *world) perform(e Effect) {
	switch e.Kind {
	case EffectChooseAgent:
		agent := e.Agent
		if agent == "" {
			agent = rapid.SampledFrom([]string{"a1", "a2"}).Draw(w.t, "agent")
		}
		w.happens(AgentChosen{Step: e.Step, Agent: agent, Journal: w.hello[agent]})
	case EffectExpand:
		w.happens(Expanded{Step: e.Step, Agents: rapid.SampledFrom([][]string{{"a1"}, {"a2", "a1"}, {"a1", "a2"}, {"a2"}, {}}).Draw(w.t, "agents")})
	case EffectWait:
		w.happens(RetryDue{Step: e.Step, Attempt: e.Attempt})
	case EffectSend:
		if w.held || w.owner.Record.Cancel != nil {
			w.t.Fatalf("%+v in a request that is held or cancelled", e)
		}
		w.send(e)
	default:
		w.send(e)
	}
}

// deliver hands over a message. The network still has it.
func (w *world) deliver(m message) {
	switch {
	case m.command != nil:
		w.agents[m.command.Agent].obey(*m.command)
	case m.floor != nil:
		if *m.floor == w.owner.Fence {
			w.former = append(w.former, w.owner)
			w.takeOver()
		}
	default:
		if ev, ok := m.event.(JournalChanged); ok {
			if ev.Journal != w.agents[ev.Agent].journal.ID {
				return // a link that was opened before the last one
			}
			w.hello[ev.Agent] = w.agents[ev.Agent].journal
		}
		w.happens(m.event)
	}
}

// ---- agents ----

// reinstall makes the machine anew: all memory is gone, nothing runs.
func (m *machine) reinstall() {
	for id := range m.running {
		m.w.ends[id] = "unknown"
	}
	for id := range m.entries {
		if m.w.ends[id] == "" {
			m.w.ends[id] = "unknown"
		}
	}
	m.gone = append(m.gone, m.journal.ID)
	m.w.tick++
	m.journal = Journal{ID: fmt.Sprintf("%s-%d", m.name, m.w.tick), Counter: 1}
	m.knows, m.fence, m.floor = false, Fence{}, Fence{}
	m.entries, m.highest = make(map[attemptID]*entry), make(map[string]int)
	m.running = make(map[attemptID]bool)
}

func (m *machine) obey(c command) {
	if c.Journal != "" && c.Journal != m.journal.ID {
		return
	}
	if c.Kind == EffectAck || c.Kind == EffectFinish {
		m.acknowledged(c)
		return
	}
	switch {
	case !m.knows && c.Fence.Compare(m.floor) <= 0:
		m.w.net = append(m.w.net, message{floor: &c.Fence})
		return
	case m.knows && c.Fence.Compare(m.fence) < 0:
		return
	}
	m.knows = true
	m.fence = c.Fence
	id := attemptID{c.Step, c.Attempt}
	e := m.entries[id]
	switch c.Kind {
	case EffectAdopt:
		answer := Adopted{Agent: m.name, Fence: c.Fence, Journal: m.journal}
		for _, id := range slices.SortedFunc(maps.Keys(m.entries), compareIDs) {
			answer.Attempts = append(answer.Attempts, m.report(id))
		}
		m.w.net = append(m.w.net, message{event: answer})
	case EffectSend:
		if e == nil && c.Attempt > m.highest[c.Step] {
			e = m.write(id, AttemptIntended)
		}
		if e != nil && e.state == AttemptIntended {
			e.spawnable = true
		}
		if e != nil {
			m.tell(id)
		}
	case EffectKill:
		switch {
		case e == nil && c.Attempt > m.highest[c.Step]:
			m.write(id, AttemptNeverStarted)
		case e == nil:
			return
		case e.state == AttemptIntended:
			m.write(id, AttemptNeverStarted)
		case e.state == AttemptRunning:
			delete(m.running, id)
			e = m.write(id, AttemptExited)
			e.code, e.killed = rapid.SampledFrom([]int{143, 0}).Draw(m.w.t, "killed with"), true
			m.w.ends[id] = "failure"
		}
		m.tell(id)
	}
}

func compareIDs(a, b attemptID) int {
	return slices.Compare([]string{a.step, fmt.Sprint(a.attempt)}, []string{b.step, fmt.Sprint(b.attempt)})
}

func (m *machine) acknowledged(c command) {
	id := attemptID{c.Step, c.Attempt}
	if m.fence.Compare(c.Fence) < 0 {
		m.fence = c.Fence
	}
	if e := m.entries[id]; e != nil && e.state.end() {
		delete(m.entries, id)
	}
	if c.final && len(m.entries) == 0 && m.knows && m.fence.Compare(c.Fence) <= 0 {
		m.knows, m.highest = false, make(map[string]int)
		if m.floor.Compare(c.Fence) < 0 {
			m.floor = c.Fence
		}
		m.fence = Fence{}
	}
}

// write makes an entry durable.
func (m *machine) write(id attemptID, state AttemptState) *entry {
	e := m.entries[id]
	if e == nil {
		e = &entry{}
		m.entries[id] = e
	}
	e.state = state
	if state == AttemptNeverStarted {
		m.w.ends[id] = "never"
	}
	m.highest[id.step] = max(m.highest[id.step], id.attempt)
	m.journal.Counter++
	return e
}

func (m *machine) report(id attemptID) Report {
	e := m.entries[id]
	r := Report{Agent: m.name, Step: id.step, Attempt: id.attempt, Journal: m.journal, State: e.state, ExitCode: e.code, Killed: e.killed}
	if e.state == AttemptIntended && e.spawnable {
		r.State = AttemptAccepted
	}
	return r
}

func (m *machine) tell(id attemptID) {
	m.w.net = append(m.w.net, message{event: m.report(id)})
}

// spawn starts the process of an attempt. Here an attempt starts, so here the world
// looks whether it may.
func (m *machine) spawn(id attemptID) {
	t := m.w.t
	m.starts[id]++
	if n := m.w.started(id); n != 1 {
		t.Fatalf("attempt %d of step %s was started %d times", id.attempt, id.step, n)
	}
	for _, other := range m.w.agents {
		for running := range other.running {
			if running.step == id.step {
				t.Fatalf("attempts %d and %d of step %s run at the same time", running.attempt, id.attempt, id.step)
			}
		}
	}
	st := m.w.known[id.step]
	if forced := st.Decision != nil && st.Decision.Force && st.Attempt == id.attempt; !forced && (st.Attempt != id.attempt || !st.Status.out()) {
		t.Fatalf("attempt %d of step %s was started when the step was %s with attempt %d", id.attempt, id.step, st.Status, st.Attempt)
	}
	m.running[id] = true
	m.write(id, AttemptRunning)
	m.tell(id)
}

// ids returns the entries in a state, in order.
func (m *machine) ids(want func(*entry) bool) []attemptID {
	var ids []attemptID
	for _, id := range slices.SortedFunc(maps.Keys(m.entries), compareIDs) {
		if want(m.entries[id]) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *machine) spawnable() []attemptID {
	return m.ids(func(e *entry) bool { return e.state == AttemptIntended && e.spawnable })
}

func (m *machine) live() []attemptID {
	return m.ids(func(e *entry) bool { return e.state == AttemptRunning })
}

func (m *machine) exit(id attemptID, code int) {
	delete(m.running, id)
	m.write(id, AttemptExited).code = code
	m.w.ends[id] = "success"
	if code != 0 {
		m.w.ends[id] = "failure"
	}
	m.tell(id)
}

// lose ends a process without a trace of how.
func (m *machine) lose(id attemptID) {
	delete(m.running, id)
	m.write(id, AttemptUnknown)
	m.w.ends[id] = "unknown"
	m.tell(id)
}

// restart is a crash and start of the agent's program: processes live on, intents
// are not followed by themselves, and everything is reported again.
func (m *machine) restart() {
	for _, id := range m.ids(func(*entry) bool { return true }) {
		m.entries[id].spawnable = false
		m.tell(id)
	}
}

// ---- what may happen ----

// The faults and orders that a world may see. Each world sees some of them only:
// where everything goes wrong, little happens.
var trouble = []string{"crash", "generation", "frozen", "cancel", "resolve", "give up", "restart", "reinstall", "lose", "floor", "reach", "hold", "skip", "rerun", "finish", "amend"}

type action struct {
	weight int
	do     func()
}

// act lets something happen that is possible now.
func (w *world) act(troubles map[string]bool) {
	actions := make(map[string]action)
	may := func(kind, name string, weight int, do func()) {
		if kind == "" || troubles[kind] {
			actions[kind+name] = action{weight, do}
		}
	}
	w.ownerActions(may)
	for _, name := range []string{"a1", "a2"} {
		w.agents[name].actions(may)
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(actions)) {
		names = append(names, slices.Repeat([]string{name}, actions[name].weight)...)
	}
	if len(names) > 0 {
		actions[rapid.SampledFrom(names).Draw(w.t, "action")].do()
	}
}

func (w *world) ownerActions(may func(kind, name string, weight int, do func())) {
	if effects := Pending(w.owner); len(effects) > 0 {
		may("", "effect", 12, func() { w.perform(rapid.SampledFrom(effects).Draw(w.t, "effect")) })
	}
	if n := len(w.net); n > 0 {
		may("", "deliver new", 12, func() { w.deliver(rapid.SampledFrom(w.net[max(0, n-3):]).Draw(w.t, "message")) })
		may("", "deliver any", 8, func() { w.deliver(rapid.SampledFrom(w.net).Draw(w.t, "message")) })
	}
	may("crash", "", 1, func() {
		w.former = append(w.former, w.owner)
		w.takeOver()
	})
	may("crash", " before storing", 1, func() {
		if len(w.net) > 0 {
			if m := rapid.SampledFrom(w.net).Draw(w.t, "lost"); m.event != nil {
				if _, _, err := Next(w.owner, m.event, ""); err != nil {
					w.t.Fatalf("%+v: %v", m.event, err)
				}
			}
		}
		w.takeOver()
	})
	if len(w.former) > 0 {
		may("frozen", "", 3, func() {
			for _, e := range Pending(rapid.SampledFrom(w.former).Draw(w.t, "former")) {
				if e.Kind != EffectChooseAgent && e.Kind != EffectExpand && e.Kind != EffectWait {
					w.send(e)
				}
			}
		})
	}
	may("generation", "", 1, func() {
		w.epoch++
		w.takeOver()
	})
	may("generation", " release", 3, func() { w.happens(Release{By: "ada"}) })
	may("cancel", "", 1, func() { w.happens(Cancel{By: "ada"}) })
	w.orderActions(may)
	verdict := rapid.SampledFrom([]Verdict{VerdictSuccess, VerdictFailed, VerdictRerun})
	for _, st := range w.owner.Steps {
		if st.Status == StepInDoubt {
			may("resolve", st.Name, 2, func() {
				w.happens(Resolve{Step: st.Name, As: verdict.Draw(w.t, "verdict"), Force: rapid.Bool().Draw(w.t, "force")})
			})
		}
		if st.Status.out() {
			may("resolve", " early "+st.Name, 1, func() {
				w.happens(Resolve{Step: st.Name, As: verdict.Draw(w.t, "verdict"), Force: rapid.Bool().Draw(w.t, "force")})
			})
			may("give up", st.Name, 1, func() {
				w.happens(AgentUnreachable{st.Agent})
				w.happens(Resolve{Step: st.Name, As: verdict.Draw(w.t, "verdict"), Force: true})
			})
		}
	}
}

func (m *machine) actions(may func(kind, name string, weight int, do func())) {
	w := m.w
	for _, id := range m.spawnable() {
		may("", fmt.Sprint("spawn ", m.name, id), 8, func() { m.spawn(id) })
	}
	for _, id := range m.live() {
		may("", fmt.Sprint("exit ", m.name, id), 6, func() {
			m.exit(id, rapid.SampledFrom([]int{0, 1}).Draw(w.t, "code"))
		})
		may("lose", fmt.Sprint(m.name, id), 4, func() { m.lose(id) })
	}
	may("restart", m.name, 1, m.restart)
	may("reinstall", m.name, 1, func() {
		m.reinstall()
		w.net = append(w.net, message{event: JournalChanged{Agent: m.name, Journal: m.journal.ID}})
	})
	may("floor", m.name, 1, func() {
		if !m.knows { // other requests raise it, up to what the cluster has come to
			m.floor = Fence{w.epoch, w.revised}
		}
	})
	may("reach", m.name, 1, func() { w.happens(AgentUnreachable{m.name}) })
	may("reach", " again "+m.name, 1, func() { w.happens(AgentReachable{m.name}) })
}

// calm lets the world go on without faults: everything sent arrives, once and in
// order, agents tell again what was not acknowledged, and operators release what is
// held. It returns when nothing is left to happen.
func (w *world) calm() {
	w.happens(Release{By: "ada"})
	for _, st := range w.owner.Steps {
		w.happens(Release{Step: st.Name, By: "ada"})
	}
	for _, name := range []string{"a1", "a2"} {
		m := w.agents[name]
		w.hello[name] = m.journal
		w.happens(JournalChanged{Agent: name, Journal: m.journal.ID})
		w.happens(AgentReachable{name})
	}
	for range 40 + 60*len(w.owner.Steps) {
		before := snapshot(w.t, w.owner) + fmt.Sprint(w.agents["a1"].entries, w.agents["a2"].entries)
		w.net = nil
		for _, name := range []string{"a1", "a2"} {
			w.agents[name].restart()
		}
		w.flush()
		for _, e := range Pending(w.owner) {
			if slices.Contains(Pending(w.owner), e) { // not overtaken by the one before
				w.perform(e)
			}
		}
		w.flush()
		for _, name := range []string{"a1", "a2"} {
			m := w.agents[name]
			for _, id := range m.spawnable() {
				m.spawn(id)
			}
			for _, id := range m.live() {
				m.exit(id, rapid.SampledFrom([]int{0, 1}).Draw(w.t, "code"))
			}
		}
		w.flush()
		if before == snapshot(w.t, w.owner)+fmt.Sprint(w.agents["a1"].entries, w.agents["a2"].entries) {
			return
		}
	}
	w.t.Fatalf("no end of it: %s, pending %q", summary(w.owner), pending(w.owner))
}

// flush delivers all messages, and those that they cause.
func (w *world) flush() {
	for len(w.net) > 0 {
		m := w.net[0]
		w.net = w.net[1:]
		w.deliver(m)
	}
}

// genGraph draws a process on two agents.
func genGraph(t *rapid.T) *Process {
	p := &Process{Name: "test"}
	var names []string
	for i := range rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, "steps") {
		name := string(rune('a' + i))
		p.Steps = append(p.Steps, genStep(t, name, names))
		names = append(names, name)
	}
	return p
}

// genStep draws a step that may need some of others.
func genStep(t *rapid.T, name string, others []string) StepDef {
	s := StepDef{
		Name:       name,
		On:         rapid.SampledFrom([]Condition{OnSuccess, OnSuccess, OnFailure, OnAlways}).Draw(t, "on"),
		Run:        "true",
		Repeatable: rapid.Bool().Draw(t, "repeatable"),
		Retry:      Retry{Attempts: rapid.SampledFrom([]int{0, 2, 3}).Draw(t, "attempts"), Delay: rapid.SampledFrom([]Duration{0, 5}).Draw(t, "delay")},
		Agent: rapid.SampledFrom([]Selector{
			{Name: "a1"}, {Name: "a2"}, {Labels: map[string]string{"tier": "x"}}, {Labels: map[string]string{"tier": "y"}},
		}).Draw(t, "selector"),
	}
	if rapid.SampledFrom([]bool{false, false, true}).Draw(t, "for each") {
		s.Agent, s.ForEach = Selector{}, &Targets{Labels: map[string]string{"tier": "x"}}
		s.MaxParallel = rapid.IntRange(0, 1).Draw(t, "parallel")
		s.FailFast = rapid.Bool().Draw(t, "fail fast")
	}
	for _, other := range others {
		if rapid.SampledFrom([]bool{false, false, true}).Draw(t, "needed") {
			s.Needs = append(s.Needs, other)
		}
	}
	if len(s.Needs) == 0 && s.On == OnFailure {
		s.On = OnAlways
	}
	s.Recovers = s.On == OnFailure && rapid.Bool().Draw(t, "recovers")
	return s
}

// Whatever happens in whatever order: an attempt starts at most once, attempts of a
// step never overlap, nothing starts after its step was decided or the request
// cancelled, what is decided stays decided and is what the processes did, and what
// is stored is all that an owner needs. And when the faults are over, the request
// comes to an end or rests in doubt, and agents can forget it.
func TestTheEngineKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, genGraph(t))
		troubles := make(map[string]bool)
		for _, kind := range trouble {
			troubles[kind] = rapid.Bool().Draw(t, kind)
		}
		for range rapid.SampledFrom([]int{5, 10, 20, 40, 80, 160}).Draw(t, "events") {
			w.act(troubles)
		}
		w.calm()
		status := w.owner.Record.Status
		if !status.Final() && status != RequestInDoubt {
			t.Fatalf("the request is %s, pending %q", summary(w.owner), pending(w.owner))
		}
		for _, name := range []string{"a1", "a2"} {
			m := w.agents[name]
			if len(m.entries) > 0 || status.Final() && m.knows && m.used() {
				t.Fatalf("%s cannot forget the request, %s: knows it %v, %d entries", name, summary(w.owner), m.knows, len(m.entries))
			}
		}
	})
}

// used reports whether the agent is one that the request has dispatched to.
func (m *machine) used() bool {
	return slices.ContainsFunc(m.w.owner.Steps, func(st *Step) bool { return st.Agent == m.name })
}

// Without faults and orders every run comes to a final status.
func TestWithoutFaultsRequestsEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, genGraph(t))
		w.calm()
		if !w.owner.Record.Status.Final() {
			t.Fatalf("the request is %s, pending %q", summary(w.owner), pending(w.owner))
		}
	})
}
