package controller

import (
	"context"
	"fmt"

	"uac/coord"
)

// drain pauses this node and hands all its requests to others. It is refused
// when nobody can take them.
func (c *Controller) drain(ctx context.Context, s *coord.Session) (string, error) {
	d := c.desk.Load()
	if d == nil {
		return "", coord.ErrFenced
	}
	others := false
	for _, n := range coord.Controllers(c.member.View().Snapshot()) {
		others = others || n.Name != c.cfg.Name && !n.Paused
	}
	if !others {
		return "", fmt.Errorf("no other controller is up and not paused: nobody could take the requests")
	}
	if _, err := s.UpdateNode(ctx, c.cfg.Name, func(r coord.NodeRecord) (coord.NodeRecord, error) {
		r.Paused = true
		return r, nil
	}); err != nil {
		return "", err
	}
	if err := c.member.Sync(ctx); err != nil { // so that we see ourselves paused
		return "", err
	}
	done := make(chan int, 1)
	d.mail.post(func() { done <- d.handAll() })
	select {
	case n := <-done:
		return fmt.Sprintf("paused; %d requests handed over", n), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// handAll gives every owned request to another controller and returns how many
// there were.
func (d *desk) handAll() int {
	snap := d.c.member.View().Snapshot()
	able := d.c.eligible(snap).others
	delete(able, d.c.cfg.Name)
	n := 0
	for id, o := range d.owned {
		to := coord.Rendezvous(id, able)
		if to == "" || o.state.Record.Status.Final() {
			continue
		}
		d.hand(o, to, coord.SessionEpoch(snap, to))
		n++
	}
	return n
}

// hand gives a request to another controller by our own last write of it. The
// chain keeps the order: everything stored of it so far comes before.
func (d *desk) hand(o *owned, to string, epoch int64) {
	key := claimKey(o.id)
	d.s.Submit(coord.Tx{
		If:   []coord.Cond{coord.ModIs(key, o.state.Fence.Revision), coord.SessionIs(to, epoch)},
		Then: []coord.Write{coord.Put(key, encode(claimRecord{Node: to, Epoch: epoch, Generation: o.state.Fence.Generation, From: d.c.cfg.Name}))},
	}, func(res coord.Result, err error) {
		if err == nil && !res.Won {
			// The other left meanwhile: it stays ours, from what is stored.
			d.mail.post(func() { d.claimed(o.id, coord.Result{Revision: res.Revision, Won: true}) })
		}
	})
	d.drop(o)
}
