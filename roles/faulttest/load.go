package faulttest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// chain is the process of most scenarios. It runs on two agents, has a step that
// fails once, one that never runs, and two that run at the same time.
func chain(seconds string) Process {
	run := func(args string) string { return `exec sh "$UAC_PARAM_dir/step.sh" ` + args }
	a1, a2 := Selector{Name: "a1"}, Selector{Name: "a2"}
	return Process{
		Name:   "chain",
		Params: []Param{{Name: "dir", Required: true}},
		Steps: []StepDef{
			{Name: "first", Agent: a1, Run: "echo made=it >\"$UAC_OUTPUTS\" || :\n" + run(seconds), Outputs: []string{"made"}},
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
	p.Steps = []StepDef{{Name: "only", Agent: Selector{Labels: map[string]string{"tier": "web"}}, Run: p.Steps[1].Run}}
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
		a, err := r.accept(name, key, process, body)
		switch {
		case err != nil:
			last = err.Error()
		case a.Status == http.StatusOK || a.Status == http.StatusCreated:
			r.mu.Lock()
			r.slowest = max(r.slowest, time.Since(began))
			r.mu.Unlock()
			return decode[Request](r.c.t, a).ID, nil
		case a.Status == http.StatusServiceUnavailable:
			last = a.String()
		default:
			return "", fmt.Errorf("run %s at %s: %v", process, name, a)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("run %s: nobody acknowledged it within %v: %s", process, patience, last)
}

// accept makes one call that asks for a run, and writes down what came of it.
func (r *recorder) accept(node, key, content string, body any) (answer, error) {
	call := Call{Op: opAccept, Node: node, Key: key, Content: content, Began: r.now()}
	a, err := r.c.clients[node].call(r.c.t.Context(), http.MethodPost, "/v1/requests", key, body)
	call.Outcome = outcome(a.Status, err)
	if call.Outcome == OutcomeOK {
		call.Request, call.Created = decode[Request](r.c.t, a).ID, a.Status == http.StatusCreated
	}
	r.called(call)
	return a, err
}

// lookup asks one controller for a request that was acknowledged, maybe by another
// one: it must be there.
func (r *recorder) lookup(node, key, id string) {
	call := Call{Op: opLookup, Node: node, Key: key, Request: id, Began: r.now()}
	a, err := r.c.clients[node].call(r.c.t.Context(), http.MethodGet, "/v1/requests/"+id, "", nil)
	call.Outcome = outcome(a.Status, err)
	r.called(call)
}

// contend lets two clients use one idempotency key at the same moment, each at
// another controller, for the same thing or not. It returns when both know what came
// of it, or time is up.
func (r *recorder) contend(contents ...string) {
	key, began := r.nextKey(), time.Now()
	var wg sync.WaitGroup
	for i, content := range contents {
		wg.Go(func() {
			body := map[string]any{"process": content, "params": map[string]string{"dir": r.c.ledger.Dir}}
			for n := i; time.Since(began) < patience; n++ {
				controllers := r.c.controllers()
				a, err := r.accept(controllers[n%len(controllers)], key, content, body)
				if o := outcome(a.Status, err); o != OutcomeUnknown {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// load keeps n clients busy until the returned function is called: each asks
// for a run of chain, looks for it at another controller, and waits until it has come to rest,
// so that a slow machine has less to do and not ever more. Now and then two clients
// contend. It returns how many runs there were.
func (r *recorder) load(n int) (stop func() int) {
	ctx, cancel := context.WithCancel(r.c.t.Context())
	var runs atomic.Int64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				key := r.nextKey()
				id, err := r.submitWith("chain", key)
				if err != nil {
					r.c.t.Error(err)
					return
				}
				if all := r.c.running("controller"); len(all) > 0 {
					r.lookup(all[len(id+key)%len(all)], key, id)
				}
				switch runs.Add(1) % 8 {
				case 0:
					r.contend("chain", "chain")
				case 4:
					r.contend("chain", r.rival("chain"))
				}
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

// rival returns another process that anybody may run, if there is one.
func (r *recorder) rival(than string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.processes["single"]; ok && than != "single" {
		return "single"
	}
	return than
}

// seenAtRest reports whether some controller showed that a request rests.
func (r *recorder) seenAtRest(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resting[id]
}
