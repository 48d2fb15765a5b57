//go:build uacfault

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"uac/config"
	"uac/coord"
	"uac/roles"
	"uac/roles/agent"
	"uac/roles/controller"
)

// This file makes a program that can be told to die. It is built for the tests of
// roles/faulttest only: go build -tags uacfault.
//
// UACFAULT_DIR names a directory. A node writes the names of its points into
// NODE.points there. When NODE.armed exists, with "POINT N" in it, the node kills
// itself when it comes to that point for the N-th time from then on; just before
// that it renames the file to NODE.hit.

type faultArm struct {
	dir, node string

	mu   sync.Mutex // guards the fields below
	arm  string     // as read last
	hits int
}

// faultPoint returns what is to be called at every point of this node.
func faultPoint(n config.Node) func(name string) {
	dir := os.Getenv("UACFAULT_DIR")
	if dir == "" {
		return nil
	}
	var names []string
	switch n.Role {
	case roles.RoleController:
		names = append(pointNames(coord.Points()), pointNames(controller.Points())...)
	case roles.RoleWatch:
		names = pointNames(coord.Points())
	case roles.RoleAgent:
		names = pointNames(agent.Points())
	}
	f := &faultArm{dir: dir, node: n.Name}
	if err := os.WriteFile(f.file("points"), []byte(strings.Join(names, "\n")), 0o600); err != nil {
		panic(err)
	}
	startFaultClock(f.file("clock"))
	return f.at
}

func pointNames[P ~string](points []P) []string {
	names := make([]string, len(points))
	for i, p := range points {
		names[i] = string(p)
	}
	return names
}

func (f *faultArm) file(kind string) string { return filepath.Join(f.dir, f.node+"."+kind) }

// at is called at every point, by many goroutines.
func (f *faultArm) at(name string) {
	text, err := os.ReadFile(f.file("armed"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if arm := string(text); arm != f.arm {
		f.arm, f.hits = arm, 0
	}
	var point string
	var n int
	if _, err := fmt.Sscan(f.arm, &point, &n); err != nil {
		panic(fmt.Sprintf("%s: %q: %v", f.file("armed"), f.arm, err))
	}
	if point != name {
		return
	}
	if f.hits++; f.hits < n {
		return
	}
	if os.Rename(f.file("armed"), f.file("hit")) != nil {
		return // disarmed in this moment
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal is on its way
}
