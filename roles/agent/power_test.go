package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"uac/roles/wire"
)

// disk is a journal's file on a disk that can be made to hang, and knows what a power
// cut would leave.
type disk struct {
	journalFile

	mu      sync.Mutex // guards the fields below
	written int64
	synced  int64
	hung    chan struct{} // closed when it goes on; nil: it does not hang
}

func (d *disk) Write(p []byte) (int, error) {
	n, err := d.journalFile.Write(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written += int64(n)
	return n, err
}

func (d *disk) Sync() error {
	d.mu.Lock()
	written, hung := d.written, d.hung
	d.mu.Unlock()
	if hung != nil {
		<-hung
	}
	err := d.journalFile.Sync()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced = written
	return err
}

// hang makes every fsync from now on wait until the returned function is called.
func (d *disk) hang() (goOn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hung := make(chan struct{})
	d.hung = hung
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hung = nil
		close(hung)
	})
}

// waiting is how many wait for the disk.
func (j *journal) waiting() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.waiters)
}

// What somebody has waited for is there after a power cut.
func TestWhatWasWaitedForSurvivesAPowerCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openTestJournal(t, path, 1<<20, noMetrics{})
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{journalFile: j.file, written: before.Size(), synced: before.Size()}
	j.file = d
	stop := running(t, j)
	for i := range 20 {
		seq := j.append(intent(key{"R", fmt.Sprint(i), 1}, 5))
		if err := j.wait(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		left := d.synced
		d.mu.Unlock()
		text := readFile(t, path)
		got, err := decodeJournal([]byte(text[:left]))
		if err != nil {
			t.Fatal(err)
		}
		if got.last < seq || got.ledger.attempt(key{"R", fmt.Sprint(i), 1}) == nil {
			t.Fatalf("somebody waited for record %d; it is lost, the disk has those up to %d", seq, got.last)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// newHangingStage is a stage whose journal is on a disk that can hang.
func newHangingStage(t *testing.T, point func(Point)) (*stage, *disk) {
	var d *disk
	s := newStage(t, func(_ *Config, deps *Deps) {
		deps.Point = point
		deps.disk = func(f journalFile) journalFile { d = &disk{journalFile: f}; return d }
	})
	return s, d
}

func TestIntentIsOnDiskBeforeTheStart(t *testing.T) {
	forking := make(chan struct{}, 1)
	s, d := newHangingStage(t, func(p Point) {
		if p == pointForking {
			forking <- struct{}{}
		}
	})
	s.l.sync()
	goOn := d.hang()
	defer goOn()
	s.l.start(startOf(k1, 5, s.note("ran")))
	started := false
	eventually(t, "the start waits for the disk", func() bool {
		select {
		case <-forking:
			started = true
		default:
		}
		return started || s.a.journal.waiting() > 0
	})
	if started {
		t.Fatal("the attempt was started before its intent was on disk")
	}
	goOn()
	s.l.report(k1, wire.State_EXITED)
	s.wantNoted("ran\n")
}

func TestEndIsOnDiskBeforeItIsReported(t *testing.T) {
	s, d := newHangingStage(t, nil)
	gate := filepath.Join(t.TempDir(), "gate")
	s.l.start(startOf(k1, 5, s.note("ran")+"while [ ! -e "+gate+" ]; do sleep 0.01; done"))
	s.l.report(k1, wire.State_RUNNING)
	goOn := d.hang()
	defer goOn()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.wantHeldBack(2, func(m *wire.AgentMessage) bool { return m.GetReport().GetAttempt().GetState() == wire.State_EXITED })
	goOn()
	s.l.report(k1, wire.State_EXITED)
}

func TestFenceIsOnDiskBeforeTheAnswer(t *testing.T) {
	s, d := newHangingStage(t, nil)
	s.l.sync()
	goOn := d.hang()
	defer goOn()
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Adopt{Adopt: &wire.Adopt{Request: "R", Fence: rev(5)}}})
	s.wantHeldBack(1, func(m *wire.AgentMessage) bool { return m.GetAdopted() != nil })
	goOn()
	s.l.expect("the answer", func(m *wire.AgentMessage) bool { return m.GetAdopted() != nil })
}

// wantHeldBack waits until n wait for the disk, and wants that no such message has
// been sent by then.
func (s *stage) wantHeldBack(n int, such func(*wire.AgentMessage) bool) {
	s.t.Helper()
	sent := false
	eventually(s.t, "the message waits for the disk", func() bool {
		select {
		case m := <-s.l.got:
			sent = sent || such(m)
		default:
		}
		return sent || s.a.journal.waiting() >= n
	})
	if sent {
		s.t.Fatal("it was sent before it was on disk")
	}
}
