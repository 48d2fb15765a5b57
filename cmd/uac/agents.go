package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

func newAgentCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "agent", "Show and steer agents: the daemons on managed machines",
		newAgentListCommand(a),
		newAgentShowCommand(a),
		newAgentSuspendCommand(a, "suspend", "Give an agent no new steps",
			"Give an agent no new steps. What it runs goes on; steps that need it wait."),
		newAgentSuspendCommand(a, "resume", "Give an agent new steps again", ""),
		newAgentLimitCommand(a),
		newAgentRemoveCommand(a),
		newAgentClusterCommand(a),
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
		column[api.Agent]{title: "CLUSTERS", cell: func(g api.Agent) string { return strings.Join(g.Clusters, ",") }},
		column[api.Agent]{title: "STEPS", cell: func(g api.Agent) string { return ofLimit(g.Running, g.Limit) }},
		column[api.Agent]{title: "LINKS", cell: func(g api.Agent) string { return strings.Join(agentLinks(g), ",") }},
		column[api.Agent]{title: "VERSION", wide: true, cell: func(g api.Agent) string { return g.Version }},
		column[api.Agent]{title: "FIRST SEEN", wide: true, cell: func(g api.Agent) string { return moment(g.FirstSeen) }},
		column[api.Agent]{title: "LAST SEEN", cell: func(g api.Agent) string { return moment(g.LastSeen) }},
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
			{"clusters", strings.Join(g.Clusters, ", "), plain},
			{"steps", ofLimit(g.Running, g.Limit), plain},
			{"links", strings.Join(agentLinks(g), ", "), plain},
			{"first seen", moment(g.FirstSeen), plain},
			{"last seen", moment(g.LastSeen), plain},
		})
	})
}

// ofLimit shows how many steps are out, and how many may be.
func ofLimit(running, limit int) string {
	if limit == 0 {
		return fmt.Sprint(running)
	}
	return fmt.Sprintf("%d of %d", running, limit)
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

func newAgentLimitCommand(a *app) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "limit AGENT STEPS",
		Short: "Limit how many steps are out at an agent at a time",
		Long: `Limit how many steps are out at an agent at a time, whoever sends them; 0 for no
limit. Steps that exceed it wait, by priority and age, and uac request show says so.
What is out already stays.`,
		Example:           "  uac agent limit db1 2 --why 'licences'\n  uac agent limit db1 0",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeAgents(),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := strconv.Atoi(args[1])
			if err != nil || limit < 0 || limit > roles.MaxLimit {
				return usageError("limit %q: must be a number from 1 to %d, or 0 for no limit", args[1], roles.MaxLimit)
			}
			return runAgentLimit(cmd.Context(), a, args[0], limit, why)
		},
	}
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runAgentLimit(ctx context.Context, a *app, name string, limit int, why string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var g api.Agent
	k := call{method: http.MethodPost, path: pathOf("agents", name, "limit"), query: because(why), body: map[string]int{"limit": limit}}
	if err := c.send(ctx, k, &g); err != nil {
		return err
	}
	if limit == 0 {
		return told(a, g, "%s has no limit; %d steps are out at it", g.Name, g.Running)
	}
	return told(a, g, "%s has a limit of %d; %d steps are out at it", g.Name, g.Limit, g.Running)
}

func newAgentRemoveCommand(a *app) *cobra.Command {
	var yes, force bool
	var why string
	cmd := &cobra.Command{
		Use:   "remove AGENT",
		Short: "Forget an agent that is away",
		Long: `Forget an agent: its labels, its limit and that it was suspended. Refused (exit
code 6) while it is connected or steps are out at it, unless --force is given. These
steps stay as they are: they end when the agent is back and says how, or when an
operator decides them (uac request resolve --force).

What steps of finished requests wrote and is not on the shared mount yet is given
up, unless the agent is connected: requests that waited for it can leave the store.
One of whose steps was decided with resolve --force stays: the step may still run.

Nothing is revoked. An agent whose certificate is valid is back as soon as it
connects.`,
		Example:           "  uac agent remove web7 --yes --why 'machine scrapped'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAgents(),
		RunE: func(cmd *cobra.Command, args []string) error {
			warning := "Agent " + args[0] + " is forgotten"
			if force {
				warning = "Agent " + args[0] + " is forgotten even if steps are out there; they stay as they are until it is back or you decide them"
			}
			return a.removeWith(cmd.Context(), "agent", args[0], pathOf("agents", args[0]), forced(force, why), warning, yes)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it is connected or has steps out")
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}

// forced is the query of a call that may have force, with a reason.
func forced(force bool, why string) url.Values {
	q := because(why)
	if force {
		q.Set("force", "true")
	}
	return q
}
