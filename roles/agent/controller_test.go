package agent

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"uac/roles/wire"
	"uac/roles/wire/pki"
	"uac/roles/wire/wiretest"
)

// patience is for how long tests wait for what must come.
const patience = 20 * time.Second

// testWorld is a directory for an agent and the authority of its cluster.
type testWorld struct {
	t   testing.TB
	ca  *wiretest.CA
	dir string
	tls *tls.Config // of the agent
}

func newWorld(t testing.TB) *testWorld {
	t.Helper()
	ca := wiretest.NewCA(t)
	return &testWorld{t: t, ca: ca, dir: filepath.Join(t.TempDir(), "agent"), tls: ca.Client(ca.Issue(t, "agent", "a1"), "controller.uac")}
}

// testController is a Link service whose links are played by the test.
type testController struct {
	wire.UnimplementedLinkServer
	t     testing.TB
	name  string
	addr  string
	links chan *testLink
	stop  func()

	mu     sync.Mutex   // guards refuse, and is held while that runs
	refuse func() error // if set, ends links instead of serving them

	// collects is what its next welcomes say.
	collects atomic.Bool
}

// controller starts a controller.
func (w *testWorld) controller(name string) *testController {
	w.t.Helper()
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, wire.Class{
		Name: wire.ClassLink, TLS: w.ca.Server(w.ca.Issue(w.t, "controller", name)), Roles: []pki.Role{pki.Agent},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	c := &testController{t: w.t, name: name, addr: l.Addr().String(), links: make(chan *testLink, 100)}
	server := wire.NewServer(wire.Options{})
	wire.RegisterLinkServer(server, c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	wg.Go(func() { _ = server.Serve(l.Class(wire.ClassLink)) })
	c.stop = sync.OnceFunc(func() { cancel(); server.Stop(); wg.Wait() })
	w.t.Cleanup(c.stop)
	return c
}

// Connect implements wire.LinkServer.
func (c *testController) Connect(stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.refuse != nil {
		defer c.mu.Unlock()
		return c.refuse()
	}
	c.mu.Unlock()
	l := &testLink{
		t: c.t, controller: c.name, collects: c.collects.Load(), hello: m.GetHello(), stream: stream,
		got: make(chan *wire.AgentMessage, 10_000), lost: make(chan struct{}), close: make(chan struct{}),
	}
	l.counter = l.hello.GetJournal().GetCounter()
	go func() {
		defer close(l.lost)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			l.got <- m
		}
	}()
	c.links <- l
	select {
	case <-l.close:
		return io.EOF
	case <-stream.Context().Done():
	}
	<-l.lost
	return nil
}

// testLink is the controller's end of a link.
type testLink struct {
	t          testing.TB
	controller string
	collects   bool
	hello      *wire.Hello
	stream     grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]
	got        chan *wire.AgentMessage
	kept       []*wire.AgentMessage // received and not yet asked for
	lost       chan struct{}
	close      chan struct{}
	counter    uint64 // what commands say of the journal's counter
}

// next returns the next link that says hello, not yet welcomed.
func (c *testController) next() *testLink {
	c.t.Helper()
	select {
	case l := <-c.links:
		return l
	case <-time.After(patience):
		c.t.Fatalf("no link to %s", c.name)
		return nil
	}
}

// link returns the next link, welcomed in generation 1.
func (c *testController) link() *testLink {
	c.t.Helper()
	l := c.next()
	l.welcome(1, "g1", 0)
	return l
}

func (l *testLink) welcome(number uint64, id string, ping time.Duration) {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{
		Controller: l.controller, Generation: &wire.Generation{Number: number, Id: id}, PingNanos: int64(ping), Trusted: true,
		CollectsOutput: l.collects,
	}}})
}

func (l *testLink) send(m *wire.ControllerMessage) {
	l.t.Helper()
	if m.Journal == nil {
		m.Journal = &wire.Journal{Id: l.hello.GetJournal().GetId(), Counter: l.counter}
	}
	if m.Link == nil {
		m.Link = l.hello.GetLink()
	}
	if err := l.stream.Send(m); err != nil {
		l.t.Fatalf("send to agent: %v", err)
	}
}

func (l *testLink) start(s *wire.Start) {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Start{Start: s}})
}

func (l *testLink) kill(k key, revision int64) {
	l.t.Helper()
	l.send(killMessage(k, revision))
}

func killMessage(k key, revision int64) *wire.ControllerMessage {
	return &wire.ControllerMessage{Body: &wire.ControllerMessage_Kill{Kill: &wire.Kill{
		Request: k.request, Step: k.step, Attempt: k.attempt, Fence: rev(revision),
	}}}
}

func (l *testLink) ack(k key, revision int64, final bool) {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ack{Ack: &wire.Ack{
		Request: k.request, Step: k.step, Attempt: k.attempt, Fence: rev(revision), Final: final,
	}}})
}

// adopt adopts a request and returns the answer.
func (l *testLink) adopt(request string, revision int64) *wire.AdoptAnswer {
	l.t.Helper()
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Adopt{Adopt: &wire.Adopt{Request: request, Fence: rev(revision)}}})
	return l.expect("an adopt answer for "+request, func(m *wire.AgentMessage) bool {
		return m.GetAdopted().GetRequest() == request && m.GetAdopted().GetFence().GetRevision() == revision
	}).GetAdopted()
}

// expect waits for a message. Others that come before it are kept for later calls.
func (l *testLink) expect(what string, match func(*wire.AgentMessage) bool) *wire.AgentMessage {
	l.t.Helper()
	for i, m := range l.kept {
		if match(m) {
			l.kept = append(l.kept[:i:i], l.kept[i+1:]...)
			return m
		}
	}
	timeout := time.After(patience)
	for {
		select {
		case m := <-l.got:
			if match(m) {
				return m
			}
			l.kept = append(l.kept, m)
		case <-l.lost:
			select {
			case m := <-l.got: // came before the loss
				if match(m) {
					return m
				}
				l.kept = append(l.kept, m)
				continue
			default:
			}
			l.t.Fatalf("link lost while waiting for %s; got %v", what, l.kept)
		case <-timeout:
			l.t.Fatalf("no %s; got %v", what, l.kept)
		}
	}
}

// report waits for a report of the attempt in the given state.
func (l *testLink) report(k key, state wire.State) *wire.Report {
	l.t.Helper()
	return l.expect(state.String()+" of "+k.String(), func(m *wire.AgentMessage) bool {
		r := m.GetReport()
		return r.GetRequest() == k.request && r.GetAttempt().GetStep() == k.step &&
			r.GetAttempt().GetAttempt() == k.attempt && r.GetAttempt().GetState() == state
	}).GetReport()
}

// refusal waits for a refusal of a command about the attempt.
func (l *testLink) refusal(command wire.Refusal_Command, k key) *wire.Refusal {
	l.t.Helper()
	return l.expect("refusal of "+command.String()+" "+k.String(), func(m *wire.AgentMessage) bool {
		r := m.GetRefused()
		return r.GetCommand() == command && r.GetRequest() == k.request && r.GetStep() == k.step && r.GetAttempt() == k.attempt
	}).GetRefused()
}

// sync returns when the agent has handled everything that was sent before.
func (l *testLink) sync() {
	l.t.Helper()
	number := uint64(time.Now().UnixNano())
	l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: number}}})
	l.expect("pong", func(m *wire.AgentMessage) bool { return m.GetPong().GetNumber() == number })
}

// gone waits until the agent has left the link.
func (l *testLink) gone() {
	l.t.Helper()
	select {
	case <-l.lost:
	case <-time.After(patience):
		l.t.Fatal("the agent stays on the link")
	}
}

// cut ends the link from the controller's side.
func (l *testLink) cut() { close(l.close) }

// testAgent is an agent that runs in the test's process.
type testAgent struct {
	*Agent
	t      testing.TB
	cancel context.CancelFunc
	done   chan error
}

type setting func(*Config, *Deps)

// agent starts an agent in the world's directory.
func (w *testWorld) agent(servers []*testController, settings ...setting) *testAgent {
	w.t.Helper()
	cfg, deps := w.config(servers)
	for _, s := range settings {
		s(&cfg, &deps)
	}
	a, err := New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ta := &testAgent{Agent: a, t: w.t, cancel: cancel, done: make(chan error, 1)}
	go func() { ta.done <- a.Run(ctx) }()
	w.t.Cleanup(ta.stop)
	return ta
}

func (w *testWorld) config(servers []*testController) (Config, Deps) {
	cfg := DefaultConfig()
	cfg.Name, cfg.DataDir = "a1", w.dir
	for _, c := range servers {
		cfg.Servers = append(cfg.Servers, c.addr)
	}
	cfg.ReconnectMax = 100 * time.Millisecond
	return cfg, Deps{Dial: dialer(w.tls), Log: slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// dialer connects to controllers.
func dialer(conf *tls.Config) func(context.Context, string, []string) (*wire.Link, error) {
	return func(ctx context.Context, server string, not []string) (*wire.Link, error) {
		return wire.DialLink(ctx, server, wire.LinkTLS{Entry: conf, Controller: conf}, not)
	}
}

// stop ends the agent, which must end without an error.
func (a *testAgent) stop() {
	a.t.Helper()
	a.cancel()
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("agent ended with %v", err)
		}
		a.done <- nil
	case <-time.After(patience):
		a.t.Fatal("the agent does not end")
	}
}

// failed waits for the agent to give up and returns why.
func (a *testAgent) failed() error {
	a.t.Helper()
	select {
	case err := <-a.done:
		a.done <- nil
		return err
	case <-time.After(patience):
		a.t.Fatal("the agent does not give up")
		return nil
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(p)
	}
	return len(p), nil
}

func rev(revision int64) *wire.Fence { return &wire.Fence{Generation: 1, Revision: revision} }

func startOf(k key, revision int64, script string) *wire.Start {
	return &wire.Start{Request: k.request, Step: k.step, Attempt: k.attempt, Fence: rev(revision), Script: script}
}

// freePort returns an address where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
