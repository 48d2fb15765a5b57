package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
	"uac/roles/wire/pki"
)

// operation is one operation of the OpenAPI document.
type operation struct {
	ID       string                `json:"operationId"`
	Access   string                `json:"x-uac-access"`
	Security []map[string][]string `json:"security"`
}

// operations reads the document that a server describes itself with.
func operations(t *testing.T, url string) map[string]operation {
	t.Helper()
	got := do(t, http.MethodGet, url+"/openapi.json", "", as("viewer")...)
	var doc struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal([]byte(got.body), &doc); err != nil {
		t.Fatalf("%v in %s", err, got.body)
	}
	ops := map[string]operation{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			ops[strings.ToUpper(method)+" "+path] = op
		}
	}
	return ops
}

// Every operation is refused without a token, with a wrong one and with one of
// less access than it needs, and no other: nobody exceeds their role.
func TestAccessOfEveryOperation(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{Metrics: http.NotFoundHandler()})
	ops := operations(t, url)
	if len(ops) < 30 {
		t.Fatalf("only %d operations are described", len(ops))
	}
	ops["GET /metrics"] = operation{Access: "viewer", Security: []map[string][]string{{"token": {}}}}
	ops["GET /openapi.json"] = ops["GET /metrics"]
	for _, pattern := range slices.Sorted(maps.Keys(ops)) {
		op := ops[pattern]
		t.Run(pattern, func(t *testing.T) {
			if len(op.Security) != 1 || op.Security[0]["token"] == nil {
				t.Errorf("is described without the need of a token: %v", op.Security)
			}
			need, err := pki.ParseAccess(op.Access)
			if err != nil {
				t.Fatal(err)
			}
			method, path, _ := strings.Cut(pattern, " ")
			path = strings.NewReplacer("{name}", "nosuch", "{id}", "nosuch").Replace(path)
			for _, token := range []string{"", "wrong", "viewer", "operator", "admin"} {
				var headers []string
				if token != "" {
					headers = as(token)
				}
				// A body that no route takes: nothing must come of the call.
				got := do(t, method, url+path, `{"no":"such field"}`, append(headers, "Content-Type", "application/json")...)
				refused := got.status == http.StatusUnauthorized || got.status == http.StatusForbidden
				want := 0
				switch {
				case token == "" || token == "wrong":
					want = http.StatusUnauthorized
				case !pki.Access(token).Allows(need):
					want = http.StatusForbidden
				}
				if want != 0 && got.status != want || want == 0 && refused {
					t.Errorf("token %q: %d, want %d: %s", token, got.status, want, got.body)
				}
				if refused && got.header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("token %q: the refusal is %s", token, got.header.Get("Content-Type"))
				}
			}
		})
	}
}

// What is written in each operation's access is a decision, so it is written
// down twice.
func TestAccessTable(t *testing.T) {
	ops := operations(t, serve(t, apitest.New(sample()), api.Deps{}))
	var b strings.Builder
	for _, pattern := range slices.Sorted(maps.Keys(ops)) {
		fmt.Fprintf(&b, "%-8s %s\n", ops[pattern].Access, pattern)
	}
	golden(t, "access.txt", b.String())
}

func TestTokensInHeaders(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{}) + "/v1/nodes"
	for _, tt := range []struct {
		name    string
		headers []string
		status  int
	}{
		{"bearer", []string{"Authorization", "Bearer viewer"}, 200},
		{"the scheme in any case", []string{"Authorization", "bEARER   viewer "}, 200},
		{"another scheme", []string{"Authorization", "Basic viewer"}, 401},
		{"no scheme", []string{"Authorization", "viewer"}, 401},
		{"no token", []string{"Authorization", "Bearer "}, 401},
		{"two tokens in one", []string{"Authorization", "Bearer wrong viewer"}, 401},
		{"two headers", []string{"Authorization", "Bearer viewer", "Authorization", "Bearer admin"}, 401},
		{"in a cookie", []string{"Cookie", "Authorization=Bearer viewer"}, 401},
	} {
		if got := do(t, http.MethodGet, url, "", tt.headers...); got.status != tt.status {
			t.Errorf("%s: %d, want %d", tt.name, got.status, tt.status)
		} else if tt.status == 401 && got.header.Get("WWW-Authenticate") != `Bearer realm="uac"` {
			t.Errorf("%s: no challenge", tt.name)
		}
	}
	if got := do(t, http.MethodGet, url+"?token=viewer", ""); got.status != 401 {
		t.Errorf("a token in the URL: %d", got.status)
	}
}

// A token that another controller made a moment ago is found.
func TestTokenMadeElsewhere(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	b.Update(func(s *apitest.State) {
		s.OnSync = func(s *apitest.State) { s.Access["fresh"] = "viewer" }
	})
	if got := do(t, http.MethodGet, url+"/v1/nodes", "", as("fresh")...); got.status != 200 {
		t.Errorf("got %d: %s", got.status, got.body)
	}
}

// Guessing tokens does not make the cluster work for each guess.
func TestGuessesAreCheap(t *testing.T) {
	b := apitest.New(sample())
	s, err := api.New(api.Config{}, b, api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	s.LimitMisses(3)
	url := serveHandler(t, s.Handler())
	asked := 0
	for range 10 {
		b.Update(func(s *apitest.State) { s.OnSync = func(*apitest.State) { asked++ } })
		do(t, http.MethodGet, url+"/v1/nodes", "", as("wrong")...)
	}
	if asked != 3 {
		t.Errorf("10 wrong tokens asked the cluster %d times, want 3", asked)
	}
}

func TestRequireAccess(t *testing.T) {
	b := apitest.New(sample())
	h := api.RequireAccess(pki.Viewer, b.Authenticate, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	}))
	url := serveHandler(t, api.NewProbes(b.Self, h))
	for token, want := range map[string]int{"wrong": 401, "viewer": 204, "admin": 204} {
		if got := do(t, http.MethodGet, url+"/metrics", "", as(token)...); got.status != want {
			t.Errorf("token %s: %d, want %d", token, got.status, want)
		}
	}
}
