package coord

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// ErrLocked is returned by [Session.TryLock] when somebody else holds the lock.
var ErrLocked = errors.New("lock is held by somebody else")

// Lock is a cluster-wide mutex. It is gone when its holder's session is lost:
// the Active revokes a lost node's lease. Holding it proves nothing by itself;
// a holder puts [Lock.Guard] into the transactions that it protects.
type Lock struct {
	s    *Session
	name string
	mu   *concurrency.Mutex
	// guard holds while the key is the one that this Lock created.
	guard Cond
	free  func()
}

// LockInfo describes one holder of a lock or one that waits for it.
type LockInfo struct {
	Name string `json:"name"`
	// Node whose session the holder belongs to, if it is known.
	Node    string `json:"node"`
	Waiting bool   `json:"waiting"`
	key     string
}

// Lock takes the named lock, waiting for it until ctx ends. Names may not
// contain a slash.
func (s *Session) Lock(ctx context.Context, name string) (*Lock, error) {
	return s.lock(ctx, name, s.m.locals.take, (*concurrency.Mutex).Lock)
}

// TryLock takes the named lock, or returns ErrLocked if somebody else holds it.
func (s *Session) TryLock(ctx context.Context, name string) (*Lock, error) {
	return s.lock(ctx, name, s.m.locals.tryTake, (*concurrency.Mutex).TryLock)
}

func (s *Session) lock(ctx context.Context, name string,
	here func(context.Context, string) (func(), error), everywhere func(*concurrency.Mutex, context.Context) error,
) (*Lock, error) {
	if name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("lock name %q is empty or has a slash", name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(ErrFenced) })()
	// etcd's key is one per lease: two holders in this process would both find
	// it theirs. They queue here first.
	free, err := here(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	mu, err := s.mutex(ctx, name)
	if err == nil {
		err = everywhere(mu, ctx)
	}
	if err != nil {
		free()
		// A failed attempt may have left its key under our lease, or leave it
		// there late: until it is swept nobody else gets the lock.
		s.tidySoon()
		switch {
		case errors.Is(err, concurrency.ErrLocked):
			err = ErrLocked
		case ctx.Err() != nil: // which etcd reports in its own words
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	owner := mu.IsOwner()
	return &Lock{s: s, name: name, mu: mu, free: free, guard: Cond{
		key: mu.Key(), rev: owner.GetCompare().GetCreateRevision(), equal: true, create: true,
	}}, nil
}

// mutex returns etcd's mutex of that name on this session's lease.
func (s *Session) mutex(ctx context.Context, name string) (*concurrency.Mutex, error) {
	lease, err := s.waitLease(ctx)
	if err != nil {
		return nil, err
	}
	cs, err := concurrency.NewSession(s.etcd.client, concurrency.WithLease(lease), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("etcd session: %w", err)
	}
	cs.Orphan() // our own loop renews the lease, see keepLease
	return concurrency.NewMutex(cs, prefixLocks+name), nil
}

// sweepLocks removes the lock keys under our own lease that nobody in this
// process holds or waits for, and reports whether it did.
func (s *Session) sweepLocks(ctx context.Context, snap Snapshot) bool {
	done := true
	s.mu.Lock()
	lease := s.lease
	s.mu.Unlock()
	for kv := range snap.Range(prefixLocks) {
		name, under, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefixLocks), "/")
		if under != fmt.Sprintf("%x", lease) {
			continue
		}
		s.m.locals.ifFree(name, func() {
			stray := []clientv3.Cmp{ModIs(kv.Key, kv.Mod).cmp()}
			if _, err := s.etcd.attempt(ctx, time.Second, stray, []clientv3.Op{clientv3.OpDelete(kv.Key)}, nil); err != nil {
				s.log.Debug("stray lock key not swept", "lock", name, "error", err)
				done = false
			}
		})
	}
	return done
}

// Guard holds while the lock is still ours.
func (l *Lock) Guard() Cond { return l.guard }

// Unlock gives the lock back; only the first call does anything. After an error
// the lock is given back later by this session.
func (l *Lock) Unlock(ctx context.Context) error {
	err := l.mu.Unlock(ctx)
	l.free()
	if err != nil && !errors.Is(err, concurrency.ErrLockReleased) {
		l.s.tidySoon()
		return fmt.Errorf("unlock %s: %w", l.name, err)
	}
	return nil
}

// Locks lists all locks and who waits for them, holders first.
func (v *View) Locks() []LockInfo {
	snap := v.Snapshot()
	owners := map[string]string{}
	for kv := range snap.Range(prefixAlive) {
		if rec, err := decode[aliveRecord](kv); err == nil {
			owners[fmt.Sprintf("%x", rec.Lease)] = leaf(kv.Key, prefixAlive)
		}
	}
	var out []LockInfo
	holder := map[string]int64{}
	for kv := range snap.Range(prefixLocks) {
		name, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefixLocks), "/")
		if was, ok := holder[name]; !ok || kv.Create < was {
			holder[name] = kv.Create
		}
	}
	for kv := range snap.Range(prefixLocks) {
		name, lease, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefixLocks), "/")
		out = append(out, LockInfo{Name: name, Node: owners[lease], Waiting: holder[name] != kv.Create, key: kv.Key})
	}
	return out
}

// ReleaseLock frees a lock whoever holds it: an operator's last resort. The
// former holder's guarded transactions fail from then on. It reports how many
// holders and waiters were removed.
func (s *Session) ReleaseLock(ctx context.Context, name string, with ...Write) (int, error) {
	n := 0
	var writes []Write
	for _, l := range s.m.view.Locks() {
		if l.Name == name && !l.Waiting {
			writes = append(writes, Del(l.key))
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	_, err := s.Commit(ctx, Tx{Then: append(writes, with...)})
	return n, err
}

// localLocks serializes holders of one name within this process.
type localLocks struct {
	// sweeping is held while something is done about a name that is free.
	sweeping sync.Mutex

	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

func newLocalLocks() *localLocks { return &localLocks{held: map[string]chan struct{}{}} }

// slot is a channel that is full while the name is taken.
func (l *localLocks) slot(name string) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch, ok := l.held[name]
	if !ok {
		ch = make(chan struct{}, 1)
		l.held[name] = ch
	}
	return ch
}

// take waits for the name and returns how to give it back, once.
func (l *localLocks) take(ctx context.Context, name string) (free func(), err error) {
	ch := l.slot(name)
	select {
	case ch <- struct{}{}:
		return l.taken(ch), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tryTake takes the name, or returns ErrLocked if somebody here has it.
func (l *localLocks) tryTake(_ context.Context, name string) (free func(), err error) {
	ch := l.slot(name)
	select {
	case ch <- struct{}{}:
		return l.taken(ch), nil
	default:
		return nil, ErrLocked
	}
}

// taken waits for what is being done because the name was free a moment ago.
func (l *localLocks) taken(ch chan struct{}) (free func()) {
	l.sweeping.Lock()
	defer l.sweeping.Unlock()
	return sync.OnceFunc(func() { <-ch })
}

// ifFree runs f if nobody here has the name; nobody gets it before f is done.
func (l *localLocks) ifFree(name string, f func()) {
	l.sweeping.Lock()
	defer l.sweeping.Unlock()
	if len(l.slot(name)) == 0 {
		f()
	}
}
