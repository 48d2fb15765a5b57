package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// Peer is one configured member, this node included.
type Peer struct {
	Name string
	Role Role
	// Raft is host:port of the member's etcd peer listener.
	Raft string
	// Link is host:port of the member's node-link listener, where pulses go.
	Link string
}

// Failover says who takes the last step of an automatic fail-over.
type Failover string

// Kinds of fail-over.
const (
	// FailoverAuto decides a loss as soon as a majority agrees.
	FailoverAuto Failover = "auto"
	// FailoverConfirm also waits for an operator's confirm-lost.
	FailoverConfirm Failover = "confirm"
)

// Config of a member. All durations are measured on monotonic clocks.
type Config struct {
	// Name of this node; one of Peers carries it.
	Name string
	Role Role
	// Cluster names the cluster; members of different clusters never join.
	Cluster string
	// DataDir holds the etcd data and the member's own small files.
	DataDir string
	// Peers are all members, this one included.
	Peers []Peer
	// RaftListen is host:port to bind for etcd peers. Empty: as in Peers.
	RaftListen string

	// SilenceTimeout is how long a member may be silent before that is evidence
	// of its loss. Pulses go out every tenth of it.
	SilenceTimeout time.Duration
	// StallTimeout is how long a member may go without an acknowledged write
	// before that is evidence of its loss.
	StallTimeout time.Duration
	// JoinTimeout replaces SilenceTimeout for members not heard since our start.
	JoinTimeout time.Duration
	// Lease is the time to live of the backstop key. Whole seconds.
	Lease    time.Duration
	Failover Failover
	// QuotaBytes bounds the etcd backend file.
	QuotaBytes int64
	// KeepRevisions is how much history compaction leaves for watchers.
	KeepRevisions int64
	// AloneAfter is how long quorum must have been gone before an operator may
	// let a survivor continue alone: long enough that a reboot is not mistaken
	// for a loss.
	AloneAfter time.Duration

	hooks hooks
}

// DefaultConfig returns a Config with every default set and no names or peers.
func DefaultConfig() Config {
	return Config{
		SilenceTimeout: time.Second,
		StallTimeout:   3 * time.Second,
		JoinTimeout:    5 * time.Second,
		Lease:          5 * time.Second,
		Failover:       FailoverAuto,
		QuotaBytes:     4 << 30,
		KeepRevisions:  20000,
		AloneAfter:     30 * time.Second,
	}
}

// Validate reports every setting, or relation between settings, that would
// break the protocol.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		bad("node name is empty")
	}
	if c.Role != RoleController && c.Role != RoleWatch {
		bad("role %q cannot be a member: want controller or watch", c.Role)
	}
	if c.DataDir == "" {
		bad("data directory is empty")
	}
	if c.Cluster == "" {
		bad("cluster name is empty")
	}
	self, controllers, seen := false, 0, map[string]bool{}
	for _, p := range c.Peers {
		switch {
		case seen[p.Name]:
			bad("member %q is listed twice", p.Name)
		case p.Name == c.Name && p.Role != c.Role:
			bad("member %q is listed as %s but this node's role is %s", p.Name, p.Role, c.Role)
		}
		seen[p.Name] = true
		if !isNodeName(p.Name) {
			bad("member name %q: want letters, digits, '.', '_' and '-'", p.Name)
		}
		self = self || p.Name == c.Name
		if p.Role == RoleController {
			controllers++
		}
		for _, a := range []string{p.Raft, p.Link} {
			if _, _, err := net.SplitHostPort(a); err != nil {
				bad("member %q: address %q is not host:port", p.Name, a)
			}
		}
	}
	if !self {
		bad("this node %q is not in the list of members", c.Name)
	}
	if controllers == 0 {
		bad("no controller in the list of members")
	}
	if c.SilenceTimeout < 50*time.Millisecond {
		bad("silence_timeout %v is below 50ms", c.SilenceTimeout)
	}
	if c.JoinTimeout <= c.SilenceTimeout {
		bad("join_timeout %v must be longer than silence_timeout %v", c.JoinTimeout, c.SilenceTimeout)
	}
	if c.Lease < 2*time.Second || c.Lease%time.Second != 0 {
		bad("lease %v must be whole seconds, at least 2s", c.Lease)
	}
	if c.StallTimeout >= c.Lease {
		bad("stall_timeout %v must be shorter than lease %v", c.StallTimeout, c.Lease)
	}
	if c.StallTimeout < 2*time.Second {
		bad("stall_timeout %v is below 2s: members write at least once a second", c.StallTimeout)
	}
	if c.Failover != FailoverAuto && c.Failover != FailoverConfirm {
		bad("failover %q: want auto or confirm", c.Failover)
	}
	if c.QuotaBytes < 16<<20 {
		bad("etcd quota %d is below 16 MiB", c.QuotaBytes)
	}
	if c.KeepRevisions < 1 {
		bad("%d kept revisions: want at least 1", c.KeepRevisions)
	}
	if c.AloneAfter < c.SilenceTimeout {
		bad("an operator may let a survivor continue alone after %v: want at least silence_timeout %v", c.AloneAfter, c.SilenceTimeout)
	}
	return errors.Join(errs...)
}

// isNodeName reports whether a name can be a level of a key and part of etcd's
// list of members.
func isNodeName(name string) bool {
	return name != "" && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

func (c Config) self() Peer {
	for _, p := range c.Peers {
		if p.Name == c.Name {
			return p
		}
	}
	return Peer{}
}

// TLSFiles names the files that etcd's peer listener and dialer read at every
// handshake, so that a renewed certificate needs no restart. All members'
// certificates carry ServerName as a DNS name.
type TLSFiles struct {
	Cert, Key, CA string
	ServerName    string
}

// Lifelines are connections that carry nothing. The kernel ends them, and stops
// listening, before all else when the process is killed.
type Lifelines struct {
	// Listener yields authenticated lifelines of other members. The member closes it.
	// It stops listening, like Deps.Pulses, when the process is killed and not later
	// than a lifeline that Hold has taken over ends.
	Listener net.Listener
	// Dial opens an authenticated lifeline to a peer.
	Dial func(ctx context.Context, p Peer) (net.Conn, error)
	// Hold takes over a connection that Dial has opened. If it fails, that is still
	// the caller's to close.
	Hold func(net.Conn) (Lifeline, error)
}

// Lifeline is a connection that was taken over.
type Lifeline interface {
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	// Close ends it.
	Close() error
}

// Deps are what a member needs from its surroundings.
type Deps struct {
	Log *slog.Logger
	// Raft secures the etcd peer links. Nil means plain TCP: tests only.
	Raft *TLSFiles
	// Pulses yields authenticated connections of other members. Not needed by
	// a single member. The member closes it.
	Pulses net.Listener
	// DialPulse opens an authenticated connection to a peer's pulse class.
	DialPulse func(ctx context.Context, p Peer) (net.Conn, error)
	// PulsePeer returns the name in the certificate of a pulse connection.
	PulsePeer func(net.Conn) (string, error)
	// Lifelines let the others know a few milliseconds sooner that this process was
	// killed; nil without.
	Lifelines *Lifelines
	// Version of this build, shown to peers.
	Version string
	// Point, if set, is called at every named point (see Points). Tests kill the
	// process there.
	Point func(Point)
}
