package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// keepInherited keeps the descriptors that this process was started with, beyond the
// three standard ones, from all that it starts: a step must not hold a pipe of the shell
// from which an agent was started.
func keepInherited() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > unix.Stderr {
			unix.CloseOnExec(fd) // our own are that already; one may be gone by now
		}
	}
	return nil
}
