package wire

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"uac/roles/wire/pki"
)

// LinkTLS authenticates a node to controllers and relays.
type LinkTLS struct {
	// Entry is for whoever is at the address, see [pki.Store.EntryClient].
	Entry *tls.Config
	// Controller is for the controller behind relays, see [pki.Store.LinkClient].
	Controller *tls.Config
}

// ServerRole returns the role of those who serve a class to agents and relays, "" for
// other classes.
func ServerRole(class string) pki.Role {
	switch class {
	case ClassLink:
		return pki.Controller
	case ClassRelay:
		return pki.Relay
	}
	return ""
}

// Link is a connection of class uac-link/1 to a controller.
type Link struct {
	*tls.Conn
	// Controller is the other end's name, by its certificate.
	Controller string
	// Via names the relays in between, nearest first; empty if there are none. The
	// first one is known by its certificate, the others by what it says.
	Via []string
}

// Refusal reasons of a relay.
var (
	// ErrNoOther is wrapped by errors that say that all controllers that the relay
	// can reach have been ruled out.
	ErrNoOther = errors.New("no other controller is to be reached")
	// ErrRelay is wrapped by all other refusals of a relay.
	ErrRelay = errors.New("the relay refuses")
)

// DialLink connects to the controller at addr, or to one behind the relay at addr that
// is none of those in not. A controller at addr is not asked whether it is in not.
func DialLink(ctx context.Context, addr string, conf LinkTLS, not []string) (*Link, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, role, err := dialEntry(ctx, addr, conf.Entry, ClassRelay, ClassLink)
	if err != nil {
		return nil, err
	}
	id, err := pki.ParseIdentity(conn.ConnectionState().PeerCertificates[0]) // verified by the handshake
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if role == pki.Controller {
		return &Link{Conn: conn, Controller: id.Name}, nil
	}
	raw, answer, err := ask(ctx, conn, &RelayAsk{Class: ClassLink, Not: not})
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", id.Name, err)
	}
	conn, err = handshake(ctx, raw, ClassLink, conf.Controller)
	if err != nil {
		return nil, fmt.Errorf("through relay %s: %w", id.Name, err)
	}
	via := append([]string{id.Name}, answer.GetVia()...)
	if id, err = pki.PeerIdentity(conn.ConnectionState()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Link{Conn: conn, Controller: id.Name, Via: via}, nil
}

// DialRelay asks the relay at addr and returns the connection to a controller that it
// gives, with its answer. Relays do this for whoever asks them.
func DialRelay(ctx context.Context, addr string, entry *tls.Config, q *RelayAsk) (net.Conn, *RelayAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, _, err := dialEntry(ctx, addr, entry, ClassRelay)
	if err != nil {
		return nil, nil, err
	}
	return ask(ctx, conn, q)
}

// dialEntry connects to whoever is at addr and lets it choose one of the classes.
func dialEntry(ctx context.Context, addr string, entry *tls.Config, classes ...string) (*tls.Conn, pki.Role, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, "", fmt.Errorf("wire: %w", err)
	}
	cfg := entry.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = classes
	cfg.ClientSessionCache = nil
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, "", errors.Join(fmt.Errorf("wire: handshake with %s for %v: %w", addr, classes, err), raw.Close())
	}
	role := ServerRole(conn.ConnectionState().NegotiatedProtocol)
	if role == "" {
		return nil, "", errors.Join(fmt.Errorf("wire: %s chose none of %v", addr, classes), raw.Close())
	}
	return conn, role, nil
}

// ask asks a relay. The connection that it returns leads to a controller; after an
// error it is closed.
func ask(ctx context.Context, conn *tls.Conn, q *RelayAsk) (_ net.Conn, _ *RelayAnswer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err() // the deadline may have been set
		}
		if err != nil {
			_ = conn.NetConn().Close() // nothing is lost with it
		}
	}()
	if err := WriteFrame(conn, q); err != nil {
		return nil, nil, err
	}
	answer := &RelayAnswer{}
	if err := ReadFrame(conn, answer); err != nil {
		return nil, nil, fmt.Errorf("no answer: %w", err)
	}
	switch answer.GetReason() {
	case RelayAnswer_REASON_UNSPECIFIED:
		return TakeTCP(conn), answer, nil
	case RelayAnswer_NO_OTHER:
		return nil, nil, ErrNoOther
	default:
		return nil, nil, fmt.Errorf("%w: %s: %s", ErrRelay, answer.GetReason(), answer.GetDetail())
	}
}

// TakeTCP takes the connection from under a TLS session, which must not be used any
// more. The peer does the same, and neither has sent anything that the other has not
// read.
func TakeTCP(conn *tls.Conn) net.Conn { return below(conn.NetConn()) }

// maxFrame bounds a RelayAsk or RelayAnswer in bytes.
const maxFrame = 4 << 10

// WriteFrame sends a message with its length.
func WriteFrame(w io.Writer, m proto.Message) error {
	frame, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 2), m)
	if err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	if len(frame)-2 > maxFrame {
		return fmt.Errorf("wire: message of %d bytes, at most %d are allowed", len(frame)-2, maxFrame)
	}
	binary.BigEndian.PutUint16(frame, uint16(len(frame)-2))
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	return nil
}

// ReadFrame reads what WriteFrame sends, and not a byte more.
func ReadFrame(r io.Reader, m proto.Message) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > maxFrame {
		return fmt.Errorf("wire: message of %d bytes, at most %d are allowed", size, maxFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	return nil
}

// Client returns a gRPC client over this link and no other: when the connection ends,
// so does its use. Closing the client closes the link.
func (l *Link) Client(o Options) (*grpc.ClientConn, error) {
	given := make(chan net.Conn, 1)
	given <- l.Conn
	client, err := newClient(l.Controller, o, func(context.Context, string) (net.Conn, error) {
		select {
		case conn := <-given:
			return conn, nil
		default:
			return nil, errLinkEnded
		}
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return client, nil
}

var errLinkEnded = errors.New("wire: the link has ended")
