package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/config"
	"uac/roles/agent"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// runAgent runs a node with the role agent.
func runAgent(ctx context.Context, d daemonDeps) error {
	cfg := d.cfg
	servers := withPort(cfg.Agent.Servers, config.PortLink)
	store, err := loadPKI(d)
	if errors.Is(err, fs.ErrNotExist) {
		if cfg.PKI.Join == "" {
			return usageError("%w; a new agent gets its certificate with --join TOKEN (uac token create --role agent)", err)
		}
		if err := enroll(ctx, d, servers); err != nil {
			return err
		}
		store, err = loadPKI(d)
	}
	if err != nil {
		return err
	}
	tls, err := store.LinkClient()
	if err != nil {
		return usageError("certificates: %w", err)
	}
	ac := agent.DefaultConfig()
	ac.Name, ac.Version = cfg.Node.Name, d.build.Version
	ac.DataDir = filepath.Join(cfg.Node.DataDir, "agent")
	ac.Servers, ac.Shuffle, ac.Labels = servers, cfg.Agent.Shuffle, cfg.Agent.Labels
	ac.ReconnectMin, ac.ReconnectMax, ac.KillGrace = cfg.Agent.ReconnectMin, cfg.Agent.ReconnectMax, cfg.Agent.KillGrace
	a, err := agent.New(ac, agent.Deps{TLS: tls, Log: d.log})
	if err != nil {
		return usageError("%w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error {
		return renewFrom(ctx, d, store, func(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
			var errs []error
			for _, addr := range servers {
				conn, err := wire.NewClient(wire.ClassLink, addr, tls, wire.Options{})
				if err != nil {
					return nil, err
				}
				cert, err := wire.NewLinkClient(conn).Renew(ctx, r)
				if err = errors.Join(err, conn.Close()); err == nil {
					return cert, nil
				}
				errs = append(errs, err)
			}
			return nil, errors.Join(errs...)
		})
	})
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// withPort adds the default port where none is given.
func withPort(addrs []string, port int) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			a = net.JoinHostPort(a, strconv.Itoa(port))
		}
		out[i] = a
	}
	return out
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
