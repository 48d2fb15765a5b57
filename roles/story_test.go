package roles

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// summary returns the statuses of a request and its steps in one line.
func summary(s State) string {
	words := []string{string(s.Record.Status)}
	for _, st := range s.Steps {
		words = append(words, fmt.Sprintf("%s=%s", st.Name, st.Status))
	}
	return strings.Join(words, " ")
}

// define returns a process from lines such as
//
//	c needs a,b on failure recovers retry 3 delay 5s repeatable agent a2
//
// Steps without an agent run on a1.
func define(t tester, lines ...string) *Process {
	p := &Process{Name: "test"}
	for _, line := range lines {
		p.Steps = append(p.Steps, defineStep(t, strings.Fields(line)))
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

func defineStep(t tester, words []string) StepDef {
	s := StepDef{Name: words[0], On: OnSuccess, Agent: Selector{Name: "a1"}, Run: "true"}
	for i := 1; i < len(words); i++ {
		arg := func() string { i++; return words[i] }
		switch words[i] {
		case "needs":
			s.Needs = strings.Split(arg(), ",")
		case "on":
			s.On = Condition(arg())
		case "recovers":
			s.Recovers = true
		case "retry":
			s.Retry.Attempts, _ = strconv.Atoi(arg())
		case "delay":
			if err := s.Retry.Delay.UnmarshalText([]byte(arg())); err != nil {
				t.Fatal(err)
			}
		case "repeatable":
			s.Repeatable = true
		case "codes":
			for code := range strings.SplitSeq(arg(), ",") {
				n, err := strconv.Atoi(code)
				if err != nil {
					t.Fatal(err)
				}
				s.SuccessCodes = append(s.SuccessCodes, n)
			}
		case "each": // each TIER: for_each
			s.Agent, s.ForEach = Selector{}, &Targets{Labels: map[string]string{"tier": arg()}}
		case "parallel":
			n, err := strconv.Atoi(arg())
			if err != nil {
				t.Fatal(err)
			}
			s.MaxParallel = n
		case "failfast":
			s.FailFast = true
		case "outputs":
			s.Outputs = strings.Split(arg(), ",")
		case "agent":
			s.Agent = Selector{Name: arg()}
		case "tier":
			s.Agent = Selector{Labels: map[string]string{"tier": arg()}}
		default:
			t.Fatalf("what is %q?", words[i])
		}
	}
	return s
}

func newState(t tester, p *Process) State {
	r, err := NewRequest(p, RequestOptions{ID: testID, RequestedBy: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewState(r, 1)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// story plays events, written as words, on a request.
type story struct {
	t       *testing.T
	s       State
	stored  store
	replies []string // to the last event
	late    int      // reports of the last event
	err     error    // of the last event
	now     int
}

// Agents have journals that are called like them. A step is dispatched as soon as
// it is ready, unless the word before was "lazy".
func play(t *testing.T, p *Process, words string) *story {
	t.Helper()
	y := &story{t: t, s: newState(t, p)}
	y.stored.put(t, y.s, Change{Record: true})
	lazy := false
	for line := range strings.SplitSeq(words, ";") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if f[0] == "lazy" {
			lazy = true
			continue
		}
		y.do(y.event(f))
		for i := 0; !lazy && i < len(y.s.Steps); i++ {
			if st := y.s.Steps[i]; st.Status == StepReady && !st.BackingOff && y.s.Def(i).ForEach == nil {
				agent := y.s.Def(i).Agent.Name
				replies, late, err := y.replies, y.late, y.err
				y.do(AgentChosen{Step: st.Name, Agent: agent, Journal: Journal{ID: agent, Counter: 10}})
				y.replies, y.late, y.err = replies, late, err
			}
		}
	}
	return y
}

// event reads an event such as "exit build 1" or "adopt a1 4 running build".
func (y *story) event(f []string) Event {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	number := func(i, otherwise int) int {
		if n, err := strconv.Atoi(arg(i)); err == nil {
			return n
		}
		return otherwise
	}
	report := func(state AttemptState) Report {
		r := Report{Step: arg(1), Attempt: 1, State: state}
		if i := y.s.Index(r.Step); i >= 0 {
			st := y.s.Steps[i]
			r.Attempt, r.Agent = max(1, st.Attempt), st.Agent
			r.Journal = Journal{ID: st.Agent, Counter: 20}
		}
		return r
	}
	switch f[0] {
	case "claim": // claim [revision [generation]]
		return Claimed{Fence{Generation: uint64(number(2, 1)), Revision: int64(number(1, 5))}}
	case "expand": // expand STEP [AGENT...]
		return Expanded{Step: arg(1), Agents: f[2:]}
	case "choose": // choose STEP AGENT
		return AgentChosen{Step: arg(1), Agent: arg(2), Journal: Journal{ID: arg(2), Counter: 10}}
	case "accepted", "intended", "running", "unknown", "never_started":
		return report(AttemptState(f[0]))
	case "frozen":
		r := report(AttemptRunning)
		r.Frozen = true
		return r
	case "exit": // exit STEP CODE
		r := report(AttemptExited)
		r.ExitCode = number(2, 0)
		return r
	case "quiet": // quiet STEP CODE: exit without any output
		r := report(AttemptExited)
		r.ExitCode, r.NoOutput = number(2, 0), true
		return r
	case "again": // again STEP: exit 0, whose acknowledgement the agent has
		r := report(AttemptExited)
		r.Acked = true
		return r
	case "say", "fails": // say STEP NAME VALUE: exit 0 with an output; fails: exit 1
		r := report(AttemptExited)
		if f[0] == "fails" {
			r.ExitCode = 1
		}
		r.Outputs = Outputs{arg(2): arg(3)}
		return r
	case "timeout":
		r := report(AttemptExited)
		r.TimedOut, r.ExitCode = true, number(2, 143)
		return r
	case "killed":
		r := report(AttemptExited)
		r.Killed, r.ExitCode = true, number(2, 143)
		return r
	case "signal":
		r := report(AttemptExited)
		r.Signal, r.ExitCode = 9, 137
		return r
	case "old": // old EVENT...: about the attempt before
		r := y.event(f[1:]).(Report)
		r.Attempt--
		return r
	case "future":
		r := y.event(f[1:]).(Report)
		r.Attempt++
		return r
	case "other": // other EVENT...: from another journal
		r := y.event(f[1:]).(Report)
		r.Journal.ID = "other"
		return r
	case "nothing": // nothing AGENT [REVISION [JOURNAL [COUNTER]]]: adopt finds nothing
		ev := Adopted{Agent: arg(1), Fence: y.s.Fence, Journal: Journal{ID: arg(1), Counter: uint64(number(4, 20))}}
		ev.Fence.Revision = int64(number(2, int(ev.Fence.Revision)))
		if arg(3) != "" {
			ev.Journal.ID = arg(3)
		}
		return ev
	case "adopt": // adopt REPORT...: adopt finds that
		r := y.event(f[1:]).(Report)
		return Adopted{Agent: r.Agent, Fence: y.s.Fence, Journal: r.Journal, Attempts: []Report{r}}
	case "journal": // journal AGENT ID
		return JournalChanged{Agent: arg(1), Journal: arg(2)}
	case "wentback":
		return JournalChanged{Agent: arg(1), Journal: arg(1), WentBack: true}
	case "unreachable":
		return AgentUnreachable{arg(1)}
	case "reachable":
		return AgentReachable{arg(1)}
	case "due": // due STEP ATTEMPT
		return RetryDue{Step: arg(1), Attempt: number(2, 1)}
	case "cancel":
		return Cancel{By: "ada", Why: "wrong version"}
	case "hold": // hold [STEP]
		return Hold{Step: arg(1), By: "ada"}
	case "release": // release [STEP]
		return Release{Step: arg(1), By: "ada"}
	case "skip": // skip STEP
		return Skip{Step: arg(1), By: "ada"}
	case "rerun", "from": // rerun STEP; from STEP: and what depends on it
		return Rerun{Step: arg(1), From: f[0] == "from", By: "ada"}
	case "finish": // finish STATUS
		return Finish{As: RequestStatus(arg(1)), By: "ada"}
	case "before": // before OTHER STEP...
		return Insert{Def: defineStep(y.t, f[2:]), Before: arg(1), By: "ada"}
	case "after": // after OTHER STEP...
		return Insert{Def: defineStep(y.t, f[2:]), After: arg(1), By: "ada"}
	case "between": // between AFTER BEFORE STEP...
		return Insert{Def: defineStep(y.t, f[3:]), After: arg(1), Before: arg(2), By: "ada"}
	case "change": // change STEP...
		return Amend{Step: arg(1), Def: defineStep(y.t, f[1:]), By: "ada"}
	case "resolve", "force": // resolve STEP VERDICT
		return Resolve{Step: arg(1), As: Verdict(arg(2)), By: "ada", Force: f[0] == "force"}
	}
	y.t.Fatalf("what is %q?", strings.Join(f, " "))
	return nil
}

// do is what an owner does with an event, and checks what must always hold.
func (y *story) do(ev Event) {
	y.t.Helper()
	y.now++
	before := snapshot(y.t, y.s)
	next, change, err := Next(y.s, ev, Stamp(strconv.Itoa(y.now)))
	if diff := cmp.Diff(before, snapshot(y.t, y.s)); diff != "" {
		y.t.Fatalf("%+v changed its input (-before +after):\n%s", ev, diff)
	}
	y.err, y.late = err, len(change.Late)
	y.replies = nil
	for _, e := range change.Replies {
		if st := y.s.Steps[y.s.Index(e.Step)]; e.Fence != y.s.Fence || e.Agent != st.Agent || (e.Journal == "") == (e.Kind == EffectKill) {
			y.t.Errorf("reply %+v does not carry the fence, or not the agent and its journal", e)
		}
		y.replies = append(y.replies, fmt.Sprintf("%s %s/%d", e.Kind, e.Step, e.Attempt))
	}
	if err == nil {
		y.stored.put(y.t, next, change)
	}
	y.s = next
	y.stored.check(y.t, y.s)
}

// pending returns what Pending lists, in short.
func pending(s State) []string {
	var words []string
	for _, e := range Pending(s) {
		switch e.Kind {
		case EffectExpand:
			words = append(words, "expand "+e.Step)
		case EffectAdopt, EffectFinish:
			words = append(words, fmt.Sprintf("%s %s", e.Kind, e.Agent))
		case EffectWait:
			words = append(words, fmt.Sprintf("wait %s/%d %s", e.Step, e.Attempt, e.Delay))
		case EffectChooseAgent:
			words = append(words, strings.TrimSpace(fmt.Sprintf("choose %s/%d %s", e.Step, e.Attempt, e.Agent)))
		default:
			words = append(words, fmt.Sprintf("%s %s/%d", e.Kind, e.Step, e.Attempt))
		}
	}
	return words
}

// store holds what an owner has written of one request.
type store struct {
	spec, record []byte
	steps        map[string][]byte
	accepted     int64 // the revision
}

func (d *store) put(t tester, s State, c Change) {
	t.Helper()
	var err error
	if d.spec == nil {
		d.steps = make(map[string][]byte)
		if d.spec, err = s.Request.Encode(); err != nil {
			t.Fatal(err)
		}
	}
	if c.Record {
		if d.record, err = json.Marshal(s.Record); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range c.Steps {
		if d.steps[name], err = json.Marshal(s.Steps[s.Index(name)]); err != nil {
			t.Fatal(err)
		}
	}
}

// check says whether what is stored is all there is to know.
func (d *store) check(t tester, s State) {
	t.Helper()
	loaded, err := Load(d.spec, d.record, d.steps, s.Fence, d.accepted)
	if err != nil {
		t.Fatalf("what was stored does not load: %v", err)
	}
	if diff := cmp.Diff(snapshot(t, s), snapshot(t, loaded)); diff != "" {
		t.Fatalf("loaded state differs (-kept +loaded):\n%s", diff)
	}
	if diff := cmp.Diff(Pending(s), Pending(loaded)); diff != "" {
		t.Fatalf("loaded state has other effects (-kept +loaded):\n%s", diff)
	}
}

func snapshot(t tester, s State) string {
	t.Helper()
	b, err := json.Marshal(struct {
		Record Record
		Steps  []*Step
		Fence  Fence
		Defs   []*StepDef
	}{s.Record, s.Steps, s.Fence, s.plan.defs})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
