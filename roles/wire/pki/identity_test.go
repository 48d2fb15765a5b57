package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uac/roles/wire/pki"
)

func TestValidateCluster(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"prod": true, "prod-2": true, "1": true, long: true,
		"": false, "a.b": false, "a_b": false, "Prod": false, "-": false, "a-": false, "prod:1": false, "a/b": false, "ä": false, long + "a": false,
	} {
		if err := pki.ValidateCluster(name); (err == nil) != want {
			t.Errorf("ValidateCluster(%q) = %v, want valid = %t", name, err, want)
		}
	}
}

func TestParseIdentity(t *testing.T) {
	for uri, want := range map[string]string{
		"uac://prod/controller/c1":         "uac://prod/controller/c1",
		"uac://prod/agent/web.example.com": "uac://prod/agent/web.example.com",
		"https://prod/controller/c1":       "",
		"UAC://PROD/controller/c1":         "",
		"uac://prod/admin/c1":              "",
		"uac://prod/controller":            "",
		"uac://prod/controller/":           "",
		"uac://prod/controller/c1/":        "",
		"uac://prod/controller/c1/c2":      "",
		"uac://prod//controller/c1":        "",
		"uac:prod/controller/c1":           "",
		"uac:///controller/c1":             "",
		"uac://u@prod/controller/c1":       "",
		"uac://prod:1/controller/c1":       "",
		"uac://prod/controller/c1?x=1":     "",
		"uac://prod/controller/c1?":        "",
		"uac://prod/controller/c1#x":       "",
		"uac://prod/controller/%631":       "",
		"uac://prod/controller/c1%2f":      "",
		"uac://prod/controller/C1":         "",
		"uac://prod/../prod/controller/c1": "",
	} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.ParseIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if want == "" {
			if err == nil {
				t.Errorf("%s: parsed as %+v", uri, id)
			}
			continue
		}
		if err != nil || id.String() != want {
			t.Errorf("%s: %+v, %v", uri, id, err)
		}
	}
	one := &url.URL{Scheme: "uac", Host: "prod", Path: "/agent/a1"}
	for _, uris := range [][]*url.URL{nil, {one, one}} {
		if id, err := pki.ParseIdentity(&x509.Certificate{URIs: uris}); err == nil {
			t.Errorf("%d names: %+v", len(uris), id)
		}
	}
	// A certificate that was shown but not verified identifies nobody.
	cert := &x509.Certificate{URIs: []*url.URL{one}}
	if id, err := pki.PeerIdentity(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); err == nil {
		t.Errorf("unverified: %+v", id)
	}
}

// An identity that parses is valid and is spelled in the one canonical way.
func FuzzParseIdentity(f *testing.F) {
	for _, seed := range []string{"uac://prod/controller/c1", "uac://prod/agent/web.example.com", "uac://prod:1/agent/a?x#y", "uac://p/agent/%61"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		u, err := url.Parse(uri)
		if err != nil {
			return
		}
		id, err := pki.ParseIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if err != nil {
			return
		}
		if err := id.Validate(); err != nil {
			t.Errorf("%q parses as the invalid %+v: %v", uri, id, err)
		}
		// Only the scheme may differ: url.Parse lower-cases it.
		if got := id.String(); got[3:] != uri[3:] || !strings.EqualFold(got[:3], uri[:3]) {
			t.Errorf("%q parses as %s", uri, got)
		}
	})
}

// Nobody gets a certificate for a key that he has not proved to have: the fuzzer has
// no private key but the one of the seed request.
func FuzzEnrol(f *testing.F) {
	c := newCluster(f, "prod")
	// All processes of a fuzzer must have the same key, so it is 42.
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 42))
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "node.key"), text, 0o600); err != nil {
		f.Fatal(err)
	}
	e, err := pki.NewEnrolment(dir, pki.Agent, "a1", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	reqs, err := e.Requests()
	if err != nil {
		f.Fatal(err)
	}
	key, err := reqs.Key()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reqs[pki.Nodes])
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, csr []byte) {
		reqs := pki.Requests{pki.Nodes: csr}
		if _, err := c.Enrol(reqs, pki.Grant{Role: pki.Agent, Name: "a1"}, nobodyKnown); err != nil {
			return
		}
		if got, err := reqs.Key(); err != nil || got != key {
			t.Errorf("signed %x for key %s, %v", csr, got, err)
		}
	})
}
