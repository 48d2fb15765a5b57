package coord_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/coord"
	"uac/coord/coordtest"
)

// longLease makes sure that nothing in a test waits for a lease to expire.
func longLease(c *coord.Config) { c.Lease = time.Hour }

func mustLock(t testing.TB, s *coord.Session, name string) *coord.Lock {
	t.Helper()
	l, err := s.Lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustUnlock(t testing.TB, l *coord.Lock) {
	t.Helper()
	if err := l.Unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// guarded reports whether a write under the lock goes through.
func guarded(t testing.TB, s *coord.Session, l *coord.Lock) bool {
	t.Helper()
	return mustCommit(t, s, coord.Tx{If: []coord.Cond{l.Guard()}, Then: []coord.Write{coord.Put("guarded", nil)}}).Won
}

func free(name string) func(coord.Snapshot) bool {
	return func(s coord.Snapshot) bool {
		for range s.Range("locks/" + name + "/") {
			return false
		}
		return true
	}
}

func TestLocks(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, longLease)
	s1, s2, s3 := c.Node("c1").Session(), c.Node("c2").Session(), c.Node("w1").Session()

	t.Run("one holder at a time", func(t *testing.T) {
		var inside atomic.Int32
		var wg sync.WaitGroup
		for _, s := range []*coord.Session{s1, s1, s2, s2, s3} { // two of one process as well
			wg.Go(func() {
				for range 3 {
					l, err := s.Lock(t.Context(), "busy")
					if err != nil {
						t.Error(err)
						return
					}
					if n := inside.Add(1); n != 1 {
						t.Errorf("%d holders at a time", n)
					}
					if !guarded(t, s, l) {
						t.Error("the holder's guard does not hold")
					}
					inside.Add(-1)
					mustUnlock(t, l)
				}
			})
		}
		wg.Wait()
		c.Await("c1", "no lock keys left", free("busy"))
	})

	t.Run("try", func(t *testing.T) {
		l := mustLock(t, s1, "try")
		for _, s := range []*coord.Session{s1, s2} {
			if _, err := s.TryLock(t.Context(), "try"); !errors.Is(err, coord.ErrLocked) {
				t.Errorf("got %v", err)
			}
		}
		mustUnlock(t, l)
		mustUnlock(t, l) // twice is harmless
		l2, err := s2.TryLock(t.Context(), "try")
		if err != nil {
			t.Fatal(err)
		}
		if guarded(t, s1, l) || !guarded(t, s2, l2) {
			t.Error("the guard of a lock that was given back holds, or the new one does not")
		}
		mustUnlock(t, l)
		if !guarded(t, s2, l2) {
			t.Error("an old holder gave the lock of another one back")
		}
		mustUnlock(t, l2)
	})

	t.Run("a wait ends with its context", func(t *testing.T) {
		l := mustLock(t, s1, "wait")
		for _, s := range []*coord.Session{s1, s2} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := s.Lock(ctx, "wait"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			cancel()
		}
		mustUnlock(t, l)
		mustUnlock(t, mustLock(t, s3, "wait"))
	})

	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"", "a/b"} {
			if _, err := s1.Lock(t.Context(), name); err == nil {
				t.Errorf("lock named %q", name)
			}
		}
	})

	t.Run("list and release", func(t *testing.T) {
		l := mustLock(t, s1, "rel")
		got := make(chan *coord.Lock, 1)
		go func() {
			l, err := s2.Lock(context.WithoutCancel(t.Context()), "rel")
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		snap := func() []coord.LockInfo {
			var infos []coord.LockInfo
			for _, i := range c.Node("w1").Member.View().Locks() {
				if i.Name == "rel" {
					infos = append(infos, i)
				}
			}
			return infos
		}
		c.Await("w1", "holder and waiter", func(coord.Snapshot) bool { return len(snap()) == 2 })
		want := []coord.LockInfo{{Name: "rel", Node: "c1"}, {Name: "rel", Node: "c2", Waiting: true}}
		sorted := cmpopts.SortSlices(func(a, b coord.LockInfo) bool { return a.Node < b.Node })
		if diff := cmp.Diff(want, snap(), cmpopts.IgnoreUnexported(coord.LockInfo{}), sorted); diff != "" {
			t.Error(diff)
		}
		if !guarded(t, s1, l) {
			t.Error("holder's guard does not hold")
		}
		n, err := s3.ReleaseLock(t.Context(), "rel", coord.Put("audit", nil))
		if n != 1 || err != nil {
			t.Errorf("released %d, error %v", n, err)
		}
		l2 := <-got
		if guarded(t, s1, l) || !guarded(t, s2, l2) {
			t.Error("the former holder can still write, or the new one cannot")
		}
		mustUnlock(t, l2)
		c.Await("w1", "free", free("rel"))
		if n, err := s3.ReleaseLock(t.Context(), "rel"); n != 0 || err != nil {
			t.Errorf("released %d of a free lock, error %v", n, err)
		}
		mustUnlock(t, l)
	})

	t.Run("strays are swept", func(t *testing.T) {
		cl := client(t, c.Node("c1").Member)
		snap := c.Await("c1", "lease of c1", func(s coord.Snapshot) bool { return has(s, "alive/c1") })
		lease := clientv3.LeaseID(value[aliveKey](snap, "alive/c1").Lease)
		l := mustLock(t, s1, "held")
		// What a failed attempt left there, late.
		if _, err := cl.Put(t.Context(), "locks/stray/"+leaseHex(int64(lease)), "", clientv3.WithLease(lease)); err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, mustLock(t, s2, "stray"))
		if !guarded(t, s1, l) {
			t.Error("a lock that is held was swept")
		}
		mustUnlock(t, l)
	})

	// Only a revoked lease frees a lock here: none expires in time.
	t.Run("goodbye frees locks", func(t *testing.T) {
		mustLock(t, s3, "bye")
		c.Stop(nil, "w1")
		mustUnlock(t, mustLock(t, s2, "bye"))
		c.Run("w1").Session()
	})

	t.Run("a loss frees locks", func(t *testing.T) {
		for range 2 { // of the Active, then of the one that was Passive
			active := awaitActive(c, "w1", "c1", "c2")
			s := c.Node(active).Session()
			passive := other(active)
			mustLock(t, s, "loss")
			mustLock(t, s, "more")
			c.Kill(active)
			awaitActive(c, passive, passive)
			mustUnlock(t, mustLock(t, c.Node(passive).Session(), "loss"))
			c.Await(passive, "free", free("more"))
			c.Run(active).Session()
		}
	})

	t.Run("loss of the passive frees locks", func(t *testing.T) {
		active := awaitActive(c, "w1", "c1", "c2")
		passive := other(active)
		mustLock(t, c.Node(passive).Session(), "passive")
		c.Kill(passive)
		mustUnlock(t, mustLock(t, c.Node(active).Session(), "passive"))
	})
}

func TestLockEndsWithTheSession(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, coordtest.Options{Sessions: true})
	s := c.Node("c1").Session()
	l := mustLock(t, s, "x")
	waiting := make(chan error, 1)
	go func() {
		_, err := s.Lock(context.WithoutCancel(t.Context()), "x")
		waiting <- err
	}()
	if _, err := client(t, c.Node("c1").Member).Delete(t.Context(), "sessions/c1"); err != nil {
		t.Fatal(err)
	}
	next := c.Node("c1").SessionAfter(s.Epoch())
	if err := <-waiting; err == nil || !strings.Contains(err.Error(), "lock x") {
		t.Errorf("waited on with %v", err)
	}
	_ = l.Unlock(t.Context()) // gives back what this process holds
	mustUnlock(t, mustLock(t, next, "x"))
}
