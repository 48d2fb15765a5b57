package controller

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// newcomer is a machine that wants to join: its keys stay, as its directory does.
type newcomer struct {
	t   *testing.T
	dir string
	e   *pki.Enrolment
	ask *wire.EnrollRequest
}

func newNewcomer(t *testing.T, role pki.Role, name, token string) *newcomer {
	t.Helper()
	dir := t.TempDir()
	e, err := pki.NewEnrolment(dir, role, name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	reqs, err := e.Requests()
	if err != nil {
		t.Fatal(err)
	}
	ask := &wire.EnrollRequest{Token: token, Role: string(role), Name: name, Csr: reqs[pki.Nodes]}
	for ca, csr := range reqs {
		if ca != pki.Nodes {
			ask.More = append(ask.More, &wire.RenewRequest{Ca: string(ca), Csr: csr})
		}
	}
	return &newcomer{t: t, dir: dir, e: e, ask: ask}
}

// enroll asks a controller.
func (c *newcomer) enroll(n *node) (*wire.EnrollResponse, error) {
	return (&enrollServer{c: n.Controller}).Enroll(c.t.Context(), c.ask)
}

// install checks and installs what the controller gave.
func (c *newcomer) install(resp *wire.EnrollResponse, root string) {
	c.t.Helper()
	b := pki.Bundle{CAs: map[pki.CA][]byte{}, Certs: map[pki.CA][]byte{pki.Nodes: resp.GetCertificate().GetChain()}}
	for name, pem := range resp.GetCas() {
		b.CAs[pki.CA(name)] = pem
	}
	for i, more := range resp.GetMore() {
		b.Certs[pki.CA(c.ask.GetMore()[i].GetCa())] = more.GetChain()
	}
	if err := c.e.Install(b, root); err != nil {
		c.t.Errorf("what the controller gave does not fit: %v", err)
	}
}

func (n *node) token(spec api.TokenSpec) (text, id string) {
	n.w.t.Helper()
	if spec.TTL == 0 {
		spec.TTL = time.Hour
	}
	text, made, err := n.CreateToken(n.w.t.Context(), operator, spec)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return text, made.ID
}

func TestEnroll(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	root := w.ca.RootFingerprint()
	text, id := c1.token(api.TokenSpec{Role: "agent", Name: "a1"})
	m := newNewcomer(t, pki.Agent, "a1", text)
	resp, err := m.enroll(c1)
	if err != nil {
		t.Fatal(err)
	}
	m.install(resp, root)
	same(t, "the events", []string{"node.enrolled"}, c1.events("a1"))
	// The answer was lost: the same machine asks again.
	if resp, err = m.enroll(c1); err != nil {
		t.Fatalf("again: %v", err)
	}
	m.install(resp, root)
	tokens, err := c1.ListTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range tokens {
		if tok.ID == id && !tok.Used {
			t.Error("the token is not used up")
		}
	}
	if a, err := c1.GetAgent(t.Context(), "a1"); err != nil || a.Connected {
		t.Errorf("the agent is shown as %+v, %v; want it known and not connected", a, err)
	}
}

// TestEnrollRefuses: a refusal consumes no token and changes nothing else.
func TestEnrollRefuses(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	w.agent(c1, "taken", nil)
	used, _ := c1.token(api.TokenSpec{Role: "agent", Name: "first"})
	if _, err := newNewcomer(t, pki.Agent, "first", used).enroll(c1); err != nil {
		t.Fatal(err)
	}
	agentToken := func(name string) string {
		text, _ := c1.token(api.TokenSpec{Role: "agent", Name: name})
		return text
	}
	// A token of another time, made with this cluster's root.
	expired, record, err := pki.NewJoinToken(pki.JoinTokenSpec{Role: pki.Agent, Name: "a1", TTL: time.Minute,
		RootFingerprint: w.ca.RootFingerprint()}, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c1.commit1(coord.Tx{Then: []coord.Write{coord.Put(tokenKey(record.ID), encode(tokenRecord{Join: &record}))}})
	unknown, _, err := pki.NewJoinToken(pki.JoinTokenSpec{Role: pki.Agent, Name: "a1", TTL: time.Hour,
		RootFingerprint: w.ca.RootFingerprint()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	deleted, id := c1.token(api.TokenSpec{Role: "agent", Name: "a1"})
	if err := c1.DeleteToken(t.Context(), operator, id); err != nil {
		t.Fatal(err)
	}
	apiToken, _, err := c1.CreateToken(t.Context(), operator, api.TokenSpec{Role: "admin", Name: "op"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		role   pki.Role
		as     string
		token  string
		change func(*wire.EnrollRequest)
		want   codes.Code
	}{
		{"no token", pki.Agent, "a1", "", nil, codes.PermissionDenied},
		{"mistyped token", pki.Agent, "a1", used[:len(used)-1], nil, codes.PermissionDenied},
		{"unknown token", pki.Agent, "a1", unknown, nil, codes.PermissionDenied},
		{"deleted token", pki.Agent, "a1", deleted, nil, codes.PermissionDenied},
		{"token for people", pki.Agent, "a1", apiToken, nil, codes.PermissionDenied},
		{"expired token", pki.Agent, "a1", expired, nil, codes.PermissionDenied},
		{"used token", pki.Agent, "first", used, nil, codes.PermissionDenied},
		{"other name", pki.Agent, "a2", agentToken("a1"), nil, codes.PermissionDenied},
		{"other role", pki.Watch, "a1", agentToken("a1"), nil, codes.PermissionDenied},
		{"controller's role", pki.Agent, "a1", agentToken("a1"), func(r *wire.EnrollRequest) { r.Role = "controller" }, codes.PermissionDenied},
		{"further certificate", pki.Agent, "a1", agentToken("a1"), func(r *wire.EnrollRequest) {
			r.More = append(r.More, &wire.RenewRequest{Ca: string(pki.Members), Csr: r.GetCsr()})
		}, codes.PermissionDenied},
		{"no request for a certificate", pki.Agent, "a1", agentToken("a1"), func(r *wire.EnrollRequest) { r.Csr = nil }, codes.PermissionDenied},
		{"name that exists", pki.Agent, "taken", agentToken("taken"), nil, codes.AlreadyExists},
		{"name that exists, by a pattern", pki.Agent, "taken", agentToken("t*"), nil, codes.AlreadyExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newNewcomer(t, tt.role, tt.as, tt.token)
			if tt.change != nil {
				tt.change(m.ask)
			}
			before := c1.everything()
			resp, err := m.enroll(c1)
			if status.Code(err) != tt.want || resp != nil {
				t.Errorf("got %v, %v; want %v", resp, err, tt.want)
			}
			if secret, _, ok := strings.Cut(strings.TrimPrefix(tt.token, "uacj_"), "_"); ok && len(secret) > 20 && strings.Contains(fmt.Sprint(err), secret) {
				t.Errorf("the refusal tells of the token: %v", err)
			}
			if d := diff(before, c1.everything()); d != "" {
				t.Errorf("the refusal changed the store:\n%s", d)
			}
		})
	}
	t.Run("replaced", func(t *testing.T) {
		if _, err := c1.SuspendAgent(t.Context(), operator, "taken", true); err != nil {
			t.Fatal(err)
		}
		text, _ := c1.token(api.TokenSpec{Role: "agent", Name: "taken", Replace: true})
		m := newNewcomer(t, pki.Agent, "taken", text)
		resp, err := m.enroll(c1)
		if err != nil {
			t.Fatal(err)
		}
		m.install(resp, w.ca.RootFingerprint())
		if a, err := c1.GetAgent(t.Context(), "taken"); err != nil || !a.Suspended {
			t.Errorf("what operators have set is gone: %+v, %v", a, err)
		}
	})
	t.Run("no session", func(t *testing.T) {
		m := newNewcomer(t, pki.Agent, "a1", agentToken("a1"))
		c1.stop()
		if _, err := m.enroll(c1); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want unavailable", err)
		}
	})
}

// TestEnrollRace lets several machines, or one that repeats itself, enrol at the
// same moment at two controllers.
func TestEnrollRace(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 3})
	nodes := []*node{w.node("c1"), w.node("c2")}
	race := func(ms [2]*newcomer) (errs [2]error) {
		var wg sync.WaitGroup
		for i, m := range ms {
			wg.Go(func() { _, errs[i] = m.enroll(nodes[i]) })
		}
		wg.Wait()
		return errs
	}
	won := func(errs [2]error) int {
		n := 0
		for _, err := range errs {
			if err == nil {
				n++
			}
		}
		return n
	}
	for i := range 5 {
		name := fmt.Sprintf("a%d", i)
		t.Run("two machines, one token", func(t *testing.T) {
			text, _ := nodes[0].token(api.TokenSpec{Role: "agent", Name: name})
			errs := race([2]*newcomer{newNewcomer(t, pki.Agent, name, text), newNewcomer(t, pki.Agent, name, text)})
			if won(errs) != 1 {
				t.Errorf("got %v, want one of them to be let in", errs)
			}
		})
		t.Run("one machine that repeats itself", func(t *testing.T) {
			text, _ := nodes[0].token(api.TokenSpec{Role: "agent", Name: name + "b"})
			m := newNewcomer(t, pki.Agent, name+"b", text)
			if errs := race([2]*newcomer{m, m}); won(errs) != 2 {
				t.Errorf("got %v, want it to be let in both times", errs)
			}
		})
		t.Run("two tokens, one name", func(t *testing.T) {
			one, _ := nodes[0].token(api.TokenSpec{Role: "agent", Name: name + "c"})
			two, _ := nodes[1].token(api.TokenSpec{Role: "agent", Name: name + "*"})
			errs := race([2]*newcomer{newNewcomer(t, pki.Agent, name+"c", one), newNewcomer(t, pki.Agent, name+"c", two)})
			if won(errs) != 1 {
				t.Errorf("got %v, want one of them to be let in", errs)
			}
			for _, err := range errs {
				if err != nil && status.Code(err) != codes.AlreadyExists {
					t.Errorf("the other one was told %v, want that the name is taken", err)
				}
			}
		})
	}
}

// A node that has read nothing yet cannot call a good token wrong: without a majority
// an operator asks the one node that is left, as soon as it answers.
func TestTokenBeforeTheFirstLoad(t *testing.T) {
	text, _, err := pki.NewAPIToken(pki.APITokenSpec{Name: "first", Role: pki.Admin}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Authenticate(new(coord.View), text); !errors.Is(err, api.ErrUnavailable) || errors.Is(err, api.ErrUnauthenticated) {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestTokens(t *testing.T) {
	text, first, err := pki.NewAPIToken(pki.APITokenSpec{Name: "first", Role: pki.Admin}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, worldOptions{quota: 24 << 20, firstTokens: []pki.APIToken{first}})
	c1 := w.node("c1")
	c1.await1(tokenKey(first.ID))
	who := func(text string) string {
		a, access, err := c1.Authenticate(t.Context(), text)
		if err != nil {
			if !isErr(err, api.ErrUnauthenticated) {
				t.Errorf("got %v, want unauthenticated", err)
			}
			return "nobody"
		}
		return a.Name + " " + access
	}
	same(t, "the first token", "first admin", who(text))
	mine, id := c1.token(api.TokenSpec{Role: "viewer", Name: "me"})
	same(t, "a new token", "me viewer", who(mine))
	join, _ := c1.token(api.TokenSpec{Role: "agent", Name: "a1"})
	for _, tt := range []struct{ what, text string }{
		{"a join token", join}, {"no token", ""}, {"a mistyped token", mine[1:]},
		{"the secret of another one", mine[:len("uac_")+16] + text[len("uac_")+16:]},
	} {
		same(t, tt.what, "nobody", who(tt.text))
	}
	if err := c1.DeleteToken(t.Context(), operator, id); err != nil {
		t.Fatal(err)
	}
	same(t, "a deleted token", "nobody", who(mine))
	if err := c1.DeleteToken(t.Context(), operator, first.ID); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spec api.TokenSpec
		want error
	}{
		{api.TokenSpec{Role: "king", Name: "x", TTL: time.Hour}, api.ErrInvalid},
		{api.TokenSpec{Role: "admin", TTL: time.Hour}, api.ErrInvalid},
		{api.TokenSpec{Role: "controller", Name: "c9", TTL: time.Hour}, api.ErrInvalid},
		{api.TokenSpec{Role: "watch", Name: "w9", TTL: time.Hour}, api.ErrInvalid},
		{api.TokenSpec{Role: "agent", Name: "a*", Replace: true, TTL: time.Hour}, api.ErrInvalid},
		{api.TokenSpec{Role: "agent", Name: "a1"}, api.ErrInvalid},
	} {
		before := c1.everything()
		if _, _, err := c1.CreateToken(t.Context(), operator, tt.spec); !isErr(err, tt.want) {
			t.Errorf("%+v: got %v, want %v", tt.spec, err, tt.want)
		}
		if d := diff(before, c1.everything()); d != "" {
			t.Errorf("the refusal changed the store:\n%s", d)
		}
	}
	c1 = c1.restart()
	c1.settle()
	same(t, "the first token after it was deleted and the node restarted", "nobody", who(text))
	c1.fill(coord.RoomForGrowth)
	if _, _, err := c1.CreateToken(t.Context(), operator, api.TokenSpec{Role: "viewer", Name: "me"}); !isErr(err, api.ErrNoRoom) {
		t.Errorf("without room: %v", err)
	}
	if _, err := c1.Apply(t.Context(), operator, api.Documents{Processes: []roles.Process{process("p", step("one", "a1"))}}, false); !isErr(err, api.ErrNoRoom) {
		t.Errorf("without room: %v", err)
	}
}

// await1 waits until this node shows a key.
func (n *node) await1(key string) {
	n.w.t.Helper()
	n.w.cluster.Await(n.cfg.Name, key+" is there", func(snap coord.Snapshot) bool {
		_, ok := snap.Get(key)
		return ok
	})
}
