package faulttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"uac/codestation/durable"
)

// built is the program under test, made when it is first needed.
var built = sync.OnceValues(buildProgram)

// program returns the path of the program under test.
func program(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// has returns what the program under test can be told to suffer.
func has() Need {
	if os.Getenv("UAC_FAULT_CLOCK") != "" {
		return NeedClock
	}
	return 0
}

// buildProgram builds the program once, as it is released but for the version and
// the ways to break it: tests of failures need its real speed, not that of a raced
// one.
func buildProgram() (string, error) {
	if path := os.Getenv("UAC_FAULT_BINARY"); path != "" {
		return path, nil
	}
	dir, err := programDir()
	if err != nil {
		return "", err
	}
	args := []string{"-tags", "uacfault"}
	if has()&NeedClock != 0 {
		overlay, err := clockOverlay()
		if err != nil {
			return "", err
		}
		args = []string{"-tags", "uacfault,uacfault_clock", "-overlay", overlay}
	}
	path := filepath.Join(dir, "uac")
	return path, build(path, args...)
}

// programDir is where programs are built, until removeProgram.
var programDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "uac-fault-bin-") })

// removeProgram removes what was built.
func removeProgram() error {
	dir, err := programDir()
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// build makes a program.
func build(path string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), "go", append(append([]string{"build", "-trimpath", "-o", path}, args...), "./cmd/uac")...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return nil
}

// replacement is a change of one file.
type replacement struct{ old, new string }

// overlay writes a file for go build -overlay that changes one source file, and
// returns its path. Each replacement must fit exactly once.
func overlay(dir, file string, changes ...replacement) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	changed := string(text)
	for _, c := range changes {
		if n := strings.Count(changed, c.old); n != 1 {
			return "", fmt.Errorf("%s has this %d times, want once:\n%s", file, n, c.old)
		}
		changed = strings.Replace(changed, c.old, c.new, 1)
	}
	to, list := filepath.Join(dir, "changed_"+filepath.Base(file)), filepath.Join(dir, "overlay.json")
	replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{file: to}})
	if err != nil {
		return "", err
	}
	return list, errors.Join(durable.WriteFile(to, []byte(changed), 0o600), durable.WriteFile(list, replaced, 0o600))
}

// clockOverlay gives the whole program, its libraries included, a wall clock that
// can be set, by a change of the standard library's time.Now. Nothing in the product
// has to know: that no decision depends on the clock is tested, not arranged.
func clockOverlay() (string, error) {
	// Always the same place: it is part of what the build cache goes by, and everything
	// has to be compiled anew for this.
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "uac-faulttest")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	goroot, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	file := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time", "time.go")
	return overlay(dir, file,
		replacement{"import (\n\t\"errors\"\n\t\"math/bits\"\n", "import (\n\t\"errors\"\n\t\"math/bits\"\n\t\"sync/atomic\"\n"},
		replacement{"// A Time represents an instant", `var wallOffset atomic.Int64

//go:linkname setWallOffset
func setWallOffset(seconds int64) { wallOffset.Store(seconds) }

// A Time represents an instant`},
		replacement{"\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {", "\tsec, nsec, mono := runtimeNow()\n\tsec += wallOffset.Load()\n\tif mono == 0 {"},
	)
}
