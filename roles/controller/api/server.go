package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Config are the settings of a [Server]. The zero value has the defaults.
type Config struct {
	// Version of the API's description.
	Version string
	// WaitTimeout bounds the wait for a revision, and a linearizable read.
	// Default 5 s.
	WaitTimeout time.Duration
	// Heartbeat is how often a stream that has nothing to say shows that it
	// lives. Default 2 s.
	Heartbeat time.Duration
}

// Deps is what a [Server] is given.
type Deps struct {
	Log *slog.Logger
	// Registerer takes the metrics of the API itself. Nil: none.
	Registerer prometheus.Registerer
	// Metrics is served at /metrics to viewers. Nil: there are none.
	Metrics http.Handler
}

// Server is the HTTP interface of a controller. Safe for concurrent use.
type Server struct {
	cfg     Config
	backend Backend
	log     *slog.Logger
	misses  *rate.Limiter // of unknown tokens that are looked up once more
	front   *front
	openapi []byte
}

// New builds all routes. It fails if a route is without a rule of access.
func New(cfg Config, b Backend, deps Deps) (*Server, error) {
	return newServer(cfg, b, deps, rules())
}

func newServer(cfg Config, b Backend, deps Deps, table map[string]rule) (*Server, error) {
	if cfg.WaitTimeout <= 0 {
		cfg.WaitTimeout = 5 * time.Second
	}
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = 2 * time.Second
	}
	s := &Server{cfg: cfg, backend: b, log: deps.Log, misses: rate.NewLimiter(20, 20)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}

	rs := newRoutes(table, s.guard)
	p := &probes{self: b.Self, list: b.ListNodes}
	p.register(rs.HandleFunc)
	if deps.Metrics == nil {
		deps.Metrics = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			write(w, r, problem(http.StatusNotFound, "this controller keeps no metrics"))
		})
	}
	rs.HandleFunc("GET /metrics", deps.Metrics.ServeHTTP)
	rs.HandleFunc("GET /debug/pprof/{profile}", s.profile)
	rs.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(s.openapi) // nobody is left to be told
	})

	api := humago.New(rs, s.describe())
	d := &definer{api: api, table: table, server: s}
	s.nodeRoutes(d)
	s.processRoutes(d)
	s.agentClusterRoutes(d)
	s.documentRoutes(d)
	s.requestRoutes(d)
	s.agentRoutes(d)
	s.adminRoutes(d)
	if err := rs.check(); err != nil {
		return nil, err
	}
	var err error
	if s.openapi, err = json.MarshalIndent(api.OpenAPI(), "", "  "); err != nil {
		return nil, fmt.Errorf("describe the API: %w", err)
	}

	streams := map[string]bool{}
	for pattern, r := range table {
		streams[pattern] = r.stream
	}
	m, err := newMetrics(deps.Registerer, streams)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the API: %w", err)
	}
	s.front = &front{mux: rs.mux, log: s.log, metrics: m}
	return s, nil
}

// Handler returns the handler of all routes.
func (s *Server) Handler() http.Handler { return s.front }

// OpenAPI returns the description of the API, a JSON document.
func (s *Server) OpenAPI() []byte { return s.openapi }

// Limits of a connection.
const (
	headerTimeout  = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 32 << 10
	// MaxTarget is the most bytes that a client may put into the path and the query
	// of a call. A call with larger headers is cut off, without an answer that says why.
	MaxTarget = maxHeaderBytes / 2
	// stopTimeout is how long calls may go on after a stop was asked for.
	stopTimeout = time.Second
)

type stoppingKey struct{}

// Serve answers calls on l, a listener of TLS connections or, in tests, of
// plain ones, until ctx ends. Then streams end at once, other calls are given a
// moment, and Serve returns nil when the last handler has returned. It closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	// Handlers outlive ctx by a moment, so their context is another one.
	base, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	base = context.WithValue(base, stoppingKey{}, ctx)
	var running tracker
	srv := &http.Server{
		Handler:           running.track(h),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var err error
	select {
	case err = <-served: // never nil
		err = fmt.Errorf("serve the API at %s: %w", l.Addr(), err)
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if shutdown := srv.Shutdown(grace); shutdown != nil && !errors.Is(shutdown, context.DeadlineExceeded) {
			log.Debug("close the API's listener", "error", shutdown)
		}
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			log.Debug("serve the API", "error", end)
		}
	}
	abandon()
	_ = srv.Close() // what the grace was too short for
	running.wait()
	return err
}

// describe returns the part of the description that is not about one route.
func (s *Server) describe() huma.Config {
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: json.Unmarshal}
	cfg := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "uac", Version: s.cfg.Version,
				Description: "Runs operations work on fleets of machines. Any controller answers any call.",
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", Description: "A token of `uac token create`"},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transform},
	}
	return cfg
}

// transform finishes the problems that huma writes by itself.
func transform(ctx huma.Context, _ string, v any) (any, error) {
	if p, ok := v.(*huma.ErrorModel); ok {
		_, w := humago.Unwrap(ctx)
		decorate(w.Header(), p, callOf(ctx.Context()))
	}
	return v, nil
}
