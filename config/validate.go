package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"uac/roles"
)

// noOpInterval is how often a member makes a guarded write at least. A stall
// cannot be told from a quiet second if it is shorter.
const noOpInterval = time.Second

// minQuota leaves, above the part of the quota at which growth is refused, room
// for the store to rewrite a few of the largest values.
const minQuota = 128 << 20

// minSpool is the smallest part of an output that an agent gives back to its disk.
const minSpool = 1 << 20

// fieldError is a problem with one setting, or with the relation of several.
type fieldError struct {
	keys    []string // the first one is to blame
	message string
}

func (e *fieldError) Error() string { return e.keys[0] + ": " + e.message }

// checks collects field errors.
type checks struct{ errs []error }

func (c *checks) bad(key string, format string, args ...any) {
	c.relation([]string{key}, format, args...)
}

func (c *checks) relation(keys []string, format string, args ...any) {
	c.errs = append(c.errs, &fieldError{keys: keys, message: fmt.Sprintf(format, args...)})
}

// Validate checks every value and the relations between them for the node's
// role and returns all problems, joined.
func (c *Config) Validate() error {
	var v checks
	c.validateNode(&v)
	c.validateMembers(&v)
	c.validateCluster(&v)
	c.validateMount(&v)
	c.validateAgent(&v)
	c.validateRelay(&v)
	return errors.Join(v.errs...)
}

// Warnings returns what is allowed but hardly meant.
func (c *Config) Warnings() []string {
	var out []string
	if n := len(c.Members); votes(c.Node.Role) && n > 0 && n%2 == 0 {
		out = append(out, fmt.Sprintf("members: %d members survive the loss of no more nodes than %d do: use an odd number", n, n-1))
	}
	return out
}

func (c *Config) validateNode(v *checks) {
	switch c.Node.Role {
	case roles.RoleController, roles.RoleWatch, roles.RoleAgent, roles.RoleRelay:
	case "":
		v.bad("node.role", "is not set; use --role=controller, agent, relay or watch")
	default:
		v.bad("node.role", "%s is not a role", quoted(string(c.Node.Role)))
	}
	checkName(v, "node.name", c.Node.Name)
	if c.Node.DataDir == "" {
		v.bad("node.data_dir", "must not be empty")
	}
	if c.PKI.Join != "" && votes(c.Node.Role) {
		v.bad("pki.join", "is for agents and relays: make the keys of a %s with uac pki issue", c.Node.Role)
	}
	checkHost(v, "node.advertise", c.Node.Advertise)
	checkName(v, "cluster.name", c.Cluster.Name)
	listen := map[string]string{}
	for _, l := range []struct{ key, addr string }{
		{"listen.api", c.Listen.API}, {"listen.raft", c.Listen.Raft}, {"listen.link", c.Listen.Link},
	} {
		port := checkHostPort(v, l.key, l.addr, true)
		if first, taken := listen[l.addr]; taken && port != 0 {
			v.relation([]string{l.key, first}, "%s is already the address of %s", quoted(l.addr), first)
		}
		listen[l.addr] = l.key
	}
	if host, _, err := net.SplitHostPort(c.Listen.Raft); err == nil && host != "" && host != "localhost" && net.ParseIP(host) == nil {
		v.bad("listen.raft", "%s must be an IP address in %s: the store binds no names", quoted(host), quoted(c.Listen.Raft))
	}
	for i, name := range c.API.Names {
		checkHost(v, fmt.Sprintf("api.names[%d]", i), name)
	}
}

func (c *Config) validateMembers(v *checks) {
	names, addrs := map[string]string{}, map[string]string{}
	controllers := 0
	for i, m := range c.Members {
		key := fmt.Sprintf("members[%d]", i)
		if first, twice := names[m.Name]; twice {
			v.relation([]string{key + ".name", first}, "%s is already the name of %s", quoted(m.Name), strings.TrimSuffix(first, ".name"))
		} else if checkName(v, key+".name", m.Name) {
			names[m.Name] = key + ".name"
		}
		switch m.Role {
		case roles.RoleController:
			controllers++
		case roles.RoleWatch:
		default:
			v.bad(key+".role", "is not set; a member is a controller or a watch")
		}
		if m.Address == "" && (m.Raft == "" || m.Link == "") {
			v.bad(key+".address", "is not set")
			continue
		}
		if m.Address != "" {
			checkHost(v, key+".address", m.Address)
		}
		for _, a := range []struct{ key, override, addr string }{
			{key + ".raft", m.Raft, m.RaftAddr()}, {key + ".link", m.Link, m.LinkAddr()},
		} {
			if a.override != "" {
				checkHostPort(v, a.key, a.override, false)
			}
			if first, twice := addrs[a.addr]; twice {
				v.relation([]string{a.key, first}, "%s is already the address of %s", quoted(a.addr), first)
				continue
			}
			addrs[a.addr] = a.key
		}
	}
	if len(c.Members) > 0 && controllers == 0 {
		v.bad("members", "holds no controller")
	}
	if !votes(c.Node.Role) {
		return
	}
	if len(c.Members) == 0 {
		v.bad("members", "is not set; a %s needs the list of all controllers and watches", c.Node.Role)
		return
	}
	self, listed := c.Self()
	if !listed {
		v.relation([]string{"node.name", "members"}, "%s is not in members (%s)", quoted(c.Node.Name), strings.Join(memberNames(c.Members), ", "))
	} else if self.Role != c.Node.Role && self.Role != "" {
		v.relation([]string{"node.role", "members"}, "is %s, but members says that %s is a %s", c.Node.Role, c.Node.Name, self.Role)
	}
}

func memberNames(members []Member) []string {
	var names []string
	for _, m := range members {
		names = append(names, quoted(m.Name))
	}
	return names
}

func (c *Config) validateCluster(v *checks) {
	k, quota := c.Cluster, c.Etcd.Quota
	between := func(key string, d, low, high time.Duration) {
		if d < low || d > high {
			v.bad(key, "%s is not between %s and %s", d, low, high)
		}
	}
	between("cluster.silence_timeout", k.SilenceTimeout, 50*time.Millisecond, time.Minute)
	between("cluster.lease", k.Lease, 2*time.Second, 10*time.Minute)
	if k.Lease%time.Second != 0 {
		v.bad("cluster.lease", "%s is not a whole number of seconds", k.Lease)
	}
	if k.JoinTimeout <= k.SilenceTimeout {
		v.relation([]string{"cluster.join_timeout", "cluster.silence_timeout"},
			"%s must be longer than cluster.silence_timeout (%s): else a node that starts takes over from nodes it has not heard yet", k.JoinTimeout, k.SilenceTimeout)
	}
	if k.StallTimeout >= k.Lease {
		v.relation([]string{"cluster.stall_timeout", "cluster.lease"},
			"%s must be shorter than cluster.lease (%s): the lease is the backstop behind it", k.StallTimeout, k.Lease)
	}
	if k.StallTimeout < 2*noOpInterval {
		v.bad("cluster.stall_timeout", "%s is shorter than %s: a quiet member writes only every %s", k.StallTimeout, 2*noOpInterval, noOpInterval)
	}
	if quota < minQuota {
		v.bad("etcd.quota", "%s is less than %s: what must always fit beside large documents would not", formatSize(quota), formatSize(minQuota))
	}
	if quota > 64<<30 {
		v.bad("etcd.quota", "%s is more than 64GiB: the whole store is mapped into memory", formatSize(quota))
	}
	oneOf(v, "cluster.failover", k.Failover, "auto", "confirm")
	oneOf(v, "cluster.on_stop", k.OnStop, "handover", "hold")
	oneOf(v, "cluster.execution", k.Execution, "any", "active")
	oneOf(v, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(v, "log.format", c.Log.Format, "auto", "text", "json")
}

// oneOf repeats what the reader checks, for settings that were not read.
func oneOf(v *checks, key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.bad(key, "%s is not one of %s%s", quoted(value), strings.Join(allowed, ", "), roles.DidYouMean(roles.Nearest(value, allowed)))
	}
}

func (c *Config) validateMount(v *checks) {
	if dir := c.Mount.Dir; dir != "" && (!filepath.IsAbs(dir) || filepath.Clean(dir) == "/") {
		v.bad("mount.dir", "%s is not the absolute path of a mount", quoted(dir))
	}
	if t := c.Mount.Timeout; t < 100*time.Millisecond || t > 5*time.Minute {
		v.bad("mount.timeout", "%s is not between 100ms and 5m", t)
	}
	if c.History.Hot < 0 {
		v.bad("history.hot", "%s is negative", c.History.Hot)
	}
	if c.History.HotCount < 0 {
		v.bad("history.hot_count", "%d is negative", c.History.HotCount)
	}
	if k := c.History.Keep; k != 0 && k < time.Hour {
		v.bad("history.keep", "%s is less than an hour; 0 means for ever", k)
	}
}

func (c *Config) validateAgent(v *checks) {
	a := c.Agent
	if c.Node.Role == roles.RoleAgent && len(a.Servers) == 0 {
		v.bad("agent.servers", "is not set; an agent needs the controllers or relays to connect to")
	}
	checkServers(v, "agent.servers", a.Servers)
	for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
		if err := roles.CheckLabel(name, a.Labels[name]); err != nil {
			v.bad("agent.labels."+quoteKey(name), "%v", err)
		}
	}
	if a.KillGrace < 0 || a.KillGrace > time.Hour {
		v.bad("agent.kill_grace", "%s is not between 0s and 1h", a.KillGrace)
	}
	if a.ReconnectMin < 10*time.Millisecond {
		v.bad("agent.reconnect_min", "%s is shorter than 10ms", a.ReconnectMin)
	}
	if a.ReconnectMax < a.ReconnectMin {
		v.relation([]string{"agent.reconnect_max", "agent.reconnect_min"},
			"%s is shorter than agent.reconnect_min (%s)", a.ReconnectMax, a.ReconnectMin)
	}
	if a.SpoolLimit < minSpool {
		v.bad("agent.spool_limit", "%s is less than %s", formatSize(a.SpoolLimit), formatSize(minSpool))
	}
	if a.SpoolTotal < a.SpoolLimit {
		v.relation([]string{"agent.spool_total", "agent.spool_limit"},
			"%s is less than agent.spool_limit (%s)", formatSize(a.SpoolTotal), formatSize(a.SpoolLimit))
	}
}

func (c *Config) validateRelay(v *checks) {
	r := c.Relay
	if c.Node.Role == roles.RoleRelay && len(r.Servers) == 0 {
		v.bad("relay.servers", "is not set; a relay needs the controllers or relays to carry links to")
	}
	checkServers(v, "relay.servers", r.Servers)
	if r.MaxLinks < 1 || r.MaxLinks > 1_000_000 {
		v.bad("relay.max_links", "%d is not between 1 and 1000000", r.MaxLinks)
	}
}

// checkServers checks a list of addresses to connect to.
func checkServers(v *checks, list string, servers []string) {
	seen := map[string]bool{}
	for i, server := range servers {
		key := fmt.Sprintf("%s[%d]", list, i)
		checkHostPort(v, key, server, false)
		if seen[server] {
			v.bad(key, "%s is listed twice", quoted(server))
		}
		seen[server] = true
	}
}

// votes reports whether nodes of a role are members.
func votes(r roles.Role) bool { return r == roles.RoleController || r == roles.RoleWatch }

// checkName checks a name that becomes part of a certificate.
func checkName(v *checks, key, name string) bool {
	err := roles.CheckNodeName(name)
	if err != nil {
		v.bad(key, "%v", err)
	}
	return err == nil
}

var validHost = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$`)

// checkHost checks a host name or address without a port.
func checkHost(v *checks, key, host string) {
	if net.ParseIP(strings.Trim(host, "[]")) != nil || validHost.MatchString(host) {
		return
	}
	if h, _, err := net.SplitHostPort(host); err == nil && h != "" {
		v.bad(key, "%s must be a host without a port", quoted(host))
		return
	}
	v.bad(key, "%s is not a host name or address", quoted(host))
}

// checkHostPort checks an address and returns its port. To listen, the host
// may be empty and the port 0, which means one chosen by the system.
func checkHostPort(v *checks, key, addr string, listen bool) int {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		v.bad(key, "%s is not of the form host:port", quoted(addr))
		return 0
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 && !listen {
		v.bad(key, "%s is not a port in %s", quoted(portText), quoted(addr))
	}
	if host != "" || !listen {
		checkHost(v, key, host)
	}
	return int(port)
}

// withPort adds a port to an address that has none.
func withPort(addr string, port int) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), strconv.Itoa(port))
}
