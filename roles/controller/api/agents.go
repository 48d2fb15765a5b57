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
	define(d, route{pattern: "POST /v1/agents/{name}/limit", id: "limitAgent", summary: "Say how many steps may be out at an agent at a time"},
		func(ctx context.Context, in *struct {
			AgentPath
			WhyQuery
			Body struct {
				Limit int `json:"limit" minimum:"0" maximum:"10000" doc:"0 for no limit"`
			}
		}) (*output[Agent], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(s.backend.LimitAgent(ctx, in.actor(ctx), in.Name, in.Body.Limit))
		})
	define(d, route{pattern: "DELETE /v1/agents/{name}", id: "removeAgent", status: 204,
		summary: "Forget an agent that is away and has no steps out. Nothing is revoked: it may come back"},
		func(ctx context.Context, in *struct {
			AgentPath
			WhyQuery
			Force bool `query:"force" doc:"Also if it is connected or has steps out"`
		}) (*struct{}, error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return nil, s.backend.RemoveAgent(ctx, in.actor(ctx), in.Name, in.Force)
		})
}

// AgentClusterPath is the part of an input that names an agent cluster.
type AgentClusterPath struct {
	Name string `path:"name" doc:"Name of the agent cluster"`
}

func (in AgentClusterPath) check() error { return named("agent cluster", in.Name, roles.CheckName) }

func (s *Server) agentClusterRoutes(d *definer) {
	define(d, route{pattern: "GET /v1/agent-clusters", id: "listAgentClusters", summary: "List all agent clusters"},
		func(ctx context.Context, _ *struct{}) (*output[[]AgentClusterStatus], error) {
			return listOf(s.backend.ListAgentClusters(ctx))
		})
	define(d, route{pattern: "GET /v1/agent-clusters/{name}", id: "getAgentCluster", summary: "Show one agent cluster"},
		func(ctx context.Context, in *AgentClusterPath) (*output[AgentClusterStatus], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(find(ctx, s, func(ctx context.Context) (AgentClusterStatus, error) {
				return s.backend.GetAgentCluster(ctx, in.Name)
			}))
		})
	for _, verb := range []struct {
		name, summary string
		suspended     bool
	}{
		{"suspend", "Give an agent cluster, or one member of it, no new steps", true},
		{"resume", "Give an agent cluster, or one member of it, new steps again", false},
	} {
		define(d, route{pattern: "POST /v1/agent-clusters/{name}/" + verb.name, id: verb.name + "AgentCluster", summary: verb.summary},
			func(ctx context.Context, in *struct {
				AgentClusterPath
				WhyQuery
				Agent string `query:"agent" doc:"Only as far as this agent is concerned"`
			}) (*output[AgentClusterStatus], error) {
				if err := in.check(); err != nil {
					return nil, err
				}
				if in.Agent != "" {
					if err := (AgentPath{in.Agent}).check(); err != nil {
						return nil, err
					}
				}
				return oneOf(s.backend.SuspendAgentCluster(ctx, in.actor(ctx), in.Name, in.Agent, verb.suspended))
			})
	}
	define(d, route{pattern: "DELETE /v1/agent-clusters/{name}", id: "deleteAgentCluster", status: 204,
		summary: "Delete an agent cluster that no process names"},
		func(ctx context.Context, in *struct {
			AgentClusterPath
			WhyQuery
			Force bool `query:"force" doc:"Also if processes name it"`
		}) (*struct{}, error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return nil, s.backend.DeleteAgentCluster(ctx, in.actor(ctx), in.Name, in.Force)
		})
}
