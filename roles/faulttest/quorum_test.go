package faulttest

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLossOfQuorum takes two of three members away for good. The third serves
// nobody until an operator names both as lost, and then goes on in a new
// generation, although it dies again and again on its way: paused, with what it owned
// held until somebody has looked.
func TestLossOfQuorum(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("2"))
	survivor := c.healthy()
	lost := []string{c.other(survivor), "w1"}
	begin := c.mark()
	ids := c.submit("chain", 4)
	c.started(begin, 4, "first")
	at := c.kill(lost...)

	c.await("the survivor serves nobody", func() string {
		if mode := c.probe(survivor); mode != "OFFLINE" {
			return "it answers " + mode
		}
		return ""
	})
	for _, path := range []string{"/readyz", "/uc/resources/clusternode/healthcheck", "/v1/requests", "/v1/requests/" + ids[0]} {
		if a, err := c.clients[survivor].call(t.Context(), http.MethodGet, path, "", nil); err != nil || a.Status != http.StatusServiceUnavailable {
			t.Errorf("GET %s without a majority: %v, %v, want 503", path, a, err)
		}
	}
	if a, err := c.clients[survivor].call(t.Context(), http.MethodPost, "/v1/requests", "never", map[string]any{
		"process": "chain", "params": map[string]string{"dir": c.ledger.Dir},
	}); err == nil && a.Status < 500 {
		t.Errorf("a request without a majority: %v, want 503", a)
	}

	call := func(nodes ...string) (answer, error) {
		return c.clients[survivor].call(t.Context(), http.MethodPost, "/v1/nodes/confirm-lost", "",
			map[string]any{"nodes": nodes, "statement": "switched off"})
	}
	confirm := func(nodes ...string) (a answer) {
		c.await("an answer to confirm-lost", func() string {
			var err error
			if a, err = call(nodes...); err != nil {
				return err.Error()
			}
			return ""
		})
		return a
	}
	if a := confirm(lost...); a.Status != http.StatusConflict || time.Since(at) > 30*time.Second {
		t.Errorf("confirm-lost after %v: %v, want a conflict", time.Since(at).Round(time.Second), a)
	}
	for _, wrong := range [][]string{lost[:1], {"w1"}, {"w1", "c9"}, {survivor, "w1"}, append([]string{"c9"}, lost...)} {
		// Once the majority is lost for long enough, a node that is none is not found.
		if a := confirm(wrong...); a.Status != http.StatusConflict && (a.Status != http.StatusNotFound || !slices.Contains(wrong, "c9")) {
			t.Errorf("confirm-lost %v: %v, want a conflict", wrong, a)
		}
	}
	// order names the lost ones until the survivor obeys, or dies of it.
	order := func(without time.Time) {
		c.awaitFor(2*patience, "the survivor may continue alone", func() string {
			// Wrong names are refused at every moment.
			if a, err := call(lost[:1]...); err == nil && a.Status != http.StatusConflict && a.Status != http.StatusServiceUnavailable {
				t.Fatalf("confirm-lost of %v alone: %v, want a conflict", lost[:1], a)
			}
			a, err := call(lost...)
			if err == nil && a.Status == http.StatusOK || c.hit(survivor) {
				return ""
			}
			return fmt.Sprintf("%v, %v", a, err)
		})
		if waited := time.Since(without); waited < 30*time.Second {
			t.Errorf("confirm-lost was obeyed after %v without a majority, want at least 30s", waited)
		}
	}
	// On its way it dies before and after each thing that it stores. What an operator
	// was told is done by its next process.
	dies := func(point string, visit int, what func()) {
		c.arm(survivor, point, visit)
		what()
		c.await(survivor+" has died at "+point, func() string {
			if !c.hit(survivor) || c.node(survivor).PID != 0 {
				return "it lives"
			}
			return ""
		})
	}
	start := func() { c.start(survivor) }
	startToDie := func() { _ = c.run.start(survivor) } // it says so if it sees that
	if os.Getenv("UAC_FAULT_POINTS") == "all" {        // these two take as long again
		dies("generation-writing", 1, func() { order(at) }) // nothing has happened
		at = time.Now()
		start()
		dies("generation-written", 1, func() { order(at) })
		dies("generation-writing", 1, startToDie)
	} else {
		dies("generation-writing", 2, func() { order(at) })
	}
	dies("generation-written", 1, startToDie)
	start()
	c.await("the survivor is Active", func() string {
		if mode := c.probe(survivor); mode != "ACTIVE" {
			return "it answers " + mode
		}
		return ""
	})
	info, err := c.nodeInfo(survivor, survivor)
	if err != nil || !info.Paused {
		t.Errorf("the survivor is %+v, %v, want it paused", info, err)
	}

	// What it owned is held, however long one waits.
	held := func() string {
		all, err := c.list()
		if err != nil {
			return err.Error()
		}
		for _, id := range ids {
			if r := all[id]; r.Owner != survivor || !strings.Contains(r.Reason, "held") {
				return id + " of " + r.Owner + ": " + r.Reason
			}
		}
		return ""
	}
	c.await("the requests are held", held)
	c.await("the steps that ran are known to have ended", func() string {
		all, err := c.list()
		if err != nil {
			return err.Error()
		}
		for _, id := range ids {
			if st := all[id].step("first"); st.Status != "succeeded" {
				return id + ": " + all[id].where()
			}
		}
		return ""
	})
	if why := held(); why != "" {
		t.Error("not held any more:", why)
	}
	if n := count(c.ledger.Read(t), entryStart, "left"); n > 0 {
		t.Errorf("%d steps started in held requests", n)
	}
	for _, id := range ids {
		c.order(survivor, "/v1/requests/"+id+"/release", nil)
	}
	c.order(survivor, "/v1/nodes/"+survivor+"/resume", nil)
	c.submit("chain", 1)
	c.settled().succeeded(t)

	// Who was left behind must not come back with what it has.
	for _, name := range lost {
		c.refuses(name, "must be replaced", "leave it stopped")
	}
	if now := c.active(); now != survivor {
		t.Errorf("%s is Active after the lost ones came back", now)
	}
}
