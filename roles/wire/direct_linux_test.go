package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pairTCP returns both ends of a connection, the first read and written directly.
func pairTCP(t *testing.T) (net.Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	d, ok := newDirect(a).(*direct)
	if !ok {
		t.Fatalf("%T", newDirect(a))
	}
	return d, b.(*net.TCPConn)
}

// Whatever fits into no buffer waits, in both directions, and arrives in order.
func TestDirectMovesAll(t *testing.T) {
	t.Parallel()
	a, b := pairTCP(t)
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	sent := make(chan error, 2)
	send := func(c net.Conn) {
		_, err := c.Write(data)
		sent <- err
	}
	for _, way := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		go send(way.from)
		got := make([]byte, len(data))
		if _, err := io.ReadFull(way.to, got); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Error("other bytes than were sent")
		}
	}
}

func TestDirectEnds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(a net.Conn, b *net.TCPConn) error
		want error
	}{
		{"an orderly end", func(a net.Conn, b *net.TCPConn) error {
			_ = b.Close()
			_, err := a.Read(make([]byte, 1))
			return err
		}, io.EOF},
		{"a reset", func(a net.Conn, b *net.TCPConn) error {
			_ = b.SetLinger(0)
			_ = b.Close()
			_, err := a.Read(make([]byte, 1))
			return err
		}, syscall.ECONNRESET},
		{"closed here", func(a net.Conn, _ *net.TCPConn) error {
			go a.Close()
			_, err := a.Read(make([]byte, 1))
			return err
		}, net.ErrClosed},
		{"too late to read", func(a net.Conn, _ *net.TCPConn) error {
			_ = a.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := a.Read(make([]byte, 1))
			return err
		}, os.ErrDeadlineExceeded},
		{"too late to write", func(a net.Conn, _ *net.TCPConn) error {
			_ = a.SetWriteDeadline(time.Now().Add(time.Millisecond))
			_, err := a.Write(make([]byte, 64<<20)) // more than all buffers take
			return err
		}, os.ErrDeadlineExceeded},
		{"nothing to read into", func(a net.Conn, _ *net.TCPConn) error {
			n, err := a.Read(nil)
			return errors.Join(err, map[bool]error{true: io.ErrShortBuffer}[n != 0])
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pairTCP(t)
			if err := tc.do(a, b); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}
