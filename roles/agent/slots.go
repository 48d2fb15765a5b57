package agent

import (
	"cmp"
	"container/heap"
	"sync"
)

// slots bound how many attempts run at a time. Of those that wait, the one with the
// highest priority comes first, and of equal ones the one that was accepted first. Safe
// for concurrent use.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting slotQueue
}

// slot is the right to run, or the wait for it.
type slot struct {
	priority int32
	order    uint64        // lower ones came earlier
	ready    chan struct{} // closed when the wait is over

	place int // in the queue; -1: not there
}

func newSlots(n int) *slots { return &slots{free: n} }

// enter asks for a slot. It is had when ready is closed. Every slot is to be given to
// leave.
func (s *slots) enter(priority int32, order uint64) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &slot{priority: priority, order: order, ready: make(chan struct{}), place: -1}
	if s.free > 0 { // then nobody waits
		s.free--
		close(w.ready)
	} else {
		heap.Push(&s.waiting, w)
	}
	return w
}

// leave gives a slot to the next, or ends the wait for one.
func (s *slots) leave(w *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w.place >= 0:
		heap.Remove(&s.waiting, w.place)
	case len(s.waiting) > 0:
		close(heap.Pop(&s.waiting).(*slot).ready)
	default:
		s.free++
	}
}

// slotQueue implements heap.Interface.
type slotQueue []*slot

func (q slotQueue) Len() int { return len(q) }

func (q slotQueue) Less(i, j int) bool {
	return cmp.Or(-cmp.Compare(q[i].priority, q[j].priority), cmp.Compare(q[i].order, q[j].order)) < 0
}

func (q slotQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push adds a slot at the end.
func (q *slotQueue) Push(x any) {
	w := x.(*slot)
	w.place = len(*q)
	*q = append(*q, w)
}

// Pop takes the last slot away.
func (q *slotQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last], *q = nil, (*q)[:last]
	w.place = -1
	return w
}
