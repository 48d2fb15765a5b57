package api

import (
	"context"
	"fmt"

	"uac/roles"
)

// ProcessPath is the part of an input that names a process.
type ProcessPath struct {
	Name string `path:"name" doc:"Name of the process"`
}

func (in ProcessPath) check() error { return named("process", in.Name, roles.CheckName) }

func (s *Server) processRoutes(d *definer) {
	define(d, route{pattern: "GET /v1/processes", id: "listProcesses", summary: "List all processes"},
		func(ctx context.Context, _ *struct{}) (*output[[]roles.Process], error) {
			return listOf(s.backend.ListProcesses(ctx))
		})
	define(d, route{pattern: "GET /v1/processes/{name}", id: "getProcess", summary: "Show one process"},
		func(ctx context.Context, in *ProcessPath) (*output[roles.Process], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(find(ctx, s, func(ctx context.Context) (roles.Process, error) {
				return s.backend.GetProcess(ctx, in.Name)
			}))
		})
	define(d, route{pattern: "POST /v1/processes", id: "applyProcesses", summary: "Create or change processes, all of them or none"}, s.apply)
	define(d, route{pattern: "DELETE /v1/processes/{name}", id: "deleteProcess", summary: "Delete a process; its requests go on", status: 204},
		func(ctx context.Context, in *struct {
			ProcessPath
			WhyQuery
		}) (*struct{}, error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return nil, s.backend.DeleteProcess(ctx, in.actor(ctx), in.Name)
		})
	// A step without a condition runs on success, as in documents.
	d.optional("StepDef", "on")
}

// documents is what apply takes.
type documents struct {
	Processes []roles.Process `json:"processes" minItems:"1" nullable:"false"`
}

func (s *Server) apply(ctx context.Context, in *struct {
	WhyQuery
	DryRun bool `query:"dry_run" doc:"Check everything and say what would change, and change nothing"`
	Body   documents
}) (*output[[]Applied], error) {
	ps := in.Body.Processes
	seen := map[string]bool{}
	var wrong roles.Problems
	for i := range ps {
		p := &ps[i]
		for k := range p.Steps {
			if p.Steps[k].On == "" {
				p.Steps[k].On = roles.OnSuccess
			}
		}
		if seen[p.Name] {
			wrong = append(wrong, roles.Problem{File: fmt.Sprintf("processes[%d]", i), Field: "name",
				Message: fmt.Sprintf("process %q is in this call already", p.Name)})
		}
		seen[p.Name] = true
		if err := p.Validate(); err != nil {
			problems, ok := err.(roles.Problems) //nolint:errorlint // what Validate returns, as it is
			if !ok {
				return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			wrong = append(wrong, problems...)
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return listOf(s.backend.ApplyProcesses(ctx, in.actor(ctx), ps, in.DryRun))
}
