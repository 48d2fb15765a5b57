package config

import (
	"net"
	"path/filepath"
	"strings"
	"time"

	"uac/codestation/mount"
	"uac/coord"
)

// Coord returns the settings of the member that this node is.
func (c *Config) Coord() coord.Config {
	out := coord.DefaultConfig()
	out.Name = c.Node.Name
	out.Role = coord.Role(c.Node.Role)
	out.Cluster = c.Cluster.Name
	out.DataDir = filepath.Join(c.Node.DataDir, "coord")
	out.RaftListen = c.raftListen()
	for _, m := range c.Members {
		out.Peers = append(out.Peers, coord.Peer{Name: m.Name, Role: coord.Role(m.Role), Raft: m.RaftAddr(), Link: m.LinkAddr()})
	}
	out.SilenceTimeout = c.Cluster.SilenceTimeout
	out.StallTimeout = c.Cluster.StallTimeout
	out.JoinTimeout = c.Cluster.JoinTimeout
	out.Lease = c.Cluster.Lease
	out.Failover = coord.Failover(c.Cluster.Failover)
	out.QuotaBytes = c.Etcd.Quota
	return out
}

// mountProbe is how often a mount that works is looked at.
const mountProbe = 10 * time.Second

// SharedMount returns the settings of the shared mount.
func (c *Config) SharedMount() mount.Config {
	return mount.Config{Dir: c.Mount.Dir, Cluster: c.Cluster.Name, Timeout: c.Mount.Timeout, Probe: mountProbe}
}

// raftListen returns the address to bind for raft. etcd wants an IP address
// there, also for "all of them".
func (c *Config) raftListen() string {
	host, port, err := net.SplitHostPort(c.Listen.Raft)
	if err != nil || host != "" {
		return c.Listen.Raft
	}
	all := "0.0.0.0"
	for _, m := range c.Members {
		if strings.HasPrefix(m.RaftAddr(), "[") {
			all = "::"
		}
	}
	return net.JoinHostPort(all, port)
}
