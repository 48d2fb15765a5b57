package coord_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/coord"
	"uac/coord/coordtest"
)

func session(s coord.Snapshot, node string) int64 { return coord.SessionEpoch(s, node) }

func revision(s coord.Snapshot, key string) int64 {
	kv, _ := s.Get(key)
	return kv.Mod
}

func prefer(t testing.TB, s *coord.Session, node string) {
	t.Helper()
	if _, err := s.UpdateNode(t.Context(), node, func(r coord.NodeRecord) (coord.NodeRecord, error) {
		r.Preferred = true
		return r, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLossOfTheActive(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	for _, leader := range []string{"active", "passive", "w1"} {
		passive := other(active)
		s := c.Node(active).Session()
		awaitActive(c, active, active)
		leadRaft(t, c, map[string]string{"active": active, "passive": passive, "w1": "w1"}[leader])
		old, epoch := s.Term().Epoch(), s.Epoch()
		c.Kill(active)
		awaitTerm(c, passive, passive, old)
		awaitTerm(c, "w1", passive, old)
		rec := awaitLoss(c, "w1", active, epoch)
		agreed := []string{passive, "w1"}
		if diff := cmp.Diff(agreed, rec.Agreed); diff != "" || !rec.WasActive || rec.Successor != passive || rec.Epoch != epoch ||
			!slices.Contains(agreed, rec.Decider) || !strings.Contains(rec.Evidence, "refused") {
			t.Errorf("raft leader %s: %+v %s", leader, rec, diff)
		}
		snap := c.Node("w1").Member.View().Snapshot()
		if session(snap, active) != 0 {
			t.Error("the lost session is still there")
		}
		if lost, _ := snap.Get("losses/" + active); rec.Decider == passive {
			// It is Active with a term that it has begun, from one revision on.
			if now, first := revision(snap, "active"), revision(snap, "terms"); now != lost.Mod || first != lost.Mod {
				t.Errorf("decided at %d, the term is from %d and its first write from %d", lost.Mod, now, first)
			}
		}
		mustCommit(t, c.Node(passive).Session(), put("x", leader))
		if got := raftLeader(c, passive); got == active || got == "" {
			t.Errorf("raft leader is %q", got)
		}
		c.Run(active).SessionAfter(epoch)
		if got := awaitActive(c, active, "c1", "c2"); got != passive {
			t.Errorf("the return of %s moved the term to %s", active, got)
		}
		active = passive
	}
}

func TestLossOfTheWatchThatLeadsRaft(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	s := c.Node(active).Session()
	awaitActive(c, active, active)
	was := s.Term().Epoch()
	epoch := c.Node("w1").Session().Epoch()
	leadRaft(t, c, "w1")
	c.Kill("w1")
	mustCommit(t, s, put("x", ""))
	if rec := awaitLoss(c, active, "w1", epoch); rec.WasActive || rec.Successor != "" {
		t.Errorf("%+v", rec)
	}
	if tm := s.Term(); tm == nil || tm.Epoch() != was || tm.Check() != nil {
		t.Error("the loss of the watch touched the term")
	}
	c.Run("w1").SessionAfter(epoch) // needs nobody's help
}

func TestLossWithFiveMembers(t *testing.T) {
	t.Parallel()
	c := start(t, 3, 2)
	active := awaitActive(c, "w1", "c1", "c2", "c3")
	prefer(t, c.Node("w1").Session(), "c3")
	if active == "c3" {
		if _, err := c.Node("c3").Session().Switchover(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		active = awaitActive(c, "w1", "c1")
	}
	c.Await("w2", "preference", func(s coord.Snapshot) bool { return value[coord.NodeRecord](s, "nodes/c3").Preferred })

	// Two at once, one of them Active: each is decided by itself.
	e1, e2 := c.Node(active).Session().Epoch(), c.Node("w1").Session().Epoch()
	c.Kill(active, "w1")
	if rec := awaitLoss(c, "w2", active, e1); rec.Successor != "c3" || len(rec.Agreed) != 3 {
		t.Errorf("%+v: want three who agreed on c3", rec)
	}
	awaitLoss(c, "w2", "w1", e2)
	awaitActive(c, "w2", "c3")
	mustCommit(t, c.Node("c3").Session(), put("x", ""))
	snap := c.Await("w2", "writes of c3", func(s coord.Snapshot) bool { return has(s, "x") })
	if session(snap, active) != 0 || session(snap, "w1") != 0 {
		t.Error("a lost session is still there")
	}
	c.Run(active).SessionAfter(e1)
	c.Run("w1").SessionAfter(e2)

	// The Active and the one that would succeed it, at once.
	prefer(t, c.Node("w1").Session(), active)
	c.Await("w2", "preference", func(s coord.Snapshot) bool { return value[coord.NodeRecord](s, "nodes/"+active).Preferred })
	last := map[string]string{"c1": "c2", "c2": "c1"}[active]
	c.Kill("c3", active)
	awaitActive(c, "w1", last)
	mustCommit(t, c.Node(last).Session(), put("y", ""))
}

func TestBothControllersRestart(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	awaitActive(c, "w1", "c1", "c2")
	e1, e2 := c.Node("c1").Session().Epoch(), c.Node("c2").Session().Epoch()
	was := term(c.Node("w1").Member.View().Snapshot())
	c.Kill("c1", "c2")
	c.Run("c1")
	c.Run("c2")
	c.Node("c1").SessionAfter(e1)
	c.Node("c2").SessionAfter(e2)
	for _, name := range c.Names() {
		c.Await(name, "a new term", func(s coord.Snapshot) bool { return term(s) > was && begun(s) != "" })
	}
}

func TestQuickRestartOfTheActive(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	for range 3 {
		active := awaitActive(c, "w1", "c1", "c2")
		s := c.Node(active).Session()
		was := term(c.Await("w1", "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
		c.Kill(active)
		n := c.Run(active) // at once
		if _, err := s.Commit(t.Context(), put("late", "")); !errors.Is(err, coord.ErrFenced) {
			t.Errorf("the former process: %v", err)
		}
		n.SessionAfter(s.Epoch())
		for _, name := range c.Names() {
			c.Await(name, "a new term", func(s coord.Snapshot) bool { return term(s) > was && begun(s) != "" })
		}
	}
}

func TestNobodyLeftToSucceed(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 2)
	awaitActive(c, "w1", "c1")
	epoch := c.Node("c1").Session().Epoch()
	was := term(c.Node("w1").Member.View().Snapshot())
	c.Kill("c1")
	if rec := awaitLoss(c, "w1", "c1", epoch); !rec.WasActive || rec.Successor != "" {
		t.Errorf("%+v", rec)
	}
	if snap := c.Node("w1").Member.View().Snapshot(); has(snap, "active") || has(snap, "sessions/c1") {
		t.Error("the term names a session that is gone")
	}
	c.Run("c1").SessionAfter(epoch)
	awaitTerm(c, "w2", "c1", was)
}

func isLoss(one call, of string) bool {
	_, ok := one.puts("losses/" + of)
	return ok && one.deletes("sessions/"+of)
}

// In each case c1 is Active, c1 is killed and c2 decides; w1 may not.
func TestLossTransaction(t *testing.T) {
	t.Parallel()
	drop := func(call) (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded }
	all, change := faulty()
	c := start(t, 2, 1, change)
	each := map[string]struct {
		// first is what happens to the first loss transaction of the decider.
		first func(decider string, one call) (*clientv3.TxnResponse, error)
		// watch is what happens to those of the watch.
		watch func(call) (*clientv3.TxnResponse, error)
	}{
		"answer lost":   {func(_ string, one call) (*clientv3.TxnResponse, error) { return lose(one) }, drop},
		"never applied": {func(_ string, one call) (*clientv3.TxnResponse, error) { return drop(one) }, drop},
		"the decider is lost itself": {func(decider string, one call) (*clientv3.TxnResponse, error) {
			resp, err := one.passAfterLossOf("sessions/" + decider)
			if err == nil && resp.Succeeded {
				t.Error("a fenced member decided a loss")
			}
			return resp, err
		}, call.pass},
		"the term moved": {func(_ string, one call) (*clientv3.TxnResponse, error) {
			resp, err := one.passAfterLossOf("active")
			if err == nil && resp.Succeeded {
				t.Error("a loss was decided on an old state")
			}
			return resp, err
		}, drop},
		"it was a goodbye": {func(_ string, one call) (*clientv3.TxnResponse, error) {
			lost := "c1"
			if !isLoss(one, lost) {
				lost = "c2"
			}
			if _, err := one.next(t.Context(), nil, []clientv3.Op{clientv3.OpPut("hold/"+lost, "{}")}, nil); err != nil {
				return nil, err
			}
			resp, err := one.pass()
			if err == nil && resp.Succeeded {
				t.Error("a goodbye without fail-over was taken for a loss")
			}
			if _, err := one.next(t.Context(), nil, []clientv3.Op{clientv3.OpDelete("hold/" + lost)}, nil); err != nil {
				return nil, err
			}
			return resp, err
		}, drop},
	}
	for name, tc := range each {
		t.Run(name, func(t *testing.T) {
			active := awaitActive(c, "w1", "c1", "c2")
			decider := other(active)
			was := term(c.Await(decider, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
			epoch := c.Node(active).Session().Epoch()
			c.Node(decider).Session()
			n := 0
			all[decider].set(func(one call) (*clientv3.TxnResponse, error) {
				if !isLoss(one, active) {
					return one.pass()
				}
				if n++; n == 1 {
					return tc.first(decider, one)
				}
				return one.pass()
			})
			all["w1"].set(func(one call) (*clientv3.TxnResponse, error) {
				if isLoss(one, active) {
					return tc.watch(one)
				}
				return one.pass()
			})
			c.Kill(active)
			awaitTerm(c, "w1", decider, was)
			all["w1"].set(nil)
			all[decider].set(nil)
			awaitLoss(c, "w1", active, epoch)
			if c.Node(decider).Session(); n == 0 {
				t.Error("the decider sent nothing")
			}
			c.Run(active).SessionAfter(epoch)
		})
	}
}

// The answer to the decision is lost, as it is when raft elects a leader meanwhile. It
// was this member's decision all the same, and is told.
func TestLossIsKnownWithoutItsAnswer(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	decided := make(chan string, 10)
	c := coordtest.Start(t, coordtest.Options{
		Controllers: 2, Watches: 1, Sessions: true, Change: change,
		Point: func(node string, p coord.Point) {
			if p == "loss-decided" {
				decided <- node
			}
		},
	})
	active := awaitActive(c, "w1", "c1", "c2")
	decider := other(active)
	c.Node(decider).Session()
	for name, answer := range map[string]func(call) (*clientv3.TxnResponse, error){
		decider: lose,
		"w1":    func(call) (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded },
	} {
		all[name].set(func(one call) (*clientv3.TxnResponse, error) {
			if isLoss(one, active) {
				return answer(one)
			}
			return one.pass()
		})
	}
	c.Kill(active)
	select {
	case node := <-decided:
		if node != decider {
			t.Errorf("%s says that it decided, %s did", node, decider)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody knows who decided")
	}
}

// The suspect's next process has opened a session when the decision about the former
// one arrives.
func TestLateLossOfAFormerSession(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, change)
	active := awaitActive(c, "w1", "c1", "c2")
	decider := other(active)
	c.Node(decider).Session()
	all["w1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if isLoss(one, active) {
			return nil, context.DeadlineExceeded
		}
		return one.pass()
	})
	applied := make(chan bool, 1)
	began, ended := make(chan struct{}), make(chan struct{})
	begin, end := sync.OnceFunc(func() { close(began) }), sync.OnceFunc(func() { close(ended) })
	all[decider].set(func(one call) (*clientv3.TxnResponse, error) {
		if !isLoss(one, active) {
			// Nor may it campaign for the term, which the session below makes vacant.
			select {
			case <-began:
				<-ended
			default:
			}
			return one.pass()
		}
		begin()
		defer end()
		if _, err := one.next(t.Context(), nil, []clientv3.Op{clientv3.OpPut("sessions/"+active, "{}")}, nil); err != nil {
			return nil, err
		}
		// However long that takes: raft may have to elect a leader.
		resp, err := one.next(t.Context(), one.cmps, one.then, one.els)
		if err == nil {
			select {
			case applied <- resp.Succeeded:
			default:
			}
		}
		return resp, err
	})
	c.Kill(active)
	if <-applied {
		t.Error("the loss of a session removed the one after it")
	}
}

// The successor's session ends between the choice and the decision.
func TestSuccessorLeavesBeforeTheDecision(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, change)
	active := awaitActive(c, "w1", "c1", "c2")
	succ := other(active)
	was := term(c.Await("w1", "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
	epoch := c.Node(succ).Session().Epoch()
	all[succ].set(func(one call) (*clientv3.TxnResponse, error) {
		if isLoss(one, active) { // only the watch decides
			return nil, context.DeadlineExceeded
		}
		return one.pass()
	})
	n := 0
	all["w1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if !isLoss(one, active) {
			return one.pass()
		}
		if n++; n > 1 {
			return one.pass()
		}
		resp, err := one.passAfterLossOf("sessions/" + succ)
		if err == nil && resp.Succeeded {
			t.Error("the term was given to a session that is gone")
		}
		return resp, err
	})
	c.Kill(active)
	c.Node(succ).SessionAfter(epoch)
	awaitTerm(c, "w1", succ, was)
}

// The old Active is cut off from everybody: it stops before anybody takes over,
// and what it had under way is refused when it is back.
func TestIsolatedActive(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, quick, change)
	for _, leads := range []bool{true, false} {
		active := awaitActive(c, "w1", "c1", "c2")
		passive := other(active)
		s := c.Node(active).Session()
		awaitActive(c, active, active)
		tm := s.Term()
		if leads {
			leadRaft(t, c, active)
		} else {
			leadRaft(t, c, passive)
		}
		// Both proposals of the take-over wait until the old Active was asked.
		check := func(one call) (*clientv3.TxnResponse, error) {
			if isLoss(one, active) && tm.Check() == nil {
				t.Error("somebody takes over while the old Active may act")
			}
			return one.pass()
		}
		all[passive].set(check)
		all["w1"].set(check)
		isolate(c, active, true)
		late := make(chan error, 1)
		go func() {
			_, err := s.Commit(context.WithoutCancel(t.Context()), coord.Tx{
				If: []coord.Cond{tm.Guard()}, Then: []coord.Write{coord.Put("late", nil)},
			})
			late <- err
		}()
		awaitTerm(c, passive, passive, tm.Epoch())
		if tm.Check() == nil || s.Check() == nil || s.Mode() != coord.ModeOffline {
			t.Error("the old Active may still act")
		}
		isolate(c, active, false)
		if err := <-late; !errors.Is(err, coord.ErrFenced) {
			t.Errorf("what the old Active had under way: %v", err)
		}
		c.Node(active).SessionAfter(s.Epoch())
		c.Await(active, "the new term", func(s coord.Snapshot) bool { return begun(s) == passive })
		if has(c.Node(active).Member.View().Snapshot(), "late") {
			t.Error("the old Active wrote after its loss")
		}
		all[passive].set(nil)
		all["w1"].set(nil)
	}
}

func TestOneWitnessIsNoAgreement(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, quick)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	s := c.Node(active).Session()
	was := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
	c.Cut(active, passive)
	m := c.Node(passive).Member
	until(t, "evidence", func() bool { return coord.EvidenceOf(m, active) != "" })
	asked := coord.Questions(m)
	until(t, "the question to be repeated", func() bool { return coord.Questions(m) >= asked+5 })
	mustCommit(t, s, put("x", ""))
	snap := c.Await(passive, "the Active's writes", func(s coord.Snapshot) bool { return has(s, "x") })
	if term(snap) != was || session(snap, active) != s.Epoch() || s.Mode() != coord.ModeActive {
		t.Error("the term moved without a majority")
	}
	c.Heal(active, passive)
	until(t, "no evidence", func() bool { return coord.EvidenceOf(m, active) == "" })
}

// Survivors that cannot pulse each other agree on nothing, until the dead one's
// alive key has expired.
func TestSurvivorsThatCannotPulse(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, quick)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	s := c.Node(active).Session()
	c.Await("w1", "alive keys", func(s coord.Snapshot) bool {
		return has(s, "alive/"+active) && has(s, "alive/"+passive) && has(s, "alive/w1")
	})
	was := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
	c.Cut(passive, "w1")
	m := c.Node(passive).Member
	until(t, "silence", func() bool {
		return coord.EvidenceOf(m, "w1") != "" && coord.EvidenceOf(c.Node("w1").Member, passive) != ""
	})
	c.Kill(active)
	until(t, "evidence", func() bool {
		return coord.EvidenceOf(m, active) != "" && coord.EvidenceOf(c.Node("w1").Member, active) != ""
	})
	asked := coord.Questions(m)
	until(t, "the question to be repeated", func() bool { return coord.Questions(m) >= asked+3 })
	if snap := m.View().Snapshot(); has(snap, "alive/"+active) && term(snap) != was {
		t.Error("the term moved without an agreement")
	}
	rec := awaitLoss(c, passive, active, s.Epoch())
	if !strings.Contains(rec.Evidence, "alive expired") || has(m.View().Snapshot(), "alive/"+active) {
		t.Errorf("%+v: want it decided when the alive key had expired", rec)
	}
	c.Heal(passive, "w1")
	awaitTerm(c, "w1", passive, was)
}

func TestConfirmedFailover(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1, func(c *coord.Config) { c.Failover = coord.FailoverConfirm })
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	s := c.Node(passive).Session()
	epoch := c.Node(active).Session().Epoch()
	if _, err := s.ConfirmLost(t.Context(), active, "me", "why"); !errors.Is(err, coord.ErrOnline) {
		t.Errorf("confirmed the loss of a node that answers: %v", err)
	}
	if _, err := s.ConfirmLost(t.Context(), passive, "me", "why"); !errors.Is(err, coord.ErrOnline) {
		t.Errorf("a node confirmed its own loss: %v", err)
	}
	mustCommit(t, s, put("after", "")) // and shows it
	if has(c.Await(passive, "what was committed", func(s coord.Snapshot) bool { return has(s, "after") }), "confirms/"+passive) {
		t.Error("the refused word about itself waits for its next death")
	}
	was := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
	nodes := c.Node(passive).Member.Nodes()
	n := nodes[slices.IndexFunc(nodes, func(n coord.NodeStatus) bool { return n.Name == active })]
	if !strings.Contains(n.Unready, "confirm") || n.Successor != passive {
		t.Errorf("%+v: want to be told that an operator must confirm", n)
	}
	leadRaft(t, c, active)
	c.Kill(active)
	m := c.Node(passive).Member
	until(t, "evidence", func() bool { return coord.EvidenceOf(m, active) != "" })
	asked := coord.Questions(m)
	until(t, "the question to be repeated", func() bool { return coord.Questions(m) >= asked+3 })
	mustCommit(t, s, put("x", "")) // raft did not wait
	if snap := m.View().Snapshot(); term(snap) != was || session(snap, active) != epoch {
		t.Error("the loss was decided without a word of an operator")
	}
	said, err := s.ConfirmLost(t.Context(), active, "me", "burnt down", coord.Put("audit", nil))
	if err != nil || !strings.Contains(said, active) {
		t.Errorf("%q, %v", said, err)
	}
	awaitTerm(c, passive, passive, was)
	snap := m.View().Snapshot()
	if has(snap, "confirms/"+active) || !has(snap, "audit") || session(snap, active) != 0 {
		t.Error("the confirmation or the session is still there, or the audit is not")
	}
	c.Run(active).SessionAfter(epoch)

	if said, err := s.ConfirmLost(t.Context(), "nobody", "me", ""); !errors.Is(err, coord.ErrNoSuchNode) {
		t.Errorf("%q, %v", said, err)
	}
}

func TestConfirmLostEndsAHold(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	active := awaitActive(c, "w1", "c1", "c2")
	passive := other(active)
	s := c.Node(passive).Session()
	was := term(c.Await(passive, "the term", func(s coord.Snapshot) bool { return begun(s) == active }))
	c.Stop(&coord.HoldRecord{By: "me"}, active)
	c.Await(passive, "hold", func(s coord.Snapshot) bool { return has(s, "hold/"+active) })
	if _, err := s.ConfirmLost(t.Context(), active, "me", "gone for good"); err != nil {
		t.Fatal(err)
	}
	snap := c.Await(passive, "a new term", func(s coord.Snapshot) bool { return begun(s) == passive && term(s) > was })
	if has(snap, "hold/"+active) || session(snap, active) != 0 {
		t.Error("hold or session are still there")
	}
	if said, err := s.ConfirmLost(t.Context(), active, "me", ""); err != nil || !strings.Contains(said, "nothing") {
		t.Errorf("%q, %v", said, err)
	}
}

func TestRemoveNode(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, coordtest.Options{Controllers: 2, Watches: 1, Sessions: true})
	s := c.Node("c1").Session()
	epoch := c.Node("c2").Session().Epoch()
	c.Await("c1", "both", func(s coord.Snapshot) bool { return has(s, "nodes/c1") && has(s, "nodes/c2") })
	for _, name := range []string{"c1", "c2"} {
		if err := s.RemoveNode(t.Context(), name); !errors.Is(err, coord.ErrOnline) {
			t.Errorf("removed %s: %v", name, err)
		}
	}
	if err := s.RemoveNode(t.Context(), "nobody"); !errors.Is(err, coord.ErrNoSuchNode) {
		t.Errorf("got %v", err)
	}
	c.Kill("c2")
	awaitLoss(c, "c1", "c2", epoch)
	if err := s.RemoveNode(t.Context(), "c2", coord.Put("audit", nil)); err != nil {
		t.Fatal(err)
	}
	snap := c.Await("c1", "audit", func(s coord.Snapshot) bool { return has(s, "audit") })
	if has(snap, "nodes/c2") || has(snap, "commit/c2") {
		t.Error("it is still there")
	}
	c.Run("c2").SessionAfter(epoch) // comes back as new
	c.Await("c1", "c2", func(s coord.Snapshot) bool { return has(s, "nodes/c2") })
}
