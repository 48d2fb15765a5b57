package coord

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrNoTrust is returned when this member may not act at present: it cannot
// rule out that the others have decided, or are about to decide, its loss. The
// error that wraps it says what is missing.
var ErrNoTrust = errors.New("no trust")

// trust decides whether a member may act. It may while the latest pulse that a
// majority of the voters echoed, itself included, was sent less than
// timing.trustFor ago, every counted echo named its present session and came
// over a connection that is still up, and its own last guarded write was
// acknowledged less than timing.writeFor ago.
//
// A voter agrees that a member is silent only when it has echoed nothing of it
// for a full silence timeout. A pulse is sent before it is echoed, so trust in
// that echo has ended by then, and any two majorities share a voter: whoever is
// declared silent has stopped before.
//
// An echo that names another session than the member's own means one of two
// things. Either the voter's view is behind and does not show the present
// session yet, as after a quick restart: that echo supports nothing and harms
// nothing. Or the session is over. It certainly is when the echo names a later
// one, or when the same voter named the present one before on the same
// connection, because views never go back. Then trust in that session ends at
// once and for good, whatever other voters still echo.
//
// trust is pure: time comes in as an argument.
type trust struct {
	timing
	self string
	// voters holds the echoes over each dialed connection that is up.
	voters map[string]*echoes
	// gone is the latest own session that is known to be over, goneBy who said so.
	gone   int64
	goneBy string
}

// echoes is what came back over one connection.
type echoes struct {
	// seq numbers the pulses sent; sent[seq%len] is when each was.
	seq  uint64
	sent [64]time.Time
	// heard is the highest pulse that was echoed.
	heard uint64
	// named is the session that the voter named last, and newest when the
	// newest pulse was sent whose echo named it.
	named  int64
	newest time.Time
}

func newTrust(t timing, self string) *trust {
	return &trust{timing: t, self: self, voters: map[string]*echoes{}}
}

// linkUp tells that a connection to a voter is up, with no echo yet.
func (t *trust) linkUp(voter string) { t.voters[voter] = &echoes{} }

// linkDown drops what came over the connection.
func (t *trust) linkDown(voter string) { delete(t.voters, voter) }

// pulse numbers a pulse that is about to be sent to a voter. now must be taken
// before the pulse can leave. heard is the newest pulse that the voter echoed, 0
// if that no longer supports trust.
func (t *trust) pulse(now time.Time, voter string) (seq, heard uint64) {
	e := t.voters[voter]
	e.seq++
	e.sent[e.seq%uint64(len(e.sent))] = now
	if e.newest.IsZero() || now.Sub(e.newest) >= t.trustFor() {
		return e.seq, 0
	}
	return e.seq, e.heard
}

// echo takes in a voter's echo; own is this member's present session, 0 for
// none. It reports an echo of a pulse that was never sent.
func (t *trust) echo(voter string, m *echoMsg, own int64) error {
	e := t.voters[voter]
	if m.Seq > e.seq {
		return fmt.Errorf("%w: echo of pulse %d of %d", errFrame, m.Seq, e.seq)
	}
	if own != 0 && (m.Epoch > own || e.named == own && m.Epoch != own) {
		t.gone, t.goneBy = own, voter
	}
	e.heard = max(e.heard, m.Seq)
	if e.named != m.Epoch {
		e.named, e.newest = m.Epoch, time.Time{}
	}
	if e.seq-m.Seq < uint64(len(e.sent)) {
		e.newest = later(e.newest, e.sent[m.Seq%uint64(len(e.sent))])
	}
	return nil
}

// supports reports whether the voter's echoes support trust in the session.
func (e *echoes) supports(now time.Time, epoch int64, window time.Duration) bool {
	return e != nil && e.named == epoch && !e.newest.IsZero() && now.Sub(e.newest) < window
}

// standing is what trust depends on besides echoes.
type standing struct {
	// epoch of the own session, 0 for none.
	epoch int64
	// wrote is when the last own guarded write was acknowledged.
	wrote time.Time
	// voters are all voting members.
	voters []string
}

// holds reports whether the member may act now.
func (t *trust) holds(now time.Time, s standing) bool {
	return s.epoch != 0 && s.epoch != t.gone && t.writes(now, s) &&
		slices.Contains(s.voters, t.self) && t.count(now, s) >= majority(len(s.voters))
}

func (t *trust) writes(now time.Time, s standing) bool {
	return !s.wrote.IsZero() && now.Sub(s.wrote) < t.writeFor()
}

// count is how many voters support trust, this member included.
func (t *trust) count(now time.Time, s standing) int {
	n := 0
	for _, v := range s.voters {
		if v == t.self || t.voters[v].supports(now, s.epoch, t.trustFor()) {
			n++
		}
	}
	return n
}

// check is holds with an error that wraps ErrNoTrust and says what is missing.
func (t *trust) check(now time.Time, s standing) error {
	switch {
	case t.holds(now, s):
		return nil
	case s.epoch == 0:
		return fmt.Errorf("%w: no session", ErrNoTrust)
	case s.epoch == t.gone:
		return fmt.Errorf("%w: session %d is over, says %s", ErrNoTrust, s.epoch, t.goneBy)
	case !t.writes(now, s):
		return fmt.Errorf("%w: no write was acknowledged for %v", ErrNoTrust, t.writeFor())
	case !slices.Contains(s.voters, t.self):
		return fmt.Errorf("%w: %s is not a voter", ErrNoTrust, t.self)
	}
	return fmt.Errorf("%w: heard by %d of %d voters, %d needed: %s", ErrNoTrust,
		t.count(now, s), len(s.voters), majority(len(s.voters)), t.missing(now, s.epoch, s.voters))
}

// missing says what each voter lacks to support trust.
func (t *trust) missing(now time.Time, epoch int64, voters []string) string {
	var why []string
	for _, v := range voters {
		e := t.voters[v]
		switch {
		case v == t.self || e.supports(now, epoch, t.trustFor()):
		case e == nil:
			why = append(why, v+" is not connected")
		case e.heard == 0:
			why = append(why, v+" has not echoed yet")
		case e.named != epoch:
			why = append(why, fmt.Sprintf("%s knows session %d, not %d", v, e.named, epoch))
		case e.newest.IsZero():
			why = append(why, v+" echoes only old pulses")
		default:
			why = append(why, fmt.Sprintf("%s echoed a pulse of %v ago", v, now.Sub(e.newest).Round(time.Millisecond)))
		}
	}
	return strings.Join(why, "; ")
}

// majority of n voters.
func majority(n int) int { return n/2 + 1 }
