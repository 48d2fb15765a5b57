// Package coordtest runs real coordination members in one process, for tests:
// real etcd servers on loopback ports, real pulses over TCP, no TLS.
package coordtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"uac/coord"
)

// Options of a cluster. The zero value is one controller with test timers.
type Options struct {
	Controllers, Watches int
	// Change edits a member's configuration before it starts.
	Change func(*coord.Config)
}

// Cluster is a set of members that can be stopped and started one by one.
type Cluster struct {
	t     testing.TB
	opts  Options
	peers []coord.Peer
	dirs  map[string]string

	mu    sync.Mutex
	nodes map[string]*Node
	cut   map[[2]string]bool
}

// Node is one running member.
type Node struct {
	Name   string
	Member *coord.Member
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Start starts a cluster of controllers c1.. and watches w1.. and stops it at
// the end of the test.
func Start(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if opts.Controllers == 0 {
		opts.Controllers = 1
	}
	c := &Cluster{t: t, opts: opts, dirs: map[string]string{}, nodes: map[string]*Node{}, cut: map[[2]string]bool{}}
	add := func(name string, role coord.Role) {
		c.peers = append(c.peers, coord.Peer{Name: name, Role: role, Raft: freeAddr(t), Link: freeAddr(t)})
		c.dirs[name] = t.TempDir()
	}
	for i := range opts.Controllers {
		add(fmt.Sprintf("c%d", i+1), coord.RoleController)
	}
	for i := range opts.Watches {
		add(fmt.Sprintf("w%d", i+1), coord.RoleWatch)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, p := range c.peers {
			wg.Go(func() { c.Kill(p.Name) })
		}
		wg.Wait()
	})
	for _, p := range c.peers {
		c.Run(p.Name)
	}
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

// Node returns a running member, nil if it is down.
func (c *Cluster) Node(name string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[name]
}

// DataDir of a member, for tests that look at it or wipe it.
func (c *Cluster) DataDir(name string) string { return c.dirs[name] }

// Run starts a member that is down.
func (c *Cluster) Run(name string) *Node {
	c.t.Helper()
	cfg := coord.DefaultConfig()
	cfg.Name, cfg.Cluster, cfg.DataDir, cfg.Peers = name, "test", c.dirs[name], c.peers
	cfg.QuotaBytes = 64 << 20
	var self coord.Peer
	for _, p := range c.peers {
		if p.Name == name {
			cfg.Role, self = p.Role, p
		}
	}
	if c.opts.Change != nil {
		c.opts.Change(&cfg)
	}
	ln, err := net.Listen("tcp", self.Link)
	if err != nil {
		c.t.Fatalf("listen for pulses of %s: %v", name, err)
	}
	log := slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("node", name)
	m, err := coord.New(cfg, coord.Deps{
		Log:    log,
		Pulses: named{Listener: ln},
		DialPulse: func(ctx context.Context, p coord.Peer) (net.Conn, error) {
			if c.isCut(name, p.Name) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", p.Link)
			if err != nil {
				return nil, err
			}
			if _, err := fmt.Fprintf(conn, "%s\n", name); err != nil {
				return nil, errors.Join(err, conn.Close())
			}
			return &cuttable{Conn: conn, cut: func() bool { return c.isCut(name, p.Name) }, peer: p.Name}, nil
		},
		PulsePeer: func(conn net.Conn) (string, error) {
			switch conn := conn.(type) {
			case *cuttable:
				return conn.peer, nil
			case *namedConn:
				return conn.name()
			}
			return "", fmt.Errorf("unexpected connection %T", conn)
		},
		Version: "test",
	})
	if err != nil {
		_ = ln.Close()
		c.t.Fatalf("member %s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{Name: name, Member: m, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(n.done)
		n.err = m.Run(ctx)
	}()
	c.mu.Lock()
	c.nodes[name] = n
	c.mu.Unlock()
	return n
}

// Kill ends a member without a goodbye and waits until it is gone. Its
// sessions end as if the process had crashed: connections close, nothing is
// written.
func (c *Cluster) Kill(name string) {
	c.mu.Lock()
	n := c.nodes[name]
	delete(c.nodes, name)
	c.mu.Unlock()
	if n == nil {
		return
	}
	n.cancel()
	select {
	case <-n.done:
	case <-time.After(30 * time.Second):
		c.t.Errorf("member %s does not stop", name)
	}
}

// Done closes when the member has ended; Err says why.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is the error that the member ended with, valid after Done.
func (n *Node) Err() error { <-n.done; return n.err }

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

func (c *Cluster) isCut(from, to string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[[2]string{from, to}]
}

// cuttable is a dialed connection whose writes vanish while it is cut.
type cuttable struct {
	net.Conn
	cut  func() bool
	peer string
}

func (c *cuttable) Write(b []byte) (int, error) {
	if c.cut() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// named is a listener whose connections begin with the dialer's name.
type named struct{ net.Listener }

func (l named) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &namedConn{Conn: conn, r: bufio.NewReader(conn)}, nil
}

type namedConn struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
	peer string
	err  error
}

func (c *namedConn) name() (string, error) {
	c.once.Do(func() {
		line, err := c.r.ReadString('\n')
		if err == nil {
			c.peer = line[:len(line)-1]
		}
		c.err = err
	})
	return c.peer, c.err
}

func (c *namedConn) Read(b []byte) (int, error) {
	if _, err := c.name(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}
