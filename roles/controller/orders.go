package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// command is one entry of a request's inbox.
type command struct {
	Kind   string         `json:"kind"` // the verb of an order
	By     string         `json:"by"`
	Why    string         `json:"why,omitempty"`
	Step   string         `json:"step,omitempty"`
	As     string         `json:"as,omitempty"`
	Force  bool           `json:"force,omitempty"`
	From   bool           `json:"from,omitempty"`
	Before string         `json:"before,omitempty"`
	After  string         `json:"after,omitempty"`
	Def    *roles.StepDef `json:"def,omitempty"`
}

func commandOf(a api.Actor, o api.Order) command {
	return command{
		Kind: o.Verb, By: a.Name, Why: a.Why, Step: o.Step, As: o.As, Force: o.Force, From: o.From,
		Before: o.Before, After: o.After, Def: o.Definition,
	}
}

// event returns what the command asks of the engine, nil if that is nothing known.
func (c command) event() roles.Event {
	switch c.Kind {
	case "cancel":
		return roles.Cancel{By: c.By, Why: c.Why}
	case "hold":
		return roles.Hold{Step: c.Step, By: c.By, Why: c.Why}
	case "release":
		return roles.Release{Step: c.Step, By: c.By}
	case "skip":
		return roles.Skip{Step: c.Step, By: c.By, Why: c.Why}
	case "rerun":
		return roles.Rerun{Step: c.Step, From: c.From, By: c.By, Why: c.Why}
	case "resolve":
		return roles.Resolve{Step: c.Step, As: roles.Verdict(c.As), By: c.By, Why: c.Why, Force: c.Force}
	case "finish":
		return roles.Finish{As: roles.RequestStatus(c.As), By: c.By, Why: c.Why}
	}
	if c.Def == nil {
		return nil
	}
	switch c.Kind {
	case "insert":
		return roles.Insert{Def: *c.Def, Before: c.Before, After: c.After, By: c.By, Why: c.Why}
	case "change":
		return roles.Amend{Step: c.Step, Def: *c.Def, By: c.By, Why: c.Why}
	}
	return nil
}

// detail is what the audit says of a command beside its kind.
func (c command) detail() map[string]string {
	all := map[string]string{"step": c.Step, "as": c.As, "before": c.Before, "after": c.After}
	if c.From {
		all["from"] = "true"
	}
	if c.Force {
		all["force"] = "true"
	}
	if c.Def != nil {
		all["definition"] = c.Def.Name
	}
	for k, v := range all {
		if v == "" {
			delete(all, k)
		}
	}
	return all
}

// Steer puts an order into a request's inbox after checking that it fits the request
// as it is now. Its commit is its acknowledgement.
func (c *Controller) Steer(ctx context.Context, a api.Actor, id string, o api.Order) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	if err := c.member.Sync(ctx); err != nil {
		return unavailable(err)
	}
	snap := c.member.View().Snapshot()
	state, _, _, err := c.stateOf(ctx, snap, id)
	if err != nil {
		return err
	}
	cmd := commandOf(a, o)
	ev := cmd.event()
	if ev == nil {
		return fmt.Errorf("%w: order %q", api.ErrInvalid, o.Verb)
	}
	for _, step := range []string{o.Step, o.Before, o.After} {
		if err := knownStep(state, step, step == o.Step); err != nil {
			return err
		}
	}
	if _, _, err := roles.Next(state, ev, now()); err != nil {
		return refusedOrder(err)
	}
	if o.Definition != nil {
		if err := knownAgents(snap, &roles.Process{Steps: []roles.StepDef{*o.Definition}}); err != nil {
			return err
		}
		if err := c.member.CheckRoom(coord.RoomForGrowth); err != nil {
			return fmt.Errorf("%w: %w", api.ErrNoRoom, err)
		}
	}
	return c.commit(ctx, s,
		coord.Put(inboxKey(id, newID()), encode(cmd)),
		c.audit(a, "request."+cmd.Kind, id, cmd.detail()))
}

// knownStep refuses the name of a step that a request does not have. Instances may be
// named or not, also those that there are not yet.
func knownStep(state roles.State, name string, instances bool) error {
	if name == "" || state.Index(name) >= 0 {
		return nil
	}
	of, _, instance := strings.Cut(name, "@")
	if i := state.Index(of); instance && !instances && i >= 0 && state.Def(i).ForEach != nil {
		return fmt.Errorf("%w: step %s is an instance: name the step that it is of, %s", api.ErrInvalid, name, of)
	}
	var names []string
	for _, st := range state.Steps {
		names = append(names, st.Name)
	}
	hint := ""
	if near := roles.Nearest(name, names); near != "" {
		hint = "; did you mean " + near + "?"
	}
	return fmt.Errorf("%w: request %s has no step %q%s", api.ErrNotFound, state.Request.ID, name, hint)
}

// refusedOrder is the engine's refusal in the words of the API, once.
func refusedOrder(err error) error {
	for from, to := range map[error]error{roles.ErrConflict: api.ErrConflict, roles.ErrInvalid: api.ErrInvalid} {
		var problems roles.Problems
		switch {
		case !errors.Is(err, from):
		case errors.As(err, &problems):
			return fmt.Errorf("%w: %w", to, problems)
		default:
			return fmt.Errorf("%w%s", to, strings.TrimPrefix(err.Error(), from.Error()))
		}
	}
	return err
}

// command consumes an entry of the inbox in the transaction of its effect.
func (d *desk) command(kv coord.KV) {
	// The desk may hear of a change after it has read the inbox at a claim. What
	// is gone by now was obeyed, perhaps by an earlier owner.
	if _, there := d.c.member.View().Get(kv.Key); !there {
		return
	}
	id, _ := requestOf(kv.Key, prefixInbox)
	o := d.owned[id]
	if o == nil {
		d.tooLate(id, kv)
		return
	}
	if o.commands[kv.Key] || d.afterGrant(o, func() { d.command(kv) }) {
		return
	}
	o.commands[kv.Key] = true
	cmd, err := decode[command](kv)
	ev := cmd.event()
	if err != nil || ev == nil {
		d.log.Error("command cannot be read", "request", id, "error", err)
		d.consume(o, kv.Key, nil)
		return
	}
	if _, _, err := roles.Next(o.state, ev, now()); err != nil {
		// It fitted when it was given and does not any more.
		refusal := d.c.refusal(id, cmd, err.Error())
		d.consume(o, kv.Key, &refusal)
		return
	}
	d.apply(o, ev, coord.Del(kv.Key))
}

// tooLate removes a command for a request that was final before the command
// came. While it is open that is for its owner: who claims it reads the inbox.
func (d *desk) tooLate(id string, kv coord.KV) {
	state, claim, _, ok, err := loadRequest(d.c.member.View().Snapshot(), id)
	if !ok || err != nil || !state.Record.Status.Final() || claim.Node != d.c.cfg.Name || claim.Epoch != d.s.Epoch() {
		return
	}
	cmd, _ := decode[command](kv) // whatever it says
	d.s.Submit(coord.Tx{Then: []coord.Write{
		coord.Del(kv.Key), d.c.refusal(id, cmd, "the request has "+string(state.Record.Status)+" already"),
	}}, func(coord.Result, error) {})
}

// refusal is the event that tells of a command that came too late.
func (c *Controller) refusal(id string, cmd command, reason string) coord.Write {
	return c.event(api.Event{Kind: "request.command_refused", Subject: id, By: cmd.By,
		Detail: map[string]string{"command": cmd.Kind, "step": cmd.Step, "reason": reason}})
}

func (d *desk) consume(o *owned, key string, with *coord.Write) {
	writes := []coord.Write{coord.Del(key)}
	if with != nil {
		writes = append(writes, *with)
	}
	d.store(o, writes)
}
