package coord

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter makes the kernel end the connection when what was sent stays
// unacknowledged for d. Without it, a connection to a machine that lost power
// is only found dead after many minutes of ever rarer retransmissions, and a
// member would not connect again to its peer when that is back.
func giveUpAfter(c net.Conn, d time.Duration) {
	for { // TLS, and what a listener may have laid under it
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = t.NetConn()
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// Should it fail, the connection is only replaced later.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
