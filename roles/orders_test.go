package roles

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// One row for each sentence of what operators' orders mean.
func TestOrders(t *testing.T) {
	for _, tt := range []struct {
		sentence string
		steps    []string
		events   string
		want     string   // statuses
		pending  []string // nil: not looked at
	}{
		{"hold: nothing more starts", []string{"a", "b needs a"}, "claim; running a; hold; exit a", "running a=succeeded b=held", []string{}},
		{"hold: what runs goes on", []string{"a"}, "claim; running a; hold", "running a=running", []string{}},
		{"hold: what was sent is not sent again", []string{"a"}, "claim; hold", "running a=dispatched", []string{}},
		{"hold: retries wait too", []string{"a retry 2"}, "claim; hold; exit a 1", "running a=held", []string{}},
		{"hold: release lets it go on", []string{"a", "b needs a"}, "claim; hold; exit a; release", "running a=succeeded b=dispatched", nil},
		{"hold: a second one changes nothing", []string{"a", "b needs a"}, "claim; hold; hold; exit a; release", "running a=succeeded b=dispatched", nil},
		{"hold: a queued request can be held", []string{"a"}, "hold; claim", "running a=held", []string{}},
		{"hold: a new owner keeps it", []string{"a", "b needs a"}, "claim; hold; claim 6; adopt exit a", "running a=succeeded b=held", []string{}},
		{"hold: a cancel works", []string{"a", "b needs a"}, "claim; hold; cancel; killed a", "cancelled a=cancelled b=cancelled", nil},

		{"hold of a step: it does not start", []string{"a", "b needs a", "c needs a"}, "claim; hold b; exit a", "running a=succeeded b=held c=dispatched", []string{"send c/1"}},
		{"hold of a step: it waits until it could start", []string{"a", "b needs a"}, "claim; hold b", "running a=dispatched b=waiting", nil},
		{"hold of a step: it is skipped if its needs say so", []string{"a", "b needs a"}, "claim; hold b; exit a 1", "failed a=failed b=skipped", nil},
		{"hold of a step: release of the request leaves it held", []string{"a", "b needs a"}, "claim; hold b; hold; exit a; release", "running a=succeeded b=held", []string{}},
		{"hold of a step: its own release lets it go on", []string{"a", "b needs a"}, "claim; hold b; exit a; release b", "running a=succeeded b=dispatched", nil},
		{"hold of a step: released in a held request it is held", []string{"a", "b needs a"}, "claim; hold; hold b; exit a; release b", "running a=succeeded b=held", nil},
		{"hold of a step: before its retry", []string{"a retry 2 delay 5s"}, "claim; exit a 1; hold a; due a 1", "running a=held", []string{}},
		{"hold of a step: a second one changes nothing", []string{"a", "b needs a"}, "claim; hold b; hold b; release b; exit a", "running a=succeeded b=dispatched", nil},

		{"skip: on: success goes on as if it had succeeded", []string{"a", "b needs a", "c needs b"}, "claim; skip b; exit a", "running a=succeeded b=skipped c=dispatched", nil},
		{"skip: but not before its turn has come", []string{"a", "b needs a", "c needs b"}, "claim; skip b", "running a=dispatched b=waiting c=waiting", nil},
		{"skip: nor if it would not have run", []string{"a", "b needs a", "c needs b"}, "claim; skip b; exit a 1", "failed a=failed b=skipped c=skipped", nil},
		{"skip: at once if its turn has come", []string{"a", "b needs a"}, "lazy; claim; skip a", "running a=skipped b=ready", nil},
		{"skip: also in a held request, of which nothing starts", []string{"a", "b needs a"}, "claim; hold; skip b; exit a", "succeeded a=succeeded b=skipped", nil},
		{"skip: on: failure does not run", []string{"a", "b needs a", "c needs b on failure"}, "claim; skip b; exit a", "succeeded a=succeeded b=skipped c=skipped", nil},
		{"skip: always runs", []string{"a", "b needs a", "c needs b on always"}, "claim; skip b; exit a", "running a=succeeded b=skipped c=dispatched", nil},
		{"skip: a step that is skipped because of its needs does not satisfy", []string{"a", "b needs a", "c needs b"}, "claim; exit a 1", "failed a=failed b=skipped c=skipped", nil},
		{"skip: the request succeeds without it", []string{"a", "b"}, "lazy; claim; choose a a1; skip b; exit a", "succeeded a=succeeded b=skipped", nil},
		{"skip: the last that was left", []string{"a", "b needs a"}, "lazy; claim; choose a a1; exit a; skip b", "succeeded a=succeeded b=skipped", nil},
		{"skip: instead of a retry", []string{"a retry 3 delay 5s", "b needs a"}, "claim; exit a 1; skip a", "running a=skipped b=dispatched", nil},
		{"skip: its delay means nothing any more", []string{"a retry 3 delay 5s", "b"}, "claim; exit a 1; skip a; due a 1", "running a=skipped b=dispatched", []string{"send b/1"}},
		{"skip: what is held", []string{"a", "b needs a", "c needs b"}, "claim; hold b; exit a; skip b", "running a=succeeded b=skipped c=dispatched", nil},
		{"skip: a second one changes nothing", []string{"a", "b needs a", "c needs b"}, "claim; skip b; skip b; exit a", "running a=succeeded b=skipped c=dispatched", nil},

		{"rerun: a failed step runs again while another runs", []string{"a", "b"}, "claim; exit a 1; rerun a", "running a=dispatched b=dispatched", []string{"send a/2", "send b/1"}},
		{"rerun: while another is in doubt", []string{"a", "b"}, "claim; exit a 1; unknown b; rerun a", "running a=dispatched b=in_doubt", nil},
		{"rerun: a success too", []string{"a", "b"}, "claim; exit a; rerun a", "running a=dispatched b=dispatched", nil},
		{"rerun: the request has failed only if it fails again", []string{"a", "b"}, "claim; exit a 1; rerun a; exit a; exit b", "succeeded a=succeeded b=succeeded", nil},
		{"rerun: it has all its retries", []string{"a retry 2", "b"}, "claim; exit a 1; exit a 1; rerun a; exit a 1; exit a", "running a=succeeded b=dispatched", nil},
		{"rerun: what has been decided by its end stays decided", []string{"a", "b needs a", "c"}, "claim; exit a 1; rerun a; exit a", "running a=succeeded b=skipped c=dispatched", nil},
		{"rerun: what has not been decided waits for it", []string{"a", "b", "c needs a,b"}, "claim; exit a 1; rerun a; exit b", "running a=dispatched b=succeeded c=waiting", nil},
		{"rerun: what was ready waits for it", []string{"a", "b needs a", "c"}, "lazy; claim; choose a a1; choose c a1; exit a; rerun a", "running a=ready b=waiting c=dispatched", []string{"choose a/2 a1", "send c/1"}},
		{"rerun: what an operator has skipped can be wanted again", []string{"a", "b needs a"}, "claim; skip b; rerun b; exit a", "running a=succeeded b=dispatched", nil},
		{"rerun: also after its turn has come", []string{"a", "b", "c needs b"}, "lazy; claim; choose a a1; skip b; rerun b", "running a=dispatched b=ready c=waiting", nil},
		{"rerun: of a held request it is held", []string{"a", "b"}, "claim; exit a 1; hold; rerun a", "running a=held b=dispatched", nil},
		{"rerun: a late report of the attempt before is answered", []string{"a", "b"}, "claim; exit a 1; rerun a; old exit a 1", "running a=dispatched b=dispatched", nil},

		{"rerun from: what needs it begins anew", []string{"a", "b needs a", "c needs b", "d"}, "claim; exit a 1; from a; exit a", "running a=succeeded b=dispatched c=waiting d=dispatched", nil},
		{"rerun from: also what has run", []string{"a", "b needs a", "d"}, "claim; exit a; exit b; from a; exit a", "running a=succeeded b=dispatched d=dispatched", []string{"send b/2", "send d/1"}},
		{"rerun from: what failed before and is skipped now is skipped", []string{"a", "b needs a", "d"}, "claim; exit a; exit b 1; from a; exit a 1", "running a=failed b=skipped d=dispatched", nil},
		{"rerun from: what an operator wants skipped stays so", []string{"a", "b needs a", "c needs b", "d"}, "claim; skip b; exit a 1; from a; exit a", "running a=succeeded b=skipped c=dispatched d=dispatched", nil},
		{"rerun from: but waits for its turn again", []string{"a", "b needs a", "c needs b", "d"}, "claim; skip b; exit a; exit c; from a", "running a=dispatched b=waiting c=waiting d=dispatched", nil},
		{"rerun from: a rollback that has run is as if it had not", []string{"a", "b needs a on failure recovers", "d"}, "claim; exit a 1; exit b; from a; exit a; exit d", "succeeded a=succeeded b=skipped d=succeeded", nil},

		{"finish: what has not begun is cancelled", []string{"a", "b needs a"}, "lazy; claim; finish failed", "failed a=cancelled b=cancelled", []string{}},
		{"finish: what has ended stays as it is", []string{"a", "b needs a"}, "lazy; claim; choose a a1; exit a; finish succeeded", "succeeded a=succeeded b=cancelled", []string{"finish a1"}},
		{"finish: a failed step does not matter", []string{"a", "b"}, "lazy; claim; choose a a1; exit a 1; finish succeeded", "succeeded a=failed b=cancelled", nil},
		{"finish: what runs is killed", []string{"a"}, "claim; running a; finish failed", "failed a=cancelled", []string{"kill a/1"}},
		{"finish: until its agent has said that it ended", []string{"a"}, "claim; running a; finish failed; killed a", "failed a=cancelled", []string{"finish a1"}},
		{"finish: its end changes nothing", []string{"a"}, "claim; running a; finish failed; exit a 0", "failed a=cancelled", []string{"finish a1"}},
		{"finish: what was sent is killed, arrived or not", []string{"a"}, "claim; finish cancelled", "cancelled a=cancelled", []string{"kill a/1"}},
		{"finish: what is in doubt is given up", []string{"a"}, "claim; unknown a; finish succeeded", "succeeded a=cancelled", []string{"finish a1"}},
		{"finish: after a cancel that does not come to an end", []string{"a"}, "claim; running a; cancel; finish cancelled", "cancelled a=cancelled", []string{"kill a/1"}},
		{"finish: a held request", []string{"a"}, "hold; claim; finish cancelled", "cancelled a=cancelled", nil},
		{"finish: the new owner kills", []string{"a"}, "claim; running a; finish failed; claim 6", "failed a=cancelled", []string{"kill a/1"}},
		{"finish: a re-imaged machine runs nothing", []string{"a"}, "claim; running a; finish failed; journal a1 new", "failed a=cancelled", []string{"finish a1"}},

		{"insert before: it takes over the needs", []string{"a", "b needs a"}, "claim; before b x", "running a=dispatched x=waiting b=waiting", nil},
		{"insert before: and is needed", []string{"a", "b needs a"}, "claim; before b x; exit a", "running a=succeeded x=dispatched b=waiting", nil},
		{"insert before: what it needed it needs still", []string{"a", "b needs a on failure recovers"}, "claim; before b x on failure; exit a 1; exit x; exit b", "succeeded a=failed x=succeeded b=succeeded", nil},
		{"insert before: a step that was ready waits", []string{"a"}, "lazy; claim; before a x", "running x=ready a=waiting", []string{"choose x/1 a1"}},
		{"insert before: its failure is one of the process", []string{"a", "b needs a"}, "claim; before b x; exit a; exit x 1", "failed a=succeeded x=failed b=skipped", nil},
		{"insert after: it is needed by what needs that", []string{"a", "b needs a", "c needs b"}, "claim; after a x; exit a", "running a=succeeded x=dispatched b=waiting c=waiting", nil},
		{"insert after: what has begun does not wait", []string{"a", "b needs a", "c needs a,b"}, "claim; exit a; after a x", "running a=succeeded x=dispatched b=dispatched c=waiting", nil},
		{"insert after: the last step", []string{"a"}, "claim; after a x; exit a", "running a=succeeded x=dispatched", nil},
		{"insert after: of a step that failed it is skipped", []string{"a", "b"}, "claim; exit a 1; after a x", "running a=failed x=skipped b=dispatched", nil},
		{"insert between: only these two", []string{"a", "b needs a", "c needs a"}, "claim; between a b x; exit a", "running a=succeeded x=dispatched b=waiting c=dispatched", nil},
		{"insert: with needs of its own", []string{"a", "b", "c needs b"}, "claim; before c x needs a; exit b", "running a=dispatched b=succeeded x=waiting c=waiting", nil},
		{"insert: one after the other, before the same step", []string{"a", "b needs a"}, "claim; before b x; before b y; exit a; exit x", "running a=succeeded x=succeeded y=dispatched b=waiting", nil},
		{"insert: before one that was inserted", []string{"a", "b needs a"}, "claim; after a x; before x y; exit a", "running a=succeeded y=dispatched x=waiting b=waiting", nil},
		{"insert: it can be retried, held, skipped and run again as any other", []string{"a", "b needs a", "c"}, "claim; after a x retry 2; exit a; exit x 1; exit x 1; from x; exit x", "running a=succeeded x=succeeded b=dispatched c=dispatched", nil},
		{"insert: a new owner finds it", []string{"a", "b needs a"}, "claim; after a x; claim 6; adopt exit a", "running a=succeeded x=dispatched b=waiting", nil},

		{"change: what it needs", []string{"a", "b", "c needs a"}, "claim; change c needs b; exit b", "running a=dispatched b=succeeded c=dispatched", nil},
		{"change: when it runs", []string{"a", "b needs a"}, "claim; change b needs a on failure; exit a", "succeeded a=succeeded b=skipped", nil},
		{"change: before a retry", []string{"a retry 3 delay 5s"}, "claim; exit a 1; change a codes 7 retry 3; due a 1; exit a 7", "succeeded a=succeeded", nil},
		{"change: its agent", []string{"a", "b needs a"}, "lazy; claim; change b needs a agent a2; choose a a1; exit a; choose b a2", "running a=succeeded b=dispatched", nil},
		{"change: a step that was ready may wait", []string{"a", "b"}, "lazy; claim; choose a a1; change b needs a", "running a=dispatched b=waiting", nil},
		{"change: one that was inserted", []string{"a", "b needs a"}, "claim; after a x; change x needs a on failure; exit a", "succeeded a=succeeded x=skipped b=skipped", nil},
		{"change: twice", []string{"a", "b needs a"}, "claim; change b needs a on failure; change b; exit a", "running a=succeeded b=dispatched", nil},
		{"change: a failed step, to run it again", []string{"a", "b"}, "claim; exit a 1; hold; rerun a; change a codes 1; release; exit a 1; exit b", "succeeded a=succeeded b=succeeded", nil},
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

func TestRefusedOrders(t *testing.T) {
	for _, tt := range []struct {
		name   string
		steps  []string
		events string
		want   error
		text   string
	}{
		{"hold of a final request", []string{"a"}, "claim; exit a; hold", ErrConflict, "the request is succeeded already"},
		{"hold of a cancelled request", []string{"a"}, "claim; cancel; hold", ErrConflict, "the request is cancelled, nothing of it starts"},
		{"hold of a step that runs", []string{"a"}, "claim; running a; hold a", ErrConflict, "step a is running already"},
		{"hold of no step", []string{"a"}, "claim; hold b", ErrConflict, `there is no step "b"`},
		{"release of a step that is not held", []string{"a", "b needs a"}, "claim; release b", ErrConflict, "step b is not held"},
		{"release of no step", []string{"a"}, "claim; release b", ErrConflict, `there is no step "b"`},
		{"release of a request of which only a step is held", []string{"a", "b needs a"}, "claim; hold b; release", ErrConflict, "the request is not held"},
		{"skip of what runs", []string{"a"}, "claim; running a; skip a", ErrConflict, "step a is running already"},
		{"skip of what was sent", []string{"a"}, "claim; skip a", ErrConflict, "step a is dispatched already"},
		{"skip of what has ended", []string{"a", "b"}, "claim; exit a 1; skip a", ErrConflict, "step a is failed already"},
		{"skip of what was skipped because of its needs", []string{"a", "b needs a", "c"}, "claim; exit a 1; skip b", ErrConflict, "step b is skipped already"},
		{"skip of what is in doubt", []string{"a"}, "claim; unknown a; skip a", ErrConflict, "step a is in_doubt already"},
		{"skip of what was cancelled", []string{"a", "b needs a"}, "claim; cancel; skip b", ErrConflict, "step b is cancelled already"},
		{"skip of no step", []string{"a"}, "claim; skip b", ErrConflict, `there is no step "b"`},
		{"rerun in a final request", []string{"a"}, "claim; exit a 1; rerun a", ErrConflict, "the request is failed already"},
		{"rerun after a cancel", []string{"a", "b"}, "claim; exit a 1; cancel; rerun a", ErrConflict, "the request is cancelled, nothing of it starts"},
		{"rerun of what runs", []string{"a"}, "claim; running a; rerun a", ErrConflict, "step a is running, it has not ended"},
		{"rerun of what waits", []string{"a", "b needs a"}, "claim; rerun b", ErrConflict, "step b is waiting, it has not ended"},
		{"rerun of what is in doubt", []string{"a"}, "claim; unknown a; rerun a", ErrConflict, "step a is in doubt: resolve it"},
		{"rerun of what was skipped because of its needs", []string{"a", "b needs a", "c"}, "claim; exit a 1; rerun b", ErrConflict, "step b was skipped because of what it needs: run that again, with all that follows"},
		{"rerun of what may be running", []string{"a", "b"}, "claim; running a; unreachable a1; force a failed; rerun a", ErrConflict, "step a was given up and may be running on a1"},
		{"rerun from, while a step after it runs", []string{"a", "b needs a"}, "claim; exit a; from a", ErrConflict, "step b is dispatched, it has not ended"},
		{"rerun from, while a step after it is in doubt", []string{"a", "b needs a"}, "claim; exit a; unknown b; from a", ErrConflict, "step b is in doubt: resolve it"},
		{"rerun from, while a step after it may be running", []string{"a", "b needs a agent a2", "c"}, "claim; exit a; unreachable a2; force b failed; from a", ErrConflict, "step b was given up and may be running on a2"},
		{"rerun of no step", []string{"a"}, "claim; rerun b", ErrConflict, `there is no step "b"`},
		{"finish of a final request", []string{"a"}, "claim; exit a; finish failed", ErrConflict, "the request is succeeded already"},
		{"finish as something else", []string{"a"}, "claim; finish running", ErrInvalid, `a request is finished as succeeded, failed or cancelled, not "running"`},
		{"resolve of what runs", []string{"a"}, "claim; running a; resolve a failed", ErrConflict, "step a is running, not in doubt"},
		{"resolve of what runs out of reach", []string{"a"}, "claim; running a; unreachable a1; resolve a failed", ErrConflict, `step a is running, not in doubt, and its agent a1 is unreachable: it may be running there still. It can be decided all the same, as success or failed, with --force (API: "force")`},
		{"insert in a final request", []string{"a"}, "claim; exit a; after a x", ErrConflict, "the request is succeeded already"},
		{"insert after a cancel", []string{"a"}, "claim; cancel; after a x", ErrConflict, "the request is cancelled, nothing of it starts"},
		{"insert of a step that exists", []string{"a", "b needs a"}, "claim; before b a", ErrConflict, `there is a step "a" already`},
		{"insert before a step that has begun", []string{"a"}, "claim; before a x", ErrConflict, "step a is dispatched already"},
		{"insert before no step", []string{"a"}, "claim; before b x", ErrConflict, `there is no step "b"`},
		{"insert after no step", []string{"a"}, "claim; after b x", ErrConflict, `there is no step "b"`},
		{"insert of a step that needs nothing known", []string{"a"}, "claim; after a x needs z", ErrInvalid, `process test: steps[x].needs[0]: there is no step "z"; did you mean a?`},
		{"insert in a circle", []string{"a", "b needs a", "c needs b"}, "claim; between c b x", ErrInvalid, "process test: steps[x].needs: is a cycle: x needs c needs b needs x"},
		{"insert of a step without a name", []string{"a"}, "claim; after a -", ErrInvalid, `name: "-" is not a name: use letters, digits, '.', '_' and '-', with a letter or digit first`},
		{"insert with on: failure and nothing to need", []string{"a", "b"}, "lazy; claim; before b x on failure", ErrInvalid, "process test: steps[x].on: on: failure without needs would never run"},
		{"change of a step that has begun", []string{"a"}, "claim; change a", ErrConflict, "step a is dispatched already"},
		{"change of a step that has ended", []string{"a", "b"}, "claim; exit a; change a", ErrConflict, "step a is succeeded already"},
		{"change of no step", []string{"a"}, "claim; change b", ErrConflict, `there is no step "b"`},
		{"change after a cancel", []string{"a"}, "claim; cancel; change a", ErrConflict, "the request is cancelled, nothing of it starts"},
		{"change into a circle", []string{"a", "b needs a", "c needs b"}, "claim; change b needs c", ErrInvalid, "process test: steps[b].needs: is a cycle: b needs c needs b"},
		{"change of the agent of a step that has run", []string{"a retry 2 delay 5s"}, "claim; exit a 1; change a agent a2", ErrConflict, "step a has run on a1 already: its agent cannot change"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := play(t, define(t, tt.steps...), tt.events)
			if want := tt.want.Error() + ": " + tt.text; !errors.Is(y.err, tt.want) || y.err.Error() != want {
				t.Errorf("error %v\nwant  %s", y.err, want)
			}
		})
	}
	y := play(t, define(t, "a"), "claim")
	for name, o := range map[string]Event{
		"a step inserted nowhere":     Insert{Def: StepDef{Name: "x", Run: "true", Agent: Selector{Name: "a1"}}},
		"too large":                   Insert{Def: StepDef{Name: "x", Run: strings.Repeat("<", MaxAmendment), Agent: Selector{Name: "a1"}}, After: "a"},
		"a change of another name":    Amend{Step: "a", Def: StepDef{Name: "b", Run: "true", Agent: Selector{Name: "a1"}}},
		"a definition without a body": Insert{Def: StepDef{Name: "x", Agent: Selector{Name: "a1"}}, After: "a"},
	} {
		if name == "a change of another name" {
			y = play(t, define(t, "a"), "lazy; claim")
		}
		if y.do(o); !errors.Is(y.err, ErrInvalid) {
			t.Errorf("%s: error %v", name, y.err)
		}
	}
}

// Who said what is kept, and shown.
func TestOrdersAreKept(t *testing.T) {
	y := play(t, define(t, "a", "b needs a", "c needs b"), "claim; hold; hold b; skip c")
	why := &Order{By: "ada", At: "3"}
	if diff := cmp.Diff(why, y.s.Record.HeldBy); diff != "" {
		t.Errorf("held by (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&Order{By: "ada", At: "4"}, y.s.Steps[1].Hold); diff != "" {
		t.Errorf("step held by (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&Decision{As: VerdictSkip, By: "ada", At: "5"}, y.s.Steps[2].Decision); diff != "" {
		t.Errorf("step skipped by (-want +got):\n%s", diff)
	}
	y.do(Finish{As: RequestFailed, By: "bob", Why: "enough"})
	if diff := cmp.Diff(&Order{By: "bob", Why: "enough", At: "6"}, y.s.View().Finish); diff != "" {
		t.Errorf("finished by (-want +got):\n%s", diff)
	}
}

// The spec is what was asked for, whatever an operator makes of it.
func TestAmendmentsLeaveTheSpec(t *testing.T) {
	p := define(t, "a", "b needs a")
	y := play(t, p, "claim; after a x; change b needs a,x on always")
	if diff := cmp.Diff(define(t, "a", "b needs a"), &y.s.Request.Process); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if got := y.s.Def(y.s.Index("b")).On; got != OnAlways {
		t.Errorf("b is on: %s", got)
	}
}
