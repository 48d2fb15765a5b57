package coord

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestAnswered(t *testing.T) {
	tests := []struct {
		name       string
		l          *link
		seq, heard uint64
		want       bool
	}{
		{"no echo yet", &link{}, 9, 8, false},
		{"had the first echo that names it", &link{named: 10, namedFrom: 8}, 9, 8, true},
		{"had an echo from before", &link{named: 10, namedFrom: 8}, 9, 7, false},
		{"our echo names another", &link{named: 9, namedFrom: 1}, 9, 8, false},
		{"had no echo that still counts", &link{named: 10, namedFrom: 1}, 9, 0, false},
	}
	for _, tt := range tests {
		if got := tt.l.answered(&pulseMsg{Seq: tt.seq, Heard: tt.heard}, 10); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestLastingErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("read hello: %w", io.EOF), false},
		{os.NewSyscallError("connect", syscall.ECONNREFUSED), false},
		{context.DeadlineExceeded, false},
		{fmt.Errorf("c1: %w", errHello), true},
		{fmt.Errorf("c1: %w", errFrameSize), true},
		{errOutOfTurn, true},
		{fmt.Errorf("tls: %w", &tls.CertificateVerificationError{Err: io.EOF}), true},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(42)}, true},
	} {
		if got := lasting(tt.err); got != tt.want {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
}

func TestFullQueueCutsTheLink(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	l := newLink(ours, newFrameReader(ours), "r1", time.Minute)
	msg := message{Vote: &voteMsg{Suspect: "c1", Epoch: 1, Number: 1, Evidence: strings.Repeat("x", 1000)}}
	for i := 0; l.why() == nil; i++ {
		if i*1000 > maxQueued {
			t.Fatalf("%d messages are queued", i)
		}
		l.send(&msg)
	}
	if err := l.why(); !errors.Is(err, errBehind) {
		t.Errorf("cut because of %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
}

// Over real sockets: what a kernel does when a process dies.

// tcpNode is a mesh on loopback TCP. A dialer's first line is its name, in the
// place of a certificate.
type tcpNode struct {
	*testNode
	mu    sync.Mutex
	conns []net.Conn
	l     net.Listener
	wake  chan struct{}
}

type namedConn struct {
	net.Conn
	peer string
}

func (c namedConn) NetConn() net.Conn { return c.Conn }

type namedListener struct {
	net.Listener
	n *tcpNode
}

func (l namedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.n.keep(c)
	var size [1]byte
	_, _ = io.ReadFull(c, size[:]) // whoever says no name is no member
	name := make([]byte, size[0])
	_, _ = io.ReadFull(c, name)
	return namedConn{c, string(name)}, nil
}

func (n *tcpNode) keep(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
}

func startTCP(t *testing.T, c *cluster, silence time.Duration) map[string]*tcpNode {
	t.Helper()
	nodes := map[string]*tcpNode{}
	for _, name := range c.voters {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		nodes[name] = &tcpNode{l: l, wake: make(chan struct{}, 1)}
	}
	for _, name := range c.voters {
		n := nodes[name]
		n.testNode = &testNode{
			facts: &testFacts{cluster: c, node: name, run: c.sessions[name].run,
				origin: origin{Incarnation: "i-" + name}, began: time.Now().Add(-time.Hour)},
			events: &eventLog{}, done: make(chan error, 1),
		}
		cfg := meshConfig{
			Node: name, Silence: silence, Join: time.Minute, Stall: time.Minute, Version: "test",
			Log: testLog(t).With("node", name), Events: n.events.hooks(),
			Listener: namedListener{n.l, n},
			Identify: func(c net.Conn) (string, error) { return c.(namedConn).peer, nil },
			Dial: func(ctx context.Context, to string) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, "tcp", nodes[to].l.Addr().String())
				if err != nil {
					return nil, fmt.Errorf("dial %s: %w", to, err)
				}
				n.keep(c)
				_, err = c.Write(append([]byte{byte(len(name))}, name...))
				return namedConn{c, to}, err
			},
		}
		for _, v := range c.voters {
			if v != name {
				cfg.Peers = append(cfg.Peers, v)
			}
		}
		poke := func() {
			select {
			case n.wake <- struct{}{}:
			default:
			}
		}
		agreed, evidence, hello := cfg.Events.Agreed, cfg.Events.EvidenceChanged, cfg.Events.HelloChanged
		cfg.Events.Agreed = func(s string, e int64) { agreed(s, e); poke() }
		cfg.Events.EvidenceChanged = func(s string, e int64, w string) { evidence(s, e, w); poke() }
		cfg.Events.HelloChanged = func() { hello(); poke() }
		n.mesh = newMesh(cfg, n.facts)
	}
	for _, n := range nodes {
		ctx, cancel := context.WithCancel(t.Context())
		n.stop = cancel
		go func() { n.done <- n.Run(ctx) }()
	}
	return nodes
}

// await waits until cond holds; the mesh's events say when to look.
func (n *tcpNode) await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for !cond() {
		select {
		case <-n.wake:
		case <-deadline.C:
			t.Fatalf("%s: no %s; peers are %+v; events %v", n.facts.node, what, n.Snapshot(), n.events)
		}
	}
}

func (n *tcpNode) connectedTo(peers ...string) func() bool {
	return func() bool {
		for _, p := range peers {
			if s := n.status(p); !s.Dialed || !s.Accepted {
				return false
			}
		}
		return true
	}
}

func TestKillOverTCP(t *testing.T) {
	c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]holding{
		"c1": {10, "r1"}, "c2": {20, "r2"}, "w1": {30, "r3"},
	}}
	// A silence timeout that the test would notice if anything waited for it.
	nodes := startTCP(t, c, time.Minute)
	c1, c2, w1 := nodes["c1"], nodes["c2"], nodes["w1"]
	c1.await(t, "connections", c1.connectedTo("c2", "w1"))
	c2.await(t, "connections", c2.connectedTo("c1", "w1"))
	w1.await(t, "connections", w1.connectedTo("c1", "c2"))

	// What the kernel does at kill -9; the mesh itself goes on trying.
	_ = c1.l.Close()
	c1.mu.Lock()
	for _, conn := range c1.conns {
		_ = conn.Close()
	}
	c1.mu.Unlock()
	c1.stop() // must not outlive its sockets: it would dial again
	if err := <-c1.done; err == nil {
		t.Error("Run returned no reason")
	}
	for _, n := range []*tcpNode{c2, w1} {
		n.await(t, "agreement", func() bool {
			a, ok := n.Agreement("c1", 10)
			return ok && slices.Equal(a.Voters, []string{"c2", "w1"}) && strings.Contains(a.Evidence, "refused")
		})
	}
	c2.end(t)
	w1.end(t)
}
