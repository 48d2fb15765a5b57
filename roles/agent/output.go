package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"uac/roles/wire"
)

const (
	// maxReads bounds the reads of output that one link has at a time.
	maxReads = 16
	// chunkSize is how much output goes into one message.
	chunkSize = 64 << 10
	// followAgain is the time between two looks at output that is followed.
	followAgain = 100 * time.Millisecond
)

// readOutput starts to send output of an attempt. A chunk is read only when the one
// before has been taken, so that slow readers cost no memory.
func (a *Agent) readOutput(ctx context.Context, l *link, q *wire.ReadOutput) {
	ctx, cancel := context.WithCancel(ctx)
	r := &read{cancel}
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
		end := a.copyOutput(ctx, q, func(c *wire.OutputChunk) bool {
			select {
			case l.chunks <- chunk(c):
				return true
			case <-ctx.Done():
				return false
			}
		})
		if end == nil {
			return
		}
		l.endRead(q.GetId(), r) // who has seen the end may use the id again
		select {
		case l.chunks <- chunk(end):
		case <-ctx.Done():
		}
	})
}

func chunk(c *wire.OutputChunk) *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Output{Output: c}}
}

// read is one reading of output that is under way.
type read struct{ cancel context.CancelFunc }

func (l *link) cancelRead(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.reads[id]; r != nil {
		r.cancel()
		delete(l.reads, id)
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
func (a *Agent) copyOutput(ctx context.Context, q *wire.ReadOutput, send func(*wire.OutputChunk) bool) *wire.OutputChunk {
	k := key{q.GetRequest(), q.GetStep(), q.GetAttempt()}
	offset := q.GetOffset()
	last := func(problem string) *wire.OutputChunk {
		return &wire.OutputChunk{Id: q.GetId(), Offset: offset, Eof: true, Error: problem}
	}
	if offset < 0 || q.GetLimit() < 0 {
		return last("offset and limit must not be negative")
	}
	if p := k.problem(); p != "" {
		return last(p)
	}
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	left := q.GetLimit()
	for {
		// Before reading: what is written after the end is no part of the output.
		over, known, view := a.outputState(k)
		if file == nil {
			f, err := os.Open(a.dir(k).file(fileOutput))
			switch {
			case err == nil:
				file = f
			case !errors.Is(err, fs.ErrNotExist):
				return last(err.Error())
			case !known:
				return last("this agent has no output of this attempt, or not any more")
			}
		}
		for file != nil {
			size := int64(chunkSize)
			if q.GetLimit() > 0 {
				size = min(size, left)
			}
			buf := make([]byte, size)
			view.file = file
			n, err := view.ReadAt(buf, offset)
			if n > 0 {
				if !send(&wire.OutputChunk{Id: q.GetId(), Offset: offset, Data: buf[:n]}) {
					return nil
				}
				offset += int64(n)
				left -= int64(n)
			}
			if q.GetLimit() > 0 && left == 0 {
				return last("")
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return last(err.Error())
			}
		}
		if over || !q.GetFollow() {
			return last("")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followAgain):
		}
	}
}

// outputState reports whether an attempt will produce no more output, whether the agent
// still knows of it, and how its output is to be read.
func (a *Agent) outputState(k key) (over, known bool, view outputView) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.ledger.attempt(k)
	if at == nil {
		return true, false, view
	}
	view.limit = at.Limit
	if at.Phase.ended() {
		view.line = droppedLine(at.Limit, at.Dropped)
	}
	return at.Phase.ended(), true, view
}
