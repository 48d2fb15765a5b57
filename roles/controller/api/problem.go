package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"uac/roles"
)

// Types of problems with which a client can tell whether a writing call that
// was answered 503 may have taken effect.
const (
	// ProblemNotReady says that this controller has done nothing: any other one
	// may be asked instead.
	ProblemNotReady = "urn:uac:problem:not-ready"
	// ProblemUnknown says that a write may or may not have taken effect.
	ProblemUnknown = "urn:uac:problem:outcome-unknown"
)

// retryAfter is what Retry-After says: fail-over takes less.
const retryAfter = "1"

// problem is the body of an error answer.
func problem(status int, detail string) *huma.ErrorModel {
	return &huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: detail}
}

// notReady is the problem of a controller that cannot answer now.
func notReady(detail string) *huma.ErrorModel {
	p := problem(http.StatusServiceUnavailable, detail)
	p.Type = ProblemNotReady
	return p
}

// problemOf returns the problem that tells a client of err. known is false for
// errors that nobody has foreseen: their text is for the log only.
func problemOf(err error) (p *huma.ErrorModel, known bool) {
	var list roles.Problems
	switch {
	case errors.As(err, &p):
		return p, true
	case errors.As(err, &list):
		p = problem(http.StatusUnprocessableEntity, "the input is not valid")
		for _, one := range list {
			p.Errors = append(p.Errors, &huma.ErrorDetail{Message: one.Message, Location: location(one)})
		}
		return p, true
	case errors.Is(err, ErrNotFound):
		return problem(http.StatusNotFound, err.Error()), true
	case errors.Is(err, ErrGone):
		return problem(http.StatusGone, err.Error()), true
	case errors.Is(err, ErrConflict):
		return problem(http.StatusConflict, err.Error()), true
	case errors.Is(err, ErrInvalid):
		return problem(http.StatusUnprocessableEntity, err.Error()), true
	case errors.Is(err, ErrUnauthenticated):
		return problem(http.StatusUnauthorized, err.Error()), true
	case errors.Is(err, ErrNoRoom):
		return problem(http.StatusInsufficientStorage, err.Error()), true
	case errors.Is(err, ErrUnavailable):
		p = problem(http.StatusServiceUnavailable, err.Error())
		p.Type = ProblemUnknown
		return p, true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p = problem(http.StatusServiceUnavailable, "no answer in time: it is not known whether this took effect")
		p.Type = ProblemUnknown
		return p, true
	}
	return problem(http.StatusInternalServerError, "internal error: the log of this controller has it under the id of this call"), false
}

// location is where in the input a problem is.
func location(p roles.Problem) string {
	if p.Field == "" {
		return p.File
	}
	return p.File + ": " + p.Field
}

// write answers a call with a problem.
func write(w http.ResponseWriter, r *http.Request, p *huma.ErrorModel) {
	decorate(w.Header(), p, callOf(r.Context()))
	w.Header().Set("Content-Type", "application/problem+json")
	body, err := json.Marshal(p)
	if err != nil { // only a value echoed to the caller could be the cause
		p.Errors = nil
		body, _ = json.Marshal(p)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // nobody is left to be told
}

// decorate adds to a problem what all problems have.
func decorate(h http.Header, p *huma.ErrorModel, c *call) {
	p.Instance = "urn:uac:call:" + c.id
	switch p.Status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", retryAfter)
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="uac"`)
	}
	for i, e := range p.Errors {
		if e == nil {
			continue
		}
		// Short scalars help; whole documents echoed back do not.
		switch v := e.Value.(type) {
		case string:
			if v == "" || len(v) > 100 || e.Location == "body" {
				p.Errors[i] = &huma.ErrorDetail{Message: e.Message, Location: e.Location}
			}
		case map[string]any, []any:
			p.Errors[i] = &huma.ErrorDetail{Message: e.Message, Location: e.Location}
		}
	}
}
