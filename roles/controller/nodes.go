package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// Verbs of orders to nodes.
const (
	verbSwitchover = "switchover"
	verbStop       = "stop"
	verbRestart    = "restart"
	verbAbort      = "abort"
	verbDrain      = "drain"
)

// Self says what this node is. It never blocks and works without a cluster.
func (c *Controller) Self() api.Self {
	st := c.member.Status()
	self := api.Self{BuildID: c.cfg.BuildID, BuildDate: c.cfg.BuildDate, Reason: st.Reason}
	self.Node = api.Node{
		Name: c.cfg.Name, Role: roles.RoleController, Mode: roles.ModeOffline,
		Host: c.cfg.Host, IP: c.cfg.IP, API: c.cfg.API, Version: c.cfg.Version, Started: c.started,
		LastSeen: time.Now(), UptimeSeconds: int64(time.Since(c.started) / time.Second),
	}
	s := c.session.Load()
	if s == nil {
		return self
	}
	self.Node.Epoch = s.Epoch()
	self.Node.Mode = roles.Mode(s.Mode())
	if t := s.Term(); t != nil && self.Node.Mode == roles.ModeActive {
		self.Node.Term = t.Epoch()
	}
	rec, _ := c.member.Record(c.cfg.Name)
	self.Node.Paused, self.Node.Preferred = rec.Paused, rec.Preferred
	self.Node.Requests = c.owned(c.cfg.Name)
	return self
}

// ListNodes lists all members and relays that the cluster remembers.
func (c *Controller) ListNodes(context.Context) ([]api.Node, error) {
	counts := c.ownedByNode()
	out := []api.Node{}
	for _, n := range c.member.Nodes() {
		out = append(out, c.nodeView(n, counts[n.Name]))
	}
	relays, err := c.listRelays(c.member.View().Snapshot())
	return append(out, relays...), err
}

func (c *Controller) nodeView(n coord.NodeStatus, requests int) api.Node {
	v := api.Node{
		Name: n.Name, Role: roles.Role(n.Role), Mode: roles.Mode(n.Mode),
		Paused: n.Paused, Preferred: n.Preferred, Host: n.Host, IP: n.IP, API: n.API,
		Version: n.Version, Started: n.Started, LastSeen: n.Heard, Silent: n.Silent,
		Epoch: n.Epoch, Term: n.Term, LostEpoch: n.Lost, Requests: requests,
		Failover: api.Failover{Ready: n.Unready == "", Why: n.Unready, Successor: n.Successor},
	}
	if n.Name == c.cfg.Name {
		v.UptimeSeconds = int64(time.Since(c.started) / time.Second)
	} else if n.Mode != coord.ModeOffline {
		// By two hosts' clocks: for people only.
		until := time.Now()
		if n.Silent {
			until = n.Heard
		}
		v.UptimeSeconds = max(0, int64(until.Sub(n.Started)/time.Second))
	}
	if n.Held != nil {
		v.Held = fmt.Sprintf("stopped without fail-over by %s at %s", n.Held.By, n.Held.At.Format(time.RFC3339))
		if n.Held.Why != "" {
			v.Held += ": " + n.Held.Why
		}
	}
	return v
}

// findNode returns a member that the cluster remembers.
func (c *Controller) findNode(name string) (coord.NodeStatus, error) {
	var known []string
	for _, n := range c.member.Nodes() {
		if n.Name == name {
			return n, nil
		}
		known = append(known, n.Name)
	}
	return coord.NodeStatus{}, c.noMember(name, known)
}

// Switchover makes to (or the best successor) Active.
func (c *Controller) Switchover(ctx context.Context, a api.Actor, to string) (string, error) {
	s, err := c.current()
	if err != nil {
		return "", err
	}
	if to != "" {
		n, err := c.findNode(to)
		if err != nil {
			return "", err
		}
		switch {
		case n.Role != coord.RoleController:
			return "", fmt.Errorf("%w: %s is a %s: only a controller can become Active", api.ErrConflict, to, n.Role)
		case n.Mode == coord.ModeActive:
			return "", fmt.Errorf("%w: %s is Active already", api.ErrConflict, to)
		case n.Mode == coord.ModeOffline:
			return "", fmt.Errorf("%w: %s is Offline", api.ErrConflict, to)
		}
	}
	for _, n := range c.member.Nodes() {
		switch {
		case n.Mode == coord.ModeActive && n.Silent:
			return "", fmt.Errorf("%w: %s is Active: %s", api.ErrConflict, n.Name, n.Unready)
		case n.Mode == coord.ModeActive:
			return c.Order(ctx, a, n.Name, verbSwitchover, map[string]string{"to": to})
		case n.Held != nil && to != "":
			err := s.TakeHeldTerm(ctx, to, c.audit(a, "node.switchover", to, map[string]string{"held": n.Name}))
			if errors.Is(err, coord.ErrNotActive) {
				continue // it was held, but not as Active
			}
			return to, orderError(err)
		}
	}
	return "", fmt.Errorf("%w: no node is Active", api.ErrConflict)
}

// Order gives an order to a node and returns its answer.
func (c *Controller) Order(ctx context.Context, a api.Actor, node, verb string, args map[string]string) (string, error) {
	s, err := c.current()
	if err != nil {
		return "", err
	}
	n, err := c.findNode(node)
	if err != nil {
		return "", err
	}
	if n.Epoch == 0 || n.Held != nil {
		return "", fmt.Errorf("%w: %s is Offline", api.ErrConflict, node)
	}
	if verb == verbDrain && n.Role != coord.RoleController {
		return "", fmt.Errorf("%w: %s is a %s and owns no requests", api.ErrConflict, node, n.Role)
	}
	o, err := s.Order(ctx, coord.Order{
		ID: newID(), Node: node, Verb: verb, Args: args, By: a.Name, Why: a.Why, At: time.Now().UTC(),
	}, c.audit(a, "node."+verb, node, args))
	switch {
	case errors.Is(err, coord.ErrEnded) && verb != verbDrain && verb != verbSwitchover:
		return "the node is gone", nil // what was wanted
	case err != nil:
		return "", orderError(err)
	case o.Error != "":
		return "", fmt.Errorf("%w: %s", api.ErrConflict, o.Error)
	}
	return o.Result, nil
}

func orderError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, coord.ErrNoSuccessor), errors.Is(err, coord.ErrNotActive), errors.Is(err, coord.ErrOnline):
		return fmt.Errorf("%w: %w", api.ErrConflict, err)
	case errors.Is(err, coord.ErrNoSuchNode):
		return fmt.Errorf("%w: %w", api.ErrNotFound, err)
	}
	return unavailable(err)
}

// SetNode changes what operators set on a node.
func (c *Controller) SetNode(ctx context.Context, a api.Actor, node string, paused, preferred *bool) (api.Node, error) {
	s, err := c.current()
	if err != nil {
		return api.Node{}, err
	}
	n, err := c.findNode(node)
	if err != nil {
		return api.Node{}, err
	}
	if n.Role != coord.RoleController {
		return api.Node{}, fmt.Errorf("%w: %s is a %s: only controllers can be paused or preferred", api.ErrConflict, node, n.Role)
	}
	detail := map[string]string{}
	if paused != nil {
		detail["paused"] = fmt.Sprint(*paused)
	}
	if preferred != nil {
		detail["preferred"] = fmt.Sprint(*preferred)
	}
	_, err = s.UpdateNode(ctx, node, func(r coord.NodeRecord) (coord.NodeRecord, error) {
		if paused != nil {
			r.Paused = *paused
		}
		if preferred != nil {
			r.Preferred = *preferred
		}
		return r, nil
	}, c.audit(a, "node.set", node, detail))
	if err != nil {
		return api.Node{}, unavailable(err)
	}
	if preferred != nil && *preferred { // at most one node comes first
		for _, other := range c.member.Nodes() {
			if other.Name != node && other.Preferred {
				if _, err := s.UpdateNode(ctx, other.Name, func(r coord.NodeRecord) (coord.NodeRecord, error) {
					r.Preferred = false
					return r, nil
				}); err != nil {
					return api.Node{}, unavailable(err)
				}
			}
		}
	}
	if err := c.member.Sync(ctx); err != nil {
		return api.Node{}, unavailable(err)
	}
	n, err = c.findNode(node)
	return c.nodeView(n, c.owned(node)), err
}

// RemoveNode forgets an Offline node.
func (c *Controller) RemoveNode(ctx context.Context, a api.Actor, node string) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	if relay, err := c.removeRelay(ctx, s, a, node); relay || err != nil {
		return err
	}
	if _, err := c.findNode(node); err != nil {
		return err
	}
	if err := s.RemoveNode(ctx, node, c.audit(a, "node.removed", node, nil)); err != nil {
		return orderError(err)
	}
	return unavailable(c.member.Sync(ctx))
}

// ConfirmLost takes an operator's word that nodes are lost. With a majority it
// releases losses that wait; without one it lets this controller continue
// alone.
func (c *Controller) ConfirmLost(ctx context.Context, a api.Actor, nodes []string) (string, error) {
	s := c.session.Load()
	if s == nil || s.Check() != nil {
		err := c.member.ContinueAlone(coord.AloneOrder{Lost: nodes, By: a.Name, Why: a.Why, With: []coord.Write{
			c.audit(a, "node.confirmed_lost", strings.Join(nodes, " "), map[string]string{"majority": "none"}),
		}})
		switch {
		case errors.Is(err, coord.ErrNoSuchNode):
			return "", orderError(err)
		case err != nil:
			return "", fmt.Errorf("%w: %w", api.ErrConflict, err)
		}
		return c.cfg.Name + " continues alone in a new generation; it is paused: look, then resume it and release what is held", nil
	}
	for _, n := range nodes { // all or nothing, as far as can be known before
		if err := s.CheckLost(n); err != nil {
			return "", orderError(err)
		}
	}
	var said []string
	for _, n := range nodes {
		text, err := s.ConfirmLost(ctx, n, a.Name, a.Why, c.audit(a, "node.confirmed_lost", n, nil))
		if err != nil {
			if len(said) > 0 {
				err = fmt.Errorf("%s: %w; done before that: %s", n, err, strings.Join(said, "; "))
			}
			return "", orderError(err)
		}
		said = append(said, text)
	}
	return strings.Join(said, "; "), unavailable(c.member.Sync(ctx))
}
