package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fabric is a network in memory for tests in a synctest bubble, where time
// moves only when all wait.
type fabric struct {
	mu        sync.Mutex
	listeners map[string]*fabricListener
	conns     []*fabricConn
	cut       map[string]bool  // nodes off the network
	refusing  map[string]error // what dials to a node fail with
	dials     map[string]int   // how many there were
}

func newFabric() *fabric {
	return &fabric{listeners: map[string]*fabricListener{}, cut: map[string]bool{}, refusing: map[string]error{}, dials: map[string]int{}}
}

// lifelineOf is where a node listens for lifelines.
func lifelineOf(node string) string { return "lifeline of " + node }

var errRefused = &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

type fabricListener struct {
	f      *fabric
	at     string
	node   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (f *fabric) listen(node string) *fabricListener { return f.listenAt(node, node) }

func (f *fabric) listenAt(at, node string) *fabricListener {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &fabricListener{f: f, at: at, node: node, conns: make(chan net.Conn), closed: make(chan struct{})}
	f.listeners[at] = l
	return l
}

func (l *fabricListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fabricListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.f.mu.Lock()
		defer l.f.mu.Unlock()
		if l.f.listeners[l.at] == l {
			delete(l.f.listeners, l.at)
		}
	})
	return nil
}

func (l *fabricListener) Addr() net.Addr { return &net.UnixAddr{Name: l.node} }

// fabricConn is one end of a connection; local and remote are nodes.
type fabricConn struct {
	net.Conn
	f             *fabric
	local, remote string
	lifeline      bool
	dialed        bool // the end of who dialed
}

// Write loses what is sent to or from a node that is off the network, like a
// cable that was pulled: the sender does not notice.
func (c *fabricConn) Write(b []byte) (int, error) {
	if c.f.off(c.local, c.remote) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (f *fabric) off(nodes ...string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(nodes, func(n string) bool { return f.cut[n] })
}

func (f *fabric) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		f.mu.Lock()
		l, err := f.listeners[to], f.refusing[to]
		f.dials[to]++
		f.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if f.off(from, to) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if l == nil {
			return nil, errRefused
		}
		a, b := net.Pipe()
		life := l.at != l.node
		ours := &fabricConn{Conn: a, f: f, local: from, remote: l.node, lifeline: life, dialed: true}
		theirs := &fabricConn{Conn: b, f: f, local: l.node, remote: from, lifeline: life}
		f.mu.Lock()
		f.conns = append(f.conns, ours, theirs)
		f.mu.Unlock()
		select {
		case l.conns <- theirs:
			return ours, nil
		case <-l.closed:
			return nil, errRefused
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func fabricIdentity(c net.Conn) (string, error) { return c.(*fabricConn).remote, nil }

// drop breaks all connections between two nodes, or of one with all.
func (f *fabric) drop(a, b string) {
	f.mu.Lock()
	conns := slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		if (b == "" || c.remote == b) && c.local == a || (b == "" || c.local == b) && c.remote == a {
			_ = c.Close()
		}
	}
}

// dropLifelines breaks the lifelines of a node with all others, and returns how many
// stood.
func (f *fabric) dropLifelines(node string) (n int) {
	f.mu.Lock()
	conns := slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		if c.lifeline && c.local == node {
			if c.SetDeadline(time.Time{}) == nil { // not closed before
				n++
			}
			_ = c.Close()
		}
	}
	return n
}

// dropDialed breaks the connections that others have dialed to a node, but for lifelines.
func (f *fabric) dropDialed(node string) {
	f.mu.Lock()
	conns := slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		if c.dialed && !c.lifeline && c.remote == node {
			_ = c.Close()
		}
	}
}

// die is the first moment of kill -9: no code of the node runs any more, its lifelines
// have ended, its connections have not. Dials to it fail with that error.
func (f *fabric) die(node string, dials error) {
	f.mu.Lock()
	f.cut[node] = true
	f.refusing[node] = dials
	f.mu.Unlock()
	f.dropLifelines(node)
}

// refuse lets dials to an address fail with that error, or succeed again.
func (f *fabric) refuse(to string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusing[to] = err
}

// dialed returns how often an address was dialed.
func (f *fabric) dialed(to string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials[to]
}

// unplug takes a node off the network; plug brings it back, with its old
// connections dead.
func (f *fabric) unplug(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut[node] = true
}

func (f *fabric) plug(node string) {
	f.mu.Lock()
	delete(f.cut, node)
	f.mu.Unlock()
	f.drop(node, "")
}

// cluster is what all nodes of a test know: who has which session.
type cluster struct {
	mu       sync.Mutex
	sessions map[string]holding
	voters   []string
}

type holding struct {
	epoch int64
	run   string
}

// testFacts are the facts of one node.
type testFacts struct {
	*cluster
	node, run   string
	origin      origin
	generation  int64
	holds       int64     // the session it believes to hold, if not as in cluster
	stuck       time.Time // when its writes stopped, zero while they flow
	began       time.Time
	maintenance bool
}

func (f *testFacts) Run() string { return f.run }

func (f *testFacts) Origin() origin { return f.origin }

func (f *testFacts) Generation() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.generation
}

func (f *testFacts) SessionEpoch() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sessions[f.node]; f.holds == 0 && s.run == f.run {
		return s.epoch
	}
	return f.holds
}

func (f *testFacts) SessionOf(node string) (int64, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[node].epoch, f.sessions[node].run
}

func (f *testFacts) LastWrite() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck.IsZero() {
		return time.Now()
	}
	return f.stuck
}

func (f *testFacts) WritesSince() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.began
}

func (f *testFacts) Voters() []string { return f.voters }

func (f *testFacts) Maintenance() bool { return f.maintenance }

func (f *testFacts) set(change func(*testFacts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (c *cluster) session(node string, epoch int64, run string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch == 0 {
		delete(c.sessions, node)
	} else {
		c.sessions[node] = holding{epoch, run}
	}
}

// eventLog collects what a mesh reports.
type eventLog struct {
	mu   sync.Mutex
	list []string
}

func (e *eventLog) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf(format, args...))
}

func (e *eventLog) has(want string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.list, want)
}

func (e *eventLog) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.list, "; ")
}

func (e *eventLog) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = nil
}

// fabricLifeline is a lifeline in a fabric.
type fabricLifeline struct {
	net.Conn
	done chan struct{}
}

func holdFabric(c net.Conn) (Lifeline, error) {
	l := &fabricLifeline{c, make(chan struct{})}
	go func() {
		defer close(l.done)
		_, _ = c.Read(make([]byte, 1))
	}()
	return l, nil
}

func (l *fabricLifeline) Done() <-chan struct{} { return l.done }

func (l *fabricLifeline) Close() error {
	err := l.Conn.Close()
	<-l.done
	return err
}

// testNode is one running mesh.
type testNode struct {
	*mesh
	facts  *testFacts
	events *eventLog
	stop   context.CancelFunc
	done   chan error
}

func (e *eventLog) hooks() meshEvents {
	return meshEvents{
		Agreed:          func(s string, epoch int64) { e.add("agreed %s %d", s, epoch) },
		Voted:           func(a, s string, epoch int64) { e.add("voted %s %s %d", a, s, epoch) },
		EvidenceChanged: func(n string, epoch int64, w string) { e.add("evidence %s %d %s", n, epoch, w) },
		NewerGeneration: func(n string, g int64) { e.add("newer %s %d", n, g) },
		HelloChanged:    func() { e.add("hello") },
	}
}

func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func startNode(t *testing.T, f *fabric, c *cluster, name, run string, change ...func(*testFacts)) *testNode {
	t.Helper()
	n := &testNode{
		facts:  &testFacts{cluster: c, node: name, run: run, origin: origin{Incarnation: "i-" + name}, began: time.Now().Add(-time.Hour)},
		events: &eventLog{},
		done:   make(chan error, 1),
	}
	for _, f := range change {
		f(n.facts)
	}
	cfg := meshConfig{
		Node: name, Silence: testTiming.silence, Join: testTiming.join, Stall: testTiming.stall,
		Version: "test", Log: testLog(t).With("node", name), Events: n.events.hooks(),
		Listener: f.listen(name), Dial: f.dialer(name), Identify: fabricIdentity,
		Lifelines: &meshLifelines{
			Listener: f.listenAt(lifelineOf(name), name),
			Dial: func(ctx context.Context, peer string) (net.Conn, error) {
				return f.dialer(name)(ctx, lifelineOf(peer))
			},
			Hold: holdFabric,
		},
	}
	for _, v := range c.voters {
		if v != name {
			cfg.Peers = append(cfg.Peers, v)
		}
	}
	n.mesh = newMesh(cfg, n.facts)
	ctx, cancel := context.WithCancel(t.Context())
	n.stop = cancel
	go func() { n.done <- n.Run(ctx) }()
	return n
}

func (n *testNode) end(t *testing.T) {
	t.Helper()
	n.stop()
	if err := <-n.done; !errors.Is(err, context.Canceled) {
		t.Errorf("%s: Run returned %v", n.facts.node, err)
	}
}

// kill ends a node the way kill -9 does: in one instant its listener and all
// its connections are gone.
func (n *testNode) kill(t *testing.T, f *fabric) {
	t.Helper()
	f.mu.Lock()
	delete(f.listeners, n.facts.node)
	f.mu.Unlock()
	n.end(t)
	f.drop(n.facts.node, "")
}

func (n *testNode) status(peer string) PeerStatus {
	for _, s := range n.Snapshot() {
		if s.Name == peer {
			return s
		}
	}
	return PeerStatus{}
}

// inBubble runs a test with three members c1, c2 and w1 that have sessions 10,
// 20 and 30, some time after their start.
func inBubble(t *testing.T, test func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]holding{
			"c1": {10, "r1"}, "c2": {20, "r2"}, "w1": {30, "r3"},
		}}
		nodes := []*testNode{startNode(t, f, c, "c1", "r1"), startNode(t, f, c, "c2", "r2"), startNode(t, f, c, "w1", "r3")}
		time.Sleep(10 * time.Second) // of the bubble: costs nothing
		synctest.Wait()
		for _, n := range nodes {
			if err := n.Check(); err != nil {
				t.Errorf("%s does not trust itself: %v", n.facts.node, err)
			}
			n.events.clear()
		}
		defer func() { // also after a Fatal: what runs on keeps the bubble's clock going for ever
			for _, n := range nodes {
				if n.mesh != nil {
					n.end(t)
				}
			}
		}()
		test(t, f, c, nodes[0], nodes[1], nodes[2])
	})
}

// gone marks a node as ended already.
func (n *testNode) gone() { n.mesh = nil }

func wantAgreement(t *testing.T, n *testNode, suspect string, epoch int64, voters string) {
	t.Helper()
	a, ok := n.Agreement(suspect, epoch)
	if got := strings.Join(a.Voters, " "); ok != (voters != "") || got != voters {
		t.Errorf("%s: agreement on %s by %q (%v), want %q", n.facts.node, suspect, got, ok, voters)
	}
}
