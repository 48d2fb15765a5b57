package apitest

import (
	"context"
	"fmt"
	"slices"

	"uac/roles"
	"uac/roles/controller/api"
)

// ListAgents implements api.Agents.
func (b *Backend) ListAgents(context.Context) (out []api.Agent, err error) {
	err = b.read("ListAgents", func(s *State) error { out = slices.Clone(s.Agents); return nil })
	return out, err
}

// GetAgent implements api.Agents.
func (b *Backend) GetAgent(_ context.Context, name string) (out api.Agent, err error) {
	err = b.read("GetAgent", func(s *State) error {
		a, err := s.agent(name)
		if err == nil {
			out = *a
		}
		return err
	})
	return out, err
}

// SuspendAgent implements api.Agents.
func (b *Backend) SuspendAgent(_ context.Context, a api.Actor, name string, suspended bool) (out api.Agent, err error) {
	err = b.write("SuspendAgent", a, func(s *State) error {
		agent, err := s.agent(name)
		if err != nil {
			return err
		}
		agent.Suspended = suspended
		out = *agent
		return nil
	}, name, suspended)
	return out, err
}

// LimitAgent implements api.Agents.
func (b *Backend) LimitAgent(_ context.Context, a api.Actor, name string, limit int) (out api.Agent, err error) {
	err = b.write("LimitAgent", a, func(s *State) error {
		agent, err := s.agent(name)
		if err != nil {
			return err
		}
		agent.Limit = limit
		out = *agent
		return nil
	}, name, limit)
	return out, err
}

// RemoveAgent implements api.Agents.
func (b *Backend) RemoveAgent(_ context.Context, a api.Actor, name string, force bool) error {
	return b.write("RemoveAgent", a, func(s *State) error {
		agent, err := s.agent(name)
		if err != nil {
			return err
		}
		if !force && (agent.Connected || agent.Running > 0) {
			return fmt.Errorf("%w: agent %s is connected", api.ErrConflict, name)
		}
		s.Agents = slices.DeleteFunc(s.Agents, func(g api.Agent) bool { return g.Name == name })
		return nil
	}, name, force)
}

func (s *State) agentCluster(name string) (*api.AgentClusterStatus, error) {
	return byName(s.AgentClusters, "agent cluster", name, func(c api.AgentClusterStatus) string { return c.Name })
}

// clusterOf is a cluster without members.
func clusterOf(c roles.AgentCluster) api.AgentClusterStatus {
	return api.AgentClusterStatus{
		Name: c.Name, Labels: c.Labels, Agents: c.Agents, Distribution: c.Distribution, Limit: c.Limit, AgentLimit: c.AgentLimit,
		Suspended: c.Suspended != nil && *c.Suspended, Members: []api.ClusterMember{},
	}
}

// ListAgentClusters implements api.Agents.
func (b *Backend) ListAgentClusters(context.Context) (out []api.AgentClusterStatus, err error) {
	err = b.read("ListAgentClusters", func(s *State) error { out = slices.Clone(s.AgentClusters); return nil })
	return out, err
}

// GetAgentCluster implements api.Agents.
func (b *Backend) GetAgentCluster(_ context.Context, name string) (out api.AgentClusterStatus, err error) {
	err = b.read("GetAgentCluster", func(s *State) error {
		c, err := s.agentCluster(name)
		if err == nil {
			out = *c
		}
		return err
	})
	return out, err
}

// SuspendAgentCluster implements api.Agents.
func (b *Backend) SuspendAgentCluster(_ context.Context, a api.Actor, name, agent string, suspended bool) (out api.AgentClusterStatus, err error) {
	err = b.write("SuspendAgentCluster", a, func(s *State) error {
		c, err := s.agentCluster(name)
		if err != nil {
			return err
		}
		if agent == "" {
			c.Suspended = suspended
		} else {
			m, err := byName(c.Members, "member", agent, func(m api.ClusterMember) string { return m.Agent })
			if err != nil {
				return err
			}
			m.Suspended = suspended
		}
		out = *c
		return nil
	}, name, agent, suspended)
	return out, err
}

// DeleteAgentCluster implements api.Agents.
func (b *Backend) DeleteAgentCluster(_ context.Context, a api.Actor, name string, force bool) error {
	return b.write("DeleteAgentCluster", a, func(s *State) error {
		if _, err := s.agentCluster(name); err != nil {
			return err
		}
		for _, p := range s.Processes {
			for _, sel := range p.Selectors() {
				if sel.Cluster == name && !force {
					return fmt.Errorf("%w: process %s names agent cluster %s", api.ErrConflict, p.Name, name)
				}
			}
		}
		s.AgentClusters = slices.DeleteFunc(s.AgentClusters, func(c api.AgentClusterStatus) bool { return c.Name == name })
		return nil
	}, name, force)
}
