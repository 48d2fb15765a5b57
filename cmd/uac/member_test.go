package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/config"
	"uac/roles"
	"uac/roles/wire/pki"
)

// A member binds all interfaces where the settings name no host, as they do by
// default.
func TestMemberBindsAllInterfaces(t *testing.T) {
	cas, dir := t.TempDir(), filepath.Join(t.TempDir(), "c1")
	if err := pki.Init(pki.InitOptions{Dir: cas, RootDir: t.TempDir(), Cluster: "test"}); err != nil {
		t.Fatal(err)
	}
	ip := loopback(t)
	if err := openCAs(t, cas).IssueNode(dir, pki.NodeSpec{Role: roles.RoleController, Name: "c1", Hosts: []string{ip}}); err != nil {
		t.Fatal(err)
	}
	raft := lowPort(t)
	cfg := config.Default()
	cfg.Node = config.Node{Role: roles.RoleController, Name: "c1", DataDir: t.TempDir(), Advertise: ip}
	cfg.PKI.Dir, cfg.Cluster.Name = dir, "test"
	cfg.Members = []config.Member{{Name: "c1", Role: roles.RoleController, Raft: ip + raft, Link: ip + ":7602"}}
	cfg.Listen = config.Listen{API: ip + ":7600", Raft: raft, Link: ip + ":7602"}

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- runController(ctx, daemonDeps{
			cfg: cfg, build: thisBuild(), endNow: func(bool) { t.Error("ended by an order") }, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	conf, err := pki.APIClient(filepath.Join(dir, "ca", "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	poll(t, time.Now().Add(30*time.Second), "the controller is ready", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the controller ended: %v", err)
		default:
		}
		resp, err := client.Get("https://" + ip + ":7600/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // only its status counts
		return resp.StatusCode == http.StatusOK
	})
}

// lowPort returns :PORT of a port that is free at all addresses. It is below those
// that the kernel gives to connections, which could take it meanwhile.
func lowPort(t *testing.T) string {
	t.Helper()
	for {
		addr := fmt.Sprintf(":%d", 10_000+rand.N(20_000))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
}

// The member takes a port that is closed under it for a failure: at the end of both
// the port is closed last, whoever began. Who serves it fails when it is closed, so the
// group has to know why by then.
func TestRunUnder(t *testing.T) {
	broken, lost := errors.New("broken"), errors.New("lost")
	for name, tc := range map[string]struct {
		lower, upper error // at once, if not nil
		end          bool  // the context ends
		want         error
	}{
		"both are ended":        {end: true},
		"the port is broken":    {lower: broken, want: broken},
		"the member has failed": {upper: lost, want: lost},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.end {
				cancel()
			}
			g, all := errgroup.WithContext(ctx)
			ended := make(chan struct{})
			runUnder(all, g, func(ctx context.Context) error {
				if tc.lower != nil {
					return tc.lower
				}
				<-ctx.Done()
				if all.Err() == nil {
					t.Error("the port was closed before the group knew why")
				}
				select {
				case <-ended:
				default:
					t.Error("the port was closed before the member had ended")
				}
				return nil
			}, func(ctx context.Context) error {
				defer close(ended)
				if tc.upper == nil {
					<-ctx.Done()
				}
				return tc.upper
			})
			if err := g.Wait(); !errors.Is(err, tc.want) {
				t.Errorf("the group ended with %v, want %v", err, tc.want)
			}
		})
	}
}
