package controller

import (
	"bytes"
	"slices"
	"strings"
	"sync"

	"uac/coord"
	"uac/roles"
)

// outStep is a step that an agent may be working on.
type outStep struct {
	agent, cluster string
	attempt        int
}

// load counts the steps that are out, whoever owns them: by the records that the
// view shows, and ahead of them by what this desk is storing. Safe for concurrent
// use.
type load struct {
	mu  sync.Mutex         // guards all below
	out map[string]outStep // by the key of the step's record
	// n counts out by what a gate looks at: (cluster, ""), (cluster, agent) and
	// ("", agent).
	n map[[2]string]int
	// last is the agent to which the newest step of a cluster went.
	last map[string]string
}

func newLoad() *load {
	return &load{out: map[string]outStep{}, n: map[[2]string]int{}, last: map[string]string{}}
}

// The statuses of a step that is out, as records have them: most records are of
// others, and need no reading.
var outMarks = [][]byte{[]byte(`"status":"` + roles.StepDispatched + `"`), []byte(`"status":"` + roles.StepRunning + `"`)}

// outIn returns the step that is out by a record; ok is false if it is not.
func outIn(kv coord.KV) (st outStep, ok bool) {
	if !slices.ContainsFunc(outMarks, func(mark []byte) bool { return bytes.Contains(kv.Value, mark) }) {
		return st, false
	}
	rec, err := coord.Decoded[roles.Step](kv)
	if err != nil || rec.Status != roles.StepDispatched && rec.Status != roles.StepRunning {
		return st, false
	}
	return outStep{agent: rec.Agent, cluster: rec.Dispatch.Cluster, attempt: rec.Attempt}, true
}

// note takes in a change of a step's record. It returns the step that is not out
// any more by it, if there is one.
func (l *load) note(kv coord.KV) (ended outStep, ok bool) {
	now, isOut := outIn(kv)
	l.mu.Lock()
	defer l.mu.Unlock()
	before, wasOut := l.out[kv.Key]
	switch {
	case isOut && wasOut && now.attempt <= before.attempt:
		return ended, false // known already, or older than what is being stored
	case isOut:
		l.set(kv.Key, now)
		return before, wasOut
	case !wasOut:
		return ended, false
	}
	if rec, err := coord.Decoded[roles.Step](kv); err == nil && rec.Attempt < before.attempt {
		return ended, false // older than what is being stored
	}
	l.unset(kv.Key)
	return before, true
}

// expect counts a step that is being dispatched, before the view shows it.
func (l *load) expect(key string, st outStep) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(key, st)
}

// forget takes back what was expected and did not come: the step is as kv says.
func (l *load) forget(kv coord.KV) {
	l.mu.Lock()
	l.unset(kv.Key)
	l.mu.Unlock()
	l.note(kv)
}

func (l *load) set(key string, st outStep) {
	l.unset(key)
	l.out[key] = st
	l.count(st, 1)
	if st.cluster != "" {
		l.last[st.cluster] = st.agent
	}
}

func (l *load) unset(key string) {
	if st, ok := l.out[key]; ok {
		delete(l.out, key)
		l.count(st, -1)
	}
}

func (l *load) count(st outStep, by int) {
	keys := [][2]string{{"", st.agent}}
	if st.cluster != "" {
		keys = append(keys, [2]string{st.cluster, ""}, [2]string{st.cluster, st.agent})
	}
	for _, k := range keys {
		if l.n[k] += by; l.n[k] == 0 {
			delete(l.n, k)
		}
	}
}

// of is how many steps are out: of a cluster, at an agent, or of a cluster at an
// agent; the other one is then empty.
func (l *load) of(cluster, agent string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[[2]string{cluster, agent}]
}

// newest is the agent to which the newest step of a cluster went, as far as known.
func (l *load) newest(cluster string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[cluster]
}

// is reports whether this attempt of a step is out.
func (l *load) is(key string, attempt int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, ok := l.out[key]
	return ok && st.attempt == attempt
}

// holders lists the steps that are out and pass a gate, as "REQUEST/STEP", in order.
func (l *load) holders(g gate) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for key, st := range l.out {
		if (g.cluster == "" || st.cluster == g.cluster) && (g.agent == "" || st.agent == g.agent) {
			id, rest := requestOf(key, prefixRequests)
			names = append(names, id+"/"+strings.TrimPrefix(rest, "steps/"))
		}
	}
	slices.Sort(names)
	return names
}
