package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what a node does in the cluster.
type Role string

// The roles of nodes.
const (
	Controller Role = "controller"
	Watch      Role = "watch"
	Relay      Role = "relay"
	Agent      Role = "agent"
)

// Roles lists all roles.
func Roles() []Role { return []Role{Controller, Watch, Relay, Agent} }

// ParseRole returns the role called s.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles(), r) {
		return r, nil
	}
	return "", fmt.Errorf("role %q: must be one of controller, watch, relay, agent", s)
}

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

// CAs returns the authorities that give a node of role r a certificate. Nodes is
// always among them, and the last.
func (r Role) CAs() []CA {
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

// nodeHosts lists all of them.
func nodeHosts() []string {
	hosts := []string{memberHost}
	for _, r := range Roles() {
		hosts = append(hosts, roleHost(r))
	}
	return hosts
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
	return ValidateName(id.Name)
}

const (
	maxLabel = 63
	// A name must leave room for ".controller.uac" in a DNS name of 253 bytes.
	maxName = 200
)

// ValidateName reports what is wrong with name as the name of a node, if anything.
// Names are DNS names in lower case, of at most 200 bytes: host names are welcome,
// and two names never differ by case alone.
func ValidateName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("node name %q: must have 1 to %d characters", name, maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if !validLabel(label) {
			return fmt.Errorf("node name %q: must consist of lower-case letters, digits, '-', '_' and '.', each part beginning and ending with a letter or digit and having at most %d characters", name, maxLabel)
		}
	}
	return nil
}

// ValidateCluster reports what is wrong with name as the name of a cluster, if
// anything. It is a single lower-case DNS label.
func ValidateCluster(name string) error {
	if !validLabel(name) || strings.Contains(name, "_") {
		return fmt.Errorf("cluster name %q: must have 1 to %d lower-case letters, digits and '-', beginning and ending with a letter or digit", name, maxLabel)
	}
	return nil
}

func validLabel(s string) bool {
	if s == "" || len(s) > maxLabel {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '-' || c == '_') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
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
