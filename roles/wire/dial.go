package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// DialTimeout bounds connect and handshake together, unless the context ends
// sooner.
const DialTimeout = 5 * time.Second

// Dial connects to addr and completes the handshake for the class. The TLS
// configuration says which CAs the server must come from and, in ServerName, which
// name it must have: addresses do not count. An end of ctx after Dial has returned
// does not touch the connection.
//
// With TLS 1.3 a server that refuses the client's certificate says so only after
// this returns: the first read then fails.
func Dial(ctx context.Context, class, addr string, config *tls.Config) (*tls.Conn, error) {
	if config.ServerName == "" && !config.InsecureSkipVerify {
		return nil, errors.New("wire: TLS configuration names no server")
	}
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	return handshake(ctx, raw, class, config)
}

// handshake makes a TCP connection one of the class, or closes it.
func handshake(ctx context.Context, raw net.Conn, class string, config *tls.Config) (*tls.Conn, error) {
	cfg := config.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{class}
	cfg.ClientSessionCache = nil
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("wire: handshake with %s for %s: %w", raw.RemoteAddr(), class, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != class {
		raw.Close()
		return nil, fmt.Errorf("wire: %s chose class %q, not %s", raw.RemoteAddr(), got, class)
	}
	return conn, nil
}

func tooManyFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) ||
		errors.Is(err, syscall.ECONNABORTED)
}
