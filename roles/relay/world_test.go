package relay_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"uac/roles/relay"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// patience is for how long tests wait for what must come.
const patience = 20 * time.Second

// world is a cluster as far as a relay can tell: real certificates, and controllers
// that answer.
type world struct {
	t  testing.TB
	ca *pki.Authority
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	if err := pki.Init(pki.InitOptions{Dir: dir, RootDir: t.TempDir(), Cluster: "test"}); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ca: ca}
}

// store issues a node's certificates.
func (w *world) store(role pki.Role, name string) *pki.Store {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), name)
	if err := w.ca.IssueNode(dir, pki.NodeSpec{Role: role, Name: name}); err != nil {
		w.t.Fatal(err)
	}
	s, err := pki.Load(dir, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// linkTLS is what authenticates a node to controllers and relays.
func linkTLS(s *pki.Store) (wire.LinkTLS, error) {
	entry, err := s.EntryClient(wire.ServerRole)
	if err != nil {
		return wire.LinkTLS{}, err
	}
	controller, err := s.LinkClient()
	return wire.LinkTLS{Entry: entry, Controller: controller}, err
}

// agent returns what authenticates an agent.
func (w *world) agent(name string) wire.LinkTLS {
	w.t.Helper()
	conf, err := linkTLS(w.store(pki.Agent, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return conf
}

// controller echoes what agents and relays say, until it is stopped.
type controller struct {
	wire.UnimplementedLinkServer
	wire.UnimplementedEnrollServer
	name string
	addr string
	stop func()
	got  chan *wire.AgentMessage // what agents said
	beat chan *wire.RelayBeat    // what relays said

	mu   sync.Mutex // guards mute
	mute bool       // beats are not answered
}

func (w *world) controller(name string) *controller {
	w.t.Helper()
	return w.controllerWith(name, w.store(pki.Controller, name))
}

func (w *world) controllerWith(name string, store *pki.Store) *controller {
	w.t.Helper()
	link, err1 := store.LinkServer()
	join, err2 := store.JoinServer()
	if err1 != nil || err2 != nil {
		w.t.Fatal(err1, err2)
	}
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"},
		wire.Class{Name: wire.ClassLink, TLS: link, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.Class{Name: wire.ClassJoin, TLS: join, Anonymous: true})
	if err != nil {
		w.t.Fatal(err)
	}
	c := &controller{name: name, addr: l.Addr().String(), got: make(chan *wire.AgentMessage, 10_000), beat: make(chan *wire.RelayBeat, 10_000)}
	links, joins := wire.NewServer(wire.Options{}), wire.NewServer(wire.Options{})
	wire.RegisterLinkServer(links, c)
	wire.RegisterEnrollServer(joins, c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	wg.Go(func() { _ = links.Serve(l.Class(wire.ClassLink)) })
	wg.Go(func() { _ = joins.Serve(l.Class(wire.ClassJoin)) })
	c.stop = sync.OnceFunc(func() { cancel(); links.Stop(); joins.Stop(); wg.Wait() })
	w.t.Cleanup(c.stop)
	return c
}

// Connect welcomes an agent and answers every pong with a ping of its number.
func (c *controller) Connect(stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		c.got <- m
		answer := &wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: m.GetPong().GetNumber()}}}
		if m.GetHello() != nil {
			answer = &wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{Controller: c.name}}}
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// Relay answers beats.
func (c *controller) Relay(stream grpc.BidiStreamingServer[wire.RelayBeat, wire.RelayEcho]) error {
	for {
		b, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case c.beat <- b:
		default:
		}
		c.mu.Lock()
		mute := c.mute
		c.mu.Unlock()
		if mute {
			continue
		}
		if err := stream.Send(&wire.RelayEcho{Number: b.GetNumber()}); err != nil {
			return err
		}
	}
}

// Renew answers with the caller's name.
func (c *controller) Renew(ctx context.Context, _ *wire.RenewRequest) (*wire.Certificate, error) {
	peer, err := wire.Peer(ctx)
	return &wire.Certificate{Chain: []byte(peer.Name)}, err
}

// Enroll answers with the token.
func (c *controller) Enroll(_ context.Context, r *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	return &wire.EnrollResponse{Cluster: r.GetToken()}, nil
}

// node is a relay that runs.
type node struct {
	*relay.Relay
	addr string
	stop func()
}

// relay starts a relay and waits until it has links to as many controllers.
func (w *world) relay(name string, links int, servers []string, change ...func(*relay.Config)) *node {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		w.t.Fatal(err)
	}
	return w.relayAt(addr, name, links, servers, change...)
}

func (w *world) relayAt(addr, name string, links int, servers []string, change ...func(*relay.Config)) *node {
	w.t.Helper()
	store := w.store(pki.Relay, name)
	server, err := store.RelayServer()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := wire.Listen(wire.ListenConfig{Addr: addr},
		wire.Class{Name: wire.ClassRelay, TLS: server, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.Class{Name: wire.ClassJoin, Through: true})
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := relay.DefaultConfig()
	cfg.Name, cfg.Servers = name, servers
	for _, f := range change {
		f(&cfg)
	}
	r, err := relay.New(cfg, relay.Deps{
		Asks: l.Class(wire.ClassRelay), Joins: l.Class(wire.ClassJoin),
		TLS: func() (wire.LinkTLS, error) { return linkTLS(store) },
		Log: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("relay", name),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{l.Run, r.Run} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				w.t.Error(err)
			}
		})
	}
	n := &node{Relay: r, addr: addr, stop: sync.OnceFunc(func() { cancel(); wg.Wait() })}
	w.t.Cleanup(n.stop)
	w.await(name+" has its links", func() bool { return len(n.Controllers()) == links })
	return n
}

// await waits until f holds.
func (w *world) await(what string, f func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-late:
			w.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// link is an agent's end of a link.
type link struct {
	*wire.Link
	t      testing.TB
	stream grpc.BidiStreamingClient[wire.AgentMessage, wire.ControllerMessage]
	client wire.LinkClient
	number uint64
}

func (w *world) dial(addr string, conf wire.LinkTLS, not ...string) (*link, error) {
	w.t.Helper()
	l, err := wire.DialLink(w.t.Context(), addr, conf, not)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = l.Close() })
	conn, err := l.Client(wire.Options{})
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	client := wire.NewLinkClient(conn)
	stream, err := client.Connect(w.t.Context())
	if err != nil {
		return nil, err
	}
	return &link{Link: l, t: w.t, stream: stream, client: client}, nil
}

// echo sends a message and waits for its answer.
func (l *link) echo() error {
	l.number++
	if err := l.stream.Send(pong(l.number)); err != nil {
		_, err = l.stream.Recv()
		return err
	}
	m, err := l.stream.Recv()
	if err == nil && m.GetPing().GetNumber() != l.number {
		l.t.Errorf("got %v, want the echo of %d", m, l.number)
	}
	return err
}

func pong(n uint64) *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{Number: n}}}
}
