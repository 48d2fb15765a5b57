package controller

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"uac/coord"
	"uac/roles"
)

// clusterRecord is the value of clusters/<name>: the definition of an agent
// cluster, and what operators said of it besides.
type clusterRecord struct {
	roles.AgentCluster
	// Suspended stands in the place of the definition's, which only changes it.
	Suspended bool `json:"suspended,omitempty"`
	// Without are members whose membership is suspended, in order.
	Without []string `json:"without,omitempty"`

	mod int64 // of the key
}

// serves reports whether an agent of that name with those labels gets new steps of
// the cluster.
func (c *clusterRecord) serves(name string, labels map[string]string) bool {
	return !c.Suspended && c.Has(name, labels) && !slices.Contains(c.Without, name)
}

// fleet is what selectors are matched with: all agents and agent clusters as the
// store has them. Not safe for concurrent use.
type fleet struct {
	agents   map[string]agentRecord
	clusters map[string]clusterRecord

	known map[string][]string // what meant has found out, by selector
}

func newFleet() *fleet {
	return &fleet{agents: map[string]agentRecord{}, clusters: map[string]clusterRecord{}, known: map[string][]string{}}
}

// fleetOf returns the fleet that a snapshot shows. Records that cannot be read are
// left out.
func fleetOf(snap coord.Snapshot) *fleet {
	f := newFleet()
	for kv := range snap.Range(prefixAgents) {
		f.noteAgent(kv, false)
	}
	for kv := range snap.Range(prefixClusters) {
		f.noteCluster(kv, false)
	}
	return f
}

// noteAgent takes in a change of agents/<name>.
func (f *fleet) noteAgent(kv coord.KV, deleted bool) {
	name := strings.TrimPrefix(kv.Key, prefixAgents)
	before := f.agents[name]
	delete(f.agents, name)
	if rec, err := decode[agentRecord](kv); !deleted && err == nil {
		rec.mod = kv.Mod
		f.agents[name] = rec
	}
	if after := f.agents[name]; before.mod == 0 || after.mod == 0 ||
		before.Suspended != after.Suspended || !maps.Equal(before.Labels, after.Labels) {
		clear(f.known)
	}
}

// noteCluster takes in a change of clusters/<name>.
func (f *fleet) noteCluster(kv coord.KV, deleted bool) {
	name := strings.TrimPrefix(kv.Key, prefixClusters)
	delete(f.clusters, name)
	if rec, err := decode[clusterRecord](kv); !deleted && err == nil {
		rec.mod = kv.Mod
		f.clusters[name] = rec
	}
	clear(f.known)
}

// meant lists, in order, the agents that a selector means now: all that match and
// may get new steps, whether they are connected or not. Nobody changes the list.
func (f *fleet) meant(sel roles.Selector) []string {
	text := sel.String()
	if names, ok := f.known[text]; ok {
		return names
	}
	names := []string{}
	cluster := f.clusters[sel.Cluster]
	for name, rec := range f.agents {
		switch {
		case rec.Suspended:
		case sel.Cluster != "" && cluster.serves(name, rec.Labels), sel.Cluster == "" && sel.Matches(name, rec.Labels):
			names = append(names, name)
		}
	}
	slices.Sort(names)
	f.known[text] = names
	return names
}

// suspended lists the agents that match a selector and get no new steps: they are
// suspended, or their membership in the cluster is.
func (f *fleet) suspended(sel roles.Selector) []string {
	var names []string
	cluster, meant := f.clusters[sel.Cluster], f.meant(sel)
	for name, rec := range f.agents {
		matches := sel.Cluster != "" && cluster.Has(name, rec.Labels) || sel.Cluster == "" && sel.Matches(name, rec.Labels)
		if _, taken := slices.BinarySearch(meant, name); matches && !taken {
			names = append(names, name)
		}
	}
	return names
}

// clustersOf lists the clusters of which an agent is a member.
func (f *fleet) clustersOf(rec agentRecord) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f.clusters)) {
		if c := f.clusters[name]; c.Has(rec.Name, rec.Labels) {
			names = append(names, name)
		}
	}
	return names
}

// gate is a limit on steps: at most so many may be out that pass it.
type gate struct {
	prefix string // of its slots
	name   string // for people
	limit  int
	// guard holds while the limit is the one that is meant here.
	guard coord.Cond
	// cluster and agent say which steps pass it; one of them may be empty.
	cluster, agent string
}

// gates lists the limits that a step passes which goes to an agent, as one of a
// cluster's unless that is empty. Mostly there are none.
func (f *fleet) gates(cluster, agent string) []gate {
	var out []gate
	if cluster != "" {
		out = f.clusterGate(cluster)
		if c := f.clusters[cluster]; c.AgentLimit > 0 {
			out = append(out, gate{
				prefix: prefixSlots + "member/" + cluster + "/" + agent + "/", name: "agent cluster " + cluster + " at agent " + agent,
				limit: c.AgentLimit, guard: coord.ModIs(clusterKey(cluster), c.mod), cluster: cluster, agent: agent,
			})
		}
	}
	if rec := f.agents[agent]; rec.Limit > 0 {
		out = append(out, gate{
			prefix: slotsOfAgent(agent), name: "agent " + agent,
			limit: rec.Limit, guard: coord.ModIs(agentKey(agent), rec.mod), agent: agent,
		})
	}
	return out
}

// clusterGate is the limit of a whole cluster, if it has one.
func (f *fleet) clusterGate(cluster string) []gate {
	c := f.clusters[cluster]
	if c.Limit == 0 {
		return nil
	}
	return []gate{{
		prefix: prefixSlots + "cluster/" + cluster + "/", name: "agent cluster " + cluster,
		limit: c.Limit, guard: coord.ModIs(clusterKey(cluster), c.mod), cluster: cluster,
	}}
}

// after returns the name that follows last in an ordered list, around its end.
func after(names []string, last string) string {
	i, found := slices.BinarySearch(names, last)
	if found {
		i++
	}
	return names[i%len(names)]
}

// least returns the name with the smallest weight; of equals, the one that
// rendezvous hashing of key chooses.
func least(names []string, key string, weight func(string) int) string {
	lowest := map[string]bool{}
	low := 0
	for i, name := range names {
		w := weight(name)
		switch c := cmp.Compare(w, low); {
		case i == 0 || c < 0:
			clear(lowest)
			low = w
			fallthrough
		case c == 0:
			lowest[name] = true
		}
	}
	return coord.Rendezvous(key, lowest)
}
