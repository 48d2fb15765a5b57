package api_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample is a small cluster.
func sample() apitest.State {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c1 := api.Node{
		Name: "c1", Role: roles.RoleController, Mode: roles.ModeActive, Host: "host1", IP: "10.0.0.1",
		API: "https://host1:7600", Version: "1.2.3", Started: start, LastSeen: start.Add(93784 * time.Second),
		UptimeSeconds: 93784, Epoch: 7, Term: 9, Requests: 1, Failover: api.Failover{Ready: true, Successor: "c2"},
	}
	c2 := c1
	c2.Name, c2.Mode, c2.Host, c2.IP, c2.Epoch, c2.Term, c2.Requests = "c2", roles.ModePassive, "host2", "10.0.0.2", 8, 0, 0
	w1 := api.Node{Name: "w1", Role: roles.RoleWatch, Mode: roles.ModePassive, Host: "host3", IP: "10.0.0.3", Started: start, LastSeen: start}
	zero := 0
	return apitest.State{
		Self:  api.Self{Node: c1, BuildID: "abc123", BuildDate: "2026-01-01"},
		Nodes: []api.Node{c1, c2, w1},
		Processes: []roles.Process{{
			Name: "deploy", Params: []roles.Param{{Name: "version", Required: true}},
			Steps: []roles.StepDef{{Name: "fetch", On: roles.OnSuccess, Agent: roles.Selector{Name: "a1"}, Run: "true"}},
		}},
		Requests: []api.Request{{
			ID: apitest.RequestID(1), Process: "deploy", Status: roles.RequestRunning, RequestedBy: "alice",
			RequestedAt: "2026-01-02T03:04:05.000Z",
			Steps: []api.Step{
				{Name: "fetch", Status: roles.StepSucceeded, Attempt: 1, Agent: "a1", ExitCode: &zero},
				{Name: "switch", Status: roles.StepRunning, Attempt: 2, Agent: "a1"},
			},
		}},
		Output: map[string]string{apitest.RequestID(1) + "/fetch/1": "fetched\n", apitest.RequestID(1) + "/switch/2": "switching\n"},
		Agents: []api.Agent{{Name: "a1", Host: "host4", Version: "1.2.3", Connected: true, Links: []string{"c1", "c2"}}},
		AgentClusters: []api.AgentClusterStatus{{
			Name: "web", Labels: map[string]string{"tier": "web"}, Distribution: roles.DistributeLeastLoad, Limit: 4, Running: 1,
			Members: []api.ClusterMember{{Agent: "a1", Connected: true, Running: 1}},
		}},
		Locks:  []api.Lock{{Name: "web", Node: "c1"}},
		Events: []api.Event{{ID: "E2", Kind: "node.paused", At: start}, {ID: "E1", Kind: "node.started", At: start}},
		Tokens: []api.Token{{ID: "t1", Kind: "api", Name: "alice", Role: "admin", Created: start}},
	}
}

// serve returns the URL of a server over b that serves until the test ends.
func serve(t *testing.T, b api.Backend, deps api.Deps) string {
	t.Helper()
	return serveConfig(t, api.Config{Version: "1.2.3", WaitTimeout: 50 * time.Millisecond, Heartbeat: 10 * time.Millisecond}, b, deps)
}

func serveConfig(t *testing.T, cfg api.Config, b api.Backend, deps api.Deps) string {
	t.Helper()
	if deps.Log == nil {
		deps.Log = testLog(t)
	}
	if deps.Registerer == nil {
		deps.Registerer = prometheus.NewRegistry()
	}
	s, err := api.New(cfg, b, deps)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(s.Handler())
	t.Cleanup(ts.Close)
	return ts.URL
}

// answer is what a call got.
type answer struct {
	status int
	header http.Header
	body   string
}

// do makes a call; headers are name, value, name, value...
func do(t *testing.T, method, url, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// as is the header of a token; the backend's tokens are called as their access.
func as(access string) []string { return []string{"Authorization", "Bearer " + access} }

// golden compares text with a file of testdata. UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
