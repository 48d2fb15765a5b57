package pki_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"uac/roles/wire/pki"
)

const someRoot = "a3f1c2d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90"

func newJoinToken(t testing.TB, spec pki.JoinTokenSpec, now time.Time) (string, pki.JoinToken) {
	t.Helper()
	if spec.RootFingerprint == "" {
		spec.RootFingerprint = someRoot
	}
	if spec.TTL == 0 {
		spec.TTL = time.Hour
	}
	token, rec, err := pki.NewJoinToken(spec, now)
	if err != nil {
		t.Fatal(err)
	}
	return token, rec
}

func newAPIToken(t testing.TB, spec pki.APITokenSpec, now time.Time) (string, pki.APIToken) {
	t.Helper()
	token, rec, err := pki.NewAPIToken(spec, now)
	if err != nil {
		t.Fatal(err)
	}
	return token, rec
}

// stored passes a record through what the store does to it, and makes sure that it
// does not give the secret away.
func stored[R any](t *testing.T, token string, rec R) R {
	t.Helper()
	text, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(token, "_")[2:] {
		if strings.Contains(string(text), part) {
			t.Errorf("the record holds a secret part of the token: %s", text)
		}
	}
	var back R
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

func TestJoinToken(t *testing.T) {
	now := time.Now()
	ask := func(name string) pki.Ask { return pki.Ask{Role: pki.Agent, Name: name, Key: "k1"} }
	use := func(rec pki.JoinToken, a pki.Ask) pki.JoinToken { return rec.Consume(a, now) }
	same := func(rec pki.JoinToken) pki.JoinToken { return rec }
	tests := []struct {
		name  string
		spec  pki.JoinTokenSpec
		state func(pki.JoinToken) pki.JoinToken
		ask   pki.Ask
		after time.Duration
		want  error // nil: granted
	}{
		{"exact name", pki.JoinTokenSpec{Role: pki.Agent, Name: "a1"}, same, ask("a1"), 0, nil},
		{"other name", pki.JoinTokenSpec{Role: pki.Agent, Name: "a1"}, same, ask("a2"), 0, pki.ErrTokenNotFor},
		{"pattern", pki.JoinTokenSpec{Role: pki.Agent, Name: "web-*"}, same, ask("web-17.example.com"), 0, nil},
		{"outside of the pattern", pki.JoinTokenSpec{Role: pki.Agent, Name: "web-*"}, same, ask("db-1"), 0, pki.ErrTokenNotFor},
		{"any name", pki.JoinTokenSpec{Role: pki.Agent}, same, ask("a1"), 0, nil},
		{"other role", pki.JoinTokenSpec{Role: pki.Relay}, same, ask("a1"), 0, pki.ErrTokenNotFor},
		{"just before expiry", pki.JoinTokenSpec{Role: pki.Agent, TTL: time.Minute}, same, ask("a1"), time.Minute - 1, nil},
		{"expired", pki.JoinTokenSpec{Role: pki.Agent, TTL: time.Minute}, same, ask("a1"), time.Minute, pki.ErrTokenExpired},
		{"used by another", pki.JoinTokenSpec{Role: pki.Agent}, func(r pki.JoinToken) pki.JoinToken { return use(r, ask("a2")) }, ask("a1"), 0, pki.ErrTokenUsed},
		{"used by the same name with another key", pki.JoinTokenSpec{Role: pki.Agent}, func(r pki.JoinToken) pki.JoinToken {
			return use(r, pki.Ask{Role: pki.Agent, Name: "a1", Key: "k2"})
		}, ask("a1"), 0, pki.ErrTokenUsed},
		{"repeated", pki.JoinTokenSpec{Role: pki.Agent}, func(r pki.JoinToken) pki.JoinToken { return use(r, ask("a1")) }, ask("a1"), 0, nil},
		{"repeated too late", pki.JoinTokenSpec{Role: pki.Agent, TTL: time.Minute}, func(r pki.JoinToken) pki.JoinToken { return use(r, ask("a1")) }, ask("a1"), time.Minute, pki.ErrTokenExpired},
		{"used twice keeps the first", pki.JoinTokenSpec{Role: pki.Agent}, func(r pki.JoinToken) pki.JoinToken { return use(use(r, ask("a2")), ask("a1")) }, ask("a1"), 0, pki.ErrTokenUsed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token, rec := newJoinToken(t, tt.spec, now)
			rec = stored(t, token, tt.state(stored(t, token, rec)))
			g, err := rec.Verify(token, tt.ask, now.Add(tt.after))
			if !errors.Is(err, tt.want) {
				t.Fatalf("error = %v, want %v", err, tt.want)
			}
			if err == nil && (g.Role != tt.ask.Role || g.Name != tt.ask.Name || g.Replace != (rec.Used != nil)) {
				t.Errorf("grant = %+v", g)
			}
			if err != nil && g.Name != "" {
				t.Errorf("an error with a grant: %+v", g)
			}
			id, root, err := pki.ParseJoinToken(token)
			if err != nil || id != rec.ID || root != someRoot {
				t.Errorf("ParseJoinToken = %q, %q, %v", id, root, err)
			}
		})
	}
	token, rec := newJoinToken(t, pki.JoinTokenSpec{Role: pki.Agent, Name: "a1"}, now)
	if _, err := rec.Verify(token, ask("A 1/x"), now); err == nil {
		t.Error("a malformed name was granted")
	}
}

// The hosts of an API certificate come from the token. A node that chooses its own
// name gets no certificate for a host of that name.
func TestJoinTokenHosts(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		spec pki.JoinTokenSpec
		want string
	}{
		{pki.JoinTokenSpec{Role: pki.Relay, Name: "r1"}, "r1 localhost 127.0.0.1 ::1"},
		{pki.JoinTokenSpec{Role: pki.Relay, Name: "r*"}, ""},
		{pki.JoinTokenSpec{Role: pki.Relay, Name: "r*", Hosts: []string{"r.example.com"}}, "r.example.com"},
	} {
		token, rec := newJoinToken(t, tt.spec, now)
		g, err := rec.Verify(token, pki.Ask{Role: pki.Relay, Name: "r1"}, now)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(g.Hosts, " "); got != tt.want {
			t.Errorf("%+v: hosts %q, want %q", tt.spec, got, tt.want)
		}
	}
}

func TestNewJoinTokenRefuses(t *testing.T) {
	good := pki.JoinTokenSpec{Role: pki.Agent, Name: "a1", TTL: time.Hour, RootFingerprint: someRoot}
	for name, change := range map[string]func(*pki.JoinTokenSpec){
		"controller":            func(s *pki.JoinTokenSpec) { s.Role = pki.Controller },
		"unknown role":          func(s *pki.JoinTokenSpec) { s.Role = "viewer" },
		"bad name":              func(s *pki.JoinTokenSpec) { s.Name = "a/1" },
		"upper case":            func(s *pki.JoinTokenSpec) { s.Name = "A1" },
		"bad pattern":           func(s *pki.JoinTokenSpec) { s.Name = "a[" },
		"pattern that replaces": func(s *pki.JoinTokenSpec) { s.Name, s.Replace = "*", true },
		"any that replaces":     func(s *pki.JoinTokenSpec) { s.Name, s.Replace = "", true },
		"no ttl":                func(s *pki.JoinTokenSpec) { s.TTL = 0 },
		"negative ttl":          func(s *pki.JoinTokenSpec) { s.TTL = -1 },
		"bad host":              func(s *pki.JoinTokenSpec) { s.Hosts = []string{"*"} },
		"no root":               func(s *pki.JoinTokenSpec) { s.RootFingerprint = "" },
		"short root":            func(s *pki.JoinTokenSpec) { s.RootFingerprint = "abcd" },
	} {
		spec := good
		change(&spec)
		if token, rec, err := pki.NewJoinToken(spec, time.Now()); err == nil {
			t.Errorf("%s: %s %+v", name, token, rec)
		}
	}
	if _, _, err := pki.NewJoinToken(good, time.Now()); err != nil {
		t.Error(err)
	}
}

func TestAPIToken(t *testing.T) {
	now := time.Now()
	token, rec := newAPIToken(t, pki.APITokenSpec{Name: "alice", Role: pki.Operator, TTL: time.Hour, CreatedBy: "root"}, now)
	rec = stored(t, token, rec)
	if id, err := pki.APITokenID(token); err != nil || id != rec.ID {
		t.Errorf("APITokenID = %q, %v", id, err)
	}
	if rec.Name != "alice" || rec.Role != pki.Operator || rec.CreatedBy != "root" || !rec.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("record %+v", rec)
	}
	other, otherRec := newAPIToken(t, pki.APITokenSpec{Name: "bob", Role: pki.Viewer}, now)
	sameID := otherRec
	sameID.ID = rec.ID
	for _, tt := range []struct {
		name  string
		token string
		rec   pki.APIToken
		after time.Duration
		want  error
	}{
		{"right", token, rec, 0, nil},
		{"just before expiry", token, rec, time.Hour - 1, nil},
		{"expired", token, rec, time.Hour, pki.ErrTokenExpired},
		{"never expires", other, stored(t, other, otherRec), 1000 * time.Hour, nil},
		{"another token", other, rec, 0, pki.ErrTokenWrong},
		{"another secret under the same id", token, sameID, 0, pki.ErrTokenWrong},
		{"an expired other token tells nothing", other, rec, 2 * time.Hour, pki.ErrTokenWrong},
		{"an empty record", token, pki.APIToken{}, 0, pki.ErrTokenWrong},
		{"an empty token", "", rec, 0, pki.ErrTokenMalformed},
		{"an empty token and record", "", pki.APIToken{}, 0, pki.ErrTokenMalformed},
	} {
		if err := tt.rec.Verify(tt.token, now.Add(tt.after)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	for _, spec := range []pki.APITokenSpec{
		{Name: "x", Role: "root"}, {Name: "x"}, {Role: pki.Admin}, {Name: "x", Role: pki.Admin, TTL: -1},
	} {
		if _, _, err := pki.NewAPIToken(spec, now); err == nil {
			t.Errorf("%+v was accepted", spec)
		}
	}
}

func TestAccess(t *testing.T) {
	order := []pki.Access{"", pki.Viewer, pki.Operator, pki.Admin}
	for i, have := range order {
		for j, need := range order {
			if got, want := have.Allows(need), j > 0 && i >= j; got != want {
				t.Errorf("%q allows %q = %t, want %t", have, need, got, want)
			}
		}
		if _, err := pki.ParseAccess(string(have)); (err == nil) != (i > 0) {
			t.Errorf("ParseAccess(%q): %v", have, err)
		}
	}
	if pki.Access("agent").Allows(pki.Viewer) || pki.Admin.Allows("agent") {
		t.Error("an unknown level counts")
	}
}

// Every change of a single character is found without asking anyone.
func TestTokenTampering(t *testing.T) {
	now := time.Now()
	join, _ := newJoinToken(t, pki.JoinTokenSpec{Role: pki.Agent}, now)
	api, _ := newAPIToken(t, pki.APITokenSpec{Name: "alice", Role: pki.Admin}, now)
	parse := func(token string) error {
		_, _, err := pki.ParseJoinToken(token)
		if _, apiErr := pki.APITokenID(token); apiErr == nil {
			err = nil
		}
		return err
	}
	for _, token := range []string{join, api} {
		if err := parse(token); err != nil {
			t.Fatal(err)
		}
		var bad []string
		for i := range token {
			bad = append(bad, token[:i], token[i+1:], token[:i]+token[i:i+1]+token[i:]) // cut, dropped, doubled
			for _, c := range "aq27_A=\n \x00é" {
				bad = append(bad, token[:i]+string(c)+token[i+1:], token[:i]+string(c)+token[i:])
			}
			if i > 0 {
				bad = append(bad, token[:i-1]+token[i:i+1]+token[i-1:i]+token[i+1:]) // swapped
			}
		}
		bad = append(bad, token+"a", token+"\n", " "+token, strings.ToUpper(token), token+token)
		tried := 0
		for _, b := range bad {
			if b == token {
				continue
			}
			tried++
			if err := parse(b); !errors.Is(err, pki.ErrTokenMalformed) {
				t.Errorf("%q: error = %v", b, err)
			}
		}
		if tried < 1000 {
			t.Errorf("only %d changes tried", tried)
		}
	}
}

func TestTokensAreCompact(t *testing.T) {
	now := time.Now()
	join, _ := newJoinToken(t, pki.JoinTokenSpec{Role: pki.Agent}, now)
	api, _ := newAPIToken(t, pki.APITokenSpec{Name: "alice", Role: pki.Admin}, now)
	for _, tt := range []struct {
		token  string
		length int
	}{{join, 133}, {api, 79}} {
		if len(tt.token) != tt.length || strings.Trim(tt.token, "abcdefghijklmnopqrstuvwxyz234567_") != "" {
			t.Errorf("%q has %d characters, want %d, URL-safe", tt.token, len(tt.token), tt.length)
		}
	}
	again, _ := newJoinToken(t, pki.JoinTokenSpec{Role: pki.Agent}, now)
	if again == join {
		t.Error("two tokens are the same")
	}
}

// A text that parses has one spelling, and only the right record accepts it.
func FuzzTokens(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	join, joinRec := newJoinToken(f, pki.JoinTokenSpec{Role: pki.Agent}, now)
	api, apiRec := newAPIToken(f, pki.APITokenSpec{Name: "alice", Role: pki.Admin}, now)
	f.Add(join)
	f.Add(api)
	f.Add("uac_")
	f.Add("uacj_aaaaaaaaaaaaaaaa__")
	f.Fuzz(func(t *testing.T, token string) {
		id, root, err := pki.ParseJoinToken(token)
		if err == nil && (len(token) != len(join) || len(id) != 16 || len(root) != 64 || !strings.HasPrefix(token, "uacj_"+id+"_")) {
			t.Errorf("join token %q parses as %q, %q", token, id, root)
		}
		if _, err := joinRec.Verify(token, pki.Ask{Role: pki.Agent, Name: "a1"}, now); err == nil && token != join {
			// The root fingerprint is no secret and serves the node alone.
			if strings.Join(strings.Split(token, "_")[:3], "_") != strings.Join(strings.Split(join, "_")[:3], "_") {
				t.Errorf("join token %q was accepted for %q", token, join)
			}
		}
		if id, err := pki.APITokenID(token); err == nil && (len(token) != len(api) || len(id) != 16) {
			t.Errorf("API token %q parses as %q", token, id)
		}
		if apiRec.Verify(token, now) == nil && token != api {
			t.Errorf("API token %q was accepted for %q", token, api)
		}
	})
}
