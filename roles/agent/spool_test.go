package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire"
)

func TestWhoIsFrozen(t *testing.T) {
	a, b, c := key{"R", "a", 1}, key{"R", "b", 1}, key{"R", "c", 1}
	for name, tt := range map[string]struct {
		shares []share
		want   map[key]bool
	}{
		"at the limit":              {[]share{{a, 100, true, false}}, map[key]bool{a: false}},
		"above the limit":           {[]share{{a, 101, true, false}, {b, 1, true, false}}, map[key]bool{a: true, b: false}},
		"frozen and not half free":  {[]share{{a, 51, true, true}}, map[key]bool{a: true}},
		"frozen and half free":      {[]share{{a, 50, true, true}}, map[key]bool{a: false}},
		"ended":                     {[]share{{a, 1000, false, false}}, map[key]bool{}},
		"all together above":        {[]share{{a, 90, true, false}, {b, 90, true, false}, {c, 71, true, false}}, map[key]bool{a: true, b: true, c: false}},
		"ended ones take the total": {[]share{{a, 249, false, false}, {b, 2, true, false}, {c, 0, true, false}}, map[key]bool{b: true, c: false}},
		"ended ones take more":      {[]share{{a, 900, false, false}, {b, 1, true, false}}, map[key]bool{b: true}},
	} {
		if diff := cmp.Diff(tt.want, freeze(tt.shares, 100, 250)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// What is free'd is gone, says so, and never reads as zeros; what was kept beyond the
// last whole unit stays.
func TestFreedOutputIsGone(t *testing.T) {
	d := attemptDir(t.TempDir())
	want := bytes.Repeat([]byte("0123456789abcde\n"), (2*freeUnit+100_000)/16)
	if err := os.WriteFile(d.file(fileOutput), want, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(offset int64) (from int64, got []byte) {
		t.Helper()
		var o output
		defer o.close()
		if err := o.open(d.file(fileOutput)); err != nil {
			t.Fatal(err)
		}
		from = -1
		for {
			data, at, err := o.read(offset, chunkSize)
			if from < 0 {
				from = at
			}
			offset = at + int64(len(data))
			got = append(got, data...)
			if errors.Is(err, io.EOF) {
				return from, got
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct{ free, offset, from int64 }{
		{0, 7, 7},
		{freeUnit - 1, 7, 7},
		{freeUnit + 5, 7, freeUnit},
		{freeUnit + 5, freeUnit + 1, freeUnit + 1},
		{2*freeUnit + 99_999, 0, 2 * freeUnit},
		{0, 0, 2 * freeUnit}, // by another process of the agent
	} {
		if err := d.free(tt.free); err != nil {
			t.Fatal(err)
		}
		from, got := read(tt.offset)
		if from != tt.from || !bytes.Equal(got, want[from:]) {
			t.Errorf("after freeing up to %d, from %d on: %d bytes that begin at %d, right: %v", tt.free, tt.offset, len(got), from, bytes.Equal(got, want[max(from, 0):]))
		}
	}
	if n := d.waiting(0, 0); n > 2*100_000 {
		t.Errorf("the file still takes %d bytes", n)
	}
	// All of it, to its very end.
	if err := os.Truncate(d.file(fileOutput), 2*freeUnit); err != nil {
		t.Fatal(err)
	}
	if from, got := read(0); from != 2*freeUnit || len(got) != 0 {
		t.Errorf("of a file that is gone as a whole: %d bytes that begin at %d", len(got), from)
	}
}

// A reader that takes nothing holds up nothing else on its link.
func TestOutputWaitsForItsReader(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "head -c 1000000 /dev/zero"))
	s.l.report(k1, wire.State_EXITED)
	const window = 3
	q := &wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1, Window: window}
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: q}})
	var offset int64
	take := func(n int) {
		t.Helper()
		for range n {
			c := s.l.expect("output", func(m *wire.AgentMessage) bool { return m.GetOutput().GetId() == 1 }).GetOutput()
			if c.GetOffset() != offset || len(c.GetData()) != chunkSize {
				t.Fatalf("%d bytes at %d, want %d at %d", len(c.GetData()), c.GetOffset(), chunkSize, offset)
			}
			offset += chunkSize
		}
	}
	quiet := func() {
		t.Helper()
		// Another read, from beginning to end, in which the first could have gone on.
		if got, problem := s.read(&wire.ReadOutput{Id: 2, Request: "R", Step: "s", Attempt: 1}); len(got) != 1_000_000 || problem != "" {
			t.Fatalf("%d bytes, error %q", len(got), problem)
		}
		for _, m := range s.l.kept {
			if m.GetOutput().GetId() == 1 {
				t.Fatal("output is sent that its reader has no room for")
			}
		}
	}
	take(window)
	quiet()
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_OutputTaken{OutputTaken: &wire.OutputTaken{Id: 1, Chunks: 2}}})
	take(2)
	quiet()
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_OutputTaken{OutputTaken: &wire.OutputTaken{Id: 1, Chunks: 1000}}})
	take(window)
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_CancelRead{CancelRead: &wire.CancelRead{Id: 1}}})
}

// collecting is a stage with a controller that says it collects, and small limits.
func collecting(t *testing.T, settings ...setting) *stage {
	t.Helper()
	w := newWorld(t)
	s := &stage{testWorld: w, c: w.controller("c1"), ledger: filepath.Join(t.TempDir(), "ledger")}
	s.c.collects.Store(true)
	s.boot(append(settings, smallSpool)...)
	return s
}

func smallSpool(c *Config, _ *Deps) { c.SpoolLimit, c.SpoolTotal = freeUnit, 8*freeUnit }

// collect keeps what there is of an attempt from offset on, at most limit bytes.
func (s *stage) collect(k key, offset, limit int64) (data []byte, complete bool) {
	s.t.Helper()
	id := uint64(time.Now().UnixNano())
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: &wire.ReadOutput{
		Id: id, Request: k.request, Step: k.step, Attempt: k.attempt, Offset: offset, Limit: limit, Collect: true,
	}}})
	for {
		c := s.l.expect("output", func(m *wire.AgentMessage) bool { return m.GetOutput().GetId() == id }).GetOutput()
		if c.GetError() != "" || c.GetOffset() != offset+int64(len(data)) {
			s.t.Fatalf("after %d bytes from %d on: offset %d, error %q", len(data), offset, c.GetOffset(), c.GetError())
		}
		if data = append(data, c.GetData()...); c.GetEof() {
			return data, c.GetComplete()
		}
	}
}

func (s *stage) frozen(k key, want bool) {
	s.t.Helper()
	s.l.expect(fmt.Sprintf("a report that %s is frozen: %v", k, want), func(m *wire.AgentMessage) bool {
		at := m.GetReport().GetAttempt()
		return m.GetReport().GetRequest() == k.request && at.GetStep() == k.step && at.GetState() == wire.State_RUNNING && at.GetFrozen() == want
	})
}

// size is how much an attempt has written.
func (s *stage) size(k key) int64 {
	s.t.Helper()
	info, err := os.Stat(s.a.dir(k).file(fileOutput))
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Size()
}

// stopped reports whether all processes of an attempt are.
func (s *stage) stopped(k key) bool {
	s.t.Helper()
	st, err := s.a.dir(k).status()
	if err != nil {
		s.t.Fatal(err)
	}
	members, err := process{pid: st.pid}.session()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, pid := range members {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(text, []byte(") T ")) {
			return false
		}
	}
	return len(members) > 0
}

// flood writes so many MiB that no two of them are alike, as fast as it can, and says
// what they were.
func flood(mib int) (script string, sum [sha256.Size]byte) {
	var all bytes.Buffer
	for i := range mib {
		all.WriteString(strings.Repeat(fmt.Sprintf("%07d ", i), freeUnit/8))
	}
	script = fmt.Sprintf(`i=0; while [ $i -lt %d ]; do yes "$(printf %%07d $i) " | tr -d '\n' | head -c %d; i=$((i+1)); done`, mib, freeUnit)
	return script, sha256.Sum256(all.Bytes())
}

// What an attempt writes faster than it is collected waits in the attempt: neither the
// disk nor anybody's memory takes more than the limit and what is written between two
// looks. Not a byte is lost, over deaths of the agent too.
func TestFloodIsFrozenAndComesWhole(t *testing.T) {
	const mib = 48 // written in longer than it takes until the agent looks
	s := collecting(t)
	script, want := flood(mib)
	gate := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	s.l.start(startOf(k1, 5, "read x <"+gate+"; "+script))
	s.l.report(k1, wire.State_RUNNING) // so it runs for longer than it takes until that is told
	writeFile(t, gate, "go\n")
	data, _ := s.collect(k1, 0, 1) // from now on it is collected
	got := sha256.New()
	got.Write(data)
	offset := int64(len(data))
	freezes := 0
	for turn := 0; ; turn++ {
		if turn%16 == 5 {
			s.restart(smallSpool)
		}
		s.l.kept = nil
		data, complete := s.collect(k1, offset, 500_000)
		got.Write(data)
		offset += int64(len(data))
		if s.a.dir(k1).frozen() {
			freezes++
		}
		if complete {
			break
		}
	}
	if offset != mib*freeUnit || !bytes.Equal(got.Sum(nil), want[:]) {
		t.Errorf("%d bytes of %d came, the right ones: %v", offset, mib*freeUnit, bytes.Equal(got.Sum(nil), want[:]))
	}
	if freezes == 0 {
		t.Error("the attempt was never frozen")
	}
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	if _, complete := s.collect(k1, offset, 1); !complete {
		t.Error("the end is no end")
	}
	if n := s.a.dir(k1).waiting(0, 0); n > freeUnit {
		t.Errorf("what is kept elsewhere takes %d bytes here", n)
	}
	eventually(t, "nobody waits for the output", func() bool { s.a.checkSpool(); return s.a.spool.idle() })
}

// floodAndFreeze starts an attempt that writes for ever and waits until it is frozen.
func (s *stage) floodAndFreeze(k key, head string) {
	s.t.Helper()
	s.l.start(startOf(k, 5, head+"\nexec cat /dev/zero"))
	s.l.report(k, wire.State_RUNNING)
	s.collect(k, 0, 1)
	s.frozen(k, true)
	eventually(s.t, "all its processes are stopped", func() bool { return s.stopped(k) })
}

func TestFrozenAttemptsWriteNothing(t *testing.T) {
	s := collecting(t)
	s.floodAndFreeze(k1, "")
	size := s.size(k1)
	if size <= freeUnit {
		t.Errorf("frozen after %d bytes", size)
	}
	s.barrier()
	if now := s.size(k1); now != size {
		t.Errorf("it went on from %d to %d", size, now)
	}
	// All that it wrote is kept: it goes on.
	s.collect(k1, size, 1)
	s.frozen(k1, false)
	eventually(t, "it writes again", func() bool { return s.size(k1) > size })
	s.frozen(k1, true)
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
}

func TestFrozenAttemptsObeyStops(t *testing.T) {
	for name, stop := range map[string]func(s *stage){
		"kill": func(s *stage) { s.l.kill(k1, 5) },
		"kill after a restart": func(s *stage) {
			s.restart(smallSpool)
			s.frozen(k1, true)
			s.l.kill(k1, 5)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := collecting(t)
			s.floodAndFreeze(k1, "trap '"+s.note("term")+"exit 7' TERM; (cat /dev/zero) & wait")
			stop(s)
			wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 7, Stopped: wire.Stop_KILLED})
			s.wantNoted("term\n")
		})
	}
	t.Run("timeout", func(t *testing.T) {
		s := collecting(t)
		start := startOf(k1, 5, "trap '"+s.note("term")+"exit 7' TERM; (cat /dev/zero) & wait")
		start.TimeoutNanos = int64(2 * time.Second)
		s.l.start(start)
		s.l.report(k1, wire.State_RUNNING)
		s.collect(k1, 0, 1)
		s.frozen(k1, true)
		wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 7, Stopped: wire.Stop_TIMED_OUT})
		s.wantNoted("term\n")
	})
}

// A restarted agent finds what is frozen, and thaws it when it hears how much is kept.
func TestFrozenOverARestart(t *testing.T) {
	s := collecting(t)
	s.floodAndFreeze(k1, "")
	size := s.size(k1)
	s.restart(smallSpool)
	s.frozen(k1, true)
	s.barrier()
	if now := s.size(k1); now != size || !s.stopped(k1) {
		t.Errorf("it went on from %d to %d over the restart", size, now)
	}
	s.collect(k1, size, 1)
	s.frozen(k1, false)
	eventually(t, "it writes again", func() bool { return s.size(k1) > size })
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
}

// Who collected has been configured not to: nothing waits for what will not come. That
// no controller can be reached says nothing.
func TestNobodyCollectsAnyMore(t *testing.T) {
	s := collecting(t)
	s.floodAndFreeze(k1, "")
	size := s.size(k1)
	s.l.cut()
	next := s.c.next()
	s.a.checkSpool()
	if now := s.size(k1); now != size || !s.a.dir(k1).frozen() {
		t.Errorf("without a link it went on from %d to %d", size, now)
	}
	next.collects = false
	next.welcome(1, "g1", 0)
	s.l = next
	s.frozen(k1, false)
	eventually(t, "it writes again", func() bool { return s.size(k1) > size })
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
}

// An attempt that nobody has asked to collect is not frozen, whatever welcomes say.
func TestNobodyCollects(t *testing.T) {
	s := collecting(t)
	script, _ := flood(4)
	s.l.start(startOf(k1, 5, script))
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	if s.size(k1) != 4*freeUnit {
		t.Errorf("it wrote %d bytes", s.size(k1))
	}
}

// Output that somebody comes for outlives the limits of what is kept for its own sake.
func TestUncollectedOutputStays(t *testing.T) {
	nothing := func(c *Config, _ *Deps) { c.OutputMaxAttempts = 0 }
	s := collecting(t, nothing)
	s.l.start(startOf(k1, 5, "echo one; exec sleep 0.1"))
	s.l.report(k1, wire.State_RUNNING)
	s.collect(k1, 0, 1)
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, true)
	eventually(t, "it is tidied up", func() bool {
		s.a.outputs.mu.Lock()
		defer s.a.outputs.mu.Unlock()
		return len(s.a.outputs.kept) == 1
	})
	s.a.outputs.expire(time.Now())
	if data, complete := s.collect(k1, 0, 10); string(data) != "one\n" || !complete {
		t.Errorf("%q, complete %v", data, complete)
	}
	s.collect(k1, 4, 10)
	s.a.checkSpool()
	s.a.outputs.expire(time.Now())
	if got, problem := s.read(&wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1}); !strings.Contains(problem, "not any more") {
		t.Errorf("after it was collected: %q, %q", got, problem)
	}
}
