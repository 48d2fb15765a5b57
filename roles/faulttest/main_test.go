package faulttest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := removeProgram(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
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
