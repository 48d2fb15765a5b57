package coord

import (
	"strings"
	"time"
)

// evidence is a set of reasons to believe that a session is over. It is always
// held against one node's session, never against the node: a new session
// starts with a clean slate.
type evidence uint8

const (
	// evRefused: the connections ended, or the lifeline did, and the next dial was
	// refused. The process is dead.
	evRefused evidence = 1 << iota
	// evNewRun: another process answers under the name. The session's process
	// is dead.
	evNewRun
	// evSilence: nothing was heard, and so nothing was echoed, for a full
	// silence timeout.
	evSilence
	// evNotActing: three pulses in a row say that the node does not trust
	// itself although it had our fresh echo, while we do trust ourselves.
	evNotActing
	// evStalled: the node's last write is older than the stall timeout, while
	// ours went through for that long.
	evStalled
	// evAliveExpired: the session's alive key expired, and evSilence or
	// evStalled holds besides. This counts as a majority.
	evAliveExpired

	// evDead is evidence that the session's process has ended. What is said of
	// one that may live can turn out wrong: see withhold.
	evDead = evRefused | evNewRun
)

var evidenceWords = [...]string{"refused", "new run", "silence", "not acting", "stalled", "alive expired"}

// String returns the kinds in words, "" for no evidence.
func (e evidence) String() string {
	var words []string
	for i, w := range evidenceWords {
		if e&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

const (
	// notActingPulses in a row are evidence.
	notActingPulses = 3
	// pulsesPerSilence is how many pulses a member sends per silence timeout at least.
	pulsesPerSilence = 10
	// maintenanceGrace bounds how long announced maintenance excuses a stall.
	maintenanceGrace = 60 * time.Second
)

// timing is the part of the configuration that decisions depend on.
type timing struct {
	silence, join, stall time.Duration
}

// trustFor is how long the echo of a pulse supports trust, from when the pulse
// was sent. It is shorter than the silence after which a voter agrees to a
// loss, by as much as two clocks may differ in speed.
func (t timing) trustFor() time.Duration { return t.silence * 4 / 5 }

// writeFor is how long an acknowledged write supports trust.
func (t timing) writeFor() time.Duration { return t.stall * 4 / 5 }

// watcher is what one member's observations of all others have in common.
type watcher struct {
	timing
	started time.Time
	last    time.Time
	// woke is when this process last ran again after it had stood still. What
	// it did not hear while it stood still is no evidence against anybody.
	woke time.Time
}

// at notes that the watcher runs at now. It must be called at every event and
// at least every tenth of the silence timeout.
func (w *watcher) at(now time.Time) {
	if !w.last.IsZero() && now.Sub(w.last) > w.silence/2 {
		w.woke = now
	}
	w.last = now
}

// own tells how the watcher itself fares: a fault that it shares is no evidence
// against others.
type own struct {
	// acting tells that it holds a session and trust.
	acting bool
	// wrote is when its last guarded write was acknowledged, and writesSince
	// since when they have followed each other without a long gap.
	wrote, writesSince time.Time
}

// writing reports whether own writes have gone through for all of d.
func (o own) writing(now time.Time, d, gap time.Duration) bool {
	return !o.writesSince.IsZero() && now.Sub(o.writesSince) >= d && now.Sub(o.wrote) < gap
}

// observed is what a member has seen of one other, and from it the evidence
// against that node's present session. It is pure: time comes in as an
// argument, in no order of its own but never backwards.
type observed struct {
	*watcher

	// The session in question, as the view shows it; epoch 0 is none.
	epoch int64
	run   string
	since time.Time // when the watcher learnt of it

	// The process that answers under the name.
	peerRun   string
	peerEpoch int64  // the session that it claims
	links     int    // connections with it that are up
	reached   string // the process that a dial of ours reached last
	ended     time.Time
	heardAt   time.Time
	acting    bool
	writeAge  time.Duration // negative: none
	notActing int           // pulses in a row
	// maintenanceAt is when the present announcement was first heard.
	maintenanceAt time.Time

	refused      bool
	aliveExpired bool

	// Pulses of withheldRun are not echoed before withheldUntil: see withhold.
	withheldRun   string
	withheldUntil time.Time
}

// session tells which session of the node the view shows and reports whether
// it is another than before. A new session clears all evidence.
func (o *observed) session(now time.Time, epoch int64, run string) (changed bool) {
	if o.epoch == epoch {
		return false
	}
	o.epoch, o.run, o.since = epoch, run, now
	o.refused, o.aliveExpired, o.notActing = false, false, 0
	if o.links == 0 && o.peerRun != run {
		// Who answered last may be older than the new session's process.
		o.peerRun, o.peerEpoch = "", 0
	}
	return true
}

// linkUp tells that a connection with a process of that run id was opened,
// which claimed that session, and whether it was dialed from here.
func (o *observed) linkUp(run string, epoch int64, dialed bool) {
	o.links++
	o.refused = false
	if dialed {
		o.reached = run
	}
	if o.peerRun != run {
		o.peerRun, o.acting, o.notActing = run, false, 0
		o.writeAge, o.maintenanceAt = -1, time.Time{}
	}
	o.peerEpoch = epoch
}

// linkDown tells that such a connection ended.
func (o *observed) linkDown(now time.Time) {
	o.links--
	o.ended = now
	o.notActing = 0
}

// dialRefused tells that a dial that began at started was refused: nobody
// listens there. It proves a death only after one had reached the process of the
// session (else the address may be wrong, or a firewall refuses), and all connections
// had ended, and only if the session was known by then.
func (o *observed) dialRefused(started time.Time) {
	if o.reached != "" && o.reached == o.run && o.links == 0 && !started.Before(o.ended) && !started.Before(o.since) {
		o.refused = true
	}
}

// lifelineRefused tells that the lifeline of that process has ended, that a dial which
// began after that, at started, was refused, and that its connections were dropped. The
// kernel closes lifeline and listener first: what the connections may still bring was
// said before.
func (o *observed) lifelineRefused(run string, started time.Time) {
	if o.run == run && o.links == 0 && !started.Before(o.since) {
		o.refused = true
	}
}

// pulse takes in a pulse of the process that answers under the name. answered
// says that its sender had a fresh echo of ours that named its present session,
// so that it lacks trust, if it does, for another reason than us.
func (o *observed) pulse(now time.Time, p *pulseMsg, answered bool) {
	o.heardAt = now
	o.peerEpoch = p.Epoch
	o.acting = p.Acting
	o.writeAge = time.Duration(p.WriteAge) * time.Millisecond
	switch {
	case !p.Maintenance:
		o.maintenanceAt = time.Time{}
	case o.maintenanceAt.IsZero():
		o.maintenanceAt = now
	}
	if o.speaksForSession() && !p.Acting && answered {
		o.notActing++
	} else {
		o.notActing = 0
	}
}

// speaksForSession reports whether pulses of the node are about the session in
// question.
func (o *observed) speaksForSession() bool {
	return o.epoch != 0 && o.peerEpoch == o.epoch
}

// alive tells that the session's alive key expired, or that it is there.
func (o *observed) alive(epoch int64, expired bool) {
	if epoch == o.epoch {
		o.aliveExpired = expired
	}
}

// silentAt is when silence becomes evidence unless a pulse comes first.
func (o *observed) silentAt() time.Time {
	at := o.heardAt.Add(o.silence)
	if o.heardAt.IsZero() {
		at = o.started.Add(o.join)
	}
	return later(later(at, o.since.Add(o.silence)), o.woke.Add(o.silence))
}

// evidence returns what there is at now against the node's present session.
func (o *observed) evidence(now time.Time, me own) evidence {
	if o.epoch == 0 {
		return 0
	}
	var e evidence
	if o.refused {
		e |= evRefused
	}
	// A newer process has no session yet. If it claims one, then either our
	// view is behind or it is an older process whose last words come late.
	if o.peerRun != "" && o.run != "" && o.peerRun != o.run && o.peerEpoch == 0 {
		e |= evNewRun
	}
	if !now.Before(o.silentAt()) {
		e |= evSilence
	}
	if !o.excused(now) {
		if o.idles(now, me) {
			e |= evNotActing
		}
		if o.stalled(now, me) {
			e |= evStalled
		}
	}
	if o.aliveExpired && e&(evSilence|evStalled) != 0 {
		e |= evAliveExpired
	}
	return e
}

// excused reports whether the node announced maintenance. Without writes it
// loses trust as well, so both follow from what it announced.
func (o *observed) excused(now time.Time) bool {
	return !o.maintenanceAt.IsZero() && now.Sub(o.maintenanceAt) < maintenanceGrace
}

// idles reports whether the node does not trust itself while we do. After a
// standstill of the whole cluster some members trust themselves a moment before
// others; that moment must not look like a fault.
func (o *observed) idles(now time.Time, me own) bool {
	return o.notActing >= notActingPulses && me.acting && me.writing(now, o.silence, o.stall)
}

// stalled reports whether the node's writes stand still while ours do not.
func (o *observed) stalled(now time.Time, me own) bool {
	return o.speaksForSession() && o.writeAge > o.stall && me.writing(now, o.stall, o.stall/2)
}

// withhold stops echoes to the session's process until then. A vote against a
// process that may live stays valid at its asker for a while, and then the
// asker's transaction is on its way, whatever happens here: were the suspect to
// recover now, our echo would give it trust while it is being declared lost.
// Should it not be lost after all, this heals by itself: without our echo its
// pulses are no evidence of not acting either, and so our echo comes back.
func (o *observed) withhold(until time.Time) {
	o.withheldRun, o.withheldUntil = o.run, later(o.withheldUntil, until)
}

// withholds reports whether a pulse of that process must not be echoed now.
// Just after our own start none may be: our former process may have voted.
func (o *observed) withholds(now time.Time, run string) bool {
	return run == o.withheldRun && now.Before(o.withheldUntil) || now.Sub(o.started) < withholdFor
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
