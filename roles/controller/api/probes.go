package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"uac/roles"
)

// probes answers load balancers and orchestrators. They need no login, tell
// nothing but the state of nodes, and answer whatever the state of the cluster
// is. Paths, codes and bodies are a contract.
type probes struct {
	self func() Self
	list func(ctx context.Context) ([]Node, error)
}

func (p *probes) register(handle func(pattern string, h func(http.ResponseWriter, *http.Request))) {
	handle("GET /healthz", p.live)
	handle("GET /readyz", p.ready)
	handle("GET /uc/is_active_node.do", p.isActive)
	handle("GET /uc/ops_node_info.do", p.info)
	handle("GET /uc/resources/clusternode/healthcheck", p.health)
	handle("GET /uc/resources/clusternode/list", p.nodes)
}

// NewProbes returns the whole HTTP interface of a node that is no controller:
// the probes, and metrics if that is not nil. Metrics are served as they are;
// see [RequireAccess].
func NewProbes(self func() Self, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	p := &probes{self: self, list: func(context.Context) ([]Node, error) { return []Node{self().Node}, nil }}
	p.register(mux.HandleFunc)
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return &front{mux: mux, log: slog.New(slog.DiscardHandler)}
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // nobody is left to be told
}

// live says that the process answers at all.
func (p *probes) live(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") }

// ready says whether the node serves, and else what it waits for.
func (p *probes) ready(w http.ResponseWriter, _ *http.Request) {
	if why := unready(p.self()); why != "" {
		text(w, http.StatusServiceUnavailable, why)
		return
	}
	text(w, http.StatusOK, "ready")
}

func unready(s Self) string {
	switch {
	case s.Reason != "":
		return s.Reason
	case s.Node.Mode == roles.ModeOffline:
		return "the node is Offline"
	}
	return ""
}

// isActive is for load balancers: 200 on the Active only. Its body is one bare
// word with and without api_version=2.
func (p *probes) isActive(w http.ResponseWriter, _ *http.Request) {
	switch s := p.self(); {
	case s.Node.Mode == roles.ModeActive:
		text(w, http.StatusOK, "ACTIVE")
	case unready(s) != "":
		text(w, http.StatusForbidden, "OFFLINE")
	default:
		text(w, http.StatusForbidden, "PASSIVE")
	}
}

// nodeInfo is a node as the probes show it.
type nodeInfo struct {
	NodeID            string `json:"nodeId"`
	HostName          string `json:"hostName"`
	IPAddress         string `json:"ipAddress"`
	NodeMode          string `json:"nodeMode"`
	NodeStart         string `json:"nodeStart"`
	NodeTs            string `json:"nodeTs"`
	NodeUptime        int64  `json:"nodeUptime"`
	NodeUptimeDisplay string `json:"nodeUptimeDisplay"`
	Paused            bool   `json:"paused"`
	Preferred         bool   `json:"preferred"`
	RelID             string `json:"relId"`
	BuildID           string `json:"buildId"`
	BuildDate         string `json:"buildDate"`
}

// infoOf returns what the probes show of a node. The build of other nodes than
// the answering one is not known; they say their version.
func infoOf(n Node, self Self) nodeInfo {
	info := nodeInfo{
		NodeID: n.Name, HostName: n.Host, IPAddress: n.IP, NodeMode: string(n.Mode),
		NodeStart: stamp(n.Started), NodeTs: stamp(n.LastSeen),
		NodeUptime: n.UptimeSeconds, NodeUptimeDisplay: uptime(n.UptimeSeconds),
		Paused: n.Paused, Preferred: n.Preferred, RelID: n.Version,
	}
	if n.Name == self.Node.Name {
		info.BuildID, info.BuildDate = self.BuildID, self.BuildDate
	}
	return info
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// uptime is a duration for people, such as 1d 2h 3m 4s.
func uptime(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	var b strings.Builder
	const day = 24 * time.Hour
	if d >= day {
		fmt.Fprintf(&b, "%dd ", d/day)
		d %= day
	}
	if b.Len() > 0 || d >= time.Hour {
		fmt.Fprintf(&b, "%dh ", d/time.Hour)
	}
	if b.Len() > 0 || d >= time.Minute {
		fmt.Fprintf(&b, "%dm ", d/time.Minute%60)
	}
	fmt.Fprintf(&b, "%ds", d/time.Second%60)
	return b.String()
}

func (p *probes) info(w http.ResponseWriter, _ *http.Request) {
	self := p.self()
	probeJSON(w, http.StatusOK, infoOf(self.Node, self))
}

// remark is one sentence about a node's health.
type remark struct {
	Message string `json:"message"`
}

// health answers 200 while the node serves, as Active or Passive.
func (p *probes) health(w http.ResponseWriter, _ *http.Request) {
	self := p.self()
	body := struct {
		nodeInfo
		Info   []remark `json:"info,omitempty"`
		Errors []remark `json:"errors,omitempty"`
	}{nodeInfo: infoOf(self.Node, self)}
	if why := unready(self); why != "" {
		body.Errors = []remark{{why}}
		probeJSON(w, http.StatusServiceUnavailable, body)
		return
	}
	body.Info = []remark{{self.Node.Name + " is healthy"}}
	probeJSON(w, http.StatusOK, body)
}

// nodes lists the controllers that this node knows; without a cluster to ask,
// that is itself.
func (p *probes) nodes(w http.ResponseWriter, r *http.Request) {
	self := p.self()
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	all, err := p.list(ctx)
	if err != nil {
		all = nil
	}
	infos := []nodeInfo{}
	for _, n := range all {
		if n.Name == self.Node.Name {
			n = self.Node // the freshest there is
		}
		if n.Role == roles.RoleController || n.Name == self.Node.Name {
			infos = append(infos, infoOf(n, self))
		}
	}
	if len(infos) == 0 {
		infos = append(infos, infoOf(self.Node, self))
	}
	probeJSON(w, http.StatusOK, infos)
}

func probeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // plain data: only the connection can fail
}
