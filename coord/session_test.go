package coord_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/coord"
	"uac/coord/coordtest"
)

func TestRestartOpensANewSession(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	old := c.Node("c1").Session()
	run := value[coord.SessionRecord](c.Node("c1").Member.View().Snapshot(), "sessions/c1").Run
	mustCommit(t, old, put("x", "1"))
	c.Kill("c1")
	if _, err := old.Commit(t.Context(), put("x", "2")); !errors.Is(err, coord.ErrFenced) {
		t.Errorf("commit of an ended session: %v", err)
	}
	s := c.Run("c1").SessionAfter(old.Epoch())
	mustCommit(t, s, put("y", "1"))
	snap := c.Await("c1", "own writes", func(s coord.Snapshot) bool { return has(s, "y") })
	kv, _ := snap.Get("sessions/c1")
	if kv.Mod != s.Epoch() || value[coord.SessionRecord](snap, "sessions/c1").Run == run {
		t.Errorf("session %d of the same process, or not at its epoch %d", kv.Mod, s.Epoch())
	}
	if x, _ := snap.Get("x"); string(x.Value) != "1" {
		t.Errorf("x is %q", x.Value)
	}
}

func TestOpeningWithAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(call) (*clientv3.TxnResponse, error){
		"applied":       lose,
		"never applied": func(call) (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, change := faulty()
			opened := 0
			all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
				if _, opening := one.puts("sessions/c1"); !opening {
					return one.pass()
				}
				if opened++; opened == 1 {
					return fault(one)
				}
				return one.pass()
			})
			c := start(t, 1, 0, change)
			s := c.Node("c1").Session()
			mustCommit(t, s, put("x", "1"))
			if want := map[string]int{"applied": 1, "never applied": 2}[name]; opened != want {
				t.Errorf("opened %d times, want %d", opened, want)
			}
			snap := c.Await("c1", "own writes", func(s coord.Snapshot) bool { return has(s, "x") })
			if kv, _ := snap.Get("sessions/c1"); kv.Mod != s.Epoch() {
				t.Errorf("epoch %d, but the session is of %d", s.Epoch(), kv.Mod)
			}
		})
	}
}

func TestNextStartEndsAHold(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	awaitActive(c, "c1", "c1")
	old := c.Node("c1").Session().Epoch()
	c.Stop(&coord.HoldRecord{By: "me", Why: "test"}, "c1")
	s := c.Run("c1").SessionAfter(old)
	snap := c.Await("c1", "the new session", func(snap coord.Snapshot) bool {
		kv, _ := snap.Get("sessions/c1")
		return kv.Mod == s.Epoch()
	})
	if has(snap, "hold/c1") {
		t.Error("the hold outlived the next start")
	}
	awaitActive(c, "c1", "c1")
}

// wantFenced waits for the end of the session and for the next one.
func wantFenced(t *testing.T, c *coordtest.Cluster, s *coord.Session) {
	t.Helper()
	<-s.Context().Done()
	if err := context.Cause(s.Context()); !errors.Is(err, coord.ErrFenced) {
		t.Errorf("session ended with %v", err)
	}
	if err := s.Check(); !errors.Is(err, coord.ErrFenced) {
		t.Errorf("session that is over: %v", err)
	}
	if s.Mode() != coord.ModeOffline {
		t.Errorf("mode %s", s.Mode())
	}
	if _, err := s.Commit(t.Context(), put("late", "1")); !errors.Is(err, coord.ErrFenced) {
		t.Errorf("commit of a session that is over: %v", err)
	}
	c.Node("c1").SessionAfter(s.Epoch())
}

func TestFencedIsSeenInTheView(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 1, 0, change)
	s := c.Node("c1").Session()
	for name, fence := range map[string]clientv3.Op{
		"lost":           clientv3.OpDelete("sessions/c1"),
		"newer session":  clientv3.OpPut("sessions/c1", `{"run":"another","role":"controller"}`),
		"and once again": clientv3.OpDelete("sessions/c1"),
	} {
		// The chain gets no answer: only the view can tell.
		all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
			if _, chain := one.puts("commit/c1"); chain {
				if _, opening := one.puts("sessions/c1"); !opening {
					<-one.ctx.Done()
					return nil, one.ctx.Err()
				}
				all["c1"].set(nil)
			}
			return one.pass()
		})
		if _, err := client(t, c.Node("c1").Member).Do(t.Context(), fence); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		wantFenced(t, c, s)
		s = c.Node("c1").SessionAfter(s.Epoch())
	}
}

func TestFencedIsSeenByTheChain(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	s := c.Node("c1").Session()
	release := make(chan struct{})
	_, stop := c.Node("c1").Member.View().Follow(func(coord.Batch) { <-release }) // the view stands still
	defer stop()
	defer close(release)
	if _, err := client(t, c.Node("c1").Member).Delete(t.Context(), "sessions/c1"); err != nil {
		t.Fatal(err)
	}
	wantFenced(t, c, s)
}

// running starts a member without sessions and waits until it runs.
func running(t *testing.T) (*coordtest.Cluster, *coord.Member) {
	t.Helper()
	c := coordtest.Start(t, coordtest.Options{})
	m := c.Node("c1").Member
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, m
}

// A daemon is told to stop by the end of its context, and says goodbye then.
func TestGoodbyeAfterTheContextEnded(t *testing.T) {
	t.Parallel()
	c, m := running(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := m.Session(ctx, coord.NodeRecord{}, func(ctx context.Context, s *coord.Session) error {
		mustCommit(t, s, put("x", "1"))
		cancel()
		if err := s.Check(); !errors.Is(err, coord.ErrFenced) {
			t.Errorf("a session whose context ended may act: %v", err)
		}
		return s.Leave(context.WithoutCancel(ctx), nil, coord.Put("goodbye", nil))
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Await("c1", "goodbye", func(s coord.Snapshot) bool {
		return has(s, "goodbye") && !has(s, "sessions/c1") && !has(s, "alive/c1")
	})
}

func TestGoodbyeWithALostAnswer(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := coordtest.Start(t, coordtest.Options{Change: change})
	all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if one.deletes("sessions/c1") {
			all["c1"].set(nil)
			return lose(one)
		}
		return one.pass()
	})
	err := c.Node("c1").Member.Session(t.Context(), coord.NodeRecord{}, func(ctx context.Context, s *coord.Session) error {
		return s.Leave(context.WithoutCancel(ctx), nil)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSessionEndsWithItsServer(t *testing.T) {
	t.Parallel()
	c, m := running(t)
	opened := make(chan *coord.Session, 1)
	over := make(chan error, 1)
	go func() {
		over <- m.Session(t.Context(), coord.NodeRecord{}, func(ctx context.Context, s *coord.Session) error {
			opened <- s
			<-ctx.Done()
			return nil
		})
	}()
	s := <-opened
	c.Kill("c1")
	if err := <-over; !errors.Is(err, coord.ErrFenced) {
		t.Errorf("session ended with %v", err)
	}
	if _, err := s.Commit(t.Context(), put("x", "1")); !errors.Is(err, coord.ErrFenced) {
		t.Error(err)
	}
}

func TestDamagedRecordEndsTheSession(t *testing.T) {
	t.Parallel()
	_, m := running(t)
	cl := client(t, m)
	put, err := cl.Put(t.Context(), "nodes/c1", "no JSON")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.View().Wait(t.Context(), put.Header.Revision); err != nil {
		t.Fatal(err)
	}
	err = m.Session(t.Context(), coord.NodeRecord{}, func(ctx context.Context, _ *coord.Session) error {
		<-ctx.Done()
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "nodes/c1") {
		t.Errorf("session ended with %v, want the key that is damaged", err)
	}
}

// aliveKey is the value of alive/<node>.
type aliveKey struct{ Epoch, Lease int64 }

func TestLeaseIsTakenAgain(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0, quick)
	s := c.Node("c1").Session()
	cl := client(t, c.Node("c1").Member)
	held := func(s coord.Snapshot) aliveKey { return value[aliveKey](s, "alive/c1") }
	was := held(c.Await("c1", "a lease", func(s coord.Snapshot) bool { return has(s, "alive/c1") }))
	l, err := s.Lock(t.Context(), "lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Revoke(t.Context(), clientv3.LeaseID(was.Lease)); err != nil {
		t.Fatal(err)
	}
	now := held(c.Await("c1", "another lease", func(s coord.Snapshot) bool {
		return has(s, "alive/c1") && held(s).Lease != was.Lease
	}))
	if now.Epoch != s.Epoch() {
		t.Errorf("lease of session %d, want %d", now.Epoch, s.Epoch())
	}
	res := mustCommit(t, s, coord.Tx{If: []coord.Cond{l.Guard()}, Then: []coord.Write{coord.Put("guarded", nil)}})
	if res.Won {
		t.Error("the lock outlived its lease")
	}
	if err := l.Unlock(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.Lock(t.Context(), "lock"); err != nil {
		t.Errorf("locked again under the new lease: %v", err)
	}

	// A late copy of a put under an earlier lease, which then expires, must not
	// make the session look dead.
	late, err := json.Marshal(aliveKey{s.Epoch(), was.Lease})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Put(t.Context(), "alive/c1", string(late)); err != nil {
		t.Fatal(err)
	}
	c.Await("c1", "the late copy", func(s coord.Snapshot) bool { return held(s).Lease == was.Lease })
	c.Await("c1", "the present lease", func(s coord.Snapshot) bool { return held(s) == now })
}

func TestLeaseWithAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	puts := 0
	all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if _, ok := one.puts("alive/c1"); !ok {
			return one.pass()
		}
		if puts++; puts == 1 {
			return lose(one)
		}
		return one.pass()
	})
	c := start(t, 1, 0, change)
	if _, err := c.Node("c1").Session().Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	snap := c.Await("c1", "the lock", func(s coord.Snapshot) bool {
		for range s.Range("locks/x/") {
			return true
		}
		return false
	})
	alive, _ := snap.Get("alive/c1")
	if alive.Create == alive.Mod || puts != 2 {
		t.Errorf("put %d times, changed %v: want the same put repeated", puts, alive.Create != alive.Mod)
	}
	for kv := range snap.Range("locks/x/") {
		if want := value[aliveKey](snap, "alive/c1").Lease; !strings.HasSuffix(kv.Key, leaseHex(want)) {
			t.Errorf("lock key %s, want it under lease %s", kv.Key, leaseHex(want))
		}
	}
}

func TestUpdateNodeRaces(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	s := c.Node("c1").Session()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := s.UpdateNode(t.Context(), "n1", func(r coord.NodeRecord) (coord.NodeRecord, error) {
				r.Host += "x"
				return r, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	snap := c.Await("c1", "the last change", func(s coord.Snapshot) bool { return len(value[coord.NodeRecord](s, "nodes/n1").Host) >= 8 })
	if host := value[coord.NodeRecord](snap, "nodes/n1").Host; host != "xxxxxxxx" {
		t.Errorf("got %q: a change was lost or made twice", host)
	}
	refused := errors.New("refused")
	if _, err := s.UpdateNode(t.Context(), "n1", func(r coord.NodeRecord) (coord.NodeRecord, error) {
		r.Host = "no"
		return r, refused
	}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}

// A node that starts keeps what operators set, even when they set it meanwhile.
func TestRegisterKeepsWhatOperatorsSet(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 1, 0, change)
	s := c.Node("c1").Session()
	if _, err := s.UpdateNode(t.Context(), "c1", func(r coord.NodeRecord) (coord.NodeRecord, error) {
		r.Paused, r.Preferred = true, true
		return r, nil
	}); err != nil {
		t.Fatal(err)
	}
	c.Kill("c1")
	// An operator resumes the node just when it registers.
	var resumed atomic.Int64 // the revision of that
	all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if _, ok := one.puts("nodes/c1"); ok && resumed.Load() == 0 {
			resp, err := one.next(t.Context(), nil, []clientv3.Op{clientv3.OpPut("nodes/c1", `{"name":"c1","preferred":true,"by":"operator"}`)}, nil)
			if err != nil {
				return nil, err
			}
			resumed.Store(resp.Header.Revision)
		}
		return one.pass()
	})
	c.Run("c1")
	snap := c.Await("c1", "registration", func(s coord.Snapshot) bool {
		kv, _ := s.Get("nodes/c1")
		return resumed.Load() != 0 && kv.Mod > resumed.Load()
	})
	rec := value[coord.NodeRecord](snap, "nodes/c1")
	if rec.Paused || !rec.Preferred || rec.Role != coord.RoleController || rec.Host != "test" {
		t.Errorf("registered as %+v, want preferred, not paused", rec)
	}
}

// TestSessionSaysWhyItEnded: whichever of a session's goroutines is told first, its
// end has the reason of the one that saw it.
func TestSessionSaysWhyItEnded(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, coordtest.Options{Controllers: 1})
	m := c.Node("c1").Member
	if err := m.Sync(t.Context()); err != nil { // it is up
		t.Fatal(err)
	}
	cl := client(t, m)
	err := m.Session(t.Context(), coord.NodeRecord{}, func(ctx context.Context, _ *coord.Session) error {
		// The one that saw it is kept busy, while the others end.
		for range 200_000 {
			_, stop := context.WithCancel(ctx)
			t.Cleanup(stop)
		}
		if _, err := cl.Delete(t.Context(), "sessions/c1"); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, coord.ErrFenced) {
		t.Errorf("the session ended with %v", err)
	}
}
