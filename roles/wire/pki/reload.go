package pki

import (
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
)

// cached is a value read from files and read again when one of them changes. A new
// content that cannot be used is logged once, and the last good value stays: a
// botched renewal must not cut a running node off. Safe for concurrent use.
type cached[T any] struct {
	files []string
	read  func() (T, error)
	log   *slog.Logger

	mu    sync.Mutex
	seen  []fs.FileInfo // of files, at the last read
	good  bool          // value was read without error at least once
	value T
}

func (c *cached[T]) get() (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Look before reading: a change in between is then noticed the next time.
	infos, err := stat(c.files)
	if c.good && err == nil && slices.EqualFunc(infos, c.seen, unchanged) {
		return c.value, nil
	}
	changed := !slices.EqualFunc(infos, c.seen, unchanged)
	c.seen = infos
	var value T
	if err == nil {
		value, err = c.read()
	}
	if err != nil {
		if !c.good {
			return value, err
		}
		if changed {
			c.log.Warn("certificate files cannot be used, the previous content stays in use", "files", c.files, "err", err)
		}
		return c.value, nil
	}
	if c.good {
		c.log.Info("certificate files read again", "files", c.files)
	}
	c.value, c.good = value, true
	return value, nil
}

func stat(files []string) ([]fs.FileInfo, error) {
	var infos []fs.FileInfo
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func unchanged(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
