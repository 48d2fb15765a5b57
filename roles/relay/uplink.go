package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

	"uac/roles/wire"
)

const (
	reconnectFirst = 50 * time.Millisecond
	reconnectLast  = 5 * time.Second
)

var (
	errSilent = errors.New("the controller does not answer")
	errNoHome = errors.New("no link to a controller")
)

// uplink is an own link of the relay to a controller.
type uplink struct {
	controller string
	via        []string
	client     *grpc.ClientConn
	window     window // guarded by Relay.mu
}

// keepServer holds the own links to or through one server until ctx ends: one to a
// controller, and through a relay one to every controller that has none yet.
func (r *Relay) keepServer(ctx context.Context, s *server) {
	var links sync.WaitGroup
	defer links.Wait()
	ended := make(chan struct{}, 1)
	wait := reconnectFirst
	for ctx.Err() == nil {
		link, err := r.dial(ctx, s.addr)
		if err != nil {
			if !errors.Is(err, wire.ErrNoOther) {
				r.log.Debug("no link", "server", s.addr, "error", err)
			}
			wait = min(2*wait, reconnectLast)
		} else {
			r.learn(s, link)
			wait = reconnectFirst
			if len(link.Via) > 0 {
				links.Go(func() {
					r.keepUplink(ctx, s, link)
					select {
					case ended <- struct{}{}:
					default:
					}
				})
				continue // there may be more behind it
			}
			r.keepUplink(ctx, s, link)
		}
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
		case <-ended:
			wait = reconnectFirst
		case <-timer.C:
		}
		timer.Stop()
	}
}

// dial opens an own link. A controller at addr is taken in any case: it is how its
// name is known.
func (r *Relay) dial(ctx context.Context, addr string) (*wire.Link, error) {
	conf, err := r.deps.TLS()
	if err != nil {
		return nil, err
	}
	return wire.DialLink(ctx, addr, conf, r.Controllers())
}

// learn remembers who was met at a server's address.
func (r *Relay) learn(s *server, l *wire.Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.relay, s.name = len(l.Via) > 0, l.Controller
	if s.relay {
		s.name = l.Via[0]
	}
}

// keepUplink keeps an own link until it ends.
func (r *Relay) keepUplink(ctx context.Context, s *server, l *wire.Link) {
	err := r.serveUplink(ctx, s, l)
	if ctx.Err() == nil {
		r.log.Warn("link lost", "controller", l.Controller, "server", s.addr, "via", l.Via, "error", err)
	}
}

func (r *Relay) serveUplink(ctx context.Context, s *server, l *wire.Link) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() { _ = l.Close() }() // the client may not have taken it
	client, err := l.Client(wire.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	// What ends the context is the reason, not what follows from it.
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	}()
	patience := time.AfterFunc(wire.DialTimeout, func() { cancel(errSilent) })
	defer patience.Stop()
	stream, err := wire.NewLinkClient(client).Relay(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&wire.RelayBeat{Hello: r.hello()}); err != nil {
		_, err = stream.Recv() // has the reason
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	u := &uplink{controller: l.Controller, via: l.Via, client: client}
	r.putUplink(s, u)
	defer r.dropUplink(s, u)
	r.log.Info("link opened", "controller", u.controller, "server", s.addr, "via", u.via)
	return r.beat(ctx, u, stream, patience)
}

// beat sends a beat at every interval and measures how long its echo takes. An echo
// that does not come ends the link by patience.
func (r *Relay) beat(ctx context.Context, u *uplink, stream grpc.BidiStreamingClient[wire.RelayBeat, wire.RelayEcho], patience *time.Timer) error {
	echoes := make(chan uint64)
	received := make(chan error, 1)
	go func() { // ends with the stream, which ends with ctx
		for {
			m, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			select {
			case echoes <- m.GetNumber():
			case <-ctx.Done():
				received <- context.Cause(ctx)
				return
			}
		}
	}()
	tick := time.NewTicker(r.cfg.BeatInterval)
	defer tick.Stop()
	silence := 3 * r.cfg.BeatInterval
	patience.Reset(silence)
	sent, lastLog := map[uint64]time.Time{}, time.Now()
	for n := uint64(1); ; {
		select {
		case now := <-tick.C:
			if now.Sub(lastLog) >= windowLength {
				lastLog = now
				r.logRoundTrip(u, now)
			}
			b := r.beatOf(u, n, now)
			sent[n] = time.Now()
			if err := stream.Send(b); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			n++
		case number := <-echoes:
			at, ok := sent[number]
			if !ok {
				continue // a controller that talks too much is not alive for that
			}
			now := time.Now()
			delete(sent, number)
			patience.Reset(silence)
			r.mu.Lock()
			u.window.add(now, now.Sub(at))
			r.mu.Unlock()
		case err := <-received:
			return err
		}
	}
}

func (r *Relay) logRoundTrip(u *uplink, now time.Time) {
	r.mu.Lock()
	rt := u.window.stats(now)
	r.mu.Unlock()
	r.log.Info("idle round trip", "controller", u.controller, "min", rt.Min, "median", rt.Median, "max", rt.Max, "samples", rt.Samples)
}

func (r *Relay) hello() *wire.RelayHello {
	return &wire.RelayHello{
		Name: r.cfg.Name, Version: r.cfg.Version, Host: r.cfg.Host, Ip: r.cfg.IP, Api: r.cfg.API,
		StartedUnixNano: r.started.UnixNano(),
	}
}

func (r *Relay) beatOf(u *uplink, number uint64, now time.Time) *wire.RelayBeat {
	r.mu.Lock()
	defer r.mu.Unlock()
	rt := u.window.stats(now)
	return &wire.RelayBeat{
		Number: number, Links: uint32(r.links),
		RoundTripMinNanos: int64(rt.Min), RoundTripMedianNanos: int64(rt.Median), RoundTripMaxNanos: int64(rt.Max),
		RoundTrips: uint32(rt.Samples),
	}
}

func (r *Relay) putUplink(s *server, u *uplink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.uplinks[u] = struct{}{}
}

func (r *Relay) dropUplink(s *server, u *uplink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(s.uplinks, u)
}

// uplinks lists the own links that stand.
func (r *Relay) uplinks() []*uplink {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*uplink
	for _, s := range r.servers {
		for u := range s.uplinks {
			all = append(all, u)
		}
	}
	return all
}

// Renew asks a controller for a new certificate of this relay.
func (r *Relay) Renew(ctx context.Context, q *wire.RenewRequest) (*wire.Certificate, error) {
	errs := []error{errNoHome}
	for _, u := range r.uplinks() {
		cert, err := wire.NewLinkClient(u.client).Renew(ctx, q)
		if err == nil {
			return cert, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", u.controller, err))
	}
	return nil, errors.Join(errs...)
}
