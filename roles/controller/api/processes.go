package api

import (
	"context"

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
	define(d, route{pattern: "POST /v1/processes", id: "applyProcesses", summary: "Create or change processes, all of them or none"},
		func(ctx context.Context, in *struct {
			WhyQuery
			DryRunQuery
			Body struct {
				Processes []roles.Process `json:"processes" minItems:"1" nullable:"false"`
			}
		}) (*output[[]Applied], error) {
			return s.apply(ctx, in.actor(ctx), Documents{Processes: in.Body.Processes}, in.DryRun)
		})
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
}
