package api_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// Every kind of error is a problem document that says what is wrong.
func TestProblems(t *testing.T) {
	state := sample()
	wrapped := func(err error) error { return fmt.Errorf("%w: because", err) }
	state.Errors = map[string]error{
		"ListAgents":    wrapped(api.ErrNoRoom),
		"ListLocks":     wrapped(api.ErrUnavailable),
		"ListEvents":    errors.New("the secret is hunter2"),
		"ListTokens":    wrapped(api.ErrInvalid),
		"DeleteToken":   wrapped(api.ErrConflict),
		"DeleteProcess": wrapped(api.ErrUnavailable),
	}
	state.Panics = map[string]bool{"GetAgent": true}
	url := serve(t, apitest.New(state), api.Deps{})
	step := func(fields string) string {
		return `{"processes":[{"name":"p","steps":[{"name":"s","agent":{"name":"a1"},"run":"true"` + fields + `}]}]}`
	}
	id := apitest.RequestID(1)
	var b strings.Builder
	for _, tt := range []struct {
		name, method, path, body string
	}{
		{"no such path", "GET", "/v1/nosuch", ""},
		{"no path at all", "GET", "/", ""},
		{"wrong method", "PATCH", "/v1/nodes", ""},
		{"no room", "GET", "/v1/agents", ""},
		{"outcome unknown", "DELETE", "/v1/processes/deploy", ""},
		{"cannot read", "GET", "/v1/locks", ""},
		{"internal error", "GET", "/v1/events", ""},
		{"invalid", "GET", "/v1/tokens", ""},
		{"conflict", "DELETE", "/v1/tokens/t1", ""},
		{"panic", "GET", "/v1/agents/a1", ""},
		{"no such node", "GET", "/v1/nodes/c9", ""},
		{"no such request", "GET", "/v1/requests/" + apitest.RequestID(9), ""},
		{"a request id that cannot be", "GET", "/v1/requests/latest", ""},
		{"a name that cannot be", "GET", "/v1/processes/..%2F..%2Ftokens%2Ft1", ""},
		{"unknown parameter in the URL", "GET", "/v1/requests?stauts=failed", ""},
		{"bad parameter in the URL", "GET", "/v1/requests?status=broken&limit=0", ""},
		{"the same parameter twice", "GET", "/v1/requests?limit=1&limit=2", ""},
		{"two reasons", "DELETE", "/v1/processes/deploy?why=a&why=b", ""},
		{"a reason that is not UTF-8", "DELETE", "/v1/processes/deploy?why=%ff%fe", ""},
		{"a parameter's name that is not UTF-8", "GET", "/v1/requests?%ff=1", ""},
		{"a query that is none", "DELETE", "/v1/processes/deploy?why=%zz", ""},
		{"no body", "POST", "/v1/requests", ""},
		{"no JSON", "POST", "/v1/requests", `{"process":`},
		{"two JSON documents", "POST", "/v1/requests", `{"process":"deploy"} {"process":"deploy"}`},
		{"wrong type of JSON", "POST", "/v1/requests", `["deploy"]`},
		{"null", "POST", "/v1/requests", `null`},
		{"wrong type of a field", "POST", "/v1/requests", `{"process":"deploy","params":{"version":1}}`},
		{"unknown field", "POST", "/v1/requests", `{"process":"deploy","parms":{}}`},
		{"the same field twice", "POST", "/v1/requests", `{"process":"deploy","params":{"version":"1"},"process":"nosuch"}`},
		{"the same inside twice", "POST", "/v1/processes", step(`,"env":{"A":"1","a":"2","A":"3"}`)},
		{"the same field twice after others", "POST", "/v1/processes", step(`,"argv":[],"run":"false"`)},
		{"no name twice", "POST", "/v1/requests", `{"process":"deploy","params":{"":"a","b":"","":"c"}}`},
		{"field in another case", "POST", "/v1/requests", `{"Process":"deploy"}`},
		{"field with a letter that folds", "POST", "/v1/requests", `{"proce\u017fs":"deploy"}`},
		{"deep", "POST", "/v1/requests", `{"process":"deploy","params":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`},
		{"half a character", "POST", "/v1/requests", `{"process":"deploy","params":{"version":"\ud800x"}}`},
		{"the other half", "POST", "/v1/requests", `{"process":"deploy","params":{"version":"\\\udc00"}}`},
		{"half a character in a name", "POST", "/v1/requests", `{"process":"deploy","params":{"\ud800\u0041":"1"}}`},
		{"missing field", "POST", "/v1/requests", `{"params":{}}`},
		{"missing parameter", "POST", "/v1/requests", `{"process":"deploy"}`},
		{"no such process", "POST", "/v1/requests", `{"process":"nosuch"}`},
		{"a process that cannot be", "POST", "/v1/requests", `{"process":"../x"}`},
		{"no documents", "POST", "/v1/processes", `{"processes":[]}`},
		{"no documents of any kind", "POST", "/v1/documents", `{}`},
		{"documents of a kind that is not", "POST", "/v1/documents", `{"triggers":[]}`},
		{"bad documents of two kinds", "POST", "/v1/documents", `{"processes":[{"name":"p","steps":[]}],"agent_clusters":[{"name":"c"},{"name":"c","agents":["a1"],"distribution":"some"}]}`},
		{"limit below nothing", "POST", "/v1/agents/a1/limit", `{"limit":-1}`},
		{"agent that is connected", "DELETE", "/v1/agents/a1", ""},
		{"no agent cluster", "DELETE", "/v1/agent-clusters/none", ""},
		{"no member", "POST", "/v1/agent-clusters/web/suspend?agent=a9", ""},
		{"null documents", "POST", "/v1/processes", `{"processes":null}`},
		{"step without anything", "POST", "/v1/processes", `{"processes":[{"name":"p","steps":[{"name":"s"}]}]}`},
		{"unknown field of a step", "POST", "/v1/processes", step(`,"rum":"true"`)},
		{"bad duration", "POST", "/v1/processes", step(`,"timeout":"soon"`)},
		{"negative duration", "POST", "/v1/processes", step(`,"timeout":"-1s"`)},
		{"cycle", "POST", "/v1/processes", step(`,"needs":["s"]`)},
		{"name with a slash", "POST", "/v1/processes", `{"processes":[{"name":"a/b","steps":[{"name":"s/t","agent":{"name":"a1"},"run":"true"}]}]}`},
		{"the same twice", "POST", "/v1/processes", strings.Replace(step(""), `]}]}`, `]},{"name":"p","steps":[{"name":"s","agent":{"name":"a1"},"run":"true"}]}]}`, 1)},
		{"bad resolution", "POST", "/v1/requests/" + id + "/resolve", `{"step":"fetch","as":"done"}`},
		{"nothing to resolve", "POST", "/v1/requests/" + id + "/resolve", `{"step":"fetch","as":"success"}`},
		{"no such step", "POST", "/v1/requests/" + id + "/resolve", `{"step":"nosuch","as":"success"}`},
		{"hold of a step without a name", "POST", "/v1/requests/" + id + "/hold", `{"step":""}`},
		{"cancel of one step", "POST", "/v1/requests/" + id + "/cancel", `{"step":"fetch"}`},
		{"lost without a statement", "POST", "/v1/nodes/confirm-lost", `{"nodes":["c2"]}`},
		{"lost with another statement", "POST", "/v1/nodes/confirm-lost", `{"nodes":["c2"],"statement":"sure"}`},
		{"lost: nobody", "POST", "/v1/nodes/confirm-lost", `{"nodes":[],"statement":"switched off"}`},
		{"lost twice", "POST", "/v1/nodes/confirm-lost", `{"nodes":["c2","c2"],"statement":"switched off"}`},
		{"remove an Active", "DELETE", "/v1/nodes/c1", ""},
		{"reason too long", "DELETE", "/v1/nodes/c1?why=" + strings.Repeat("x", 501), ""},
		{"token with a bad lifetime", "POST", "/v1/tokens", `{"role":"agent","ttl":"-1h"}`},
		{"token that lives for no time", "POST", "/v1/tokens", `{"role":"viewer","ttl":"0s"}`},
		{"token with a bad name", "POST", "/v1/tokens", `{"role":"viewer","name":"a\u0007"}`},
		{"token of no role", "POST", "/v1/tokens", `{"role":"root"}`},
		{"API token that replaces", "POST", "/v1/tokens", `{"role":"admin","name":"bob","replace":true}`},
		{"logs of no step", "GET", "/v1/requests/" + id + "/logs", ""},
		{"logs of no such step", "GET", "/v1/requests/" + id + "/logs?step=nosuch", ""},
	} {
		got := do(t, tt.method, url+tt.path, tt.body, append(as("admin"), "X-Request-Id", "call-1", "Content-Type", "application/json")...)
		path := tt.path
		if len(path) > 100 {
			path = path[:100] + "..."
		}
		fmt.Fprintf(&b, "# %s\n%s %s %s\n%d %s\n%s\n", tt.name, tt.method, path, tt.body, got.status, got.header.Get("Content-Type"), got.body)
	}
	golden(t, "problems.txt", b.String())
}

func TestRetryAfter(t *testing.T) {
	state := sample()
	state.Errors = map[string]error{"ListLocks": api.ErrUnavailable}
	b := apitest.New(state)
	url := serve(t, b, api.Deps{})
	got := do(t, http.MethodGet, url+"/v1/locks", "", as("viewer")...)
	if got.status != 503 || got.header.Get("Retry-After") != "1" || !strings.Contains(got.body, api.ProblemUnknown) {
		t.Errorf("a failed commit: %d %v %s", got.status, got.header, got.body)
	}
	b.Update(func(s *apitest.State) { s.Ready = errors.New("no majority echoes") })
	got = do(t, http.MethodGet, url+"/v1/locks", "", as("viewer")...)
	if got.status != 503 || got.header.Get("Retry-After") != "1" || !strings.Contains(got.body, api.ProblemNotReady) {
		t.Errorf("no trust: %d %v %s", got.status, got.header, got.body)
	}
}

// Without trust nothing is answered but probes, confirm-lost and what may be
// stale; and nobody is told that a good token is bad.
func TestNotReady(t *testing.T) {
	state := sample()
	state.Ready = errors.New("no majority echoes")
	b := apitest.New(state)
	url := serve(t, b, api.Deps{})
	for pattern := range operations(t, url) {
		if pattern == "POST /v1/nodes/confirm-lost" {
			continue
		}
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{name}", "c1", "{id}", "x").Replace(path)
		if got := do(t, method, url+path, "", as("admin")...); got.status != 503 {
			t.Errorf("%s: %d, want 503", pattern, got.status)
		}
		if got := do(t, method, url+path, "", as("not known here yet")...); got.status != 503 {
			t.Errorf("%s with an unknown token: %d, want 503", pattern, got.status)
		}
	}
	for _, path := range []string{"/v1/nodes?stale=true", "/v1/nodes/c2?stale=true"} {
		got := do(t, http.MethodGet, url+path, "", as("viewer")...)
		if got.status != 200 || got.header.Get(api.HeaderStale) != "true" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
		if got := do(t, http.MethodGet, url+path, "", as("wrong")...); got.status != 401 {
			t.Errorf("%s with a wrong token: %d", path, got.status)
		}
	}
	if got := do(t, http.MethodGet, url+"/v1/agents?stale=true", "", as("viewer")...); got.status != 503 {
		t.Errorf("stale agents: %d", got.status)
	}
	lost := `{"nodes":["c2","w1"],"statement":"switched off"}`
	for token, want := range map[string]int{"wrong": 401, "operator": 403, "admin": 200} {
		got := do(t, http.MethodPost, url+"/v1/nodes/confirm-lost?why=fire", lost, as(token)...)
		if got.status != want {
			t.Errorf("confirm-lost by %s: %d %s", token, got.status, got.body)
		}
	}
	if calls := b.Calls(); len(calls) != 1 || calls[0] != "ConfirmLost c2,w1 by admin because fire" {
		t.Errorf("calls: %q", calls)
	}
	b.Update(func(s *apitest.State) { s.Ready = nil })
	if got := do(t, http.MethodGet, url+"/v1/nodes?stale=true", "", as("viewer")...); got.header.Get(api.HeaderStale) != "" {
		t.Error("an answer with trust is marked stale")
	}
}

// Problems that the backend lists reach the client one by one.
func TestProblemsOfTheBackend(t *testing.T) {
	state := sample()
	state.Errors = map[string]error{"Accept": fmt.Errorf("accept: %w", roles.Problems{{File: "process deploy", Field: "params.x", Message: "is required"}})}
	url := serve(t, apitest.New(state), api.Deps{})
	got := do(t, http.MethodPost, url+"/v1/requests", `{"process":"deploy"}`, as("operator")...)
	if got.status != 422 || !strings.Contains(got.body, `{"message":"is required","location":"process deploy: params.x"}`) {
		t.Errorf("%d %s", got.status, got.body)
	}
}
