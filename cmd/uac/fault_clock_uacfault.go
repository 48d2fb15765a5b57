//go:build uacfault_clock

package main

import (
	"os"
	"strconv"
	"strings"
	"time"
	_ "unsafe" // for go:linkname
)

// setWallOffset exists only in a package time that roles/faulttest has replaced for
// the build: it moves what time.Now says of the wall clock, in the whole process,
// and leaves the monotonic clock alone.
//
//go:linkname setWallOffset time.setWallOffset
func setWallOffset(seconds int64)

// startFaultClock follows the file that holds the seconds by which this node's wall
// clock is wrong, until the process ends. After each change it writes what time it
// is now into a file beside.
func startFaultClock(path string) {
	go func() {
		last := ""
		for ; ; time.Sleep(20 * time.Millisecond) {
			text, err := os.ReadFile(path)
			seconds, errN := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil || errN != nil || string(text) == last {
				continue
			}
			last = string(text)
			setWallOffset(seconds)
			_ = os.WriteFile(path+".seen", strconv.AppendInt(nil, time.Now().Unix(), 10), 0o600)
		}
	}()
}
