package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"uac/codestation/durable"
	"uac/roles"
)

// Requests holds one certificate signing request (DER) for each CA that gives the
// role of a joining node a certificate. A request counts for its public key and for
// the proof that the sender has the private one; all that it wishes for beside
// (names, extensions) is ignored.
type Requests map[CA][]byte

// Key identifies the public key for which the node asks: the same node that repeats
// its request is recognised by it.
func (r Requests) Key() (string, error) {
	pub, err := parseCSR(r[Nodes])
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// Grant says what a joining node becomes: it comes from a join token, see
// [JoinToken.Verify].
type Grant struct {
	Role    Role
	Name    string
	Hosts   []string // of the API certificate, if the role has one; empty means this machine only
	Replace bool     // the name may exist already
}

// Bundle is what a controller gives to a node that enrols, as PEM.
type Bundle struct {
	CAs   map[CA][]byte `json:"cas"`   // certificates of the root and all CAs
	Certs map[CA][]byte `json:"certs"` // the node's own, each with its CA
}

// ErrNameTaken is wrapped by the error of [Authority.Enrol] if a node of that role and
// name exists already and the grant does not allow to replace it.
var ErrNameTaken = errors.New("exists already and may not be replaced")

// Enrol signs the requests of a joining node. exists tells whether a node of that
// identity is known to the cluster. Controllers are not enrolled: they hold the keys
// of the CAs, which never travel.
func (a *Authority) Enrol(reqs Requests, g Grant, exists func(Identity) (bool, error)) (Bundle, error) {
	id := Identity{Cluster: a.cluster, Role: g.Role, Name: g.Name}
	if err := id.Validate(); err != nil {
		return Bundle{}, err
	}
	if g.Role == Controller {
		return Bundle{}, errors.New("a controller cannot enrol with a token: issue its directory with uac pki issue")
	}
	wanted := CAsOf(g.Role)
	for ca := range reqs {
		if !slices.Contains(wanted, ca) {
			return Bundle{}, fmt.Errorf("the %s CA issues no certificates for role %s", ca, g.Role)
		}
	}
	hosts := g.Hosts
	if len(hosts) == 0 {
		hosts = thisMachine()
	}
	b := Bundle{CAs: map[CA][]byte{Root: encodeCerts(a.root)}, Certs: map[CA][]byte{}}
	for _, ca := range issuing {
		b.CAs[ca] = encodeCerts(a.cas[ca].cert)
	}
	for _, ca := range wanted {
		pub, err := parseCSR(reqs[ca])
		if err != nil {
			return Bundle{}, fmt.Errorf("request for the %s CA: %w", ca, err)
		}
		if b.Certs[ca], err = a.leaf(ca, id, hosts, pub); err != nil {
			return Bundle{}, err
		}
	}
	if g.Replace {
		return b, nil
	}
	taken, err := exists(id)
	if err != nil {
		return Bundle{}, fmt.Errorf("look up %s: %w", id, err)
	}
	if taken {
		return Bundle{}, fmt.Errorf("%s %w", id, ErrNameTaken)
	}
	return b, nil
}

// Renew signs the successor of a certificate for the peer that presented itself on an
// authenticated link. The certificate to be renewed must be one of the peer's own,
// issued by this authority and still valid; role, name and hosts are taken from it,
// and the key stays. The result is PEM with the CA.
func (a *Authority) Renew(peer Identity, r Renewal) ([]byte, error) {
	issuer, ok := a.cas[r.CA]
	if !ok {
		return nil, fmt.Errorf("no CA %q", r.CA)
	}
	current, err := x509.ParseCertificate(r.Current)
	if err != nil {
		return nil, fmt.Errorf("present certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(issuer.cert)
	if err := verify(current, pool, a.now()); err != nil {
		return nil, fmt.Errorf("present certificate: %w", err)
	}
	id, err := ParseIdentity(current)
	if err != nil {
		return nil, err
	}
	if id != peer {
		return nil, fmt.Errorf("%s may not renew the certificate of %s", peer, id)
	}
	pub, err := parseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	return a.again(r.CA, current, pub)
}

// maxCSR bounds what a stranger may make us parse; our own requests have 200 bytes.
const maxCSR = 4 << 10

// parseCSR returns the public key of a request after the proof that its sender has
// the private one.
func parseCSR(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) == 0 {
		return nil, errors.New("certificate request: missing")
	}
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request: %d bytes, at most %d are accepted", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("certificate request: the public key is a %T, must be ECDSA P-256", csr.PublicKey)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: no proof of the private key: %w", err)
	}
	return pub, nil
}

// newCSR makes a request that names nothing but the key.
func newCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	return der, nil
}

// Enrolment is the side of a node that joins. Its private keys are created in the
// node's directory and never leave it.
type Enrolment struct {
	dir  string
	role Role
	name string
	keys map[CA]*ecdsa.PrivateKey
}

// ErrEnrolled is wrapped by the error of [NewEnrolment] if the directory holds a
// certificate that is still valid.
var ErrEnrolled = errors.New("already enrolled")

// NewEnrolment prepares the directory of a node that wants to join as role and name.
// Keys that an earlier, interrupted enrolment left are used again, so that the
// controller recognises the repetition.
func NewEnrolment(dir string, role Role, name string, now time.Time) (*Enrolment, error) {
	if err := roles.CheckNodeName(name); err != nil {
		return nil, fmt.Errorf("node name: %w", err)
	}
	if role == Controller || len(CAsOf(role)) == 0 {
		return nil, fmt.Errorf("role %q cannot enrol with a token", role)
	}
	certs, err := readCerts(leafCertFile(dir, Nodes))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case now.Before(certs[0].NotAfter):
		return nil, fmt.Errorf("%s: %w until %s", leafCertFile(dir, Nodes), ErrEnrolled, certs[0].NotAfter.Format(time.DateOnly))
	}
	if err := durable.MkdirAll(filepath.Join(dir, "ca"), dirPerm); err != nil {
		return nil, err
	}
	e := &Enrolment{dir: dir, role: role, name: name, keys: map[CA]*ecdsa.PrivateKey{}}
	for _, ca := range CAsOf(role) {
		key, err := readKey(leafKeyFile(dir, ca))
		if errors.Is(err, fs.ErrNotExist) {
			key, err = createKey(leafKeyFile(dir, ca))
		}
		if err != nil {
			return nil, err
		}
		e.keys[ca] = key
	}
	return e, nil
}

// Requests returns what to send to the controller.
func (e *Enrolment) Requests() (Requests, error) {
	reqs := Requests{}
	for ca, key := range e.keys {
		csr, err := newCSR(key)
		if err != nil {
			return nil, err
		}
		reqs[ca] = csr
	}
	return reqs, nil
}

// Install checks the controller's answer against the root fingerprint of the join
// token and against what was asked for, and writes it. The certificate that makes a
// node enrolled is written last, so that an interrupted Install is repeated.
func (e *Enrolment) Install(b Bundle, rootFingerprint string) error {
	roots, err := decodeCerts(b.CAs[Root])
	if err != nil {
		return fmt.Errorf("root certificate: %w", err)
	}
	root := roots[0]
	if len(roots) != 1 || Fingerprint(root) != rootFingerprint {
		return errors.New("the answer is not of the cluster that issued the join token")
	}
	present, err := readCerts(caCertFile(e.dir, Root))
	if err == nil && !present[0].Equal(root) {
		return fmt.Errorf("%s is the root of another cluster: this directory cannot join a second one", caCertFile(e.dir, Root))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pools := map[CA]*x509.CertPool{}
	for _, ca := range issuing {
		certs, err := decodeCerts(b.CAs[ca])
		if err != nil {
			return fmt.Errorf("certificate of the %s CA: %w", ca, err)
		}
		pools[ca] = x509.NewCertPool()
		for _, c := range certs {
			if err := checkCA(c, ca, root); err != nil {
				return fmt.Errorf("certificate of the %s CA: %w", ca, err)
			}
			pools[ca].AddCert(c)
		}
	}
	for ca, key := range e.keys {
		if err := e.check(b.Certs[ca], key, pools[ca]); err != nil {
			return fmt.Errorf("certificate by the %s CA: %w", ca, err)
		}
	}
	for _, ca := range []CA{Root, Members, API, Nodes} {
		if err := durable.WriteFile(caCertFile(e.dir, ca), b.CAs[ca], certPerm); err != nil {
			return err
		}
	}
	for _, ca := range CAsOf(e.role) { // Nodes is the last
		if err := durable.WriteFile(leafCertFile(e.dir, ca), b.Certs[ca], certPerm); err != nil {
			return err
		}
	}
	return nil
}

func (e *Enrolment) check(chain []byte, key *ecdsa.PrivateKey, pool *x509.CertPool) error {
	certs, err := decodeCerts(chain)
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return errors.New("it is for another key")
	}
	id, err := ParseIdentity(certs[0])
	if err != nil {
		return err
	}
	if id.Role != e.role || id.Name != e.name {
		return fmt.Errorf("it is for %s, this node is the %s %s", id, e.role, e.name)
	}
	return verify(certs[0], pool, certs[0].NotAfter)
}
