package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"uac/roles/wire/pki"
)

const (
	// MaxMessage is the size of the largest message that either side takes, in
	// bytes.
	MaxMessage = 8 << 20

	// TLS has decrypted a whole record before gRPC reads it, so that a buffer of
	// gRPC's own would only be memory.
	readBuffer   = 0
	writeBuffer  = 4 << 10   // per connection, given back while it is idle
	streamWindow = 256 << 10 // what a peer may send before the reader has read
	connWindow   = 1 << 20
	maxHeaders   = 16 << 10
)

// Options tune one gRPC server or client. The zero value is right for links.
type Options struct {
	// PingInterval is after how much silence a ping is sent, and PingTimeout how
	// long its answer may take before the connection is given up. 0 means no
	// pings. gRPC takes an interval below 1 s for 1 s at a server, and one below
	// 10 s for 10 s at a client: it is the server's that notices early.
	PingInterval time.Duration
	PingTimeout  time.Duration
	// MaxStreams bounds the concurrent calls of one client. 0 means 16.
	MaxStreams uint32
}

// NewServer returns a gRPC server for the listener of one class. It does no TLS of
// its own: what the listener hands out has been through a handshake, and anything
// else is refused.
func NewServer(o Options, extra ...grpc.ServerOption) *grpc.Server {
	if o.MaxStreams == 0 {
		o.MaxStreams = 16
	}
	opts := []grpc.ServerOption{
		grpc.Creds(finished{}),
		grpc.ReadBufferSize(readBuffer),
		grpc.WriteBufferSize(writeBuffer),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(o.MaxStreams),
		grpc.ConnectionTimeout(DialTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
	if o.PingInterval > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{Time: o.PingInterval, Timeout: o.PingTimeout}))
	}
	return grpc.NewServer(append(opts, extra...)...)
}

// NewClient returns a gRPC client for one class at one address, as [Dial] would
// connect. It connects at the first call and again after a loss, from 50 ms to 5 s
// apart; a call fails at once while there is no connection, unless it asks to wait.
// To be closed by the caller.
func NewClient(class, addr string, config *tls.Config, o Options, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	return newClient(addr, o, func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := Dial(ctx, class, addr, config)
		if err != nil {
			return nil, err // not a nil *tls.Conn in an interface
		}
		return conn, nil
	}, extra...)
}

func newClient(addr string, o Options, dial func(context.Context, string) (net.Conn, error), extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(finished{}),
		grpc.WithContextDialer(dial),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithWriteBufferSize(writeBuffer),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.5, MaxDelay: 5 * time.Second},
			MinConnectTimeout: DialTimeout,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	}
	if o.PingInterval > 0 {
		opts = append(opts, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: o.PingInterval, Timeout: o.PingTimeout, PermitWithoutStream: true,
		}))
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	return conn, nil
}

// ErrNoPeer is returned when a context is not that of a call over a connection of
// this package, or its peer has shown no certificate.
var ErrNoPeer = errors.New("wire: call has no authenticated peer")

// Peer returns the identity of the other end of a call.
func Peer(ctx context.Context) (pki.Identity, error) {
	info, ok := authInfo(ctx)
	if !ok || info.peer.Name == "" {
		return pki.Identity{}, ErrNoPeer
	}
	return info.peer, nil
}

// PeerCertificate returns the verified certificate of the other end of a call.
func PeerCertificate(ctx context.Context) (*x509.Certificate, error) {
	info, ok := authInfo(ctx)
	if !ok || info.peer.Name == "" {
		return nil, ErrNoPeer
	}
	return info.conn.ConnectionState().VerifiedChains[0][0], nil
}

func authInfo(ctx context.Context) (connInfo, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return connInfo{}, false
	}
	info, ok := p.AuthInfo.(connInfo)
	return info, ok
}

// connInfo is what gRPC keeps of a finished handshake. peer is zero when the class
// is anonymous.
type connInfo struct {
	credentials.CommonAuthInfo
	peer pki.Identity
	conn *tls.Conn
}

// AuthType implements credentials.AuthInfo.
func (connInfo) AuthType() string { return "tls" }

// finished are the transport credentials of connections whose handshake is done.
type finished struct{}

var errNotFinished = errors.New("wire: connection has no finished handshake")

func info(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, errNotFinished
	}
	cs := conn.ConnectionState()
	if !cs.HandshakeComplete {
		return nil, nil, errNotFinished
	}
	ci := connInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, conn: conn}
	if len(cs.VerifiedChains) > 0 {
		id, err := pki.PeerIdentity(cs)
		if err != nil {
			return nil, nil, err
		}
		ci.peer = id
	}
	return conn, ci, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (finished) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return info(c)
}

// ServerHandshake implements credentials.TransportCredentials.
func (finished) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return info(c)
}

// Info implements credentials.TransportCredentials.
func (finished) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (f finished) Clone() credentials.TransportCredentials { return f }

// OverrideServerName implements credentials.TransportCredentials.
func (finished) OverrideServerName(string) error { return nil }
