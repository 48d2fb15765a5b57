package controller

import "sync"

// mailbox is an unbounded queue of work for one goroutine. Posting never
// blocks, so it can be done from anywhere, also while a lock is held.
type mailbox struct {
	mu     sync.Mutex // guards queue
	queue  []func()
	signal chan struct{}
}

func newMailbox() *mailbox { return &mailbox{signal: make(chan struct{}, 1)} }

func (m *mailbox) post(f func()) {
	m.mu.Lock()
	m.queue = append(m.queue, f)
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

// take returns everything that was posted since the last call, in order.
func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = nil
	return q
}

// tasks are goroutines that somebody waits for. None starts after the wait has
// begun.
type tasks struct {
	mu     sync.Mutex // guards closed, and wg.Go against wg.Wait
	closed bool
	wg     sync.WaitGroup
}

// do runs f in a goroutine unless wait was called.
func (t *tasks) do(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.wg.Go(f)
	}
}

// wait returns when all tasks have.
func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}
