package coord_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uac/coord"
)

func TestOrders(t *testing.T) {
	t.Parallel()
	all, change := faulty()
	c := start(t, 2, 1, change)
	s := c.Node("c1").Session()
	var mu sync.Mutex
	var done []string // orders that were carried out
	blocked, release := make(chan struct{}), make(chan struct{})
	serve := func(s *coord.Session) {
		_ = s.ServeOrders(s.Context(), func(_ context.Context, o coord.Order, answer func(string)) (string, error) {
			mu.Lock()
			done = append(done, o.ID)
			mu.Unlock()
			switch o.Verb {
			case "fail":
				return "", errors.New("cannot")
			case "answer":
				answer("early")
				return "ignored", nil
			case "block":
				close(blocked)
				<-release
			}
			return "did " + o.Verb, nil
		})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Kill(c.Names()...)
	watch := c.Node("w1").Session()
	wg.Go(func() { serve(watch) })
	give := func(id, verb string) (coord.Order, error) {
		return s.Order(t.Context(), coord.Order{ID: id, Node: "w1", Verb: verb, By: "me"}, coord.Put("audit/"+id, nil))
	}
	want := func(o coord.Order, err error, result, failure string) {
		t.Helper()
		if err != nil || !o.Done || o.Result != result || o.Error != failure {
			t.Errorf("%+v, %v; want result %q, error %q", o, err, result, failure)
		}
	}
	o, err := give("1", "go")
	want(o, err, "did go", "")
	o, err = give("2", "fail")
	want(o, err, "", "cannot")
	o, err = give("3", "answer")
	want(o, err, "early", "")

	// The answer to the giving is lost, and the node has carried it out before
	// that is known.
	all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if _, ok := one.puts("orders/w1/4"); !ok {
			return one.pass()
		}
		all["c1"].set(nil)
		resp, err := one.apply()
		if err != nil {
			return resp, err
		}
		c.Await("w1", "order 4 done", func(s coord.Snapshot) bool { return value[coord.Order](s, "orders/w1/4").Done })
		return nil, context.DeadlineExceeded
	})
	o, err = give("4", "go")
	want(o, err, "did go", "")

	for i := range 4 { // at once
		wg.Go(func() {
			o, err := give(fmt.Sprint(10+i), "go")
			want(o, err, "did go", "")
		})
	}
	o, err = give("20", "go")
	want(o, err, "did go", "")
	snap := c.Await("c1", "answered orders go", func(s coord.Snapshot) bool {
		for range s.Range("orders/") {
			return false
		}
		return true
	})
	if !has(snap, "audit/4") {
		t.Error("no audit")
	}

	// The node is declared lost before it answers, and lives.
	lost := make(chan error, 1)
	go func() {
		_, err := give("30", "block")
		lost <- err
	}()
	<-blocked
	loss := fmt.Sprintf(`{"node": "w1", "epoch": %d, "evidence": "c1: silence"}`, watch.Epoch())
	if _, err := client(t, c.Node("c1").Member).Txn(t.Context()).Then(
		clientv3.OpDelete("sessions/w1"), clientv3.OpPut("losses/w1", loss)).Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-lost; !errors.Is(err, coord.ErrOrderLost) {
		t.Errorf("got %v", err)
	}
	close(release)
	// Its next session obeys none of the orders that were for the one before.
	next := c.Node("w1").SessionAfter(watch.Epoch())
	wg.Go(func() { serve(next) })
	c.Await("c1", "the new session", func(s coord.Snapshot) bool { return coord.SessionEpoch(s, "w1") == next.Epoch() })
	o, err = give("31", "go")
	want(o, err, "did go", "")
	c.Await("c1", "the old order goes", func(s coord.Snapshot) bool { return !has(s, "orders/w1/30") })

	mu.Lock()
	slices.Sort(done)
	if diff := cmp.Diff([]string{"1", "10", "11", "12", "13", "2", "20", "3", "30", "31", "4"}, done); diff != "" {
		t.Errorf("carried out: %s", diff)
	}
	mu.Unlock()

	// Nobody there, nobody any more.
	if _, err := s.Order(t.Context(), coord.Order{ID: "40", Node: "nobody"}); !errors.Is(err, coord.ErrOffline) {
		t.Errorf("got %v", err)
	}
	all["c1"].set(func(one call) (*clientv3.TxnResponse, error) {
		if _, ok := one.puts("orders/c2/41"); ok {
			all["c1"].set(nil)
			return one.passAfterLossOf("sessions/c2")
		}
		return one.pass()
	})
	if _, err := s.Order(t.Context(), coord.Order{ID: "41", Node: "c2"}); !errors.Is(err, coord.ErrOffline) {
		t.Errorf("got %v", err)
	}
}

// The end of a process is told from the loss of a session.
func TestOrderToANodeThatEnds(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	s := c.Node("c1").Session()
	for name, end := range map[string]func(){
		"goodbye": func() { c.Stop(nil, "w1") },
		"crash":   func() { c.Kill("w1") },
	} {
		watch := c.Node("w1").Session()
		c.Await("c1", "the watch", func(snap coord.Snapshot) bool { return coord.SessionEpoch(snap, "w1") == watch.Epoch() })
		ended := make(chan error, 1)
		go func() {
			_, err := s.Order(t.Context(), coord.Order{ID: name, Node: "w1", Verb: "stop"})
			ended <- err
		}()
		c.Await("c1", "the order", func(snap coord.Snapshot) bool { return has(snap, "orders/w1/"+name) })
		end()
		if err := <-ended; !errors.Is(err, coord.ErrEnded) {
			t.Errorf("%s: got %v", name, err)
		}
		c.Run("w1").SessionAfter(watch.Epoch())
	}
}
