package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
)

// The configurations below are complete but for NextProtos, which belongs to the
// protocol that is spoken. Each call returns a new one, owned by the caller. The own
// certificate is looked up for every handshake; the CAs are those of the moment of
// the call, so that whoever calls anew for each listener class or dial follows a
// change of them too.
//
// All demand TLS 1.3. None resumes sessions but those of the API: a resumed session
// would skip the very check that the link exists for.

func base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

// MemberServer is for what members accept from members: pulses and the members' RPC.
func (s *Store) MemberServer() (*tls.Config, error) {
	return s.server(Members, Controller, Watch)
}

// MemberClient is for connections of a member to the member called peer, whose name
// is verified; with "" any member will do.
func (s *Store) MemberClient(peer string) (*tls.Config, error) {
	host := memberHost
	if peer != "" {
		host = peer + "." + memberHost
	}
	return s.client(Members, host, Controller, Watch)
}

// LinkServer is for what controllers accept from agents and relays.
func (s *Store) LinkServer() (*tls.Config, error) {
	if s.id.Role != Controller {
		return nil, fmt.Errorf("role %s accepts no links of agents", s.id.Role)
	}
	return s.server(Nodes, Agent, Relay)
}

// LinkClient is for the connections of agents and relays to a controller.
func (s *Store) LinkClient() (*tls.Config, error) {
	return s.client(Nodes, roleHost(Controller), Controller)
}

// RelayServer is for what relays accept from agents and from relays behind them.
func (s *Store) RelayServer() (*tls.Config, error) {
	if s.id.Role != Relay {
		return nil, fmt.Errorf("role %s relays no links", s.id.Role)
	}
	return s.server(Nodes, Agent, Relay)
}

// EntryClient is for the connections of agents and relays to whoever is at an address
// that they were told: a controller or a relay. roleOf says which role the server must
// have for the protocol that it chose, "" if there is none.
func (s *Store) EntryClient(roleOf func(protocol string) Role) (*tls.Config, error) {
	c, err := s.presenting(Nodes)
	if err != nil {
		return nil, err
	}
	t, err := s.trust[Nodes].get()
	if err != nil {
		return nil, err
	}
	// The name to expect depends on what the server chose, so the standard
	// verification cannot do it. VerifyConnection does all of it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		role := roleOf(cs.NegotiatedProtocol)
		if role == "" {
			return fmt.Errorf("the server chose protocol %q", cs.NegotiatedProtocol)
		}
		cert := cs.PeerCertificates[0]
		opts := x509.VerifyOptions{Roots: t.pool, DNSName: roleHost(role)} // for servers, by default
		if _, err := cert.Verify(opts); err != nil {
			return err
		}
		id, err := ParseIdentity(cert)
		if err != nil {
			return err
		}
		if id.Role != role {
			return fmt.Errorf("%s is no %s", id, role)
		}
		return nil
	}
	return c, nil
}

// JoinServer is for nodes without a certificate that enrol at a controller. It sends
// the root certificate along, because such a node knows only its fingerprint. The
// client is not authenticated by TLS: its token must be.
func (s *Store) JoinServer() (*tls.Config, error) {
	if s.id.Role != Controller {
		return nil, fmt.Errorf("role %s enrols no nodes", s.id.Role)
	}
	c := base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		l, err := s.leaves[Nodes].get()
		if err != nil {
			return nil, err
		}
		withRoot := *l.tls
		withRoot.Certificate = append(slices.Clone(l.tls.Certificate), s.root.Raw)
		return &withRoot, nil
	}
	return c, nil
}

// JoinClient is for a node that enrols: it trusts the controllers of the one cluster
// whose root certificate has the fingerprint (see [Fingerprint]).
func JoinClient(rootFingerprint string) *tls.Config {
	c := base()
	c.ServerName = roleHost(Controller)
	// The root is known by its fingerprint alone until the server has shown it, so the
	// standard verification has nothing to start from. VerifyConnection does all of it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return verifyPinned(cs, rootFingerprint)
	}
	return c
}

func verifyPinned(cs tls.ConnectionState, rootFingerprint string) error {
	certs := cs.PeerCertificates
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return Fingerprint(c) == rootFingerprint })
	if i < 0 {
		return errors.New("the server does not belong to the cluster that issued the join token")
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		DNSName:       cs.ServerName,
	}
	opts.Roots.AddCert(certs[i])
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := certs[0].Verify(opts); err != nil {
		return err
	}
	id, err := ParseIdentity(certs[0])
	if err != nil {
		return err
	}
	if id.Role != Controller {
		return fmt.Errorf("%s is not a controller", id)
	}
	return nil
}

// APIServer is for the HTTPS listener of the API. It asks for no certificate: people
// authenticate with tokens. NextProtos is set for HTTP/2 and HTTP/1.1.
func (s *Store) APIServer() (*tls.Config, error) {
	c, err := s.presenting(API)
	if err != nil {
		return nil, err
	}
	c.SessionTicketsDisabled = false
	c.ClientAuth = tls.NoClientCert
	c.NextProtos = []string{"h2", "http/1.1"}
	return c, nil
}

// APIClient is for clients of the API. caFile holds the certificates to trust: the
// cluster's ca/api.crt or root; "" means those of the operating system. The server
// is verified by the host name or address that the client was told.
func APIClient(caFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	if caFile == "" {
		return c, nil
	}
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	certs, err := decodeCerts(text)
	if err != nil {
		return nil, fmt.Errorf("CA certificate %s: %w", caFile, err)
	}
	c.RootCAs = x509.NewCertPool()
	for _, cert := range certs {
		c.RootCAs.AddCert(cert)
	}
	return c, nil
}

// presenting returns a configuration that presents this node's certificate by ca.
func (s *Store) presenting(ca CA) (*tls.Config, error) {
	own := s.leaves[ca]
	if own == nil {
		return nil, s.lacks(ca)
	}
	if _, err := own.get(); err != nil {
		return nil, err
	}
	c := base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		l, err := own.get()
		if err != nil {
			return nil, err
		}
		return l.tls, nil
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return c.GetCertificate(nil)
	}
	return c, nil
}

// server demands a certificate of ca with one of the roles.
func (s *Store) server(ca CA, roles ...Role) (*tls.Config, error) {
	c, err := s.presenting(ca)
	if err != nil {
		return nil, err
	}
	t, err := s.trust[ca].get()
	if err != nil {
		return nil, err
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = t.pool
	c.VerifyConnection = verifyRole(roles)
	return c, nil
}

// client demands a server certificate of ca for host with one of the roles.
func (s *Store) client(ca CA, host string, roles ...Role) (*tls.Config, error) {
	c, err := s.presenting(ca)
	if err != nil {
		return nil, err
	}
	t, err := s.trust[ca].get()
	if err != nil {
		return nil, err
	}
	c.RootCAs = t.pool
	c.ServerName = host
	c.VerifyConnection = verifyRole(roles)
	return c, nil
}

// verifyRole checks the identity of a peer whose certificate has been verified. That
// it is of this cluster is certain then: the constraints of the CA name the cluster.
func verifyRole(roles []Role) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		id, err := PeerIdentity(cs)
		if err != nil {
			return err
		}
		if !slices.Contains(roles, id.Role) {
			return fmt.Errorf("%s has a role that is not accepted here, want one of %v", id, roles)
		}
		return nil
	}
}
