package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"uac/roles/wire"
)

func aloneFor(k key, d time.Duration, script string) *wire.Start {
	start := startOf(k, 5, script)
	start.StopWhenAloneNanos = int64(d)
	return start
}

func (l *testLink) ping(number, heard uint64, trusted bool) {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: number, Heard: heard, Trusted: trusted}}})
	l.expect("pong", func(m *wire.AgentMessage) bool { return m.GetPong().GetNumber() == number })
}

// welcomeAs welcomes the agent with pings that the test sends, or does not.
func (l *testLink) welcomeAs(trusted bool) {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{
		Controller: l.controller, Generation: &wire.Generation{Number: 1, Id: "g1"}, PingNanos: int64(time.Hour), Trusted: trusted,
	}}})
}

// ended waits until the attempt has ended, without asking the agent.
func (s *stage) ended(k key) {
	s.t.Helper()
	dir := attemptDir(filepath.Join(s.dir, dirAttempts, k.dir()))
	eventually(s.t, "an exit status of "+k.String(), func() bool { return dir.said().exited })
}

func TestAttemptIsStoppedWhenAlone(t *testing.T) {
	s := newStage(t)
	other, stubborn := key{"R", "other", 1}, key{"R", "stubborn", 1}
	s.l.start(startOf(other, 5, "exec sleep 1000"))
	s.l.report(other, wire.State_RUNNING)
	s.l.start(aloneFor(k1, 100*time.Millisecond, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	start := aloneFor(stubborn, 100*time.Millisecond, "trap '' TERM; "+s.note("ready")+"while :; do sleep 0.01; done")
	start.KillGraceNanos = int64(10 * time.Millisecond)
	s.l.start(start)
	s.waitNoted("ready\n")
	s.l.cut()
	s.l = s.c.next() // a link that no controller has welcomed is none
	s.ended(k1)
	eventually(t, "an end of what ignores TERM", func() bool {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return s.a.ledger.attempt(stubborn).Phase.ended()
	})
	s.l.welcome(1, "g1", 0)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_ALONE, Reason: "no controller was heard"})
	wantEnd(t, s.l.report(stubborn, wire.State_EXITED), &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_ALONE})
	s.l.report(other, wire.State_RUNNING)
	s.restart()
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_ALONE})
	s.l.kill(other, 5)
	s.l.report(other, wire.State_EXITED)
}

// Why it is stopped is on disk before it can die of it.
func TestStopIsRecordedBeforeTERM(t *testing.T) {
	var s *stage
	recorded := make(chan stop, 1)
	s = newStage(t, func(_ *Config, d *Deps) {
		d.Point = func(p Point) {
			if p != pointStopDurable {
				return
			}
			d, err := decodeJournal([]byte(readFile(t, filepath.Join(s.dir, fileJournal))))
			if err != nil || d.last > s.a.journal.onDisk() {
				t.Errorf("journal at %d, durable %d: %v", d.last, s.a.journal.onDisk(), err)
			}
			if s.a.dir(k1).said().exited {
				t.Error("the attempt has ended already")
			}
			recorded <- d.ledger.attempt(k1).Stop
		}
	})
	s.l.start(aloneFor(k1, 100*time.Millisecond, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	s.l.cut()
	s.ended(k1)
	if got := <-recorded; got != stopAlone {
		t.Errorf("recorded is %q", got)
	}
}

// A controller that is cut off from the others answers for nobody, and what is said to
// an agent may be long on its way.
func TestOnlyAnsweredWordsOfTrustedControllersCount(t *testing.T) {
	w := newWorld(t)
	s := &stage{testWorld: w, c: w.controller("c1"), ledger: filepath.Join(t.TempDir(), "ledger")}
	s.a = s.agent([]*testController{s.c})
	s.l = s.c.next()
	s.l.welcomeAs(false)
	s.l.ping(1, 0, true)
	s.l.ping(2, 1, false)
	s.l.start(aloneFor(k1, time.Hour, s.note("ran")))
	wantEnd(t, s.l.report(k1, wire.State_NEVER_STARTED), &wire.End{Reason: "no controller was heard"})
	s.l.ping(3, 1, true)
	s.l.start(aloneFor(k2, time.Hour, s.note("ran")))
	s.l.report(k2, wire.State_EXITED)
	s.wantNoted("ran\n")
	// With a link that stands and says nothing that counts an attempt is alone.
	s.l.cut()
	s.l = s.c.next()
	s.l.welcomeAs(true)
	k := key{"R", "other", 1}
	s.l.start(aloneFor(k, 200*time.Millisecond, "exec sleep 1000"))
	s.l.ping(4, 0, true)
	wantEnd(t, s.l.report(k, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_ALONE})
}

func TestContactIsWhenTheAnsweredWordWasSent(t *testing.T) {
	var p pongs
	for i, tt := range []struct {
		number, heard uint64
		trusted       bool
		now, want     int64
	}{
		{1, 0, true, 10, 0}, // nothing was heard yet
		{2, 0, true, 20, 0},
		{3, 1, true, 30, 10},
		{4, 2, false, 40, 0}, // may not act
		{5, 2, true, 50, 20},
		{6, 2, true, 60, 20},      // said again: no news
		{7, 6, true, 70, 60},      // several at once
		{8, 7, true, 1000, 70},    // late: what counts is when the agent spoke
		{9, 99, true, 1010, 1000}, // has heard what was never said
	} {
		if got := p.contact(&wire.Ping{Number: tt.number, Heard: tt.heard, Trusted: tt.trusted}, tt.now); got != tt.want {
			t.Errorf("ping %d: contact at %d, want %d", i+1, got, tt.want)
		}
	}
	for n := range uint64(1000) {
		p.contact(&wire.Ping{Number: 100 + n}, int64(n))
	}
	if len(p) > maxPongs {
		t.Errorf("%d answers are remembered", len(p))
	}
}

// contactAt makes the journal of an agent that has ended say that the last contact was
// some time ago.
func (s *stage) contactAt(ago time.Duration) {
	s.t.Helper()
	path := filepath.Join(s.dir, fileJournal)
	text := []byte(readFile(s.t, path))
	d, err := decodeJournal(text)
	if err != nil {
		s.t.Fatal(err)
	}
	boot, err := bootID()
	if err != nil {
		s.t.Fatal(err)
	}
	now, err := bootTime()
	if err != nil {
		s.t.Fatal(err)
	}
	text = appendLine(text, d.last+1, d.last, record{Kind: kindContact, Boot: boot, BootTime: now - int64(ago)})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// The owner does not know that the agent was started anew, and counts on.
func TestTheClockOfBeingAloneGoesOnOverARestart(t *testing.T) {
	s := newStage(t)
	s.l.start(aloneFor(k1, time.Hour, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	s.a.stop()
	s.contactAt(30 * time.Minute) // left is half an hour, minus what the machine adds
	s.a = s.agent([]*testController{s.c})
	s.l = s.c.next()
	s.l.welcomeAs(false)
	s.l.report(k1, wire.State_RUNNING)
	if left, ok := s.a.aloneLeft(k1); !ok || left > 30*time.Minute {
		t.Errorf("left are %v", left)
	}
	s.a.stop()
	s.contactAt(2 * time.Hour)
	s.a = s.agent([]*testController{s.c})
	s.l = s.c.next()
	s.ended(k1) // although the agent has only just begun
	s.l.welcome(1, "g1", 0)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_ALONE})
}

func TestContactIsInTheJournal(t *testing.T) {
	s := newStage(t)
	inJournal := func() int64 {
		t.Helper()
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return s.a.ledger.contactIn(s.a.boot)
	}
	s.l.start(startOf(k1, 5, "true"))
	s.l.report(k1, wire.State_EXITED)
	if at := inJournal(); at != 0 {
		t.Errorf("nothing depends on it, and the journal has %d", at)
	}
	s.l.start(aloneFor(k2, time.Hour, "exec sleep 1000"))
	s.l.report(k2, wire.State_RUNNING)
	first := inJournal()
	if first == 0 {
		t.Fatal("it is not there with the intent")
	}
	// Not for every word, but before the journal is far behind.
	s.a.mu.Lock()
	s.a.noteContact(false)
	again := s.a.ledger.contactIn(s.a.boot)
	s.a.ledger.attempt(k2).Alone = int64(time.Nanosecond) * contactShare
	s.a.noteContact(false)
	later := s.a.ledger.contactIn(s.a.boot)
	s.a.ledger.attempt(k2).Alone = int64(time.Hour)
	s.a.mu.Unlock()
	if again != first || later <= first {
		t.Errorf("contact at %d, then %d, then %d", first, again, later)
	}
	// And exactly, when the agent ends in order.
	s.a.stop()
	d, err := decodeJournal([]byte(readFile(t, filepath.Join(s.dir, fileJournal))))
	if err != nil || d.ledger.contactIn(s.a.boot) <= later {
		t.Errorf("in the end contact at %d, before %d: %v", d.ledger.contactIn(s.a.boot), later, err)
	}
	if at := d.ledger.contactIn("another boot"); at != 0 {
		t.Errorf("of another boot: %d", at)
	}
	s.boot()
	s.l.kill(k2, 5)
	s.l.report(k2, wire.State_EXITED)
}

// What waits for its turn may have been started elsewhere by the time it comes.
func TestWhatWaitedTooLongAloneNeverStarts(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.MaxAttempts = 1 })
	gate := filepath.Join(t.TempDir(), "gate")
	busy := key{"busy", "s", 1}
	s.l.start(startOf(busy, 5, "while ! test -e "+gate+"; do sleep 0.01; done"))
	s.l.report(busy, wire.State_RUNNING)
	s.l.start(aloneFor(k1, 50*time.Millisecond, s.note("ran")))
	s.l.report(k1, wire.State_ACCEPTED)
	s.l.cut()
	s.l = s.c.next()
	eventually(t, "the time is up", func() bool { left, ok := s.a.aloneLeft(k1); return ok && left < 0 })
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an end", func() bool {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return s.a.ledger.attempt(k1).Phase.ended()
	})
	s.l.welcome(1, "g1", 0)
	wantEnd(t, s.l.report(k1, wire.State_NEVER_STARTED), &wire.End{Reason: "no controller was heard"})
	s.wantNoted("")
}
