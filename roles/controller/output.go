package controller

import (
	"context"
	"errors"
	"fmt"
	"io"

	"uac/roles/controller/api"
	"uac/roles/wire"
)

// readQueue bounds what an output reader may be behind; a slower one ends with
// an error instead of holding up its link.
const readQueue = 64

// errSlowReader ends a read that did not keep up.
var errSlowReader = errors.New("the reader is too slow")

// read asks the agent for output over this link and calls f with every chunk.
func (l *link) read(ctx context.Context, req *wire.ReadOutput, f func(*wire.OutputChunk) error) error {
	ch := make(chan *wire.OutputChunk, readQueue)
	l.mu.Lock()
	l.nextID++
	id := l.nextID
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
		Offset: req.GetOffset(), Limit: req.GetLimit(), Follow: req.GetFollow()}
	if !l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_ReadOutput{ReadOutput: ask}}) {
		return fmt.Errorf("link to agent %s is down", l.agent)
	}
	for {
		select {
		case c, ok := <-ch:
			switch {
			case !ok:
				return errSlowReader
			case c.GetError() != "":
				return errors.New(c.GetError())
			}
			if err := f(c); err != nil {
				return err
			}
			if c.GetEof() {
				return nil
			}
		case <-l.ctx.Done():
			return fmt.Errorf("link to agent %s ended: %w", l.agent, context.Cause(l.ctx))
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

// ReadOutput copies the output of an attempt, 0 for the latest, to w. The
// output is read from the agent, where it stays whole.
func (c *Controller) ReadOutput(ctx context.Context, id, step string, attempt int, offset int64, follow bool, w io.Writer) error {
	state, _, _, ok, err := loadRequest(c.member.View().Snapshot(), id)
	switch {
	case !ok:
		return fmt.Errorf("%w: request %q", api.ErrNotFound, id)
	case err != nil:
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
	req := &wire.ReadOutput{Request: id, Step: step, Attempt: uint32(attempt), Offset: offset, Follow: follow}
	copyTo := func(chunk *wire.OutputChunk) error {
		_, err := w.Write(chunk.GetData())
		return err
	}
	if l := c.links.get(st.Agent); l != nil {
		return l.read(ctx, req, copyTo)
	}
	for _, controller := range linksTo(c.member.View().Snapshot(), st.Agent) {
		if controller != c.cfg.Name {
			return c.readThrough(ctx, controller, st.Agent, req, copyTo)
		}
	}
	return fmt.Errorf("%w: output of %s is at agent %s, which no controller reaches now", api.ErrUnavailable, step, st.Agent)
}
