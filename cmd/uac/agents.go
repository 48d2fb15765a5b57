package main

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"uac/roles/controller/api"
)

func newAgentCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "agent", "Show and steer agents: the daemons on managed machines",
		newAgentListCommand(a),
		newAgentShowCommand(a),
		newAgentSuspendCommand(a, "suspend", "Give an agent no new steps",
			"Give an agent no new steps. What it runs goes on; steps that need it wait."),
		newAgentSuspendCommand(a, "resume", "Give an agent new steps again", ""),
	)
}

func newAgentListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List agents, those that are away too",
		Example: "  uac agent list\n  uac agent list -o wide",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runAgentList(cmd.Context(), a) },
	}
}

func runAgentList(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var agents []api.Agent
	if err := c.get(ctx, pathOf("agents"), nil, &agents); err != nil {
		return err
	}
	return printList(a, agents,
		column[api.Agent]{title: "NAME", cell: func(g api.Agent) string { return g.Name }},
		column[api.Agent]{title: "STATE", cell: agentState, color: agentColor},
		column[api.Agent]{title: "HOST", cell: func(g api.Agent) string { return g.Host }},
		column[api.Agent]{title: "LABELS", cell: func(g api.Agent) string { return labels(g.Labels) }},
		column[api.Agent]{title: "LINKS", cell: func(g api.Agent) string { return strings.Join(agentLinks(g), ",") }},
		column[api.Agent]{title: "VERSION", wide: true, cell: func(g api.Agent) string { return g.Version }},
		column[api.Agent]{title: "FIRST SEEN", wide: true, cell: func(g api.Agent) string { return moment(g.FirstSeen) }},
		column[api.Agent]{title: "LAST SEEN", wide: true, cell: func(g api.Agent) string { return moment(g.LastSeen) }},
	)
}

// agentLinks names the controllers that hold a link to an agent, each with the way
// there: r1/c1 is c1 through relay r1.
func agentLinks(g api.Agent) []string {
	links := slices.Clone(g.Links)
	for i, controller := range links {
		if via := g.Via[controller]; via != "" {
			links[i] = strings.ReplaceAll(via, ",", "/") + "/" + controller
		}
	}
	return links
}

func agentState(g api.Agent) string {
	state := "away"
	if g.Connected {
		state = "connected"
	}
	if g.Suspended {
		state += ",suspended"
	}
	return state
}

func agentColor(g api.Agent) color {
	switch {
	case !g.Connected:
		return red
	case g.Suspended:
		return yellow
	default:
		return green
	}
}

func newAgentShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show AGENT",
		Short:             "Show all that is known of an agent",
		Example:           "  uac agent show web1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgents(),
		RunE:              func(cmd *cobra.Command, args []string) error { return runAgentShow(cmd.Context(), a, args[0]) },
	}
}

func runAgentShow(ctx context.Context, a *app, name string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var g api.Agent
	if err := c.get(ctx, pathOf("agents", name), nil, &g); err != nil {
		return err
	}
	return printObject(a, g, func(w io.Writer, p paint) error {
		return printFields(w, p, []field{
			{"name", g.Name, plain},
			{"state", agentState(g), agentColor(g)},
			{"host", g.Host, plain},
			{"version", g.Version, plain},
			{"labels", labels(g.Labels), plain},
			{"links", strings.Join(agentLinks(g), ", "), plain},
			{"first seen", moment(g.FirstSeen), plain},
			{"last seen", moment(g.LastSeen), plain},
		})
	})
}

// newAgentSuspendCommand returns the command of suspend or resume.
func newAgentSuspendCommand(a *app, verb, summary, long string) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:               verb + " AGENT",
		Short:             summary,
		Long:              long,
		Example:           "  uac agent " + verb + " web1 --why 'disk swap'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgents(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runAgentSuspend(cmd.Context(), a, args[0], verb, why)
		},
	}
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runAgentSuspend(ctx context.Context, a *app, name, verb, why string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var g api.Agent
	if err := c.send(ctx, call{method: http.MethodPost, path: pathOf("agents", name, verb), query: because(why)}, &g); err != nil {
		return err
	}
	return told(a, g, "%s is %s", g.Name, agentState(g))
}
