package faulttest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"uac/codestation/durable"
)

// The kinds of entries in a ledger.
const (
	entryStart = "start"
	// entryEnd is written as the last act of a step, with its exit code.
	entryEnd = "end"
	// entryOverlap is written instead of a start that found another attempt of
	// the same step alive.
	entryOverlap = "overlap"
)

// Entry is one line of the ledger. The order of lines is the order of events:
// each is appended in one write.
type Entry struct {
	Kind    string
	Request string
	Step    string
	Attempt int
	PID     int
	Agent   string  // who ran it
	At      float64 // seconds since the machine was started
	Code    int     // of an end
}

// attempt names what an entry is about.
func (e Entry) attempt() string { return fmt.Sprintf("%s/%s/%d", e.Request, e.Step, e.Attempt) }

// stepScript is what every step of the tests runs:
//
//	step.sh SECONDS [CODE-OF-FIRST-ATTEMPT]
//
// The lock belongs to the open file, so it is held as long as any process of the
// attempt lives, however it ends. Steps know nothing of the network: a ledger can
// be written whatever is cut. While the ledger is shut no step ends.
const stepScript = `#!/bin/sh
dir=$UAC_PARAM_dir
agent=${PWD%/data/agent/attempts/*}
read -r now _ </proc/uptime
me="$UAC_REQUEST $UAC_STEP $UAC_ATTEMPT $$ ${agent##*/} $now"
exec 8>"$dir/locks/$UAC_REQUEST.$UAC_STEP"
flock -n 8 || { echo "overlap $me 0" >>"$dir/ledger"; exit 99; }
echo "start $me 0" >>"$dir/ledger"
sleep "$1"
while [ -e "$dir/shut" ]; do sleep 0.05; done
code=0
if [ "$UAC_ATTEMPT" -eq 1 ]; then code=${2:-0}; fi
echo "out $UAC_STEP"
read -r now _ </proc/uptime
me="${me% *} $now"
echo "end $me $code" >>"$dir/ledger"
exit "$code"
`

// Ledger is the ground truth of a test: the file that steps write.
type Ledger struct {
	// Dir is the parameter dir of every request.
	Dir string
}

// newLedger makes an empty ledger below dir.
func newLedger(t testing.TB, dir string) *Ledger {
	t.Helper()
	l := &Ledger{Dir: filepath.Join(dir, "ledger")}
	if err := durable.MkdirAll(filepath.Join(l.Dir, "locks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"step.sh": stepScript, "ledger": ""} {
		if err := durable.WriteFile(filepath.Join(l.Dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// shut lets no step end until open: however slow the machine is, work is under way.
func (l *Ledger) shut(t testing.TB) {
	t.Helper()
	if err := durable.WriteFile(filepath.Join(l.Dir, "shut"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// open lets steps end.
func (l *Ledger) open(t testing.TB) {
	t.Helper()
	if err := os.Remove(filepath.Join(l.Dir, "shut")); err != nil {
		t.Fatal(err)
	}
}

// Read returns all entries so far.
func (l *Ledger) Read(t testing.TB) []Entry {
	t.Helper()
	f, err := os.Open(filepath.Join(l.Dir, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	entries, err := parseLedger(f)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func parseLedger(r io.Reader) ([]Entry, error) {
	var out []Entry
	for in, n := bufio.NewScanner(r), 1; in.Scan(); n++ {
		var e Entry
		if _, err := fmt.Sscanf(in.Text(), "%s %s %s %d %d %s %g %d",
			&e.Kind, &e.Request, &e.Step, &e.Attempt, &e.PID, &e.Agent, &e.At, &e.Code); err != nil {
			return nil, fmt.Errorf("ledger line %d %q: %w", n, in.Text(), err)
		}
		switch e.Kind {
		case entryStart, entryEnd, entryOverlap:
		default:
			return nil, fmt.Errorf("ledger line %d: kind %q", n, e.Kind)
		}
		out = append(out, e)
	}
	return out, nil
}

// count returns how many entries of a kind there are; step "" counts all steps.
func count(entries []Entry, kind, step string) int {
	n := 0
	for _, e := range entries {
		if e.Kind == kind && (step == "" || e.Step == step) {
			n++
		}
	}
	return n
}
