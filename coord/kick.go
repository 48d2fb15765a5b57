package coord

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	// kickAfter is how long a survivor waits for the one before it in line to
	// become raft leader, and how often it looks.
	kickAfter = 10 * time.Millisecond
	// kickTries is how often it tries itself. After each try it waits twice as
	// long as before, so that two who get in each other's way come apart.
	kickTries = 5
	// kickSteady is how many looks in a row must show a leader. A late call of
	// another survivor may depose one that has just been elected.
	kickSteady = 5
)

// electInsteadOf makes raft elect a new leader at once when dead led it,
// instead of after its own timeout, and returns when one stands or when it has
// tried often enough. Survivors take turns: two that start at the same moment
// would split the vote. The first in line is who would become Active; it can
// lose if its log is shorter, then the next one's turn comes. A wrong call costs
// no more than the election that raft would hold by itself.
func (m *Member) electInsteadOf(ctx context.Context, dead string) {
	e := m.serving()
	if e == nil || !m.leaderless(e, dead) || !m.electing.CompareAndSwap(false, true) {
		return
	}
	defer m.electing.Store(false)
	turn := m.turn(dead)
	t := time.NewTicker(kickAfter)
	defer t.Stop()
	for wait, tries, steady := turn, 0, 0; steady < kickSteady; {
		l := e.leader()
		switch {
		case l != "" && l != dead:
			steady++
		case wait > 0:
			steady = 0
			wait--
		case tries == kickTries:
			return
		default:
			steady = 0
			m.kick(ctx, e, dead)
			tries++
			wait = turn + 1<<tries
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
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

// turn is this member's place in the line of those who may start an election.
func (m *Member) turn(dead string) int {
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
	return max(0, slices.Index(line, m.cfg.Name))
}

// kick steps MsgTimeoutNow into the local raft node: the message with which a
// leader hands over, so the node starts an election without a pre-vote and the
// other voters do not wait for the old leader's lease. The term is left unset:
// raft takes it as a local message, while any term we could read lags behind
// and would be refused as old.
func (m *Member) kick(ctx context.Context, e *etcd, dead string) {
	from := uint64(e.members()[dead])
	self := uint64(e.server.Server.MemberID())
	if from == 0 || from == self {
		return
	}
	msg := &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &from, To: &self}
	if err := e.server.Server.Process(ctx, msg); err != nil {
		m.log.Debug("forced raft election refused", "error", err)
		return
	}
	m.log.Info("forced raft election", "instead_of", dead)
}
