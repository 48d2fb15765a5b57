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

var probePaths = []string{
	"/uc/is_active_node.do", "/uc/is_active_node.do?api_version=2", "/healthz", "/readyz",
	"/uc/ops_node_info.do", "/uc/resources/clusternode/healthcheck", "/uc/resources/clusternode/list",
}

// The bodies of probes are a contract, byte for byte.
func TestProbes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*apitest.State)
	}{
		{"active", func(*apitest.State) {}},
		{"passive", func(s *apitest.State) { s.Self.Node.Mode = roles.ModePassive }},
		{"offline", func(s *apitest.State) {
			s.Self.Node.Mode = roles.ModeOffline
			s.Self.Reason = "first start: waiting for c2, w1"
			s.Ready = errors.New("no session")
			s.Errors = map[string]error{"ListNodes": errors.New("no session")}
		}},
		{"untrusted", func(s *apitest.State) { s.Self.Node.Mode = roles.ModeOffline }},
	} {
		state := sample()
		tt.change(&state)
		url := serve(t, apitest.New(state), api.Deps{})
		var b strings.Builder
		for _, path := range probePaths {
			got := do(t, http.MethodGet, url+path, "")
			fmt.Fprintf(&b, "GET %s\n%d %s\n%q\n\n", path, got.status, got.header.Get("Content-Type"), got.body)
		}
		golden(t, "probes-"+tt.name+".txt", b.String())
	}
}

func TestProbesOfOtherRoles(t *testing.T) {
	self := sample().Self
	self.Node.Name, self.Node.Role, self.Node.Mode = "w1", roles.RoleWatch, ""
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	url := serveHandler(t, api.NewProbes(func() api.Self { return self }, metrics))
	var b strings.Builder
	for _, path := range append(probePaths, "/metrics", "/v1/nodes", "/openapi.json", "/") {
		got := do(t, http.MethodGet, url+path, "", "X-Request-Id", "1")
		fmt.Fprintf(&b, "GET %s\n%d %s\n%q\n\n", path, got.status, got.header.Get("Content-Type"), got.body)
	}
	golden(t, "probes-watch.txt", b.String())
}

// A load balancer may ask with HEAD, and for what is no probe gets no answer
// with its path in it.
func TestProbeMethods(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{})
	if got := do(t, http.MethodHead, url+"/uc/is_active_node.do", ""); got.status != 200 || got.body != "" {
		t.Errorf("HEAD: %d %q", got.status, got.body)
	}
	got := do(t, http.MethodPost, url+"/uc/is_active_node.do", "")
	if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", got.status, got.header.Get("Allow"))
	}
}

// Probes answer while everything else of the backend fails.
func TestProbesNeedNoCluster(t *testing.T) {
	state := sample()
	down := errors.New("down")
	state.Ready = down
	state.Errors = map[string]error{"ListNodes": down, "Authenticate": down, "Sync": down}
	url := serve(t, apitest.New(state), api.Deps{})
	for _, path := range probePaths {
		if got := do(t, http.MethodGet, url+path, "", as("wrong")...); got.status != 200 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}
