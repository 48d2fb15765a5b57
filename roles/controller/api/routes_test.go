package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// Every route, in an order that makes sense, and what it tells the backend.
func TestRoutes(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	id := apitest.RequestID(1)
	var out strings.Builder
	told := 0
	covered := map[string]bool{}
	for _, tt := range []struct{ method, path, body string }{
		{"GET", "/v1/nodes", ""},
		{"GET", "/v1/nodes/c2", ""},
		{"POST", "/v1/nodes/c2/pause?why=disk%20swap", ""},
		{"POST", "/v1/nodes/c2/resume", ""},
		{"POST", "/v1/nodes/c2/prefer", ""},
		{"POST", "/v1/nodes/c2/prefer", `{"preferred":false}`},
		{"POST", "/v1/nodes/switchover", ""},
		{"POST", "/v1/nodes/switchover", `{"to":"c1"}`},
		{"POST", "/v1/nodes/c2/drain", ""},
		{"POST", "/v1/nodes/c2/restart", ""},
		{"POST", "/v1/nodes/c2/abort", `{"restart":true}`},
		{"POST", "/v1/nodes/c2/abort", ""},
		{"POST", "/v1/nodes/c1/stop", `{"failover":false}`},
		{"POST", "/v1/nodes/c1/stop", ""},
		{"POST", "/v1/nodes/confirm-lost", `{"nodes":["c2"],"statement":"switched off"}`},
		{"DELETE", "/v1/nodes/c2?why=scrapped", ""},
		{"GET", "/v1/processes", ""},
		{"POST", "/v1/processes?dry_run=true", `{"processes":[{"name":"web","steps":[{"name":"s","agent":{"name":"a1"},"run":"true","timeout":"1m"}]}]}`},
		{"POST", "/v1/processes?why=new", `{"processes":[{"name":"web","steps":[{"name":"s","agent":{"name":"a1"},"run":"true","timeout":"1m"}]}]}`},
		{"GET", "/v1/processes/web", ""},
		{"DELETE", "/v1/processes/web", ""},
		{"POST", "/v1/documents?dry_run=true", `{"agent_clusters":[{"name":"db","agents":["db1"],"distribution":"all"}]}`},
		{"POST", "/v1/documents", `{"processes":[{"name":"web","steps":[{"name":"s","agent":{"cluster":"web"},"run":"true"}]}],"agent_clusters":[{"name":"web","labels":{"tier":"web"},"limit":4}]}`},
		{"POST", "/v1/requests", `{"process":"deploy","params":{"version":"1"}}`},
		{"GET", "/v1/requests?status=running&process=deploy&open=true&limit=1", ""},
		{"GET", "/v1/requests/" + id, ""},
		{"POST", "/v1/requests/" + id + "/resolve", `{"step":"switch","as":"rerun","force":true}`},
		{"POST", "/v1/requests/" + id + "/hold?why=look%20first", ""},
		{"POST", "/v1/requests/" + id + "/hold", `{"step":"switch"}`},
		{"POST", "/v1/requests/" + id + "/release", ""},
		{"POST", "/v1/requests/" + id + "/release", `{"step":"switch"}`},
		{"POST", "/v1/requests/" + id + "/skip", `{"step":"switch"}`},
		{"POST", "/v1/requests/" + id + "/rerun", `{"step":"fetch","from":true}`},
		{"POST", "/v1/requests/" + id + "/insert", `{"definition":{"name":"warm","agent":{"name":"a1"},"run":"true","timeout":"1m"},"before":"switch"}`},
		{"POST", "/v1/requests/" + id + "/change", `{"step":"switch","definition":{"name":"switch","agent":{"name":"a1"},"run":"false"}}`},
		{"POST", "/v1/requests/" + id + "/cancel?why=wrong%20version", ""},
		{"POST", "/v1/requests/" + id + "/finish", `{"as":"failed"}`},
		{"GET", "/v1/requests/" + id + "/logs?step=fetch", ""},
		{"GET", "/v1/requests/" + id + "/logs?step=switch&attempt=2&offset=4", ""},
		{"GET", "/v1/agents", ""},
		{"GET", "/v1/agents/a1", ""},
		{"POST", "/v1/agents/a1/suspend", ""},
		{"POST", "/v1/agents/a1/resume", ""},
		{"GET", "/v1/mounts", ""},
		{"POST", "/v1/agents/a1/limit", `{"limit":3}`},
		{"DELETE", "/v1/agents/a1?force=true&why=scrapped", ""},
		{"GET", "/v1/agent-clusters", ""},
		{"GET", "/v1/agent-clusters/web", ""},
		{"POST", "/v1/agent-clusters/web/suspend?why=patch", ""},
		{"POST", "/v1/agent-clusters/web/resume", ""},
		{"DELETE", "/v1/agent-clusters/web?force=true", ""},
		{"GET", "/v1/locks", ""},
		{"DELETE", "/v1/locks/web", ""},
		{"GET", "/v1/events?limit=1", ""},
		{"GET", "/v1/tokens", ""},
		{"POST", "/v1/tokens", `{"role":"operator","name":"bob","ttl":"24h"}`},
		{"POST", "/v1/tokens", `{"role":"agent","name":"web*"}`},
		{"DELETE", "/v1/tokens/t1", ""},
	} {
		got := do(t, tt.method, url+tt.path, tt.body, as("admin")...)
		fmt.Fprintf(&out, "# %s %s %s\n%d %s\n%s", tt.method, tt.path, tt.body, got.status, got.header.Get("Content-Type"), got.body)
		if got.body != "" && !strings.HasSuffix(got.body, "\n") {
			out.WriteString("\n")
		}
		calls := b.Calls()
		for _, c := range calls[told:] {
			fmt.Fprintf(&out, "-> %s\n", c)
		}
		told = len(calls)
		out.WriteString("\n")
		covered[tt.method+" "+shape(tt.path)] = true
		if writes := tt.method != "GET"; writes != (got.header.Get(api.HeaderRevision) != "") {
			t.Errorf("%s %s: revision %q", tt.method, tt.path, got.header.Get(api.HeaderRevision))
		}
		if got.status >= 300 {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, got.status, got.body)
		}
	}
	golden(t, "routes.txt", out.String())
	for pattern := range operations(t, url) {
		if !covered[shape(pattern)] && !strings.HasSuffix(pattern, "/watch") {
			t.Errorf("no call of %s", pattern)
		}
	}
}

// shape replaces the names in a path.
func shape(path string) string {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	verbs := []string{"switchover", "confirm-lost"}
	if len(parts) > 3 && !slices.Contains(verbs, parts[3]) {
		parts[3] = "*"
	}
	return strings.Join(parts, "/")
}

// A run is answered 201 the first time and 200 with the same request after it.
func TestIdempotencyKey(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	run := func(key, body string) (answer, api.Request) {
		got := do(t, http.MethodPost, url+"/v1/requests", body, append(as("operator"), "Idempotency-Key", key)...)
		var req api.Request
		_ = json.Unmarshal([]byte(got.body), &req) // an error document has no id
		return got, req
	}
	const body = `{"process":"deploy","params":{"version":"1"}}`
	first, req := run("k1", body)
	if first.status != 201 || first.header.Get("Location") != "/v1/requests/"+req.ID {
		t.Fatalf("%d %v %s", first.status, first.header, first.body)
	}
	if again, same := run("k1", body); again.status != 200 || same.ID != req.ID {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	if other, _ := run("k1", `{"process":"deploy","params":{"version":"2"}}`); other.status != 409 {
		t.Errorf("same key, other content: %d %s", other.status, other.body)
	}
	if other, second := run("k2", body); other.status != 201 || second.ID == req.ID {
		t.Errorf("another key: %d %s", other.status, other.body)
	}
	for _, key := range []string{strings.Repeat("k", 256), "a b", "é"} {
		if bad, _ := run(key, body); bad.status != 422 {
			t.Errorf("key %q: %d", key, bad.status)
		}
	}
}

// A miss is looked up again when this controller has caught up.
func TestReadMiss(t *testing.T) {
	id := apitest.RequestID(7)
	for _, tt := range []struct {
		path string
		add  func(*apitest.State)
	}{
		{"/v1/requests/" + id, func(s *apitest.State) {
			s.Requests = append(s.Requests, api.Request{ID: id, Status: roles.RequestSucceeded})
		}},
		{"/v1/requests/" + id + "/watch", func(s *apitest.State) {
			s.Requests = append(s.Requests, api.Request{ID: id, Status: roles.RequestSucceeded})
		}},
		{"/v1/processes/p7", func(s *apitest.State) { s.Processes = append(s.Processes, roles.Process{Name: "p7"}) }},
		{"/v1/agent-clusters/a7", func(s *apitest.State) {
			s.AgentClusters = append(s.AgentClusters, api.AgentClusterStatus{Name: "a7"})
		}},
		{"/v1/agents/a7", func(s *apitest.State) { s.Agents = append(s.Agents, api.Agent{Name: "a7"}) }},
		{"/v1/nodes/c7", func(s *apitest.State) { s.Nodes = append(s.Nodes, api.Node{Name: "c7"}) }},
	} {
		b := apitest.New(sample())
		url := serve(t, b, api.Deps{})
		if got := do(t, http.MethodGet, url+tt.path, "", as("viewer")...); got.status != 404 {
			t.Errorf("%s: %d before it is there", tt.path, got.status)
		}
		b.Update(func(s *apitest.State) { s.OnSync = tt.add })
		if got := do(t, http.MethodGet, url+tt.path, "", as("viewer")...); got.status != 200 {
			t.Errorf("%s: %d %s", tt.path, got.status, got.body)
		}
		b.Update(func(s *apitest.State) { s.Errors = map[string]error{"Sync": fmt.Errorf("no majority")} })
		miss := strings.NewReplacer("7", "8").Replace(tt.path)
		if got := do(t, http.MethodGet, url+miss, "", as("viewer")...); got.status != 503 {
			t.Errorf("%s: %d when nobody can be asked: it may exist", miss, got.status)
		}
	}
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	b.Update(func(s *apitest.State) {
		s.OnSync = func(s *apitest.State) { s.Processes = append(s.Processes, roles.Process{Name: "p7"}) }
	})
	if got := do(t, http.MethodPost, url+"/v1/requests", `{"process":"p7"}`, as("operator")...); got.status != 201 {
		t.Errorf("run of a process that was applied elsewhere: %d %s", got.status, got.body)
	}
}

// A call that carries a revision is answered from it or not at all.
func TestRevision(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	at := func(rev string) answer {
		return do(t, http.MethodGet, url+"/v1/nodes", "", append(as("viewer"), api.HeaderRevision, rev)...)
	}
	for rev, want := range map[string]int{"1": 200, "2": 503, "x": 400, "-1": 400, "99999999999999999999": 400} {
		if got := at(rev); got.status != want {
			t.Errorf("revision %s: %d %s", rev, got.status, got.body)
		}
	}
	wrote := do(t, http.MethodPost, url+"/v1/nodes/c1/pause", "", as("operator")...)
	if got := at(wrote.header.Get(api.HeaderRevision)); got.status != 200 {
		t.Errorf("revision of the write %q: %d", wrote.header.Get(api.HeaderRevision), got.status)
	}
	if refused := do(t, http.MethodPost, url+"/v1/nodes/c9/pause", "", as("operator")...); refused.header.Get(api.HeaderRevision) != "" {
		t.Error("a refused write has a revision")
	}
}

func TestRequestIDs(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{})
	for _, tt := range []struct {
		given string
		kept  bool
	}{
		{"abc-DEF_1.2", true},
		{strings.Repeat("a", 64), true},
		{strings.Repeat("a", 65), false},
		{"a b", false},
		{`{"x":1}`, false},
		{"é", false},
	} {
		got := do(t, http.MethodGet, url+"/healthz", "", api.HeaderRequestID, tt.given).header.Get(api.HeaderRequestID)
		if (got == tt.given) != tt.kept || got == "" {
			t.Errorf("given %q, answered %q", tt.given, got)
		}
	}
	first, second := do(t, http.MethodGet, url+"/healthz", ""), do(t, http.MethodGet, url+"/healthz", "")
	if first.header.Get(api.HeaderRequestID) == second.header.Get(api.HeaderRequestID) {
		t.Error("two calls have one id")
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	b := apitest.New(sample())
	b.Update(func(s *apitest.State) { s.Requests[0].Status = roles.RequestSucceeded })
	url := serve(t, b, api.Deps{Registerer: reg})
	for range 2 {
		do(t, http.MethodGet, url+"/v1/nodes/c1", "", as("viewer")...)
	}
	do(t, http.MethodGet, url+"/v1/nodes/c9", "", as("viewer")...)
	do(t, http.MethodGet, url+"/v1/nodes/c1", "")
	do(t, http.MethodGet, url+"/any/path", "")
	do(t, http.MethodGet, url+"/other/path", "")
	do(t, http.MethodGet, url+"/v1/requests/"+apitest.RequestID(1)+"/watch", "", as("viewer")...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			n := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			got = append(got, fmt.Sprintf("%s %v %v", f.GetName(), labels, n))
		}
	}
	want := []string{
		"uac_api_call_seconds [GET /v1/nodes/{name}] 4", // no streams
		"uac_api_call_seconds [none] 2",
		"uac_api_calls_total [200 GET /v1/nodes/{name}] 2",
		"uac_api_calls_total [200 GET /v1/requests/{id}/watch] 1",
		"uac_api_calls_total [401 GET /v1/nodes/{name}] 1",
		"uac_api_calls_total [404 GET /v1/nodes/{name}] 1",
		"uac_api_calls_total [404 none] 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if _, err := api.New(api.Config{}, b, api.Deps{Registerer: reg}); err == nil {
		t.Error("the same metrics were registered twice")
	}
}
