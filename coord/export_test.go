package coord

import (
	"context"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"
)

// TxnFunc runs one etcd transaction once.
type TxnFunc = txnFunc

// WrapTxn makes the member send its transactions through wrap.
func WrapTxn(c *Config, wrap func(next TxnFunc) TxnFunc) { c.hooks.txn = wrap }

// SetElection sets raft's election timeout.
func SetElection(c *Config, d time.Duration) { c.hooks.election = d }

// EtcdServer of a running member, nil if it does not run.
func EtcdServer(m *Member) *etcdserver.EtcdServer {
	if e := m.serving(); e != nil {
		return e.server.Server
	}
	return nil
}

// LookAgain makes a session act on what its view shows now.
func LookAgain(s *Session) { s.follow(s.m.view.Snapshot()) }

// EvidenceOf is a member's evidence against another one, in words.
func EvidenceOf(m *Member, node string) string {
	for _, p := range m.mesh.Snapshot() {
		if p.Name == node {
			return p.Evidence
		}
	}
	return ""
}

// Questions is how often a member has asked others about a loss.
func Questions(m *Member) uint64 {
	m.mesh.lock()
	defer m.mesh.unlock()
	return m.mesh.ballots.number
}

// TryAgain makes a member start another raft election, as if dead had led raft.
func TryAgain(ctx context.Context, m *Member, dead string) {
	if e := m.serving(); e != nil {
		m.tryAgain(ctx, e, dead)
	}
}

// Kick makes a member start a raft election, as if dead had led raft.
func Kick(ctx context.Context, m *Member, dead string) {
	if e := m.serving(); e != nil {
		m.takeOver(ctx, e, dead)
	}
}

// Compact does what the Active does for the store now and then.
func Compact(ctx context.Context, s *Session) error {
	return s.compact(ctx, s.m.view.Revision())
}
