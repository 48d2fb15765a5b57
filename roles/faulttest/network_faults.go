package faulttest

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// connections are the kinds of connections that a network carries, by the port that
// is listened on.
var connections = []struct {
	name string
	port int // 0: all
}{{"everything", 0}, {"raft", 7601}, {"links", 7602}, {"the API", 7600}}

// ends are the two sides between which the network fails.
var ends = []struct {
	name   string
	role   string // clusters without a node of this role have no such ends
	member bool
	pick   func(c *Cluster, n int) (from, to []string) // n is a number drawn by chance
}{
	{"the Active and the Passive", "controller", true, func(c *Cluster, _ int) (from, to []string) {
		a := c.active()
		return []string{a}, []string{c.other(a)}
	}},
	{"the Active and the watch", "watch", true, func(c *Cluster, _ int) (from, to []string) {
		return []string{c.active()}, c.names("watch")
	}},
	{"the Passive and the watch", "watch", true, func(c *Cluster, _ int) (from, to []string) {
		return []string{c.other(c.active())}, c.names("watch")
	}},
	{"the Active and everybody", "controller", true, func(c *Cluster, _ int) (from, to []string) {
		a := c.active()
		return []string{a}, c.all(a)
	}},
	{"the watch and everybody", "watch", true, func(c *Cluster, _ int) (from, to []string) {
		w := c.names("watch")[0]
		return []string{w}, c.all(w)
	}},
	{"the Active and all agents and relays", "agent", false, func(c *Cluster, _ int) (from, to []string) {
		return []string{c.active()}, append(c.names("agent"), c.names("relay")...)
	}},
	{"the controllers and an agent", "agent", false, func(c *Cluster, _ int) (from, to []string) {
		agents := c.names("agent")
		return c.controllers(), agents[len(agents)-1:] // the first may have no way but relays
	}},
	{"the controllers and a relay", "relay", false, func(c *Cluster, n int) (from, to []string) {
		return c.controllers(), []string{c.one("relay", n)}
	}},
	{"a relay and the agents", "relay", false, func(c *Cluster, n int) (from, to []string) {
		return []string{c.one("relay", n)}, c.names("agent")
	}},
}

// one names one node of a role, by chance.
func (c *Cluster) one(role string, n int) string {
	all := c.names(role)
	return all[n%len(all)]
}

// all names all nodes but one.
func (c *Cluster) all(but string) (names []string) {
	for _, n := range c.run.nodes() {
		if n.Name != but {
			names = append(names, n.Name)
		}
	}
	return names
}

// networkKinds are the faults of the network between nodes.
func (c *Cluster) networkKinds() []Kind {
	var kinds []Kind
	for _, member := range []bool{true, false} {
		holds := moments[1:]
		if !member {
			holds = append(slices.Clone(holds), linkLost)
		}
		dropping := func(name string, bothWays bool, percent int) {
			kinds = append(kinds, Kind{Name: name, Needs: NeedNetwork, Takes: member, Holds: holds, Make: func(chance *rand.Rand) Fault {
				return c.dropFault(name, member, bothWays, percent, chance)
			}})
		}
		dropping("cut", true, 100)
		dropping("one-way cut", false, 100)
		dropping("loss", true, 30)
	}
	kinds = append(kinds,
		Kind{Name: "slow link", Needs: NeedNetwork, Takes: true, Holds: moments[2:], Make: c.slowFault},
		Kind{Name: "reset", Needs: NeedNetwork, Holds: moments[:1], Make: c.resetFault})
	return kinds
}

// dropFault drops packets between two sides: all, or those of one kind of connection,
// some or each.
func (c *Cluster) dropFault(what string, member, bothWays bool, percent int, chance *rand.Rand) Fault {
	var possible []int
	for i, e := range ends {
		if e.member == member && len(c.names(e.role)) > 0 {
			possible = append(possible, i)
		}
	}
	e := ends[possible[chance.IntN(len(possible))]]
	conn := connections[chance.IntN(3)]
	if !member {
		conn = connections[2*chance.IntN(2)] // agents and relays do not speak raft
	}
	n := chance.IntN(100)
	back := chance.IntN(2) == 1 // the other of the two ways
	f := &fault{name: fmt.Sprintf("%s of %s between %s", what, conn.name, e.name), needs: NeedNetwork}
	var table string
	f.inject = func(c *Cluster) (err error) {
		from, to := e.pick(c, n)
		var all []direction
		for _, a := range from {
			for _, b := range to {
				if bothWays || !back {
					all = append(all, direction{a, b})
				}
				if bothWays || back {
					all = append(all, direction{b, a})
				}
			}
		}
		table, err = c.network().drop(all, conn.port, percent)
		return err
	}
	f.heal = func(c *Cluster) error { return c.network().undrop(table) }
	return f
}

// network returns what runs the nodes. Kinds that need a network are not offered
// without one.
func (c *Cluster) network() *networkRunner { return c.run.(*networkRunner) }

// slowFault makes all that is sent to a node wait before a narrow line, in a queue of
// up to 300 ms.
func (c *Cluster) slowFault(chance *rand.Rand) Fault {
	all := c.targets()
	t, n, node := all[chance.IntN(len(all))], chance.IntN(100), ""
	return &fault{
		name: "slow line to " + t.name, needs: NeedNetwork,
		inject: func(c *Cluster) error {
			node = t.pick(c, n)
			rate, burst := "400kbit", "5kb"
			if !t.member {
				rate, burst = "32kbit", "1600" // there is little traffic
			}
			return inside(c.network().hub, "", "tc", "qdisc", "add", "dev", node, "root", "tbf", "rate", rate, "burst", burst, "latency", "300ms")
		},
		heal: func(c *Cluster) error {
			stats, err := outputInside(c.network().hub, "tc", "-s", "qdisc", "show", "dev", node)
			if err != nil {
				return err
			}
			if err := inside(c.network().hub, "", "tc", "qdisc", "del", "dev", node, "root"); err != nil {
				return err
			}
			if m := regexp.MustCompile(`overlimits (\d+)`).FindStringSubmatch(stats); m == nil || m[1] == "0" {
				return fmt.Errorf("%w: nothing had to wait: %s", errNotInjected, stats)
			}
			return nil
		},
	}
}

// resetFault resets all connections of one kind that a node has, in the middle of
// whatever they carry. New ones can be made at once.
func (c *Cluster) resetFault(chance *rand.Rand) Fault {
	all := c.targets()
	t, n := all[chance.IntN(len(all))], chance.IntN(100)
	conn := connections[1+chance.IntN(3)]
	if !t.member {
		conn = connections[2] // agents and relays have no others
	}
	return &fault{
		name: fmt.Sprintf("reset %s of %s", conn.name, t.name), needs: NeedNetwork,
		inject: func(c *Cluster) error {
			port := fmt.Sprintf(":%d", conn.port)
			out, err := outputInside(c.network().namespace(t.pick(c, n)), "ss", "--kill", "--no-header", "--tcp", "state", "established",
				"(", "sport", "=", port, "or", "dport", "=", port, ")")
			if err != nil {
				return err
			}
			if out == "" {
				return fmt.Errorf("%w: there is no such connection", errNotInjected)
			}
			return nil
		},
	}
}

// tables numbers the tables of dropped packets.
var tables atomic.Int64

// drop drops a percentage of the packets in some directions, of connections to one
// port or of all (0), until undrop with the name that it returns.
func (r *networkRunner) drop(directions []direction, port, percent int) (table string, err error) {
	table = "fault" + strconv.FormatInt(tables.Add(1), 10)
	var rules strings.Builder
	fmt.Fprintf(&rules, "table bridge %s {\n chain f {\n  type filter hook forward priority 0;\n", table)
	what := ""
	if percent < 100 {
		what = fmt.Sprintf(" numgen random mod 100 < %d", percent)
	}
	for _, d := range directions {
		// Nothing but IP: what is asked of everybody says nothing of these two.
		ports := []string{" ether type ip"}
		if port != 0 {
			ports = []string{fmt.Sprintf(" ether type ip tcp sport %d", port), fmt.Sprintf(" ether type ip tcp dport %d", port)}
		}
		for _, p := range ports {
			fmt.Fprintf(&rules, "  iifname %q oifname %q%s%s counter drop\n", d.from, d.to, p, what)
		}
	}
	rules.WriteString(" }\n}\n")
	return table, inside(r.hub, rules.String(), "nft", "-f", "-")
}

var droppedPackets = regexp.MustCompile(`counter packets (\d+)`)

// undrop ends a drop. It waits a moment for the first packet: without one nothing
// was wrong.
func (r *networkRunner) undrop(table string) error {
	dropped := 0
	for began := time.Now(); dropped == 0 && time.Since(began) < time.Second; time.Sleep(10 * time.Millisecond) {
		out, err := outputInside(r.hub, "nft", "list", "table", "bridge", table)
		if err != nil {
			return err
		}
		for _, m := range droppedPackets.FindAllStringSubmatch(out, -1) {
			n, _ := strconv.Atoi(m[1])
			dropped += n
		}
	}
	if err := inside(r.hub, "", "nft", "delete", "table", "bridge", table); err != nil {
		return err
	}
	if dropped == 0 {
		return fmt.Errorf("%w: no packet was dropped", errNotInjected)
	}
	return nil
}
