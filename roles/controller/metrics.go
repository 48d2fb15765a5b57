package controller

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles"
)

// RegisterMetrics registers what a controller measures of itself. Values are
// read when they are asked for.
func (c *Controller) RegisterMetrics(r prometheus.Registerer) error {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "uac", Name: name, Help: help}, f)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	mode := func(m coord.Mode) func() float64 {
		return func() float64 {
			s := c.session.Load()
			if s == nil {
				return yes(m == coord.ModeOffline)
			}
			return yes(s.Mode() == m)
		}
	}
	for _, col := range []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "uac", Name: "output_collected_bytes_total", Help: "Output of steps that this node has taken to the shared mount."},
			func() float64 { return float64(c.collected.Load()) }),
		gauge("output_waiting_requests", "Requests whose output may not be on the shared mount yet.", c.uncollected),
		gauge("active", "1 while this node may act as Active.", mode(coord.ModeActive)),
		gauge("term", "Epoch of the term while this node may act as Active, else 0.", c.actingTerm),
		gauge("raft_leader", "1 while this node leads raft, as it sees it.", func() float64 { return yes(c.member.RaftLeader() == c.cfg.Name) }),
		gauge("offline", "1 while this node has no session or no trust.", mode(coord.ModeOffline)),
		gauge("failover_ready", "1 while the loss of the Active would be taken over without an operator, as this node sees it.",
			func() float64 { return yes(c.failoverReady()) }),
		gauge("nodes_silent", "Nodes that hold a session and do not answer this node: their loss is under way, or waits for an operator.", c.silentNodes),
		gauge("requests_owned", "Requests that this node owns and that are not final.", func() float64 { return float64(c.counted.Load()) }),
		gauge("agents_linked", "Agents that hold a link to this node.", func() float64 { return float64(len(c.links.agents())) }),
		gauge("relays_linked", "Relays that hold a link to this node.", func() float64 { return float64(len(c.relays.all())) }),
		gauge("store_used_ratio", "Part of the storage quota that is in use.", func() float64 { used, _ := c.member.Room(); return used }),
		gauge("store_file_ratio", "Size of the store's file as a part of the quota.", func() float64 { _, file := c.member.Room(); return file }),
		gauge("store_revision", "Revision that this node shows.", func() float64 { return float64(c.member.View().Revision()) }),
		gauge("quorum_lost_seconds", "For how long this node has seen no majority; 0 if it sees one.", func() float64 { return c.member.QuorumLost().Seconds() }),
		gauge("history_requests", "Requests in the history on the shared mount.", func() float64 { n, _ := c.historySize(); return float64(n) }),
		gauge("history_files", "Entries of the history in the store.", func() float64 { _, n := c.historySize(); return float64(n) }),
		gauge("requests_finished", "Finished requests in the store, not yet moved to the history.", func() float64 { return float64(c.finishedCount()) }),
		gauge("mount_ok", "1 while the shared mount works here; 0 also without one.", func() float64 { return yes(c.deps.Mount.State().Kind == mount.OK) }),
		gauge("mount_free_bytes", "Free room on the shared mount, when it was last looked at.", func() float64 { return float64(c.deps.Mount.State().Free) }),
		gauge("mount_stuck_children", "Processes that touched the shared mount and do not end.", func() float64 { return float64(c.deps.Mount.State().Stuck) }),
		gauge("generation", "Generation of the cluster.", func() float64 { n, _ := c.member.Generation(); return float64(n) }),
	} {
		if err := r.Register(col); err != nil {
			return err
		}
	}
	return nil
}

// uncollected counts the requests whose output may not be on the mount yet.
func (c *Controller) uncollected() float64 {
	n := 0
	for range c.member.View().Snapshot().Range(prefixCollect) {
		n++
	}
	return float64(n)
}

// historySize counts the requests in the history, and its entries in the store.
func (c *Controller) historySize() (moved, entries int) {
	all, _ := registry(c.member.View().Snapshot(), prefixHistory) // what cannot be read is not counted
	for _, e := range all {
		moved += e.Count
	}
	return moved, len(all)
}

// finishedCount counts the finished requests in the store.
func (c *Controller) finishedCount() (finished int) {
	snap := c.member.View().Snapshot()
	for kv := range snap.Range(prefixRequests) {
		if _, rest := requestOf(kv.Key, prefixRequests); rest == "status" {
			if rec, err := decode[roles.Record](kv); err == nil && rec.Status.Final() {
				finished++
			}
		}
	}
	return finished
}

// actingTerm is the epoch of the term while this node may act as Active, else 0.
func (c *Controller) actingTerm() float64 {
	s := c.session.Load()
	if s == nil {
		return 0
	}
	t := s.Term()
	if t == nil || t.Check() != nil {
		return 0
	}
	return float64(t.Epoch())
}

// failoverReady reports whether there is an Active whose loss would be taken over
// without an operator.
func (c *Controller) failoverReady() bool {
	return slices.ContainsFunc(c.member.Nodes(), func(n coord.NodeStatus) bool {
		return n.Mode == coord.ModeActive && n.Unready == ""
	})
}

// silentNodes counts the nodes with a session that do not answer.
func (c *Controller) silentNodes() float64 {
	silent := 0
	for _, n := range c.member.Nodes() {
		if n.Silent {
			silent++
		}
	}
	return float64(silent)
}
