package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// callTimeout bounds one call to another member.
const callTimeout = 2 * time.Second

// remoteRoute is a link that another controller holds.
type remoteRoute struct {
	controller string
	name       string
	h          *wire.Hello
	id         string // of this route
	queue      chan *wire.ControllerMessage
	ctx        context.Context
	cancel     context.CancelFunc
}

func (r *remoteRoute) agent() string      { return r.name }
func (r *remoteRoute) hello() *wire.Hello { return r.h }
func (r *remoteRoute) nonce() string      { return r.id }
func (r *remoteRoute) local() bool        { return false }
func (r *remoteRoute) gone() bool         { return r.ctx.Err() != nil }
func (r *remoteRoute) close()             { r.cancel() }

func (r *remoteRoute) send(m *wire.ControllerMessage) bool {
	select {
	case r.queue <- m:
		return r.ctx.Err() == nil
	default:
		return false
	}
}

// reach calls f with the service of a member: directly, or if it cannot be
// reached, through each of the others in turn, which pass the call on.
func (c *Controller) reach(ctx context.Context, node string, f func(ctx context.Context, m wire.MemberClient) error) error {
	var last error
	for _, via := range ways(c.cfg.Name, node, c.member.Nodes(), time.Now()) {
		m, err := c.deps.DialMember(ctx, via)
		if err == nil {
			callCtx, cancel := context.WithTimeout(ctx, callTimeout)
			err = f(callCtx, m)
			cancel()
		}
		if !elsewhere(err) || ctx.Err() != nil {
			return err
		}
		last = err
	}
	return last
}

// elsewhere reports whether a call that ended with err may be worth another way.
func elsewhere(err error) bool {
	code := status.Code(err)
	return err != nil && (code == codes.Unavailable || code == codes.DeadlineExceeded)
}

// ways lists whom self asks in turn to reach a node: the node itself, then all
// others that have a session. Who has not been heard of lately comes last: a call
// into a network that is cut costs its whole timeout.
func ways(self, node string, known []coord.NodeStatus, now time.Time) []string {
	silent := map[string]bool{}
	out := []string{node}
	for _, n := range known {
		silent[n.Name] = now.Sub(n.Heard) > callTimeout
		if n.Epoch != 0 && n.Name != self && n.Name != node {
			out = append(out, n.Name)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		switch {
		case silent[a] == silent[b]:
			return 0
		case silent[b]:
			return -1
		}
		return 1
	})
	return out
}

// peek finds out about an agent's link at another controller. The route carries
// messages over it until that fails or the route is closed.
func (d *desk) peek(controller, agent string) (route, error) {
	r := &remoteRoute{controller: controller, name: agent, id: rand.Text(), queue: make(chan *wire.ControllerMessage, linkQueue)}
	err := d.c.reach(d.ctx, controller, func(ctx context.Context, m wire.MemberClient) error {
		resp, err := m.Peek(ctx, &wire.PeekRequest{To: controller, Agent: agent})
		r.h = resp.GetHello()
		return err
	})
	if err != nil {
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(d.ctx)
	d.tasks.do(func() { r.carry(d) })
	return r, nil
}

// carry delivers messages in order; the first failure ends the route.
func (r *remoteRoute) carry(d *desk) {
	for {
		select {
		case <-r.ctx.Done():
			return
		case msg := <-r.queue:
			err := d.c.reach(r.ctx, r.controller, func(ctx context.Context, m wire.MemberClient) error {
				_, err := m.Deliver(ctx, &wire.DeliverRequest{To: r.controller, Agent: r.name, Message: msg})
				return err
			})
			if err != nil {
				d.log.Debug("message not carried", "agent", r.name, "over", r.controller, "error", err)
				d.mail.post(func() { d.linkDown(r) })
				return
			}
		}
	}
}

// passOn takes an agent's message to the owner of the request it concerns.
func (c *Controller) passOn(ctx context.Context, owner, agent string, m *wire.AgentMessage) error {
	return c.reach(ctx, owner, func(ctx context.Context, client wire.MemberClient) error {
		_, err := client.Report(ctx, &wire.ReportRequest{To: owner, Agent: agent, Controller: c.cfg.Name, Message: m})
		return err
	})
}

// readThrough reads output through the controller that holds a link.
func (c *Controller) readThrough(ctx context.Context, controller, agent string, req *wire.ReadOutput, f func(*wire.OutputChunk) error) error {
	var last error
	for _, via := range ways(c.cfg.Name, controller, c.member.Nodes(), time.Now()) {
		begun := false
		client, err := c.deps.DialMember(ctx, via)
		if err == nil {
			err = readStream(ctx, client, &wire.ReadOutputRequest{To: controller, Agent: agent, Read: req}, func(chunk *wire.OutputChunk) error {
				begun = true
				return f(chunk)
			})
		}
		if begun || !elsewhere(err) || ctx.Err() != nil {
			return readError(err)
		}
		last = err
	}
	return readError(last)
}

// readError is the error of a read at an agent through another member: what cannot be
// read there now may be read later.
func readError(err error) error {
	if s, ok := status.FromError(err); ok && (elsewhere(err) || s.Code() == codes.NotFound) {
		return fmt.Errorf("%w: %s", api.ErrUnavailable, s.Message())
	}
	return err
}

// readStream calls f with every chunk of output that a member sends.
func readStream(ctx context.Context, client wire.MemberClient, req *wire.ReadOutputRequest, f func(*wire.OutputChunk) error) error {
	stream, err := client.ReadOutput(ctx, req)
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(chunk); err != nil {
			return err
		}
	}
}

// memberServer serves the other members.
type memberServer struct {
	wire.UnimplementedMemberServer
	c *Controller
}

// Peek tells of an agent's link here.
func (s *memberServer) Peek(ctx context.Context, r *wire.PeekRequest) (*wire.PeekResponse, error) {
	l := s.c.links.get(r.GetAgent())
	if l == nil || r.GetTo() != s.c.cfg.Name {
		return nil, status.Errorf(codes.NotFound, "%s holds no link to %s", s.c.cfg.Name, r.GetAgent())
	}
	if r.GetPing() && !l.answers(ctx) {
		if ctx.Err() == nil {
			s.c.giveUp(l)
		}
		return nil, status.Errorf(codes.NotFound, "the link of %s to %s does not answer", r.GetAgent(), s.c.cfg.Name)
	}
	return &wire.PeekResponse{Controller: s.c.cfg.Name, Hello: l.hello, From: l.from}, nil
}

// Deliver puts a message on the link that it is bound to.
func (s *memberServer) Deliver(_ context.Context, r *wire.DeliverRequest) (*wire.DeliverResponse, error) {
	l := s.c.links.get(r.GetAgent())
	if l == nil || r.GetTo() != s.c.cfg.Name || !l.hello.GetLink().Same(r.GetMessage().GetLink()) || !l.send(r.GetMessage()) {
		return nil, status.Errorf(codes.NotFound, "%s does not hold that link to %s", s.c.cfg.Name, r.GetAgent())
	}
	return &wire.DeliverResponse{}, nil
}

// Report takes in an agent's message for a request of ours.
func (s *memberServer) Report(_ context.Context, r *wire.ReportRequest) (*wire.ReportResponse, error) {
	d := s.c.desk.Load()
	if d == nil || r.GetTo() != s.c.cfg.Name {
		return nil, status.Errorf(codes.NotFound, "%s owns no requests", s.c.cfg.Name)
	}
	d.mail.post(func() { d.fromAgent(r.GetAgent(), r.GetMessage()) })
	return &wire.ReportResponse{}, nil
}

// ReadOutput streams output over our link to the agent.
func (s *memberServer) ReadOutput(r *wire.ReadOutputRequest, stream grpc.ServerStreamingServer[wire.OutputChunk]) error {
	l := s.c.links.get(r.GetAgent())
	if l == nil || r.GetTo() != s.c.cfg.Name {
		return status.Errorf(codes.NotFound, "%s holds no link to %s", s.c.cfg.Name, r.GetAgent())
	}
	err := l.read(stream.Context(), r.GetRead(), stream.Send)
	if errors.Is(err, api.ErrUnavailable) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}

// Renew signs a new certificate for a member.
func (s *memberServer) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	return s.c.renew(ctx, r)
}

// Renew signs a new certificate for an agent or relay.
func (s *linkServer) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	return s.c.renew(ctx, r)
}

func (c *Controller) renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	peer, err := wire.Peer(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	chain, err := c.deps.Authority.Renew(peer, pki.Renewal{CA: pki.CA(r.GetCa()), Current: r.GetCurrent(), CSR: r.GetCsr()})
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	c.log.Info("certificate renewed", "node", peer.String(), "ca", r.GetCa())
	return &wire.Certificate{Chain: chain}, nil
}

// RegisterLinks serves agents' links on g.
func (c *Controller) RegisterLinks(g grpc.ServiceRegistrar) {
	wire.RegisterLinkServer(g, &linkServer{c: c, log: c.log})
}

// RegisterMembers serves the other members on g.
func (c *Controller) RegisterMembers(g grpc.ServiceRegistrar) {
	wire.RegisterMemberServer(g, &wire.Forwarder{Name: c.cfg.Name, Own: &memberServer{c: c}, Dial: c.deps.DialMember})
}

// RegisterEnroll serves machines that join with a token on g.
func (c *Controller) RegisterEnroll(g grpc.ServiceRegistrar) {
	wire.RegisterEnrollServer(g, &enrollServer{c: c})
}
