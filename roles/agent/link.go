package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

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
	errNoWelcome = errors.New("the controller did not welcome the agent in time")
	errOvertaken = errors.New("another controller is of a newer generation of the cluster")
)

// link is one connection to a controller after its welcome.
type link struct {
	id         *wire.LinkID
	server     string
	controller string
	generation generation
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
// agent, and returns when that link has ended (true) or none did (false). A second
// link to one and the same controller is taken only if no other can be had.
func (a *Agent) tryServers(ctx context.Context) bool {
	var doubled []string
	try := func(server string, double bool) bool {
		welcomed, err := a.connect(ctx, server, double)
		switch {
		case ctx.Err() != nil:
			return true
		case errors.Is(err, errDoubled):
			doubled = append(doubled, server)
		case welcomed:
			a.log.Warn("link lost", "server", server, "err", err)
		default:
			a.log.Debug("no link", "server", server, "err", err)
		}
		return welcomed
	}
	for _, server := range a.cfg.Servers {
		if !a.claimServer(server) {
			continue
		}
		welcomed := try(server, false)
		a.releaseServer(server)
		if welcomed {
			return true
		}
	}
	for _, server := range doubled {
		if !a.claimServer(server) {
			continue
		}
		welcomed := try(server, true)
		a.releaseServer(server)
		if welcomed {
			return true
		}
	}
	return false
}

// claimServer reports whether the other link leaves this server to us.
func (a *Agent) claimServer(server string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.servers[server] {
		return false
	}
	a.servers[server] = true
	return true
}

func (a *Agent) releaseServer(server string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.servers, server)
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
func (a *Agent) connect(ctx context.Context, server string, double bool) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := wire.NewClient(wire.ClassLink, server, a.deps.TLS, wire.Options{})
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
	if err := stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: a.hello(l.id)}}); err != nil {
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
	l.controller = w.GetController()
	l.generation = generation{w.GetGeneration().GetNumber(), w.GetGeneration().GetId()}
	if err := a.accept(ctx, l, double); err != nil {
		return false, err
	}
	a.log.Info("link opened", "controller", l.controller, "server", server)
	defer a.drop(l)
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
			patience.Reset(silence)
		}
		a.handle(ctx, l, m)
	}
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
func (a *Agent) accept(ctx context.Context, l *link, double bool) error {
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
	for other := range a.links {
		if other.controller == l.controller && !double {
			return errDoubled
		}
	}
	a.links[l] = struct{}{}
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
