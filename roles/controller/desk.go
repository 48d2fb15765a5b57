package controller

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// desk is where one session of this controller owns requests: it claims them,
// feeds their events to the engine, stores what changed and performs what is
// pending. It lives exactly as long as its session and forgets everything with
// it. One goroutine runs it; everything else posts to it.
type desk struct {
	c    *Controller
	s    *coord.Session
	log  *slog.Logger
	mail *mailbox
	// ctx ends with the session; tasks are waited for when it does.
	ctx   context.Context
	tasks tasks

	// The fields below belong to the goroutine of run.

	owned map[string]*owned
	// open is every request of the cluster that somebody must own, with its claim:
	// those that are not final, and those that are but left an attempt that may
	// run.
	open map[string]*openRequest
	// byAgent finds the owned requests that have to do with an agent.
	byAgent map[string]map[string]*owned
	// waiting are ready steps of owned requests that could not be dispatched.
	waiting *waiting
	// waitsForTrust are owned requests with effects that found no trust.
	waitsForTrust map[string]*owned
	// telling are finished requests whose agents were told, not yet stored.
	telling []string
	agents  *agentBook
	load    *load
	slots   *slots
}

// owned is one request that this session owns.
type owned struct {
	id string
	// state after all events so far; not stored yet while writes > 0.
	state  roles.State
	writes int
	// replies answer reports and go out when everything is stored.
	replies []roles.Effect
	// performed remembers what was done and over which link, so that a pending
	// effect is done once for each link and not at every turn.
	performed map[roles.Effect]string
	waiting   map[string]int // step -> attempt whose retry delay runs
	// changed are agents that refused a command because of their journal, with the
	// link in use then.
	changed map[string]string
	// commands of the inbox that were taken in and are being removed.
	commands map[string]bool
	// wants are the ready steps that could not be dispatched, granting is the one
	// that is being dispatched through a limit.
	wants    []wanted
	granting *granting
	// counted is set while the request counts as one of this node's open ones.
	counted bool
}

func newDesk(ctx context.Context, c *Controller, s *coord.Session) *desk {
	return &desk{
		c: c, s: s, log: c.log, mail: newMailbox(), ctx: ctx,
		owned:   map[string]*owned{},
		open:    map[string]*openRequest{},
		byAgent: map[string]map[string]*owned{},
		waiting: newWaiting(),
		agents:  newAgentBook(),
		load:    newLoad(),
		slots:   newSlots(),

		waitsForTrust: map[string]*owned{},
	}
}

// run works until the session ends.
func (d *desk) run(ctx context.Context) error {
	from, stop := d.c.member.View().Follow(func(b coord.Batch) { d.mail.post(func() { d.seen(b) }) })
	defer stop()
	d.first(from)
	d.serve()
	sweep := time.NewTimer(sweepEvery())
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			for _, f := range d.mail.take() {
				f() // an orderly end: what was asked for in time is still committed
			}
			return ctx.Err()
		case <-d.mail.signal:
			for _, f := range d.mail.take() {
				f()
			}
		case <-sweep.C:
			d.sweep(true)
			d.lookAgain()
			sweep.Reset(sweepEvery())
		}
		d.serve()
	}
}

// now is the time as text by this host's clock.
func now() roles.Stamp { return roles.StampOf(time.Now()) }

// accept submits the transaction that accepts a request, with its claim, and with
// what can be dispatched at once: the first step waits for one commit, not for two.
func (d *desk) accept(adm admission, answer func(coord.Result, error)) {
	fence := roles.Fence{Generation: adm.state.Record.Generation, Revision: roles.AtAcceptance}
	state, change, err := roles.Next(adm.state, roles.Claimed{Fence: fence}, now())
	if err != nil {
		answer(coord.Result{}, err)
		return
	}
	state, more, _ := d.choose(state)
	id := state.Request.ID
	notAccepted := func() {
		for _, name := range more.Steps {
			d.recount(stepKey(id, name))
		}
	}
	tx := adm.with(state, change.And(more))
	tx.Then = append(tx.Then, coord.Put(claimKey(id), encode(claimRecord{
		Node: d.c.cfg.Name, Epoch: d.s.Epoch(), Generation: fence.Generation,
	})))
	d.c.deps.Point(pointAccepting)
	d.s.Submit(tx, func(res coord.Result, err error) {
		d.c.deps.Point(pointAccepted)
		if err == nil && res.Won {
			d.mail.post(func() {
				state := state.Accepted(res.Revision)
				o := d.take(id, state, state.Fence)
				// An agent may have come back since it was chosen, with another journal.
				for _, st := range state.Steps {
					if r := d.linkTo(st.Agent); r != nil {
						d.meet(o, st.Agent, journalOf(r.hello().GetJournal()))
					}
				}
			})
		} else {
			d.mail.post(notAccepted)
		}
		answer(res, err)
	})
}

// take makes the desk the owner of a request whose claim was stored under
// fence, with the state as it was at that revision or later.
func (d *desk) take(id string, state roles.State, fence roles.Fence) *owned {
	o := &owned{id: id, state: state, performed: map[roles.Effect]string{}, waiting: map[string]int{}, changed: map[string]string{}, commands: map[string]bool{}}
	d.owned[id] = o
	d.count(o)
	for _, st := range state.Steps {
		d.concerns(o, st.Agent)
	}
	d.apply(o, roles.Claimed{Fence: fence})
	for kv := range d.c.member.View().Snapshot().Range(prefixInbox + id + "/") {
		d.command(kv)
	}
	return o
}

// drop forgets a request without touching what is stored.
func (d *desk) drop(o *owned) {
	delete(d.owned, o.id)
	d.unwait(o)
	for _, st := range o.state.Steps {
		delete(d.byAgent[st.Agent], o.id)
	}
	if o.counted {
		d.c.counted.Add(-1)
	}
}

// count keeps the number of open requests of this node.
func (d *desk) count(o *owned) {
	open := !o.state.Record.Status.Final()
	switch {
	case open && !o.counted:
		d.c.counted.Add(1)
	case !open && o.counted:
		d.c.counted.Add(-1)
	}
	o.counted = open
}

func (d *desk) concerns(o *owned, agent string) {
	if agent == "" {
		return
	}
	if d.byAgent[agent] == nil {
		d.byAgent[agent] = map[string]*owned{}
	}
	d.byAgent[agent][o.id] = o
}

// apply feeds one event to the engine, chooses agents for what became ready,
// and stores everything that changed in one transaction together with extra.
func (d *desk) apply(o *owned, ev roles.Event, extra ...coord.Write) {
	if d.afterGrant(o, func() { d.apply(o, ev, extra...) }) {
		return
	}
	state, change, err := roles.Next(o.state, ev, now())
	if err != nil {
		d.log.Warn("event refused", "request", o.id, "event", ev, "error", err)
		state = o.state
	}
	o.replies = append(o.replies, change.Replies...)
	for _, late := range change.Late {
		extra = append(extra, d.c.event(api.Event{Kind: "step.late_report", Subject: o.id, Detail: map[string]string{
			"step": late.Step, "agent": late.Agent, "state": string(late.State),
		}}))
	}
	writes := slices.Concat(extra, d.feedOne(o, state, change))
	d.count(o)
	if len(writes) == 0 {
		d.perform(o)
		return
	}
	d.store(o, writes)
}

// afterGrant puts f off if the request is being granted something. It reports
// whether it did.
func (d *desk) afterGrant(o *owned, f func()) bool {
	if o.granting == nil {
		return false
	}
	o.granting.later = append(o.granting.later, func() {
		if d.owned[o.id] == o {
			f()
		}
	})
	return true
}

// store writes a request's changes; what they make pending is performed when
// they are durable.
func (d *desk) store(o *owned, writes []coord.Write) {
	o.writes++
	d.c.deps.Point(pointStoring)
	d.s.Submit(coord.Tx{Then: writes}, func(_ coord.Result, err error) {
		d.c.deps.Point(pointStored)
		d.mail.post(func() { d.stored(o, err) })
	})
}

// records are the writes that a change of a state asks for.
func records(id string, state roles.State, change roles.Change) []coord.Write {
	var writes []coord.Write
	if change.Record {
		writes = append(writes, coord.Put(statusKey(id), encode(state.Record)))
	}
	for _, name := range change.Steps {
		writes = append(writes, coord.Put(stepKey(id, name), encode(state.Steps[state.Index(name)])))
	}
	return writes
}

// feedOne chooses agents for what is ready in the next state of a request, gives
// it that state, and returns the writes that this and the change ask for.
func (d *desk) feedOne(o *owned, next roles.State, change roles.Change) []coord.Write {
	state, more, wants := d.choose(next)
	for _, name := range more.Steps {
		d.concerns(o, state.Steps[state.Index(name)].Agent)
	}
	o.state = state
	d.waitFor(o, wants)
	change = change.And(more)
	return append(records(o.id, state, change), d.c.collectedBy(state, change)...)
}

// choose finds the agents of ready steps with for_each, and dispatches other ready
// steps, as long as that gets anywhere. It returns those that have to wait: for an
// agent, or because they pass a limit.
func (d *desk) choose(state roles.State) (_ roles.State, all roles.Change, wants []wanted) {
	for {
		wants = nil
		progress := false
		for _, eff := range roles.Pending(state) {
			var ev roles.Event
			cluster := ""
			switch eff.Kind {
			case roles.EffectExpand:
				found, leftOut := d.agents.targets(state.Def(state.Index(eff.Step)).ForEach)
				ev = roles.Expanded{Step: eff.Step, Agents: found, LeftOut: leftOut}
			case roles.EffectChooseAgent:
				off, ok := d.agentFor(state, eff)
				if !ok || len(off.gates) > 0 {
					wants = append(wants, wantOf(state, eff, ok))
					continue
				}
				ev, cluster = roles.AgentChosen{Step: eff.Step, Agent: off.agent, Journal: off.journal}, off.cluster
			default:
				continue
			}
			next, change, err := roles.Next(state, ev, now())
			if err != nil {
				d.log.Warn("agent not accepted", "request", state.Request.ID, "event", ev, "error", err)
				continue
			}
			if len(change.Steps) == 0 {
				continue // there is no room for one more instance
			}
			if chosen, ok := ev.(roles.AgentChosen); ok {
				d.load.expect(stepKey(state.Request.ID, eff.Step), outStep{agent: chosen.Agent, cluster: cluster, attempt: eff.Attempt})
			}
			state, all, progress = next, all.And(change), true
		}
		if !progress {
			return state, all, wants
		}
	}
}

// wantOf says what a ready step waits for.
func wantOf(state roles.State, eff roles.Effect, limited bool) wanted {
	i := state.Index(eff.Step)
	sel := state.Def(i).Agent
	return wanted{
		want:    want{selector: sel.String(), agent: eff.Agent, uses: eff.Agent != "" && uses(state, eff.Agent)},
		waiter:  waiter{id: state.Request.ID, index: i, priority: state.Def(i).Priority},
		cluster: sel.Cluster, limited: limited,
	}
}

// stored is told when a transaction of a request is durable, or never will be.
func (d *desk) stored(o *owned, err error) {
	o.writes--
	if err != nil {
		d.notStored(o, err)
		return
	}
	if o.writes == 0 && d.owned[o.id] == o {
		d.perform(o)
	}
}

// notStored deals with a transaction of a request that never will be durable.
func (d *desk) notStored(o *owned, err error) {
	if !errors.Is(err, coord.ErrRefused) {
		return // the session is over, and the desk with it
	}
	// Nothing of it was written: what we hold in memory is not the truth any
	// more. Forget it; the sweep finds the claim and starts from the store.
	d.log.Error("store refused a request's change", "request", o.id, "error", err)
	if d.owned[o.id] == o {
		d.drop(o)
	}
	for _, st := range o.state.Steps {
		d.recount(stepKey(o.id, st.Name))
	}
}

// perform does what is pending in a state that is stored.
func (d *desk) perform(o *owned) {
	if o.writes > 0 {
		return
	}
	if d.s.Check() != nil {
		d.distrusted(o)
		return
	}
	replies := o.replies
	o.replies = nil
	for _, eff := range replies {
		// That an end is stored says, of a request that has ended, that it has.
		if d.send(o, eff) && eff.Kind == roles.EffectAck && o.state.Record.Status.Final() {
			finish := roles.Effect{Kind: roles.EffectFinish, Agent: eff.Agent, Fence: eff.Fence}
			o.performed[finish] = d.linkTo(eff.Agent).nonce()
		}
	}
	told := true
	for _, eff := range roles.Pending(o.state) {
		switch eff.Kind {
		case roles.EffectWait:
			d.wait(o, eff)
		case roles.EffectChooseAgent, roles.EffectExpand:
			// choose has tried; a link that comes up tries again.
		default:
			link := d.linkTo(eff.Agent)
			if link == nil {
				told = false
				d.unreachable(eff.Agent)
				continue
			}
			if o.performed[eff] == link.nonce() {
				continue
			}
			if d.send(o, eff) {
				o.performed[eff] = link.nonce()
			} else {
				told = false
			}
		}
	}
	if o.state.Record.Status.Final() && told && !abandons(o.state) {
		d.drop(o)
		d.told(o.id)
	}
}

// abandons reports whether an attempt may run that an operator has given up. Who
// owns the request waits for its end, to tell of it.
func abandons(s roles.State) bool {
	return slices.ContainsFunc(s.Steps, func(st *roles.Step) bool { return st.Abandoned })
}

// abandonsIn is abandons by what is stored.
func abandonsIn(snap coord.Snapshot, id string) bool {
	for kv := range snap.Range(stepPrefix(id)) {
		// Almost none is, and there are many: look before reading.
		if !bytes.Contains(kv.Value, []byte(`"abandoned"`)) {
			continue
		}
		if st, err := decode[roles.Step](kv); err == nil && st.Abandoned {
			return true
		}
	}
	return false
}

// trustRetry is how soon effects are tried again that found no trust.
const trustRetry = 5 * time.Millisecond

// distrusted puts a request aside until trust is back: without it nothing
// leaves this node. Trust comes back with an echo, or the session ends.
func (d *desk) distrusted(o *owned) {
	d.waitsForTrust[o.id] = o
	if len(d.waitsForTrust) > 1 {
		return // the timer runs
	}
	d.after(trustRetry, func() {
		waiting := d.waitsForTrust
		d.waitsForTrust = map[string]*owned{}
		for _, o := range waiting {
			if d.owned[o.id] == o {
				d.perform(o)
			}
		}
	})
}

// wait runs the delay before a retry, once for each attempt.
func (d *desk) wait(o *owned, eff roles.Effect) {
	if o.waiting[eff.Step] == eff.Attempt {
		return
	}
	o.waiting[eff.Step] = eff.Attempt
	d.after(eff.Delay, func() {
		if d.owned[o.id] == o {
			d.apply(o, roles.RetryDue{Step: eff.Step, Attempt: eff.Attempt})
		}
	})
}

// after posts f when some time has passed. A timer that outlives the session
// posts to a mailbox that nobody reads.
func (d *desk) after(delay time.Duration, f func()) {
	time.AfterFunc(delay, func() { d.mail.post(f) })
}
