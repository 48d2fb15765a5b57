package coord

import (
	"testing"
	"time"
)

var (
	testTiming = timing{silence: time.Second, join: 5 * time.Second, stall: 3 * time.Second}
	epochZero  = time.Unix(1_000_000, 0)
)

// at is a moment of a test that starts at at(0).
func at(d time.Duration) time.Time { return epochZero.Add(d) }

const ms = time.Millisecond

// healthy is an observer without faults of its own.
func healthy(now time.Time) own {
	return own{acting: true, wrote: now, writesSince: at(-time.Hour)}
}

// newObserved returns what a member that started at at(0) has seen of a peer
// with session 10, held by run r1: nothing.
func newObserved() *observed {
	o := &observed{watcher: &watcher{timing: testTiming, started: at(0)}, writeAge: -1}
	o.session(at(0), 10, "r1")
	return o
}

// connected adds both connections and a first pulse.
func connected() *observed {
	o := newObserved()
	o.linkUp("r1", 10, true)
	o.linkUp("r1", 10, false)
	o.pulse(at(0), pulseOf(10), true)
	return o
}

func pulseOf(epoch int64, changes ...func(*pulseMsg)) *pulseMsg {
	p := &pulseMsg{Seq: 9, Heard: 8, Run: "r1", Epoch: epoch, Acting: true}
	for _, c := range changes {
		c(p)
	}
	return p
}

func idle(p *pulseMsg)          { p.Acting = false }
func inMaintenance(p *pulseMsg) { p.Maintenance = true }
func wroteAgo(d time.Duration) func(*pulseMsg) {
	return func(p *pulseMsg) { p.WriteAge = d.Milliseconds() }
}

func disconnect(o *observed, now time.Time) {
	o.linkDown(now)
	o.linkDown(now)
}

func TestEvidence(t *testing.T) {
	tests := []struct {
		name string
		seen func() *observed
		me   func(now time.Time) own
		now  time.Duration
		want evidence
	}{
		{name: "pulsing", seen: connected, now: 500 * ms},

		// Refused dials.
		{name: "refused after both connections ended", now: 200 * ms, want: evRefused, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.dialRefused(at(100 * ms))
			return o
		}},
		{name: "refused while one connection is up", now: 200 * ms, seen: func() *observed {
			o := connected()
			o.linkDown(at(100 * ms))
			o.dialRefused(at(110 * ms))
			return o
		}},
		{name: "refused before the last connection ended", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.dialRefused(at(100*ms - 1))
			return o
		}},
		{name: "refused although never connected", now: 200 * ms, seen: func() *observed {
			o := newObserved()
			o.dialRefused(at(100 * ms))
			return o
		}},
		{name: "refused although never reached, only reached by it", now: 200 * ms, seen: func() *observed {
			o := newObserved()
			o.linkUp("r1", 10, false)
			o.linkDown(at(100 * ms))
			o.dialRefused(at(100 * ms))
			return o
		}},
		{name: "refused after only the process before was reached", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.session(at(110*ms), 11, "r2")
			o.linkUp("r2", 11, false)
			o.linkDown(at(120 * ms))
			o.dialRefused(at(120 * ms))
			return o
		}},
		{name: "refused after a session began of a process never met", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.session(at(110*ms), 11, "r2")
			o.dialRefused(at(120 * ms))
			return o
		}},
		{name: "the same, which began before the end of the old connections was seen", now: 200 * ms, seen: func() *observed {
			o := connected()
			o.session(at(110*ms), 11, "r2")
			disconnect(o, at(115*ms))
			o.dialRefused(at(120 * ms))
			return o
		}},
		{name: "refused, then a connection of the same run", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.dialRefused(at(100 * ms))
			o.linkUp("r1", 10, true)
			return o
		}},
		{name: "refused, then a new session", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.dialRefused(at(100 * ms))
			o.session(at(150*ms), 11, "r2")
			return o
		}},
		{name: "refused by a dial older than the session", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.session(at(150*ms), 11, "r2")
			o.dialRefused(at(149 * ms))
			return o
		}},
		{name: "refused stays when later dials time out", now: 900 * ms, want: evRefused, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.dialRefused(at(100 * ms))
			return o
		}},

		// Run ids.
		{name: "new run", now: 200 * ms, want: evNewRun, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.linkUp("r2", 0, true)
			return o
		}},
		{name: "new run, never met the old one", now: 200 * ms, want: evNewRun, seen: func() *observed {
			o := newObserved()
			o.linkUp("r2", 0, true)
			return o
		}},
		{name: "new run that died too", now: 200 * ms, want: evNewRun, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.linkUp("r2", 0, true)
			o.linkDown(at(150 * ms))
			return o
		}},
		{name: "new run with its session before our view shows it", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.linkUp("r2", 11, true)
			return o
		}},
		{name: "new run whose session the view shows", now: 200 * ms, seen: func() *observed {
			o := connected()
			disconnect(o, at(100*ms))
			o.linkUp("r2", 0, true)
			o.session(at(150*ms), 11, "r2")
			return o
		}},
		{name: "last words of the run before the session's", now: 200 * ms, seen: func() *observed {
			o := connected()
			o.session(at(150*ms), 11, "r2")
			o.pulse(at(160*ms), pulseOf(10), true)
			return o
		}},
		{name: "a run that died before the session's began", now: 200 * ms, seen: func() *observed {
			o := newObserved()
			o.linkUp("r0", 0, true)
			o.linkDown(at(100 * ms))
			o.session(at(150*ms), 11, "r2")
			return o
		}},

		// Silence.
		{name: "just not silent", seen: connected, now: time.Second - 1},
		{name: "silent", seen: connected, now: time.Second, want: evSilence},
		{name: "a pulse ends silence", now: 1500 * ms, seen: func() *observed {
			o := connected()
			o.pulse(at(1400*ms), pulseOf(10), true)
			return o
		}},
		{name: "never heard, before the join timeout", seen: newObserved, now: 5*time.Second - 1},
		{name: "never heard, at the join timeout", seen: newObserved, now: 5 * time.Second, want: evSilence},
		{name: "new session, not heard yet", now: 1900 * ms, seen: func() *observed {
			o := connected()
			o.session(at(900*ms+1), 11, "r2")
			return o
		}},
		{name: "new session, silent since", now: 1900 * ms, want: evSilence, seen: func() *observed {
			o := connected()
			o.session(at(900*ms), 11, "r2")
			return o
		}},
		{name: "never heard, session began long after our start", now: 20*time.Second - 1, seen: func() *observed {
			o := newObserved()
			o.session(at(19*time.Second), 11, "r2")
			return o
		}},
		{name: "we stood still ourselves", now: 10999 * ms, seen: func() *observed {
			o := connected()
			o.at(at(0))
			o.at(at(10 * time.Second))
			return o
		}},
		{name: "silent since we woke", now: 11 * time.Second, want: evSilence, seen: func() *observed {
			o := connected()
			o.at(at(0))
			o.at(at(10 * time.Second))
			return o
		}},
		{name: "no session, no evidence", now: time.Hour, seen: func() *observed {
			o := connected()
			o.session(at(1), 0, "")
			return o
		}},

		// Not acting.
		{name: "three idle pulses", now: 400 * ms, want: evNotActing, seen: func() *observed {
			return pulsing(pulseOf(10, idle), pulseOf(10, idle), pulseOf(10, idle))
		}},
		{name: "two idle pulses", now: 400 * ms, seen: func() *observed {
			return pulsing(pulseOf(10, idle), pulseOf(10, idle))
		}},
		{name: "not in a row", now: 600 * ms, seen: func() *observed {
			return pulsing(pulseOf(10, idle), pulseOf(10, idle), pulseOf(10), pulseOf(10, idle), pulseOf(10, idle))
		}},
		{name: "idle without our echo", now: 400 * ms, seen: func() *observed {
			o := connected()
			for i := range 5 {
				o.pulse(at(time.Duration(i)*50*ms), pulseOf(10, idle), false)
			}
			return o
		}},
		{name: "idle in a session of which the view does not know", now: 400 * ms, seen: func() *observed {
			return pulsing(pulseOf(11, idle), pulseOf(11, idle), pulseOf(11, idle))
		}},
		{name: "idle before it learnt of its session", now: 400 * ms, seen: func() *observed {
			return pulsing(pulseOf(0, idle), pulseOf(0, idle), pulseOf(0, idle))
		}},
		{name: "idle over a broken connection", now: 400 * ms, seen: func() *observed {
			o := pulsing(pulseOf(10, idle), pulseOf(10, idle))
			o.linkDown(at(210 * ms))
			o.linkUp("r1", 10, true)
			o.pulse(at(220*ms), pulseOf(10, idle), true)
			return o
		}},
		{name: "idle, but so are we", now: 400 * ms, me: func(now time.Time) own {
			return own{wrote: now, writesSince: at(-time.Hour)}
		}, seen: func() *observed {
			return pulsing(pulseOf(10, idle), pulseOf(10, idle), pulseOf(10, idle))
		}},
		{name: "idle just after a standstill of all", now: 400 * ms, me: func(now time.Time) own {
			return own{acting: true, wrote: now, writesSince: now.Add(1 - time.Second)}
		}, seen: func() *observed {
			return pulsing(pulseOf(10, idle), pulseOf(10, idle), pulseOf(10, idle))
		}},
		{name: "idle in maintenance", now: 400 * ms, seen: func() *observed {
			return pulsing(pulseOf(10, idle, inMaintenance), pulseOf(10, idle, inMaintenance), pulseOf(10, idle, inMaintenance))
		}},

		// Stalled writes.
		{name: "stalled", now: 200 * ms, want: evStalled, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(3001*ms)))
		}},
		{name: "just not stalled", now: 200 * ms, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(3000*ms)))
		}},
		{name: "stalled, but ours did not go through that long", now: 200 * ms, me: func(now time.Time) own {
			return own{acting: true, wrote: now, writesSince: now.Add(1 - 3*time.Second)}
		}, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(time.Minute)))
		}},
		{name: "stalled since before our writes recovered", now: 200 * ms, want: evStalled, me: func(now time.Time) own {
			return own{acting: true, wrote: now, writesSince: now.Add(-3 * time.Second)}
		}, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(time.Minute)))
		}},
		{name: "stalled, and ours stopped", now: 200 * ms, me: func(now time.Time) own {
			return own{acting: true, wrote: now.Add(-1500 * ms), writesSince: at(-time.Hour)}
		}, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(time.Minute)))
		}},
		{name: "stalled, we never wrote", now: 200 * ms, me: func(time.Time) own { return own{} }, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(time.Minute)))
		}},
		{name: "stalled in an older session", now: 200 * ms, seen: func() *observed {
			return pulsing(pulseOf(9, wroteAgo(time.Minute)))
		}},
		{name: "stalled in maintenance", now: 200 * ms, seen: func() *observed {
			return pulsing(pulseOf(10, wroteAgo(time.Minute), inMaintenance))
		}},
		{name: "maintenance that does not end", now: 61 * time.Second, want: evStalled, seen: func() *observed {
			o := pulsing(pulseOf(10, inMaintenance))
			o.pulse(at(61*time.Second), pulseOf(10, wroteAgo(time.Minute), inMaintenance), true)
			return o
		}},
		{name: "a second maintenance", now: 61 * time.Second, seen: func() *observed {
			o := pulsing(pulseOf(10, inMaintenance), pulseOf(10))
			o.pulse(at(61*time.Second), pulseOf(10, wroteAgo(time.Minute), inMaintenance), true)
			return o
		}},

		// The alive key.
		{name: "alive expired alone", now: 200 * ms, seen: func() *observed {
			o := connected()
			o.alive(10, true)
			return o
		}},
		{name: "alive expired and silent", now: 1500 * ms, want: evSilence | evAliveExpired, seen: func() *observed {
			o := connected()
			o.alive(10, true)
			return o
		}},
		{name: "alive expired and stalled", now: 200 * ms, want: evStalled | evAliveExpired, seen: func() *observed {
			o := pulsing(pulseOf(10, wroteAgo(time.Minute)))
			o.alive(10, true)
			return o
		}},
		{name: "alive expired of another session", now: 1500 * ms, want: evSilence, seen: func() *observed {
			o := connected()
			o.alive(9, true)
			return o
		}},
		{name: "alive is back", now: 1500 * ms, want: evSilence, seen: func() *observed {
			o := connected()
			o.alive(10, true)
			o.alive(10, false)
			return o
		}},
		{name: "alive expired and a new session", now: 3 * time.Second, want: evSilence, seen: func() *observed {
			o := connected()
			o.alive(10, true)
			o.session(at(time.Second), 11, "r1")
			return o
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			me := tt.me
			if me == nil {
				me = healthy
			}
			if got := tt.seen().evidence(at(tt.now), me(at(tt.now))); got != tt.want {
				t.Errorf("evidence is %q, want %q", got, tt.want)
			}
		})
	}
}

// pulsing is connected with more pulses, 50 ms apart.
func pulsing(ps ...*pulseMsg) *observed {
	o := connected()
	for i, p := range ps {
		o.pulse(at(time.Duration(i+1)*50*ms), p, true)
	}
	return o
}

func TestWithhold(t *testing.T) {
	o := connected()
	const end = withholdFor + 100*ms
	o.withhold(at(end))
	o.withhold(at(end - ms)) // must not shorten
	for _, tt := range []struct {
		name string
		now  time.Duration
		run  string
		want bool
	}{
		{"before the end", end - 1, "r1", true},
		{"at the end", end, "r1", false},
		{"another process", end - 1, "r2", false},
		{"just after our own start", withholdFor - 1, "r2", true},
		{"a while after our own start", withholdFor, "r2", false},
	} {
		if got := o.withholds(at(tt.now), tt.run); got != tt.want {
			t.Errorf("%s: withholds is %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestEvidenceWords(t *testing.T) {
	if got, want := (evRefused | evAliveExpired).String(), "refused, alive expired"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := evidence(0).String(); got != "" {
		t.Errorf("no evidence reads %q", got)
	}
}
