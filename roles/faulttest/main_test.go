package faulttest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	code, err := runAndSum(m)
	if err := errors.Join(err, removeProgram()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runAndSum runs the tests, and then says once more why some failed.
func runAndSum(m *testing.M) (code int, err error) {
	stdout := os.Stdout
	in, out, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	var s summary
	copied := make(chan error)
	go func() { copied <- s.copy(stdout, in) }()
	os.Stdout = out
	code = m.Run()
	os.Stdout = stdout
	err = errors.Join(out.Close(), <-copied, in.Close())
	_, said := fmt.Fprint(stdout, &s)
	return code, errors.Join(err, said)
}

// number reads a number above zero from the environment.
func number(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a number above zero", name, text)
	}
	return n
}

// trials is how often a scenario repeats what depends on chance.
func trials(t testing.TB) int {
	t.Helper()
	return number(t, "UAC_FAULT_TRIALS", 1)
}
