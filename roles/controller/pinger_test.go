package controller

import (
	"testing"
	"time"
)

func TestPinger(t *testing.T) {
	const fast, slow = time.Second, idlePings * time.Second
	p := newPinger(fast)
	ping := func(heard uint64, lively bool, want time.Duration) {
		t.Helper()
		if !p.next(heard, lively) || p.wait != want {
			t.Fatalf("after ping %d: wait %v, want %v", p.number, p.wait, want)
		}
	}
	if p.wait != fast {
		t.Errorf("the first ping comes after %v", p.wait)
	}
	for range livelyPings {
		ping(p.number, false, fast)
	}
	ping(p.number, false, slow)
	ping(p.number, false, slow)
	if !p.stir() || p.wait != fast {
		t.Errorf("a message leaves %v until the next ping", p.wait)
	}
	if p.stir() {
		t.Error("the next ping cannot come sooner than soon")
	}
	for range livelyPings {
		ping(p.number, false, fast)
	}
	ping(p.number, true, fast) // the agent has work
	for range livelyPings {
		ping(p.number, false, fast)
	}
	ping(p.number, false, slow)
	// Who does not answer is asked soon again, and then given up.
	heard := p.number - 1
	ping(heard, false, fast)
	ping(heard, false, fast)
	if p.next(heard, false) {
		t.Error("a link goes on without answers")
	}
}

func TestPingerGivesUpWhoNeverAnswers(t *testing.T) {
	p := newPinger(time.Second)
	for range lostPings {
		if !p.next(0, false) || p.wait != time.Second {
			t.Fatalf("ping %d", p.number)
		}
	}
	if p.next(0, false) {
		t.Error("a link goes on without any answer")
	}
}

func TestPingsAreDueTogether(t *testing.T) {
	for _, tt := range []struct{ wait, passed, want time.Duration }{
		{time.Second, 0, time.Second},
		{time.Second, 30 * time.Millisecond, 970 * time.Millisecond},
		{15 * time.Second, 99 * time.Millisecond, 14901 * time.Millisecond},
		{pingBeat, 30 * time.Millisecond, pingBeat}, // never at once
	} {
		if got := onBeat(tt.wait, tt.passed); got != tt.want {
			t.Errorf("wait %v after %v: %v, want %v", tt.wait, tt.passed, got, tt.want)
		}
	}
}
