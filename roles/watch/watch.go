package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/coord"
)

// Config is what a watch tells of itself.
type Config struct {
	Host, IP, API      string
	Version, BuildDate string
}

// Deps are what a watch works with.
type Deps struct {
	Member *coord.Member
	// End ends the process, at once if abrupt; restart starts it again.
	End func(abrupt, restart bool)
	Log *slog.Logger
}

// Watch keeps a session of its member. Safe for concurrent use.
type Watch struct {
	cfg     Config
	deps    Deps
	started time.Time
	session atomic.Pointer[coord.Session]
}

// New returns a watch. Nothing runs yet.
func New(cfg Config, deps Deps) *Watch {
	return &Watch{cfg: cfg, deps: deps, started: time.Now()}
}

// Started is when the watch was made.
func (w *Watch) Started() time.Time { return w.started }

// Session is the present session, nil without one.
func (w *Watch) Session() *coord.Session { return w.session.Load() }

// goodbyeTimeout bounds an orderly stop.
const goodbyeTimeout = 1500 * time.Millisecond

// Run keeps a session until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	for {
		err := w.deps.Member.Session(ctx, coord.NodeRecord{
			Host: w.cfg.Host, IP: w.cfg.IP, API: w.cfg.API,
			Version: w.cfg.Version, BuildDate: w.cfg.BuildDate, Started: w.started.UTC(),
		}, w.serve)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was asked to stop, and has
		case errors.Is(err, coord.ErrFenced):
			w.deps.Log.Warn("fenced out: joining again")
		default:
			return err
		}
	}
}

func (w *Watch) serve(ctx context.Context, s *coord.Session) error {
	w.session.Store(s)
	defer w.session.Store(nil)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.ServeOrders(gctx, w.carryOut) })
	err := g.Wait()
	if errors.Is(context.Cause(ctx), coord.ErrFenced) {
		return coord.ErrFenced
	}
	if ctx.Err() == nil {
		return err
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	if err := s.Leave(bye, nil); err != nil {
		w.deps.Log.Warn("left without a goodbye: the others will see that this node is gone", "error", err)
	}
	return nil
}

// carryOut obeys one order of an operator.
func (w *Watch) carryOut(_ context.Context, o coord.Order, answer func(string)) (string, error) {
	switch o.Verb {
	case "stop", "restart":
		answer(o.Verb + " under way")
		w.deps.End(false, o.Verb == "restart")
		return "", nil
	case "abort":
		answer("aborting")
		w.deps.End(true, o.Args["restart"] == "yes")
		return "", nil
	}
	return "", fmt.Errorf("a watch cannot %s", o.Verb)
}
