package api_test

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// testLog returns a logger that writes to the test's log, and drops what is
// said after the test.
func testLog(t *testing.T) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type logWriter struct {
	mu   sync.Mutex // guards over, text
	t    *testing.T
	over bool
	text bytes.Buffer
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(b)
	if !w.over {
		w.t.Logf("%s", bytes.TrimSpace(b))
	}
	return len(b), nil
}
