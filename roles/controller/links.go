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

// linkQueue bounds what waits to be sent on one link. An agent that does not
// read loses its link rather than the controller its memory; what was not
// delivered is derived again from the store when the agent comes back.
const linkQueue = 1024

// link is one agent's stream, after its hello was checked.
type link struct {
	agent string
	hello *wire.Hello
	out   chan *wire.ControllerMessage
	ctx   context.Context
	drop  context.CancelCauseFunc
	from  string        // address that it comes from, for people
	heard atomic.Uint64 // the highest Pong to a ping of the pinger
	busy  atomic.Bool   // the agent looks after attempts, by its last Pong
	alive atomic.Bool   // the agent has said something else than Pong since the last ping

	mu     sync.Mutex // guards what follows
	reads  map[uint64]chan *wire.OutputChunk
	nextID uint64
	// pings are those whose answer somebody waits for.
	pings    map[uint64]chan struct{}
	nextPing uint64
}

// send queues a message for the agent. It reports false if the link is gone or
// does not keep up, in which case it is dropped.
func (l *link) send(m *wire.ControllerMessage) bool {
	select {
	case <-l.ctx.Done():
		return false
	default:
	}
	select {
	case l.out <- m:
		return true
	default:
		l.drop(fmt.Errorf("agent %s does not read its link: %d messages wait", l.agent, linkQueue))
		return false
	}
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

// Connect carries one link from hello to its end.
func (s *linkServer) Connect(stream grpc.BidiStreamingServer[wire.AgentMessage, wire.ControllerMessage]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return status.Error(codes.InvalidArgument, "a link must begin with a hello")
	}
	who, err := wire.Peer(stream.Context())
	if err != nil || who.Role != pki.Agent || who.Name != hello.GetName() {
		return status.Errorf(codes.PermissionDenied, "the certificate is of %s, the hello of agent %q", who, hello.GetName())
	}
	if hello.GetJournal().GetId() == "" || hello.GetLink() == nil {
		return status.Error(codes.InvalidArgument, "the hello names no journal or no link")
	}
	if err := checkVia(hello.GetVia()); err != nil {
		return status.Errorf(codes.InvalidArgument, "the hello: %v", err)
	}
	number, id := s.c.member.Generation()
	if g := hello.GetGeneration(); int64(g.GetNumber()) > number {
		return status.Errorf(codes.FailedPrecondition, "this controller is of generation %d, the agent of %d", number, g.GetNumber())
	}
	ctx, drop := context.WithCancelCause(stream.Context())
	defer drop(nil)
	l := &link{
		agent: hello.GetName(), hello: hello, ctx: ctx, drop: drop,
		out:   make(chan *wire.ControllerMessage, linkQueue),
		reads: map[uint64]chan *wire.OutputChunk{},
	}
	if p, ok := peer.FromContext(ctx); ok {
		l.from = p.Addr.String()
	}
	if err := s.c.sole(ctx, l); err != nil {
		return err
	}
	l.out <- &wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{
		Controller: s.c.cfg.Name,
		Generation: &wire.Generation{Number: uint64(number), Id: id},
		PingNanos:  int64(s.c.cfg.PingInterval),
		Trusted:    s.c.trusted(),

		CollectsOutput: s.c.collects(),
	}}}
	if !s.c.links.put(l) {
		return status.Error(codes.AlreadyExists, "a newer link of this agent is open")
	}
	s.c.linkUp(l)
	defer func() {
		if s.c.links.remove(l) {
			s.c.linkDown(l)
		}
	}()
	s.log.Debug("link up", "agent", l.agent, "link", hello.GetLink().GetNumber())

	received := make(chan error, 1)
	go func() { // ends with the stream, which ends when this handler returns
		for {
			m, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			s.c.fromAgent(l, m)
		}
	}()
	pings := newPinger(s.c.cfg.PingInterval)
	timer := time.NewTimer(pings.wait)
	defer timer.Stop()
	for {
		select {
		case m := <-l.out:
			before, after := pointsOf(m)
			s.c.deps.Point(before)
			if err := stream.Send(m); err != nil {
				return err
			}
			s.c.deps.Point(after)
			if pings.stir() {
				timer.Reset(pings.wait)
			}
		case <-timer.C:
			heard := l.heard.Load()
			if !pings.next(heard, l.alive.Swap(false) || l.busy.Load()) {
				return status.Errorf(codes.Aborted, "agent %s did not answer the last pings", l.agent)
			}
			timer.Reset(pings.wait)
			if err := stream.Send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{
				Number: pings.number, Trusted: s.c.trusted(), Heard: heard, NextNanos: int64(pings.wait),
			}}}); err != nil {
				return err
			}
		case err := <-received:
			s.log.Debug("link down", "agent", l.agent, "error", err)
			return nil
		case <-ctx.Done():
			if twin := new(twinError); errors.As(context.Cause(ctx), &twin) {
				return twin
			}
			return status.Error(codes.Aborted, context.Cause(ctx).Error())
		}
	}
}
