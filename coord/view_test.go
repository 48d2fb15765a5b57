package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// asStored compares what the store has of a key.
var asStored = cmpopts.IgnoreUnexported(KV{})

// runView keeps a view in step with the server until stop is called.
func runView(t *testing.T, v *View, e *etcd) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.run(ctx, e.client) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("view: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// mirror follows a view and checks every batch against what it had.
type mirror struct {
	t    *testing.T
	mu   sync.Mutex
	rev  int64
	kvs  map[string]KV
	seen int // changes
}

func follow(t *testing.T, v *View) (m *mirror, stop func()) {
	m = &mirror{t: t, kvs: map[string]KV{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	from, stop := v.Follow(m.take)
	m.rev = from.Revision()
	for kv := range from.Range("") {
		m.kvs[kv.Key] = kv
	}
	return m, stop
}

func (m *mirror) take(b Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Revision < m.rev || b.Revision == m.rev && len(b.Changes) > 0 {
		m.t.Errorf("revision %d after %d", b.Revision, m.rev)
	}
	m.rev = b.Revision
	for _, c := range b.Changes {
		m.seen++
		if diff := cmp.Diff(m.kvs[c.Key], c.Prev, asStored); diff != "" {
			m.t.Errorf("key %s at %d: before it there was another: %s", c.Key, b.Revision, diff)
		}
		if c.Deleted {
			if c.Mod != 0 || c.Value != nil {
				m.t.Errorf("deleted key has a value: %+v", c)
			}
			delete(m.kvs, c.Key)
			continue
		}
		if c.Mod > b.Revision || c.Mod <= c.Prev.Mod {
			m.t.Errorf("key %s went from %d to %d in a batch of %d", c.Key, c.Prev.Mod, c.Mod, b.Revision)
		}
		m.kvs[c.Key] = c.KV
	}
}

// await waits until the view shows rev and compares it with the mirror and with
// the server.
func (m *mirror) await(v *View, e *etcd, rev int64) {
	m.t.Helper()
	if err := v.Wait(m.t.Context(), rev); err != nil {
		m.t.Fatal(err)
	}
	snap := v.Snapshot()
	got := map[string]KV{}
	for kv := range snap.Range("") {
		got[kv.Key] = kv
	}
	want := map[string]KV{}
	resp, err := e.client.Get(m.t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithRev(snap.Revision()))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		want[string(kv.Key)] = kvOf(kv)
	}
	if diff := cmp.Diff(want, got, asStored); diff != "" {
		m.t.Errorf("view at %d is not what etcd holds: %s", snap.Revision(), diff)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rev == snap.Revision() {
		if diff := cmp.Diff(got, m.kvs, asStored); diff != "" {
			m.t.Errorf("follower at %d has not what the view shows: %s", m.rev, diff)
		}
	}
}

func mustTxn(t testing.TB, e *etcd, ops ...clientv3.Op) int64 {
	t.Helper()
	resp, err := e.client.Txn(t.Context()).Then(ops...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func TestViewFollows(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	mustTxn(t, e, clientv3.OpPut("a", "1"), clientv3.OpPut("b", "1"))
	v := newView(slog.New(slog.DiscardHandler))
	if _, ok := v.Get("a"); ok || v.Revision() != 0 || v.Snapshot().Revision() != 0 {
		t.Error("a view that has not loaded shows something")
	}
	for range v.Snapshot().Range("") {
		t.Error("a view that has not loaded has keys")
	}
	m, stop := follow(t, v)
	defer stop()
	runView(t, v, e)
	m.await(v, e, 2)

	old := v.Snapshot()
	// One transaction is one step of the view, whatever it does.
	rev := mustTxn(t, e, clientv3.OpPut("a", "2"), clientv3.OpDelete("b"), clientv3.OpPut("c", "1"))
	m.await(v, e, rev)
	if kv, _ := old.Get("a"); string(kv.Value) != "1" {
		t.Errorf("a snapshot changed: a is %q", kv.Value)
	}
	if _, ok := old.Get("c"); ok || old.Revision() >= rev {
		t.Error("a snapshot shows what came later")
	}
	if kv, ok := v.Get("a"); !ok || string(kv.Value) != "2" || kv.Mod != rev || kv.Create != 2 {
		t.Errorf("a is %+v", kv)
	}
	if _, ok := v.Get("b"); ok {
		t.Error("b is still there")
	}
	var keys []string
	for kv := range v.Snapshot().Range("") {
		keys = append(keys, kv.Key)
	}
	if diff := cmp.Diff([]string{"a", "c"}, keys); diff != "" {
		t.Error(diff)
	}
}

func TestViewUnderLoad(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	v := newView(slog.New(slog.DiscardHandler))
	m, stop := follow(t, v)
	defer stop()
	runView(t, v, e)
	// pair/x and pair/y only ever change together: no snapshot may show otherwise.
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				value := fmt.Sprintf("%d/%d", w, i)
				ops := []clientv3.Op{clientv3.OpPut("pair/x", value), clientv3.OpPut("pair/y", value), clientv3.OpPut(fmt.Sprintf("own/%d", w), value)}
				if i%7 == 3 {
					ops = []clientv3.Op{clientv3.OpDelete("pair/x"), clientv3.OpDelete("pair/y"), clientv3.OpDelete(fmt.Sprintf("own/%d", w))}
				}
				mustTxn(t, e, ops...)
			}
		})
	}
	// Followers that come and go see no gap either.
	wg.Go(func() {
		for range 20 {
			late, stop := follow(t, v)
			snap := v.Snapshot()
			x, _ := snap.Get("pair/x")
			y, _ := snap.Get("pair/y")
			if x.Mod != y.Mod || string(x.Value) != string(y.Value) {
				t.Errorf("snapshot at %d: x of %d, y of %d", snap.Revision(), x.Mod, y.Mod)
			}
			if err := v.Wait(t.Context(), min(snap.Revision()+1, 200)); err != nil {
				t.Error(err)
			}
			stop()
			late.mu.Lock()
			late.rev = math.MaxInt64 // what comes now came after stop
			late.mu.Unlock()
		}
	})
	wg.Wait()
	m.await(v, e, mustTxn(t, e, clientv3.OpPut("end", "")))
}

func TestViewSurvivesCompaction(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	v := newView(slog.New(slog.DiscardHandler))
	m, stop := follow(t, v)
	defer stop()
	for i := range 1500 { // more than one page
		if i%100 == 0 {
			mustTxn(t, e, clientv3.OpPut("changed", fmt.Sprint(i)))
		}
	}
	var ops []clientv3.Op
	for i := range 1500 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("many/%04d", i), ""))
	}
	rev := mustTxn(t, e, append(ops, clientv3.OpPut("deleted", ""), clientv3.OpPut("again", "1"))...)
	pause := runView(t, v, e)
	m.await(v, e, rev)
	pause()

	mustTxn(t, e, clientv3.OpDelete("deleted"), clientv3.OpDelete("again"), clientv3.OpPut("new", ""))
	mustTxn(t, e, clientv3.OpPut("again", "2"), clientv3.OpPut("changed", "last"), clientv3.OpPut("brief", ""))
	rev = mustTxn(t, e, clientv3.OpDelete("brief"), clientv3.OpDelete("many/", clientv3.WithPrefix()))
	if _, err := e.client.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	seen := m.seen
	runView(t, v, e)
	m.await(v, e, rev)
	m.mu.Lock()
	defer m.mu.Unlock()
	// deleted, again, new, changed and the many: each once, and nothing of what
	// came and went meanwhile.
	if n := m.seen - seen; n != 4+1500 {
		t.Errorf("%d changes told after the gap, want %d", n, 4+1500)
	}
}

func TestViewWatchInterruptedByCompaction(t *testing.T) {
	t.Parallel()
	e := startTestEtcd(t)
	v := newView(slog.New(slog.DiscardHandler))
	m, stop := follow(t, v)
	defer stop()
	// A view that was loaded and is about to watch, when history is cut off.
	if err := v.load(t.Context(), e.client); err != nil {
		t.Fatal(err)
	}
	mustTxn(t, e, clientv3.OpPut("a", "1"))
	rev := mustTxn(t, e, clientv3.OpPut("a", "2"))
	if _, err := e.client.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if err := v.watch(t.Context(), e.client); err == nil || !strings.Contains(err.Error(), "compacted") {
		t.Fatalf("watch returned %v", err)
	}
	runView(t, v, e)
	m.await(v, e, rev)
}

func TestViewNeverGoesBack(t *testing.T) {
	t.Parallel()
	newer, older := startTestEtcd(t), startTestEtcd(t)
	v := newView(slog.New(slog.DiscardHandler))
	mustTxn(t, newer, clientv3.OpPut("a", "1"))
	rev := mustTxn(t, newer, clientv3.OpPut("a", "2"))
	if err := v.load(t.Context(), newer.client); err != nil {
		t.Fatal(err)
	}
	if err := v.load(t.Context(), older.client); err == nil {
		t.Error("the view went back")
	}
	if v.Revision() != rev {
		t.Errorf("revision %d, want %d", v.Revision(), rev)
	}
	if kv, _ := v.Get("a"); string(kv.Value) != "2" {
		t.Errorf("a is %q", kv.Value)
	}
}

func TestViewWait(t *testing.T) {
	t.Parallel()
	v := newView(slog.New(slog.DiscardHandler))
	if err := v.Wait(t.Context(), 0); err != nil {
		t.Error(err)
	}
	const waiters = 10
	var started, done sync.WaitGroup
	for i := range waiters {
		started.Add(1)
		done.Go(func() {
			started.Done()
			if err := v.Wait(t.Context(), int64(i+1)); err != nil || v.Revision() < int64(i+1) {
				t.Errorf("waited for %d: at %d, error %v", i+1, v.Revision(), err)
			}
		})
	}
	started.Wait()
	for rev := range int64(waiters) {
		v.publish(rev+1, nil)
	}
	done.Wait()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if err := v.Wait(ctx, waiters+1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestStopWaitsForTheFollower(t *testing.T) {
	t.Parallel()
	v := newView(slog.New(slog.DiscardHandler))
	running, release := make(chan struct{}), make(chan struct{})
	calls := 0
	_, stop := v.Follow(func(Batch) {
		calls++
		close(running)
		<-release
		calls++
	})
	var wg sync.WaitGroup
	wg.Go(func() { v.publish(1, nil) })
	<-running
	stopped := make(chan int, 1)
	stopping := make(chan struct{})
	wg.Go(func() {
		close(stopping)
		stop()
		stopped <- calls // a race, and perhaps 1, if stop did not wait
	})
	<-stopping
	close(release)
	if n := <-stopped; n != 2 {
		t.Error("stop returned while the follower ran")
	}
	wg.Wait()
	v.publish(2, nil)
	if calls != 2 {
		t.Error("called after stop")
	}
	stop() // twice is harmless
}

// A view means the same as a map, its snapshots never change, and what followers
// are told is the difference, also when they were not told every step.
func TestViewModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		v := newView(slog.New(slog.DiscardHandler))
		model := map[string]KV{}
		type frozen struct {
			snap Snapshot
			want map[string]KV
		}
		var snaps []frozen
		var told map[string]KV
		stop := func() {}
		defer func() { stop() }()
		rev := int64(0)
		key := rapid.SampledFrom([]string{"a", "a/b", "a/c", "ab", "b/", "b/x"})
		content := func(s Snapshot, prefix string) map[string]KV {
			kvs := map[string]KV{}
			last := ""
			for kv := range s.Range(prefix) {
				if kv.Key <= last && last != "" {
					rt.Fatalf("%q after %q", kv.Key, last)
				}
				last = kv.Key
				kvs[kv.Key] = kv
			}
			return kvs
		}
		equal := func(want, got map[string]KV) {
			same := func(a, b KV) bool {
				return a.Create == b.Create && a.Mod == b.Mod && string(a.Value) == string(b.Value)
			}
			if !maps.EqualFunc(want, got, same) {
				rt.Fatal(cmp.Diff(want, got, asStored))
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(rt *rapid.T) {
				rev++
				var changes []Change
				for _, k := range rapid.SliceOfN(key, 1, 4).Draw(rt, "keys") {
					was := model[k]
					if rapid.Bool().Draw(rt, "delete") {
						if was.Mod != 0 {
							changes = append(changes, Change{KV: KV{Key: k}, Deleted: true})
							delete(model, k)
						}
					} else {
						kv := KV{Key: k, Value: []byte{byte(rev)}, Create: was.Create, Mod: rev}
						if was.Mod == 0 {
							kv.Create = rev
						}
						changes = append(changes, Change{KV: kv})
						model[k] = kv
					}
				}
				v.publish(rev, changes)
			},
			"snapshot": func(*rapid.T) {
				snaps = append(snaps[max(0, len(snaps)-2):], frozen{v.Snapshot(), maps.Clone(model)})
			},
			"follow": func(*rapid.T) {
				stop()
				told = map[string]KV{}
				var from Snapshot
				from, stop = v.Follow(func(b Batch) {
					for _, c := range b.Changes {
						if was := told[c.Key]; was.Mod != c.Prev.Mod {
							rt.Fatalf("%s: before it %d, told %d", c.Key, was.Mod, c.Prev.Mod)
						}
						if c.Deleted {
							delete(told, c.Key)
						} else {
							told[c.Key] = c.KV
						}
					}
				})
				maps.Copy(told, content(from, ""))
			},
			"": func(rt *rapid.T) {
				if v.Revision() != rev {
					rt.Fatalf("revision %d, want %d", v.Revision(), rev)
				}
				equal(model, content(v.Snapshot(), ""))
				if told != nil {
					equal(model, told)
				}
				prefix := rapid.SampledFrom([]string{"a", "a/", "b", "c"}).Draw(rt, "prefix")
				below := maps.Clone(model)
				maps.DeleteFunc(below, func(k string, _ KV) bool { return !strings.HasPrefix(k, prefix) })
				equal(below, content(v.Snapshot(), prefix))
				for _, f := range snaps {
					equal(f.want, content(f.snap, ""))
				}
				k := key.Draw(rt, "key")
				if got, ok := v.Get(k); ok != (model[k].Mod != 0) || got.Mod != model[k].Mod {
					rt.Fatalf("%s is %+v, want %+v", k, got, model[k])
				}
			},
		})
	})
}

func TestDecodedIsReadOnce(t *testing.T) {
	kv := kvOf(&mvccpb.KeyValue{Key: []byte("k"), Value: []byte(`{"a":1}`)})
	type one struct{ A int }
	type other struct {
		A int `json:"a"`
	}
	first, err := Decoded[one](kv)
	if err != nil || first.A != 1 {
		t.Fatalf("%v, %v", first, err)
	}
	copied := kv // as a tree and a snapshot copy it
	if again, err := Decoded[one](copied); err != nil || again != first {
		t.Errorf("a second read made %p of %p: %v", again, first, err)
	}
	if as, err := Decoded[other](kv); err != nil || as.A != 1 {
		t.Errorf("as another type: %v, %v", as, err)
	}
	if again, _ := Decoded[one](kv); again != first {
		t.Error("what was read first is not kept")
	}
	if v, err := Decoded[one](KV{Key: "k", Value: []byte(`{"a":2}`)}); err != nil || v.A != 2 {
		t.Errorf("of no view: %v, %v", v, err)
	}
	for range 2 {
		if _, err := Decoded[one](kvOf(&mvccpb.KeyValue{Key: []byte("bad"), Value: []byte("{")})); err == nil || !strings.Contains(err.Error(), "bad") {
			t.Errorf("a broken value: %v", err)
		}
	}
}
