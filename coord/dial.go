package coord

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// dial keeps a connection to the peer until ctx ends. How a connection ends and
// what the next dial finds is evidence, so it dials again at once.
func (m *mesh) dial(ctx context.Context, p *peer) {
	longest := m.cfg.Silence / pulsesPerSilence
	var wait time.Duration
	for {
		began := time.Now()
		linked, err := m.connect(ctx, p)
		switch {
		case linked && time.Since(began) >= longest: // no oftener than after a pause
			wait = 0
			continue
		case !linked && lasting(err):
			wait = refusalPause
		case !linked && m.knownDead(p):
			// Nothing is to be found out by haste, and its loss is being decided now.
			// Its next process dials us.
			wait = longest
		default:
			wait = min(max(2*wait, firstRedial), longest)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-p.redial:
			wait = 0
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// connect dials the peer once and serves the connection until it ends. linked
// tells that there was one.
func (m *mesh) connect(ctx context.Context, p *peer) (linked bool, err error) {
	patience := m.patience()
	dialCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	conn, err := m.cfg.Dial(dialCtx, p.name)
	if err != nil {
		m.dialFailed(p, began, err)
		return false, err
	}
	defer closeNow(conn)
	defer closeOnEnd(ctx, conn)()
	in, h, err := m.introduce(conn, p.name, patience)
	if err != nil {
		m.dialFailed(p, began, err)
		return false, err
	}
	l := newLink(conn, in, h.Run, m.cfg.Silence)
	m.linkUp(p, l, true, h)
	defer m.beside(ctx, p)()
	return true, m.serve(p, l, m.fromAcceptor)
}

// patience is how long a dial, or a hello, may take.
func (m *mesh) patience() time.Duration { return max(m.cfg.Silence/2, handshakeFloor) }

// serve moves messages until the link ends.
func (m *mesh) serve(p *peer, l *link, handle func(*peer, *link, *message) error) error {
	giveUpAfter(l.conn, max(2*m.cfg.Silence, lostFloor))
	var wg sync.WaitGroup
	wg.Go(l.write)
	err := l.read(func(msg *message) error { return handle(p, l, msg) })
	m.linkDown(p, l)
	wg.Wait()
	return err
}

// knownDead reports whether a refused dial was evidence against the peer's session.
func (m *mesh) knownDead(p *peer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.evidence&evRefused != 0
}

func (m *mesh) dialFailed(p *peer, began time.Time, err error) {
	now := m.lock()
	defer m.unlock()
	if trouble := err.Error(); p.trouble != trouble {
		p.trouble = trouble
		m.log.Debug("peer not reached", "peer", p.name, "error", err)
	}
	if refused(err) {
		p.seen.dialRefused(began)
	}
	m.review(now, p)
}

var errHello = errors.New("hello refused")

// introduce says hello on a connection that this member dialed.
func (m *mesh) introduce(conn net.Conn, peer string, patience time.Duration) (*frameReader, *helloMsg, error) {
	if err := m.isPeer(conn, peer); err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, nil, err
	}
	if err := writeHello(conn, m.greeting("")); err != nil {
		return nil, nil, err
	}
	in, h, err := readHello(conn)
	if err != nil {
		return nil, nil, err
	}
	if wrong := m.judge(peer, h); h.Refused != "" || wrong != "" {
		return nil, nil, fmt.Errorf("%w: by %s: %q, by us: %q", errHello, peer, h.Refused, wrong)
	}
	return in, h, conn.SetDeadline(time.Time{})
}

// accept serves the connections that other members open, until the listener is
// closed or fails.
func (m *mesh) accept(ctx context.Context, wg *sync.WaitGroup, l net.Listener, welcome func(context.Context, net.Conn) error) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept pulses: %w", err)
		}
		wg.Go(func() {
			defer closeNow(conn)
			defer closeOnEnd(ctx, conn)()
			if err := welcome(ctx, conn); err != nil {
				m.log.Debug("connection refused", "from", conn.RemoteAddr(), "error", err)
			}
		})
	}
}

// welcome answers the hello on an accepted connection and serves it.
func (m *mesh) welcome(_ context.Context, conn net.Conn) error {
	p, in, h, err := m.hear(conn)
	if err != nil {
		return err
	}
	wrong := m.judge(p.name, h)
	if err := writeHello(conn, m.greeting(wrong)); err != nil {
		return err
	}
	if wrong != "" {
		return fmt.Errorf("%w: %s: %s", errHello, p.name, wrong)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	l := newLink(conn, in, h.Run, m.cfg.Silence)
	m.linkUp(p, l, false, h)
	return m.serve(p, l, m.fromDialer)
}

// hear reads the hello on an accepted connection, whose deadline it sets.
func (m *mesh) hear(conn net.Conn) (*peer, *frameReader, *helloMsg, error) {
	name, err := m.cfg.Identify(conn)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("identify: %w", err)
	}
	p := m.peers[name]
	if p == nil {
		return nil, nil, nil, fmt.Errorf("%w: %s is no member", errHello, name)
	}
	if err := conn.SetDeadline(time.Now().Add(max(m.cfg.Silence, handshakeFloor))); err != nil {
		return nil, nil, nil, err
	}
	in, h, err := readHello(conn)
	return p, in, h, err
}

// isPeer checks the certificate of a connection that this member dialed.
func (m *mesh) isPeer(conn net.Conn, peer string) error {
	name, err := m.cfg.Identify(conn)
	if err != nil {
		return fmt.Errorf("%w: identify %s: %w", errHello, peer, err)
	}
	if name != peer {
		return fmt.Errorf("%w: %s answers in the place of %s", errHello, name, peer)
	}
	return nil
}

// greeting is this member's hello.
func (m *mesh) greeting(refused string) *helloMsg {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &helloMsg{
		Node: m.cfg.Node, Run: m.facts.Run(), Epoch: m.facts.SessionEpoch(), Version: m.cfg.Version,
		Generation: m.facts.Generation(), origin: m.facts.Origin(), Refused: refused,
	}
}

// judge returns what is wrong with a hello of the peer, if anything.
func (m *mesh) judge(peer string, h *helloMsg) string {
	m.lock()
	defer m.unlock()
	if h.Node != peer {
		return fmt.Sprintf("%s calls itself %s", peer, h.Node)
	}
	return m.generation(peer, h.Generation)
}

func writeHello(conn net.Conn, h *helloMsg) error {
	frame, err := appendFrame(nil, &message{Hello: h})
	if err != nil {
		return err
	}
	if _, err := conn.Write(frame); err != nil {
		return fmt.Errorf("write hello: %w", err)
	}
	return nil
}

func readHello(conn net.Conn) (*frameReader, *helloMsg, error) {
	in := newFrameReader(conn)
	msg, err := in.next()
	if err != nil {
		return nil, nil, fmt.Errorf("read hello: %w", err)
	}
	if msg.Hello == nil {
		return nil, nil, fmt.Errorf("%w: no hello", errOutOfTurn)
	}
	return in, msg.Hello, nil
}
