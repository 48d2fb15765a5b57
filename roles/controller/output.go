package controller

import (
	"context"
	"errors"
	"fmt"
	"io"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// readWindow is how many chunks, of at most 64 KiB, may be on their way to one reader
// of output. An agent sends the next ones when the reader has taken some: who reads
// slowly costs this much, and holds up nobody else on the link.
const readWindow = 16

// errSlowReader ends a read at an agent that does not know of windows, and whose
// reader did not keep up.
var errSlowReader = errors.New("the reader is too slow")

// errGone says that an agent does not have the output of an attempt, or not any more.
var errGone = errors.New("the agent has no output of this attempt, or not any more")

// read asks the agent for output over this link and calls f with every chunk, the last
// one too.
func (l *link) read(ctx context.Context, req *wire.ReadOutput, f func(*wire.OutputChunk) error) error {
	ch := make(chan *wire.OutputChunk, readWindow+1) // the last chunk needs no room
	l.mu.Lock()
	l.nextID++
	id := l.nextID
	if l.reads == nil {
		l.reads = map[uint64]chan *wire.OutputChunk{}
	}
	l.reads[id] = ch
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		_, open := l.reads[id]
		delete(l.reads, id)
		l.mu.Unlock()
		if open {
			l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_CancelRead{CancelRead: &wire.CancelRead{Id: id}}})
		}
	}()
	ask := &wire.ReadOutput{Id: id, Request: req.GetRequest(), Step: req.GetStep(), Attempt: req.GetAttempt(),
		Offset: req.GetOffset(), Limit: req.GetLimit(), Follow: req.GetFollow(), Collect: req.GetCollect(), Window: readWindow}
	if !l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: ask}}) {
		return fmt.Errorf("%w: link to agent %s is down", api.ErrUnavailable, l.agent)
	}
	for taken := uint32(0); ; {
		select {
		case c, ok := <-ch:
			if !ok {
				return errSlowReader
			}
			if err := f(c); err != nil || c.GetEof() || c.GetError() != "" {
				return err
			}
			if taken++; taken == readWindow/2 {
				l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_OutputTaken{OutputTaken: &wire.OutputTaken{Id: id, Chunks: taken}}})
				taken = 0
			}
		case <-l.ctx.Done():
			// The cause may be what gRPC was told to end the link with, which is no answer to a read.
			return fmt.Errorf("%w: link to agent %s ended: %s", api.ErrUnavailable, l.agent, context.Cause(l.ctx).Error())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// output hands a chunk to its reader.
func (l *link) output(c *wire.OutputChunk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch, ok := l.reads[c.GetId()]
	if !ok {
		return
	}
	select {
	case ch <- c:
		if c.GetEof() || c.GetError() != "" {
			delete(l.reads, c.GetId())
		}
	default:
		delete(l.reads, c.GetId())
		close(ch)
	}
}

// readAgent reads output at an agent, over whatever link there is, and calls f with
// every chunk. What the agent says is wrong is an error, errGone if it does not have
// the output.
func (c *Controller) readAgent(ctx context.Context, agent string, req *wire.ReadOutput, f func(*wire.OutputChunk) error) error {
	take := func(chunk *wire.OutputChunk) error {
		switch {
		case chunk.GetGone():
			return errGone
		case chunk.GetError() != "":
			return fmt.Errorf("agent %s: %s", agent, chunk.GetError())
		}
		return f(chunk)
	}
	if l := c.links.get(agent); l != nil {
		return l.read(ctx, req, take)
	}
	for _, controller := range linksTo(c.member.View().Snapshot(), agent) {
		if controller != c.cfg.Name {
			return c.readThrough(ctx, controller, agent, req, take)
		}
	}
	return fmt.Errorf("%w: no controller reaches agent %s now", api.ErrUnavailable, agent)
}

// attemptKey names an attempt.
type attemptKey struct {
	request, step string
	attempt       int
}

func (k attemptKey) String() string { return fmt.Sprintf("%s/%s/%d", k.request, k.step, k.attempt) }

// ReadOutput copies the output of an attempt, 0 for the latest, to w: from its agent
// while that has it, and what the agent does not have any more from the shared mount.
// A part that neither has is an [api.Gap].
func (c *Controller) ReadOutput(ctx context.Context, id, step string, attempt int, offset int64, follow bool, w io.Writer) error {
	snap := c.member.View().Snapshot()
	state, _, _, err := c.stateOf(ctx, snap, id)
	if err != nil {
		return err
	}
	i := state.Index(step)
	if i < 0 {
		return fmt.Errorf("%w: request %s has no step %q", api.ErrNotFound, id, step)
	}
	st := state.Steps[i]
	if attempt == 0 {
		attempt = st.Attempt
	}
	if st.Agent == "" || attempt < 1 || attempt > st.Attempt {
		return fmt.Errorf("%w: step %s has no attempt %d", api.ErrNotFound, step, attempt)
	}
	if attempt == st.Attempt && st.NoOutput {
		return nil // whoever has it, or not any more
	}
	r := &outputReader{c: c, key: attemptKey{id, step, attempt}, offset: offset, w: w}
	if c.collects() && state.Record.Status.Final() && !outputPending(snap, id) {
		// All of it is on the mount, and the agent may be gone.
		if whole, err := r.copyKept(ctx); whole || err != nil && !errors.Is(err, errStore) {
			return unlessIdle(st, attempt, err)
		}
	}
	return unlessIdle(st, attempt, r.copyFrom(ctx, st.Agent, follow))
}

// unlessIdle is the error of reading the output of an attempt, unless it is that there
// is none of an attempt that nobody has seen run.
func unlessIdle(st *roles.Step, attempt int, err error) error {
	switch {
	case !errors.Is(err, errGone) || attempt != st.Attempt || st.StartedAt != "":
		return err
	case st.Status == roles.StepDispatched:
		return fmt.Errorf("%w: step %s has not begun", api.ErrUnavailable, st.Name)
	case st.Status.Final():
		return nil // it never ran
	}
	return err
}

// outputReader copies the output of an attempt to one reader.
type outputReader struct {
	c      *Controller
	key    attemptKey
	offset int64 // of what comes next
	w      io.Writer
	kept   *keptOutput // what is on the mount, once it was looked at
}

// copyFrom copies what the agent has, with what it has no more from the mount.
func (r *outputReader) copyFrom(ctx context.Context, agent string, follow bool) error {
	req := &wire.ReadOutput{
		Request: r.key.request, Step: r.key.step, Attempt: uint32(r.key.attempt), Offset: r.offset, Follow: follow,
	}
	err := r.c.readAgent(ctx, agent, req, func(chunk *wire.OutputChunk) error {
		if chunk.GetOffset() > r.offset {
			if err := r.fill(ctx, chunk.GetOffset()); err != nil {
				return err
			}
		}
		return r.write(chunk.GetData())
	})
	if !errors.Is(err, errGone) && !errors.Is(err, api.ErrUnavailable) || !r.c.collects() {
		if errors.Is(err, errGone) {
			return r.gone()
		}
		return err
	}
	whole, keptErr := r.copyKept(ctx)
	switch {
	case whole:
		return nil
	case keptErr != nil:
		return keptErr
	case errors.Is(err, errGone):
		return r.gone()
	}
	return err
}

// gone is the error of output whose rest neither agent nor mount has.
func (r *outputReader) gone() error {
	return fmt.Errorf("%w: output of %s (attempt %d) from byte %d on: %w", api.ErrGone, r.key.step, r.key.attempt, r.offset, errGone)
}

func (r *outputReader) write(data []byte) error {
	n, err := r.w.Write(data)
	r.offset += int64(n)
	return err
}

// fill copies what is on the mount up to an offset.
func (r *outputReader) fill(ctx context.Context, until int64) error {
	if !r.c.collects() {
		return &api.Gap{Next: until}
	}
	fresh := r.kept == nil
	for r.offset < until {
		if err := r.look(ctx); err != nil {
			return err
		}
		s, n, ok := r.kept.at(r.offset)
		if !ok && !fresh { // it may have come meanwhile
			r.kept, fresh = nil, true
			continue
		}
		if !ok {
			return &api.Gap{Next: min(until, r.kept.next(r.offset, until))}
		}
		if err := r.copySegment(ctx, s, min(n, until-r.offset)); err != nil {
			return err
		}
	}
	return nil
}

// copyKept copies all that is on the mount, and reports whether that is the whole
// output.
func (r *outputReader) copyKept(ctx context.Context) (whole bool, err error) {
	r.kept = nil // it may be more by now
	if err := r.look(ctx); err != nil {
		return false, err
	}
	if err := r.fill(ctx, max(r.offset, r.kept.size())); err != nil {
		return false, err
	}
	switch {
	case r.kept.gone >= 0 && r.kept.end < 0:
		return true, r.gone()
	case r.kept.end < 0:
		return false, nil
	case r.offset < r.kept.end: // the agent had lost it when it was collected
		return true, &api.Gap{Next: r.kept.end}
	}
	return true, nil
}

func (r *outputReader) look(ctx context.Context) error {
	if r.kept != nil {
		return nil
	}
	kept, err := r.c.kept(ctx, r.key)
	r.kept = &kept
	if err != nil {
		r.kept = nil
	}
	return err
}

func (r *outputReader) copySegment(ctx context.Context, s segment, n int64) error {
	for n > 0 {
		data, err := r.c.deps.Output.ReadAt(ctx, s.name, r.offset-s.start, int(min(n, collectSize)))
		if len(data) == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = errors.New("it has become shorter")
			}
			return storeError(fmt.Errorf("read %s: %w", s.name, err))
		}
		if err := r.write(data); err != nil {
			return err
		}
		n -= int64(len(data))
	}
	return nil
}
