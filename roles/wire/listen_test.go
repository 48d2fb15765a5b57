package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"uac/roles/wire"
	"uac/roles/wire/pki"
	"uac/roles/wire/wiretest"
)

// port is a listener of all classes, each of which answers a connection with
// its own name and a newline.
type port struct {
	*wire.Listener
	members, nodes *wiretest.CA
}

func newPort(t *testing.T, change func(*wire.ListenConfig, map[string]*wire.Class)) *port {
	t.Helper()
	p := &port{members: wiretest.NewCA(t), nodes: wiretest.NewCA(t)}
	member := p.members.Server(p.members.Issue(t, "controller", "c1"))
	node := p.nodes.Server(p.nodes.Issue(t, "controller", "c1"))
	classes := map[string]*wire.Class{
		wire.ClassPulse:  {TLS: member, Roles: []pki.Role{pki.Controller, pki.Watch}},
		wire.ClassMember: {TLS: member, Roles: []pki.Role{pki.Controller, pki.Watch}},
		wire.ClassRelay:  {TLS: node, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.ClassLink:   {TLS: node, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.ClassJoin:   {TLS: node, Anonymous: true},
	}
	cfg := wire.ListenConfig{Addr: "127.0.0.1:0"}
	if change != nil {
		change(&cfg, classes)
	}
	var list []wire.Class
	for name, c := range classes {
		c.Name = name
		list = append(list, *c)
	}
	l, err := wire.Listen(cfg, list...)
	if err != nil {
		t.Fatal(err)
	}
	p.Listener = l
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for name := range classes {
		class := l.Class(name)
		wg.Go(func() {
			for {
				conn, err := class.Accept()
				if err != nil {
					return
				}
				if below := bottom(conn); !isTCP(below) {
					t.Errorf("what lies below a connection of %s is a %T", name, below)
				}
				_, _ = io.WriteString(conn, name+"\n")
				conn.Close()
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return p
}

// bottom is what lies below all that is laid over a connection.
func bottom(c net.Conn) net.Conn {
	for {
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = over.NetConn()
	}
}

func isTCP(c net.Conn) bool { _, ok := c.(*net.TCPConn); return ok }

// answer is what the port says to a client of the class, or why it says nothing.
func (p *port) answer(t *testing.T, class string, cfg *tls.Config) (string, error) {
	t.Helper()
	conn, err := wire.Dial(t.Context(), class, p.Addr().String(), cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	s, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(s), err
}

func TestEachClassTakesItsOwnPeersOnly(t *testing.T) {
	p := newPort(t, nil)
	stranger := wiretest.NewCA(t)
	peers := map[string]*tls.Config{
		"controller of members CA": p.members.Client(p.members.Issue(t, "controller", "c2"), "controller.uac"),
		"watch of members CA":      p.members.Client(p.members.Issue(t, "watch", "w1"), "controller.uac"),
		"agent of members CA":      p.members.Client(p.members.Issue(t, "agent", "a1"), "controller.uac"),
		"nameless of members CA":   p.members.Client(p.members.IssueNameless(t), "controller.uac"),
		"agent of nodes CA":        p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac"),
		"relay of nodes CA":        p.nodes.Client(p.nodes.Issue(t, "relay", "r1"), "controller.uac"),
		"controller of nodes CA":   p.nodes.Client(p.nodes.Issue(t, "controller", "c2"), "controller.uac"),
		"nameless of nodes CA":     p.nodes.Client(p.nodes.IssueNameless(t), "controller.uac"),
		"nobody, trusts nodes":     p.nodes.Client(tls.Certificate{}, "controller.uac"),
		"nobody, trusts members":   p.members.Client(tls.Certificate{}, "controller.uac"),
		"agent of a foreign CA": func() *tls.Config {
			cfg := p.nodes.Client(stranger.Issue(t, "agent", "a1"), "controller.uac")
			return cfg
		}(),
		"expects a watch": p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "watch.uac"),
	}
	allowed := map[string][]string{
		wire.ClassPulse:  {"controller of members CA", "watch of members CA"},
		wire.ClassMember: {"controller of members CA", "watch of members CA"},
		wire.ClassLink:   {"agent of nodes CA", "relay of nodes CA"},
		wire.ClassRelay:  {"agent of nodes CA", "relay of nodes CA"},
		// Nobody has to prove anything here, but must trust the nodes CA.
		wire.ClassJoin: {"agent of nodes CA", "relay of nodes CA", "controller of nodes CA",
			"nameless of nodes CA", "nobody, trusts nodes", "agent of a foreign CA"},
	}
	for class, names := range allowed {
		ok := map[string]bool{}
		for _, n := range names {
			ok[n] = true
		}
		for name, cfg := range peers {
			got, err := p.answer(t, class, cfg)
			switch {
			case ok[name] && (err != nil || got != class):
				t.Errorf("%s for %s: answer %q, error %v", name, class, got, err)
			case !ok[name] && err == nil:
				t.Errorf("%s got into %s: answer %q", name, class, got)
			}
		}
	}
}

func TestUnknownClassEndsInTheHandshake(t *testing.T) {
	p := newPort(t, func(_ *wire.ListenConfig, classes map[string]*wire.Class) { delete(classes, wire.ClassJoin) })
	agent := p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac")
	for _, class := range []string{"h2", "uac-link/2", wire.ClassJoin} {
		if _, err := wire.Dial(t.Context(), class, p.Addr().String(), agent); err == nil {
			t.Errorf("class %s was accepted", class)
		}
	}
	// Without any ALPN at all.
	if conn, err := tls.Dial("tcp", p.Addr().String(), agent); err == nil {
		conn.Close()
		t.Error("a client without a class was accepted")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	p := newPort(t, nil)
	cfg := p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac")
	cfg.NextProtos = []string{wire.ClassLink}
	cfg.MaxVersion = tls.VersionTLS12
	if conn, err := tls.Dial("tcp", p.Addr().String(), cfg); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestSilentClientsAreCutAndDoNotBlockOthersForEver(t *testing.T) {
	p := newPort(t, func(cfg *wire.ListenConfig, _ map[string]*wire.Class) {
		cfg.MaxHandshakes = 2
		cfg.HandshakeTimeout = 200 * time.Millisecond
	})
	var silent []net.Conn
	for range 5 {
		conn, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	agent := p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac")
	// On a busy machine an honest client may be too slow for this timeout, too.
	var got string
	var err error
	for range 50 {
		if got, err = p.answer(t, wire.ClassLink, agent); err == nil {
			break
		}
	}
	if err != nil || got != wire.ClassLink {
		t.Errorf("answer %q, error %v behind silent clients", got, err)
	}
	for _, conn := range silent {
		if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, net.ErrClosed) && !isReset(err) {
			t.Errorf("silent connection ended with %v", err)
		}
	}
}

func isReset(err error) bool { return strings.Contains(err.Error(), "reset by peer") }

func TestClosedClassRefusesAndLeavesOthersAlone(t *testing.T) {
	p := newPort(t, nil)
	p.Class(wire.ClassJoin).Close()
	agent := p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac")
	if got, err := p.answer(t, wire.ClassJoin, agent); err == nil {
		t.Errorf("closed class answered %q", got)
	}
	if got, err := p.answer(t, wire.ClassLink, agent); err != nil || got != wire.ClassLink {
		t.Errorf("other class: answer %q, error %v", got, err)
	}
}

// A renewed certificate, or CA, counts for the next connection.
func TestRenewedConfigurationIsUsed(t *testing.T) {
	var mu sync.Mutex
	var now *tls.Config
	p := newPort(t, func(_ *wire.ListenConfig, classes map[string]*wire.Class) {
		now = classes[wire.ClassLink].TLS
		classes[wire.ClassLink].TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			return now, nil
		}}
	})
	before := p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac")
	if _, err := p.answer(t, wire.ClassLink, before); err != nil {
		t.Fatal(err)
	}
	other := wiretest.NewCA(t)
	mu.Lock()
	now = other.Server(other.Issue(t, "controller", "c1"))
	mu.Unlock()
	if _, err := p.answer(t, wire.ClassLink, before); err == nil {
		t.Error("a certificate of the old CA was accepted")
	}
	after := other.Client(other.Issue(t, "agent", "a1"), "controller.uac")
	if _, err := p.answer(t, wire.ClassLink, after); err != nil {
		t.Error(err)
	}
	// What the class demands holds for the new configuration too.
	if _, err := p.answer(t, wire.ClassLink, other.Client(other.Issue(t, "watch", "w1"), "controller.uac")); err == nil {
		t.Error("a watch got in through a renewed configuration")
	}
}

func TestListenRefusesNonsense(t *testing.T) {
	good := wire.Class{Name: "a", TLS: &tls.Config{}, Anonymous: true}
	tests := map[string][]wire.Class{
		"no name":                 {{TLS: &tls.Config{}, Anonymous: true}},
		"no TLS":                  {{Name: "a", Anonymous: true}},
		"twice":                   {good, good},
		"neither roles nor none":  {{Name: "a", TLS: &tls.Config{}}},
		"through, with TLS":       {{Name: "a", TLS: &tls.Config{}, Through: true}},
		"through, with role":      {{Name: "a", Through: true, Roles: []pki.Role{pki.Agent}}},
		"anonymous and with role": {{Name: "a", TLS: &tls.Config{}, Anonymous: true, Roles: []pki.Role{pki.Agent}}},
	}
	for name, classes := range tests {
		if l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, classes...); err == nil {
			l.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, good)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if other, err := wire.Listen(wire.ListenConfig{Addr: l.Addr().String()}, good); err == nil {
		other.Close()
		t.Error("a port in use was bound")
	}
}

func TestDialNeedsAServerName(t *testing.T) {
	if _, err := wire.Dial(t.Context(), wire.ClassLink, "127.0.0.1:1", &tls.Config{}); err == nil || !strings.Contains(err.Error(), "names no server") {
		t.Errorf("got %v", err)
	}
}

// A storm of agents computes in turns, clients that do not go on lose theirs, and
// members wait for nobody.
func TestHandshakesInTurns(t *testing.T) {
	for _, tc := range []struct {
		maxTurn time.Duration
		class   string
		want    bool
	}{
		{time.Millisecond, wire.ClassLink, true},
		{time.Hour, wire.ClassLink, false},
		{time.Hour, wire.ClassPulse, true},
	} {
		p := newPort(t, func(cfg *wire.ListenConfig, classes map[string]*wire.Class) {
			cfg.Turns, cfg.MaxTurn = 1, tc.maxTurn
			classes[wire.ClassPulse].Urgent = true
		})
		clients := map[string]*tls.Config{
			wire.ClassLink:  p.nodes.Client(p.nodes.Issue(t, "agent", "a1"), "controller.uac"),
			wire.ClassPulse: p.members.Client(p.members.Issue(t, "controller", "c2"), "controller.uac"),
		}
		// This one takes the turn, says hello, and nothing more.
		raw, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		mute := &afterHello{Conn: raw, answered: make(chan struct{}), end: make(chan struct{})}
		cfg := clients[wire.ClassLink].Clone()
		cfg.NextProtos = []string{wire.ClassLink}
		var wg sync.WaitGroup
		wg.Go(func() { _ = tls.Client(mute, cfg).Handshake() })
		<-mute.answered // so it has its turn
		patience := 30 * time.Second
		if !tc.want {
			patience = 100 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := wire.Dial(ctx, tc.class, p.Addr().String(), clients[tc.class])
		if err == nil {
			conn.Close()
		}
		if (err == nil) != tc.want {
			t.Errorf("%s behind a client that keeps its turn for %v: %v", tc.class, tc.maxTurn, err)
		}
		cancel()
		close(mute.end)
		wg.Wait()
		raw.Close()
	}
}

// afterHello is the connection of a client that does not go on when it is answered.
type afterHello struct {
	net.Conn
	answered, end chan struct{}
	once          sync.Once
}

func (c *afterHello) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.once.Do(func() { close(c.answered) })
	<-c.end
	return n, errors.Join(err, net.ErrClosed)
}
