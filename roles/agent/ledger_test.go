package agent

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"uac/roles/wire"
)

// play is a ledger with a few words to talk to it.
type play struct {
	*ledger
	t       testing.TB
	records []record
}

func newPlay(t testing.TB) *play { return &play{ledger: newLedger(), t: t} }

// make applies the records of a decision, which must not be a refusal.
func (p *play) make(d decision) decision {
	p.t.Helper()
	if d.refuse != 0 {
		p.t.Fatalf("refused: %v, known %v", d.refuse, d.known)
	}
	p.apply(d.records...)
	return d
}

func (p *play) apply(records ...record) {
	p.t.Helper()
	for _, rec := range records {
		if err := p.ledger.apply(rec); err != nil {
			p.t.Fatal(err)
		}
	}
	p.records = append(p.records, records...)
}

func (p *play) end(k key, ph phase, code int32) {
	p.t.Helper()
	p.apply(record{Kind: kindEnd, Request: k.request, Step: k.step, Attempt: k.attempt, Phase: ph, Code: code})
}

func (p *play) startIt(k key, revision int64) decision {
	return p.start(startOf(k, revision, ""), "boot", 1)
}
func (p *play) killIt(k key, revision int64) decision {
	return p.kill(killMessage(k, revision).GetKill())
}
func (p *play) adoptIt(request string, revision int64) decision {
	return p.adopt(&wire.Adopt{Request: request, Fence: rev(revision)})
}
func (p *play) ackIt(k key, revision int64, final bool) decision {
	return p.ack(&wire.Ack{Request: k.request, Step: k.step, Attempt: k.attempt, Fence: rev(revision), Final: final}, 1)
}

var (
	k1 = key{"R", "s", 1}
	k2 = key{"R", "s", 2}
)

func TestDecisions(t *testing.T) {
	const (
		stale      = wire.Refusal_STALE_FENCE
		floor      = wire.Refusal_STALE_FLOOR
		superseded = wire.Refusal_SUPERSEDED
		final      = wire.Refusal_FINAL
		overlap    = wire.Refusal_OVERLAP
	)
	// What the ledger knows when the command comes.
	nothing := func(*play) {}
	adopted := func(p *play) { p.make(p.adoptIt("R", 5)) }
	accepted := func(p *play) { p.make(p.startIt(k1, 5)) }
	running := func(p *play) {
		accepted(p)
		p.apply(record{Kind: kindLaunched, Request: "R", Step: "s", Attempt: 1, Pid: 7})
	}
	intended := func(p *play) { accepted(p); p.attempt(k1).Phase = phaseIntended }
	exited := func(p *play) { running(p); p.end(k1, phaseExited, 3) }
	never := func(p *play) { p.make(p.killIt(k1, 5)) }
	unknown := func(p *play) { running(p); p.end(k1, phaseUnknown, 0) }
	acked := func(p *play) { exited(p); p.make(p.ackIt(k1, 5, false)) }
	finished := func(p *play) { exited(p); p.make(p.ackIt(k1, 5, true)) }
	second := func(p *play) { acked(p); p.make(p.startIt(k2, 5)) } // attempt 1 is forgotten
	trimmed := func(p *play) { finished(p); p.apply(p.trim(2, 10)...) }
	newer := func(p *play) {
		accepted(p)
		p.apply(record{Kind: kindGeneration, Generation: generation{Number: 2, ID: "g2"}})
	}

	tests := []struct {
		name   string
		before func(*play)
		do     func(*play) decision
		want   decision
		kinds  []kind
	}{
		{"start of an unknown attempt", nothing, start(k1, 5), decision{launch: true}, kinds(kindIntent)},
		{"start after adopt", adopted, start(k1, 5), decision{launch: true}, kinds(kindIntent)},
		{"start of a former owner after adopt", adopted, start(k1, 4), decision{refuse: stale, known: fence{1, 5}}, nil},
		{"start of a former generation", newer, start(k1, 9), decision{refuse: stale, known: fence{2, 0}}, nil},
		{"start again while accepted", accepted, start(k1, 5), decision{report: true}, nil},
		{"start again by a new owner", accepted, start(k1, 6), decision{report: true}, kinds(kindFence)},
		{"start again while running", running, start(k1, 5), decision{report: true}, nil},
		{"start again after it exited", exited, start(k1, 5), decision{report: true}, nil},
		{"start again after it was acknowledged", acked, start(k1, 5), decision{report: true}, nil},
		{"start after kill of an unknown attempt", never, start(k1, 5), decision{report: true}, nil},
		{"start of what was intended and never ran", intended, start(k1, 5), decision{launch: true}, kinds(kindIntent)},
		{"start of a former attempt", second, start(k1, 5), decision{refuse: superseded, known: fence{1, 5}}, nil},
		{"start of a second attempt while the first is accepted", accepted, start(k2, 5), decision{refuse: overlap, known: fence{1, 5}}, nil},
		{"start of a second attempt while the first runs", running, start(k2, 5), decision{refuse: overlap, known: fence{1, 5}}, nil},
		{"start of a second attempt after the first exited", exited, start(k2, 5), decision{launch: true}, kinds(kindIntent)},
		{"start of a second attempt after the first ended unknown", unknown, start(k2, 5), decision{launch: true}, kinds(kindIntent)},
		{"start of a second attempt forbids the intended first", intended, start(k2, 5), decision{launch: true}, kinds(kindEnd, kindIntent)},
		{"start in a final request", finished, start(k2, 5), decision{refuse: final, known: fence{1, 5}}, nil},
		{"start of another step of a final request", finished, start(key{"R", "t", 1}, 5), decision{refuse: final, known: fence{1, 5}}, nil},
		{"start of a known attempt of a final request", finished, start(k1, 5), decision{report: true}, nil},
		{"start at the floor", trimmed, start(k1, 5), decision{refuse: floor, known: fence{1, 5}}, nil},
		{"start below the floor of another request", trimmed, start(key{"Q", "s", 1}, 4), decision{refuse: floor, known: fence{1, 5}}, nil},
		{"start above the floor", trimmed, start(k1, 6), decision{launch: true}, kinds(kindIntent)},

		{"kill of an unknown attempt", nothing, kill(k1, 5), decision{report: true}, kinds(kindEnd)},
		{"kill of a former owner", adopted, kill(k1, 4), decision{refuse: stale, known: fence{1, 5}}, nil},
		{"kill while accepted", accepted, kill(k1, 5), decision{report: true, cancel: true}, kinds(kindEnd)},
		{"kill of what was intended and never ran", intended, kill(k1, 5), decision{report: true}, kinds(kindEnd)},
		{"kill while running", running, kill(k1, 5), decision{stop: true}, kinds(kindStop)},
		{"kill by a new owner while running", running, kill(k1, 6), decision{stop: true}, kinds(kindFence, kindStop)},
		{"kill again while running", func(p *play) { running(p); p.make(p.killIt(k1, 5)) }, kill(k1, 5), decision{stop: true}, nil},
		{"kill after it exited", exited, kill(k1, 5), decision{report: true}, nil},
		{"kill by a new owner after it exited", exited, kill(k1, 6), decision{report: true}, kinds(kindFence)},
		{"kill of a former attempt", second, kill(k1, 5), decision{refuse: superseded, known: fence{1, 5}}, nil},
		{"kill at the floor", trimmed, kill(k1, 5), decision{refuse: floor, known: fence{1, 5}}, nil},

		{"adopt of an unknown request", nothing, adopt(5), decision{}, kinds(kindFence)},
		{"adopt again", adopted, adopt(5), decision{}, nil},
		{"adopt by a new owner", adopted, adopt(6), decision{}, kinds(kindFence)},
		{"adopt by a former owner", adopted, adopt(4), decision{refuse: stale, known: fence{1, 5}}, nil},
		{"adopt at the floor", trimmed, adopt(5), decision{refuse: floor, known: fence{1, 5}}, nil},
		{"adopt above the floor", trimmed, adopt(6), decision{}, kinds(kindFence)},

		{"ack of an unknown request", nothing, ack(k1, 5, true), decision{}, nil},
		{"ack of an end", exited, ack(k1, 5, false), decision{}, kinds(kindAck)},
		{"ack of an end, from the store, with a former fence", exited, ack(k1, 2, false), decision{}, kinds(kindAck)},
		{"ack again", acked, ack(k1, 5, false), decision{}, nil},
		{"ack while running says nothing", running, ack(k1, 5, false), decision{}, nil},
		{"ack of what was intended forbids it", intended, ack(k1, 5, false), decision{report: true}, kinds(kindEnd, kindAck)},
		{"final forbids what was intended", intended, ack(key{"R", "", 0}, 5, true), decision{report: true}, kinds(kindEnd, kindAck)},
		{"final alone", acked, ack(key{"R", "", 0}, 5, true), decision{}, kinds(kindAck)},
		{"final again", finished, ack(key{"R", "", 0}, 5, true), decision{}, nil},
		{"a higher fence alone", finished, ack(k1, 6, true), decision{}, kinds(kindAck)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlay(t)
			tt.before(p)
			got := tt.do(p)
			var have []kind
			for _, rec := range got.records {
				have = append(have, rec.Kind)
			}
			got.records = nil
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(decision{})); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.kinds, have); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func kinds(k ...kind) []kind { return k }
func start(k key, revision int64) func(*play) decision {
	return func(p *play) decision { return p.startIt(k, revision) }
}
func kill(k key, revision int64) func(*play) decision {
	return func(p *play) decision { return p.killIt(k, revision) }
}
func adopt(revision int64) func(*play) decision {
	return func(p *play) decision { return p.adoptIt("R", revision) }
}
func ack(k key, revision int64, final bool) func(*play) decision {
	return func(p *play) decision { return p.ackIt(k, revision, final) }
}

// An acknowledgement carries the fence of the owner that persisted the end. If only
// the fence of the start were kept, the floor would end below the claim of another
// controller, whose start, sent before it froze, would run the attempt again.
func TestFloorRisesToTheFenceOfTheAcknowledgement(t *testing.T) {
	p := newPlay(t)
	p.make(p.startIt(k1, 1)) // sent by the first owner
	p.end(k1, phaseExited, 0)
	// The owner with fence 3 persisted the report and made the request final; the one
	// with fence 2 is frozen, with a start in its hands.
	p.make(p.ackIt(k1, 3, true))
	p.apply(p.trim(2, 10)...)
	for revision := int64(1); revision <= 3; revision++ {
		if d := p.startIt(k1, revision); d.refuse != wire.Refusal_STALE_FLOOR {
			t.Errorf("start with fence %d: %+v", revision, d)
		}
		if d := p.adoptIt("R", revision); d.refuse != wire.Refusal_STALE_FLOOR {
			t.Errorf("adopt with fence %d: %+v", revision, d)
		}
	}
}

func TestTrimForgetsOnlyWhatIsFinalAndAcknowledged(t *testing.T) {
	p := newPlay(t)
	done := func(request string, at int64) {
		k := key{request, "s", 1}
		p.make(p.startIt(k, 5))
		p.end(k, phaseExited, 0)
		p.make(p.ack(&wire.Ack{Request: request, Step: "s", Attempt: 1, Fence: rev(5), Final: true}, at))
	}
	p.make(p.startIt(key{"running", "s", 1}, 5))
	p.make(p.startIt(key{"unacked", "s", 1}, 5))
	p.end(key{"unacked", "s", 1}, phaseExited, 0)
	p.make(p.ackIt(key{"unacked", "", 0}, 5, true))
	p.make(p.startIt(key{"not final", "s", 1}, 5))
	p.end(key{"not final", "s", 1}, phaseExited, 0)
	p.make(p.ackIt(key{"not final", "s", 1}, 5, false))
	p.make(p.adoptIt("only adopted", 5))
	done("old", 10)
	done("young", 20)
	done("younger", 30)
	names := func(records []record) []string {
		var s []string
		for _, rec := range records {
			s = append(s, rec.Request)
		}
		return s
	}
	if diff := cmp.Diff([]string{"old"}, names(p.trim(15, 10))); diff != "" {
		t.Errorf("by age (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"young", "old"}, names(p.trim(0, 1))); diff != "" {
		t.Errorf("by number (-want +got):\n%s", diff)
	}
	if got := names(p.trim(0, 10)); got != nil {
		t.Errorf("forgot %v too early", got)
	}
}

func TestApplyRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, rec := range []record{
		{Kind: "future"},
		{Kind: kindRequest},
		{Kind: kindRequest, Whole: &request{Name: "R", Steps: map[string]*step{"s": nil}}},
		{Kind: kindRequest, Whole: &request{Name: "R", Steps: map[string]*step{"s": {Attempts: map[uint32]*attempt{1: nil}}}}},
		{Kind: kindEnd, Request: "R", Step: "s", Attempt: 1, Phase: phaseRunning},
	} {
		if err := newLedger().apply(rec); err == nil {
			t.Errorf("%+v was applied", rec)
		}
	}
}

func TestTheFirstEndStays(t *testing.T) {
	p := newPlay(t)
	p.make(p.startIt(k1, 5))
	p.end(k1, phaseExited, 3)
	p.end(k1, phaseUnknown, 0)
	p.apply(record{Kind: kindIntent, Request: "R", Step: "s", Attempt: 1})
	if at := p.attempt(k1); at.Phase != phaseExited || at.Code != 3 {
		t.Errorf("attempt is %+v", at)
	}
}

// sameLedger compares what a restart must find again.
var sameLedger = cmp.Options{
	cmp.AllowUnexported(ledger{}),
	cmpopts.IgnoreUnexported(request{}, attempt{}),
	cmpopts.EquateEmpty(),
}

// TestLedgerKeepsItsPromises plays random commands of several owners, old ones too,
// doubled and out of order, with ends, crashes and forgetting in between.
func TestLedgerKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger()
		var log []record
		launched := map[key]int{}     // times that an attempt was launched
		ran := map[key]bool{}         // and got as far as its command
		highest := map[string]int64{} // fence that was obeyed, by request
		last := map[string]int64{}    // fence of the owner that made the request final
		ends := map[key]attempt{}
		apply := func(records []record) {
			for _, rec := range records {
				if err := l.apply(rec); err != nil {
					t.Fatal(err)
				}
			}
			log = append(log, records...)
		}
		obey := func(request string, revision int64, d decision) bool {
			if d.refuse != 0 {
				if len(d.records) != 0 {
					t.Fatalf("a refusal has records: %+v", d)
				}
				return false
			}
			if revision < highest[request] {
				t.Fatalf("fence %d of %s was obeyed after %d", revision, request, highest[request])
			}
			highest[request] = revision
			apply(d.records)
			return true
		}
		for range rapid.IntRange(1, 60).Draw(t, "moves") {
			k := key{
				rapid.SampledFrom([]string{"R", "Q"}).Draw(t, "request"),
				rapid.SampledFrom([]string{"s", "t"}).Draw(t, "step"),
				rapid.Uint32Range(1, 3).Draw(t, "attempt"),
			}
			revision := rapid.Int64Range(1, 4).Draw(t, "fence")
			if f, ok := last[k.request]; ok {
				revision = min(revision, f) // nobody claims what is final
			}
			switch rapid.SampledFrom([]string{"start", "start", "kill", "adopt", "ack", "ack", "run", "end", "crash", "trim", "compact"}).Draw(t, "move") {
			case "start":
				d := l.start(startOf(k, revision, ""), "boot", 1)
				if obey(k.request, revision, d) && d.launch {
					launched[k]++
					if ran[k] {
						t.Fatalf("%s was run and is launched again", k)
					}
					l.each(func(other key, at *attempt) {
						if other != k && other.request == k.request && other.step == k.step && at.Phase.living() {
							t.Fatalf("%s is launched while %s is %s", k, other, at.Phase)
						}
					})
				}
			case "kill":
				d := l.kill(killMessage(k, revision).GetKill())
				obey(k.request, revision, d)
			case "adopt":
				obey(k.request, revision, l.adopt(&wire.Adopt{Request: k.request, Fence: rev(revision)}))
			case "ack":
				// Owners acknowledge with the highest fence that there is: theirs, or
				// that of the owner which made the request final.
				f := max(revision, highest[k.request])
				final := rapid.Bool().Draw(t, "final")
				d := l.ack(&wire.Ack{Request: k.request, Step: k.step, Attempt: k.attempt, Fence: rev(f), Final: final}, 1)
				if l.requests[k.request] != nil {
					highest[k.request] = max(highest[k.request], f)
				}
				if _, ok := last[k.request]; final && !ok {
					last[k.request] = highest[k.request]
				}
				apply(d.records)
			case "run":
				if at := l.attempt(k); at != nil && at.Phase == phaseAccepted {
					at.Phase = phaseStarting
					apply([]record{{Kind: kindLaunched, Request: k.request, Step: k.step, Attempt: k.attempt, Pid: 1}})
					ran[k] = true
				}
			case "end":
				if at := l.attempt(k); at != nil && at.Phase == phaseRunning {
					apply([]record{{Kind: kindEnd, Request: k.request, Step: k.step, Attempt: k.attempt, Phase: phaseExited, Code: 1}})
				}
			case "crash":
				again := newLedger()
				for _, rec := range log {
					if err := again.apply(rec); err != nil {
						t.Fatal(err)
					}
				}
				l = again
				l.each(func(k key, at *attempt) {
					if at.Phase.living() && !ran[k] {
						at.Phase = phaseIntended
					}
				})
			case "trim":
				apply(l.trim(2, 0))
			case "compact":
				data, _, _ := encodeJournal("id", l, 0, 0)
				d, err := decodeJournal(data)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(l, d.ledger, sameLedger); diff != "" {
					t.Fatalf("compacting changed the ledger (-before +after):\n%s", diff)
				}
			}
			l.each(func(k key, at *attempt) {
				before, ended := ends[k]
				if at.Phase.ended() {
					if ended && (before.Phase != at.Phase || before.Code != at.Code) {
						t.Fatalf("the end of %s changed from %s to %s", k, before.Phase, at.Phase)
					}
					ends[k] = *at
				} else if ended {
					t.Fatalf("%s ended and is %s again", k, at.Phase)
				}
			})
		}
	})
}

func TestRecordsSurviveJSON(t *testing.T) {
	for _, rec := range []record{
		{Kind: kindIntent, Time: 1, Request: "R\n\"", Step: "é", Attempt: 2, Fence: fence{3, 4}, Boot: "b", Timeout: 5, Grace: 6},
		{Kind: kindEnd, Request: "R", Step: "s", Attempt: 1, Phase: phaseExited, Code: 137, Signal: 9, Reason: "r"},
		{Kind: kindState, Generation: generation{1, "g"}, Floor: fence{1, 2}, Opens: 3},
	} {
		text, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		var got record
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rec, got); diff != "" {
			t.Error(diff)
		}
	}
}
