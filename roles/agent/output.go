package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"uac/roles/wire"
)

const (
	// maxReads bounds the reads of output that one link has at a time. One that
	// waits costs a goroutine and a descriptor.
	maxReads = 1024
	// maxWindow bounds how many chunks a reader may let be on their way.
	maxWindow = 1024
	// chunkSize is how much output goes into one message.
	chunkSize = 64 << 10
	// lookSoon and lookLate bound the time between two looks at output that is
	// followed: soon after there was some, later and later while there is none. It is
	// shown at most lookLate after it was written, for seven looks a second.
	lookSoon, lookLate = 10 * time.Millisecond, 150 * time.Millisecond
)

// noOutput reports whether an attempt that has exited since the machine was booted has
// written nothing, and nobody is left who could. This stays so, and is found out again
// whenever it is to be told.
func (d attemptDir) noOutput() bool {
	f, err := os.OpenFile(d.file(fileOutput), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	empty := func() bool {
		info, err := f.Stat()
		return err == nil && info.Mode().IsRegular() && info.Size() == 0
	}
	// After the look at the writers, or something could come in between. Before it, too:
	// what has something in it may be about to be sealed.
	return empty() && unwritable(f) && empty()
}

// unwritable reports whether nobody has a file open for writing: only then the kernel
// gives a lease for reading it. Where there are no leases nobody knows. The pipe would
// not tell: many programs (sudo, Python) close what their children need not have, but
// leave them the output.
func unwritable(f *os.File) bool {
	lease := func(kind int) error {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, kind)
		return err
	}
	return lease(unix.F_RDLCK) == nil && lease(unix.F_UNLCK) == nil
}

// read is one reading of output that is under way.
type read struct {
	cancel context.CancelFunc
	// window has an element for each chunk that was sent and not taken yet; nil: the
	// reader takes all there is.
	window chan struct{}
}

// room waits until one more chunk may be sent.
func (r *read) room(ctx context.Context) bool {
	if r.window == nil {
		return ctx.Err() == nil
	}
	select {
	case r.window <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// taken says that the reader has taken n chunks.
func (r *read) taken(n uint32) {
	for range min(n, maxWindow) {
		select {
		case <-r.window:
		default:
			return
		}
	}
}

// readOutput starts to send output of an attempt. A chunk is read only when the
// reader has room for it, so that slow readers cost no memory and hold up nobody.
func (a *Agent) readOutput(ctx context.Context, l *link, q *wire.ReadOutput) {
	ctx, cancel := context.WithCancel(ctx)
	r := &read{cancel: cancel}
	if n := q.GetWindow(); n > 0 {
		r.window = make(chan struct{}, min(n, maxWindow))
	}
	l.mu.Lock()
	refuse := ""
	switch {
	case l.reads[q.GetId()] != nil:
		refuse = "a read with this id is under way"
	case len(l.reads) >= maxReads:
		refuse = "too many reads are under way"
	default:
		l.reads[q.GetId()] = r
	}
	l.mu.Unlock()
	if refuse != "" {
		cancel()
		l.answer(func() (*wire.AgentMessage, uint64) {
			return chunk(&wire.OutputChunk{Id: q.GetId(), Offset: q.GetOffset(), Eof: true, Error: refuse}), 0
		})
		return
	}
	l.readN.Go(func() {
		defer cancel()
		defer l.endRead(q.GetId(), r)
		send := func(c *wire.OutputChunk) bool {
			c.Id = q.GetId()
			select {
			case l.chunks <- chunk(c):
				return true
			case <-ctx.Done():
				return false
			}
		}
		end := a.copyOutput(ctx, q, r, send)
		if end == nil {
			return
		}
		l.endRead(q.GetId(), r) // who has seen the end may use the id again
		send(end)
	})
}

func chunk(c *wire.OutputChunk) *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Output{Output: c}}
}

func (l *link) cancelRead(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.reads[id]; r != nil {
		r.cancel()
		delete(l.reads, id)
	}
}

// taken says that the reader of a read has taken n chunks.
func (l *link) taken(id uint64, n uint32) {
	l.mu.Lock()
	r := l.reads[id]
	l.mu.Unlock()
	if r != nil {
		r.taken(n)
	}
}

// endRead takes r away, unless its id names another read already.
func (l *link) endRead(id uint64, r *read) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads[id] == r {
		delete(l.reads, id)
	}
}

// copyOutput sends what is asked for and returns the last chunk, nil if ctx ended.
func (a *Agent) copyOutput(ctx context.Context, q *wire.ReadOutput, r *read, send func(*wire.OutputChunk) bool) *wire.OutputChunk {
	k := key{q.GetRequest(), q.GetStep(), q.GetAttempt()}
	offset, left := q.GetOffset(), q.GetLimit()
	problem := func(text string) *wire.OutputChunk {
		return &wire.OutputChunk{Offset: offset, Eof: true, Error: text}
	}
	if offset < 0 || left < 0 {
		return problem("offset and limit must not be negative")
	}
	if p := k.problem(); p != "" {
		return problem(p)
	}
	if q.GetCollect() {
		a.collected(k, offset)
	}
	var out output
	defer out.close()
	room := false // for one chunk more
	for wait := lookSoon; ; wait = min(2*wait, lookLate) {
		// Before reading: what is written after the end is no part of the output.
		over, may, view := a.outputState(k)
		out.view = view
		switch err := out.open(a.dir(k).file(fileOutput)); {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return problem(err.Error())
		case !may:
			end := problem("this agent has no output of this attempt, or not any more")
			end.Gone = true
			return end
		}
		for {
			if room = room || r.room(ctx); !room {
				return nil
			}
			size := int64(chunkSize)
			if q.GetLimit() > 0 {
				size = min(size, left)
			}
			data, at, err := out.read(offset, size)
			if offset = max(offset, at); len(data) > 0 {
				if !send(&wire.OutputChunk{Offset: offset, Data: data}) {
					return nil
				}
				offset += int64(len(data))
				left -= int64(len(data))
				room, wait = false, lookSoon
			}
			if q.GetLimit() > 0 && left == 0 {
				return &wire.OutputChunk{Offset: offset, Eof: true}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return problem(err.Error())
			}
		}
		if over && q.GetCollect() {
			a.spool.ends(k, offset)
		}
		if over || !q.GetFollow() {
			return &wire.OutputChunk{Offset: offset, Eof: true, Complete: over}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// outputState reports whether an attempt will produce no more output, whether it may be
// without any (of one that has run there is a file, or there was), and what of the file
// is its output.
func (a *Agent) outputState(k key) (over, may bool, view outputView) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.ledger.attempt(k)
	if at == nil {
		return true, false, view
	}
	over = at.Phase.ended()
	view.limit = at.Limit
	if over {
		view.line = droppedLine(at.Limit, at.Dropped)
	}
	return over, !over || at.Phase == phaseNever, view
}

// output is the file that an attempt writes to. Parts of it may have been given back
// to the file system, by whatever process of the agent: they are gone, and never
// filled again.
type output struct {
	file *os.File
	view outputView
}

func (o *output) open(path string) (err error) {
	if o.file == nil {
		o.file, err = os.Open(path)
	}
	return err
}

func (o *output) close() {
	if o.file != nil {
		o.file.Close()
	}
}

// read returns what is there at offset, at most limit bytes, and where that begins:
// later than at offset if that is gone. io.EOF: there is nothing from there on.
func (o *output) read(offset, limit int64) (data []byte, at int64, err error) {
	if o.file == nil {
		return nil, offset, io.EOF
	}
	for {
		if line, beyond := o.view.beyond(offset); beyond {
			if line == "" {
				return nil, offset, io.EOF
			}
			return []byte(line[:min(limit, int64(len(line)))]), offset, nil
		}
		info, err := o.file.Stat()
		if err != nil {
			return nil, offset, err
		}
		end := o.view.end(info.Size())
		if end <= offset {
			return nil, offset, io.EOF
		}
		data = make([]byte, min(limit, end-offset))
		n, err := o.file.ReadAt(data, offset)
		if err != nil && n == 0 {
			return nil, offset, err
		}
		// After reading: what is there now was there then, because nothing comes back.
		hole, err := unix.Seek(int(o.file.Fd()), offset, unix.SEEK_HOLE)
		switch {
		case errors.Is(err, unix.EINVAL): // a file system without holes
			return data[:n], offset, nil
		case err != nil:
			return nil, offset, os.NewSyscallError("lseek", err)
		case hole > offset:
			return data[:min(int64(n), hole-offset)], offset, nil
		}
		next, err := unix.Seek(int(o.file.Fd()), offset, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // nothing was there up to the size that it had before
			offset = end
		case err != nil:
			return nil, offset, os.NewSyscallError("lseek", err)
		default:
			offset = min(next, end)
		}
	}
}

// freeUnit is what parts of an output begin and end at that are given back: a whole
// number of blocks of any file system, because what is freed of a block reads as
// zeros and does not show.
const freeUnit = 1 << 20

// free gives the space of the output before offset back, as far as the file system
// can.
func (d attemptDir) free(offset int64) error {
	if offset -= offset % freeUnit; offset == 0 {
		return nil
	}
	f, err := os.OpenFile(d.file(fileOutput), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, offset)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return os.NewSyscallError("fallocate", err)
}
