package wiretest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// Cluster is the name of the cluster in all identities.
const Cluster = "test"

// CA is a certificate authority that lives for one test.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// NewCA makes an authority.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	ca := &CA{key: key, pool: x509.NewCertPool()}
	ca.cert = sign(tb, template, template, key, key)
	ca.pool.AddCert(ca.cert)
	return ca
}

// Certificate returns the certificate of the authority.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Issue returns a certificate for a node, good for both ends of a connection, with
// <role>.uac as its DNS name.
func (ca *CA) Issue(tb testing.TB, role, name string) tls.Certificate {
	tb.Helper()
	return ca.issue(tb, &url.URL{Scheme: "uac", Host: Cluster, Path: "/" + role + "/" + name}, role+".uac")
}

// IssueNameless returns a certificate without an identity.
func (ca *CA) IssueNameless(tb testing.TB) tls.Certificate {
	tb.Helper()
	return ca.issue(tb, nil, "nobody.uac")
}

func (ca *CA) issue(tb testing.TB, id *url.URL, host string) tls.Certificate {
	key := newKey(tb)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     []string{host},
	}
	if id != nil {
		template.URIs = []*url.URL{id}
	}
	cert := sign(tb, template, ca.cert, key, ca.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// Server returns the configuration of a server that trusts clients of this CA.
func (ca *CA) Server(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: ca.pool}
}

// Client returns the configuration of a client that trusts servers of this CA which
// carry the DNS name server. A client with a zero cert shows none.
func (ca *CA) Client(cert tls.Certificate, server string) *tls.Config {
	cfg := &tls.Config{RootCAs: ca.pool, ServerName: server}
	if cert.Certificate != nil {
		// Always show it, also to a server that lists other CAs: it is for the
		// server to refuse.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return cfg
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func sign(tb testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}
