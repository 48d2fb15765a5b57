package faulttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runTests builds the program once, as it is released but for the version: tests
// of failures need its real speed, not that of a raced one.
func runTests(m *testing.M) (int, error) {
	if binary = os.Getenv("UAC_FAULT_BINARY"); binary != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "uac-fault-bin-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "uac")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/uac")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// trials is how often a scenario repeats what depends on chance.
func trials(t testing.TB) int {
	t.Helper()
	text := os.Getenv("UAC_FAULT_TRIALS")
	if text == "" {
		return 2
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("UAC_FAULT_TRIALS=%q is not a number above zero", text)
	}
	return n
}
