package agent

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// outputs keeps the directories of attempts that are over for as long as the settings
// say, for the sake of their output.
type outputs struct {
	root   string
	cfg    Config
	wanted func() map[string]bool // directories whose output somebody comes for: they stay
	log    *slog.Logger

	mu   sync.Mutex
	kept []keptOutput // oldest first
	size int64
}

type keptOutput struct {
	name  string
	since time.Time
	size  int64
}

func newOutputs(root string, cfg Config, wanted func() map[string]bool, log *slog.Logger) *outputs {
	return &outputs{root: root, cfg: cfg, wanted: wanted, log: log}
}

// load takes over what earlier processes have kept. Directories that still matter are
// left alone; of the others those whose command never ran are removed.
func (o *outputs) load(matter map[string]bool) error {
	entries, err := os.ReadDir(o.root)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		d := attemptDir(filepath.Join(o.root, e.Name()))
		info, err := os.Stat(d.file(fileStatus))
		switch {
		case matter[e.Name()]:
		case err != nil:
			o.remove(e.Name())
		default:
			o.add(keptOutput{name: e.Name(), since: info.ModTime(), size: outputSize(d)})
		}
	}
	slices.SortFunc(o.kept, func(a, b keptOutput) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.name, b.name))
	})
	return nil
}

// outputSize is what an output takes of the disk, as far as it grows with what was
// written: parts may have been freed, and what is beyond a limit is.
func outputSize(d attemptDir) int64 { return d.waiting(0, 0) }

// keep says that an attempt is acknowledged. Its working directory goes at once.
func (o *outputs) keep(k key, now time.Time) {
	d := attemptDir(filepath.Join(o.root, k.dir()))
	if _, err := os.Lstat(d.file(fileStatus)); err != nil {
		o.remove(k.dir()) // it never ran
		return
	}
	// Most are empty.
	err := syscall.Rmdir(d.file(dirWork))
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		err = os.RemoveAll(d.file(dirWork))
	}
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		o.log.Warn("cannot remove a working directory", "err", err)
	}
	_ = os.Remove(d.file(fileStdin)) // an agent that died may have left it
	_ = os.Remove(d.file(fileEnv))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(keptOutput{name: k.dir(), since: now, size: outputSize(d)})
	o.evict(now)
}

func (o *outputs) expire(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.evict(now)
}

func (o *outputs) add(k keptOutput) {
	o.kept = append(o.kept, k)
	o.size += k.size
}

func (o *outputs) evict(now time.Time) {
	fits := func(k keptOutput, n int) bool {
		return n <= o.cfg.OutputMaxAttempts && o.size <= o.cfg.OutputMaxBytes && now.Sub(k.since) <= o.cfg.OutputKeep
	}
	if len(o.kept) == 0 || fits(o.kept[0], len(o.kept)) {
		return
	}
	wanted, left := o.wanted(), len(o.kept)
	o.kept = slices.DeleteFunc(o.kept, func(k keptOutput) bool {
		if wanted[k.name] || fits(k, left) {
			return false
		}
		o.remove(k.name)
		o.size -= k.size
		left--
		return true
	})
}

func (o *outputs) remove(name string) {
	if err := os.RemoveAll(filepath.Join(o.root, name)); err != nil {
		o.log.Warn("cannot remove the directory of an attempt", "err", err)
	}
}
