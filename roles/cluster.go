package roles

import (
	"fmt"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// KindAgentCluster is the kind of document that defines an agent cluster.
const KindAgentCluster = "AgentCluster"

// Limits of an agent cluster.
const (
	MaxMembers = 5000  // agents that one cluster names
	MaxLimit   = 10000 // steps that a limit of steps may allow
)

// Distribution says which agent of a cluster gets a step.
type Distribution string

// The distributions.
const (
	// DistributeAny spreads requests by hashing; the default.
	DistributeAny Distribution = "any"
	// DistributeRoundRobin takes the agents in turn, in the order of their names.
	DistributeRoundRobin Distribution = "round_robin"
	// DistributeLeastLoad takes the agent at which the fewest steps are.
	DistributeLeastLoad Distribution = "least_load"
	// DistributeAll is for steps that run on every agent of the cluster.
	DistributeAll Distribution = "all"
)

func distributions() []string {
	return []string{string(DistributeAny), string(DistributeRoundRobin), string(DistributeLeastLoad), string(DistributeAll)}
}

// AgentCluster is the definition of a named set of agents, with the rule by which
// steps are given to them and how many.
type AgentCluster struct {
	Name string `json:"name"`
	// Labels and Agents say who is a member: agents that have all the labels, and
	// those that are named.
	Labels map[string]string `json:"labels,omitempty"`
	Agents []string          `json:"agents,omitempty"`
	// Distribution is never empty in a cluster that Decode returned.
	Distribution Distribution `json:"distribution"`
	// Limit is how many steps that were given to the cluster may be out at a time,
	// AgentLimit how many of them at one agent. 0: no limit.
	Limit      int `json:"limit,omitempty"`
	AgentLimit int `json:"agent_limit,omitempty"`
	// Suspended says that the cluster gets no new steps. Nil leaves that as it is.
	Suspended *bool `json:"suspended,omitempty"`
}

// Has reports whether an agent of that name with those labels is a member.
func (c *AgentCluster) Has(name string, labels map[string]string) bool {
	return hasAll(labels, c.Labels) || slices.Contains(c.Agents, name)
}

// Validate returns nil or a Problems that lists all that is wrong with c.
func (c *AgentCluster) Validate() error {
	l := problemList{file: "agent cluster " + c.Name}
	c.check(func(path, format string, args ...any) { l.addf(0, 0, path, format, args...) })
	return l.err()
}

// check calls addf for all that is wrong with c except types.
func (c *AgentCluster) check(addf func(path, format string, args ...any)) {
	check := func(path string, err error) {
		if err != nil {
			addf(path, "%v", err)
		}
	}
	check("name", CheckName(c.Name))
	if len(c.Labels) == 0 && len(c.Agents) == 0 {
		addf("", "has no members: give labels, agents or both")
	}
	if len(c.Labels) > MaxLabels {
		addf("labels", "has %d labels, at most %d are allowed", len(c.Labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		check("labels."+k, CheckLabel(k, c.Labels[k]))
	}
	if len(c.Agents) > MaxMembers {
		addf("agents", "has %d agents, at most %d are allowed", len(c.Agents), MaxMembers)
		return
	}
	seen := make(map[string]bool, len(c.Agents))
	for i, name := range c.Agents {
		at := fmt.Sprintf("agents[%d]", i)
		check(at, CheckNodeName(name))
		if seen[name] {
			addf(at, "%s is named twice", quote(name))
		}
		seen[name] = true
	}
	if !slices.Contains(distributions(), string(c.Distribution)) {
		addf("distribution", "%s must be any, round_robin, least_load or all%s", quote(string(c.Distribution)),
			DidYouMean(Nearest(string(c.Distribution), distributions())))
	}
	for _, limit := range []struct {
		path  string
		value int
	}{{"limit", c.Limit}, {"agent_limit", c.AgentLimit}} {
		if limit.value < 0 || limit.value > MaxLimit {
			addf(limit.path, "%d must be from 1 to %d, or left out for no limit", limit.value, MaxLimit)
		}
	}
}

// hasAll reports whether labels has all that is wanted, and something is.
func hasAll(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(wanted) > 0
}

func (d *decoder) readAgentCluster(n *yaml.Node) *AgentCluster {
	c := &AgentCluster{Distribution: DistributeAny}
	d.object(n, "", map[string]setter{
		"kind":   func(*yaml.Node, string) {},
		"name":   d.text(&c.Name),
		"labels": d.texts(&c.Labels),
		"agents": func(n *yaml.Node, path string) {
			d.list(n, path, func(n *yaml.Node, path string) {
				c.Agents = append(c.Agents, "")
				d.text(&c.Agents[len(c.Agents)-1])(n, path)
			})
		},
		"distribution": func(n *yaml.Node, path string) {
			rule := string(c.Distribution)
			d.text(&rule)(n, path)
			c.Distribution = Distribution(rule)
		},
		"limit":       d.count(&c.Limit, MaxLimit),
		"agent_limit": d.count(&c.AgentLimit, MaxLimit),
		"suspended": func(n *yaml.Node, path string) {
			c.Suspended = new(bool)
			d.flag(c.Suspended)(n, path)
		},
	})
	return c
}

func (c *AgentCluster) document() *yaml.Node {
	o := newObject(0)
	o.text("kind", KindAgentCluster)
	o.text("name", c.Name)
	o.texts("labels", c.Labels, yaml.FlowStyle)
	if len(c.Agents) > 0 {
		o.add("agents", textList(c.Agents))
	}
	if c.Distribution != DistributeAny {
		o.text("distribution", string(c.Distribution))
	}
	o.number("limit", c.Limit)
	o.number("agent_limit", c.AgentLimit)
	if c.Suspended != nil {
		o.add("suspended", flagNode(*c.Suspended))
	}
	return o.node
}
