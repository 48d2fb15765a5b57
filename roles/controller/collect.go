package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

const (
	// collectSize is how much of one attempt is on its way to the mount at a time.
	collectSize = 1 << 20
	// collectTurns is how many attempts are collected at a time. Each holds
	// collectSize in memory.
	collectTurns = 16
	// collectTimeout bounds one read at an agent and one write to the mount.
	collectTimeout = 30 * time.Second
	// collectSoon and collectLate bound the time between two looks at an attempt that
	// wrote less than collectSize. One that is frozen is looked at when it says so.
	collectSoon, collectLate = time.Second, 10 * time.Second
	// collectFarewell is for how long an agent that cannot be reached is still to be
	// told that all its output of an attempt is kept.
	collectFarewell = 10 * time.Minute
)

// collects reports whether output is collected: all controllers are configured alike.
func (c *Controller) collects() bool { return c.deps.Output != nil }

// collectKey exists from the acceptance of a request until all its output is on the
// mount, or gone. It makes sure that somebody collects, whoever dies.
func collectKey(id string) string { return prefixCollect + id }

// outputPending reports whether output of a request may not be on the mount yet. Until
// it is, the request must stay in the store.
func outputPending(snap coord.Snapshot, id string) bool {
	_, ok := snap.Get(collectKey(id))
	return ok
}

// collector copies the output of attempts from their agents to the shared mount, for
// one session. It takes turns: a turn reads what an agent has of one attempt, at most
// collectSize, makes it durable on the mount, and says so to the agent with the next
// read. Attempts that have more line up again at the end. Nothing waits for it but the
// key by which it knows what is left to do, so a mount that is away or hangs costs
// nothing but time.
type collector struct {
	c    *Controller
	s    *coord.Session
	mail *mailbox
	ctx  context.Context
	// tasks are the turns.
	tasks tasks

	// The fields below belong to the goroutine of run.

	requests map[string]*collection
	ready    []*collect // in the order of their turns
	turns    int        // under way
	trouble  bool       // the mount did not take something
}

// collection is one request whose output this session collects.
type collection struct {
	id       string
	final    bool
	steps    map[string]*roles.Step
	attempts map[attemptKey]*collect
	hurried  bool // its attempts were lined up once more when it became final
	closing  bool // its key is being removed
}

// collect is one attempt whose output is collected. The fields from located on belong
// to its turn while there is one.
type collect struct {
	key    attemptKey
	agent  string
	of     *collection
	state  collectState
	frozen bool // as last reported
	wait   time.Duration
	due    *time.Timer

	located bool    // what is on the mount is known
	segment segment // that is written; without a name there is none yet
	offset  int64   // of what comes next; all before is durable
	over    bool    // the agent has said that nothing comes after that
	// marked is when the mount was found to say that it has all: only the agent may
	// not know.
	marked time.Time
}

type collectState int

const (
	collectIdle collectState = iota // until it is due
	collectReady
	collectTurn // under way
	collectDone
)

func newCollector(ctx context.Context, c *Controller, s *coord.Session) *collector {
	return &collector{c: c, s: s, mail: newMailbox(), ctx: ctx, requests: map[string]*collection{}}
}

// run works until the session ends.
func (k *collector) run(ctx context.Context) error {
	defer k.tasks.wait()
	snap, stop := k.c.member.View().Follow(func(b coord.Batch) { k.mail.post(func() { k.seen(b) }) })
	defer stop()
	k.lookAtAll(snap)
	for {
		k.begin()
		select {
		case <-ctx.Done():
			for _, r := range k.requests {
				r.drop()
			}
			return ctx.Err()
		case <-k.mail.signal:
			for _, f := range k.mail.take() {
				f()
			}
		}
	}
}

// seen takes in one change of the view.
func (k *collector) seen(b coord.Batch) {
	all := false
	looks := map[string]bool{}
	changed := map[string]*collection{}
	for _, ch := range b.Changes {
		switch {
		case strings.HasPrefix(ch.Key, prefixCollect):
			looks[strings.TrimPrefix(ch.Key, prefixCollect)] = true
		case strings.HasPrefix(ch.Key, prefixClaims):
			looks[strings.TrimPrefix(ch.Key, prefixClaims)] = true
		case strings.HasPrefix(ch.Key, prefixRequests):
			id, rest := requestOf(ch.Key, prefixRequests)
			if r := k.requests[id]; r != nil && !ch.Deleted && r.note(rest, ch.KV) {
				changed[id] = r
			}
		case strings.HasPrefix(ch.Key, prefixAgents) && ch.Deleted:
			k.lineAllOf(strings.TrimPrefix(ch.Key, prefixAgents))
		case coord.IsSessionKey(ch.Key):
			all = true
		}
	}
	if all || len(looks) > 0 {
		snap := k.c.member.View().Snapshot()
		if all {
			k.lookAtAll(snap)
		}
		for id := range looks {
			k.look(snap, id)
			delete(changed, id)
		}
	}
	for id, r := range changed {
		if k.requests[id] == r {
			k.advance(r)
		}
	}
}

// lookAtAll decides anew for all requests whose output may not be on the mount.
func (k *collector) lookAtAll(snap coord.Snapshot) {
	for kv := range snap.Range(prefixCollect) {
		k.look(snap, strings.TrimPrefix(kv.Key, prefixCollect))
	}
}

// look decides whether this session collects the output of a request.
func (k *collector) look(snap coord.Snapshot, id string) {
	r := k.requests[id]
	if !outputPending(snap, id) || !k.mine(snap, id) {
		if r != nil {
			r.drop()
			delete(k.requests, id)
		}
		return
	}
	if r == nil {
		r = &collection{id: id, steps: map[string]*roles.Step{}, attempts: map[attemptKey]*collect{}}
		k.requests[id] = r
	}
	for kv := range snap.Range(prefixRequests + id + "/") {
		_, rest := requestOf(kv.Key, prefixRequests)
		r.note(rest, kv)
	}
	k.advance(r)
}

// mine reports whether this session collects the output of a request: its owner does,
// and when that is gone, one of those that are left.
func (k *collector) mine(snap coord.Snapshot, id string) bool {
	if kv, ok := snap.Get(claimKey(id)); ok {
		claim, err := decode[claimRecord](kv)
		if err == nil && coord.SessionEpoch(snap, claim.Node) == claim.Epoch {
			return claim.Node == k.c.cfg.Name && claim.Epoch == k.s.Epoch()
		}
	}
	able := map[string]bool{}
	for _, n := range coord.Controllers(snap) {
		able[n.Name] = true
	}
	return coord.Rendezvous(id, able) == k.c.cfg.Name
}

// note takes in a record of the request, and reports whether that matters.
func (r *collection) note(rest string, kv coord.KV) bool {
	if rest == "status" {
		rec, err := decode[roles.Record](kv)
		r.final = err == nil && rec.Status.Final()
		return r.final
	}
	name, ok := strings.CutPrefix(rest, "steps/")
	if !ok {
		return false
	}
	st, err := decode[roles.Step](kv)
	if err != nil {
		return false
	}
	r.steps[name] = &st
	return true
}

func (r *collection) drop() {
	for _, a := range r.attempts {
		a.finish()
	}
}

// finish ends the collection of the attempt. What comes of a turn that is under way is
// not looked at any more.
func (a *collect) finish() {
	a.stop()
	a.state = collectDone
}

func (a *collect) stop() {
	if a.due != nil {
		a.due.Stop()
		a.due = nil
	}
}

// advance lines up the attempts that have begun, and forgets the request when all its
// output is kept.
func (k *collector) advance(r *collection) {
	left := !r.final
	for _, st := range r.steps {
		left = left || st.Abandoned
		for n := 1; n <= st.Attempt; n++ {
			key := attemptKey{r.id, st.Name, n}
			a := r.attempts[key]
			if n == st.Attempt && st.Status == roles.StepDispatched && a == nil {
				left = true
				continue // it has not begun, as far as is known
			}
			if a == nil {
				a = &collect{key: key, agent: st.Agent, of: r}
				r.attempts[key] = a
				if n < st.Attempt || !st.NoOutput {
					k.line(a)
				}
			}
			if n == st.Attempt && st.NoOutput {
				a.finish()
				continue
			}
			frozen := n == st.Attempt && st.Frozen
			if frozen && !a.frozen {
				k.line(a) // it stands still until something is collected
			}
			if r.final && !r.hurried && a.state == collectIdle {
				k.line(a) // nothing more comes
			}
			a.frozen = frozen
			left = left || a.state != collectDone
		}
	}
	r.hurried = r.final
	if left || r.closing {
		return
	}
	r.closing = true
	k.s.Submit(coord.Tx{Then: []coord.Write{coord.Del(collectKey(r.id))}}, func(coord.Result, error) {})
}

// line lines an attempt up for its next turn.
func (k *collector) line(a *collect) {
	a.stop()
	if a.state == collectIdle {
		a.state = collectReady
		k.ready = append(k.ready, a)
	}
}

// lineAllOf lines up what is left of an agent that was removed.
func (k *collector) lineAllOf(agent string) {
	for _, r := range k.requests {
		for _, a := range r.attempts {
			if a.agent == agent && a.state == collectIdle {
				k.line(a)
			}
		}
	}
}

// begin begins turns while there is room.
func (k *collector) begin() {
	for k.turns < collectTurns && len(k.ready) > 0 {
		a := k.ready[0]
		k.ready[0] = nil
		k.ready = k.ready[1:]
		if a.state != collectReady {
			continue // not ours any more
		}
		a.state = collectTurn
		k.turns++
		final := a.of.final
		k.tasks.do(func() {
			t := k.turn(a, final)
			k.mail.post(func() { k.ended(a, t) })
		})
	}
}

// turn is what came of a turn.
type turn struct {
	bytes int64
	done  bool
	more  bool // there may be more to do at once
	err   error
}

// ended takes in what came of a turn.
func (k *collector) ended(a *collect, t turn) {
	k.turns--
	k.c.collected.Add(t.bytes)
	k.note(t.err)
	if a.state != collectTurn {
		return // dropped meanwhile
	}
	a.state = collectIdle
	switch {
	case t.done:
		a.state = collectDone
		k.advance(a.of)
		return
	case t.more:
		a.wait = 0
		k.line(a)
		return
	case t.bytes > 0:
		a.wait = collectSoon
	default:
		a.wait = min(max(2*a.wait, collectSoon), collectLate)
	}
	if t.err != nil {
		k.c.log.Debug("output not collected now", "attempt", a.key.String(), "agent", a.agent, "error", t.err)
	}
	a.due = time.AfterFunc(a.wait, func() { k.mail.post(func() { k.line(a) }) })
}

// note tells when the mount stops taking output, and when it takes some again.
func (k *collector) note(err error) {
	switch bad := errors.Is(err, errStore); {
	case bad && !k.trouble:
		k.trouble = true
		k.c.log.Warn("output is not collected: it waits at the agents", "error", err)
	case err == nil && k.trouble:
		k.trouble = false
		k.c.log.Info("output is collected again")
	}
}

// turn takes one turn of an attempt of a request that is final or not.
func (k *collector) turn(a *collect, final bool) turn {
	if !a.located {
		if err := k.locate(a); err != nil {
			// The agent must know that somebody comes all the same: only then what waits is
			// bounded there, and kept.
			_, _ = k.fetch(a, 1) // what comes of it is of no use before the mount is back
			return turn{err: err}
		}
	}
	got, err := k.fetch(a, collectSize)
	// Of what is final, an agent that was removed brings nothing more.
	gone := errors.Is(err, errGone) || errors.Is(err, api.ErrUnavailable) && final && k.c.removed(a.agent)
	switch {
	case !a.marked.IsZero():
		// Told, or nobody is left to be told.
		return turn{done: err == nil || gone || time.Since(a.marked) > collectFarewell, err: err}
	case a.over && (err == nil || gone):
		// Told. What processes that were left behind have written since is no part of it.
		err := k.mark(a, "end")
		return turn{done: err == nil, err: err}
	case gone && !final:
		// What ran under a copy of the agent's directory may be back before the end.
		return turn{err: err}
	case gone:
		err := k.mark(a, "gone")
		return turn{done: err == nil, err: err}
	case err != nil:
		return turn{err: err}
	}
	t := turn{bytes: int64(len(got.data)), more: got.complete || got.broken || len(got.data) == collectSize}
	if len(got.data) == 0 {
		a.offset = max(a.offset, got.offset) // what is before is gone
	} else if err := k.keep(a, got); err != nil {
		return turn{err: err}
	}
	if a.over = got.complete; a.over && len(got.data) == 0 {
		t.err = k.mark(a, "end") // this read has told the agent
		t.done = t.err == nil
		t.more = false
	}
	return t
}

// locate finds out what is on the mount already.
func (k *collector) locate(a *collect) error {
	ctx, cancel := context.WithTimeout(k.ctx, collectTimeout)
	defer cancel()
	kept, err := k.c.kept(ctx, a.key)
	if err != nil {
		return err
	}
	generation, _ := k.c.member.Generation()
	a.located, a.segment = true, segment{generation: generation, epoch: k.s.Epoch()}
	a.offset, a.segment.number = kept.resume()
	if kept.end >= 0 || kept.gone >= 0 {
		a.marked, a.offset = time.Now(), max(kept.end, kept.gone)
	}
	return nil
}

// fetched is what an agent has of an attempt.
type fetched struct {
	offset   int64
	data     []byte
	complete bool // that is all there will be
	broken   bool // it ends at a part that is gone
}

// errEnough ends a read.
var errEnough = errors.New("enough was read")

// fetch reads at most limit bytes of what follows at the agent, and tells it that all
// before is durable, and that somebody comes for the rest.
func (k *collector) fetch(a *collect, limit int64) (fetched, error) {
	ctx, cancel := context.WithTimeout(k.ctx, collectTimeout)
	defer cancel()
	got := fetched{offset: a.offset}
	err := k.c.readAgent(ctx, a.agent, &wire.ReadOutput{
		Request: a.key.request, Step: a.key.step, Attempt: uint32(a.key.attempt),
		Offset: a.offset, Limit: limit, Collect: true,
	}, func(chunk *wire.OutputChunk) error {
		switch next := got.offset + int64(len(got.data)); {
		case chunk.GetOffset() > next && len(got.data) > 0:
			got.broken = true
			return errEnough
		case chunk.GetOffset() > next:
			got.offset = chunk.GetOffset()
		case chunk.GetOffset() < next:
			return fmt.Errorf("agent %s sent bytes from %d on, %d were expected", a.agent, chunk.GetOffset(), next)
		}
		got.data = append(got.data, chunk.GetData()...)
		got.complete = chunk.GetComplete()
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return got, err
}

// keep makes bytes durable on the mount. After an error their segment is left alone,
// because nobody knows what of them will be in it.
func (k *collector) keep(a *collect, got fetched) error {
	if a.segment.name == "" || a.segment.end() != got.offset {
		if a.segment.name != "" {
			a.segment.number++
		}
		a.segment.start, a.segment.size = got.offset, 0
		a.segment.name = outputDir(a.key) + "/" + a.segment.file()
	}
	ctx, cancel := context.WithTimeout(k.ctx, collectTimeout)
	defer cancel()
	if err := k.c.deps.Output.Append(ctx, a.segment.name, a.segment.size, got.data); err != nil {
		name := a.segment.name
		a.segment.name = ""
		a.segment.number++
		return storeError(fmt.Errorf("append to %s: %w", name, err))
	}
	a.segment.size += int64(len(got.data))
	a.offset = got.offset + int64(len(got.data))
	return nil
}

// mark writes on the mount that nothing comes after the present offset.
func (k *collector) mark(a *collect, what string) error {
	ctx, cancel := context.WithTimeout(k.ctx, collectTimeout)
	defer cancel()
	name := fmt.Sprintf("%s/%s-%d", outputDir(a.key), what, a.offset)
	if err := k.c.deps.Output.Create(ctx, name, nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return storeError(fmt.Errorf("create %s: %w", name, err))
	}
	return nil
}

// collectedBy returns the writes that say that nothing is left to collect, if the change
// that makes a request final shows that none of its attempts had any output.
func (c *Controller) collectedBy(state roles.State, change roles.Change) []coord.Write {
	if !c.collects() || !change.Record || !state.Record.Status.Final() {
		return nil
	}
	for _, st := range state.Steps {
		if st.Attempt > 1 || st.Attempt == 1 && !st.NoOutput || st.Abandoned {
			return nil
		}
	}
	return []coord.Write{coord.Del(collectKey(state.Request.ID))}
}

// mustCollect returns the write that has the output of a request collected, unless it
// stands already.
func (c *Controller) mustCollect(snap coord.Snapshot, state roles.State) []coord.Write {
	id := state.Request.ID
	if !c.collects() || state.Record.Status.Final() || outputPending(snap, id) {
		return nil
	}
	return []coord.Write{coord.Put(collectKey(id), nil)}
}
