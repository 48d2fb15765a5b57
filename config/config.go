package config

import (
	"net"
	"strconv"
	"time"

	"uac/coord"
	"uac/roles"
)

// DefaultFile is the configuration file of a daemon that was given none. It is
// the only file that may be missing.
const DefaultFile = "/etc/uac/uac.yaml"

// Default ports. A member's address without a port means these.
const (
	PortAPI  = 7600 // REST, UI, probes, metrics
	PortRaft = 7601 // links between members
	PortLink = 7602 // agents, relays, pulses
)

// Config is the whole of a daemon's settings. [Load] returns it complete: what
// can be derived (names, addresses, directories) is filled in.
type Config struct {
	Node    Node     `yaml:"node"`
	Listen  Listen   `yaml:"listen"`
	API     API      `yaml:"api"`
	Members []Member `yaml:"members"`
	PKI     PKI      `yaml:"pki"`
	Cluster Cluster  `yaml:"cluster"`
	Etcd    Etcd     `yaml:"etcd"`
	Mount   Mount    `yaml:"mount"`
	History History  `yaml:"history"`
	Agent   Agent    `yaml:"agent"`
	Relay   Relay    `yaml:"relay"`
	Log     Log      `yaml:"log"`
}

// Node says who this node is.
type Node struct {
	// Role is normally given by --role.
	Role roles.Role `yaml:"role" oneof:"controller agent relay watch"`
	// Name is unique in the cluster and part of the node's certificate. Empty
	// means the host name up to its first dot.
	Name string `yaml:"name"`
	// DataDir holds everything that this node must not lose.
	DataDir string `yaml:"data_dir"`
	// Advertise is the host name or address, without a port, at which others
	// reach this node. Empty means its address in members, else its host name.
	Advertise string `yaml:"advertise"`
}

// Listen holds the addresses to bind, each host:port. An empty host binds all
// interfaces.
type Listen struct {
	API  string `yaml:"api"`
	Raft string `yaml:"raft"`
	Link string `yaml:"link"`
}

// API holds the settings of the REST API.
type API struct {
	// Names are additional host names and addresses for the certificate of the
	// API, for example that of a load balancer.
	Names []string `yaml:"names"`
}

// Member is one voter of the cluster: a controller or a watch.
type Member struct {
	Name string     `yaml:"name"`
	Role roles.Role `yaml:"role" oneof:"controller watch"`
	// Address is a host name or address without a port.
	Address string `yaml:"address"`
	// Raft and Link replace Address and the default port, each host:port.
	Raft string `yaml:"raft"`
	Link string `yaml:"link"`
}

// RaftAddr returns where the member's raft port is reached, as host:port.
func (m Member) RaftAddr() string { return orHostPort(m.Raft, m.Address, PortRaft) }

// LinkAddr returns where the member's link port is reached, as host:port.
func (m Member) LinkAddr() string { return orHostPort(m.Link, m.Address, PortLink) }

func orHostPort(addr, host string, port int) string {
	if addr != "" {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// PKI says where keys and certificates are.
type PKI struct {
	// Dir holds this node's keys and certificates. Empty means pki below
	// node.data_dir.
	Dir string `yaml:"dir"`
	// Join is a one-time token with which an agent or relay without certificates
	// asks a controller for its own. It is unused once they exist.
	Join string `yaml:"join" secret:"true"`
}

// Cluster holds the settings of fail-over. They must be the same on every
// member.
type Cluster struct {
	Name string `yaml:"name"`
	// SilenceTimeout is how long a member may be silent before the others may
	// declare it lost. Pulses are sent ten times as often.
	SilenceTimeout time.Duration `yaml:"silence_timeout"`
	// StallTimeout is how long a member that still answers may fail to commit a
	// write before the others may declare it lost.
	StallTimeout time.Duration `yaml:"stall_timeout"`
	// JoinTimeout is how long after its own start a member waits to hear of
	// another before it counts that one as silent.
	JoinTimeout time.Duration `yaml:"join_timeout"`
	// Lease is the lifetime of a member's lease, in whole seconds: the backstop
	// behind pulses.
	Lease time.Duration `yaml:"lease"`
	// Failover is auto, or confirm: a loss then waits for an operator.
	Failover string `yaml:"failover" oneof:"auto confirm"`
	// OnStop is handover, or hold: the work of a member that was stopped in
	// order then waits for its return.
	OnStop string `yaml:"on_stop" oneof:"handover hold"`
	// Execution is any, or active: only the Active then owns requests.
	Execution string `yaml:"execution" oneof:"any active"`
}

// Etcd holds the settings of the embedded store.
type Etcd struct {
	// Quota is the largest size of the store. Requests are refused before it
	// is reached.
	Quota int64 `yaml:"quota" unit:"bytes"`
}

// Mount says where a controller finds the mount that all controllers share.
type Mount struct {
	// Dir is where it is mounted, made the cluster's by uac mount init. Empty
	// means that there is none.
	Dir string `yaml:"dir"`
	// Timeout is how long one operation, of at most 1 MiB, may take before the
	// mount counts as hung.
	Timeout time.Duration `yaml:"timeout"`
}

// History says how long requests are kept after their end, and where.
type History struct {
	// Hot is how long a finished request stays in the store before it moves to the
	// mount.
	Hot time.Duration `yaml:"hot"`
	// HotCount is how many finished requests the store holds at most, however
	// short ago they ended.
	HotCount int `yaml:"hot_count"`
	// Keep is how long a request is kept on the mount; 0 means for ever.
	Keep time.Duration `yaml:"keep"`
}

// Agent holds the settings of a node with the role agent.
type Agent struct {
	// Servers are the controllers and relays to connect to, in order of
	// preference, each host or host:port.
	Servers []string `yaml:"servers"`
	// Shuffle makes the order random, to spread many agents.
	Shuffle bool `yaml:"shuffle"`
	// Labels describe the machine for the selectors of steps. Their keys are
	// case-sensitive.
	Labels map[string]string `yaml:"labels"`
	// KillGrace is the time between TERM and KILL when a step must end.
	KillGrace time.Duration `yaml:"kill_grace"`
	// ReconnectMin and ReconnectMax bound the wait between two attempts to
	// connect.
	ReconnectMin time.Duration `yaml:"reconnect_min"`
	ReconnectMax time.Duration `yaml:"reconnect_max"`
	// SpoolLimit is how much output of one attempt, and SpoolTotal how much of all,
	// may wait here to be collected. Attempts that write more are frozen until it is.
	SpoolLimit int64 `yaml:"spool_limit" unit:"bytes"`
	SpoolTotal int64 `yaml:"spool_total" unit:"bytes"`
}

// Relay holds the settings of a node with the role relay.
type Relay struct {
	// Servers are the controllers and relays to carry links to, each host or
	// host:port.
	Servers []string `yaml:"servers"`
	// MaxLinks bounds how many links are carried at a time.
	MaxLinks int `yaml:"max_links"`
}

// Log holds the settings of the log, which goes to standard error.
type Log struct {
	Level string `yaml:"level" oneof:"debug info warn error"`
	// Format is text or json; auto means text on a terminal, else json.
	Format string `yaml:"format" oneof:"auto text json"`
}

// Default returns the settings of a node that was told nothing.
func Default() Config {
	member := coord.DefaultConfig()
	return Config{
		Node:   Node{DataDir: "/var/lib/uac"},
		Listen: Listen{API: ":7600", Raft: ":7601", Link: ":7602"},
		Cluster: Cluster{
			Name:           "uac",
			SilenceTimeout: member.SilenceTimeout,
			StallTimeout:   member.StallTimeout,
			JoinTimeout:    member.JoinTimeout,
			Lease:          member.Lease,
			Failover:       string(member.Failover),
			OnStop:         "handover",
			Execution:      "any",
		},
		Etcd:  Etcd{Quota: member.QuotaBytes},
		Mount: Mount{Timeout: 5 * time.Second},
		// An hour is what people look back at most, and 10,000 requests are some
		// 20 MB of a store of gigabytes. 90 days cover a quarter's audit; who must
		// keep more says so, or says 0.
		History: History{Hot: time.Hour, HotCount: 10_000, Keep: 90 * 24 * time.Hour},
		Agent: Agent{
			KillGrace:    10 * time.Second,
			ReconnectMin: 50 * time.Millisecond,
			ReconnectMax: 5 * time.Second,
			SpoolLimit:   256 << 20,
			SpoolTotal:   2 << 30,
		},
		Relay: Relay{MaxLinks: 20_000},
		Log:   Log{Level: "info", Format: "auto"},
	}
}
