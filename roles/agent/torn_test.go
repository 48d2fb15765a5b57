package agent

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryRecordTornOrCorrupt goes through the kinds of records. Whatever a crash or a
// disk leaves of a record, it is taken whole or not at all: cut off if nobody can have
// relied on it, and refused if somebody has.
func TestEveryRecordTornOrCorrupt(t *testing.T) {
	of := func(rec record) record {
		rec.Request, rec.Step, rec.Attempt = "R", "s", 1
		return rec
	}
	whole := &request{Name: "Q", Fence: fence{1, 5}, Steps: map[string]*step{"s": {Highest: 1, Attempts: map[uint32]*attempt{
		1: {Phase: phaseExited, Code: 3, Outputs: map[string]string{"a": "1"}, Dropped: 7},
	}}}}
	tests := map[kind]record{
		kindJournal:    {},
		kindState:      {},
		kindRequest:    {Kind: kindRequest, Whole: whole},
		kindOpened:     {Kind: kindOpened, Boot: "boot", Opens: 7, Pid: 9},
		kindGeneration: {Kind: kindGeneration, Generation: generation{3, "g3"}},
		kindFence:      of(record{Kind: kindFence, Fence: fence{1, 9}}),
		kindIntent:     {Kind: kindIntent, Request: "Q", Step: "s", Attempt: 1, Fence: fence{1, 5}, Boot: "boot", Timeout: 1, Grace: 2, Alone: 3, Limit: 4, Wanted: []string{"a"}},
		kindLaunched:   of(record{Kind: kindLaunched, Pid: 7, PidStart: 8, BootTime: 9}),
		kindStop:       of(record{Kind: kindStop, Stop: stopAlone}),
		kindKilling:    of(record{Kind: kindKilling}),
		kindContact:    {Kind: kindContact, Boot: "boot", BootTime: 12345},
		kindEnd:        of(record{Kind: kindEnd, Phase: phaseExited, Code: 3, Reason: "outputs: line 1", Outputs: map[string]string{"a": "1\u00e9\n"}, Dropped: 9}),
		kindAck:        of(record{Kind: kindAck, Fence: fence{1, 9}, Final: true, Time: 7}),
		kindTrim:       {Kind: kindTrim, Request: "R"},
	}
	for _, k := range constants(t, "record.go", "kind") {
		rec, ok := tests[kind(k)]
		if !ok {
			t.Errorf("there is no row for records of kind %q", k)
		}
		if rec.Kind == "" {
			continue // the first two lines: TestDamageIsRefused
		}
		before := journalText(intent(k1, 5))
		d, err := decodeJournal(before)
		if err != nil {
			t.Fatal(err)
		}
		last, old := d.last, d.ledger
		line := appendLine(nil, last+1, last, rec)
		after, err := decodeJournal(append(bytes.Clone(before), line...))
		if err != nil || after.last != last+1 {
			t.Fatalf("%s: %v", k, err)
		}
		if cmp.Equal(old, after.ledger, sameLedger) {
			t.Errorf("%s: the record changes nothing, and the test cannot fail", k)
		}
		cut := func(what string, at int, tail []byte) {
			t.Helper()
			d, err := decodeJournal(append(bytes.Clone(before), tail...))
			if err != nil || d.last != last || d.size != int64(len(before)) {
				t.Errorf("%s, %s at %d: not cut off: %v", k, what, at, err)
			} else if diff := cmp.Diff(old, d.ledger, sameLedger); diff != "" {
				t.Errorf("%s, %s at %d: was taken (-before +after):\n%s", k, what, at, diff)
			}
		}
		for n := range len(line) {
			cut("torn", n, line[:n])
			flipped := bytes.Clone(line)
			flipped[n] ^= 1 << (n % 8)
			cut("a flipped bit", n, flipped)
			zeros := bytes.Clone(line)
			clear(zeros[n:])
			cut("zeros from there", n, zeros)
			// A later line knows that this one was on disk.
			later := appendLine(flipped, last+2, last+1, record{Kind: kindFence, Request: "P", Fence: fence{1, 1}})
			if _, err := decodeJournal(append(bytes.Clone(before), later...)); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: a flipped bit at %d of what was on disk: %v", k, n, err)
			}
		}
	}
}
