package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire/pki"
)

// devPoll is how often a cluster on this machine is looked at while it starts.
const devPoll = 15 * time.Millisecond

// devClient asks the nodes of a cluster on this machine one by one; the client
// of all other verbs asks the cluster. Safe for concurrent use.
type devClient struct {
	http  *http.Client
	token string
}

func newDevClient(c *devCluster) (*devClient, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	conf, err := pki.APIClient(c.cacert())
	if err != nil {
		return nil, err
	}
	return &devClient{token: token, http: &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true},
	}}, nil
}

// get returns status and body of a node's answer.
func (d *devClient) get(ctx context.Context, n devNode, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.API+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+d.token)
	resp, err := d.http.Do(req)
	if err != nil {
		return 0, "", reasonOf(err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(body), err
}

// The probes in use.
const (
	probeLive   = "/healthz"
	probeReady  = "/readyz"
	probeActive = "/uc/is_active_node.do"
)

// ready reports what node n still waits for, "" if for nothing.
func (d *devClient) ready(ctx context.Context, n devNode) string {
	status, body, err := d.get(ctx, n, probeReady)
	if err != nil {
		return err.Error()
	}
	if status != http.StatusOK {
		return strings.TrimSpace(body)
	}
	return ""
}

// mode returns what a controller answers to load balancers, or "" if it does
// not answer.
func (d *devClient) mode(ctx context.Context, n devNode) string {
	_, body, err := d.get(ctx, n, probeActive)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(body)
}

// linked returns how many links each agent has, as node n says.
func (d *devClient) linked(ctx context.Context, n devNode) (map[string]int, error) {
	var agents []struct {
		Name      string   `json:"name"`
		Connected bool     `json:"connected"`
		Links     []string `json:"links"`
	}
	if err := d.list(ctx, n, "/v1/agents", &agents); err != nil {
		return nil, err
	}
	links := map[string]int{}
	for _, a := range agents {
		if a.Connected {
			links[a.Name] = max(1, len(a.Links))
		}
	}
	return links, nil
}

// list reads what node n lists at a path.
func (d *devClient) list(ctx context.Context, n devNode, path string, into any) error {
	status, body, err := d.get(ctx, n, path)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", n.Name, status, strings.TrimSpace(body))
	}
	return json.Unmarshal([]byte(body), into)
}

// unready returns what the whole cluster still waits for, "" if it serves:
// every member and relay is ready, one controller is Active, every agent that runs is
// connected to as many controllers as it can be, and if all members run, another
// controller could take over.
func (d *devClient) unready(ctx context.Context, c *devCluster) string {
	controllers := c.withRole(roles.RoleController)
	members := slices.Concat(controllers, c.withRole(roles.RoleWatch))
	listening := slices.Concat(members, slices.DeleteFunc(c.withRole(roles.RoleRelay), func(n devNode) bool { return n.PID == 0 }))
	reasons, modes := make([]string, len(listening)), make([]string, len(listening))
	var g errgroup.Group
	for i, n := range listening {
		g.Go(func() error {
			if why := d.ready(ctx, n); why != "" {
				reasons[i] = n.Name + ": " + why
			} else if n.Role == roles.RoleController {
				modes[i] = d.mode(ctx, n)
			}
			return nil
		})
	}
	_ = g.Wait() // none of them fails
	var active *devNode
	for i, n := range listening {
		if reasons[i] != "" {
			return reasons[i]
		}
		if modes[i] == "ACTIVE" {
			if active != nil {
				return fmt.Sprintf("%s and %s both answer ACTIVE", active.Name, n.Name)
			}
			active = &n
		}
	}
	if active == nil {
		return "no controller is Active"
	}
	links, err := d.linked(ctx, *active)
	if err != nil {
		return err.Error()
	}
	for _, a := range c.withRole(roles.RoleAgent) {
		if have, want := links[a.Name], min(2, len(controllers)); a.PID != 0 && have < want {
			return fmt.Sprintf("%s has %d of %d links to controllers", a.Name, have, want)
		}
	}
	if len(controllers) < 2 || len(members) < 3 || slices.ContainsFunc(members, func(n devNode) bool { return n.PID == 0 }) {
		return ""
	}
	return d.alone(ctx, *active)
}

// alone says why nobody could take over from the Active now, "" if somebody could.
func (d *devClient) alone(ctx context.Context, active devNode) string {
	var nodes []api.Node
	if err := d.list(ctx, active, "/v1/nodes", &nodes); err != nil {
		return err.Error()
	}
	for _, n := range nodes {
		if n.Name == active.Name && n.Failover.Successor == "" {
			return fmt.Sprintf("nobody could take over from %s: %s", n.Name, n.Failover.Why)
		}
	}
	return ""
}

// startAll starts all nodes and waits until the cluster serves.
func (s *devSupervisor) startAll(ctx context.Context, patience time.Duration) error {
	for _, n := range s.nodes() {
		if err := s.start(ctx, n.Name); err != nil {
			return err
		}
	}
	return s.awaitReady(ctx, patience)
}

// awaitReady waits until the cluster serves, as long as no node ends.
func (s *devSupervisor) awaitReady(ctx context.Context, patience time.Duration) error {
	client, err := newDevClient(s.cluster)
	if err != nil {
		return err
	}
	defer client.http.CloseIdleConnections()
	for deadline := time.Now().Add(patience); ; {
		for _, n := range s.nodes() {
			if p, err := s.run(n.Name); err == nil && p != nil && p.hasEnded() && !s.wasAsked(p) {
				return fail(exitFailed, "%s ended while it started (%s); the end of its log, %s", n.Name, howItEnded(p.err), s.tail(n.Name, 10))
			}
		}
		why := client.unready(ctx, s.snapshot())
		if why == "" {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			text := fmt.Sprintf("not ready after %s: %s", patience, why)
			for _, n := range s.nodes() {
				if strings.HasPrefix(why, n.Name) {
					text += "\nthe end of its log, " + s.tail(n.Name, 10)
				}
			}
			return fail(exitFailed, "%s", text)
		}
		if err := pause(ctx, devPoll); err != nil {
			return err
		}
	}
}

func (s *devSupervisor) wasAsked(p *devProcess) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.asked
}

// devSettle is for how long a node that was started alone is given to be of use. A
// member without a majority never is, nor is an agent without a controller.
const devSettle = 5 * time.Second

// devStarted tells of a node that was started alone.
type devStarted struct {
	devNode
	// WaitsFor is what the node waits for before it is of use, "" if for nothing.
	WaitsFor string `json:"waits_for,omitempty"`
}

// startAlone starts a node and waits until it is of use, or for devSettle: that it
// waits for others is no failure of its own. That it ends is one, which finds what is
// wrong with its settings and its data.
func (s *devSupervisor) startAlone(ctx context.Context, name string) (*devStarted, error) {
	if err := s.start(ctx, name); err != nil {
		return nil, err
	}
	p, err := s.run(name)
	if err != nil {
		return nil, err
	}
	node, err := s.snapshot().node(name)
	if err != nil {
		return nil, err
	}
	client, err := newDevClient(s.cluster)
	if err != nil {
		return nil, err
	}
	defer client.http.CloseIdleConnections()
	for deadline := time.Now().Add(devSettle); ; {
		why := ""
		if node.Role == roles.RoleAgent {
			why = client.unlinked(ctx, s.snapshot(), name)
		} else {
			why = client.ready(ctx, *node)
		}
		timer := time.NewTimer(devPoll)
		if why == "" {
			timer.Reset(0)
		}
		select {
		case <-p.done:
			timer.Stop()
			return nil, fail(exitFailed, "%s ended at its start (%s); the end of its log, %s", name, howItEnded(p.err), s.tail(name, 10))
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
		if why == "" || time.Now().After(deadline) && (node.API == "" || client.lives(ctx, *node)) {
			return &devStarted{devNode: *node, WaitsFor: why}, nil
		}
	}
}

// lives reports whether the process of a node answers, which needs no majority.
func (d *devClient) lives(ctx context.Context, n devNode) bool {
	status, _, err := d.get(ctx, n, probeLive)
	return err == nil && status == http.StatusOK
}

// unlinked says why an agent gets no steps, "" if it is connected to a controller.
func (d *devClient) unlinked(ctx context.Context, c *devCluster, agent string) string {
	why := "no controller runs"
	for _, n := range c.withRole(roles.RoleController) {
		if n.PID == 0 {
			continue
		}
		links, err := d.linked(ctx, n)
		switch {
		case err != nil:
			why = err.Error()
		case links[agent] > 0:
			return ""
		default:
			return "no controller has a link to it"
		}
	}
	return why
}
