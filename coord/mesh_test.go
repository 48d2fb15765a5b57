package coord

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	"go.uber.org/goleak"
)

// fabric is a network in memory for tests in a synctest bubble, where time
// moves only when all wait.
type fabric struct {
	mu        sync.Mutex
	listeners map[string]*fabricListener
	conns     []*fabricConn
	cut       map[string]bool // nodes off the network
}

func newFabric() *fabric {
	return &fabric{listeners: map[string]*fabricListener{}, cut: map[string]bool{}}
}

type fabricListener struct {
	f      *fabric
	node   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (f *fabric) listen(node string) *fabricListener {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &fabricListener{f: f, node: node, conns: make(chan net.Conn), closed: make(chan struct{})}
	f.listeners[node] = l
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
		if l.f.listeners[l.node] == l {
			delete(l.f.listeners, l.node)
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
		l := f.listeners[to]
		f.mu.Unlock()
		if f.off(from, to) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		if l == nil {
			return nil, refused
		}
		a, b := net.Pipe()
		ours := &fabricConn{Conn: a, f: f, local: from, remote: to}
		theirs := &fabricConn{Conn: b, f: f, local: to, remote: from}
		f.mu.Lock()
		f.conns = append(f.conns, ours, theirs)
		f.mu.Unlock()
		select {
		case l.conns <- theirs:
			return ours, nil
		case <-l.closed:
			return nil, refused
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
	sessions map[string]session2
	voters   []string
}

type session2 struct {
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

func (f *testFacts) Run() string    { return f.run }
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

func (f *testFacts) Voters() []string  { return f.voters }
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
		c.sessions[node] = session2{epoch, run}
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

func (e *eventLog) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = nil
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
		c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]session2{
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
		test(t, f, c, nodes[0], nodes[1], nodes[2])
		for _, n := range nodes {
			if n.mesh != nil {
				n.end(t)
			}
		}
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

func TestKillIsKnownAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		began := time.Now()
		c1.kill(t, f)
		c1.gone()
		synctest.Wait()
		if d := time.Since(began); d != 0 {
			t.Errorf("took %v: something waited for a timer", d)
		}
		for _, n := range []*testNode{c2, w1} {
			if got := n.status("c1").Evidence; got != "refused" {
				t.Errorf("%s: evidence is %q, want refused", n.facts.node, got)
			}
			if !n.events.has("evidence c1 10 refused") || !n.events.has("agreed c1 10") {
				t.Errorf("%s: events are %q", n.facts.node, n.events.list)
			}
			wantAgreement(t, n, "c1", 10, "c2 w1")
			wantAgreement(t, n, "c1", 9, "")
		}
		if !c2.events.has("voted w1 c1 10") || !w1.events.has("voted c2 c1 10") {
			t.Errorf("votes not reported: %q, %q", c2.events.list, w1.events.list)
		}
		// It lasts as long as the session does.
		time.Sleep(time.Minute)
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		c.session("c1", 0, "")
		c2.Refresh()
		wantAgreement(t, c2, "c1", 10, "")
		if c2.Suspected("c1", 10) {
			t.Error("suspected without a session")
		}
	})
}

func TestUnpluggedIsSilent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		f.unplug("c1")
		time.Sleep(799 * ms)
		if c2.Suspected("c1", 10) {
			t.Error("suspected too early")
		}
		time.Sleep(2 * ms) // the last pulse may have come just before the cut
		if err := c1.Check(); !errors.Is(err, ErrNoTrust) {
			t.Errorf("c1 still trusts itself: %v", err)
		}
		time.Sleep(200 * ms)
		synctest.Wait()
		for _, n := range []*testNode{c2, w1} {
			if got := n.status("c1").Evidence; got != "silence" {
				t.Errorf("%s: evidence is %q, want silence", n.facts.node, got)
			}
			wantAgreement(t, n, "c1", 10, "c2 w1")
		}
		// It suspects all others, and nobody agrees.
		if !c1.Suspected("c2", 20) || !c1.Suspected("w1", 30) {
			t.Error("c1 hears nobody and suspects nobody")
		}
		wantAgreement(t, c1, "c2", 20, "")
		if err := c2.Check(); err != nil {
			t.Errorf("c2 and w1 are a majority: %v", err)
		}

		f.plug("c1")
		time.Sleep(time.Second)
		synctest.Wait()
		for _, n := range []*testNode{c2, w1} {
			wantAgreement(t, n, "c1", 10, "")
			if got := n.status("c1").Evidence; got != "" {
				t.Errorf("%s: evidence is still %q", n.facts.node, got)
			}
		}
		if err := c1.Check(); err != nil {
			t.Errorf("c1 is back: %v", err)
		}
	})
}

func TestQuickRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		// Nobody finds the port closed: the new process listens at once.
		l := f.listen("c1")
		defer l.Close()
		c1.stop()
		<-c1.done
		c1.gone()
		next := startNode(t, f, c, "c1", "r9")
		synctest.Wait()
		time.Sleep(100 * ms)
		if got := c2.status("c1").Evidence; got != "new run" {
			t.Errorf("evidence is %q, want new run", got)
		}
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		if err := next.Check(); !errors.Is(err, ErrNoTrust) {
			t.Errorf("trust without a session: %v", err)
		}

		// Its session: c2's view shows it, w1's does not yet (same view here, so
		// told to c2 only), and its own trust needs no more than c2.
		time.Sleep(time.Second)
		c.session("c1", 40, "r9")
		c2.Refresh()
		synctest.Wait()
		if err := next.Check(); err != nil {
			t.Errorf("no trust although one voter knows the new session: %v", err)
		}
		wantAgreement(t, c2, "c1", 10, "")
		if c2.Suspected("c1", 40) {
			t.Error("the new session is suspected")
		}
		next.end(t)
	})
}

func TestFencedNodeHearsOfItAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, c *cluster, c1, c2, _ *testNode) {
		began := time.Now()
		c1.facts.set(func(f *testFacts) { f.holds = 10 }) // its own view is behind
		c.session("c1", 0, "")
		c2.Refresh()
		synctest.Wait()
		if err := c1.Check(); err == nil || !strings.Contains(err.Error(), "session 10 is over, says ") {
			t.Errorf("c1 says %v", err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("took %v: something waited for a timer", d)
		}
	})
}

func TestStalledWrites(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		c1.facts.set(func(f *testFacts) { f.stuck = time.Now() })
		time.Sleep(2400 * ms)
		if err := c1.Check(); err == nil {
			t.Error("trust with a write age of 4/5 of the stall timeout")
		}
		time.Sleep(500 * ms)
		if got := c2.status("c1").Evidence; got != "not acting" {
			t.Errorf("evidence is %q, want not acting", got)
		}
		time.Sleep(500 * ms)
		if got := c2.status("c1").Evidence; got != "not acting, stalled" {
			t.Errorf("evidence is %q, want not acting and stalled", got)
		}
		wantAgreement(t, w1, "c1", 10, "c2 w1")
		c1.facts.set(func(f *testFacts) { f.stuck = time.Time{} })
		c1.Nudge()
		synctest.Wait()
		if got := c2.status("c1"); got.Evidence != "" || !got.Acting {
			t.Errorf("after the nudge: %+v", got)
		}
		wantAgreement(t, w1, "c1", 10, "")
	})
}

func TestStandstillOfAllIsNoEvidence(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fabric, _ *cluster, c1, c2, w1 *testNode) {
		all := []*testNode{c1, c2, w1}
		for _, n := range all {
			n.facts.set(func(f *testFacts) { f.stuck = time.Now() })
		}
		time.Sleep(10 * time.Second)
		// c2 is first to write again, by more than three pulses.
		c2.facts.set(func(f *testFacts) { f.stuck, f.began = time.Time{}, time.Now() })
		time.Sleep(500 * ms)
		for _, n := range all {
			for _, p := range n.Snapshot() {
				if p.Evidence != "" {
					t.Errorf("%s: evidence against %s: %s", n.facts.node, p.Name, p.Evidence)
				}
			}
		}
	})
}

func TestAliveExpiredNeedsNoVotes(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, _, c2, _ *testNode) {
		// c2 is alone with its evidence: w1 does not answer it.
		f.unplug("w1")
		f.unplug("c1")
		time.Sleep(2 * time.Second)
		wantAgreement(t, c2, "c1", 10, "")
		c2.Alive("c1", 10, true)
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2")
		if !c2.events.has("agreed c1 10") {
			t.Errorf("events are %q", c2.events.list)
		}
		c2.Alive("c1", 10, false)
		wantAgreement(t, c2, "c1", 10, "")
	})
}

func TestTrustEndsWithTheConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, _ *testNode) {
		// Echoes of just now do not help once the connections are gone.
		f.unplug("c1")
		f.drop("c1", "")
		synctest.Wait()
		err := c1.Check()
		if err == nil || !strings.Contains(err.Error(), "c2 is not connected; w1 is not connected") {
			t.Errorf("c1 says %v", err)
		}
		if err := c2.Check(); err != nil {
			t.Errorf("c2 still has w1: %v", err)
		}
		f.plug("c1")
		time.Sleep(time.Second)
		if err := c1.Check(); err != nil {
			t.Errorf("c1 is connected again: %v", err)
		}
	})
}

func TestBrokenConnectionsAloneAreNoEvidence(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, _ *cluster, c1, c2, w1 *testNode) {
		for range 20 {
			f.drop("c1", "c2")
			synctest.Wait()
			time.Sleep(70 * ms)
		}
		if c2.events.has("evidence c1 10 refused") || c2.Suspected("c1", 10) {
			t.Errorf("events are %q", c2.events.list)
		}
		for _, n := range []*testNode{c1, c2, w1} {
			if err := n.Check(); err != nil {
				t.Errorf("%s: %v", n.facts.node, err)
			}
		}
	})
}

func TestGenerations(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		// c2 learns of a newer one: the others' pulses get no echo any more.
		c2.facts.set(func(f *testFacts) { f.generation = 3 })
		time.Sleep(time.Second)
		if !c1.events.has("newer c2 3") {
			t.Errorf("events of c1 are %q", c1.events.list)
		}
		if err := c2.Check(); err == nil {
			t.Error("c2 trusts echoes of an old generation")
		}
		// In a hello it is refused with the reason.
		f.drop("c1", "c2")
		time.Sleep(time.Second)
		if got := c1.status("c2"); got.Dialed || got.Accepted || !strings.Contains(got.Trouble, "generation 0 is over: this is generation 3") {
			t.Errorf("c1 sees %+v", got)
		}
		// An empty member does not know a generation and is welcome.
		w1.end(t)
		w1.gone()
		empty := startNode(t, f, c, "w1", "r8", func(f *testFacts) { f.generation = -1 })
		time.Sleep(2 * time.Second)
		if got := empty.status("c2"); !got.Dialed || !got.Accepted {
			t.Errorf("the empty member sees %+v", got)
		}
		if got := empty.status("c1"); !got.Dialed || !got.Accepted {
			t.Errorf("the empty member sees %+v", got)
		}
		empty.end(t)
	})
}

func TestHellos(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric, c *cluster, c1, c2, w1 *testNode) {
		if h := c2.Hellos()["c1"]; h.Incarnation != "i-c1" || h.Node != "c1" || h.Run != "r1" {
			t.Errorf("hello of c1 is %+v", h)
		}
		c1.kill(t, f)
		c1.gone()
		synctest.Wait()
		if _, ok := c2.Hellos()["c1"]; ok || !c2.events.has("hello") {
			t.Errorf("c1 is gone and still among the hellos; events %q", c2.events.list)
		}
		set := map[string]string{"c1": "x"}
		next := startNode(t, f, c, "c1", "r9", func(f *testFacts) {
			f.origin = origin{Incarnation: "new", Recorded: set, HasData: true}
		})
		time.Sleep(100 * ms)
		if h := c2.Hellos()["c1"]; h.Incarnation != "new" || !h.HasData || h.Recorded["c1"] != "x" {
			t.Errorf("hello of c1 is %+v", h)
		}
		next.end(t)
	})
}

func TestSingleMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{voters: []string{"c1"}, sessions: map[string]session2{"c1": {10, "r1"}}}
		n := startNode(t, newFabric(), c, "c1", "r1")
		synctest.Wait()
		if err := n.Check(); err != nil {
			t.Error(err)
		}
		if len(n.Snapshot()) != 0 || len(n.Hellos()) != 0 {
			t.Error("peers of a single member")
		}
		if _, ok := n.Agreement("c9", 1); ok || n.Suspected("c9", 1) {
			t.Error("a stranger is suspected")
		}
		n.end(t)
	})
}

func TestListenerFailureEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{voters: []string{"c1", "c2"}, sessions: map[string]session2{}}
		f := newFabric()
		n := startNode(t, f, c, "c1", "r1")
		synctest.Wait()
		_ = f.listeners["c1"].Close()
		if err := <-n.done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run returned %v", err)
		}
		n.stop()
	})
}

// puppet is a peer that a test plays by hand.
type puppet struct {
	t    *testing.T
	conn net.Conn
	in   *frameReader
}

// send writes a message. The mesh reads at any time, so it does not block.
func (p *puppet) send(msg message) {
	p.t.Helper()
	frame, err := appendFrame(nil, &msg)
	if err == nil {
		_, err = p.conn.Write(frame)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *puppet) next() message {
	p.t.Helper()
	m, err := p.in.next()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// expectEnd reads until the mesh ends the connection.
func (p *puppet) expectEnd() {
	p.t.Helper()
	for {
		if _, err := p.in.next(); err != nil {
			return
		}
	}
}

func helloOf(node, run string) message {
	return message{Hello: &helloMsg{Node: node, Run: run, origin: origin{Incarnation: "i-" + node}}}
}

// withPuppets runs a test with the member c2 and puppets in the place of c1 and
// w1: what they dialed, after the hellos.
func withPuppets(t *testing.T, test func(t *testing.T, f *fabric, c2 *testNode, c1, w1 *puppet)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]session2{"c1": {10, "r1"}, "c2": {20, "r2"}}}
		c2 := startNode(t, f, c, "c2", "r2")
		synctest.Wait()
		time.Sleep(time.Second)
		c1, w1 := dialPuppet(t, f, "c1"), dialPuppet(t, f, "w1")
		for _, p := range []*puppet{c1, w1} {
			name := p.conn.(*fabricConn).local
			p.send(helloOf(name, map[string]string{"c1": "r1", "w1": "r3"}[name]))
			if h := p.next().Hello; h == nil || h.Node != "c2" || h.Refused != "" {
				t.Fatalf("answer is %+v", h)
			}
		}
		test(t, f, c2, c1, w1)
		c2.end(t)
		f.drop("c1", "")
		f.drop("w1", "")
	})
}

func dialPuppet(t *testing.T, f *fabric, from string) *puppet {
	t.Helper()
	conn, err := f.dialer(from)(t.Context(), "c2")
	if err != nil {
		t.Fatal(err)
	}
	return &puppet{t: t, conn: conn, in: newFrameReader(conn)}
}

func TestVotesArePushedAndWithdrawn(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, w1 *puppet) {
		pulse := func(seq uint64) message {
			return message{Pulse: &pulseMsg{Seq: seq, Heard: seq - 1, Run: "r1", Epoch: 10, Acting: true}}
		}
		ask := func(number uint64) message { return message{Ask: &askMsg{Suspect: "c1", Epoch: 10, Number: number}} }
		c1.send(pulse(1))
		if e := c1.next().Echo; e == nil || *e != (echoMsg{Seq: 1, Epoch: 10}) {
			t.Fatalf("echo is %+v", e)
		}
		// Asked before there is evidence, c2 answers when there is.
		time.Sleep(900 * ms)
		w1.send(ask(1))
		heard := time.Now()
		yes := w1.next().Vote
		if yes == nil || !yes.Yes || yes.Number != 1 || yes.Evidence != "silence" {
			t.Fatalf("vote is %+v", yes)
		}
		if d := time.Since(heard); d != 100*ms {
			t.Errorf("vote came after %v, want 100ms: when the silence was full", d)
		}
		if !c2.events.has("voted w1 c1 10") {
			t.Errorf("events are %q", c2.events.list)
		}
		// A pulse takes it back at once, and is not echoed while the vote may
		// still count somewhere.
		c1.send(pulse(2))
		if no := w1.next().Vote; no == nil || no.Yes || no.Number != 1 {
			t.Fatalf("vote is %+v, want it withdrawn", no)
		}
		time.Sleep(149 * ms) // 249 ms after the question
		c1.send(pulse(3))
		synctest.Wait()
		time.Sleep(ms)
		c1.send(pulse(4))
		if e := c1.next().Echo; e == nil || e.Seq != 4 {
			t.Errorf("echo is %+v, want one of pulse 4 only", e)
		}
	})
}

func TestOutOfPlaceMessagesEndOnlyTheirConnection(t *testing.T) {
	bad := map[string]func(p *puppet){
		"garbage":        func(p *puppet) { _, _ = p.conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")) },
		"a long frame":   func(p *puppet) { _, _ = p.conn.Write([]byte{0, 255, 255, 255}) },
		"a wrong type":   func(p *puppet) { _, _ = p.conn.Write(frameOf(`{"pulse":{"seq":"x"}}`)) },
		"a second hello": func(p *puppet) { p.send(helloOf("c1", "r1")) },
		"an echo":        func(p *puppet) { p.send(message{Echo: &echoMsg{Seq: 1}}) },
		"another run":    func(p *puppet) { p.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r9"}}) },
		"a pulse again": func(p *puppet) {
			for range 2 {
				p.send(message{Pulse: &pulseMsg{Seq: 5, Run: "r1"}})
			}
		},
		"half a frame":     func(p *puppet) { _, _ = p.conn.Write([]byte{0, 0, 1}); _ = p.conn.Close() },
		"a vote from here": func(p *puppet) { p.send(sampleMessages[4]) },
	}
	for name, send := range bad {
		t.Run(name, func(t *testing.T) {
			withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, w1 *puppet) {
				send(c1)
				c1.expectEnd()
				synctest.Wait()
				if c2.status("c1").Accepted {
					t.Error("the connection is still up")
				}
				w1.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r3"}})
				if e := w1.next().Echo; e == nil || e.Seq != 1 {
					t.Errorf("the other connection answers %+v", e)
				}
			})
		})
	}
}

func TestUnknownMessagesAreSkipped(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, _ *testNode, c1, _ *puppet) {
		if _, err := c1.conn.Write(frameOf(`{"rumour":{"about":"c2"}}`)); err != nil {
			t.Fatal(err)
		}
		c1.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r1"}})
		if e := c1.next().Echo; e == nil || e.Seq != 1 {
			t.Errorf("echo is %+v", e)
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	tests := []struct {
		name   string
		from   string
		hello  message
		reason string // in the answer, "" for none
	}{
		{"not a member", "x9", helloOf("x9", "r"), ""},
		{"claims another name", "c1", helloOf("w1", "r"), "c1 calls itself w1"},
		{"says no hello", "c1", message{Echo: &echoMsg{Seq: 1}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, _, _ *puppet) {
				p := dialPuppet(t, f, tt.from)
				go func() { // the mesh may hang up without reading
					frame, _ := appendFrame(nil, &tt.hello)
					_, _ = p.conn.Write(frame)
				}()
				m, err := p.in.next()
				if tt.reason == "" {
					if err == nil {
						t.Errorf("answer is %+v", m)
					}
				} else if err != nil || m.Hello == nil || m.Hello.Refused != tt.reason {
					t.Errorf("answer is %+v, %v; want refusal %q", m.Hello, err, tt.reason)
				}
				p.expectEnd()
			})
		})
	}
}

func TestNewestConnectionCounts(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		again := dialPuppet(t, f, "c1")
		again.send(helloOf("c1", "r1"))
		if h := again.next().Hello; h == nil || h.Refused != "" {
			t.Fatalf("answer is %+v", h)
		}
		c1.expectEnd()
		again.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r1"}})
		if e := again.next().Echo; e == nil || e.Seq != 1 {
			t.Errorf("echo is %+v", e)
		}
		if !c2.status("c1").Accepted {
			t.Error("no connection")
		}
	})
}

// A peer that reads nothing must not hold up anybody, and is cut in the end.
func TestPeerThatDoesNotRead(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, w1 *puppet) {
		for seq := uint64(1); seq <= 20; seq++ {
			c1.send(message{Pulse: &pulseMsg{Seq: seq, Run: "r1", Epoch: 10}}) // never reads an echo
			w1.send(message{Pulse: &pulseMsg{Seq: seq, Run: "r3"}})
			if e := w1.next().Echo; e == nil || e.Seq != seq {
				t.Fatalf("w1's echo %d is %+v", seq, e)
			}
		}
		time.Sleep(testTiming.silence)
		synctest.Wait()
		if c2.status("c1").Accepted {
			t.Error("c1 reads nothing and is still connected")
		}
		if !c2.status("w1").Accepted {
			t.Error("w1 was cut too")
		}
	})
}

func TestSlowHelloIsGivenUp(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, _ *puppet) {
		p := dialPuppet(t, f, "c1")
		began := time.Now()
		p.expectEnd()
		if d := time.Since(began); d != testTiming.silence {
			t.Errorf("given up after %v", d)
		}
	})
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
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return namedConn{c, ""}, nil
	}
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
			t.Fatalf("%s: no %s; peers are %+v; events %q", n.facts.node, what, n.Snapshot(), n.events.list)
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
	defer goleak.VerifyNone(t)
	c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]session2{
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
	if err := <-c1.done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run returned %v", err)
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
