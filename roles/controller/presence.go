package controller

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// present writes that this controller holds a link to an agent, and the
// agent's record if it differs from what is stored.
func (c *Controller) present(s *coord.Session, l *link) {
	h := l.hello
	s.Submit(coord.Tx{Then: []coord.Write{
		coord.Put(linkKey(l.agent, c.cfg.Name), encode(linkRecord{Epoch: s.Epoch(), Since: now(), Via: h.GetVia()})),
	}}, func(coord.Result, error) {})

	kv, known := c.member.View().Get(agentKey(l.agent))
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
	s.Submit(coord.Tx{
		If:   []coord.Cond{coord.ModIs(agentKey(l.agent), kv.Mod)},
		Then: []coord.Write{coord.Put(agentKey(l.agent), encode(next))},
	}, func(res coord.Result, err error) {
		if err == nil && !res.Won {
			// Somebody changed the record meanwhile: with what is there now.
			if d := c.desk.Load(); d != nil {
				d.tasks.do(func() {
					if c.member.View().Wait(d.ctx, res.Revision) == nil && l.ctx.Err() == nil {
						c.present(s, l)
					}
				})
			}
		}
	})
}

// ListAgents lists all enrolled agents.
func (c *Controller) ListAgents(context.Context) ([]api.Agent, error) {
	snap := c.member.View().Snapshot()
	out := []api.Agent{}
	for kv := range snap.Range(prefixAgents) {
		rec, err := decode[agentRecord](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, agentView(snap, rec))
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
	return agentView(snap, rec), err
}

func agentView(snap coord.Snapshot, rec agentRecord) api.Agent {
	a := api.Agent{Name: rec.Name, Host: rec.Host, Version: rec.Version, Labels: rec.Labels, Suspended: rec.Suspended}
	a.FirstSeen, _ = time.Parse(time.RFC3339, string(rec.FirstSeen))
	for kv := range snap.Range(prefixLinks + rec.Name + "/") {
		_, controller := requestOf(kv.Key, prefixLinks)
		l, err := decode[linkRecord](kv)
		if err != nil || coord.SessionEpoch(snap, controller) != l.Epoch {
			continue
		}
		a.Connected = true
		a.Links = append(a.Links, controller)
		if len(l.Via) > 0 {
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
	s, err := c.current()
	if err != nil {
		return api.Agent{}, err
	}
	for {
		kv, ok := c.member.View().Get(agentKey(name))
		if !ok {
			return api.Agent{}, fmt.Errorf("%w: agent %q", api.ErrNotFound, name)
		}
		rec, err := decode[agentRecord](kv)
		if err != nil {
			return api.Agent{}, err
		}
		rec.Suspended = suspended
		kind := "agent.resumed"
		if suspended {
			kind = "agent.suspended"
		}
		res, err := s.Commit(ctx, coord.Tx{
			If:   []coord.Cond{coord.ModIs(kv.Key, kv.Mod)},
			Then: []coord.Write{coord.Put(kv.Key, encode(rec)), c.audit(a, kind, name, nil)},
		})
		if err != nil {
			return api.Agent{}, unavailable(err)
		}
		if err := c.member.View().Wait(ctx, res.Revision); err != nil {
			return api.Agent{}, unavailable(err)
		}
		if res.Won {
			return c.GetAgent(ctx, name)
		}
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
