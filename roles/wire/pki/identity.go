package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"uac/roles"
)

// Role is what a node does in the cluster.
type Role = roles.Role

// The roles of nodes.
const (
	Controller = roles.RoleController
	Watch      = roles.RoleWatch
	Relay      = roles.RoleRelay
	Agent      = roles.RoleAgent
)

// ParseRole returns the role called s.
func ParseRole(s string) (Role, error) { return roles.ParseRole(s) }

// CA names a certificate authority of the cluster; its files are ca/<name>.crt and
// ca/<name>.key.
type CA string

// The authorities; see the package comment for what each one is for.
const (
	Root    CA = "root"
	Members CA = "members"
	API     CA = "api"
	Nodes   CA = "nodes"
)

// issuing lists the CAs that sign leaves: all but the root.
var issuing = [...]CA{Members, API, Nodes}

// CAsOf returns the authorities that give a node of the role a certificate. Nodes is
// always among them, and the last. An unknown role has none.
func CAsOf(r Role) []CA {
	switch r {
	case Controller, Watch:
		return []CA{Members, API, Nodes}
	case Relay:
		return []CA{API, Nodes}
	case Agent:
		return []CA{Nodes}
	}
	return nil
}

// DNS names by which peers of the same cluster verify each other.
const memberHost = "member.uac"

func roleHost(r Role) string { return string(r) + ".uac" }

// roleHosts lists the names by which roles are verified: all but memberHost.
func roleHosts() []string {
	return []string{roleHost(Controller), roleHost(Watch), roleHost(Relay), roleHost(Agent)}
}

// Identity says who the holder of a certificate is.
type Identity struct {
	Cluster string `json:"cluster"`
	Role    Role   `json:"role"`
	Name    string `json:"name"`
}

// String returns the identity as it stands in certificates,
// uac://<cluster>/<role>/<name>.
func (id Identity) String() string {
	return "uac://" + id.Cluster + "/" + string(id.Role) + "/" + id.Name
}

// Validate reports what is wrong with the identity, if anything.
func (id Identity) Validate() error {
	if err := ValidateCluster(id.Cluster); err != nil {
		return err
	}
	if _, err := ParseRole(string(id.Role)); err != nil {
		return err
	}
	if err := roles.CheckNodeName(id.Name); err != nil {
		return fmt.Errorf("node name: %w", err)
	}
	return nil
}

// ValidateCluster reports what is wrong with name as the name of a cluster, if
// anything. It is a node name without dots.
func ValidateCluster(name string) error {
	if err := roles.CheckNodeName(name); err != nil {
		return fmt.Errorf("cluster name: %w", err)
	}
	if strings.Contains(name, ".") {
		return fmt.Errorf("cluster name: %q must not contain a dot", name)
	}
	return nil
}

var errNoIdentity = errors.New("certificate names no uac identity")

// ParseIdentity returns the identity that cert names. It does not say whether the
// certificate is to be trusted; see [PeerIdentity] for that.
func ParseIdentity(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("%w: it has %d URI names instead of one", errNoIdentity, len(cert.URIs))
	}
	return parseIdentity(cert.URIs[0])
}

// parseIdentity accepts exactly what Identity.String produces. Everything that a
// URI may have beside (user, port, query, escapes) would be a second spelling of
// the same identity and is refused.
func parseIdentity(u *url.URL) (Identity, error) {
	role, name, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Cluster: u.Host, Role: Role(role), Name: name}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("%w: %q: %w", errNoIdentity, u, err)
	}
	if u.String() != id.String() {
		return Identity{}, fmt.Errorf("%w: %q is not in canonical form", errNoIdentity, u)
	}
	return id, nil
}

// PeerIdentity returns the identity of the other end of a connection whose
// handshake has been completed with one of the configurations of this package. It
// fails if the peer's certificate was not verified.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, errors.New("the peer presented no certificate that was verified")
	}
	return ParseIdentity(cs.VerifiedChains[0][0])
}
