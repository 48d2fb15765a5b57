package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/config"
	"uac/roles"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// joins answers machines that want to join with what answer returns.
type joins struct {
	wire.UnimplementedEnrollServer
	answer func() error
}

func (j joins) Enroll(context.Context, *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	return nil, j.answer()
}

// joinServer is a controller as far as a machine can tell that wants to join.
func joinServer(t *testing.T, dir string, answer func() error) string {
	t.Helper()
	conf, err := clientOf(t, dir).JoinServer()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, wire.Class{Name: wire.ClassJoin, TLS: conf, Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	server := wire.NewServer(wire.Options{})
	wire.RegisterEnrollServer(server, joins{answer: answer})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for _, f := range []func() error{
		func() error { return ln.Run(ctx) },
		func() error { return server.Serve(ln.Class(wire.ClassJoin)) },
	} {
		go func() {
			_ = f() // until the listener is closed
			done <- struct{}{}
		}()
	}
	t.Cleanup(func() {
		server.Stop()
		stop()
		<-done
		<-done
	})
	return ln.Addr().String()
}

// A machine that is refused for good says so at once and gives up; servers that
// do not answer, or cannot, do not keep it from asking on.
func TestEnrollIsRefused(t *testing.T) {
	cas := t.TempDir()
	if err := pki.Init(pki.InitOptions{Dir: cas, RootDir: t.TempDir(), Cluster: "test"}); err != nil {
		t.Fatal(err)
	}
	authority := openCAs(t, cas)
	dir := filepath.Join(t.TempDir(), "c1")
	if err := authority.IssueNode(dir, pki.NodeSpec{Role: roles.RoleController, Name: "c1", Hosts: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	token, _, err := pki.NewJoinToken(pki.JoinTokenSpec{
		Role: roles.RoleAgent, TTL: time.Hour, RootFingerprint: authority.RootFingerprint(), CreatedBy: "alice",
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dead := strings.TrimPrefix(deadAddress(t), "https://")
	for _, tt := range []struct {
		code codes.Code
		text string
	}{
		{codes.PermissionDenied, "the token has expired"},
		{codes.AlreadyExists, "there is an agent a1"},
		{codes.InvalidArgument, "no such role"},
	} {
		t.Run(tt.code.String(), func(t *testing.T) {
			var asked atomic.Int32
			addr := joinServer(t, dir, func() error {
				if asked.Add(1) == 1 {
					return status.Error(codes.Unavailable, "no trust")
				}
				return status.Error(tt.code, tt.text)
			})
			cfg := config.Default()
			cfg.Node = config.Node{Role: roles.RoleAgent, Name: "a1", DataDir: t.TempDir()}
			cfg.PKI = config.PKI{Dir: filepath.Join(t.TempDir(), "pki"), Join: token}
			cfg.Agent.Servers = []string{dead, addr}
			err := runAgent(t.Context(), daemonDeps{cfg: cfg, log: slog.New(slog.DiscardHandler), build: thisBuild()})
			want := "enrol at " + addr + ": refused: " + tt.text
			if err == nil || err.Error() != want || codeOf(err) != exitForbidden {
				t.Errorf("got code %d, %v; want %d, %s", codeOf(err), err, exitForbidden, want)
			}
			if n := asked.Load(); n != 2 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// A machine that nobody answers goes on until it is told to stop.
func TestEnrollIsNotAnswered(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer stop()
		for range 2 { // the second time it has tried again
			conn, err := ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		}
	}()
	_, err = askToEnroll(ctx, daemonDeps{log: slog.New(slog.DiscardHandler)}, []string{ln.Addr().String()}, "x", &wire.EnrollRequest{})
	if codeOf(err) != exitUnreachable || !strings.Contains(err.Error(), "enrol: no server answered") {
		t.Errorf("got code %d, %v", codeOf(err), err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
}
