package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"uac/roles"
)

// A node that was killed is not there any more when kill returns.
func TestKilledNodeStartsAgainAtOnce(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "node")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &devSupervisor{
		program: program, events: io.Discard, untold: true, procs: map[string]*devProcess{}, fork: make(chan func()),
		cluster: &devCluster{dir: dir, Nodes: []devNode{{Name: "n1", DataDir: dir, Log: filepath.Join(dir, "log")}}},
	}
	go forkThread(s.fork)
	defer close(s.fork)
	for range 50 {
		if err := s.start(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.kill("n1"); err != nil {
			t.Fatal(err)
		}
	}
}

// A start that fails for want of the data directory does not blame the program.
func TestStartWithoutADataDirectory(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "gone")
	s := &devSupervisor{
		program: "/bin/true", events: io.Discard, untold: true, procs: map[string]*devProcess{}, fork: make(chan func()),
		cluster: &devCluster{dir: dir, Nodes: []devNode{{Name: "n1", DataDir: missing, Log: filepath.Join(dir, "log")}}},
	}
	go forkThread(s.fork)
	defer close(s.fork)
	err := s.start(t.Context(), "n1")
	if want := "start n1: its data directory: stat " + missing + ": no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTimerSlack(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack := func(role roles.Role) string {
		cmd := exec.CommandContext(t.Context(), "cat", "/proc/self/timerslack_ns")
		var out strings.Builder
		cmd.Stdout = &out
		if err := withTimerSlack(slackOf(role), cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	usual := slack(roles.RoleAgent)
	member := strconv.FormatInt(memberSlack.Nanoseconds(), 10)
	for _, role := range []roles.Role{roles.RoleController, roles.RoleWatch} {
		if got := slack(role); got != member {
			t.Errorf("%s: %s ns, want %s", role, got, member)
		}
	}
	if got := slack(roles.RoleAgent); got != usual || got == member {
		t.Errorf("an agent after members: %s ns, want %s as before", got, usual)
	}
}
