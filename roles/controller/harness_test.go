package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/codestation/mount"
	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// TestMain fails if a goroutine outlives the tests. etcd's peers talk HTTP, and
// what is left of a connection of theirs ends up to five seconds after both its
// ends; nothing else here uses HTTP.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == mount.ChildVerb {
		_ = mount.Serve(os.Args[2], os.Stdin, os.Stdout) // its end tells the parent
		os.Exit(0)
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
	)
}

// patience bounds every wait. It only ends tests that fail.
const patience = 30 * time.Second

var operator = api.Actor{Name: "op", Token: "t1", From: "192.0.2.1", Why: "because"}

// world is a cluster of real members with a controller on each. Agents are
// played by the test, and so is the network between the controllers.
type world struct {
	t       testing.TB
	cluster *coordtest.Cluster
	ca      *pki.Authority
	options worldOptions
	// broken, if set, says how a call from one controller to another fails.
	broken atomic.Pointer[func(from, to, call string) error]
	number atomic.Uint64 // of the last link

	mu    sync.Mutex // guards nodes
	nodes map[string]*node
}

// node returns a controller that runs, nil if it is down.
func (w *world) node(name string) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[name]
}

// all returns the controllers that run.
func (w *world) all() []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.nodes))
}

func (w *world) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.nodes, name)
}

// node is a controller that runs.
type node struct {
	*Controller
	w      *world
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex // guards endings
	endings []Ending
}

type worldOptions struct {
	controllers, watches int
	quota                int64
	failover             coord.Failover
	change               func(*Config)
	output               OutputStore
	firstTokens          []pki.APIToken
	mount                string // directory of the shared mount, "" for none
	quiet                bool   // log nothing
	// point is called at every named point of a member.
	point func(node string, p coord.Point)
}

// newWorld starts a cluster. Tests with one spend their time waiting for elections,
// so they run side by side.
func newWorld(t *testing.T, o worldOptions) *world {
	t.Helper()
	t.Parallel()
	return startWorld(t, o)
}

func startWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	dir := t.TempDir()
	if err := pki.Init(pki.InitOptions{Dir: dir, RootDir: t.TempDir(), Cluster: "test"}); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca, options: o, nodes: map[string]*node{}}
	w.cluster = coordtest.Start(t, coordtest.Options{Controllers: o.controllers, Watches: o.watches, Point: o.point, Change: func(c *coord.Config) {
		if o.quota != 0 {
			c.QuotaBytes = o.quota
		}
		if o.failover != "" {
			c.Failover = o.failover
		}
	}})
	for _, name := range w.cluster.Names() {
		if w.cluster.Peer(name).Role == coord.RoleController {
			w.run(name, o)
		}
	}
	t.Cleanup(func() {
		running := w.all()
		for _, n := range running {
			n.cancel()
		}
		for _, n := range running {
			n.ended()
		}
	})
	for _, n := range w.all() {
		n.ready()
	}
	return w
}

// run starts a controller on a member that runs.
func (w *world) run(name string, o worldOptions) *node {
	cfg := Config{Name: name, Host: "host-" + name, Version: "test", Execution: ExecutionAny, PingInterval: time.Second}
	if o.change != nil {
		o.change(&cfg)
	}
	n := &node{w: w, done: make(chan struct{})}
	shared := mount.New(mount.Config{Dir: w.options.mount, Cluster: "test", Timeout: patience, Probe: 20 * time.Millisecond}, mount.Deps{
		Command: func(dir string) *exec.Cmd { return exec.Command("/proc/self/exe", mount.ChildVerb, dir) },
		Log:     slog.New(slog.DiscardHandler),
	})
	n.Controller = New(cfg, Deps{
		Member: w.cluster.Node(name).Member, Authority: w.ca, FirstTokens: o.firstTokens, Output: o.output, Mount: shared,
		DialMember: func(_ context.Context, to string) (wire.MemberClient, error) { return w.dial(name, to) },
		End: func(e Ending) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.endings = append(n.endings, e)
		},
		Log: w.log().With("node", name),
	})
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(n.done)
		var g sync.WaitGroup
		g.Go(func() { _ = shared.Run(ctx) }) // never fails
		_ = n.Run(ctx)                       // a member that was killed ends it with an error
		n.cancel()
		g.Wait()
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[name] = n
	return n
}

func (w *world) log() *slog.Logger {
	if w.options.quiet {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// kill ends a node without a goodbye, as a crash does.
func (w *world) kill(name string) {
	w.t.Helper()
	n := w.node(name)
	w.forget(name)
	w.cluster.Kill(name)
	n.cancel()
	n.ended()
}

// stop ends a controller with a goodbye.
func (n *node) stop() {
	n.w.t.Helper()
	n.w.forget(n.cfg.Name)
	n.cancel()
	n.ended()
}

func (n *node) ended() {
	select {
	case <-n.done:
	case <-time.After(patience):
		n.w.t.Errorf("%s does not end", n.cfg.Name)
	}
}

// ready waits until the controller answers and its desk is open.
func (n *node) ready() {
	n.w.t.Helper()
	coordtest.Await(n.w.t, n.member.View(), n.cfg.Name+" is ready", func(coord.Snapshot) bool {
		return n.Ready() == nil && n.desk.Load() != nil
	})
}

// flush returns when the desk has done what it had been given so far.
func (n *node) flush() {
	n.w.t.Helper()
	d := n.desk.Load()
	if d == nil {
		n.w.t.Fatalf("%s has no desk", n.cfg.Name)
	}
	done := make(chan struct{})
	d.mail.post(func() { close(done) })
	select {
	case <-done:
	case <-time.After(patience):
		n.w.t.Fatalf("the desk of %s is stuck", n.cfg.Name)
	}
}

// settle returns when everything has been stored and performed that follows from
// what the desk had been given so far. Whatever it sends, it has sent then.
func (n *node) settle() {
	n.w.t.Helper()
	for range 2 { // what is performed first may store something in turn
		n.flush()
		res := n.commit1(coord.Tx{Then: []coord.Write{coord.Put("test/"+n.cfg.Name, nil)}})
		if err := n.member.View().Wait(n.w.t.Context(), res.Revision); err != nil {
			n.w.t.Fatal(err)
		}
		n.flush()
	}
}

// commit1 writes in the session of the controller.
func (n *node) commit1(tx coord.Tx) coord.Result {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(n.w.t.Context(), patience)
	defer cancel()
	res, err := n.session.Load().Commit(ctx, tx)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return res
}

// on runs f on the goroutine of the desk.
func (n *node) on(f func(d *desk)) {
	n.w.t.Helper()
	d := n.desk.Load()
	d.mail.post(func() { f(d) })
	n.flush()
}

// dump is everything stored below the prefixes, for comparison.
func (n *node) dump(prefixes ...string) map[string]string {
	n.w.t.Helper()
	if err := n.Sync(n.w.t.Context()); err != nil {
		n.w.t.Fatal(err)
	}
	all := map[string]string{}
	snap := n.member.View().Snapshot()
	for _, p := range prefixes {
		for kv := range snap.Range(p) {
			all[kv.Key] = fmt.Sprintf("%d %s", kv.Mod, kv.Value)
		}
	}
	return all
}

// restart ends the controller's session and begins another one, as after a
// restart of its process: what it owned is ownerless for a moment.
func (n *node) restart() *node {
	n.w.t.Helper()
	n.stop()
	again := n.w.run(n.cfg.Name, worldOptions{change: func(c *Config) { *c = n.cfg }})
	again.ready()
	return again
}

// everything is what an operation that is refused must leave alone.
func (n *node) everything() map[string]string {
	n.w.t.Helper()
	n.settle()
	return n.dump(prefixRequests, prefixClaims, prefixInbox, prefixIdem, prefixProcesses, prefixAgents, prefixTokens, prefixEvents)
}

// apply stores processes.
func (n *node) apply(ps ...roles.Process) {
	n.w.t.Helper()
	if _, err := n.Apply(n.w.t.Context(), operator, api.Documents{Processes: ps}, false); err != nil {
		n.w.t.Fatal(err)
	}
}

// accept accepts a request of a process without parameters.
func (n *node) accept(process string) api.Request {
	n.w.t.Helper()
	r, created, err := n.Accept(n.w.t.Context(), operator, api.RunSpec{Process: process}, "")
	if err != nil || !created {
		n.w.t.Fatalf("accept %s: created %v, %v", process, created, err)
	}
	return r
}

// await waits until this node shows a request in a certain state.
func (n *node) await(id, what string, cond func(api.Request) bool) api.Request {
	n.w.t.Helper()
	var r api.Request
	coordtest.Await(n.w.t, n.member.View(), what, func(snap coord.Snapshot) bool {
		var err error
		r, err = n.requestIn(snap, id)
		return err == nil && cond(r)
	})
	return r
}

func (n *node) awaitStatus(id string, want roles.RequestStatus) api.Request {
	n.w.t.Helper()
	return n.await(id, "request is "+string(want), func(r api.Request) bool { return r.Status == want })
}

func (n *node) awaitStep(id, step string, want roles.StepStatus) api.Step {
	n.w.t.Helper()
	r := n.await(id, "step "+step+" is "+string(want), func(r api.Request) bool { return stepOf(r, step).Status == want })
	return stepOf(r, step)
}

func stepOf(r api.Request, name string) api.Step {
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	return api.Step{}
}

// events are the kinds of all events about a subject, in order.
func (n *node) events(subject string) []string {
	n.w.t.Helper()
	if err := n.Sync(n.w.t.Context()); err != nil {
		n.w.t.Fatal(err)
	}
	list, err := n.ListEvents(n.w.t.Context(), api.EventFilter{})
	if err != nil {
		n.w.t.Fatal(err)
	}
	var kinds []string
	for _, e := range slices.Backward(list.Events) {
		if e.Subject == subject {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

// step is a step of a process, on an agent, after others.
func step(name, agent string, needs ...string) roles.StepDef {
	return roles.StepDef{Name: name, Needs: needs, On: roles.OnSuccess, Agent: roles.Selector{Name: agent}, Run: "true"}
}

// process is a process of these steps.
func process(name string, steps ...roles.StepDef) roles.Process {
	return roles.Process{Name: name, Steps: steps}
}

// ---- the network between controllers ----

// breakCalls makes calls between controllers fail as f says, nil heals them.
func (w *world) breakCalls(f func(from, to, call string) error) {
	if f == nil {
		w.broken.Store(nil)
		return
	}
	w.broken.Store(&f)
}

func (w *world) dial(from, to string) (wire.MemberClient, error) {
	return &memberClient{w: w, from: from, to: to}, nil
}

// memberClient calls the member service of another controller without a network.
type memberClient struct {
	wire.MemberClient // for the calls that no test makes
	w                 *world
	from, to          string
}

func (m *memberClient) server(call string) (wire.MemberServer, error) {
	if f := m.w.broken.Load(); f != nil {
		if err := (*f)(m.from, m.to, call); err != nil {
			return nil, err
		}
	}
	n := m.w.node(m.to)
	if n == nil {
		return nil, status.Error(codes.Unavailable, m.to+" is down")
	}
	return &memberServer{c: n.Controller}, nil
}

func (m *memberClient) Peek(ctx context.Context, r *wire.PeekRequest, _ ...grpc.CallOption) (*wire.PeekResponse, error) {
	s, err := m.server("peek")
	if err != nil {
		return nil, err
	}
	return s.Peek(ctx, r)
}

func (m *memberClient) Deliver(ctx context.Context, r *wire.DeliverRequest, _ ...grpc.CallOption) (*wire.DeliverResponse, error) {
	s, err := m.server("deliver")
	if err != nil {
		return nil, err
	}
	return s.Deliver(ctx, r)
}

func (m *memberClient) Report(ctx context.Context, r *wire.ReportRequest, _ ...grpc.CallOption) (*wire.ReportResponse, error) {
	s, err := m.server("report")
	if err != nil {
		return nil, err
	}
	return s.Report(ctx, r)
}

// ---- agents ----

// agent is the test's end of an agent's links.
type agent struct {
	t       testing.TB
	w       *world
	name    string
	labels  map[string]string
	journal *wire.Journal
	link    *link
	at      *node
	fences  map[string]*wire.Fence // the highest of each request
}

// agent connects a new agent to a controller and waits until it is known there.
func (w *world) agent(n *node, name string, labels map[string]string) *agent {
	w.t.Helper()
	a := &agent{
		t: w.t, w: w, name: name, labels: labels, fences: map[string]*wire.Fence{},
		journal: &wire.Journal{Id: "journal-of-" + name, Counter: 10},
	}
	a.connect(n)
	for _, other := range w.all() {
		coordtest.Await(w.t, other.member.View(), "agent "+name+" is known", func(snap coord.Snapshot) bool {
			_, agent := snap.Get(agentKey(name))
			_, link := snap.Get(linkKey(name, n.cfg.Name))
			return agent && link
		})
	}
	n.flush()
	return a
}

// newLink is a link after its hello was checked, as Connect makes it.
func (a *agent) newLink() *link {
	number := a.w.number.Add(1)
	ctx, drop := context.WithCancelCause(context.Background())
	a.t.Cleanup(func() { drop(nil) })
	return &link{
		agent: a.name, ctx: ctx, drop: drop,
		hello: &wire.Hello{
			Name: a.name, Host: "host-" + a.name, Version: "test", Labels: a.labels,
			Journal: a.journalNow(),
			Link:    &wire.LinkID{Number: number, Nonce: 1000 + number},
		},
		out: make(tray, linkQueue),
	}
}

// tray is the outbox of an agent that a test plays.
type tray chan *wire.ControllerMessage

func (t tray) put(m *wire.ControllerMessage) bool {
	select {
	case t <- m:
		return true
	default:
		return false
	}
}

// sent is what was sent over a link and nobody has taken.
func (l *link) sent() tray { return l.out.(tray) }

// connect opens a link to a controller; the one before, if any, ends.
func (a *agent) connect(n *node) {
	a.t.Helper()
	if a.link != nil {
		a.disconnect()
	}
	a.link, a.at = a.newLink(), n
	if !n.links.put(a.link) {
		a.t.Fatalf("%s has a newer link of %s", n.cfg.Name, a.name)
	}
	n.linkUp(a.link)
}

// disconnect ends the link.
func (a *agent) disconnect() {
	a.link.drop(errors.New("the test ends it"))
	if a.at.links.remove(a.link) {
		a.at.linkDown(a.link)
	}
	a.link = nil
}

// next returns the next message to the agent.
func (a *agent) next() *wire.ControllerMessage {
	a.t.Helper()
	select {
	case m := <-a.link.sent():
		if !a.link.hello.GetLink().Same(m.GetLink()) {
			a.t.Errorf("%s got a message for another link: %v", a.name, m)
		}
		if s, ad := m.GetStart(), m.GetAdopt(); s != nil {
			a.fences[s.GetRequest()] = s.GetFence()
		} else if ad != nil {
			a.fences[ad.GetRequest()] = ad.GetFence()
		}
		return m
	case <-time.After(patience):
		a.t.Fatalf("nothing was sent to %s", a.name)
		return nil
	}
}

// quiet fails if something was sent to the agent by now.
func (a *agent) quiet(owner *node) {
	a.t.Helper()
	owner.settle()
	select {
	case m := <-a.link.sent():
		a.t.Errorf("%s was sent %v", a.name, m)
	default:
	}
}

// reconnect opens a link with a journal in another state.
func (a *agent) reconnect(n *node, journal string, counter uint64) {
	a.journal = &wire.Journal{Id: journal, Counter: counter}
	a.connect(n)
}

func (a *agent) start() *wire.Start {
	a.t.Helper()
	m := a.next()
	if m.GetStart() == nil {
		a.t.Fatalf("%s got %v, want a start", a.name, m)
	}
	return m.GetStart()
}

func (a *agent) adopt() *wire.Adopt {
	a.t.Helper()
	m := a.next()
	if m.GetAdopt() == nil {
		a.t.Fatalf("%s got %v, want adopt", a.name, m)
	}
	return m.GetAdopt()
}

func (a *agent) killed() *wire.Kill {
	a.t.Helper()
	m := a.next()
	if m.GetKill() == nil {
		a.t.Fatalf("%s got %v, want a kill", a.name, m)
	}
	return m.GetKill()
}

func (a *agent) ack() *wire.Ack {
	a.t.Helper()
	m := a.next()
	if m.GetAck() == nil {
		a.t.Fatalf("%s got %v, want an acknowledgement", a.name, m)
	}
	return m.GetAck()
}

func (a *agent) say(m *wire.AgentMessage) { a.at.fromAgent(a.link, m) }

// journalNow is the journal as of now: what was said of it must not change.
func (a *agent) journalNow() *wire.Journal {
	return &wire.Journal{Id: a.journal.GetId(), Counter: a.journal.GetCounter()}
}

// report says what became of an attempt.
func (a *agent) report(request, step string, attempt uint32, state wire.State, end *wire.End) {
	a.journal.Counter++
	a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
		Request: request, Fence: a.fences[request], Journal: a.journalNow(),
		Attempt: &wire.Attempt{Step: step, Attempt: attempt, State: state, End: end},
	}}})
}

func (a *agent) running(s *wire.Start) {
	a.report(s.GetRequest(), s.GetStep(), s.GetAttempt(), wire.State_RUNNING, nil)
}

func (a *agent) exited(s *wire.Start, code int32) {
	a.report(s.GetRequest(), s.GetStep(), s.GetAttempt(), wire.State_EXITED, &wire.End{Code: code})
}

// ran reports an attempt that ended well, with when it began.
func (a *agent) ran(s *wire.Start) {
	a.journal.Counter++
	a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
		Request: s.GetRequest(), Fence: a.fences[s.GetRequest()], Journal: a.journalNow(),
		Attempt: &wire.Attempt{Step: s.GetStep(), Attempt: s.GetAttempt(), State: wire.State_EXITED, StartedUnixNano: 1, End: &wire.End{}},
	}}})
}

// adopted answers an adopt with these attempts.
func (a *agent) adopted(ad *wire.Adopt, attempts ...*wire.Attempt) {
	a.journal.Counter++
	a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Adopted{Adopted: &wire.AdoptAnswer{
		Request: ad.GetRequest(), Fence: ad.GetFence(), Attempts: attempts,
		Journal: a.journalNow(),
	}}})
}

// refuse refuses a start.
func (a *agent) refuse(s *wire.Start, reason wire.Refusal_Reason) {
	a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Refused{Refused: &wire.Refusal{
		Command: wire.Refusal_START, Request: s.GetRequest(), Step: s.GetStep(), Attempt: s.GetAttempt(),
		Fence: s.GetFence(), Reason: reason, Journal: a.journalNow(), Detail: "the test says so",
	}}})
}

// diff lists what differs between two dumps.
func diff(before, after map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if before[k] != after[k] {
			out = append(out, "+ "+k+" "+after[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[k]; !ok {
			out = append(out, "- "+k)
		}
	}
	return strings.Join(out, "\n")
}

func isErr(err, want error) bool { return errors.Is(err, want) }
