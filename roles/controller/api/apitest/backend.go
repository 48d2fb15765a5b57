package apitest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"uac/roles"
	"uac/roles/controller/api"
)

// State is all that a [Backend] knows.
type State struct {
	Self      api.Self
	Nodes     []api.Node
	Processes []roles.Process
	Requests  []api.Request
	Keys      map[string]string // idempotency key -> request
	Output    map[string]string // "request/step/attempt" -> what it wrote
	Agents    []api.Agent
	Mounts    []api.Mount
	// AgentClusters with their members as the test made them up.
	AgentClusters []api.AgentClusterStatus
	// Note is what every list of requests or events has.
	Note   string
	Locks  []api.Lock
	Events []api.Event
	Tokens []api.Token
	// Access of bearer tokens.
	Access map[string]string

	// Ready is what Ready returns.
	Ready error
	// Revision is what is shown. Wait for a later one lasts until it is.
	Revision int64
	// OnSync changes the state at the next Sync: what another controller did.
	OnSync func(*State)
	// Errors are returned by the methods with these names.
	Errors map[string]error
	// Panics makes the methods with these names panic.
	Panics map[string]bool
	// Calls records every call that changes something.
	Calls []string
}

// Backend implements api.Backend. Safe for concurrent use.
type Backend struct {
	mu      sync.Mutex // guards state, changed
	state   State
	changed chan struct{} // closed at the next change
}

var _ api.Backend = (*Backend)(nil)

// New returns a backend with tokens called viewer, operator and admin, which
// have that access.
func New(s State) *Backend {
	s.Access = map[string]string{"viewer": "viewer", "operator": "operator", "admin": "admin"}
	s.Revision = max(s.Revision, 1)
	if s.Keys == nil {
		s.Keys = map[string]string{}
	}
	return &Backend{state: s, changed: make(chan struct{})}
}

// Update changes the state and wakes who waits for changes.
func (b *Backend) Update(f func(*State)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.state)
	close(b.changed)
	b.changed = make(chan struct{})
}

// Calls returns the record of calls that changed something.
func (b *Backend) Calls() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.state.Calls)
}

// read calls f with the state unless method is to fail.
func (b *Backend) read(method string, f func(*State) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Panics[method] {
		panic(method + " panics")
	}
	if err := b.state.Errors[method]; err != nil {
		return err
	}
	return f(&b.state)
}

// write is read for calls that change something; args describe it.
func (b *Backend) write(method string, a api.Actor, f func(*State) error, args ...any) error {
	return b.read(method, func(s *State) error {
		line := method
		for _, arg := range args {
			line += " " + fmt.Sprint(arg)
		}
		line += " by " + a.Name
		if a.Why != "" {
			line += " because " + a.Why
		}
		s.Calls = append(s.Calls, line)
		err := f(s)
		if err == nil {
			s.Revision++
			close(b.changed)
			b.changed = make(chan struct{})
		}
		return err
	})
}

// wait returns at the next change after the state was seen by f, which says
// whether to wait on.
func (b *Backend) wait(ctx context.Context, f func(*State) (on bool, err error)) error {
	for {
		b.mu.Lock()
		on, err := f(&b.state)
		changed := b.changed
		b.mu.Unlock()
		if err != nil || !on {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func byName[T any](items []T, what, name string, of func(T) string) (*T, error) {
	i := slices.IndexFunc(items, func(v T) bool { return of(v) == name })
	if i < 0 {
		return nil, fmt.Errorf("%w: %s %q", api.ErrNotFound, what, name)
	}
	return &items[i], nil
}

func (s *State) node(name string) (*api.Node, error) {
	return byName(s.Nodes, "node", name, func(n api.Node) string { return n.Name })
}

func (s *State) process(name string) (*roles.Process, error) {
	return byName(s.Processes, "process", name, func(p roles.Process) string { return p.Name })
}

// Request returns a request to look at or to change.
func (s *State) Request(id string) (*api.Request, error) {
	return byName(s.Requests, "request", id, func(r api.Request) string { return r.ID })
}

func (s *State) agent(name string) (*api.Agent, error) {
	return byName(s.Agents, "agent", name, func(a api.Agent) string { return a.Name })
}

// Authenticate implements api.Access.
func (b *Backend) Authenticate(_ context.Context, token string) (a api.Actor, access string, err error) {
	err = b.read("Authenticate", func(s *State) error {
		var ok bool
		if access, ok = s.Access[token]; !ok {
			return fmt.Errorf("%w: wrong token", api.ErrUnauthenticated)
		}
		a = api.Actor{Name: token, Token: token}
		return nil
	})
	return a, access, err
}

// Ready implements api.Access.
func (b *Backend) Ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Ready
}

// Revision implements api.Access.
func (b *Backend) Revision() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Revision
}

// Wait implements api.Access.
func (b *Backend) Wait(ctx context.Context, rev int64) error {
	return b.wait(ctx, func(s *State) (bool, error) { return s.Revision < rev, nil })
}

// Sync implements api.Access.
func (b *Backend) Sync(context.Context) error {
	return b.read("Sync", func(s *State) error {
		if f := s.OnSync; f != nil {
			s.OnSync = nil
			f(s)
		}
		return nil
	})
}

// Self implements api.Nodes.
func (b *Backend) Self() api.Self {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Self
}

// ListNodes implements api.Nodes.
func (b *Backend) ListNodes(context.Context) (out []api.Node, err error) {
	err = b.read("ListNodes", func(s *State) error { out = slices.Clone(s.Nodes); return nil })
	return out, err
}

// Switchover implements api.Nodes.
func (b *Backend) Switchover(_ context.Context, a api.Actor, to string) (active string, err error) {
	err = b.write("Switchover", a, func(s *State) error {
		for i := range s.Nodes {
			n := &s.Nodes[i]
			switch {
			case n.Mode == roles.ModeActive:
				n.Mode = roles.ModePassive
			case active == "" && n.Mode == roles.ModePassive && (to == "" || to == n.Name):
				n.Mode, active = roles.ModeActive, n.Name
			}
		}
		if active == "" {
			return fmt.Errorf("%w: no controller can become Active", api.ErrConflict)
		}
		return nil
	}, to)
	return active, err
}

// Order implements api.Nodes.
func (b *Backend) Order(_ context.Context, a api.Actor, node, verb string, args map[string]string) (string, error) {
	err := b.write("Order", a, func(s *State) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		switch {
		case verb == "drain":
			n.Paused, n.Requests = true, 0
		case verb == "restart", args["restart"] == "yes":
			n.Epoch, n.Started = n.Epoch+1, n.Started.Add(time.Hour)
		default:
			n.Mode, n.Epoch = roles.ModeOffline, 0
		}
		return nil
	}, node, verb, args)
	return verb + " done", err
}

// SetNode implements api.Nodes.
func (b *Backend) SetNode(_ context.Context, a api.Actor, node string, paused, preferred *bool) (out api.Node, err error) {
	err = b.write("SetNode", a, func(s *State) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		if paused != nil {
			n.Paused = *paused
		}
		if preferred != nil {
			n.Preferred = *preferred
		}
		out = *n
		return nil
	}, node, flag("paused", paused), flag("preferred", preferred))
	return out, err
}

func flag(name string, v *bool) string {
	if v == nil {
		return name + "=?"
	}
	return fmt.Sprintf("%s=%v", name, *v)
}

// RemoveNode implements api.Nodes.
func (b *Backend) RemoveNode(_ context.Context, a api.Actor, node string) error {
	return b.write("RemoveNode", a, func(s *State) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		if n.Mode != roles.ModeOffline {
			return fmt.Errorf("%w: node %s is %s, not Offline", api.ErrConflict, node, n.Mode)
		}
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n api.Node) bool { return n.Name == node })
		return nil
	}, node)
}

// ConfirmLost implements api.Nodes.
func (b *Backend) ConfirmLost(_ context.Context, a api.Actor, nodes []string) (string, error) {
	err := b.write("ConfirmLost", a, func(s *State) error {
		for _, name := range nodes {
			if _, err := s.node(name); err != nil {
				return err
			}
		}
		return nil
	}, strings.Join(nodes, ","))
	return "continues without " + strings.Join(nodes, ", "), err
}

// ListProcesses implements api.Processes.
func (b *Backend) ListProcesses(context.Context) (out []roles.Process, err error) {
	err = b.read("ListProcesses", func(s *State) error { out = slices.Clone(s.Processes); return nil })
	return out, err
}

// GetProcess implements api.Processes.
func (b *Backend) GetProcess(_ context.Context, name string) (out roles.Process, err error) {
	err = b.read("GetProcess", func(s *State) error {
		p, err := s.process(name)
		if err == nil {
			out = *p
		}
		return err
	})
	return out, err
}

// Apply implements api.Definitions.
func (b *Backend) Apply(_ context.Context, a api.Actor, docs api.Documents, dryRun bool) (out []api.Applied, err error) {
	var names []string
	for _, p := range docs.Processes {
		names = append(names, p.Name)
	}
	for _, c := range docs.AgentClusters {
		names = append(names, c.Name)
	}
	err = b.write("Apply", a, func(s *State) error {
		for _, p := range docs.Processes {
			old, _ := s.process(p.Name)
			out = append(out, apply(roles.KindProcess, p.Name, &s.Processes, old, p, dryRun))
		}
		for _, c := range docs.AgentClusters {
			old, _ := s.agentCluster(c.Name)
			out = append(out, apply(roles.KindAgentCluster, c.Name, &s.AgentClusters, old, clusterOf(c), dryRun))
		}
		slices.SortFunc(s.Processes, func(a, b roles.Process) int { return cmp.Compare(a.Name, b.Name) })
		return nil
	}, strings.Join(names, ","), dryRun)
	return out, err
}

// apply stores one definition in place of the old one, which may be nil.
func apply[T any](kind, name string, all *[]T, old *T, next T, dryRun bool) api.Applied {
	result := "changed"
	switch {
	case old == nil:
		result = "created"
	case reflect.DeepEqual(*old, next):
		result = "unchanged"
	}
	switch {
	case dryRun:
	case old != nil:
		*old = next
	default:
		*all = append(*all, next)
	}
	return api.Applied{Kind: kind, Name: name, Result: result}
}

// DeleteProcess implements api.Processes.
func (b *Backend) DeleteProcess(_ context.Context, a api.Actor, name string) error {
	return b.write("DeleteProcess", a, func(s *State) error {
		if _, err := s.process(name); err != nil {
			return err
		}
		s.Processes = slices.DeleteFunc(s.Processes, func(p roles.Process) bool { return p.Name == name })
		return nil
	}, name)
}

// RequestID is the id of the n-th request that a Backend accepts, from 1.
func RequestID(n int) string { return fmt.Sprintf("01JD%022d", n) }

// Accept implements api.Requests.
func (b *Backend) Accept(_ context.Context, a api.Actor, spec api.RunSpec, key string) (out api.Request, created bool, err error) {
	err = b.write("Accept", a, func(s *State) error {
		if id, known := s.Keys[key]; known && key != "" {
			r, err := s.Request(id)
			if err != nil {
				return err
			}
			if r.Process != spec.Process || !maps.Equal(r.Params, spec.Params) {
				return fmt.Errorf("%w: idempotency key %s was used for another request", api.ErrConflict, key)
			}
			out = *r
			return nil
		}
		p, err := s.process(spec.Process)
		if err != nil {
			return err
		}
		for _, param := range p.Params {
			if _, given := spec.Params[param.Name]; param.Required && !given {
				return roles.Problems{{File: "process " + p.Name, Field: "params." + param.Name, Message: "is required"}}
			}
		}
		out = api.Request{
			ID: RequestID(len(s.Requests) + 1), Process: p.Name, Status: "queued", Params: spec.Params,
			RequestedBy: a.Name, RequestedAt: "2026-01-02T03:04:05.000Z", Steps: []api.Step{},
		}
		for _, d := range p.Steps {
			out.Steps = append(out.Steps, api.Step{Name: d.Name, Status: "waiting", Needs: d.Needs, On: d.On})
		}
		s.Requests = append(s.Requests, out)
		s.Keys[key] = out.ID
		created = true
		return nil
	}, spec.Process, spec.Params)
	return out, created, err
}

// ListRequests implements api.Requests.
func (b *Backend) ListRequests(_ context.Context, f api.RequestFilter) (out api.RequestList, err error) {
	err = b.read("ListRequests", func(s *State) error {
		out.Note = s.Note
		for _, r := range slices.Backward(s.Requests) {
			if !passes(f, r) {
				continue
			}
			out.Requests = append(out.Requests, r)
			if len(out.Requests) == f.Limit {
				out.Next = r.ID
				break
			}
		}
		return nil
	})
	return out, err
}

func passes(f api.RequestFilter, r api.Request) bool {
	at, _ := time.Parse(time.RFC3339, string(r.RequestedAt))
	return (f.Status == "" || f.Status == r.Status) && (f.Process == "" || f.Process == r.Process) &&
		(f.By == "" || f.By == r.RequestedBy) && (f.Before == "" || r.ID < f.Before) && (!f.Open || !r.Status.Final()) &&
		(f.Agent == "" || slices.ContainsFunc(r.Steps, func(s api.Step) bool { return s.Agent == f.Agent })) &&
		(f.From.IsZero() || !at.Before(f.From)) && (f.To.IsZero() || at.Before(f.To))
}

// GetRequest implements api.Requests.
func (b *Backend) GetRequest(_ context.Context, id string) (out api.Request, err error) {
	err = b.read("GetRequest", func(s *State) error {
		r, err := s.Request(id)
		if err == nil {
			out = *r
			out.Steps = slices.Clone(r.Steps)
		}
		return err
	})
	return out, err
}

// WatchRequest implements api.Requests.
func (b *Backend) WatchRequest(ctx context.Context, id string, f func(api.Request) error) error {
	var last *api.Request
	for {
		var now api.Request
		err := b.wait(ctx, func(s *State) (bool, error) {
			if err := s.Errors["WatchRequest"]; err != nil {
				return false, err
			}
			r, err := s.Request(id)
			if err != nil {
				return false, err
			}
			now = *r
			now.Steps = slices.Clone(r.Steps)
			return last != nil && reflect.DeepEqual(*last, now), nil
		})
		if err != nil {
			return err
		}
		last = &now
		if err := f(now); err != nil {
			return err
		}
		if now.Status.Final() || now.Status == roles.RequestInDoubt {
			return nil
		}
	}
}

func (b *Backend) command(method string, a api.Actor, id string, f func(*State, *api.Request) error, args ...any) error {
	return b.write(method, a, func(s *State) error {
		r, err := s.Request(id)
		if err != nil {
			return err
		}
		return f(s, r)
	}, append([]any{id}, args...)...)
}

// Steer implements api.Requests. It obeys as far as tests look.
func (b *Backend) Steer(_ context.Context, a api.Actor, id string, o api.Order) error {
	args := []any{o.Verb}
	for _, word := range []string{o.Step, o.As, o.Before, o.After} {
		if word != "" {
			args = append(args, word)
		}
	}
	if o.Force {
		args = append(args, "force")
	}
	if o.From {
		args = append(args, "from")
	}
	if o.Definition != nil {
		args = append(args, o.Definition.Name, o.Definition.Run)
	}
	return b.command("Steer", a, id, func(_ *State, r *api.Request) error { return obey(r, o) }, args...)
}

func obey(r *api.Request, o api.Order) error {
	if r.Status.Final() && (o.Verb == "cancel" || o.Verb == "finish") {
		return fmt.Errorf("%w: request %s is %s", api.ErrConflict, r.ID, r.Status)
	}
	switch o.Verb {
	case "cancel":
		r.Status = roles.RequestCancelling
	case "finish":
		r.Status = roles.RequestStatus(o.As)
	case "insert":
		r.Steps = append(r.Steps, api.Step{Name: o.Definition.Name, Status: roles.StepWaiting})
	}
	if o.Step == "" {
		return nil
	}
	st, err := byName(r.Steps, "step", o.Step, func(s api.Step) string { return s.Name })
	if err != nil {
		return err
	}
	switch o.Verb {
	case "hold":
		st.Status = roles.StepHeld
	case "release", "rerun":
		st.Status = roles.StepReady
	case "skip":
		st.Status = roles.StepSkipped
	case "resolve":
		if st.Status != roles.StepInDoubt && !o.Force {
			return fmt.Errorf("%w: step %s is %s, not in doubt", api.ErrConflict, o.Step, st.Status)
		}
		st.Status = map[string]roles.StepStatus{"success": "succeeded", "failed": "failed", "rerun": "ready"}[o.As]
	}
	return nil
}

// ReadOutput implements api.Requests.
func (b *Backend) ReadOutput(ctx context.Context, id, step string, attempt int, offset int64, follow bool, w io.Writer) error {
	at := int(offset)
	for {
		var piece string
		var ended bool
		err := b.wait(ctx, func(s *State) (bool, error) {
			if err := s.Errors["ReadOutput"]; err != nil {
				return false, err
			}
			r, err := s.Request(id)
			if err != nil {
				return false, err
			}
			st, err := byName(r.Steps, "step", step, func(s api.Step) string { return s.Name })
			if err != nil {
				return false, err
			}
			text, ok := s.Output[fmt.Sprintf("%s/%s/%d", id, step, cmp.Or(attempt, st.Attempt))]
			if !ok && !follow {
				return false, fmt.Errorf("%w: output of step %s", api.ErrNotFound, step)
			}
			piece = text[min(at, len(text)):]
			ended = st.Status != "running" && st.Status != "dispatched"
			return piece == "" && follow && !ended, nil
		})
		if err != nil {
			return err
		}
		n, err := io.WriteString(w, piece)
		at += n
		if err != nil || !follow || ended {
			return err
		}
	}
}

// ListMounts implements api.Admin.
func (b *Backend) ListMounts(context.Context) (out []api.Mount, err error) {
	err = b.read("ListMounts", func(s *State) error { out = slices.Clone(s.Mounts); return nil })
	return out, err
}

// ListLocks implements api.Admin.
func (b *Backend) ListLocks(context.Context) (out []api.Lock, err error) {
	err = b.read("ListLocks", func(s *State) error { out = slices.Clone(s.Locks); return nil })
	return out, err
}

// ReleaseLock implements api.Admin.
func (b *Backend) ReleaseLock(_ context.Context, a api.Actor, name string) error {
	return b.write("ReleaseLock", a, func(s *State) error {
		_, err := byName(s.Locks, "lock", name, func(l api.Lock) string { return l.Name })
		return err
	}, name)
}

// ListTokens implements api.Admin.
func (b *Backend) ListTokens(context.Context) (out []api.Token, err error) {
	err = b.read("ListTokens", func(s *State) error { out = slices.Clone(s.Tokens); return nil })
	return out, err
}

// CreateToken implements api.Admin.
func (b *Backend) CreateToken(_ context.Context, a api.Actor, spec api.TokenSpec) (text string, t api.Token, err error) {
	err = b.write("CreateToken", a, func(s *State) error {
		t = api.Token{ID: fmt.Sprintf("t%d", len(s.Tokens)+1), Kind: "join", Name: spec.Name, Role: spec.Role}
		if _, err := roles.ParseRole(spec.Role); err != nil {
			t.Kind = "api"
		}
		s.Tokens = append(s.Tokens, t)
		return nil
	}, spec.Role, spec.Name, spec.TTL, spec.Replace)
	return "secret-of-" + t.ID, t, err
}

// DeleteToken implements api.Admin.
func (b *Backend) DeleteToken(_ context.Context, a api.Actor, id string) error {
	return b.write("DeleteToken", a, func(s *State) error {
		_, err := byName(s.Tokens, "token", id, func(t api.Token) string { return t.ID })
		return err
	}, id)
}

// ListEvents implements api.Admin.
func (b *Backend) ListEvents(_ context.Context, f api.EventFilter) (out api.EventList, err error) {
	err = b.read("ListEvents", func(s *State) error {
		found := slices.DeleteFunc(slices.Clone(s.Events), func(e api.Event) bool { return !f.Match(e) })
		out = api.EventList{Events: found[:min(f.Limit, len(found))], Note: s.Note}
		return nil
	})
	return out, err
}
