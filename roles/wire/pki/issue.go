package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"uac/codestation/durable"
)

// NodeSpec says for whom [Authority.IssueNode] makes a directory.
type NodeSpec struct {
	Role  Role
	Name  string
	Hosts []string // names and addresses of the node's API; empty means DefaultHosts(Name)
}

// IssueNode writes a complete node directory: keys, certificates, the CAs'
// certificates and, for a controller, the CAs' keys. It refuses to overwrite
// anything. dir may be the directory of the authority itself.
func (a *Authority) IssueNode(dir string, spec NodeSpec) error {
	id := Identity{Cluster: a.cluster, Role: spec.Role, Name: spec.Name}
	if err := id.Validate(); err != nil {
		return err
	}
	if spec.Role != Controller {
		if err := noCAKeys(dir); err != nil {
			if key := leafKeyFile(dir, Nodes); exists(key) { // a controller's
				return &fs.PathError{Op: "create", Path: key, Err: fs.ErrExist}
			}
			return err
		}
	}
	hosts := spec.Hosts
	if len(hosts) == 0 {
		hosts = DefaultHosts(spec.Name)
	}
	files := []newFile{{path: caCertFile(dir, Root), data: encodeCerts(a.root), perm: certPerm, same: true}}
	for _, ca := range issuing {
		issuer := a.cas[ca]
		files = append(files, newFile{path: caCertFile(dir, ca), data: encodeCerts(issuer.cert), perm: certPerm, same: true})
		if spec.Role == Controller {
			text, err := encodeKey(issuer.key)
			if err != nil {
				return err
			}
			files = append(files, newFile{path: caKeyFile(dir, ca), data: text, perm: keyPerm, same: true})
		}
	}
	for _, ca := range CAsOf(spec.Role) {
		key, err := newKey()
		if err != nil {
			return err
		}
		keyText, err := encodeKey(key)
		if err != nil {
			return err
		}
		chain, err := a.leaf(ca, id, hosts, key.Public())
		if err != nil {
			return err
		}
		files = append(files,
			newFile{path: leafKeyFile(dir, ca), data: keyText, perm: keyPerm},
			newFile{path: leafCertFile(dir, ca), data: chain, perm: certPerm})
	}
	return createAll(files)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// RenewNodes renews the certificates in node directories that are due, expired ones
// included, or all of them, and returns the new ones. Keys, identities and host names
// stay as they are. Nothing is written before all of it is signed.
func (a *Authority) RenewNodes(all bool, dirs ...string) ([]Info, error) {
	var signed []signedFile
	for _, dir := range dirs {
		files, err := a.successors(dir, all)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s is not the directory of a node: %w", dir, err)
		}
		if err != nil {
			return nil, err
		}
		signed = append(signed, files...)
	}
	return replaceAll(signed)
}

// RenewDue renews the certificates in a node directory that are due, as far as that
// is possible: trouble with one of them must not let another one run out.
func (a *Authority) RenewDue(dir string) ([]Info, error) {
	var renewed []Info
	var errs []error
	for _, ca := range issuing {
		signed, err := a.successor(dir, ca, false)
		if err == nil {
			var infos []Info
			infos, err = replaceAll(signed)
			renewed = append(renewed, infos...)
		}
		errs = append(errs, err)
	}
	return renewed, errors.Join(errs...)
}

// signedFile is a certificate that is to replace the one in its file.
type signedFile struct {
	info  Info
	chain []byte
}

// replaceAll puts certificates in the places of those before.
func replaceAll(signed []signedFile) ([]Info, error) {
	var renewed []Info
	for _, f := range signed {
		if err := durable.WriteFile(f.info.File, f.chain, certPerm); err != nil {
			return renewed, err
		}
		renewed = append(renewed, f.info)
	}
	return renewed, nil
}

// successors signs new certificates for those in a node directory that are due, or
// for all.
func (a *Authority) successors(dir string, all bool) ([]signedFile, error) {
	var signed []signedFile
	for _, ca := range issuing {
		next, err := a.successor(dir, ca, all)
		if err != nil {
			return nil, err
		}
		signed = append(signed, next...)
	}
	return signed, nil
}

// successor signs a new certificate for that of one CA, if there is one, and it is
// due or all are wanted.
func (a *Authority) successor(dir string, ca CA, all bool) ([]signedFile, error) {
	certs, err := readCerts(leafCertFile(dir, ca))
	if ca != Nodes && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !all && a.now().Before(RenewAfter(certs[0])) {
		return nil, nil
	}
	key, err := readKey(leafKeyFile(dir, ca))
	if err != nil {
		return nil, err
	}
	chain, err := a.again(ca, certs[0], key.Public().(*ecdsa.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("renew %s: %w", leafCertFile(dir, ca), err)
	}
	certs, err = decodeCerts(chain)
	if err != nil {
		return nil, err
	}
	return []signedFile{{Describe(certs[0], leafCertFile(dir, ca), a.now()), chain}}, nil
}

// again signs the successor of a certificate that this CA issued for this key.
func (a *Authority) again(ca CA, current *x509.Certificate, pub *ecdsa.PublicKey) ([]byte, error) {
	if err := current.CheckSignatureFrom(a.cas[ca].cert); err != nil {
		return nil, fmt.Errorf("it was not issued by the %s CA of cluster %s: %w", ca, a.cluster, err)
	}
	if !pub.Equal(current.PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	id, err := ParseIdentity(current)
	if err != nil {
		return nil, err
	}
	return a.leaf(ca, id, hostsOf(current), pub)
}

func hostsOf(cert *x509.Certificate) []string {
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// EnsureAPI sees to it that the node directory of a controller holds a valid API
// certificate for exactly these host names and addresses (DefaultHosts if there are
// none), and reports whether it had to issue one. Controllers call it at their start:
// they hold the key of the API CA, so a changed address needs no operator.
func (a *Authority) EnsureAPI(dir string, hosts []string) (bool, error) {
	node, err := readCerts(leafCertFile(dir, Nodes))
	if err != nil {
		return false, err
	}
	id, err := ParseIdentity(node[0])
	if err != nil {
		return false, fmt.Errorf("%s: %w", leafCertFile(dir, Nodes), err)
	}
	if len(hosts) == 0 {
		hosts = DefaultHosts(id.Name)
	}
	key, err := readKey(leafKeyFile(dir, API))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if key, err = createKey(leafKeyFile(dir, API)); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	}
	current, err := readCerts(leafCertFile(dir, API))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil {
		fits, err := a.fits(current[0], id, hosts, key)
		if err != nil || fits {
			return false, err
		}
	}
	chain, err := a.leaf(API, id, hosts, key.Public())
	if err != nil {
		return false, err
	}
	return true, durable.WriteFile(leafCertFile(dir, API), chain, certPerm)
}

// fits reports whether cert is what EnsureAPI would issue now.
func (a *Authority) fits(cert *x509.Certificate, id Identity, hosts []string, key *ecdsa.PrivateKey) (bool, error) {
	names, addrs, err := splitHosts(hosts)
	if err != nil {
		return false, err
	}
	wanted := hostsOf(&x509.Certificate{DNSNames: names, IPAddresses: addrs})
	have, err := ParseIdentity(cert)
	now := a.now()
	return err == nil && have == id &&
		key.PublicKey.Equal(cert.PublicKey) &&
		cert.CheckSignatureFrom(a.cas[API].cert) == nil &&
		!now.Before(cert.NotBefore) && now.Before(RenewAfter(cert)) &&
		slices.Equal(hostsOf(cert), wanted), nil
}

// createKey makes a new private key and writes it to path, which must not exist.
func createKey(path string) (*ecdsa.PrivateKey, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("%s %w", path, fs.ErrExist), err)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(path, text, keyPerm)
}

// AgentLinks returns a function that makes the TLS configuration of an agent's
// link, as [Store.LinkClient] does, for names that it has not got on disk: for
// programs that play many agents. All have one key.
func (a *Authority) AgentLinks() (func(name string) (*tls.Config, error), error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cas[Nodes].cert)
	return func(name string) (*tls.Config, error) {
		chain, err := a.leaf(Nodes, Identity{Cluster: a.cluster, Role: Agent, Name: name}, nil, key.Public())
		if err != nil {
			return nil, err
		}
		certs, err := decodeCerts(chain)
		if err != nil {
			return nil, err
		}
		c := base()
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key}}
		c.RootCAs, c.ServerName, c.VerifyConnection = pool, roleHost(Controller), verifyRole([]Role{Controller})
		return c, nil
	}, nil
}
