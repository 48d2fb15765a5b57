package wire

import (
	"errors"
	"net"
)

// Through is a connection on which the client has said its TLS hello and nobody has
// answered: the handshake is to be made with somebody else. Hello and what is read
// afterwards are, together, what the client said.
type Through struct {
	net.Conn
	// Hello is what the client has said.
	Hello []byte
	// known is set when the hello has been understood: there is no more to record.
	// Whatever is written before is an alert of a handshake that is not ours.
	known bool
	mute  bool
}

// errThrough ends a handshake that is another one's to make.
var errThrough = errors.New("wire: the handshake is made with somebody else")

// Read implements net.Conn.
func (t *Through) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if !t.known {
		t.Hello = append(t.Hello, p[:n]...)
	}
	return n, err
}

// Write implements net.Conn.
func (t *Through) Write(p []byte) (int, error) {
	if t.mute {
		return len(p), nil
	}
	return t.Conn.Write(p)
}

// NetConn returns the connection below, as that of a *tls.Conn does.
func (t *Through) NetConn() net.Conn { return t.Conn }

// below returns the connection under what a listener has laid over it.
func below(c net.Conn) net.Conn {
	if t, ok := c.(*Through); ok {
		return t.Conn
	}
	return c
}
