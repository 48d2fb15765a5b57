package controller

import (
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"uac/coord"
	"uac/roles"
)

// openRequest is what the desk knows of any request that is not final.
type openRequest struct {
	claim    claimRecord
	claimMod int64 // ModRevision of the claim, 0 if there is none
	queued   bool  // never claimed by anybody
	final    bool  // open only for an attempt that may run
	claiming bool  // a claim of ours is on its way
	// forgotten counts sweeps that found our own claim and no such request here.
	forgotten int
}

// sweepEvery is how often ownerless requests are looked for besides on every
// change; the jitter keeps controllers from claiming in step.
func sweepEvery() time.Duration { return 1500*time.Millisecond + rand.N(time.Second) }

// first takes in what the view shows when the desk opens.
func (d *desk) first(snap coord.Snapshot) {
	lazily := func() coord.Snapshot { return snap }
	for kv := range snap.Range(prefixRequests) {
		d.noteStatus(lazily, kv)
		d.load.note(kv)
	}
	for kv := range snap.Range(prefixClaims) {
		d.noteClaim(lazily, kv)
	}
	for kv := range snap.Range(prefixAgents) {
		d.agents.noteAgent(kv, false)
	}
	for kv := range snap.Range(prefixClusters) {
		d.agents.noteCluster(kv, false)
	}
	for kv := range snap.Range(prefixSlots) {
		d.slots.note(kv, false)
	}
	for _, agent := range d.c.links.agents() {
		if l := d.c.links.get(agent); l != nil {
			d.linkUp(localRoute{l})
		}
	}
	d.sweep(false)
}

// seen takes in one change of the view.
func (d *desk) seen(b coord.Batch) {
	sessions := false
	var touched []string
	snap := sync.OnceValue(d.c.member.View().Snapshot) // at this batch or later; few need it
	for _, ch := range b.Changes {
		switch {
		case strings.HasPrefix(ch.Key, prefixRequests):
			if ch.Deleted {
				d.moved(ch.Key)
			}
			if d.noteStatus(snap, ch.KV) && ch.Prev.Mod == 0 {
				id, _ := requestOf(ch.Key, prefixRequests)
				touched = append(touched, id)
			}
			if st, ended := d.load.note(ch.KV); ended {
				d.waiting.due[dueAgent(st.agent)] = true
				if st.cluster != "" {
					d.waiting.due[dueCluster(st.cluster)] = true
				}
			}
		case strings.HasPrefix(ch.Key, prefixClaims):
			d.noteClaim(snap, ch.KV)
			id, _ := requestOf(ch.Key, prefixClaims)
			touched = append(touched, id)
		case strings.HasPrefix(ch.Key, prefixInbox):
			if !ch.Deleted {
				d.command(ch.KV)
			}
		case strings.HasPrefix(ch.Key, prefixAgents):
			d.agents.noteAgent(ch.KV, ch.Deleted)
			if ch.Deleted {
				d.c.forget(strings.TrimPrefix(ch.Key, prefixAgents))
			}
			d.waiting.due[dueAgent(strings.TrimPrefix(ch.Key, prefixAgents))] = true
		case strings.HasPrefix(ch.Key, prefixClusters):
			d.agents.noteCluster(ch.KV, ch.Deleted)
			d.waiting.due[dueCluster(strings.TrimPrefix(ch.Key, prefixClusters))] = true
		case strings.HasPrefix(ch.Key, prefixSlots):
			d.slots.note(ch.KV, ch.Deleted)
		case strings.HasPrefix(ch.Key, prefixLinks):
			d.relink(ch.Key)
		case coord.IsSessionKey(ch.Key):
			sessions = true
		}
	}
	// Judged after the whole batch, at its revision or later, never in between.
	switch {
	case sessions:
		d.sweep(false)
	case len(touched) > 0:
		d.consider(touched)
	}
}

// noteStatus keeps the set of open requests; it reports whether the key is a
// request's status and the request is open.
func (d *desk) noteStatus(snap func() coord.Snapshot, kv coord.KV) bool {
	id, rest := requestOf(kv.Key, prefixRequests)
	if rest != "status" {
		if r := d.open[id]; r != nil && r.final && !abandonsIn(snap(), id) {
			delete(d.open, id)
		}
		return false
	}
	rec, err := coord.Decoded[roles.Record](kv)
	final := err == nil && rec.Status.Final()
	if kv.Mod == 0 || final && !abandonsIn(snap(), id) {
		delete(d.open, id)
		return false
	}
	r := d.openRequest(id)
	r.queued, r.final = err == nil && rec.Status == roles.RequestQueued, final
	return true
}

func (d *desk) noteClaim(snap func() coord.Snapshot, kv coord.KV) {
	id, _ := requestOf(kv.Key, prefixClaims)
	r, ok := d.open[id]
	if !ok {
		if status, found := d.c.member.View().Get(statusKey(id)); !found || !d.noteStatus(snap, status) {
			return
		}
		r = d.open[id]
	}
	if kv.Mod <= r.claimMod {
		return
	}
	r.claimMod = kv.Mod
	r.claim = claimRecord{} // one that cannot be read belongs to nobody
	if claim, err := coord.Decoded[claimRecord](kv); err == nil {
		r.claim = *claim
	}
	if o := d.owned[id]; o != nil && (r.claim.Node != d.c.cfg.Name || r.claim.Epoch != d.s.Epoch()) {
		d.log.Info("request left this node", "request", id, "owner", r.claim.Node)
		d.drop(o)
	}
	if r.claim.From != "" && r.claim.Node == d.c.cfg.Name && r.claim.Epoch == d.s.Epoch() && d.owned[id] == nil {
		d.claimed(id, coord.Result{Revision: kv.Mod, Won: true}) // handed to us
	}
}

func (d *desk) openRequest(id string) *openRequest {
	r := d.open[id]
	if r == nil {
		r = &openRequest{}
		d.open[id] = r
	}
	return r
}

// sweep claims ownerless requests. Rendezvous hashing names one controller for
// each, as a hint that saves a race; with all set, as from time to time, this
// controller also takes what was meant for others and was left lying.
func (d *desk) sweep(all bool) {
	snap := d.c.member.View().Snapshot()
	able := d.c.eligible(snap)
	if d.c.cfg.Execution == ExecutionActive && !able.others[d.c.cfg.Name] && len(d.owned) > 0 {
		d.handAll() // the term has moved on
	}
	for id, r := range d.open {
		if d.ownerless(snap, id, r, all) {
			d.claimIfMine(able, id, r, all)
		}
	}
}

// consider claims those of the requests that are ownerless.
func (d *desk) consider(ids []string) {
	snap := d.c.member.View().Snapshot()
	var able *field
	for _, id := range ids {
		r := d.open[id]
		if r == nil || !d.ownerless(snap, id, r, false) {
			continue
		}
		if able == nil {
			f := d.c.eligible(snap)
			able = &f
		}
		d.claimIfMine(*able, id, r, false)
	}
}

// ownerless reports whether nobody owns a request: its claim names no session
// that lives or is held by a goodbye. A claim of our own that the desk knows
// nothing of is one too, if it lasts: the desk had to forget the request.
func (d *desk) ownerless(snap coord.Snapshot, id string, r *openRequest, all bool) bool {
	if r.claiming || d.owned[id] != nil {
		r.forgotten = 0
		return false
	}
	if r.claimMod == 0 || coord.SessionEpoch(snap, r.claim.Node) != r.claim.Epoch {
		return true
	}
	if !all || r.claim.Node != d.c.cfg.Name {
		return false
	}
	r.forgotten++ // an acceptance may still be on its way to the desk
	return r.forgotten > 1
}

func (d *desk) claimIfMine(able field, id string, r *openRequest, all bool) {
	may := able.others
	if r.queued {
		may = able.fresh
	}
	me := d.c.cfg.Name
	if may[me] && (all || coord.Rendezvous(id, may) == me) {
		d.claim(id, r)
	}
}

// claim writes our claim over the one we saw, provided that its owner's session
// is still gone, and takes the request from the store as it was at the claim.
func (d *desk) claim(id string, r *openRequest) {
	r.claiming = true
	generation, _ := d.c.member.Generation()
	key := claimKey(id)
	conds := []coord.Cond{coord.ModIs(key, r.claimMod)}
	if r.claimMod != 0 && (r.claim.Node != d.c.cfg.Name || r.claim.Epoch != d.s.Epoch()) {
		conds = append(conds, coord.SessionIsNot(r.claim.Node, r.claim.Epoch))
	}
	d.c.deps.Point(pointClaiming)
	d.s.Submit(coord.Tx{
		If:   conds,
		Then: []coord.Write{coord.Put(key, encode(claimRecord{Node: d.c.cfg.Name, Epoch: d.s.Epoch(), Generation: uint64(generation)}))},
	}, func(res coord.Result, err error) {
		if err != nil {
			return
		}
		d.c.deps.Point(pointClaimed)
		d.mail.post(func() { d.claimed(id, res) })
	})
}

// claimed waits until the view shows our claim, then loads the request: read
// any earlier, the record could be older than the former owner's last write.
func (d *desk) claimed(id string, res coord.Result) {
	view := d.c.member.View()
	if view.Revision() < res.Revision {
		d.tasks.do(func() {
			if view.Wait(d.ctx, res.Revision) == nil {
				d.mail.post(func() { d.claimed(id, res) })
			}
		})
		return
	}
	r := d.open[id]
	if r == nil {
		return // it became final meanwhile
	}
	r.claiming = false
	if !res.Won {
		return
	}
	if d.owned[id] != nil {
		return
	}
	snap := view.Snapshot()
	state, claim, fence, ok, err := loadRequest(snap, id)
	if err != nil {
		d.log.Error("request cannot be read", "request", id, "error", err)
		r.claiming = true // not again in this session
		return
	}
	if !ok || claim.Node != d.c.cfg.Name || claim.Epoch != d.s.Epoch() {
		return // claimed again meanwhile
	}
	if writes := d.c.mustCollect(snap, state); len(writes) > 0 {
		// It was accepted when output was not collected yet.
		d.s.Submit(coord.Tx{Then: writes}, func(coord.Result, error) {})
	}
	state.Fence = roles.Fence{} // take says Claimed with it
	d.log.Info("request claimed", "request", id, "fence", fence.Revision)
	d.take(id, state, fence)
}

// reclaim gives a request that we own a new fence: an agent may have forgotten
// the old one.
func (d *desk) reclaim(o *owned) {
	r := d.open[o.id]
	if r == nil || r.claiming {
		return
	}
	r.claiming = true
	key := claimKey(o.id)
	generation, _ := d.c.member.Generation()
	d.s.Submit(coord.Tx{
		If:   []coord.Cond{coord.ModIs(key, o.state.Fence.Revision)},
		Then: []coord.Write{coord.Put(key, encode(claimRecord{Node: d.c.cfg.Name, Epoch: d.s.Epoch(), Generation: uint64(generation)}))},
	}, func(res coord.Result, err error) {
		if err != nil {
			return
		}
		d.mail.post(func() {
			r.claiming = false
			if res.Won && d.owned[o.id] == o {
				d.apply(o, roles.Claimed{Fence: roles.Fence{Generation: uint64(generation), Revision: res.Revision}})
			}
		})
	})
}

// field says which controllers may claim what.
type field struct {
	// fresh may take requests that nobody owned yet, others those whose owner
	// is gone.
	fresh, others map[string]bool
}

// eligible lists the controllers that may own requests. Paused ones claim
// nothing, but when all are paused they still adopt what runs.
func (c *Controller) eligible(snap coord.Snapshot) field {
	f := field{fresh: map[string]bool{}, others: map[string]bool{}}
	all := map[string]bool{}
	for _, n := range coord.Controllers(snap) {
		if c.cfg.Execution == ExecutionActive && !n.Active {
			continue
		}
		all[n.Name] = true
		if !n.Paused {
			f.fresh[n.Name], f.others[n.Name] = true, true
		}
	}
	if len(f.others) == 0 {
		f.others = all
	}
	return f
}
