package controller

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"uac/coord"
	"uac/roles"
)

// want is what a ready step waits for. Steps that want the same get it in their
// order; what one cannot get now, none of them can.
type want struct {
	selector string
	agent    string // that the request's equal selectors have chosen, "" for none
	uses     bool   // the request has begun to use it
}

// waiter is a ready step that could not be dispatched when it was looked at.
type waiter struct {
	priority int
	id       string // of the request; ids sort by age
	index    int    // of the step
}

// compare orders waiters: by priority, then age.
func (w waiter) compare(v waiter) int {
	return cmp.Or(-cmp.Compare(w.priority, v.priority), cmp.Compare(w.id, v.id), cmp.Compare(w.index, v.index))
}

// wanted is one want of a request.
type wanted struct {
	want
	waiter
	cluster string // of the selector, "" for none
	limited bool   // there is an agent, and only a limit in between
}

// waiting keeps the steps that wait, in their order. It belongs to the goroutine of
// the desk.
type waiting struct {
	queues map[want][]waiter
	// about finds the wants that a change may concern: of an agent or a cluster, or
	// those that have not chosen an agent.
	about map[string]map[want]bool
	// due are the keys of about that something happened to.
	due map[string]bool
}

func newWaiting() *waiting {
	return &waiting{queues: map[want][]waiter{}, about: map[string]map[want]bool{}, due: map[string]bool{}}
}

const (
	dueOpen = "open" // wants without a chosen agent
	dueAll  = "all"
)

func dueAgent(name string) string   { return "agent/" + name }
func dueCluster(name string) string { return "cluster/" + name }

func (w *wanted) topics() []string {
	topics := []string{dueAll, dueOpen}
	if w.agent != "" {
		topics[1] = dueAgent(w.agent)
	}
	if w.cluster != "" {
		topics = append(topics, dueCluster(w.cluster))
	}
	return topics
}

func (q *waiting) add(w wanted) {
	list := q.queues[w.want]
	i, found := slices.BinarySearchFunc(list, w.waiter, waiter.compare)
	if found {
		return
	}
	q.queues[w.want] = slices.Insert(list, i, w.waiter)
	for _, topic := range w.topics() {
		if q.about[topic] == nil {
			q.about[topic] = map[want]bool{}
		}
		q.about[topic][w.want] = true
	}
}

func (q *waiting) remove(w wanted) {
	list := q.queues[w.want]
	i, found := slices.BinarySearchFunc(list, w.waiter, waiter.compare)
	switch {
	case !found:
		return
	case len(list) > 1 && i == 0:
		q.queues[w.want] = list[1:] // mostly it is the first
		return
	case len(list) > 1:
		q.queues[w.want] = slices.Delete(list, i, i+1)
		return
	}
	delete(q.queues, w.want)
	for _, topic := range w.topics() {
		if delete(q.about[topic], w.want); len(q.about[topic]) == 0 {
			delete(q.about, topic)
		}
	}
}

// concerned takes what is due: the wants that may be fulfilled now, by their first
// waiters.
func (q *waiting) concerned() *wantHeap {
	found := map[want]bool{}
	for topic := range q.due {
		maps.Copy(found, q.about[topic])
		maps.Copy(found, q.about[dueOpen])
	}
	clear(q.due)
	h := &wantHeap{}
	for w := range found {
		*h = append(*h, headed{w, q.queues[w][0]})
	}
	heap.Init(h)
	return h
}

// headed is a want with its first waiter.
type headed struct {
	want want
	head waiter
}

// wantHeap has the want with the foremost waiter first.
type wantHeap []headed

// Len implements sort.Interface.
func (h wantHeap) Len() int { return len(h) }

// Less implements sort.Interface.
func (h wantHeap) Less(i, j int) bool { return h[i].head.compare(h[j].head) < 0 }

// Swap implements sort.Interface.
func (h wantHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *wantHeap) Push(x any) { *h = append(*h, x.(headed)) } //nolint:forcetypeassert // only headed is pushed

// Pop implements heap.Interface.
func (h *wantHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// waitFor lets the steps of a request wait that could not be dispatched.
func (d *desk) waitFor(o *owned, wants []wanted) {
	d.unwait(o)
	o.wants = wants
	for _, w := range wants {
		d.waiting.add(w)
		if w.limited { // it may be only for its turn
			for _, topic := range w.topics()[1:] {
				d.waiting.due[topic] = true
			}
		}
	}
}

// unwait takes the steps of a request out of the queues.
func (d *desk) unwait(o *owned) {
	for _, w := range o.wants {
		d.waiting.remove(w)
	}
	o.wants = nil
}

// serve dispatches what waits and can be dispatched by now, in order.
func (d *desk) serve() {
	for len(d.waiting.due) > 0 {
		h := d.waiting.concerned()
		for h.Len() > 0 {
			top := heap.Pop(h).(headed) //nolint:forcetypeassert // only headed is pushed
			if d.tryWaiter(top) {
				if rest := d.waiting.queues[top.want]; len(rest) > 0 {
					heap.Push(h, headed{top.want, rest[0]})
				}
			}
		}
	}
}

// tryWaiter dispatches the first waiter of a want. It reports false if the want
// cannot be fulfilled now.
func (d *desk) tryWaiter(top headed) bool {
	o := d.owned[top.head.id]
	if o == nil {
		// drop has taken it out; only to be safe against a queue that never moves.
		d.waiting.remove(wanted{want: top.want, waiter: top.head})
		return true
	}
	name := o.state.Steps[top.head.index].Name
	for _, eff := range roles.Pending(o.state) {
		if eff.Kind != roles.EffectChooseAgent || eff.Step != name {
			continue
		}
		off, ok := d.agentFor(o.state, eff)
		switch {
		case !ok || !off.open:
			return false
		case len(off.gates) > 0:
			return d.grant(o, eff, off)
		}
		if writes := d.feedOne(o, o.state, roles.Change{}); len(writes) > 0 {
			d.store(o, writes)
		}
		return true
	}
	d.unwait(o) // nothing of it is ready any more
	return true
}

// granting is a dispatch that passes gates, on its way into the store. Its
// transaction has conditions, so it may come to nothing, and what happens to the
// request meanwhile waits in later.
type granting struct {
	key   string // of the step's record
	agent string
	state roles.State
	slots []string
	later []func()
}

// grant dispatches a step that passes gates: the record of the step and a slot of
// each gate are written together, if nobody else has taken one of these slots and
// the limits are still the same.
func (d *desk) grant(o *owned, eff roles.Effect, off offer) bool {
	next, change, err := roles.Next(o.state, roles.AgentChosen{Step: eff.Step, Agent: off.agent, Journal: off.journal}, now())
	if err != nil {
		d.log.Warn("agent not accepted", "request", o.id, "step", eff.Step, "agent", off.agent, "error", err)
		return false
	}
	g := &granting{key: stepKey(o.id, eff.Step), agent: off.agent, state: next}
	var tx coord.Tx
	for _, gate := range off.gates {
		key, mod, ok := d.slots.pick(gate, d.load)
		if !ok {
			return false
		}
		g.slots = append(g.slots, key)
		tx.If = append(tx.If, coord.ModIs(key, mod))
		if !slices.Contains(tx.If, gate.guard) {
			tx.If = append(tx.If, gate.guard)
		}
		tx.Then = append(tx.Then, coord.Put(key, encode(slotRecord{Request: o.id, Step: eff.Step, Attempt: eff.Attempt})))
	}
	tx.Then = append(tx.Then, records(o.id, next, change)...)
	d.unwait(o)
	o.granting = g
	for _, key := range g.slots {
		d.slots.taking[key] = true
	}
	d.load.expect(g.key, outStep{agent: off.agent, cluster: off.cluster, attempt: eff.Attempt})
	d.s.Submit(tx, func(res coord.Result, err error) {
		d.mail.post(func() { d.granted(o, g, res, err) })
	})
	return true
}

// granted is told what became of a grant. Where it came to nothing the step waits
// again from when the view shows why.
func (d *desk) granted(o *owned, g *granting, res coord.Result, err error) {
	if err == nil && d.c.member.View().Revision() < res.Revision {
		d.tasks.do(func() {
			if d.c.member.View().Wait(d.ctx, res.Revision) == nil {
				d.mail.post(func() { d.granted(o, g, res, nil) })
			}
		})
		return
	}
	for _, key := range g.slots {
		delete(d.slots.taking, key)
	}
	if err != nil || !res.Won {
		d.recount(g.key)
	}
	if o.granting = nil; d.owned[o.id] != o {
		return
	}
	if err != nil {
		d.notStored(o, err)
		return
	}
	next := o.state
	if res.Won {
		next = g.state
		d.concerns(o, g.agent)
	}
	if writes := d.feedOne(o, next, roles.Change{}); len(writes) > 0 {
		d.store(o, writes)
	} else {
		d.perform(o)
	}
	for _, f := range g.later {
		f()
	}
}

// recount counts a step again as the view shows it.
func (d *desk) recount(key string) {
	kv, ok := d.c.member.View().Get(key)
	if !ok {
		kv = coord.KV{Key: key}
	}
	d.load.forget(kv)
}
