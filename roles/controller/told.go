package controller

import (
	"time"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles"
)

// What moves requests to the history must know that their agents were told: an
// agent forgets a request only when it is told that it is final. Owners say so in
// lists, because a write for each request would cost as much as its last step.

const (
	maxTold   = 500
	toldAfter = 500 * time.Millisecond
)

// told notes that the agents of a finished request were told.
func (d *desk) told(id string) {
	if d.c.deps.Mount.State().Kind == mount.Unconfigured {
		return // nobody moves anything
	}
	d.telling = append(d.telling, id)
	switch len(d.telling) {
	case 1:
		d.after(toldAfter, d.storeTold)
	case maxTold:
		d.storeTold()
	}
}

// storeTold stores the list so far. A list that is lost with its session is made up
// for by the Active.
func (d *desk) storeTold() {
	if len(d.telling) == 0 {
		return
	}
	d.s.Submit(coord.Tx{Then: []coord.Write{coord.Put(toldKey(newID()), encode(d.telling))}}, func(coord.Result, error) {})
	d.telling = nil
}

// tellAgain tells the agents of a finished request, whose owner is gone, that they
// may forget it, and reports whether all were told.
func (d *desk) tellAgain(id string) bool {
	state, _, _, ok, err := loadRequest(d.c.member.View().Snapshot(), id)
	if d.owned[id] != nil || !ok || err != nil || !state.Record.Status.Final() || abandons(state) {
		return false
	}
	o := &owned{id: id, state: state}
	all := true
	for _, eff := range roles.Pending(state) {
		switch {
		case eff.Kind != roles.EffectFinish:
		case d.linkTo(eff.Agent) == nil:
			d.lookElsewhere(eff.Agent)
			all = false
		case !d.send(o, eff):
			all = false
		}
	}
	return all
}

// moved forgets a finished request of ours that was moved to the history though an
// agent could not be told for long.
func (d *desk) moved(key string) {
	id, rest := requestOf(key, prefixRequests)
	if o := d.owned[id]; rest == "status" && o != nil && o.state.Record.Status.Final() {
		d.drop(o)
	}
}
