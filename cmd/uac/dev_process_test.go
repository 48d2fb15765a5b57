package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"
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
