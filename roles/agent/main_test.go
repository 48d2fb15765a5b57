package agent

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test program play the agents that tests kill; see crash_test.go.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(childMain())
	}
	goleak.VerifyTestMain(m)
}
