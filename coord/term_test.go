package coord_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/coord"
	"uac/coord/coordtest"
)

func term(s coord.Snapshot) int64 {
	kv, _ := s.Get("active")
	return kv.Mod
}

// awaitTerm waits until name has begun a term later than epoch, and returns its
// epoch.
func awaitTerm(c *coordtest.Cluster, on, name string, epoch int64) int64 {
	return term(c.Await(on, name+" becomes Active again", func(s coord.Snapshot) bool {
		return begun(s) == name && term(s) > epoch
	}))
}

func pauseNode(t testing.TB, s *coord.Session, node string, paused bool) {
	t.Helper()
	if _, err := s.UpdateNode(t.Context(), node, func(r coord.NodeRecord) (coord.NodeRecord, error) {
		r.Paused = paused
		return r, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestVacantTermIsTaken(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 1, 0, change)
	awaitActive(c, "c1", "c1")
	s := c.Node("c1").Session()
	cl := client(t, c.Node("c1").Member)
	epoch := s.Term().Epoch()
	vacate := func(op clientv3.Op) {
		t.Helper()
		if _, err := cl.Do(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		epoch = awaitTerm(c, "c1", "c1", epoch)
	}
	vacate(clientv3.OpDelete("active"))
	vacate(clientv3.OpPut("active", `{"node":"c1","epoch":1}`)) // a session of ours that is over
	vacate(clientv3.OpPut("active", `{"node":"gone","epoch":7}`))
	vacate(clientv3.OpPut("active", `damaged`))

	// The outcome of the campaign is unknown: applied or not, the view tells.
	for _, fault := range []func(call) (*clientv3.TxnResponse, error){
		lose, func(call) (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded },
	} {
		all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
			if _, campaign := one.puts("active"); campaign {
				all["c1"].set(nil)
				return fault(one)
			}
			return one.pass()
		})
		vacate(clientv3.OpDelete("active"))
	}

	// A paused controller takes it too, when nobody else does.
	pauseNode(t, s, "c1", true)
	vacate(clientv3.OpDelete("active"))
	if n := c.Node("c1").Member.Nodes(); !n[0].Paused || n[0].Mode != coord.ModeActive || n[0].Term != epoch {
		t.Errorf("%+v: want Active and still paused", n[0])
	}
}

func TestPausedLeavesTheTermToOthers(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	s := c.Node("c1").Session()
	for range 4 {
		epoch := term(c.Await("c2", "a term", func(s coord.Snapshot) bool { return begun(s) != "" }))
		pauseNode(t, s, "c2", true)
		c.Await("c2", "own pause", func(s coord.Snapshot) bool { return value[coord.NodeRecord](s, "nodes/c2").Paused })
		if _, err := client(t, c.Node("c2").Member).Delete(t.Context(), "active"); err != nil {
			t.Fatal(err)
		}
		awaitTerm(c, "c2", "c1", epoch)
	}
	// Pausing the Active changes nothing.
	epoch := term(c.Node("c1").Member.View().Snapshot())
	pauseNode(t, s, "c1", true)
	pauseNode(t, s, "c2", false)
	mustCommit(t, c.Node("c2").Session(), put("x", ""))
	snap := c.Await("c1", "all of it", func(s coord.Snapshot) bool { return has(s, "x") })
	if begun(snap) != "c1" || term(snap) != epoch || s.Mode() != coord.ModeActive {
		t.Errorf("a pause moved the term: %s since %d, want c1 since %d", begun(snap), term(snap), epoch)
	}
}

func TestSwitchover(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, change)
	active := awaitActive(c, "w1", "c1", "c2")
	for i := range 6 {
		from, to := active, other(active)
		s := c.Node(from).Session()
		awaitActive(c, from, from)
		old := s.Term()
		target := ""
		if i%2 == 0 {
			target = to
		}
		got, err := s.Switchover(t.Context(), target, coord.Put("audit", nil))
		if err != nil || got != to {
			t.Fatalf("switchover from %s: %s, %v", from, got, err)
		}
		if old.Check() == nil || old.Context().Err() == nil || s.Mode() == coord.ModeActive {
			t.Error("the old term acts on")
		}
		coord.LookAgain(s) // perhaps with a view that is behind
		if s.Mode() == coord.ModeActive {
			t.Error("the old term was begun again")
		}
		if res := mustCommit(t, s, coord.Tx{If: []coord.Cond{old.Guard()}, Then: []coord.Write{coord.Put("old", nil)}}); res.Won {
			t.Error("the old term wrote")
		}
		awaitTerm(c, from, to, old.Epoch())
		active = to
	}

	s := c.Node(active).Session()
	awaitActive(c, active, active)
	passive := other(active)
	cur := s.Term()
	t.Run("refused", func(t *testing.T) {
		for _, to := range []string{active, "w1", "nobody"} {
			if _, err := s.Switchover(t.Context(), to); !errors.Is(err, coord.ErrNoSuccessor) || !strings.Contains(err.Error(), to) {
				t.Errorf("switchover to %s: %v", to, err)
			}
		}
		if _, err := c.Node(passive).Session().Switchover(t.Context(), ""); !errors.Is(err, coord.ErrNotActive) {
			t.Errorf("switchover by the Passive: %v", err)
		}
		if cur.Check() != nil {
			t.Error("a refused switchover ended the term")
		}
	})

	onHandover := func(fault func(call) (*clientv3.TxnResponse, error)) {
		all[active].set(func(one call) (*clientv3.TxnResponse, error) {
			if _, ok := one.puts("active"); ok {
				all[active].set(nil)
				return fault(one)
			}
			return one.pass()
		})
	}
	// fenceFirst ends the successor's session before the hand-over is applied.
	fenceFirst := func(one call) (*clientv3.TxnResponse, error) {
		return one.passAfterLossOf("sessions/" + passive)
	}
	t.Run("successor left meanwhile", func(t *testing.T) {
		was := c.Node(passive).Session().Epoch()
		onHandover(fenceFirst)
		if _, err := s.Switchover(t.Context(), ""); !errors.Is(err, coord.ErrNoSuccessor) {
			t.Errorf("got %v", err)
		}
		if cur.Check() != nil || s.Mode() != coord.ModeActive {
			t.Error("the term does not go on")
		}
		c.Node(passive).SessionAfter(was)
	})
	t.Run("outcome unknown to the caller, not handed over", func(t *testing.T) {
		was := c.Node(passive).Session().Epoch()
		c.Await(active, "session of the successor", func(s coord.Snapshot) bool { kv, _ := s.Get("sessions/" + passive); return kv.Mod == was })
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		onHandover(func(one call) (*clientv3.TxnResponse, error) {
			cancel()
			<-release
			return fenceFirst(one)
		})
		if _, err := s.Switchover(ctx, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if cur.Check() == nil {
			t.Error("the term acts while it may be handed over")
		}
		if _, err := s.Switchover(t.Context(), ""); !errors.Is(err, coord.ErrNotActive) {
			t.Errorf("a second switchover at the same time: %v", err)
		}
		close(release)
		mustCommit(t, s, put("after", "")) // behind the batch that tells the term that it stands
		if err := cur.Check(); err != nil {
			t.Errorf("the term does not go on: %v", err)
		}
		c.Node(passive).SessionAfter(was)
	})
	t.Run("answer lost", func(t *testing.T) {
		was := c.Node(passive).Session().Epoch()
		c.Await(active, "session of the successor", func(s coord.Snapshot) bool { kv, _ := s.Get("sessions/" + passive); return kv.Mod == was })
		onHandover(lose)
		if to, err := s.Switchover(t.Context(), ""); err != nil || to != passive {
			t.Errorf("got %s, %v", to, err)
		}
		awaitTerm(c, active, passive, cur.Epoch())
	})
}

func TestSwitchoverNeedsAnother(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	awaitActive(c, "c1", "c1")
	s := c.Node("c1").Session()
	if _, err := s.Switchover(t.Context(), ""); !errors.Is(err, coord.ErrNoSuccessor) {
		t.Errorf("got %v", err)
	}
	if s.Mode() != coord.ModeActive {
		t.Error("the term does not go on")
	}
}

func TestLead(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	s := c.Node("c1").Session()
	cl := client(t, c.Node("c1").Member)
	type run struct {
		ctx  context.Context
		term *coord.Term
	}
	began, release := make(chan run), make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		over <- s.Lead(ctx, func(ctx context.Context, t *coord.Term) error {
			began <- run{ctx, t}
			return <-release
		})
	}()
	first := <-began
	if first.term.Check() != nil || first.ctx.Err() != nil {
		t.Error("a term begins that may not act")
	}
	if _, err := cl.Delete(t.Context(), "active"); err != nil {
		t.Fatal(err)
	}
	<-first.ctx.Done()
	if err := context.Cause(first.ctx); !errors.Is(err, coord.ErrNotActive) {
		t.Errorf("the term ended with %v", err)
	}
	epoch := awaitTerm(c, "c1", "c1", first.term.Epoch())
	select {
	case <-began:
		t.Fatal("two at a time")
	default:
	}
	release <- errors.New("of a term that is over: does not matter")
	second := <-began
	if second.term.Epoch() != epoch {
		t.Errorf("term %d, want %d", second.term.Epoch(), epoch)
	}
	failed := errors.New("failed")
	release <- failed
	if err := <-over; !errors.Is(err, failed) {
		t.Errorf("Lead returned %v", err)
	}
	cancel()
	if err := s.Lead(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Lead without a term returned %v", err)
	}
}

func TestGoodbyeHandsTheTermOver(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	for range 2 {
		passive := other(active)
		epoch := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
		leadRaft(t, c, active)
		c.Stop(nil, active)
		snap := c.Await(passive, "the next term", func(s coord.Snapshot) bool { return begun(s) == passive && term(s) > epoch })
		if has(snap, "losses/"+active) || has(snap, "sessions/"+active) {
			t.Error("a goodbye was taken for a loss, or the session is still there")
		}
		c.Run(active).Session()
		active = passive
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	leadRaft(t, c, active)
	epoch := c.Node(active).Session().Epoch()
	s := c.Node(passive).Session()
	c.Stop(&coord.HoldRecord{By: "me", Why: "test"}, active)

	// Everybody sees that the node is gone, raft goes on at once, and still
	// nobody takes over: not by the loss, not by a campaign.
	stays := func() {
		t.Helper()
		for i := range 3 { // each wakes the campaign
			pauseNode(t, s, passive, i%2 == 0)
		}
		mustCommit(t, s, put("x", ""))
		snap := c.Await(passive, "own writes", func(s coord.Snapshot) bool { return has(s, "x") })
		rec := value[coord.ActiveRecord](snap, "active")
		if kv, _ := snap.Get("sessions/" + active); kv.Mod != epoch || rec.Node != active || rec.Epoch != epoch || has(snap, "losses/"+active) {
			t.Errorf("session %d of %d, active is %+v", kv.Mod, epoch, rec)
		}
	}
	stays()
	node := func() coord.NodeStatus {
		nodes := c.Node(passive).Member.Nodes()
		return nodes[slices.IndexFunc(nodes, func(n coord.NodeStatus) bool { return n.Name == active })]
	}
	if n := node(); n.Mode != coord.ModeOffline || n.Held == nil || n.Held.By != "me" || n.Unready == "" {
		t.Errorf("%+v: want offline and held", n)
	}
	if _, err := s.Order(t.Context(), coord.Order{ID: "1", Node: active}); !errors.Is(err, coord.ErrOffline) {
		t.Errorf("order to a node that is held: %v", err)
	}

	// It comes back and is Active again, if nobody took the term.
	c.Run(active).SessionAfter(epoch)
	if got := awaitActive(c, passive, "c1", "c2"); got != active && got != passive {
		t.Errorf("%s is Active", got)
	}
}

func TestTakeHeldTerm(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	for _, to := range []string{"named", ""} {
		active := awaitActive(c, "w1", "c1", "c2")
		passive := other(active)
		s := c.Node(passive).Session()
		if err := s.TakeHeldTerm(t.Context(), passive); !errors.Is(err, coord.ErrNotActive) {
			t.Errorf("nothing is held: %v", err)
		}
		epoch := term(c.Await(passive, "term", func(s coord.Snapshot) bool { return begun(s) == active }))
		c.Stop(&coord.HoldRecord{By: "me"}, active)
		c.Await(passive, "hold", func(s coord.Snapshot) bool { return has(s, "hold/"+active) })
		if err := s.TakeHeldTerm(t.Context(), "w1"); !errors.Is(err, coord.ErrNoSuccessor) {
			t.Errorf("a watch takes the term: %v", err)
		}
		if to != "" {
			to = passive
		}
		if err := s.TakeHeldTerm(t.Context(), to, coord.Put("audit", nil)); err != nil {
			t.Fatal(err)
		}
		awaitTerm(c, passive, passive, epoch)
		snap := c.Node(passive).Member.View().Snapshot()
		if has(snap, "hold/"+active) || has(snap, "sessions/"+active) || !has(snap, "audit") {
			t.Error("hold or session are still there, or the audit is not")
		}
		c.Run(active).Session()
	}
}

// A hold is said by a node that is about to take the term: nobody could end it.
func TestNoTermForWhoLeavesWithHold(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, change)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	s := c.Node(active).Session()
	epoch := s.Term().Epoch()
	all[active].set(func(one call) (*clientv3.TxnResponse, error) {
		if _, ok := one.puts("active"); ok {
			all[active].set(nil)
			if _, err := one.next(t.Context(), nil, []clientv3.Op{clientv3.OpPut("hold/"+passive, "{}")}, nil); err != nil {
				t.Error(err)
			}
		}
		return one.pass()
	})
	if to, err := s.Switchover(t.Context(), ""); !errors.Is(err, coord.ErrNoSuccessor) {
		t.Errorf("handed over to %s that had just left: %v", to, err)
	}
	// The same for a loss and for a campaign.
	c.Await(active, "hold", func(s coord.Snapshot) bool { return has(s, "hold/"+passive) })
	cl := client(t, c.Node("w1").Member)
	if _, err := cl.Delete(t.Context(), "active"); err != nil {
		t.Fatal(err)
	}
	awaitTerm(c, "w1", active, epoch)
}
