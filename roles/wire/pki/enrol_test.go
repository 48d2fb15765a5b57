package pki_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire/pki"
)

// A whole enrolment: token, request, signature, installation, and the repetition
// after a lost answer.
func TestEnrolment(t *testing.T) {
	c := newCluster(t, "prod")
	now := time.Now()
	for _, role := range []pki.Role{pki.Agent, pki.Relay, pki.Watch} {
		t.Run(string(role), func(t *testing.T) {
			token, rec, err := pki.NewJoinToken(pki.JoinTokenSpec{
				Role: role, Name: "n?", Hosts: []string{"n1.example.com"}, TTL: time.Hour, RootFingerprint: c.RootFingerprint(),
			}, now)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "pki")
			known := false
			enrol := func() (*pki.Enrolment, pki.Bundle) {
				t.Helper()
				e, err := pki.NewEnrolment(dir, role, "n1", now)
				if err != nil {
					t.Fatal(err)
				}
				reqs, err := e.Requests()
				if err != nil {
					t.Fatal(err)
				}
				key, err := reqs.Key()
				if err != nil {
					t.Fatal(err)
				}
				ask := pki.Ask{Role: role, Name: "n1", Key: key}
				grant, err := rec.Verify(token, ask, now)
				if err != nil {
					t.Fatal(err)
				}
				b, err := c.Enrol(reqs, grant, func(pki.Identity) (bool, error) { return known, nil })
				if err != nil {
					t.Fatal(err)
				}
				rec, known = rec.Consume(ask, now), true
				return e, b
			}
			enrol() // the answer is lost, the node restarts
			e, b := enrol()
			_, root, err := pki.ParseJoinToken(token)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Install(b, root); err != nil {
				t.Fatal(err)
			}
			if id := load(t, dir).Identity(); id.String() != "uac://prod/"+string(role)+"/n1" {
				t.Errorf("identity %s", id)
			}
			issued := tree(t, c.node(t, role, "n1"))
			if diff := cmp.Diff(issued, tree(t, dir)); diff != "" {
				t.Errorf("an enrolled directory differs from an issued one (-issued +enrolled):\n%s", diff)
			}
			if _, err := pki.NewEnrolment(dir, role, "n1", now); !errors.Is(err, pki.ErrEnrolled) {
				t.Errorf("second enrolment: %v", err)
			}
			if _, err := pki.NewEnrolment(dir, role, "n1", now.AddDate(1, 0, 0)); err != nil {
				t.Errorf("enrolment after expiry: %v", err)
			}
			// Another machine gets nothing for the used token.
			other, err := pki.NewEnrolment(t.TempDir(), role, "n1", now)
			if err != nil {
				t.Fatal(err)
			}
			reqs, err := other.Requests()
			if err != nil {
				t.Fatal(err)
			}
			key, err := reqs.Key()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rec.Verify(token, pki.Ask{Role: role, Name: "n1", Key: key}, now); !errors.Is(err, pki.ErrTokenUsed) {
				t.Errorf("second use: %v", err)
			}
		})
	}
}

// A node believes an answer only if all of it belongs to the pinned root and to its
// own request; else it writes nothing.
func TestInstallOfEnrolmentRefuses(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	now := time.Now()
	dir := t.TempDir()
	e, err := pki.NewEnrolment(dir, pki.Agent, "a1", now)
	if err != nil {
		t.Fatal(err)
	}
	reqs, err := e.Requests()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c cluster, reqs pki.Requests, role pki.Role, name string) pki.Bundle {
		b, err := c.Enrol(reqs, pki.Grant{Role: role, Name: name}, nobodyKnown)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := sign(c, reqs, pki.Agent, "a1")
	foreign := sign(twin, reqs, pki.Agent, "a1")
	before := snapshot(t, dir)
	with := func(change func(b *pki.Bundle)) pki.Bundle {
		b := pki.Bundle{CAs: maps.Clone(good.CAs), Certs: maps.Clone(good.Certs)}
		change(&b)
		return b
	}
	for name, b := range map[string]pki.Bundle{
		"nothing":               {},
		"of another cluster":    foreign,
		"another root":          with(func(b *pki.Bundle) { b.CAs[pki.Root] = foreign.CAs[pki.Root] }),
		"two roots":             with(func(b *pki.Bundle) { b.CAs[pki.Root] = append(b.CAs[pki.Root], foreign.CAs[pki.Root]...) }),
		"another members CA":    with(func(b *pki.Bundle) { b.CAs[pki.Members] = foreign.CAs[pki.Members] }),
		"members CA twice":      with(func(b *pki.Bundle) { b.CAs[pki.Nodes] = b.CAs[pki.Members] }),
		"no api CA":             with(func(b *pki.Bundle) { delete(b.CAs, pki.API) }),
		"no certificate":        with(func(b *pki.Bundle) { delete(b.Certs, pki.Nodes) }),
		"a foreign certificate": with(func(b *pki.Bundle) { b.Certs[pki.Nodes] = foreign.Certs[pki.Nodes] }),
		"another's key":         sign(c, pki.Requests{pki.Nodes: greedy(t, p256(t))}, pki.Agent, "a1"),
		"another name":          sign(c, reqs, pki.Agent, "a2"),
		"another role": with(func(b *pki.Bundle) {
			b.Certs = sign(c, pki.Requests{pki.API: reqs[pki.Nodes], pki.Nodes: reqs[pki.Nodes]}, pki.Relay, "a1").Certs
		}),
	} {
		if err := e.Install(b, c.RootFingerprint()); err == nil {
			t.Errorf("%s: installed", name)
		}
		if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
			t.Fatalf("%s: files changed:\n%s", name, diff)
		}
	}
	if err := e.Install(good, twin.RootFingerprint()); err == nil {
		t.Error("installed with the fingerprint of another cluster")
	}
	if err := e.Install(good, c.RootFingerprint()); err != nil {
		t.Fatal(err)
	}

	// Once in a cluster, a directory does not change over to another, not even when
	// its certificate has expired.
	again, err := pki.NewEnrolment(dir, pki.Agent, "a1", now.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Install(foreign, twin.RootFingerprint()); err == nil {
		t.Error("a directory joined a second cluster")
	}
}

func TestNewEnrolmentRefuses(t *testing.T) {
	now := time.Now()
	for name, try := range map[string]func(dir string) error{
		"a controller": func(dir string) error { _, err := pki.NewEnrolment(dir, pki.Controller, "c1", now); return err },
		"no role":      func(dir string) error { _, err := pki.NewEnrolment(dir, "", "c1", now); return err },
		"a bad name":   func(dir string) error { _, err := pki.NewEnrolment(dir, pki.Agent, "A 1", now); return err },
		"an open key": func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, "node.key"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := pki.NewEnrolment(dir, pki.Agent, "a1", now)
			return err
		},
	} {
		if err := try(t.TempDir()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
