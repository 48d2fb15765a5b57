package coord

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/codestation/durable"
)

// Errors of [Member.ContinueAlone].
var (
	// ErrHasQuorum is returned while a majority of the members works, or may
	// come back at any moment.
	ErrHasQuorum = errors.New("not without a majority for long enough")
	// ErrNotAllNamed is returned when the order does not name exactly the other
	// members, or one of them is reachable.
	ErrNotAllNamed = errors.New("the lost members are not named correctly")

	errContinueAlone = errors.New("continue alone")
)

// AloneOrder is an operator's word that all other members are lost and
// switched off.
type AloneOrder struct {
	Lost []string `json:"lost"`
	By   string   `json:"by"`
	Why  string   `json:"why"`
	// With is written with the first writes of the generation: the audit.
	With []Write `json:"with,omitempty"`
}

// QuorumLost is for how long this member has seen no majority; 0 if it sees one.
func (m *Member) QuorumLost() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.quorumLost.IsZero() {
		return 0
	}
	return time.Since(m.quorumLost)
}

// watchQuorum notes who leads raft, and since when nobody does here. Raft itself
// steps a leader down that no longer reaches a majority.
func (m *Member) watchQuorum(ctx context.Context, e *etcd) error {
	tick := time.NewTicker(raftElection)
	defer tick.Stop()
	for {
		changed := e.server.Server.LeaderChangedNotify()
		leader := e.leader()
		m.mu.Lock()
		switch {
		case leader != "":
			m.quorumLost, m.lastLeader = time.Time{}, leader
		case m.quorumLost.IsZero():
			m.quorumLost = time.Now()
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// ContinueAlone makes this member go on as a cluster of one with the data it
// has, in a new generation, after an operator confirmed that every other member
// is lost. What the others acknowledged and this one never received is gone:
// that is why it takes an operator, half a minute without a majority, and every
// name. It returns when the order is durable; the session that follows opens in
// the new generation.
func (m *Member) ContinueAlone(o AloneOrder) error {
	if m.cfg.Role != RoleController {
		return errors.New("only a controller can continue alone")
	}
	if lost := m.QuorumLost(); lost < m.cfg.AloneAfter {
		if lost == 0 {
			return ErrHasQuorum
		}
		return fmt.Errorf("%w: it was lost %v ago, and this is possible %v after that",
			ErrHasQuorum, lost.Round(time.Second), m.cfg.AloneAfter)
	}
	var others []string
	for _, v := range m.Voters() {
		if v != m.cfg.Name {
			others = append(others, v)
		}
	}
	slices.Sort(others)
	named := slices.Clone(o.Lost)
	slices.Sort(named)
	for _, v := range named {
		if v != m.cfg.Name && !slices.Contains(others, v) {
			return fmt.Errorf("%w: %s; the other members are %s", ErrNoSuchNode, v, strings.Join(others, " "))
		}
	}
	if !slices.Equal(others, slices.Compact(named)) {
		return fmt.Errorf("%w: name every other member: %s", ErrNotAllNamed, strings.Join(others, " "))
	}
	for _, v := range others {
		// One that hangs may keep its connection, but says nothing any more.
		if m.connected(v) && time.Since(m.heard(v)) < m.cfg.JoinTimeout {
			return fmt.Errorf("%w: %s answers this node", ErrNotAllNamed, v)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.generation.Alone != nil {
		return errors.New("an order to continue alone is being carried out")
	}
	// The number is durable before anything is done: this member must never
	// again speak for the old generation. So is the order: should the process
	// end before the generation has begun, the next one carries it out.
	err := m.setGeneration(generationRecord{N: m.generation.N + 1, ID: rand.Text(), Alone: &o})
	if err == nil {
		signal(m.aloneNow)
	}
	return err
}

// aloneOrder is the order to continue alone that is to be carried out, if any.
func (m *Member) aloneOrder() *AloneOrder {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation.Alone
}

// beginGeneration carries out the order to continue alone: it raises the
// generation and removes everything that says who is alive, in one transaction,
// so that all members and agents can tell the new history from the old one.
func (m *Member) beginGeneration(ctx context.Context, e *etcd, order *AloneOrder) error {
	select {
	case <-e.ready():
	case <-e.failed():
		return errRemoved
	case <-ctx.Done():
		return ctx.Err()
	}
	gen, id := m.Generation()
	rec := generationRecord{N: gen, ID: id}
	me := nodeKey(m.cfg.Name)
	for {
		// The same transaction again is harmless: nobody else writes here.
		now, _, err := e.get(ctx, lastAttempt, me)
		if err == nil {
			_, err = e.attempt(ctx, lastAttempt, nil, m.firstWrites(rec, order, now[me]), nil)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.log.Debug("new generation not begun yet", "error", err)
	}
	m.log.Warn("continuing alone in a new generation", "generation", gen,
		"lost", order.Lost, "by", order.By, "why", order.Why)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.quorumLost = time.Time{}
	return m.setGeneration(rec)
}

// firstWrites are the first writes of a generation.
func (m *Member) firstWrites(rec generationRecord, order *AloneOrder, me KV) []clientv3.Op {
	// Controllers come up paused: an operator looks before work goes on.
	node, err := decode[NodeRecord](me)
	if err != nil {
		node = NodeRecord{}
	}
	node.Name, node.Role, node.Paused = m.cfg.Name, m.cfg.Role, true
	all := func(prefix string) clientv3.Op { return clientv3.OpDelete(prefix, clientv3.WithPrefix()) }
	ops := []clientv3.Op{
		clientv3.OpPut(keyGeneration, string(encode(rec))),
		all(prefixSessions), all(prefixAlive), all(prefixHold), all(prefixConfirms),
		clientv3.OpDelete(keyActive),
		clientv3.OpPut(nodeKey(m.cfg.Name), string(encode(node))),
	}
	for _, lost := range order.Lost {
		ops = append(ops, clientv3.OpPut(lossKey(lost), string(encode(LossRecord{
			Node: lost, Decider: m.cfg.Name, Agreed: []string{order.By}, At: time.Now().UTC(),
			Evidence: "an operator confirmed it after loss of quorum: " + order.Why,
		}))))
	}
	for _, w := range order.With {
		ops = append(ops, w.op())
	}
	return ops
}

const generationFile = "generation.json"

func loadGeneration(dataDir string) (generationRecord, error) {
	path := filepath.Join(dataDir, generationFile)
	rec := generationRecord{N: 1}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("generation: %w", err)
	}
	if err := json.Unmarshal(b, &rec); err != nil || rec.N < 1 {
		return rec, fmt.Errorf("generation: %s is damaged: %q", path, b)
	}
	return rec, nil
}

// raiseGeneration takes over a generation that the cluster has begun.
func (m *Member) raiseGeneration(rec generationRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec.N <= m.generation.N {
		return nil
	}
	return m.setGeneration(rec)
}

// setGeneration makes rec durable before anything is said in its name. The
// caller holds mu.
func (m *Member) setGeneration(rec generationRecord) error {
	path := filepath.Join(m.cfg.DataDir, generationFile)
	m.deps.Point(pointGenerationWriting)
	if err := durable.WriteFile(path, encode(rec), 0o600); err != nil {
		return fmt.Errorf("generation: %w", err)
	}
	m.deps.Point(pointGenerationWritten)
	m.generation = rec
	return nil
}
