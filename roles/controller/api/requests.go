package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"uac/roles"
)

// RequestPath is the part of an input that names a request.
type RequestPath struct {
	ID string `path:"id" doc:"Id of the request"`
}

func (in RequestPath) check() error { return named("request", in.ID, checkRequestID) }

// checkRequestID returns an error unless id looks like a ULID.
func checkRequestID(id string) error {
	if len(id) != 26 {
		return fmt.Errorf("is not a request id")
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return fmt.Errorf("is not a request id")
		}
	}
	return nil
}

func (s *Server) requestRoutes(d *definer) {
	define(d, route{pattern: "POST /v1/requests", id: "runProcess", status: http.StatusCreated,
		summary: "Run a process. Once this is answered the run will happen"}, s.run)
	define(d, route{pattern: "GET /v1/requests", id: "listRequests", summary: "List requests, newest first"}, s.listRequests)
	define(d, route{pattern: "GET /v1/requests/{id}", id: "getRequest", summary: "Show one request"},
		func(ctx context.Context, in *RequestPath) (*output[Request], error) {
			return oneOf(s.request(ctx, *in))
		})
	define(d, route{pattern: "GET /v1/requests/{id}/watch", id: "watchRequest", stream: mediaLines,
		summary: "Follow a request: it as a line of JSON now and after every change, until it is final or in doubt. Empty lines show that the connection lives"}, s.watch)
	define(d, route{pattern: "GET /v1/requests/{id}/logs", id: "readOutput", stream: mediaBytes,
		summary: "Read what a step wrote"}, s.readOutput)
	s.orderRoutes(d)
}

// accepted is the answer to a run: 201 for a new request, 200 for one that the
// same call made before.
type accepted struct {
	Status   int
	Location string `header:"Location" doc:"Path of the request"`
	Body     Request
}

func (s *Server) run(ctx context.Context, in *struct {
	WhyQuery
	Key  string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]*$" doc:"Calls with the same key run the process once"`
	Body RunSpec
}) (*accepted, error) {
	if err := named("process", in.Body.Process, roles.CheckName); err != nil {
		return nil, err
	}
	req, created, err := find3(ctx, s, func(ctx context.Context) (Request, bool, error) {
		return s.backend.Accept(ctx, in.actor(ctx), in.Body, in.Key)
	})
	if err != nil {
		return nil, err
	}
	out := &accepted{Status: http.StatusOK, Location: "/v1/requests/" + req.ID, Body: req}
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

// find3 is find for Accept: a process that was applied a moment ago through
// another controller exists.
func find3(ctx context.Context, s *Server, get func(context.Context) (Request, bool, error)) (req Request, created bool, err error) {
	req, err = find(ctx, s, func(ctx context.Context) (r Request, err error) {
		r, created, err = get(ctx)
		return r, err
	})
	return req, created, err
}

func (s *Server) listRequests(ctx context.Context, in *struct {
	Status  string `query:"status" enum:"queued,running,cancelling,succeeded,failed,cancelled,in_doubt" doc:"Only those with this status"`
	Process string `query:"process" doc:"Only those of this process"`
	Agent   string `query:"agent" doc:"Only those with a step on this agent"`
	By      string `query:"by" doc:"Only those that this token asked for"`
	// Optional times are texts, because huma knows no optional time.
	From   string `query:"from" format:"date-time" doc:"Only those asked for at this time or later"`
	To     string `query:"to" format:"date-time" doc:"Only those asked for before this time"`
	Before string `query:"before" doc:"Only those with a lower id: the next part of a list"`
	Open   bool   `query:"open" doc:"Only those that are not final"`
	Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"10000" doc:"At most so many"`
}) (*requestList, error) {
	f := RequestFilter{
		Status: roles.RequestStatus(in.Status), Process: in.Process, Agent: in.Agent, By: in.By, Before: in.Before, Open: in.Open, Limit: in.Limit,
	}
	if in.Before != "" && checkRequestID(in.Before) != nil {
		return nil, fmt.Errorf("%w: before: %q is not a request id", ErrInvalid, in.Before)
	}
	for _, t := range []struct {
		name, text string
		at         *time.Time
	}{{"from", in.From, &f.From}, {"to", in.To, &f.To}} {
		if err := readTime(t.name, t.text, t.at); err != nil {
			return nil, err
		}
	}
	list, err := s.backend.ListRequests(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &requestList{Next: list.Next, Note: oneLine(list.Note), Body: list.Requests}
	if out.Body == nil {
		out.Body = []Request{}
	}
	return out, nil
}

// readTime reads a time of a query, which may be left out.
func readTime(name, text string, at *time.Time) (err error) {
	if text == "" {
		return nil
	}
	if *at, err = time.Parse(time.RFC3339, text); err != nil {
		return fmt.Errorf("%w: %s: %q is not a time like 2026-01-31T15:04:05Z", ErrInvalid, name, text)
	}
	return nil
}

// oneLine makes of a text what a header can hold.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
}

// Headers of a list.
const (
	// HeaderNext is what before must be to get the next part.
	HeaderNext = "Uac-Next"
	// HeaderNote says what is missing and why.
	HeaderNote = "Uac-Note"
)

// requestList is the answer with a list of requests.
type requestList struct {
	Next string `header:"Uac-Next" doc:"There may be more: the next part is got with this as before"`
	Note string `header:"Uac-Note" doc:"What is missing in the list and why, for people"`
	Body []Request
}

func (s *Server) request(ctx context.Context, in RequestPath) (Request, error) {
	if err := in.check(); err != nil {
		return Request{}, err
	}
	return find(ctx, s, func(ctx context.Context) (Request, error) { return s.backend.GetRequest(ctx, in.ID) })
}
