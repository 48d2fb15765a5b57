package controller

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// relayStream is a relay's end of its own link.
type relayStream = grpc.BidiStreamingClient[wire.RelayBeat, wire.RelayEcho]

// greet opens an own link. The controller's answer to the hello is returned.
func greet(t *testing.T, c wire.LinkClient, first *wire.RelayBeat) (relayStream, *wire.RelayEcho, error) {
	t.Helper()
	s, err := c.Relay(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(first) // the answer tells
	m, err := s.Recv()
	return s, m, err
}

func helloOfRelay(name string) *wire.RelayBeat {
	return &wire.RelayBeat{Hello: &wire.RelayHello{
		Name: name, Version: "v1", Host: "host-" + name, Ip: "10.0.9.1", Api: "https://10.0.9.1:7600", StartedUnixNano: time.Now().UnixNano(),
	}}
}

// seen waits until a controller shows a relay as want says.
func (n *node) seen(name, what string, want func(api.Node) bool) api.Node {
	n.w.t.Helper()
	var got api.Node
	late := time.After(patience)
	for {
		nodes, err := n.ListNodes(n.w.t.Context())
		if err != nil {
			n.w.t.Fatal(err)
		}
		if i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == name }); i >= 0 {
			if got = nodes[i]; want(got) {
				return got
			}
		}
		select {
		case <-late:
			n.w.t.Fatalf("%s at %s: not %s: %+v", name, n.cfg.Name, what, got)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRelays(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	p1, p2 := c1.listen(), c2.listen()
	r1, a1 := p1.store(pki.Relay, "r1"), p1.store(pki.Agent, "a1")
	for _, tt := range []struct {
		name  string
		store *pki.Store
		first *wire.RelayBeat
		want  codes.Code
	}{
		{"an agent", a1, helloOfRelay("a1"), codes.PermissionDenied},
		{"another one's name", r1, helloOfRelay("r2"), codes.PermissionDenied},
		{"no hello", r1, &wire.RelayBeat{}, codes.PermissionDenied},
		{"a controller's name", p1.store(pki.Relay, "c2"), helloOfRelay("c2"), codes.FailedPrecondition},
	} {
		before := c1.everything()
		if _, m, err := greet(t, p1.client(tt.store), tt.first); status.Code(err) != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.name, m, err, tt.want)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("%s changed the store:\n%s", tt.name, d)
		}
	}

	hello := helloOfRelay("r1")
	s1, m, err := greet(t, p1.client(r1), hello)
	if err != nil || m.GetNumber() != 0 {
		t.Fatalf("got %v, %v", m, err)
	}
	s2, _, err := greet(t, p2.client(r1), hello)
	if err != nil {
		t.Fatal(err)
	}
	if err := s1.Send(&wire.RelayBeat{Number: 7, Links: 12, RoundTrips: 3, RoundTripMinNanos: 1000, RoundTripMedianNanos: 2000, RoundTripMaxNanos: 3000}); err != nil {
		t.Fatal(err)
	}
	if m, err := s1.Recv(); err != nil || m.GetNumber() != 7 {
		t.Errorf("the echo is %v, %v", m, err)
	}
	both := func(n api.Node) bool { return len(n.Relay.Controllers) == 2 }
	got := c1.seen("r1", "linked to both", both)
	want := api.Node{
		Name: "r1", Role: roles.RoleRelay, Mode: roles.ModePassive, Host: "host-r1", IP: "10.0.9.1", API: "https://10.0.9.1:7600",
		Version: "v1", Started: time.Unix(0, hello.GetHello().GetStartedUnixNano()).UTC(), LastSeen: got.LastSeen, UptimeSeconds: got.UptimeSeconds,
		Relay: &api.RelayState{Controllers: []string{"c1", "c2"}, Links: 12, RoundTrip: &api.RoundTrip{MinMicros: 1, MedianMicros: 2, MaxMicros: 3, Samples: 3}},
	}
	if d := cmp.Diff(want, got); d != "" || got.LastSeen.IsZero() {
		t.Errorf("the list (-want +got):\n%s", d)
	}
	same(t, "the metric", []float64{1}, metricsOf(t, c1, "uac_relays_linked"))
	if n := c2.seen("r1", "linked to both", both); n.Relay.RoundTrip != nil {
		t.Errorf("c2 shows a round trip that it was not told: %+v", n.Relay)
	}

	// A relay takes no orders, and is not forgotten while it is linked.
	yes := true
	_, errSet := c1.SetNode(t.Context(), operator, "r1", &yes, nil)
	_, errOrder := c1.Order(t.Context(), operator, "r1", verbStop, nil)
	_, errSwitch := c1.Switchover(t.Context(), operator, "r1")
	for what, err := range map[string]error{"pause": errSet, "stop": errOrder, "switchover": errSwitch, "remove": c1.RemoveNode(t.Context(), operator, "r1")} {
		if !isErr(err, api.ErrConflict) {
			t.Errorf("%s: %v, want a conflict", what, err)
		}
	}

	// It goes away, and is still shown. A newer link replaces an older one.
	newer, _, err := greet(t, p1.client(r1), hello)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s1.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the older link ended with %v", err)
	}
	for _, s := range []relayStream{newer, s2} {
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	gone := c2.seen("r1", "Offline, and when it was seen last", func(n api.Node) bool {
		return n.Mode == roles.ModeOffline && len(n.Relay.Controllers) == 0 && !n.LastSeen.IsZero()
	})
	if gone.UptimeSeconds != 0 || gone.Host != "host-r1" {
		t.Errorf("it is shown as %+v", gone)
	}
	// The last word about it may still be on its way.
	for err = c1.RemoveNode(t.Context(), operator, "r1"); isErr(err, api.ErrConflict); {
		err = c1.RemoveNode(t.Context(), operator, "r1")
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c1.findNode("r1"); !isErr(err, api.ErrNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if err := c1.RemoveNode(t.Context(), operator, "r1"); !isErr(err, api.ErrNotFound) {
		t.Errorf("a second removal: %v", err)
	}
	if left := slices.Collect(c1.member.View().Snapshot().Range("relay")); len(left) != 0 {
		t.Errorf("left in the store: %v", left)
	}
	if got := c1.events("r1"); !slices.Contains(got, "node.removed") {
		t.Errorf("events %v", got)
	}
}

// Links of a controller that has lost its session count no more, and count again when
// it has a new one: relays do not notice.
func TestRelayOfLostController(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	r1 := c1.listen()
	if _, _, err := greet(t, r1.client(r1.store(pki.Relay, "r1")), helloOfRelay("r1")); err != nil {
		t.Fatal(err)
	}
	c2.seen("r1", "linked", func(n api.Node) bool { return n.Mode == roles.ModePassive })
	w.kill("c1")
	c2.seen("r1", "Offline", func(n api.Node) bool { return n.Mode == roles.ModeOffline })
}

func TestEnrollRelay(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	text, _ := c1.token(api.TokenSpec{Role: "relay", Name: "r1", Hosts: []string{"r1.example.com", "10.0.9.1"}})
	m := newNewcomer(t, pki.Relay, "r1", text)
	resp, err := m.enroll(c1)
	if err != nil {
		t.Fatal(err)
	}
	m.install(resp, w.ca.RootFingerprint())
	s, err := pki.Load(m.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RelayServer(); err != nil {
		t.Error(err)
	}
	if n := c1.seen("r1", "known", func(n api.Node) bool { return n.Mode == roles.ModeOffline }); n.Role != roles.RoleRelay {
		t.Errorf("shown as %+v", n)
	}
	for name, taken := range map[string]string{"a known relay": "r1", "a controller": "c1"} {
		again, _ := c1.token(api.TokenSpec{Role: "relay", Name: taken})
		if _, err := newNewcomer(t, pki.Relay, taken, again).enroll(c1); status.Code(err) != codes.AlreadyExists {
			t.Errorf("with the name of %s: %v", name, err)
		}
	}
	// An agent may be called like a relay: they are told apart by their role.
	agent, _ := c1.token(api.TokenSpec{Role: "agent", Name: "r1"})
	if _, err := newNewcomer(t, pki.Relay, "r2", agent).enroll(c1); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a relay with an agent's token: %v", err)
	}
	if _, err := newNewcomer(t, pki.Agent, "r1", agent).enroll(c1); err != nil {
		t.Error(err)
	}
}

// The way that an agent has come is shown as it says, if that can be a way.
func TestVia(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	client := p.client(p.store(pki.Agent, "a1"))
	for _, via := range [][]string{{"r1", "No Name"}, {""}, slices.Repeat([]string{"r1"}, 9)} {
		h := helloOf("a1", 1)
		h.Via = via
		if _, m, err := hello(t, client, first(h)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("via %q: %v, %v", via, m, err)
		}
	}
	h := helloOf("a1", 2)
	h.Via = []string{"r2", "r1"}
	if _, _, err := hello(t, client, first(h)); err != nil {
		t.Fatal(err)
	}
	coordtest.Await(t, c1.member.View(), "the way is shown", func(coord.Snapshot) bool {
		a, err := c1.GetAgent(t.Context(), "a1")
		return err == nil && cmp.Equal(map[string]string{"c1": "r2,r1"}, a.Via)
	})
}
