package api

import (
	"context"
	"io"
	"strings"
	"time"

	"uac/roles"
)

// Actor is who makes a call: what the audit records.
type Actor struct {
	// Name of the token, and its id.
	Name, Token string
	// From is the remote address, RequestID the id of the call.
	From, RequestID string
	// Why is the reason that the operator gave, if any.
	Why string
}

// Node is one node as operators see it.
type Node struct {
	Name      string     `json:"name"`
	Role      roles.Role `json:"role"`
	Mode      roles.Mode `json:"mode"`
	Paused    bool       `json:"paused"`
	Preferred bool       `json:"preferred"`
	Host      string     `json:"host"`
	IP        string     `json:"ip"`
	API       string     `json:"api"`
	Version   string     `json:"version"`
	Started   time.Time  `json:"started,omitzero"`
	// LastSeen is when the answering node last heard of it, by its own clock.
	LastSeen time.Time `json:"last_seen,omitzero"`
	// Silent tells that the answering node has evidence that it is gone; until the others
	// agree, its mode stays what it was.
	Silent bool `json:"silent,omitempty"`
	// UptimeSeconds is measured by the node itself, or by its start time.
	UptimeSeconds int64 `json:"uptime_seconds"`
	// Epoch of its session, 0 without one; Term is the epoch of its term.
	Epoch int64 `json:"epoch"`
	Term  int64 `json:"term,omitempty"`
	// LostEpoch is that of its session that was declared lost last although its process
	// may live, 0 if there is none.
	LostEpoch int64 `json:"lost_epoch,omitempty"`
	// Requests that it owns and that are not final.
	Requests int `json:"requests"`
	// Held says who stopped it without fail-over, empty if nobody did.
	Held string `json:"held,omitempty"`
	// Failover says whether its loss would be taken over right now.
	Failover Failover `json:"failover"`
	// Relay is set for relays only.
	Relay *RelayState `json:"relay,omitempty"`
}

// RelayState is what is known of a relay. A controller without a link to it knows the
// controllers only.
type RelayState struct {
	// Controllers that it has a link of its own to.
	Controllers []string `json:"controllers"`
	// Links that it carries.
	Links int `json:"links"`
	// RoundTrip between it and the answering controller.
	RoundTrip *RoundTrip `json:"round_trip,omitempty"`
}

// RoundTrip says how long messages to a controller and back took within the last 30 s,
// while nothing else was said.
type RoundTrip struct {
	MinMicros    int64 `json:"min_us"`
	MedianMicros int64 `json:"median_us"`
	MaxMicros    int64 `json:"max_us"`
	Samples      int   `json:"samples"`
}

// Failover says whether an automatic fail-over would work right now.
type Failover struct {
	Ready bool `json:"ready"`
	// Why not, in words; empty if ready.
	Why string `json:"why,omitempty"`
	// Successor that would take over, for the Active.
	Successor string `json:"successor,omitempty"`
}

// Self is what the probes tell of the answering node.
type Self struct {
	Node      Node
	BuildID   string
	BuildDate string
	// Reason why the mode is Offline, or what the start waits for.
	Reason string
}

// Nodes is what the node routes need. Orders return when the node has answered.
type Nodes interface {
	// Self never blocks and works without a cluster.
	Self() Self
	ListNodes(ctx context.Context) ([]Node, error)
	// Switchover makes to (or the best successor, if empty) Active and returns
	// the new Active's name.
	Switchover(ctx context.Context, a Actor, to string) (string, error)
	// Order gives verb (stop, restart, abort, drain) to a node. Arguments:
	// stop: "failover" = "no"; abort: "restart" = "yes".
	Order(ctx context.Context, a Actor, node, verb string, args map[string]string) (string, error)
	// SetNode changes flags of a node; nil leaves one as it is.
	SetNode(ctx context.Context, a Actor, node string, paused, preferred *bool) (Node, error)
	RemoveNode(ctx context.Context, a Actor, node string) error
	ConfirmLost(ctx context.Context, a Actor, nodes []string) (string, error)
}

// Processes is what the process routes need.
type Processes interface {
	ListProcesses(ctx context.Context) ([]roles.Process, error)
	GetProcess(ctx context.Context, name string) (roles.Process, error)
	DeleteProcess(ctx context.Context, a Actor, name string) error
}

// Documents are definitions that are applied together, by kind.
type Documents struct {
	Processes     []roles.Process      `json:"processes,omitempty" nullable:"false"`
	AgentClusters []roles.AgentCluster `json:"agent_clusters,omitempty" nullable:"false"`
}

// Definitions is what applying documents needs.
type Definitions interface {
	// Apply stores all of them or none. It reports for each, in the order of the
	// kinds, whether it was created, changed or left unchanged.
	Apply(ctx context.Context, a Actor, docs Documents, dryRun bool) ([]Applied, error)
}

// Applied is the outcome for one document.
type Applied struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Result string `json:"result" enum:"created,changed,unchanged"`
}

// RunSpec asks for a run of a process.
type RunSpec struct {
	Process string            `json:"process" doc:"Name of the process to run"`
	Params  map[string]string `json:"params,omitempty" doc:"Parameters"`
}

// Requests is what the request routes need.
type Requests interface {
	// Accept creates a request, or returns the one that the idempotency key
	// created before. created tells which.
	Accept(ctx context.Context, a Actor, spec RunSpec, idempotencyKey string) (req Request, created bool, err error)
	// ListRequests lists requests, the newest first, also from the history.
	ListRequests(ctx context.Context, f RequestFilter) (RequestList, error)
	GetRequest(ctx context.Context, id string) (Request, error)
	// WatchRequest calls f with the request now and after every change until
	// it is final or in doubt, f fails, or ctx ends.
	WatchRequest(ctx context.Context, id string, f func(Request) error) error
	// Steer gives an order to a request. Once it returns the order is kept; the
	// owner of the request obeys it if it still fits then.
	Steer(ctx context.Context, a Actor, id string, o Order) error
	// ReadOutput copies the output of one attempt (0: the latest) to w.
	ReadOutput(ctx context.Context, id, step string, attempt int, offset int64, follow bool, w io.Writer) error
}

// Order is what an operator wants of a request that is not final. Fields that the
// verb does not need are empty.
type Order struct {
	// Verb is cancel, hold, release, skip, rerun, resolve, finish, insert or change.
	Verb string
	// Step that it is about; hold and release: empty for the whole request.
	Step string
	// As is the verdict of resolve, and the status of finish.
	As string
	// Force lets resolve end a step whose agent is unreachable.
	Force bool
	// From lets rerun run again what depends on the step, too.
	From bool
	// Before and After say where insert puts the step.
	Before, After string
	// Definition of a step, for insert and change.
	Definition *roles.StepDef
}

// EventFilter narrows a list. Zero values do not narrow.
type EventFilter struct {
	// Kind is a kind, or what stands before its first dot: agent means all of agent.*.
	Kind    string
	Subject string
	By      string
	// From is the earliest time, by the clocks of the nodes that wrote the events.
	From  time.Time
	Limit int
}

// Match reports whether an event is wanted.
func (f EventFilter) Match(e Event) bool {
	group, _, _ := strings.Cut(e.Kind, ".")
	return (f.Kind == "" || f.Kind == e.Kind || f.Kind == group) &&
		(f.Subject == "" || f.Subject == e.Subject) &&
		(f.By == "" || f.By == e.By) &&
		!e.At.Before(f.From)
}

// RequestFilter narrows a list. Zero values do not narrow.
type RequestFilter struct {
	Status  roles.RequestStatus
	Process string
	// Agent ran a step of it; By asked for it.
	Agent, By string
	// From and To bound when it was asked for: not before From, and before To.
	From, To time.Time
	// Before is an id: only requests with a lower one, which are older.
	Before string
	// Open leaves out final requests.
	Open  bool
	Limit int
}

// RequestList is a part of all requests.
type RequestList struct {
	Requests []Request
	// Next is what Before must be to get the next part; empty if there is none.
	Next string
	// Note says what is missing here and why, empty if nothing is.
	Note string
}

// Request is a request as operators see it.
type Request struct {
	ID          string              `json:"id"`
	Process     string              `json:"process"`
	Status      roles.RequestStatus `json:"status"`
	Reason      string              `json:"reason,omitempty"`
	Params      map[string]string   `json:"params,omitempty"`
	Owner       string              `json:"owner,omitempty"`
	Fence       string              `json:"fence,omitempty"`
	RequestedBy string              `json:"requested_by"`
	RequestedAt roles.Stamp         `json:"requested_at"`
	StartedAt   roles.Stamp         `json:"started_at,omitempty"`
	FinishedAt  roles.Stamp         `json:"finished_at,omitempty"`
	Steps       []Step              `json:"steps"`
}

// Step is a step as operators see it.
type Step struct {
	Name string `json:"name"`
	// Of names the step that this is an instance of, on one agent of many.
	Of       string           `json:"of,omitempty"`
	Status   roles.StepStatus `json:"status"`
	Attempt  int              `json:"attempt"`
	Agent    string           `json:"agent"`
	ExitCode *int             `json:"exit_code"` // nil: did not exit, or not known
	// Outputs are the values that it handed to later steps.
	Outputs map[string]string `json:"outputs,omitempty"`
	Needs   []string          `json:"needs,omitempty"`
	On      roles.Condition   `json:"on,omitempty"`
	// Reason in words: why it waits, failed or is in doubt.
	Reason      string      `json:"reason,omitempty"`
	Unreachable bool        `json:"unreachable,omitempty"`
	StartedAt   roles.Stamp `json:"started_at,omitempty"`
	FinishedAt  roles.Stamp `json:"finished_at,omitempty"`
}

// Agent is an enrolled agent as operators see it.
type Agent struct {
	Name      string            `json:"name"`
	Host      string            `json:"host"`
	Version   string            `json:"version"`
	Labels    map[string]string `json:"labels,omitempty"`
	Connected bool              `json:"connected"`
	// Links names the controllers that hold a link to it.
	Links []string `json:"links,omitempty"`
	// Via names, for controllers to which the link goes through relays, these relays,
	// nearest to the agent first, separated by commas, as the agent says.
	Via       map[string]string `json:"via,omitempty"`
	Suspended bool              `json:"suspended"`
	// Clusters are the agent clusters of which it is a member.
	Clusters []string `json:"clusters,omitempty"`
	// Running is how many steps are out at it, Limit how many may be; 0: no limit.
	Running   int       `json:"running"`
	Limit     int       `json:"limit,omitempty"`
	FirstSeen time.Time `json:"first_seen,omitzero"`
	// LastSeen is when a controller last held a link to it, by that controller's
	// clock. While it is connected that is now.
	LastSeen time.Time `json:"last_seen,omitzero"`
}

// AgentClusterStatus is an agent cluster as operators see it: its definition, and what is
// going on in it.
type AgentClusterStatus struct {
	Name         string             `json:"name"`
	Labels       map[string]string  `json:"labels,omitempty"`
	Agents       []string           `json:"agents,omitempty"`
	Distribution roles.Distribution `json:"distribution"`
	Limit        int                `json:"limit,omitempty"`
	AgentLimit   int                `json:"agent_limit,omitempty"`
	Suspended    bool               `json:"suspended"`
	// Running is how many steps that were given to the cluster are out.
	Running int             `json:"running"`
	Members []ClusterMember `json:"members"`
}

// ClusterMember is an agent as a member of an agent cluster.
type ClusterMember struct {
	Agent     string `json:"agent"`
	Connected bool   `json:"connected"`
	// Suspended says that the membership is suspended, or the agent itself.
	Suspended bool `json:"suspended"`
	// Running is how many of the cluster's steps are out at it.
	Running int `json:"running"`
}

// Agents is what the agent routes need.
type Agents interface {
	ListAgents(ctx context.Context) ([]Agent, error)
	GetAgent(ctx context.Context, name string) (Agent, error)
	// SuspendAgent sets or clears that an agent gets no new steps.
	SuspendAgent(ctx context.Context, a Actor, name string, suspended bool) (Agent, error)
	// LimitAgent sets how many steps may be out at an agent; 0: no limit.
	LimitAgent(ctx context.Context, a Actor, name string, limit int) (Agent, error)
	// RemoveAgent forgets an agent. With force also one that is connected or has
	// steps out. It may come back: nothing is revoked.
	RemoveAgent(ctx context.Context, a Actor, name string, force bool) error

	ListAgentClusters(ctx context.Context) ([]AgentClusterStatus, error)
	GetAgentCluster(ctx context.Context, name string) (AgentClusterStatus, error)
	// SuspendAgentCluster sets or clears that a cluster gets no new steps, or that
	// one agent gets none of it.
	SuspendAgentCluster(ctx context.Context, a Actor, name, agent string, suspended bool) (AgentClusterStatus, error)
	// DeleteAgentCluster deletes a definition. With force also one that processes
	// name.
	DeleteAgentCluster(ctx context.Context, a Actor, name string, force bool) error
}

// Mount is the shared mount as one controller sees it.
type Mount struct {
	Node string `json:"node"`
	// State is ok, or what is wrong: absent, foreign, read_only, full, stale, hung,
	// failed; unconfigured without a mount in the settings, checking right after a
	// start, unknown of a controller that is Offline.
	State string `json:"state"`
	// Since is when the node saw it become so, by its own clock.
	Since time.Time `json:"since,omitzero"`
	Error string    `json:"error,omitempty"`
	Dir   string    `json:"dir,omitempty"`
	// ID is that of the sentinel: nodes with the same id have the same mount.
	ID string `json:"id,omitempty"`
	// FreeBytes and TotalBytes are as they were at Seen, when the node wrote this.
	FreeBytes  uint64    `json:"free_bytes"`
	TotalBytes uint64    `json:"total_bytes"`
	Seen       time.Time `json:"seen,omitzero"`
	// StuckChildren are processes that touched the mount and do not end.
	StuckChildren int `json:"stuck_children,omitempty"`
}

// Lock is one holder of a lock, or one that waits for it.
type Lock struct {
	Name    string `json:"name"`
	Node    string `json:"node"`
	Waiting bool   `json:"waiting"`
}

// Event is one entry of the audit trail.
type Event struct {
	ID      string            `json:"id"`
	At      time.Time         `json:"at"`
	Kind    string            `json:"kind"`
	Subject string            `json:"subject,omitempty"`
	By      string            `json:"by,omitempty"`
	From    string            `json:"from,omitempty"`
	Why     string            `json:"why,omitempty"`
	Node    string            `json:"node,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// EventList is a part of all events.
type EventList struct {
	Events []Event
	// Note says what is missing here and why, empty if nothing is.
	Note string
}

// Token is an API or join token without its secret.
type Token struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind" enum:"api,join"`
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Used    bool      `json:"used,omitempty"`
}

// TokenSpec asks for a new token.
type TokenSpec struct {
	// Role is viewer, operator or admin for an API token, agent or relay for a join
	// token.
	Role string `json:"role"`
	// Name of the API token, or the name or name pattern of the joining node.
	Name string `json:"name,omitempty"`
	// Hosts are names and addresses of the API of a joining relay.
	Hosts   []string      `json:"hosts,omitempty"`
	TTL     time.Duration `json:"ttl,omitempty"`
	Replace bool          `json:"replace,omitempty"`
}

// Admin is what the mount, lock, token and event routes need.
type Admin interface {
	// ListMounts lists the shared mount as each controller sees it.
	ListMounts(ctx context.Context) ([]Mount, error)
	ListLocks(ctx context.Context) ([]Lock, error)
	ReleaseLock(ctx context.Context, a Actor, name string) error
	ListTokens(ctx context.Context) ([]Token, error)
	// CreateToken returns the token's text, which is shown once.
	CreateToken(ctx context.Context, a Actor, spec TokenSpec) (string, Token, error)
	DeleteToken(ctx context.Context, a Actor, id string) error
	// ListEvents returns the newest events first, also from the history.
	ListEvents(ctx context.Context, f EventFilter) (EventList, error)
}

// Access is what authentication and consistent reads need.
type Access interface {
	// Authenticate returns the actor and the access of a bearer token. It fails
	// with ErrUnauthenticated, or with another error while it has nothing to look
	// the token up in.
	Authenticate(ctx context.Context, token string) (Actor, string, error)
	// Ready returns nil while this controller may answer: it has a session and
	// trust. Reads and writes are refused with 503 otherwise.
	Ready() error
	// Revision of the newest state that this controller shows. A method that
	// writes returns when its effect is shown, so that the revision read after it
	// is that of the write or a later one.
	Revision() int64
	// Wait returns when this controller shows revision rev.
	Wait(ctx context.Context, rev int64) error
	// Sync returns when this controller shows everything committed before.
	Sync(ctx context.Context) error
}

// Backend is everything behind the API.
type Backend interface {
	Access
	Nodes
	Definitions
	Processes
	Requests
	Agents
	Admin
}
