package controller

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
)

// TestLossThatWaitsForAnOperator shows a node that died under failover: confirm.
func TestLossThatWaitsForAnOperator(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 2, watches: 1, failover: coord.FailoverConfirm})
	active := func(n *node) (api.Node, bool) {
		nodes, err := n.ListNodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Mode == roles.ModeActive })
		if i < 0 {
			return api.Node{}, false
		}
		return nodes[i], true
	}
	until := func(n *node, what string, cond func() bool) {
		t.Helper()
		coordtest.Await(t, n.member.View(), what, func(coord.Snapshot) bool { return cond() })
	}
	until(w.node("c1"), "an Active, and all are known", func() bool {
		_, ok := active(w.node("c1"))
		return ok && len(w.node("c1").member.Nodes()) == 2
	})
	dead, _ := active(w.node("c1"))
	alive := w.node(map[string]string{"c1": "c2", "c2": "c1"}[dead.Name])
	w.kill(dead.Name)
	until(alive, "the list says what it waits for", func() bool {
		n, ok := active(alive)
		return ok && n.Name == dead.Name && strings.Contains(n.Failover.Why, "uac node confirm-lost "+dead.Name)
	})
	if n, _ := active(alive); n.UptimeSeconds > int64(n.LastSeen.Sub(n.Started)/time.Second)+1 {
		t.Errorf("%s died at %v and its uptime goes on: %d s since %v", n.Name, n.LastSeen, n.UptimeSeconds, n.Started)
	}
	same(t, "metrics of readiness and silence", []float64{0, 1}, metricsOf(t, alive, "uac_failover_ready", "uac_nodes_silent"))
	_, err := alive.Switchover(t.Context(), operator, alive.cfg.Name)
	if !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "confirm-lost") {
		t.Errorf("switchover from a node that does not answer: %v", err)
	}
	// Of several names all must be right before anything is done.
	alive.ready()
	before := alive.dump(prefixEvents, "confirms/")
	for name, want := range map[string]error{"nobody": api.ErrNotFound, alive.cfg.Name: api.ErrConflict} {
		if _, err := alive.ConfirmLost(t.Context(), operator, []string{dead.Name, name}); !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
			t.Errorf("confirmed with %s among the lost: %v, want %v", name, err, want)
		}
	}
	if d := diff(before, alive.dump(prefixEvents, "confirms/")); d != "" {
		t.Errorf("and did a part of it:\n%s", d)
	}
	if said, err := alive.ConfirmLost(t.Context(), operator, []string{dead.Name}); err != nil || !strings.Contains(said, dead.Name) {
		t.Errorf("%q, %v", said, err)
	}
}

// metricsOf scrapes gauges.
func metricsOf(t *testing.T, n *node, names ...string) []float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	if err := n.RegisterMetrics(r); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]float64, len(names))
	for i, name := range names {
		values[i] = math.NaN()
		for _, f := range families {
			if f.GetName() == name {
				values[i] = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
	}
	return values
}

func TestFailoverReadyMetric(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	c1 := w.node("c1")
	ready := func(want float64) {
		t.Helper()
		coordtest.Await(t, c1.member.View(), "readiness is known", func(coord.Snapshot) bool {
			return metricsOf(t, c1, "uac_failover_ready")[0] == want
		})
	}
	ready(1)
	w.kill("c2") // of the two that are left none could go on alone
	ready(0)
}
