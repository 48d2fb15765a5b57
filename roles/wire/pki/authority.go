package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// CALifetime is for how long the root and the CAs are valid.
	CALifetime = 10 * 365 * 24 * time.Hour
	// DefaultLifetime is for how long a leaf certificate is valid.
	DefaultLifetime = 90 * 24 * time.Hour
	// MinLifetime is the shortest lifetime that an Authority gives a leaf.
	MinLifetime = time.Minute

	// backdate is how far before the moment of signing a validity begins, so that
	// a machine whose clock is a little behind accepts a fresh certificate.
	backdate = 5 * time.Minute
)

// InitOptions says what [Init] creates.
type InitOptions struct {
	Dir     string    // gets ca/*.crt and ca/*.key
	RootDir string    // gets root.crt and root.key; "" means Dir/root
	Cluster string    // name of the cluster, see ValidateCluster
	Now     time.Time // zero means time.Now()
}

// Init creates the root and the three CAs of a new cluster. It refuses to overwrite
// anything. The root directory is for the operator to take offline.
func Init(o InitOptions) error {
	if err := ValidateCluster(o.Cluster); err != nil {
		return err
	}
	if o.RootDir == "" {
		o.RootDir = filepath.Join(o.Dir, "root")
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	rootKey, err := newKey()
	if err != nil {
		return err
	}
	template := caTemplate(Root, o.Cluster, o.Now)
	root, err := sign(template, template, rootKey.Public(), rootKey)
	if err != nil {
		return err
	}
	rootKeyText, err := encodeKey(rootKey)
	if err != nil {
		return err
	}
	files := []newFile{
		{path: rootKeyFile(o.RootDir), data: rootKeyText, perm: keyPerm},
		{path: filepath.Join(o.RootDir, "root.crt"), data: encodeCerts(root), perm: certPerm},
		{path: caCertFile(o.Dir, Root), data: encodeCerts(root), perm: certPerm},
	}
	for _, ca := range issuing {
		key, err := newKey()
		if err != nil {
			return err
		}
		cert, err := sign(caTemplate(ca, o.Cluster, o.Now), root, key.Public(), rootKey)
		if err != nil {
			return err
		}
		text, err := encodeKey(key)
		if err != nil {
			return err
		}
		files = append(files,
			newFile{path: caKeyFile(o.Dir, ca), data: text, perm: keyPerm},
			newFile{path: caCertFile(o.Dir, ca), data: encodeCerts(cert), perm: certPerm})
	}
	return createAll(files)
}

// caTemplate describes a CA. The constraints say once more, for every verifier that
// knows them, what the CA may sign: identities of this cluster only, and names of
// its own kind only.
func caTemplate(ca CA, cluster string, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "uac " + string(ca) + " CA", Organization: []string{cluster}},
		NotBefore:                   now.Add(-backdate),
		NotAfter:                    now.Add(CALifetime),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedURIDomains:         []string{cluster},
	}
	noAddresses := []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
	switch ca {
	case Root:
		t.Subject.CommonName = "uac root"
		t.MaxPathLen, t.MaxPathLenZero = 1, false
	case Members:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		t.PermittedDNSDomains = []string{memberHost}
		t.ExcludedIPRanges = noAddresses
	case Nodes:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		t.PermittedDNSDomains = roleHosts()
		t.ExcludedIPRanges = noAddresses
	case API:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		t.ExcludedDNSDomains = append(roleHosts(), memberHost)
	}
	return t
}

// sign completes the template with a random serial number and signs it.
func sign(template, parent *x509.Certificate, pub crypto.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // zero is not allowed
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Authority signs certificates with the CA keys that controllers hold. Set the
// exported fields before use; then it is safe for concurrent use.
type Authority struct {
	// Lifetime is for how long new leaves are valid; zero means DefaultLifetime,
	// and less than MinLifetime is an error. A leaf never outlives its CA.
	Lifetime time.Duration
	// Clock tells the time; nil means time.Now.
	Clock func() time.Time

	dir     string
	cluster string
	root    *x509.Certificate
	cas     map[CA]signer
}

type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// OpenAuthority reads the CA certificates and keys below dir: a directory made by
// Init, or the node directory of a controller.
func OpenAuthority(dir string) (*Authority, error) {
	a := &Authority{dir: dir, cas: map[CA]signer{}}
	roots, err := readCerts(caCertFile(dir, Root))
	if err != nil {
		return nil, err
	}
	a.root = roots[0]
	if len(a.root.PermittedURIDomains) != 1 {
		return nil, fmt.Errorf("%s is not the root of a uac cluster: it names no cluster", caCertFile(dir, Root))
	}
	a.cluster = a.root.PermittedURIDomains[0]
	for _, ca := range issuing {
		certs, err := readCerts(caCertFile(dir, ca))
		if err != nil {
			return nil, err
		}
		key, err := readKey(caKeyFile(dir, ca))
		if err != nil {
			return nil, err
		}
		cert := certs[0]
		if !key.PublicKey.Equal(cert.PublicKey) {
			return nil, fmt.Errorf("%s is not the key of %s", caKeyFile(dir, ca), caCertFile(dir, ca))
		}
		if err := checkCA(cert, ca, a.root); err != nil {
			return nil, fmt.Errorf("%s: %w", caCertFile(dir, ca), err)
		}
		a.cas[ca] = signer{cert, key}
	}
	return a, nil
}

// checkCA reports whether cert is the CA called ca under root.
func checkCA(cert *x509.Certificate, ca CA, root *x509.Certificate) error {
	want := caTemplate(ca, "", time.Time{}).Subject.CommonName
	if !cert.IsCA || cert.Subject.CommonName != want {
		return fmt.Errorf("is the certificate of %q, want that of %q", cert.Subject.CommonName, want)
	}
	if err := cert.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("is not signed by the root of this cluster: %w", err)
	}
	return nil
}

// Cluster returns the name of the cluster.
func (a *Authority) Cluster() string { return a.cluster }

// RootFingerprint returns the fingerprint of the root certificate, which join
// tokens carry.
func (a *Authority) RootFingerprint() string { return Fingerprint(a.root) }

func (a *Authority) now() time.Time {
	if a.Clock != nil {
		return a.Clock()
	}
	return time.Now()
}

// leaf signs a certificate by ca for the identity and the public key, and returns it
// with its CA as PEM. hosts counts for the API CA only.
func (a *Authority) leaf(ca CA, id Identity, hosts []string, pub crypto.PublicKey) ([]byte, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	if id.Cluster != a.cluster {
		return nil, fmt.Errorf("%s is not of cluster %s", id, a.cluster)
	}
	if !slices.Contains(CAsOf(id.Role), ca) {
		return nil, fmt.Errorf("the %s CA issues no certificates for role %s", ca, id.Role)
	}
	if k, ok := pub.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("the public key must be ECDSA P-256")
	}
	lifetime := a.Lifetime
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	if lifetime < MinLifetime {
		return nil, fmt.Errorf("certificate lifetime %v: must be at least %v", lifetime, MinLifetime)
	}
	issuer, now := a.cas[ca], a.now()
	if now.After(issuer.cert.NotAfter) {
		return nil, fmt.Errorf("the %s CA expired on %s", ca, issuer.cert.NotAfter.Format(time.DateOnly))
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Name, Organization: []string{id.Cluster}, OrganizationalUnit: []string{string(id.Role)}},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		URIs:        []*url.URL{{Scheme: "uac", Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Name}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if t.NotAfter.After(issuer.cert.NotAfter) {
		t.NotAfter = issuer.cert.NotAfter
	}
	switch ca {
	case Members:
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		t.DNSNames = []string{memberHost, id.Name + "." + memberHost}
	case Nodes:
		switch id.Role {
		case Agent:
			t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		case Relay: // a client of controllers, a server of agents
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
		t.DNSNames = []string{roleHost(id.Role), id.Name + "." + roleHost(id.Role)}
	case API:
		names, addrs, err := splitHosts(hosts)
		if err != nil {
			return nil, err
		}
		t.DNSNames, t.IPAddresses = names, addrs
	default:
		return nil, fmt.Errorf("the %s CA issues no certificates for nodes", ca)
	}
	cert, err := sign(t, issuer.cert, pub, issuer.key)
	if err != nil {
		return nil, err
	}
	return encodeCerts(cert, issuer.cert), nil
}

// DefaultHosts returns the host names and addresses of an API certificate for which
// none were configured: the node's name and this machine as seen from itself.
func DefaultHosts(name string) []string {
	return append([]string{name}, thisMachine()...)
}

// thisMachine lists the names and addresses that every machine has for itself.
func thisMachine() []string { return []string{"localhost", "127.0.0.1", "::1"} }

// ValidateHosts reports which of the hosts cannot stand in an API certificate, if any.
func ValidateHosts(hosts []string) error {
	for _, h := range hosts {
		name := strings.TrimSuffix(h, ".")
		last := name[strings.LastIndex(name, ".")+1:]
		if _, err := netip.ParseAddr(h); err != nil && last != "" && strings.Trim(last, "0123456789") == "" {
			return fmt.Errorf("host %q: is not an IP address, and no host name ends in a number", h)
		}
	}
	_, _, err := splitHosts(hosts)
	return err
}

// splitHosts sorts host names and addresses, drops doubles, and refuses what is
// neither, wild cards included.
func splitHosts(hosts []string) ([]string, []net.IP, error) {
	var names []string
	var addrs []netip.Addr
	for _, h := range hosts {
		if addr, err := netip.ParseAddr(h); err == nil {
			if addr.IsUnspecified() || addr.Zone() != "" {
				return nil, nil, fmt.Errorf("host %q: no client can connect to this address by itself", h)
			}
			addrs = append(addrs, addr.Unmap())
			continue
		}
		h = strings.TrimSuffix(strings.ToLower(h), ".")
		if !isHostName(h) {
			return nil, nil, fmt.Errorf("host %q: is neither a host name nor an IP address", h)
		}
		if reserved(h) {
			return nil, nil, fmt.Errorf("host %q: names of this form identify nodes among themselves and cannot be those of an API", h)
		}
		names = append(names, h)
	}
	if len(names)+len(addrs) == 0 {
		return nil, nil, errors.New("an API certificate needs at least one host name or address")
	}
	slices.Sort(names)
	slices.SortFunc(addrs, netip.Addr.Compare)
	var ips []net.IP
	for _, a := range slices.Compact(addrs) {
		ips = append(ips, a.AsSlice())
	}
	return slices.Compact(names), ips, nil
}

// isHostName reports whether s is a host name in lower case. Underscores are not by
// the book, but machines are called so.
func isHostName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(s) <= 253
}

// reserved reports whether the host name is one by which nodes verify each other, or
// below such a name. The API CA is constrained not to sign them.
func reserved(host string) bool {
	return slices.ContainsFunc(append(roleHosts(), memberHost), func(h string) bool {
		return host == h || strings.HasSuffix(host, "."+h)
	})
}

// RenewAfter returns the moment from which cert should be renewed: two thirds of its
// lifetime.
func RenewAfter(cert *x509.Certificate) time.Time {
	issued := cert.NotBefore.Add(backdate)
	return issued.Add(cert.NotAfter.Sub(issued) * 2 / 3)
}
