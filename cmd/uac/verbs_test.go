package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// sampleState is a small cluster with something of everything.
func sampleState() apitest.State {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := func(name string, mode roles.Mode, epoch int64) api.Node {
		return api.Node{
			Name: name, Role: roles.RoleController, Mode: mode, Host: name + ".example.com", IP: "10.0.0." + name[1:],
			API: "https://" + name + ".example.com:7600", Version: "1.2.3", Started: start, LastSeen: start.Add(26 * time.Hour),
			UptimeSeconds: 26*3600 + 59, Epoch: epoch,
		}
	}
	c1, c2, c3 := node("c1", roles.ModeActive, 7), node("c2", roles.ModePassive, 8), node("c3", roles.ModeOffline, 0)
	c1.Term, c1.Requests, c1.Failover = 9, 2, api.Failover{Ready: true, Successor: "c2"}
	c2.Paused, c2.Preferred, c2.Failover = true, true, api.Failover{Why: "only 2 of 4 members would be left"}
	c3.Held = "stopped without fail-over by alice"
	w1 := api.Node{Name: "w1", Role: roles.RoleWatch, Mode: roles.ModePassive, Host: "w1.example.com", Started: start, Epoch: 5,
		Silent: true, Failover: api.Failover{Why: "it does not answer; last heard 37s ago"}}
	r1 := node("r1", roles.ModePassive, 0)
	r1.Role, r1.Relay = roles.RoleRelay, &api.RelayState{Controllers: []string{"c1", "c2"}, Links: 12, RoundTrip: &api.RoundTrip{MinMicros: 310, MedianMicros: 420, MaxMicros: 10_500, Samples: 30}}
	zero, three := 0, 3
	return apitest.State{
		Self:  api.Self{Node: c1},
		Nodes: []api.Node{c1, c2, c3, w1, r1},
		Processes: []roles.Process{
			{
				Name: "deploy", Params: []roles.Param{{Name: "version", Required: true}, {Name: "slot", Default: "blue"}},
				Steps: []roles.StepDef{
					{Name: "fetch", On: roles.OnSuccess, Agent: roles.Selector{Labels: map[string]string{"tier": "web"}}, Run: "fetch \"$UAC_PARAM_version\"\n"},
					{Name: "switch", Needs: []string{"fetch"}, On: roles.OnSuccess, Agent: roles.Selector{Labels: map[string]string{"tier": "web"}}, Run: "switch\n"},
				},
			},
			{Name: "nightly", Steps: []roles.StepDef{{Name: "backup", On: roles.OnSuccess, Agent: roles.Selector{Name: "db1"}, Run: "backup\n"}}},
		},
		Requests: []api.Request{
			{
				ID: apitest.RequestID(1), Process: "deploy", Status: roles.RequestFailed, Reason: "step switch failed", Owner: "c1", Fence: "1.42",
				Params: map[string]string{"version": "1.4.2", "slot": "blue"}, RequestedBy: "alice",
				RequestedAt: "2026-01-02T03:04:05.000Z", StartedAt: "2026-01-02T03:04:05.010Z", FinishedAt: "2026-01-02T03:05:10.010Z",
				Steps: []api.Step{
					{Name: "fetch", Status: roles.StepSucceeded, Attempt: 1, Agent: "web1", ExitCode: &zero, Outputs: map[string]string{"digest": "sha256:" + strings.Repeat("0", 64), "notes": "two\nlines"}, StartedAt: "2026-01-02T03:04:05.100Z", FinishedAt: "2026-01-02T03:04:07.350Z"},
					{Name: "check", Status: roles.StepSucceeded, Attempt: 1, Agent: "web2", ExitCode: &zero, StartedAt: "2026-01-02T03:04:05.100Z", FinishedAt: "2026-01-02T03:04:05.250Z"},
					{Name: "switch", Needs: []string{"check", "fetch"}, Status: roles.StepFailed, Attempt: 3, Agent: "web1", ExitCode: &three, Reason: "exit code 3", StartedAt: "2026-01-02T03:05:07.350Z", FinishedAt: "2026-01-02T03:05:09.350Z"},
					{Name: "smoke", Needs: []string{"switch"}, On: roles.OnSuccess, Status: roles.StepSkipped},
					{Name: "rollback", Needs: []string{"switch"}, On: roles.OnFailure, Status: roles.StepInDoubt, Attempt: 1, Agent: "web1", Unreachable: true, StartedAt: "2026-01-02T03:05:09.400Z"},
					{Name: "mail", Needs: []string{"smoke", "rollback"}, On: roles.OnAlways, Status: roles.StepWaiting},
				},
			},
			{
				ID: apitest.RequestID(2), Process: "nightly", Status: roles.RequestRunning, RequestedBy: "cron", RequestedAt: "2026-01-02T04:00:00.000Z",
				Steps: []api.Step{{Name: "backup", Status: roles.StepRunning, Attempt: 1, Agent: "db1"}},
			},
		},
		Mounts: []api.Mount{
			{Node: "c1", State: "ok", Since: c1.Started, Dir: "/srv/uac", ID: "5eed", FreeBytes: 3 << 30, TotalBytes: 10 << 30, Seen: c1.Started},
			{Node: "c2", State: "hung", Since: c1.Started, Error: "probe got no answer in 5s", Dir: "/srv/uac", ID: "5eed", StuckChildren: 2},
			{Node: "c3", State: "unconfigured"},
		},
		Output: map[string]string{
			apitest.RequestID(1) + "/fetch/1":    "fetched 1.4.2\n",
			apitest.RequestID(1) + "/check/1":    "ok",
			apitest.RequestID(1) + "/switch/1":   "first\n",
			apitest.RequestID(1) + "/switch/3":   "third\n\x1b[31mfailed\x1b[0m\n",
			apitest.RequestID(1) + "/rollback/1": "rolling back\n",
			apitest.RequestID(2) + "/backup/1":   "raw \xff bytes",
		},
		Agents: []api.Agent{
			{Name: "web1", Host: "web1.example.com", Version: "1.2.3", Labels: map[string]string{"tier": "web", "dc": "north"}, Connected: true, Links: []string{"c1", "c2"}, Via: map[string]string{"c1": "r1", "c2": "r2,r1"}, Clusters: []string{"web"}, Running: 2, Limit: 4, FirstSeen: start, LastSeen: start},
			{Name: "web2", Host: "web2.example.com", Version: "1.2.3", Connected: true, Suspended: true, Links: []string{"c1"}},
			{Name: "db1", Host: "db1.example.com"},
		},
		AgentClusters: []api.AgentClusterStatus{
			{
				Name: "web", Labels: map[string]string{"tier": "web"}, Agents: []string{"web2"}, Distribution: roles.DistributeRoundRobin,
				Limit: 5, AgentLimit: 2, Running: 2,
				Members: []api.ClusterMember{{Agent: "web1", Connected: true, Running: 2}, {Agent: "web2", Connected: true, Suspended: true}},
			},
			{Name: "db", Agents: []string{"db1"}, Distribution: roles.DistributeAny, Suspended: true, Members: []api.ClusterMember{{Agent: "db1"}}},
		},
		Locks:  []api.Lock{{Name: "web", Node: "c1"}, {Name: "web", Node: "c2", Waiting: true}},
		Events: []api.Event{{ID: "E2", Kind: "node.paused", At: start, Subject: "c2", By: "alice", From: "10.0.0.9", Node: "c1", Why: "disk swap", Detail: map[string]string{"paused": "true"}}, {ID: "E1", Kind: "node.started", At: start, Subject: "c1", Node: "c1"}},
		Tokens: []api.Token{{ID: "k5pnqxda", Kind: "api", Name: "alice", Role: "operator", Created: start, Expires: start.Add(720 * time.Hour)}, {ID: "x7aaaaaa", Kind: "join", Name: "web*", Role: "agent", Created: start, Used: true}},
	}
}

// cluster is a controller's API in this process.
type cluster struct {
	*apitest.Backend
	server *httptest.Server
	vars   []string // of a client
}

// newCluster serves a backend until the test ends. Its client is an admin.
func newCluster(t *testing.T, s apitest.State) *cluster {
	t.Helper()
	b := apitest.New(s)
	server := serveAPI(t, b)
	return &cluster{b, server, clientVars(t, server)}
}

func serveAPI(t *testing.T, b api.Backend) *httptest.Server {
	t.Helper()
	rest, err := api.New(api.Config{Heartbeat: 20 * time.Millisecond}, b, api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return fakeServer(t, rest.Handler().ServeHTTP)
}

// clientVars are the variables of a client of servers.
func clientVars(t *testing.T, servers ...*httptest.Server) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: servers[0].Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.URL)
	}
	return []string{"UAC_TOKEN=admin", "UAC_CACERT=" + file, "UAC_SERVER=" + strings.Join(urls, ",")}
}

// run runs the program as a client of the cluster.
func (c *cluster) run(t *testing.T, args ...string) result {
	t.Helper()
	return c.runAt(t, "", false, args...)
}

// runAt is run with somebody at the terminal, who types stdin.
func (c *cluster) runAt(t *testing.T, stdin string, terminal bool, args ...string) result {
	t.Helper()
	return c.runContext(t, t.Context(), stdin, terminal, args...)
}

func (c *cluster) runContext(t *testing.T, ctx context.Context, stdin string, terminal bool, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(ctx, env{
		args: args, stdin: strings.NewReader(stdin), environ: c.vars, interactive: terminal,
		stdout: stream{Writer: &stdout}, stderr: stream{Writer: &stderr, terminal: terminal},
	}, nil)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// What every verb that shows prints, in every format.
func TestShow(t *testing.T) {
	c := newCluster(t, sampleState())
	id := apitest.RequestID(1)
	for _, verb := range []string{
		"node list", "node show c2", "process list", "process show deploy", "request list",
		"request show " + id, "agent list", "agent show web1", "agent cluster list", "agent cluster show web", "lock list", "mount show", "event list", "token list",
	} {
		name := "show-" + strings.ReplaceAll(strings.TrimSuffix(verb, " "+id), " ", "-") + ".txt"
		var b strings.Builder
		for _, format := range formats {
			got := c.run(t, append(strings.Fields(verb), "-o", format)...)
			if got.code != exitDone || got.stderr != "" {
				t.Errorf("%s -o %s: code %d, %s", verb, format, got.code, got.stderr)
			}
			fmt.Fprintf(&b, "$ uac %s -o %s\n%s\n", verb, format, strings.ReplaceAll(got.stdout, c.server.URL, "URL"))
		}
		golden(t, name, b.String())
	}
}

// What is missing in a list is a warning beside it.
func TestListsWithoutTheHistory(t *testing.T) {
	state := sampleState()
	state.Note = "older ones are missing here: the mount is away"
	c := newCluster(t, state)
	for _, verb := range []string{"request list", "event list"} {
		got := c.run(t, append(strings.Fields(verb), "-o", "json")...)
		if got.code != exitDone || !strings.Contains(got.stderr, "warning: older ones are missing here") || !strings.HasPrefix(got.stdout, "[") {
			t.Errorf("%s: code %d, %s%s", verb, got.code, got.stdout, got.stderr)
		}
	}
}

// The filters of request list reach the API.
func TestRequestListFilters(t *testing.T) {
	c := newCluster(t, sampleState())
	one, two := apitest.RequestID(1), apitest.RequestID(2)
	for _, tt := range []struct{ flags, want string }{
		{"", two + " " + one},
		{"--agent web2", one},
		{"--by cron", two},
		{"--from 2026-01-02T03:30:00Z", two},
		{"--to 2026-01-02T03:30:00Z", one},
		{"--from 2026-01-02T03:00:00+01:00 --to 2026-01-02T06:00:00+01:00", two + " " + one},
		{"--before " + two, one},
		{"--limit 1", two},
	} {
		got := c.run(t, append([]string{"request", "list", "-o", "json"}, strings.Fields(tt.flags)...)...)
		var reqs []api.Request
		if err := json.Unmarshal([]byte(got.stdout), &reqs); err != nil {
			t.Fatalf("%s: code %d, %s: %v", tt.flags, got.code, got.stderr, err)
		}
		var ids []string
		for _, r := range reqs {
			ids = append(ids, r.ID)
		}
		if s := strings.Join(ids, " "); s != tt.want {
			t.Errorf("%s: %s, want %s", tt.flags, s, tt.want)
		}
	}
	for _, flags := range []string{"--from yesterday", "--to 2026-01-02", "--before x", "--status done"} {
		if got := c.run(t, append([]string{"request", "list"}, strings.Fields(flags)...)...); got.code != exitUsage {
			t.Errorf("%s: code %d, %s", flags, got.code, got.stderr)
		}
	}
}

// The filters of event list reach the API.
func TestEventListFilters(t *testing.T) {
	s := sampleState()
	now := time.Now().UTC()
	s.Events = []api.Event{
		{ID: "E4", Kind: "agent.back", At: now, Subject: "web1"},
		{ID: "E3", Kind: "agent.unreachable", At: now.Add(-time.Minute), Subject: "web1"},
		{ID: "E2", Kind: "node.paused", At: now.Add(-2 * time.Hour), Subject: "c2", By: "alice"},
		{ID: "E1", Kind: "agentcluster.created", At: now.Add(-3 * time.Hour), Subject: "web1", By: "bob"},
	}
	c := newCluster(t, s)
	for _, tt := range []struct{ flags, want string }{
		{"", "E4 E3 E2 E1"},
		{"--kind agent", "E4 E3"},
		{"--kind agent.back", "E4"},
		{"--kind agent.b", ""},
		{"--subject web1", "E4 E3 E1"},
		{"--subject web1 --by bob", "E1"},
		{"--since 1h", "E4 E3"},
		{"--since 150m --limit 1 --by alice", "E2"},
		{"--limit 1", "E4"},
	} {
		got := c.run(t, append([]string{"event", "list", "-o", "json"}, strings.Fields(tt.flags)...)...)
		var ids []string
		for _, e := range decodeJSON[[]api.Event](t, got.stdout) {
			ids = append(ids, e.ID)
		}
		if s := strings.Join(ids, " "); s != tt.want {
			t.Errorf("%s: %s, want %s", tt.flags, s, tt.want)
		}
	}
	for _, flags := range []string{"--since yesterday", "--since -1h", "--limit 0", "--limit 10001"} {
		if got := c.run(t, append([]string{"event", "list"}, strings.Fields(flags)...)...); got.code != exitUsage {
			t.Errorf("%s: code %d, %s", flags, got.code, got.stderr)
		}
	}
}

func TestMountInit(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t, sampleState())
	for _, tt := range []struct {
		args string
		code exitCode
		text string
	}{
		{dir + "/missing", exitUsage, "does not exist"},
		{dir + " --cluster prod", exitDone, "shared mount of cluster prod"},
		{dir + " --cluster prod", exitDone, "shared mount of cluster prod"},
		{dir + " --cluster test", exitConflict, "belongs to cluster"},
		{dir + " --cluster a/b", exitUsage, "--cluster"},
	} {
		got := c.run(t, append([]string{"mount", "init"}, strings.Fields(tt.args)...)...)
		if got.code != tt.code || !strings.Contains(got.stdout+got.stderr, tt.text) {
			t.Errorf("mount init %s: code %d, %s%s", tt.args, got.code, got.stdout, got.stderr)
		}
	}
}

// Colours are for terminals only.
func TestShowInColour(t *testing.T) {
	c := newCluster(t, sampleState())
	a := &app{env: env{environ: c.vars}, output: formatTable}
	var out bytes.Buffer
	a.stdout = stream{Writer: &out, terminal: true}
	if err := runNodeList(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\x1b[32mActive\x1b[0m") || !strings.Contains(out.String(), "\x1b[31mOffline,held\x1b[0m") {
		t.Errorf("no colours in %q", out.String())
	}
}

func TestLists(t *testing.T) {
	c := newCluster(t, sampleState())
	for _, tt := range []struct{ args, want string }{
		{"request list --open", "01JD0000000000000000000002"},
		{"request list --status failed", "01JD0000000000000000000001"},
		{"request list --process nightly", "01JD0000000000000000000002"},
		{"request list --limit 1", "01JD0000000000000000000002"},
		{"event list --limit 1", "node.paused"},
	} {
		got := c.run(t, strings.Fields(tt.args)...)
		if lines := strings.Split(strings.TrimSpace(got.stdout), "\n"); len(lines) != 2 || !strings.Contains(lines[1], tt.want) {
			t.Errorf("%s: %+v", tt.args, got)
		}
	}
	empty := newCluster(t, apitest.State{})
	for _, noun := range []string{"node", "process", "request", "agent", "agent cluster", "lock", "event", "token"} {
		if got := empty.run(t, append(strings.Fields(noun), "list", "-o", "json")...); got.stdout != "[]\n" || got.code != exitDone {
			t.Errorf("%s list of nothing: %+v", noun, got)
		}
	}
	if got := empty.run(t, "export"); got != (result{}) {
		t.Errorf("export of nothing: %+v", got)
	}
}

// What verbs that change something tell the cluster, and what they print.
func TestChange(t *testing.T) {
	id := apitest.RequestID(1)
	var b strings.Builder
	for _, args := range [][]string{
		{"node", "switchover", "--why", "kernel update"},
		{"node", "switchover", "--to", "c2", "-o", "json"},
		{"node", "stop", "c1", "--no-failover"},
		{"node", "stop", "c1"},
		{"node", "restart", "c1", "--why", "new settings"},
		{"node", "abort", "c1", "--yes"},
		{"node", "abort", "c1", "--restart", "-y"},
		{"node", "pause", "c1"},
		{"node", "resume", "c2", "-o", "yaml"},
		{"node", "drain", "c1"},
		{"node", "prefer", "c1"},
		{"node", "prefer", "c2", "--off"},
		{"node", "remove", "c3", "--yes", "--why", "scrapped"},
		{"node", "confirm-lost", "c3", "w1", "--yes", "--why", "fire"},
		{"process", "run", "nightly"},
		{"process", "run", "deploy", "-p", "version=1=2", "-p", "slot=", "-o", "json", "--why", "ticket 7"},
		{"process", "delete", "nightly", "--yes", "-o", "json"},
		{"request", "cancel", apitest.RequestID(2), "--why", "wrong host"},
		{"request", "resolve", id, "--step", "rollback", "--as", "rerun"},
		{"request", "resolve", id, "--step", "switch", "--as", "success", "--force"},
		{"request", "release", id, "-o", "wide"},
		{"request", "release", id, "--step", "mail"},
		{"request", "hold", id, "--why", "look first"},
		{"request", "hold", id, "--step", "mail"},
		{"request", "skip", id, "--step", "mail"},
		{"request", "rerun", id, "--step", "switch"},
		{"request", "rerun", id, "--step", "fetch", "--from"},
		{"request", "finish", apitest.RequestID(2), "--as", "failed", "--why", "scrapped"},
		{"request", "insert", id, "-f", "testdata/step.yaml", "--before", "mail"},
		{"request", "insert", id, "-f", "testdata/step.yaml", "--after", "switch", "--before", "mail"},
		{"request", "change", id, "-f", "testdata/step.yaml", "--step", "mail"},
		{"agent", "suspend", "web1"},
		{"agent", "resume", "web2", "-o", "json"},
		{"agent", "limit", "web1", "3", "--why", "licences"},
		{"agent", "limit", "web1", "0"},
		{"agent", "remove", "db1", "--yes"},
		{"agent", "remove", "web1", "--yes", "--force", "--why", "scrapped"},
		{"agent", "cluster", "suspend", "web"},
		{"agent", "cluster", "suspend", "web", "--agent", "web1", "--why", "disk swap"},
		{"agent", "cluster", "resume", "web", "--agent", "web2"},
		{"agent", "cluster", "resume", "db", "-o", "json"},
		{"agent", "cluster", "delete", "db", "--yes", "--force"},
		{"lock", "release", "web", "--yes"},
		{"token", "create", "--role", "agent", "--ttl", "1h"},
		{"token", "create", "--role", "agent", "--name", "web1", "--replace"},
		{"token", "create", "--role", "operator", "--name", "bob", "--ttl", "720h", "-o", "json"},
		{"token", "delete", "k5pnqxda", "--yes"},
	} {
		c := newCluster(t, sampleState())
		got := c.run(t, args...)
		order := args[0] == "request" // says beside its result what became of it
		fmt.Fprintf(&b, "$ uac %s\n%s%s", strings.Join(args, " "), got.stderr, got.stdout)
		for _, call := range c.Calls() {
			fmt.Fprintf(&b, "-> %s\n", call)
		}
		b.WriteString("\n")
		if got.code != exitDone || got.stderr != "" != order {
			t.Errorf("%q: code %d, %s", args, got.code, got.stderr)
		}
	}
	golden(t, "change.txt", b.String())
}

// Every way to fail has its exit code, and one message.
func TestFailures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), roles.MaxValue+1), 0o600); err != nil {
		t.Fatal(err)
	}
	id := apitest.RequestID(1)
	for _, tt := range []struct {
		args string
		code exitCode
		want string
	}{
		{"node show c9", exitNotFound, `not found: node "c9"`},
		{"node show ../tokens", exitNotFound, "there is nothing at this path"},
		{"node stop c9", exitNotFound, `not found: node "c9"`},
		{"node pause c9", exitNotFound, `not found: node "c9"`},
		{"node switchover --to c3", exitConflict, "conflict: no controller can become Active"},
		{"node remove c1 --yes", exitConflict, "conflict: node c1 is Active, not Offline"},
		{"node confirm-lost c9 --yes", exitNotFound, `not found: node "c9"`},
		{"node confirm-lost c2 c2 --yes", exitUsage, "invalid: node c2 is named twice"},
		{"node list extra", exitUsage, `uac node list: "extra" is one argument too many; usage: uac node list [flags]`},
		{"node stop", exitUsage, "uac node stop: NODE is missing; usage: uac node stop NODE [flags]"},
		{"process show nosuch", exitNotFound, `not found: process "nosuch"`},
		{"process run nosuch", exitNotFound, `not found: process "nosuch"`},
		{"process run deploy", exitUsage, "the input is not valid\n  process deploy: params.version: is required"},
		{"process run deploy -p version", exitUsage, `-p "version": must be KEY=VALUE`},
		{"process run deploy -p =1", exitUsage, `-p "=1": must be KEY=VALUE`},
		{"process run deploy -p a-b=1", exitUsage, `-p: "a-b" is not a parameter name: use letters, digits and '_', without a digit first`},
		{"process run deploy -p version=1 -p version=2", exitUsage, "-p: parameter version is given twice"},
		{"process run deploy --param-file version=/nonexistent", exitUsage, "--param-file version: open /nonexistent: no such file or directory"},
		{"process run deploy --param-file version=" + file, exitUsage, "--param-file version: " + file + " is larger than 32768 bytes"},
		{"request show latest", exitNotFound, `not found: request "latest"`},
		{"request show " + apitest.RequestID(9), exitNotFound, `not found: request "` + apitest.RequestID(9) + `"`},
		{"request cancel " + id, exitConflict, "conflict: request " + id + " is failed"},
		{"request resolve " + id + " --step fetch --as rerun", exitConflict, "conflict: step fetch is succeeded, not in doubt"},
		{"request resolve " + id + " --step rollback", exitUsage, "both --step and --as must be given"},
		{"request hold " + id + " --step nosuch", exitNotFound, `not found: step "nosuch"`},
		{"request skip " + id, exitUsage, "--step must be given"},
		{"request rerun " + id, exitUsage, "--step must be given"},
		{"request rerun " + id + " --step a/b", exitNotFound, `not found: step "a/b"`},
		{"request finish " + id, exitUsage, "--as must be given: succeeded, failed or cancelled"},
		{"request finish " + id + " --as failed", exitConflict, "conflict: request " + id + " is failed"},
		{"request insert " + id + " -f testdata/step.yaml", exitUsage, "--before or --after must be given"},
		{"request insert " + id + " --after fetch", exitUsage, "-f FILE must be given, with the definition of the step"},
		{"request insert " + id + " --after fetch -f /nonexistent", exitUsage, "open /nonexistent: no such file or directory"},
		{"request insert " + id + " --after fetch -f testdata/help.txt", exitUsage, "testdata/help.txt:4: is not valid YAML: mapping values are not allowed in this context"},
		{"request change " + id + " -f testdata/step.yaml", exitUsage, "--step must be given"},
		{"request logs " + id + " --attempt 1", exitUsage, "--attempt 1: must be the number of an attempt, from 1, at --step"},
		{"request logs " + id + " --step switch --attempt 9", exitNotFound, "step switch of request " + id + " has no attempt 9: it has 3"},
		{"request logs " + id + " --step mail --attempt 1", exitNotFound, "step mail of request " + id + " has no attempt 1: it has not started"},
		{"request logs " + id + " --step nosuch", exitNotFound, "request " + id + ` has no step "nosuch"`},
		{"agent show nosuch", exitNotFound, `not found: agent "nosuch"`},
		{"lock release nosuch --yes", exitNotFound, `not found: lock "nosuch"`},
		{"token create", exitUsage, "--role must be given: one of viewer, operator, admin, agent, relay"},
		{"token create --role frog", exitUsage, `--role "frog": must be one of viewer, operator, admin, agent, relay`},
		{"token create --role watch", exitUsage, "--role watch: a watch does not join with a token; make its directory with uac pki issue"},
		{"token create --role controller", exitUsage, "--role controller: a controller does not join with a token; make its directory with uac pki issue"},
		{"token create --role agent --ttl -1h", exitUsage, "--ttl -1h0m0s: must be more than 0; leave the flag out for the default"},
		{"token delete nosuch --yes", exitNotFound, `not found: token "nosuch"`},
		{"apply", exitUsage, "nothing to apply: give -f FILE, a directory or -"},
		{"export nosuch", exitNotFound, `not found: process "nosuch"`},
	} {
		c := newCluster(t, sampleState())
		got := c.run(t, strings.Fields(tt.args)...)
		if want := (result{code: tt.code, stderr: "error: " + tt.want + "\n"}); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.args, got, want)
		}
	}
}

func TestFailuresOfTheCluster(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*apitest.State)
		token  string
		args   string
		code   exitCode
		want   string
	}{
		{"no room", func(s *apitest.State) { s.Errors = map[string]error{"Accept": api.ErrNoRoom} }, "admin",
			"process run nightly", exitFailed, "no room"},
		{"internal error", func(s *apitest.State) { s.Errors = map[string]error{"ListNodes": errors.New("x")} }, "admin",
			"node list", exitFailed, "internal error: the log of this controller has it under the id of this call"},
		{"wrong token", nil, "wrong", "node list", exitForbidden, "the token is not valid here: it is wrong, has expired or was deleted"},
		{"viewer who runs", nil, "viewer", "process run nightly", exitForbidden, "needs the role operator; the token viewer has viewer"},
		{"operator who aborts", nil, "operator", "node abort c1 --yes", exitForbidden, "needs the role admin; the token operator has operator"},
		{"unknown outcome", func(s *apitest.State) { s.Errors = map[string]error{"CreateToken": api.ErrUnavailable} }, "admin",
			"token create --role agent", exitUnreachable, "URL: unavailable; it is not known whether this took effect"},
	} {
		s := sampleState()
		if tt.change != nil {
			tt.change(&s)
		}
		c := newCluster(t, s)
		c.vars = append(c.vars, "UAC_TOKEN="+tt.token)
		got := c.run(t, strings.Fields(tt.args)...)
		got.stderr = strings.ReplaceAll(got.stderr, c.server.URL, "URL")
		if want := (result{code: tt.code, stderr: "error: " + tt.want + "\n"}); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, want)
		}
	}
}

// Without trust a cluster is unreachable; what may be stale is shown if asked.
func TestNoTrust(t *testing.T) {
	s := sampleState()
	s.Ready = errors.New("no majority echoes")
	c := newCluster(t, s)
	for _, verb := range []string{"list", "show c1"} {
		got := c.run(t, append(strings.Fields("node "+verb), "--stale")...)
		if got.code != exitDone || !strings.Contains(got.stdout, "c1") ||
			got.stderr != "warning: this controller cannot ask the others; what it knows may be out of date\n" {
			t.Errorf("node %s --stale: %+v", verb, got)
		}
	}
	cl, err := (&app{env: env{environ: c.vars}}).newClient()
	if err != nil {
		t.Fatal(err)
	}
	cl.patience = 0
	err = cl.get(t.Context(), pathOf("nodes"), nil, nil)
	if codeOf(err) != exitUnreachable || !strings.Contains(fmt.Sprint(err), "this controller cannot answer now: no majority echoes") {
		t.Errorf("got %v", err)
	}
}

// Who sits at a terminal is asked and must mean it; who does not must say --yes.
func TestConfirm(t *testing.T) {
	for _, tt := range []struct{ args, words string }{
		{"node abort c1", "c1"},
		{"node remove c3", "c3"},
		{"node confirm-lost c3", "c3 is switched off"},
		{"node confirm-lost c3 w1", "c3, w1 are switched off"},
		{"process delete nightly", "nightly"},
		{"lock release web", "web"},
		{"token delete k5pnqxda", "k5pnqxda"},
	} {
		args := strings.Fields(tt.args)
		c := newCluster(t, sampleState())
		if got := c.run(t, args...); got.code != exitUsage || !strings.Contains(got.stderr, "--yes must be given") {
			t.Errorf("%s without a terminal: %+v", tt.args, got)
		}
		for _, answer := range []string{"", "\n", "y\n", "yes\n", strings.ToUpper(tt.words) + "\n"} {
			if got := c.runAt(t, answer, true, args...); got.code != exitFailed || !strings.Contains(got.stderr, "not confirmed: nothing was done") {
				t.Errorf("%s answered %q: %+v", tt.args, answer, got)
			}
		}
		if calls := c.Calls(); len(calls) > 0 {
			t.Errorf("%s, not confirmed: %q", tt.args, calls)
		}
		if got := c.runAt(t, tt.words+"\n", true, args...); got.code != exitDone || len(c.Calls()) != 1 {
			t.Errorf("%s answered %q: %+v", tt.args, tt.words, got)
		}
	}
}

// dying is a backend that is killed by the orders to its own node: they take
// effect, and nobody answers.
type dying struct{ *apitest.Backend }

func (b dying) Order(ctx context.Context, a api.Actor, node, verb string, args map[string]string) (string, error) {
	_, _ = b.Backend.Order(ctx, a, node, verb, args)
	panic(http.ErrAbortHandler)
}

func (b dying) Switchover(ctx context.Context, a api.Actor, to string) (string, error) {
	_, _ = b.Backend.Switchover(ctx, a, to)
	panic(http.ErrAbortHandler)
}

// An order whose answer dies with its server was obeyed if the cluster shows so,
// and is never given twice.
func TestOrderOutlivesItsServer(t *testing.T) {
	for args, want := range map[string]string{
		"node stop c1":            "c1: the node is gone\n",
		"node restart c1":         "c1: the node is gone\n",
		"node abort c1 --yes":     "c1: the node is gone\n",
		"node switchover":         "c2 is Active\n",
		"node switchover --to c2": "c2 is Active\n",
	} {
		b := apitest.New(sampleState())
		c := &cluster{Backend: b, vars: clientVars(t, serveAPI(t, dying{b}), serveAPI(t, b))}
		if got := c.run(t, strings.Fields(args)...); got != (result{stdout: want}) {
			t.Errorf("%s: %+v", args, got)
		}
		if calls := b.Calls(); len(calls) != 1 {
			t.Errorf("%s: %q", args, calls)
		}
	}
}

// frozen is a backend whose node stands still while it is given an order: it is
// declared lost, and nobody answers.
type frozen struct {
	*apitest.Backend
	lost func(*api.Node)
}

func (b frozen) Order(context.Context, api.Actor, string, string, map[string]string) (string, error) {
	b.Update(func(s *apitest.State) { b.lost(&s.Nodes[0]) })
	panic(http.ErrAbortHandler)
}

// A node that was declared lost may live: that it is gone is no sign that it obeyed.
func TestOrderToANodeThatIsDeclaredLost(t *testing.T) {
	for name, lost := range map[string]func(*api.Node){
		"still away": func(n *api.Node) { n.LostEpoch, n.Mode, n.Epoch = n.Epoch, roles.ModeOffline, 0 },
		"back":       func(n *api.Node) { n.LostEpoch, n.Epoch = n.Epoch, n.Epoch+1 },
	} {
		for _, args := range []string{"node stop c1", "node restart c1", "node abort c1 --yes"} {
			b := apitest.New(sampleState())
			c := &cluster{Backend: b, vars: clientVars(t, serveAPI(t, frozen{b, lost}), serveAPI(t, b))}
			want := result{code: exitUnreachable, stderr: "error: c1 was declared lost and may live: it is not known whether it obeyed, or will\n"}
			if got := c.run(t, strings.Fields(args)...); got != want {
				t.Errorf("%s, %s: %+v", args, name, got)
			}
		}
	}
}

func TestCompletionOfNames(t *testing.T) {
	c := newCluster(t, sampleState())
	for _, tt := range []struct{ args, want string }{
		{"node show |", "c1 c2 c3 w1 r1"},
		{"node stop w|", "w1"},
		{"node show c1 |", ""},
		{"node confirm-lost c1 |", "c2 c3 w1 r1"},
		{"node switchover --to |", "c1 c2 c3"},
		{"node list -o |", "table wide json yaml"},
		{"process run d|", "deploy"},
		{"export deploy |", "nightly"},
		{"request show |", apitest.RequestID(2) + " " + apitest.RequestID(1)},
		{"request cancel |", apitest.RequestID(2)},
		{"request resolve " + apitest.RequestID(1) + " --as |", "success failed rerun"},
		{"request finish " + apitest.RequestID(1) + " --as |", "succeeded failed cancelled"},
		{"request list --status |", "queued running cancelling succeeded failed cancelled in_doubt"},
		{"agent suspend web|", "web1 web2"},
		{"lock release |", "web web"},
		{"token delete |", "k5pnqxda x7aaaaaa"},
		{"token create --role |", "viewer operator admin agent relay"},
	} {
		words := strings.Fields(strings.ReplaceAll(tt.args, "|", ""))
		last := ""
		if !strings.HasSuffix(tt.args, " |") {
			last, words = words[len(words)-1], words[:len(words)-1]
		}
		got := c.run(t, append(append([]string{"__completeNoDesc"}, words...), last)...)
		lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
		if have := strings.Join(lines[:len(lines)-1], " "); have != tt.want || got.code != exitDone {
			t.Errorf("%s: %q, want %q (%+v)", tt.args, have, tt.want, got)
		}
	}
}

// A shell that completes is not told about a cluster that does not answer.
func TestCompletionWithoutACluster(t *testing.T) {
	for _, vars := range [][]string{nil, {"UAC_SERVER=" + deadAddress(t)}, {"UAC_SERVER=" + silentAddress(t)}} {
		got := execute(t, nil, vars, "__complete", "node", "show", "")
		if got.stdout != ":4\n" || got.code != exitDone {
			t.Errorf("%v: %+v", vars, got)
		}
	}
}
