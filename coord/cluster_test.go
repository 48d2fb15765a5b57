package coord_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"uac/coord"
	"uac/coord/coordtest"
)

// quick makes a cluster that notices silence soon. Tests that are not about
// silence keep the defaults: a busy machine is silent at times.
func quick(c *coord.Config) {
	c.SilenceTimeout, c.JoinTimeout = 400*time.Millisecond, time.Second
	c.StallTimeout, c.Lease = 2*time.Second, 3*time.Second
}

// start runs a cluster whose members all have a session.
func start(t testing.TB, controllers, watches int, change ...func(*coord.Config)) *coordtest.Cluster {
	t.Helper()
	c := coordtest.Start(t, coordtest.Options{
		Controllers: controllers, Watches: watches, Sessions: true,
		Change: func(cfg *coord.Config) {
			for _, f := range change {
				f(cfg)
			}
		},
	})
	for _, name := range c.Names() {
		c.Node(name).Session()
	}
	return c
}

// value reads a key's JSON, the zero value if there is none.
func value[T any](s coord.Snapshot, key string) (v T) {
	if kv, ok := s.Get(key); ok {
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			panic(err)
		}
	}
	return v
}

func has(s coord.Snapshot, key string) bool { _, ok := s.Get(key); return ok }

// begun returns who has begun the present term, "" if nobody has yet.
func begun(s coord.Snapshot) string {
	kv, _ := s.Get("active")
	first := value[coord.TermRecord](s, "terms")
	if first.Epoch == 0 {
		rec, _ := s.Get("terms")
		first.Epoch = rec.Mod
	}
	if kv.Mod == 0 || first.Epoch != kv.Mod {
		return ""
	}
	return first.Node
}

// awaitActive waits, on the view of node, until one of names has begun the
// present term, and returns who.
func awaitActive(c *coordtest.Cluster, node string, names ...string) string {
	snap := c.Await(node, fmt.Sprintf("%s sees %v Active", node, names), func(s coord.Snapshot) bool {
		return slices.Contains(names, begun(s))
	})
	return begun(snap)
}

// other returns the other one of two controllers.
func other(name string) string {
	if name == "c1" {
		return "c2"
	}
	return "c1"
}

// awaitLoss waits until a loss of the node's session was decided.
func awaitLoss(c *coordtest.Cluster, on, node string, epoch int64) coord.LossRecord {
	snap := c.Await(on, fmt.Sprintf("%s sees the loss of %s", on, node), func(s coord.Snapshot) bool {
		return value[coord.LossRecord](s, "losses/"+node).Epoch >= epoch
	})
	return value[coord.LossRecord](snap, "losses/"+node)
}

// client talks to the etcd of a member past everything else.
func client(t testing.TB, m *coord.Member) *clientv3.Client {
	t.Helper()
	cl := v3client.New(coord.EtcdServer(m))
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func mustCommit(t testing.TB, s *coord.Session, tx coord.Tx) coord.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	res, err := s.Commit(ctx, tx)
	if err != nil {
		t.Fatalf("%v (%v)", err, s.Check())
	}
	return res
}

func put(key, value string) coord.Tx {
	return coord.Tx{Then: []coord.Write{coord.Put(key, []byte(value))}}
}

// leadRaft makes a member the leader of raft.
func leadRaft(t testing.TB, c *coordtest.Cluster, name string) {
	t.Helper()
	id := coord.EtcdServer(c.Node(name).Member).MemberID()
	for range 200 {
		leader := coord.EtcdServer(c.Node(name).Member).Leader()
		if leader == id {
			return
		}
		for _, other := range c.Names() {
			if n := c.Node(other); n != nil {
				if s := coord.EtcdServer(n.Member); s.MemberID() == leader {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					_ = s.MoveLeader(ctx, uint64(leader), uint64(id))
					cancel()
				}
			}
		}
	}
	t.Fatalf("%s does not become raft leader", name)
}

// raftLeader names the raft leader as a member sees it.
func raftLeader(c *coordtest.Cluster, on string) string {
	leader := coord.EtcdServer(c.Node(on).Member).Leader()
	for _, name := range c.Names() {
		if n := c.Node(name); n != nil && coord.EtcdServer(n.Member).MemberID() == leader {
			return name
		}
	}
	return ""
}

// faults stands between a member and its etcd.
type faults struct {
	mu sync.Mutex
	f  func(call) (*clientv3.TxnResponse, error)
}

// call is one transaction on its way.
type call struct {
	ctx       context.Context
	cmps      []clientv3.Cmp
	then, els []clientv3.Op
	next      coord.TxnFunc
}

// apply lets etcd apply it, whoever still waits.
func (c call) apply() (*clientv3.TxnResponse, error) {
	return c.next(context.WithoutCancel(c.ctx), c.cmps, c.then, c.els)
}

func (c call) pass() (*clientv3.TxnResponse, error) { return c.next(c.ctx, c.cmps, c.then, c.els) }

// passAfterLossOf passes the call on when a key has just been deleted.
func (c call) passAfterLossOf(key string) (*clientv3.TxnResponse, error) {
	var err error
	for range 100 { // what is proposed to a leader that has just died is lost
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), 100*time.Millisecond)
		_, err = c.next(ctx, nil, []clientv3.Op{clientv3.OpDelete(key)}, nil)
		cancel()
		if err == nil {
			return c.pass()
		}
	}
	return nil, err
}

// puts returns the value that the transaction puts to a key.
func (c call) puts(key string) (string, bool) {
	for _, op := range flatten(c.then) {
		if op.IsPut() && string(op.KeyBytes()) == key {
			return string(op.ValueBytes()), true
		}
	}
	return "", false
}

// deletes reports whether it deletes a key.
func (c call) deletes(key string) bool {
	return slices.ContainsFunc(flatten(c.then), func(op clientv3.Op) bool { return op.IsDelete() && string(op.KeyBytes()) == key })
}

func flatten(ops []clientv3.Op) []clientv3.Op {
	var all []clientv3.Op
	for _, op := range ops {
		if op.IsTxn() {
			_, then, _ := op.Txn()
			all = append(all, flatten(then)...)
		} else {
			all = append(all, op)
		}
	}
	return all
}

func (f *faults) set(fault func(call) (*clientv3.TxnResponse, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.f = fault
}

// wrap is for coord.WrapTxn.
func (f *faults) wrap(next coord.TxnFunc) coord.TxnFunc {
	return func(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
		f.mu.Lock()
		fault := f.f
		f.mu.Unlock()
		one := call{ctx, cmps, then, els, next}
		if fault == nil {
			return one.pass()
		}
		return fault(one)
	}
}

// faulty gives every member its own faults.
func faulty() (map[string]*faults, func(*coord.Config)) {
	all := map[string]*faults{}
	for _, name := range strings.Fields("c1 c2 c3 w1 w2") {
		all[name] = &faults{}
	}
	return all, func(c *coord.Config) { coord.WrapTxn(c, all[c.Name].wrap) }
}

// lose applies a transaction and loses the answer.
func lose(c call) (*clientv3.TxnResponse, error) {
	if _, err := c.apply(); err != nil {
		return nil, err
	}
	return nil, context.DeadlineExceeded
}

func leaseHex(n int64) string { return fmt.Sprintf("%x", n) }

// until polls what gives no signal.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

// cutRaft cuts a member off from the raft of all others, or mends it.
func cutRaft(c *coordtest.Cluster, name string, cut bool) {
	s := coord.EtcdServer(c.Node(name).Member)
	for _, n := range c.Names() {
		if n == name || c.Node(n) == nil {
			continue
		}
		o := coord.EtcdServer(c.Node(n).Member)
		if cut {
			s.CutPeer(o.MemberID())
			o.CutPeer(s.MemberID())
		} else {
			s.MendPeer(o.MemberID())
			o.MendPeer(s.MemberID())
		}
	}
}

// isolate cuts a member off from all others, or mends it.
func isolate(c *coordtest.Cluster, name string, cut bool) {
	for _, n := range c.Names() {
		if n != name && cut {
			c.Cut(name, n)
		} else if n != name {
			c.Heal(name, n)
		}
	}
	cutRaft(c, name, cut)
}

func withRev(rev int64) []clientv3.OpOption { return []clientv3.OpOption{clientv3.WithRev(rev)} }
