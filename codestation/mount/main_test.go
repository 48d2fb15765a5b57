package mount

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// parentVerb makes the test program a process that has a mount, a socket and a
// lock.
const parentVerb = "test-parent"

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == ChildVerb:
		if err := Serve(os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 4 && os.Args[1] == parentVerb:
		fmt.Fprintln(os.Stdout, parent(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// childCommand returns a child that serves.
func childCommand(dir string) *exec.Cmd {
	return exec.Command("/proc/self/exe", ChildVerb, dir)
}

// parent runs a mount, with a socket and a lock, and tells on its output how the
// mount is.
func parent(dir, lock string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "addr", l.Addr())
	m := New(Config{Dir: dir, Timeout: 200 * time.Millisecond, Probe: 50 * time.Millisecond}, Deps{Command: childCommand, Log: discard()})
	go func() {
		for {
			s, changed := m.Watch()
			fmt.Fprintln(os.Stdout, "state", s.Kind)
			<-changed
		}
	}()
	return m.Run(context.Background())
}

// exclusively reports whether nobody else has the lock of a file.
func exclusively(t *testing.T, name string) bool {
	t.Helper()
	f, err := os.OpenFile(filepath.Clean(name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// needRoot skips a test that mounts something.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT CHECKED: mounting needs root")
	}
}

// mountTmpfs mounts a file system of its own at dir.
func mountTmpfs(t *testing.T, dir string, options ...string) {
	t.Helper()
	if err := syscall.Mount("uac-test", dir, "tmpfs", 0, strings.Join(options, ",")); err != nil {
		t.Skipf("NOT CHECKED: mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}
