package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Output of an attempt is written to its file by the processes of the attempt, not by
// the agent: it goes on without one. A limit is therefore not kept by taking bytes away
// before they are written but after it. The file grows as it would, and what it holds
// beyond the limit is turned into a hole, which takes no room. So its size tells at any
// time, and after any restart, how much was written in all.
const (
	// holeStep is how much more than the limit may be there before a hole is made.
	holeStep = 256 << 10
	// holePause is the least time between two looks at what is written all the time.
	holePause = 2 * time.Millisecond
	// blockSize is not less than what any file system allocates at a time. A hole that
	// is continued begins anew at such a border, or a part of each would remain.
	blockSize = 1 << 20
)

// limiter makes holes in the output of running attempts that have a limit. The kernel
// tells it of writes: as long as nothing is written, nothing is done.
type limiter struct {
	log    *slog.Logger
	events *os.File // of inotify; nil if there is none

	mu    sync.Mutex // guards the following, but not the files while they are worked on
	files map[int32]*limited
}

func newLimiter(log *slog.Logger) *limiter {
	l := &limiter{log: log, files: map[int32]*limited{}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		log.Warn("output beyond the limit of an attempt takes room until the attempt ends: the kernel tells of no writes", "err", err)
		return l
	}
	l.events = os.NewFile(uintptr(fd), "inotify")
	return l
}

// run makes holes until ctx ends.
func (l *limiter) run(ctx context.Context) {
	if l.events == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { l.events.Close() })
	defer stop()
	defer l.events.Close()
	pause := time.NewTimer(0)
	defer pause.Stop()
	buf := make([]byte, 4<<10)
	for {
		n, err := l.events.Read(buf)
		if err != nil {
			if ctx.Err() == nil {
				l.log.Error("no more news of writes: output beyond the limit of an attempt takes room until the attempt ends", "err", err)
			}
			return
		}
		for _, f := range l.written(buf[:n]) {
			f.trim(l.log)
		}
		// One who writes many small lines is not to be followed line by line.
		pause.Reset(holePause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// written returns the files that events tell of.
func (l *limiter) written(events []byte) []*limited {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[*limited]bool{}
	for len(events) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for _, f := range l.files {
				seen[f] = true
			}
		}
		if f := l.files[wd]; f != nil {
			seen[f] = true
		}
		events = events[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(events[12:]):]
	}
	files := make([]*limited, 0, len(seen))
	for f := range seen {
		files = append(files, f)
	}
	return files
}

// limited is the output of a running attempt that has a limit.
type limited struct {
	limit   int64
	dropped func(int64) // is told how many bytes are thrown away so far

	mu    sync.Mutex
	file  *os.File
	holed int64 // the hole reaches up to here
}

// watch keeps the output of an attempt near its limit until the returned function is
// called.
func (l *limiter) watch(d attemptDir, limit int64, dropped func(int64)) (stop func(), err error) {
	file, err := d.openOutput()
	if err != nil {
		return nil, err
	}
	f := &limited{limit: limit, dropped: dropped, file: file}
	wd := -1
	if l.events != nil {
		// Of this very file, whatever has its name now.
		err = l.control(func(fd int) (err error) {
			wd, err = unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.IN_MODIFY)
			return err
		})
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("watch output: %w", err)
		}
		l.mu.Lock()
		l.files[int32(wd)] = f
		l.mu.Unlock()
	}
	f.trim(l.log) // what was written before
	return func() {
		if wd >= 0 {
			l.mu.Lock()
			delete(l.files, int32(wd))
			l.mu.Unlock()
			_ = l.control(func(fd int) error { _, err := unix.InotifyRmWatch(fd, uint32(wd)); return err })
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.file.Close()
		f.file = nil
	}, nil
}

func (l *limiter) control(do func(fd int) error) error {
	raw, err := l.events.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	return errors.Join(raw.Control(func(fd uintptr) { doErr = do(int(fd)) }), doErr)
}

// trim makes a hole of what is beyond the limit, if that is worth it.
func (f *limited) trim(log *slog.Logger) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return
	}
	info, err := f.file.Stat()
	if err != nil || info.Size() <= f.limit {
		return
	}
	f.dropped(info.Size() - f.limit)
	from := max(f.limit, f.holed&^(blockSize-1))
	if info.Size()-max(f.limit, f.holed) < holeStep {
		return
	}
	err = f.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, info.Size()-from)
	})
	if err != nil {
		log.Warn("output beyond the limit of an attempt takes room until the attempt ends: no hole can be made", "file", f.file.Name(), "err", err)
		f.holed = 1 << 62 // that will not change
		return
	}
	f.holed = info.Size()
}

func (f *limited) control(do func(fd int) error) error {
	raw, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if doErr = do(int(fd)); !errors.Is(doErr, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, doErr)
}

// openOutput opens the output for changes by the agent. The step may have put anything
// in its place.
func (d attemptDir) openOutput() (*os.File, error) {
	f, err := os.OpenFile(d.file(fileOutput), os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, errors.New("the output was replaced by something that is no file"))
	}
	return f, nil
}

// dropped returns how many bytes beyond the limit were written.
func (d attemptDir) dropped(limit int64) int64 {
	info, err := os.Lstat(d.file(fileOutput))
	if limit <= 0 || err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return max(0, info.Size()-limit)
}

// droppedLine stands at the end of output of which some was thrown away.
func droppedLine(limit, dropped int64) string {
	if dropped <= 0 {
		return ""
	}
	return fmt.Sprintf("\n[uac: the output limit of %d bytes was reached, %d more bytes were thrown away]\n", limit, dropped)
}

// seal makes the file what readers see of it: the output up to the limit, and the line
// that says how much is missing. It is called when the number is durable, and may be
// called again.
func (d attemptDir) seal(limit, dropped int64) error {
	f, err := d.openOutput()
	if err != nil {
		return err
	}
	err = f.Truncate(limit)
	if err == nil {
		_, err = f.WriteAt([]byte(droppedLine(limit, dropped)), limit)
	}
	return errors.Join(err, f.Close())
}

// outputView says what of the file is an attempt's output. Nobody writes to it after the
// end but what the step left behind, and that is no part of it.
type outputView struct {
	limit int64  // 0: none
	line  string // follows the limit
}

// end returns where the output ends in a file of that size.
func (v outputView) end(size int64) int64 {
	if v.limit > 0 {
		return min(size, v.limit)
	}
	return size
}

// beyond returns what of the line there is from an offset on, if that is beyond the
// limit.
func (v outputView) beyond(offset int64) (line string, beyond bool) {
	if v.limit == 0 || offset < v.limit {
		return "", false
	}
	return v.line[min(offset-v.limit, int64(len(v.line))):], true
}

// limitOutput keeps the output of a running attempt near its limit until the returned
// function is called.
func (a *Agent) limitOutput(r *run, limit int64) (stop func()) {
	if limit <= 0 {
		return func() {}
	}
	a.mu.Lock()
	r.limit = limit
	a.mu.Unlock()
	stop, err := a.limiter.watch(r.dir, limit, func(n int64) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if at := a.ledger.attempt(r.key); at != nil && !at.Phase.ended() {
			if at.Dropped == 0 {
				a.notify(r.key)
			}
			at.Dropped = n
		}
	})
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("the limit of an attempt's output is not kept", "attempt", r.key.String(), "err", err)
		}
		return func() {}
	}
	return stop
}
