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

// How long quorum must have been gone before an operator may let a survivor
// continue alone: long enough that a reboot is not mistaken for a loss.
const aloneAfter = 30 * time.Second

// Errors of [Member.ContinueAlone].
var (
	// ErrHasQuorum is returned while a majority of the members works.
	ErrHasQuorum = errors.New("the cluster has a majority")
	// ErrNotAllNamed is returned when the order does not name exactly the other
	// members, or one of them is reachable.
	ErrNotAllNamed = errors.New("the lost members are not named correctly")

	errContinueAlone = errors.New("continue alone")
)

// AloneOrder is an operator's word that all other members are lost and
// switched off.
type AloneOrder struct {
	Lost []string
	By   string
	Why  string
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

// watchQuorum notes since when raft has no leader here. Raft itself steps a
// leader down that no longer reaches a majority.
func (m *Member) watchQuorum(ctx context.Context, e *etcd) error {
	tick := time.NewTicker(raftElection)
	defer tick.Stop()
	for {
		lost := e.leader() == ""
		m.mu.Lock()
		switch {
		case !lost:
			m.quorumLost = time.Time{}
		case m.quorumLost.IsZero():
			m.quorumLost = time.Now()
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// ContinueAlone makes this member go on as a cluster of one with the data it
// has, in a new generation, after an operator confirmed that every other member
// is lost. What the others acknowledged and this one never received is gone:
// that is why it takes an operator, half a minute without a majority, and every
// name. It returns when the order is accepted; the session that follows opens
// in the new generation.
func (m *Member) ContinueAlone(o AloneOrder) error {
	if m.cfg.Role != RoleController {
		return errors.New("only a controller can continue alone")
	}
	if lost := m.QuorumLost(); lost < aloneAfter {
		if lost == 0 {
			return ErrHasQuorum
		}
		return fmt.Errorf("%w until %v ago; this is possible after %v without one",
			ErrHasQuorum, lost.Round(time.Second), aloneAfter)
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
	if !slices.Equal(others, slices.Compact(named)) {
		return fmt.Errorf("%w: name every other member: %s", ErrNotAllNamed, strings.Join(others, " "))
	}
	for _, v := range others {
		if m.connected(v) {
			return fmt.Errorf("%w: %s answers this node", ErrNotAllNamed, v)
		}
	}
	m.mu.Lock()
	m.alone = &o
	m.mu.Unlock()
	signal(m.aloneNow)
	return nil
}

// beginGeneration raises the generation and removes everything that says who
// is alive, in one transaction, so that all members and agents can tell the
// new history from the old one. The number is made durable here first: this
// member must never again speak for the old generation.
func (m *Member) beginGeneration(ctx context.Context, e *etcd) error {
	select {
	case <-e.ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	order, gen := m.alone, m.generation.N+1
	m.mu.Unlock()
	rec := generationRecord{N: gen, ID: rand.Text()}
	if err := m.raiseGeneration(rec); err != nil {
		return err
	}
	all := func(prefix string) clientv3.Op { return clientv3.OpDelete(prefix, clientv3.WithPrefix()) }
	node := nodeIn(m.view.Snapshot(), m.cfg.Name)
	node.Role, node.Paused = m.cfg.Role, true
	ops := []clientv3.Op{
		clientv3.OpPut(keyGeneration, string(encode(rec))),
		all(prefixSessions), all(prefixAlive), all(prefixHold), all(prefixConfirms),
		clientv3.OpDelete(keyActive),
		// Controllers come up paused: an operator looks before work goes on.
		clientv3.OpPut(nodeKey(m.cfg.Name), string(encode(node))),
	}
	for _, lost := range order.Lost {
		ops = append(ops, clientv3.OpPut(lossKey(lost), string(encode(LossRecord{
			Node: lost, Decider: m.cfg.Name, Agreed: []string{order.By}, At: time.Now().UTC(),
			Evidence: "an operator confirmed it after loss of quorum: " + order.Why,
		}))))
	}
	for {
		resp, err := e.attempt(ctx, lastAttempt, nil, ops, nil)
		if err == nil {
			m.log.Warn("continuing alone in a new generation", "generation", gen,
				"lost", order.Lost, "by", order.By, "why", order.Why, "revision", resp.Header.Revision)
			return nil
		}
		// The same transaction again is harmless: nobody else writes here.
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
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

// raiseGeneration makes rec durable before anything is said in its name.
func (m *Member) raiseGeneration(rec generationRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec.N <= m.generation.N {
		return nil
	}
	path := filepath.Join(m.cfg.DataDir, generationFile)
	if err := durable.WriteFile(path, encode(rec), 0o600); err != nil {
		return fmt.Errorf("generation: %w", err)
	}
	m.generation = rec
	return nil
}
