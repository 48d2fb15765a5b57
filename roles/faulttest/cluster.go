package faulttest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen. It is long because
// the machine may be busy; it says nothing about how fast the product is.
const patience = 40 * time.Second

// node is one node of a cluster.
type node struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	PID     int    `json:"pid"`
	API     string `json:"api"`
	DataDir string `json:"data_dir"`
	Config  string `json:"config"`
	Log     string `json:"log"`
}

// runner runs the processes of a cluster.
type runner interface {
	// nodes returns all nodes with their present processes.
	nodes() []node
	// start starts a node that does not run.
	start(name string) error
	// reaped reports whether the process is gone for good.
	reaped(name string, pid int) bool
	// ends tells how processes ended that nobody had told to.
	ends() string
}

// Cluster is a cluster of real processes and all that is recorded of it.
type Cluster struct {
	t      testing.TB
	dir    string
	run    runner
	ledger *Ledger
	// has is what faults may count on here.
	has Need
	// disks are nodes whose data is on a small file system of its own.
	disks []string
	// stopped is the context of what is done when a test has ended.
	stopped context.Context
	*recorder

	clients map[string]*client // of all nodes but agents

	mu       sync.Mutex // guards timeline
	timeline []string

	freezer sync.Mutex     // guards frozen
	frozen  map[string]int // process by node
}

// attach makes a cluster of processes that run already.
func attach(t testing.TB, dir string, run runner, token, cacert string, dial dialer) *Cluster {
	t.Helper()
	c := &Cluster{
		t: t, dir: dir, run: run, ledger: newLedger(t, dir), has: has(),
		stopped: context.WithoutCancel(t.Context()),
		clients: map[string]*client{}, frozen: map[string]int{},
	}
	for _, n := range run.nodes() {
		if n.API != "" {
			c.clients[n.Name] = newClient(t, n.API, token, cacert, dial)
		}
	}
	t.Cleanup(func() {
		c.t = t // it may have been that of a seed
		for _, n := range run.nodes() {
			c.thaw(n.Name)
		}
		if t.Failed() {
			c.report()
		}
	})
	c.recorder = newRecorder(c)
	return c
}

func (c *Cluster) node(name string) node {
	c.t.Helper()
	for _, n := range c.run.nodes() {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("there is no node %s", name)
	return node{}
}

// names lists the nodes of a role.
func (c *Cluster) names(role string) []string {
	var out []string
	for _, n := range c.run.nodes() {
		if n.Role == role {
			out = append(out, n.Name)
		}
	}
	return out
}

func (c *Cluster) controllers() []string { return c.names("controller") }

// other returns the controller that is not this one.
func (c *Cluster) other(name string) string {
	for _, n := range c.controllers() {
		if n != name {
			return n
		}
	}
	return ""
}

// await waits until f returns "", else it fails with what f said last.
func (c *Cluster) await(what string, f func() string) {
	c.t.Helper()
	c.awaitFor(patience, what, f)
}

func (c *Cluster) awaitFor(d time.Duration, what string, f func() string) {
	c.t.Helper()
	why := ""
	for deadline := time.Now().Add(d); ; time.Sleep(5 * time.Millisecond) {
		if why = f(); why == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %v: %s", what, d, why)
		}
	}
}

// kill ends nodes as a power cut would, all at once, and returns when their
// processes are gone.
func (c *Cluster) kill(names ...string) time.Time {
	c.t.Helper()
	pids := map[string]int{}
	for _, name := range names {
		if pids[name] = c.node(name).PID; pids[name] == 0 {
			c.t.Fatalf("%s does not run", name)
		}
	}
	at := time.Now()
	for name, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			c.t.Fatalf("kill %s: %v", name, err)
		}
	}
	for name, pid := range pids {
		c.awaitEnd(name, pid)
		c.unfreeze(name)
	}
	return at
}

// awaitEnd waits for a node to end by itself.
func (c *Cluster) awaitEnd(name string, pid int) {
	c.t.Helper()
	c.await(name+" ends", func() string {
		if !c.run.reaped(name, pid) {
			return "it runs"
		}
		return ""
	})
}

// exited waits until it is known that a node ended by itself with this code.
func (c *Cluster) exited(name string, code int) {
	c.t.Helper()
	c.await(name+" exits", func() string {
		if want := fmt.Sprintf("%s ended by itself: exit status %d", name, code); !strings.Contains(c.run.ends(), want) {
			return fmt.Sprintf("want %q, got:\n%s", want, c.run.ends())
		}
		return ""
	})
}

func (c *Cluster) start(name string) {
	c.t.Helper()
	if err := c.run.start(name); err != nil {
		c.t.Fatalf("start %s: %v", name, err)
	}
}

// freeze stops a node's process as a hypervisor does: without its knowing.
func (c *Cluster) freeze(name string) time.Time {
	c.t.Helper()
	pid := c.node(name).PID
	at := time.Now()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		c.t.Fatalf("freeze %s: %v", name, err)
	}
	c.freezer.Lock()
	c.frozen[name] = pid
	c.freezer.Unlock()
	c.await(name+" stands still", func() string {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			return err.Error()
		}
		if _, rest, ok := strings.Cut(string(stat), ") "); !ok || !strings.HasPrefix(rest, "T") {
			return "it runs"
		}
		return ""
	})
	return at
}

// thaw lets a frozen node run on.
func (c *Cluster) thaw(name string) {
	pid := c.unfreeze(name)
	if pid == 0 {
		return
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		c.t.Errorf("thaw %s: %v", name, err)
	}
}

// unfreeze forgets that a node is frozen and returns its process, 0 if it is not.
func (c *Cluster) unfreeze(name string) int {
	c.freezer.Lock()
	defer c.freezer.Unlock()
	pid := c.frozen[name]
	delete(c.frozen, name)
	return pid
}

// isFrozen reports whether a node stands still.
func (c *Cluster) isFrozen(name string) bool {
	c.freezer.Lock()
	defer c.freezer.Unlock()
	return c.frozen[name] != 0
}

// probe returns what a node answers to load balancers, "" if nothing.
func (c *Cluster) probe(name string) string {
	a, err := c.clients[name].call(c.t.Context(), http.MethodGet, "/uc/is_active_node.do", "", nil)
	if err != nil {
		return ""
	}
	want := map[string]int{"ACTIVE": http.StatusOK, "PASSIVE": http.StatusForbidden, "OFFLINE": http.StatusForbidden}
	if code, known := want[a.Body]; !known || a.Status != code {
		c.t.Errorf("%s answers %d %q to the probe", name, a.Status, a.Body)
	}
	return a.Body
}

// active waits until exactly one controller that runs says that it is Active.
func (c *Cluster) active() string {
	c.t.Helper()
	active := ""
	c.await("a controller is Active", func() string {
		var all []string
		for _, name := range c.running("controller") {
			if c.probe(name) == "ACTIVE" {
				all = append(all, name)
			}
		}
		if len(all) != 1 {
			return fmt.Sprintf("Active are %v", all)
		}
		active = all[0]
		return ""
	})
	return active
}

// running lists the nodes of a role that have a process which is not frozen.
func (c *Cluster) running(role string) []string {
	c.freezer.Lock()
	defer c.freezer.Unlock()
	var out []string
	for _, n := range c.run.nodes() {
		if _, frozen := c.frozen[n.Name]; n.Role == role && n.PID != 0 && !frozen {
			out = append(out, n.Name)
		}
	}
	return out
}

// healthy waits until everything that runs serves: members and relays are ready, one
// controller is Active, and agents have all the links that they can have.
func (c *Cluster) healthy() string {
	c.t.Helper()
	c.await("the cluster is healthy", c.unhealthy)
	return c.active()
}

// unready says which member or relay that runs does not serve, "" if all do.
func (c *Cluster) unready() string {
	for _, name := range slices.Concat(c.running("watch"), c.running("controller"), c.running("relay")) {
		a, err := c.clients[name].call(c.t.Context(), http.MethodGet, "/readyz", "", nil)
		if err != nil {
			return fmt.Sprintf("%s: %v", name, err)
		}
		if a.Status != http.StatusOK {
			return fmt.Sprintf("%s: %v", name, a)
		}
	}
	return ""
}

func (c *Cluster) unhealthy() string {
	if why := c.unready(); why != "" {
		return why
	}
	controllers := c.running("controller")
	for _, name := range controllers {
		var agents []AgentInfo
		if err := c.clients[name].get(c.t.Context(), "/v1/agents", &agents); err != nil {
			return err.Error()
		}
		for _, a := range c.running("agent") {
			i := slices.IndexFunc(agents, func(info AgentInfo) bool { return info.Name == a })
			if want := min(2, len(controllers)); i < 0 || len(agents[i].Links) < want {
				return fmt.Sprintf("%s sees agent %s without %d links: %+v", name, a, want, agents)
			}
		}
	}
	return ""
}

// ways names the relays by which an agent is linked, "" for none.
func (c *Cluster) ways(agent string) []string {
	c.t.Helper()
	var a AgentInfo
	if err := c.clients[c.active()].get(c.t.Context(), "/v1/agents/"+agent, &a); err != nil {
		c.t.Fatal(err)
	}
	var ways []string
	for _, controller := range a.Links {
		ways = append(ways, a.Via[controller])
	}
	return ways
}

// nodeInfo is what the controller at says of a node.
func (c *Cluster) nodeInfo(at, name string) (NodeInfo, error) {
	var all []NodeInfo
	if err := c.clients[at].get(c.t.Context(), "/v1/nodes", &all); err != nil {
		return NodeInfo{}, err
	}
	for _, n := range all {
		if n.Name == name {
			return n, nil
		}
	}
	return NodeInfo{}, fmt.Errorf("%s does not know %s", at, name)
}

// order gives an order to the API of node at and wants it to be obeyed. While
// the cluster changes hands an order may be answered with 503: then again.
func (c *Cluster) order(at, path string, body any) answer {
	c.t.Helper()
	var a answer
	c.await("POST "+path, func() string {
		ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
		defer cancel()
		var err error
		if a, err = c.clients[at].callSlow(ctx, http.MethodPost, path, "", body); err != nil {
			return err.Error()
		}
		if a.Status == http.StatusServiceUnavailable {
			return a.String()
		}
		return ""
	})
	if a.Status >= 300 {
		c.t.Fatalf("POST %s at %s: %v", path, at, a)
	}
	return a
}

// metric reads one value of a controller's metrics.
func (c *Cluster) metric(name, metric string) (float64, error) {
	a, err := c.clients[name].call(c.t.Context(), http.MethodGet, "/metrics", "", nil)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(a.Body, "\n") {
		if rest, ok := strings.CutPrefix(line, metric+" "); ok {
			return strconv.ParseFloat(rest, 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s: %v", name, metric, a)
}

// raftLeader names the member that leads raft: a controller, or else the watch.
func (c *Cluster) raftLeader() string {
	c.t.Helper()
	leader := ""
	c.await("raft has a leader", func() string {
		leader = ""
		for _, name := range c.running("controller") {
			v, err := c.metric(name, "uac_raft_leader")
			if err != nil {
				return err.Error()
			}
			if v == 1 {
				leader = name
			}
		}
		if watches := c.running("watch"); leader == "" && len(watches) > 0 {
			leader = watches[0]
		}
		if leader == "" {
			return "no controller leads, and the watch is down"
		}
		return ""
	})
	return leader
}

// place moves roles until raft is led by a node for which want holds, and
// returns the Active and the leader. It needs a healthy cluster and leaves one.
func (c *Cluster) place(what string, want func(active, leader string) bool) (active, leader string) {
	c.t.Helper()
	for range 12 {
		active = c.healthy()
		if leader = c.raftLeader(); want(active, leader) {
			return active, leader
		}
		if next := c.other(active); next != "" && want(next, leader) {
			c.order(active, "/v1/nodes/switchover", nil)
			continue
		}
		c.restart(leader) // it hands raft over to any other member
	}
	c.t.Fatalf("raft leadership %s: not reached", what)
	return "", ""
}

// What to want of place.
func onActive(active, leader string) bool  { return active == leader }
func offActive(active, leader string) bool { return active != leader }
func onWatch(_, leader string) bool        { return leader == "w1" }

// restart orders a node to end in order and start again, and returns when it
// has opened a new session.
func (c *Cluster) restart(name string) {
	c.t.Helper()
	at := c.active()
	before, err := c.nodeInfo(at, name)
	if err != nil {
		c.t.Fatal(err)
	}
	c.order(at, "/v1/nodes/"+name+"/restart", nil)
	c.awaitSession(name, before.Epoch)
}

// awaitSession waits until a node has opened a newer session.
func (c *Cluster) awaitSession(name string, before int64) {
	c.t.Helper()
	c.await(name+" has a new session", func() string {
		now, err := c.nodeInfo(c.active(), name)
		switch {
		case err != nil:
			return err.Error()
		case now.Epoch <= before:
			return fmt.Sprintf("its session is %d, was %d", now.Epoch, before)
		}
		return ""
	})
}

// decode reads a JSON answer.
func decode[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.Body), &v); err != nil {
		t.Fatalf("answer %v: %v", a, err)
	}
	return v
}
