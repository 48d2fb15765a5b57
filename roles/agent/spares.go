package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"uac/codestation/durable"
)

// maxSpares is how many starts at a time are spared the making of a directory.
const maxSpares = 8

// spares are directories for attempts, made before they are needed. To make one takes
// several changes of the file system, each of which may have to wait for a sync that is
// under way, as there always is one at a start; to give one its name takes a single
// change. Safe for concurrent use.
type spares struct {
	root string
	made atomic.Int64
	free chan string
}

// newSpares keeps directories below root. What an earlier process left there is
// thrown away.
func newSpares(root string) (*spares, error) {
	if err := durable.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	left, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return nil, err
		}
	}
	return &spares{root: root, free: make(chan string, maxSpares)}, nil
}

// fill makes what was taken.
func (s *spares) fill() error {
	for len(s.free) < maxSpares {
		dir, err := s.make()
		if err != nil {
			return err
		}
		select {
		case s.free <- dir:
		default: // somebody else was faster
			return os.RemoveAll(dir)
		}
	}
	return nil
}

// take returns a directory that belongs to the caller.
func (s *spares) take() (string, error) {
	select {
	case dir := <-s.free:
		return dir, nil
	default:
		return s.make()
	}
}

func (s *spares) make() (string, error) {
	d := attemptDir(filepath.Join(s.root, strconv.FormatInt(s.made.Add(1), 10)))
	if err := os.Mkdir(string(d), 0o700); err != nil {
		return "", err
	}
	if err := os.Mkdir(d.file(dirWork), 0o700); err != nil {
		return "", err
	}
	if err := unix.Mkfifo(d.file(fileAlive), 0o600); err != nil {
		return "", fmt.Errorf("make pipe: %w", err)
	}
	return string(d), nil
}
