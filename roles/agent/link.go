package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"uac/roles/wire"
)

// maxAnswers bounds the answers that wait on one link. A controller that asks much
// faster than it listens loses the link.
const maxAnswers = 1024

var (
	errSilent    = errors.New("heard nothing from the controller for too long")
	errSlow      = errors.New("the controller does not take its answers")
	errBehind    = errors.New("the controller is of an older generation of the cluster")
	errForeign   = errors.New("the controller is of another history of the cluster")
	errDoubled   = errors.New("another link leads to this controller already")
	errRaced     = fmt.Errorf("%w since the relay was asked", errDoubled)
	errNoWelcome = errors.New("the controller did not welcome the agent in time")
	errOvertaken = errors.New("another controller is of a newer generation of the cluster")
)

// link is one connection to a controller after its welcome.
type link struct {
	id         *wire.LinkID
	server     string
	controller string
	generation generation
	constant   bool  // the controller may act and sends no pings that would say so again
	pongs      pongs // guarded by Agent.mu
	collects   bool  // the controller says that output is collected
	cancel     context.CancelCauseFunc

	wake   chan struct{}
	chunks chan *wire.AgentMessage // output; its readers wait until it is taken
	readN  sync.WaitGroup          // one for each reader

	mu      sync.Mutex
	answers []func() (*wire.AgentMessage, uint64) // made when they are sent
	reports map[key]struct{}                      // attempts whose state is to be sent
	order   []key                                 // of reports
	reads   map[uint64]*read
}

func (l *link) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// report marks an attempt whose state is to be sent. However often it is marked, what
// is sent is the state at that time, so that nothing piles up.
func (l *link) report(k key) {
	l.mu.Lock()
	if _, ok := l.reports[k]; !ok {
		l.reports[k] = struct{}{}
		l.order = append(l.order, k)
	}
	l.mu.Unlock()
	l.kick()
}

// answer queues a message that f makes when its turn comes, with the number of the
// record that must be on disk before it is sent.
func (l *link) answer(f func() (*wire.AgentMessage, uint64)) {
	l.mu.Lock()
	full := len(l.answers) >= maxAnswers
	if !full {
		l.answers = append(l.answers, f)
	}
	l.mu.Unlock()
	if full {
		l.cancel(errSlow)
		return
	}
	l.kick()
}

// take returns everything that waits to be sent.
func (l *link) take() ([]func() (*wire.AgentMessage, uint64), []key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answers, order := l.answers, l.order
	l.answers, l.order = nil, nil
	clear(l.reports)
	return answers, order
}

// send sends what the agent has to say until ctx ends or the stream fails. Answers go
// before reports, so that an adopt answer is not overtaken by news.
func (l *link) send(ctx context.Context, a *Agent, stream grpc.BidiStreamingClient[wire.AgentMessage, wire.ControllerMessage]) error {
	put := func(m *wire.AgentMessage, seq uint64) error {
		if m == nil {
			return nil
		}
		if err := a.journal.wait(ctx, seq); err != nil {
			return err
		}
		report := m.GetReport()
		switch {
		case report != nil:
			report.Journal = a.journalState()
			if at := report.GetAttempt(); at.GetNoOutput() {
				at.NoOutput = a.dir(key{report.GetRequest(), at.GetStep(), at.GetAttempt()}).noOutput()
			}
			if report.GetAttempt().GetState() == wire.State_NEVER_STARTED {
				a.deps.Point(pointNeverDurable)
			}
		case m.GetAdopted() != nil:
			m.GetAdopted().Journal = a.journalState()
			a.deps.Point(pointFenceDurable)
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		if report != nil {
			a.metrics.Add(MetricReports, 1)
			a.deps.Point(pointReportSent)
		}
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-l.chunks:
			if err := put(m, 0); err != nil {
				return err
			}
			continue
		case <-l.wake:
		}
		answers, reports := l.take()
		for _, f := range answers {
			if err := put(f()); err != nil {
				return err
			}
		}
		for _, k := range reports {
			if err := put(a.reportOf(k)); err != nil {
				return err
			}
		}
	}
}

// keepLink holds one of the agent's links, over all losses, until ctx ends. Rounds
// through the servers are ReconnectMin to ReconnectMax apart, longer with every
// failure, and a random part of that, so that agents do not come in step.
func (a *Agent) keepLink(ctx context.Context) {
	wait := a.cfg.ReconnectMin
	for ctx.Err() == nil {
		if a.tryServers(ctx) {
			wait = a.cfg.ReconnectMin
		} else {
			wait = min(2*wait, a.cfg.ReconnectMax)
		}
		select {
		case <-ctx.Done():
		case <-time.After(mathrand.N(wait)):
		}
	}
}

// tryServers goes through the servers, in order of preference, until one welcomes the
// agent, and returns when that link has ended (true) or none did (false). The two
// links lead to different controllers; through which relays does not matter, but
// different ones come first.
func (a *Agent) tryServers(ctx context.Context) bool {
	tried := map[string]bool{}
	for raced := false; ; {
		server, ok := a.takeServer(tried)
		if !ok {
			return false
		}
		welcomed, err := a.connect(ctx, server)
		a.releaseServer(server)
		switch {
		case ctx.Err() != nil:
			return true
		case welcomed:
			a.log.Warn("link lost", "server", server, "err", err)
			return true
		case errors.Is(err, errRaced) && !raced:
			raced = true
			delete(tried, server) // now it can be told
		case errors.Is(err, errDoubled) || errors.Is(err, wire.ErrNoOther):
		default:
			a.noLink(server, err)
		}
	}
}

// takeServer returns the server to try next: in their order, but one that the other
// link uses last, and none where a controller is known that it leads to.
func (a *Agent) takeServer(tried map[string]bool) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	best := ""
	for _, s := range a.cfg.Servers {
		if tried[s] || a.taken[a.direct[s]] {
			continue
		}
		if best == "" || a.used[best] > 0 && a.used[s] == 0 {
			best = s
		}
	}
	if best == "" {
		return "", false
	}
	tried[best] = true
	a.used[best]++
	return best, true
}

func (a *Agent) releaseServer(server string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used[server]--
}

// takeController reports whether the other link leaves this controller to us: of two
// links of one agent it keeps one. server is where it was found, if not through a
// relay.
func (a *Agent) takeController(name, server string, relayed bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.direct, server)
	if !relayed {
		a.direct[server] = name
	}
	if a.taken[name] {
		return false
	}
	a.taken[name] = true
	return true
}

func (a *Agent) releaseController(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, name)
}

// controllers names the controllers that the other link leads to, if it does.
func (a *Agent) controllers() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.taken))
}

// noLink tells why there is no link. That a server cannot be reached is daily life. If
// a controller refuses the agent (another machine has its identity, its certificate is
// for another name), somebody has to do something, and is told once.
func (a *Agent) noLink(server string, err error) {
	switch grpcstatus.Code(err) {
	case codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument, codes.Unauthenticated:
		a.mu.Lock()
		told := a.refused[server] == err.Error()
		a.refused[server] = err.Error()
		a.mu.Unlock()
		if !told {
			a.log.Warn("the controller refuses this agent", "server", server, "err", err)
			return
		}
	}
	a.log.Debug("no link", "server", server, "err", err)
}

// nextLink returns the name of a new link. The number grows with every process, too,
// because opening the journal is recorded durably.
func (a *Agent) nextLink() *wire.LinkID {
	var nonce [8]byte
	rand.Read(nonce[:]) // never fails
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened++
	return &wire.LinkID{
		Number: uint64(a.ledger.opens)<<32 | uint64(a.opened),
		Nonce:  binary.LittleEndian.Uint64(nonce[:]),
	}
}

// connect opens one link and serves it until it ends, which always has a reason.
func (a *Agent) connect(ctx context.Context, server string) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	way, err := a.deps.Dial(ctx, server, a.controllers())
	if err != nil {
		return false, err
	}
	defer way.Close()
	// Before the hello: a controller gives up the older of two links of one agent.
	if !a.takeController(way.Controller, server, len(way.Via) > 0) {
		if len(way.Via) > 0 {
			return false, errRaced
		}
		return false, errDoubled
	}
	defer a.releaseController(way.Controller)
	conn, err := way.Client(wire.Options{})
	if err != nil {
		return false, err
	}
	defer conn.Close()

	patience := time.AfterFunc(a.cfg.WelcomeTimeout, func() { cancel(errNoWelcome) })
	defer patience.Stop()
	stream, err := wire.NewLinkClient(conn).Connect(ctx)
	if err != nil {
		return false, causeOf(ctx, err)
	}
	l := &link{
		id: a.nextLink(), server: server, cancel: cancel,
		wake: make(chan struct{}, 1), chunks: make(chan *wire.AgentMessage),
		reports: map[key]struct{}{}, reads: map[uint64]*read{},
	}
	asked, err := bootTime()
	if err != nil {
		return false, err
	}
	hello := a.hello(l.id)
	hello.Via = way.Via
	if err := stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: hello}}); err != nil {
		_, err = stream.Recv() // has the reason
		return false, causeOf(ctx, err)
	}
	m, err := stream.Recv()
	if err != nil {
		return false, causeOf(ctx, err)
	}
	w := m.GetWelcome()
	if w == nil {
		return false, errors.New("the controller's first message is no welcome")
	}
	if !patience.Stop() {
		return false, errNoWelcome
	}
	l.controller, l.collects = w.GetController(), w.GetCollectsOutput()
	l.constant = w.GetTrusted() && w.GetPingNanos() == 0
	l.generation = generation{w.GetGeneration().GetNumber(), w.GetGeneration().GetId()}
	if err := a.accept(ctx, l); err != nil {
		return false, err
	}
	a.log.Info("link opened", "controller", l.controller, "server", server, "via", way.Via)
	defer a.drop(l)
	if w.GetTrusted() {
		a.mu.Lock()
		a.contact = max(a.contact, asked)
		a.mu.Unlock()
	}
	a.isReady.Do(func() { close(a.ready) })

	var sender sync.WaitGroup
	defer sender.Wait()
	defer l.readN.Wait()
	defer cancel(nil)
	sender.Go(func() {
		if err := l.send(ctx, a, stream); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("send: %w", err))
		}
	})

	silence := 3 * time.Duration(w.GetPingNanos())
	if silence > 0 {
		patience = time.AfterFunc(silence, func() { cancel(errSilent) })
		defer patience.Stop()
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return true, causeOf(ctx, err)
		}
		if silence > 0 {
			if next := m.GetPing().GetNextNanos(); next > 0 {
				silence = 3 * time.Duration(next)
			}
			patience.Reset(silence)
		}
		a.handle(ctx, l, m)
	}
}

// busy reports whether the agent looks after attempts.
func (a *Agent) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.runs) > 0
}

// causeOf returns why ctx ended, if it did, instead of the error that this led to.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// accept checks the generation of a link and, if the agent may obey it, makes the link
// one of its own and reports over it what is not acknowledged.
func (a *Agent) accept(ctx context.Context, l *link) error {
	a.mu.Lock()
	have := a.ledger.generation
	seq := uint64(0)
	switch {
	case l.generation.Number < have.Number:
		a.mu.Unlock()
		return fmt.Errorf("%w: %d, and %d is known here", errBehind, l.generation.Number, have.Number)
	case l.generation.Number == have.Number && have.ID != "" && l.generation.ID != have.ID:
		a.mu.Unlock()
		return fmt.Errorf("%w: generation %d has id %q there and %q here", errForeign, have.Number, l.generation.ID, have.ID)
	case l.generation != have:
		seq = a.commit(record{Kind: kindGeneration, Generation: l.generation})
		for other := range a.links {
			if other.generation != l.generation {
				other.cancel(errOvertaken)
			}
		}
	}
	a.mu.Unlock()
	if err := a.journal.wait(ctx, seq); err != nil {
		return err
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ledger.generation != l.generation {
		return errOvertaken
	}
	a.links[l] = struct{}{}
	delete(a.refused, l.server)
	a.metrics.Add(MetricLinks, 1)
	a.metrics.Add(MetricLinksOpened, 1)
	a.ledger.each(func(k key, at *attempt) {
		if !at.Acked {
			l.report(k)
		}
	})
	return nil
}

// drop forgets a link. What was to go over it goes over the others.
func (a *Agent) drop(l *link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.aloneFor() // a link that is not pinged counts up to now
	delete(a.links, l)
	a.metrics.Add(MetricLinks, -1)
	for request, via := range a.routes {
		if via == l {
			delete(a.routes, request)
		}
	}
	a.ledger.each(func(k key, at *attempt) {
		if !at.Acked {
			for other := range a.links {
				other.report(k)
			}
		}
	})
}
