package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire"
)

// stage is a world with one controller, one agent, a link between them, and a ledger
// file that scripts append to.
type stage struct {
	*testWorld
	c      *testController
	a      *testAgent
	l      *testLink
	ledger string
}

func newStage(t testing.TB, settings ...setting) *stage {
	t.Helper()
	w := newWorld(t)
	s := &stage{testWorld: w, c: w.controller("c1"), ledger: filepath.Join(t.TempDir(), "ledger")}
	s.boot(settings...)
	return s
}

func (s *stage) boot(settings ...setting) {
	s.t.Helper()
	s.a = s.agent([]*testController{s.c}, settings...)
	s.l = s.c.link()
}

// restart ends the agent's process, as far as a test can without one of its own, and
// starts the next.
func (s *stage) restart(settings ...setting) {
	s.t.Helper()
	s.a.stop()
	s.boot(settings...)
}

// note returns a command that appends what to the ledger.
func (s *stage) note(what string) string { return fmt.Sprintf("echo %s >>%s\n", what, s.ledger) }

// noted returns what attempts have appended.
func (s *stage) noted() string {
	s.t.Helper()
	text, err := os.ReadFile(s.ledger)
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(text)
}

func (s *stage) wantNoted(want string) {
	s.t.Helper()
	if got := s.noted(); got != want {
		s.t.Errorf("ledger is %q, want %q", got, want)
	}
}

// barrier runs another attempt from beginning to end: whatever was started before it
// has had its chance.
func (s *stage) barrier() {
	s.t.Helper()
	k := key{"barrier", fmt.Sprint(time.Now().UnixNano()), 1}
	s.l.start(startOf(k, 1<<40, "true"))
	s.l.report(k, wire.State_EXITED)
}

// waitNoted waits until attempts have appended what is wanted.
func (s *stage) waitNoted(want string) {
	s.t.Helper()
	eventually(s.t, "ledger "+want, func() bool { return s.noted() == want })
}

func wantEnd(t testing.TB, r *wire.Report, want *wire.End) {
	t.Helper()
	got := r.GetAttempt().GetEnd()
	if got.GetCode() != want.GetCode() || got.GetSignal() != want.GetSignal() || got.GetStopped() != want.GetStopped() {
		t.Errorf("end is {%v}, want {%v}", got, want)
	}
	if want.Outputs != nil && !maps.Equal(got.GetOutputs(), want.GetOutputs()) {
		t.Errorf("outputs are %q, want %q", got.GetOutputs(), want.GetOutputs())
	}
	if want.GetReason() != "" && !strings.Contains(got.GetReason(), want.GetReason()) {
		t.Errorf("reason %q, want %q in it", got.GetReason(), want.GetReason())
	}
}

func TestAttemptRunsAndReports(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, s.note(`"$UAC_REQUEST $UAC_STEP $UAC_ATTEMPT $UAC_PARAM_version $COLOUR"`)+"exit 3")
	start.Params = map[string]string{"version": "1.2; rm -rf /"}
	start.Env = map[string]string{"COLOUR": "blue", "UAC_STEP": "forged"}
	before := time.Now().UnixNano()
	s.l.start(start)
	end := s.l.report(k1, wire.State_EXITED)
	wantEnd(t, end, &wire.End{Code: 3})
	s.wantNoted("R s 1 1.2; rm -rf / blue\n")
	at := end.GetAttempt()
	if at.GetStartedUnixNano() < before || at.GetEndedUnixNano() < at.GetStartedUnixNano() || at.GetEndedUnixNano() > time.Now().UnixNano() {
		t.Errorf("started %d, ended %d", at.GetStartedUnixNano(), at.GetEndedUnixNano())
	}
	if f := end.GetFence(); f.Compare(rev(5)) != 0 {
		t.Errorf("fence %v", f)
	}
	if j := end.GetJournal(); j.GetId() != s.l.hello.GetJournal().GetId() || j.GetCounter() <= s.l.hello.GetJournal().GetCounter() {
		t.Errorf("journal went from %v to %v", s.l.hello.GetJournal(), j)
	}
}

func TestStepMayNameItsDirectory(t *testing.T) {
	s := newStage(t)
	dir := t.TempDir()
	start := startOf(k1, 5, "pwd >>"+s.ledger)
	start.Dir = dir
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	s.wantNoted(dir + "\n")
	s.l.ack(k1, 5, false)
	s.barrier()
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

func TestRunningIsReported(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
}

// --- each command once, from the right one, for the right agent ---

func TestRepeatedStartRunsOnce(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, s.note("ran"))
	s.l.start(start)
	s.l.start(start)
	s.l.report(k1, wire.State_EXITED)
	s.l.start(start)
	s.l.report(k1, wire.State_EXITED)
	s.restart()
	s.l.report(k1, wire.State_EXITED) // unasked, on the new link
	s.l.start(start)
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, false)
	s.l.start(start)
	if r := s.l.report(k1, wire.State_EXITED); !r.GetAttempt().GetAcknowledged() {
		t.Error("the end was not acknowledged")
	}
	s.restart()
	s.l.start(start)
	s.l.report(k1, wire.State_EXITED)
	s.barrier()
	s.wantNoted("ran\n")
}

// A kill may overtake the start that it is meant for. If it left no record, the owner
// would write "cancelled" and the start would run after that.
func TestStartAfterKillOfUnknownAttemptNeverRuns(t *testing.T) {
	s := newStage(t)
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_NEVER_STARTED)
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_NEVER_STARTED)
	s.restart()
	s.l.report(k1, wire.State_NEVER_STARTED) // durable
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_NEVER_STARTED)
	s.barrier()
	s.wantNoted("")
}

// The start of a former owner is on its way while the new one adopts, hears "nothing",
// and records that the step is cancelled.
func TestStartOfFormerOwnerIsRefusedAfterAdopt(t *testing.T) {
	s := newStage(t)
	if answer := s.l.adopt("R", 6); len(answer.GetAttempts()) != 0 {
		t.Errorf("adopt of an unknown request: %v", answer)
	}
	check := func() {
		t.Helper()
		s.l.start(startOf(k1, 5, s.note("ran")))
		if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_STALE_FENCE || r.GetKnown().Compare(rev(6)) != 0 || r.GetFence().Compare(rev(5)) != 0 {
			t.Errorf("refusal %v", r)
		}
		s.l.kill(k1, 5)
		if r := s.l.refusal(wire.Refusal_KILL, k1); r.GetReason() != wire.Refusal_STALE_FENCE {
			t.Errorf("refusal %v", r)
		}
	}
	check()
	s.restart() // the fence was durable before the answer
	check()
	s.barrier()
	s.wantNoted("")
}

// A start meets an agent whose machine was re-imaged since: its journal does not know
// what was run before, and the step is in doubt already.
func TestCommandForAnotherJournalIsRefused(t *testing.T) {
	s := newStage(t)
	old := s.l.hello.GetJournal()
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_EXITED)
	s.a.stop()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.boot()
	if s.l.hello.GetJournal().GetId() == old.GetId() {
		t.Fatal("the new journal has the old id")
	}
	s.l.send(&wire.ControllerMessage{Journal: old, Body: &wire.ControllerMessage_Start{Start: startOf(k1, 5, s.note("ran"))}})
	if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_WRONG_JOURNAL {
		t.Errorf("refusal %v", r)
	}
	kill := killMessage(k1, 5)
	kill.Journal = old
	s.l.send(kill)
	if r := s.l.refusal(wire.Refusal_KILL, k1); r.GetReason() != wire.Refusal_WRONG_JOURNAL {
		t.Errorf("refusal %v", r)
	}
	// The answer to an adopt names the journal that knows nothing.
	if j := s.l.adopt("R", 6).GetJournal(); j.GetId() != s.l.hello.GetJournal().GetId() {
		t.Errorf("adopt answered from journal %v", j)
	}
	s.wantNoted("ran\n")
}

// A virtual machine is set back to a snapshot taken after the dispatch and before the
// run. Its hello shows a counter that the dispatch knew, but reports had a higher one.
func TestCommandForALaterStateOfTheJournalIsRefused(t *testing.T) {
	s := newStage(t)
	s.a.stop()
	if err := os.RemoveAll(filepath.Join(s.dir, dirSpares)); err != nil { // no pipes for CopyFS
		t.Fatal(err)
	}
	snapshot := t.TempDir()
	if err := os.CopyFS(snapshot, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.boot()
	dispatched := s.l.hello.GetJournal()
	s.l.start(startOf(k1, 5, s.note("ran")))
	reported := s.l.report(k1, wire.State_EXITED).GetJournal()
	s.a.stop()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(snapshot)); err != nil {
		t.Fatal(err)
	}
	s.boot()
	if now := s.l.hello.GetJournal(); now.GetId() != dispatched.GetId() || now.GetCounter() >= reported.GetCounter() {
		t.Fatalf("journal at dispatch %v, reported %v, after the snapshot %v", dispatched, reported, now)
	}
	s.l.counter = reported.GetCounter()
	s.l.start(startOf(k1, 5, s.note("ran")))
	if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_WRONG_JOURNAL {
		t.Errorf("refusal %v", r)
	}
	s.wantNoted("ran\n")
}

// A machine is set back to a disk of a moment ago: all that it has lost is one step of
// which a controller was told that it runs. It starts several times before a controller
// hears of it, and finds out what became of another step, and has a lower counter all
// the same.
func TestSetBackShowsHoweverLittleIsLost(t *testing.T) {
	s := newStage(t)
	over := filepath.Join(t.TempDir(), "over")
	last := "while [ ! -e " + over + " ]; do sleep 0.02; done"
	s.l.start(startOf(k1, 5, last))
	s.l.report(k1, wire.State_RUNNING)
	snapshot := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", s.dir+"/.", snapshot).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k := key{"R", "another", 1}
	s.l.start(startOf(k, 5, last))
	reported := s.l.report(k, wire.State_RUNNING).GetJournal()
	if err := os.WriteFile(over, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.l.report(k1, wire.State_EXITED)
	s.l.report(k, wire.State_EXITED)
	s.a.stop()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", snapshot, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for range 3 {
		s.boot()
		if now := s.l.hello.GetJournal(); now.GetId() != reported.GetId() || now.GetCounter() >= reported.GetCounter() {
			t.Errorf("journal as reported %v, set back %v", reported, now)
		}
		s.a.stop()
	}
}

// A command that was sent to a link whose hello was checked must not reach the agent
// by another one, after a snapshot was restored in between.
func TestCommandBoundToAnotherLinkIsRefused(t *testing.T) {
	s := newStage(t)
	old := s.l.hello.GetLink()
	s.l.cut()
	s.l = s.c.link()
	if n := s.l.hello.GetLink(); n.GetNumber() <= old.GetNumber() || n.GetNonce() == old.GetNonce() {
		t.Errorf("link %v follows %v", n, old)
	}
	for _, link := range []*wire.LinkID{old, {Number: s.l.hello.GetLink().GetNumber(), Nonce: old.GetNonce()}, {}} {
		s.l.send(&wire.ControllerMessage{Link: link, Body: &wire.ControllerMessage_Start{Start: startOf(k1, 5, s.note("ran"))}})
		if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_WRONG_LINK {
			t.Errorf("refusal %v", r)
		}
	}
	before := s.l.hello.GetLink().GetNumber()
	s.restart()
	if n := s.l.hello.GetLink().GetNumber(); n <= before {
		t.Errorf("link %d of a new process follows %d", n, before)
	}
	s.barrier()
	s.wantNoted("")
}

// After the acknowledgement only a tombstone is left, and after the request is final
// not even that; the floor takes its place.
func TestStartAtTheFloorIsRefused(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.TombstoneMax = 0 })
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 7, true)
	s.l.sync()
	s.a.trim(time.Now())
	check := func() {
		t.Helper()
		s.l.start(startOf(k1, 7, s.note("ran")))
		if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_STALE_FLOOR || r.GetKnown().Compare(rev(7)) != 0 {
			t.Errorf("refusal %v", r)
		}
		other := key{"Q", "s", 1}
		s.l.kill(other, 6)
		if r := s.l.refusal(wire.Refusal_KILL, other); r.GetReason() != wire.Refusal_STALE_FLOOR {
			t.Errorf("refusal %v", r)
		}
	}
	check()
	s.restart()
	check()
	// The owner claims again, and its new fence is good.
	s.l.start(startOf(key{"Q", "s", 1}, 8, s.note("other")))
	s.l.report(key{"Q", "s", 1}, wire.State_EXITED)
	s.wantNoted("ran\nother\n")
}

// That a request is final may be said over a link that ends just then. The agent asks,
// but seldom.
func TestRequestsThatNobodyFinishesAreAskedAbout(t *testing.T) {
	s := newStage(t)
	final := func() bool {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return s.a.ledger.requests[k1.request].Final
	}
	s.l.start(startOf(k1, 5, ":"))
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, false)
	s.l.sync()
	start := time.Now()
	for _, later := range []time.Duration{0, askEvery - 1} {
		s.a.ask(start.Add(later))
	}
	s.a.mu.Lock()
	asked := s.a.ledger.requests[k1.request].askedAt
	s.a.mu.Unlock()
	if !asked.Equal(start) {
		t.Errorf("asked after %v", asked.Sub(start))
	}
	s.a.ask(start.Add(askEvery))
	s.l.expect("a report", func(m *wire.AgentMessage) bool {
		at := m.GetReport().GetAttempt()
		return at.GetAcknowledged() && at.GetState() == wire.State_EXITED
	})
	s.l.ack(k1, 5, true)
	s.l.sync()
	if !final() {
		t.Error("the request is not final")
	}
}

// An intent without a run is no end: a new attempt number would let a doubled start
// of the old one run beside it. The same attempt is started again instead.
func TestIntentThatNeverRanIsStartedAgainAsTheSameAttempt(t *testing.T) {
	one := func(c *Config, _ *Deps) { c.MaxAttempts = 1 }
	s := newStage(t, one)
	busy := key{"busy", "s", 1}
	s.l.start(startOf(busy, 5, "exec sleep 1000"))
	s.l.report(busy, wire.State_RUNNING)
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_ACCEPTED)
	s.restart(one)
	s.l.report(k1, wire.State_INTENDED)
	if answer := s.l.adopt("R", 6); answer.GetAttempts()[0].GetState() != wire.State_INTENDED {
		t.Errorf("adopt: %v", answer)
	}
	s.l.start(startOf(k1, 6, s.note("ran")))
	s.l.kill(busy, 5)
	s.l.report(k1, wire.State_EXITED)
	s.l.start(startOf(k1, 6, s.note("ran")))
	s.l.report(k1, wire.State_EXITED)
	s.barrier()
	s.wantNoted("ran\n")
}

func TestSecondAttemptMustNotOverlap(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	s.l.start(startOf(k2, 5, s.note("ran")))
	if r := s.l.refusal(wire.Refusal_START, k2); r.GetReason() != wire.Refusal_OVERLAP {
		t.Errorf("refusal %v", r)
	}
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
	s.l.start(startOf(k2, 5, s.note("ran")))
	s.l.report(k2, wire.State_EXITED)
	s.l.start(startOf(k1, 5, s.note("again"))) // known still
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, false)
	s.l.start(startOf(k1, 5, s.note("again"))) // forgotten, but below the highest
	if r := s.l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_SUPERSEDED {
		t.Errorf("refusal %v", r)
	}
	s.wantNoted("ran\n")
}

func TestMalformedCommandsAreRefused(t *testing.T) {
	s := newStage(t)
	bad := func(change func(*wire.Start)) *wire.Start {
		start := startOf(k1, 5, s.note("ran"))
		change(start)
		return start
	}
	for name, start := range map[string]*wire.Start{
		"no request":      bad(func(c *wire.Start) { c.Request = "" }),
		"no step":         bad(func(c *wire.Start) { c.Step = "" }),
		"no attempt":      bad(func(c *wire.Start) { c.Attempt = 0 }),
		"no fence":        bad(func(c *wire.Start) { c.Fence = nil }),
		"long request":    bad(func(c *wire.Start) { c.Request = strings.Repeat("r", 201) }),
		"relative dir":    bad(func(c *wire.Start) { c.Dir = "work" }),
		"dir with NUL":    bad(func(c *wire.Start) { c.Dir = "/\x00" }),
		"env with =":      bad(func(c *wire.Start) { c.Env = map[string]string{"A=B": "c"} }),
		"env with NUL":    bad(func(c *wire.Start) { c.Env = map[string]string{"A": "b\x00c"} }),
		"empty parameter": bad(func(c *wire.Start) { c.Params = map[string]string{"": "c"} }),
		"timeout":         bad(func(c *wire.Start) { c.TimeoutNanos = -1 }),
		"grace":           bad(func(c *wire.Start) { c.KillGraceNanos = -1 }),
		"two commands":    bad(func(c *wire.Start) { c.Argv = []string{"true"} }),
		"empty command":   bad(func(c *wire.Start) { c.Script, c.Argv = "", []string{""} }),
		"option":          bad(func(c *wire.Start) { c.Script, c.Argv = "", []string{"-c", "true"} }),
		"NUL in argv":     bad(func(c *wire.Start) { c.Script, c.Argv = "", []string{"echo", "\x00"} }),
		"output with =":   bad(func(c *wire.Start) { c.Outputs = []string{"a=b"} }),
		"output twice":    bad(func(c *wire.Start) { c.Outputs = []string{"a", "a"} }),
		"user is option":  bad(func(c *wire.Start) { c.RunAs = "-root" }),
		"user is line":    bad(func(c *wire.Start) { c.RunAs = "root:x:0:0" }),
		"env of a user":   bad(func(c *wire.Start) { c.RunAs, c.Env = "nobody", map[string]string{"a;reboot;": "c"} }),
		"param of a user": bad(func(c *wire.Start) { c.RunAs, c.Params = "nobody", map[string]string{"a;reboot;": "c"} }),
	} {
		s.l.start(start)
		r := s.l.refusal(wire.Refusal_START, key{start.GetRequest(), start.GetStep(), start.GetAttempt()})
		if r.GetReason() != wire.Refusal_MALFORMED || r.GetDetail() == "" {
			t.Errorf("%s: refusal %v", name, r)
		}
	}
	s.l.send(&wire.ControllerMessage{}) // of no kind: ignored
	s.barrier()
	s.wantNoted("")
}

// --- reports and acknowledgements ---

func TestEndsAreReportedAgainUntilAcknowledged(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "exit 1"))
	s.l.report(k1, wire.State_EXITED)
	s.l.cut()
	s.l = s.c.link()
	s.l.report(k1, wire.State_EXITED)
	s.a.repeat(time.Now().Add(time.Hour))
	s.l.report(k1, wire.State_EXITED)
	s.restart()
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, false)
	s.l.sync()
	s.a.repeat(time.Now().Add(time.Hour))
	s.l.sync()
	s.restart()
	s.l.sync()
	if len(s.l.kept) != 0 {
		t.Errorf("after the acknowledgement came %v", s.l.kept)
	}
}

// A lost power cut of the acknowledgement is no harm: the end is told again.
func TestAcknowledgementOfAFormerOwnerCounts(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "exit 1"))
	s.l.report(k1, wire.State_EXITED)
	s.l.adopt("R", 9)
	s.l.ack(k1, 5, false) // derived from the store by somebody
	if at := s.l.adopt("R", 9).GetAttempts()[0]; !at.GetAcknowledged() {
		t.Errorf("attempt is %v", at)
	}
}

func TestAdoptAnswersWithEverythingKnown(t *testing.T) {
	s := newStage(t)
	ended, acked, running, never := key{"R", "ended", 1}, key{"R", "acked", 1}, key{"R", "running", 1}, key{"R", "never", 1}
	s.l.start(startOf(ended, 5, "exit 1"))
	s.l.start(startOf(acked, 5, "exit 2"))
	s.l.start(startOf(running, 5, "exec sleep 1000"))
	s.l.kill(never, 5)
	s.l.start(startOf(key{"Q", "other", 1}, 5, "true"))
	s.l.report(ended, wire.State_EXITED)
	s.l.report(acked, wire.State_EXITED)
	s.l.report(running, wire.State_RUNNING)
	s.l.report(never, wire.State_NEVER_STARTED)
	s.l.ack(acked, 5, false)
	check := func(revision int64) {
		t.Helper()
		var got []string
		answer := s.l.adopt("R", revision)
		for _, at := range answer.GetAttempts() {
			got = append(got, fmt.Sprintf("%s %d %s %d %v", at.GetStep(), at.GetAttempt(), at.GetState(), at.GetEnd().GetCode(), at.GetAcknowledged()))
		}
		want := []string{"acked 1 EXITED 2 true", "ended 1 EXITED 1 false", "never 1 NEVER_STARTED 0 false", "running 1 RUNNING 0 false"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		if answer.GetJournal().GetId() != s.l.hello.GetJournal().GetId() || answer.GetJournal().GetCounter() == 0 {
			t.Errorf("answer names journal %v", answer.GetJournal())
		}
	}
	check(6)
	s.restart()
	check(7)
	s.l.kill(running, 7)
	s.l.report(running, wire.State_EXITED)
}

// --- kill and timeout ---

func TestKillEndsWithTERM(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "trap 'exit 7' TERM; "+s.note("ready")+"while :; do sleep 0.01; done"))
	s.waitNoted("ready\n")
	s.l.kill(k1, 5)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 7, Stopped: wire.Stop_KILLED})
}

func TestKillOfWhatIgnoresTERM(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, "trap '' TERM; "+s.note("ready")+"while :; do sleep 0.01; done")
	start.KillGraceNanos = int64(10 * time.Millisecond)
	s.l.start(start)
	s.waitNoted("ready\n")
	s.l.kill(k1, 5)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_KILLED})
}

// Only if KILL was announced on disk is the lack of an exit status a known end.
func TestKILLIsRecordedBeforeItIsSent(t *testing.T) {
	var s *stage
	alive := make(chan []int, 1)
	recorded := make(chan bool, 1)
	s = newStage(t, func(_ *Config, d *Deps) {
		d.Point = func(p Point) {
			if p != pointKillingDurable {
				return
			}
			d, err := decodeJournal([]byte(readFile(t, filepath.Join(s.dir, fileJournal))))
			if err != nil {
				t.Error(err)
				return
			}
			at := d.ledger.attempt(k1)
			members, err := process{pid: at.Pid, start: at.PidStart}.session()
			if err != nil {
				t.Error(err)
			}
			recorded <- at.Killing && d.last <= s.a.journal.onDisk()
			alive <- members
		}
	})
	start := startOf(k1, 5, "trap '' TERM; "+s.note("ready")+"while :; do sleep 0.01; done")
	start.KillGraceNanos = int64(10 * time.Millisecond)
	s.l.start(start)
	s.waitNoted("ready\n")
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
	if !<-recorded {
		t.Error("KILL was not on disk")
	}
	if len(<-alive) == 0 {
		t.Error("the attempt was dead before KILL was recorded")
	}
}

// A process that leaves the session and holds the pipe is part of the attempt as long
// as the command has not ended.
func TestKillReachesWhatLeftTheSession(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, "setsid sh -c 'trap \"\" TERM; "+strings.TrimSpace(s.note("ready"))+"; while :; do sleep 0.01; done' & wait")
	start.KillGraceNanos = int64(10 * time.Millisecond)
	s.l.start(start)
	s.waitNoted("ready\n")
	// Take the wrapper away, so that no exit is written.
	if err := (process{pid: s.a.dir(k1).said().pid}).signal(9); err != nil {
		t.Fatal(err)
	}
	s.l.kill(k1, 5)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_KILLED})
}

// The shell of a script dies of TERM at once. What it has started may not, in whatever
// way it was started: the attempt is over when nothing of it is left.
func TestStopEndsWhatTheShellLeaves(t *testing.T) {
	deaf := "trap '' TERM; NOTE; while :; do sleep 0.01; done"
	for name, script := range map[string]string{
		"in the foreground":     `sh -c "` + deaf + `"; :`,
		"in the background":     `sh -c "` + deaf + `" & wait`,
		"in another session":    `setsid sh -c "` + deaf + `"; :`,
		"with the pipe closed":  `sh -c "` + deaf + `" 9>&- & wait`,
		"which does obey later": `sh -c "trap 'sleep 0.2; exit 0' TERM; NOTE; while :; do sleep 0.01; done"; :`,
	} {
		for _, timeout := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, timeout %v", name, timeout), func(t *testing.T) {
				t.Parallel()
				s := newStage(t)
				pids := filepath.Join(t.TempDir(), "pids")
				start := startOf(k1, 5, strings.ReplaceAll(script, "NOTE", `echo \$\$ >>`+pids+"; "+strings.TrimSpace(s.note("ready"))))
				start.KillGraceNanos = int64(500 * time.Millisecond)
				stopped := wire.Stop_KILLED
				if timeout {
					start.TimeoutNanos, stopped = int64(2*time.Second), wire.Stop_TIMED_OUT
				}
				s.l.start(start)
				s.waitNoted("ready\n")
				if !timeout {
					s.l.kill(k1, 5)
				}
				end := s.l.report(k1, wire.State_EXITED)
				if end.GetAttempt().GetEnd().GetStopped() != stopped {
					t.Errorf("it has ended as %v", end)
				}
				pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, pids)))
				if err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) && !isZombie(pid) {
					t.Errorf("process %d lives after the end was reported: %v", pid, err)
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			})
		}
	}
}

// isZombie reports whether a process is dead and only not waited for.
func isZombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

func TestTimeoutEndsAnAttempt(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, "exec sleep 1000")
	start.TimeoutNanos = int64(20 * time.Millisecond)
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_TIMED_OUT})
}

func TestKillOfAQueuedAttemptPreventsIt(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.MaxAttempts = 1 })
	busy := key{"busy", "s", 1}
	s.l.start(startOf(busy, 5, "exec sleep 1000"))
	s.l.report(busy, wire.State_RUNNING)
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_ACCEPTED)
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_NEVER_STARTED)
	s.l.kill(busy, 5)
	s.l.report(busy, wire.State_EXITED)
	s.barrier()
	s.wantNoted("")
}

func TestPriorityDecidesWhoRunsNext(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.MaxAttempts = 1 })
	busy := key{"busy", "s", 1}
	s.l.start(startOf(busy, 5, "exec sleep 1000"))
	s.l.report(busy, wire.State_RUNNING)
	var keys []key
	for _, tt := range []struct {
		step     string
		priority int32
	}{{"c", 0}, {"a", 7}, {"d", 0}, {"b", 7}, {"e", -1}, {"killed", 9}} {
		k := key{"R", tt.step, 1}
		start := startOf(k, 5, s.note(tt.step))
		start.Priority = tt.priority
		s.l.start(start)
		s.l.report(k, wire.State_ACCEPTED)
		keys = append(keys, k)
	}
	s.l.kill(keys[5], 5)
	s.l.report(keys[5], wire.State_NEVER_STARTED)
	s.l.kill(busy, 5)
	for _, k := range keys[:5] {
		s.l.report(k, wire.State_EXITED)
	}
	s.wantNoted("a\nb\nc\nd\ne\n")
}

func TestQueueIsBounded(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.MaxAttempts, c.MaxQueued = 1, 1 })
	keys := []key{{"R", "a", 1}, {"R", "b", 1}, {"R", "c", 1}}
	s.l.start(startOf(keys[0], 5, "exec sleep 1000"))
	s.l.report(keys[0], wire.State_RUNNING)
	for _, k := range keys[1:] {
		s.l.start(startOf(k, 5, s.note(k.step)))
		s.l.report(k, wire.State_ACCEPTED)
	}
	late := key{"R", "d", 1}
	s.l.start(startOf(late, 5, s.note("late")))
	if r := s.l.refusal(wire.Refusal_START, late); r.GetReason() != wire.Refusal_BUSY {
		t.Errorf("refusal %v", r)
	}
	s.l.kill(keys[0], 5)
	s.l.report(keys[1], wire.State_EXITED)
	s.l.report(keys[2], wire.State_EXITED)
	s.l.start(startOf(late, 5, s.note("late")))
	s.l.report(late, wire.State_EXITED)
}

func TestWhatCannotBeLaunchedNeverStarts(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, s.note("ran"))
	start.Dir = "/no/such/directory"
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_NEVER_STARTED), &wire.End{Reason: "/no/such/directory"})
	s.l.start(startOf(k1, 5, s.note("ran")))
	s.l.report(k1, wire.State_NEVER_STARTED)
	s.barrier()
	s.wantNoted("")
}

// --- what outlives the agent ---

func TestAttemptOutlivesTheAgent(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	s.l.start(startOf(k1, 5, s.note("begin")+"while ! test -e "+gate+"; do sleep 0.01; done; exit 6"))
	s.waitNoted("begin\n")
	s.l.report(k1, wire.State_RUNNING)
	s.restart()
	s.l.report(k1, wire.State_RUNNING)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 6})
	s.wantNoted("begin\n")
}

func TestEndWhileTheAgentIsAwayIsTold(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	s.l.start(startOf(k1, 5, s.note("begin")+"while ! test -e "+gate+"; do sleep 0.01; done; exit 6"))
	s.waitNoted("begin\n")
	s.a.stop()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := attemptDir(filepath.Join(s.dir, dirAttempts, k1.dir()))
	eventually(t, "an exit status", func() bool { return dir.said().exited })
	eventually(t, "an empty session", func() bool {
		members, err := process{pid: dir.said().pid}.session()
		return err == nil && len(members) == 0
	})
	s.boot()
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 6})
	// That nobody heard the wrapper is not part of it.
	if got := readFile(t, dir.file(fileOutput)); got != "" {
		t.Errorf("output %q", got)
	}
}

func TestKillAndTimeoutWorkAfterARestart(t *testing.T) {
	s := newStage(t)
	timed := key{"R", "timed", 1}
	s.l.start(startOf(k1, 5, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	start := startOf(timed, 5, "exec sleep 1000")
	start.TimeoutNanos = int64(300 * time.Millisecond)
	s.l.start(start)
	s.l.report(timed, wire.State_RUNNING)
	s.restart()
	wantEnd(t, s.l.report(timed, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_TIMED_OUT})
	s.l.kill(k1, 5)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_KILLED})
}

func TestStoppingGoesOnAfterARestart(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, "trap '"+strings.TrimSpace(s.note("asked"))+"' TERM; "+s.note("ready")+"while :; do sleep 0.01 || :; done")
	start.KillGraceNanos = int64(time.Second)
	s.l.start(start)
	s.waitNoted("ready\n")
	s.l.kill(k1, 5)
	s.waitNoted("ready\nasked\n")
	s.restart()
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_KILLED})
	s.wantNoted("ready\nasked\nasked\n")
}

// The wrapper is killed by somebody else (the kernel, short of memory), the command
// lives on: still running. When it ends, nobody knows how.
func TestLossOfTheWrapperIsNotTheEndOfTheCommand(t *testing.T) {
	for name, script := range map[string]string{
		"command holds the pipe":   "%swhile ! test -e %s; do sleep 0.01; done",
		"command closes the pipe":  "exec 9>&-\n%swhile ! test -e %s; do sleep 0.01; done",
		"command left its session": "exec setsid sh -c '%swhile ! test -e %s; do sleep 0.01; done'",
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			gate := filepath.Join(t.TempDir(), "gate")
			s.l.start(startOf(k1, 5, fmt.Sprintf(script, s.note("ready"), gate)))
			s.waitNoted("ready\n")
			pid := s.a.dir(k1).said().pid
			if err := killWrapper(pid); err != nil {
				t.Fatal(err)
			}
			s.l.sync()
			if at := s.l.adopt("R", 6).GetAttempts()[0]; at.GetState() != wire.State_RUNNING {
				t.Errorf("without its wrapper the attempt is %v", at)
			}
			s.restart()
			if at := s.l.adopt("R", 7).GetAttempts()[0]; at.GetState() != wire.State_RUNNING {
				t.Errorf("after a restart the attempt is %v", at)
			}
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.l.report(k1, wire.State_UNKNOWN)
		})
	}
}

func TestTwoFsyncsAStep(t *testing.T) {
	m := newCounts()
	s := newStage(t, func(_ *Config, d *Deps) { d.Metrics = m })
	s.l.sync() // the welcome has cost one
	const steps = 10
	before := m.of(MetricSyncs)
	for i := range steps {
		k := key{"R", fmt.Sprint(i), 1}
		s.l.start(startOf(k, 5, "true"))
		s.l.report(k, wire.State_EXITED)
		s.l.ack(k, 5, false)
	}
	if got := m.of(MetricSyncs) - before; got > 2*steps {
		t.Errorf("%v fsyncs for %d steps, one after the other", got, steps)
	}
}
