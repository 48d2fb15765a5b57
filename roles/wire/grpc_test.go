package wire_test

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/roles/wire"
	"uac/roles/wire/pki"
	"uac/roles/wire/wiretest"
)

// links is a Link service that welcomes every agent by its certificate's name and
// then says nothing.
type links struct {
	wire.UnimplementedLinkServer
}

func (links) Connect(stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) error {
	peer, err := wire.Peer(stream.Context())
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	err = stream.Send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{Controller: peer.String()}}})
	if err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (links) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	cert, err := wire.PeerCertificate(ctx)
	if err != nil {
		return nil, err
	}
	return &wire.Certificate{Chain: append(cert.Raw, r.Csr...)}, nil
}

type joins struct {
	wire.UnimplementedEnrollServer
}

func (joins) Enroll(ctx context.Context, _ *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	if _, err := wire.Peer(ctx); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return &wire.EnrollResponse{}, nil
}

// serve runs the Link and Enroll services on one port.
func serve(tb testing.TB, ca *wiretest.CA) net.Addr {
	tb.Helper()
	server := ca.Server(ca.Issue(tb, "controller", "c1"))
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"},
		wire.Class{Name: wire.ClassLink, TLS: server, Roles: []pki.Role{pki.Agent}},
		wire.Class{Name: wire.ClassJoin, TLS: server, Anonymous: true})
	if err != nil {
		tb.Fatal(err)
	}
	link, join := wire.NewServer(wire.Options{}), wire.NewServer(wire.Options{})
	wire.RegisterLinkServer(link, links{})
	wire.RegisterEnrollServer(join, joins{})
	ctx, cancel := context.WithCancel(tb.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			tb.Error(err)
		}
	})
	wg.Go(func() { _ = link.Serve(l.Class(wire.ClassLink)) })
	wg.Go(func() { _ = join.Serve(l.Class(wire.ClassJoin)) })
	tb.Cleanup(func() { cancel(); link.Stop(); join.Stop(); wg.Wait() })
	return l.Addr()
}

func client(tb testing.TB, class string, addr net.Addr, cfg *tls.Config) *grpc.ClientConn {
	tb.Helper()
	conn, err := wire.NewClient(class, addr.String(), cfg, wire.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

func TestServicesKnowTheirPeer(t *testing.T) {
	ca := wiretest.NewCA(t)
	addr := serve(t, ca)
	cert := ca.Issue(t, "agent", "a1")
	agent := wire.NewLinkClient(client(t, wire.ClassLink, addr, ca.Client(cert, "controller.uac")))
	stream, err := agent.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&wire.AgentMessage{}); err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got := m.GetWelcome().GetController(); got != "uac://test/agent/a1" {
		t.Errorf("peer is %q", got)
	}
	renewed, err := agent.Renew(t.Context(), &wire.RenewRequest{Csr: []byte("csr")})
	if err != nil {
		t.Fatal(err)
	}
	if want := string(cert.Leaf.Raw) + "csr"; string(renewed.GetChain()) != want {
		t.Error("the service saw another certificate")
	}
}

func TestServiceOfAnotherClassIsNotThere(t *testing.T) {
	ca := wiretest.NewCA(t)
	addr := serve(t, ca)
	cfg := ca.Client(ca.Issue(t, "agent", "a1"), "controller.uac")
	_, err := wire.NewEnrollClient(client(t, wire.ClassLink, addr, cfg)).Enroll(t.Context(), &wire.EnrollRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Enroll over a link: %v", err)
	}
	stream, err := wire.NewLinkClient(client(t, wire.ClassJoin, addr, cfg)).Connect(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Connect over a join: %v", err)
	}
	// A certificate shown to an anonymous class is not asked for, so it names nobody.
	_, err = wire.NewEnrollClient(client(t, wire.ClassJoin, addr, cfg)).Enroll(t.Context(), &wire.EnrollRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("peer of an anonymous call: %v", err)
	}
}

func TestRefusedHandshakeIsTheErrorOfTheCall(t *testing.T) {
	ca := wiretest.NewCA(t)
	addr := serve(t, ca)
	cfg := ca.Client(ca.Issue(t, "agent", "a1"), "watch.uac")
	_, err := wire.NewLinkClient(client(t, wire.ClassLink, addr, cfg)).Renew(t.Context(), &wire.RenewRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "watch.uac") {
		t.Errorf("got %v", err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	ca := wiretest.NewCA(t)
	addr := serve(t, ca)
	agent := wire.NewLinkClient(client(t, wire.ClassLink, addr, ca.Client(ca.Issue(t, "agent", "a1"), "controller.uac")))
	_, err := agent.Renew(t.Context(), &wire.RenewRequest{Csr: make([]byte, wire.MaxMessage)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

// gRPC must never speak over a connection that has not been through a handshake of
// this package.
func TestServerRefusesPlainConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := wire.NewServer(wire.Options{})
	wire.RegisterLinkServer(server, links{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	defer wg.Wait()
	defer server.Stop()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("plain connection got %d bytes, error %v", n, err)
	}
}

func TestFenceOrder(t *testing.T) {
	order := []*wire.Fence{
		nil,
		{Generation: 0, Revision: 1},
		{Generation: 1, Revision: 1},
		{Generation: 1, Revision: 2},
		{Generation: 2, Revision: 1},
	}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v compared with %v is %d, want %d", a, b, got, want)
			}
		}
	}
}

// BenchmarkIdleLink reports what one more idle link costs a controller in memory.
// Both ends are in this process, so the figure is for two ends.
func BenchmarkIdleLink(b *testing.B) {
	ca := wiretest.NewCA(b)
	addr := serve(b, ca)
	cfg := ca.Client(ca.Issue(b, "agent", "a1"), "controller.uac")
	open := func() {
		conn := client(b, wire.ClassLink, addr, cfg)
		stream, err := wire.NewLinkClient(conn).Connect(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if err := stream.Send(&wire.AgentMessage{}); err != nil {
			b.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			b.Fatal(err)
		}
	}
	open()
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	for b.Loop() {
		open()
	}
	b.ReportMetric(float64(used()-before)/float64(b.N)/1024, "KiB/link")
	b.ReportMetric(float64(runtime.NumGoroutine())/float64(b.N), "goroutines/link")
}
