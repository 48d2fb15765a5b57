package controller

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/time/rate"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// Presence is written when it changes. An agent whose links come and go all the time
// is written less often than that, and then as it is: after presenceBurst changes in
// a row, once every presenceEvery.
const (
	presenceBurst = 8
	presenceEvery = 5 * time.Second
)

// presence writes which agents this controller holds links to, in one session. What
// is written is how it is at that time, so changes in between cost nothing. Safe for
// concurrent use.
type presence struct {
	c    *Controller
	s    *coord.Session
	d    *desk // for its tasks, which end with the session
	pace *pacer

	mu sync.Mutex // held while looking and writing: whoever writes last has looked last
}

func newPresence(c *Controller, s *coord.Session, d *desk) *presence {
	p := &presence{c: c, s: s, d: d}
	p.pace = newPacer(d.ctx, &d.tasks, p.write)
	return p
}

// pacer calls a function soon after each change of something that has a name, but
// not much more often than once every presenceEvery. Safe for concurrent use.
type pacer struct {
	ctx   context.Context
	tasks *tasks
	call  func(name string)

	mu    sync.Mutex // guards names
	names map[string]*paced
}

type paced struct {
	limit *rate.Limiter
	due   bool // a call is to come
}

func newPacer(ctx context.Context, t *tasks, call func(string)) *pacer {
	return &pacer{ctx: ctx, tasks: t, call: call, names: map[string]*paced{}}
}

// changed says that something changed. The call that follows begins after that.
func (p *pacer) changed(name string) {
	p.mu.Lock()
	n := p.names[name]
	if n == nil {
		n = &paced{limit: rate.NewLimiter(rate.Every(presenceEvery), presenceBurst)}
		p.names[name] = n
	}
	if n.due {
		p.mu.Unlock()
		return
	}
	wait := n.limit.Reserve().Delay()
	n.due = wait > 0
	p.mu.Unlock()
	if wait == 0 {
		p.call(name)
		return
	}
	p.tasks.do(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			return
		}
		p.mu.Lock()
		n.due = false
		p.mu.Unlock()
		p.call(name)
	})
}

// write writes whether this controller holds a link to an agent, and the agent's
// record if it differs from what is stored.
func (p *presence) write(agent string) {
	key := linkKey(agent, p.c.cfg.Name)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.c.links.get(agent)
	if l == nil {
		kv, known := p.c.member.View().Get(key)
		rec, err := decode[linkRecord](kv)
		if !known || err != nil {
			rec = linkRecord{Epoch: p.s.Epoch()} // its beginning is on its way
		}
		rec.Until = now()
		p.s.Submit(coord.Tx{Then: []coord.Write{coord.Put(key, encode(rec))}}, func(coord.Result, error) {})
		return
	}
	rec := linkRecord{Epoch: p.s.Epoch(), Since: now(), Via: l.hello.GetVia(), Instance: l.hello.GetInstance(), Host: l.hello.GetHost()}
	p.s.Submit(coord.Tx{Then: []coord.Write{coord.Put(key, encode(rec))}}, func(coord.Result, error) {})
	p.record(l)
}

// record writes the record of an agent as its hello has it.
func (p *presence) record(l *link) {
	h := l.hello
	kv, known := p.c.member.View().Get(agentKey(l.agent))
	rec, _ := decode[agentRecord](kv)
	next := rec
	next.Name, next.Host, next.Version = l.agent, h.GetHost(), h.GetVersion()
	next.Labels, next.Journal = h.GetLabels(), roles.Journal{ID: h.GetJournal().GetId()}
	if !known || rec.FirstSeen == "" {
		next.FirstSeen = now()
	}
	if known && rec.Host == next.Host && rec.Version == next.Version && rec.Journal == next.Journal && maps.Equal(rec.Labels, next.Labels) {
		return
	}
	p.s.Submit(coord.Tx{
		If:   []coord.Cond{coord.ModIs(agentKey(l.agent), kv.Mod)},
		Then: []coord.Write{coord.Put(agentKey(l.agent), encode(next))},
	}, func(res coord.Result, err error) {
		if err == nil && !res.Won {
			// Somebody changed the record meanwhile: with what is there now.
			p.d.tasks.do(func() {
				if p.c.member.View().Wait(p.d.ctx, res.Revision) == nil && l.ctx.Err() == nil {
					p.record(l)
				}
			})
		}
	})
}

// linksTo lists the controllers that hold a link to an agent.
func linksTo(snap coord.Snapshot, agent string) []string {
	var out []string
	for controller, l := range linksOf(snap, agent) {
		if l.held(snap, controller) {
			out = append(out, controller)
		}
	}
	return out
}

// lastSeen is when somebody last held a link to an agent that nobody holds one to
// now, by the clock of whoever wrote it down; the zero time if nobody did.
func lastSeen(snap coord.Snapshot, agent string) time.Time {
	l, controller, ok := newestLink(snap, agent)
	if !ok {
		return time.Time{}
	}
	if l.Until == "" { // the controller did not live to see the end
		for _, loss := range coord.Losses(snap) {
			if loss.Node == controller && loss.Epoch == l.Epoch {
				return loss.At
			}
		}
	}
	at, _ := time.Parse(time.RFC3339, string(cmp.Or(l.Until, l.Since)))
	return at
}

// newestLink returns the link to an agent that was written down last, and who holds or
// held it: stamps of several clocks do not compare. ok is false if there was none.
func newestLink(snap coord.Snapshot, agent string) (l linkRecord, controller string, ok bool) {
	var last coord.KV
	for kv := range snap.Range(prefixLinks + agent + "/") {
		if kv.Mod > last.Mod {
			last = kv
		}
	}
	l, err := decode[linkRecord](last)
	if err != nil {
		return l, "", false
	}
	_, controller = requestOf(last.Key, prefixLinks)
	return l, controller, true
}

// ListAgents lists all enrolled agents.
func (c *Controller) ListAgents(context.Context) ([]api.Agent, error) {
	snap := c.member.View().Snapshot()
	f := fleetOf(snap)
	out := []api.Agent{}
	for kv := range snap.Range(prefixAgents) {
		rec, err := decode[agentRecord](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, c.agentView(snap, f, rec))
	}
	return out, nil
}

// GetAgent returns one agent.
func (c *Controller) GetAgent(_ context.Context, name string) (api.Agent, error) {
	snap := c.member.View().Snapshot()
	kv, ok := snap.Get(agentKey(name))
	if !ok {
		return api.Agent{}, fmt.Errorf("%w: agent %q", api.ErrNotFound, name)
	}
	rec, err := decode[agentRecord](kv)
	return c.agentView(snap, fleetOf(snap), rec), err
}

func (c *Controller) agentView(snap coord.Snapshot, f *fleet, rec agentRecord) api.Agent {
	a := api.Agent{
		Name: rec.Name, Host: rec.Host, Version: rec.Version, Labels: rec.Labels, Suspended: rec.Suspended,
		Clusters: f.clustersOf(rec), Running: c.out("", rec.Name), Limit: rec.Limit, Links: linksTo(snap, rec.Name),
	}
	a.FirstSeen, _ = time.Parse(time.RFC3339, string(rec.FirstSeen))
	if a.Connected = len(a.Links) > 0; a.Connected {
		a.LastSeen = time.Now().UTC().Truncate(time.Second)
	} else {
		a.LastSeen = lastSeen(snap, rec.Name)
	}
	for _, controller := range a.Links {
		kv, _ := snap.Get(linkKey(rec.Name, controller))
		if l, err := decode[linkRecord](kv); err == nil && len(l.Via) > 0 {
			if a.Via == nil {
				a.Via = map[string]string{}
			}
			a.Via[controller] = strings.Join(l.Via, ",")
		}
	}
	return a
}

// SuspendAgent sets or clears that an agent gets no new steps.
func (c *Controller) SuspendAgent(ctx context.Context, a api.Actor, name string, suspended bool) (api.Agent, error) {
	kind := "agent.resumed"
	if suspended {
		kind = "agent.suspended"
	}
	return c.changeAgent(ctx, name, c.audit(a, kind, name, nil), func(rec *agentRecord) { rec.Suspended = suspended })
}

// LimitAgent sets how many steps may be out at an agent.
func (c *Controller) LimitAgent(ctx context.Context, a api.Actor, name string, limit int) (api.Agent, error) {
	event := c.audit(a, "agent.limited", name, map[string]string{"limit": fmt.Sprint(limit)})
	return c.changeAgent(ctx, name, event, func(rec *agentRecord) { rec.Limit = limit })
}

func (c *Controller) changeAgent(ctx context.Context, name string, event coord.Write, f func(*agentRecord)) (api.Agent, error) {
	err := c.change(ctx, "agent", name, agentKey(name), event, func(kv coord.KV) ([]byte, error) {
		rec, err := decode[agentRecord](kv)
		f(&rec)
		return encode(rec), err
	})
	if err != nil {
		return api.Agent{}, err
	}
	return c.GetAgent(ctx, name)
}

// RemoveAgent forgets an agent: its record, with its limit and whether it was
// suspended. Steps that are out there stay what they are; what finished requests have
// written there and nobody has collected is given up if the agent is not connected.
// Whoever holds a link to it ends that when it sees that the record is gone.
func (c *Controller) RemoveAgent(ctx context.Context, a api.Actor, name string, force bool) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	var detail map[string]string
	if force {
		detail = map[string]string{"forced": "true"}
	}
	for {
		if err := c.member.Sync(ctx); err != nil {
			return unavailable(err)
		}
		snap := c.member.View().Snapshot()
		kv, known := snap.Get(agentKey(name))
		if !known && c.removed(name) {
			return fmt.Errorf("%w: agent %q", api.ErrNotFound, name)
		}
		links, out := linksTo(snap, name), c.out("", name)
		switch {
		case force:
		case len(links) > 0:
			return fmt.Errorf("%w: agent %s is connected to %s; stop it first", api.ErrConflict, name, strings.Join(links, ", "))
		case out > 0:
			return fmt.Errorf("%w: %d steps are out at agent %s; wait for it, or resolve them", api.ErrConflict, out, name)
		}
		tx := coord.Tx{
			If:   []coord.Cond{coord.ModIs(agentKey(name), kv.Mod)},
			Then: []coord.Write{c.audit(a, "agent.removed", name, detail), coord.Del(agentKey(name))},
		}
		for kv := range snap.Range(prefixLinks + name + "/") {
			tx.If = append(tx.If, coord.ModIs(kv.Key, kv.Mod))
			if len(links) == 0 { // else who holds one goes on telling of it
				tx.Then = append(tx.Then, coord.Del(kv.Key))
			}
		}
		res, err := s.Commit(ctx, tx)
		if err != nil {
			return unavailable(err)
		}
		if err := c.member.View().Wait(ctx, res.Revision); err != nil {
			return unavailable(err)
		}
		if res.Won {
			return c.clear(ctx, s, slotsOfAgent(name))
		}
	}
}

// removed reports whether nothing is stored of an agent: it was removed while nobody
// held a link to it, and has not been back. One that is removed while it is connected
// leaves its links behind, and its record comes again with the next.
func (c *Controller) removed(name string) bool {
	snap := c.member.View().Snapshot()
	if _, known := snap.Get(agentKey(name)); known {
		return false
	}
	for range snap.Range(prefixLinks + name + "/") {
		return false
	}
	return true
}

// forget ends the link to an agent that was removed: it says hello again, and has a
// record again. Else it would be given steps and be in no list.
func (c *Controller) forget(agent string) {
	if l := c.links.get(agent); l != nil {
		l.drop(fmt.Errorf("agent %s was removed while it was connected", agent))
	}
}

// reportLosses writes an event for every loss that has none yet, for one term.
// The event's id is made of the loss, so that it is written once whoever does.
func (c *Controller) reportLosses(ctx context.Context, s *coord.Session, t *coord.Term) error {
	again := make(chan struct{}, 1)
	_, stop := c.member.View().Follow(func(b coord.Batch) {
		for _, ch := range b.Changes {
			if coord.IsLossKey(ch.Key) {
				select {
				case again <- struct{}{}:
				default:
				}
			}
		}
	})
	defer stop()
	for {
		snap := c.member.View().Snapshot()
		for _, loss := range coord.Losses(snap) {
			id := lossEvent(loss)
			if _, done := snap.Get(eventKey(id)); done {
				continue
			}
			e := api.Event{ID: id, At: loss.At, Kind: "node.lost", Subject: loss.Node, By: loss.Decider, Node: c.cfg.Name,
				Detail: map[string]string{"evidence": loss.Evidence, "agreed": fmt.Sprint(loss.Agreed), "successor": loss.Successor}}
			s.Submit(coord.Tx{If: []coord.Cond{t.Guard(), coord.Absent(eventKey(id))}, Then: []coord.Write{coord.Put(eventKey(id), encode(e))}},
				func(coord.Result, error) {})
		}
		select {
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func lossEvent(l coord.LossRecord) string {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(l.At))
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", l.Node, l.Epoch))
	_ = id.SetEntropy(sum[:10])
	return id.String()
}
