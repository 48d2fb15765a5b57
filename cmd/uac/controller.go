package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"uac/codestation/mount"
	"uac/roles/controller"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// pingInterval is how often links to agents are pinged.
const pingInterval = time.Second

// runController runs a node with the role controller.
func runController(ctx context.Context, d daemonDeps) error {
	cfg := d.cfg
	authority, err := pki.OpenAuthority(cfg.PKI.Dir)
	if err != nil {
		return usageError("certificates: %w", err)
	}
	if _, err := authority.RenewNodes(false, cfg.PKI.Dir); err != nil {
		return usageError("certificates: %w", err)
	}
	if _, err := authority.EnsureAPI(cfg.PKI.Dir, apiHosts(d)); err != nil {
		return usageError("certificates: %w", err)
	}
	store, err := loadPKI(d)
	if err != nil {
		return err
	}
	first, err := firstTokens(cfg.PKI.Dir)
	if err != nil {
		return usageError("%w", err)
	}
	apiTLS, err := store.APIServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	linkTLS, err := store.LinkServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	joinTLS, err := store.JoinServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	apiListener, err := d.listen(ctx, "listen.api", cfg.Listen.API)
	if err != nil {
		return err
	}
	defer func() { _ = apiListener.Close() }()
	node, err := newMember(ctx, d, store,
		wire.Class{Name: wire.ClassLink, TLS: linkTLS, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.Class{Name: wire.ClassJoin, TLS: joinTLS, Anonymous: true})
	if err != nil {
		return err
	}
	defer node.dialer.close()
	ctx, end := newEnding(ctx, d)
	defer end.stop()

	shared := mount.New(cfg.SharedMount(), mount.Deps{Command: mountCommand, Log: d.log})
	var output controller.OutputStore
	if cfg.Mount.Dir != "" {
		output = shared
	}
	c := controller.New(controller.Config{
		Name: cfg.Node.Name, Host: node.host, IP: node.ip, API: apiURL(cfg, apiListener.Addr()),
		Version: d.build.Version, BuildID: d.build.Commit, BuildDate: d.build.Date,
		Execution: cfg.Cluster.Execution, HoldOnStop: cfg.Cluster.OnStop == "hold",
		PingInterval: pingInterval,
		History:      controller.HistoryConfig{Hot: cfg.History.Hot, HotCount: cfg.History.HotCount, Keep: cfg.History.Keep},
	}, controller.Deps{
		Member: node.member, Authority: authority, FirstTokens: first, Mount: shared, Output: output,
		DialMember: node.dialer.dial,
		End:        func(e controller.Ending) { end.end(e.Abrupt, e.Restart) },
		Log:        d.log,
		Point:      points[controller.Point](d),
	})
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := c.RegisterMetrics(metrics); err != nil {
		return err
	}
	rest, err := api.New(api.Config{Version: d.build.Version}, c, api.Deps{
		Log: d.log, Registerer: metrics, Metrics: promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}),
	})
	if err != nil {
		return err
	}
	// Both sides give a silent link up by its own pings: gRPC's would wake ten thousand
	// idle links every other second.
	links := wire.NewServer(wire.Options{})
	members, joins := newMemberServer(), wire.NewServer(wire.Options{})
	c.RegisterLinks(links)
	c.RegisterMembers(members)
	c.RegisterEnroll(joins)

	// The controller stops first: it says goodbye through everything below it.
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	g, below := errgroup.WithContext(below)
	g.Go(func() error { return serveGRPC(below, node.links.Class(wire.ClassLink), links) })
	g.Go(func() error { return serveGRPC(below, node.links.Class(wire.ClassMember), members) })
	g.Go(func() error { return serveGRPC(below, node.links.Class(wire.ClassJoin), joins) })
	g.Go(func() error { return api.Serve(below, tls.NewListener(apiListener, apiTLS), rest.Handler(), d.log) })
	node.run(below, g)
	g.Go(func() error { return shared.Run(below) })
	g.Go(func() error { return renewOwn(below, d, store, authority) })
	g.Go(func() error {
		defer stopBelow()
		return c.Run(eitherDone(ctx, below))
	})
	return end.after(memberError(g.Wait()))
}

// eitherDone returns a context that ends with the first of both.
func eitherDone(a, b context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(a)
	context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx
}

// apiHosts are the names and addresses in the API's certificate.
func apiHosts(d daemonDeps) []string {
	hosts := append(pki.DefaultHosts(d.cfg.Node.Name), d.cfg.Node.Advertise)
	hosts = append(hosts, d.cfg.API.Names...)
	if h, _, err := net.SplitHostPort(d.cfg.Listen.API); err == nil {
		if ip := net.ParseIP(h); h != "" && (ip == nil || !ip.IsUnspecified()) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// firstTokenFile holds the record of the token with which the cluster was set
// up; every controller stores it once, so that the first operator gets in.
const firstTokenFile = "first-token.json"

func firstTokens(dir string) ([]pki.APIToken, error) {
	b, err := os.ReadFile(filepath.Join(dir, firstTokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var t pki.APIToken
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, firstTokenFile), err)
	}
	return []pki.APIToken{t}, nil
}
