package api

import (
	"context"

	"uac/roles"
)

// AgentPath is the part of an input that names an agent.
type AgentPath struct {
	Name string `path:"name" doc:"Name of the agent"`
}

func (in AgentPath) check() error { return named("agent", in.Name, roles.CheckNodeName) }

func (s *Server) agentRoutes(d *definer) {
	define(d, route{pattern: "GET /v1/agents", id: "listAgents", summary: "List all agents"},
		func(ctx context.Context, _ *struct{}) (*output[[]Agent], error) {
			return listOf(s.backend.ListAgents(ctx))
		})
	define(d, route{pattern: "GET /v1/agents/{name}", id: "getAgent", summary: "Show one agent"},
		func(ctx context.Context, in *AgentPath) (*output[Agent], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(find(ctx, s, func(ctx context.Context) (Agent, error) { return s.backend.GetAgent(ctx, in.Name) }))
		})
	for _, verb := range []struct {
		name, summary string
		suspended     bool
	}{
		{"suspend", "Give an agent no new steps", true},
		{"resume", "Give an agent new steps again", false},
	} {
		define(d, route{pattern: "POST /v1/agents/{name}/" + verb.name, id: verb.name + "Agent", summary: verb.summary},
			func(ctx context.Context, in *struct {
				AgentPath
				WhyQuery
			}) (*output[Agent], error) {
				if err := in.check(); err != nil {
					return nil, err
				}
				return oneOf(s.backend.SuspendAgent(ctx, in.actor(ctx), in.Name, verb.suspended))
			})
	}
}
