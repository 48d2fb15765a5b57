package faulttest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
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
	accepted  []string
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
	if cl.get(ctx, "/v1/requests?limit=10000", &all) != nil {
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

// chain is the process of most scenarios. It runs on two agents, has a step that
// fails once, one that never runs, and two that run at the same time.
func chain(seconds string) Process {
	run := func(args string) string { return `exec sh "$UAC_PARAM_dir/step.sh" ` + args }
	a1, a2 := Selector{Name: "a1"}, Selector{Name: "a2"}
	return Process{
		Name:   "chain",
		Params: []Param{{Name: "dir", Required: true}},
		Steps: []StepDef{
			{Name: "first", Agent: a1, Run: run(seconds)},
			{Name: "left", Needs: []string{"first"}, Agent: a1, Run: run(seconds)},
			{Name: "right", Needs: []string{"first"}, Agent: a2, Run: run(seconds)},
			{Name: "flaky", Needs: []string{"right"}, Agent: a2, Run: run("0 7"), Retry: &RetryDef{Attempts: 3}},
			{Name: "last", Needs: []string{"left", "flaky"}, Agent: Selector{Labels: map[string]string{"tier": "web"}}, Run: run(seconds)},
			{Name: "undo", Needs: []string{"last"}, On: "failure", Agent: a1, Run: run("0")},
		},
	}
}

// single is the smallest process: one step on any agent.
func single(seconds string) Process {
	p := chain(seconds)
	p.Name = "single"
	p.Steps = []StepDef{{Name: "only", Agent: Selector{Labels: map[string]string{"tier": "web"}}, Run: p.Steps[0].Run}}
	return p
}

// apply stores a process.
func (r *recorder) apply(p Process) {
	r.c.t.Helper()
	r.c.order(r.c.active(), "/v1/processes", map[string]any{"processes": []Process{p}})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[p.Name] = p
}

// submit asks for n runs of a process and returns their ids when all have been
// acknowledged.
func (r *recorder) submit(process string, n int) []string {
	r.c.t.Helper()
	ids := make([]string, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { ids[i], errs[i] = r.submitOne(process) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			r.c.t.Fatal(err)
		}
	}
	return ids
}

// nextKey returns an idempotency key that nobody has used.
func (r *recorder) nextKey() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	return fmt.Sprintf("fault-%d", r.next)
}

func (r *recorder) submitOne(process string) (string, error) {
	return r.submitWith(process, r.nextKey())
}

// submitWith asks one controller after the other, with the same idempotency key,
// until one acknowledges.
func (r *recorder) submitWith(process, key string) (string, error) {
	began := time.Now()
	body := map[string]any{"process": process, "params": map[string]string{"dir": r.c.ledger.Dir}}
	controllers := r.c.controllers()
	var last string
	for i := len(key) + int(key[len(key)-1]); time.Since(began) < patience; i++ { // spread by key
		name := controllers[i%len(controllers)]
		if !slices.Contains(r.c.running("controller"), name) && len(r.c.running("controller")) > 0 && i%7 != 0 {
			continue // most clients learn whom to ask; some do not
		}
		a, err := r.c.clients[name].call(r.c.t.Context(), http.MethodPost, "/v1/requests", key, body)
		switch {
		case err != nil:
			last = err.Error()
		case a.Status == http.StatusOK || a.Status == http.StatusCreated:
			id := decode[Request](r.c.t, a).ID
			r.mu.Lock()
			r.accepted = append(r.accepted, id)
			r.slowest = max(r.slowest, time.Since(began))
			r.mu.Unlock()
			return id, nil
		case a.Status == http.StatusServiceUnavailable:
			last = a.String()
		default:
			return "", fmt.Errorf("run %s at %s: %v", process, name, a)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("run %s: nobody acknowledged it within %v: %s", process, patience, last)
}

// load keeps n clients busy until the returned function is called: each asks
// for a run and waits until it has come to rest, so that a slow machine has less
// to do and not ever more. It returns how many runs there were.
func (r *recorder) load(process string, n int) (stop func() int) {
	ctx, cancel := context.WithCancel(r.c.t.Context())
	var runs atomic.Int64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				id, err := r.submitOne(process)
				if err != nil {
					r.c.t.Error(err)
					return
				}
				runs.Add(1)
				for ctx.Err() == nil && !r.seenAtRest(id) {
					time.Sleep(watchEvery / 3)
				}
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return int(runs.Load())
	}
}

// seenAtRest reports whether some controller showed that a request rests.
func (r *recorder) seenAtRest(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resting[id]
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
// recorded against all promises. The test says by now that the cluster is well.
func (r *recorder) settled() History {
	r.c.t.Helper()
	var final map[string]Request
	r.c.await("all accepted requests come to rest", func() string {
		var err error
		if final, err = r.list(); err != nil {
			return err.Error()
		}
		open := 0
		text := ""
		for _, id := range slices.Sorted(maps.Keys(final)) {
			if req := final[id]; !req.rests() {
				open++
				text = fmt.Sprintf("%s of %s is %s (%s): %s", id, req.Owner, req.Status, req.Reason, req.where())
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, id := range r.accepted {
			if _, ok := final[id]; !ok {
				return id + " is not listed"
			}
		}
		if open > 0 {
			return fmt.Sprintf("%d are open; one: %s", open, text)
		}
		return ""
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	h := History{
		Accepted: slices.Clone(r.accepted), Processes: maps.Clone(r.processes),
		Views: slices.Clone(r.views), Acting: slices.Clone(r.acting),
		Ledger: r.c.ledger.Read(r.c.t), Final: final,
	}
	if err := h.Validate(); err != nil {
		r.c.t.Error(err)
	}
	return h
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
	if n := len(h.Final); n != len(h.Accepted) {
		t.Errorf("%d requests exist, %d were acknowledged", n, len(h.Accepted))
	}
}
