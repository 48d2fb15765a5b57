package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"uac/codestation/durable"
)

// Store is the loaded PKI directory of one node. Its TLS configurations follow the
// files: a renewed certificate is used from the next handshake on. Safe for
// concurrent use.
type Store struct {
	dir    string
	id     Identity
	root   *x509.Certificate
	leaves map[CA]*cached[*leaf]
	trust  map[CA]*cached[*trust]
}

// leaf is a certificate of this node with its key, ready for TLS.
type leaf struct {
	tls  *tls.Certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// trust is what one CA file says: usually one certificate, several while a CA is
// being replaced.
type trust struct {
	certs []*x509.Certificate
	pool  *x509.CertPool
}

// Load reads the PKI directory of a node and checks it: all that the node's role
// needs is there, keys are not open to others, certificates belong to the keys, to
// one identity and to the CAs, and the CAs to the root. Validity in time is not
// checked: a node whose certificate has expired has work of its own to do and says
// so by itself; see [Store.Certificates]. A controller's API certificate may be
// absent until [Authority.EnsureAPI] has issued it. A nil log discards.
func Load(dir string, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{dir: dir, leaves: map[CA]*cached[*leaf]{}, trust: map[CA]*cached[*trust]{}}
	roots, err := readCerts(caCertFile(dir, Root))
	if err != nil {
		return nil, err
	}
	s.root = roots[0]
	node, err := readCerts(leafCertFile(dir, Nodes))
	if err != nil {
		return nil, err
	}
	if s.id, err = ParseIdentity(node[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", leafCertFile(dir, Nodes), err)
	}
	if s.id.Role != Controller {
		if err := noCAKeys(dir); err != nil {
			return nil, err
		}
	}
	for _, ca := range CAsOf(s.id.Role) {
		s.trust[ca] = &cached[*trust]{
			files: []string{caCertFile(dir, ca)},
			read:  func() (*trust, error) { return s.readTrust(ca) },
			log:   log,
		}
		s.leaves[ca] = &cached[*leaf]{
			files: []string{leafCertFile(dir, ca), leafKeyFile(dir, ca)},
			read:  func() (*leaf, error) { return s.readLeaf(ca) },
			log:   log,
		}
		_, err := s.leaves[ca].get()
		if ca == API && s.id.Role == Controller && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Identity returns who this node is.
func (s *Store) Identity() Identity { return s.id }

// RootFingerprint returns the fingerprint of the cluster's root certificate.
func (s *Store) RootFingerprint() string { return Fingerprint(s.root) }

func (s *Store) readTrust(ca CA) (*trust, error) {
	path := caCertFile(s.dir, ca)
	certs, err := readCerts(path)
	if err != nil {
		return nil, err
	}
	t := &trust{certs: certs, pool: x509.NewCertPool()}
	for _, c := range certs {
		if err := checkCA(c, ca, s.root); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		t.pool.AddCert(c)
	}
	return t, nil
}

func (s *Store) readLeaf(ca CA) (*leaf, error) {
	path := leafCertFile(s.dir, ca)
	certs, err := readCerts(path)
	if err != nil {
		return nil, err
	}
	key, err := readKey(leafKeyFile(s.dir, ca))
	if err != nil {
		return nil, err
	}
	if err := s.checkLeaf(ca, certs[0], key); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l := &leaf{cert: certs[0], key: key, tls: &tls.Certificate{PrivateKey: key, Leaf: certs[0]}}
	for _, c := range certs {
		l.tls.Certificate = append(l.tls.Certificate, c.Raw)
	}
	return l, nil
}

// checkLeaf reports whether cert is a certificate of this node by ca for the key, at
// whatever time.
func (s *Store) checkLeaf(ca CA, cert *x509.Certificate, key *ecdsa.PrivateKey) error {
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("%s is not its private key", leafKeyFile(s.dir, ca))
	}
	id, err := ParseIdentity(cert)
	if err != nil {
		return err
	}
	if id != s.id {
		return fmt.Errorf("it is the certificate of %s, this node is %s", id, s.id)
	}
	t, err := s.trust[ca].get()
	if err != nil {
		return err
	}
	return verify(cert, t.pool, cert.NotAfter)
}

// verify checks the signature of a leaf and everything its CA is constrained to.
func verify(cert *x509.Certificate, pool *x509.CertPool, at time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:       pool,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// PeerFiles are the paths that etcd wants for the TLS of its peers.
type PeerFiles struct {
	CertFile, KeyFile string
	CAFile            string
	ServerName        string // to be verified instead of the address
}

// PeerFiles returns the files for etcd, which reads certificate and key anew for
// every handshake. Certificates name no addresses, so that etcd's check of a
// client's address against its certificate must be off (SkipClientSANVerify).
func (s *Store) PeerFiles() (PeerFiles, error) {
	if s.leaves[Members] == nil {
		return PeerFiles{}, s.lacks(Members)
	}
	return PeerFiles{
		CertFile:   leafCertFile(s.dir, Members),
		KeyFile:    leafKeyFile(s.dir, Members),
		CAFile:     caCertFile(s.dir, Members),
		ServerName: memberHost,
	}, nil
}

func (s *Store) lacks(ca CA) error {
	return fmt.Errorf("a node of role %s has no certificate of the %s CA", s.id.Role, ca)
}

// CAFile returns the path of a CA's certificate in this node's directory.
func (s *Store) CAFile(ca CA) string { return caCertFile(s.dir, ca) }

// Certificates describes the node's own certificates as they are used now.
func (s *Store) Certificates(now time.Time) ([]Info, error) {
	var infos []Info
	for _, ca := range issuing {
		if s.leaves[ca] == nil {
			continue
		}
		l, err := s.leaves[ca].get()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, Describe(l.cert, leafCertFile(s.dir, ca), now))
	}
	return infos, nil
}

// Renewal asks a controller for the successor of a certificate.
type Renewal struct {
	CA      CA     `json:"ca"`
	Current []byte `json:"current"` // DER of the present certificate
	CSR     []byte `json:"csr"`     // DER of a request, signed by the same key
}

// Renewals returns a request for every certificate of this node whose renewal is due.
func (s *Store) Renewals(now time.Time) ([]Renewal, error) {
	var due []Renewal
	for _, ca := range issuing {
		if s.leaves[ca] == nil {
			continue
		}
		l, err := s.leaves[ca].get()
		if err != nil {
			return nil, err
		}
		if now.Before(RenewAfter(l.cert)) {
			continue
		}
		csr, err := newCSR(l.key)
		if err != nil {
			return nil, err
		}
		due = append(due, Renewal{CA: ca, Current: l.cert.Raw, CSR: csr})
	}
	return due, nil
}

// Install checks a renewed certificate, as PEM with its CA, and puts it in the place
// of the present one. It is in use from the next handshake on.
func (s *Store) Install(ca CA, chain []byte) error {
	if s.leaves[ca] == nil {
		return s.lacks(ca)
	}
	current, err := s.leaves[ca].get()
	if err != nil {
		return err
	}
	certs, err := decodeCerts(chain)
	if err != nil {
		return fmt.Errorf("renewed certificate: %w", err)
	}
	if err := s.checkLeaf(ca, certs[0], current.key); err != nil {
		return fmt.Errorf("renewed certificate: %w", err)
	}
	if !certs[0].NotAfter.After(current.cert.NotAfter) {
		return errors.New("renewed certificate: it is valid no longer than the present one")
	}
	return durable.WriteFile(leafCertFile(s.dir, ca), encodeCerts(certs...), certPerm)
}
