package coord

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// startTestEtcd runs a cluster of one, without a member around it.
func startTestEtcd(t testing.TB) *etcd {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Name, cfg.Role, cfg.Cluster, cfg.DataDir = "c1", RoleController, "test", t.TempDir()
	cfg.Peers = []Peer{{Name: "c1", Role: RoleController, Raft: "127.0.0.1:0", Link: "127.0.0.1:0"}}
	cfg.QuotaBytes = 64 << 20
	e, err := startEtcd(cfg, nil, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.stop()
		<-e.drained
	})
	<-e.ready()
	return e
}

// call is one transaction on its way to etcd.
type call struct {
	ctx  context.Context
	cmps []clientv3.Cmp
	then []clientv3.Op
	els  []clientv3.Op
	next txnFunc
}

// apply lets etcd apply the transaction, whoever still waits for it.
func (c call) apply() (*clientv3.TxnResponse, error) {
	return c.next(context.WithoutCancel(c.ctx), c.cmps, c.then, c.els)
}

// arrive applies a transaction that was on its way for long.
func (c call) arrive(t *testing.T, want bool) {
	t.Helper()
	resp, err := c.apply()
	if err != nil {
		t.Error(err)
	} else if resp.Succeeded != want {
		t.Errorf("the late copy was applied: %v, want %v", resp.Succeeded, want)
	}
}

// puts reports whether the transaction would put this key.
func (c call) puts(key string) bool {
	return slices.ContainsFunc(c.then, func(op clientv3.Op) bool { return putsKey(op, key) })
}

func putsKey(op clientv3.Op, key string) bool {
	if op.IsTxn() {
		_, then, _ := op.Txn()
		return slices.ContainsFunc(then, func(op clientv3.Op) bool { return putsKey(op, key) })
	}
	return op.IsPut() && string(op.KeyBytes()) == key
}

// testChain is a chain of its own on an etcd that others use as well.
type testChain struct {
	*chain
	t    *testing.T
	end  context.CancelFunc
	over chan error

	mu       sync.Mutex // guards the fields below
	fault    func(call) (*clientv3.TxnResponse, error)
	sent     []call
	distrust error
}

// newTestChain opens a session for the node without a member.
func newTestChain(t *testing.T, e *etcd, node string) *testChain {
	t.Helper()
	c := &testChain{t: t, over: make(chan error, 1)}
	server := &etcd{log: e.log, server: e.server, client: e.client, quiet: e.quiet}
	server.txn = func(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
		one := call{ctx, cmps, then, els, e.txn}
		c.mu.Lock()
		c.sent = append(c.sent, one)
		fault := c.fault
		c.mu.Unlock()
		if fault != nil {
			return fault(one)
		}
		return e.txn(ctx, cmps, then, els)
	}
	nonce := "nonce of " + node
	resp, err := e.client.Txn(t.Context()).Then(
		clientv3.OpPut(sessionKey(node), "{}"),
		clientv3.OpPut(commitKey(node), string(encode(chainRecord{Nonce: nonce})))).Commit()
	if err != nil {
		t.Fatal(err)
	}
	c.chain = &chain{
		etcd: server, log: slog.New(slog.DiscardHandler),
		session: sessionKey(node), epoch: resp.Header.Revision,
		key: commitKey(node), rev: resp.Header.Revision, nonce: nonce,
		trust: func() error {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.distrust
		},
		idle: time.Hour, wrote: func(time.Time) {}, point: func(Point) {}, wake: make(chan struct{}, 1),
		others: make(chan struct{}, 1),
	}
	return c
}

// start lets the chain work until the end of the test.
func (c *testChain) start() *testChain {
	ctx, end := context.WithCancel(c.t.Context())
	c.end = end
	go func() { c.over <- c.run(ctx) }()
	c.t.Cleanup(func() {
		end()
		<-c.over //nolint:errcheck // why it ended is not asked here
	})
	return c
}

// set replaces what happens to transactions on their way.
func (c *testChain) set(fault func(call) (*clientv3.TxnResponse, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = fault
}

func (c *testChain) setTrust(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.distrust = err
}

// once lets fault happen to the first transaction that puts the key.
func (c *testChain) once(key string, fault func(call) (*clientv3.TxnResponse, error)) {
	var done bool
	c.set(func(one call) (*clientv3.TxnResponse, error) {
		if done || !one.puts(key) {
			return one.next(one.ctx, one.cmps, one.then, one.els)
		}
		done = true
		return fault(one)
	})
}

// outcome of a transaction.
type outcome struct {
	Result
	err error
}

// later submits a transaction and returns where its outcome will be.
func (c *testChain) later(tx Tx) <-chan outcome {
	ch := make(chan outcome, 1)
	c.submit(tx, func(r Result, err error) { ch <- outcome{r, err} })
	return ch
}

func (c *testChain) do(tx Tx) outcome { return <-c.later(tx) }

func put(key, value string) Tx { return Tx{Then: []Write{Put(key, []byte(value))}} }

func (c *testChain) want(tx Tx, won bool) Result {
	c.t.Helper()
	o := c.do(tx)
	if o.err != nil || o.Won != won {
		c.t.Fatalf("got won %v, error %v; want won %v", o.Won, o.err, won)
	}
	return o.Result
}

func getKV(t testing.TB, e *etcd, key string) KV {
	t.Helper()
	kvs, _, err := e.get(t.Context(), 5*time.Second, key)
	if err != nil {
		t.Fatal(err)
	}
	return kvs[key]
}

func wantValue(t testing.TB, e *etcd, key, value string) {
	t.Helper()
	if got := string(getKV(t, e, key).Value); got != value {
		t.Errorf("%s is %q, want %q", key, got, value)
	}
}

// lost applies the transaction and loses the answer.
func lost(one call) (*clientv3.TxnResponse, error) {
	if _, err := one.apply(); err != nil {
		return nil, err
	}
	return nil, context.DeadlineExceeded
}

// A chain makes an empty batch when its own pause is over, or when others make
// theirs and half of it is over: all members wake up at the same moments.
func TestEmptyBatchesTogether(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	for _, tc := range []struct {
		name   string
		others time.Duration // when others have made theirs, 0 for never
		want   time.Duration // when this chain makes its first
	}{
		{"alone", 0, 900 * time.Millisecond},
		{"too early", 449 * time.Millisecond, 900 * time.Millisecond},
		{"together", 450 * time.Millisecond, 450 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestChain(t, e, strings.ReplaceAll(tc.name, " ", "_"))
			c.set(func(call) (*clientv3.TxnResponse, error) { // at once
				return &clientv3.TxnResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}, Succeeded: true}, nil
			})
			synctest.Test(t, func(t *testing.T) {
				ctx, end := context.WithCancel(t.Context())
				defer synctest.Wait()
				defer end()
				wrote := make(chan time.Time, 1)
				c.wrote = func(at time.Time) { wrote <- at }
				c.idle, c.wake, c.others = 900*time.Millisecond, make(chan struct{}, 1), make(chan struct{}, 1)
				began := time.Now()
				go c.run(ctx) //nolint:errcheck // it ends with the test
				if tc.others != 0 {
					time.AfterFunc(tc.others, func() { signal(c.others) })
				}
				if got := (<-wrote).Sub(began); got != tc.want {
					t.Errorf("empty batch after %v, want %v", got, tc.want)
				}
			})
		})
	}
}

func TestOnlyBatches(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		keys []string
		want bool
	}{
		{[]string{"commit/c1"}, true},
		{[]string{"commit/c1", "commit/w1"}, true},
		{[]string{"commit/c1", "requests/x"}, false},
		{[]string{"sessions/c1", "commit/c1"}, false},
	} {
		var b Batch
		for _, k := range tc.keys {
			b.Changes = append(b.Changes, Change{KV: KV{Key: k}})
		}
		if got := onlyBatches(b); got != tc.want {
			t.Errorf("%q: %v", tc.keys, got)
		}
	}
}

func TestChain(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	each := func(name string, test func(t *testing.T, c *testChain)) {
		t.Run(name, func(t *testing.T) { test(t, newTestChain(t, e, strings.ReplaceAll(name, " ", "_"))) })
	}

	each("order and coalescing", func(t *testing.T, c *testChain) {
		var order []int
		var revs []int64
		all := make(chan struct{})
		for i := range 5 { // all wait before the chain starts: one batch
			c.submit(put("oc/x", fmt.Sprint(i)), func(r Result, err error) {
				if err != nil {
					t.Error(err)
				}
				order, revs = append(order, i), append(revs, r.Revision)
				if i == 4 {
					close(all)
				}
			})
		}
		c.start()
		<-all
		if diff := cmp.Diff([]int{0, 1, 2, 3, 4}, order); diff != "" {
			t.Error(diff)
		}
		kv := getKV(t, e, "oc/x")
		if string(kv.Value) != "4" || kv.Create != kv.Mod || kv.Mod != revs[0] || revs[0] != revs[4] {
			t.Errorf("%+v at %v: want one put of the last value", kv, revs)
		}
		if n := len(c.sent); n != 1 {
			t.Errorf("%d transactions, want 1", n)
		}
	})

	each("put and delete coalesce in order", func(t *testing.T, c *testChain) {
		first, second := c.later(put("pd/x", "1")), c.later(Tx{Then: []Write{Del("pd/x")}})
		third, fourth := c.later(Tx{Then: []Write{Del("pd/y")}}), c.later(put("pd/y", "1"))
		c.start()
		for _, o := range []<-chan outcome{first, second, third, fourth} {
			if got := <-o; got.err != nil {
				t.Fatal(got.err)
			}
		}
		wantValue(t, e, "pd/x", "")
		wantValue(t, e, "pd/y", "1")
	})

	each("conditions win and lose", func(t *testing.T, c *testChain) {
		won := c.later(Tx{If: []Cond{Absent("cond/a")}, Then: []Write{Put("cond/a", []byte("1"))}})
		c.start()
		r := <-won
		if r.err != nil || !r.Won {
			t.Fatal(r)
		}
		c.want(Tx{If: []Cond{Absent("cond/a")}, Then: []Write{Put("cond/a", []byte("2"))}}, false)
		c.want(Tx{If: []Cond{ModIs("cond/a", r.Revision)}, Then: []Write{Put("cond/a", []byte("3")), Put("cond/b", nil)}}, true)
		c.want(Tx{If: []Cond{ModIsNot("cond/a", r.Revision)}, Then: []Write{Put("cond/c", nil), Del("cond/a")}}, true)
		c.want(Tx{If: []Cond{ModIsNot("cond/b", 0), Absent("cond/a")}, Then: []Write{Put("cond/d", nil)}}, true)
		wantValue(t, e, "cond/a", "")
	})

	each("a condition sees what earlier items wrote", func(t *testing.T, c *testChain) {
		first := c.later(put("sees/x", "1"))
		second := c.later(Tx{If: []Cond{Absent("sees/x")}, Then: []Write{Put("sees/y", nil)}})
		third := c.later(Tx{If: []Cond{Absent("sees/z")}, Then: []Write{Put("sees/z", nil)}})
		fourth := c.later(Tx{If: []Cond{Absent("sees/z")}, Then: []Write{Put("sees/u", nil)}})
		c.start()
		for i, want := range []bool{true, false, true, false} {
			if got := <-[]<-chan outcome{first, second, third, fourth}[i]; got.err != nil || got.Won != want {
				t.Errorf("item %d: %+v, want won %v", i, got, want)
			}
		}
	})

	each("answer lost", func(t *testing.T, c *testChain) {
		c.once("al/x", lost)
		c.start()
		r := c.want(put("al/x", "1"), true)
		if kv := getKV(t, e, "al/x"); kv.Create != kv.Mod || kv.Mod != r.Revision {
			t.Errorf("%+v, answered with revision %d: want one put there", kv, r.Revision)
		}
		c.want(put("al/x", "2"), true)
	})

	each("never applied", func(t *testing.T, c *testChain) {
		c.once("na/x", func(call) (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded })
		c.start()
		c.want(put("na/x", "1"), true)
		wantValue(t, e, "na/x", "1")
	})

	// The chain key is there for this: the first copy of a batch leaves a frozen
	// raft leader after its repetition and a newer batch have been applied.
	each("applied late after repetition", func(t *testing.T, c *testChain) {
		var late call
		c.once("late/x", func(one call) (*clientv3.TxnResponse, error) {
			late = one
			return nil, context.DeadlineExceeded
		})
		c.start()
		c.want(put("late/x", "1"), true)
		c.want(put("late/x", "2"), true)
		late.arrive(t, false)
		wantValue(t, e, "late/x", "2")
		c.want(put("late/x", "3"), true)
	})

	each("applied late between repetition and its answer", func(t *testing.T, c *testChain) {
		var first call
		n := 0
		c.set(func(one call) (*clientv3.TxnResponse, error) {
			if n++; n == 1 {
				first = one
				return nil, context.DeadlineExceeded
			} else if n == 2 {
				first.arrive(t, true)
			}
			return one.next(one.ctx, one.cmps, one.then, one.els)
		})
		c.start()
		r := c.want(put("between/x", "1"), true)
		if kv := getKV(t, e, "between/x"); kv.Mod != r.Revision {
			t.Errorf("put at %d, answered with %d", kv.Mod, r.Revision)
		}
		c.want(put("between/x", "2"), true)
	})

	// A claim is repeated after an unknown outcome. Meanwhile somebody else has
	// claimed, and then the first copy was applied: the batch succeeded, the
	// claim in it lost.
	each("nested item lost in an earlier copy", func(t *testing.T, c *testChain) {
		c.once("claim", func(one call) (*clientv3.TxnResponse, error) {
			if _, err := e.client.Put(t.Context(), "claim", "of another"); err != nil {
				return nil, err
			}
			return lost(one)
		})
		claim := c.later(Tx{If: []Cond{Absent("claim")}, Then: []Write{Put("claim", []byte("mine"))}})
		beside := c.later(put("claim/beside", "1"))
		c.start()
		if got := <-claim; got.err != nil || got.Won {
			t.Errorf("claim: %+v, want lost", got)
		}
		if got := <-beside; got.err != nil || !got.Won {
			t.Errorf("item beside it: %+v", got)
		}
		wantValue(t, e, "claim", "of another")
		wantValue(t, e, "claim/beside", "1")
	})

	each("nested items won and lost in an earlier copy", func(t *testing.T, c *testChain) {
		if _, err := e.client.Put(t.Context(), "nested/taken", ""); err != nil {
			t.Fatal(err)
		}
		c.once("nested/free", lost)
		var got []<-chan outcome
		for _, key := range []string{"nested/taken", "nested/free", "nested/more"} {
			got = append(got, c.later(Tx{If: []Cond{Absent(key)}, Then: []Write{Put(key, nil)}}))
		}
		c.start()
		for i, want := range []bool{false, true, true} {
			if o := <-got[i]; o.err != nil || o.Won != want {
				t.Errorf("item %d: %+v, want won %v", i, o, want)
			}
		}
	})

	// An order is answered by overwriting its key at once: that must not look as
	// if it had never been given.
	each("created key changed by somebody else", func(t *testing.T, c *testChain) {
		c.once("order", func(one call) (*clientv3.TxnResponse, error) {
			if _, err := one.apply(); err != nil {
				return nil, err
			}
			_, err := e.client.Put(t.Context(), "order", "done")
			return nil, errors.Join(err, context.DeadlineExceeded)
		})
		c.start()
		c.want(Tx{If: []Cond{Absent("order")}, Then: []Write{Put("order", nil)}}, true)
	})

	each("refusal hits only the culprit", func(t *testing.T, c *testChain) {
		var got []<-chan outcome
		for i := range 9 {
			tx := put(fmt.Sprintf("culprit/%d", i), "1")
			if i == 6 {
				tx = put(c.key, "etcd takes no key twice in one transaction")
			}
			got = append(got, c.later(tx))
		}
		c.start()
		for i, ch := range got {
			if o := <-ch; (i == 6) != errors.Is(o.err, ErrRefused) || i != 6 && o.err != nil {
				t.Errorf("item %d: %v", i, o.err)
			}
		}
		wantValue(t, e, "culprit/5", "1")
		wantValue(t, e, "culprit/7", "1")
		c.want(put("culprit/after", "1"), true)
	})

	each("an item too large for its batch goes alone", func(t *testing.T, c *testChain) {
		big := c.later(put("big/x", string(bytes.Repeat([]byte{'x'}, maxBatchBytes+1))))
		small := c.later(put("big/y", "1"))
		c.start()
		if a, b := <-big, <-small; a.err != nil || b.err != nil || a.Revision >= b.Revision {
			t.Errorf("%+v, %+v", a, b)
		}
	})

	each("overload is neither refusal nor applied", func(_ *testing.T, c *testChain) {
		n := 0
		c.set(func(one call) (*clientv3.TxnResponse, error) {
			if n++; n < 4 {
				return nil, rpctypes.ErrTooManyRequests
			}
			return one.next(one.ctx, one.cmps, one.then, one.els)
		})
		c.start()
		c.want(put("overload/x", "1"), true)
	})

	each("no space is unknown", func(t *testing.T, c *testChain) {
		c.once("nospace/x", func(one call) (*clientv3.TxnResponse, error) {
			if _, err := one.apply(); err != nil {
				return nil, err
			}
			return nil, rpctypes.ErrNoSpace // etcd applies, then complains
		})
		c.start()
		c.want(put("nospace/x", "1"), true)
		wantValue(t, e, "nospace/x", "1")
	})

	each("fenced", func(t *testing.T, c *testChain) {
		c.start()
		c.want(put("fenced/x", "1"), true)
		if _, err := e.client.Delete(t.Context(), c.session); err != nil {
			t.Fatal(err)
		}
		if o := c.do(put("fenced/x", "2")); !errors.Is(o.err, ErrFenced) {
			t.Fatalf("%+v, want fenced", o)
		}
		if err := <-c.over; !errors.Is(err, ErrFenced) {
			t.Errorf("run returned %v", err)
		}
		c.over <- nil
		wantValue(t, e, "fenced/x", "1")
		if o := c.do(put("fenced/x", "3")); !errors.Is(o.err, ErrFenced) {
			t.Errorf("after the end: %+v", o)
		}
	})

	each("fenced by a newer session of the same name", func(t *testing.T, c *testChain) {
		c.start()
		newer := newTestChain(t, e, "fenced_by_a_newer_session_of_the_same_name").start()
		newer.want(put("newer/x", "new"), true)
		if o := c.do(put("newer/x", "old")); !errors.Is(o.err, ErrFenced) {
			t.Errorf("%+v, want fenced", o)
		}
		wantValue(t, e, "newer/x", "new")
	})

	// The chain's first revision and its nonce come from the transaction that
	// opened the session. A batch of the former run that is applied late must
	// not pass for one of this run, although it carries the same number.
	each("late batch of the former run", func(t *testing.T, c *testChain) {
		var late call
		c.later(put("former/x", "old"))
		ctx, end := context.WithCancel(t.Context())
		c.set(func(one call) (*clientv3.TxnResponse, error) { // the process ends here
			late = one
			end()
			return nil, context.Canceled
		})
		if err := c.run(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		next := newTestChain(t, e, "late_batch_of_the_former_run")
		late.arrive(t, false)
		next.start().want(put("former/y", "new"), true)
		wantValue(t, e, "former/x", "")
		wantValue(t, e, "former/y", "new")
	})

	each("chain key of somebody else", func(t *testing.T, c *testChain) {
		c.start()
		if _, err := e.client.Put(t.Context(), c.key, string(encode(chainRecord{Nonce: "another", N: 1}))); err != nil {
			t.Fatal(err)
		}
		if o := c.do(put("else/x", "1")); !errors.Is(o.err, ErrFenced) {
			t.Errorf("%+v, want fenced", o)
		}
		wantValue(t, e, "else/x", "")
	})

	each("without trust only empty batches", func(t *testing.T, c *testChain) {
		c.setTrust(ErrNoTrust)
		c.idle = time.Millisecond
		var wrote sync.WaitGroup
		wrote.Add(3)
		left := 3
		c.wrote = func(time.Time) {
			if left--; left >= 0 {
				wrote.Done()
			}
		}
		o := c.later(put("trust/x", "1"))
		c.start()
		wrote.Wait()
		wantValue(t, e, "trust/x", "")
		select {
		case got := <-o:
			t.Fatalf("answered without trust: %+v", got)
		default:
		}
		c.setTrust(nil)
		if got := <-o; got.err != nil || !got.Won {
			t.Error(got)
		}
		wantValue(t, e, "trust/x", "1")
	})

	each("a repetition needs no trust", func(_ *testing.T, c *testChain) {
		c.once("rep/x", func(call) (*clientv3.TxnResponse, error) {
			c.setTrust(ErrNoTrust)
			return nil, context.DeadlineExceeded
		})
		c.start()
		c.want(put("rep/x", "1"), true)
	})

	each("the end answers what waits", func(t *testing.T, c *testChain) {
		c.setTrust(ErrNoTrust)
		o := c.later(put("end/x", "1"))
		c.start()
		c.end()
		if got := <-o; !errors.Is(got.err, ErrFenced) {
			t.Error(got)
		}
		if got := c.do(put("end/x", "2")); !errors.Is(got.err, ErrFenced) {
			t.Error(got)
		}
		wantValue(t, e, "end/x", "")
	})
}

func TestSubmitRefuses(t *testing.T) {
	t.Parallel()
	long := func(n int) []Write {
		var ws []Write
		for i := range n {
			ws = append(ws, Put(fmt.Sprintf("k%d", i), nil))
		}
		return ws
	}
	tests := map[string]struct {
		tx Tx
		ok bool
	}{
		"empty":                          {Tx{}, true},
		"plain":                          {put("a", "1"), true},
		"conditional":                    {Tx{If: []Cond{Absent("a")}, Then: []Write{Put("a", nil), Del("b")}}, true},
		"conditional without a write":    {Tx{If: []Cond{Absent("a")}}, false},
		"conditional that deletes first": {Tx{If: []Cond{Absent("a")}, Then: []Write{Del("b"), Put("a", nil)}}, false},
		"empty key":                      {put("", "1"), false},
		"key twice":                      {Tx{Then: []Write{Put("a", nil), Del("a")}}, false},
		"as long as may be":              {Tx{Then: long(maxTxOps)}, true},
		"too long":                       {Tx{Then: long(maxTxOps + 1)}, false},
		"too many with its conditions":   {Tx{If: []Cond{Absent("k0")}, Then: long(maxTxOps)}, false},
		"as large as may be":             {put("a", strings.Repeat("x", maxTxBytes-1)), true},
		"too large":                      {put("a", strings.Repeat("x", maxTxBytes)), false},
	}
	for name, tc := range tests {
		it := item{tx: tc.tx}
		if err := it.check(); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want ok %v", name, err, tc.ok)
		}
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	plain := func(keys ...string) Tx {
		var tx Tx
		for _, k := range keys {
			tx.Then = append(tx.Then, Put(k, nil))
		}
		return tx
	}
	// when compares key and writes keys.
	when := func(key string, keys ...string) Tx {
		tx := plain(keys...)
		tx.If = []Cond{Absent(key)}
		return tx
	}
	many := func(n int, tx Tx) []Tx { return slices.Repeat([]Tx{tx}, n) }
	tests := map[string]struct {
		txs  []Tx
		want int
	}{
		"one":                                 {[]Tx{plain("a")}, 1},
		"plain ones replace each other":       {[]Tx{plain("a"), plain("a", "b"), plain("b")}, 3},
		"conditions on other keys":            {[]Tx{plain("a"), when("b", "b"), when("c", "c")}, 3},
		"condition on a key written before":   {[]Tx{plain("a"), when("a", "b")}, 1},
		"condition on a key nested before":    {[]Tx{when("a", "a", "b"), when("b", "c")}, 1},
		"condition on a key that comes later": {[]Tx{when("a", "b"), plain("a")}, 2},
		"two with the same condition":         {[]Tx{when("a", "b"), when("a", "c")}, 2},
		"nested key that a plain one wrote":   {[]Tx{plain("a"), when("b", "a")}, 1},
		"plain key that a nested one wrote":   {[]Tx{when("b", "a"), plain("a")}, 1},
		"nested key twice":                    {[]Tx{when("b", "a"), when("c", "a")}, 1},
		"as many items as fit":                {many(maxBatchItems, plain("a")), maxBatchItems},
		"too many items":                      {many(maxBatchItems+1, plain("a")), maxBatchItems},
		"too many operations":                 {many(60, plain("a", "b", "c", "d", "e", "f", "g", "h")), maxBatchOps / 9},
		"too many bytes":                      {many(3, Tx{Then: []Write{Put("a", make([]byte, maxBatchBytes/2))}}), 1},
		"a large one goes, but alone":         {many(2, Tx{Then: []Write{Put("a", make([]byte, 2*maxBatchBytes))}}), 1},
	}
	for name, tc := range tests {
		if got := cut(items(t, tc.txs...)); got != tc.want {
			t.Errorf("%s: cut after %d, want %d", name, got, tc.want)
		}
	}
}

func items(t rapid.TB, txs ...Tx) []item {
	var its []item
	for _, tx := range txs {
		it := item{tx: tx}
		if err := it.check(); err != nil {
			t.Fatal(err)
		}
		its = append(its, it)
	}
	return its
}

func drawTx(t *rapid.T) Tx {
	key := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	var tx Tx
	for _, k := range rapid.SliceOfNDistinct(key, 1, 3, rapid.ID).Draw(t, "writes") {
		tx.Then = append(tx.Then, Write{Key: k, Value: []byte(rapid.StringN(0, 3, -1).Draw(t, "value")), Delete: rapid.Bool().Draw(t, "delete")})
	}
	for _, k := range rapid.SliceOfN(key, 0, 2).Draw(t, "conditions") {
		tx.If = append(tx.If, Cond{key: k, equal: rapid.Bool().Draw(t, "equal")})
	}
	if len(tx.If) > 0 {
		tx.Then[0].Delete = false
	}
	return tx
}

// What cut puts into one batch means the same as one after the other: this is
// etcd's way to apply a batch against a map.
func TestBatchMeansTheSameAsSequence(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		store := map[string]string{"b": "old"}
		sequence := map[string]string{"b": "old"}
		holds := func(in map[string]string, conds []Cond) bool {
			for _, c := range conds {
				if _, there := in[c.key]; there == c.equal { // all compare with revision 0
					return false
				}
			}
			return true
		}
		write := func(in map[string]string, w Write) {
			if w.Delete {
				delete(in, w.Key)
			} else {
				in[w.Key] = string(w.Value)
			}
		}
		txs := rapid.SliceOfN(rapid.Custom(drawTx), 1, 12).Draw(t, "txs")
		queue := items(t, txs...)
		for len(queue) > 0 {
			n := cut(queue)
			if n == 0 {
				t.Fatal("cut makes no progress")
			}
			batch := queue[:n]
			queue = queue[n:]
			c := &chain{key: "chain"}
			then, at, witness := c.operations(batch)
			// etcd judges all nested conditions first, and refuses a key twice.
			won := make([]bool, len(batch))
			seen := map[string]bool{}
			twice := func(key string) {
				if seen[key] {
					t.Fatalf("key %s twice", key)
				}
				seen[key] = true
			}
			conditional := 0
			for i, it := range batch {
				if at[i] >= 0 {
					won[i] = holds(store, it.tx.If)
					if !then[at[i]].IsTxn() || witness[conditional] != it.tx.Then[0].Key {
						t.Fatalf("item %d is not where it should be", i)
					}
					conditional++
				}
			}
			for _, op := range then {
				if !op.IsTxn() {
					twice(string(op.KeyBytes()))
					write(store, Write{Key: string(op.KeyBytes()), Value: op.ValueBytes(), Delete: op.IsDelete()})
				}
			}
			for i, it := range batch {
				if at[i] < 0 {
					continue
				}
				for _, w := range it.tx.Then {
					twice(w.Key)
					if won[i] {
						write(store, w)
					}
				}
			}
			for i, it := range batch {
				ok := holds(sequence, it.tx.If)
				if ok {
					for _, w := range it.tx.Then {
						write(sequence, w)
					}
				}
				if conditional := at[i] >= 0; conditional && ok != won[i] {
					t.Fatalf("item %d won %v in the batch, %v in sequence", i, won[i], ok)
				}
			}
		}
		delete(store, "chain")
		if diff := cmp.Diff(sequence, store); diff != "" {
			t.Fatal(diff)
		}
	})
}

// Whatever happens to its transactions on their way, a chain applies what it was
// given once, in order, and answers with the truth.
func TestChainUnderFaults(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		prefix := fmt.Sprintf("faults/%d/", run)
		c := newTestChain(t, e, fmt.Sprintf("faults%d", run))
		var late []call
		faults := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 12).Draw(rt, "faults")
		c.set(func(one call) (*clientv3.TxnResponse, error) {
			kind := 0
			if len(faults) > 0 {
				kind, faults = faults[0], faults[1:]
			}
			switch kind {
			case 1: // answer lost
				return lost(one)
			case 2: // dropped
				return nil, context.DeadlineExceeded
			case 3: // delayed until after the next
				late = append(late, one)
				return nil, context.DeadlineExceeded
			case 4: // delayed ones arrive first
				for _, l := range late {
					if _, err := l.apply(); err != nil {
						return nil, err
					}
				}
			case 5:
				return nil, rpctypes.ErrTooManyRequests
			}
			return one.next(one.ctx, one.cmps, one.then, one.els)
		})
		txs := rapid.SliceOfN(rapid.Custom(drawTx), 1, 8).Draw(rt, "txs")
		model := map[string]string{}
		var want []bool
		for i := range txs {
			holds := true
			for j := range txs[i].If {
				cond := &txs[i].If[j]
				cond.key = prefix + cond.key
				_, there := model[cond.key]
				holds = holds && there != cond.equal
			}
			want = append(want, holds)
			for j := range txs[i].Then {
				w := &txs[i].Then[j]
				w.Key = prefix + w.Key
				switch {
				case !holds:
				case w.Delete:
					delete(model, w.Key)
				default:
					model[w.Key] = string(w.Value)
				}
			}
		}
		var got []<-chan outcome
		half := len(txs) / 2
		for _, tx := range txs[:half] {
			got = append(got, c.later(tx))
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		over := make(chan error, 1)
		go func() { over <- c.run(ctx) }()
		for _, tx := range txs[half:] {
			got = append(got, c.later(tx))
		}
		for i := range got {
			if o := <-got[i]; o.err != nil || o.Won != want[i] {
				rt.Fatalf("item %d: %+v, want won %v", i, o, want[i])
			}
		}
		end()
		<-over //nolint:errcheck // why it ended is not asked here
		for _, l := range late {
			if _, err := l.apply(); err != nil {
				rt.Fatal(err)
			}
		}
		resp, err := e.client.Get(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil {
			rt.Fatal(err)
		}
		store := map[string]string{}
		for _, kv := range resp.Kvs {
			store[string(kv.Key)] = string(kv.Value)
		}
		if diff := cmp.Diff(model, store); diff != "" {
			rt.Fatal(diff)
		}
	})
}
