package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/codestation/durable"
)

var errInjected = errors.New("injected")

// recorder is a hook that notes every step and, from step number fail on (counting
// from 0), makes the step fail; with crash set all later ones fail too, as after
// the death of the process.
type recorder struct {
	steps []string
	fail  int
	crash bool
	err   error
}

func (r *recorder) before(op durable.Op, path string) error {
	n := len(r.steps)
	r.steps = append(r.steps, string(op)+" "+filepath.Base(path))
	if r.err != nil && (n == r.fail || r.crash && n > r.fail) {
		return r.err
	}
	return nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "(missing)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func temps(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if durable.IsTemp(e.Name()) {
			n++
		}
	}
	return n
}

func TestWriteFileSteps(t *testing.T) {
	dir := t.TempDir()
	var rec recorder
	dfs := durable.FS{Before: rec.before}
	path := filepath.Join(dir, "state")
	if err := dfs.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"create state", "write state", "sync state", "close state", "rename state",
		"syncdir " + filepath.Base(dir),
	}
	if diff := cmp.Diff(want, rec.steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if got := read(t, path); got != "new" {
		t.Errorf("content %q", got)
	}
	if n := temps(t, dir); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

// Every step is made to fail, once alone and once as a crash, with and without an
// old file: the content is the old or the new one, the error is reported, and
// unless the process died nothing is left over.
func TestWriteFileFaults(t *testing.T) {
	steps := []string{"create", "write", "sync", "close", "rename", "syncdir"}
	oldContent, newContent := strings.Repeat("old", 100), strings.Repeat("new", 200)
	for _, exists := range []bool{false, true} {
		for i, step := range steps {
			for _, crash := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/exists=%t/crash=%t", step, exists, crash), func(t *testing.T) {
					dir := t.TempDir()
					path := filepath.Join(dir, "state")
					want := "(missing)"
					if exists {
						if err := durable.WriteFile(path, []byte(oldContent), 0o600); err != nil {
							t.Fatal(err)
						}
						want = oldContent
					}
					if step == "syncdir" { // the rename has happened
						want = newContent
					}
					rec := recorder{fail: i, crash: crash, err: errInjected}
					err := durable.FS{Before: rec.before}.WriteFile(path, []byte(newContent), 0o600)
					if !errors.Is(err, errInjected) {
						t.Errorf("error = %v, want the injected one", err)
					}
					if !strings.HasPrefix(rec.steps[i], step) {
						t.Fatalf("step %d was %q, the table says %q", i, rec.steps[i], step)
					}
					if got := read(t, path); got != want {
						t.Errorf("content %.20q..., want %.20q...", got, want)
					}
					left := temps(t, dir)
					wantLeft := 0
					if crash && !slices.Contains([]string{"create", "syncdir"}, step) {
						wantLeft = 1
					}
					if left != wantLeft {
						t.Errorf("%d temporary files left, want %d", left, wantLeft)
					}
					if err := durable.Sweep(dir); err != nil {
						t.Error(err)
					}
					if n := temps(t, dir); n != 0 {
						t.Errorf("%d temporary files left after Sweep", n)
					}
					if got := read(t, path); got != want {
						t.Errorf("content after Sweep %.20q..., want %.20q...", got, want)
					}
					if err := durable.WriteFile(path, []byte(newContent), 0o600); err != nil {
						t.Errorf("repeat: %v", err)
					}
					if got := read(t, path); got != newContent {
						t.Errorf("content after the repeat %.20q...", got)
					}
				})
			}
		}
	}
}

// A file system without fsync of directories is tolerated; any other failure of
// it, and any failure to fsync the file, is not.
func TestSyncTolerance(t *testing.T) {
	tests := []struct {
		name string
		step int
		err  error
		want bool // success
	}{
		{"dir ENOTSUP", 5, syscall.ENOTSUP, true},
		{"dir EINVAL", 5, syscall.EINVAL, true},
		{"dir EIO", 5, syscall.EIO, false},
		{"file ENOTSUP", 2, syscall.ENOTSUP, false},
		{"file EIO", 2, syscall.EIO, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := recorder{fail: tt.step, err: tt.err}
			err := durable.FS{Before: rec.before}.WriteFile(filepath.Join(t.TempDir(), "f"), []byte("x"), 0o600)
			if (err == nil) != tt.want {
				t.Errorf("error = %v, want success = %t", err, tt.want)
			}
			if !tt.want && !errors.Is(err, tt.err) {
				t.Errorf("error = %v does not wrap %v", err, tt.err)
			}
		})
	}
}

func TestPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("open"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600: the permissions of a replaced file must not survive", info.Mode().Perm())
	}
}

func TestLongestName(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("n", 255))
	if err := durable.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
}

func TestCreateStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	f, err := durable.Create(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("0123456789"), 1000)
	for chunk := range slices.Chunk(want, 777) {
		if _, err := f.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != "(missing)" {
			t.Fatal("visible before Commit")
		}
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != string(want) {
		t.Error("content differs")
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit: %v", err)
	}
	if got := read(t, path); got != string(want) {
		t.Error("Close after Commit took the content away")
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: %v", err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Commit: %v", err)
	}
}

func TestCreateDiscard(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "blob")
	if err := durable.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := durable.Create(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if got := read(t, path); got != "old" {
		t.Errorf("content %q", got)
	}
	if n := temps(t, dir); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

// A caller that ignores the error of Write must not commit a torn file.
func TestNoCommitAfterFailedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	rec := recorder{fail: 1, err: syscall.ENOSPC}
	f, err := durable.FS{Before: rec.before}.Create(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write([]byte("0123456789"))
	_, _ = f.Write([]byte("abc"))
	if err := f.Commit(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit = %v, want ENOSPC", err)
	}
	if got := read(t, path); got != "(missing)" {
		t.Errorf("a torn file was committed: %q", got)
	}
}

func TestMkdirAll(t *testing.T) {
	root := t.TempDir()
	var rec recorder
	dfs := durable.FS{Before: rec.before}
	path := filepath.Join(root, "a", "b", "c")
	if err := dfs.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	base := filepath.Base(root)
	want := []string{ // the first, because an earlier call may have died between the two
		"syncdir " + filepath.Base(filepath.Dir(root)),
		"mkdir a", "syncdir " + base, "mkdir b", "syncdir a", "mkdir c", "syncdir b",
	}
	if diff := cmp.Diff(want, rec.steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if err := durable.MkdirAll(path, 0o700); err != nil {
		t.Errorf("existing directory: %v", err)
	}
	file := filepath.Join(root, "file")
	if err := durable.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.MkdirAll(file, 0o700); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("over a file: %v", err)
	}
	for i := range want {
		rec := recorder{fail: i, err: errInjected}
		path := filepath.Join(root, fmt.Sprint("fault", i), "b", "c")
		if err := (durable.FS{Before: rec.before}).MkdirAll(path, 0o700); !errors.Is(err, errInjected) {
			t.Errorf("fault in step %d: error = %v", i, err)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := durable.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	rec := recorder{fail: 1, err: errInjected}
	if err := (durable.FS{Before: rec.before}).Remove(path); !errors.Is(err, errInjected) {
		t.Errorf("failed fsync: error = %v", err)
	}
	rec = recorder{}
	if err := (durable.FS{Before: rec.before}).Remove(path); err != nil {
		t.Errorf("repeat: %v", err)
	}
	want := []string{"remove state", "syncdir " + filepath.Base(dir)}
	if diff := cmp.Diff(want, rec.steps); diff != "" {
		t.Errorf("the repeat must sync the directory (-want +got):\n%s", diff)
	}
	if got := read(t, path); got != "(missing)" {
		t.Errorf("still there: %q", got)
	}
}

// Writers of one path race: the result is one of the contents, whole.
func TestConcurrentWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	const writers = 8
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			done <- durable.WriteFile(path, bytes.Repeat([]byte{byte('a' + w)}, 4096), 0o600)
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	got := read(t, path)
	if len(got) != 4096 || strings.Count(got, got[:1]) != 4096 {
		t.Errorf("a mix: %d bytes, %d of them %q", len(got), strings.Count(got, got[:1]), got[:1])
	}
	if n := temps(t, dir); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}
