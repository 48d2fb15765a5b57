package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// Two machines may have one identity: a virtual machine was copied, and its key with
// it. Their processes differ in the instance of their hellos. The one with the older
// link stays: the newer is refused while the older answers. An agent that was
// restarted is another instance as well, but its old link does not answer any more.

// twinPatience is how long the older link may take to answer.
const twinPatience = time.Second

// That one process of an agent is refused is told once every twinEventEvery. When the
// roles are reversed, because the older one was restarted, that is news.
const twinEventEvery = 10 * time.Minute

// twins says whether two hellos come from two processes. An agent that does not
// name its instance is nobody's twin.
func twins(a, b string) bool { return a != "" && b != "" && a != b }

// side is one of two machines, as people can find it.
type side struct{ host, from, controller string }

func (s side) String() string {
	if s.from == "" {
		return fmt.Sprintf("%s (at %s)", s.host, s.controller)
	}
	return fmt.Sprintf("%s (from %s, at %s)", s.host, s.from, s.controller)
}

// twinError says that a link is refused because another machine has its identity.
type twinError struct {
	agent          string
	older, refused side
}

// Error implements error.
func (e *twinError) Error() string {
	return fmt.Sprintf("two machines are agent %s: %s is connected already, %s is refused; give one of them an identity of its own",
		e.agent, e.older, e.refused)
}

// GRPCStatus is what the agent is told.
func (e *twinError) GRPCStatus() *status.Status { return status.New(codes.AlreadyExists, e.Error()) }

// answers reports whether the link answers a ping in time.
func (l *link) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, twinPatience)
	defer cancel()
	l.mu.Lock()
	l.nextAsked++
	number := askedPings + l.nextAsked
	pong := make(chan struct{})
	if l.asked == nil {
		l.asked = map[uint64]chan struct{}{}
	}
	l.asked[number] = pong
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.asked, number)
	}()
	if !l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: number}}}) {
		return false
	}
	select {
	case <-pong:
		return true
	case <-l.ctx.Done():
	case <-ctx.Done():
	}
	return false
}

// askedPings is where the numbers of pings begin whose answer somebody waits for.
const askedPings = 1 << 32

// pong takes in the answer to a ping.
func (l *link) pong(number uint64) {
	if number <= askedPings {
		l.heard.Store(number) // they come in order
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if pong := l.asked[number]; pong != nil {
		close(pong)
		delete(l.asked, number)
	}
}

// giveUp ends a link that does not answer, and makes room for another one.
func (c *Controller) giveUp(l *link) {
	l.drop(fmt.Errorf("agent %s did not answer a ping for %v, and another process of its name is there", l.agent, twinPatience))
	if c.links.remove(l) {
		c.linkDown(l)
	}
}

// sole returns nil if no other machine with the identity of l's is connected, here
// or, as far as can be found out, elsewhere.
func (c *Controller) sole(ctx context.Context, l *link) error {
	if old := c.links.get(l.agent); old != nil && twins(old.hello.GetInstance(), l.hello.GetInstance()) {
		if old.answers(ctx) {
			return c.refuseTwin(l, side{old.hello.GetHost(), old.from, c.cfg.Name})
		}
		c.giveUp(old)
	}
	snap := c.member.View().Snapshot()
	for kv := range snap.Range(prefixLinks + l.agent + "/") {
		_, controller := requestOf(kv.Key, prefixLinks)
		rec, err := decode[linkRecord](kv)
		if err != nil || controller == c.cfg.Name || !rec.held(snap, controller) || !twins(rec.Instance, l.hello.GetInstance()) {
			continue
		}
		if err := c.soleAt(ctx, controller, l); err != nil {
			return err
		}
	}
	return nil
}

// soleAt asks another controller whether a twin of l is connected to it. Who cannot
// be asked is not waited for: if it lives, the twins are found by their records.
func (c *Controller) soleAt(ctx context.Context, controller string, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, 2*twinPatience)
	defer cancel()
	var there *wire.PeekResponse
	err := c.reach(ctx, controller, func(ctx context.Context, m wire.MemberClient) (err error) {
		there, err = m.Peek(ctx, &wire.PeekRequest{To: controller, Agent: l.agent, Ping: true})
		return err
	})
	if err != nil || !twins(there.GetHello().GetInstance(), l.hello.GetInstance()) {
		return nil // it holds no link, or cannot be asked
	}
	return c.refuseTwin(l, side{there.GetHello().GetHost(), there.GetFrom(), controller})
}

// refuseTwin tells of two machines with one identity, and returns what the newer one
// is told.
func (c *Controller) refuseTwin(l *link, older side) error {
	err := &twinError{agent: l.agent, older: older, refused: side{l.hello.GetHost(), l.from, c.cfg.Name}}
	if !c.told.allow(l.agent + "/" + l.hello.GetInstance()) {
		return err
	}
	c.log.Warn("two machines with one identity", "agent", l.agent, "older", older.String(), "refused", err.refused.String())
	if s := c.session.Load(); s != nil {
		s.Submit(coord.Tx{Then: []coord.Write{c.event(api.Event{Kind: "agent.duplicate", Subject: l.agent, Detail: map[string]string{
			"older_host": older.host, "older_from": older.from, "older_controller": older.controller,
			"refused_host": err.refused.host, "refused_from": err.refused.from, "refused_controller": err.refused.controller,
		}})}}, func(coord.Result, error) {})
	}
	return err
}

// settleTwins ends our link to an agent if another controller holds an older one of
// another machine: both were accepted before either was known. Of the two records
// the one that was written first is the older.
func (d *desk) settleTwins(agent string) {
	delete(d.agents.twins, agent)
	me := d.c.cfg.Name
	l := d.c.links.get(agent)
	if l == nil {
		return
	}
	snap := d.c.member.View().Snapshot()
	mine, ok := linkOf(snap, agent, me)
	if !ok || mine.Instance != l.hello.GetInstance() || mine.Until != "" {
		return // our record is on its way, and comes here when it is written
	}
	for controller, rec := range linksOf(snap, agent) {
		if controller == me || rec.mod > mine.mod || !rec.held(snap, controller) || !twins(rec.Instance, mine.Instance) {
			continue
		}
		d.agents.twins[agent] = true // looked at again, until it is settled
		asked := "twin of " + agent + "/" + controller
		if d.agents.asking[asked] {
			continue
		}
		d.agents.asking[asked] = true
		d.tasks.do(func() {
			if err := d.c.soleAt(d.ctx, controller, l); err != nil {
				l.drop(err)
			}
			d.mail.post(func() { delete(d.agents.asking, asked) })
		})
	}
}

// seldom lets something happen once in a while for each name. Safe for concurrent
// use.
type seldom struct {
	every time.Duration

	mu   sync.Mutex // guards last
	last map[string]*rate.Sometimes
}

func newSeldom(every time.Duration) *seldom {
	return &seldom{every: every, last: map[string]*rate.Sometimes{}}
}

// allow reports whether it may happen now.
func (s *seldom) allow(name string) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[name] == nil {
		s.last[name] = &rate.Sometimes{First: 1, Interval: s.every}
	}
	s.last[name].Do(func() { ok = true })
	return ok
}
