package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

func newAgentClusterCommand(a *app) *cobra.Command {
	return newNounCommand("cluster", "Show and steer agent clusters: named sets of agents with a rule and limits",
		newAgentClusterListCommand(a),
		newAgentClusterShowCommand(a),
		newAgentClusterSuspendCommand(a, "suspend", "Give an agent cluster no new steps",
			`Give an agent cluster no new steps, or with --agent give that agent none of this
cluster's. What runs goes on, and a request that has begun at an agent goes on there;
steps that need the cluster wait.`),
		newAgentClusterSuspendCommand(a, "resume", "Give an agent cluster new steps again", ""),
		newAgentClusterDeleteCommand(a),
	)
}

// clusterDefinition is the document that makes a cluster as it is.
func clusterDefinition(g api.AgentClusterStatus) *roles.AgentCluster {
	d := &roles.AgentCluster{
		Name: g.Name, Labels: g.Labels, Agents: g.Agents, Distribution: g.Distribution, Limit: g.Limit, AgentLimit: g.AgentLimit,
	}
	if g.Suspended {
		d.Suspended = &g.Suspended
	}
	return d
}

func newAgentClusterListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List agent clusters",
		Example: "  uac agent cluster list\n  uac agent cluster list -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runAgentClusterList(cmd.Context(), a) },
	}
}

func runAgentClusterList(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var clusters []api.AgentClusterStatus
	if err := c.get(ctx, pathOf("agent-clusters"), nil, &clusters); err != nil {
		return err
	}
	type status = api.AgentClusterStatus
	return printList(a, clusters,
		column[status]{title: "NAME", cell: func(g status) string { return g.Name }},
		column[status]{title: "STATE", cell: clusterState, color: clusterColor},
		column[status]{title: "DISTRIBUTION", cell: func(g status) string { return string(g.Distribution) }},
		column[status]{title: "CONNECTED", cell: func(g status) string { return fmt.Sprintf("%d of %d", connected(g), len(g.Members)) }},
		column[status]{title: "STEPS", cell: func(g status) string { return ofLimit(g.Running, g.Limit) }},
		column[status]{title: "AGENT LIMIT", wide: true, cell: func(g status) string { return orText(limitText(g.AgentLimit), "none") }},
		column[status]{title: "LABELS", wide: true, cell: func(g status) string { return labels(g.Labels) }},
	)
}

func connected(g api.AgentClusterStatus) int {
	n := 0
	for _, m := range g.Members {
		if m.Connected {
			n++
		}
	}
	return n
}

func limitText(limit int) string {
	if limit == 0 {
		return ""
	}
	return fmt.Sprint(limit)
}

func clusterState(g api.AgentClusterStatus) string {
	if g.Suspended {
		return "suspended"
	}
	return "open"
}

func clusterColor(g api.AgentClusterStatus) color {
	if g.Suspended {
		return yellow
	}
	return green
}

func newAgentClusterShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show CLUSTER",
		Short:             "Show an agent cluster and what goes on in it",
		Example:           "  uac agent cluster show web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgentClusters(),
		RunE:              func(cmd *cobra.Command, args []string) error { return runAgentClusterShow(cmd.Context(), a, args[0]) },
	}
}

func runAgentClusterShow(ctx context.Context, a *app, name string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var g api.AgentClusterStatus
	if err := c.get(ctx, pathOf("agent-clusters", name), nil, &g); err != nil {
		return err
	}
	return printObject(a, g, func(w io.Writer, p paint) error {
		err := printFields(w, p, []field{
			{"name", g.Name, plain},
			{"state", clusterState(g), clusterColor(g)},
			{"distribution", string(g.Distribution), plain},
			{"labels", labels(g.Labels), plain},
			{"agents", strings.Join(g.Agents, ", "), plain},
			{"steps", ofLimit(g.Running, g.Limit), plain},
			{"agent limit", limitText(g.AgentLimit), plain},
		})
		if err != nil || len(g.Members) == 0 {
			return err
		}
		fmt.Fprintln(w)
		return printTable(a, g.Members, []column[api.ClusterMember]{
			{title: "MEMBER", cell: func(m api.ClusterMember) string { return m.Agent }},
			{title: "STATE", cell: func(m api.ClusterMember) string {
				return agentState(api.Agent{Connected: m.Connected, Suspended: m.Suspended})
			}, color: func(m api.ClusterMember) color {
				return agentColor(api.Agent{Connected: m.Connected, Suspended: m.Suspended})
			}},
			{title: "STEPS", cell: func(m api.ClusterMember) string { return ofLimit(m.Running, g.AgentLimit) }},
		})
	})
}

// newAgentClusterSuspendCommand returns the command of suspend or resume.
func newAgentClusterSuspendCommand(a *app, verb, summary, long string) *cobra.Command {
	var agent, why string
	cmd := &cobra.Command{
		Use:               verb + " CLUSTER",
		Short:             summary,
		Long:              long,
		Example:           "  uac agent cluster " + verb + " web\n  uac agent cluster " + verb + " web --agent web1 --why 'disk swap'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgentClusters(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runAgentClusterSuspend(cmd.Context(), a, args[0], agent, verb, why)
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "only the membership of `AGENT`")
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runAgentClusterSuspend(ctx context.Context, a *app, name, agent, verb, why string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	query := because(why)
	if agent != "" {
		query.Set("agent", agent)
	}
	var g api.AgentClusterStatus
	if err := c.send(ctx, call{method: http.MethodPost, path: pathOf("agent-clusters", name, verb), query: query}, &g); err != nil {
		return err
	}
	if agent != "" {
		return told(a, g, "membership of %s in %s is %sed", agent, g.Name, strings.TrimSuffix(verb, "e"))
	}
	return told(a, g, "%s is %s", g.Name, clusterState(g))
}

func newAgentClusterDeleteCommand(a *app) *cobra.Command {
	var yes, force bool
	var why string
	cmd := &cobra.Command{
		Use:   "delete CLUSTER",
		Short: "Delete an agent cluster",
		Long: `Delete an agent cluster. Refused (exit code 6) while processes name it, unless
--force is given: steps that need it then wait until there is one of that name
again.`,
		Example:           "  uac agent cluster delete web --yes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgentClusters(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeWith(cmd.Context(), "agent cluster", args[0], pathOf("agent-clusters", args[0]), forced(force, why),
				"Agent cluster "+args[0]+" is deleted", yes)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if processes name it")
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}
