package coord

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	// kickAfter is how long the first survivor in line has before the next one
	// tries. Each turn after that lasts twice as long as
	// the one before: on slow disks an election takes longer than a turn, and two
	// that get in each other's way must come apart.
	kickAfter = 20 * time.Millisecond
	// kickTurns is how many there are before it is left to raft's own timeout.
	kickTurns = 6
	// kickLook is how often they look, and kickSteady how many looks in a row must
	// show a leader. A late call of another survivor may depose one that has just
	// been elected.
	kickLook   = 10 * time.Millisecond
	kickSteady = 5
)

// kickAt is when a turn begins: at 0, 20, 60, 140 ms and so on.
func kickAt(turn int) time.Duration { return kickAfter<<turn - kickAfter }

// electInsteadOf makes raft elect a new leader at once when dead led it, instead
// of after its own timeout. Survivors take turns, because two that start at the
// same moment split the vote. The first in line is who would become Active; it
// can lose if its log is shorter, then the next one's turn comes. A wrong call
// costs no more than the election that raft would hold by itself.
//
// A server that has just started takes no part, see firstElection.
//
// If the first turn is ours, the election has begun when electInsteadOf returns.
// The caller runs rest, which returns when a leader stands or all turns are over.
func (m *Member) electInsteadOf(ctx context.Context, dead string) (rest func()) {
	e := m.serving()
	if e == nil || !e.published() || !m.leaderless(e, dead) || !m.electing.CompareAndSwap(false, true) {
		return func() {}
	}
	line := m.line(dead)
	began, turn, steady := time.Now(), 0, 0
	kick := m.takeOver
	look := func() {
		mine := false
		for ; turn < kickTurns && time.Since(began) >= kickAt(turn); turn++ {
			mine = mine || len(line) > 0 && line[turn%len(line)] == m.cfg.Name
		}
		switch l := e.leader(); {
		case l != "" && l != dead:
			steady++
		default:
			steady = 0
			if mine {
				kick(ctx, e, dead)
				kick = m.tryAgain
			}
		}
	}
	look()
	return func() {
		defer m.electing.Store(false)
		t := time.NewTicker(kickLook)
		defer t.Stop()
		for steady < kickSteady && time.Since(began) < kickAt(kickTurns) {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				look()
			}
		}
	}
}

// firstElection makes raft elect its very first leader soon, instead of after its
// own timeout: the first of those that are connected calls for it until there is
// one. Should the others have a leader, they ignore the call.
//
// A later start must wait for the timeout: while a server applies what its log
// held, raft panics when it is told to campaign.
func (m *Member) firstElection(ctx context.Context, e *etcd) error {
	for wait := kickAfter; e.leader() == ""; wait *= 2 {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		if e.leader() == "" && m.firstHere() {
			m.stepRaft(ctx, e, raftpb.MsgHup, raft.LocalAppendThread)
		}
	}
	return nil
}

// firstHere reports whether this member is connected to a majority of the voters
// and comes before all of them.
func (m *Member) firstHere() bool {
	voters, here := m.Voters(), 0
	for _, v := range voters {
		switch {
		case v == m.cfg.Name:
			here++
		case m.connected(v):
			if v < m.cfg.Name {
				return false
			}
			here++
		}
	}
	return here >= majority(len(voters))
}

// leaderless reports whether raft has had no leader since the dead one. If
// another one led it since, it is raft's own business to elect the next.
func (m *Member) leaderless(e *etcd, dead string) bool {
	l := e.leader()
	if l == "" {
		m.mu.Lock()
		defer m.mu.Unlock()
		l = m.lastLeader
	}
	return l == dead
}

// line is the order in which survivors may start an election.
func (m *Member) line(dead string) []string {
	snap := m.view.Snapshot()
	first := ""
	if succ, ok := chooseSuccessor(without(m.candidates(snap), dead), snap.mod(sessionKey(dead))); ok {
		first = succ.Name
	}
	var line []string
	for _, v := range m.Voters() {
		if v == dead || v == first || v != m.cfg.Name && m.mesh.Suspected(v, snap.mod(sessionKey(v))) {
			continue
		}
		line = append(line, v)
	}
	slices.Sort(line)
	if first != "" {
		line = append([]string{first}, line...)
	}
	return line
}

// takeOver steps MsgTimeoutNow into the local raft node: the message with which
// a leader hands over, so the node starts an election without a pre-vote and the
// other voters do not wait for the old leader's lease. The term is left unset:
// raft takes it as a local message, while any term we could read lags behind
// and would be refused as old.
func (m *Member) takeOver(ctx context.Context, e *etcd, dead string) {
	if from := uint64(e.members()[dead]); from != 0 {
		m.log.Info("forced raft election", "instead_of", dead)
		m.stepRaft(ctx, e, raftpb.MsgTimeoutNow, from)
	}
}

// tryAgain steps MsgHup, which is what raft's own election timeout does: a
// candidate that lost a split vote ignores MsgTimeoutNow. By now no voter has a
// leader, so none waits for a lease.
func (m *Member) tryAgain(ctx context.Context, e *etcd, dead string) {
	m.log.Info("forced raft election again", "instead_of", dead)
	m.stepRaft(ctx, e, raftpb.MsgHup, raft.LocalAppendThread)
}

// stepRaft steps a message into the local raft node.
func (m *Member) stepRaft(ctx context.Context, e *etcd, typ raftpb.MessageType, from uint64) {
	self := uint64(e.server.Server.MemberID())
	if from == self {
		return
	}
	msg := &raftpb.Message{Type: typ.Enum(), From: &from, To: &self}
	if err := e.server.Server.Process(ctx, msg); err != nil {
		m.log.Debug("forced raft election refused", "error", err)
	}
}
