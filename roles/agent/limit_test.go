package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"uac/roles/wire"
)

// mountOn mounts a file system of that type on the directory of the world's agent.
func mountOn(t *testing.T, w *testWorld, fstype, options string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT CHECKED: mounting a file system needs root")
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(fstype, w.dir, fstype, 0, options); err != nil {
		t.Skipf("NOT CHECKED: cannot mount a %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(w.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func stageIn(t *testing.T, w *testWorld) *stage {
	t.Helper()
	s := &stage{testWorld: w, c: w.controller("c1"), ledger: filepath.Join(t.TempDir(), "ledger")}
	s.boot()
	return s
}

func withLimit(k key, limit int64, script string) *wire.Start {
	start := startOf(k, 5, script)
	start.OutputLimit = limit
	return start
}

// A step writes a gibibyte as fast as it can, to a file system of a quarter of that. It
// must neither fail nor be held up, and the disk must not become full.
func TestOutputBeyondTheLimitTakesNoRoom(t *testing.T) {
	w := newWorld(t)
	mountOn(t, w, "tmpfs", "size=256m")
	s := stageIn(t, w)
	const limit, size = 1 << 20, 1 << 30
	s.l.start(withLimit(k1, limit, fmt.Sprintf("echo begin; head -c %d /dev/zero; echo end >&2", size)))
	end := s.l.report(k1, wire.State_EXITED)
	wantEnd(t, end, &wire.End{})
	if got, want := end.GetAttempt().GetOutputDropped(), int64(size-limit+len("begin\nend\n")); got != want {
		t.Errorf("%d bytes were thrown away, want %d", got, want)
	}
	got, problem := s.read(&wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1})
	want := "begin\n" + strings.Repeat("\x00", limit-len("begin\n")) + droppedLine(limit, end.GetAttempt().GetOutputDropped())
	if got != want || problem != "" {
		t.Errorf("%d bytes of output, want %d; error %q; end %q", len(got), len(want), problem, got[max(0, len(got)-100):])
	}
	eventually(t, "nothing is left of the rest", func() bool { return s.outputOf(k1) == want })
	if got := allocated(t, s.a.dir(k1)); got > limit+blockSize {
		t.Errorf("%d bytes are allocated", got)
	}
}

func allocated(t testing.TB, d attemptDir) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(d.file(fileOutput), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestHolesAreMadeWhileTheStepRuns(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	const limit, size = 1000, 50 << 20
	s.l.start(withLimit(k1, limit, fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; while ! test -e %s; do sleep 0.01; done; head -c 500000 /dev/zero", size, gate)))
	d := s.a.dir(k1)
	eventually(t, "a hole", func() bool {
		info, err := os.Stat(d.file(fileOutput))
		return err == nil && info.Size() == size && allocated(t, d) < holeStep+blockSize
	})
	// It is told while it goes on, and kept and counted by the next process of the agent.
	s.l.expect("a report of what is thrown away", func(m *wire.AgentMessage) bool {
		return m.GetReport().GetAttempt().GetOutputDropped() > 0 && m.GetReport().GetAttempt().GetState() == wire.State_RUNNING
	})
	s.restart()
	s.l.report(k1, wire.State_RUNNING)
	follow := &wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1, Follow: true}
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: follow}})
	kept, _ := s.rest(1, 0, func(got string) bool { return len(got) >= limit })
	if kept != strings.Repeat("x", limit) {
		t.Errorf("%d bytes of output, want %d", len(kept), limit)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const dropped = size + 500000 - limit
	if got := s.l.report(k1, wire.State_EXITED).GetAttempt().GetOutputDropped(); got != dropped {
		t.Errorf("%d bytes were thrown away, want %d", got, dropped)
	}
	if got, problem := s.rest(1, limit, nil); got != droppedLine(limit, dropped) || problem != "" {
		t.Errorf("the end of the output is %q, error %q", got, problem)
	}
}

// The next process finds an attempt that has written beyond its limit while nobody
// looked after it.
func TestOutputOfTheTimeWithoutAnAgentIsTrimmed(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	const limit, size = 1000, 5 << 20
	s.l.start(withLimit(k1, limit, fmt.Sprintf("while ! test -e %s; do sleep 0.01; done; head -c %d /dev/zero; while test -e %s; do sleep 0.01; done", gate, size, gate)))
	s.l.report(k1, wire.State_RUNNING)
	d := s.a.dir(k1)
	s.a.stop()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "output", func() bool { info, err := os.Stat(d.file(fileOutput)); return err == nil && info.Size() == size })
	s.boot()
	eventually(t, "a hole", func() bool { return allocated(t, d) < holeStep })
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	if got := s.l.report(k1, wire.State_EXITED).GetAttempt().GetOutputDropped(); got != size-limit {
		t.Errorf("%d bytes were thrown away, want %d", got, size-limit)
	}
}

// Where no holes can be made the rest takes room until the end. Readers see no
// difference.
func TestLimitWithoutHoles(t *testing.T) {
	w := newWorld(t)
	mountOn(t, w, "ramfs", "")
	s := stageIn(t, w)
	const limit, size = 1000, 3 << 20
	s.l.start(withLimit(k1, limit, fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size)))
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	want := strings.Repeat("x", limit) + droppedLine(limit, size-limit)
	if got, problem := s.read(&wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1}); got != want || problem != "" {
		t.Errorf("%d bytes of output, want %d, error %q", len(got), len(want), problem)
	}
	eventually(t, "nothing is left of the rest", func() bool { return s.outputOf(k1) == want })
}

func TestOutputUpToTheLimitIsLeftAlone(t *testing.T) {
	s := newStage(t)
	for i, limit := range []int64{0, 6, 7, 1 << 40} {
		k := key{"R", fmt.Sprint(i), 1}
		s.l.start(withLimit(k, limit, "echo hello"))
		if got := s.l.report(k, wire.State_EXITED).GetAttempt().GetOutputDropped(); got != 0 {
			t.Errorf("limit %d: %d bytes were thrown away", limit, got)
		}
		if got, problem := s.read(&wire.ReadOutput{Id: uint64(i), Request: "R", Step: k.step, Attempt: 1}); got != "hello\n" || problem != "" {
			t.Errorf("limit %d: %q, error %q", limit, got, problem)
		}
	}
}

func TestViewOfLimitedOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		view outputView
		want string
	}{
		"no limit":      {outputView{}, "0123456789"},
		"still running": {outputView{limit: 4}, "0123"},
		"ended":         {outputView{limit: 4, line: "[line]"}, "0123[line]"},
		"not reached":   {outputView{limit: 11}, "0123456789"},
	} {
		for _, size := range []int64{1, 3, 4, 100} {
			out := output{view: tt.view}
			if err := out.open(path); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for {
				data, at, err := out.read(int64(len(got)), size)
				if at != int64(len(got)) || int64(len(data)) > size {
					t.Fatalf("%s: %d bytes at %d, asked for %d at %d", name, len(data), at, size, len(got))
				}
				if got = append(got, data...); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := out.read(1000, size); !errors.Is(err, io.EOF) {
				t.Errorf("%s: far beyond: %v", name, err)
			}
			out.close()
			if string(got) != tt.want {
				t.Errorf("%s, %d at a time: %q, want %q", name, size, got, tt.want)
			}
		}
	}
}

// What is thrown away beyond a limit does not wait to be collected: the attempt would be
// frozen for ever.
func TestWhatIsBeyondTheLimitDoesNotWait(t *testing.T) {
	d := attemptDir(t.TempDir())
	if err := os.WriteFile(d.file(fileOutput), make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ kept, limit, want int64 }{
		{0, 0, 10_000}, {4000, 0, 6000}, {0, 5000, 5000}, {4000, 5000, 1000}, {5000, 5000, 0}, {5080, 5000, 0}, {0, 20_000, 10_000},
	} {
		if got := d.waiting(tt.kept, tt.limit); got != tt.want {
			t.Errorf("%+v: %d bytes wait", tt, got)
		}
	}
}

// A crash between the record of the end and what is done to the file, at any place.
func TestSealingAgainChangesNothing(t *testing.T) {
	for name, found := range map[string]string{
		"nothing done":   "0123456789",
		"truncated":      "0123",
		"written partly": "0123\n[uac:",
		"all done":       "0123" + droppedLine(4, 6),
	} {
		d := attemptDir(t.TempDir())
		if err := os.WriteFile(d.file(fileOutput), []byte(found), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.seal(4, 6); err != nil {
			t.Fatal(err)
		}
		if got, want := readFile(t, d.file(fileOutput)), "0123"+droppedLine(4, 6); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
