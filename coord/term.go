package coord

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// ErrNotActive is returned by operations that only the Active can do.
var ErrNotActive = errors.New("this node is not Active")

// ErrNoSuccessor is returned when no other controller can take over.
var ErrNoSuccessor = errors.New("no other controller can take over")

// Term is this node's time as Active. Its epoch is the fence of everything that
// only the Active may do.
type Term struct {
	s      *Session
	epoch  int64
	ctx    context.Context
	cancel context.CancelCauseFunc
	// handing is set while a switchover is under way: the term must not act.
	handing bool
}

// Epoch is the ModRevision of the key active.
func (t *Term) Epoch() int64 { return t.epoch }

// Context ends when the term ends.
func (t *Term) Context() context.Context { return t.ctx }

// Guard is the condition that makes a transaction part of this term.
func (t *Term) Guard() Cond { return ModIs(keyActive, t.epoch) }

// Check returns nil while this node may act as Active.
func (t *Term) Check() error {
	if t.ctx.Err() != nil {
		return ErrNotActive
	}
	t.s.mu.Lock()
	handing := t.handing
	t.s.mu.Unlock()
	if handing {
		return ErrNotActive
	}
	return t.s.Check()
}

// Term returns the present term of this session, or nil.
func (s *Session) Term() *Term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term
}

// Mode says what this controller may answer to probes right now.
func (s *Session) Mode() Mode {
	if s.Check() != nil {
		return ModeOffline
	}
	if t := s.Term(); t != nil && t.Check() == nil {
		return ModeActive
	}
	return ModePassive
}

// Lead runs fn for every term that this session gets, one after the other,
// until ctx ends. fn's context ends with its term; Lead waits for fn.
func (s *Session) Lead(ctx context.Context, fn func(ctx context.Context, t *Term) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case t := <-s.terms:
			tctx, cancel := context.WithCancelCause(ctx)
			unhook := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
			err := fn(tctx, t)
			unhook()
			cancel(nil)
			if err != nil && t.ctx.Err() == nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// beginTerm starts the term with this epoch unless it runs already. Its first
// fenced write goes out before anybody hears of it, unless the transaction that
// began the term wrote it.
func (s *Session) beginTerm(epoch int64, written bool) {
	s.mu.Lock()
	// A view that is behind still shows a term that has ended: never twice.
	if s.leaving || epoch <= s.lastTerm {
		s.mu.Unlock()
		return
	}
	old := s.term
	s.lastTerm = epoch
	t := &Term{s: s, epoch: epoch}
	t.ctx, t.cancel = context.WithCancelCause(s.ctx)
	s.term = t
	select { // only the latest term counts
	case <-s.terms:
	default:
	}
	s.terms <- t
	s.mu.Unlock()
	if old != nil {
		old.cancel(ErrNotActive)
	}
	began := monotonic()
	if written {
		s.log.Info("term begun", "term", epoch, "began_mono_ns", began, "first_write_mono_ns", began)
		s.tidySoon()
		return
	}
	s.Submit(Tx{
		If:   []Cond{t.Guard()},
		Then: []Write{Put(keyTerms, encode(TermRecord{Node: s.m.cfg.Name, Epoch: epoch, At: time.Now().UTC()}))},
	}, func(res Result, err error) {
		if err != nil || !res.Won {
			s.log.Warn("term not begun", "term", epoch, "won", res.Won, "error", err)
			return
		}
		s.log.Info("term begun", "term", epoch, "began_mono_ns", began, "first_write_mono_ns", monotonic())
	})
	s.tidySoon() // whom we follow may have left locks
}

// monotonic is the host's monotonic clock: one clock for all processes of a
// host, so that a benchmark there can place events of several nodes on one
// line. Nothing in the protocol uses it.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}

// endTerm ends the present term if its epoch is at most upTo: a later one may
// have begun since the caller looked.
func (s *Session) endTerm(upTo int64, cause error) {
	s.mu.Lock()
	t := s.term
	if t == nil || t.epoch > upTo {
		s.mu.Unlock()
		return
	}
	s.term = nil
	select {
	case <-s.terms:
	default:
	}
	s.mu.Unlock()
	t.cancel(cause)
	s.log.Info("term ended", "term", t.epoch, "cause", cause)
}

// Campaigning is driven by the view and, should an event be missed, by a slow
// tick. A paused controller leaves the others one tick's head start.
const campaignEvery = 2 * time.Second

// campaign keeps the term in step with the key active, and tries to become
// Active whenever the term is vacant.
func (s *Session) campaign(ctx context.Context) error {
	tick := time.NewTicker(campaignEvery)
	defer tick.Stop()
	var vacantSince time.Time
	for {
		snap := s.m.view.Snapshot()
		if snap.Revision() >= s.epoch {
			vacant := s.follow(snap)
			switch {
			case !vacant:
				vacantSince = time.Time{}
			case vacantSince.IsZero():
				vacantSince = time.Now()
			}
			if vacant && (!s.paused(snap) || time.Since(vacantSince) >= campaignEvery) {
				if err := s.run(ctx, snap); err != nil {
					s.log.Debug("campaign", "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.poke:
		case <-tick.C:
		}
	}
}

// follow begins or ends the term as the snapshot says, and reports whether the
// term is vacant and nobody holds it.
func (s *Session) follow(snap Snapshot) (vacant bool) {
	kv, rec, holder := activeIn(snap)
	if holder && rec.Node == s.m.cfg.Name && rec.Epoch == s.epoch {
		s.beginTerm(kv.Mod, snap.mod(keyTerms) == kv.Mod)
		return false
	}
	s.endTerm(snap.Revision(), ErrNotActive)
	if holder {
		return false
	}
	_, held := snap.Get(holdKey(rec.Node))
	return rec.Node == "" || !held
}

// activeIn reads the key active. holder is false when the term is vacant.
func activeIn(snap Snapshot) (kv KV, rec ActiveRecord, holder bool) {
	kv, ok := snap.Get(keyActive)
	if !ok {
		return kv, rec, false
	}
	rec, err := decode[ActiveRecord](kv)
	if err != nil {
		return kv, ActiveRecord{}, false
	}
	return kv, rec, snap.mod(sessionKey(rec.Node)) == rec.Epoch
}

func (s *Session) paused(snap Snapshot) bool { return nodeIn(snap, s.m.cfg.Name).Paused }

func nodeIn(snap Snapshot, node string) NodeRecord {
	kv, ok := snap.Get(nodeKey(node))
	if !ok {
		return NodeRecord{Name: node}
	}
	rec, err := decode[NodeRecord](kv)
	if err != nil {
		return NodeRecord{Name: node}
	}
	return rec
}

// run tries once to become Active. It needs no trust and does not go through
// the chain: losing the race changes nothing.
func (s *Session) run(ctx context.Context, snap Snapshot) error {
	kv, rec, _ := activeIn(snap)
	cmps := []clientv3.Cmp{
		ModIs(keyActive, kv.Mod).cmp(),
		ModIs(sessionKey(s.m.cfg.Name), s.epoch).cmp(),
		// We may just be leaving without fail-over: nobody could end that term.
		Absent(holdKey(s.m.cfg.Name)).cmp(),
	}
	if rec.Node != "" {
		cmps = append(cmps,
			ModIsNot(sessionKey(rec.Node), rec.Epoch).cmp(),
			Absent(holdKey(rec.Node)).cmp())
	}
	s.m.deps.Point(pointTermProposing)
	resp, err := s.etcd.attempt(ctx, firstAttempt, cmps,
		[]clientv3.Op{clientv3.OpPut(keyActive, string(encode(ActiveRecord{Node: s.m.cfg.Name, Epoch: s.epoch})))}, nil)
	if err != nil {
		// Unknown: the view will tell. Look again even if nothing changes.
		time.AfterFunc(firstAttempt, s.wake)
		return err
	}
	if resp.Succeeded {
		s.m.deps.Point(pointTermWon)
		s.beginTerm(resp.Header.Revision, false)
	}
	return nil
}

// Switchover hands the term to another controller: to, or the best successor
// if to is empty. The term acts no more from the moment of the call; if the
// hand-over does not happen the term goes on. It returns the new Active's name.
func (s *Session) Switchover(ctx context.Context, to string, with ...Write) (string, error) {
	t := s.Term()
	if t == nil || t.Check() != nil {
		return "", ErrNotActive
	}
	succ, err := s.successor(s.m.view.Snapshot(), to)
	if err != nil {
		return "", err
	}
	if !s.setHanding(t, true) {
		return "", fmt.Errorf("%w any more: a switchover is under way", ErrNotActive)
	}
	res, err := s.Commit(ctx, t.handTo(succ, with...))
	switch {
	case err == nil && res.Won:
		s.endTerm(t.epoch, ErrNotActive)
		return succ.Name, nil
	case err == nil:
		s.setHanding(t, false)
		return "", fmt.Errorf("%w: %s left meanwhile", ErrNoSuccessor, succ.Name)
	default:
		// Unknown only to this caller: the chain goes on until it knows, and the
		// batch after it tells this term whether it still stands.
		s.Submit(Tx{If: []Cond{t.Guard()}, Then: []Write{Put(keyTerms, encode(TermRecord{Node: s.m.cfg.Name, Epoch: t.epoch, At: time.Now().UTC()}))}},
			func(res Result, err error) {
				if err == nil && res.Won {
					s.setHanding(t, false)
				}
			})
		return "", err
	}
}

// setHanding reports whether it changed anything.
func (s *Session) setHanding(t *Term, on bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := t.handing
	t.handing = on
	return was != on
}

// handTo is the transaction that gives the term to another controller, unless
// that has left, for good or without fail-over.
func (t *Term) handTo(succ candidate, with ...Write) Tx {
	return Tx{
		If:   append([]Cond{t.Guard()}, succ.conds()...),
		Then: append([]Write{Put(keyActive, succ.active())}, with...),
	}
}

// conds hold while the candidate can become Active.
func (c candidate) conds() []Cond {
	return []Cond{ModIs(sessionKey(c.Name), c.Epoch), Absent(holdKey(c.Name))}
}

// active is the value of the key active that names the candidate.
func (c candidate) active() []byte { return encode(ActiveRecord{Node: c.Name, Epoch: c.Epoch}) }

// successor picks who would take over from this session now.
func (s *Session) successor(snap Snapshot, want string) (candidate, error) {
	cands := s.m.candidates(snap)
	cands = slices.DeleteFunc(cands, func(c candidate) bool {
		return c.Name == s.m.cfg.Name || want != "" && c.Name != want
	})
	if want != "" && len(cands) == 0 {
		return candidate{}, fmt.Errorf("%w: %s is not a controller with a session", ErrNoSuccessor, want)
	}
	succ, ok := chooseSuccessor(cands, s.epoch)
	if !ok {
		return candidate{}, ErrNoSuccessor
	}
	return succ, nil
}

// Leave says goodbye: the session ends by its own last transaction. With hold
// its work waits for this node to come back; otherwise the term moves to the
// best successor in the same transaction and the requests are free to be
// claimed. When it fails, the node is lost like after a crash.
func (s *Session) Leave(ctx context.Context, hold *HoldRecord, with ...Write) error {
	defer s.m.handOverRaft(ctx)
	s.mu.Lock()
	s.leaving = true
	t := s.term
	s.mu.Unlock()
	bye := []Write{Del(sessionKey(s.m.cfg.Name))}
	switch {
	case hold != nil:
		bye = []Write{Put(holdKey(s.m.cfg.Name), encode(hold))}
	case t != nil:
		s.setHanding(t, true)
		if succ, err := s.successor(s.m.view.Snapshot(), ""); err == nil {
			// Fails harmlessly if the successor left meanwhile: then the others
			// campaign when they see our session go.
			s.Submit(t.handTo(succ), func(Result, error) {})
		}
	}
	_, err := s.Commit(ctx, Tx{Then: append(bye, with...)})
	// A session that is over needs no goodbye; one that was to be held does.
	if err != nil && (hold != nil || !errors.Is(err, ErrFenced)) {
		return fmt.Errorf("say goodbye: %w", err)
	}
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	s.endTerm(math.MaxInt64, ErrNotActive)
	return nil
}
