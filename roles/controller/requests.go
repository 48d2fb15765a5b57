package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// Accept makes a request durable, in one transaction with its idempotency key
// and, if this controller may own it, its claim. From then on the request
// exists and will reach a final status.
func (c *Controller) Accept(ctx context.Context, a api.Actor, spec api.RunSpec, key string) (api.Request, bool, error) {
	none := func(err error) (api.Request, bool, error) { return api.Request{}, false, err }
	s, err := c.current()
	if err != nil {
		return none(err)
	}
	adm, err := c.admit(ctx, a, spec, key)
	if err != nil {
		// A refusal is final for the client. What refuses it may be old news here,
		// and an earlier attempt may have been accepted that is not shown yet.
		if err := c.member.Sync(ctx); err != nil {
			return none(unavailable(err))
		}
		adm, err = c.admit(ctx, a, spec, key)
	}
	if err != nil {
		return none(err)
	}
	if adm.before != nil {
		return *adm.before, false, nil
	}
	type outcome struct {
		res coord.Result
		err error
	}
	done := make(chan outcome, 1)
	answer := func(res coord.Result, err error) { done <- outcome{res, err} }
	if d := c.desk.Load(); adm.mine && d != nil && d.s == s {
		// The desk takes it over, whether or not the client is still there to hear.
		d.mail.post(func() { d.accept(adm, answer) })
	} else {
		s.Submit(adm.with(adm.state, roles.Change{Record: true}), answer)
	}
	unknown := func(why error) (api.Request, bool, error) {
		return none(fmt.Errorf("%w: whether the request was accepted is unknown: %w", api.ErrUnavailable, why))
	}
	ended := s.Context().Done()
	var late <-chan time.Time
	for {
		select {
		case <-ended:
			// An orderly end still commits what was under way. Else the desk is gone
			// too, perhaps with this in its mailbox.
			ended, late = nil, time.After(goodbyeTimeout)
		case <-late:
			return unknown(coord.ErrFenced)
		case <-ctx.Done():
			return unknown(ctx.Err())
		case o := <-done:
			if o.err != nil {
				return none(unavailable(o.err))
			}
			return c.outcome(ctx, spec, key, adm.state.Request.ID, o.res)
		}
	}
}

// outcome returns what an acceptance came to. Its answer may be used for a read at
// once, here or elsewhere.
func (c *Controller) outcome(ctx context.Context, spec api.RunSpec, key, id string, res coord.Result) (api.Request, bool, error) {
	if err := c.member.View().Wait(ctx, res.Revision); err != nil {
		return api.Request{}, false, unavailable(err)
	}
	if !res.Won {
		req, found, err := c.accepted(ctx, key, spec)
		if err == nil && !found {
			err = fmt.Errorf("%w: request id %s is taken", api.ErrConflict, id)
		}
		return req, false, err
	}
	r, err := c.GetRequest(ctx, id)
	return r, true, err
}

// admission is what becomes of a call of Accept.
type admission struct {
	// before is the request that an earlier call with the same key made, nil for
	// none. Otherwise there is a new one: its state, and the transaction that makes
	// it but for the records of the state.
	before *api.Request
	state  roles.State
	tx     coord.Tx
	// mine says that this controller may claim the request at once.
	mine bool
}

// with returns the transaction that accepts a request in a state.
func (a admission) with(s roles.State, c roles.Change) coord.Tx {
	return coord.Tx{If: a.tx.If, Then: slices.Concat(a.tx.Then, records(s.Request.ID, s, c))}
}

// admit decides on a call of Accept by what this controller shows. What was
// accepted before is not refused for anything: the client would take it for
// undone.
func (c *Controller) admit(ctx context.Context, a api.Actor, spec api.RunSpec, key string) (admission, error) {
	var adm admission
	if key != "" {
		if req, found, err := c.accepted(ctx, key, spec); found || err != nil {
			adm.before = &req
			return adm, err
		}
	}
	if err := c.member.CheckRoom(coord.RoomForRequests); err != nil {
		return adm, fmt.Errorf("%w: %w", api.ErrNoRoom, err)
	}
	snap := c.member.View().Snapshot()
	proc, err := processIn(snap, spec.Process)
	if err != nil {
		return adm, err
	}
	id := newID()
	req, err := roles.NewRequest(&proc, roles.RequestOptions{
		ID: id, Params: spec.Params, RequestedBy: a.Name, RequestedAt: now(), IdempotencyKey: key,
	})
	if err != nil {
		return adm, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	if err := knownAgents(snap, &req.Process); err != nil {
		return adm, err
	}
	text, err := req.Encode()
	if err != nil {
		return adm, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	number, _ := c.member.Generation()
	generation := uint64(number)
	if adm.state, err = roles.NewState(req, generation); err != nil {
		return adm, err
	}
	adm.tx = coord.Tx{
		If: []coord.Cond{coord.Absent(specKey(id))},
		Then: []coord.Write{
			coord.Put(specKey(id), text),
			c.audit(a, "request.accepted", id, map[string]string{"process": proc.Name}),
		},
	}
	adm.tx.Then = append(adm.tx.Then, c.mustCollect(snap, adm.state)...)
	if key != "" {
		adm.tx.If = append(adm.tx.If, coord.Absent(idemKey(key)))
		adm.tx.Then = append(adm.tx.Then, coord.Put(idemKey(key), encode(idemRecord{Request: id, Digest: req.Digest})))
	}
	adm.mine = c.eligible(snap).fresh[c.cfg.Name]
	return adm, nil
}

// accepted returns the request that an idempotency key created.
func (c *Controller) accepted(ctx context.Context, key string, spec api.RunSpec) (api.Request, bool, error) {
	snap := c.member.View().Snapshot()
	kv, ok := snap.Get(idemKey(key))
	if !ok {
		return api.Request{}, false, nil
	}
	rec, err := decode[idemRecord](kv)
	if err != nil {
		return api.Request{}, false, err
	}
	if rec.Digest != roles.ContentDigest(spec.Process, spec.Params) {
		return api.Request{}, true, fmt.Errorf("%w: idempotency key %q was used for request %s with other content", api.ErrConflict, key, rec.Request)
	}
	state, claim, fence, err := c.stateOf(ctx, snap, rec.Request)
	switch {
	case err == nil:
		return c.view(snap, state, claim, fence), true, nil
	case rec.Final == nil:
		return api.Request{}, true, err
	}
	// The history has it and cannot be read, or has had it.
	return api.Request{
		ID: rec.Request, Process: spec.Process, Params: spec.Params, Status: rec.Final.Status, Steps: []api.Step{},
		RequestedBy: rec.Final.RequestedBy, RequestedAt: rec.Final.RequestedAt, StartedAt: rec.Final.StartedAt, FinishedAt: rec.Final.FinishedAt,
		Reason: "its steps are in the history, which cannot be read now, or not any more",
	}, true, nil
}

// knownAgents refuses a process whose agents were never seen, or whose agent
// clusters do not exist. It is asked for every request, so it looks at no more
// agents than it must.
func knownAgents(snap coord.Snapshot, p *roles.Process) error {
	for i := range p.Steps {
		// Those that have labels are looked for when the step is ready. A name that
		// nobody has is a mistake, and would be left out there.
		if each := p.Steps[i].ForEach; each != nil {
			if err := knownTargets(snap, p.Steps[i].Name, each); err != nil {
				return err
			}
		}
	}
	for _, sel := range p.Selectors() {
		matches := sel.Matches
		if sel.Cluster != "" {
			kv, known := snap.Get(clusterKey(sel.Cluster))
			cluster, err := decode[clusterRecord](kv)
			switch {
			case !known:
				names := slices.Sorted(maps.Keys(fleetOf(snap).clusters))
				return fmt.Errorf("%w: there is no agent cluster %s%s", api.ErrInvalid, sel.Cluster, roles.DidYouMean(roles.Nearest(sel.Cluster, names)))
			case err != nil:
				return err
			case cluster.Distribution == roles.DistributeAll:
				return fmt.Errorf("%w: a step runs on one agent, and agent cluster %s has distribution all", api.ErrInvalid, sel.Cluster)
			}
			matches = cluster.Has
		}
		if anyAgent(snap, sel.Name, matches) {
			continue
		}
		names := slices.Sorted(maps.Keys(fleetOf(snap).agents))
		if len(names) > 10 {
			names = append(names[:10], "...")
		}
		return fmt.Errorf("%w: no agent matches %s; known agents: %s", api.ErrInvalid, sel, strings.Join(names, ", "))
	}
	return nil
}

// knownTargets refuses names of agents, or of an agent cluster, that do not exist.
func knownTargets(snap coord.Snapshot, step string, t *roles.Targets) error {
	f := sync.OnceValue(func() *fleet { return fleetOf(snap) }) // few need it
	for _, name := range t.Names {
		if _, known := snap.Get(agentKey(name)); !known {
			return fmt.Errorf("%w: step %s: there is no agent %s%s", api.ErrInvalid, step, name,
				roles.DidYouMean(roles.Nearest(name, slices.Sorted(maps.Keys(f().agents)))))
		}
	}
	if t.Cluster == "" {
		return nil
	}
	if _, known := snap.Get(clusterKey(t.Cluster)); !known {
		return fmt.Errorf("%w: step %s: there is no agent cluster %s%s", api.ErrInvalid, step, t.Cluster,
			roles.DidYouMean(roles.Nearest(t.Cluster, slices.Sorted(maps.Keys(f().clusters)))))
	}
	return nil
}

// anyAgent reports whether an agent matches: the one of that name, or if that is
// empty, any.
func anyAgent(snap coord.Snapshot, name string, matches func(string, map[string]string) bool) bool {
	if name != "" {
		_, known := snap.Get(agentKey(name))
		return known
	}
	for kv := range snap.Range(prefixAgents) {
		if rec, err := decode[agentRecord](kv); err == nil && matches(rec.Name, rec.Labels) {
			return true
		}
	}
	return false
}

// GetRequest returns a request as this controller shows it.
func (c *Controller) GetRequest(ctx context.Context, id string) (api.Request, error) {
	snap := c.member.View().Snapshot()
	state, claim, fence, err := c.stateOf(ctx, snap, id)
	if err != nil {
		return api.Request{}, err
	}
	return c.view(snap, state, claim, fence), nil
}

// requestIn returns a request that is in the store.
func (c *Controller) requestIn(snap coord.Snapshot, id string) (api.Request, error) {
	state, claim, fence, ok, err := loadRequest(snap, id)
	if !ok {
		return api.Request{}, fmt.Errorf("%w: request %q", api.ErrNotFound, id)
	}
	if err != nil {
		return api.Request{}, err
	}
	return c.view(snap, state, claim, fence), nil
}

func (c *Controller) view(snap coord.Snapshot, state roles.State, claim claimRecord, fence roles.Fence) api.Request {
	v := state.View()
	r := api.Request{
		ID: v.ID, Process: v.Process, Status: v.Status, Params: v.Params,
		RequestedBy: v.RequestedBy, RequestedAt: v.RequestedAt, StartedAt: v.StartedAt, FinishedAt: v.FinishedAt,
		Steps: make([]api.Step, len(v.Steps)),
	}
	switch {
	case v.Finish != nil:
		r.Reason = said("finished", v.Finish)
	case v.Cancel != nil: // also of one that is held: no release lets it go on
		r.Reason = said("cancelled", v.Cancel)
	case v.HeldBy != nil:
		r.Reason = said("held", v.HeldBy)
	case v.Held:
		r.Reason = "held: the cluster went on after a loss of history; release it when you have looked"
	case v.Status == roles.RequestQueued && len(c.eligible(snap).fresh) == 0:
		r.Reason = "waits: every controller that could own it is paused"
	}
	if claim.Node != "" {
		r.Fence = fmt.Sprintf("%d.%d", fence.Generation, fence.Revision)
		if coord.SessionEpoch(snap, claim.Node) == claim.Epoch {
			r.Owner = claim.Node
		}
	}
	fleet := sync.OnceValue(func() *fleet { return fleetOf(snap) }) // few need it
	for i, st := range v.Steps {
		r.Steps[i] = api.Step{
			Name: st.Name, Of: st.Of, Status: st.Status, Attempt: st.Attempt, Agent: st.Agent, ExitCode: st.ExitCode,
			Needs: st.Needs, On: st.On, Reason: st.Reason, Unreachable: st.Unreachable,
			StartedAt: st.StartedAt, FinishedAt: st.FinishedAt,
		}
		if st.Outputs != nil {
			r.Steps[i].Outputs = *st.Outputs
		}
		def := state.Def(i)
		switch ready := st.Status == roles.StepReady && !st.BackingOff && !v.Status.Final(); {
		case st.Hold != nil && (st.Status == roles.StepHeld || st.Expansion != nil && !st.Status.Final()):
			r.Steps[i].Reason = said("held", st.Hold)
		case st.Hold != nil && !st.Status.Final(): // its turn has not come
			r.Steps[i].Reason = said("to be held", st.Hold)
		case st.Skipped():
			r.Steps[i].Reason = said("skipped", &roles.Order{By: st.Decision.By, Why: st.Decision.Why})
		case st.Decision != nil && st.Status.Final() && (st.Decision.As == roles.VerdictSuccess || st.Decision.As == roles.VerdictFailed):
			// Nobody has seen that end: somebody answers for it.
			by := said("resolved as "+string(st.Decision.As), &roles.Order{By: st.Decision.By, Why: st.Decision.Why})
			if st.Reason != "" {
				by += " (" + st.Reason + ")"
			}
			r.Steps[i].Reason = by
		case st.Status == roles.StepReady && st.BackingOff && !v.Status.Final():
			r.Steps[i].Reason = fmt.Sprintf("attempt %d has failed; the next one follows %v after it", st.Attempt, time.Duration(def.Retry.Delay))
		case st.Reason != "":
		case st.Frozen:
			r.Steps[i].Reason = "frozen: its output waits for the shared mount"
		case st.TimedOut:
			r.Steps[i].Reason = "stopped after its timeout of " + time.Duration(def.Timeout).String()
		case ready && def.ForEach == nil:
			r.Steps[i].Reason = c.waits(snap, fleet(), state, i)
		}
		if x := st.Expansion; x != nil && x.LeftOut != "" {
			r.Steps[i].Reason = strings.TrimPrefix(r.Steps[i].Reason+"; not on "+x.LeftOut+": suspended", "; ")
		}
	}
	return r
}

// said is an order in words.
func said(what string, o *roles.Order) string {
	text := what + " by " + o.By
	if o.Why != "" {
		text += ": " + o.Why
	}
	return text
}

// waits says what the ready step i waits for; nothing if it is about to be sent.
func (c *Controller) waits(snap coord.Snapshot, f *fleet, state roles.State, i int) string {
	sel, chosen := state.Def(i).Agent, state.Chosen(i)
	agents := f.meant(sel)
	if chosen != "" {
		agents = []string{chosen}
	}
	cluster, known := f.clusters[sel.Cluster]
	switch {
	case sel.Cluster == "":
	case !known:
		return "waits for agent cluster " + sel.Cluster + ", which does not exist any more"
	case chosen == "" && cluster.Suspended:
		return "waits: agent cluster " + sel.Cluster + " is suspended"
	}
	agents = slices.DeleteFunc(slices.Clone(agents), func(name string) bool {
		return f.agents[name].Suspended && !uses(state, name) || len(linksTo(snap, name)) == 0
	})
	switch name := cmp.Or(chosen, sel.Name); {
	case len(agents) > 0:
	case name != "" && f.agents[name].Suspended:
		return "waits: agent " + name + " is suspended"
	case name != "" && f.agents[name].Name != "":
		return "waits for agent " + name + ", which is not connected"
	default:
		return "waits for an agent that matches " + sel.String()
	}
	d := c.desk.Load()
	if d == nil {
		return ""
	}
	first := ""
	for _, name := range agents {
		gates := f.gates(sel.Cluster, name)
		i := slices.IndexFunc(gates, func(g gate) bool { return !open(g, d.load) })
		if i < 0 {
			return ""
		}
		// The limit of the whole cluster comes first, so it is told if it is that.
		if first == "" {
			first = heldBy(gates[i], d.load.holders(gates[i]))
		}
	}
	return first
}

// ownedByNode counts the open requests of every node.
func (c *Controller) ownedByNode() map[string]int {
	snap := c.member.View().Snapshot()
	counts := map[string]int{}
	for kv := range snap.Range(prefixRequests) {
		id, rest := requestOf(kv.Key, prefixRequests)
		if rest != "status" {
			continue
		}
		if rec, err := decode[roles.Record](kv); err != nil || rec.Status.Final() {
			continue
		}
		if kv, ok := snap.Get(claimKey(id)); ok {
			if claim, err := decode[claimRecord](kv); err == nil && coord.SessionEpoch(snap, claim.Node) == claim.Epoch {
				counts[claim.Node]++
			}
		}
	}
	return counts
}

// WatchRequest calls f with the request now and after every change, until it is
// final or in doubt.
func (c *Controller) WatchRequest(ctx context.Context, id string, f func(api.Request) error) error {
	changed := make(chan struct{}, 1)
	mine := prefixRequests + id + "/"
	_, stop := c.member.View().Follow(func(b coord.Batch) {
		for _, ch := range b.Changes {
			if strings.HasPrefix(ch.Key, mine) || ch.Key == claimKey(id) {
				select {
				case changed <- struct{}{}:
				default:
				}
				return
			}
		}
	})
	defer stop()
	for {
		r, err := c.GetRequest(ctx, id)
		if err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
		if r.Status.Final() || r.Status == roles.RequestInDoubt {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.Ready(); err != nil {
			return err // the client goes on with another controller
		}
	}
}
