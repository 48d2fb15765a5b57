package coord

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const prefixOrders = "orders/"

// Order is what an operator wants of one node. It is a key, so it can be given
// through any controller and its commit is the audit trail's anchor.
type Order struct {
	ID   string `json:"id"`
	Node string `json:"node"`
	// Verb is one of the node verbs: switchover, stop, restart, abort, drain.
	Verb string            `json:"verb"`
	Args map[string]string `json:"args,omitempty"`
	By   string            `json:"by"`
	Why  string            `json:"why,omitempty"`
	At   time.Time         `json:"at"`
	// Done is set by the node when it has carried the order out or refused it.
	Done   bool   `json:"done"`
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// ErrOffline is returned for an order to a node that is not there to obey.
var ErrOffline = errors.New("node is offline")

// ErrEnded is returned when the process that an order was for ended before it
// answered: the order may or may not have been carried out.
var ErrEnded = errors.New("the node ended before it answered")

// ErrOrderLost is returned when the node that an order was for was declared lost
// before it answered and may live: it may even obey later.
var ErrOrderLost = errors.New("the node was declared lost before it answered and may live: it is not known whether it obeyed, or will")

func orderKey(node, id string) string { return prefixOrders + node + "/" + id }

// Order gives an order to a node with a session and waits for its answer. The
// writes in with happen together with the giving.
func (s *Session) Order(ctx context.Context, o Order, with ...Write) (Order, error) {
	key, hold := orderKey(o.Node, o.ID), holdKey(o.Node)
	changed := make(chan struct{}, 1)
	from, stop := s.m.view.Follow(func(b Batch) {
		for _, c := range b.Changes {
			if c.Key == key || c.Key == hold || c.Key == sessionKey(o.Node) {
				signal(changed)
			}
		}
	})
	defer stop()
	kv, ok := from.Get(sessionKey(o.Node))
	if !ok || from.mod(hold) != 0 {
		return o, fmt.Errorf("%w: %s has no session, or is held", ErrOffline, o.Node)
	}
	res, err := s.Commit(ctx, Tx{
		If:   []Cond{Absent(key), ModIs(kv.Key, kv.Mod), Absent(hold)},
		Then: append([]Write{Put(key, encode(o))}, with...),
	})
	switch {
	case err != nil:
		return o, err
	case !res.Won:
		return o, fmt.Errorf("%w: %s left meanwhile", ErrOffline, o.Node)
	}
	if err := s.m.view.Wait(ctx, res.Revision); err != nil {
		return o, err
	}
	for {
		snap := s.m.view.Snapshot()
		now, ok := snap.Get(key)
		if ok {
			if rec, err := decode[Order](now); err == nil && rec.Done {
				s.Submit(Tx{Then: []Write{Del(key)}}, func(Result, error) {})
				return rec, nil
			}
		}
		if !ok || snap.mod(kv.Key) != kv.Mod || snap.mod(hold) != 0 {
			if ended(snap, kv) {
				return o, ErrEnded
			}
			return o, ErrOrderLost
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return o, fmt.Errorf("wait for %s: %w", o.Node, ctx.Err())
		}
	}
}

// ended reports whether the process of a session that is over is known to have
// ended: it said goodbye, another took its place, or its death was seen.
func ended(snap Snapshot, session KV) bool {
	node := leaf(session.Key, prefixSessions)
	if now, ok := snap.Get(session.Key); ok && now.Mod != session.Mod {
		was, errWas := decode[SessionRecord](session)
		is, errIs := decode[SessionRecord](now)
		return errWas == nil && errIs == nil && was.Run != is.Run
	}
	loss, ok := lossIn(snap, node)
	switch {
	case !ok || loss.Epoch < session.Mod:
		return true // nobody else ended it
	case loss.Epoch > session.Mod:
		return false // of a later session, so this one is anybody's guess
	}
	return loss.Ended
}

// ServeOrders carries out the orders for this node, one after the other, until
// ctx ends. Orders from before this session are dropped: whoever gave them saw
// the node leave. A handler that ends the process answers first, through
// answer; otherwise its return value is the answer.
func (s *Session) ServeOrders(ctx context.Context, handle func(ctx context.Context, o Order, answer func(result string)) (string, error)) error {
	mine := prefixOrders + s.m.cfg.Name + "/"
	changed := make(chan struct{}, 1)
	_, stop := s.m.view.Follow(func(b Batch) {
		for _, c := range b.Changes {
			if strings.HasPrefix(c.Key, mine) && !c.Deleted {
				signal(changed)
			}
		}
	})
	defer stop()
	for {
		for kv := range s.m.view.Snapshot().Range(mine) {
			o, err := decode[Order](kv)
			switch {
			case err != nil || kv.Create < s.epoch:
				s.Submit(Tx{Then: []Write{Del(kv.Key)}}, func(Result, error) {})
			case !o.Done:
				if err := s.carryOut(ctx, kv, o, handle); err != nil {
					return err
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Session) carryOut(ctx context.Context, kv KV, o Order, handle func(context.Context, Order, func(string)) (string, error)) error {
	s.log.Info("order", "verb", o.Verb, "by", o.By, "why", o.Why)
	answered := false
	reply := func(result string, err error) error {
		o.Done, o.Result = true, result
		if err != nil {
			o.Error = err.Error()
		}
		res, err := s.Commit(ctx, Tx{Then: []Write{Put(kv.Key, encode(o))}})
		if err != nil {
			return err
		}
		return s.m.view.Wait(ctx, res.Revision)
	}
	result, err := handle(ctx, o, func(result string) {
		answered = true
		if err := reply(result, nil); err != nil {
			s.log.Warn("order not answered", "verb", o.Verb, "error", err)
		}
	})
	if answered || ctx.Err() != nil {
		return ctx.Err()
	}
	return reply(result, err)
}
