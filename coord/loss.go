package coord

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A survivor that would not itself become Active lets the one that would go
// first, so that the usual loss costs one transaction and not two that race.
const yieldToSuccessor = 10 * time.Millisecond

// decideLosses commits the loss of every suspect on which a majority agrees,
// each by itself, until ctx ends.
func (s *Session) decideLosses(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex // guards the maps
	deciding := map[string]bool{}
	said := map[string]string{} // by suspect: why its loss was not decided
	for {
		var sus suspect
		select {
		case <-ctx.Done():
			return ctx.Err()
		case sus = <-s.m.agreed:
		}
		mu.Lock()
		busy := deciding[sus.node]
		deciding[sus.node] = true
		mu.Unlock()
		if busy {
			continue
		}
		// Raft's own election never waits for an operator, and our transaction
		// does not wait for the election: what is proposed while there is no leader
		// goes to the one that is elected, what is proposed before is lost.
		wg.Go(s.m.electInsteadOf(ctx, sus.node))
		wg.Go(func() {
			why := ""
			if err := s.decideLoss(ctx, sus); err != nil && ctx.Err() == nil {
				why = fmt.Sprintf("session %d: %v", sus.epoch, err)
			}
			mu.Lock()
			news := why != "" && why != said[sus.node]
			said[sus.node] = why
			delete(deciding, sus.node)
			mu.Unlock()
			// The agreement is renewed as long as the evidence stands.
			if news && s.m.cfg.Failover == FailoverConfirm {
				s.log.Warn("loss not decided", "suspect", sus.node, "reason", why)
			} else if news {
				s.log.Info("loss not decided", "suspect", sus.node, "reason", why)
			}
		})
	}
}

// suspect is a session on whose loss a majority agreed.
type suspect struct {
	node  string
	epoch int64
}

// errNoLoss ends a decision that has become pointless or impossible.
var errNoLoss = errors.New("no loss to decide")

// decideLoss commits the one transaction that fences the suspect, elects the
// Active and frees the suspect's requests. It goes on, each time with an
// agreement that is valid when the attempt is sent, until the session is gone
// or the agreement ends.
func (s *Session) decideLoss(ctx context.Context, sus suspect) error {
	for first := true; ; {
		snap := s.m.view.Snapshot()
		if snap.mod(sessionKey(sus.node)) != sus.epoch {
			s.lossShown(snap, sus)
			return nil
		}
		if _, held := snap.Get(holdKey(sus.node)); held {
			return fmt.Errorf("%w: %s is held by its goodbye", errNoLoss, sus.node)
		}
		agreement, ok := s.m.mesh.Agreement(sus.node, sus.epoch)
		if !ok {
			return fmt.Errorf("%w: the agreement ended", errNoLoss)
		}
		tx, err := s.lossTx(snap, sus, agreement)
		if err != nil {
			return err
		}
		if first && tx.record.Successor != s.m.cfg.Name && tx.record.Successor != "" {
			first = false
			if err := pause(ctx, yieldToSuccessor); err != nil {
				return err
			}
			continue
		}
		first = false
		s.m.deps.Point(pointLossProposing)
		resp, err := s.etcd.attempt(ctx, lossAttempt, tx.cmps, tx.then, nil)
		switch {
		case err == nil && resp.Succeeded:
			s.lossDecided(tx.record, resp.Header.Revision)
			return nil
		case err == nil:
			// Something moved: look again with the revision that refused us.
			if err := s.m.view.Wait(ctx, resp.Header.Revision); err != nil {
				return err
			}
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			if gone, rev := s.settled(ctx, sus); gone {
				if err := s.m.view.Wait(ctx, rev); err != nil {
					return err
				}
			}
		}
	}
}

// settled resolves an unknown outcome by reading the suspect's session.
func (s *Session) settled(ctx context.Context, sus suspect) (gone bool, rev int64) {
	key := sessionKey(sus.node)
	got, rev, err := s.etcd.get(ctx, lossAttempt, key)
	return err == nil && got[key].Mod != sus.epoch, rev
}

type lossTx struct {
	cmps   []clientv3.Cmp
	then   []clientv3.Op
	record LossRecord
}

// lossTx builds the transaction of a loss from what the snapshot shows; every
// key it relies on is compared.
func (s *Session) lossTx(snap Snapshot, sus suspect, a agreement) (lossTx, error) {
	me := s.m.cfg.Name
	active, rec, _ := activeIn(snap)
	held := active.Mod != 0 && rec.Node == sus.node && rec.Epoch == sus.epoch
	tx := lossTx{record: LossRecord{
		Node: sus.node, Epoch: sus.epoch, Decider: me,
		Evidence: a.Evidence, Ended: a.Ended, Agreed: a.Voters, WasActive: held, At: time.Now().UTC(),
	}}
	tx.cmps = []clientv3.Cmp{
		ModIs(sessionKey(me), s.epoch).cmp(),
		ModIs(sessionKey(sus.node), sus.epoch).cmp(),
		ModIs(keyActive, active.Mod).cmp(),
		Absent(holdKey(sus.node)).cmp(),
	}
	tx.then = []clientv3.Op{clientv3.OpDelete(sessionKey(sus.node))}
	if held {
		cands := s.m.candidates(snap)
		if succ, ok := chooseSuccessor(without(cands, sus.node), sus.epoch); ok {
			tx.record.Successor = succ.Name
			for _, c := range succ.conds() {
				tx.cmps = append(tx.cmps, c.cmp())
			}
			tx.then = append(tx.then, clientv3.OpPut(keyActive, string(succ.active())))
			if succ.Name == me {
				// The first write of our term goes with the transaction that begins it.
				tx.then = append(tx.then, clientv3.OpPut(keyTerms, string(encode(TermRecord{Node: me, At: tx.record.At}))))
			}
		} else {
			tx.then = append(tx.then, clientv3.OpDelete(keyActive))
		}
	}
	if s.m.cfg.Failover == FailoverConfirm {
		kv, ok := snap.Get(confirmKey(sus.node))
		rec, err := decode[ConfirmRecord](kv)
		if !ok || err != nil || rec.Epoch != sus.epoch {
			return tx, fmt.Errorf("%w: waits for an operator: uac node confirm-lost %s", errNoLoss, sus.node)
		}
		tx.cmps = append(tx.cmps, ModIs(kv.Key, kv.Mod).cmp())
		tx.then = append(tx.then, clientv3.OpDelete(kv.Key))
	}
	tx.then = append(tx.then, clientv3.OpPut(lossKey(sus.node), string(encode(tx.record))))
	return tx, nil
}

// lossShown acts on a decision that the view shows, if it was ours after all: the
// answer to an attempt is easily lost while raft elects a leader.
func (s *Session) lossShown(snap Snapshot, sus suspect) {
	rec, ok := lossIn(snap, sus.node)
	if ok && rec.Epoch == sus.epoch && rec.Decider == s.m.cfg.Name {
		s.lossDecided(rec, snap.mod(lossKey(sus.node)))
	}
}

// lossDecided acts on our own decision without waiting for the view.
func (s *Session) lossDecided(rec LossRecord, rev int64) {
	s.m.deps.Point(pointLossDecided)
	if rec.Successor == s.m.cfg.Name {
		s.beginTerm(rev, true)
	}
	s.log.Warn("session declared lost", "suspect", rec.Node, "session", rec.Epoch,
		"evidence", rec.Evidence, "agreed", rec.Agreed, "was_active", rec.WasActive, "successor", rec.Successor)
}

// candidates lists the controllers that have a session, with what matters for
// choosing a successor.
func (m *Member) candidates(snap Snapshot) []candidate {
	var cs []candidate
	for kv := range snap.Range(prefixSessions) {
		node := leaf(kv.Key, prefixSessions)
		rec, err := decode[SessionRecord](kv)
		if err != nil || rec.Role != RoleController {
			continue
		}
		if _, held := snap.Get(holdKey(node)); held {
			continue
		}
		n := nodeIn(snap, node)
		cs = append(cs, candidate{
			Name: node, Role: rec.Role, Epoch: kv.Mod,
			Preferred: n.Preferred, Paused: n.Paused,
			Suspected: node != m.cfg.Name && m.mesh.Suspected(node, kv.Mod),
		})
	}
	return cs
}

func without(cs []candidate, node string) []candidate {
	out := cs[:0:0]
	for _, c := range cs {
		if c.Name != node {
			out = append(out, c)
		}
	}
	return out
}
