package coord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
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
	// aloneNow is signalled when an order to continue alone is to be carried out.
	aloneNow chan struct{}
	// newer ends the member when it met a newer generation.
	newer chan error
	// hellos is signalled when another member has said hello.
	hellos chan struct{}
	// electing is set while this member may force a raft election.
	electing atomic.Bool

	mu sync.Mutex // guards the fields below
	// ctx is that of Run, nil when it does not run; background counts short-lived
	// work that Run waits for.
	ctx        context.Context
	background sync.WaitGroup
	draining   sync.WaitGroup
	// etcd is nil until the server runs; up is closed while it does.
	etcd    *etcd
	up      chan struct{}
	waiting string // what the start waits for, in words
	session *Session
	// lastWrite is when the last guarded write was acknowledged; since when
	// they have followed each other without a long gap.
	lastWrite, writesSince time.Time
	generation             generationRecord
	// quorumLost is since when this member sees no raft leader, zero if it does;
	// lastLeader is the last one that it saw.
	quorumLost time.Time
	lastLeader string
	origin     originRecord
}

// New checks the configuration and prepares a member. Nothing runs yet.
func New(cfg Config, deps Deps) (*Member, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if deps.Point == nil {
		deps.Point = func(Point) {}
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

// ErrInUse is returned by [Member.Run] when another process has the data
// directory.
var ErrInUse = errors.New("the data directory is in use by another process")

// takeDir makes this process the only one with the data directory, until give is
// called. The lock goes with the process.
func (m *Member) takeDir() (give func(), err error) {
	path := filepath.Join(m.cfg.DataDir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	give = func() { _ = f.Close() } // nothing was written
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		give()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, m.cfg.DataDir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return give, nil
}

// Run takes part in the cluster until ctx ends or the member cannot go on. On
// return everything it started has ended and the data directory is free.
func (m *Member) Run(ctx context.Context) error {
	give, err := m.takeDir()
	if err != nil {
		if m.deps.Pulses != nil {
			_ = m.deps.Pulses.Close() // as always on return
		}
		return err
	}
	defer give()
	outer := ctx
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
	err = g.Wait()
	m.mu.Lock()
	m.ctx = nil
	m.mu.Unlock()
	m.background.Wait()
	if outer.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// spawn runs f while Run goes on; Run waits for it.
func (m *Member) spawn(f func(ctx context.Context)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx := m.ctx; ctx != nil {
		m.background.Go(func() { f(ctx) })
	}
}

// serve runs the etcd server and the view on it. It starts the server again
// when an operator lets this member continue alone.
func (m *Member) serve(ctx context.Context) error {
	for {
		err := m.serveOnce(ctx)
		if ctx.Err() != nil || !errors.Is(err, errContinueAlone) {
			return err
		}
	}
}

// etcd stops by itself only when another member tells it so.
var errRemoved = fmt.Errorf("%w: the others have removed it from the cluster, or go on in a new generation without it: %s",
	ErrReplace, standAside)

func (m *Member) serveOnce(ctx context.Context) error {
	m.wait("etcd to start")
	order := m.aloneOrder()
	first := m.isFirstStart()
	e, err := m.startServer(ctx, order != nil)
	if err != nil {
		return err
	}
	defer m.drain(e)
	if err := m.noteStart(); err != nil {
		return err
	}
	if order != nil {
		m.wait("the new generation to begin")
		if err := m.beginGeneration(ctx, e, order); err != nil {
			return err
		}
	}
	m.setServer(e)
	defer m.setServer(nil)
	m.wait("a majority of the members")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.view.run(gctx, e.client) })
	g.Go(func() error { return m.watchQuorum(gctx, e) })
	if first {
		g.Go(func() error { return m.firstElection(gctx, e) })
	}
	g.Go(func() error { return m.tellMesh(gctx) })
	g.Go(func() error { return m.disarm(gctx, e) })
	g.Go(func() error {
		for {
			select {
			case <-gctx.Done():
				return gctx.Err()
			case <-e.failed():
				return errRemoved
			case <-m.aloneNow:
				if m.aloneOrder() != nil {
					return errContinueAlone
				}
			}
		}
	})
	return g.Wait()
}

// startServer starts the etcd server. That cannot be interrupted: if ctx ends
// first, what comes of it is stopped beside.
func (m *Member) startServer(ctx context.Context, alone bool) (*etcd, error) {
	type outcome struct {
		e   *etcd
		err error
	}
	started := make(chan outcome, 1)
	m.draining.Go(func() {
		e, err := startEtcd(m.cfg, m.deps.Raft, alone, m.log)
		started <- outcome{e, err}
	})
	select {
	case o := <-started:
		return o.e, o.err
	case <-ctx.Done():
		m.draining.Go(func() {
			if o := <-started; o.e != nil {
				o.e.stop()
				<-o.e.drained
			}
		})
		return nil, ctx.Err()
	}
}

// drain stops the server. What its peer connections still need, up to a second,
// Run does not wait for.
func (m *Member) drain(e *etcd) {
	e.stop()
	m.draining.Go(func() { <-e.drained })
}

// Drained returns when nothing at all is left of the member. Call it after Run
// has returned, if at all: the end of a process need not wait for it.
func (m *Member) Drained() { m.draining.Wait() }

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

// serving is the etcd server that runs now, nil if none does.
func (m *Member) serving() *etcd {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.etcd
}

// handOverRaft gives raft leadership, if this member has it, to a member that
// is here; to a watch if it can: the loss of an Active that does not lead raft needs
// no election.
func (m *Member) handOverRaft(ctx context.Context) {
	e := m.serving()
	if e == nil {
		return
	}
	to := ""
	for _, v := range m.Voters() {
		if v == m.cfg.Name || !m.connected(v) {
			continue
		}
		if rec, _ := m.Record(v); to == "" || rec.Role == RoleWatch {
			to = v
		}
	}
	if to != "" {
		e.handOver(ctx, to)
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

// Voters are the names of all voting members: those etcd counts, or the
// configured ones while etcd does not run.
func (m *Member) Voters() []string {
	e := m.serving()
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

// Generation of the cluster as this member durably knows it: its number, and
// the random id that tells two histories of one number apart, empty for the
// first one.
func (m *Member) Generation() (number int64, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation.N, m.generation.ID
}
