package main

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/relay"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// runRelay runs a node with the role relay.
func runRelay(ctx context.Context, d daemonDeps) error {
	cfg := d.cfg
	store, err := loadOrEnroll(ctx, d, cfg.Relay.Servers)
	if err != nil {
		return err
	}
	apiTLS, err := store.APIServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	relayTLS, err := store.RelayServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	apiListener, err := d.listen(ctx, "listen.api", cfg.Listen.API)
	if err != nil {
		return err
	}
	defer func() { _ = apiListener.Close() }()
	links, err := wire.Listen(wire.ListenConfig{Addr: cfg.Listen.Link, Log: d.log},
		wire.Class{Name: wire.ClassRelay, TLS: relayTLS, Roles: []pki.Role{pki.Agent, pki.Relay}},
		wire.Class{Name: wire.ClassJoin, Through: true})
	if err != nil {
		return d.listenError("listen.link", cfg.Listen.Link, err)
	}
	defer func() { _ = links.Close() }()

	url := apiURL(cfg, apiListener.Addr())
	rc := relay.DefaultConfig()
	rc.Name, rc.Version, rc.API = cfg.Node.Name, d.build.Version, url
	rc.Host, rc.IP = whereAmI(ctx, cfg)
	rc.Servers, rc.MaxLinks = cfg.Relay.Servers, cfg.Relay.MaxLinks
	rc.BeatInterval = pingInterval
	r, err := relay.New(rc, relay.Deps{
		Asks: links.Class(wire.ClassRelay), Joins: links.Class(wire.ClassJoin),
		TLS: func() (wire.LinkTLS, error) { return linkTLS(store) }, Log: d.log,
	})
	if err != nil {
		return usageError("%w", err)
	}
	// Metrics need no login: a relay has nothing to look a token up in, and a token
	// that was shown to it would be known there.
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := r.RegisterMetrics(registry); err != nil {
		return err
	}
	self := func() api.Self {
		controllers := r.Controllers()
		s := api.Self{BuildID: d.build.Commit, BuildDate: d.build.Date, Node: api.Node{
			Name: cfg.Node.Name, Role: roles.RoleRelay, Mode: roles.ModePassive, Host: rc.Host, IP: rc.IP, API: url,
			Version: d.build.Version, Started: r.Started(), LastSeen: time.Now(),
			UptimeSeconds: int64(time.Since(r.Started()) / time.Second),
		}}
		if len(controllers) == 0 {
			s.Node.Mode, s.Reason = roles.ModeOffline, "no controller has been reached"
		}
		return s
	}
	probes := api.NewProbes(self, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return links.Run(ctx) })
	g.Go(func() error { return r.Run(ctx) })
	g.Go(func() error {
		return api.Serve(ctx, tls.NewListener(apiListener, apiTLS), noController(cfg.Node.Role, probes), d.log)
	})
	g.Go(func() error { return renewFrom(ctx, d, store, r.Renew) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
