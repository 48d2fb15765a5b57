package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
)

// ending is how an operator's order ends the process.
type ending struct {
	stop    context.CancelFunc
	restart atomic.Bool
	// now ends the process at once: as after a crash, or replaced by a new one.
	now func(restart bool)
}

// newEnding returns an ending and the context that an orderly one ends.
func newEnding(ctx context.Context, d daemonDeps) (context.Context, *ending) {
	ctx, stop := context.WithCancel(ctx)
	return ctx, &ending{stop: stop, now: d.endNow}
}

// end ends the process. It returns only for an orderly end, which is then under
// way.
func (e *ending) end(abrupt, restart bool) {
	if abrupt {
		e.now(restart)
	}
	e.restart.Store(restart)
	e.stop()
}

// after says what follows an orderly end.
func (e *ending) after(err error) error {
	if err == nil && e.restart.Load() {
		return errRestart
	}
	return err
}

// errRestart is returned by a daemon that was ordered to start again.
var errRestart = fmt.Errorf("restart")

// abortCode is the exit status after an abort: that of a process that was
// killed, so that a supervisor treats it alike.
const abortCode = 137

// endNow ends this process without any goodbye.
func endNow(restart bool) {
	if restart {
		reexec()
	}
	os.Exit(abortCode)
}

// reexec replaces this process by a new one of the same program, with the same
// arguments. It returns only if that failed.
func reexec() {
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(self, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "error: start again:", err)
}
