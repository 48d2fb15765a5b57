package coord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// Session is a member's time in the cluster, from joining to loss or goodbye.
// Everything the member owns hangs on the session's epoch: once the cluster has
// decided that the session is lost, no write of it is applied any more. Safe
// for concurrent use.
type Session struct {
	m     *Member
	etcd  *etcd // the server on which it was opened: it ends with that
	log   *slog.Logger
	epoch int64
	ctx   context.Context
	chain *chain
	terms chan *Term // capacity 1: the latest term that Lead has not taken yet
	// poke wakes the campaign loop, tidy the housekeeping.
	poke, tidy chan struct{}

	mu   sync.Mutex // guards the fields below
	term *Term
	// lastTerm is the epoch of the latest term that was begun.
	lastTerm int64
	// leaving is set when the goodbye begins, left when it has been said.
	leaving, left bool
	lease         clientv3.LeaseID // present lease of alive/<me>, 0 for none
	leased        chan struct{}    // closed while there is one
}

// Session opens a session for this member and runs fn with it. The context
// that fn gets ends when the session is lost, with the reason as its cause, or
// when ctx ends. Session returns after fn and everything it started itself
// has returned: fn's error, or ErrFenced when the session was lost without a
// goodbye. A caller that was fenced out drops what it remembers and calls
// Session again.
func (m *Member) Session(ctx context.Context, rec NodeRecord, fn func(ctx context.Context, s *Session) error) error {
	s, err := m.open(ctx)
	if err != nil {
		return err
	}
	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.ctx = ctx
	m.adopt(s)
	defer m.adopt(nil)
	own, ownCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	ownCtx, stop := context.WithCancel(ownCtx)
	defer stop()
	keep := func(f func(context.Context) error) {
		own.Go(func() error {
			err := f(ownCtx)
			if err != nil && ownCtx.Err() == nil {
				cancel(err)
			}
			return err
		})
	}
	keep(s.chain.run)
	keep(s.watchServer)
	keep(s.watchSelf)
	keep(s.keepLease)
	keep(s.decideLosses)
	keep(s.housekeeping)
	keep(func(ctx context.Context) error { return s.register(ctx, rec) })
	if m.cfg.Role == RoleController {
		keep(s.campaign)
	}
	s.log.Info("session opened", "epoch", s.epoch, "run", m.run)

	err = fn(ctx, s)
	// The session's own goroutines outlive fn, so that fn can say goodbye.
	stop()
	ownErr := own.Wait()
	if cause := context.Cause(ctx); cause != nil && caller.Err() == nil {
		// The first reason. The group may have been told of the end before it was told
		// of what brought it about.
		ownErr = cause
	}
	s.endTerm(math.MaxInt64, ErrFenced)
	switch {
	case s.saidGoodbye():
		s.log.Info("session ended", "epoch", s.epoch)
		return err
	case errors.Is(ownErr, ErrFenced):
		s.log.Warn("session over", "epoch", s.epoch, "cause", ownErr)
		return ErrFenced
	case !errors.Is(ownErr, context.Canceled):
		return fmt.Errorf("session %d: %w", s.epoch, ownErr)
	}
	return err
}

func (s *Session) saidGoodbye() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// watchServer ends the session with the etcd server on which it was opened. The
// member may start another one, in another generation.
func (s *Session) watchServer(ctx context.Context) error {
	select {
	case <-s.etcd.stopped:
		return fmt.Errorf("%w: the etcd server was stopped", ErrFenced)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open writes the session's key over whatever an earlier run left, and with it
// the first chain key. The transaction also removes a hold; an old term of
// this node becomes vacant because its session is no longer the present one.
func (m *Member) open(ctx context.Context) (*Session, error) {
	rec := SessionRecord{Run: m.run, Nonce: rand.Text(), Role: m.cfg.Role, Started: time.Now().UTC()}
	mine, commit := sessionKey(m.cfg.Name), commitKey(m.cfg.Name)
	for d := firstAttempt; ; d = min(2*d, lastAttempt) {
		e, err := m.server(ctx) // another one after a new generation began
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("open session: %w", err)
		}
		now, _, err := e.get(ctx, time.Second, mine)
		if err != nil {
			m.log.Debug("session not opened yet", "error", err)
			continue
		}
		if had, err := decode[SessionRecord](now[mine]); err == nil && had.Nonce == rec.Nonce {
			// An earlier attempt of ours whose answer was lost. The chain key was
			// put by the same transaction and only this session puts it.
			return m.newSession(e, rec, now[mine].Mod), nil
		}
		m.deps.Point(pointSessionOpening)
		resp, err := e.attempt(ctx, d,
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(mine), "=", now[mine].Mod)},
			[]clientv3.Op{
				clientv3.OpPut(mine, string(encode(rec))),
				clientv3.OpPut(commit, string(encode(chainRecord{Nonce: rec.Nonce}))),
				clientv3.OpDelete(holdKey(m.cfg.Name)),
				clientv3.OpDelete(confirmKey(m.cfg.Name)),
			}, nil)
		switch {
		case err == nil && resp.Succeeded:
			m.deps.Point(pointSessionOpened)
			return m.newSession(e, rec, resp.Header.Revision), nil
		case err != nil:
			m.log.Debug("session not opened yet", "error", err)
		}
	}
}

func (m *Member) newSession(e *etcd, rec SessionRecord, epoch int64) *Session {
	s := &Session{
		m: m, etcd: e, log: m.log, epoch: epoch,
		terms:  make(chan *Term, 1),
		poke:   make(chan struct{}, 1),
		tidy:   make(chan struct{}, 1),
		leased: make(chan struct{}),
	}
	s.chain = &chain{
		etcd: e, log: m.log,
		session: sessionKey(m.cfg.Name), epoch: epoch,
		key: commitKey(m.cfg.Name), rev: epoch, nonce: rec.Nonce,
		trust: m.mesh.Check, idle: min(idleWrite, m.cfg.StallTimeout*3/10), wrote: m.wrote,
		point: m.deps.Point,
		wake:  make(chan struct{}, 1), others: make(chan struct{}, 1),
	}
	m.wrote(time.Now())
	return s
}

// idleWrite is how long a session goes without a write before it makes an
// empty one: often enough for "a guarded write at least every second", and with a
// short stall timeout well within the half of it that may pass between two. An empty
// one of another member brings it forward, if half of the pause is over.
const idleWrite = 900 * time.Millisecond

// Epoch of the session: the ModRevision of sessions/<node>.
func (s *Session) Epoch() int64 { return s.epoch }

// Context ends when the session is lost.
func (s *Session) Context() context.Context { return s.ctx }

// Check returns nil while the session may act: commit, dispatch, answer
// ACTIVE. Otherwise it says why not. The answer is computed from monotonic
// time at each call and is stale the moment it is used for anything but that.
func (s *Session) Check() error {
	if s.ctx.Err() != nil {
		return ErrFenced
	}
	return s.m.mesh.Check()
}

// Submit queues a transaction for the next group commit and returns at once.
// done is called exactly once with the outcome, on the chain's goroutine: it
// must not block. ErrFenced means that the outcome is unknown to this node and
// that nothing of this session is applied any more; ErrRefused that etcd will
// not take it.
func (s *Session) Submit(tx Tx, done func(Result, error)) { s.chain.submit(tx, done) }

// Commit is Submit that waits. When ctx ends first, the outcome is unknown.
func (s *Session) Commit(ctx context.Context, tx Tx) (Result, error) {
	type outcome struct {
		res Result
		err error
	}
	ch := make(chan outcome, 1)
	s.Submit(tx, func(r Result, err error) { ch <- outcome{r, err} })
	select {
	case o := <-ch:
		return o.res, o.err
	case <-ctx.Done():
		return Result{}, fmt.Errorf("commit: outcome unknown: %w", ctx.Err())
	}
}

// watchSelf ends the session as soon as the view shows that it is over, and
// wakes who waits for news of other sessions.
func (s *Session) watchSelf(ctx context.Context) error {
	mine := sessionKey(s.m.cfg.Name)
	over := make(chan struct{}, 1)
	// A view behind our own epoch knows nothing of us yet.
	gone := func(rev, mod int64) bool { return rev >= s.epoch && mod != s.epoch }
	from, stop := s.m.view.Follow(func(b Batch) {
		if kv, _ := s.m.view.Get(mine); gone(b.Revision, kv.Mod) {
			signal(over)
		}
		if onlyBatches(b) {
			signal(s.chain.others)
		}
		for _, c := range b.Changes {
			session := leaf(c.Key, prefixSessions) != ""
			if session || !c.Deleted && strings.HasPrefix(c.Key, prefixLocks) {
				s.tidySoon()
			}
			if session || c.Key == keyActive || leaf(c.Key, prefixHold) != "" || leaf(c.Key, prefixNodes) != "" {
				s.wake()
			}
		}
	})
	defer stop()
	if gone(from.Revision(), from.mod(mine)) {
		return ErrFenced
	}
	select {
	case <-over:
		return ErrFenced
	case <-ctx.Done():
		return ctx.Err()
	}
}

// onlyBatches reports whether nothing changed but keys of chains: members have made
// empty batches.
func onlyBatches(b Batch) bool {
	for _, c := range b.Changes {
		if leaf(c.Key, prefixCommit) == "" {
			return false
		}
	}
	return true
}

func (s *Session) wake()     { signal(s.poke) }
func (s *Session) tidySoon() { signal(s.tidy) }

// signal leaves one token in a channel of capacity one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// register writes the node's record, keeping what operators set.
func (s *Session) register(ctx context.Context, rec NodeRecord) error {
	rec.Name, rec.Role = s.m.cfg.Name, s.m.cfg.Role
	_, err := s.UpdateNode(ctx, rec.Name, func(old NodeRecord) (NodeRecord, error) {
		now := rec
		now.Paused, now.Preferred = old.Paused || rec.Paused, old.Preferred
		return now, nil
	})
	if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	<-ctx.Done()
	return ctx.Err()
}

// UpdateNode changes a node's record by compare-and-swap, together with extra
// writes. change gets the present record, or an empty one. It may be called
// more than once; an error of it ends the update and changes nothing.
func (s *Session) UpdateNode(ctx context.Context, node string, change func(NodeRecord) (NodeRecord, error), with ...Write) (NodeRecord, error) {
	for {
		kv, ok := s.m.view.Get(nodeKey(node))
		var rec NodeRecord
		if ok {
			var err error
			if rec, err = decode[NodeRecord](kv); err != nil {
				return rec, err
			}
		}
		rec, err := change(rec)
		if err != nil {
			return rec, err
		}
		res, err := s.Commit(ctx, Tx{
			If:   []Cond{ModIs(nodeKey(node), kv.Mod)},
			Then: append([]Write{Put(nodeKey(node), encode(rec))}, with...),
		})
		if err != nil || res.Won {
			return rec, err
		}
		if err := s.m.view.Wait(ctx, res.Revision); err != nil {
			return rec, err
		}
	}
}

// keepLease holds alive/<me> under a lease: the backstop for survivors that
// cannot reach each other, and what the session's locks hang on. The etcd
// library would renew in its own rhythm and report a loss up to a second late,
// so this loop renews itself and trusts only its own clock.
func (s *Session) keepLease(ctx context.Context) error {
	every := s.m.cfg.Lease / 5
	for {
		sent := time.Now()
		id, err := s.grant(ctx)
		if err == nil {
			err = s.announce(ctx, id)
		}
		if err == nil {
			s.setLease(id)
			err = s.renew(ctx, id, sent, every)
			s.setLease(0)
		}
		switch {
		case ctx.Err() != nil:
			if id != 0 && s.saidGoodbye() {
				s.revoke(context.WithoutCancel(ctx), id)
			}
			return ctx.Err()
		case errors.Is(err, ErrFenced):
			return err
		}
		s.log.Warn("lease lost, taking a new one", "error", err)
		if err := pause(ctx, every/5); err != nil {
			return err
		}
	}
}

func (s *Session) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	g, err := s.etcd.client.Grant(ctx, int64(s.m.cfg.Lease/time.Second))
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", err)
	}
	return g.ID, nil
}

// announce puts alive/<me> under the lease. It repeats the same put until an
// answer comes, so a late copy of it changes nothing; when the lease has
// expired meanwhile, etcd refuses.
func (s *Session) announce(ctx context.Context, id clientv3.LeaseID) error {
	rec := aliveRecord{Epoch: s.epoch, Lease: int64(id)}
	for {
		s.m.deps.Point(pointAliveProposing)
		resp, err := s.etcd.attempt(ctx, lastAttempt,
			[]clientv3.Cmp{ModIs(s.chain.session, s.epoch).cmp()},
			[]clientv3.Op{clientv3.OpPut(aliveKey(s.m.cfg.Name), string(encode(rec)), clientv3.WithLease(id))}, nil)
		switch {
		case err == nil && resp.Succeeded:
			s.m.deps.Point(pointAliveApplied)
			return nil
		case err == nil:
			return ErrFenced
		case ctx.Err() != nil, errors.Is(err, rpctypes.ErrLeaseNotFound):
			return fmt.Errorf("put alive key: %w", err)
		}
	}
}

// renew returns when the lease may have expired, counted from when the last
// successful renewal was sent. It puts the alive key again when the view shows
// another lease in it: the late copy of a put under an earlier one.
func (s *Session) renew(ctx context.Context, id clientv3.LeaseID, sent time.Time, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		at := time.Now()
		callCtx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_, err := s.etcd.client.KeepAliveOnce(callCtx, id)
		cancel()
		if err == nil {
			sent = at
			kv, ok := s.m.view.Get(aliveKey(s.m.cfg.Name))
			if rec, err := decode[aliveRecord](kv); ok && err == nil && rec.Epoch == s.epoch && rec.Lease != int64(id) {
				if err := s.announce(ctx, id); err != nil {
					return err
				}
			}
			continue
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || time.Since(sent) > s.m.cfg.Lease {
			return fmt.Errorf("renew lease, last renewed %v ago: %w", time.Since(sent).Round(time.Millisecond), err)
		}
	}
}

// revoke gives a lease back, and with it the locks that hang on it, and reports
// whether that is done. If not, the lease expires by itself.
func (s *Session) revoke(ctx context.Context, id clientv3.LeaseID) bool {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err := s.etcd.client.Revoke(ctx, id)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.log.Debug("lease not revoked", "error", err)
		return false
	}
	return true
}

func (s *Session) setLease(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease = id; id != 0 {
		close(s.leased)
	} else {
		s.leased = make(chan struct{})
	}
}

// waitLease returns the present lease, waiting for one until ctx ends.
func (s *Session) waitLease(ctx context.Context) (clientv3.LeaseID, error) {
	for {
		s.mu.Lock()
		id, leased := s.lease, s.leased
		s.mu.Unlock()
		if id != 0 {
			return id, nil
		}
		select {
		case <-leased:
		case <-s.ctx.Done():
			return 0, ErrFenced
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for a lease: %w", ctx.Err())
		}
	}
}
