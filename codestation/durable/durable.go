package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Op names one step of a durable operation, for the hook of [FS].
type Op string

// The steps, in the order in which a write performs them. The path given to
// [FS.Before] is the final path of the file for all of OpCreate to OpDiscard (the
// temporary name is random), and the directory for OpMkdir and OpSyncDir.
const (
	OpCreate  Op = "create"  // open the temporary file
	OpWrite   Op = "write"   // one Write to the temporary file
	OpSync    Op = "sync"    // fsync the temporary file
	OpClose   Op = "close"   // close the temporary file
	OpRename  Op = "rename"  // rename it over the final path
	OpDiscard Op = "discard" // remove the temporary file after a failure
	OpRemove  Op = "remove"  // remove a file
	OpMkdir   Op = "mkdir"   // create one directory
	OpSyncDir Op = "syncdir" // fsync one directory
)

// FS performs durable operations on the file system of the operating system.
// The zero value is ready for use; components that want fault tests hold one as
// a field. It is a value, safe for concurrent use if Before is.
type FS struct {
	// Before, if set, is called before every step. An error it returns is the
	// outcome of the step, which then is not performed; a failing OpWrite
	// however first writes half of its data, as a full disk does. A hook that
	// fails every step from some point on therefore leaves behind what a crash
	// at that point leaves behind.
	Before func(op Op, path string) error
}

// WriteFile replaces the content of the file at path by data, creating it with
// permissions perm (less the umask) if need be. The directory must exist. If path
// is a symbolic link, the link is replaced, not its target. Of several concurrent
// calls for one path the last rename wins, whole.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return FS{}.WriteFile(path, data, perm)
}

// Create starts the replacement of the file at path by a stream; see [File].
func Create(path string, perm fs.FileMode) (*File, error) { return FS{}.Create(path, perm) }

// Remove deletes the file or empty directory at path and makes that durable. A
// missing file is not an error: the directory is synced all the same, so that a
// repeated call finishes what an interrupted one began.
func Remove(path string) error { return FS{}.Remove(path) }

// MkdirAll creates the directory path with all missing parents, each with
// permissions perm (less the umask), and makes every one of them durable.
func MkdirAll(path string, perm fs.FileMode) error { return FS{}.MkdirAll(path, perm) }

// SyncDir makes creations, renames and removals in the directory durable. File
// systems that cannot do this are taken to need no such call.
func SyncDir(dir string) error { return FS{}.SyncDir(dir) }

// WriteFile is the function [WriteFile] on f.
func (f FS) WriteFile(path string, data []byte, perm fs.FileMode) error {
	file, err := f.Create(path, perm)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.Commit()
}

// Create is the function [Create] on f.
func (f FS) Create(path string, perm fs.FileMode) (*File, error) {
	if err := f.before(OpCreate, path); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	for {
		// The name does not contain the final one, so that a final name of the
		// greatest allowed length still works.
		tmp := filepath.Join(dir, fmt.Sprintf("%s%016x%s", tempPrefix, rand.Uint64(), tempSuffix))
		file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
		return &File{fs: f, file: file, tmp: tmp, path: path}, nil
	}
}

// Remove is the function [Remove] on f.
func (f FS) Remove(path string) error {
	if err := f.before(OpRemove, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.SyncDir(filepath.Dir(path))
}

// MkdirAll is the function [MkdirAll] on f.
func (f FS) MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		// Perhaps an earlier call made it and died before the fsync. A parent that
		// we may not open is one in which no earlier call of ours got that far.
		if err := f.SyncDir(filepath.Dir(path)); !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := f.MkdirAll(parent, perm); err != nil {
		return err
	}
	if err := f.before(OpMkdir, path); err != nil {
		return err
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.SyncDir(parent)
}

// SyncDir is the function [SyncDir] on f.
func (f FS) SyncDir(dir string) error {
	err := f.syncDir(dir)
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

func (f FS) syncDir(dir string) error {
	if err := f.before(OpSyncDir, dir); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f FS) before(op Op, path string) error {
	if f.Before == nil {
		return nil
	}
	if err := f.Before(op, path); err != nil {
		return &fs.PathError{Op: string(op), Path: path, Err: err}
	}
	return nil
}

// File is a replacement in progress, made by [Create]: nothing is visible at the
// final path until Commit. The owner calls Close in any case, usually deferred; a
// Close without a Commit before it discards what was written. A File is not safe
// for concurrent use.
type File struct {
	fs   FS
	file *os.File // nil once committed or discarded
	tmp  string
	path string
	bad  error // first failed Write: such a file is never committed
}

var _ io.WriteCloser = (*File)(nil)

// Write appends to the new content. After an error the file can only be closed.
func (f *File) Write(p []byte) (int, error) {
	if f.file == nil {
		return 0, fmt.Errorf("write %s: %w", f.path, fs.ErrClosed)
	}
	if err := f.fs.before(OpWrite, f.path); err != nil {
		n, _ := f.file.Write(p[:len(p)/2])
		f.bad = err
		return n, err
	}
	n, err := f.file.Write(p)
	if err != nil {
		f.bad = err
	}
	return n, err
}

// Commit puts the new content in place, durably. If it fails before the rename,
// the old content stays and the new is discarded; if only the last step fails, the
// fsync of the directory, the new content is visible but may not survive a power
// cut. Either way the File is finished.
func (f *File) Commit() error {
	if f.file == nil {
		return fmt.Errorf("commit %s: %w", f.path, fs.ErrClosed)
	}
	if err := f.flush(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.fs.before(OpRename, f.path); err != nil {
		return errors.Join(err, f.discard())
	}
	if err := os.Rename(f.tmp, f.path); err != nil {
		return errors.Join(err, f.discard())
	}
	return f.fs.SyncDir(filepath.Dir(f.path))
}

// flush syncs and closes the temporary file; on success f.file is nil.
func (f *File) flush() error {
	if f.bad != nil {
		return f.bad
	}
	if err := f.fs.before(OpSync, f.path); err != nil {
		return err
	}
	if err := f.file.Sync(); err != nil {
		return err
	}
	if err := f.fs.before(OpClose, f.path); err != nil {
		return err
	}
	file := f.file
	f.file = nil
	if err := file.Close(); err != nil {
		return errors.Join(err, f.discard())
	}
	return nil
}

// Close discards the new content unless it was committed. It may be called more
// than once.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	file := f.file
	f.file = nil
	return errors.Join(file.Close(), f.discard())
}

func (f *File) discard() error {
	if err := f.fs.before(OpDiscard, f.path); err != nil {
		return err
	}
	return os.Remove(f.tmp)
}

const (
	tempPrefix = ".durable-"
	tempSuffix = ".tmp"
)

// IsTemp reports whether the base name is that of a temporary file of this
// package: something in progress or left over by a crash.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Sweep removes the temporary files that crashed writers left in dir, not in its
// sub-directories. Only the owner of a directory may call it, while nobody writes.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if IsTemp(e.Name()) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
