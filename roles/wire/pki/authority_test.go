package pki_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire/pki"
)

func TestAuthorities(t *testing.T) {
	dir, rootDir := t.TempDir(), t.TempDir()
	now := time.Now().Truncate(time.Second)
	if err := pki.Init(pki.InitOptions{Dir: dir, RootDir: rootDir, Cluster: "prod", Now: now}); err != nil {
		t.Fatal(err)
	}
	root := readCert(t, filepath.Join(rootDir, "root.crt"))
	if diff := cmp.Diff(root.Raw, readCert(t, filepath.Join(dir, "ca", "root.crt")).Raw); diff != "" {
		t.Error("the two copies of the root differ")
	}
	if pair := keyPair(t, rootDir, "root"); pair.Leaf.MaxPathLen != 1 {
		t.Errorf("path length of the root %d", pair.Leaf.MaxPathLen)
	}
	serials := map[string]bool{root.SerialNumber.String(): true}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for _, ca := range []string{"members", "api", "nodes"} {
		cert := readCert(t, filepath.Join(dir, "ca", ca+".crt"))
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", ca, err)
		}
		if !cert.IsCA || cert.MaxPathLen != 0 || !cert.MaxPathLenZero || !cert.PermittedDNSDomainsCritical {
			t.Errorf("%s: IsCA %t, path length %d, critical %t", ca, cert.IsCA, cert.MaxPathLen, cert.PermittedDNSDomainsCritical)
		}
		if !cert.NotBefore.Equal(now.Add(-5*time.Minute)) || !cert.NotAfter.Equal(now.Add(pki.CALifetime)) {
			t.Errorf("%s: valid %v to %v", ca, cert.NotBefore, cert.NotAfter)
		}
		if serials[cert.SerialNumber.String()] || cert.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: serial %v", ca, cert.SerialNumber)
		}
		serials[cert.SerialNumber.String()] = true
	}
}

// The name constraints of each CA hold for verifiers that know nothing of uac. A
// certificate that is forged with a CA's real key is refused when it exceeds them.
func TestNameConstraints(t *testing.T) {
	c := newCluster(t, "prod")
	dir := c.node(t, pki.Controller, "c1")
	tests := []struct {
		name   string
		ca     pki.CA
		change func(*x509.Certificate)
		ok     bool
	}{
		{"a member", pki.Members, func(*x509.Certificate) {}, true},
		{"a node", pki.Nodes, func(*x509.Certificate) {}, true},
		{"an api", pki.API, func(*x509.Certificate) {}, true},
		{"any host by api", pki.API, func(c *x509.Certificate) { c.DNSNames = []string{"uac", "x.example.com"} }, true},
		{"a host by members", pki.Members, func(c *x509.Certificate) { c.DNSNames = []string{"c1.example.com"} }, false},
		{"a host by nodes", pki.Nodes, func(c *x509.Certificate) { c.DNSNames = []string{"c1.example.com"} }, false},
		{"an address by members", pki.Members, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, false},
		{"an address by nodes", pki.Nodes, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("fd00::1")} }, false},
		{"a member by nodes", pki.Nodes, func(c *x509.Certificate) { c.DNSNames = []string{"member.uac"} }, false},
		{"a controller by members", pki.Members, func(c *x509.Certificate) { c.DNSNames = []string{"controller.uac"} }, false},
		{"a member by api", pki.API, func(c *x509.Certificate) { c.DNSNames = []string{"c1.member.uac"} }, false},
		{"a controller by api", pki.API, func(c *x509.Certificate) { c.DNSNames = []string{"controller.uac"} }, false},
		{"another cluster by nodes", pki.Nodes, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "uac", Host: "other", Path: "/agent/a"}} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from := readCert(t, filepath.Join(dir, map[pki.CA]string{pki.Members: "member", pki.API: "api", pki.Nodes: "node"}[tt.ca]+".crt"))
			leaf, err := x509.ParseCertificate(c.forge(t, tt.ca, from, tt.change).Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
			opts.Roots.AddCert(readCert(t, filepath.Join(dir, "ca", "root.crt")))
			opts.Intermediates.AddCert(readCert(t, filepath.Join(dir, "ca", string(tt.ca)+".crt")))
			_, err = leaf.Verify(opts)
			if (err == nil) != tt.ok {
				t.Errorf("verification: %v, want success = %t", err, tt.ok)
			}
		})
	}
}

func TestRenewAfter(t *testing.T) {
	c := newCluster(t, "prod")
	now := time.Now().Truncate(time.Second)
	for _, lifetime := range []time.Duration{pki.MinLifetime, 90 * time.Minute, pki.DefaultLifetime} {
		a := openAuthority(t, c.dir)
		a.Lifetime = lifetime
		a.Clock = func() time.Time { return now }
		cert := readCert(t, filepath.Join(issue(t, a, pki.Agent, "a1"), "node.crt"))
		if got, want := pki.RenewAfter(cert), now.Add(lifetime*2/3); !got.Equal(want) {
			t.Errorf("lifetime %v: RenewAfter = %v, want %v", lifetime, got, want)
		}
		if !cert.NotAfter.Equal(now.Add(lifetime)) {
			t.Errorf("lifetime %v: NotAfter = %v", lifetime, cert.NotAfter)
		}
	}
}

func TestLifetimeLimits(t *testing.T) {
	c := newCluster(t, "prod")
	a := openAuthority(t, c.dir)
	for _, lifetime := range []time.Duration{-time.Hour, time.Second} {
		a.Lifetime = lifetime
		if err := a.IssueNode(t.TempDir(), pki.NodeSpec{Role: pki.Agent, Name: "a1"}); err == nil {
			t.Errorf("lifetime %v was accepted", lifetime)
		}
	}
	a.Lifetime = 20 * pki.CALifetime
	leaf := readCert(t, filepath.Join(issue(t, a, pki.Agent, "a1"), "node.crt"))
	if ca := readCert(t, filepath.Join(c.dir, "ca", "nodes.crt")); !leaf.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("the leaf ends %v, its CA %v", leaf.NotAfter, ca.NotAfter)
	}
	a.Lifetime = 0
	a.Clock = func() time.Time { return time.Now().Add(pki.CALifetime) }
	if err := a.IssueNode(t.TempDir(), pki.NodeSpec{Role: pki.Agent, Name: "a1"}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("issued by an expired CA: %v", err)
	}
}

func TestOpenAuthorityRefuses(t *testing.T) {
	twin := newCluster(t, "prod")
	for name, spoil := range map[string]func(dir string) error{
		"a missing key":         func(dir string) error { return os.Remove(filepath.Join(dir, "ca/nodes.key")) },
		"a missing certificate": func(dir string) error { return os.Remove(filepath.Join(dir, "ca/api.crt")) },
		"a missing root":        func(dir string) error { return os.Remove(filepath.Join(dir, "ca/root.crt")) },
		"keys in the wrong place": func(dir string) error {
			return os.Rename(filepath.Join(dir, "ca/nodes.key"), filepath.Join(dir, "ca/api.key"))
		},
		"another cluster's root": func(dir string) error {
			return os.Rename(filepath.Join(twin.dir, "ca/root.crt"), filepath.Join(dir, "ca/root.crt"))
		},
		"a root that is none": func(dir string) error {
			return os.Rename(filepath.Join(dir, "c1/node.crt"), filepath.Join(dir, "ca/root.crt"))
		},
	} {
		c := newCluster(t, "prod")
		if err := c.IssueNode(filepath.Join(c.dir, "c1"), pki.NodeSpec{Role: pki.Controller, Name: "c1"}); err != nil {
			t.Fatal(err)
		}
		if err := spoil(c.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.OpenAuthority(c.dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// An Init that fails in the middle leaves nothing, least of all a root key.
func TestInitCleansUp(t *testing.T) {
	dir, rootDir := t.TempDir(), t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "ca")); err != nil {
		t.Fatal(err)
	}
	if err := pki.Init(pki.InitOptions{Dir: dir, RootDir: rootDir, Cluster: "prod"}); err == nil {
		t.Fatal("succeeded")
	}
	if files := tree(t, rootDir); len(files) != 0 {
		t.Errorf("left over: %v", files)
	}
}

// greedy is a request whose sender wishes for everything.
func greedy(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "c1", OrganizationalUnit: []string{"controller"}},
		DNSNames:    []string{"controller.uac", "c1.controller.uac", "member.uac", "c1.example.com"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		URIs:        []*url.URL{{Scheme: "uac", Host: "prod", Path: "/controller/c1"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA: true
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func nobodyKnown(pki.Identity) (bool, error) { return false, nil }

// What a request wishes for beside its key is ignored.
func TestEnrolIgnoresWishes(t *testing.T) {
	c := newCluster(t, "prod")
	key := p256(t)
	b, err := c.Enrol(pki.Requests{pki.Nodes: greedy(t, key)}, pki.Grant{Role: pki.Agent, Name: "a1"}, nobodyKnown)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "node.crt")
	if err := os.WriteFile(path, b.Certs[pki.Nodes], 0o600); err != nil {
		t.Fatal(err)
	}
	got := readCert(t, path)
	want := readCert(t, filepath.Join(c.node(t, pki.Agent, "a1"), "node.crt"))
	if !key.PublicKey.Equal(got.PublicKey) {
		t.Error("another public key")
	}
	summary := func(c *x509.Certificate) map[string]any {
		return map[string]any{
			"subject": c.Subject.String(), "dns": c.DNSNames, "ip": c.IPAddresses, "uris": len(c.URIs), "uri": c.URIs[0].String(),
			"ca": c.IsCA, "usage": c.KeyUsage, "ext usage": c.ExtKeyUsage, "extensions": len(c.Extensions), "email": c.EmailAddresses,
		}
	}
	if diff := cmp.Diff(summary(want), summary(got)); diff != "" {
		t.Errorf("an enrolled certificate differs from an issued one (-issued +enrolled):\n%s", diff)
	}
}

func TestEnrolRefuses(t *testing.T) {
	c := newCluster(t, "prod")
	good := greedy(t, p256(t))
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tampered := append([]byte{}, good...)
	tampered[len(tampered)-1] ^= 1 // in the signature
	agent := pki.Grant{Role: pki.Agent, Name: "a1"}
	tests := []struct {
		name  string
		reqs  pki.Requests
		grant pki.Grant
		known func(pki.Identity) (bool, error)
	}{
		{"no request", nil, agent, nobodyKnown},
		{"an empty request", pki.Requests{pki.Nodes: nil}, agent, nobodyKnown},
		{"garbage", pki.Requests{pki.Nodes: []byte("garbage")}, agent, nobodyKnown},
		{"a huge request", pki.Requests{pki.Nodes: make([]byte, 1<<20)}, agent, nobodyKnown},
		{"no proof of the key", pki.Requests{pki.Nodes: tampered}, agent, nobodyKnown},
		{"a P-384 key", pki.Requests{pki.Nodes: greedy(t, p384)}, agent, nobodyKnown},
		{"an RSA key", pki.Requests{pki.Nodes: greedy(t, rsaKey)}, agent, nobodyKnown},
		{"an Ed25519 key", pki.Requests{pki.Nodes: greedy(t, edKey)}, agent, nobodyKnown},
		{"an agent that wants a member certificate", pki.Requests{pki.Nodes: good, pki.Members: good}, agent, nobodyKnown},
		{"an agent that wants an API certificate", pki.Requests{pki.Nodes: good, pki.API: good}, agent, nobodyKnown},
		{"a request for the root", pki.Requests{pki.Nodes: good, pki.Root: good}, agent, nobodyKnown},
		{"a watch without request for its API", pki.Requests{pki.Nodes: good, pki.Members: good}, pki.Grant{Role: pki.Watch, Name: "w1"}, nobodyKnown},
		{"a controller", pki.Requests{pki.Nodes: good, pki.Members: good, pki.API: good}, pki.Grant{Role: pki.Controller, Name: "c1"}, nobodyKnown},
		{"an unknown role", pki.Requests{pki.Nodes: good}, pki.Grant{Role: "admin", Name: "a1"}, nobodyKnown},
		{"no name", pki.Requests{pki.Nodes: good}, pki.Grant{Role: pki.Agent}, nobodyKnown},
		{"a name with a slash", pki.Requests{pki.Nodes: good}, pki.Grant{Role: pki.Agent, Name: "a/1"}, nobodyKnown},
		{"an existing name", pki.Requests{pki.Nodes: good}, agent, func(id pki.Identity) (bool, error) { return id.String() == "uac://prod/agent/a1", nil }},
		{"a failed look-up", pki.Requests{pki.Nodes: good}, agent, func(pki.Identity) (bool, error) { return false, errLookup }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := c.Enrol(tt.reqs, tt.grant, tt.known)
			if err == nil || b.Certs != nil || b.CAs != nil {
				t.Errorf("Enrol = %v, %v", b, err)
			}
		})
	}
	agent.Replace = true
	if _, err := c.Enrol(pki.Requests{pki.Nodes: good}, agent, nil); err != nil {
		t.Errorf("with Replace: %v", err)
	}
}

func TestRenewRefuses(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	issued := time.Now().Add(-80 * 24 * time.Hour)
	renewal := func(dir string) pki.Renewal {
		due, err := load(t, dir).Renewals(time.Now())
		if err != nil || len(due) == 0 {
			t.Fatal(due, err)
		}
		return due[len(due)-1]
	}
	a1 := pki.Identity{Cluster: "prod", Role: pki.Agent, Name: "a1"}
	good := renewal(c.nodeAt(t, pki.Agent, "a1", issued))
	if _, err := c.Renew(a1, good); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*pki.Renewal)) pki.Renewal {
		r := good
		change(&r)
		return r
	}
	for name, tt := range map[string]struct {
		peer pki.Identity
		r    pki.Renewal
	}{
		"another agent":              {pki.Identity{Cluster: "prod", Role: pki.Agent, Name: "a2"}, good},
		"another role":               {pki.Identity{Cluster: "prod", Role: pki.Relay, Name: "a1"}, good},
		"another key":                {a1, with(func(r *pki.Renewal) { r.CSR = greedy(t, p256(t)) })},
		"another CA":                 {a1, with(func(r *pki.Renewal) { r.CA = pki.Members })},
		"the root":                   {a1, with(func(r *pki.Renewal) { r.CA = pki.Root })},
		"no request":                 {a1, with(func(r *pki.Renewal) { r.CSR = nil })},
		"garbage as certificate":     {a1, with(func(r *pki.Renewal) { r.Current = []byte("garbage") })},
		"the CA as certificate":      {a1, with(func(r *pki.Renewal) { r.Current = readCert(t, filepath.Join(c.dir, "ca/nodes.crt")).Raw })},
		"an expired certificate":     {a1, renewal(c.nodeAt(t, pki.Agent, "a1", time.Now().AddDate(-1, 0, 0)))},
		"the agent of a twin":        {a1, renewal(twin.nodeAt(t, pki.Agent, "a1", issued))},
		"somebody's certificate":     {a1, renewal(c.nodeAt(t, pki.Agent, "a2", issued))},
		"a certificate without name": {pki.Identity{}, good},
	} {
		if chain, err := c.Renew(tt.peer, tt.r); err == nil || chain != nil {
			t.Errorf("%s: renewed", name)
		}
	}
}

// Renewal keeps role, name and hosts.
func TestRenewKeepsNames(t *testing.T) {
	c := newCluster(t, "prod")
	a := openAuthority(t, c.dir)
	a.Clock = func() time.Time { return time.Now().Add(-80 * 24 * time.Hour) }
	dir := filepath.Join(t.TempDir(), "w1")
	if err := a.IssueNode(dir, pki.NodeSpec{Role: pki.Watch, Name: "w1", Hosts: []string{"w1.example.com", "10.0.0.3"}}); err != nil {
		t.Fatal(err)
	}
	s := load(t, dir)
	before, err := s.Certificates(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	due, err := s.Renewals(time.Now())
	if err != nil || len(due) != 3 {
		t.Fatal(due, err)
	}
	for _, r := range due {
		chain, err := c.Renew(s.Identity(), r)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Install(r.CA, chain); err != nil {
			t.Fatal(err)
		}
	}
	after, err := s.Certificates(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != 3 {
		t.Fatalf("%d certificates", len(after))
	}
	for i := range after {
		if after[i].Serial == before[i].Serial || !after[i].NotAfter.After(before[i].NotAfter) {
			t.Errorf("%s was not renewed", after[i].File)
		}
		for _, same := range [][2]any{
			{before[i].Identity, after[i].Identity}, {before[i].DNSNames, after[i].DNSNames},
			{before[i].Addresses, after[i].Addresses}, {before[i].Subject, after[i].Subject},
		} {
			if diff := cmp.Diff(same[0], same[1]); diff != "" {
				t.Errorf("%s (-before +after):\n%s", after[i].File, diff)
			}
		}
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "api.crt"), filepath.Join(dir, "api.key")); err != nil {
		t.Error(err)
	}
}

// An operator's renewal also revives what has expired, but nothing of others.
func TestRenewNodes(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	expired := c.nodeAt(t, pki.Relay, "r1", time.Now().AddDate(-1, 0, 0))
	if renewed, err := c.RenewNodes(false, expired); err != nil || len(renewed) != 2 {
		t.Errorf("expired: %v, %v", renewed, err)
	}
	if renewed, err := c.RenewNodes(true, expired); err != nil || len(renewed) != 2 {
		t.Errorf("all: %v, %v", renewed, err)
	}
	load(t, expired)
	foreign := twin.nodeAt(t, pki.Relay, "r1", time.Now().AddDate(-1, 0, 0))
	before := snapshot(t, foreign)
	if renewed, err := c.RenewNodes(true, foreign); err == nil {
		t.Errorf("a foreign node: %v", renewed)
	}
	if diff := cmp.Diff(before, snapshot(t, foreign)); diff != "" {
		t.Errorf("a refused renewal changed files:\n%s", diff)
	}
	// Of several certificates all can be renewed, or none is.
	good, open := c.nodeAt(t, pki.Relay, "r2", time.Now()), c.nodeAt(t, pki.Relay, "r3", time.Now())
	if err := os.Chmod(filepath.Join(open, "api.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	both := func() []map[string]string { return []map[string]string{snapshot(t, good), snapshot(t, open)} }
	was := both()
	if renewed, err := c.RenewNodes(true, good, open); err == nil || !strings.Contains(err.Error(), "api.key") || len(renewed) > 0 {
		t.Errorf("a key that others can read: %v, %v", renewed, err)
	}
	if diff := cmp.Diff(was, both()); diff != "" {
		t.Errorf("a refused renewal changed files:\n%s", diff)
	}
	if renewed, err := c.RenewNodes(true, t.TempDir()); err == nil {
		t.Errorf("an empty directory: %v", renewed)
	}
}

// A node that renews by itself goes as far as it can.
func TestRenewDue(t *testing.T) {
	c := newCluster(t, "prod")
	dir := c.nodeAt(t, pki.Controller, "c1", time.Now().AddDate(0, 0, -80))
	key := filepath.Join(dir, "api.key")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if renewed, err := c.RenewDue(dir); err == nil || !strings.Contains(err.Error(), "api.key") || len(renewed) != 2 {
		t.Errorf("one key can be read by others: %v, %v; want that, and the other two", renewed, err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if renewed, err := c.RenewDue(dir); err != nil || len(renewed) != 1 || filepath.Base(renewed[0].File) != "api.crt" {
		t.Errorf("then: %v, %v; want the one that was left", renewed, err)
	}
	if renewed, err := c.RenewDue(dir); err != nil || len(renewed) != 0 {
		t.Errorf("nothing is due: %v, %v", renewed, err)
	}
}
