package wire_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"uac/roles/wire"
	"uac/roles/wire/wiretest"
)

func TestFrames(t *testing.T) {
	q := &wire.RelayAsk{Class: wire.ClassLink, Not: []string{"c1", "c2"}, Path: []string{"r1"}}
	var b bytes.Buffer
	if err := wire.WriteFrame(&b, q); err != nil {
		t.Fatal(err)
	}
	b.WriteString("rest")
	got := &wire.RelayAsk{}
	if err := wire.ReadFrame(&b, got); err != nil || !proto.Equal(q, got) || b.String() != "rest" {
		t.Errorf("got %v, %v, left %q; want %v", got, err, b.String(), q)
	}
	if err := wire.WriteFrame(io.Discard, &wire.RelayAsk{Class: string(make([]byte, 5000))}); err == nil {
		t.Error("a message that nobody would read was sent")
	}
}

// Whatever a peer sends is a message or an error, and costs no more than its bytes.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Add([]byte("\x00\x0c\x0a\x0auac-link/1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &wire.RelayAsk{}
		if err := wire.ReadFrame(bytes.NewReader(data), q); err != nil {
			return
		}
		var b bytes.Buffer
		if err := wire.WriteFrame(&b, q); err != nil {
			t.Fatalf("read %v and cannot write it: %v", q, err)
		}
	})
}

// A hello that is passed through is the one that the client has said, and the client
// never notices who else has read it.
func TestThrough(t *testing.T) {
	nodes := wiretest.NewCA(t)
	behind := newPort(t, nil) // answers with the class
	l, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"},
		wire.Class{Name: wire.ClassJoin, Through: true},
		wire.Class{Name: wire.ClassRelay, TLS: nodes.Server(nodes.Issue(t, "relay", "r1")), Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(t.Context()) })
	wg.Go(func() {
		for {
			c, err := l.Class(wire.ClassJoin).Accept()
			if err != nil {
				return
			}
			through := c.(*wire.Through)
			up, err := net.Dial("tcp", behind.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := up.Write(through.Hello); err != nil {
				t.Error(err)
			}
			wg.Go(func() { _, _ = io.Copy(up, through); _ = up.Close() })
			wg.Go(func() { _, _ = io.Copy(through, up); _ = through.Close() })
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Class(wire.ClassRelay).Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "own\n")
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	p := &port{Listener: l}
	for range 2 {
		if got, err := p.answer(t, wire.ClassJoin, behind.nodes.Client(tls.Certificate{}, "controller.uac")); err != nil || got != wire.ClassJoin {
			t.Errorf("through: %q, %v", got, err)
		}
		// The other classes of the port are its own.
		if got, err := p.answer(t, wire.ClassRelay, nodes.Client(tls.Certificate{}, "relay.uac")); err != nil || got != "own" {
			t.Errorf("not through: %q, %v", got, err)
		}
	}
}
