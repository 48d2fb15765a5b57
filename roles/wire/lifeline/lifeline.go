package lifeline

import (
	"fmt"
	"net"
	"sync"
)

// Held is a connection that [Hold] has taken over. Its methods are safe for concurrent
// use.
type Held struct {
	done chan struct{}
	end  func()
}

// Done is closed when the connection has ended: the other side has closed it, it broke,
// or Close was called.
func (h *Held) Done() <-chan struct{} { return h.done }

// Close ends the connection, without a farewell of any protocol above TCP, and waits
// until it is closed.
func (h *Held) Close() error {
	h.end()
	<-h.done
	return nil
}

// Hold takes over a TCP connection, or the one under a TLS connection, of which nothing
// is to be read or written any more. On success the caller's connection is closed and
// need not be closed again. On failure, which is errors.ErrUnsupported where there is no
// such thing, nothing has happened to it.
func Hold(c net.Conn) (*Held, error) {
	tcp, err := tcpUnder(c)
	if err != nil {
		return nil, err
	}
	h := &Held{done: make(chan struct{})}
	end, err := hold(tcp, h.done)
	if err != nil {
		return nil, fmt.Errorf("lifeline: %w", err)
	}
	h.end = sync.OnceFunc(end)
	_ = tcp.Close()
	return h, nil
}

// Listen takes over a listening socket. On success l is closed and the result, whose
// methods are safe for concurrent use and which yields *net.TCPConn, takes its place. On
// failure, which is errors.ErrUnsupported where there is no such thing, nothing has
// happened to l.
func Listen(l *net.TCPListener) (net.Listener, error) {
	own, err := listen(l)
	if err != nil {
		return nil, fmt.Errorf("lifeline: %w", err)
	}
	_ = l.Close()
	return own, nil
}

// tcpUnder returns what TLS, and whatever else may lie between, goes over.
func tcpUnder(c net.Conn) (*net.TCPConn, error) {
	for {
		switch t := c.(type) {
		case *net.TCPConn:
			return t, nil
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil, fmt.Errorf("lifeline: cannot hold a %T", c)
		}
	}
}
