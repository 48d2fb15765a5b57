package faulttest

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"
)

// TestStrangers shows certificates of the same cluster, but of other CAs, at the
// ports where members speak to members. Each must be refused by the handshake:
// an agent, a relay, or a stolen API certificate, must not reach raft or pulses.
func TestStrangers(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--relays", "1")
	c.healthy()
	u, err := url.Parse(c.node("c1").API)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(node, kind string) tls.Certificate {
		pki := filepath.Join(c.node(node).DataDir, "pki")
		cert, err := tls.LoadX509KeyPair(filepath.Join(pki, kind+".crt"), filepath.Join(pki, kind+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	member := pair("c2", "member")
	strangers := map[string]*tls.Certificate{
		"nobody": nil, "agent": ptr(pair("a1", "node")),
		"relay": ptr(pair("r1", "node")), "relay's API certificate": ptr(pair("r1", "api")), "controller's node certificate": ptr(pair("c2", "node")),
		"API certificate": ptr(pair("c2", "api")),
	}
	for _, port := range []struct{ name, number, alpn string }{
		{"raft", "7601", ""}, {"pulses", "7602", "uac-pulse/1"}, {"members' calls", "7602", "uac-member/1"},
	} {
		addr := net.JoinHostPort(u.Hostname(), port.number)
		if err := shake(addr, port.alpn, &member); err != nil {
			t.Errorf("%s refuses a member: %v", port.name, err)
		}
		for who, cert := range strangers {
			if err := shake(addr, port.alpn, cert); err == nil {
				t.Errorf("%s takes a connection of %s", port.name, who)
			}
		}
	}
}

func ptr[T any](v T) *T { return &v }

// shake does a TLS handshake and waits for the server's verdict on our
// certificate: with TLS 1.3 that comes after the client's side is complete.
func shake(addr, alpn string, cert *tls.Certificate) error {
	conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} // the server is not what is tested
	if alpn != "" {
		conf.NextProtos = []string{alpn}
	}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, conf)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil // taken in, and the server waits for us to speak
	}
	return err
}
