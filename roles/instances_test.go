package roles

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// One row for each sentence of what for_each means.
func TestForEach(t *testing.T) {
	for _, tt := range []struct {
		sentence string
		steps    []string
		events   string
		want     string   // statuses
		pending  []string // nil: not looked at
	}{
		{"when it is ready its agents are asked for", []string{"a each web"}, "claim", "running a=ready", []string{"expand a"}},
		{"not before", []string{"a", "b needs a each web"}, "claim", "running a=dispatched b=waiting", []string{"send a/1"}},
		{"not while it is held", []string{"a each web"}, "claim; hold", "running a=held", []string{}},
		{"each agent gets an instance", []string{"a each web"}, "lazy; claim; expand a w2 w1", "running a=running a@w1=ready a@w2=ready", []string{"choose a@w1/1 w1", "choose a@w2/1 w2"}},
		{"one for each", []string{"a each web"}, "claim; expand a w1 w1", "running a=running a@w1=dispatched", nil},
		{"none is a failure", []string{"a each web", "b needs a on failure"}, "claim; expand a", "running a=failed b=dispatched", nil},
		{"a second answer changes nothing", []string{"a each web"}, "claim; expand a w1; expand a w2", "running a=running a@w1=dispatched", []string{"send a@w1/1"}},
		{"an answer after a cancel changes nothing", []string{"a each web"}, "claim; cancel; expand a w1", "cancelled a=cancelled", nil},
		{"what needs it waits for all", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; exit a@w1", "running a=running a@w1=succeeded a@w2=dispatched b=waiting", nil},
		{"it succeeds when all have", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; exit a@w1; exit a@w2", "running a=succeeded a@w1=succeeded a@w2=succeeded b=dispatched", nil},
		{"it fails when one has and all have ended", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w2", "failed a=failed a@w1=failed a@w2=succeeded b=skipped", nil},
		{"its failure can be recovered", []string{"a each web", "b needs a on failure recovers"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w2; exit b", "succeeded a=failed a@w1=failed a@w2=succeeded b=succeeded", nil},
		{"each instance has its retries", []string{"a each web retry 2"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w1; exit a@w2", "succeeded a=succeeded a@w1=succeeded a@w2=succeeded", nil},
		{"in doubt it rests, and the others go on", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; unknown a@w1", "running a=running a@w1=in_doubt a@w2=dispatched b=waiting", nil},
		{"then the request is in doubt", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; unknown a@w1; exit a@w2", "in_doubt a=running a@w1=in_doubt a@w2=succeeded b=waiting", []string{}},
		{"an instance is resolved", []string{"a each web", "b needs a"}, "claim; expand a w1 w2; unknown a@w1; exit a@w2; resolve a@w1 success", "running a=succeeded a@w1=succeeded a@w2=succeeded b=dispatched", nil},
		{"two steps may run on the same agents", []string{"a each web", "b each web"}, "claim; expand a w1; expand b w1", "running a=running a@w1=dispatched b=running b@w1=dispatched", nil},
		{"a new owner asks each agent", []string{"a each web"}, "claim; expand a w1 w2; claim 6; nothing w1", "running a=running a@w1=dispatched a@w2=dispatched", []string{"adopt w2", "send a@w1/1"}},
		{"a cancel kills what runs", []string{"a each web parallel 1"}, "claim; expand a w1 w2; cancel", "cancelling a=running a@w1=dispatched a@w2=cancelled", []string{"kill a@w1/1"}},
		{"cancelled, when all have ended", []string{"a each web"}, "claim; expand a w1 w2; cancel; killed a@w1; exit a@w2", "cancelled a=cancelled a@w1=cancelled a@w2=succeeded", nil},
		{"agents forget it when it is final", []string{"a each web"}, "claim; expand a w1 w2; exit a@w1; exit a@w2", "succeeded a=succeeded a@w1=succeeded a@w2=succeeded", []string{"finish w1", "finish w2"}},

		{"max_parallel: the first begin, others wait for their turn", []string{"a each web parallel 2"}, "claim; expand a w1 w2 w3", "running a=running a@w1=dispatched a@w2=dispatched a@w3=ready", []string{"send a@w1/1", "send a@w2/1"}},
		{"max_parallel: an end makes room", []string{"a each web parallel 2"}, "claim; expand a w1 w2 w3; exit a@w2", "running a=running a@w1=dispatched a@w2=succeeded a@w3=dispatched", nil},
		{"max_parallel: a failure too", []string{"a each web parallel 1"}, "claim; expand a w1 w2; exit a@w1 1", "running a=running a@w1=failed a@w2=dispatched", nil},
		{"max_parallel: what waits for its retry keeps its place", []string{"a each web parallel 1 retry 2 delay 5s"}, "claim; expand a w1 w2; exit a@w1 1", "running a=running a@w1=ready a@w2=ready", []string{"wait a@w1/1 5s"}},
		{"max_parallel: and is the next to run", []string{"a each web parallel 1 retry 2 delay 5s"}, "claim; expand a w1 w2; exit a@w1 1; due a@w1 1", "running a=running a@w1=dispatched a@w2=ready", []string{"send a@w1/2"}},
		{"max_parallel: its end makes room", []string{"a each web parallel 1 retry 2 delay 5s"}, "claim; expand a w1 w2; exit a@w1 1; due a@w1 1; exit a@w1 1", "running a=running a@w1=failed a@w2=dispatched", nil},
		{"max_parallel: beside it others run", []string{"a each web parallel 2 retry 2 delay 5s"}, "claim; expand a w1 w2 w3; exit a@w1 1; exit a@w2", "running a=running a@w1=ready a@w2=succeeded a@w3=dispatched", nil},
		{"max_parallel: all may wait for retries", []string{"a each web parallel 2 retry 2 delay 5s"}, "claim; expand a w1 w2 w3; exit a@w1 1; exit a@w2 1; due a@w2 1", "running a=running a@w1=ready a@w2=dispatched a@w3=ready", nil},
		{"max_parallel and fail_fast: retries do not spread", []string{"a each web parallel 1 failfast retry 2 delay 5s"}, "claim; expand a w1 w2; exit a@w1 1; due a@w1 1; exit a@w1 1", "failed a=failed a@w1=failed a@w2=skipped", nil},
		{"max_parallel: whichever has an agent takes the room", []string{"a each web parallel 1"}, "lazy; claim; expand a w1 w2; choose a@w2 w2", "running a=running a@w1=ready a@w2=dispatched", []string{"send a@w2/1"}},
		{"max_parallel: a choice too many is ignored", []string{"a each web parallel 1"}, "lazy; claim; expand a w1 w2; choose a@w2 w2; choose a@w1 w1", "running a=running a@w1=ready a@w2=dispatched", nil},
		{"max_parallel: what is in doubt takes no room", []string{"a each web parallel 1"}, "claim; expand a w1 w2; unknown a@w1", "running a=running a@w1=in_doubt a@w2=dispatched", nil},
		{"max_parallel: each step has its own", []string{"a each web parallel 1", "b each web parallel 1"}, "claim; expand a w1 w2; expand b w1 w2", "running a=running a@w1=dispatched a@w2=ready b=running b@w1=dispatched b@w2=ready", nil},

		{"fail_fast: after a failure nothing begins", []string{"a each web parallel 2 failfast"}, "claim; expand a w1 w2 w3; exit a@w1 1", "running a=running a@w1=failed a@w2=dispatched a@w3=skipped", []string{"send a@w2/1"}},
		{"fail_fast: what runs goes on", []string{"a each web parallel 2 failfast"}, "claim; expand a w1 w2 w3; exit a@w1 1; exit a@w2", "failed a=failed a@w1=failed a@w2=succeeded a@w3=skipped", nil},
		{"fail_fast: retries first", []string{"a each web parallel 1 failfast retry 2"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w1; exit a@w2", "succeeded a=succeeded a@w1=succeeded a@w2=succeeded", nil},
		{"fail_fast: what waits for a retry has begun", []string{"a each web failfast retry 2 delay 5s"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w2 1; due a@w2 1; exit a@w2 1", "running a=running a@w1=ready a@w2=failed", []string{"wait a@w1/1 5s"}},
		{"fail_fast: doubt is no failure", []string{"a each web parallel 1 failfast"}, "claim; expand a w1 w2; unknown a@w1", "running a=running a@w1=in_doubt a@w2=dispatched", nil},

		{"skip of an instance: it counts as one that succeeded", []string{"a each web parallel 1", "b needs a"}, "claim; expand a w1 w2; skip a@w2; exit a@w1", "running a=succeeded a@w1=succeeded a@w2=skipped b=dispatched", nil},
		{"skip of the step before it is spread", []string{"a", "b needs a each web", "c needs b"}, "claim; skip b; exit a", "running a=succeeded b=skipped c=dispatched", nil},
		{"hold of an instance", []string{"a each web parallel 1"}, "claim; expand a w1 w2; hold a@w2; exit a@w1", "running a=running a@w1=succeeded a@w2=held", []string{}},
		{"release of an instance", []string{"a each web parallel 1"}, "claim; expand a w1 w2; hold a@w2; exit a@w1; release a@w2", "running a=running a@w1=succeeded a@w2=dispatched", nil},
		{"hold of the step: no more instances begin", []string{"a each web parallel 1"}, "claim; expand a w1 w2; hold a; exit a@w1", "running a=running a@w1=succeeded a@w2=held", []string{}},
		{"release of the step: they go on", []string{"a each web parallel 1"}, "claim; expand a w1 w2; hold a; exit a@w1; release a", "running a=running a@w1=succeeded a@w2=dispatched", nil},
		{"hold of the request: they wait too", []string{"a each web parallel 1"}, "claim; expand a w1 w2; hold; exit a@w1", "running a=running a@w1=succeeded a@w2=held", nil},

		{"rerun of an instance while others run", []string{"a each web"}, "claim; expand a w1 w2; exit a@w1 1; rerun a@w1", "running a=running a@w1=dispatched a@w2=dispatched", []string{"send a@w1/2", "send a@w2/1"}},
		{"rerun of an instance of a step that has ended", []string{"a each web", "z"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w2; rerun a@w1; exit a@w1", "running a=succeeded a@w1=succeeded a@w2=succeeded z=dispatched", nil},
		{"rerun of an instance: what was decided stays so", []string{"a each web", "b needs a", "z"}, "claim; expand a w1; exit a@w1 1; rerun a@w1; exit a@w1", "running a=succeeded a@w1=succeeded b=skipped z=dispatched", nil},
		{"rerun of an instance, from: what needs the step begins anew", []string{"a each web", "b needs a", "z"}, "claim; expand a w1; exit a@w1 1; from a@w1; exit a@w1", "running a=succeeded a@w1=succeeded b=dispatched z=dispatched", nil},
		{"rerun of an instance after fail_fast: the others stay skipped", []string{"a each web parallel 1 failfast", "z"}, "claim; expand a w1 w2; exit a@w1 1; rerun a@w1; exit a@w1", "running a=failed a@w1=succeeded a@w2=skipped z=dispatched", nil},
		{"rerun of an instance after fail_fast, from: they get their turn", []string{"a each web parallel 1 failfast", "z"}, "claim; expand a w1 w2; exit a@w1 1; from a@w1; exit a@w1", "running a=running a@w1=succeeded a@w2=dispatched z=dispatched", nil},
		{"rerun of an instance that fail_fast has skipped", []string{"a each web parallel 1 failfast", "z"}, "claim; expand a w1 w2; exit a@w1 1; rerun a@w2", "running a=running a@w1=failed a@w2=dispatched z=dispatched", nil},
		{"rerun of the step: on the same agents", []string{"a each web", "z"}, "claim; expand a w1 w2; exit a@w1 1; exit a@w2; rerun a", "running a=running a@w1=dispatched a@w2=dispatched z=dispatched", []string{"send a@w1/2", "send a@w2/2", "send z/1"}},
		{"rerun of the step: what an operator has skipped stays so", []string{"a each web parallel 1", "z"}, "claim; expand a w1 w2; skip a@w2; exit a@w1 1; rerun a; exit a@w1", "running a=succeeded a@w1=succeeded a@w2=skipped z=dispatched", nil},
		{"rerun of the step: if there was no agent they are asked for again", []string{"a each web", "z"}, "claim; expand a; rerun a", "running a=ready z=dispatched", []string{"expand a", "send z/1"}},
		{"rerun from before it: it waits, then runs on the same agents", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p", "running p=dispatched a=waiting a@w1=waiting z=dispatched", nil},
		{"rerun from before it: its turn comes again", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p; exit p", "running p=succeeded a=running a@w1=dispatched z=dispatched", []string{"send a@w1/2", "send z/1"}},
		{"rerun from before it: it may be skipped, with its instances", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p; exit p 1; exit z", "failed p=failed a=skipped a@w1=skipped z=succeeded", nil},
		{"rerun from before it, held", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p; hold; exit p; release", "running p=succeeded a=running a@w1=dispatched z=dispatched", nil},

		{"finish: instances that run are killed", []string{"a each web parallel 1"}, "claim; expand a w1 w2; finish failed", "failed a=cancelled a@w1=cancelled a@w2=cancelled", []string{"kill a@w1/1"}},
		{"force of an instance whose agent is unreachable", []string{"a each web"}, "claim; expand a w1 w2; exit a@w2; unreachable w1; force a@w1 failed", "failed a=failed a@w1=failed a@w2=succeeded", []string{"kill a@w1/1", "finish w2"}},
		{"insert after it: it waits for all", []string{"a each web"}, "claim; after a x; expand a w1; exit a@w1", "running a=succeeded a@w1=succeeded x=dispatched", nil},
		{"insert of a step with for_each", []string{"a", "b needs a"}, "claim; after a x each web; exit a; expand x w1; exit x@w1", "running a=succeeded x=succeeded x@w1=succeeded b=dispatched", nil},
		{"insert before it while an instance of another runs", []string{"a each web", "b needs a each web"}, "claim; expand a w1; before b x; exit a@w1; exit x; expand b w1", "running a=succeeded a@w1=succeeded x=succeeded b=running b@w1=dispatched", nil},
		{"change before it is spread", []string{"a", "b needs a each web"}, "claim; change b needs a each web parallel 1; exit a; expand b w1 w2", "running a=succeeded b=running b@w1=dispatched b@w2=ready", nil},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if got := summary(y.s); got != tt.want || y.err != nil {
				t.Errorf("got  %s, error %v\nwant %s", got, y.err, tt.want)
			}
			if tt.pending != nil {
				if got := pending(y.s); !slices.Equal(got, tt.pending) {
					t.Errorf("pending %q\nwant    %q", got, tt.pending)
				}
			}
		})
	}
}

func TestForEachRefuses(t *testing.T) {
	many := make([]string, MaxAgents+1)
	for i := range many {
		many[i] = fmt.Sprint("w", i)
	}
	for _, tt := range []struct {
		name   string
		steps  []string
		events string
		want   error
		text   string
	}{
		{"agents for a step that wants one", []string{"a"}, "lazy; claim; expand a w1", ErrInvalid, "step a has no for_each"},
		{"agents for no step", []string{"a"}, "claim; expand b w1", ErrInvalid, `there is no step "b"`},
		{"agents without a claim", []string{"a each web"}, "expand a w1", ErrInvalid, "step a expanded without a claim"},
		{"an agent for the whole step", []string{"a each web"}, "claim; choose a w1", ErrInvalid, "step a dispatched as a whole"},
		{"another agent for an instance", []string{"a each web"}, "lazy; claim; expand a w1 w2; choose a@w1 w2", ErrInvalid, "step a@w1 dispatched to w2, but its selector means w1"},
		{"resolve of the step", []string{"a each web"}, "claim; expand a w1; force a failed", ErrConflict, "step a runs on several agents: name one of its instances, such as a@w1"},
		{"skip of the step when it is spread", []string{"a each web"}, "claim; expand a w1; skip a", ErrConflict, "step a is running already"},
		{"rerun of the step while it runs", []string{"a each web"}, "claim; expand a w1 w2; exit a@w1; rerun a", ErrConflict, "step a is running, it has not ended"},
		{"rerun from, while instances of a step after it run", []string{"p", "a needs p each web"}, "claim; exit p; expand a w1; from p", ErrConflict, "step a is running, it has not ended"},
		{"rerun of the step while an instance may be running", []string{"a each web", "z"}, "claim; expand a w1; unreachable w1; force a@w1 failed; rerun a", ErrConflict, "step a@w1 was given up and may be running on w1"},
		{"change of an instance", []string{"a each web parallel 1"}, "claim; expand a w1 w2; change a@w2", ErrInvalid, "step a@w2 is an instance: name the step that it is of, a"},
		{"change when it is spread", []string{"a each web"}, "claim; expand a w1; change a each web", ErrConflict, "step a is running already"},
		{"change of its agents when it had some", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p; change a needs p each db", ErrConflict, "step a has instances on w1 already: its agents cannot change"},
		{"change into a step on one agent when it had many", []string{"p", "a needs p each web", "z"}, "claim; exit p; expand a w1; exit a@w1; from p; change a needs p", ErrConflict, "step a has instances on w1 already: its agents cannot change"},
		{"change of a step that has run into one with for_each", []string{"a retry 2 delay 5s"}, "claim; exit a 1; change a each web", ErrConflict, "step a has run on a1 already: its agent cannot change"},
		{"insert after an instance", []string{"a each web"}, "claim; expand a w1; after a@w1 x", ErrInvalid, "step a@w1 is an instance: name the step that it is of, a"},
		{"insert before an instance", []string{"a each web parallel 1"}, "claim; expand a w1 w2; before a@w2 x", ErrInvalid, "step a@w2 is an instance: name the step that it is of, a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if want := tt.want.Error() + ": " + tt.text; !errors.Is(y.err, tt.want) || y.err.Error() != want {
				t.Errorf("error %v\nwant  %s", y.err, want)
			}
		})
	}
	y := play(t, define(t, "a each web"), "claim; expand a "+strings.Join(many, " "))
	if st := y.s.Steps[0]; st.Status != StepFailed || st.Reason != "1001 agents match labels:tier=web, at most 1000 are allowed" {
		t.Errorf("too many agents: %s, %s", st.Status, st.Reason)
	}
}

func TestForEachReasons(t *testing.T) {
	for _, tt := range []struct{ steps, events, step, want string }{
		{"a each web", "claim; expand a", "a", "no agent that is known and not suspended matches labels:tier=web"},
		{"a each web", "claim; expand a w1 w2; exit a@w1 1; exit a@w2", "a", "failed on w1"},
		{"a each web parallel 1 failfast", "claim; expand a w1 w2; exit a@w1 1", "a@w2", "the step had failed on w1"},
		{"a each web parallel 1 failfast;z", "claim; expand a w1 w2; exit a@w1 1; rerun a@w1; exit a@w1", "a", "skipped on 1 of 2 agents after a failure"},
		{"a each web;z", "claim; expand a w1; exit a@w1 1; rerun a@w1; exit a@w1", "a", ""},
		{"a each web", "claim; expand a 1 2 3 4 5 6 7; exit a@1 1; exit a@2 1; exit a@3 1; exit a@4 1; exit a@5 1; exit a@6 1; exit a@7 1", "a", "failed on 1, 2, 3, 4, 5 and 2 more"},
	} {
		y := play(t, define(t, strings.Split(tt.steps, ";")...), tt.events)
		if got := y.s.Steps[y.s.Index(tt.step)].Reason; got != tt.want {
			t.Errorf("%s: %s: %q, want %q", tt.events, tt.step, got, tt.want)
		}
	}
}

// The outputs of instances reach later steps together.
func TestForEachOutputs(t *testing.T) {
	y := play(t, define(t, "a each web outputs v", "b needs a"), "claim; expand a w1 w2 w3; say a@w1 v 1; exit a@w2; say a@w3 v 3")
	want := map[string]string{"UAC_OUTPUT_a_v": `{"w1":"1","w3":"3"}`}
	if diff := cmp.Diff(want, y.s.Outputs(y.s.Index("b"))); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

// An instance finds the outputs of what its step needs.
func TestOutputsForInstances(t *testing.T) {
	y := play(t, define(t, "p outputs v", "q needs p each web", "r needs q each web"), "claim; say p v 1; expand q w1; exit q@w1; expand r w1")
	for _, step := range []string{"q@w1", "r@w1"} {
		if diff := cmp.Diff(map[string]string{"UAC_OUTPUT_p_v": "1"}, y.s.Outputs(y.s.Index(step))); diff != "" {
			t.Errorf("variables of %s (-want +got):\n%s", step, diff)
		}
	}
}

// An instance has what its step says, but for what concerns the step as a whole.
func TestInstanceDefinition(t *testing.T) {
	y := play(t, define(t, "p", "a needs p on always each web parallel 1 failfast retry 2"), "claim; exit p; expand a w1")
	want := &StepDef{Name: "a@w1", On: OnSuccess, Agent: Selector{Name: "w1"}, Run: "true", Retry: Retry{Attempts: 2}}
	if diff := cmp.Diff(want, y.s.Def(y.s.Index("a@w1"))); diff != "" {
		t.Errorf("definition (-want +got):\n%s", diff)
	}
	var of []string
	for _, st := range y.s.View().Steps {
		of = append(of, st.Of)
	}
	if want := []string{"", "", "a"}; !slices.Equal(of, want) {
		t.Errorf("instances of %q, want %q", of, want)
	}
}
