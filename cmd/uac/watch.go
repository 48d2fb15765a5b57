package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller"
	"uac/roles/controller/api"
	"uac/roles/watch"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// runWatch runs a node with the role watch.
func runWatch(ctx context.Context, d daemonDeps) error {
	cfg := d.cfg
	store, err := loadPKI(d)
	if err != nil {
		return err
	}
	apiTLS, err := store.APIServer()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	apiListener, err := d.listen(ctx, "listen.api", cfg.Listen.API)
	if err != nil {
		return err
	}
	defer func() { _ = apiListener.Close() }()
	node, err := newMember(ctx, d, store)
	if err != nil {
		return err
	}
	defer node.dialer.close()
	ctx, end := newEnding(ctx, d)
	defer end.stop()

	url := apiURL(cfg, apiListener.Addr())
	w := watch.New(watch.Config{
		Host: node.host, IP: node.ip, API: url, Version: d.build.Version, BuildDate: d.build.Date,
	}, watch.Deps{Member: node.member, End: end.end, Log: d.log})
	self := func() api.Self {
		st := node.member.Status()
		n := api.Node{
			Name: cfg.Node.Name, Role: roles.RoleWatch, Mode: roles.ModeOffline, Host: node.host, IP: node.ip, API: url,
			Version: d.build.Version, Started: w.Started(), LastSeen: time.Now(),
			UptimeSeconds: int64(time.Since(w.Started()) / time.Second),
		}
		if s := w.Session(); s != nil && s.Check() == nil {
			n.Mode, n.Epoch = roles.ModePassive, s.Epoch()
		}
		return api.Self{Node: n, BuildID: d.build.Commit, BuildDate: d.build.Date, Reason: st.Reason}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := api.RequireAccess(pki.Viewer, func(_ context.Context, token string) (api.Actor, string, error) {
		return controller.Authenticate(node.member.View(), token)
	}, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	members := newMemberServer()
	wire.RegisterMemberServer(members, &wire.Forwarder{Name: cfg.Node.Name, Dial: node.dialer.dial})

	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	g, below := errgroup.WithContext(below)
	g.Go(func() error { return serveGRPC(below, node.links.Class(wire.ClassMember), members) })
	g.Go(func() error {
		return api.Serve(below, tls.NewListener(apiListener, apiTLS), noController(cfg.Node.Role, api.NewProbes(self, metrics)), d.log)
	})
	node.run(below, g)
	g.Go(func() error {
		return renewFrom(below, d, store, func(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
			var errs []error
			for _, m := range cfg.Members {
				if coord.Role(m.Role) != coord.RoleController {
					continue
				}
				client, err := node.dialer.dial(ctx, m.Name)
				if err == nil {
					var cert *wire.Certificate
					if cert, err = client.Renew(ctx, r); err == nil {
						return cert, nil
					}
				}
				errs = append(errs, err)
			}
			return nil, errors.Join(errs...)
		})
	})
	g.Go(func() error {
		defer stopBelow()
		return w.Run(eitherDone(ctx, below))
	})
	return end.after(memberError(g.Wait()))
}

// noController adds to what a node of another role serves an answer to calls of
// the API: that they are for another server. To a client with several servers a
// 404 would be the cluster's answer.
func noController(role roles.Role, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/") {
			rest.ServeHTTP(w, r)
			return
		}
		body, err := json.Marshal(problem{
			Type: api.ProblemNotReady, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("this node is a %s and no controller: it does not serve the API", role),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(body) // nobody is left to be told
	})
}
