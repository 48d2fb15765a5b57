package mount

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ChildVerb is the first argument of a process that is to call [Serve], with the
// directory of the mount behind it.
const ChildVerb = "mount-child"

// keepTemps is how long a file in the making is left alone, by the clock of the
// file server.
const keepTemps = 24 * time.Hour

// errInvalid is what is wrong with a call, not with the mount.
var errInvalid = errors.New("invalid call")

// Serve is the whole life of a child: it performs calls on the mount at dir until
// in ends. Calls run beside each other, as many as the parent sends.
func Serve(dir string, in io.Reader, out io.Writer) error {
	s := &server{dir: dir, out: out}
	defer s.calls.Wait()
	r := bufio.NewReaderSize(in, 64<<10)
	for {
		var c call
		body, err := readFrame(r, &c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.calls.Go(func() { s.serve(c, body) })
	}
}

type server struct {
	dir   string
	calls sync.WaitGroup
	swept sync.Once

	mu  sync.Mutex // guards out
	out io.Writer
}

func (s *server) serve(c call, body []byte) {
	a, body, err := s.do(c, body)
	a.ID = c.ID
	if err != nil {
		a.Fault, body = faultOf(err), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = writeFrame(s.out, a, body) // who does not listen any more has closed in as well
}

func (s *server) do(c call, body []byte) (answer, []byte, error) {
	root, sentinel, err := open(s.dir, c.Cluster)
	if err != nil {
		return answer{}, nil, err
	}
	defer root.Close()
	switch c.Op {
	case opProbe:
		f, err := s.probe(root)
		f.ID, f.Cluster = sentinel.ID, sentinel.Cluster
		return answer{Found: &f}, nil, err
	case opWrite:
		return answer{}, nil, writeTemp(root, c.Temp, c.At, body)
	case opCommit:
		return answer{}, nil, commit(root, c.Temp, c.Name)
	case opDrop:
		return answer{}, nil, root.Remove(path.Join(tempDir, c.Temp))
	case opAppend:
		return answer{}, nil, appendTo(root, c, body)
	case opRead:
		b, eof, err := read(root, c)
		return answer{EOF: eof}, b, err
	case opList:
		entries, more, err := list(root, c)
		return answer{List: entries, More: more}, nil, err
	case opRemove:
		return answer{}, nil, remove(root, c.Name)
	}
	return answer{}, nil, fmt.Errorf("%w: operation %q", errInvalid, c.Op)
}

func newTemp() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// writeTemp writes bytes of the file in the making called tmp. It is durable when
// commit has synced it.
func writeTemp(root *os.Root, tmp string, at int64, data []byte) error {
	flags := os.O_WRONLY
	if at == 0 {
		flags |= os.O_CREATE
	}
	name := path.Join(tempDir, tmp)
	f, err := root.OpenFile(name, flags, filePerm)
	if at == 0 && errors.Is(err, fs.ErrNotExist) {
		if err := mkdirs(root, tempDir); err != nil {
			return err
		}
		f, err = root.OpenFile(name, flags, filePerm)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return lostTemp(err)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, at)
	return errors.Join(err, f.Close())
}

// lostTemp is the error for a file in the making that is gone: the mount was
// exchanged, or this is a repetition. The file that was asked for is not to blame.
func lostTemp(err error) error { return errSentinel{Failed, err.Error()} }

// commit gives a file in the making its name, whole and durably. Whatever comes of
// it, the file in the making is gone afterwards.
func commit(root *os.Root, tmp, name string) error {
	tmp = path.Join(tempDir, tmp)
	f, err := root.OpenFile(tmp, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return lostTemp(err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Remove(tmp) }() // what stays is swept later
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	err = link(root, tmp, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mkdirs(root, path.Dir(name)); err != nil {
			return err
		}
		err = link(root, tmp, name)
	}
	if err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

// link names a file and never replaces another. Where there are no hard links, two
// that make the same name in the same instant replace each other; no two nodes make
// the same name.
func link(root *os.Root, from, to string) error {
	err := root.Link(from, to)
	for _, e := range []error{syscall.EPERM, syscall.ENOTSUP, syscall.ENOSYS, syscall.EMLINK, syscall.EXDEV} {
		if errors.Is(err, e) {
			if _, err := root.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(err, syscall.EEXIST)
			}
			return root.Rename(from, to)
		}
	}
	return err
}

// appendTo writes bytes at the end of a file. After an error it tries to leave the
// file as it was, so that the same call can be made again.
func appendTo(root *os.Root, c call, data []byte) (err error) {
	flags := os.O_RDWR
	if c.At == 0 {
		flags |= os.O_CREATE
	}
	f, err := root.OpenFile(c.Name, flags, filePerm)
	if errors.Is(err, fs.ErrNotExist) {
		if c.At > 0 {
			return errSize(0)
		}
		if err := mkdirs(root, path.Dir(c.Name)); err != nil {
			return err
		}
		f, err = root.OpenFile(c.Name, flags, filePerm)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != c.At {
		return errSize(info.Size())
	}
	// Not O_APPEND: a write that a killed child finishes late must land where its
	// repetition has put the same bytes.
	if _, err = f.WriteAt(data, c.At); err == nil && c.Sync {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Truncate(c.At)
		return err
	}
	if c.At == 0 {
		return syncDir(root, path.Dir(c.Name))
	}
	return nil
}

func read(root *os.Root, c call) (b []byte, eof bool, err error) {
	if c.N < 0 || c.N > chunk || c.At < 0 {
		return nil, false, fmt.Errorf("%w: read %d bytes at %d", errInvalid, c.N, c.At)
	}
	f, err := root.Open(c.Name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	b = make([]byte, c.N)
	n, err := f.ReadAt(b, c.At)
	if errors.Is(err, io.EOF) {
		return b[:n], true, nil
	}
	return b[:n], false, err
}

// maxEntries and maxNames bound a page of a list.
const (
	maxEntries = 4096
	maxNames   = 256 << 10
)

func list(root *os.Root, c call) (page []Entry, more bool, err error) {
	d, err := root.Open(c.Name)
	if err != nil {
		return nil, false, err
	}
	defer d.Close()
	all, err := d.ReadDir(-1)
	if err != nil {
		return nil, false, err
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	length := 0
	for _, e := range all {
		if e.Name() <= c.After || c.Name == "." && strings.HasPrefix(e.Name(), ownPrefix) {
			continue
		}
		if length += len(e.Name()); len(page) == maxEntries || length > maxNames {
			return page, true, nil
		}
		// Not e.Info: it would go by the path, past the sentinel.
		info, err := root.Lstat(path.Join(c.Name, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, false, err
		}
		entry := Entry{Name: e.Name(), Dir: info.IsDir()}
		if !entry.Dir {
			entry.Size = info.Size()
		}
		page = append(page, entry)
	}
	return page, false, nil
}

func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

// mkdirs makes a directory with its parents, each durably. Those that exist are
// synced too: who made them may have died before it came to that.
func mkdirs(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	if err := mkdirs(root, path.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(root, path.Dir(dir))
}

// syncDir makes what happened in a directory durable. File systems that cannot do
// it order their metadata.
func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(d.Sync(), d.Close())
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// probe writes, because a file system that hangs may well answer what is asked of
// its cache.
func (s *server) probe(root *os.Root) (finding, error) {
	room, err := measure(root)
	if err != nil {
		return room, err
	}
	tmp := newTemp()
	name := path.Join(tempDir, tmp)
	defer func() { _ = root.Remove(name) }()
	if err := writeTemp(root, tmp, 0, []byte(tmp)); err != nil {
		return room, err
	}
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return room, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return room, err
	}
	info, err := f.Stat()
	if err != nil {
		return room, err
	}
	s.swept.Do(func() { sweep(root, info.ModTime()) })
	return room, nil
}

// sweep removes what died in the making. Both times are the file server's.
func sweep(root *os.Root, now time.Time) {
	d, err := root.Open(tempDir)
	if err != nil {
		return
	}
	defer d.Close()
	entries, _ := d.ReadDir(-1)
	for _, e := range entries {
		name := path.Join(tempDir, e.Name())
		if info, err := root.Lstat(name); err == nil && now.Sub(info.ModTime()) > keepTemps {
			_ = root.Remove(name)
		}
	}
}

// measure returns how much room the mount has.
func measure(root *os.Root) (finding, error) {
	d, err := root.Open(".")
	if err != nil {
		return finding{}, err
	}
	defer d.Close()
	var room unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &room); err != nil {
		return finding{}, err
	}
	size := uint64(room.Bsize) //nolint:gosec // never negative
	return finding{Free: room.Bavail * size, Total: room.Blocks * size}, nil
}
