package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// counts is a Metrics that can be asked.
type counts struct {
	mu sync.Mutex
	n  map[Metric]float64
}

func newCounts() *counts { return &counts{n: map[Metric]float64{}} }

func (c *counts) Add(m Metric, delta float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[m] += delta
}

func (c *counts) of(m Metric) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[m]
}

func openTestJournal(t *testing.T, path string, limit int64, m Metrics) (*journal, *ledger) {
	t.Helper()
	j, l, err := openJournal(path, limit, m, func(Point) {})
	if err != nil {
		t.Fatal(err)
	}
	return j, l
}

// running runs the journal until the returned function is called, which returns the
// error of run.
func running(t *testing.T, j *journal) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.run(ctx) }()
	return sync.OnceValue(func() error { cancel(); return <-done })
}

func intent(k key, revision int64) record {
	return record{Kind: kindIntent, Request: k.request, Step: k.step, Attempt: k.attempt, Fence: fence{1, revision}}
}

func TestJournalRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, l := openTestJournal(t, path, 1<<20, noMetrics{})
	stop := running(t, j)
	records := []record{
		{Kind: kindGeneration, Generation: generation{3, "g3"}},
		intent(k1, 5),
		{Kind: kindLaunched, Request: "R", Step: "s", Attempt: 1, Pid: 7, PidStart: 8},
		{Kind: kindEnd, Request: "R", Step: "s", Attempt: 1, Phase: phaseExited, Code: 3, Time: 9},
	}
	for _, rec := range records {
		if err := l.apply(rec); err != nil {
			t.Fatal(err)
		}
		j.append(rec)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again, ledger := openTestJournal(t, path, 1<<20, noMetrics{})
	defer again.file.Close()
	if diff := cmp.Diff(l, ledger, sameLedger); diff != "" {
		t.Errorf("ledger (-before +after):\n%s", diff)
	}
	if again.id != j.id || again.counter() != 1+uint64(len(records)) || again.last != j.last {
		t.Errorf("journal %s at %d became %s at %d with counter %d", j.id, j.last, again.id, again.last, again.counter())
	}
	other, _ := openTestJournal(t, filepath.Join(t.TempDir(), "journal"), 1<<20, noMetrics{})
	defer other.file.Close()
	if other.id == j.id {
		t.Error("two journals have one id")
	}
}

// onDisk is the number of the last line that is on disk.
func (j *journal) onDisk() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

func TestThoseWhoComeTogetherShareAnFsync(t *testing.T) {
	m := newCounts()
	j, _ := openTestJournal(t, filepath.Join(t.TempDir(), "journal"), 1<<20, m)
	var seqs []uint64
	for i := range 100 {
		seqs = append(seqs, j.append(intent(key{"R", fmt.Sprint(i), 1}, 5)))
	}
	stop := running(t, j)
	for _, seq := range seqs {
		if err := j.wait(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.of(MetricSyncs); got != 1 {
		t.Errorf("%v fsyncs for 100 records that were appended together", got)
	}
	// Records that nobody waits for cost none.
	seq := j.append(record{Kind: kindAck, Request: "R", Fence: fence{1, 6}})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := m.of(MetricSyncs); got != 2 || j.onDisk() != seq {
		t.Errorf("%v fsyncs, %d of %d on disk, after closing", got, j.onDisk(), seq)
	}
}

func TestWaitingMakesAnyRecordDurable(t *testing.T) {
	j, _ := openTestJournal(t, filepath.Join(t.TempDir(), "journal"), 1<<20, noMetrics{})
	stop := running(t, j)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	seq := j.append(record{Kind: kindLaunched, Request: "R", Step: "s", Attempt: 1})
	if err := j.wait(t.Context(), seq); err != nil {
		t.Fatal(err)
	}
	if got := j.onDisk(); got < seq {
		t.Errorf("%d on disk after waiting for %d", got, seq)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.wait(ctx, seq+1); !errors.Is(err, context.Canceled) {
		t.Errorf("wait for what never comes: %v", err)
	}
}

func TestFailedWriteIsFinal(t *testing.T) {
	j, _ := openTestJournal(t, filepath.Join(t.TempDir(), "journal"), 1<<20, noMetrics{})
	j.file.Close() // any write fails from now on
	stop := running(t, j)
	seq := j.append(intent(k1, 5))
	if err := j.wait(t.Context(), seq); !errors.Is(err, os.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	if err := j.wait(t.Context(), j.append(intent(k2, 5))); !errors.Is(err, os.ErrClosed) {
		t.Errorf("wait for a later record: %v", err)
	}
	if err := stop(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("run: %v", err)
	}
}

func TestCompactingKeepsTheLedgerAndTheCounter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	m := newCounts()
	j, l := openTestJournal(t, path, 4<<10, m)
	stop := running(t, j)
	add := func(rec record) {
		if err := l.apply(rec); err != nil {
			t.Fatal(err)
		}
		j.append(rec)
	}
	for i := range int64(200) {
		add(record{Kind: kindFence, Request: "R", Fence: fence{1, i + 1}})
	}
	before := j.last
	if !j.bloated() {
		t.Fatal("the journal is not worth compacting")
	}
	j.compact(l) // with records in the queue
	add(intent(k1, 300))
	seq := j.last
	if err := j.wait(t.Context(), seq); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if m.of(MetricCompactions) != 1 || seq <= before {
		t.Errorf("%v compactions, counter from %d to %d", m.of(MetricCompactions), before, seq)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 2<<10 {
		t.Errorf("file is %v, %v", info, err)
	}
	again, ledger := openTestJournal(t, path, 4<<10, noMetrics{})
	defer again.file.Close()
	if diff := cmp.Diff(l, ledger, sameLedger); diff != "" {
		t.Errorf("ledger (-before +after):\n%s", diff)
	}
	if again.id != j.id || again.last != seq || again.counter() != j.counter() || j.counter() != 202 {
		t.Errorf("journal %s at %d with counter %d, want 202, became %s at %d with counter %d",
			j.id, seq, j.counter(), again.id, again.last, again.counter())
	}
	// What is needed is not compacted again and again.
	again.compact(ledger)
	if again.bloated() || again.rewrite != nil {
		t.Error("a journal without waste is rewritten")
	}
}

// journalText is a journal of the records, each durable before the next is made.
func journalText(records ...record) []byte {
	data, last, _ := encodeJournal("id", newLedger(), 0, 0)
	for _, rec := range records {
		last++
		data = appendLine(data, last, last-1, rec)
	}
	return data
}

// A power cut may leave any beginning of what was not on disk yet.
func TestTornEndIsCut(t *testing.T) {
	safe := journalText(intent(k1, 5))
	_, last, _ := encodeJournal("id", newLedger(), 0, 0)
	last++ // the intent
	lost := appendLine(nil, last+1, last, record{Kind: kindLaunched, Request: "R", Step: "s", Attempt: 1, Pid: 7})
	lost = appendLine(lost, last+2, last, record{Kind: kindAck, Request: "R", Fence: fence{1, 9}})
	first := bytes.IndexByte(lost, '\n') + 1
	check := func(name string, tail []byte, size int, seq uint64) {
		t.Helper()
		d, err := decodeJournal(append(bytes.Clone(safe), tail...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if d.size != int64(size) || d.last != seq {
			t.Errorf("%s: good are %d bytes up to number %d, want %d and %d", name, d.size, d.last, size, seq)
		}
		if d.ledger.attempt(k1) == nil {
			t.Errorf("%s: the intent is lost", name)
		}
	}
	for n := range first {
		check(fmt.Sprintf("%d bytes", n), lost[:n], len(safe), last)
	}
	for n := first; n < len(lost); n++ {
		check(fmt.Sprintf("%d bytes", n), lost[:n], len(safe)+first, last+1)
	}
	check("all", lost, len(safe)+len(lost), last+2)
	check("zeros", make([]byte, 4096), len(safe), last)
	check("a hole", append(make([]byte, first), lost[first:]...), len(safe), last)
	check("garbage", []byte("garbage\nmore\n"), len(safe), last)
	flipped := bytes.Clone(lost)
	flipped[first-3] ^= 1
	check("a flipped bit", flipped, len(safe), last)
}

func TestTornEndIsRemovedFromTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	text := journalText(intent(k1, 5))
	if err := os.WriteFile(path, append(bytes.Clone(text), "0123 torn"...), 0o600); err != nil {
		t.Fatal(err)
	}
	j, l := openTestJournal(t, path, 1<<20, noMetrics{})
	stop := running(t, j)
	rec := intent(k2, 6)
	if err := l.apply(rec); err != nil {
		t.Fatal(err)
	}
	j.append(rec)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again, ledger := openTestJournal(t, path, 1<<20, noMetrics{})
	defer again.file.Close()
	if ledger.attempt(k2) == nil {
		t.Error("what was appended after a torn end is lost")
	}
}

func TestDamageIsRefused(t *testing.T) {
	records := []record{intent(k1, 5), {Kind: kindFence, Request: "R", Fence: fence{1, 6}}, intent(key{"R", "t", 1}, 6)}
	good := journalText(records...)
	lines := strings.SplitAfter(strings.TrimSuffix(string(good), "\n"), "\n")
	tests := map[string]string{
		"empty":                   "",
		"no journal":              "hello\n",
		"first line missing":      strings.Join(lines[1:], ""),
		"first line torn":         lines[0][:10],
		"line in the middle gone": strings.Join(append(append([]string{}, lines[:2]...), lines[3:]...), ""),
		"two lines gone":          strings.Join(append(append([]string{}, lines[:2]...), lines[4:]...), ""),
		"flipped bit":             strings.Replace(string(good), `"revision":5`, `"revision":4`, 1),
		"newline lost":            strings.Join(lines[:2], "") + strings.TrimSuffix(lines[2], "\n") + "x" + lines[3] + lines[4],
		"zeros over a line":       strings.Join(lines[:2], "") + strings.Repeat("\x00", len(lines[2])) + lines[3] + lines[4],
		"another format":          string(appendLine(nil, 1, 0, record{Kind: kindJournal, ID: "id", Version: 99})),
		"no id":                   string(appendLine(nil, 1, 0, record{Kind: kindJournal, Version: journalVersion})),
		"unknown record":          string(appendLine(good[:len(good):len(good)], 6, 5, record{Kind: "future"})),
	}
	for name, text := range tests {
		if _, err := decodeJournal([]byte(text)); err == nil {
			t.Errorf("%s: was taken for a journal", name)
		}
	}
	if _, err := decodeJournal(good); err != nil {
		t.Fatal(err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	text := strings.Replace(string(journalText(intent(k1, 5), intent(k2, 5))), `"revision":5`, `"revision":4`, 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("at byte %d: the line with number 3", len(strings.Join(strings.SplitAfter(text, "\n")[:2], "")))
	_, _, err := openJournal(path, 1<<20, noMetrics{}, func(Point) {})
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), at) {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != text {
		t.Error("a damaged journal was changed")
	}
}

// Whatever becomes of the part that was not on disk, what was is found again, and
// losing some of it is noticed if anything later is left.
func TestJournalDecoderNeverLosesWhatWasDurable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "lines")
		data, last, _ := encodeJournal("id", newLedger(), 0, 0)
		base := last
		type place struct{ begin, end int }
		var places []place
		onDisk := base
		for i := range n {
			last++
			begin := len(data)
			data = appendLine(data, last, onDisk, intent(key{"R", fmt.Sprint(i), 1}, 5))
			places = append(places, place{begin, len(data)})
			if rapid.Bool().Draw(t, "synced") {
				onDisk = last
			}
		}
		// A power cut: lines after onDisk may be anything.
		for i, p := range places {
			if base+uint64(i)+1 <= onDisk {
				continue
			}
			switch rapid.SampledFrom([]string{"keep", "zero", "cut"}).Draw(t, "fate") {
			case "zero":
				clear(data[p.begin:p.end])
			case "cut":
				data = data[:min(len(data), p.begin+rapid.IntRange(0, p.end-p.begin).Draw(t, "length"))]
			}
		}
		d, err := decodeJournal(data)
		if err != nil {
			t.Fatalf("after a power cut: %v", err)
		}
		if d.last < onDisk {
			t.Fatalf("found up to %d, on disk were %d", d.last, onDisk)
		}
		// Damage to something that was on disk.
		if onDisk == base || onDisk == d.last {
			return
		}
		victim := places[rapid.IntRange(0, int(onDisk-base)-1).Draw(t, "victim")]
		bad := bytes.Clone(data)
		bad[rapid.IntRange(victim.begin, victim.end-1).Draw(t, "byte")] ^= 0x20
		if d, err := decodeJournal(bad); err == nil && d.last < onDisk {
			t.Fatalf("number %d of %d on disk was lost and nobody noticed", d.last+1, onDisk)
		}
	})
}

// Journals of a released format must be read for ever.
func TestJournalOfFormat1IsRead(t *testing.T) {
	d, err := decodeJournal([]byte(readFile(t, "testdata/journal-1")))
	if err != nil {
		t.Fatal(err)
	}
	want := &ledger{
		generation: generation{1, "g1"}, floor: fence{1, 4}, opens: 2,
		requests: map[string]*request{
			"R1": {Name: "R1", Fence: fence{1, 5}, Steps: map[string]*step{"build": {Highest: 1, Attempts: map[uint32]*attempt{
				1: {Phase: phaseRunning, Boot: "boot", Timeout: 6, Grace: 7, Started: 4, BootTime: 13, Pid: 11, PidStart: 12, Stop: stopTimeout, Killing: true},
			}}}},
			"R2": {Name: "R2", Fence: fence{1, 9}, Steps: map[string]*step{"s": {Highest: 2, Attempts: map[uint32]*attempt{
				2: {Phase: phaseNever, Ended: 8, Reason: "killed before it started"},
			}}}},
		},
	}
	if diff := cmp.Diff(want, d.ledger, sameLedger); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
	if d.id != "FIXTURE" || d.last != 19 {
		t.Errorf("journal %s at %d", d.id, d.last)
	}
}

func FuzzDecodeJournal(f *testing.F) {
	f.Add(journalText())
	f.Add(journalText(intent(k1, 5), record{Kind: kindEnd, Request: "R", Step: "s", Attempt: 1, Phase: phaseExited, Code: 3}))
	f.Add(journalText(record{Kind: kindRequest, Whole: &request{Name: "R", Steps: map[string]*step{"s": {Highest: 1}}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := decodeJournal(data)
		if err != nil {
			return
		}
		if d.size > int64(len(data)) || d.id == "" || d.last == 0 {
			t.Fatalf("decoded %+v", d)
		}
		// What was decoded can be written and read again.
		again, last, _ := encodeJournal(d.id, d.ledger, d.last, d.skipped)
		if last < d.last {
			return // the number has overflowed
		}
		e, err := decodeJournal(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.ledger, e.ledger, sameLedger); diff != "" {
			t.Errorf("ledger (-before +after):\n%s", diff)
		}
	})
}
