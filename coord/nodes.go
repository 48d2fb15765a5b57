package coord

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NodeStatus is what the cluster knows of a member, present or not.
type NodeStatus struct {
	NodeRecord
	Mode Mode
	// Epoch of the node's session, 0 without one; Term of its term, 0 if it is
	// not Active.
	Epoch, Term int64
	// Held tells who stopped the node without fail-over; nil if nobody did.
	Held *HoldRecord
	// Heard is when this member last heard from it, zero if never. This node
	// itself: now. Silent is set while this member has evidence that its session
	// is over.
	Heard  time.Time
	Silent bool
	// Lost is the session that was declared lost last while its process may have
	// lived on, 0 if there is none.
	Lost int64
	// Unready says why an automatic fail-over would not work if the node died
	// now; empty if it would. Successor would take over from the Active.
	Unready   string
	Successor string
}

// Nodes lists all members that the cluster remembers, in order of their names.
func (m *Member) Nodes() []NodeStatus {
	snap := m.view.Snapshot()
	active, holder, held := activeIn(snap)
	var out []NodeStatus
	for kv := range snap.Range(prefixNodes) {
		rec, err := decode[NodeRecord](kv)
		if err != nil {
			rec = NodeRecord{Name: leaf(kv.Key, prefixNodes)}
		}
		st := NodeStatus{NodeRecord: rec, Mode: ModeOffline, Epoch: snap.mod(sessionKey(rec.Name))}
		if kv, ok := snap.Get(holdKey(rec.Name)); ok {
			if h, err := decode[HoldRecord](kv); err == nil {
				st.Held = &h
			}
		}
		if loss, ok := lossIn(snap, rec.Name); ok && !loss.Ended {
			st.Lost = loss.Epoch
		}
		if st.Epoch != 0 && st.Held == nil {
			st.Mode = ModePassive
			if held && holder.Node == rec.Name {
				st.Mode, st.Term = ModeActive, active.Mod
			}
		}
		if rec.Name == m.cfg.Name {
			// Of itself it knows better: just after it has joined, its view may still
			// show its former session, and the term that this had.
			st.Heard = time.Now()
			st.Mode, st.Epoch, st.Term = ModeOffline, 0, 0
			if s := m.current(); s != nil {
				st.Mode, st.Epoch = s.Mode(), s.Epoch()
				if t := s.Term(); t != nil && st.Mode == ModeActive {
					st.Term = t.Epoch()
				}
			}
		} else {
			st.Heard = m.heard(rec.Name)
			st.Silent = st.Epoch != 0 && m.mesh.Suspected(rec.Name, st.Epoch)
		}
		st.Unready, st.Successor = m.unready(snap, st)
		out = append(out, st)
	}
	return out
}

// Record returns the record of a node that the cluster remembers.
func (m *Member) Record(node string) (NodeRecord, bool) {
	kv, ok := m.view.Get(nodeKey(node))
	if !ok {
		return NodeRecord{}, false
	}
	rec, err := decode[NodeRecord](kv)
	if err != nil {
		rec = NodeRecord{Name: node}
	}
	return rec, true
}

// unready says why the loss of a node would not be taken over right now.
func (m *Member) unready(snap Snapshot, st NodeStatus) (why, successor string) {
	if st.Held != nil {
		return "held: it was stopped without fail-over", ""
	}
	if st.Epoch == 0 {
		return "it is offline already", ""
	}
	if st.Name != m.cfg.Name && m.cfg.Failover == FailoverConfirm && m.mesh.Suspected(st.Name, st.Epoch) {
		return "it does not answer, and failover is set to confirm: uac node confirm-lost " + st.Name, ""
	}
	switch {
	case st.Heard.IsZero():
		return m.cfg.Name + " has not heard from it yet", ""
	case st.Silent: // its fail-over is under way, or nobody can decide it
		return fmt.Sprintf("it does not answer; last heard %v ago", time.Since(st.Heard).Truncate(time.Second)), ""
	}
	voters := m.Voters()
	left := 0
	for _, v := range voters {
		epoch := snap.mod(sessionKey(v))
		if v == st.Name || epoch == 0 || v != m.cfg.Name && (m.mesh.Suspected(v, epoch) || !m.mesh.Supported(v)) {
			continue
		}
		left++
	}
	if need := len(voters)/2 + 1; left < need {
		return fmt.Sprintf("%d of %d members could go on, a majority is %d", left, len(voters), need), ""
	}
	if st.Mode == ModeActive {
		succ, ok := chooseSuccessor(without(m.candidates(snap), st.Name), st.Epoch)
		if !ok {
			return "no other controller is up", ""
		}
		successor = succ.Name
	}
	if m.cfg.Failover == FailoverConfirm {
		return "failover is set to confirm: an operator must confirm the loss", successor
	}
	return "", successor
}

func (m *Member) current() *Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

// Status says what this member is doing when it has no session.
type Status struct {
	// Reason in words: what the start waits for, or why there is no trust.
	// Empty while the member has a session and trust.
	Reason string
	// QuorumLost is for how long no majority has been seen.
	QuorumLost time.Duration
}

// Status of this member. It never blocks.
func (m *Member) Status() Status {
	st := Status{QuorumLost: m.QuorumLost()}
	m.mu.Lock()
	s, waiting := m.session, m.waiting
	m.mu.Unlock()
	switch {
	case s == nil && waiting == "":
		st.Reason = "no session"
	case s == nil:
		st.Reason = "waits for " + waiting
	default:
		if err := s.Check(); err != nil {
			st.Reason = err.Error()
			if full := m.full(); full != nil { // that is why
				st.Reason = full.Error() + " (" + st.Reason + ")"
			}
		}
	}
	return st
}

// RaftLeader names the member that leads raft as this member sees it, "" if it
// knows none. Who leads raft says nothing about who is Active.
func (m *Member) RaftLeader() string {
	m.mu.Lock()
	e := m.etcd
	m.mu.Unlock()
	if e == nil {
		return ""
	}
	return e.leader()
}

// ErrOnline is returned by [Session.RemoveNode] for a node that has a session.
var ErrOnline = errors.New("node is online")

// ErrNoSuchNode is returned for a node that the cluster does not know.
var ErrNoSuchNode = errors.New("no such node")

// RemoveNode forgets an offline node.
func (s *Session) RemoveNode(ctx context.Context, node string, with ...Write) error {
	kv, ok := s.m.view.Get(nodeKey(node))
	switch {
	case !ok:
		return fmt.Errorf("%w: %s", ErrNoSuchNode, node)
	case node == s.m.cfg.Name:
		return fmt.Errorf("%w: %s", ErrOnline, node)
	}
	// The record of the loss stands in for the node's record as the witness.
	res, err := s.Commit(ctx, Tx{
		If: []Cond{ModIs(nodeKey(node), kv.Mod), Absent(sessionKey(node))},
		Then: append([]Write{
			Put(lossKey(node), encode(LossRecord{Node: node, Decider: s.m.cfg.Name, Evidence: "removed by an operator", At: time.Now().UTC()})),
			Del(nodeKey(node)), Del(holdKey(node)), Del(confirmKey(node)), Del(commitKey(node)),
		}, with...),
	})
	if err == nil && !res.Won {
		err = fmt.Errorf("%w: %s", ErrOnline, node)
	}
	return err
}

// CheckLost returns an error if an operator's word that a node is lost is not
// taken: the cluster does not know it, or it answers. This node answers, too: a word
// about itself would wait for its next death and stand in for an operator then.
func (s *Session) CheckLost(node string) error {
	snap := s.m.view.Snapshot()
	if _, ok := snap.Get(nodeKey(node)); !ok {
		return fmt.Errorf("%w: %s", ErrNoSuchNode, node)
	}
	if node == s.m.cfg.Name {
		return fmt.Errorf("%w: %s is the node that was asked; stop or abort it instead", ErrOnline, node)
	}
	epoch := snap.mod(sessionKey(node))
	_, held := snap.Get(holdKey(node))
	if epoch != 0 && !held && s.m.connected(node) && !s.m.mesh.Suspected(node, epoch) {
		return fmt.Errorf("%w: %s answers this node; stop or abort it instead", ErrOnline, node)
	}
	return nil
}

// ConfirmLost is an operator's word that a node is lost: it releases a loss
// that waits in failover: confirm, and ends a hold together with the session
// that it kept.
func (s *Session) ConfirmLost(ctx context.Context, node, by, why string, with ...Write) (string, error) {
	if err := s.CheckLost(node); err != nil {
		return "", err
	}
	snap := s.m.view.Snapshot()
	epoch := snap.mod(sessionKey(node))
	if epoch == 0 {
		return fmt.Sprintf("%s has no session: nothing to confirm", node), nil
	}
	if hold, ok := snap.Get(holdKey(node)); ok {
		res, err := s.Commit(ctx, Tx{
			If: []Cond{ModIs(hold.Key, hold.Mod), ModIs(sessionKey(node), epoch)},
			Then: append([]Write{
				Put(lossKey(node), encode(LossRecord{Node: node, Epoch: epoch, Decider: s.m.cfg.Name, Evidence: "held; " + by + " confirmed the loss: " + why, At: time.Now().UTC()})),
				Del(hold.Key), Del(sessionKey(node)),
			}, with...),
		})
		if err == nil && !res.Won {
			err = fmt.Errorf("%w: %s came back meanwhile", ErrOnline, node)
		}
		return fmt.Sprintf("hold of %s ended: its work is free to be taken over", node), err
	}
	_, err := s.Commit(ctx, Tx{Then: append([]Write{
		Put(confirmKey(node), encode(ConfirmRecord{Epoch: epoch, By: by, Why: why, At: time.Now().UTC()})),
	}, with...)})
	return fmt.Sprintf("loss of %s confirmed", node), err
}

// TakeHeldTerm makes a controller Active in place of one that was stopped
// without fail-over: switchover --to ends the hold and the session it kept.
func (s *Session) TakeHeldTerm(ctx context.Context, to string, with ...Write) error {
	snap := s.m.view.Snapshot()
	active, rec, _ := activeIn(snap)
	hold, ok := snap.Get(holdKey(rec.Node))
	if active.Mod == 0 || !ok {
		return ErrNotActive
	}
	succ, err := s.successor(snap, to)
	if s.m.cfg.Role == RoleController && (to == s.m.cfg.Name || to == "" && err != nil) {
		succ, err = candidate{Name: s.m.cfg.Name, Epoch: s.epoch}, nil
	}
	if err != nil {
		return err
	}
	res, err := s.Commit(ctx, Tx{
		If: append([]Cond{ModIs(keyActive, active.Mod), ModIs(hold.Key, hold.Mod)}, succ.conds()...),
		Then: append([]Write{
			Put(keyActive, succ.active()),
			Del(hold.Key), Del(sessionKey(rec.Node)),
		}, with...),
	})
	if err == nil && !res.Won {
		err = fmt.Errorf("%w: %s came back, or %s left meanwhile", ErrNoSuccessor, rec.Node, succ.Name)
	}
	return err
}

// The functions below read coordination keys from a snapshot, so that others
// can judge them at one revision together with their own keys.

// IsSessionKey reports whether a change of key opens or ends a session, or
// holds one.
func IsSessionKey(key string) bool {
	return leaf(key, prefixSessions) != "" || leaf(key, prefixHold) != "" || key == keyActive || leaf(key, prefixNodes) != ""
}

// SessionEpoch returns the epoch of a node's session, 0 without one.
func SessionEpoch(snap Snapshot, node string) int64 { return snap.mod(sessionKey(node)) }

// SessionIsNot holds unless the node's session has this epoch.
func SessionIsNot(node string, epoch int64) Cond { return ModIsNot(sessionKey(node), epoch) }

// SessionIs holds while the node's session has this epoch.
func SessionIs(node string, epoch int64) Cond { return ModIs(sessionKey(node), epoch) }

// ControllerInfo is one controller that has a session.
type ControllerInfo struct {
	Name   string
	Epoch  int64
	Paused bool
	Active bool
}

// Controllers lists the controllers that have a session and are not held.
func Controllers(snap Snapshot) []ControllerInfo {
	_, rec, holder := activeIn(snap)
	var out []ControllerInfo
	for kv := range snap.Range(prefixSessions) {
		name := leaf(kv.Key, prefixSessions)
		sess, err := decode[SessionRecord](kv)
		if err != nil || sess.Role != RoleController {
			continue
		}
		if _, held := snap.Get(holdKey(name)); held {
			continue
		}
		out = append(out, ControllerInfo{
			Name: name, Epoch: kv.Mod, Paused: nodeIn(snap, name).Paused,
			Active: holder && rec.Node == name,
		})
	}
	return out
}

// SessionsOf returns the names of all nodes that have a session.
func SessionsOf(snap Snapshot) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for kv := range snap.Range(prefixSessions) {
			if !yield(leaf(kv.Key, prefixSessions)) {
				return
			}
		}
	}
}

// IsLossKey reports whether key is the record of a loss.
func IsLossKey(key string) bool { return leaf(key, prefixLosses) != "" }

// lossIn returns the last decision that a session of the node is lost.
func lossIn(snap Snapshot, node string) (LossRecord, bool) {
	kv, ok := snap.Get(lossKey(node))
	if !ok {
		return LossRecord{}, false
	}
	rec, err := decode[LossRecord](kv)
	return rec, err == nil
}

// Losses lists the last loss of every node that was ever lost.
func Losses(snap Snapshot) []LossRecord {
	var out []LossRecord
	for kv := range snap.Range(prefixLosses) {
		if rec, err := decode[LossRecord](kv); err == nil {
			out = append(out, rec)
		}
	}
	return out
}
