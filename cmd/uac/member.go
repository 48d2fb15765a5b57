package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"uac/config"
	"uac/coord"
	"uac/roles"
	"uac/roles/wire"
	"uac/roles/wire/lifeline"
	"uac/roles/wire/pki"
)

// memberNode is what controllers and watches have in common: certificates, the
// port for node links, and the part in the coordination cluster.
type memberNode struct {
	store  *pki.Store
	links  *wire.Listener
	member *coord.Member
	dialer *memberDialer
	host   string
	ip     string
}

// loadPKI loads this node's certificates and checks that they are this node's.
func loadPKI(d daemonDeps) (*pki.Store, error) {
	store, err := pki.Load(d.cfg.PKI.Dir, d.log)
	if err != nil {
		return nil, usageError("certificates: %w", err)
	}
	id := store.Identity()
	want := pki.Identity{Cluster: d.cfg.Cluster.Name, Role: d.cfg.Node.Role, Name: d.cfg.Node.Name}
	if role := d.cfg.Node.Role; (role == roles.RoleAgent || role == roles.RoleRelay) && d.origins.Of("cluster.name").Source == config.FromDefault {
		want.Cluster = id.Cluster // who was told nothing is of the cluster that it joined
	}
	if id != want {
		return nil, usageError("certificates: those in %s are of %s, this node is %s", d.cfg.PKI.Dir, id, want)
	}
	infos, err := store.Certificates(time.Now())
	if err != nil {
		return nil, usageError("certificates: %w", err)
	}
	for _, c := range infos {
		if left := time.Until(c.NotAfter); left < 7*24*time.Hour {
			d.log.Warn("certificate ends soon or has ended", "file", c.File, "not_after", c.NotAfter)
		}
	}
	return store, nil
}

// newMember builds the common part. classes are what the role serves on its
// link port besides pulses and calls of other members.
func newMember(ctx context.Context, d daemonDeps, store *pki.Store, classes ...wire.Class) (*memberNode, error) {
	cfg := d.cfg
	server, err := store.MemberServer()
	if err != nil {
		return nil, err
	}
	if err := d.free(ctx, "listen.raft", cfg.Listen.Raft); err != nil {
		return nil, err
	}
	members := []pki.Role{pki.Controller, pki.Watch}
	classes = append(classes,
		wire.Class{Name: wire.ClassPulse, TLS: server, Roles: members, Urgent: true},
		wire.Class{Name: wire.ClassLifeline, TLS: server, Roles: members, Urgent: true},
		wire.Class{Name: wire.ClassMember, TLS: server, Roles: members, Urgent: true})
	links, err := wire.Listen(wire.ListenConfig{Addr: cfg.Listen.Link, Log: d.log, Lifeline: true}, classes...)
	if err != nil {
		return nil, d.listenError("listen.link", cfg.Listen.Link, err)
	}
	n := &memberNode{store: store, links: links, dialer: newMemberDialer(cfg, store)}
	n.host, n.ip = whereAmI(ctx, cfg)

	files, err := store.PeerFiles()
	if err != nil {
		return nil, errors.Join(err, links.Close())
	}
	cc := coord.DefaultConfig()
	cc.Name, cc.Role, cc.Cluster = cfg.Node.Name, coord.Role(cfg.Node.Role), cfg.Cluster.Name
	cc.DataDir = filepath.Join(cfg.Node.DataDir, "coord")
	cc.RaftListen = withHost(cfg.Listen.Raft)
	for _, m := range cfg.Members {
		cc.Peers = append(cc.Peers, coord.Peer{Name: m.Name, Role: coord.Role(m.Role), Raft: m.RaftAddr(), Link: m.LinkAddr()})
	}
	cc.SilenceTimeout, cc.StallTimeout = cfg.Cluster.SilenceTimeout, cfg.Cluster.StallTimeout
	cc.JoinTimeout, cc.Lease = cfg.Cluster.JoinTimeout, cfg.Cluster.Lease
	cc.Failover, cc.QuotaBytes = coord.Failover(cfg.Cluster.Failover), cfg.Etcd.Quota
	dial := func(class string) func(context.Context, coord.Peer) (net.Conn, error) {
		return func(ctx context.Context, p coord.Peer) (net.Conn, error) {
			conf, err := store.MemberClient(p.Name)
			if err != nil {
				return nil, err
			}
			conn, err := wire.Dial(ctx, class, p.Link, conf)
			if err != nil {
				return nil, err // not a nil *tls.Conn in an interface
			}
			return conn, nil
		}
	}
	lifelines := &coord.Lifelines{
		Listener: links.Class(wire.ClassLifeline),
		Dial:     dial(wire.ClassLifeline),
		Hold: func(c net.Conn) (coord.Lifeline, error) {
			held, err := lifeline.Hold(c)
			if err != nil {
				return nil, err // not a nil *lifeline.Held in an interface
			}
			return held, nil
		},
	}
	n.member, err = coord.New(cc, coord.Deps{
		Log:       d.log,
		Version:   d.build.Version,
		Point:     points[coord.Point](d),
		Raft:      &coord.TLSFiles{Cert: files.CertFile, Key: files.KeyFile, CA: files.CAFile, ServerName: files.ServerName},
		Pulses:    links.Class(wire.ClassPulse),
		DialPulse: dial(wire.ClassPulse),
		Lifelines: lifelines,
		PulsePeer: func(c net.Conn) (string, error) {
			conn, ok := c.(*tls.Conn)
			if !ok {
				return "", fmt.Errorf("pulse connection is a %T", c)
			}
			id, err := pki.PeerIdentity(conn.ConnectionState())
			return id.Name, err
		},
	})
	if err != nil {
		return nil, errors.Join(usageError("%w", err), links.Close())
	}
	return n, nil
}

// run adds the port and the member to a group. The member takes a port that is closed
// under it for a failure, so it ends first.
func (n *memberNode) run(ctx context.Context, g *errgroup.Group) {
	runUnder(ctx, g, n.links.Run, n.member.Run)
}

// runUnder adds two things to a group with this context, of which the upper one needs
// the lower one to its end. The lower one ends when the whole group is to end: by then
// the group has the upper one's error, and not what others say when the lower one is
// gone.
func runUnder(ctx context.Context, g *errgroup.Group, lower, upper func(context.Context) error) {
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	g.Go(func() error { return lower(below) })
	g.Go(func() error {
		defer close(ended)
		return upper(ctx)
	})
	g.Go(func() error {
		<-ctx.Done()
		<-ended
		stop()
		return nil
	})
}

// memberError gives errors of the coordination member their exit code: a member
// that must be replaced, or whose data directory another process has, is a thing
// for an operator, not for a restart.
func memberError(err error) error {
	if errors.Is(err, coord.ErrReplace) || errors.Is(err, coord.ErrInUse) {
		return usageError("%w", err)
	}
	return err
}

// withHost names all interfaces in an address without a host, as the store wants
// it. Go takes 0.0.0.0 for IPv6, too, where there is any.
func withHost(addr string) string {
	if strings.HasPrefix(addr, ":") {
		return "0.0.0.0" + addr
	}
	return addr
}

// whereAmI returns the host name and an address of this node, for people.
func whereAmI(ctx context.Context, cfg config.Config) (host, ip string) {
	host, _ = os.Hostname()
	ip = cfg.Node.Advertise
	if net.ParseIP(ip) == nil {
		if addrs, err := net.DefaultResolver.LookupHost(ctx, cfg.Node.Advertise); err == nil && len(addrs) > 0 {
			ip = addrs[0]
		}
	}
	return host, ip
}

// apiURL is where this node's API is reached.
func apiURL(cfg config.Config, listen net.Addr) string {
	_, port, err := net.SplitHostPort(listen.String())
	if err != nil {
		return ""
	}
	host := cfg.Node.Advertise
	if h, _, err := net.SplitHostPort(cfg.Listen.API); err == nil && h != "" && !net.ParseIP(h).IsUnspecified() {
		host = h
	}
	return "https://" + net.JoinHostPort(host, port)
}

// memberStreams bounds the calls that one member has open at another.
const memberStreams = 1000

// memberPings find out that a connection between members is dead; without them a
// call after a network cut would go into it for minutes.
var memberPings = wire.Options{PingInterval: 2 * pingInterval, PingTimeout: pingInterval}

// newMemberServer returns the server for calls of other members.
func newMemberServer() *grpc.Server {
	o := memberPings
	o.MaxStreams = memberStreams
	return wire.NewServer(o)
}

// memberDialer keeps one connection to the member service of every other
// member. Safe for concurrent use.
type memberDialer struct {
	store *pki.Store
	addrs map[string]string

	mu    sync.Mutex // guards conns
	conns map[string]*grpc.ClientConn
}

func newMemberDialer(cfg config.Config, store *pki.Store) *memberDialer {
	d := &memberDialer{store: store, addrs: map[string]string{}, conns: map[string]*grpc.ClientConn{}}
	for _, m := range cfg.Members {
		d.addrs[m.Name] = m.LinkAddr()
	}
	return d
}

// dial returns the member service of a node.
func (d *memberDialer) dial(_ context.Context, node string) (wire.MemberClient, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn := d.conns[node]
	if conn == nil {
		addr, ok := d.addrs[node]
		if !ok {
			return nil, fmt.Errorf("%s is not a configured member", node)
		}
		conf, err := d.store.MemberClient(node)
		if err != nil {
			return nil, err
		}
		if conn, err = wire.NewClient(wire.ClassMember, addr, conf, memberPings); err != nil {
			return nil, err
		}
		d.conns[node] = conn
	}
	return wire.NewMemberClient(conn), nil
}

func (d *memberDialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// serveGRPC serves one class until ctx ends.
func serveGRPC(ctx context.Context, ln net.Listener, s *grpc.Server) error {
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(ln); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
