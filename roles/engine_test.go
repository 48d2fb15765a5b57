package roles

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testID = "01J9ZK8Q3V4W5X6Y7Z8A9BCDEF"

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
		{"success_codes say which exit codes are success", []string{"a codes 0,3"}, "claim; running a; exit a 3", "succeeded a=succeeded", nil},
		{"then 0 is success only if it is one of them", []string{"a codes 3"}, "claim; running a; exit a 0", "failed a=failed", nil},
		{"a timeout with such a code is failure", []string{"a codes 143"}, "claim; running a; timeout a 143", "failed a=failed", nil},
		{"so is a signal", []string{"a codes 137"}, "claim; running a; signal a", "failed a=failed", nil},
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
		{"never started of what was said to run is in doubt", []string{"a"}, "claim; running a; never_started a", "in_doubt a=in_doubt", nil},
		{"never started of what was said to run is in doubt, cancelled or not", []string{"a"}, "claim; running a; cancel; never_started a", "in_doubt a=in_doubt", nil},
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
		{"ended, though resolved, and told of already", []string{"a"}, "claim; unknown a; resolve a failed; exit a; again a", []string{"ack a/1"}, 0},
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

// That there was no output is said of the present attempt, and of no other.
func TestNoOutput(t *testing.T) {
	for events, want := range map[string]bool{
		"claim":                               false,
		"claim; running a":                    false,
		"claim; quiet a 0":                    true,
		"claim; exit a 0":                     false,
		"lazy; claim; choose a a1; quiet a 1": true, // until it is tried again
		"claim; quiet a 1":                    false,
		"claim; quiet a 1; exit a 0":          false,
		"claim; exit a 1; quiet a 0":          true,
		"claim; old quiet a 1":                false,
		"claim; other quiet a 0":              false,
		"claim; quiet a 0; claim 6":           true,
	} {
		y := play(t, define(t, "a retry 2"), events)
		if got := y.s.Steps[0].NoOutput; got != want {
			t.Errorf("%s: no output %v", events, got)
		}
	}
}

// The evidence of an end is shown as the agent gave it.
func TestEvidence(t *testing.T) {
	code := func(n int) *int { return &n }
	y := play(t, define(t, "a retry 2"), "claim; unreachable a1; running a; exit a 7")
	y.do(Report{
		Agent: "a1", Step: "a", Attempt: 2, Journal: Journal{"a1", 33}, State: AttemptExited,
		ExitCode: 137, Signal: 9, TimedOut: true, Reason: "timeout", StartedAt: "s", FinishedAt: "f", NoOutput: true,
	})
	want := &Step{
		Name: "a", Status: StepFailed, Attempt: 2, Agent: "a1", ExitCode: code(137), Signal: 9, TimedOut: true,
		Reason: "timeout", StartedAt: "s", FinishedAt: "f", Failures: 2, NoOutput: true,
		Dispatch: Dispatch{Journal: Journal{"a1", 33}, Fence: Fence{1, 5}},
	}
	if diff := cmp.Diff(want, y.s.Steps[0]); diff != "" {
		t.Errorf("step (-want +got):\n%s", diff)
	}
	if y.s.Record.FinishedAt == "" || y.s.Record.StartedAt != "1" {
		t.Errorf("times of the request: %+v", y.s.Record)
	}
}

// The exit code is what the process did, whatever the step makes of it.
func TestExitCodeIsTruthful(t *testing.T) {
	y := play(t, define(t, "a codes 3"), "claim; exit a 3")
	if got := y.s.Steps[0]; got.Status != StepSucceeded || got.ExitCode == nil || *got.ExitCode != 3 {
		t.Errorf("%s, exit code %v", got.Status, got.ExitCode)
	}
}

// A step that has succeeded and did not write what it declares says so.
func TestMissingOutputs(t *testing.T) {
	for events, want := range map[string]string{
		"claim; say a x 1":       "no value was written for output y-1",
		"claim; exit a":          "no value was written for output x, y-1",
		"claim; exit a 1":        "",
		"claim; exit a; exit b":  "no value was written for output x, y-1",
		"claim; running a; hold": "",
	} {
		y := play(t, define(t, "a outputs x,y-1", "b needs a"), events)
		if got := y.s.Steps[0].Reason; got != want {
			t.Errorf("%s: reason %q, want %q", events, got, want)
		}
	}
}

// Outputs reach the steps that come after the one that has them, and are those of
// its last attempt.
func TestOutputs(t *testing.T) {
	process := []string{"a outputs x,y-1", "b needs a outputs x retry 2", "c needs b", "d"}
	for _, tt := range []struct {
		name, events, step string
		want               map[string]string
	}{
		{"of what it needs", "claim; say a x 1", "b", map[string]string{"UAC_OUTPUT_a_x": "1"}},
		{"of what that needs", "claim; say a y-1 1; say b x 2", "c", map[string]string{"UAC_OUTPUT_a_y_1": "1", "UAC_OUTPUT_b_x": "2"}},
		{"not its own", "claim; say a x 1; say b x 2", "b", map[string]string{"UAC_OUTPUT_a_x": "1"}},
		{"not of what only came earlier", "claim; say a x 1", "d", nil},
		{"none that nobody wants", "claim; say a z 1", "b", nil},
		{"none that is too large", "claim; say a x " + strings.Repeat("v", MaxValue+1), "b", nil},
		{"none of an earlier attempt", "claim; exit a; say b x 1; old say b x 1", "c", map[string]string{"UAC_OUTPUT_b_x": "1"}},
		{"none of a failed attempt that is followed by another", "claim; exit a; fails b x 1; exit b", "c", nil},
		{"of a step that has failed", "claim; exit a; fails b x 1; fails b x 2", "c", map[string]string{"UAC_OUTPUT_b_x": "2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := play(t, define(t, process...), tt.events)
			if diff := cmp.Diff(tt.want, y.s.Outputs(y.s.Index(tt.step))); diff != "" {
				t.Errorf("variables (-want +got):\n%s", diff)
			}
		})
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
			d.put(t, good.s, Change{Record: true, Steps: []string{"a", "b"}})
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
		{Hold{Step: "c"}, Skip{Step: "c"}},
		{Amend{Step: "c", Def: defineStep(f, []string{"c", "each", "web"})}, Cancel{By: "ada"}},
		{
			Amend{Step: "c", Def: defineStep(f, []string{"c", "each", "web"})}, Expanded{Step: "c", Agents: []string{"a1", "a2"}},
			AgentChosen{Step: "c@a2", Agent: "a2", Journal: Journal{ID: "j"}},
		},
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
			Expanded{Step: "c", Agents: []string{"a1", "a2"}},
			Rerun{Step: "a", From: true},
			Skip{Step: "c@a1"},
			Insert{Def: StepDef{Name: "x", Run: "true", Agent: Selector{Name: "a1"}}, Before: "c"},
			Cancel{By: "x"},
			Finish{As: RequestFailed},
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
