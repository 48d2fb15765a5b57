package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"uac/codestation/durable"
)

// A journal is a text file, one record a line:
//
//	<crc> <seq> <durable> <record as JSON>\n
//
// crc is the CRC-32C, in eight hexadecimal digits, of what follows the blank after
// it. seq is one more than that of the line before. durable is the highest seq that
// was known to be on disk when the line was made. It tells a torn end, which a power
// cut leaves and which is cut off, from damage: a line that was once on disk cannot
// have been torn.
const journalVersion = 1

// ErrDamaged is returned by Run when the journal lacks something that was once on disk.
// Going on without it could run work twice. Only an operator can tell what became of the
// attempts that it knew.
var ErrDamaged = errors.New("the journal is damaged")

// journal is the file that keeps the ledger. Appending only queues; one goroutine
// (run) writes what has been queued meanwhile, and syncs it if somebody waits, so
// that appenders who come together share an fsync.
type journal struct {
	path    string
	id      string
	metrics Metrics
	point   func(Point)

	wake chan struct{} // tells run that there is something to do

	mu      sync.Mutex
	queue   []byte // lines not yet handed to the file
	last    uint64 // seq of the last line queued
	skipped uint64 // how many lines up to it do not count
	told    uint64 // the highest counter so far
	durable uint64 // seq of the last line that is on disk
	wanted  uint64 // seq of the last line that somebody needs on disk
	size    int64  // of the file, with the queue
	limit   int64  // size at which compacting is tried
	least   int64  // lowest limit
	rewrite []byte // if not nil, becomes the file before the queue is written
	waiters []waiter
	err     error // what ended the journal; nothing is written after it

	file journalFile // of run
}

// journalFile is what a journal does with its file. Tests lose power under it.
type journalFile interface {
	io.WriteCloser
	Sync() error
}

type waiter struct {
	seq  uint64
	done chan struct{}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendLine(dst []byte, seq, durable uint64, rec record) []byte {
	body, _ := json.Marshal(rec) // of strings and numbers only: cannot fail
	start := len(dst)
	dst = append(dst, "00000000 "...)
	text := len(dst)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, durable, 10)
	dst = append(dst, ' ')
	dst = append(dst, body...)
	copy(dst[start:], fmt.Sprintf("%08x", crc32.Checksum(dst[text:], castagnoli)))
	return append(dst, '\n')
}

type line struct {
	seq, durable uint64
	rec          record
}

// parseLine takes a line without its newline.
func parseLine(text []byte) (line, bool) {
	var l line
	if !beginsLine(text) {
		return l, false
	}
	crc, rest := text[:8], text[9:]
	sum, err := strconv.ParseUint(string(crc), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(rest, castagnoli) {
		return l, false
	}
	seq, rest, ok1 := bytes.Cut(rest, []byte{' '})
	dur, body, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 {
		return l, false
	}
	var err1, err2 error
	l.seq, err1 = strconv.ParseUint(string(seq), 10, 64)
	l.durable, err2 = strconv.ParseUint(string(dur), 10, 64)
	if err1 != nil || err2 != nil || l.durable >= l.seq || json.Unmarshal(body, &l.rec) != nil {
		return l, false
	}
	return l, true
}

// decoded is what a journal file says.
type decoded struct {
	id     string
	ledger *ledger
	last   uint64 // seq of the last good line
	// skipped is how many lines up to it do not count.
	skipped uint64
	size    int64 // of the good part; what follows is a torn end
}

// decodeJournal replays the content of a journal file.
func decodeJournal(data []byte) (*decoded, error) {
	d := &decoded{ledger: newLedger()}
	for offset := 0; offset < len(data); {
		end := bytes.IndexByte(data[offset:], '\n')
		var l line
		ok := false
		if end >= 0 {
			l, ok = parseLine(data[offset : offset+end])
		}
		if !ok || d.last != 0 && l.seq != d.last+1 {
			if d.last == 0 {
				break
			}
			return d, d.torn(data[offset:], offset)
		}
		if d.last == 0 {
			if l.rec.Kind != kindJournal || l.rec.ID == "" {
				break
			}
			if l.rec.Version != journalVersion {
				return nil, fmt.Errorf("journal has format %d, this program reads %d", l.rec.Version, journalVersion)
			}
			d.id = l.rec.ID
		}
		if err := d.ledger.apply(l.rec); err != nil {
			return nil, fmt.Errorf("%w at byte %d: line with number %d: %w", ErrDamaged, offset, l.seq, err)
		}
		d.last = l.seq
		switch {
		case l.rec.Kind == kindState:
			d.skipped = l.rec.Skipped
		case l.rec.Uncounted:
			d.skipped++
		}
		offset += end + 1
		d.size = int64(offset)
	}
	if d.last == 0 {
		return nil, fmt.Errorf("%w at byte 0: its first line is not that of a journal", ErrDamaged)
	}
	return d, nil
}

// torn decides whether rest, which begins with a bad line, is what a power cut leaves
// of lines that nobody was told of. It is not if some later line knows that the line
// here was on disk once.
func (d *decoded) torn(rest []byte, offset int) error {
	for text := range bytes.SplitSeq(rest, []byte{'\n'}) {
		// A good line may stick to what is left of a torn one.
		for i := range text {
			if !beginsLine(text[i:]) {
				continue
			}
			if l, ok := parseLine(text[i:]); ok && l.durable > d.last {
				return fmt.Errorf("%w at byte %d: the line with number %d is missing although it was on disk when number %d was written",
					ErrDamaged, offset, d.last+1, l.seq)
			}
		}
	}
	return nil
}

// beginsLine reports whether b looks like the beginning of a line.
func beginsLine(b []byte) bool {
	if len(b) < 9 || b[8] != ' ' {
		return false
	}
	for _, c := range b[:8] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// encodeJournal returns a journal file that holds the ledger, with its lines numbered
// from last+1 on, the number of its last one, and how many up to that do not count, if
// skipped of those up to last do not: none of the new ones does.
func encodeJournal(id string, l *ledger, last, skipped uint64) (data []byte, _, _ uint64) {
	records := append([]record{{Kind: kindJournal, Version: journalVersion, ID: id}}, l.snapshot()...)
	skipped += uint64(len(records))
	for _, rec := range records {
		last++
		if rec.Kind == kindState {
			rec.Skipped = skipped
		}
		data = appendLine(data, last, 0, rec)
	}
	return data, last, skipped
}

// openJournal opens the journal at path, or makes one with a new id, and replays it.
// It is compacted when it is larger than limit bytes and that helps.
func openJournal(path string, limit int64, m Metrics, point func(Point)) (*journal, *ledger, error) {
	if err := durable.Sweep(filepath.Dir(path)); err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, _, _ = encodeJournal(rand.Text(), newLedger(), 0, 0)
		err = durable.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return nil, nil, err
	}
	d, err := decodeJournal(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, nil, err
	}
	// Lines that the process before this one wrote may not be on disk yet. From here
	// on everything that was read is taken for durable, so it has to be.
	err = f.Truncate(d.size)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	j := &journal{
		path: path, id: d.id, metrics: m, point: point, file: f,
		wake: make(chan struct{}, 1), last: d.last, skipped: d.skipped, durable: d.last, wanted: d.last, size: d.size, limit: limit, least: limit,
	}
	j.counter() // as it is before anything is written
	return j, d.ledger, nil
}

// append queues records and returns the number of the last one. The caller has
// applied them to the ledger and holds the lock that keeps other appenders away.
func (j *journal) append(records ...record) uint64 {
	j.mu.Lock()
	if len(records) == 0 {
		defer j.mu.Unlock()
		return j.last
	}
	before := len(j.queue)
	for _, rec := range records {
		j.last++
		j.queue = appendLine(j.queue, j.last, j.durable, rec)
		if rec.Kind.durable() {
			j.wanted = j.last
		}
		if rec.Uncounted {
			j.skipped++
		}
	}
	j.size += int64(len(j.queue) - before)
	last := j.last
	j.mu.Unlock()
	j.metrics.Add(MetricRecords, float64(len(records)))
	j.kick()
	return last
}

func (j *journal) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// counter returns one more than how many lines that count are on disk, or a little
// less while lines that do not are on their way. It never goes back. Those count that commands bring
// about, and what comes of them. An agent that was set back to an older disk must have
// a lower counter than it had: so neither its start, nor what it finds out about the
// attempts that it knows, nor a file written anew makes up for what it has lost.
func (j *journal) counter() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.durable > j.skipped {
		j.told = max(j.told, j.durable-j.skipped)
	}
	return j.told + 1
}

// wait returns once everything up to seq is on disk, or says why it will not be.
func (j *journal) wait(ctx context.Context, seq uint64) error {
	j.mu.Lock()
	if j.durable >= seq || j.err != nil {
		defer j.mu.Unlock()
		if j.durable >= seq {
			return nil
		}
		return j.err
	}
	j.wanted = max(j.wanted, seq)
	done := make(chan struct{})
	j.waiters = append(j.waiters, waiter{seq, done})
	j.mu.Unlock()
	j.kick()
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.durable >= seq {
		return nil
	}
	return j.err
}

// bloated reports whether compacting the journal is worth a try.
func (j *journal) bloated() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > j.limit && j.rewrite == nil
}

// compact replaces the file by one that holds just the ledger, unless it would not be
// much smaller. The caller keeps appenders away.
func (j *journal) compact(l *ledger) {
	j.mu.Lock()
	defer j.mu.Unlock()
	data, last, skipped := encodeJournal(j.id, l, j.last, j.skipped)
	j.limit = max(j.least, 2*int64(len(data)))
	if j.size <= j.limit {
		return
	}
	j.rewrite, j.queue = data, nil // what was queued is in the ledger
	j.last, j.skipped, j.wanted, j.size = last, skipped, last, int64(len(data))
	j.kick()
}

// run writes until ctx ends, then writes and syncs what is queued and closes the
// file. An error is final: after a failed write or fsync nobody knows what the disk
// holds until the file has been read again.
func (j *journal) run(ctx context.Context) error {
	defer func() { j.file.Close() }()
	for {
		stopping := false
		select {
		case <-j.wake:
		case <-ctx.Done():
			stopping = true
		}
		for {
			more, err := j.flush(stopping)
			if err != nil {
				err = fmt.Errorf("write journal: %w", err)
				j.finish(err)
				return err
			}
			if !more {
				break
			}
		}
		if stopping {
			j.finish(errors.New("journal is closed"))
			return nil
		}
	}
}

// flush writes what is queued at this moment, and syncs it if somebody waits for it
// or force is set. It reports whether there was anything to do.
func (j *journal) flush(force bool) (bool, error) {
	j.mu.Lock()
	rewrite, queue, last := j.rewrite, j.queue, j.last
	j.rewrite, j.queue = nil, nil
	sync := min(j.wanted, last) > j.durable || force && last > j.durable
	j.mu.Unlock()
	if rewrite == nil && len(queue) == 0 && !sync {
		return false, nil
	}
	if rewrite != nil {
		j.point(pointCompacting)
		if err := durable.WriteFile(j.path, rewrite, 0o600); err != nil {
			return false, err
		}
		f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return false, err
		}
		j.file.Close()
		j.file = f
		j.metrics.Add(MetricCompactions, 1)
		j.point(pointCompacted)
	}
	if len(queue) > 0 {
		if _, err := j.file.Write(queue); err != nil {
			return false, err
		}
	}
	if sync {
		if err := j.file.Sync(); err != nil {
			return false, err
		}
		j.metrics.Add(MetricSyncs, 1)
		j.mu.Lock()
		j.durable = last
		j.release()
		j.mu.Unlock()
	}
	return true, nil
}

func (j *journal) finish(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
	j.release()
}

// release wakes the waiters whose wait is over.
func (j *journal) release() {
	rest := j.waiters[:0]
	for _, w := range j.waiters {
		if j.err != nil || w.seq <= j.durable {
			close(w.done)
		} else {
			rest = append(rest, w)
		}
	}
	j.waiters = rest
}
