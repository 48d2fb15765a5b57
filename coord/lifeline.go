package coord

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// meshLifelines is [Lifelines] by the names of peers.
type meshLifelines struct {
	Listener net.Listener
	Dial     func(ctx context.Context, peer string) (net.Conn, error)
	Hold     func(net.Conn) (Lifeline, error)
}

// longestLifelinePause bounds the pauses between attempts at a lifeline. What makes
// them fail, a peer of an older version or a kernel that forbids it, lasts as long as
// one of the two processes.
const longestLifelinePause = time.Minute

// errCeased ends the connections with a process of which the kernel has closed the
// lifeline and the port.
var errCeased = errors.New("the process has ended")

// beside keeps a lifeline beside a connection that this member dialed, until stop is
// called, which must not be before that connection has ended: who reads the end of a
// lifeline must not meet a process that still trusts itself.
func (m *mesh) beside(ctx context.Context, p *peer) (stop func()) {
	if m.cfg.Lifelines == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		wait := refusalPause
		for ctx.Err() == nil {
			err := m.lifeline(ctx, p.name)
			switch {
			case err == nil:
				wait = refusalPause
			case ctx.Err() == nil:
				m.log.Debug("no lifeline", "peer", p.name, "error", err)
			}
			_ = pause(ctx, wait)
			wait = min(2*wait, longestLifelinePause)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// lifeline opens one to the peer and keeps it while it lasts.
func (m *mesh) lifeline(ctx context.Context, peer string) error {
	dialCtx, cancel := context.WithTimeout(ctx, m.patience())
	defer cancel()
	conn, err := m.cfg.Lifelines.Dial(dialCtx, peer)
	if err != nil {
		return err
	}
	held, err := m.hang(conn, peer)
	if err != nil {
		closeNow(conn)
		return err
	}
	select {
	case <-held.Done():
	case <-ctx.Done():
	}
	return held.Close()
}

// hang says whose lifeline it is and lets go of it.
func (m *mesh) hang(conn net.Conn, peer string) (Lifeline, error) {
	if err := m.isPeer(conn, peer); err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(m.patience())); err != nil {
		return nil, err
	}
	if err := writeHello(conn, m.greeting("")); err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return m.cfg.Lifelines.Hold(conn)
}

// heed waits for the end of another member's lifeline.
func (m *mesh) heed(ctx context.Context, conn net.Conn) error {
	p, in, h, err := m.hear(conn)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if _, err := in.next(); err == nil {
		return errOutOfTurn
	}
	m.lifelineEnded(ctx, p, h.Run)
	return nil
}

// lifelineEnded finds out whether the process has ended: then it listens no more. The
// kernel may close its port a moment after its lifelines. As soon as the connection that
// this member dialed has ended, too, the dials that look for its successor find out.
func (m *mesh) lifelineEnded(ctx context.Context, p *peer, run string) {
	for wait := firstRedial; m.reached(p, run) && ctx.Err() == nil; wait *= 2 {
		dialCtx, cancel := context.WithTimeout(ctx, m.patience())
		began := time.Now()
		conn, err := m.cfg.Dial(dialCtx, p.name)
		cancel()
		if err == nil {
			closeNow(conn)
			return // it lives, and opens another
		}
		if refused(err) {
			m.ceased(p, run, began)
			return
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// reached reports whether a connection that this member dialed to the process is up. If
// not, a firewall may refuse what is dialed and leave alone what the process has dialed.
func (m *mesh) reached(p *peer, run string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.out != nil && p.out.run == run
}

// ceased drops the connections with a process which is known to have ended by a dial
// that began then.
func (m *mesh) ceased(p *peer, run string, began time.Time) {
	now := m.lock()
	defer m.unlock()
	dropped := false
	for _, slot := range []**link{&p.out, &p.in} {
		if l := *slot; l != nil && l.run == run {
			m.drop(now, p, slot, errCeased)
			dropped = true
		}
	}
	if dropped { // they may have ended, or another lifeline may have told, meanwhile
		m.log.Info("peer disconnected", "peer", p.name, "reason", errCeased)
		m.parted(p)
	}
	p.seen.lifelineRefused(run, began)
	m.review(now, p)
}
