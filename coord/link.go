package coord

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// maxQueued bounds what waits to be written to one peer. Pulses are small: who
// is that far behind reads nothing any more.
const maxQueued = 2 * maxFrame

var errBehind = errors.New("peer does not read")

// link is one established connection of the mesh: after the hellos, before its
// end. Messages are queued and written by write, so that no caller of send ever
// waits for a peer.
type link struct {
	conn net.Conn
	in   *frameReader
	run  string // of the process at the other end
	// stuck is how long one write may take.
	stuck time.Duration

	mu     sync.Mutex // guards the fields below
	queue  []byte
	reason error // why the link was cut
	ready  chan struct{}

	// The rest belongs to the mesh and is guarded by its lock.

	// seq is the last pulse that came in on an accepted link.
	seq uint64
	// named is the session that our last echo named, and namedFrom the first
	// pulse of this link that was echoed so.
	named     int64
	namedFrom uint64
	echoed    uint64 // the last pulse that was echoed
}

func newLink(conn net.Conn, in *frameReader, run string, stuck time.Duration) *link {
	return &link{conn: conn, in: in, run: run, stuck: stuck, ready: make(chan struct{}, 1)}
}

// send queues a message. It never blocks; a peer that is too far behind is cut.
func (l *link) send(m *message) {
	l.mu.Lock()
	var err error
	if l.reason == nil {
		l.queue, err = appendFrame(l.queue, m)
		if err == nil && len(l.queue) > maxQueued {
			err = errBehind
		}
	}
	l.mu.Unlock()
	if err != nil {
		l.cut(err)
		return
	}
	l.wake()
}

func (l *link) wake() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// write sends what is queued until the link is cut.
func (l *link) write() {
	var spare []byte
	for range l.ready {
		l.mu.Lock()
		out, over := l.queue, l.reason != nil
		l.queue = spare[:0]
		l.mu.Unlock()
		if over {
			return
		}
		if len(out) > 0 {
			err := l.conn.SetWriteDeadline(time.Now().Add(l.stuck))
			if err == nil {
				_, err = l.conn.Write(out)
			}
			if err != nil {
				l.cut(fmt.Errorf("write: %w", err))
			}
		}
		spare = out
	}
}

// read hands each message to handle until the link ends or handle fails, and
// returns why.
func (l *link) read(handle func(*message) error) error {
	for {
		m, err := l.in.next()
		if err == nil {
			err = handle(&m)
		}
		if err != nil {
			l.cut(err)
			return l.why()
		}
	}
}

// cut ends the link. The first reason stays.
func (l *link) cut(reason error) {
	l.mu.Lock()
	if l.reason == nil {
		l.reason = reason
	}
	l.mu.Unlock()
	l.wake()
	closeNow(l.conn)
}

// why returns the reason of the link's end.
func (l *link) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// answered reports whether the sender of the pulse had a fresh echo of ours that
// named the session.
func (l *link) answered(p *pulseMsg, epoch int64) bool {
	return l.namedFrom != 0 && l.named == epoch && p.Heard >= l.namedFrom
}

// closeNow closes a connection without a farewell: TLS would first try to send
// one, and for that wait seconds for a peer that does not read.
func closeNow(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	_ = c.Close()
}

// closeOnEnd closes the connection when ctx ends, until stop is called. After
// stop nothing of it runs any more.
func closeOnEnd(ctx context.Context, c net.Conn) (stop func()) {
	done := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(done)
		closeNow(c)
	})
	return func() {
		if !unhook() {
			<-done
		}
	}
}

// refused reports whether a dial found that nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// lasting reports whether a dial or a hello failed for a reason that will be the
// same next time: a certificate that one side does not accept, a hello refused.
func lasting(err error) bool {
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	return errors.Is(err, errHello) || errors.Is(err, errFrame) || errors.As(err, &cert) ||
		errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") // TLS alerts
}
