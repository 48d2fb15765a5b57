package main

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKeepInherited(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	inherited, err := unix.Dup(int(w.Fd())) // as fork and exec leave it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	flags := func(fd int) int {
		t.Helper()
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags
	}
	if flags(inherited)&unix.FD_CLOEXEC != 0 {
		t.Fatal("this test shows nothing")
	}
	stdio := [3]int{flags(0), flags(1), flags(2)}
	if err := keepInherited(); err != nil {
		t.Fatal(err)
	}
	if flags(inherited)&unix.FD_CLOEXEC == 0 {
		t.Error("a step would inherit it")
	}
	if now := [3]int{flags(0), flags(1), flags(2)}; now != stdio {
		t.Errorf("the standard ones have flags %v, had %v", now, stdio)
	}
}
