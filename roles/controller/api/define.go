package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// definer makes routes and their description.
type definer struct {
	api    huma.API
	table  map[string]rule
	server *Server
}

// route is the description of a route: its pattern, a name for programs and one
// for people.
type route struct {
	pattern, id, summary string
	// status of success; 0 means 200, or 204 without a body.
	status int
	// stream is the media type of an answer that is no JSON document.
	stream string
}

// define makes a route of a function. In and Out are huma's input and output
// structs.
func define[In, Out any](d *definer, rt route, f func(context.Context, *In) (*Out, error)) {
	method, path, _ := strings.Cut(rt.pattern, " ")
	op := huma.Operation{
		OperationID: rt.id, Method: method, Path: path, Summary: rt.summary,
		Tags:            []string{strings.Split(path, "/")[2]},
		DefaultStatus:   rt.status,
		Security:        []map[string][]string{{"token": {}}},
		MaxBodyBytes:    MaxBody + 1, // the guard has read and checked the body
		BodyReadTimeout: -1,
		Extensions:      map[string]any{"x-uac-access": string(d.table[rt.pattern].access)},
		Parameters: []*huma.Param{{
			Name: HeaderRevision, In: "header", Schema: &huma.Schema{Type: huma.TypeInteger},
			Description: "Answer from this revision of the cluster's state or a newer one",
		}},
	}
	revision := &huma.Param{
		Schema:      &huma.Schema{Type: huma.TypeInteger},
		Description: "The revision of the cluster's state that has the effect of this call",
	}
	switch {
	case rt.stream != "":
		op.Responses = map[string]*huma.Response{"200": {
			Description: http.StatusText(http.StatusOK),
			Content:     map[string]*huma.MediaType{rt.stream: {}},
		}}
	case method != http.MethodGet:
		status := "200"
		if rt.status != 0 {
			status = fmt.Sprint(rt.status)
		}
		op.Responses = map[string]*huma.Response{status: {
			Description: http.StatusText(max(rt.status, http.StatusOK)),
			Headers:     map[string]*huma.Param{HeaderRevision: revision},
		}}
	}
	_, takesBody := reflect.TypeFor[In]().FieldByName("Body")
	huma.Register(d.api, op, func(ctx context.Context, in *In) (*Out, error) {
		if callOf(ctx).body && !takesBody {
			// Who cancels one step of a request must not cancel all of it.
			return nil, d.server.problem(ctx, fmt.Errorf("%w: this call takes no body", ErrInvalid))
		}
		out, err := f(ctx, in)
		if err != nil {
			return nil, d.server.problem(ctx, err)
		}
		return out, nil
	})
}

// problem returns the problem that tells a client of err, and logs what nobody
// has foreseen.
func (s *Server) problem(ctx context.Context, err error) *huma.ErrorModel {
	p, known := problemOf(err)
	if !known {
		c := callOf(ctx)
		s.log.Error("call failed", "request_id", c.id, "route", c.pattern, "by", c.actor.Name, "error", err)
	}
	return p
}

// optional makes a field that a schema requires optional for callers.
func (d *definer) optional(schema, field string) {
	if s := d.api.OpenAPI().Components.Schemas.Map()[schema]; s != nil {
		s.Required = slices.DeleteFunc(s.Required, func(name string) bool { return name == field })
		s.PrecomputeMessages()
	}
}

// output is an answer with a body.
type output[T any] struct{ Body T }

// listOf is the answer with a list, which is never null.
func listOf[T any](items []T, err error) (*output[[]T], error) {
	if err != nil {
		return nil, err
	}
	if items == nil {
		items = []T{}
	}
	return &output[[]T]{items}, nil
}

// oneOf is the answer with one object.
func oneOf[T any](item T, err error) (*output[T], error) {
	if err != nil {
		return nil, err
	}
	return &output[T]{item}, nil
}

// done is the answer of an order in words.
type done struct {
	Message string `json:"message" doc:"What has come of it, for people"`
}

func said(text string, err error) (*output[done], error) { return oneOf(done{text}, err) }

// WhyQuery is the part of every writing call that says why.
type WhyQuery struct {
	Why string `query:"why" maxLength:"500" doc:"The reason, for the audit trail"`
}

// actor returns who makes a call, for the audit.
func (in WhyQuery) actor(ctx context.Context) Actor {
	a := callOf(ctx).actor
	a.Why = in.Why
	return a
}

// find reads one thing. This controller may be behind: what it does not know is
// looked up once more when it has caught up with the cluster.
func find[T any](ctx context.Context, s *Server, get func(context.Context) (T, error)) (T, error) {
	v, err := get(ctx)
	if !errors.Is(err, ErrNotFound) || s.backend.Ready() != nil {
		return v, err
	}
	if err := s.sync(ctx); err != nil {
		return v, notReady("this controller has not got it and cannot ask the others: " + err.Error())
	}
	return get(ctx)
}

// named returns an error unless something could have that name. What no check
// lets in does not exist, and no key of the store is made of it.
func named(what, name string, check func(string) error) error {
	if check(name) == nil {
		return nil
	}
	const most = 80
	if len(name) > most {
		name = name[:most] + "..."
	}
	return fmt.Errorf("%w: %s %q", ErrNotFound, what, name)
}
