package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// longTimeout is never reached by a mount that works.
const longTimeout = time.Minute

// run runs a mount until the test ends.
func run(t *testing.T, cfg Config, command func(string) *exec.Cmd) *Mount {
	t.Helper()
	if command == nil {
		command = childCommand
	}
	m := New(cfg, Deps{Command: command, Log: discard()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

// initDir returns a directory with a sentinel.
func initDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := Init(dir, "test"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// working returns a mount on a directory that works, and the directory.
func working(t *testing.T) (*Mount, string) {
	t.Helper()
	dir := initDir(t)
	return run(t, Config{Dir: dir, Cluster: "test", Timeout: longTimeout, Probe: time.Hour}, nil), dir
}

// await waits until the mount is of a kind.
func await(t *testing.T, m *Mount, want Kind) State {
	t.Helper()
	for {
		s, changed := m.Watch()
		if s.Kind == want {
			return s
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("the mount is %s (%s), not %s", s.Kind, s.Error, want)
		}
	}
}

// gone waits until no killed child is left.
func gone(t *testing.T, m *Mount) {
	t.Helper()
	m.mu.Lock()
	children := m.children
	m.mu.Unlock()
	for _, ch := range children {
		if ch.isDown() {
			<-ch.gone
		}
	}
}

func wantErr(t *testing.T, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("error is %v, not %v", err, w)
		}
	}
}

func mustRead(t *testing.T, m *Mount, name string) []byte {
	t.Helper()
	b, err := m.ReadAt(t.Context(), name, 0, 64<<20)
	if !errors.Is(err, io.EOF) {
		t.Fatalf("read %s: %v, not the end of the file", name, err)
	}
	return b
}

func TestCreate(t *testing.T) {
	m, dir := working(t)
	ctx := t.Context()
	long := bytes.Repeat([]byte("0123456789abcde\n"), 3*chunk/16+1)
	for name, data := range map[string][]byte{"a": []byte("small"), "d/e/f": long, "g/empty": nil, "h/exact": long[:2*chunk]} {
		if err := m.Create(ctx, name, data); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, m, name); !bytes.Equal(got, data) {
			t.Errorf("%s has %d bytes, not the %d that were written", name, len(got), len(data))
		}
		wantErr(t, m.Create(ctx, name, []byte("other")), fs.ErrExist)
		if got := mustRead(t, m, name); !bytes.Equal(got, data) {
			t.Errorf("%s was replaced", name)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, tempDir))
	if err != nil || len(left) > 0 {
		t.Errorf("files in the making are left: %v, %v", left, err)
	}
}

func TestAppend(t *testing.T) {
	m, _ := working(t)
	ctx := t.Context()
	var want []byte
	for _, part := range [][]byte{[]byte("one\n"), nil, bytes.Repeat([]byte("x"), 2*chunk+7), []byte("end")} {
		if err := m.Append(ctx, "logs/a", int64(len(want)), part); err != nil {
			t.Fatal(err)
		}
		want = append(want, part...)
	}
	if got := mustRead(t, m, "logs/a"); !bytes.Equal(got, want) {
		t.Errorf("the file has %d bytes, want %d", len(got), len(want))
	}
	for name, at := range map[string]int64{"logs/a": 3, "logs/b": 9} {
		var size *SizeError
		err := m.Append(ctx, name, at, []byte("z"))
		if !errors.As(err, &size) {
			t.Fatalf("append at %d: %v", at, err)
		}
		exists := int64(len(want))
		if name == "logs/b" {
			exists = 0
		}
		if diff := cmp.Diff(&SizeError{Name: name, At: at, Size: exists}, size); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := m.ReadAt(ctx, "logs/b", 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused append made its file: %v", err)
	}
}

func TestReadAt(t *testing.T) {
	m, _ := working(t)
	ctx := t.Context()
	if err := m.Create(ctx, "f", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 10, "0123456789", nil},
		{3, 4, "3456", nil},
		{8, 5, "89", io.EOF},
		{10, 1, "", io.EOF},
		{99, 1, "", io.EOF},
		{0, 0, "", nil},
		{-1, 1, "", fs.ErrInvalid},
	} {
		got, err := m.ReadAt(ctx, "f", c.off, c.n)
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%d bytes at %d: %q, %v; want %q, %v", c.n, c.off, got, err, c.want, c.err)
		}
	}
	_, err := m.ReadAt(ctx, "missing", 0, 1)
	wantErr(t, err, fs.ErrNotExist)
	if errors.Is(err, ErrUnavailable) {
		t.Error("a missing file is taken for a missing mount")
	}
}

func TestListAndRemove(t *testing.T) {
	m, dir := working(t)
	ctx := t.Context()
	for _, name := range []string{"d/b", "d/a", "d/sub/x"} {
		if err := m.Create(ctx, name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := m.List(ctx, "d")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Entry{{Name: "a", Size: 3}, {Name: "b", Size: 3}, {Name: "sub", Dir: true}}, got); diff != "" {
		t.Error(diff)
	}
	if got, err = m.List(ctx, "."); err != nil || len(got) != 1 || got[0].Name != "d" {
		t.Errorf("the mount lists %v, %v: what belongs to this package must be hidden", got, err)
	}
	_, err = m.List(ctx, "nothing")
	wantErr(t, err, fs.ErrNotExist)
	wantErr(t, m.Remove(ctx, "d/sub"), syscall.ENOTEMPTY)
	for _, name := range []string{"d/sub/x", "d/sub", "d/a"} {
		if err := m.Remove(ctx, name); err != nil {
			t.Error(err)
		}
		wantErr(t, m.Remove(ctx, name), fs.ErrNotExist)
	}
	// More names than fit into one answer.
	const many = 2*maxNames/250 + 3
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		f, err := os.Create(filepath.Join(dir, "many", fmt.Sprintf("%0250d", i)))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if got, err = m.List(ctx, "many"); err != nil || len(got) != many {
		t.Errorf("%d names, %v", len(got), err)
	}
}

func TestNames(t *testing.T) {
	m, _ := working(t)
	for _, name := range []string{"", ".", "/etc/passwd", "../x", "a/../../x", "a/..", "x\x00y", ".uac-mount", "./.uac-tmp/x"} {
		wantErr(t, m.Create(t.Context(), name, nil), fs.ErrInvalid)
	}
	if err := m.Create(t.Context(), "a//b/./c", nil); err != nil {
		t.Error(err)
	}
	if _, err := m.ReadAt(t.Context(), "a/b/c", 0, 0); err != nil {
		t.Error(err)
	}
}

func TestSymbolicLinksDoNotLeadOut(t *testing.T) {
	m, dir := working(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := m.Append(t.Context(), "link", 0, []byte("x")); err == nil {
		t.Error("wrote through a link that leads out of the mount")
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("made a file outside of the mount")
	}
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	first, err := Init(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Init(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("init is not idempotent: %s", diff)
	}
	_, err = Init(dir, "two")
	wantErr(t, err, fs.ErrExist)
	_, err = Init(filepath.Join(dir, "missing"), "one")
	wantErr(t, err, fs.ErrNotExist)
}

// The sentinel decides what the mount is, at each call anew.
func TestSentinel(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		want    Kind
	}{
		"no directory": {func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		}, Absent},
		"empty directory": {func(*testing.T, string) {}, Absent},
		"another cluster": {func(t *testing.T, dir string) {
			t.Helper()
			if _, err := Init(dir, "other"); err != nil {
				t.Fatal(err)
			}
		}, Foreign},
		"rubbish": {func(t *testing.T, dir string) {
			t.Helper()
			put(t, filepath.Join(dir, sentinelFile), "{}")
		}, Foreign},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(t, dir)
			m := run(t, Config{Dir: dir, Cluster: "test", Timeout: longTimeout, Probe: 10 * time.Millisecond}, nil)
			wantErr(t, m.Create(t.Context(), "x", []byte("x")), ErrUnavailable)
			_, err := m.ReadAt(t.Context(), "x", 0, 1)
			wantErr(t, err, ErrUnavailable)
			await(t, m, c.want)
			if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
				t.Error("the file was written")
			}
			// It comes back by itself.
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, sentinelFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if _, err := Init(dir, "test"); err != nil {
				t.Fatal(err)
			}
			if s := await(t, m, OK); s.ID == "" || s.Total == 0 || s.Error != "" {
				t.Errorf("state %+v", s)
			}
			if err := m.Create(t.Context(), "x", []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUnconfigured(t *testing.T) {
	m := run(t, Config{}, nil)
	wantErr(t, m.Create(t.Context(), "x", nil), ErrUnavailable)
	if s := m.State(); s.Kind != Unconfigured {
		t.Errorf("state %+v", s)
	}
}

// A child that stops answering is given up at the deadline; from then on calls fail
// at once, until a fresh child answers.
func TestHungChild(t *testing.T) {
	dir := initDir(t)
	var hang atomic.Bool
	started := make(chan struct{}, 100)
	m := run(t, Config{Dir: dir, Timeout: 100 * time.Millisecond, Probe: 20 * time.Millisecond}, func(dir string) *exec.Cmd {
		started <- struct{}{}
		if hang.Load() {
			return exec.Command("sleep", "1000")
		}
		return childCommand(dir)
	})
	await(t, m, OK)
	<-started
	hang.Store(true)
	m.mu.Lock()
	pid := m.child.cmd.Process.Pid
	m.mu.Unlock()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, m, Hung)
	for range 3 {
		<-started // fresh ones hang too, and are given up
	}
	wantErr(t, m.Create(t.Context(), "x", []byte("x")), ErrUnavailable)
	hang.Store(false)
	await(t, m, OK)
	if err := m.Create(t.Context(), "x", []byte("x")); err != nil {
		t.Error(err)
	}
}

// A child that dies takes nothing with it.
func TestChildDies(t *testing.T) {
	dir := initDir(t)
	m := run(t, Config{Dir: dir, Timeout: longTimeout, Probe: 20 * time.Millisecond}, nil)
	for i := range 3 {
		await(t, m, OK)
		m.mu.Lock()
		ch := m.child
		m.mu.Unlock()
		if ch == nil {
			continue // already noticed; its successor is on its way
		}
		if err := ch.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ch.gone
		name := "x" + string(rune('0'+i))
		err := m.Create(t.Context(), name, []byte("x"))
		wantErr(t, err, ErrUnavailable)
	}
	await(t, m, OK)
}

// No more children are started than may be stuck.
func TestChildrenAreBounded(t *testing.T) {
	dir := initDir(t)
	m := New(Config{Dir: dir, Timeout: longTimeout, Probe: time.Hour}, Deps{Log: discard(), Command: func(string) *exec.Cmd {
		return exec.Command("sleep", "1000")
	}})
	var stuck []*child
	for range maxChildren {
		ch := m.start()
		if ch == nil {
			t.Fatal("no child")
		}
		stuck = append(stuck, ch)
	}
	if ch := m.start(); ch != nil {
		t.Error("one child too many")
	}
	if s := m.State(); s.Kind != Hung {
		t.Errorf("state %+v", s)
	}
	stuck[0].end(false, errors.New("enough"))
	<-stuck[0].gone
	ch := m.start()
	if ch == nil {
		t.Fatal("a child is gone, and none is started")
	}
	m.part()
	gone(t, m)
}

// A call that the caller gives up leaves the child as it is.
func TestCallerGivesUp(t *testing.T) {
	m, _ := working(t)
	await(t, m, OK)
	m.mu.Lock()
	ch := m.child
	m.mu.Unlock()
	if err := syscall.Kill(ch.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	const callers = 2 * maxInFlight // half of them wait for their turn
	for range callers {
		go func() {
			_, err := m.ReadAt(ctx, "x", 0, 1)
			errs <- err
		}()
	}
	cancel()
	for range callers {
		wantErr(t, <-errs, ErrUnavailable, context.Canceled)
	}
	if err := syscall.Kill(ch.cmd.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := m.Create(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
	if m.child != ch {
		t.Error("the child was replaced")
	}
}

// The child has nothing of its parent but two pipes.
func TestChildInheritsNothing(t *testing.T) {
	m, _ := working(t)
	await(t, m, OK)
	fds := fmt.Sprintf("/proc/%d/fd", m.child.cmd.Process.Pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(fds, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		// The Go runtime opens the rest for itself.
		own := strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "/sys/fs/cgroup/")
		if !strings.HasPrefix(to, "pipe:") && to != "/dev/null" && !own {
			t.Errorf("descriptor %s is %s", e.Name(), to)
		}
	}
	if g, err := syscall.Getpgid(m.child.cmd.Process.Pid); err != nil || g != m.child.cmd.Process.Pid {
		t.Errorf("process group %d, %v", g, err)
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	want := call{ID: 7, Op: opRead, Name: "x\x01\"y", At: 1 << 40, N: 3}
	if err := writeFrame(&b, want, []byte("body")); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	var got call
	body, err := readFrame(bytes.NewReader(whole), &got)
	if err != nil || string(body) != "body" {
		t.Errorf("%q, %v", body, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for n := 1; n < len(whole); n++ {
		if _, err := readFrame(bytes.NewReader(whole[:n]), &got); err == nil || errors.Is(err, io.EOF) && n > 8 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a frame cut at %d is read: %v", n, err)
		}
	}
	if err := writeFrame(io.Discard, want, make([]byte, chunk+1)); err == nil {
		t.Error("a body of more than a chunk is written")
	}
	if _, err := readFrame(bytes.NewReader(bytes.Repeat([]byte{0xff}, 100)), &got); err == nil {
		t.Error("rubbish is read")
	}
}

// What dies in the making is swept, by the clock of the file server.
func TestSweep(t *testing.T) {
	dir := initDir(t)
	for name, age := range map[string]time.Duration{"old": keepTemps + time.Hour, "new": keepTemps - time.Hour} {
		file := filepath.Join(dir, tempDir, name)
		put(t, file, "x")
		when := time.Now().Add(-age)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	m := run(t, Config{Dir: dir, Timeout: longTimeout, Probe: time.Hour}, nil)
	await(t, m, OK)
	entries, err := os.ReadDir(filepath.Join(dir, tempDir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
