package controller

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// applying is a call of Apply that is being put together.
type applying struct {
	c      *Controller
	snap   coord.Snapshot
	actor  api.Actor
	seen   map[string]bool // keys
	out    []api.Applied
	conds  []coord.Cond
	writes []coord.Write
}

// add takes a definition in, whose value at its key is to be text.
func (a *applying) add(kind, noun, name, key string, d roles.Definition, text func(before coord.KV) ([]byte, error)) error {
	if a.seen[key] {
		return fmt.Errorf("%w: %s %q is given twice", api.ErrInvalid, kind, name)
	}
	a.seen[key] = true
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	before, exists := a.snap.Get(key)
	next, err := text(before)
	if err != nil {
		return err
	}
	result := "created"
	switch {
	case exists && bytes.Equal(before.Value, next):
		result = "unchanged"
	case exists:
		result = "changed"
	}
	a.out = append(a.out, api.Applied{Kind: kind, Name: name, Result: result})
	if result != "unchanged" {
		a.conds = append(a.conds, coord.ModIs(key, before.Mod))
		// The event first: nobody else ever writes its key.
		a.writes = append(a.writes, a.c.audit(a.actor, noun+"."+result, name, nil), coord.Put(key, next))
	}
	return nil
}

// Apply stores all of the documents or none.
func (c *Controller) Apply(ctx context.Context, actor api.Actor, docs api.Documents, dryRun bool) ([]api.Applied, error) {
	for {
		s, err := c.growing()
		if err != nil {
			return nil, err
		}
		a := &applying{c: c, snap: c.member.View().Snapshot(), actor: actor, seen: map[string]bool{}, out: []api.Applied{}}
		for i := range docs.Processes {
			p := &docs.Processes[i]
			err := a.add(roles.KindProcess, "process", p.Name, processKey(p.Name), p, func(coord.KV) ([]byte, error) { return encode(p), nil })
			if err != nil {
				return nil, err
			}
		}
		for i := range docs.AgentClusters {
			d := &docs.AgentClusters[i]
			err := a.add(roles.KindAgentCluster, "agent_cluster", d.Name, clusterKey(d.Name), d, func(before coord.KV) ([]byte, error) {
				return clusterText(before, d)
			})
			if err != nil {
				return nil, err
			}
		}
		if dryRun || len(a.writes) == 0 {
			return a.out, nil
		}
		res, err := s.Commit(ctx, coord.Tx{If: a.conds, Then: a.writes})
		if err != nil {
			return nil, unavailable(err)
		}
		if err := c.member.View().Wait(ctx, res.Revision); err != nil {
			return nil, unavailable(err)
		}
		if res.Won {
			return a.out, nil
		}
		// Somebody changed one of them meanwhile: with what is there now.
	}
}

// clusterText is the value of clusters/<name> after a definition was applied over
// the one before. What operators said stays, unless the definition says otherwise.
func clusterText(before coord.KV, d *roles.AgentCluster) ([]byte, error) {
	var rec clusterRecord
	if before.Mod != 0 {
		var err error
		if rec, err = decode[clusterRecord](before); err != nil {
			return nil, err
		}
	}
	rec.AgentCluster = *d
	rec.AgentCluster.Suspended = nil
	if d.Suspended != nil {
		rec.Suspended = *d.Suspended
	}
	return encode(rec), nil
}

// ListAgentClusters lists all agent clusters in order of their names.
func (c *Controller) ListAgentClusters(context.Context) ([]api.AgentClusterStatus, error) {
	snap := c.member.View().Snapshot()
	f := fleetOf(snap)
	out := []api.AgentClusterStatus{}
	for kv := range snap.Range(prefixClusters) {
		rec, err := decode[clusterRecord](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, c.clusterStatus(snap, f, rec))
	}
	return out, nil
}

// GetAgentCluster returns one agent cluster.
func (c *Controller) GetAgentCluster(_ context.Context, name string) (api.AgentClusterStatus, error) {
	snap := c.member.View().Snapshot()
	kv, ok := snap.Get(clusterKey(name))
	if !ok {
		return api.AgentClusterStatus{}, fmt.Errorf("%w: agent cluster %q", api.ErrNotFound, name)
	}
	rec, err := decode[clusterRecord](kv)
	if err != nil {
		return api.AgentClusterStatus{}, err
	}
	return c.clusterStatus(snap, fleetOf(snap), rec), nil
}

func (c *Controller) clusterStatus(snap coord.Snapshot, f *fleet, rec clusterRecord) api.AgentClusterStatus {
	out := api.AgentClusterStatus{
		Name: rec.Name, Labels: rec.Labels, Agents: rec.Agents, Distribution: rec.Distribution, Limit: rec.Limit, AgentLimit: rec.AgentLimit,
		Suspended: rec.Suspended, Running: c.out(rec.Name, ""), Members: []api.ClusterMember{},
	}
	names := slices.Clone(rec.AgentCluster.Agents) // also those that were never seen
	for name, agent := range f.agents {
		if rec.Has(name, agent.Labels) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		out.Members = append(out.Members, api.ClusterMember{
			Agent: name, Connected: len(linksTo(snap, name)) > 0, Running: c.out(rec.Name, name),
			Suspended: f.agents[name].Suspended || slices.Contains(rec.Without, name),
		})
	}
	return out
}

// out is how many steps are out, as the desk counts them.
func (c *Controller) out(cluster, agent string) int {
	if d := c.desk.Load(); d != nil {
		return d.load.of(cluster, agent)
	}
	return 0
}

// SuspendAgentCluster sets or clears that a cluster gets no new steps, or that one
// agent gets none of it.
func (c *Controller) SuspendAgentCluster(ctx context.Context, a api.Actor, name, agent string, suspended bool) (api.AgentClusterStatus, error) {
	none := func(err error) (api.AgentClusterStatus, error) { return api.AgentClusterStatus{}, err }
	kind := "agent_cluster.resumed"
	if suspended {
		kind = "agent_cluster.suspended"
	}
	var detail map[string]string
	if agent != "" {
		detail = map[string]string{"agent": agent}
	}
	err := c.change(ctx, "agent cluster", name, clusterKey(name), c.audit(a, kind, name, detail), func(kv coord.KV) ([]byte, error) {
		rec, err := decode[clusterRecord](kv)
		if err != nil || agent == "" {
			rec.Suspended = suspended
			return encode(rec), err
		}
		known, _ := c.member.View().Get(agentKey(agent))
		labels, _ := decode[agentRecord](known)
		if !rec.Has(agent, labels.Labels) {
			return nil, fmt.Errorf("%w: agent %s is no member of agent cluster %s", api.ErrNotFound, agent, name)
		}
		rec.Without = slices.DeleteFunc(rec.Without, func(m string) bool { return m == agent })
		if suspended {
			rec.Without = append(rec.Without, agent)
			slices.Sort(rec.Without)
		}
		return encode(rec), nil
	})
	if err != nil {
		return none(err)
	}
	return c.GetAgentCluster(ctx, name)
}

// DeleteAgentCluster deletes a definition. With force also one that processes name:
// their steps wait until there is one of that name again.
func (c *Controller) DeleteAgentCluster(ctx context.Context, a api.Actor, name string, force bool) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	if err := c.member.Sync(ctx); err != nil { // a process may just have been applied elsewhere
		return unavailable(err)
	}
	snap := c.member.View().Snapshot()
	if _, ok := snap.Get(clusterKey(name)); !ok {
		return fmt.Errorf("%w: agent cluster %q", api.ErrNotFound, name)
	}
	for kv := range snap.Range(prefixProcesses) {
		p, err := decode[roles.Process](kv)
		if err != nil {
			return err
		}
		for i := range p.Steps {
			if (p.Steps[i].Agent.Cluster == name || p.Steps[i].ForEach != nil && p.Steps[i].ForEach.Cluster == name) && !force {
				return fmt.Errorf("%w: step %s of process %s names agent cluster %s; force deletes it all the same",
					api.ErrConflict, p.Steps[i].Name, p.Name, name)
			}
		}
	}
	if err := c.commit(ctx, s, coord.Del(clusterKey(name)), c.audit(a, "agent_cluster.deleted", name, nil)); err != nil {
		return err
	}
	return c.clear(ctx, s, prefixSlots+"cluster/"+name+"/", prefixSlots+"member/"+name+"/")
}

// clear deletes slots of a limit that is gone. A step that had one is still counted.
func (c *Controller) clear(ctx context.Context, s *coord.Session, prefixes ...string) error {
	const most = 1000 // writes at a time
	var writes []coord.Write
	for _, prefix := range prefixes {
		for kv := range c.member.View().Snapshot().Range(prefix) {
			writes = append(writes, coord.Del(kv.Key))
		}
	}
	for part := range slices.Chunk(writes, most) {
		if err := c.commit(ctx, s, part...); err != nil {
			return err
		}
	}
	return nil
}

// change replaces the value of a key that exists by what f makes of it, together
// with the event that tells of it.
func (c *Controller) change(ctx context.Context, what, name, key string, with coord.Write, f func(coord.KV) ([]byte, error)) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	for {
		kv, ok := c.member.View().Get(key)
		if !ok {
			return fmt.Errorf("%w: %s %q", api.ErrNotFound, what, name)
		}
		text, err := f(kv)
		if err != nil {
			return err
		}
		res, err := s.Commit(ctx, coord.Tx{
			If:   []coord.Cond{coord.ModIs(kv.Key, kv.Mod)},
			Then: []coord.Write{with, coord.Put(kv.Key, text)},
		})
		if err != nil {
			return unavailable(err)
		}
		if err := c.member.View().Wait(ctx, res.Revision); err != nil {
			return unavailable(err)
		}
		if res.Won {
			return nil
		}
	}
}
