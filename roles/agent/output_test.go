package agent

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"uac/roles/wire"
)

// read asks for output and returns it with the last chunk's error.
func (s *stage) read(q *wire.ReadOutput) (string, string) {
	s.t.Helper()
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: q}})
	return s.rest(q.GetId(), q.GetOffset(), nil)
}

// rest collects output until it ends, or until enough says so.
func (s *stage) rest(id uint64, offset int64, enough func(string) bool) (string, string) {
	s.t.Helper()
	var b strings.Builder
	for enough == nil || !enough(b.String()) {
		c := s.l.expect("output", func(m *wire.AgentMessage) bool { return m.GetOutput().GetId() == id }).GetOutput()
		if c.GetOffset() != offset+int64(b.Len()) {
			s.t.Fatalf("chunk at %d, want %d", c.GetOffset(), offset+int64(b.Len()))
		}
		b.Write(c.GetData())
		if c.GetEof() {
			return b.String(), c.GetError()
		}
	}
	return b.String(), ""
}

func TestOutputIsReadByOffset(t *testing.T) {
	s := newStage(t)
	const size = 300_000
	s.l.start(startOf(k1, 5, "head -c 300000 /dev/zero | tr '\\0' x; echo end >&2"))
	s.l.report(k1, wire.State_EXITED)
	want := strings.Repeat("x", size) + "end\n"
	for name, tt := range map[string]struct {
		offset, limit int64
		want          string
	}{
		"all":           {0, 0, want},
		"from a place":  {size - 1, 0, "xend\n"},
		"some":          {size, 2, "en"},
		"large limit":   {size, 1 << 40, "end\n"},
		"up to the end": {size, 4, "end\n"},
		"at the end":    {size + 4, 0, ""},
		"beyond":        {size + 99, 0, ""},
	} {
		got, problem := s.read(&wire.ReadOutput{Id: 1, Request: "R", Step: "s", Attempt: 1, Offset: tt.offset, Limit: tt.limit})
		if got != tt.want || problem != "" {
			t.Errorf("%s: %d bytes, error %q", name, len(got), problem)
		}
	}
	// Also after the acknowledgement, and in the next process.
	s.l.ack(k1, 5, true)
	s.restart()
	if got, problem := s.read(&wire.ReadOutput{Id: 2, Request: "R", Step: "s", Attempt: 1, Offset: size}); got != "end\n" || problem != "" {
		t.Errorf("after the end: %q, error %q", got, problem)
	}
}

func TestOutputIsFollowedToTheEnd(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	// Ask before there is anything.
	s.l.start(startOf(k1, 5, "echo one; while ! test -e "+gate+"; do sleep 0.01; done; echo two"))
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: &wire.ReadOutput{
		Id: 9, Request: "R", Step: "s", Attempt: 1, Follow: true,
	}}})
	first, _ := s.rest(9, 0, func(got string) bool { return got != "" })
	if first != "one\n" {
		t.Errorf("first %q", first)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, problem := s.rest(9, 4, nil); got != "two\n" || problem != "" {
		t.Errorf("then %q, error %q", got, problem)
	}
}

func TestReadsAreBoundedAndCanBeCancelled(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "exec sleep 1000"))
	s.l.report(k1, wire.State_RUNNING)
	follow := func(id uint64) {
		s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: &wire.ReadOutput{
			Id: id, Request: "R", Step: "s", Attempt: 1, Follow: true,
		}}})
	}
	for id := range uint64(maxReads) {
		follow(id)
	}
	if _, problem := s.read(&wire.ReadOutput{Id: 3, Request: "R", Step: "s", Attempt: 1}); !strings.Contains(problem, "with this id") {
		t.Errorf("a second read with one id: %q", problem)
	}
	if _, problem := s.read(&wire.ReadOutput{Id: maxReads + 1, Request: "R", Step: "s", Attempt: 1}); !strings.Contains(problem, "too many") {
		t.Errorf("one more read: %q", problem)
	}
	s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_CancelRead{CancelRead: &wire.CancelRead{Id: 3}}})
	s.l.sync()
	if _, problem := s.read(&wire.ReadOutput{Id: maxReads + 1, Request: "R", Step: "s", Attempt: 1}); problem != "" {
		t.Errorf("after one was cancelled: %q", problem)
	}
	// The end of a link ends its reads: goleak would find them.
	s.l.cut()
	s.l = s.c.link()
	s.l.kill(k1, 5)
	s.l.report(k1, wire.State_EXITED)
}

func TestOutputThatIsNotThere(t *testing.T) {
	s := newStage(t)
	for name, q := range map[string]*wire.ReadOutput{
		"unknown":         {Id: 1, Request: "R", Step: "s", Attempt: 1, Follow: true},
		"path":            {Id: 2, Request: "..", Step: "..", Attempt: 1},
		"no attempt":      {Id: 3, Request: "R", Step: "s"},
		"negative offset": {Id: 4, Request: "R", Step: "s", Attempt: 1, Offset: -1},
		"negative limit":  {Id: 5, Request: "R", Step: "s", Attempt: 1, Limit: -1},
	} {
		if got, problem := s.read(q); got != "" || problem == "" {
			t.Errorf("%s: %q, error %q", name, got, problem)
		}
	}
}

// An attempt has no output when its file is empty and nobody is left who could write.
func TestNoOutput(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(t *testing.T, d attemptDir)
		want   bool
	}{
		"empty and free":  {func(*testing.T, attemptDir) {}, true},
		"something":       {func(t *testing.T, d attemptDir) { writeFile(t, d.file(fileOutput), "x") }, false},
		"no file":         {func(t *testing.T, d attemptDir) { remove(t, d.file(fileOutput)) }, false},
		"no directory":    {func(t *testing.T, d attemptDir) { remove(t, string(d)) }, false},
		"another file":    {func(t *testing.T, d attemptDir) { symlink(t, "/dev/null", d.file(fileOutput)) }, false},
		"somebody writes": {func(t *testing.T, d attemptDir) { hold(t, d.file(fileOutput), os.O_WRONLY) }, false},
		"somebody reads":  {func(t *testing.T, d attemptDir) { hold(t, d.file(fileOutput), os.O_RDONLY) }, true},
		"only the pipe":   {func(t *testing.T, d attemptDir) { hold(t, d.file(fileAlive), os.O_RDWR) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := attemptDir(filepath.Join(t.TempDir(), "attempt"))
			if err := d.make(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, d.file(fileOutput), "")
			tt.change(t, d)
			if got := d.noOutput(); got != tt.want {
				t.Errorf("no output %v", got)
			}
		})
	}
}

// hold holds a file open until the test ends, as what an attempt left behind does.
func hold(t *testing.T, path string, flag int) {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	remove(t, path)
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// The report of an end says whether there is output, as long as it is repeated; of an
// end in an earlier boot it cannot know.
func TestNoOutputIsReported(t *testing.T) {
	s := newStage(t, func(c *Config, _ *Deps) { c.ResendAfter = 1 })
	quiet, loud, left, gate := key{"R", "quiet", 1}, key{"R", "loud", 1}, key{"R", "left", 1}, filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	s.l.start(startOf(quiet, 5, ":"))
	s.l.start(startOf(loud, 5, "echo x"))
	s.l.start(startOf(left, 5, "(exec 9>&-; read x <"+gate+") &")) // as sudo does: it keeps the output, but not the pipe
	said := func(k key, want bool) {
		t.Helper()
		s.l.expect("a report", func(m *wire.AgentMessage) bool {
			at := m.GetReport().GetAttempt()
			return at.GetStep() == k.step && at.GetState() == wire.State_EXITED && at.GetNoOutput() == want
		})
	}
	said(quiet, true)
	said(loud, false)
	said(left, false)
	said(left, false) // again: by then the wrapper, which has the pipe, is gone
	writeFile(t, gate, "go\n")
	said(left, true)
	s.a.mu.Lock()
	s.a.ledger.attempt(quiet).Boot = "another"
	s.a.mu.Unlock()
	said(quiet, false)
}
