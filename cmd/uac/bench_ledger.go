package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ledger is what steps of a benchmark write when they start: a line into a
// file, from which lost and doubled steps are counted, and the same line into a
// pipe, so that this process can tell when. Both are done by the shell itself;
// no program is started for them. Safe for concurrent use.
type ledger struct {
	file, pipe string
	in         *os.File
	done       chan error // the end of the reader

	mu     sync.Mutex // guards the fields below
	starts map[string][]stepStart
	news   chan struct{} // closed and replaced when a step has started
}

// stepStart is the start of a step's process.
type stepStart struct {
	step string
	at   int64 // on the monotonic clock, in nanoseconds
}

// newLedger makes the ledger's files in a directory.
func newLedger(dir string) (*ledger, error) {
	l := &ledger{
		file: filepath.Join(dir, "ledger"), pipe: filepath.Join(dir, "ledger.pipe"),
		starts: map[string][]stepStart{}, news: make(chan struct{}), done: make(chan error, 1),
	}
	if err := unix.Mkfifo(l.pipe, 0o600); err != nil {
		return nil, fmt.Errorf("make %s: %w", l.pipe, err)
	}
	var err error
	// Open for writing too: steps come and go, and the pipe stays.
	if l.in, err = os.OpenFile(l.pipe, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	go func() { l.done <- l.read() }()
	return l, nil
}

// script is what a step runs.
func (l *ledger) script() string {
	return fmt.Sprintf("line=\"$UAC_REQUEST $UAC_STEP $UAC_ATTEMPT\"\necho \"$line\" > %s\necho \"$line\" >> %s\n", shellQuote(l.pipe), shellQuote(l.file))
}

func (l *ledger) read() error {
	in := bufio.NewScanner(l.in)
	for in.Scan() {
		at := monotonic()
		request, step, err := parseLedger(in.Text())
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.starts[request] = append(l.starts[request], stepStart{step: step, at: at})
		close(l.news)
		l.news = make(chan struct{})
		l.mu.Unlock()
	}
	if err := in.Err(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// parseLedger reads a line. A step that is started twice counts as doubled,
// whatever attempt it was: the steps of benchmarks never fail.
func parseLedger(line string) (request, step string, err error) {
	attempt := 0
	if _, err := fmt.Sscanf(line, "%s %s %d", &request, &step, &attempt); err != nil {
		return "", "", fmt.Errorf("ledger: line %q: %w", line, err)
	}
	return request, step, nil
}

// await waits until the starts of a request's steps are as want says.
func (l *ledger) await(ctx context.Context, request string, want func([]stepStart) bool) ([]stepStart, error) {
	for {
		l.mu.Lock()
		starts, news := l.starts[request], l.news
		l.mu.Unlock()
		if want(starts) {
			return starts, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return starts, context.Cause(ctx)
		}
	}
}

// count reads from the file how often each step of each request was started.
func (l *ledger) count() (map[string]map[string]int, error) {
	text, err := os.ReadFile(l.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	counts := map[string]map[string]int{}
	for line := range bytes.Lines(text) {
		request, step, err := parseLedger(string(line))
		if err != nil {
			return nil, err
		}
		if counts[request] == nil {
			counts[request] = map[string]int{}
		}
		counts[request][step]++
	}
	return counts, nil
}

// close ends the reader.
func (l *ledger) close() error { return errors.Join(l.in.Close(), <-l.done) }

// tally is how the steps of accepted requests fared.
type tally struct {
	Requests int `json:"requests"`
	// Failed requests ended otherwise than succeeded, or did not end in time.
	Failed  int `json:"failed"`
	Steps   int `json:"steps"`
	Lost    int `json:"lost"`
	Doubled int `json:"doubled"`
}

// add counts one request with these steps.
func (t *tally) add(succeeded bool, steps []string, started map[string]int) {
	t.Requests++
	if !succeeded {
		t.Failed++
	}
	t.Steps += len(steps)
	for _, step := range steps {
		switch n := started[step]; {
		case n == 0:
			t.Lost++
		case n > 1:
			t.Doubled += n - 1
		}
	}
}

// clean reports whether nothing was lost or doubled.
func (t *tally) clean() bool { return t.Failed == 0 && t.Lost == 0 && t.Doubled == 0 }
