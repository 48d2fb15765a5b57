package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// KV is one key with its value. The value belongs to the view: read only.
type KV struct {
	Key   string
	Value []byte
	// Create and Mod are the revisions of the key's creation and last change.
	Create, Mod int64

	read *atomic.Pointer[any] // what Decoded made of the value; nil if no view has it
}

// Decoded returns the JSON value of a key as a T. As long as a view has the value, it
// is read once and then shared: nobody may change what is returned. Safe for
// concurrent use.
func Decoded[T any](kv KV) (*T, error) {
	if kv.read != nil {
		if kept := kv.read.Load(); kept != nil {
			if v, ok := (*kept).(*T); ok {
				return v, nil
			}
		}
	}
	v, err := decode[T](kv)
	if err != nil {
		return nil, err
	}
	if kv.read != nil {
		// A value that is read as two types keeps what came first.
		kept := any(&v)
		kv.read.CompareAndSwap(nil, &kept)
	}
	return &v, nil
}

// Change is one key's step from one revision to the next.
type Change struct {
	// KV is the key after the change; of a deleted key only Key is set.
	KV
	Deleted bool
	// Prev is the key before the change; its Mod is 0 if there was none.
	Prev KV
}

// Batch is everything that changed between two revisions that a view held.
type Batch struct {
	Revision int64
	Changes  []Change
}

// Snapshot is a view frozen at one revision. It is immutable and safe for
// concurrent use.
type Snapshot struct {
	tree     *btree.BTreeG[KV]
	revision int64
}

// Revision at which the snapshot was taken; 0 before the first load.
func (s Snapshot) Revision() int64 { return s.revision }

// Get returns one key.
func (s Snapshot) Get(key string) (KV, bool) {
	if s.tree == nil {
		return KV{}, false
	}
	return s.tree.Get(KV{Key: key})
}

// Range returns all keys that start with prefix, in order. It fits range loops.
func (s Snapshot) Range(prefix string) func(yield func(KV) bool) {
	return func(yield func(KV) bool) {
		if s.tree == nil {
			return
		}
		s.tree.AscendGreaterOrEqual(KV{Key: prefix}, func(kv KV) bool {
			return strings.HasPrefix(kv.Key, prefix) && yield(kv)
		})
	}
}

// mod returns the ModRevision of a key, 0 if it does not exist.
func (s Snapshot) mod(key string) int64 {
	kv, _ := s.Get(key)
	return kv.Mod
}

// View is an in-memory copy of all keys that follows the member's etcd server.
// It always shows one consistent revision and never goes back. A view goes on
// showing its last state while etcd is unavailable; whoever needs a fresh
// answer asks [Member.Sync] first. Safe for concurrent use.
type View struct {
	log *slog.Logger

	mu   sync.RWMutex // guards the fields below
	tree *btree.BTreeG[KV]
	rev  int64
	// advanced is closed and replaced whenever rev grows.
	advanced  chan struct{}
	followers map[*follower]struct{}
}

type follower struct{ f func(Batch) }

func lessKV(a, b KV) bool { return a.Key < b.Key }

func newView(log *slog.Logger) *View {
	return &View{
		log:       log,
		tree:      btree.NewG(32, lessKV),
		advanced:  make(chan struct{}),
		followers: map[*follower]struct{}{},
	}
}

// Revision is the revision that the view shows.
func (v *View) Revision() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.rev
}

// Get returns one key at the present revision.
func (v *View) Get(key string) (KV, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.Get(KV{Key: key})
}

// Snapshot freezes the view. It costs little: pages are shared until changed.
func (v *View) Snapshot() Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return Snapshot{tree: v.tree.Clone(), revision: v.rev}
}

// Wait returns when the view shows rev or later, or with the context's error.
func (v *View) Wait(ctx context.Context, rev int64) error {
	for {
		v.mu.RLock()
		done, advanced := v.rev >= rev, v.advanced
		v.mu.RUnlock()
		if done {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d: %w", rev, ctx.Err())
		}
	}
}

// Follow calls f with every change after the returned snapshot, in order and
// without gaps, until stop is called. f runs on the view's own goroutine: it
// must not block and must not call back into the view except [View.Get].
// After stop has returned, f is not running and will not be called again.
func (v *View) Follow(f func(Batch)) (from Snapshot, stop func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fo := &follower{}
	var running sync.Mutex // held while f runs; stop waits for it
	stopped := false
	fo.f = func(b Batch) {
		running.Lock()
		defer running.Unlock()
		if !stopped {
			f(b)
		}
	}
	v.followers[fo] = struct{}{}
	return Snapshot{tree: v.tree.Clone(), revision: v.rev}, func() {
		v.mu.Lock()
		delete(v.followers, fo)
		v.mu.Unlock()
		running.Lock()
		stopped = true
		running.Unlock()
	}
}

// publish moves the view to rev by applying changes, and tells the followers.
// Only the goroutine of run calls it.
func (v *View) publish(rev int64, changes []Change) {
	v.mu.Lock()
	for i := range changes {
		c := &changes[i]
		if c.Deleted {
			c.Prev, _ = v.tree.Delete(KV{Key: c.Key})
		} else {
			c.Prev, _ = v.tree.ReplaceOrInsert(c.KV)
		}
	}
	v.rev = rev
	close(v.advanced)
	v.advanced = make(chan struct{})
	fs := make([]*follower, 0, len(v.followers))
	for fo := range v.followers {
		fs = append(fs, fo)
	}
	v.mu.Unlock()
	for _, fo := range fs {
		fo.f(Batch{Revision: rev, Changes: changes})
	}
}

// run keeps the view in step with etcd until ctx ends. It survives compaction
// below its position by reading everything again and publishing the difference.
func (v *View) run(ctx context.Context, c *clientv3.Client) error {
	backoff := time.NewTimer(0)
	defer backoff.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-backoff.C:
		}
		err := v.load(ctx, c)
		if err == nil {
			err = v.watch(ctx, c)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.log.Debug("view interrupted", "error", err)
		backoff.Reset(20 * time.Millisecond)
	}
}

// load reads all keys at one revision and publishes what differs. It reads what
// this member has: that is behind for a moment after a start, and all there is
// while no majority is there.
func (v *View) load(ctx context.Context, c *clientv3.Client) error {
	const page = 1000
	next := btree.NewG(32, lessKV)
	var rev int64
	from := "\x00"
	for {
		opts := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithLimit(page), clientv3.WithSerializable()}
		if rev != 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		callCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
		resp, err := c.Get(callCtx, from, opts...)
		cancel()
		if err != nil {
			return fmt.Errorf("load all keys: %w", err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			next.ReplaceOrInsert(kvOf(kv))
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	if rev < v.Revision() {
		return fmt.Errorf("etcd answers revision %d after %d: refusing to go back", rev, v.Revision())
	}
	old := v.Snapshot()
	var changes []Change
	for kv := range old.Range("") {
		if _, ok := next.Get(kv); !ok {
			changes = append(changes, Change{KV: KV{Key: kv.Key}, Deleted: true})
		}
	}
	next.Ascend(func(kv KV) bool {
		if was, ok := old.Get(kv.Key); !ok || was.Mod != kv.Mod {
			changes = append(changes, Change{KV: kv})
		}
		return true
	})
	v.publish(rev, changes)
	return nil
}

// watch applies events from the present revision on until the watch ends.
func (v *View) watch(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// One watch over everything: etcd delivers the events of one revision
	// together and in order, which is what makes the view consistent.
	for resp := range c.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(v.Revision()+1)) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch all keys: %w", err)
		}
		if len(resp.Events) == 0 {
			continue
		}
		changes := make([]Change, 0, len(resp.Events))
		rev := int64(0)
		for _, ev := range resp.Events {
			rev = max(rev, ev.Kv.ModRevision)
			if ev.Type == mvccpb.Event_DELETE {
				changes = append(changes, Change{KV: KV{Key: string(ev.Kv.Key)}, Deleted: true})
			} else {
				changes = append(changes, Change{KV: kvOf(ev.Kv)})
			}
		}
		v.publish(rev, changes)
	}
	return errors.New("watch ended")
}

func kvOf(kv *mvccpb.KeyValue) KV {
	return KV{Key: string(kv.Key), Value: kv.Value, Create: kv.CreateRevision, Mod: kv.ModRevision, read: new(atomic.Pointer[any])}
}
