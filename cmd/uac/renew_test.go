package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"uac/config"
	"uac/roles"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

func TestLookAgain(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	cert := func(due, end time.Duration) pki.Info {
		return pki.Info{RenewAfter: now.Add(due), NotAfter: now.Add(end)}
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name  string
		certs []pki.Info
		want  time.Duration
	}{
		{"nothing is known", nil, renewEvery},
		{"due in a month", []pki.Info{cert(30*day, 60*day)}, renewEvery},
		{"due in a minute", []pki.Info{cert(time.Minute, 2*time.Minute)}, time.Minute + time.Second},
		{"one of several", []pki.Info{cert(30*day, 60*day), cert(time.Minute, 2*time.Minute), cert(day, 2*day)}, time.Minute + time.Second},
		{"due, a month is left", []pki.Info{cert(-day, 30*day)}, renewEvery},
		{"due, a minute is left", []pki.Info{cert(-time.Minute, time.Minute)}, 6 * time.Second},
		{"due, a second is left", []pki.Info{cert(-time.Minute, time.Second)}, renewRetry},
		{"ended", []pki.Info{cert(-2*time.Minute, -time.Minute)}, renewEvery},
	} {
		if got := lookAgain(tt.certs, now); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// shortLived is for how long the certificates of TestRenewal are valid. They are
// made as long ago as makes them due a moment after the nodes have started.
const (
	shortLived = pki.MinLifetime
	dueIn      = 4 * time.Second
)

// TestRenewal runs a controller, a watch, a relay and an agent until their
// certificates have become due. All get new ones and use them for new connections, while they
// run.
func TestRenewal(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until certificates are due")
	}
	cas := t.TempDir()
	if err := pki.Init(pki.InitOptions{Dir: cas, RootDir: t.TempDir(), Cluster: "test", Now: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	short, long := openCAs(t, cas), openCAs(t, cas)
	short.Lifetime = shortLived
	made := time.Now().Add(dueIn - shortLived*2/3)
	short.Clock = func() time.Time { return made }
	ips := map[string]string{"c1": loopback(t), "w1": loopback(t), "r1": loopback(t)}
	issue := func(a *pki.Authority, role roles.Role, name string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), name)
		var hosts []string
		if ip, ok := ips[name]; ok {
			hosts = []string{ip}
		}
		if err := a.IssueNode(dir, pki.NodeSpec{Role: role, Name: name, Hosts: hosts}); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dirs := map[string]string{
		"c1": issue(short, roles.RoleController, "c1"),
		"w1": issue(short, roles.RoleWatch, "w1"),
		"r1": issue(short, roles.RoleRelay, "r1"),
		"a1": issue(short, roles.RoleAgent, "a1"), // which reaches c1 through r1 only
	}

	// A second controller as far as the agent can tell. It sees who comes, and
	// hangs up, so that the agent comes again and again.
	visits := agentVisits(t, issue(long, roles.RoleController, "c9"))

	cfg := func(name string, role roles.Role) config.Config {
		c := config.Default()
		c.Node = config.Node{Role: role, Name: name, DataDir: t.TempDir(), Advertise: ips[name]}
		c.PKI.Dir, c.Cluster.Name = dirs[name], "test"
		c.Members = []config.Member{
			{Name: "c1", Role: roles.RoleController, Address: ips["c1"]}, {Name: "w1", Role: roles.RoleWatch, Address: ips["w1"]},
		}
		c.Listen = config.Listen{API: ips[name] + ":7600", Raft: ips[name] + ":7601", Link: ips[name] + ":7602"}
		c.Agent.Servers = []string{ips["r1"] + ":7602", visits.addr}
		c.Relay.Servers = []string{ips["c1"] + ":7602"}
		c.Agent.ReconnectMax = 200 * time.Millisecond
		return c
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{}, 4)
	for name, run := range map[string]struct {
		role  roles.Role
		serve daemon
	}{"c1": {roles.RoleController, runController}, "w1": {roles.RoleWatch, runWatch}, "r1": {roles.RoleRelay, runRelay}, "a1": {roles.RoleAgent, runAgent}} {
		d := daemonDeps{
			cfg: cfg(name, run.role), build: thisBuild(), endNow: func(bool) { t.Error("ended by an order") },
			log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", name),
		}
		go func() {
			err := run.serve(ctx, d)
			if err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", name, err)
			}
			ended <- struct{}{}
		}()
	}
	defer func() {
		stop()
		for range 4 {
			<-ended
		}
	}()

	member, link := clientOf(t, issue(long, roles.RoleWatch, "w9")), clientOf(t, issue(long, roles.RoleAgent, "a9"))
	memberTLS := func() (*tls.Config, error) { return member.MemberClient("") }
	// Who serves which certificate where.
	served := []struct {
		node, file, addr, alpn string
		client                 func() (*tls.Config, error)
	}{
		{"c1", "node.crt", ips["c1"] + ":7602", wire.ClassLink, link.LinkClient},
		{"c1", "member.crt", ips["c1"] + ":7602", wire.ClassMember, memberTLS},
		{"c1", "member.crt", ips["c1"] + ":7601", "", memberTLS},
		{"w1", "member.crt", ips["w1"] + ":7602", wire.ClassMember, memberTLS},
		{"w1", "member.crt", ips["w1"] + ":7601", "", memberTLS},
		{"r1", "node.crt", ips["r1"] + ":7602", wire.ClassRelay, func() (*tls.Config, error) { return link.EntryClient(wire.ServerRole) }},
		{"r1", "api.crt", ips["r1"] + ":7600", "", func() (*tls.Config, error) { return pki.APIClient(filepath.Join(cas, "ca", "api.crt")) }},
		{"w1", "api.crt", ips["w1"] + ":7600", "", func() (*tls.Config, error) { return pki.APIClient(filepath.Join(cas, "ca", "api.crt")) }},
	}
	old := map[string]string{} // serial numbers
	for name, files := range map[string][]string{"c1": {"node.crt", "member.crt"}, "w1": {"node.crt", "member.crt", "api.crt"}, "r1": {"node.crt", "api.crt"}, "a1": {"node.crt"}} {
		for _, f := range files {
			cert := readCert(t, filepath.Join(dirs[name], f))
			if !pki.RenewAfter(cert).Before(time.Now().Add(shortLived)) {
				t.Fatalf("%s of %s is not due before %v", f, name, pki.RenewAfter(cert))
			}
			old[name+"/"+f] = cert.SerialNumber.String()
		}
	}
	end := made.Add(shortLived)
	for what, was := range old {
		file := filepath.Join(dirs[filepath.Dir(what)], filepath.Base(what))
		poll(t, end, what+" is renewed", func() bool { return readCert(t, file).SerialNumber.String() != was })
		if cert := readCert(t, file); !cert.NotAfter.After(end) {
			t.Errorf("%s was renewed until %v, which is no later than %v", what, cert.NotAfter, end)
		}
	}
	for _, s := range served {
		want := readCert(t, filepath.Join(dirs[s.node], s.file)).SerialNumber.String()
		if got := serialAt(t, s.addr, s.alpn, s.client); got != want {
			t.Errorf("%s at %s %s shows certificate %s, want the new one, %s", s.node, s.addr, s.alpn, got, want)
		}
	}
	want := readCert(t, filepath.Join(dirs["a1"], "node.crt")).SerialNumber.String()
	late := time.After(time.Until(end))
	for got := ""; got != want; {
		select {
		case got = <-visits.serials:
		case <-late:
			t.Fatalf("the agent came with certificate %s last, want the new one, %s", got, want)
		}
	}
}

func openCAs(t *testing.T, dir string) *pki.Authority {
	t.Helper()
	a, err := pki.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func clientOf(t *testing.T, dir string) *pki.Store {
	t.Helper()
	s, err := pki.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readCert(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s: no PEM", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// poll waits until cond holds, at most until end.
func poll(t *testing.T, end time.Time, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		<-tick.C
	}
}

// serialAt opens a connection and returns the serial number of the certificate
// that the server shows.
func serialAt(t *testing.T, addr, alpn string, client func() (*tls.Config, error)) string {
	t.Helper()
	conf, err := client()
	if err != nil {
		t.Fatal(err)
	}
	if alpn != "" {
		conf.NextProtos = []string{alpn}
	}
	d := tls.Dialer{Config: conf}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("dial %s %s: %v", addr, alpn, err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// visitors tells with which certificates agents open connections.
type visitors struct {
	addr    string
	serials chan string
}

func agentVisits(t *testing.T, dir string) visitors {
	t.Helper()
	conf, err := clientOf(t, dir).LinkServer()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := wire.Listen(wire.ListenConfig{Addr: "127.0.0.1:0"}, wire.Class{Name: wire.ClassLink, TLS: conf, Roles: []pki.Role{pki.Agent}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	v := visitors{addr: ln.Addr().String(), serials: make(chan string)}
	go func() {
		_ = ln.Run(ctx) // until stop
		done <- struct{}{}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := ln.Class(wire.ClassLink).Accept()
			if err != nil {
				return
			}
			serial := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
			_ = conn.Close()
			select {
			case v.serials <- serial:
			case <-ctx.Done():
				return
			default: // nobody asks yet
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		<-done
		<-done
	})
	return v
}

// loopback returns a loopback address with the default ports free.
func loopback(t *testing.T) string {
	t.Helper()
	for {
		ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(250), rand.N(256), 1+rand.N(250))
		free := true
		for _, port := range []string{"7600", "7601", "7602"} {
			ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
			if err != nil {
				free = false
				continue
			}
			_ = ln.Close()
		}
		if free {
			return ip
		}
	}
}
