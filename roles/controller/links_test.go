package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// port is a controller's port for nodes, with real certificates.
type port struct {
	w    *world
	addr string
}

func (n *node) listen() *port {
	t := n.w.t
	t.Helper()
	p := &port{w: n.w}
	store := p.store(pki.Controller, n.cfg.Name)
	link, err1 := store.LinkServer()
	join, err2 := store.JoinServer()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	ln, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"},
		wire.Class{Name: wire.ClassLink, TLS: link, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.Class{Name: wire.ClassJoin, TLS: join, Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	links, joins := wire.NewServer(wire.Options{}), wire.NewServer(wire.Options{})
	n.RegisterLinks(links)
	n.RegisterEnroll(joins)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{}, 3)
	for _, f := range []func() error{
		func() error { return ln.Run(ctx) },
		func() error { return links.Serve(ln.Class(wire.ClassLink)) },
		func() error { return joins.Serve(ln.Class(wire.ClassJoin)) },
	} {
		go func() {
			_ = f() // until the listener is closed
			done <- struct{}{}
		}()
	}
	t.Cleanup(func() {
		links.Stop()
		joins.Stop()
		stop()
		for range 3 {
			<-done
		}
	})
	return p
}

// store issues a node's certificates.
func (p *port) store(role pki.Role, name string) *pki.Store {
	p.w.t.Helper()
	dir := filepath.Join(p.w.t.TempDir(), name)
	if err := p.w.ca.IssueNode(dir, pki.NodeSpec{Role: role, Name: name}); err != nil {
		p.w.t.Fatal(err)
	}
	s, err := pki.Load(dir, nil)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return s
}

func (p *port) dial(class string, conf *tls.Config) *grpc.ClientConn {
	p.w.t.Helper()
	conn, err := wire.NewClient(class, p.addr, conf, wire.Options{})
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (p *port) client(s *pki.Store) wire.LinkClient {
	p.w.t.Helper()
	conf, err := s.LinkClient()
	if err != nil {
		p.w.t.Fatal(err)
	}
	return wire.NewLinkClient(p.dial(wire.ClassLink, conf))
}

// stream is the agent's end of a link.
type stream = grpc.BidiStreamingClient[wire.AgentMessage, wire.ControllerMessage]

// hello opens a link with a first message. What the controller answers first is
// returned.
func hello(t *testing.T, c wire.LinkClient, first *wire.AgentMessage) (stream, *wire.ControllerMessage, error) {
	t.Helper()
	s, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(first); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	m, err := s.Recv()
	return s, m, err
}

func helloOf(name string, number uint64) *wire.Hello {
	return &wire.Hello{Name: name, Journal: &wire.Journal{Id: "j", Counter: 1}, Link: &wire.LinkID{Number: number, Nonce: 7}}
}

func first(h *wire.Hello) *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: h}}
}

// receive returns the next message that is not a ping.
func receive(t *testing.T, s stream) (*wire.ControllerMessage, error) {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil || m.GetPing() == nil {
			return m, err
		}
	}
}

func TestConnect(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	a1, relay := p.client(p.store(pki.Agent, "a1")), p.client(p.store(pki.Relay, "r1"))
	connected := func(want bool) {
		t.Helper()
		coordtest.Await(t, c1.member.View(), "the agent's presence", func(coord.Snapshot) bool {
			a, err := c1.GetAgent(t.Context(), "a1")
			return err == nil && a.Connected == want
		})
	}
	for _, tt := range []struct {
		name   string
		client wire.LinkClient
		first  *wire.AgentMessage
		want   codes.Code
	}{
		{"no hello", a1, &wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{}}}, codes.InvalidArgument},
		{"another one's name", a1, first(helloOf("a2", 1)), codes.PermissionDenied},
		{"no name", a1, first(helloOf("", 1)), codes.PermissionDenied},
		{"a relay", relay, first(helloOf("r1", 1)), codes.PermissionDenied},
		{"no journal", a1, first(&wire.Hello{Name: "a1", Link: &wire.LinkID{Number: 1}}), codes.InvalidArgument},
		{"no link", a1, first(&wire.Hello{Name: "a1", Journal: &wire.Journal{Id: "j"}}), codes.InvalidArgument},
		{"a later generation", a1, first(&wire.Hello{Name: "a1", Journal: &wire.Journal{Id: "j"}, Link: &wire.LinkID{Number: 1},
			Generation: &wire.Generation{Number: 2}}), codes.FailedPrecondition},
	} {
		before := c1.everything()
		if _, m, err := hello(t, tt.client, tt.first); status.Code(err) != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.name, m, err, tt.want)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("%s changed the store:\n%s", tt.name, d)
		}
	}

	older, m, err := hello(t, a1, first(helloOf("a1", 5)))
	number, id := c1.member.Generation()
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the welcome", &wire.Welcome{Controller: "c1", Generation: &wire.Generation{Number: uint64(number), Id: id},
		PingNanos: int64(c1.cfg.PingInterval), Trusted: true}, m.GetWelcome())
	connected(true)
	newer, _, err := hello(t, a1, first(helloOf("a1", 6)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t, older); status.Code(err) != codes.Aborted {
		t.Errorf("the older link ended with %v, want aborted", err)
	}
	late, _, err := hello(t, a1, first(helloOf("a1", 4)))
	if err == nil { // the welcome comes first
		_, err = receive(t, late)
	}
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("a link that comes late ended with %v, want that there is a newer one", err)
	}

	// A request goes over it, both ways.
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	if m, err = receive(t, newer); err != nil || m.GetStart().GetRequest() != r.ID {
		t.Fatalf("got %v, %v; want a start", m, err)
	}
	if err := newer.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
		Request: r.ID, Journal: &wire.Journal{Id: "j", Counter: 2},
		Attempt: &wire.Attempt{Step: "one", Attempt: 1, State: wire.State_RUNNING},
	}}}); err != nil {
		t.Fatal(err)
	}
	c1.awaitStep(r.ID, "one", roles.StepRunning)

	// Who lost its session shows its agents that commands would go nowhere.
	c1.stop()
	if _, err := receive(t, newer); status.Code(err) != codes.Aborted {
		t.Errorf("the link ended with %v, want aborted", err)
	}
}

// TestRenewOverLink renews certificates of whoever asks, and of nobody else.
func TestRenewOverLink(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	w.ca.Lifetime = pki.MinLifetime // due in time for whoever asks with a later clock
	mine, other := p.store(pki.Agent, "a1"), p.store(pki.Agent, "a2")
	w.ca.Lifetime = 0
	due := func(s *pki.Store) pki.Renewal {
		t.Helper()
		certs, err := s.Certificates(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		renewals, err := s.Renewals(certs[0].NotAfter)
		if err != nil || len(renewals) != 1 {
			t.Fatalf("due: %v, %v", renewals, err)
		}
		return renewals[0]
	}
	client := p.client(mine)
	r, theirs := due(mine), due(other)
	for _, tt := range []struct {
		name string
		ask  *wire.RenewRequest
	}{
		{"of another one", &wire.RenewRequest{Ca: string(theirs.CA), Current: theirs.Current, Csr: theirs.CSR}},
		{"with another one's key", &wire.RenewRequest{Ca: string(r.CA), Current: r.Current, Csr: theirs.CSR}},
		{"by the members' CA", &wire.RenewRequest{Ca: string(pki.Members), Current: r.Current, Csr: r.CSR}},
		{"by no CA", &wire.RenewRequest{Current: r.Current, Csr: r.CSR}},
		{"of none", &wire.RenewRequest{Ca: string(r.CA), Csr: r.CSR}},
	} {
		if _, err := client.Renew(t.Context(), tt.ask); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: got %v, want it denied", tt.name, err)
		}
	}
	cert, err := client.Renew(t.Context(), &wire.RenewRequest{Ca: string(r.CA), Current: r.Current, Csr: r.CSR})
	if err != nil {
		t.Fatal(err)
	}
	if err := mine.Install(r.CA, cert.GetChain()); err != nil {
		t.Errorf("what the controller gave does not fit: %v", err)
	}
}

// TestJoin enrols over the port and opens a link with what it got.
func TestJoin(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	text, _ := c1.token(api.TokenSpec{Role: "agent", Name: "a1"})
	_, root, err := pki.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	m := newNewcomer(t, pki.Agent, "a1", text)
	resp, err := wire.NewEnrollClient(p.dial(wire.ClassJoin, pki.JoinClient(root))).Enroll(t.Context(), m.ask)
	if err != nil {
		t.Fatal(err)
	}
	m.install(resp, root)
	s, err := pki.Load(m.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := hello(t, p.client(s), first(helloOf("a1", 1))); err != nil || got.GetWelcome() == nil {
		t.Errorf("got %v, %v; want to be welcome", got, err)
	}
}

// reader is a member that reads output over another one's link.
type reader struct {
	grpc.ServerStreamingServer[wire.OutputChunk]
	ctx context.Context
}

func (r reader) Context() context.Context { return r.ctx }

// A link that ends while it is read from is no answer about the output, whoever asked.
func TestReadOutputOverALinkThatEnds(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	a.running(a.start())
	c1.awaitStep(r.ID, "s", roles.StepRunning)
	for who, read := range map[string]func() error{
		"its own controller": func() error { return c1.ReadOutput(t.Context(), r.ID, "s", 0, 0, false, io.Discard) },
		"another member": func() error {
			return readError((&memberServer{c: c1.Controller}).ReadOutput(&wire.ReadOutputRequest{
				To: "c1", Agent: "a1", Read: &wire.ReadOutput{Request: r.ID, Step: "s", Attempt: 1},
			}, reader{ctx: t.Context()}))
		},
	} {
		go func(l *link) {
			for m := range l.sent() {
				if m.GetReadOutput() != nil {
					l.drop(status.Error(codes.Aborted, "it does not answer"))
					return
				}
			}
		}(a.link)
		if err := read(); !isErr(err, api.ErrUnavailable) || status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "it does not answer") {
			t.Errorf("%s: %v, want unavailable", who, err)
		}
		a.connect(c1)
	}
}

// TestReadOutput reads through the link what an attempt wrote.
func TestReadOutput(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1"), step("two", "a1", "one")))
	r := c1.accept("p")
	a.start()
	c1.awaitStep(r.ID, "one", roles.StepDispatched) // it is shown a moment after it is sent
	read := func(step string, attempt int, offset int64) (string, error) {
		var b bytes.Buffer
		err := c1.ReadOutput(t.Context(), r.ID, step, attempt, offset, false, &b)
		return b.String(), err
	}
	for _, tt := range []struct {
		step    string
		attempt int
	}{{"none", 0}, {"one", 2}, {"one", -1}, {"two", 0}} {
		if _, err := read(tt.step, tt.attempt, 0); !isErr(err, api.ErrNotFound) {
			t.Errorf("output of step %s, attempt %d: %v, want not found", tt.step, tt.attempt, err)
		}
	}
	// answer plays the agent for one read.
	answer := func(chunks ...*wire.OutputChunk) <-chan *wire.ReadOutput {
		asked := make(chan *wire.ReadOutput, 1)
		link := a.link
		go func() {
			m := <-link.sent()
			for _, c := range chunks {
				c.Id = m.GetReadOutput().GetId()
				c1.fromAgent(link, &wire.AgentMessage{Body: &wire.AgentMessage_Output{Output: c}})
			}
			asked <- m.GetReadOutput()
		}()
		return asked
	}
	asked := answer(&wire.OutputChunk{Offset: 3, Data: []byte("hello ")}, &wire.OutputChunk{Offset: 9, Data: []byte("world"), Eof: true})
	text, err := read("one", 0, 3)
	if err != nil || text != "hello world" {
		t.Fatalf("got %q, %v", text, err)
	}
	ask := <-asked
	same(t, "the question", &wire.ReadOutput{Id: ask.GetId(), Request: r.ID, Step: "one", Attempt: 1, Offset: 3, Window: readWindow}, ask)

	asked = answer(&wire.OutputChunk{Error: "it was removed"})
	if _, err := read("one", 1, 0); err == nil || err.Error() != "agent a1: it was removed" {
		t.Fatalf("got %v, want what the agent says", err)
	}
	<-asked

	// The agent does not have it, and nothing is kept elsewhere. Before the step has
	// begun that says nothing.
	asked = answer(&wire.OutputChunk{Error: "never heard of it", Gone: true, Eof: true})
	if _, err := read("one", 1, 0); !isErr(err, api.ErrUnavailable) {
		t.Fatalf("before it began: %v, want unavailable", err)
	}
	<-asked
	a.report(r.ID, "one", 1, wire.State_RUNNING, nil)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	asked = answer(&wire.OutputChunk{Error: "not any more", Gone: true, Eof: true})
	if _, err := read("one", 1, 0); !isErr(err, api.ErrGone) {
		t.Fatalf("got %v, want gone", err)
	}
	<-asked
	asked = answer(&wire.OutputChunk{Offset: 0, Data: []byte("abc")}, &wire.OutputChunk{Offset: 10, Data: []byte("xyz"), Eof: true})
	var gap *api.Gap
	if text, err := read("one", 1, 0); text != "abc" || !errors.As(err, &gap) || gap.Next != 10 {
		t.Fatalf("%q, then %v, want a gap up to 10", text, err)
	}
	<-asked

	gone := a.link
	asked = answer()
	go func() {
		<-asked
		gone.drop(errors.New("cut"))
	}()
	if _, err := read("one", 1, 0); err == nil {
		t.Error("the link ended and the read did not fail")
	}
	a.disconnect()
	c1.settle()
	if _, err := read("one", 1, 0); !isErr(err, api.ErrUnavailable) {
		t.Errorf("without a link: %v, want unavailable", err)
	}
}

// An attempt that the agent has stopped, for whatever reason, has not succeeded if it
// exits with 0 because of that.
func TestStoppedAttemptsAreReportedAsSuch(t *testing.T) {
	for stopped, want := range map[wire.Stop]roles.Report{
		wire.Stop_NOT_STOPPED: {},
		wire.Stop_KILLED:      {Killed: true},
		wire.Stop_TIMED_OUT:   {TimedOut: true},
		wire.Stop_ALONE:       {TimedOut: true},
	} {
		got := reportOf("a1", roles.Journal{}, &wire.Attempt{State: wire.State_EXITED, End: &wire.End{Stopped: stopped}})
		if got.Killed != want.Killed || got.TimedOut != want.TimedOut {
			t.Errorf("%v: %+v", stopped, got)
		}
	}
}

// TestPings: a link is pinged, says when the next ping follows, and ends when nobody
// answers.
func TestPings(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	s, m, err := hello(t, p.client(p.store(pki.Agent, "a1")), first(helloOf("a1", 1)))
	if err != nil || m.GetWelcome() == nil {
		t.Fatalf("got %v, %v; want to be welcome", m, err)
	}
	answer := func(number uint64) {
		if err := s.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{Number: number}}}); err != nil {
			t.Fatal(err)
		}
	}
	for number := uint64(1); ; number++ {
		if m, err = s.Recv(); err != nil {
			break
		}
		if got := m.GetPing(); got.GetNumber() != number || got.GetNextNanos() != int64(c1.cfg.PingInterval) {
			t.Fatalf("ping %d is %v", number, m)
		}
		if number <= 2 {
			answer(number)
		}
		if number > 2+lostPings {
			t.Fatal("a link goes on without answers")
		}
	}
	if status.Code(err) != codes.Aborted {
		t.Errorf("the link ended with %v, want aborted", err)
	}
}
