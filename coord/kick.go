package coord

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// How long a survivor waits for the one before it in line to become raft
// leader, and how often it tries itself.
const (
	kickAfter = 10 * time.Millisecond
	kickTries = 5
)

// electInsteadOf makes raft elect a new leader at once when dead led it,
// instead of after its own timeout, and returns when there is one or when it
// has tried often enough. Survivors take turns: two that start at the same
// moment would split the vote. The first in line is who would become Active; it
// can lose if its log is shorter, then the next one's turn comes. A wrong call
// costs one election and nothing else.
func (m *Member) electInsteadOf(ctx context.Context, dead string) {
	e := m.serving()
	if e == nil || !m.leaderless(e, dead) || !m.electing.CompareAndSwap(false, true) {
		return
	}
	defer m.electing.Store(false)
	wait := m.turn(dead)
	t := time.NewTicker(kickAfter)
	defer t.Stop()
	for tries := 0; tries < kickTries && m.leaderless(e, dead); {
		if wait > 0 {
			wait--
		} else {
			m.kick(ctx, e, dead)
			tries++
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// leaderless reports whether raft has had no leader since the dead one.
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
