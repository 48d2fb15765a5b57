package faulttest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"uac/codestation/durable"
)

// A network cluster has every node in a network namespace of its own. All are
// connected to a bridge in one more namespace, the hub, where packets between
// any two nodes can be dropped in one direction or both. Nothing of this is seen
// outside of the namespaces, and it ends with them.

// prefix begins the name of every namespace that these tests make, followed by
// the pid of the process that made it and a word for its cluster: several clusters
// run at a time.
const prefix = "uacfault-"

// Subnet of the nodes; it exists only in the namespaces.
const (
	networkPrefix = "10.213.77."
	hubAddress    = networkPrefix + "254"
)

// networkRunner runs nodes in namespaces.
type networkRunner struct {
	dir  string
	word string // makes the names of its namespaces its own
	hub  string // name of the namespace with the bridge

	program string
	disks   []string // mount points

	mu    sync.Mutex // guards the fields below
	all   []node
	said  strings.Builder
	hosts map[string]string // address by node
}

// networkOptions change what startNetwork starts.
type networkOptions struct {
	// set are settings of all nodes below cluster, as in a file: "name: value".
	set []string
	// late are nodes that are left to the test to start.
	late []string
	// disks are nodes whose data is on a small file system of its own, if such a
	// thing can be made here.
	disks []string
	// share gives the controllers a shared mount.
	share bool
	// relays starts two relays: a1 has no other way to the controllers, a2 has r2 and
	// its own way.
	relays bool
}

// needNetwork skips the test, loudly, where namespaces cannot be made.
func needNetwork(t testing.TB) {
	t.Helper()
	if why := noNetwork(t); why != "" {
		fmt.Fprintf(os.Stderr, "SKIPPED: %s: %s\n", t.Name(), why)
		t.Skip(why)
	}
}

// noNetwork says why clusters cannot have namespaces here, "" if they can.
func noNetwork(t testing.TB) string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	for _, tool := range []string{"ip", "tc", "ss", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "the program " + tool + " is missing (packages iproute2 and nftables)"
		}
	}
	sweepNamespaces(t)
	probe := (&networkRunner{word: rand.Text()}).namespace("probe")
	if err := run("", "ip", "netns", "add", probe); err != nil {
		return "network namespaces cannot be made here: " + err.Error()
	}
	defer func() { _ = run("", "ip", "netns", "del", probe) }()
	if err := inside(probe, "table bridge t {\n}\n", "nft", "-f", "-"); err != nil {
		return "bridges cannot be filtered here: " + err.Error()
	}
	return ""
}

// namespace is the name of a node's namespace.
func (r *networkRunner) namespace(node string) string {
	return fmt.Sprintf("%s%d-%s-%s", prefix, os.Getpid(), r.word, node)
}

// sweepNamespaces removes what tests left that could not clean up.
func sweepNamespaces(t testing.TB) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", "-json", "netns", "list").Output()
	if err != nil {
		return // then there are none
	}
	var all []struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(out, &all) // nothing at all, if there are none
	for _, ns := range all {
		rest, ours := strings.CutPrefix(ns.Name, prefix)
		pid, _, _ := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); ours && err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			t.Log("removing the namespace that an earlier run left:", ns.Name)
			_ = run("", "ip", "netns", "del", ns.Name)
		}
	}
}

// run runs a program with input and returns what went wrong.
func run(input, program string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// inside runs a program in a namespace.
func inside(ns, input, program string, args ...string) error {
	return run(input, "ip", append([]string{"netns", "exec", ns, program}, args...)...)
}

// outputInside is inside for programs that tell something.
func outputInside(ns, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(context.Background(), "ip", append([]string{"netns", "exec", ns, program}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// startNetwork starts two controllers, a watch, two agents, and relays if asked to,
// each in its own namespace, and waits until the cluster serves.
func startNetwork(t testing.TB, opts networkOptions) (*Cluster, *networkRunner) {
	t.Helper()
	needNetwork(t)
	dir := clusterDir(t)
	r := &networkRunner{dir: dir, word: rand.Text(), program: program(t), hosts: map[string]string{}}
	r.hub = r.namespace("hub")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"c1", "c2", "w1", "a1", "a2"}
	if opts.relays {
		names = append(names, "r1", "r2")
	}
	roles := map[byte]string{'c': "controller", 'w': "watch", 'a': "agent", 'r': "relay"}
	t.Cleanup(func() {
		r.stop()
		for _, dir := range r.disks {
			_ = run("", "fsfreeze", "--unfreeze", dir) // if a test ended in between
			_ = run("", "umount", "-l", dir)           // steps that still run there end soon
		}
		for _, name := range append(slices.Clone(names), "hub") {
			_ = run("", "ip", "netns", "del", r.namespace(name)) // some may not exist
		}
	})
	must(run("", "ip", "netns", "add", r.hub))
	must(run("", "ip", "-n", r.hub, "link", "add", "br0", "type", "bridge"))
	must(run("", "ip", "-n", r.hub, "link", "set", "br0", "up"))
	must(run("", "ip", "-n", r.hub, "addr", "add", hubAddress+"/24", "dev", "br0"))
	pki := filepath.Join(dir, "pki")
	must(run("", program(t), "pki", "init", "--cluster", "net", "--dir", pki))
	for i, name := range names {
		ns, addr := r.namespace(name), networkPrefix+strconv.Itoa(i+1)
		r.hosts[name] = addr
		must(run("", "ip", "netns", "add", ns))
		must(run("", "ip", "-n", r.hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", ns))
		must(run("", "ip", "-n", r.hub, "link", "set", name, "master", "br0", "up"))
		must(run("", "ip", "-n", ns, "addr", "add", addr+"/24", "dev", "eth0"))
		must(run("", "ip", "-n", ns, "link", "set", "eth0", "up"))
		must(run("", "ip", "-n", ns, "link", "set", "lo", "up"))
		home := filepath.Join(dir, name)
		n := node{Name: name, Role: roles[name[0]], DataDir: filepath.Join(home, "data"), Log: filepath.Join(home, "log")}
		args := []string{"pki", "issue", "--dir", pki, "--role", n.Role, "--name", name}
		if n.Role != "agent" {
			n.API = "https://" + addr + ":7600"
			args = append(args, "--host", addr)
		}
		must(durable.MkdirAll(n.DataDir, 0o700))
		if slices.Contains(opts.disks, name) {
			must(mountDisk(n.DataDir))
			r.disks = append(r.disks, n.DataDir)
		}
		must(run("", program(t), append(args, filepath.Join(n.DataDir, "pki"))...))
		r.all = append(r.all, n)
	}
	for _, n := range r.all {
		must(durable.WriteFile(filepath.Join(dir, n.Name, "uac.yaml"), []byte(r.config(n, opts)), 0o644))
	}
	must(durable.MkdirAll(filepath.Join(dir, "faults"), 0o700))
	if opts.share {
		must(r.makeShare())
	}
	for _, n := range r.all {
		if !slices.Contains(opts.late, n.Name) {
			must(r.start(n.Name))
		}
	}
	token, err := os.ReadFile(filepath.Join(pki, "admin.token"))
	must(err)
	c := attach(t, dir, r, strings.TrimSpace(string(token)), filepath.Join(pki, "ca", "root.crt"), r.dial)
	c.has |= NeedNetwork
	if opts.share {
		c.has |= NeedMount
	}
	if c.disks = opts.disks; len(c.disks) > 0 {
		c.has |= NeedDisk
	}
	if len(opts.late) == 0 {
		c.healthy()
	}
	if opts.relays && slices.Contains(c.ways("a1"), "") {
		t.Fatal("a1 has a link of its own, want relays only")
	}
	return c, r
}

// config is the configuration file of a node.
func (r *networkRunner) config(n node, opts networkOptions) string {
	var b strings.Builder
	addr := r.hosts[n.Name]
	fmt.Fprintf(&b, "node: {role: %s, name: %s, data_dir: %q}\n", n.Role, n.Name, n.DataDir)
	fmt.Fprintf(&b, "cluster: {name: net%s}\n", strings.Join(append([]string{""}, opts.set...), ", "))
	servers := []string{r.hosts["c1"], r.hosts["c2"]}
	if n.Role == "agent" {
		switch {
		case opts.relays && n.Name == "a1":
			servers = []string{r.hosts["r1"], r.hosts["r2"]}
		case opts.relays:
			servers = append([]string{r.hosts["r2"]}, servers...)
		}
		fmt.Fprintf(&b, "agent: {servers: [%s], labels: {tier: web}, kill_grace: 500ms}\n", strings.Join(servers, ", "))
		return b.String()
	}
	if opts.share && n.Role == "controller" {
		fmt.Fprintf(&b, "mount: {dir: %q, timeout: 1s}\n", shareDir(r.dir))
	}
	fmt.Fprintf(&b, "listen: {api: \"%[1]s:7600\", raft: \"%[1]s:7601\", link: \"%[1]s:7602\"}\n", addr)
	if n.Role == "relay" {
		fmt.Fprintf(&b, "relay: {servers: [%s]}\n", strings.Join(servers, ", "))
		return b.String()
	}
	b.WriteString("members:\n")
	for _, m := range r.all {
		if m.Role == "controller" || m.Role == "watch" {
			fmt.Fprintf(&b, "- {name: %s, role: %s, address: %s}\n", m.Name, m.Role, r.hosts[m.Name])
		}
	}
	return b.String()
}

// dial connects from the hub, which reaches every node whatever is cut between
// them.
func (r *networkRunner) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type dialed struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialed, 1)
	go func() {
		// A socket stays in the namespace of the thread that made it. The thread
		// is not given back: it ends with this goroutine.
		runtime.LockOSThread()
		f, err := os.Open("/run/netns/" + r.hub)
		if err != nil {
			done <- dialed{nil, err}
			return
		}
		defer func() { _ = f.Close() }()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- dialed{nil, err}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		done <- dialed{conn, err}
	}()
	d := <-done
	return d.conn, d.err
}

// direction is a way through the bridge; an empty end is any node.
type direction struct{ from, to string }

// both are the two directions between nodes.
func both(a, b string) []direction { return []direction{{a, b}, {b, a}} }

// cut drops all packets in the given directions, and only there, until the next
// cut. Without directions everything is whole again.
func (r *networkRunner) cut(t testing.TB, directions ...direction) {
	t.Helper()
	rules := "table bridge cut\ndelete table bridge cut\n" // whether it exists or not
	if len(directions) > 0 {
		rules += "table bridge cut {\n chain f {\n  type filter hook forward priority 0;\n"
		for _, d := range directions {
			rules += fmt.Sprintf("  iifname %q oifname %q drop;\n", d.from, d.to)
		}
		rules += " }\n}\n"
	}
	if err := inside(r.hub, rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func (r *networkRunner) nodes() []node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func (r *networkRunner) find(name string) *node {
	for i := range r.all {
		if r.all[i].Name == name {
			return &r.all[i]
		}
	}
	return nil
}

func (r *networkRunner) start(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.find(name)
	if n == nil || n.PID != 0 {
		return fmt.Errorf("%s does not exist or runs", name)
	}
	log, err := os.OpenFile(n.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(context.Background(), "ip", "netns", "exec", r.namespace(name), r.program, "--config", filepath.Join(r.dir, name, "uac.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "UACFAULT_DIR="+filepath.Join(r.dir, "faults"))
	if err := spawn(cmd); err != nil { // ip replaces itself by the program
		return err
	}
	pid := cmd.Process.Pid
	n.PID = pid
	go func() {
		err := cmd.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := r.find(name); n.PID == pid {
			n.PID = 0
		}
		fmt.Fprintf(&r.said, "%s ended: %v\n", name, err)
	}()
	return nil
}

func (r *networkRunner) reaped(name string, pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.find(name)
	return n == nil || n.PID != pid
}

func (r *networkRunner) ends() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.String()
}

// stop kills what runs: how nodes end in order is for other tests.
func (r *networkRunner) stop() {
	for _, n := range r.nodes() {
		if n.PID != 0 {
			_ = syscall.Kill(n.PID, syscall.SIGKILL)
		}
	}
}
