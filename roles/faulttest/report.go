package faulttest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"uac/codestation/durable"
)

// note writes a line into the run's timeline. It does not name its caller: what this
// file says is told apart from the reasons why a test fails (see summary).
func (c *Cluster) note(format string, args ...any) {
	line := fmt.Sprintf("%8.3f "+format, append([]any{c.now().Seconds()}, args...)...)
	c.t.Log(line)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timeline = append(c.timeline, line)
}

// linesOfNode is how much of a node's log a failure shows. The reasons come before,
// and should be seen; all of it is in the files.
const linesOfNode = 5

// shorten cuts a line that nobody would read to its end.
func shorten(line string) string {
	const enough = 300
	if len(line) > enough {
		return line[:enough] + "..."
	}
	return line
}

// report keeps beside the nodes' logs and data what helps to understand a failure,
// and says where.
func (c *Cluster) report() {
	dir := filepath.Join(c.dir, "report")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		c.t.Log(err)
		return
	}
	keep := func(name string, text []byte) {
		if err := durable.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			c.t.Log(err)
		}
	}
	c.mu.Lock()
	keep("timeline.txt", []byte(strings.Join(c.timeline, "\n")+"\n"))
	c.mu.Unlock()
	keep("ends.txt", []byte(c.run.ends()))
	// What is stored, as each node that still answers shows it.
	for _, name := range append(c.running("controller"), c.running("watch")...) {
		for what, path := range map[string]string{
			"nodes": "/v1/nodes", "agents": "/v1/agents", "requests": "/v1/requests?limit=10000", "processes": "/v1/processes",
			"locks": "/v1/locks", "events": "/v1/events?limit=10000", "ready": "/readyz", "metrics": "/metrics",
		} {
			a, err := c.clients[name].call(c.stopped, http.MethodGet, path, "", nil)
			if err != nil {
				a.Body = err.Error()
			}
			keep(name+"-"+what, []byte(a.Body))
		}
	}
	if err := c.history().save(filepath.Join(dir, "history.json")); err != nil {
		c.t.Log(err)
	}
	c.t.Logf("the cluster is kept in %s, with a report; check its history again with UAC_FAULT_CHECK=%s; processes that ended by themselves:\n%s",
		c.dir, filepath.Join(dir, "history.json"), c.run.ends())
	for _, n := range c.run.nodes() {
		text, err := os.ReadFile(n.Log)
		if err != nil {
			continue
		}
		var lines []string
		for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
			if !strings.Contains(line, `"component":"etcd"`) {
				lines = append(lines, line)
			}
		}
		lines = lines[max(0, len(lines)-linesOfNode):]
		for i, line := range lines {
			lines[i] = shorten(line)
		}
		c.t.Logf("%s:\n%s", n.Log, strings.Join(lines, "\n"))
	}
}

// tally counts over all seeds of a run. Only one seed at a time uses it.
type tally struct {
	began                         time.Time
	seeds, invalid, violations    int
	requests, calls, unknownCalls int
	injected, missed              map[string]int // by kind of fault
}

// String is the table that a run ends with.
func (t *tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %8s %8s\n", "fault", "injected", "not met")
	total := 0
	for _, kind := range sortedKeys(t.injected, t.missed) {
		fmt.Fprintf(&b, "%-14s %8d %8d\n", kind, t.injected[kind], t.missed[kind])
		total += t.injected[kind]
	}
	fmt.Fprintf(&b, "seeds %d, faults %d, requests %d, calls %d of which %d had an unknown outcome, %v\n",
		t.seeds, total, t.requests, t.calls, t.unknownCalls, time.Since(t.began).Round(time.Second))
	fmt.Fprintf(&b, "violations %d, runs that prove nothing %d\n", t.violations, t.invalid)
	return b.String()
}
