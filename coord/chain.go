package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors of [Session.Commit] and [Session.Submit].
var (
	// ErrFenced is returned when the session is over: the cluster decided that
	// this node is lost, or the node said goodbye or stopped. What was under way
	// may have been written before; nothing is written after that decision.
	ErrFenced = errors.New("session is over: this node was fenced out")
	// ErrRefused is returned when etcd refused a write for what it is, for
	// instance because it is too large. It was not applied.
	ErrRefused = errors.New("write refused")
)

// Cond is one comparison of a conditional transaction.
type Cond struct {
	key   string
	rev   int64
	equal bool
	// create compares the CreateRevision instead of the ModRevision.
	create bool
}

// ModIs holds while key was last changed at revision rev; 0 means absent.
func ModIs(key string, rev int64) Cond { return Cond{key: key, rev: rev, equal: true} }

// ModIsNot holds unless key was last changed at revision rev.
func ModIsNot(key string, rev int64) Cond { return Cond{key: key, rev: rev} }

// Absent holds while key does not exist.
func Absent(key string) Cond { return ModIs(key, 0) }

func (c Cond) cmp() clientv3.Cmp {
	op := "!="
	if c.equal {
		op = "="
	}
	if c.create {
		return clientv3.Compare(clientv3.CreateRevision(c.key), op, c.rev)
	}
	return clientv3.Compare(clientv3.ModRevision(c.key), op, c.rev)
}

// Write puts or deletes one key.
type Write struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put writes value to key.
func Put(key string, value []byte) Write { return Write{Key: key, Value: value} }

// Del deletes key.
func Del(key string) Write { return Write{Key: key, Delete: true} }

func (w Write) op() clientv3.Op {
	if w.Delete {
		return clientv3.OpDelete(w.Key)
	}
	return clientv3.OpPut(w.Key, string(w.Value))
}

// Tx is a set of writes that happen together or not at all. With conditions
// it happens only if all of them hold, and then the first write must be a Put.
// After an unknown outcome that key's revisions tell whether the conditions
// held, so it must be one that nobody else overwrites at once, unless the
// transaction creates it and nobody else deletes it at once.
//
// Transactions of one session are applied in the order of their submission.
type Tx struct {
	If   []Cond
	Then []Write
}

// Result of a transaction.
type Result struct {
	// Revision at which it was applied, or at which its conditions failed.
	Revision int64
	// Won is false if a condition did not hold, in which case nothing of it
	// was written.
	Won bool
}

// Limits of one group commit. Small enough that a batch never holds up the
// next one for long, large enough to carry hundreds of requests.
const (
	maxBatchItems = 128
	maxBatchOps   = 400
	maxBatchBytes = 1 << 20
	// maxTxBytes and maxTxOps bound one transaction on its own.
	maxTxBytes = 4 << 20
	maxTxOps   = 3000
)

// Attempts at one batch start short, because a proposal may have been lost
// with a dead leader, and grow, because a slow disk is not a dead leader.
const (
	firstAttempt = 100 * time.Millisecond
	lastAttempt  = time.Second
	// trustPoll is how soon waiting writes look again whether they may go.
	trustPoll = 2 * time.Millisecond
)

type item struct {
	tx    Tx
	done  func(Result, error)
	bytes int
}

// chain is the one way in which a session writes. It gathers transactions into
// batches, one in flight, each guarded by the session's key and by the chain
// key that every batch compares and puts again: a proposal that was delayed in
// a frozen raft leader and arrives after its repetition finds the chain key
// moved on and does nothing.
type chain struct {
	etcd    *etcd
	log     *slog.Logger
	session string // sessions/<me>
	epoch   int64
	key     string // commit/<me>
	nonce   string
	// trust says whether the session may act now; batches wait for it.
	trust func() error
	// idle is how long the chain may be without a write before it writes an
	// empty batch, so that peers see that this member can still write.
	idle time.Duration
	// wrote is told when a guarded write was acknowledged.
	wrote func(at time.Time)
	// point is called before a batch is proposed and after it is known to be applied.
	point func(Point)

	mu     sync.Mutex // guards queue, closed
	queue  []item
	closed error
	wake   chan struct{}
	// others is signalled when other members have made empty batches.
	others chan struct{}

	// Only the goroutine of run uses the fields below.
	rev int64 // ModRevision of the chain key
	n   int64 // number of the last transaction
}

// submit queues a transaction. done is called exactly once, on the chain's
// goroutine or, if the chain is over, on the caller's.
func (c *chain) submit(tx Tx, done func(Result, error)) {
	it := item{tx: tx, done: done}
	err := it.check()
	c.mu.Lock()
	if err == nil {
		err = c.closed
	}
	if err == nil {
		c.queue = append(c.queue, it)
	}
	c.mu.Unlock()
	if err != nil {
		done(Result{}, err)
		return
	}
	signal(c.wake)
}

// check refuses what no batch can carry and counts the bytes.
func (it *item) check() error {
	if len(it.tx.If) > 0 && (len(it.tx.Then) == 0 || it.tx.Then[0].Delete) {
		return fmt.Errorf("%w: a conditional transaction must start with a put", ErrRefused)
	}
	seen := make(map[string]struct{}, len(it.tx.Then))
	for _, w := range it.tx.Then {
		if w.Key == "" {
			return fmt.Errorf("%w: empty key", ErrRefused)
		}
		if _, twice := seen[w.Key]; twice {
			return fmt.Errorf("%w: key %s is written twice", ErrRefused, w.Key)
		}
		seen[w.Key] = struct{}{}
		it.bytes += len(w.Key) + len(w.Value)
	}
	if it.bytes > maxTxBytes {
		return fmt.Errorf("%w: %d bytes in one transaction, at most %d", ErrRefused, it.bytes, maxTxBytes)
	}
	if n := len(it.tx.If) + len(it.tx.Then); n > maxTxOps {
		return fmt.Errorf("%w: %d operations in one transaction, at most %d", ErrRefused, n, maxTxOps)
	}
	return nil
}

// run commits batches until ctx ends or the session is over, and returns
// ErrFenced in the latter case. What was not committed by then is answered
// with the reason.
func (c *chain) run(ctx context.Context) (err error) {
	defer func() { c.close(over(err)) }()
	idle, last := time.NewTimer(c.idle), time.Now()
	defer idle.Stop()
	for {
		batch, waiting := c.take()
		if batch == nil {
			// Without trust the queue waits: trust comes back with the next echo,
			// or the session ends.
			var again <-chan time.Time
			if waiting {
				again = time.After(trustPoll)
			}
			select {
			case <-c.wake:
				continue
			case <-again:
				continue
			case <-c.others:
				// All members come to make their empty batches together: what wakes one up
				// wakes up all.
				if time.Since(last) < c.idle/2 {
					continue
				}
			case <-idle.C:
				// An empty batch needs no trust: it only proves that we can write.
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := c.commit(ctx, batch); err != nil {
			return err
		}
		idle.Reset(c.idle)
		last = time.Now()
	}
}

// close answers everything that still waits.
func (c *chain) close(err error) {
	c.mu.Lock()
	c.closed = err
	rest := c.queue
	c.queue = nil
	c.mu.Unlock()
	answer(rest, err)
}

// take removes the next batch from the queue. It returns nil if there is
// nothing to commit, or if something waits and the session may not act now.
func (c *chain) take() (batch []item, waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return nil, false
	}
	if c.trust() != nil {
		return nil, true
	}
	n := cut(c.queue)
	batch = c.queue[:n:n]
	c.queue = c.queue[n:]
	return batch, true
}

// cut says how many items from the front fit into one batch. Plain puts may
// replace each other within a batch. etcd evaluates all nested conditions
// before any write, so a condition on a key that an earlier item of the batch
// writes would see the past: such an item waits for the next batch, and so
// does a conditional item that writes a key of another item.
func cut(queue []item) int {
	plain := map[string]struct{}{}  // keys written by plain items
	nested := map[string]struct{}{} // keys written by conditional items
	ops, bytes := 0, 0
	for i, it := range queue {
		ops += len(it.tx.If) + len(it.tx.Then) + 1
		bytes += it.bytes
		if i > 0 && (i >= maxBatchItems || ops > maxBatchOps || bytes > maxBatchBytes) {
			return i
		}
		conditional := len(it.tx.If) > 0
		for _, cond := range it.tx.If {
			if has(plain, cond.key) || has(nested, cond.key) {
				return i
			}
		}
		for _, w := range it.tx.Then {
			if has(nested, w.Key) || conditional && has(plain, w.Key) {
				return i
			}
		}
		for _, w := range it.tx.Then {
			if conditional {
				nested[w.Key] = struct{}{}
			} else {
				plain[w.Key] = struct{}{}
			}
		}
	}
	return len(queue)
}

func has(set map[string]struct{}, key string) bool { _, ok := set[key]; return ok }

// commit applies one batch and answers its items. A definite refusal of a
// batch is narrowed down to the item that causes it. The returned error means
// that the chain is over.
func (c *chain) commit(ctx context.Context, batch []item) error {
	results, err := c.apply(ctx, batch)
	refused := errors.Is(err, ErrRefused)
	switch {
	case err == nil:
		for i, it := range batch {
			it.done(results[i], nil)
		}
		return nil
	case refused && len(batch) > 1:
		half := len(batch) / 2
		if err := c.commit(ctx, batch[:half]); err != nil {
			answer(batch[half:], over(err))
			return err
		}
		return c.commit(ctx, batch[half:])
	case refused:
		answer(batch, err)
		return nil
	default:
		answer(batch, over(err))
		return err
	}
}

// over says with err that the session is over.
func over(err error) error {
	if errors.Is(err, ErrFenced) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFenced, err)
}

func answer(items []item, err error) {
	for _, it := range items {
		it.done(Result{}, err)
	}
}

// apply runs one batch until its outcome is known.
func (c *chain) apply(ctx context.Context, batch []item) ([]Result, error) {
	c.n++
	then, at, witness := c.operations(batch)
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(c.session), "=", c.epoch),
		clientv3.Compare(clientv3.ModRevision(c.key), "=", c.rev),
	}
	// When a comparison fails the Else branch tells why: the session, the
	// chain key, and for every conditional item the key that it would have put.
	els := make([]clientv3.Op, 0, 2+len(witness))
	els = append(els, clientv3.OpGet(c.session), clientv3.OpGet(c.key))
	for _, k := range witness {
		els = append(els, clientv3.OpGet(k, clientv3.WithKeysOnly()))
	}
	unknown := false
	for d := firstAttempt; ; d = min(2*d, lastAttempt) {
		c.point(pointBatchProposing)
		resp, err := c.etcd.attempt(ctx, d, cmps, then, els)
		switch {
		case err == nil && resp.Succeeded:
			c.point(pointBatchApplied)
			return c.applied(batch, at, resp), nil
		case err == nil:
			return c.explain(batch, resp)
		case overloaded(err):
			// This attempt was not proposed; an earlier one may still be out.
		case errors.Is(err, errUnknown):
			unknown = true
		case !unknown:
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		c.log.Debug("batch not acknowledged, repeating it", "number", c.n, "items", len(batch), "error", err)
	}
}

// operations builds the Then branch. at[i] is the index of conditional item
// i's response, -1 for plain items; witness lists the conditional items' first
// keys in order.
func (c *chain) operations(batch []item) (then []clientv3.Op, at []int, witness []string) {
	then = append(then, clientv3.OpPut(c.key, string(encode(chainRecord{Nonce: c.nonce, N: c.n}))))
	at = make([]int, len(batch))
	last := map[string]int{} // plain key -> index in then, so that later puts replace earlier ones
	for i, it := range batch {
		at[i] = -1
		if len(it.tx.If) > 0 {
			cmps := make([]clientv3.Cmp, len(it.tx.If))
			for j, cond := range it.tx.If {
				cmps[j] = cond.cmp()
			}
			ops := make([]clientv3.Op, len(it.tx.Then))
			for j, w := range it.tx.Then {
				ops[j] = w.op()
			}
			at[i] = len(then)
			then = append(then, clientv3.OpTxn(cmps, ops, nil))
			witness = append(witness, it.tx.Then[0].Key)
			continue
		}
		for _, w := range it.tx.Then {
			if j, again := last[w.Key]; again {
				then[j] = w.op()
				continue
			}
			last[w.Key] = len(then)
			then = append(then, w.op())
		}
	}
	return then, at, witness
}

// applied reads the results from the answer to a batch that succeeded.
func (c *chain) applied(batch []item, at []int, resp *clientv3.TxnResponse) []Result {
	c.rev = resp.Header.Revision
	c.wrote(time.Now())
	results := make([]Result, len(batch))
	for i := range batch {
		won := at[i] < 0 || resp.Responses[at[i]].GetResponseTxn().Succeeded
		results[i] = Result{Revision: resp.Header.Revision, Won: won}
	}
	return results
}

// explain reads from the Else branch what became of the batch: applied by an
// earlier attempt, or the session is over.
func (c *chain) explain(batch []item, resp *clientv3.TxnResponse) ([]Result, error) {
	read := func(i int) KV {
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			return kvOf(kvs[0])
		}
		return KV{}
	}
	if read(0).Mod != c.epoch {
		return nil, ErrFenced
	}
	link := read(1)
	if link.Mod == 0 {
		return nil, fmt.Errorf("%w: chain key %s is gone", ErrFenced, c.key)
	}
	rec, err := decode[chainRecord](link)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFenced, err)
	}
	if rec.Nonce != c.nonce || rec.N != c.n {
		return nil, fmt.Errorf("%w: chain key %s holds number %d of %s, want %d of %s",
			ErrFenced, c.key, rec.N, rec.Nonce, c.n, c.nonce)
	}
	// Our own earlier attempt. All puts of one transaction share its revision,
	// so a conditional item won if and only if its first key carries it. (A key
	// that the item created keeps it as its first, whoever changes the key now.)
	c.rev = link.Mod
	c.wrote(time.Now())
	results := make([]Result, len(batch))
	w := 2
	for i, it := range batch {
		results[i] = Result{Revision: c.rev, Won: true}
		if len(it.tx.If) > 0 {
			put := read(w)
			results[i].Won = put.Mod == c.rev || put.Create == c.rev
			w++
		}
	}
	return results, nil
}
