package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
)

// Headers that the API reads and writes.
const (
	// HeaderRequestID names a call in answers, logs and audit events.
	HeaderRequestID = "X-Request-Id"
	// HeaderRevision is the state of the cluster that a write made; a call that
	// carries it is answered from that state or a newer one.
	HeaderRevision = "Uac-Revision"
	// HeaderStale is "true" on answers that may be out of date.
	HeaderStale = "Uac-Stale"
	// HeaderIdempotencyKey names what a writing call is to do once.
	HeaderIdempotencyKey = "Idempotency-Key"
)

// call is what is known of one call. It travels in the context.
type call struct {
	id      string
	pattern string // "" if there is no such route
	actor   Actor  // filled by the guard
	body    bool   // that there is one; filled by the guard
}

// statusLeft stands in logs and metrics for calls whose connection was cut before
// an answer.
const statusLeft = 499

type callKey struct{}

// callOf returns the call of a context, never nil.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// front is the outermost handler.
type front struct {
	mux     *http.ServeMux
	log     *slog.Logger
	metrics *metrics
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{id: requestID(r)}
	w := &response{ResponseWriter: rw}
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))

	h := w.Header()
	h.Set(HeaderRequestID, c.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")

	defer func() {
		cut := f.recovered(recover(), w, r)
		took := time.Since(start)
		switch {
		case w.status == 0 && cut:
			w.status = statusLeft
		case w.status == 0:
			w.status = http.StatusOK // net/http's answer for a handler that gave none
		}
		f.metrics.observe(c.pattern, w.status, took)
		f.log.Debug("call", "request_id", c.id, "method", r.Method, "path", r.URL.Path, "status", w.status,
			"bytes", w.bytes, "duration", took, "by", c.actor.Name, "from", r.RemoteAddr)
		if cut {
			panic(http.ErrAbortHandler) // net/http's way to cut the connection, not logged
		}
	}()
	f.route(w, r, c)
}

// recovered ends a call whose handler panicked with v, which is nil if it did
// not. It reports whether the connection must be cut: the answer has begun, and
// an ordinary end would make the client take it for complete.
func (f *front) recovered(v any, w *response, r *http.Request) (cut bool) {
	if v == nil {
		return false
	}
	if err, ok := v.(error); ok && (errors.Is(err, http.ErrAbortHandler) || r.Context().Err() != nil) {
		return true // on purpose, or nobody listens any more
	}
	f.log.Error("handler panicked", "request_id", callOf(r.Context()).id, "method", r.Method, "path", r.URL.Path,
		"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if w.status != 0 {
		return true
	}
	p, _ := problemOf(errInternal)
	write(w, r, p)
	return false
}

// errInternal stands for what nobody has foreseen.
var errInternal = errors.New("internal error")

// route hands the call to its handler, or says that there is none.
func (f *front) route(w *response, r *http.Request, c *call) {
	// The mux would redirect a path like /v1//nodes or /v1/x/../nodes; such
	// calls come from mistakes and attacks, and neither should succeed.
	if p := r.URL.Path; !strings.HasPrefix(p, "/") || p != "/" && path.Clean(p) != p || !utf8.ValidString(p) {
		write(w, r, problem(http.StatusNotFound, "there is nothing at this path"))
		return
	}
	h, pattern := f.mux.Handler(r)
	if pattern == "" {
		// The mux knows whether the path exists for another method.
		var probe refusal
		h.ServeHTTP(&probe, r)
		if allow := probe.header.Get("Allow"); probe.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", allow)
			write(w, r, problem(http.StatusMethodNotAllowed, "this path takes "+allow))
			return
		}
		write(w, r, problem(http.StatusNotFound, "there is nothing at this path"))
		return
	}
	c.pattern = pattern
	f.mux.ServeHTTP(w, r)
}

// refusal receives what the mux says to a call that it has no route for.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}
func (r *refusal) WriteHeader(status int)      { r.status = status }
func (r *refusal) Write(b []byte) (int, error) { return len(b), nil }

// requestID returns the id that the caller gave, if it is fit for logs, or a
// new one.
func requestID(r *http.Request) string {
	id := r.Header.Get(HeaderRequestID)
	fit := id != "" && len(id) <= 64 && !strings.ContainsFunc(id, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
	if fit {
		return id
	}
	return ulid.Make().String()
}

// response records what is sent.
type response struct {
	http.ResponseWriter
	status int // 0: nothing yet
	bytes  int64
	// before is called once, before the header goes out.
	before func(status int)
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		if w.before != nil {
			w.before(status)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
