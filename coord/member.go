package coord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Member is this node's part in the coordination cluster: an embedded etcd
// server, the pulse mesh and the view. Safe for concurrent use.
type Member struct {
	cfg  Config
	deps Deps
	log  *slog.Logger
	// run is the id of this operating system process. A new one under a known
	// name is proof that the old process is gone.
	run    string
	view   *View
	mesh   *mesh
	agreed chan suspect
	locals *localLocks
	// background counts short-lived work that Run waits for.
	background sync.WaitGroup

	mu sync.Mutex // guards the fields below
	// ctx is that of Run.
	ctx context.Context
	// etcd is nil until the server runs; up is closed while it does.
	etcd    *etcd
	up      chan struct{}
	waiting string // what the start waits for, in words
	session *Session
	// lastWrite is when the last guarded write was acknowledged; since when
	// they have followed each other without a long gap.
	lastWrite, writesSince time.Time
	generation             generationRecord
	// quorumLost is since when this member sees no raft leader, zero if it does.
	quorumLost time.Time
	// alone is the order to continue alone that is being carried out.
	alone    *AloneOrder
	aloneNow chan struct{}
	origin   origin
	// newer closes the member when it met a newer generation.
	newer chan error
	// hellos is signalled when another member has said hello.
	hellos chan struct{}
}

// New checks the configuration and prepares a member. Nothing runs yet.
func New(cfg Config, deps Deps) (*Member, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	m := &Member{
		cfg: cfg, deps: deps, log: deps.Log, run: rand.Text(),
		view:     newView(deps.Log),
		agreed:   make(chan suspect, 16),
		locals:   newLocalLocks(),
		up:       make(chan struct{}),
		waiting:  "starting",
		aloneNow: make(chan struct{}, 1),
		newer:    make(chan error, 1),
		hellos:   make(chan struct{}, 1),
	}
	var err error
	if m.generation, err = loadGeneration(cfg.DataDir); err != nil {
		return nil, err
	}
	if m.origin, err = loadOrigin(cfg.DataDir); err != nil {
		return nil, err
	}
	m.mesh = m.newMesh()
	return m, nil
}

// View returns the member's copy of all keys. It is empty until the member has
// reached the cluster once.
func (m *Member) View() *View { return m.view }

// Name of this node.
func (m *Member) Name() string { return m.cfg.Name }

// RunID is the id of this operating system process in the cluster.
func (m *Member) RunID() string { return m.run }

// Run takes part in the cluster until ctx ends or the member cannot go on. On
// return everything it started has ended and the data directory is free.
func (m *Member) Run(ctx context.Context) error {
	defer m.background.Wait()
	g, ctx := errgroup.WithContext(ctx)
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	g.Go(func() error { return m.mesh.Run(ctx) })
	g.Go(func() error {
		select {
		case err := <-m.newer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	g.Go(func() error {
		if err := m.introduce(ctx); err != nil {
			return err
		}
		return m.serve(ctx)
	})
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// serve runs the etcd server and the view on it. It starts the server again
// when an operator lets this member continue alone.
func (m *Member) serve(ctx context.Context) error {
	alone := false
	for {
		err := m.serveOnce(ctx, alone)
		if ctx.Err() != nil || !errors.Is(err, errContinueAlone) {
			return err
		}
		alone = true
	}
}

func (m *Member) serveOnce(ctx context.Context, alone bool) error {
	m.wait("etcd to start")
	e, err := startEtcd(m.cfg, m.deps.Raft, alone, m.log)
	if err != nil {
		return err
	}
	defer e.stop()
	if alone {
		m.wait("the new generation to begin")
		if err := m.beginGeneration(ctx, e); err != nil {
			return err
		}
	}
	m.setServer(e)
	defer m.setServer(nil)
	m.wait("a majority of the members")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.view.run(gctx, e.client) })
	g.Go(func() error { return m.watchQuorum(gctx, e) })
	g.Go(func() error { return m.tellMesh(gctx) })
	g.Go(func() error {
		select {
		case <-gctx.Done():
			return gctx.Err()
		case <-m.aloneNow:
			return errContinueAlone
		case <-e.failed():
			return errors.New("etcd stopped by itself: see its messages above")
		}
	})
	return g.Wait()
}

func (m *Member) setServer(e *etcd) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.etcd = e; e != nil {
		close(m.up)
	} else {
		m.up = make(chan struct{})
	}
}

// server waits until the etcd server runs.
func (m *Member) server(ctx context.Context) (*etcd, error) {
	for {
		m.mu.Lock()
		e, up := m.etcd, m.up
		m.mu.Unlock()
		if e != nil {
			return e, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for etcd: %w", context.Cause(ctx))
		}
	}
}

// running is the context of Run.
func (m *Member) running() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil {
		return context.Background()
	}
	return m.ctx
}

// handOverRaft gives raft leadership, if this member has it, to a member that
// is here.
func (m *Member) handOverRaft(ctx context.Context) {
	m.mu.Lock()
	e := m.etcd
	m.mu.Unlock()
	if e == nil {
		return
	}
	for _, v := range m.Voters() {
		if v != m.cfg.Name && m.connected(v) {
			e.handOver(ctx, v)
			return
		}
	}
}

// wait notes what the start waits for.
func (m *Member) wait(what string) {
	m.mu.Lock()
	m.waiting = what
	m.mu.Unlock()
}

// adopt makes s the session that pulses speak of; nil for none.
func (m *Member) adopt(s *Session) {
	m.mu.Lock()
	m.session = s
	if s != nil {
		m.waiting = ""
	} else {
		m.waiting = "a new session"
	}
	m.mu.Unlock()
	m.mesh.Nudge()
}

// wrote notes an acknowledged guarded write.
func (m *Member) wrote(at time.Time) {
	m.mu.Lock()
	if at.Sub(m.lastWrite) > m.cfg.StallTimeout/2 {
		m.writesSince = at
	}
	m.lastWrite = at
	m.mu.Unlock()
}

// Sync waits until the view shows everything that was committed before the
// call: a linearizable read.
func (m *Member) Sync(ctx context.Context) error {
	e, err := m.server(ctx)
	if err != nil {
		return err
	}
	_, rev, err := e.get(ctx, 2*time.Second, keyActive)
	if err != nil {
		return err
	}
	return m.view.Wait(ctx, rev)
}

// Room is how much of the storage quota is in use, from 0 to 1, and how large
// the file is, from 0 to 1.
func (m *Member) Room() (used, file float64) {
	m.mu.Lock()
	e := m.etcd
	m.mu.Unlock()
	if e == nil {
		return 0, 0
	}
	b := e.server.Server.Backend()
	q := float64(m.cfg.QuotaBytes)
	return float64(b.SizeInUse()) / q, float64(b.Size()) / q
}

// Voters are the names of all voting members: those etcd counts, or the
// configured ones while etcd does not run.
func (m *Member) Voters() []string {
	m.mu.Lock()
	e := m.etcd
	m.mu.Unlock()
	var names []string
	if e != nil {
		for name := range e.members() {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		for _, p := range m.cfg.Peers {
			names = append(names, p.Name)
		}
	}
	return names
}

// localLocks serializes holders of one name within this process.
type localLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func newLocalLocks() *localLocks { return &localLocks{held: map[string]chan struct{}{}} }

// take waits for the name and returns how to give it back.
func (l *localLocks) take(ctx context.Context, name string) (free func(), err error) {
	l.mu.Lock()
	ch, ok := l.held[name]
	if !ok {
		ch = make(chan struct{}, 1)
		l.held[name] = ch
	}
	l.mu.Unlock()
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Generation of the cluster as this member durably knows it: its number, and
// the random id that tells two histories of one number apart, empty for the
// first one.
func (m *Member) Generation() (number int64, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation.N, m.generation.ID
}
