package pki_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"uac/roles/wire/pki"
)

// cluster is a set of CAs that came into being two years ago, so that a test can
// issue certificates which have expired by now.
type cluster struct {
	dir string
	*pki.Authority
}

func newCluster(t testing.TB, name string) cluster {
	t.Helper()
	dir := t.TempDir()
	err := pki.Init(pki.InitOptions{Dir: dir, RootDir: t.TempDir(), Cluster: name, Now: time.Now().AddDate(-2, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return cluster{dir, openAuthority(t, dir)}
}

func openAuthority(t testing.TB, dir string) *pki.Authority {
	t.Helper()
	a, err := pki.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// node issues a directory and returns its path.
func (c cluster) node(t testing.TB, role pki.Role, name string) string {
	t.Helper()
	return issue(t, c.Authority, role, name)
}

// nodeAt is node with another time of issue.
func (c cluster) nodeAt(t testing.TB, role pki.Role, name string, at time.Time) string {
	t.Helper()
	a := openAuthority(t, c.dir)
	a.Clock = func() time.Time { return at }
	return issue(t, a, role, name)
}

func issue(t testing.TB, a *pki.Authority, role pki.Role, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := a.IssueNode(dir, pki.NodeSpec{Role: role, Name: name}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t testing.TB, dir string) *pki.Store {
	t.Helper()
	s, err := pki.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keyPair reads one certificate of a node directory without any of the package's
// checks.
func keyPair(t testing.TB, dir, name string) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func readCert(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s: no PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// forge signs a certificate with the real key of a CA, as only a faulty controller
// could, from a present certificate with a change; with ca "" it signs itself.
func (c cluster) forge(t testing.TB, ca pki.CA, from *x509.Certificate, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := *from
	template.SerialNumber = big.NewInt(4711)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	change(&template)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.PublicKey = key.Public()
	parent, signer, chain := &template, any(key), [][]byte(nil)
	if ca != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "ca", string(ca)+".crt"), filepath.Join(c.dir, "ca", string(ca)+".key"))
		if err != nil {
			t.Fatal(err)
		}
		parent, signer, chain = pair.Leaf, pair.PrivateKey, pair.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key}
}

// outcome is how a handshake over loopback ended at both ends.
type outcome struct {
	serverErr, clientErr error
	server, client       tls.ConnectionState
}

// shake lets a client and a server with these configurations shake hands and exchange
// a byte, so that a client also learns of a refusal that comes after its handshake.
func shake(t testing.TB, server, client *tls.Config) outcome {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			out.serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if out.serverErr = conn.HandshakeContext(ctx); out.serverErr == nil {
			out.server = conn.ConnectionState()
			_, out.serverErr = conn.Write([]byte{1})
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	if out.clientErr = conn.HandshakeContext(ctx); out.clientErr == nil {
		out.client = conn.ConnectionState()
		_, out.clientErr = conn.Read(make([]byte, 1))
	}
	raw.Close()
	<-done
	return out
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var errLookup = errors.New("lookup failed")
