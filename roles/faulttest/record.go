package faulttest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
)

// recorder writes down what clients are told and what controllers show, until
// its test ends.
type recorder struct {
	c     *Cluster
	began time.Time
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	calls     []Call
	final     map[string]Request // as collected last
	processes map[string]Process
	views     []View
	last      map[[2]string]Request
	resting   map[string]bool // seen at rest, by request
	acting    []Acting
	next      int // number of the next request
	slowest   time.Duration
}

// watchEvery is how often each controller is asked for all that it shows.
const watchEvery = 150 * time.Millisecond

// watchNewest is how many requests are looked at each time. Older ones are compared
// at the end.
const watchNewest = 200

func newRecorder(c *Cluster) *recorder {
	ctx, stop := context.WithCancel(context.WithoutCancel(c.t.Context()))
	r := &recorder{
		c: c, began: time.Now(), stop: stop,
		processes: map[string]Process{}, last: map[[2]string]Request{}, resting: map[string]bool{},
	}
	for _, name := range c.controllers() {
		r.wg.Go(func() { r.watch(ctx, name) })
	}
	c.t.Cleanup(func() {
		stop()
		r.wg.Wait()
	})
	return r
}

// watch asks one controller again and again: at its leisure while that answers,
// and eagerly while it does not, because what it says first is what it could get
// wrong.
func (r *recorder) watch(ctx context.Context, name string) {
	pause := time.NewTimer(watchEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		if r.look(ctx, name) {
			pause.Reset(watchEvery)
		} else {
			pause.Reset(watchEvery / 30)
		}
	}
}

// look writes down what one controller shows now, and reports whether it showed
// anything.
func (r *recorder) look(ctx context.Context, name string) bool {
	pid := 0
	for _, n := range r.c.run.nodes() {
		if n.Name == name {
			pid = n.PID
		}
	}
	if pid == 0 {
		return false
	}
	cl := r.c.clients[name]
	var nodes []NodeInfo
	began := time.Since(r.began)
	if cl.get(ctx, "/v1/nodes", &nodes) != nil {
		return false
	}
	ended := time.Since(r.began)
	var all []Request
	if cl.get(ctx, fmt.Sprintf("/v1/requests?limit=%d", watchNewest), &all) != nil {
		all = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range nodes {
		if n.Name == name && n.Mode == "Active" && n.Term != 0 { // what others say of it may be old
			r.acting = append(r.acting, Acting{Node: name, Term: n.Term, Began: began, Ended: ended})
		}
	}
	r.seenLocked(name, all)
	return true
}

// called writes down a call that has just ended.
func (r *recorder) called(c Call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.Ended = time.Since(r.began)
	r.calls = append(r.calls, c)
}

// now is the time of the recorder's clock.
func (r *recorder) now() time.Duration { return time.Since(r.began) }

func (r *recorder) seenLocked(source string, all []Request) {
	for _, req := range all {
		key := [2]string{source, req.ID}
		if old, seen := r.last[key]; seen && reflect.DeepEqual(old, req) {
			continue
		}
		r.last[key] = req
		if req.rests() {
			r.resting[req.ID] = true
		}
		r.views = append(r.views, View{Source: source, Request: req})
	}
}

// started waits until the ledger has n more starts of a step ("" for any) than
// before it was called with begin entries.
func (r *recorder) started(begin, n int, step string) {
	r.c.t.Helper()
	r.c.await(fmt.Sprintf("%d steps have started", n), func() string {
		if have := count(r.c.ledger.Read(r.c.t)[begin:], entryStart, step); have < n {
			return fmt.Sprintf("%d have", have)
		}
		return ""
	})
}

// mark is how long the ledger is now.
func (r *recorder) mark() int { return len(r.c.ledger.Read(r.c.t)) }

// list returns all requests as a controller that runs shows them.
func (r *recorder) list() (map[string]Request, error) {
	var last error
	for _, name := range r.c.running("controller") {
		var all []Request
		if last = r.c.clients[name].get(r.c.t.Context(), "/v1/requests?limit=10000", &all); last == nil {
			out := map[string]Request{}
			for _, req := range all {
				out[req.ID] = req
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("nobody lists the requests: %w", last)
}

// settled waits until nothing moves any more and then holds everything that was
// recorded against all promises. The test says by now that the cluster is well, so
// what has not come to rest then is a promise broken.
func (r *recorder) settled() History {
	r.c.t.Helper()
	h := r.collect()
	if err := h.Validate(); err != nil {
		r.c.t.Error(err)
	}
	return h
}

// collect waits until nothing moves any more, but not for ever, and returns what was
// recorded.
func (r *recorder) collect() History {
	r.c.t.Helper()
	var final map[string]Request
	why := "not asked"
	for began := time.Now(); time.Since(began) < patience; time.Sleep(20 * time.Millisecond) {
		if final, why = r.atRest(); why == "" {
			break
		}
	}
	if why != "" {
		r.c.note("not all comes to rest within %v: %s", patience, why)
	}
	r.mu.Lock()
	r.final = final
	r.mu.Unlock()
	return r.history()
}

// history returns what was recorded so far.
func (r *recorder) history() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return History{
		Calls: slices.Clone(r.calls), Processes: maps.Clone(r.processes),
		Views: slices.Clone(r.views), Acting: slices.Clone(r.acting),
		Ledger: r.c.ledger.Read(r.c.t), Final: r.final,
	}
}

// atRest returns all requests, and why they are not all at rest.
func (r *recorder) atRest() (final map[string]Request, why string) {
	final, err := r.list()
	if err != nil {
		return nil, err.Error()
	}
	open := 0
	for _, id := range slices.Sorted(maps.Keys(final)) {
		if req := final[id]; !req.rests() {
			open++
			why = fmt.Sprintf("%s of %s is %s (%s): %s", id, req.Owner, req.Status, req.Reason, req.where())
		}
	}
	if open > 0 {
		return final, fmt.Sprintf("%d are open; one: %s", open, why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if _, ok := final[c.Request]; c.Op == opAccept && c.Outcome == OutcomeOK && !ok {
			return final, c.Request + " is not listed"
		}
	}
	return final, ""
}

// succeeded fails unless all requests of a history went as their definitions
// say: no failure that was injected may show in the end.
func (h History) succeeded(t testing.TB) {
	t.Helper()
	for id, req := range h.Final {
		if req.Status != "succeeded" {
			t.Errorf("%s is %s: %s", id, req.Status, req.where())
		}
	}
	if n, acked := len(h.Final), len(h.accepted()); n != acked {
		t.Errorf("%d requests exist, %d were acknowledged", n, acked)
	}
}
