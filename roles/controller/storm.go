package controller

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// stormLinks is how many links are opened until that is a storm.
	stormLinks = 256
	// A storm is over when fewer than calmLinks are opened in calmAfter, in which the
	// others become idle: while they are pinged every second, they make garbage, too.
	calmLinks = 25
	calmAfter = 12 * time.Second
	// calmFor is the least time from one storm to the next.
	calmFor = time.Minute
	// stormGC is the GC percentage during a storm.
	stormGC = 50
)

// storms notices when many links are being opened, as they are after a controller has
// been away. Safe for concurrent use.
type storms struct {
	opened atomic.Int64
	many   chan struct{} // filled for every stormLinks that are opened
}

func newStorms() *storms { return &storms{many: make(chan struct{}, 1)} }

// add takes in that a link was opened.
func (s *storms) add() {
	if s.opened.Add(1)%stormLinks != 0 {
		return
	}
	select {
	case s.many <- struct{}{}:
	default:
	}
}

// run calls begin when a storm has begun, and what it returns when that is over, until
// ctx ends.
func (s *storms) run(ctx context.Context, begin func() (end func())) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.many:
		}
		end := begin()
		for over := false; !over; {
			before := s.opened.Load()
			if !elapsed(ctx, calmAfter) {
				return
			}
			over = s.opened.Load()-before < calmLinks
		}
		end()
		if !elapsed(ctx, calmFor) {
			return
		}
	}
}

// saveMemory makes a storm leave less behind. A handshake makes several times the
// garbage that its link needs to live. What is not collected meanwhile lies between the
// links, and nothing else fits there. And when they are idle the heap hardly grows, so
// that it is not collected soon, and the runtime keeps what the heap may grow by. The
// collection at the end is one as any other and runs beside all else; what is free
// after it goes back to the kernel.
func saveMemory() (end func()) {
	usual := debug.SetGCPercent(stormGC)
	if usual < stormGC { // or negative: somebody wants none
		debug.SetGCPercent(usual)
	}
	return func() {
		debug.SetGCPercent(usual)
		debug.FreeOSMemory()
	}
}

// elapsed waits, and reports false if ctx ends before the time is over.
func elapsed(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
