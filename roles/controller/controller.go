package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// Values of Config.Execution.
const (
	// ExecutionAny lets every controller own requests.
	ExecutionAny = "any"
	// ExecutionActive confines ownership to the Active.
	ExecutionActive = "active"
)

// Config of a controller.
type Config struct {
	Name string
	// Host, IP, API and the build are what the node tells of itself.
	Host, IP, API               string
	Version, BuildID, BuildDate string
	Execution                   string
	// HoldOnStop makes an orderly stop keep the node's work for its return.
	HoldOnStop bool
	// PingInterval is how often a link is pinged on which something goes on, see
	// pinger; an agent gives a link up that
	// was silent for three times as long.
	PingInterval time.Duration
	History      HistoryConfig
}

// Ending says how the process is to end.
type Ending struct {
	// Abrupt means at once, as after a crash.
	Abrupt bool
	// Restart means that the process starts again.
	Restart bool
}

// Deps are what a controller works with.
type Deps struct {
	Member *coord.Member
	// Authority signs certificates.
	Authority *pki.Authority
	// FirstTokens are stored once, to let the first operator in.
	FirstTokens []pki.APIToken
	// Mount is shared by all controllers; nil means that there is none.
	Mount *mount.Mount
	// DialMember returns the member service of another controller or watch.
	// The connection stays with the dialer, which may share it.
	DialMember func(ctx context.Context, node string) (wire.MemberClient, error)
	// Output keeps the output of steps on the shared mount; nil: it stays at the agents.
	Output OutputStore
	// End ends the process. It returns at once unless the ending is abrupt.
	End func(Ending)
	Log *slog.Logger
	// Point, if set, is called at every named point (see Points). Tests kill the
	// process there.
	Point func(Point)
}

// Controller accepts requests, owns some of them and drives their steps on
// agents. It implements [api.Backend]. Safe for concurrent use.
type Controller struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	member  *coord.Member
	links   *links
	storms  *storms // of new links
	relays  *relays
	archive *archive
	started time.Time

	session  atomic.Pointer[coord.Session]
	desk     atomic.Pointer[desk]
	presence atomic.Pointer[presence]
	// held is who ordered a stop without fail-over, nil for none.
	held atomic.Pointer[coord.HoldRecord]
	// counted is how many requests this node owns.
	counted atomic.Int64
	// told paces the events of machines with one identity.
	told *seldom
	// collected is how many bytes of output this node has taken to the mount.
	collected atomic.Int64
}

var _ api.Backend = (*Controller)(nil)

// New returns a controller. Nothing runs yet.
func New(cfg Config, deps Deps) *Controller {
	if deps.Mount == nil {
		deps.Mount = mount.New(mount.Config{}, mount.Deps{Log: deps.Log})
	}
	if deps.Point == nil {
		deps.Point = func(Point) {}
	}
	return &Controller{
		cfg: cfg, deps: deps, log: deps.Log, member: deps.Member,
		links: newLinks(), storms: newStorms(), relays: newRelays(), archive: &archive{files: deps.Mount}, started: time.Now(), told: newSeldom(twinEventEvery),
	}
}

// goodbyeTimeout bounds an orderly stop; after it the node ends as if it had
// crashed. The last nodes of a full shutdown have no majority to say goodbye to.
const goodbyeTimeout = 1500 * time.Millisecond

// Run works in one session after the other until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ending, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { c.storms.run(ending, saveMemory) })
	for {
		err := c.member.Session(ctx, coord.NodeRecord{
			Host: c.cfg.Host, IP: c.cfg.IP, API: c.cfg.API,
			Version: c.cfg.Version, BuildDate: c.cfg.BuildDate, Started: c.started.UTC(),
		}, c.serve)
		switch {
		case ctx.Err() != nil:
			return nil // it was asked to stop, and has
		case errors.Is(err, coord.ErrFenced):
			c.log.Warn("fenced out: forgetting everything and joining again")
		default:
			return err
		}
	}
}

// serve works in one session and says goodbye at its end.
func (c *Controller) serve(ctx context.Context, s *coord.Session) error {
	g, gctx := errgroup.WithContext(ctx)
	d := newDesk(gctx, c, s)
	defer d.tasks.wait()
	c.session.Store(s)
	c.desk.Store(d)
	c.presence.Store(newPresence(c, s, d))
	c.counted.Store(0)
	defer func() {
		c.presence.Store(nil)
		c.desk.Store(nil)
		c.session.Store(nil)
		// Agents see that their commands would go nowhere and look for others.
		c.links.dropAll(errors.New("the controller lost its session"))
	}()
	g.Go(func() error { return d.run(gctx) })
	if c.collects() {
		g.Go(func() error { return newCollector(gctx, c, s).run(gctx) })
	}
	g.Go(func() error { return s.ServeOrders(gctx, c.carryOut) })
	g.Go(func() error { return s.Lead(gctx, c.lead) })
	g.Go(func() error { return c.watchMount(gctx, s) })
	g.Go(func() error {
		for _, t := range c.deps.FirstTokens {
			if err := c.importToken(gctx, s, t); err != nil && gctx.Err() == nil {
				c.log.Warn("first token not stored", "error", err)
			}
		}
		for _, agent := range c.links.agents() {
			c.presenceChanged(agent)
		}
		for _, l := range c.relays.all() {
			c.presentRelay(s, l)
		}
		return nil
	})
	err := g.Wait()
	if errors.Is(context.Cause(ctx), coord.ErrFenced) {
		return coord.ErrFenced
	}
	if ctx.Err() == nil {
		return err
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	hold := c.held.Load()
	if hold == nil && c.cfg.HoldOnStop {
		hold = &coord.HoldRecord{By: "cluster.on_stop", At: time.Now().UTC()}
	}
	if err := s.Leave(bye, hold); err != nil {
		c.log.Warn("left without a goodbye: the others will see that this node is gone", "error", err)
	}
	return nil
}

// lead does what only the Active does, for one term.
func (c *Controller) lead(ctx context.Context, t *coord.Term) error {
	s := c.session.Load()
	if s == nil {
		return nil
	}
	if d := c.desk.Load(); d != nil {
		d.mail.post(func() { d.sweep(false) })
	}
	s.Submit(coord.Tx{If: []coord.Cond{t.Guard()}, Then: []coord.Write{
		c.event(api.Event{Kind: "node.active", Subject: c.cfg.Name, Detail: map[string]string{"term": fmt.Sprint(t.Epoch())}}),
	}}, func(coord.Result, error) {})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.reportLosses(ctx, s, t) })
	g.Go(func() error { return newAbsences(c, s, t, time.Now).run(ctx) })
	g.Go(func() error { return newMover(c, s, t).run(ctx) })
	return g.Wait()
}

// carryOut obeys one order of an operator.
func (c *Controller) carryOut(ctx context.Context, o coord.Order, answer func(string)) (string, error) {
	s := c.session.Load()
	if s == nil {
		return "", coord.ErrFenced
	}
	switch o.Verb {
	case verbSwitchover:
		to, err := s.Switchover(ctx, o.Args["to"])
		return to, err
	case verbStop, verbRestart:
		if o.Args["failover"] == "no" {
			c.held.Store(&coord.HoldRecord{By: o.By, Why: o.Why, At: o.At})
		}
		answer(o.Verb + " under way")
		c.deps.End(Ending{Restart: o.Verb == verbRestart})
		return "", nil
	case verbAbort:
		answer("aborting")
		c.deps.End(Ending{Abrupt: true, Restart: o.Args["restart"] == "yes"})
		return "", nil
	case verbDrain:
		return c.drain(ctx, s)
	}
	return "", fmt.Errorf("unknown order %q", o.Verb)
}

// current returns the session if this controller may act in it now.
func (c *Controller) current() (*coord.Session, error) {
	s := c.session.Load()
	if s == nil {
		return nil, fmt.Errorf("%w: %s", api.ErrUnavailable, c.member.Status().Reason)
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrUnavailable, err)
	}
	// What it shows before may be older than what it showed in its former session:
	// requests that were final would run again in the eyes of a client.
	if c.member.View().Revision() < s.Epoch() {
		return nil, fmt.Errorf("%w: it has not yet caught up with the cluster that it has just joined", api.ErrUnavailable)
	}
	return s, nil
}

// trusted reports whether this controller has a session in which it may act now.
func (c *Controller) trusted() bool {
	s := c.session.Load()
	return s != nil && s.Check() == nil
}

// growing is current for writes that make the store grow.
func (c *Controller) growing() (*coord.Session, error) {
	if err := c.member.CheckRoom(coord.RoomForGrowth); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrNoRoom, err)
	}
	return c.current()
}

// Ready returns nil while this controller may answer.
func (c *Controller) Ready() error {
	_, err := c.current()
	return err
}

// Revision of the newest state that this controller shows.
func (c *Controller) Revision() int64 { return c.member.View().Revision() }

// Wait returns when this controller shows revision rev.
func (c *Controller) Wait(ctx context.Context, rev int64) error {
	return c.member.View().Wait(ctx, rev)
}

// Sync returns when this controller shows everything committed before.
func (c *Controller) Sync(ctx context.Context) error { return c.member.Sync(ctx) }

// owned is how many requests that are not final a node owns.
func (c *Controller) owned(node string) int {
	if node == c.cfg.Name {
		return int(c.counted.Load())
	}
	return c.ownedByNode()[node]
}

func (c *Controller) linkUp(l *link) {
	if d := c.desk.Load(); d != nil {
		d.mail.post(func() { d.linkUp(localRoute{l}) })
	}
	c.presenceChanged(l.agent)
}

func (c *Controller) linkDown(l *link) {
	if d := c.desk.Load(); d != nil {
		d.mail.post(func() { d.linkDown(localRoute{l}) })
	}
	c.presenceChanged(l.agent)
}

func (c *Controller) presenceChanged(agent string) {
	if p := c.presence.Load(); p != nil {
		p.pace.changed(agent)
	}
}

// fromAgent takes in a message of a link.
func (c *Controller) fromAgent(l *link, m *wire.AgentMessage) {
	switch body := m.GetBody().(type) {
	case *wire.AgentMessage_Output:
		l.output(body.Output)
	case *wire.AgentMessage_Pong:
		l.busy.Store(body.Pong.GetBusy())
		l.pong(body.Pong.GetNumber())
	default:
		l.alive.Store(true)
		if d := c.desk.Load(); d != nil {
			d.mail.post(func() { d.fromAgent(l.agent, m) })
		}
	}
}
