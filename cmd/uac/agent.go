package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/roles/agent"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// runAgent runs a node with the role agent.
func runAgent(ctx context.Context, d daemonDeps) error {
	cfg := d.cfg
	if err := keepInherited(); err != nil {
		d.log.Warn("steps inherit what this agent was started with", "error", err)
	}
	servers := cfg.Agent.Servers
	store, err := loadOrEnroll(ctx, d, servers)
	if err != nil {
		return err
	}
	dial := func(ctx context.Context, server string, not []string) (*wire.Link, error) {
		conf, err := linkTLS(store)
		if err != nil {
			return nil, err
		}
		return wire.DialLink(ctx, server, conf, not)
	}
	ac := agent.DefaultConfig()
	ac.Name, ac.Version = cfg.Node.Name, d.build.Version
	ac.DataDir = filepath.Join(cfg.Node.DataDir, "agent")
	ac.Servers, ac.Shuffle, ac.Labels = servers, cfg.Agent.Shuffle, cfg.Agent.Labels
	ac.ReconnectMin, ac.ReconnectMax, ac.KillGrace = cfg.Agent.ReconnectMin, cfg.Agent.ReconnectMax, cfg.Agent.KillGrace
	ac.SpoolLimit, ac.SpoolTotal = cfg.Agent.SpoolLimit, cfg.Agent.SpoolTotal
	a, err := agent.New(ac, agent.Deps{Dial: dial, Log: d.log, Point: points[agent.Point](d)})
	if err != nil {
		return usageError("%w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error {
		return renewFrom(ctx, d, store, func(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
			var errs []error
			for _, addr := range servers {
				cert, err := renewAt(ctx, dial, addr, r)
				if err == nil {
					return cert, nil
				}
				errs = append(errs, err)
			}
			return nil, errors.Join(errs...)
		})
	})
	return agentError(g.Wait())
}

// agentError gives errors of an agent their exit code: what another start does not
// mend is a thing for an operator.
func agentError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, agent.ErrDamaged), errors.Is(err, agent.ErrInUse):
		return usageError("%w", err)
	}
	return err
}

// renewAt asks the controller at one address, or one behind the relay there.
func renewAt(ctx context.Context, dial func(context.Context, string, []string) (*wire.Link, error), addr string, r *wire.RenewRequest) (*wire.Certificate, error) {
	link, err := dial(ctx, addr, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = link.Close() }() // the client may not have taken it
	conn, err := link.Client(wire.Options{})
	if err != nil {
		return nil, err
	}
	cert, err := wire.NewLinkClient(conn).Renew(ctx, r)
	return cert, errors.Join(err, conn.Close())
}

// linkTLS is what authenticates an agent or relay to controllers and relays now.
func linkTLS(store *pki.Store) (wire.LinkTLS, error) {
	entry, err1 := store.EntryClient(wire.ServerRole)
	controller, err2 := store.LinkClient()
	return wire.LinkTLS{Entry: entry, Controller: controller}, errors.Join(err1, err2)
}

// loadOrEnroll loads the certificates of an agent or relay, or gets it its first ones.
func loadOrEnroll(ctx context.Context, d daemonDeps, servers []string) (*pki.Store, error) {
	store, err := loadPKI(d)
	if !errors.Is(err, fs.ErrNotExist) {
		return store, err
	}
	if d.cfg.PKI.Join == "" {
		return nil, usageError("%w; a new %[2]s gets its certificate with --join TOKEN (uac token create --role %[2]s)", err, d.cfg.Node.Role)
	}
	if err := enroll(ctx, d, servers); err != nil {
		return nil, err
	}
	return loadPKI(d)
}

// enrollPatience is how long a new node tries to reach a controller.
const enrollPatience = 2 * time.Minute

// enroll gets this node its first certificates for a join token.
func enroll(ctx context.Context, d daemonDeps, servers []string) error {
	_, root, err := pki.ParseJoinToken(d.cfg.PKI.Join)
	if err != nil {
		return usageError("pki.join: %w", err)
	}
	e, err := pki.NewEnrolment(d.cfg.PKI.Dir, d.cfg.Node.Role, d.cfg.Node.Name, time.Now())
	if err != nil {
		return usageError("certificates: %w", err)
	}
	reqs, err := e.Requests()
	if err != nil {
		return err
	}
	ask := &wire.EnrollRequest{Token: d.cfg.PKI.Join, Role: string(d.cfg.Node.Role), Name: d.cfg.Node.Name, Csr: reqs[pki.Nodes]}
	var more []pki.CA
	for ca, csr := range reqs {
		if ca != pki.Nodes {
			ask.More = append(ask.More, &wire.RenewRequest{Ca: string(ca), Csr: csr})
			more = append(more, ca)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, enrollPatience)
	defer cancel()
	resp, err := askToEnroll(ctx, d, servers, root, ask)
	if err != nil {
		return err
	}
	b := pki.Bundle{CAs: map[pki.CA][]byte{}, Certs: map[pki.CA][]byte{pki.Nodes: resp.GetCertificate().GetChain()}}
	for name, pem := range resp.GetCas() {
		b.CAs[pki.CA(name)] = pem
	}
	if len(resp.GetMore()) != len(more) {
		return fmt.Errorf("enrol: asked for %d further certificates, got %d", len(more), len(resp.GetMore()))
	}
	for i, ca := range more {
		b.Certs[ca] = resp.GetMore()[i].GetChain()
	}
	if err := e.Install(b, root); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	d.log.Info("enrolled", "cluster", resp.GetCluster())
	return nil
}
