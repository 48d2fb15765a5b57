package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"uac/roles/relay"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// Two links of one agent lead to different controllers, and the controller sees the
// agent itself.
func TestLinks(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	r := w.relay("r1", 2, []string{c1.addr, c2.addr})
	a1 := w.agent("a1")
	first, err := w.dial(r.addr, a1)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.dial(r.addr, a1, first.Controller)
	if err != nil {
		t.Fatal(err)
	}
	if first.Controller == second.Controller {
		t.Errorf("both links lead to %s", first.Controller)
	}
	for _, l := range []*link{first, second} {
		for range 3 {
			if err := l.echo(); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]string{"r1"}, l.Via); diff != "" {
			t.Errorf("via (-want +got):\n%s", diff)
		}
		if cert, err := l.client.Renew(t.Context(), &wire.RenewRequest{}); err != nil || string(cert.GetChain()) != "a1" {
			t.Errorf("%s takes the agent for %q, %v", l.Controller, cert.GetChain(), err)
		}
	}
	if _, err := w.dial(r.addr, a1, "c1", "c2"); !errors.Is(err, wire.ErrNoOther) {
		t.Errorf("a third controller: %v", err)
	}
	if n := r.Links(); n != 2 {
		t.Errorf("the relay counts %d links", n)
	}
	// Its own link is of the relay.
	if cert, err := r.Renew(t.Context(), &wire.RenewRequest{}); err != nil || string(cert.GetChain()) != "r1" {
		t.Errorf("the relay renews as %q, %v", cert.GetChain(), err)
	}
	_ = first.Close()
	_ = second.Close()
	w.await("the links are forgotten", func() bool { return r.Links() == 0 })
}

// Directly or through a relay: DialLink finds out who is there.
func TestDirectLink(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	l, err := w.dial(c1.addr, w.agent("a1"), "c1") // it is for the caller to know
	if err != nil {
		t.Fatal(err)
	}
	if err := l.echo(); err != nil || l.Controller != "c1" || len(l.Via) != 0 {
		t.Errorf("got %s via %v, %v", l.Controller, l.Via, err)
	}
}

func TestRelaysInSequence(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	r1 := w.relay("r1", 2, []string{c1.addr, c2.addr})
	r2 := w.relay("r2", 2, []string{r1.addr}) // an own link to each controller
	a1 := w.agent("a1")
	first, err := w.dial(r2.addr, a1)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.dial(r2.addr, a1, first.Controller)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*link{first, second} {
		if err := l.echo(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"r2", "r1"}, l.Via); diff != "" {
			t.Errorf("via (-want +got):\n%s", diff)
		}
	}
	if first.Controller == second.Controller {
		t.Errorf("both links lead to %s", first.Controller)
	}
	if _, err := w.dial(r2.addr, a1, "c1", "c2"); !errors.Is(err, wire.ErrNoOther) {
		t.Errorf("a third controller: %v", err)
	}
	r1.stop()
	if err := first.echo(); err == nil {
		t.Error("a link through a relay that has stopped")
	}
	if _, err := w.dial(r2.addr, a1); !errors.Is(err, wire.ErrRelay) {
		t.Errorf("through a relay that has stopped: %v", err)
	}
}

// Relays that name each other do not ask each other for ever.
func TestCircle(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	r1 := w.relay("r1", 1, []string{c1.addr, addr})
	r2 := w.relayAt(addr, "r2", 1, []string{r1.addr})
	a1 := w.agent("a1")
	l, err := w.dial(r2.addr, a1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.echo(); err != nil {
		t.Error(err)
	}
	c1.stop()
	for _, r := range []*node{r1, r2} {
		if _, err := w.dial(r.addr, a1); !errors.Is(err, wire.ErrRelay) {
			t.Errorf("with no controller: %v", err)
		}
	}
}

// ask connects to a relay and says what q says, or nothing.
func (w *world) ask(addr string, conf *tls.Config, say func(net.Conn) error) (*wire.RelayAnswer, error) {
	w.t.Helper()
	conn, err := wire.Dial(w.t.Context(), wire.ClassRelay, addr, conf)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	if err := say(conn); err != nil {
		return nil, err
	}
	a := &wire.RelayAnswer{}
	return a, wire.ReadFrame(conn, a)
}

func asking(q *wire.RelayAsk) func(net.Conn) error {
	return func(c net.Conn) error { return wire.WriteFrame(c, q) }
}

// A relay is no open proxy: only nodes of the cluster are connected, and only to the
// controllers' port for links.
func TestWhoMayAsk(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) { c.AskTimeout = 100 * time.Millisecond })
	entry := func(s *pki.Store) *tls.Config {
		conf, err := s.EntryClient(func(string) pki.Role { return pki.Relay })
		if err != nil {
			t.Fatal(err)
		}
		return conf
	}
	a1, r2 := entry(w.store(pki.Agent, "a1")), entry(w.store(pki.Relay, "r2"))
	ask := &wire.RelayAsk{Class: wire.ClassLink}
	for _, tt := range []struct {
		name string
		conf *tls.Config
		say  func(net.Conn) error
		want wire.RelayAnswer_Reason
	}{
		{"an agent", a1, asking(ask), wire.RelayAnswer_REASON_UNSPECIFIED},
		{"a relay", r2, asking(ask), wire.RelayAnswer_REASON_UNSPECIFIED},
		{"a relay, for one that joins", r2, asking(&wire.RelayAsk{Class: wire.ClassJoin}), wire.RelayAnswer_REASON_UNSPECIFIED},
		{"an agent, for one that joins", a1, asking(&wire.RelayAsk{Class: wire.ClassJoin}), wire.RelayAnswer_REFUSED},
		{"to pulses", r2, asking(&wire.RelayAsk{Class: wire.ClassPulse}), wire.RelayAnswer_REFUSED},
		{"to members' calls", a1, asking(&wire.RelayAsk{Class: wire.ClassMember}), wire.RelayAnswer_REFUSED},
		{"to nothing", a1, asking(&wire.RelayAsk{}), wire.RelayAnswer_REFUSED},
		{"that has been here", r2, asking(&wire.RelayAsk{Class: wire.ClassLink, Path: []string{"r2", "r1", "r3"}}), wire.RelayAnswer_REFUSED},
		{"that has come too far", r2, asking(&wire.RelayAsk{Class: wire.ClassLink, Path: []string{"r2", "r3", "r4", "r5"}}), wire.RelayAnswer_REFUSED},
		{"that has it already", a1, asking(&wire.RelayAsk{Class: wire.ClassLink, Not: []string{"c1"}}), wire.RelayAnswer_NO_OTHER},
	} {
		if a, err := w.ask(r.addr, tt.conf, tt.say); err != nil || a.GetReason() != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.name, a, err, tt.want)
		}
	}
	stranger := newWorld(t)
	noCert := a1.Clone()
	noCert.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	for _, tt := range []struct {
		name string
		conf *tls.Config
		say  func(net.Conn) error
	}{
		{"nobody", noCert, asking(ask)},
		{"an agent of another cluster", entryOf(t, stranger.store(pki.Agent, "a1"), a1), asking(ask)},
		{"a controller", entry(w.store(pki.Controller, "c9")), asking(ask)},
		{"a watch", entry(w.store(pki.Watch, "w9")), asking(ask)},
		{"one that says nothing", a1, func(net.Conn) error { return nil }},
		{"one that stops half-way", a1, func(c net.Conn) error { _, err := c.Write([]byte{0, 9, 1}); return err }},
		{"one that says too much", a1, func(c net.Conn) error { _, err := c.Write([]byte{0xff, 0xff}); return err }},
		{"one that talks nonsense", a1, func(c net.Conn) error { _, err := c.Write([]byte{0, 2, 0xff, 0xff}); return err }},
	} {
		if a, err := w.ask(r.addr, tt.conf, tt.say); err == nil {
			t.Errorf("%s: got %v, want to be cut off", tt.name, a)
		}
	}
	w.await("nothing is left of them", func() bool { return r.Links() == 0 })
}

// entryOf shows one node's certificate and believes what another one does.
func entryOf(t *testing.T, s *pki.Store, believes *tls.Config) *tls.Config {
	t.Helper()
	theirs, err := s.LinkClient()
	if err != nil {
		t.Fatal(err)
	}
	conf := believes.Clone()
	conf.GetClientCertificate = theirs.GetClientCertificate
	return conf
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) { c.MaxLinks, c.MaxPerAgent = 3, 2 })
	a1, a2 := w.agent("a1"), w.agent("a2")
	open := func(conf wire.LinkTLS) *link {
		t.Helper()
		l, err := w.dial(r.addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	full := func(conf wire.LinkTLS, want string) {
		t.Helper()
		if _, err := w.dial(r.addr, conf); !errors.Is(err, wire.ErrRelay) || !strings.Contains(err.Error(), want) {
			t.Errorf("one too many: %v, want %q", err, want)
		}
	}
	one, _ := open(a1), open(a1)
	full(a1, "carries 2 links of uac://test/agent/a1 already")
	open(a2)
	full(a2, "r1 carries 3 links already")
	_ = one.Close()
	w.await("its end is seen", func() bool { return r.Links() == 2 })
	if err := open(a1).echo(); err != nil {
		t.Error(err)
	}
}

// Machines without a certificate get to the controllers' enrolment and nowhere else.
func TestJoins(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r1 := w.relay("r1", 1, []string{c1.addr})
	r2 := w.relay("r2", 1, []string{r1.addr})
	conf := pki.JoinClient(w.ca.RootFingerprint())
	for _, addr := range []string{r1.addr, r2.addr} {
		conn, err := wire.NewClient(wire.ClassJoin, addr, conf, wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := wire.NewEnrollClient(conn).Enroll(t.Context(), &wire.EnrollRequest{Token: "token"})
		if err != nil || resp.GetCluster() != "token" {
			t.Errorf("enrolment: %v, %v", resp, err)
		}
		_ = conn.Close()
	}
	// Who would like to do something else as well, or instead.
	for _, protos := range [][]string{
		{wire.ClassJoin, wire.ClassLink}, {wire.ClassLink}, {wire.ClassMember}, {wire.ClassPulse}, {wire.ClassRelay, wire.ClassJoin}, {},
	} {
		// The server's certificate is not what is tested.
		c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protos, InsecureSkipVerify: true}
		conn, err := (&tls.Dialer{Config: c}).DialContext(t.Context(), "tcp", r1.addr)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil {
			t.Errorf("classes %v were connected", protos)
		}
	}
	if _, _, err := joinsOf(t, r1); err != nil {
		t.Error(err)
	}
}

// joinsOf reads the metric of joins.
func joinsOf(t *testing.T, n *node) (passed, refused float64, err error) {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := n.RegisterMetrics(reg); err != nil {
		return 0, 0, err
	}
	families, err := reg.Gather()
	if err != nil {
		return 0, 0, err
	}
	for _, f := range families {
		if f.GetName() != "uac_relay_joins_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == "passed" {
				passed = m.GetCounter().GetValue()
			} else {
				refused = m.GetCounter().GetValue()
			}
		}
	}
	return passed, refused, nil
}

// However many strangers come, few are let through.
func TestJoinsAreFew(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r1 := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) { c.MaxJoins, c.JoinRate = 2, 1e-9 })
	conf := pki.JoinClient(w.ca.RootFingerprint())
	passed := 0
	for range 6 {
		conn, err := wire.Dial(t.Context(), wire.ClassJoin, r1.addr, conf)
		if err == nil {
			passed++
			_ = conn.Close()
		}
	}
	p, refused, err := joinsOf(t, r1)
	if err != nil || passed != 2 || p != 2 || refused != 4 {
		t.Errorf("%d passed; metrics: %v passed, %v refused, %v", passed, p, refused, err)
	}
}

// A controller that dies costs its links, and the next ones go to the other.
func TestControllerDies(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	r := w.relay("r1", 2, []string{c1.addr, c2.addr})
	a1 := w.agent("a1")
	l, err := w.dial(r.addr, a1, "c2")
	if err != nil {
		t.Fatal(err)
	}
	c1.stop()
	if err := l.echo(); err == nil {
		t.Error("the link to a dead controller stands")
	}
	if l, err = w.dial(r.addr, a1); err != nil || l.Controller != "c2" {
		t.Fatalf("the next link: %v, %v", l, err)
	}
	w.await("the relay knows", func() bool { return cmp.Equal([]string{"c2"}, r.Controllers()) })
	c2.stop()
	if _, err := w.dial(r.addr, a1); !errors.Is(err, wire.ErrRelay) || !strings.Contains(err.Error(), "UNREACHABLE") {
		t.Errorf("without controllers: %v", err)
	}
}

// A controller that takes connections and does not answer gets none.
func TestSilentController(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	r := w.relay("r1", 2, []string{c1.addr, c2.addr}, func(c *relay.Config) { c.BeatInterval = 500 * time.Millisecond })
	c1.mu.Lock()
	c1.mute = true
	c1.mu.Unlock()
	w.await("the relay gives c1 up", func() bool { return cmp.Equal([]string{"c2"}, r.Controllers()) })
	for range 3 {
		l, err := w.dial(r.addr, w.agent("a1"))
		if err != nil || l.Controller != "c2" {
			t.Errorf("got %v, %v", l, err)
		}
	}
	// But if there is no other, it is tried.
	if l, err := w.dial(r.addr, w.agent("a1"), "c2"); err != nil || l.Controller != "c1" {
		t.Errorf("got %v, %v", l, err)
	}
}

// Own links say who the relay is, what it carries and how long an answer takes.
func TestBeats(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr}, func(c *relay.Config) {
		c.BeatInterval = 500 * time.Millisecond
		c.Version, c.Host, c.IP, c.API = "v1", "host", "10.0.0.1", "https://r1"
	})
	if _, err := w.dial(r.addr, w.agent("a1")); err != nil {
		t.Fatal(err)
	}
	first := <-c1.beat
	want := &wire.RelayHello{Name: "r1", Version: "v1", Host: "host", Ip: "10.0.0.1", Api: "https://r1", StartedUnixNano: r.Started().UnixNano()}
	if first.GetHello().String() != want.String() {
		t.Errorf("hello %v, want %v", first.GetHello(), want)
	}
	late := time.After(patience)
	for b := (*wire.RelayBeat)(nil); b.GetRoundTrips() < 3 || b.GetLinks() != 1; {
		select {
		case b = <-c1.beat:
		case <-late:
			t.Fatalf("the last beat was %v", b)
		}
		if b.GetRoundTrips() > 0 && (b.GetRoundTripMinNanos() <= 0 || b.GetRoundTripMedianNanos() < b.GetRoundTripMinNanos() || b.GetRoundTripMaxNanos() < b.GetRoundTripMedianNanos()) {
			t.Fatalf("round trips out of order: %v", b)
		}
	}
	if rt := r.RoundTrips()["c1"]; rt.Samples < 3 {
		t.Errorf("the relay shows %+v", rt)
	}
}

// When a relay stops, so do the links, and nothing stays behind.
func TestStop(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr})
	l, err := w.dial(r.addr, w.agent("a1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.echo(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := l.echo(); err == nil {
		t.Error("the link stands")
	}
}

// What one end has sent before it closed arrives.
func TestLastWords(t *testing.T) {
	w := newWorld(t)
	c1 := w.controller("c1")
	r := w.relay("r1", 1, []string{c1.addr})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, _, err := wire.DialRelay(ctx, r.addr, w.agent("a1").Entry, &wire.RelayAsk{Class: wire.ClassLink})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 0}); err != nil {
		t.Fatal(err)
	}
	// It is the beginning of a hello, and nonsense.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	alert, err := io.ReadAll(conn)
	if len(alert) == 0 || alert[0] != 21 { // a TLS alert
		t.Errorf("got %q, %v; want the controller's refusal", alert, err)
	}
}
