package coordtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"uac/coord"
)

// patience bounds every wait of this package. It only ends tests that fail.
const patience = 30 * time.Second

// Options of a cluster. The zero value is one controller with default timers.
type Options struct {
	Controllers, Watches int
	// Sessions makes every member keep a session, the way a role does.
	Sessions bool
	// Change edits a member's configuration before it starts.
	Change func(*coord.Config)
	// Point, if set, is called at every named point of a member.
	Point func(node string, p coord.Point)
}

// Cluster is a set of members that can be stopped and started one by one.
type Cluster struct {
	t     testing.TB
	opts  Options
	peers []coord.Peer
	dirs  map[string]string

	mu    sync.Mutex
	nodes map[string]*Node
	all   []*Node
	cut   map[[2]string]bool
}

// Start starts a cluster of controllers c1.. and watches w1.. and stops it at
// the end of the test.
func Start(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c := New(t, opts)
	for _, p := range c.peers {
		c.Run(p.Name)
	}
	return c
}

// New makes a cluster of which nothing runs yet.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if opts.Controllers == 0 {
		opts.Controllers = 1
	}
	c := &Cluster{t: t, opts: opts, dirs: map[string]string{}, nodes: map[string]*Node{}, cut: map[[2]string]bool{}}
	add := func(name string, role coord.Role) {
		ip := reserve(t)
		c.peers = append(c.peers, coord.Peer{
			Name: name, Role: role, Raft: net.JoinHostPort(ip, "7601"), Link: net.JoinHostPort(ip, "7602"),
		})
		c.dirs[name] = t.TempDir()
	}
	for i := range opts.Controllers {
		add(fmt.Sprintf("c%d", i+1), coord.RoleController)
	}
	for i := range opts.Watches {
		add(fmt.Sprintf("w%d", i+1), coord.RoleWatch)
	}
	t.Cleanup(func() {
		c.Kill(c.Names()...)
		for _, n := range c.all {
			n.Member.Drained()
		}
	})
	return c
}

// Names of all members, running or not.
func (c *Cluster) Names() []string {
	var names []string
	for _, p := range c.peers {
		names = append(names, p.Name)
	}
	return names
}

// Peer is how the others know a member.
func (c *Cluster) Peer(name string) coord.Peer {
	return c.peers[slices.IndexFunc(c.peers, func(p coord.Peer) bool { return p.Name == name })]
}

// Node returns a running member, nil if it is down.
func (c *Cluster) Node(name string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[name]
}

// DataDir of a member, for tests that look at it or wipe it.
func (c *Cluster) DataDir(name string) string { return c.dirs[name] }

// SetDataDir gives a member that is down another data directory.
func (c *Cluster) SetDataDir(name, dir string) { c.dirs[name] = dir }

// Run starts a member that is down.
func (c *Cluster) Run(name string) *Node {
	c.t.Helper()
	self := c.Peer(name)
	cfg := coord.DefaultConfig()
	cfg.Name, cfg.Role, cfg.Cluster, cfg.DataDir, cfg.Peers = name, self.Role, "test", c.dirs[name], c.peers
	cfg.QuotaBytes = 64 << 20
	if c.opts.Change != nil {
		c.opts.Change(&cfg)
	}
	ln, err := net.Listen("tcp", self.Link)
	if err != nil {
		c.t.Fatalf("listen for pulses of %s: %v", name, err)
	}
	point := func(coord.Point) {}
	if c.opts.Point != nil {
		point = func(p coord.Point) { c.opts.Point(name, p) }
	}
	m, err := coord.New(cfg, coord.Deps{
		Log:       slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name),
		Pulses:    acceptor{Listener: ln, cluster: c, self: name},
		DialPulse: func(ctx context.Context, p coord.Peer) (net.Conn, error) { return c.dial(ctx, name, p) },
		PulsePeer: func(conn net.Conn) (string, error) { return conn.(*pulseConn).peer() },
		Version:   "test",
		Point:     point,
	})
	if err != nil {
		_ = ln.Close()
		c.t.Fatalf("member %s: %v", name, err)
	}
	n := newNode(c.t, name, m, c.opts.Sessions)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[name] = n
	c.all = append(c.all, n)
	return n
}

// Kill ends members without a goodbye, all at once, and waits until they are
// gone: as far as the others can tell, their processes crashed.
func (c *Cluster) Kill(names ...string) { c.end(names, func(n *Node) { n.cancel() }) }

// Stop ends members in an orderly way: each says goodbye first. hold keeps
// their work for their return, nil hands it over.
func (c *Cluster) Stop(hold *coord.HoldRecord, names ...string) {
	c.end(names, func(n *Node) { n.leave(hold) })
}

func (c *Cluster) end(names []string, how func(*Node)) {
	var ending []*Node
	c.mu.Lock()
	for _, name := range names {
		if n := c.nodes[name]; n != nil {
			ending = append(ending, n)
			delete(c.nodes, name)
		}
	}
	c.mu.Unlock()
	for _, n := range ending {
		how(n)
	}
	for _, n := range ending {
		select {
		case <-n.done:
		case <-time.After(patience):
			c.t.Errorf("member %s does not stop", n.Name)
		}
	}
}

// Cut drops all pulses between two members, both ways, without closing the
// connections; raft is not cut.
func (c *Cluster) Cut(a, b string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[[2]string{a, b}], c.cut[[2]string{b, a}] = true, true
}

// Heal undoes Cut.
func (c *Cluster) Heal(a, b string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cut, [2]string{a, b})
	delete(c.cut, [2]string{b, a})
}

func (c *Cluster) isCut(a, b string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[[2]string{a, b}]
}

// Await waits until cond holds for what the view of a running member shows.
func (c *Cluster) Await(name, what string, cond func(coord.Snapshot) bool) coord.Snapshot {
	c.t.Helper()
	return Await(c.t, c.Node(name).Member.View(), what, cond)
}

// Await waits until cond holds for what the view shows, and returns that.
func Await(t testing.TB, v *coord.View, what string, cond func(coord.Snapshot) bool) coord.Snapshot {
	t.Helper()
	changed := make(chan struct{}, 1)
	_, stop := v.Follow(func(coord.Batch) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	defer stop()
	late := time.After(patience)
	for {
		if snap := v.Snapshot(); cond(snap) {
			return snap
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

// reserve returns a loopback address that is this test's own until its end: it
// holds a port there that every test like it would take first.
func reserve(t testing.TB) string {
	t.Helper()
	for {
		ip := net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250))).String()
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, "7600"))
		switch {
		case err == nil:
			t.Cleanup(func() { _ = ln.Close() })
			return ip
		case !errors.Is(err, syscall.EADDRINUSE):
			t.Fatal(err)
		}
	}
}
