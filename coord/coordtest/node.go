package coordtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"uac/coord"
)

// Node is one running member.
type Node struct {
	Name   string
	Member *coord.Member

	t      testing.TB
	cancel context.CancelFunc // ends everything at once
	depart chan *coord.HoldRecord
	done   chan struct{}
	err    error

	mu      sync.Mutex // guards the fields below
	session *coord.Session
	changed chan struct{} // closed and replaced when session changes
}

func newNode(t testing.TB, name string, m *coord.Member, sessions bool) *Node {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // ends in a cleanup, after t.Context
	n := &Node{
		Name: name, Member: m, t: t, cancel: cancel,
		depart: make(chan *coord.HoldRecord, 1), done: make(chan struct{}), changed: make(chan struct{}),
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		n.err = m.Run(ctx)
	})
	if sessions {
		wg.Go(func() { n.keepSession(ctx) })
	}
	go func() {
		wg.Wait()
		close(n.done)
	}()
	return n
}

// keepSession works in one session after the other, like a role.
func (n *Node) keepSession(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.Member.Session(ctx, coord.NodeRecord{Host: "test", Version: "test"}, func(ctx context.Context, s *coord.Session) error {
			n.setSession(s)
			defer n.setSession(nil)
			select {
			case <-ctx.Done():
			case hold := <-n.depart:
				bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				defer cancel()
				if err := s.Leave(bye, hold); err != nil {
					n.t.Errorf("%s: goodbye: %v", n.Name, err)
				}
				n.cancel()
			}
			return ctx.Err()
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, coord.ErrFenced) {
			n.t.Errorf("%s: session ended: %v", n.Name, err)
			return
		}
	}
}

func (n *Node) leave(hold *coord.HoldRecord) { n.depart <- hold }

func (n *Node) setSession(s *coord.Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session = s
	close(n.changed)
	n.changed = make(chan struct{})
}

// Session waits until the member has a session that is trusted, and returns it.
func (n *Node) Session() *coord.Session {
	n.t.Helper()
	return n.SessionAfter(0)
}

// SessionAfter is Session for one of a later epoch.
func (n *Node) SessionAfter(epoch int64) *coord.Session {
	n.t.Helper()
	late, cancel := context.WithTimeout(context.Background(), patience) // used in cleanups too
	defer cancel()
	for {
		n.mu.Lock()
		s, changed := n.session, n.changed
		n.mu.Unlock()
		if s != nil && s.Epoch() > epoch {
			// A commit waits for trust.
			_, err := s.Commit(late, coord.Tx{Then: []coord.Write{coord.Put("coordtest/"+n.Name, nil)}})
			if err == nil {
				return s
			}
			if !errors.Is(err, coord.ErrFenced) {
				n.t.Fatalf("%s has no trust: %v (%s)", n.Name, err, n.Member.Status().Reason)
			}
		}
		select {
		case <-changed:
		case <-late.Done():
			n.t.Fatalf("%s has no session: %s", n.Name, n.Member.Status().Reason)
		}
	}
}

// Done closes when the member has ended; Err says why.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is the error that the member ended with. It waits for the end.
func (n *Node) Err() error {
	n.t.Helper()
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Fatalf("%s does not end", n.Name)
	}
	return n.err
}
