package coord

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// pulsedAt sends a pulse to the voter and returns its number.
func pulsedAt(t *trust, d time.Duration, voter string) uint64 {
	seq, _ := t.pulse(at(d), voter)
	return seq
}

func mustEcho(tb testing.TB, t *trust, voter string, seq uint64, epoch, own int64) {
	tb.Helper()
	if err := t.echo(voter, &echoMsg{Seq: seq, Epoch: epoch}, own); err != nil {
		tb.Fatal(err)
	}
}

func TestTrust(t *testing.T) {
	three := []string{"c1", "c2", "w1"}
	five := []string{"c1", "c2", "c3", "w1", "w2"}
	type step func(*testing.T, *trust)
	// heardBy is a pulse at 0 that these voters echoed naming session 10.
	heardBy := func(voters ...string) step {
		return func(t *testing.T, tr *trust) {
			for _, v := range voters {
				tr.linkUp(v)
				mustEcho(t, tr, v, pulsedAt(tr, 0, v), 10, 10)
			}
		}
	}
	tests := []struct {
		name   string
		voters []string
		steps  []step
		now    time.Duration
		wrote  time.Duration
		epoch  int64
		want   string // part of the error, "" for trust
	}{
		{name: "alone", voters: []string{"c1"}, epoch: 10},
		{name: "alone without a session", voters: []string{"c1"}, want: "no session"},
		{name: "alone with old writes", voters: []string{"c1"}, epoch: 10, now: 2400 * ms, want: "no write"},
		{name: "not a voter", voters: []string{"c2"}, epoch: 10, want: "not a voter"},
		{name: "of three, nobody connected", voters: three, epoch: 10, want: "c2 is not connected; w1 is not connected"},
		{name: "of three, one heard", voters: three, steps: []step{heardBy("w1")}, epoch: 10},
		{name: "of five, one heard", voters: five, steps: []step{heardBy("w1")}, epoch: 10, want: "heard by 2 of 5 voters, 3 needed"},
		{name: "of five, two heard", voters: five, steps: []step{heardBy("w1", "c3")}, epoch: 10},
		{name: "of two, nobody heard", voters: []string{"c1", "c2"}, epoch: 10, want: "heard by 1 of 2"},
		{name: "a stranger heard", voters: three, steps: []step{heardBy("x9")}, epoch: 10, want: "heard by 1 of 3"},
		{name: "just before 4/5 of silence", voters: three, steps: []step{heardBy("w1")}, epoch: 10, now: 800*ms - 1, wrote: 700 * ms},
		{name: "at 4/5 of silence", voters: three, steps: []step{heardBy("w1")}, epoch: 10, now: 800 * ms, wrote: 700 * ms, want: "w1 echoed a pulse of 800ms ago"},
		{name: "just before 4/5 of stall", voters: []string{"c1"}, epoch: 10, now: 2400*ms - 1},
		{name: "age counts from sending, not from the echo", voters: three, epoch: 10, now: 900 * ms, wrote: 800 * ms, want: "900ms ago",
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("w1")
				seq := pulsedAt(tr, 0, "w1")
				pulsedAt(tr, 850*ms, "w1") // not echoed
				mustEcho(t, tr, "w1", seq, 10, 10)
			}}},
		{name: "the newest echo counts", voters: three, epoch: 10, now: 900 * ms, wrote: 800 * ms,
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("w1")
				first, second := pulsedAt(tr, 0, "w1"), pulsedAt(tr, 850*ms, "w1")
				mustEcho(t, tr, "w1", second, 10, 10)
				mustEcho(t, tr, "w1", first, 10, 10)
			}}},
		{name: "connection down", voters: three, epoch: 10, want: "w1 is not connected",
			steps: []step{heardBy("w1"), func(_ *testing.T, tr *trust) { tr.linkDown("w1") }}},
		{name: "connection renewed, not echoed yet", voters: three, epoch: 10, want: "w1 has not echoed yet",
			steps: []step{heardBy("w1"), func(_ *testing.T, tr *trust) { tr.linkUp("w1") }}},
		{name: "other connection down", voters: three, epoch: 10,
			steps: []step{heardBy("w1", "c2"), func(_ *testing.T, tr *trust) { tr.linkDown("c2") }}},
		{name: "a voter behind, the other not", voters: three, epoch: 11,
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("w1")
				tr.linkUp("c2")
				mustEcho(t, tr, "w1", pulsedAt(tr, 0, "w1"), 10, 11)
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 11, 11)
			}}},
		{name: "all voters behind", voters: three, epoch: 11, want: "w1 knows session 10, not 11",
			steps: []step{heardBy("w1"), func(t *testing.T, tr *trust) {
				mustEcho(t, tr, "w1", pulsedAt(tr, 0, "w1"), 10, 11)
			}}},
		{name: "a voter behind catches up", voters: three, epoch: 11,
			steps: []step{heardBy("w1"), func(t *testing.T, tr *trust) {
				seq := pulsedAt(tr, 0, "w1")
				mustEcho(t, tr, "w1", seq, 0, 11)
				mustEcho(t, tr, "w1", seq, 11, 11) // echoed again when its view moved
			}}},
		{name: "one voter saw the session end, others still support it", voters: five, epoch: 10, want: "session 10 is over, says c2",
			steps: []step{heardBy("c2", "c3", "w1", "w2"), func(t *testing.T, tr *trust) {
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 0, 10)
			}}},
		{name: "one voter knows a later session", voters: five, epoch: 10, want: "session 10 is over, says c2",
			steps: []step{heardBy("c3", "w1", "w2"), func(t *testing.T, tr *trust) {
				tr.linkUp("c2")
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 12, 10)
			}}},
		{name: "an ended session does not come back", voters: three, epoch: 10, want: "is over",
			steps: []step{heardBy("c2", "w1"), func(t *testing.T, tr *trust) {
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 0, 10)
				tr.linkUp("c2")
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 10, 10)
			}}},
		{name: "an ended session, while there is none", voters: three, epoch: 10, want: "is over",
			steps: []step{heardBy("c2", "w1"), func(t *testing.T, tr *trust) {
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 0, 10)
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 11, 0)
			}}},
		{name: "a newer pulse was echoed for another session", voters: three, epoch: 11, now: 900 * ms, wrote: 800 * ms, want: "900ms ago",
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("w1")
				first, second := pulsedAt(tr, 0, "w1"), pulsedAt(tr, 850*ms, "w1")
				mustEcho(t, tr, "w1", second, 10, 11)
				mustEcho(t, tr, "w1", first, 11, 11)
			}}},
		{name: "the session after the ended one", voters: three, epoch: 11,
			steps: []step{heardBy("c2"), func(t *testing.T, tr *trust) {
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 0, 10)
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 11, 11)
			}}},
		{name: "no session of our own when the voter's view shows it first", voters: three, epoch: 11,
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("c2")
				mustEcho(t, tr, "c2", pulsedAt(tr, 0, "c2"), 11, 0)
			}}},
		{name: "an echo older than what is remembered", voters: three, epoch: 10, want: "w1 echoes only old pulses",
			steps: []step{func(t *testing.T, tr *trust) {
				tr.linkUp("w1")
				for range 65 {
					pulsedAt(tr, 0, "w1")
				}
				mustEcho(t, tr, "w1", 1, 10, 10)
			}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTrust(testTiming, "c1")
			for _, s := range tt.steps {
				s(t, tr)
			}
			st := standing{epoch: tt.epoch, wrote: at(tt.wrote), voters: tt.voters}
			err := tr.check(at(tt.now), st)
			if (err == nil) != tr.holds(at(tt.now), st) {
				t.Errorf("check says %v, holds says otherwise", err)
			}
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("no trust: %v", err)
			case tt.want != "" && err == nil:
				t.Errorf("trust, want an error with %q", tt.want)
			case tt.want != "" && (!errors.Is(err, ErrNoTrust) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %q, want ErrNoTrust with %q", err, tt.want)
			}
		})
	}
}

func TestEchoOfAPulseNeverSent(t *testing.T) {
	tr := newTrust(testTiming, "c1")
	tr.linkUp("w1")
	if err := tr.echo("w1", &echoMsg{Seq: 1, Epoch: 10}, 10); !errors.Is(err, errFrame) {
		t.Errorf("error is %v, want errFrame", err)
	}
}

func TestPulseReportsWhatWasHeard(t *testing.T) {
	tr := newTrust(testTiming, "c1")
	tr.linkUp("w1")
	if seq, heard := tr.pulse(at(0), "w1"); seq != 1 || heard != 0 {
		t.Errorf("first pulse is %d, heard %d", seq, heard)
	}
	mustEcho(t, tr, "w1", 1, 0, 10)
	if seq, heard := tr.pulse(at(0), "w1"); seq != 2 || heard != 1 {
		t.Errorf("second pulse is %d, heard %d", seq, heard)
	}
	if seq, heard := tr.pulse(at(testTiming.trustFor()), "w1"); seq != 3 || heard != 0 {
		t.Errorf("third pulse is %d, heard %d: the echo of the first no longer counts", seq, heard)
	}
}

func TestTrustCostsNothing(t *testing.T) {
	tr := newTrust(testTiming, "c1")
	tr.linkUp("w1")
	mustEcho(t, tr, "w1", pulsedAt(tr, 0, "w1"), 10, 10)
	st := standing{epoch: 10, wrote: at(0), voters: []string{"c1", "c2", "w1"}}
	if n := testing.AllocsPerRun(100, func() { _ = tr.check(at(0), st) }); n != 0 {
		t.Errorf("%v allocations per check", n)
	}
}
