package api

import (
	"context"
	"net/http"

	"uac/roles"
)

// OrderInput is the part of an input that all orders to a request have.
type OrderInput struct {
	RequestPath
	WhyQuery
}

// wholeOrStep is the body of an order to a request or to one step of it.
type wholeOrStep struct {
	Step string `json:"step,omitempty" minLength:"1" doc:"Name of the step; without it the whole request is meant"`
}

func (b *wholeOrStep) step() string {
	if b == nil {
		return ""
	}
	return b.Step
}

func (s *Server) orderRoutes(d *definer) {
	order := func(verb, id, summary string) route {
		return route{pattern: "POST /v1/requests/{id}/" + verb, id: id, status: http.StatusAccepted, summary: summary}
	}
	define(d, order("cancel", "cancelRequest", "Cancel a request"),
		func(ctx context.Context, in *OrderInput) (*output[Request], error) {
			return s.steer(ctx, *in, Order{Verb: "cancel"})
		})
	define(d, order("hold", "holdRequest", "Let nothing more of a request start, or hold one step of it"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body *wholeOrStep
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "hold", Step: in.Body.step()})
		})
	define(d, order("release", "releaseRequest", "Let a request go on that is held by an operator, or because the cluster continued without all of its state; or one step of it"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body *wholeOrStep
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "release", Step: in.Body.step()})
		})
	define(d, order("skip", "skipStep", "Do without a step of which nothing runs; those that need it go on as if it had succeeded"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				Step string `json:"step" doc:"Name of the step" minLength:"1"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "skip", Step: in.Body.Step})
		})
	define(d, order("rerun", "rerunStep", "Run a step again that has ended"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				Step string `json:"step" doc:"Name of the step" minLength:"1"`
				From bool   `json:"from,omitempty" doc:"And everything that depends on it"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "rerun", Step: in.Body.Step, From: in.Body.From})
		})
	define(d, order("resolve", "resolveStep", "Decide a step whose outcome is not known"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				Step  string `json:"step" doc:"Name of the step" minLength:"1"`
				As    string `json:"as" enum:"success,failed,rerun"`
				Force bool   `json:"force,omitempty" doc:"Also if its agent is unreachable and the step may be running"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "resolve", Step: in.Body.Step, As: in.Body.As, Force: in.Body.Force})
		})
	define(d, order("finish", "finishRequest", "Give a request its final status at once; what runs is killed"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				As string `json:"as" enum:"succeeded,failed,cancelled"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "finish", As: in.Body.As})
		})
	define(d, order("insert", "insertStep", "Add a step to a request"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				Definition roles.StepDef `json:"definition"`
				Before     string        `json:"before,omitempty" doc:"Name of a step that is to need it"`
				After      string        `json:"after,omitempty" doc:"Name of the step that it is to need; what needs that and has not begun is to need it"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "insert", Before: in.Body.Before, After: in.Body.After, Definition: &in.Body.Definition})
		})
	define(d, order("change", "changeStep", "Give a step of which nothing runs another definition"),
		func(ctx context.Context, in *struct {
			OrderInput
			Body struct {
				Step       string        `json:"step" doc:"Name of the step" minLength:"1"`
				Definition roles.StepDef `json:"definition" doc:"With the same name"`
			}
		}) (*output[Request], error) {
			return s.steer(ctx, in.OrderInput, Order{Verb: "change", Step: in.Body.Step, Definition: &in.Body.Definition})
		})
}

// steer gives an order to a request and answers with the request. The order is
// kept, but the owner may not have obeyed it yet.
func (s *Server) steer(ctx context.Context, in OrderInput, o Order) (*output[Request], error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	for _, step := range []string{o.Step, o.Before, o.After} {
		if step == "" {
			continue
		}
		if err := named("step", step, roles.CheckStepName); err != nil {
			return nil, err
		}
	}
	if _, err := find(ctx, s, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.backend.Steer(ctx, in.actor(ctx), in.ID, o)
	}); err != nil {
		return nil, err
	}
	return oneOf(s.backend.GetRequest(ctx, in.ID))
}
