package controller

import (
	"fmt"
	"sync"
	"testing"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// barrier stops a member's writes when it is shut.
type barrier struct {
	mu   sync.Mutex
	shut chan struct{} // nil while it is open
	seen chan struct{} // somebody stands before it
}

func newGate() *barrier { return &barrier{seen: make(chan struct{}, 1)} }

// pass is called before every write.
func (g *barrier) pass() {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut == nil {
		return
	}
	select {
	case g.seen <- struct{}{}:
	default:
	}
	<-shut
}

// close shuts the barrier until the returned function is called.
func (g *barrier) close() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	shut := make(chan struct{})
	g.shut = shut
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.shut = nil
		close(shut)
	})
}

// TestNothingIsSaidBeforeItIsStored: an end is acknowledged, and what it leads to is
// sent, when they are stored and not before.
func TestNothingIsSaidBeforeItIsStored(t *testing.T) {
	g := newGate()
	w := newWorld(t, worldOptions{point: func(_ string, p coord.Point) {
		if p == "batch-proposing" {
			g.pass()
		}
	}})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1"), step("two", "a1", "one")))
	r := c1.accept("p")
	s := a.start()
	a.running(s)
	c1.awaitStep(r.ID, "one", roles.StepRunning)
	c1.settle()

	open := g.close()
	defer open()
	a.exited(s, 0)
	c1.flush() // the desk has heard it, and has something to store
	<-g.seen
	c1.on(func(d *desk) { d.perform(d.owned[r.ID]) }) // as when a link comes up
	select {
	case m := <-a.link.sent():
		t.Errorf("before it was stored, %v was sent", m)
	default:
	}
	open()
	if ack := a.ack(); ack.GetStep() != "one" {
		t.Errorf("acknowledged %v", ack)
	}
	if next := a.start(); next.GetStep() != "two" {
		t.Errorf("started %v", next)
	}
}

// TestClaimOfALivingOwner: a controller whose picture of sessions is old thinks that
// the owner of a request is gone.
func TestClaimOfALivingOwner(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1, c2 := w.node("c1"), w.node("c2")
	w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	c2.await(r.ID, "it is owned", func(r api.Request) bool { return r.Owner == "c1" })
	c2.on(func(d *desk) { d.claim(r.ID, d.open[r.ID]) })
	c2.settle()
	c2.on(func(d *desk) {
		if d.owned[r.ID] != nil {
			t.Error("it was taken from an owner that lives")
		}
	})
	if got, err := c2.GetRequest(t.Context(), r.ID); err != nil || got.Owner != "c1" {
		t.Errorf("it was taken from c1 and is owned by %s, %v", got.Owner, err)
	}
}

// TestRecordIsReadAfterTheClaim: a claim is known to be stored before this node's view
// shows it. What the view shows until then may lack the former owner's last writes.
func TestRecordIsReadAfterTheClaim(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	a.start()
	c1.settle()
	var shown int64
	c1.on(func(d *desk) {
		d.drop(d.owned[r.ID])
		shown = c1.member.View().Revision()
		d.claimed(r.ID, coord.Result{Revision: shown + 2, Won: true})
		if d.owned[r.ID] != nil {
			t.Errorf("the request was read at %d, before the claim shows at %d", shown, shown+2)
		}
	})
	for i := range 2 {
		c1.commit1(coord.Tx{Then: []coord.Write{coord.Put(fmt.Sprintf("test/%d", i), nil)}})
	}
	a.start() // it is taken when the view has come there, and sent again
}
