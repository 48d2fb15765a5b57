package coord

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// laid is a connection laid over another one, as a listener does.
type laid struct{ net.Conn }

func (o laid) NetConn() net.Conn { return o.Conn }

// A connection is given up in time whatever is laid over it.
func TestGiveUpAfter(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, lay := range map[string]func(net.Conn) net.Conn{
		"nothing":                func(c net.Conn) net.Conn { return c },
		"TLS":                    func(c net.Conn) net.Conn { return tls.Client(c, &tls.Config{}) },
		"TLS over a listener's":  func(c net.Conn) net.Conn { return tls.Server(laid{c}, &tls.Config{}) },
		"a listener's over that": func(c net.Conn) net.Conn { return laid{tls.Server(laid{c}, &tls.Config{})} },
	} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		giveUpAfter(lay(c), 1500*time.Millisecond)
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if err := raw.Control(func(fd uintptr) {
			got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}); err != nil || got != 1500 {
			t.Errorf("%s: given up after %d ms: %v", name, got, err)
		}
		_ = c.Close()
	}
}
