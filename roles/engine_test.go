package roles

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testID = "01J9ZK8Q3V4W5X6Y7Z8A9BCDEF"

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
		words := strings.Fields(line)
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
			case "agent":
				s.Agent = Selector{Name: arg()}
			case "tier":
				s.Agent = Selector{Labels: map[string]string{"tier": arg()}}
			default:
				t.Fatalf("what is %q?", words[i])
			}
		}
		p.Steps = append(p.Steps, s)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
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
			if st := y.s.Steps[i]; st.Status == StepReady && !st.BackingOff {
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
	case "release":
		return Release{By: "ada"}
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
	for _, i := range c.Steps {
		if d.steps[s.Steps[i].Name], err = json.Marshal(s.Steps[i]); err != nil {
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
	}{s.Record, s.Steps, s.Fence})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// One row for each sentence of what steps and requests mean.
func TestSemantics(t *testing.T) {
	for _, tt := range []struct {
		sentence string
		steps    []string
		events   string
		want     string   // statuses
		pending  []string // nil: not looked at
	}{
		{"a request is queued until a controller claims it", []string{"a"}, "", "queued a=ready", []string{}},
		{"a claimed request is running", []string{"a"}, "lazy; claim", "running a=ready", []string{"choose a/1 a1"}},
		{"a step without needs is ready, others wait", []string{"a", "b needs a"}, "lazy; claim", "running a=ready b=waiting", []string{"choose a/1 a1"}},
		{"a chosen agent makes it dispatched, and it is sent", []string{"a"}, "claim", "running a=dispatched", []string{"send a/1"}},
		{"its agent makes it running, and nothing is left to do", []string{"a"}, "claim; running a", "running a=running", []string{}},
		{"exit 0 is success", []string{"a"}, "claim; running a; exit a 0", "succeeded a=succeeded", []string{"finish a1"}},
		{"an exit may be the first that is heard", []string{"a"}, "claim; exit a 0", "succeeded a=succeeded", nil},
		{"another exit code is failure", []string{"a"}, "claim; running a; exit a 3", "failed a=failed", nil},
		{"a signal is failure", []string{"a"}, "claim; running a; signal a", "failed a=failed", nil},
		{"a timeout is failure, whatever the exit code", []string{"a"}, "claim; running a; timeout a 0", "failed a=failed", nil},
		{"a kill that nobody ordered here is failure, whatever the exit code", []string{"a"}, "claim; running a; killed a 0", "failed a=failed", nil},
		{"never started is a known end, and failure", []string{"a"}, "claim; never_started a", "failed a=failed", nil},

		{"a step is decided when all its needs are final", []string{"a", "b", "c needs a,b"}, "claim; exit a", "running a=succeeded b=dispatched c=waiting", []string{"send b/1"}},
		{"on: success when all succeeded", []string{"a", "b", "c needs a,b"}, "claim; exit a; exit b", "running a=succeeded b=succeeded c=dispatched", nil},
		{"on: success is skipped when one failed", []string{"a", "b", "c needs a,b"}, "claim; exit a; exit b 1", "failed a=succeeded b=failed c=skipped", nil},
		{"on: success is skipped when one was skipped", []string{"a", "b needs a", "c needs b"}, "claim; exit a 1", "failed a=failed b=skipped c=skipped", nil},
		{"on: success waits for all, also after a failure", []string{"a", "b", "c needs a,b"}, "claim; exit a 1", "running a=failed b=dispatched c=waiting", nil},
		{"on: failure when at least one failed", []string{"a", "b", "c needs a,b on failure"}, "claim; exit a; exit b 1", "running a=succeeded b=failed c=dispatched", nil},
		{"on: failure is skipped when none failed", []string{"a", "c needs a on failure"}, "claim; exit a", "succeeded a=succeeded c=skipped", nil},
		{"skipped is not failed", []string{"a", "b needs a", "c needs b on failure"}, "claim; exit a 1", "failed a=failed b=skipped c=skipped", nil},
		{"always after success", []string{"a", "c needs a on always"}, "claim; exit a", "running a=succeeded c=dispatched", nil},
		{"always after failure", []string{"a", "c needs a on always"}, "claim; exit a 1", "running a=failed c=dispatched", nil},
		{"always after skipped", []string{"a", "b needs a", "c needs b on always"}, "claim; exit a 1", "running a=failed b=skipped c=dispatched", nil},
		{"always waits for all needs", []string{"a", "b", "c needs a,b on always"}, "claim; exit a 1", "running a=failed b=dispatched c=waiting", nil},
		{"an always step without needs runs at once", []string{"a on always"}, "lazy; claim", "running a=ready", nil},

		{"a failed step fails the request", []string{"a", "c needs a on always"}, "claim; exit a 1; exit c", "failed a=failed c=succeeded", nil},
		{"a success of on: failure without recovers does not help", []string{"a", "c needs a on failure"}, "claim; exit a 1; exit c", "failed a=failed c=succeeded", nil},
		{"recovers makes good the failure of what it needs", []string{"a", "c needs a on failure recovers"}, "claim; exit a 1; exit c", "succeeded a=failed c=succeeded", nil},
		{"recovers must succeed", []string{"a", "c needs a on failure recovers"}, "claim; exit a 1; exit c 1", "failed a=failed c=failed", nil},
		{"recovers makes good only what it needs itself", []string{"a", "b", "c needs a on failure recovers"}, "claim; exit a 1; exit b 1; exit c", "failed a=failed b=failed c=succeeded", nil},
		{"a failed recovery can be recovered, but not for its needs", []string{"a", "c needs a on failure recovers", "d needs c on failure recovers"}, "claim; exit a 1; exit c 1; exit d", "failed a=failed c=failed d=succeeded", nil},
		{"what needs the failed step stays skipped after recovery", []string{"a", "b needs a", "c needs a on failure recovers"}, "claim; exit a 1; exit c", "succeeded a=failed b=skipped c=succeeded", nil},

		{"retry follows a known failed end", []string{"a retry 2"}, "lazy; claim; choose a a1; exit a 1", "running a=ready", []string{"choose a/2 a1"}},
		{"the retry is the next attempt", []string{"a retry 2"}, "claim; exit a 1", "running a=dispatched", []string{"send a/2"}},
		{"attempts are counted with the first", []string{"a retry 2"}, "claim; exit a 1; exit a 1", "failed a=failed", nil},
		{"a retry can succeed", []string{"a retry 3"}, "claim; exit a 1; timeout a; exit a", "succeeded a=succeeded", nil},
		{"never started is retried", []string{"a retry 2"}, "claim; never_started a; exit a", "succeeded a=succeeded", nil},
		{"dependents wait for the retry", []string{"a retry 2", "b needs a on failure"}, "claim; exit a 1", "running a=dispatched b=waiting", nil},
		{"a retry waits for its delay", []string{"a retry 2 delay 5s"}, "claim; exit a 1", "running a=ready", []string{"wait a/1 5s"}},
		{"the delay ends when it is due", []string{"a retry 2 delay 5s"}, "lazy; claim; choose a a1; exit a 1; due a 1", "running a=ready", []string{"choose a/2 a1"}},
		{"another attempt's delay means nothing", []string{"a retry 3 delay 5s"}, "claim; exit a 1; due a 1; exit a 1; due a 1", "running a=ready", []string{"wait a/2 5s"}},
		{"unknown is not retried", []string{"a retry 3"}, "claim; unknown a", "in_doubt a=in_doubt", []string{}},

		{"unknown is in doubt", []string{"a"}, "claim; running a; unknown a", "in_doubt a=in_doubt", nil},
		{"repeatable allows a new attempt after an unknown one", []string{"a repeatable"}, "claim; running a; unknown a", "running a=dispatched", []string{"send a/2"}},
		{"repeatable is not retry", []string{"a repeatable"}, "claim; exit a 1", "failed a=failed", nil},
		{"unknown ends are no failed attempts", []string{"a repeatable retry 2"}, "claim; unknown a; unknown a; exit a 1; exit a", "succeeded a=succeeded", nil},
		{"a repeated attempt waits for the delay too", []string{"a repeatable retry 2 delay 1s"}, "claim; unknown a", "running a=ready", []string{"wait a/1 1s"}},
		{"what never comes to an end rests in doubt", []string{"a repeatable"}, "claim" + strings.Repeat("; unknown a", 10), "in_doubt a=in_doubt", nil},

		{"in doubt rests, independent steps go on", []string{"a", "b", "c needs b", "d needs a on always"}, "claim; unknown a; exit b", "running a=in_doubt b=succeeded c=dispatched d=waiting", nil},
		{"in doubt when nothing else can move", []string{"a", "b", "d needs a on always"}, "claim; unknown a; exit b", "in_doubt a=in_doubt b=succeeded d=waiting", []string{}},
		{"resolve as success", []string{"a", "b needs a"}, "claim; unknown a; resolve a success", "running a=succeeded b=dispatched", nil},
		{"resolve as failed", []string{"a", "b needs a"}, "claim; unknown a; resolve a failed", "failed a=failed b=skipped", nil},
		{"an operator's failed is not retried", []string{"a retry 3"}, "claim; unknown a; resolve a failed", "failed a=failed", nil},
		{"an operator's failed can be recovered", []string{"a", "b needs a on failure recovers"}, "claim; unknown a; resolve a failed; exit b", "succeeded a=failed b=succeeded", nil},
		{"resolve rerun is a new attempt", []string{"a"}, "claim; unknown a; resolve a rerun", "running a=dispatched", []string{"send a/2"}},
		{"a rerun has all its retries", []string{"a retry 2"}, "claim; exit a 1; unknown a; resolve a rerun; exit a 1; exit a", "succeeded a=succeeded", nil},
		{"the end may come after all", []string{"a", "b needs a"}, "claim; journal a1 new; exit a", "running a=succeeded b=dispatched", nil},

		{"a cancel decides what has not begun", []string{"a", "b needs a"}, "lazy; claim; cancel", "cancelled a=cancelled b=cancelled", nil},
		{"a cancel waits for what has", []string{"a", "b needs a"}, "claim; cancel", "cancelling a=dispatched b=cancelled", []string{"kill a/1"}},
		{"a cancel kills what runs", []string{"a"}, "claim; running a; cancel", "cancelling a=running", []string{"kill a/1"}},
		{"killed after a cancel is cancelled", []string{"a"}, "claim; running a; cancel; killed a", "cancelled a=cancelled", []string{"finish a1"}},
		{"killed that exits with 0 is cancelled", []string{"a"}, "claim; running a; cancel; killed a 0", "cancelled a=cancelled", nil},
		{"never started after a cancel is cancelled", []string{"a"}, "claim; cancel; never_started a", "cancelled a=cancelled", nil},
		{"a success that the kill did not reach stays one", []string{"a"}, "claim; running a; cancel; exit a", "cancelled a=succeeded", nil},
		{"so does a failure", []string{"a"}, "claim; running a; cancel; exit a 1", "cancelled a=failed", nil},
		{"after a cancel nothing starts: no dependents", []string{"a", "b needs a on always"}, "claim; cancel; exit a", "cancelled a=succeeded b=cancelled", nil},
		{"after a cancel nothing starts: no retry", []string{"a retry 3"}, "claim; cancel; exit a 1", "cancelled a=failed", nil},
		{"after a cancel nothing starts: no retry of the killed", []string{"a retry 3"}, "claim; cancel; killed a", "cancelled a=cancelled", nil},
		{"after a cancel nothing starts: no repeat", []string{"a repeatable"}, "claim; cancel; unknown a", "in_doubt a=in_doubt", nil},
		{"after a cancel nothing starts: no delayed retry", []string{"a retry 3 delay 5s"}, "claim; exit a 1; cancel", "cancelled a=cancelled", nil},
		{"a cancel while a choice is made", []string{"a"}, "lazy; claim; cancel; choose a a1", "cancelled a=cancelled", nil},
		{"a second cancel changes nothing", []string{"a"}, "claim; cancel; cancel", "cancelling a=dispatched", nil},
		{"cancel while in doubt", []string{"a", "b needs a"}, "claim; unknown a; cancel", "in_doubt a=in_doubt b=cancelled", []string{}},
		{"in doubt, cancelled, resolved", []string{"a", "b needs a"}, "claim; unknown a; cancel; resolve a success", "cancelled a=succeeded b=cancelled", nil},
		{"cancelling, then in doubt", []string{"a", "b"}, "claim; unknown a; cancel; killed b", "in_doubt a=in_doubt b=cancelled", nil},

		{"a new owner asks before it sends", []string{"a"}, "claim; claim 6", "running a=dispatched", []string{"adopt a1"}},
		{"a new owner asks about what runs", []string{"a"}, "claim; running a; claim 6", "running a=running", []string{"adopt a1"}},
		{"a new owner sends the same attempt", []string{"a"}, "claim; claim 6; nothing a1", "running a=dispatched", []string{"send a/1"}},
		{"what the agent accepted is sent again all the same", []string{"a"}, "claim; claim 6; adopt accepted a", "running a=dispatched", []string{"send a/1"}},
		{"what runs goes on", []string{"a"}, "claim; claim 6; adopt running a", "running a=running", []string{}},
		{"what ended has ended", []string{"a"}, "claim; claim 6; adopt exit a 0", "succeeded a=succeeded", nil},
		{"no report counts before the agent has answered", []string{"a"}, "claim; claim 6; running a; exit a; unknown a; never_started a", "running a=dispatched", []string{"adopt a1"}},
		{"an answer to an earlier claim does not count", []string{"a"}, "claim; claim 6; nothing a1 5", "running a=dispatched", []string{"adopt a1"}},
		{"the owner waits per agent", []string{"a", "b agent a2", "c needs b agent a2"}, "claim; claim 6; adopt exit b", "running a=dispatched b=succeeded c=dispatched", []string{"adopt a1", "send c/1"}},
		{"nothing is sent to an agent that has not answered", []string{"a", "b agent a2", "c needs b tier x"}, "claim; exit b; claim 6; choose c a1", "running a=dispatched b=succeeded c=dispatched", []string{"adopt a1"}},
		{"a step that ran cannot be nothing", []string{"a"}, "claim; running a; claim 6; nothing a1", "in_doubt a=in_doubt", nil},
		{"nothing of another journal means nothing", []string{"a"}, "claim; claim 6; nothing a1 6 other", "in_doubt a=in_doubt", nil},
		{"nothing of a journal that went back means nothing", []string{"a"}, "claim; claim 6; nothing a1 6 a1 9", "in_doubt a=in_doubt", nil},
		{"repeatable: nothing of another journal is a new attempt", []string{"a repeatable"}, "claim; claim 6; nothing a1 6 other", "running a=dispatched", []string{"send a/2"}},
		{"a re-claim asks again", []string{"a"}, "claim; claim 6; nothing a1; claim 7", "running a=dispatched", []string{"adopt a1"}},
		{"a request in doubt stays so with its new owner", []string{"a"}, "claim; unknown a; claim 6", "in_doubt a=in_doubt", []string{}},
		{"intended is not running", []string{"a"}, "claim; running a; intended a", "running a=dispatched", []string{"send a/1"}},

		{"cancel: the new owner asks before it kills", []string{"a"}, "claim; cancel; claim 6", "cancelling a=dispatched", []string{"adopt a1"}},
		{"cancel: nothing decides what was never sent under this fence", []string{"a"}, "claim; cancel; claim 6; nothing a1", "cancelled a=cancelled", nil},
		{"cancel: nothing does not decide what may have been sent", []string{"a"}, "claim; claim 6; nothing a1; cancel; nothing a1", "cancelling a=dispatched", []string{"kill a/1"}},
		{"cancel: nothing of another journal is doubt", []string{"a"}, "claim; cancel; claim 6; nothing a1 6 other", "in_doubt a=in_doubt", nil},
		{"cancel: what runs is killed by the new owner", []string{"a"}, "claim; running a; cancel; claim 6; adopt running a", "cancelling a=running", []string{"kill a/1"}},

		{"a changed journal is doubt", []string{"a", "b agent a2"}, "claim; journal a1 new", "running a=in_doubt b=dispatched", nil},
		{"a journal that went back is doubt", []string{"a"}, "claim; wentback a1", "in_doubt a=in_doubt", nil},
		{"the same journal is not", []string{"a"}, "claim; running a; journal a1 a1", "running a=running", nil},
		{"reports of another journal do not count", []string{"a"}, "claim; other exit a; other running a; other never_started a", "running a=dispatched", nil},
		{"not for a step in doubt either", []string{"a"}, "claim; unknown a; other exit a", "in_doubt a=in_doubt", nil},

		{"frozen is a field, not a status", []string{"a"}, "claim; running a; frozen a", "running a=running", []string{}},
		{"unreachable is a field, not a status", []string{"a"}, "claim; running a; unreachable a1", "running a=running", []string{}},
		{"force ends a step whose agent is unreachable", []string{"a", "b needs a agent a2"}, "claim; running a; unreachable a1; force a success", "running a=succeeded b=dispatched", []string{"kill a/1", "send b/1"}},
		{"what was abandoned is killed, also when the request is final", []string{"a"}, "claim; running a; unreachable a1; force a failed", "failed a=failed", []string{"kill a/1"}},
		{"its late report changes nothing", []string{"a"}, "claim; running a; unreachable a1; force a failed; exit a 0", "failed a=failed", []string{"finish a1"}},
		{"a re-imaged machine runs nothing", []string{"a"}, "claim; running a; unreachable a1; force a failed; journal a1 new", "failed a=failed", []string{"finish a1"}},
		{"force ends the wait after a cancel", []string{"a"}, "claim; running a; cancel; unreachable a1; force a failed", "cancelled a=failed", []string{"kill a/1"}},

		{"a claim of a higher generation holds the request", []string{"a", "b needs a"}, "lazy; claim; claim 1 2", "running a=held b=waiting", []string{}},
		{"held: agents are asked, nothing is sent", []string{"a"}, "claim; claim 1 2; nothing a1", "running a=dispatched", []string{}},
		{"held: ends count, and what follows is held", []string{"a", "b needs a"}, "claim; running a; claim 1 2; adopt exit a", "running a=succeeded b=held", []string{}},
		{"held: retries are held", []string{"a retry 2 delay 1s"}, "claim; claim 1 2; adopt exit a 1", "running a=held", []string{}},
		{"held: a cancel works", []string{"a", "b agent a2"}, "claim; exit b; claim 1 2; adopt running a; cancel", "cancelling a=running b=succeeded", []string{"kill a/1"}},
		{"release: what was held goes on", []string{"a", "b agent a2"}, "lazy; claim; choose a a1; claim 1 2; nothing a1; release", "running a=dispatched b=ready", []string{"send a/1", "choose b/1 a2"}},
		{"release: a retry waits again", []string{"a retry 2 delay 1s"}, "claim; claim 1 2; adopt exit a 1; release", "running a=ready", []string{"wait a/1 1s"}},
		{"the next claim of that generation does not hold", []string{"a"}, "lazy; claim; claim 1 2; release; claim 2 2", "running a=ready", nil},

		{"one agent for each selector: the first is chosen, others wait", []string{"a tier x", "b tier x", "c tier y"}, "lazy; claim", "running a=ready b=ready c=ready", []string{"choose a/1", "choose c/1"}},
		{"one agent for each selector: then it is that one", []string{"a tier x", "b tier x", "c tier y"}, "lazy; claim; choose a a7", "running a=dispatched b=ready c=ready", []string{"send a/1", "choose b/1 a7", "choose c/1"}},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if got := summary(y.s); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if tt.pending != nil {
				if got := pending(y.s); !slices.Equal(got, tt.pending) {
					t.Errorf("pending %q\nwant    %q", got, tt.pending)
				}
			}
		})
	}
}

// What an agent is told when it reports: an end that is stored is acknowledged, so
// that the agent can forget it; what must not be running is killed.
func TestReplies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		steps  []string
		events string
		want   []string
		late   int
	}{
		{"an end", []string{"a"}, "claim; exit a", []string{"ack a/1"}, 0},
		{"an unknown end", []string{"a"}, "claim; unknown a", []string{"ack a/1"}, 0},
		{"never started", []string{"a"}, "claim; never_started a", []string{"ack a/1"}, 0},
		{"no end", []string{"a"}, "claim; running a", nil, 0},
		{"an end twice", []string{"a"}, "claim; exit a; exit a", []string{"ack a/1"}, 0},
		{"another end of a decided step", []string{"a"}, "claim; exit a; exit a 1", []string{"ack a/1"}, 0},
		{"an end of an earlier attempt", []string{"a retry 2"}, "claim; exit a 1; old exit a 1", []string{"ack a/1"}, 0},
		{"an end while the retry waits", []string{"a retry 2 delay 5s"}, "claim; exit a 1; exit a 1", []string{"ack a/1"}, 0},
		{"an end of a step in doubt", []string{"a"}, "claim; unknown a; exit a", []string{"ack a/1"}, 0},
		{"doubt twice", []string{"a"}, "claim; unknown a; unknown a", []string{"ack a/1"}, 0},
		{"an end before adopt is answered", []string{"a"}, "claim; claim 6; exit a", nil, 0},
		{"an end in the answer", []string{"a"}, "claim; claim 6; adopt exit a", []string{"ack a/1"}, 0},
		{"an end that was decided, in an answer", []string{"a"}, "claim; exit a; claim 6; adopt exit a", []string{"ack a/1"}, 0},
		{"an end from another journal", []string{"a"}, "claim; other exit a", nil, 0},
		{"an attempt of the future", []string{"a"}, "claim; future exit a", nil, 0},
		{"a late running of a decided step", []string{"a"}, "claim; exit a; running a", nil, 0},
		{"a late running of an attempt that failed", []string{"a retry 2"}, "claim; exit a 1; old running a", nil, 0},
		{"running, though given up as unknown", []string{"a repeatable"}, "claim; unknown a; old running a", []string{"kill a/1"}, 0},
		{"running, though cancelled", []string{"a"}, "claim; cancel; claim 6; nothing a1; running a", []string{"kill a/1"}, 0},
		{"running, though abandoned", []string{"a"}, "claim; unreachable a1; force a failed; running a", []string{"kill a/1"}, 1},
		{"ended, though abandoned", []string{"a"}, "claim; unreachable a1; force a failed; killed a", []string{"ack a/1"}, 1},
		{"ended, though resolved", []string{"a"}, "claim; unknown a; resolve a failed; exit a", []string{"ack a/1"}, 1},
		{"ended after a rerun", []string{"a"}, "claim; unknown a; resolve a rerun; exit a; exit a", []string{"ack a/2"}, 0},
		{"running in a step in doubt", []string{"a"}, "claim; unknown a; running a", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if y.err != nil || !slices.Equal(y.replies, tt.want) || y.late != tt.late {
				t.Errorf("replies %q, late %d, error %v\nwant    %q, late %d", y.replies, y.late, y.err, tt.want, tt.late)
			}
		})
	}
}

func TestRefusedEvents(t *testing.T) {
	for _, tt := range []struct {
		name   string
		steps  []string
		events string
		want   error
	}{
		{"cancel of a final request", []string{"a"}, "claim; exit a; cancel", ErrConflict},
		{"release of a final request", []string{"a"}, "claim; exit a; release", ErrConflict},
		{"release of a request that is not held", []string{"a"}, "claim; release", ErrConflict},
		{"resolve of a step that waits", []string{"a", "b needs a"}, "claim; resolve b failed", ErrConflict},
		{"resolve of a step that runs", []string{"a"}, "claim; running a; resolve a failed", ErrConflict},
		{"resolve of a step that is decided", []string{"a", "b"}, "claim; exit a; resolve a failed", ErrConflict},
		{"resolve of a step that does not exist", []string{"a"}, "claim; resolve b failed", ErrConflict},
		{"resolve with another verdict", []string{"a"}, "claim; unknown a; resolve a maybe", ErrInvalid},
		{"rerun after a cancel", []string{"a"}, "claim; unknown a; cancel; resolve a rerun", ErrConflict},
		{"force on a reachable agent", []string{"a"}, "claim; running a; force a failed", ErrConflict},
		{"force on an agent that is reachable again", []string{"a"}, "claim; unreachable a1; reachable a1; force a failed", ErrConflict},
		{"force on an agent that has reported since", []string{"a"}, "claim; unreachable a1; running a; force a failed", ErrConflict},
		{"force of a rerun beside what may run", []string{"a"}, "claim; unreachable a1; force a rerun", ErrConflict},
		{"force of a step that is decided", []string{"a"}, "claim; unreachable a1; exit a; force a failed", ErrConflict},
		{"a lower claim", []string{"a"}, "claim 5; claim 4", ErrStale},
		{"a claim of a lower generation", []string{"a"}, "claim 1 2; claim 9 1", ErrStale},
		{"no claim", []string{"a"}, "claim 0 0", ErrInvalid},
		{"a choice without a claim", []string{"a"}, "lazy; choose a a1", ErrInvalid},
		{"a choice of no agent", []string{"a"}, "lazy; claim; choose a", ErrInvalid},
		{"a choice for no step", []string{"a"}, "claim; choose b a1", ErrInvalid},
		{"a choice that is not what the selector names", []string{"a"}, "lazy; claim; choose a a2", ErrInvalid},
		{"a second choice for one selector", []string{"a tier x", "b tier x"}, "lazy; claim; choose a a1; choose b a2", ErrInvalid},
		{"a report of no step", []string{"a"}, "claim; exit b", ErrInvalid},
		{"a report of no attempt", []string{"a"}, "claim; old exit a", ErrInvalid},
		{"a delay of no step", []string{"a"}, "claim; due b", ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if !errors.Is(y.err, tt.want) {
				t.Errorf("error %v, want %v", y.err, tt.want)
			}
		})
	}
	if _, _, err := Next(newState(t, define(t, "a")), nil, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("no event: error %v", err)
	}
}

// A step is frozen as long as its agent says so of a running attempt.
func TestFrozen(t *testing.T) {
	for events, want := range map[string]bool{
		"claim":                                           false,
		"claim; frozen a":                                 true,
		"claim; frozen a; unreachable a1":                 true,
		"claim; frozen a; running a":                      false,
		"claim; frozen a; claim 6":                        true,
		"claim; frozen a; exit a 1":                       false, // and tried again
		"claim; frozen a; exit a 1; frozen a":             true,
		"claim; frozen a; exit a 0":                       false,
		"claim; frozen a; unknown a":                      false,
		"claim; frozen a; journal a1 new":                 false,
		"claim; frozen a; unreachable a1; force a failed": false,
	} {
		y := play(t, define(t, "a retry 2"), events)
		if got := y.s.Steps[0].Frozen; got != want {
			t.Errorf("%s: frozen %v", events, got)
		}
	}
}

// The evidence of an end is shown as the agent gave it.
func TestEvidence(t *testing.T) {
	code := func(n int) *int { return &n }
	y := play(t, define(t, "a retry 2"), "claim; unreachable a1; running a; exit a 7")
	y.do(Report{
		Agent: "a1", Step: "a", Attempt: 2, Journal: Journal{"a1", 33}, State: AttemptExited,
		ExitCode: 137, Signal: 9, TimedOut: true, Reason: "timeout", StartedAt: "s", FinishedAt: "f",
	})
	want := &Step{
		Name: "a", Status: StepFailed, Attempt: 2, Agent: "a1", ExitCode: code(137), Signal: 9, TimedOut: true,
		Reason: "timeout", StartedAt: "s", FinishedAt: "f", Failures: 2,
		Dispatch: Dispatch{Journal: Journal{"a1", 33}, Fence: Fence{1, 5}},
	}
	if diff := cmp.Diff(want, y.s.Steps[0]); diff != "" {
		t.Errorf("step (-want +got):\n%s", diff)
	}
	if y.s.Record.FinishedAt == "" || y.s.Record.StartedAt != "1" {
		t.Errorf("times of the request: %+v", y.s.Record)
	}
}

// The counter of a dispatch is the highest that was reported with it, so that a
// machine that is set back to a snapshot is noticed.
func TestReportsRaiseTheCounter(t *testing.T) {
	y := play(t, define(t, "a"), "claim; running a")
	if got := y.s.Steps[0].Dispatch.Journal.Counter; got != 20 {
		t.Errorf("counter %d after running, want 20", got)
	}
}

func TestOneAnswerForManySteps(t *testing.T) {
	y := play(t, define(t, "a", "b", "c retry 2", "d"), "claim; running c; claim 6")
	j := Journal{ID: "a1", Counter: 50}
	y.do(Adopted{Agent: "a1", Fence: Fence{1, 6}, Journal: j, Attempts: []Report{
		{Step: "a", Attempt: 1, State: AttemptExited},
		{Step: "b", Attempt: 1, State: AttemptRunning},
		{Step: "c", Attempt: 1, State: AttemptExited, ExitCode: 1},
	}})
	if got, want := summary(y.s), "running a=succeeded b=running c=ready d=dispatched"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if want := []string{"choose c/2 a1", "send d/1"}; !slices.Equal(pending(y.s), want) {
		t.Errorf("pending %q, want %q", pending(y.s), want)
	}
	if want := []string{"ack a/1", "ack c/1"}; !slices.Equal(y.replies, want) {
		t.Errorf("replies %q, want %q", y.replies, want)
	}
}

// An agent whose journal has a later attempt than the store has forgotten the
// present one: the store was restored from a backup.
func TestAgentKnowsMoreThanTheStore(t *testing.T) {
	y := play(t, define(t, "a"), "claim; claim 1 2; adopt future exit a")
	if got, want := summary(y.s), "in_doubt a=in_doubt"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEffectsSayWhatIsNeeded(t *testing.T) {
	y := play(t, define(t, "a"), "claim")
	want := []Effect{{Kind: EffectSend, Agent: "a1", Step: "a", Attempt: 1, Journal: "a1", Fence: Fence{1, 5}}}
	if diff := cmp.Diff(want, Pending(y.s)); diff != "" {
		t.Errorf("effects (-want +got):\n%s", diff)
	}
}

func TestLoadRefusesWhatDoesNotBelongTogether(t *testing.T) {
	good := play(t, define(t, "a", "b needs a"), "claim")
	for _, tt := range []struct {
		name string
		harm func(*store)
		want string
	}{
		{"no spec", func(d *store) { d.spec = nil }, "spec"},
		{"a newer format", func(d *store) { d.spec = []byte(strings.Replace(string(d.spec), `"format":1`, `"format":2`, 1)) }, "written in format 2"},
		{"no record", func(d *store) { d.record = nil }, "status"},
		{"unknown status", func(d *store) { d.record = []byte(`{"status":"odd"}`) }, `status "odd"`},
		{"unknown step", func(d *store) { d.steps["z"] = []byte(`{"name":"z","status":"waiting"}`) }, `no step "z"`},
		{"another step's record", func(d *store) { d.steps["b"] = d.steps["a"] }, `the record names "a"`},
		{"unknown step status", func(d *store) { d.steps["a"] = []byte(`{"name":"a","status":"odd"}`) }, `status "odd"`},
		{"running nowhere", func(d *store) { d.steps["a"] = []byte(`{"name":"a","status":"running","attempt":1}`) }, "without a dispatch"},
		{"negative attempt", func(d *store) { d.steps["a"] = []byte(`{"name":"a","status":"waiting","attempt":-1}`) }, "negative"},
		{"final with open steps", func(d *store) { d.record = []byte(`{"status":"failed","generation":1}`) }, "in a request that has failed"},
		{"skip forgotten", func(d *store) { d.steps["a"] = []byte(`{"name":"a","status":"failed","attempt":1}`) }, "its needs say skipped"},
		{"fence of the future", func(d *store) {
			d.steps["a"] = []byte(strings.Replace(string(d.steps["a"]), `"revision":5`, `"revision":9`, 1))
		}, "higher fence"},
		{"cycle", func(d *store) {
			d.spec = []byte(strings.Replace(string(d.spec), `"needs":["a"]`, `"needs":["b"]`, 1))
		}, "cycle"},
		{"unknown need", func(d *store) {
			d.spec = []byte(strings.Replace(string(d.spec), `"needs":["a"]`, `"needs":["x"]`, 1))
		}, "does not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d store
			d.put(t, good.s, Change{Record: true, Steps: []int{0, 1}})
			tt.harm(&d)
			_, err := Load(d.spec, d.record, d.steps, Fence{1, 5}, 5)
			if !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// The names in JSON are a promise to scripts.
func TestViewJSON(t *testing.T) {
	p := define(t, "a", "b needs a retry 2 delay 5s")
	p.Params = []Param{{Name: "version", Default: "1"}}
	y := play(t, p, "claim; exit a")
	got, err := json.MarshalIndent(y.s.View(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "id": "01J9ZK8Q3V4W5X6Y7Z8A9BCDEF",
  "process": "test",
  "status": "running",
  "held": false,
  "params": {
    "version": "1"
  },
  "requested_by": "ada",
  "requested_at": "",
  "started_at": "1",
  "steps": [
    {
      "name": "a",
      "status": "succeeded",
      "attempt": 1,
      "agent": "a1",
      "exit_code": 0,
      "dispatch": {
        "journal": {
          "id": "a1",
          "counter": 20
        },
        "fence": {
          "generation": 1,
          "revision": 5
        }
      },
      "needs": [],
      "on": "success"
    },
    {
      "name": "b",
      "status": "dispatched",
      "attempt": 1,
      "agent": "a1",
      "exit_code": null,
      "dispatch": {
        "journal": {
          "id": "a1",
          "counter": 10
        },
        "fence": {
          "generation": 1,
          "revision": 5
        }
      },
      "needs": [
        "a"
      ],
      "on": "success"
    }
  ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestStampOf(t *testing.T) {
	at := time.Date(2026, 11, 21, 23, 59, 58, 7_600_000, time.FixedZone("CET", 3600))
	if got, want := StampOf(at), Stamp("2026-11-21T22:59:58.007Z"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := StampOf(time.Time{}); got != "" {
		t.Errorf("zero time: %q", got)
	}
}

// Whatever stands in the store, Load returns a state that can be used, or says that
// the records are inconsistent.
func FuzzLoad(f *testing.F) {
	for _, events := range [][]Event{
		{},
		{Report{Agent: "a1", Step: "a", Attempt: 1, Journal: Journal{ID: "j"}, State: AttemptRunning}},
		{Report{Agent: "a1", Step: "a", Attempt: 1, Journal: Journal{ID: "j"}, State: AttemptExited}},
		{Report{Agent: "a1", Step: "a", Attempt: 1, Journal: Journal{ID: "j"}, State: AttemptUnknown}},
		{Cancel{By: "ada"}},
		{Claimed{Fence{2, 1}}},
	} {
		var d store
		s := newState(f, define(f, "a", "c needs a on always"))
		d.put(f, s, Change{Record: true})
		for _, ev := range append([]Event{Claimed{Fence{1, 5}}, AgentChosen{Step: "a", Agent: "a1", Journal: Journal{ID: "j"}}}, events...) {
			next, change, err := Next(s, ev, "now")
			if err != nil {
				f.Fatal(err)
			}
			s = next
			d.put(f, s, change)
		}
		f.Add(d.spec, d.record, d.steps["a"], d.steps["c"])
	}
	f.Fuzz(func(t *testing.T, spec, record, a, c []byte) {
		steps := make(map[string][]byte)
		for name, text := range map[string][]byte{"a": a, "c": c} {
			if len(text) > 0 {
				steps[name] = text
			}
		}
		s, err := Load(spec, record, steps, Fence{1, 5}, 5)
		if err != nil {
			if !errors.Is(err, ErrInconsistent) {
				t.Fatalf("error %v", err)
			}
			return
		}
		for _, ev := range []Event{
			Claimed{Fence{1, 6}},
			Adopted{Agent: "a1", Fence: Fence{1, 6}, Journal: Journal{ID: "j"}},
			Report{Agent: "a1", Step: "a", Attempt: 1, Journal: Journal{ID: "j"}, State: AttemptExited},
			JournalChanged{Agent: "a1", Journal: "x"},
			Resolve{Step: "a", As: VerdictSuccess},
			Resolve{Step: "c", As: VerdictFailed},
			Cancel{By: "x"},
		} {
			Pending(s)
			s.View()
			next, _, err := Next(s, ev, "now")
			if err == nil {
				s = next
			}
		}
	})
}
