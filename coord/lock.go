package coord

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	rev  int64
	free func()
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
	return s.lock(ctx, name, func(ctx context.Context, mu *concurrency.Mutex) error { return mu.Lock(ctx) })
}

// TryLock takes the named lock or returns ErrLocked.
func (s *Session) TryLock(ctx context.Context, name string) (*Lock, error) {
	return s.lock(ctx, name, func(ctx context.Context, mu *concurrency.Mutex) error { return mu.TryLock(ctx) })
}

func (s *Session) lock(ctx context.Context, name string, take func(context.Context, *concurrency.Mutex) error) (*Lock, error) {
	if name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("lock name %q is empty or has a slash", name)
	}
	// etcd's key is one per lease: two holders in this process would both find
	// it theirs. They queue here first.
	free, err := s.m.locals.take(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	l, err := s.lockEtcd(ctx, name, take)
	if err != nil {
		free()
		if errors.Is(err, concurrency.ErrLocked) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	l.free = free
	return l, nil
}

func (s *Session) lockEtcd(ctx context.Context, name string, take func(context.Context, *concurrency.Mutex) error) (*Lock, error) {
	e, err := s.m.server(ctx)
	if err != nil {
		return nil, err
	}
	lease := s.lease.Load()
	if lease == 0 {
		return nil, errors.New("this session has no lease at the moment")
	}
	cs, err := concurrency.NewSession(e.client, concurrency.WithLease(clientv3.LeaseID(lease)), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("etcd session: %w", err)
	}
	cs.Orphan() // our own loop renews the lease, see keepLease
	mu := concurrency.NewMutex(cs, prefixLocks+name)
	if err := take(ctx, mu); err != nil {
		// A failed attempt may have left its key under our lease: sweep it, or
		// nobody gets the lock while this session lives.
		sweep, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = e.client.Delete(sweep, fmt.Sprintf("%s%s/%x", prefixLocks, name, lease))
		return nil, err
	}
	got, _, err := e.get(ctx, time.Second, mu.Key())
	if err != nil {
		return nil, err
	}
	return &Lock{s: s, name: name, mu: mu, rev: got[mu.Key()].Create}, nil
}

// Guard holds while the lock is still ours.
func (l *Lock) Guard() Cond { return Cond{key: l.mu.Key(), rev: l.rev, equal: true, create: true} }

// Unlock gives the lock back. After an error it ends with the session.
func (l *Lock) Unlock(ctx context.Context) error {
	defer l.free()
	if err := l.mu.Unlock(ctx); err != nil {
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
