package mount

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faulty is a file system over a directory that can be told to fail, or to hang
// like a file server that is gone.
type faulty struct {
	fuse.RawFileSystem

	mu     sync.Mutex // guards the following
	fail   map[string]fuse.Status
	hang   chan struct{} // nil: answers; else nothing does before it is closed
	inside chan string   // gets the name of an operation that hangs
}

// newFaulty mounts one on a directory of its own and returns it with that directory
// and the one beneath it.
func newFaulty(t *testing.T) (f *faulty, dir, beneath string) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("NOT CHECKED: %v", err)
	}
	dir, beneath = t.TempDir(), t.TempDir()
	root, err := gofs.NewLoopbackRoot(beneath)
	if err != nil {
		t.Fatal(err)
	}
	f = &faulty{RawFileSystem: gofs.NewNodeFS(root, &gofs.Options{}), fail: map[string]fuse.Status{}, inside: make(chan string, 100)}
	server, err := fuse.NewServer(f, dir, &fuse.MountOptions{
		DirectMount: true, FsName: "uac-test", Name: "uac-test",
	})
	if err != nil {
		t.Skipf("NOT CHECKED: mount a FUSE file system: %v", err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.release()
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		<-served
	})
	return f, dir, beneath
}

// stop makes every operation hang until release.
func (f *faulty) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = make(chan struct{})
}

func (f *faulty) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang != nil {
		close(f.hang)
		f.hang = nil
	}
}

// failing makes one operation fail, with fuse.OK it works again.
func (f *faulty) failing(op string, status fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[op] = status
}

func (f *faulty) gate(op string) fuse.Status {
	f.mu.Lock()
	status, hang := f.fail[op], f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case f.inside <- op:
		default:
		}
		<-hang
	}
	return status
}

func (f *faulty) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.gate("lookup"); s != fuse.OK {
		return s
	}
	return f.RawFileSystem.Lookup(c, h, name, out)
}

func (f *faulty) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := f.gate("getattr"); s != fuse.OK {
		return s
	}
	return f.RawFileSystem.GetAttr(c, in, out)
}

func (f *faulty) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := f.gate("create"); s != fuse.OK {
		return s
	}
	s := f.RawFileSystem.Create(c, in, name, out)
	ownData(&out.OpenOut)
	return s
}

// ownData keeps the kernel from reading and writing the file beneath directly.
func ownData(out *fuse.OpenOut) {
	out.OpenFlags &^= fuse.FOPEN_PASSTHROUGH
	out.BackingID = 0
}

func (f *faulty) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := f.gate("open"); s != fuse.OK {
		return s
	}
	s := f.RawFileSystem.Open(c, in, out)
	ownData(out)
	return s
}

func (f *faulty) Writev(c <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if s := f.gate("write"); s != fuse.OK {
		return 0, s
	}
	return f.RawFileSystem.Writev(c, in, data)
}

func (f *faulty) Fsync(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := f.gate("fsync"); s != fuse.OK {
		return s
	}
	return f.RawFileSystem.Fsync(c, in)
}

func (f *faulty) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.gate("link"); s != fuse.OK {
		return s
	}
	return f.RawFileSystem.Link(c, in, name, out)
}

// quick is short enough for a test that waits for a hang, and never reached by a
// mount that answers.
var quick = Config{Timeout: 500 * time.Millisecond, Probe: 20 * time.Millisecond}

func initOn(t *testing.T, dir string) {
	t.Helper()
	if _, err := Init(dir, "test"); err != nil {
		t.Fatal(err)
	}
}

// The file server dies in the middle of a write and comes back.
func TestHungMount(t *testing.T) {
	f, dir, beneath := newFaulty(t)
	initOn(t, beneath)
	cfg := quick
	cfg.Dir = dir
	m := run(t, cfg, nil)
	await(t, m, OK)
	f.stop()
	data := bytes.Repeat([]byte("x"), 3*chunk)
	wantErr(t, m.Create(t.Context(), "d/x", data), ErrUnavailable)
	s := await(t, m, Hung)
	if s.Stuck == 0 {
		t.Error("a child that waits for the mount was killed: this test hangs nothing")
	}
	wantErr(t, m.Append(t.Context(), "y", 0, []byte("y")), ErrUnavailable)
	f.release()
	await(t, m, OK)
	if err := m.Create(t.Context(), "d/x", data); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, m, "d/x"); !bytes.Equal(got, data) {
		t.Errorf("%d bytes came of %d", len(got), len(data))
	}
	gone(t, m)
	if s := m.State(); s.Stuck != 0 {
		t.Errorf("state %+v", s)
	}
}

// Errors are told by what they mean for the mount.
func TestErrorsOfTheMount(t *testing.T) {
	f, dir, beneath := newFaulty(t)
	initOn(t, beneath)
	cfg := quick
	cfg.Dir, cfg.Timeout = dir, longTimeout
	m := run(t, cfg, nil)
	for _, c := range []struct {
		op     string
		status fuse.Status
		want   Kind
	}{
		{"write", fuse.Status(syscall.ENOSPC), Full},
		{"create", fuse.EROFS, ReadOnly},
		{"lookup", fuse.Status(syscall.ESTALE), Stale},
		{"fsync", fuse.EIO, Stale},
		{"create", fuse.EACCES, Failed},
	} {
		await(t, m, OK)
		f.failing(c.op, c.status)
		err := m.Create(t.Context(), "x", []byte("x"))
		wantErr(t, err, ErrUnavailable, syscall.Errno(c.status))
		await(t, m, c.want)
		f.failing(c.op, fuse.OK)
	}
	// Without hard links too, nothing is replaced.
	f.failing("link", fuse.ENOSYS)
	await(t, m, OK)
	if err := m.Create(t.Context(), "x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, m.Create(t.Context(), "x", []byte("y")), os.ErrExist)
	if got := mustRead(t, m, "x"); string(got) != "x" {
		t.Errorf("x is %q", got)
	}
}

// An append that could not be made durable can be made again.
func TestAppendAfterFailedSync(t *testing.T) {
	f, dir, beneath := newFaulty(t)
	initOn(t, beneath)
	cfg := quick
	cfg.Dir, cfg.Timeout = dir, longTimeout
	m := run(t, cfg, nil)
	await(t, m, OK)
	f.failing("fsync", fuse.EIO)
	wantErr(t, m.Append(t.Context(), "x", 0, []byte("one")), ErrUnavailable)
	f.failing("fsync", fuse.OK)
	if err := m.Append(t.Context(), "x", 0, []byte("one")); err != nil {
		t.Error(err)
	}
	if err := m.Append(t.Context(), "x", 3, []byte("two")); err != nil {
		t.Error(err)
	}
	if got := mustRead(t, m, "x"); string(got) != "onetwo" {
		t.Errorf("x is %q", got)
	}
}

// A process that has a mount can be killed while that hangs, and leaves neither its
// socket nor its lock behind.
func TestParentCanBeKilled(t *testing.T) {
	f, dir, beneath := newFaulty(t)
	initOn(t, beneath)
	lock := filepath.Join(t.TempDir(), "lock")
	cmd := exec.Command("/proc/self/exe", parentVerb, dir, lock)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var addr string
	next := func(want string) {
		t.Helper()
		for {
			var key, value string
			if _, err := fmt.Fscanln(out, &key, &value); err != nil {
				t.Fatalf("before %s: %v", want, err)
			}
			if key == "addr" {
				addr = value
			}
			if value == want {
				return
			}
		}
	}
	next("ok")
	f.stop()
	next("hung")
	if exclusively(t, lock) {
		t.Fatal("the parent has no lock")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // returns only if no thread of it is stuck
	if !exclusively(t, lock) {
		t.Error("the lock of a killed process is still held")
	}
	tcp, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(tcp), fmt.Sprintf(":%04X 00000000:0000 0A", port)) {
		t.Error("the socket of a killed process still listens")
	}
}

// The mount vanishes between two writes: nothing is written into the directory
// under it.
func TestMountVanishes(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mountTmpfs(t, dir, "size=16m")
	initOn(t, dir)
	m := run(t, Config{Dir: dir, Timeout: longTimeout, Probe: 20 * time.Millisecond}, nil)
	await(t, m, OK)
	if err := m.Append(t.Context(), "x", 0, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	wantErr(t, m.Append(t.Context(), "x", 3, []byte("two")), ErrUnavailable)
	wantErr(t, m.Append(t.Context(), "y", 0, []byte("two")), ErrUnavailable)
	_, err := m.ReadAt(t.Context(), "x", 0, 3)
	wantErr(t, err, ErrUnavailable) // and not that there is no such file
	await(t, m, Absent)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the directory under the mount has %v, %v", entries, err)
	}
	mountTmpfs(t, dir, "size=16m")
	initOn(t, dir)
	await(t, m, OK)
}

func TestFullAndReadOnly(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mountTmpfs(t, dir, "size=2m")
	initOn(t, dir)
	m := run(t, Config{Dir: dir, Timeout: longTimeout, Probe: 20 * time.Millisecond}, nil)
	await(t, m, OK)
	wantErr(t, m.Create(t.Context(), "big", make([]byte, 4<<20)), ErrUnavailable, syscall.ENOSPC)
	// What was written of it is gone again.
	if err := m.Create(t.Context(), "small", []byte("x")); err != nil {
		t.Error(err)
	}
	await(t, m, OK)
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write(make([]byte, 4<<20)) // until it is full
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, m, Full)
	if got := mustRead(t, m, "small"); string(got) != "x" {
		t.Errorf("a full mount reads %q", got)
	}
	if err := m.Remove(t.Context(), "filler"); err != nil {
		t.Error(err)
	}
	await(t, m, OK)
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	await(t, m, ReadOnly)
	wantErr(t, m.Create(t.Context(), "more", nil), ErrUnavailable, syscall.EROFS)
	if got := mustRead(t, m, "small"); string(got) != "x" {
		t.Errorf("a read-only mount reads %q", got)
	}
}
