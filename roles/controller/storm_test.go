package controller

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestStorms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newStorms()
		var begun, ended atomic.Int64
		over := make(chan struct{}, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.run(ctx, func() func() { begun.Add(1); return func() { ended.Add(1); over <- struct{}{} } })
		}()
		open := func(links int) {
			for range links {
				s.add()
			}
		}
		want := func(what string, b, e int64) {
			t.Helper()
			synctest.Wait()
			if begun.Load() != b || ended.Load() != e {
				t.Fatalf("%s: %d storms have begun and %d ended, want %d and %d", what, begun.Load(), ended.Load(), b, e)
			}
		}

		open(stormLinks - 1)
		elapsed(ctx, time.Hour) // of the bubble
		want("few links", 0, 0)
		open(1)
		want("many links", 1, 0)
		for range 10 {
			open(calmLinks)
			elapsed(ctx, calmAfter/2)
		}
		want("links are still being opened", 1, 0)
		<-over
		want("calm", 1, 1)
		open(stormLinks)
		want("again, too soon", 1, 1)
		<-over
		want("again", 2, 2)

		elapsed(ctx, 2*calmFor)
		open(stormLinks)
		want("the last", 3, 2)
		cancel()
		<-done
		want("the end", 3, 2)
	})
}

// What somebody has set as GOGC is neither raised nor forgotten.
func TestSaveMemory(t *testing.T) {
	now := func() int {
		percent := debug.SetGCPercent(-1)
		debug.SetGCPercent(percent)
		return percent
	}
	defer debug.SetGCPercent(now())
	for _, tt := range []struct{ usual, during int }{{100, stormGC}, {300, stormGC}, {20, 20}, {-1, -1}} {
		debug.SetGCPercent(tt.usual)
		end := saveMemory()
		if got := now(); got != tt.during {
			t.Errorf("GOGC %d: during a storm it is %d, want %d", tt.usual, got, tt.during)
		}
		end()
		if got := now(); got != tt.usual {
			t.Errorf("GOGC %d: after a storm it is %d", tt.usual, got)
		}
	}
}
