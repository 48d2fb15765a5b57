package coord

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"uac/codestation/durable"
)

// ErrReplace is returned when this member must not start or go on with the
// data it has: it was wiped, or the cluster has begun a new generation without
// it. The text says what to do.
var ErrReplace = errors.New("this member must be replaced")

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
	return newMesh(meshConfig{
		Node: m.cfg.Name, Peers: peers,
		Silence: m.cfg.SilenceTimeout, Join: m.cfg.JoinTimeout, Stall: m.cfg.StallTimeout,
		Version: m.deps.Version, Log: m.log, Listener: m.deps.Pulses,
		Dial: func(ctx context.Context, peer string) (net.Conn, error) {
			return m.deps.DialPulse(ctx, addr[peer])
		},
		Identify: m.deps.PulsePeer,
		Events: meshEvents{
			Agreed: func(node string, epoch int64) {
				select {
				case m.agreed <- suspect{node, epoch}:
				default: // the mesh says it again as long as the evidence stands
				}
			},
			Voted: func(_, node string, _ int64) {
				m.background.Go(func() { m.electInsteadOf(m.running(), node) })
			},
			NewerGeneration: func(node string, generation int64) {
				select {
				case m.newer <- fmt.Errorf("%w: %s is of generation %d: the cluster went on without this member; empty its data directory and add it again",
					ErrReplace, node, generation):
				default:
				}
			},
			HelloChanged: func() { signal(m.hellos) },
		},
	}, meshFacts{m})
}

// tellMesh tells the mesh what the view shows that matters to it.
func (m *Member) tellMesh(ctx context.Context) error {
	tell := make(chan []Change, 256)
	_, stop := m.view.Follow(func(b Batch) {
		var mine []Change
		for _, c := range b.Changes {
			if leaf(c.Key, prefixSessions) != "" || leaf(c.Key, prefixAlive) != "" || c.Key == keyGeneration {
				mine = append(mine, c)
			}
		}
		if mine != nil {
			select {
			case tell <- mine:
			case <-ctx.Done():
			}
		}
	})
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case cs := <-tell:
			for _, c := range cs {
				node := leaf(c.Key, prefixAlive)
				switch {
				case c.Key == keyGeneration && !c.Deleted:
					if rec, err := decode[generationRecord](c.KV); err == nil {
						if err := m.raiseGeneration(rec); err != nil {
							return err
						}
					}
				case node == "":
				case c.Deleted:
					if rec, err := decode[aliveRecord](c.Prev); err == nil {
						m.mesh.Alive(node, rec.Epoch, true)
					}
				default:
					if rec, err := decode[aliveRecord](c.KV); err == nil {
						m.mesh.Alive(node, rec.Epoch, false)
					}
				}
			}
			m.mesh.Refresh()
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
	own := m.Origin()
	if data || own.HasData {
		if !own.HasData {
			own.HasData = true
			return m.setOrigin(own)
		}
		return nil
	}
	var others []string
	for _, p := range m.cfg.Peers {
		if p.Name != m.cfg.Name {
			others = append(others, p.Name)
		}
	}
	for {
		d := decideStart(m.cfg.Name, own, others, m.mesh.Hellos())
		switch d.Kind {
		case startReplace:
			return fmt.Errorf("%w: %s", ErrReplace, d.Reason)
		case startWait:
			m.wait(strings.Join(d.Missing, ", ") + " to say hello: the first start needs every member")
			m.log.Info("first start waits for members", "missing", d.Missing)
		default:
			own.Recorded, own.HasData = d.Set, true
			return m.setOrigin(own)
		}
		select {
		case <-m.hellos:
		case <-ctx.Done():
			return ctx.Err()
		}
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

// loadOrigin reads who this member is, or makes it a new one: the incarnation
// is durable before anybody hears of it.
func loadOrigin(dataDir string) (origin, error) {
	path := filepath.Join(dataDir, originFile)
	var o origin
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

func writeOrigin(dataDir string, o origin) error {
	if err := durable.WriteFile(filepath.Join(dataDir, originFile), encode(o), 0o600); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	return nil
}

func (m *Member) setOrigin(o origin) error {
	if err := writeOrigin(m.cfg.DataDir, o); err != nil {
		return err
	}
	m.mu.Lock()
	m.origin = o
	m.mu.Unlock()
	return nil
}

// Origin is what is durably known of this member's beginning.
func (m *Member) Origin() origin {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.origin
}

// meshFacts answers what the mesh asks of the member.
type meshFacts struct{ m *Member }

func (f meshFacts) Run() string    { return f.m.run }
func (f meshFacts) Origin() origin { return f.m.Origin() }

func (f meshFacts) Generation() int64 {
	if o := f.m.Origin(); !o.HasData {
		return -1
	}
	n, _ := f.m.Generation()
	return n
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
	rec, err := decode[SessionRecord](kv)
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
