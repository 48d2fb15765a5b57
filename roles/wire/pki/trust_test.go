package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"uac/roles/wire/pki"
)

// party is someone with a certificate who talks to a listener or poses as a server.
type party struct {
	name string
	cert *tls.Certificate // nil: none
}

// parties returns everybody who must be told apart: the right ones and all kinds of
// wrong ones. Their names are the keys of the tables below.
func parties(t *testing.T, c cluster) []party {
	t.Helper()
	now := time.Now()
	past, future := now.AddDate(-1, 0, 0), now.AddDate(0, 0, 1)
	twin, other := newCluster(t, "prod"), newCluster(t, "other") // twin: same name, other keys
	pair := func(dir, file string) *tls.Certificate {
		cert := keyPair(t, dir, file)
		return &cert
	}
	c1, w1 := c.node(t, pki.Controller, "c1"), c.node(t, pki.Watch, "w1")
	r1, a1 := c.node(t, pki.Relay, "r1"), c.node(t, pki.Agent, "a1")
	c1past, c1future := c.nodeAt(t, pki.Controller, "c1", past), c.nodeAt(t, pki.Controller, "c1", future)
	a1past, a1future := c.nodeAt(t, pki.Agent, "a1", past), c.nodeAt(t, pki.Agent, "a1", future)
	c1twin, a1twin := twin.node(t, pki.Controller, "c1"), twin.node(t, pki.Agent, "a1")
	c1other, a1other := other.node(t, pki.Controller, "c1"), other.node(t, pki.Agent, "a1")

	member, node, agent := readCert(t, filepath.Join(c1, "member.crt")), readCert(t, filepath.Join(c1, "node.crt")), readCert(t, filepath.Join(a1, "node.crt"))
	api := readCert(t, filepath.Join(c1, "api.crt"))
	forge := func(ca pki.CA, from *x509.Certificate, change func(*x509.Certificate)) *tls.Certificate {
		cert := c.forge(t, ca, from, change)
		return &cert
	}
	uri := func(s string) func(*x509.Certificate) {
		return func(cert *x509.Certificate) {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = []*url.URL{u}
		}
	}
	unchanged := func(*x509.Certificate) {}
	return []party{
		{"nobody", nil},
		{"controller, member", pair(c1, "member")},
		{"controller, node", pair(c1, "node")},
		{"controller, api", pair(c1, "api")},
		{"watch, member", pair(w1, "member")},
		{"watch, node", pair(w1, "node")},
		{"watch, api", pair(w1, "api")},
		{"relay, node", pair(r1, "node")},
		{"relay, api", pair(r1, "api")},
		{"agent, node", pair(a1, "node")},

		{"expired member", pair(c1past, "member")},
		{"expired controller, node", pair(c1past, "node")},
		{"expired controller, api", pair(c1past, "api")},
		{"expired agent", pair(a1past, "node")},
		{"member of tomorrow", pair(c1future, "member")},
		{"controller of tomorrow, node", pair(c1future, "node")},
		{"controller of tomorrow, api", pair(c1future, "api")},
		{"agent of tomorrow", pair(a1future, "node")},

		{"member of a twin cluster", pair(c1twin, "member")},
		{"controller of a twin cluster, node", pair(c1twin, "node")},
		{"controller of a twin cluster, api", pair(c1twin, "api")},
		{"agent of a twin cluster", pair(a1twin, "node")},
		{"member of another cluster", pair(c1other, "member")},
		{"controller of another cluster, node", pair(c1other, "node")},
		{"controller of another cluster, api", pair(c1other, "api")},
		{"agent of another cluster", pair(a1other, "node")},

		{"self-signed member", forge("", member, unchanged)},
		{"self-signed controller, node", forge("", node, unchanged)},
		{"self-signed controller, api", forge("", api, unchanged)},
		{"self-signed agent", forge("", agent, unchanged)},

		// What a controller never signs, signed with the real keys of the CAs: the
		// verifiers do not rely on it.
		{"members CA, role agent", forge(pki.Members, member, uri("uac://prod/agent/c1"))},
		{"members CA, no identity", forge(pki.Members, member, func(c *x509.Certificate) { c.URIs = nil })},
		{"members CA, other cluster", forge(pki.Members, member, uri("uac://other/controller/c1"))},
		{"members CA, node's names", forge(pki.Members, node, unchanged)},
		{"nodes CA, role controller", forge(pki.Nodes, agent, uri("uac://prod/controller/a1"))},
		{"nodes CA, role watch", forge(pki.Nodes, agent, uri("uac://prod/watch/a1"))},
		{"nodes CA, no identity", forge(pki.Nodes, agent, func(c *x509.Certificate) { c.URIs = nil })},
		{"nodes CA, other cluster", forge(pki.Nodes, agent, uri("uac://other/agent/a1"))},
		{"nodes CA, agent with names of a controller", forge(pki.Nodes, node, uri("uac://prod/agent/a1"))},
		{"nodes CA, relay with names of a controller", forge(pki.Nodes, node, uri("uac://prod/relay/r1"))},
		{"nodes CA, member's names", forge(pki.Nodes, member, unchanged)},
		{"api CA, controller's node names", forge(pki.API, node, unchanged)},
		{"api CA, member's names", forge(pki.API, member, unchanged)},
	}
}

func permissiveClient(p party) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true}
	if p.cert != nil {
		// Present it whatever CAs the server says it accepts.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.cert, nil }
	}
	return c
}

// Who may connect to what. Nothing but this table gets in: everybody is tried
// everywhere with a client that presents what it has and trusts any server.
func TestListeners(t *testing.T) {
	c := newCluster(t, "prod")
	s := load(t, c.node(t, pki.Controller, "c2"))
	accepted := map[string]map[string]string{ // listener -> party -> identity
		"member": {"controller, member": "uac://prod/controller/c1", "watch, member": "uac://prod/watch/w1"},
		"link": {
			"relay, node": "uac://prod/relay/r1",
			"agent, node": "uac://prod/agent/a1",
			// A client is whom its identity says; its DNS names count for nothing.
			"nodes CA, agent with names of a controller": "uac://prod/agent/a1",
			"nodes CA, relay with names of a controller": "uac://prod/relay/r1",
		},
	}
	servers := map[string]*tls.Config{
		"member": must[*tls.Config](t)(s.MemberServer()),
		"link":   must[*tls.Config](t)(s.LinkServer()),
	}
	for _, p := range parties(t, c) {
		for name, server := range servers {
			t.Run(name+"/"+p.name, func(t *testing.T) {
				want, ok := accepted[name][p.name]
				delete(accepted[name], p.name)
				out := shake(t, server, permissiveClient(p))
				if !ok {
					if out.serverErr == nil || out.clientErr == nil {
						t.Errorf("accepted (server: %v, client: %v)", out.serverErr, out.clientErr)
					}
					return
				}
				if out.serverErr != nil || out.clientErr != nil {
					t.Fatalf("refused: server: %v, client: %v", out.serverErr, out.clientErr)
				}
				id, err := pki.PeerIdentity(out.server)
				if err != nil || id.String() != want {
					t.Errorf("identity %s, %v; want %s", id, err, want)
				}
			})
		}
		// These authenticate by token: whatever certificate is presented counts for
		// nothing, and gives no identity.
		for name, server := range map[string]*tls.Config{
			"join": must[*tls.Config](t)(s.JoinServer()),
			"api":  must[*tls.Config](t)(s.APIServer()),
		} {
			t.Run(name+"/"+p.name, func(t *testing.T) {
				out := shake(t, server, permissiveClient(p))
				if out.serverErr != nil || out.clientErr != nil {
					t.Fatalf("refused: server: %v, client: %v", out.serverErr, out.clientErr)
				}
				if id, err := pki.PeerIdentity(out.server); err == nil {
					t.Errorf("a certificate counted: %s", id)
				}
			})
		}
	}
	for name, left := range accepted {
		for p := range left {
			t.Errorf("%s: party %q was never tried", name, p)
		}
	}
}

// Whom a client takes for its server: everybody poses as a server that accepts any
// client.
func TestClients(t *testing.T) {
	c := newCluster(t, "prod")
	controller, agent := load(t, c.node(t, pki.Controller, "c2")), load(t, c.node(t, pki.Agent, "a2"))
	api := must[*tls.Config](t)(pki.APIClient(controller.CAFile(pki.API)))
	apiByRoot := must[*tls.Config](t)(pki.APIClient(controller.CAFile(pki.Root)))
	for _, a := range []*tls.Config{api, apiByRoot} {
		a.ServerName = "c1"
	}
	entry := func(role pki.Role) *tls.Config {
		return must[*tls.Config](t)(agent.EntryClient(func(string) pki.Role { return role }))
	}
	clients := map[string]struct {
		config *tls.Config
		want   map[string]bool
	}{
		"any member":             {must[*tls.Config](t)(controller.MemberClient("")), map[string]bool{"controller, member": true, "watch, member": true}},
		"member c1":              {must[*tls.Config](t)(controller.MemberClient("c1")), map[string]bool{"controller, member": true}},
		"member c9":              {must[*tls.Config](t)(controller.MemberClient("c9")), nil},
		"link":                   {must[*tls.Config](t)(agent.LinkClient()), map[string]bool{"controller, node": true}},
		"entry, to a controller": {entry("controller"), map[string]bool{"controller, node": true}},
		"entry, to a relay":      {entry("relay"), map[string]bool{"relay, node": true}},
		"entry, to an agent":     {entry("agent"), nil},
		"entry, to nobody":       {entry(""), nil},
		"join":                   {pki.JoinClient(c.RootFingerprint()), map[string]bool{"controller, node": true}},
		"api":                    {api, map[string]bool{"controller, api": true}},
		"api by root":            {apiByRoot, map[string]bool{"controller, api": true}},
	}
	root := readCert(t, controller.CAFile(pki.Root))
	for _, p := range parties(t, c) {
		if p.cert == nil {
			continue
		}
		withRoot := *p.cert
		withRoot.Certificate = append(append([][]byte{}, p.cert.Certificate...), root.Raw)
		server := &tls.Config{Certificates: []tls.Certificate{withRoot}, ClientAuth: tls.RequestClientCert}
		for name, client := range clients {
			t.Run(name+"/"+p.name, func(t *testing.T) {
				out := shake(t, server, client.config)
				if got := out.clientErr == nil; got != client.want[p.name] {
					t.Errorf("trusted = %t (%v), want %t", got, out.clientErr, client.want[p.name])
				}
				delete(client.want, p.name)
			})
		}
	}
	for name, client := range clients {
		for p := range client.want {
			t.Errorf("%s: party %q was never tried", name, p)
		}
	}
}

// The configurations of both ends work with each other.
func TestBothEnds(t *testing.T) {
	c := newCluster(t, "prod")
	c1, w1 := load(t, c.node(t, pki.Controller, "c1")), load(t, c.node(t, pki.Watch, "w1"))
	r1, a1 := load(t, c.node(t, pki.Relay, "r1")), load(t, c.node(t, pki.Agent, "a1.example.com"))
	conf := must[*tls.Config](t)
	apiClient := conf(pki.APIClient(c1.CAFile(pki.API)))
	apiClient.ServerName = "127.0.0.1"
	tests := []struct {
		name           string
		server, client *tls.Config
		serverSees     string
		clientSees     string
	}{
		{"controller to watch", conf(w1.MemberServer()), conf(c1.MemberClient("w1")), "uac://prod/controller/c1", "uac://prod/watch/w1"},
		{"watch to controller", conf(c1.MemberServer()), conf(w1.MemberClient("c1")), "uac://prod/watch/w1", "uac://prod/controller/c1"},
		{"relay to controller", conf(c1.LinkServer()), conf(r1.LinkClient()), "uac://prod/relay/r1", "uac://prod/controller/c1"},
		{"agent to controller", conf(c1.LinkServer()), conf(a1.LinkClient()), "uac://prod/agent/a1.example.com", "uac://prod/controller/c1"},
		{"agent to relay", conf(r1.RelayServer()), conf(a1.EntryClient(func(string) pki.Role { return pki.Relay })), "uac://prod/agent/a1.example.com", ""},
		{"newcomer to controller", conf(c1.JoinServer()), pki.JoinClient(c1.RootFingerprint()), "", ""},
		{"person to controller", conf(c1.APIServer()), apiClient, "", "uac://prod/controller/c1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := shake(t, tt.server, tt.client)
			if out.serverErr != nil || out.clientErr != nil {
				t.Fatalf("server: %v, client: %v", out.serverErr, out.clientErr)
			}
			for _, side := range []struct {
				cs   tls.ConnectionState
				want string
			}{{out.server, tt.serverSees}, {out.client, tt.clientSees}} {
				id, err := pki.PeerIdentity(side.cs)
				if side.want == "" {
					if err == nil {
						t.Errorf("identity %s, want none", id)
					}
					continue
				}
				if err != nil || id.String() != side.want {
					t.Errorf("identity %s, %v; want %s", id, err, side.want)
				}
			}
			if v := out.server.Version; v != tls.VersionTLS13 {
				t.Errorf("version %s", tls.VersionName(v))
			}
		})
		t.Run(tt.name+" with TLS 1.2", func(t *testing.T) {
			for _, side := range []string{"server", "client"} {
				server, client := tt.server.Clone(), tt.client.Clone()
				c := map[string]*tls.Config{"server": server, "client": client}[side]
				c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
				if out := shake(t, server, client); out.serverErr == nil || out.clientErr == nil {
					t.Errorf("a %s with TLS 1.2 was accepted", side)
				}
			}
		})
	}
}

// A role does not get the configurations that are not its own.
func TestRolesWithoutCertificate(t *testing.T) {
	c := newCluster(t, "prod")
	w1, r1, a1 := load(t, c.node(t, pki.Watch, "w1")), load(t, c.node(t, pki.Relay, "r1")), load(t, c.node(t, pki.Agent, "a1"))
	for name, f := range map[string]func() (*tls.Config, error){
		"watch, link":    w1.LinkServer,
		"watch, join":    w1.JoinServer,
		"relay, member":  r1.MemberServer,
		"relay, link":    r1.LinkServer,
		"relay, join":    r1.JoinServer,
		"watch, relay":   w1.RelayServer,
		"agent, relay":   a1.RelayServer,
		"agent, member":  a1.MemberServer,
		"agent, to peer": func() (*tls.Config, error) { return a1.MemberClient("c1") },
		"agent, link":    a1.LinkServer,
		"agent, join":    a1.JoinServer,
		"agent, api":     a1.APIServer,
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: got a configuration", name)
		}
	}
	if _, err := a1.PeerFiles(); err == nil {
		t.Error("an agent got the files of a member")
	}
}

// A join token's fingerprint binds to one cluster, even one of the same name.
func TestJoinClientOtherRoot(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	server := must[*tls.Config](t)(load(t, c.node(t, pki.Controller, "c1")).JoinServer())
	out := shake(t, server, pki.JoinClient(twin.RootFingerprint()))
	if out.clientErr == nil {
		t.Error("a controller of another cluster was trusted")
	}
	if out := shake(t, server, pki.JoinClient("")); out.clientErr == nil {
		t.Error("an empty fingerprint trusted somebody")
	}
}
