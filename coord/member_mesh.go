package coord

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"uac/codestation/durable"
)

// ErrReplace is returned when this member must not start or go on with the
// data it has: it was wiped, or the cluster has begun a new generation without
// it. The text says what to do.
var ErrReplace = errors.New("this member must be replaced")

// standAside is what an operator can do about it.
const standAside = `leave it stopped; this version takes no member in again: see "A wiped member" in docs/operations/setup.md`

// newMesh builds the mesh on this member.
func (m *Member) newMesh() *mesh {
	var peers []string
	addr := map[string]Peer{}
	for _, p := range m.cfg.Peers {
		if p.Name != m.cfg.Name {
			peers = append(peers, p.Name)
			addr[p.Name] = p
		}
	}
	elect := func(dead string) {
		m.spawn(func(ctx context.Context) { m.electInsteadOf(ctx, dead)() })
	}
	var lifelines *meshLifelines
	if l := m.deps.Lifelines; l != nil {
		lifelines = &meshLifelines{
			Listener: l.Listener, Hold: l.Hold,
			Dial: func(ctx context.Context, peer string) (net.Conn, error) { return l.Dial(ctx, addr[peer]) },
		}
	}
	return newMesh(meshConfig{
		Node: m.cfg.Name, Peers: peers,
		Silence: m.cfg.SilenceTimeout, Join: m.cfg.JoinTimeout, Stall: m.cfg.StallTimeout,
		Version: m.deps.Version, Log: m.log, Listener: m.deps.Pulses, Point: m.deps.Point,
		Dial: func(ctx context.Context, peer string) (net.Conn, error) {
			return m.deps.DialPulse(ctx, addr[peer])
		},
		Identify: m.deps.PulsePeer, Lifelines: lifelines,
		Events: meshEvents{
			Agreed: func(node string, epoch int64) {
				select {
				case m.agreed <- suspect{node, epoch}:
				default: // the mesh says it again as long as the evidence stands
				}
			},
			Voted: func(_, node string, _ int64) { elect(node) },
			Died:  elect,
			NewerGeneration: func(node string, generation int64) {
				select {
				case m.newer <- fmt.Errorf("%w: %s is of generation %d: the cluster went on without this member: %s",
					ErrReplace, node, generation, standAside):
				default:
				}
			},
			HelloChanged: func() { signal(m.hellos) },
		},
	}, meshFacts{m})
}

// tellMesh tells the mesh what the view shows that matters to it.
func (m *Member) tellMesh(ctx context.Context) error {
	news := make(chan struct{}, 1)
	snap, stop := m.view.Follow(func(b Batch) {
		for _, c := range b.Changes {
			if leaf(c.Key, prefixSessions) != "" || leaf(c.Key, prefixAlive) != "" || c.Key == keyGeneration {
				signal(news)
				return
			}
		}
	})
	defer stop()
	alive := map[string]int64{} // by node: the epoch of the last alive key
	for {
		if kv, ok := snap.Get(keyGeneration); ok {
			if rec, err := decode[generationRecord](kv); err == nil {
				if err := m.raiseGeneration(rec); err != nil {
					return err
				}
			}
		}
		now := map[string]int64{}
		for kv := range snap.Range(prefixAlive) {
			if rec, err := decode[aliveRecord](kv); err == nil {
				node := leaf(kv.Key, prefixAlive)
				now[node] = rec.Epoch
				m.mesh.Alive(node, rec.Epoch, false)
			}
		}
		for node, epoch := range alive {
			if _, there := now[node]; !there {
				m.mesh.Alive(node, epoch, true)
			}
		}
		maps.Copy(alive, now)
		m.mesh.Refresh()
		select {
		case <-news:
			snap = m.view.Snapshot()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// introduce makes sure that this member may start etcd with the data it has.
// An empty member waits for all others: any single one may be the only one
// that remembers it.
func (m *Member) introduce(ctx context.Context) error {
	data, err := hasEtcdData(m.cfg.DataDir)
	if err != nil {
		return err
	}
	m.mu.Lock()
	own := m.origin
	m.mu.Unlock()
	switch {
	case own.Started && !data:
		return fmt.Errorf("%w: %s was a member and its directory %s is gone, and with it how it voted: %s",
			ErrReplace, m.cfg.Name, etcdDir(m.cfg.DataDir), standAside)
	case data || own.HasData:
		if was, known := own.Recorded[m.cfg.Name]; own.Recorded != nil && (!known || was != own.Incarnation) {
			return fmt.Errorf("%w: %s holds the data of another member; give %s its own, or start it with an empty one",
				ErrReplace, m.cfg.DataDir, m.cfg.Name)
		}
		if own.HasData {
			return nil
		}
		own.HasData = true
		return m.setOrigin(own)
	}
	var others []string
	for _, p := range m.cfg.Peers {
		if p.Name != m.cfg.Name {
			others = append(others, p.Name)
		}
	}
	for {
		d := decideStart(m.cfg.Name, own.origin, others, m.mesh.Hellos())
		switch d.Kind {
		case startReplace:
			return fmt.Errorf("%w: %s", ErrReplace, d.Reason)
		case startWait:
			m.wait(strings.Join(d.Missing, ", ") + " to say hello: the first start needs every member")
			m.log.Info("first start waits for members", "missing", d.Missing)
		default:
			own.Recorded, own.HasData = d.Set, true
			if err := m.setOrigin(own); err != nil {
				return err
			}
			return m.startInTurn(ctx)
		}
		select {
		case <-m.hellos:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bootstrapTurn is how much later than the one before each member starts etcd for
// the first time.
const bootstrapTurn = 150 * time.Millisecond

// startInTurn waits for this member's turn to start etcd for the first time. A
// server that bootstraps first asks all others for their members, one after the
// other, and waits a second for each that listens and does not answer yet, which
// is what all do if they start at the same moment.
func (m *Member) startInTurn(ctx context.Context) error {
	var names []string
	for _, p := range m.cfg.Peers {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	timer := time.NewTimer(time.Duration(slices.Index(names, m.cfg.Name)) * bootstrapTurn)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// peerStatus is what the mesh sees of one other member.
func (m *Member) peerStatus(node string) (PeerStatus, bool) {
	for _, p := range m.mesh.Snapshot() {
		if p.Name == node {
			return p, true
		}
	}
	return PeerStatus{}, false
}

// connected reports whether a pulse connection with the member is up.
func (m *Member) connected(node string) bool {
	p, ok := m.peerStatus(node)
	return ok && (p.Dialed || p.Accepted)
}

// heard is when the member last pulsed, zero if never.
func (m *Member) heard(node string) time.Time {
	p, ok := m.peerStatus(node)
	if !ok || p.Heard < 0 {
		return time.Time{}
	}
	return time.Now().Add(-p.Heard)
}

const originFile = "origin.json"

// originRecord is what the file keeps.
type originRecord struct {
	origin
	// Started is set when etcd has written its first data.
	Started bool `json:"started"`
}

// loadOrigin reads who this member is, or makes it a new one: the incarnation
// is durable before anybody hears of it.
func loadOrigin(dataDir string) (originRecord, error) {
	path := filepath.Join(dataDir, originFile)
	var o originRecord
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		o.Incarnation = rand.Text()
		return o, writeOrigin(dataDir, o)
	}
	if err != nil {
		return o, fmt.Errorf("origin: %w", err)
	}
	if err := json.Unmarshal(b, &o); err != nil || o.Incarnation == "" {
		return o, fmt.Errorf("origin: %s is damaged: %q", path, b)
	}
	return o, nil
}

func writeOrigin(dataDir string, o originRecord) error {
	if err := durable.WriteFile(filepath.Join(dataDir, originFile), encode(o), 0o600); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	return nil
}

// setOrigin makes o durable before anybody hears of it. Only the goroutine that
// starts etcd calls it.
func (m *Member) setOrigin(o originRecord) error {
	m.deps.Point(pointOriginWriting)
	if err := writeOrigin(m.cfg.DataDir, o); err != nil {
		return err
	}
	m.deps.Point(pointOriginWritten)
	m.mu.Lock()
	m.origin = o
	m.mu.Unlock()
	return nil
}

// isFirstStart reports whether etcd has never run on this member's data.
func (m *Member) isFirstStart() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.origin.Started
}

// noteStart remembers that etcd has data: without it, this member has forgotten
// how it voted.
func (m *Member) noteStart() error {
	m.mu.Lock()
	o := m.origin
	m.mu.Unlock()
	if o.Started {
		return nil
	}
	o.Started = true
	return m.setOrigin(o)
}

// meshFacts answers what the mesh asks of the member.
type meshFacts struct{ m *Member }

func (f meshFacts) Run() string { return f.m.run }

func (f meshFacts) Origin() origin {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.origin.origin
}

func (f meshFacts) Generation() int64 {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if !f.m.origin.HasData {
		return -1
	}
	return f.m.generation.N
}

func (f meshFacts) SessionEpoch() int64 {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.session == nil {
		return 0
	}
	return f.m.session.epoch
}

func (f meshFacts) SessionOf(node string) (epoch int64, run string) {
	kv, ok := f.m.view.Get(sessionKey(node))
	if !ok {
		return 0, ""
	}
	rec, err := Decoded[SessionRecord](kv) // each pulse asks
	if err != nil {
		return kv.Mod, ""
	}
	return kv.Mod, rec.Run
}

func (f meshFacts) LastWrite() time.Time {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.lastWrite
}

func (f meshFacts) WritesSince() time.Time {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.writesSince
}

func (f meshFacts) Voters() []string { return f.m.Voters() }

// Maintenance is announced by nothing yet: compaction does not stall writes.
func (f meshFacts) Maintenance() bool { return false }
