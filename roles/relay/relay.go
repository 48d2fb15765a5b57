package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// Config holds the settings of a relay. Start from [DefaultConfig].
type Config struct {
	Name string
	// Version, Host, IP and API are what the relay tells of itself.
	Version, Host, IP, API string
	// Servers are the controllers and relays that links are carried to, host:port.
	Servers []string
	// MaxLinks bounds the links that are carried, MaxPerAgent those of one agent: it
	// needs two, and more only while it replaces some that it has not seen end.
	MaxLinks, MaxPerAgent int
	// MaxJoins bounds the machines that are joining, JoinRate how many may begin in
	// a second.
	MaxJoins int
	JoinRate float64
	// AskTimeout bounds the time from the end of a handshake to the answer. It should
	// be shorter than what a client waits for, which is [wire.DialTimeout].
	AskTimeout time.Duration
	// BeatInterval is the time between two messages on the relay's own links. An own
	// link without an answer for three times as long is given up.
	BeatInterval time.Duration
}

// DefaultConfig returns the settings of a relay that was told nothing. Name and
// Servers are to be filled in.
func DefaultConfig() Config {
	return Config{
		MaxLinks: 20_000, MaxPerAgent: 8, MaxJoins: 16, JoinRate: 20,
		AskTimeout: wire.DialTimeout - time.Second, BeatInterval: time.Second,
	}
}

// Validate returns everything that is wrong with the settings.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Name != "", "name: is empty")
	check(len(c.Servers) > 0, "servers: is empty")
	for i, s := range c.Servers {
		host, port, err := net.SplitHostPort(s)
		check(err == nil && host != "" && port != "", "servers: %q is not host:port", s)
		check(!slices.Contains(c.Servers[:i], s), "servers: %q is named twice", s)
	}
	check(c.MaxLinks > 0, "max_links %d: must be positive", c.MaxLinks)
	check(c.MaxPerAgent > 0, "links of an agent %d: must be positive", c.MaxPerAgent)
	check(c.MaxJoins > 0 && c.JoinRate > 0, "joins: must be allowed")
	check(c.AskTimeout > 0, "ask timeout %v: must be positive", c.AskTimeout)
	check(c.BeatInterval > 0, "beat interval %v: must be positive", c.BeatInterval)
	return errors.Join(errs...)
}

// Deps are what a relay works with.
type Deps struct {
	// Asks yields connections of class uac-relay/1, Joins those of uac-join/1 on
	// which only the client has spoken. Whoever serves them closes them.
	Asks, Joins net.Listener
	// TLS returns what authenticates this relay to controllers and relays. It is
	// called for every connection, so that renewed files are used.
	TLS func() (wire.LinkTLS, error)
	// Log; nil discards.
	Log *slog.Logger
}

// Relay carries links. Make it with [New]. Its methods are safe for concurrent use.
type Relay struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	started time.Time
	buffers *buffers
	joins   *rate.Limiter

	total, joined, joinsRefused atomic.Uint64
	fromNodes, toNodes          atomic.Uint64 // bytes
	refused                     [wire.RelayAnswer_REFUSED + 1]atomic.Uint64

	mu      sync.Mutex // guards what follows
	servers []*server
	links   int // that are carried or being made
	byPeer  map[string]int
}

// server is one of the addresses that links are carried to.
type server struct {
	addr    string
	known   // but up, which is whether there are uplinks
	uplinks map[*uplink]struct{}
}

// New returns a relay with the given settings. Nothing runs yet.
func New(cfg Config, deps Deps) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("relay settings: %w", err)
	}
	if deps.Asks == nil || deps.Joins == nil || deps.TLS == nil {
		return nil, errors.New("relay: no listeners or no TLS configuration")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{
		cfg: cfg, deps: deps, log: deps.Log, started: time.Now(), buffers: newBuffers(),
		joins:  rate.NewLimiter(rate.Limit(cfg.JoinRate), cfg.MaxJoins),
		byPeer: map[string]int{},
	}
	for _, addr := range cfg.Servers {
		r.servers = append(r.servers, &server{addr: addr, uplinks: map[*uplink]struct{}{}})
	}
	return r, nil
}

// Started is when the relay was made.
func (r *Relay) Started() time.Time { return r.started }

// Controllers names the controllers that the relay has a link of its own to, in order.
func (r *Relay) Controllers() []string {
	var names []string
	for _, u := range r.uplinks() {
		names = append(names, u.controller)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Run works until ctx ends, and returns when everything that it started has ended.
func (r *Relay) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range r.servers {
		g.Go(func() error { r.keepServer(ctx, s); return nil })
	}
	// More than can be carried are taken in, so that who is too many is told.
	g.Go(func() error { return serve(ctx, r.deps.Asks, r.cfg.MaxLinks+256, r.serveAsk) })
	g.Go(func() error { return serve(ctx, r.deps.Joins, r.cfg.MaxJoins, r.serveJoin) })
	return g.Wait()
}

// serve calls f for every connection, for at most limit at a time, until ctx ends.
func serve(ctx context.Context, ln net.Listener, limit int, f func(ctx context.Context, conn net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, limit)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil // it was asked to stop, or who listens was
			}
			return fmt.Errorf("relay: %w", err)
		}
		all.Go(func() {
			defer func() { <-slots }()
			f(ctx, conn)
		})
	}
}

const (
	// connectTimeout bounds a connection to one controller: there may be another.
	connectTimeout = 2 * time.Second
	// joinTimeout bounds how long a machine that joins is connected.
	joinTimeout = 15 * time.Second
)

var errNotTCP = errors.New("not a TCP connection")

// serveAsk answers one ask, and carries what it leads to.
func (r *Relay) serveAsk(ctx context.Context, c net.Conn) {
	conn, ok := c.(*tls.Conn)
	if !ok {
		_ = c.Close() // the listener yields nothing else
		return
	}
	up, s, err := r.answer(ctx, conn)
	if err != nil {
		_ = conn.Close() // the error says why
		if ctx.Err() == nil {
			r.log.Info("not connected", "remote", conn.RemoteAddr(), "error", err)
		}
		return
	}
	down := wire.TakeTCP(conn)
	conn = nil // its buffers are not needed any more
	r.carry(ctx, down, up)
	r.release(s)
}

// hop is one link on its way through the relay: what release gives back.
type hop struct {
	peer string
	to   *server
}

// answer reads an ask, connects to a controller and answers. After an error nothing is
// left but to close the connection.
func (r *Relay) answer(ctx context.Context, conn *tls.Conn) (_ net.Conn, _ hop, err error) {
	peer, err := pki.PeerIdentity(conn.ConnectionState())
	if err != nil {
		return nil, hop{}, err
	}
	if err := conn.SetDeadline(time.Now().Add(r.cfg.AskTimeout)); err != nil {
		return nil, hop{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.AskTimeout)
	defer cancel()
	q := &wire.RelayAsk{}
	if err := wire.ReadFrame(conn, q); err != nil {
		return nil, hop{}, fmt.Errorf("%s did not ask: %w", peer, err)
	}
	h := hop{peer: peer.String()}
	no := r.check(peer, q)
	if no == nil {
		no = r.admit(peer)
	}
	var up net.Conn
	yes := &wire.RelayAnswer{}
	if no == nil {
		if up, h.to, yes, no = r.connect(ctx, q); no != nil {
			r.release(h)
		}
	}
	if no != nil {
		r.refused[no.GetReason()].Add(1)
		err := fmt.Errorf("%s: %s: %s", peer, no.GetReason(), no.GetDetail())
		return nil, hop{}, errors.Join(err, wire.WriteFrame(conn, no))
	}
	if err := wire.WriteFrame(conn, yes); err != nil {
		r.release(h)
		return nil, hop{}, errors.Join(err, up.Close())
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		r.release(h)
		return nil, hop{}, errors.Join(err, up.Close())
	}
	return up, h, nil
}

func refusal(reason wire.RelayAnswer_Reason, format string, args ...any) *wire.RelayAnswer {
	return &wire.RelayAnswer{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// check returns what is wrong with an ask, nil if nothing is.
func (r *Relay) check(peer pki.Identity, q *wire.RelayAsk) *wire.RelayAnswer {
	refuse := func(format string, args ...any) *wire.RelayAnswer {
		return refusal(wire.RelayAnswer_REFUSED, format, args...)
	}
	switch path := q.GetPath(); {
	case q.GetClass() == wire.ClassJoin && peer.Role != pki.Relay:
		return refuse("only relays pass on who joins")
	case q.GetClass() != wire.ClassLink && q.GetClass() != wire.ClassJoin:
		return refuse("class %q is not carried", q.GetClass())
	case slices.Contains(path, r.cfg.Name):
		return refuse("the relays %v lead in a circle", append(path, r.cfg.Name))
	case len(path) >= maxPath:
		return refuse("%d relays are the most in sequence", maxPath)
	}
	return nil
}

// admit takes a link into account, or says why it is too many.
func (r *Relay) admit(peer pki.Identity) *wire.RelayAnswer {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := peer.String()
	switch {
	case r.links >= r.cfg.MaxLinks:
		return refusal(wire.RelayAnswer_FULL, "%s carries %d links already", r.cfg.Name, r.links)
	case peer.Role == pki.Agent && r.byPeer[key] >= r.cfg.MaxPerAgent:
		return refusal(wire.RelayAnswer_FULL, "%s carries %d links of %s already", r.cfg.Name, r.byPeer[key], peer)
	}
	r.links++
	r.byPeer[key]++
	return nil
}

// release gives back what admit and connect took.
func (r *Relay) release(h hop) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.to != nil {
		h.to.carried--
	}
	if h.peer == "" {
		return
	}
	r.links--
	if r.byPeer[h.peer]--; r.byPeer[h.peer] == 0 {
		delete(r.byPeer, h.peer)
	}
}

// connect connects to a controller for an ask. The connection counts for the server,
// until it is released.
func (r *Relay) connect(ctx context.Context, q *wire.RelayAsk) (net.Conn, *server, *wire.RelayAnswer, *wire.RelayAnswer) {
	r.mu.Lock()
	view := make([]known, len(r.servers))
	for i, s := range r.servers {
		view[i] = s.known
		view[i].up = len(s.uplinks) > 0
	}
	r.mu.Unlock()
	order, ruledOut := choose(view, q)
	var errs []error
	for _, i := range order {
		s := r.servers[i]
		conn, answer, err := r.connectTo(ctx, s.addr, view[i], q)
		switch {
		case errors.Is(err, wire.ErrNoOther):
			ruledOut = true
		case err != nil:
			errs = append(errs, fmt.Errorf("%s at %s: %w", view[i].name, s.addr, err))
		default:
			r.mu.Lock()
			s.carried++
			r.mu.Unlock()
			return conn, s, answer, nil
		}
	}
	switch {
	case len(errs) > 0:
		return nil, nil, nil, refusal(wire.RelayAnswer_UNREACHABLE, "%v", errors.Join(errs...))
	case ruledOut:
		return nil, nil, nil, refusal(wire.RelayAnswer_NO_OTHER, "%s reaches none but %v", r.cfg.Name, q.GetNot())
	}
	return nil, nil, nil, refusal(wire.RelayAnswer_UNREACHABLE, "%s has met no controller yet", r.cfg.Name)
}

// connectTo connects to a controller, or to one behind a relay.
func (r *Relay) connectTo(ctx context.Context, addr string, s known, q *wire.RelayAsk) (net.Conn, *wire.RelayAnswer, error) {
	if !s.relay {
		conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", addr)
		return conn, &wire.RelayAnswer{Controller: s.name}, err
	}
	conf, err := r.deps.TLS()
	if err != nil {
		return nil, nil, err
	}
	conn, answer, err := wire.DialRelay(ctx, addr, conf.Entry, &wire.RelayAsk{
		Class: q.GetClass(), Not: q.GetNot(), Path: append(slices.Clone(q.GetPath()), r.cfg.Name),
	})
	if err != nil {
		return nil, nil, err
	}
	via := append([]string{s.name}, answer.GetVia()...)
	return conn, &wire.RelayAnswer{Controller: answer.GetController(), Via: via}, nil
}

// serveJoin carries what a machine without a certificate says to the controllers'
// enrolment. Its TLS hello has said that it wants nothing else.
func (r *Relay) serveJoin(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }() // often closed already
	through, ok := c.(*wire.Through)
	if !ok || !r.joins.Allow() {
		r.joinsRefused.Add(1)
		r.log.Warn("too many machines join at a time", "remote", c.RemoteAddr())
		return
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	up, s, _, no := r.connect(ctx, &wire.RelayAsk{Class: wire.ClassJoin})
	if no != nil {
		r.refused[no.GetReason()].Add(1)
		r.log.Warn("a machine that joins is not connected", "remote", c.RemoteAddr(), "reason", no.GetReason(), "error", no.GetDetail())
		return
	}
	defer r.release(hop{to: s})
	if _, err := up.Write(through.Hello); err != nil {
		_ = up.Close() // the client sees that nobody answers
		return
	}
	r.joined.Add(1)
	r.log.Info("a machine joins", "remote", c.RemoteAddr())
	r.carry(ctx, through.Conn, up)
}

// carry joins the connection of a node with one to a controller until either or ctx
// ends.
func (r *Relay) carry(ctx context.Context, node, controller net.Conn) {
	down, ok1 := node.(*net.TCPConn)
	up, ok2 := controller.(*net.TCPConn)
	if !ok1 || !ok2 {
		r.log.Error("not carried", "error", errNotTCP)
		_, _ = node.Close(), controller.Close() // never used
		return
	}
	r.total.Add(1)
	stop := context.AfterFunc(ctx, func() { _, _ = down.Close(), up.Close() })
	defer stop()
	r.buffers.carry(down, up, func(fromNode bool, n int) {
		if fromNode {
			r.fromNodes.Add(uint64(n))
		} else {
			r.toNodes.Add(uint64(n))
		}
	})
}
