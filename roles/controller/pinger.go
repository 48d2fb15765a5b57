package controller

import "time"

const (
	// idlePings is how many times longer the pause between two pings is on a link on
	// which nothing goes on. Thousands of idle agents cost little then; what is sent to
	// one of them, or comes from it, makes its link a lively one at once.
	idlePings = 15
	// livelyPings is after how many pings without anything else a link is idle.
	livelyPings = 10
	// lostPings is how many pings in a row may be without an answer. An agent leaves a
	// link as soon, counted by its side.
	lostPings = 3
	// pingBeat is a grid on which pings are due, of all links: a process that wakes up
	// for a hundred of them takes less than one that wakes up a hundred times.
	pingBeat = 100 * time.Millisecond
)

// onBeat makes a wait that much shorter that it ends on the grid, since whose beginning
// so much time has passed.
func onBeat(wait, passed time.Duration) time.Duration {
	if wait <= pingBeat {
		return wait
	}
	return wait - (passed+wait)%pingBeat
}

// pinger says when a link is pinged. It is pure: the link tells it what happens.
type pinger struct {
	interval time.Duration
	wait     time.Duration // until the next ping
	number   uint64        // of the last ping
	quiet    int           // pings since something else went over the link
}

func newPinger(interval time.Duration) pinger { return pinger{interval: interval, wait: interval} }

// stir takes in that something else was sent, and reports whether the next ping is due
// sooner because of that.
func (p *pinger) stir() bool {
	p.quiet = 0
	sooner := p.wait > p.interval
	p.wait = p.interval
	return sooner
}

// next goes on to the next ping. Heard is the highest number that was answered, lively
// that the agent said something or has work. It returns false if the link is to be
// given up.
func (p *pinger) next(heard uint64, lively bool) bool {
	if p.number >= heard+lostPings {
		return false
	}
	if p.quiet++; lively {
		p.quiet = 0
	}
	p.number++
	p.wait = p.interval
	if p.quiet > livelyPings && heard+1 == p.number {
		p.wait = idlePings * p.interval
	}
	return true
}
