package relay_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// hostile is a relay of the cluster, with a real certificate, that does with the bytes
// what it wants.
type hostile struct {
	addr string
	// connect returns what an agent is connected to.
	connect func() (net.Conn, error)
	// tamper is given each piece that was read, with the offset of its first byte in
	// its direction, and returns what is passed on instead.
	tamper func(toController bool, offset int64, piece []byte) []byte

	mu   sync.Mutex // guards seen
	seen map[bool][]byte
}

func (w *world) hostile(to *controller, tamper func(toController bool, offset int64, piece []byte) []byte) *hostile {
	w.t.Helper()
	return w.hostileWith(to, w.store(pki.Relay, "evil"), tamper)
}

func (w *world) hostileWith(to *controller, villain *pki.Store, tamper func(toController bool, offset int64, piece []byte) []byte) *hostile {
	w.t.Helper()
	server, err := villain.RelayServer()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, wire.Class{Name: wire.ClassRelay, TLS: server, Roles: []pki.Role{pki.Agent}})
	if err != nil {
		w.t.Fatal(err)
	}
	h := &hostile{addr: l.Addr().String(), tamper: tamper, seen: map[bool][]byte{}}
	h.connect = func() (net.Conn, error) { return net.Dial("tcp", to.addr) }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	wg.Go(func() {
		for {
			conn, err := l.Class(wire.ClassRelay).Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(ctx, conn.(*tls.Conn)) })
		}
	})
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	return h
}

func (h *hostile) serve(ctx context.Context, conn *tls.Conn) {
	defer func() { _ = conn.Close() }()
	if wire.ReadFrame(conn, &wire.RelayAsk{}) != nil {
		return
	}
	up, err := h.connect()
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	if wire.WriteFrame(conn, &wire.RelayAnswer{Controller: "c1"}) != nil {
		return
	}
	down := wire.TakeTCP(conn)
	stop := context.AfterFunc(ctx, func() { _, _ = down.Close(), up.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { h.pass(up, down, true); _, _ = down.Close(), up.Close() })
	h.pass(down, up, false)
	_, _ = down.Close(), up.Close()
	wg.Wait()
}

func (h *hostile) pass(dst io.Writer, src io.Reader, toController bool) {
	buf := make([]byte, 32<<10)
	for offset := int64(0); ; {
		n, err := src.Read(buf)
		piece := slices.Clone(buf[:n])
		h.mu.Lock()
		h.seen[toController] = append(h.seen[toController], piece...)
		h.mu.Unlock()
		if h.tamper != nil {
			piece = h.tamper(toController, offset, piece)
		}
		offset += int64(n)
		if _, werr := dst.Write(piece); werr != nil || err != nil {
			return
		}
	}
}

func (h *hostile) record(toController bool) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen[toController])
}

const secret = "the password of the database is swordfish"

// say sends a hello and then reports, each with the secret, until the link ends or all
// are answered. It returns how many were answered.
func say(l *link, reports int) int {
	if l.stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: &wire.Hello{Name: "a1", Host: secret}}}) != nil {
		return 0
	}
	if _, err := l.stream.Recv(); err != nil {
		return 0
	}
	for n := range reports {
		if l.stream.Send(report(n)) != nil {
			return n
		}
		if _, err := l.stream.Recv(); err != nil {
			return n
		}
	}
	return reports
}

func report(n int) *wire.AgentMessage {
	return &wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
		Request: fmt.Sprintf("%d: %s", n, secret), Attempt: &wire.Attempt{Step: "s", Attempt: 1, State: wire.State_EXITED, End: &wire.End{}},
	}}}
}

// received returns what a controller has been told.
func (c *controller) received() []string {
	var all []string
	for len(c.got) > 0 {
		all = append(all, (<-c.got).String())
	}
	return all
}

// A relay that is a villain's can end links and nothing more: of what an agent said
// the controller takes the beginning, unchanged and in order, and the other way round.
func TestHostileRelay(t *testing.T) {
	w := newWorld(t)
	const reports = 20
	a1, store, villain := w.agent("a1"), w.store(pki.Controller, "c1"), w.store(pki.Relay, "evil")
	var all []string
	for n := range reports {
		all = append(all, report(n).String())
	}
	// Handshakes end within the first 2500 bytes of both sides: what comes after is
	// tampered with, too.
	for _, at := range []int64{0, 700, 2500, 3300} {
		for name, tamper := range map[string]func(offset int64, piece []byte) []byte{
			"flips a bit":       func(_ int64, p []byte) []byte { p[len(p)/2] ^= 1; return p },
			"flips the first":   func(_ int64, p []byte) []byte { p[0] ^= 0x80; return p },
			"drops a piece":     func(int64, []byte) []byte { return nil },
			"drops a byte":      func(_ int64, p []byte) []byte { return p[1:] },
			"says things twice": func(_ int64, p []byte) []byte { return slices.Concat(p, p) },
			"adds something":    func(_ int64, p []byte) []byte { return append(p, 23, 3, 3, 0, 1, 0) },
			"turns it around":   func(_ int64, p []byte) []byte { slices.Reverse(p); return p },
		} {
			for _, toController := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s after %d bytes, to the controller: %t", name, at, toController), func(t *testing.T) {
					t.Parallel()
					w := &world{t: t, ca: w.ca}
					c := w.controllerWith("c1", store)
					var once sync.Once
					var done atomic.Bool
					evil := w.hostileWith(c, villain, func(to bool, offset int64, p []byte) []byte {
						if to == toController && offset >= at && len(p) > 0 {
							once.Do(func() { p = tamper(offset, p); done.Store(true) })
						}
						return p
					})
					ctx, cancel := context.WithTimeout(t.Context(), time.Second) // a dropped piece is waited for
					defer cancel()
					answered := 0
					if l, err := wire.DialLink(ctx, evil.addr, a1, nil); err == nil {
						conn, err := l.Client(wire.Options{})
						if err != nil {
							t.Fatal(err)
						}
						stream, err := wire.NewLinkClient(conn).Connect(ctx)
						if err == nil {
							answered = say(&link{Link: l, t: t, stream: stream}, reports)
						}
						_, _ = conn.Close(), l.Close()
					}
					if !done.Load() {
						t.Error("nothing was tampered with")
					}
					c.stop()
					got := c.received()
					if len(got) > 0 {
						got = got[1:] // the hello
					}
					if len(got) > reports || !slices.Equal(got, all[:len(got)]) {
						t.Errorf("the controller took for true: %q", got)
					}
					if answered > len(got) {
						t.Errorf("%d answers to %d reports", answered, len(got))
					}
				})
			}
		}
	}
}

// What a relay has seen tells it nothing, and nobody listens to it twice.
func TestRelayRecords(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	evil := w.hostile(c, nil)
	l, err := w.dial(evil.addr, w.agent("a1"))
	if err != nil {
		t.Fatal(err)
	}
	if n := say(l, 5); n != 5 {
		t.Fatalf("%d of 5 reports arrived", n)
	}
	if n := len(c.received()); n != 6 {
		t.Fatalf("the controller got %d messages", n)
	}
	said := evil.record(true)
	if len(said) < 5*len(secret) {
		t.Fatalf("only %d bytes went through the relay", len(said))
	}
	for _, direction := range []bool{true, false} {
		for _, word := range []string{secret, "swordfish", "uac.wire.v1", "c1.controller.uac", "a1.agent.uac"} {
			if bytes.Contains(evil.record(direction), []byte(word)) {
				t.Errorf("the relay reads %q", word)
			}
		}
	}
	again, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	_ = again.SetDeadline(time.Now().Add(patience))
	if _, err := again.Write(said); err != nil && !isReset(err) {
		t.Fatal(err)
	}
	// It answers the hello, and takes nothing of the rest.
	if _, err := io.Copy(io.Discard, again); err != nil && !isReset(err) {
		t.Errorf("the controller goes on listening: %v", err)
	}
	if got := c.received(); len(got) != 0 {
		t.Errorf("the controller took it again: %q", got)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// A relay can pose as a controller neither itself nor with the help of others.
func TestRelayPosesAsController(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	elsewhere := newWorld(t).controller("c1")
	evil := w.hostile(c, nil)
	a1 := w.agent("a1")
	for name, addr := range map[string]string{
		"a controller of another cluster": elsewhere.addr,
		"itself, with its certificate":    posing(t, w.store(pki.Relay, "evil")),
		"an agent's certificate":          posing(t, w.store(pki.Agent, "a9")),
		"a watch's certificate":           posing(t, w.store(pki.Watch, "w1")),
	} {
		evil.connect = func() (net.Conn, error) { return net.Dial("tcp", addr) }
		if l, err := wire.DialLink(t.Context(), evil.addr, a1, nil); err == nil {
			t.Errorf("%s: the agent takes it for %s", name, l.Controller)
			_ = l.Close()
		}
		// Directly at the address, too.
		if l, err := wire.DialLink(t.Context(), addr, a1, nil); err == nil {
			t.Errorf("%s: the agent takes it for %s", name, l.Controller)
			_ = l.Close()
		}
	}
	// Nor does it join machines to itself.
	if _, err := wire.Dial(t.Context(), wire.ClassJoin, posing(t, w.store(pki.Relay, "evil")), pki.JoinClient(w.ca.RootFingerprint())); err == nil {
		t.Error("a machine that joins takes a relay for a controller")
	}
}

// posing serves whatever class with a node's certificate, and asks for none.
func posing(t *testing.T, s *pki.Store) string {
	t.Helper()
	conf, err := s.LinkClient() // it shows the certificate of the nodes CA
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				tlsConn := tls.Server(conn, &tls.Config{
					MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ClassLink, wire.ClassJoin},
					GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return conf.GetClientCertificate(nil) },
				})
				_ = tlsConn.SetDeadline(time.Now().Add(patience))
				_, _ = io.Copy(io.Discard, tlsConn)
				_ = tlsConn.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}
