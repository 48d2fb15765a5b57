package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"

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
	free chan attemptDir

	filling sync.Mutex // guards the following
	made    int        // so far: their names
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
	return &spares{root: root, free: make(chan attemptDir, maxSpares)}, nil
}

// fill makes what was given away, unless somebody does already.
func (s *spares) fill() error {
	if !s.filling.TryLock() {
		return nil
	}
	defer s.filling.Unlock()
	for len(s.free) < maxSpares {
		s.made++
		d := attemptDir(filepath.Join(s.root, strconv.Itoa(s.made)))
		if err := d.make(); err != nil {
			return errors.Join(err, os.RemoveAll(string(d)))
		}
		s.free <- d
	}
	return nil
}

// give makes a spare directory that of an attempt, and reports whether it could: one is
// in stock, and none has that name.
func (s *spares) give(to attemptDir) bool {
	select {
	case d := <-s.free:
		if os.Rename(string(d), string(to)) == nil {
			return true
		}
		_ = os.RemoveAll(string(d)) // what is left is removed at the next start
	default:
	}
	return false
}
