package controller

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// machine is a process of an agent, with the one certificate that all have.
type machine struct {
	t        testing.TB
	instance string
	store    *pki.Store
	number   *atomic.Uint64 // of its last link
	mute     atomic.Bool    // it does not answer pings
}

// machines are copies of one machine.
func machines(p *port, name string, instances ...string) []*machine {
	store := p.store(pki.Agent, name)
	var out []*machine
	for _, in := range instances {
		out = append(out, &machine{t: p.w.t, instance: in, store: store, number: &atomic.Uint64{}})
	}
	return out
}

// tie is a link of a machine.
type tie struct {
	t       testing.TB
	end     context.CancelFunc
	ended   chan error
	starts  chan *wire.Start
	welcome bool
}

// link opens a link and serves it until it ends.
func (m *machine) link(p *port) *tie {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	s, err := p.client(m.store).Connect(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	h := helloOf("a1", m.number.Add(1))
	h.Instance, h.Host = m.instance, "host-of-"+m.instance
	if err := s.Send(first(h)); err != nil && err != io.EOF { //nolint:errorlint // grpc returns it as it is
		m.t.Fatal(err)
	}
	k := &tie{t: m.t, end: cancel, ended: make(chan error, 1), starts: make(chan *wire.Start, 10)}
	var once sync.Once
	opened := make(chan struct{})
	go func() { // ends with the test at the latest
		for {
			msg, err := s.Recv()
			if err != nil {
				once.Do(func() { close(opened) })
				k.ended <- err
				return
			}
			switch {
			case msg.GetWelcome() != nil:
				once.Do(func() { k.welcome = true; close(opened) })
			case msg.GetPing() != nil && !m.mute.Load():
				_ = s.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{Number: msg.GetPing().GetNumber()}}})
			case msg.GetStart() != nil:
				k.starts <- msg.GetStart()
			}
		}
	}()
	<-opened
	return k
}

// opens opens a link that must be welcome.
func (m *machine) opens(p *port) *tie {
	m.t.Helper()
	k := m.link(p)
	if !k.welcome {
		m.t.Fatalf("%s was not welcome: %v", m.instance, <-k.ended)
	}
	return k
}

// refused opens a link that must be refused because of a twin.
func (m *machine) refused(p *port, older string) {
	m.t.Helper()
	k := m.link(p)
	if k.welcome {
		m.t.Fatalf("%s was welcome", m.instance)
	}
	err := <-k.ended
	if status.Code(err) != codes.AlreadyExists {
		m.t.Errorf("%s was refused with %v, want that it exists already", m.instance, err)
	}
	for _, host := range []string{"host-of-" + m.instance + " (from 127.", older + " (from 127."} {
		if !strings.Contains(err.Error(), host) {
			m.t.Errorf("%q does not name %s", err, host)
		}
	}
}

// close ends a link as a process does that dies, and waits until it is known.
func (k *tie) close(n *node) {
	k.t.Helper()
	old := n.links.get("a1")
	k.end()
	<-old.ctx.Done()
	coordtest.Await(k.t, n.member.View(), "the end of the link is known", func(coord.Snapshot) bool { return n.links.get("a1") != old })
}

// lives fails unless a request reaches the machine over this link.
func (k *tie) lives(n *node) {
	k.t.Helper()
	n.apply(process("p", step("one", "a1")))
	r := n.accept("p")
	for { // what was sent to the machine before is sent to it again
		select {
		case s := <-k.starts:
			if s.GetRequest() == r.ID {
				return
			}
		case err := <-k.ended:
			k.t.Fatalf("the link ended: %v", err)
		}
	}
}

func TestTwinsAtOneController(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	p := c1.listen()
	m := machines(p, "a1", "one", "two")
	one, two := m[0], m[1]

	older := one.opens(p)
	for range 3 {
		two.refused(p, "host-of-one")
	}
	older.lives(c1)
	if got := strings.Join(c1.events("a1"), " "); got != "agent.duplicate" {
		t.Errorf("events %q, want one of the twins", got)
	}
	// The process dies, and the other machine is there first.
	older.close(c1)
	newer := two.opens(p)
	one.refused(p, "host-of-two")
	newer.lives(c1)
	if got := strings.Join(c1.events("a1"), " "); got != "agent.duplicate agent.duplicate" {
		t.Errorf("events %q, want another one when the roles are reversed", got)
	}

	// A machine that does not answer is no twin: it is switched off, or hangs.
	two.mute.Store(true)
	back := one.opens(p)
	if err := <-newer.ended; status.Code(err) != codes.Aborted {
		t.Errorf("the link that did not answer ended with %v, want aborted", err)
	}
	back.lives(c1)

	// Who does not say which process it is replaces its links as ever.
	one.instance = ""
	one.number.Store(100)
	last := one.opens(p)
	if err := <-back.ended; status.Code(err) != codes.Aborted {
		t.Errorf("the link that was replaced ended with %v, want aborted", err)
	}
	last.lives(c1)
}

func TestTwinsAtTwoControllers(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	p1, p2 := c1.listen(), c2.listen()
	m := machines(p1, "a1", "one", "two")
	one, two := m[0], m[1]
	held := func(by *node, instance string) {
		t.Helper()
		for _, n := range w.all() {
			coordtest.Await(t, n.member.View(), by.cfg.Name+" tells of the link of "+instance, func(snap coord.Snapshot) bool {
				kv, _ := snap.Get(linkKey("a1", by.cfg.Name))
				rec, err := decode[linkRecord](kv)
				return err == nil && rec.held(snap, by.cfg.Name) && rec.Instance == instance
			})
		}
	}
	older := one.opens(p1)
	held(c1, "one")
	two.refused(p2, "host-of-one")
	two.refused(p1, "host-of-one")
	second := one.opens(p2) // its own second link is none of a twin
	second.close(c2)
	older.lives(c1)

	// The older link has ended, and the other machine comes by another way.
	older.close(c1)
	newer := two.opens(p2)
	held(c2, "two")
	one.refused(p1, "host-of-two")

	// It does not answer: it is given up where it was, and the other one may.
	two.mute.Store(true)
	back := one.opens(p1)
	if err := <-newer.ended; status.Code(err) != codes.Aborted {
		t.Errorf("the link that did not answer ended with %v, want aborted", err)
	}
	held(c1, "one")

	// The controllers cannot ask each other, and both accept. When they can, the
	// one with the older link stays.
	two.mute.Store(false)
	w.breakCalls(func(_, _, call string) error {
		if call == "peek" {
			return status.Error(codes.Unavailable, "cut")
		}
		return nil
	})
	both := two.opens(p2)
	held(c2, "two")
	c2.settle()
	select {
	case err := <-both.ended:
		t.Fatalf("a link ended on a suspicion: %v", err)
	default:
	}
	w.breakCalls(nil)
	if err := <-both.ended; status.Code(err) != codes.AlreadyExists {
		t.Errorf("the newer of two links ended with %v, want that there is another one", err)
	}
	back.lives(c1)
	if got := strings.Join(c2.events("a1"), " "); strings.Count(got, "agent.duplicate") != 3 {
		t.Errorf("events %q, want one from each controller for each process that it refused", got)
	}
}

// TestRemoveConnectedAgent: who is forgotten while it is connected is known again as
// soon as it comes back, and until then nobody holds a link to it.
func TestRemoveConnectedAgent(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1})
	c1, c2 := w.node("c1"), w.node("c2")
	p1, p2 := c1.listen(), c2.listen()
	one := machines(p1, "a1", "one")[0]
	linked := func(snap coord.Snapshot) bool {
		_, known := snap.Get(agentKey("a1"))
		return known && len(linksTo(snap, "a1")) == 2
	}
	ties := []*tie{one.opens(p1), one.opens(p2)}
	coordtest.Await(t, c1.member.View(), "both links are known", linked)
	if err := c1.RemoveAgent(t.Context(), operator, "a1", true); err != nil {
		t.Fatal(err)
	}
	for i, k := range ties {
		select {
		case err := <-k.ended:
			if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "removed") {
				t.Errorf("link %d ended with %v, want that the agent was removed", i, err)
			}
		case <-time.After(patience):
			t.Fatalf("link %d goes on", i)
		}
	}
	one.opens(p1)
	one.opens(p2)
	coordtest.Await(t, c1.member.View(), "it is known again", linked)
	list, err := c1.ListEvents(t.Context(), api.EventFilter{Kind: "agent.removed"})
	if err != nil || len(list.Events) != 1 || list.Events[0].Detail["forced"] != "true" {
		t.Errorf("events %+v, %v; want one that says that it was forced", list.Events, err)
	}
}
