package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"uac/roles"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// link is one agent's stream, after its hello was checked.
type link struct {
	agent string
	hello *wire.Hello
	out   outbox
	ctx   context.Context
	drop  context.CancelCauseFunc
	from  string        // address that it comes from, for people
	heard atomic.Uint64 // the highest Pong to a ping of the pinger
	busy  atomic.Bool   // the agent looks after attempts, by its last Pong
	alive atomic.Bool   // the agent has said something else than Pong since the last ping

	mu     sync.Mutex // guards what follows
	reads  map[uint64]chan *wire.OutputChunk
	nextID uint64
	// asked are the pings whose answer somebody waits for.
	asked     map[uint64]chan struct{}
	nextAsked uint64
	// pings says when timer is due, which pings.
	pings pinger
	timer *time.Timer
}

// send queues a message for the agent. It reports false if the link is gone or
// does not keep up, in which case it is dropped.
func (l *link) send(m *wire.ControllerMessage) bool {
	if l.ctx.Err() != nil {
		return false
	}
	if !l.out.put(m) {
		l.drop(fmt.Errorf("agent %s does not read its link: %d messages wait", l.agent, linkQueue))
		return false
	}
	return true
}

// links knows the newest link of every agent that is connected to this
// controller. Safe for concurrent use.
type links struct {
	mu      sync.RWMutex // guards byAgent
	byAgent map[string]*link
}

func newLinks() *links { return &links{byAgent: map[string]*link{}} }

// get returns the newest link of an agent, or nil.
func (ls *links) get(agent string) *link {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	return ls.byAgent[agent]
}

// agents lists the names of all connected agents in order.
func (ls *links) agents() []string {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	return slices.Sorted(maps.Keys(ls.byAgent))
}

// put makes l the agent's link unless there is a newer one, or one of another
// machine with the same identity. The one that loses is dropped.
func (ls *links) put(l *link) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	old := ls.byAgent[l.agent]
	switch {
	case old == nil:
	case twins(old.hello.GetInstance(), l.hello.GetInstance()):
		if old.ctx.Err() == nil {
			return false
		}
	case old.hello.GetLink().GetNumber() > l.hello.GetLink().GetNumber():
		return false
	}
	ls.byAgent[l.agent] = l
	if old != nil {
		old.drop(fmt.Errorf("agent %s opened a newer link", l.agent))
	}
	return true
}

// remove forgets l and reports whether the agent is without a link now.
func (ls *links) remove(l *link) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.byAgent[l.agent] != l {
		return false
	}
	delete(ls.byAgent, l.agent)
	return true
}

// dropAll ends every link; the agents come back and say hello again.
func (ls *links) dropAll(cause error) {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	for _, l := range ls.byAgent {
		l.drop(cause)
	}
}

// checkVia checks what an agent says of the way that it came: it is stored and shown.
func checkVia(via []string) error {
	if len(via) > 8 {
		return fmt.Errorf("via %d relays", len(via))
	}
	for _, name := range via {
		if err := roles.CheckNodeName(name); err != nil {
			return fmt.Errorf("via: %w", err)
		}
	}
	return nil
}

// linkServer serves the links of agents and relays.
type linkServer struct {
	wire.UnimplementedLinkServer
	c   *Controller
	log *slog.Logger
}

// errLeft says that it was the agent, or the network, that ended a link.
var errLeft = errors.New("the agent has ended the link")

// Connect carries one link from hello to its end. There may be ten thousand of these
// goroutines, and of those that receive, which do nothing but wait. A stack that has
// grown stays large, so whatever goes deep is left to goroutines that end soon.
func (s *linkServer) Connect(stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) error {
	ctx, drop := context.WithCancelCause(stream.Context())
	defer drop(nil)
	opened := make(chan *link, 1)
	go func() {
		l, err := s.open(ctx, drop, stream)
		if err != nil {
			drop(err)
		}
		opened <- l
	}()
	l := <-opened
	<-ctx.Done()
	return s.close(l, context.Cause(ctx))
}

// open makes a link of a stream that begins with a hello that is in order. The link is
// served when it returns.
func (s *linkServer) open(ctx context.Context, drop context.CancelCauseFunc, stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) (*link, error) {
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	hello := first.GetHello()
	if hello == nil {
		return nil, status.Error(codes.InvalidArgument, "a link must begin with a hello")
	}
	who, err := wire.Peer(ctx)
	if err != nil || who.Role != pki.Agent || who.Name != hello.GetName() {
		return nil, status.Errorf(codes.PermissionDenied, "the certificate is of %s, the hello of agent %q", who, hello.GetName())
	}
	if hello.GetJournal().GetId() == "" || hello.GetLink() == nil {
		return nil, status.Error(codes.InvalidArgument, "the hello names no journal or no link")
	}
	if err := checkVia(hello.GetVia()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the hello: %v", err)
	}
	number, id := s.c.member.Generation()
	if g := hello.GetGeneration(); int64(g.GetNumber()) > number {
		return nil, status.Errorf(codes.FailedPrecondition, "this controller is of generation %d, the agent of %d", number, g.GetNumber())
	}
	l := &link{agent: hello.GetName(), hello: hello, ctx: ctx, drop: drop, pings: newPinger(s.c.cfg.PingInterval)}
	if p, ok := peer.FromContext(ctx); ok {
		l.from = p.Addr.String()
	}
	if err := s.c.sole(ctx, l); err != nil {
		return nil, err
	}
	out := &sender{fail: drop, send: func(m *wire.ControllerMessage) error { return s.send(l, stream, m) }}
	l.out = out
	// What others send from now on follows the welcome.
	out.queue = append(out.queue, &wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{
		Controller: s.c.cfg.Name,
		Generation: &wire.Generation{Number: uint64(number), Id: id},
		PingNanos:  int64(s.c.cfg.PingInterval),
		Trusted:    s.c.trusted(),

		CollectsOutput: s.c.collects(),
	}}})
	if !s.c.links.put(l) {
		return nil, status.Error(codes.AlreadyExists, "a newer link of this agent is open")
	}
	s.c.storms.add()
	s.c.linkUp(l)
	s.log.Debug("link up", "agent", l.agent, "link", hello.GetLink().GetNumber())
	out.start()
	l.mu.Lock()
	l.timer = time.AfterFunc(s.c.untilPing(l), func() { s.ping(l, out) })
	l.mu.Unlock()
	go s.receive(l, stream) // ends with the stream, which ends when Connect returns
	return l, nil
}

// close ends a link, nil if none was opened. It returns what the agent is told.
func (s *linkServer) close(l *link, cause error) error {
	if l != nil {
		l.mu.Lock()
		l.timer.Stop()
		l.mu.Unlock()
		if s.c.links.remove(l) {
			s.c.linkDown(l)
		}
		s.log.Debug("link down", "agent", l.agent, "error", cause)
	}
	switch _, ok := status.FromError(cause); {
	case errors.Is(cause, errLeft):
		return nil
	case ok:
		return cause
	}
	return status.Error(codes.Aborted, cause.Error())
}

// receive takes in what an agent says.
func (s *linkServer) receive(l *link, stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) {
	for {
		m, err := stream.Recv()
		if err != nil {
			l.drop(fmt.Errorf("%w: %w", errLeft, err))
			return
		}
		s.c.fromAgent(l, m)
	}
}

// untilPing is how long it is until the next ping of a link is due.
func (c *Controller) untilPing(l *link) time.Duration {
	return onBeat(l.pings.wait, time.Since(c.started))
}

// send sends one message.
func (s *linkServer) send(l *link, stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage], m *wire.ControllerMessage) error {
	before, after := pointsOf(m)
	s.c.deps.Point(before)
	if err := stream.Send(m); err != nil {
		return err
	}
	s.c.deps.Point(after)
	if p := m.GetPing(); p == nil || p.GetNumber() > askedPings {
		s.stir(l)
	}
	return nil
}

// stir brings the next ping forward after something else was sent.
func (s *linkServer) stir(l *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pings.stir() && l.timer != nil {
		l.timer.Reset(s.c.untilPing(l))
	}
}

// ping sends the ping that is due, unless the agent is to be given up.
func (s *linkServer) ping(l *link, out *sender) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	if !out.idle() { // it would wait behind what goes over a slow network
		l.timer.Reset(s.c.cfg.PingInterval)
		return
	}
	heard := l.heard.Load()
	if !l.pings.next(heard, l.alive.Swap(false) || l.busy.Load()) {
		l.drop(status.Errorf(codes.Aborted, "agent %s did not answer the last pings", l.agent))
		return
	}
	l.timer.Reset(s.c.untilPing(l))
	out.put(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{
		Number: l.pings.number, Trusted: s.c.trusted(), Heard: heard, NextNanos: int64(l.pings.wait),
	}}})
}
