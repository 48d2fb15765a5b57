package coordtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"uac/coord"
)

// dial opens a pulse connection and says who dials.
func (c *Cluster) dial(ctx context.Context, from string, to coord.Peer) (net.Conn, error) {
	if c.isCut(from, to.Name) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", to.Link)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "%s\n", from); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &pulseConn{Conn: conn, cluster: c, self: from, other: to.Name}, nil
}

// acceptor yields pulse connections, which begin with the dialer's name.
type acceptor struct {
	net.Listener
	cluster *Cluster
	self    string
}

func (a acceptor) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &pulseConn{Conn: conn, cluster: a.cluster, self: a.self, in: bufio.NewReader(conn)}, nil
}

// pulseConn is one end of a pulse connection.
type pulseConn struct {
	net.Conn
	cluster *Cluster
	self    string
	in      *bufio.Reader // of an accepted connection

	once  sync.Once
	other string // the member at the other end
	err   error
}

// peer is the name of the member at the other end.
func (p *pulseConn) peer() (string, error) {
	p.once.Do(func() {
		if p.in == nil {
			return
		}
		line, err := p.in.ReadString('\n')
		p.other, p.err = strings.TrimSuffix(line, "\n"), err
	})
	return p.other, p.err
}

func (p *pulseConn) Read(b []byte) (int, error) {
	if p.in == nil {
		return p.Conn.Read(b)
	}
	if _, err := p.peer(); err != nil {
		return 0, err
	}
	return p.in.Read(b)
}

// Write loses what it is given while the two members are cut off.
func (p *pulseConn) Write(b []byte) (int, error) {
	other, err := p.peer()
	if err != nil {
		return 0, err
	}
	if p.cluster.isCut(p.self, other) {
		return len(b), nil
	}
	return p.Conn.Write(b)
}

// NetConn is the connection below, for whom that is a matter of sockets.
func (p *pulseConn) NetConn() net.Conn { return p.Conn }
