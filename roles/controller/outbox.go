package controller

import (
	"sync"

	"uac/roles/wire"
)

// linkQueue bounds what waits to be sent on one link. An agent that does not
// read loses its link rather than the controller its memory; what was not
// delivered is derived again from the store when the agent comes back.
const linkQueue = 1024

// outbox takes what is to be sent over a link. It does not block, and reports false if
// too much waits already.
type outbox interface {
	put(m *wire.ControllerMessage) bool
}

// sender is the outbox of a stream. A goroutine sends while there is something to send,
// in order; an idle link has neither a goroutine for it nor a queue. Safe for concurrent
// use.
type sender struct {
	send func(*wire.ControllerMessage) error
	fail func(error) // told of the error after which nothing is sent any more

	mu    sync.Mutex // guards what follows
	queue []*wire.ControllerMessage
	busy  bool // a goroutine sends, or has failed
}

// put implements outbox.
func (s *sender) put(m *wire.ControllerMessage) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) >= linkQueue {
		return false
	}
	s.queue = append(s.queue, m)
	s.wake()
	return true
}

// start sends what is in the queue from the beginning.
func (s *sender) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake()
}

func (s *sender) wake() {
	if !s.busy {
		s.busy = true
		go s.run() // ends with the stream, which ends when the link does
	}
}

// idle reports whether nothing waits and nothing is being sent.
func (s *sender) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.busy
}

func (s *sender) run() {
	for m := s.next(); m != nil; m = s.next() {
		if err := s.send(m); err != nil {
			s.fail(err)
			return
		}
	}
}

// next returns what is to be sent next, nil if there is nothing more.
func (s *sender) next() *wire.ControllerMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.queue, s.busy = nil, false
		return nil
	}
	m := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	return m
}
