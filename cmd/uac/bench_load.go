package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"uac/roles"
)

const (
	loadName = "bench-load"
	// loadWorkers is how many calls can wait for an answer at once.
	loadWorkers = 32
)

// load runs a one-step process again and again beside a benchmark.
type load struct {
	b      *bench
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu  sync.Mutex // guards the fields below
	ids []string   // accepted
	err error
}

// startLoad starts to run so many requests a second, as far as the cluster
// takes them.
func (b *bench) startLoad(ctx context.Context, perSecond int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{b: b, cancel: cancel}
	if perSecond == 0 {
		return l
	}
	due := make(chan struct{}, loadWorkers)
	l.done.Go(func() {
		defer close(due)
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case due <- struct{}{}:
			default: // all are waiting for answers
			}
		}
	})
	for range loadWorkers {
		l.done.Go(func() {
			c, err := b.newClient()
			for range due {
				var id string
				if err == nil {
					// Not cut short: an answer that nobody waits for would be a request
					// that nobody counts.
					id, err = runProcess(context.WithoutCancel(ctx), c, loadName)
				}
				l.mu.Lock()
				if err == nil {
					l.ids = append(l.ids, id)
				} else if l.err == nil {
					l.err = err
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// stop ends the load. It returns the first error that a call met.
func (l *load) stop() error {
	l.cancel()
	l.done.Wait()
	if l.err != nil {
		return fmt.Errorf("request beside: %w", l.err)
	}
	return nil
}

// settle waits for the end of all accepted requests and counts them.
func (l *load) settle(ctx context.Context, p roles.Process) (t tally, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, benchPatience, errors.New("this took too long"))
	defer cancel()
	outcome := map[string]bool{}
	for _, id := range l.ids {
		if outcome[id], err = l.b.final(ctx, id); err != nil {
			return t, err
		}
	}
	counts, err := l.b.ledger.count()
	for id, succeeded := range outcome {
		t.add(succeeded, stepNames(p), counts[id])
	}
	return t, err
}
