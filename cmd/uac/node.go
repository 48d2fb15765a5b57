package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

func newNodeCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "node", "Show and steer the nodes of the cluster",
		newNodeListCommand(a),
		newNodeShowCommand(a),
		newNodeSwitchoverCommand(a),
		newNodeStopCommand(a),
		newNodeRestartCommand(a),
		newNodeAbortCommand(a),
		newNodeFlagCommand(a, "pause", "Stop a node from taking new work",
			`A paused node claims no new requests and fires no triggers. What it runs goes
on, and nothing fails over. If it is the last controller it becomes Active all
the same, stays paused, and still finishes what is running.`),
		newNodeFlagCommand(a, "resume", "Let a paused node take new work again", ""),
		newNodeDrainCommand(a),
		newNodePreferCommand(a),
		newNodeRemoveCommand(a),
		newNodeConfirmLostCommand(a),
	)
}

// staleFlag adds the flag of reads that work without a majority.
func staleFlag(cmd *cobra.Command, stale *bool) {
	cmd.Flags().BoolVar(stale, "stale", false, "answer from a controller's own copy when there is no majority to ask; it may be out of date")
}

// getNodes reads an object or list of nodes into out, out of date if need be.
func getNodes(ctx context.Context, a *app, path string, stale bool, out any) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	if !stale {
		return c.get(ctx, path, nil, out)
	}
	resp, err := c.do(ctx, call{method: http.MethodGet, path: path, query: url.Values{"stale": {"true"}}}, readWhole)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is in memory
	if resp.Header.Get(api.HeaderStale) == "true" {
		fmt.Fprintln(a.stderr, a.paint(a.stderr).apply(yellow, "warning:"), "this controller cannot ask the others; what it knows may be out of date")
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("GET %s: decode the answer: %w", path, err)
	}
	return nil
}

func newNodeListCommand(a *app) *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the nodes of the cluster, Offline ones too",
		Example: "  uac node list\n  uac node list -o wide\n  uac node list --stale   # after the loss of most members",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runNodeList(cmd.Context(), a, stale) },
	}
	staleFlag(cmd, &stale)
	return cmd
}

func runNodeList(ctx context.Context, a *app, stale bool) error {
	var nodes []api.Node
	if err := getNodes(ctx, a, pathOf("nodes"), stale, &nodes); err != nil {
		return err
	}
	return printList(a, nodes,
		column[api.Node]{title: "NAME", cell: func(n api.Node) string { return n.Name }},
		column[api.Node]{title: "ROLE", cell: func(n api.Node) string { return string(n.Role) }},
		column[api.Node]{title: "MODE", cell: nodeMode, color: nodeColor},
		column[api.Node]{title: "HOST", cell: func(n api.Node) string { return n.Host }},
		column[api.Node]{title: "IP", wide: true, cell: func(n api.Node) string { return n.IP }},
		column[api.Node]{title: "API", wide: true, cell: func(n api.Node) string { return n.API }},
		column[api.Node]{title: "VERSION", cell: func(n api.Node) string { return n.Version }},
		column[api.Node]{title: "UPTIME", cell: func(n api.Node) string {
			if n.Mode == roles.ModeOffline {
				return ""
			}
			return short(time.Duration(n.UptimeSeconds) * time.Second)
		}},
		column[api.Node]{title: "STARTED", wide: true, cell: func(n api.Node) string { return moment(n.Started) }},
		column[api.Node]{title: "LAST SEEN", wide: true, cell: func(n api.Node) string { return moment(n.LastSeen) }},
		column[api.Node]{title: "EPOCH", wide: true, cell: func(n api.Node) string { return fmt.Sprint(n.Epoch) }},
		column[api.Node]{title: "TERM", wide: true, cell: func(n api.Node) string {
			if n.Term == 0 {
				return ""
			}
			return fmt.Sprint(n.Term)
		}},
		column[api.Node]{title: "REQUESTS", cell: func(n api.Node) string { return fmt.Sprint(n.Requests) }},
		column[api.Node]{title: "LINKS", wide: true, cell: func(n api.Node) string {
			if n.Relay == nil || n.Mode == roles.ModeOffline {
				return ""
			}
			return fmt.Sprint(n.Relay.Links)
		}},
		column[api.Node]{title: "ROUND TRIP", wide: true, cell: func(n api.Node) string {
			if n.Relay == nil || n.Relay.RoundTrip == nil {
				return ""
			}
			return micros(n.Relay.RoundTrip.MedianMicros)
		}},
		column[api.Node]{title: "FAILOVER", cell: failover, color: func(n api.Node) color {
			if n.Failover.Ready || n.Role != roles.RoleController { // a relay has nothing to take over
				return plain
			}
			return yellow
		}},
	)
}

// micros is a short time for people.
func micros(us int64) string { return (time.Duration(us) * time.Microsecond).String() }

// relayFields is what only relays have.
func relayFields(r api.RelayState) []field {
	trip := ""
	if t := r.RoundTrip; t != nil {
		trip = fmt.Sprintf("min %s, median %s, max %s (%d)", micros(t.MinMicros), micros(t.MedianMicros), micros(t.MaxMicros), t.Samples)
	}
	return []field{
		{"linked to", strings.Join(r.Controllers, ", "), plain},
		{"carries", counted(r.Links, "link", "s"), plain},
		{"round trip", trip, plain},
	}
}

// nodeMode is a node's mode with what operators have set on it.
func nodeMode(n api.Node) string {
	parts := []string{string(n.Mode)}
	if n.Paused {
		parts = append(parts, "paused")
	}
	if n.Preferred {
		parts = append(parts, "preferred")
	}
	if n.Held != "" {
		parts = append(parts, "held")
	}
	if n.Silent {
		parts = append(parts, "silent")
	}
	return strings.Join(parts, ",")
}

func nodeColor(n api.Node) color {
	switch {
	case n.Silent:
		return yellow
	case n.Mode == roles.ModeActive:
		return green
	case n.Mode == roles.ModeOffline:
		return red
	default:
		return plain
	}
}

// failover says whether the loss of a node would be made good.
func failover(n api.Node) string {
	switch {
	case n.Role == roles.RoleRelay: // it owns nothing
		return ""
	case n.Failover.Ready && n.Failover.Successor != "":
		return "ready: " + n.Failover.Successor
	case n.Failover.Ready:
		return "ready"
	case n.Failover.Why != "":
		return "no: " + n.Failover.Why
	default:
		return "no"
	}
}

func newNodeShowCommand(a *app) *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use:               "show NODE",
		Short:             "Show all that is known of a node",
		Example:           "  uac node show c1\n  uac node show c1 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return runNodeShow(cmd.Context(), a, args[0], stale) },
	}
	staleFlag(cmd, &stale)
	return cmd
}

func runNodeShow(ctx context.Context, a *app, name string, stale bool) error {
	var n api.Node
	if err := getNodes(ctx, a, pathOf("nodes", name), stale, &n); err != nil {
		return err
	}
	return printObject(a, n, func(w io.Writer, p paint) error {
		silent := ""
		if n.Silent {
			silent = "it does not answer"
		}
		fields := []field{
			{"name", n.Name, plain},
			{"role", string(n.Role), plain},
			{"mode", string(n.Mode), nodeColor(n)},
			{"silent", silent, yellow},
			{"paused", yesNo(n.Paused), plain},
			{"preferred", yesNo(n.Preferred), plain},
			{"held", n.Held, yellow},
			{"host", n.Host, plain},
			{"ip", n.IP, plain},
			{"api", n.API, plain},
			{"version", n.Version, plain},
			{"started", moment(n.Started), plain},
			{"uptime", short(time.Duration(n.UptimeSeconds) * time.Second), plain},
			{"last seen", moment(n.LastSeen), plain},
			{"epoch", fmt.Sprint(n.Epoch), plain},
			{"term", nonZero(n.Term), plain},
			{"requests", fmt.Sprint(n.Requests), plain},
			{"failover", failover(n), plain},
		}
		if n.Relay != nil {
			fields = append(fields, relayFields(*n.Relay)...)
		}
		return printFields(w, p, fields)
	})
}

func nonZero(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func newNodeSwitchoverCommand(a *app) *cobra.Command {
	var to, why string
	cmd := &cobra.Command{
		Use:   "switchover [--to NODE]",
		Short: "Make another controller Active",
		Long: `Make another controller Active, in order: the present one stops acting before
the other begins, with a gap of milliseconds. Requests go on where they are.
--to also takes the term of a node that was stopped without fail-over.`,
		Example: "  uac node switchover\n  uac node switchover --to c2 --why 'kernel update of c1'",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runNodeSwitchover(cmd.Context(), a, to, why) },
	}
	cmd.Flags().StringVar(&to, "to", "", "`NODE` to become Active (default: the best one)")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers()) // fails for unknown flags only
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runNodeSwitchover(ctx context.Context, a *app, to, why string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	before, err := activeNode(ctx, c)
	if err != nil {
		return err
	}
	var result struct {
		Active string `json:"active"`
	}
	body := map[string]string{}
	if to != "" {
		body["to"] = to
	}
	err = c.send(ctx, call{
		method: http.MethodPost, path: pathOf("nodes", "switchover"), query: because(why), body: body, once: true,
	}, &result)
	err = settle(ctx, c, err, func(ctx context.Context) (bool, error) {
		active, err := activeNode(ctx, c)
		result.Active = active
		return active != "" && active != before && (to == "" || active == to), err
	})
	if err != nil {
		return err
	}
	return told(a, result, "%s is Active", result.Active)
}

// activeNode returns which node is Active, or "".
func activeNode(ctx context.Context, c *client) (string, error) {
	var nodes []api.Node
	if err := c.get(ctx, pathOf("nodes"), nil, &nodes); err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n.Mode == roles.ModeActive {
			return n.Name, nil
		}
	}
	return "", nil
}

// settleTimeout is how long an order whose answer was lost may take to show.
const settleTimeout = 5 * time.Second

// settle finds out what has become of an order whose answer was lost with the
// server that had taken it: often the very node that it was about. It returns
// the error of the order unless happened sees that the order was obeyed.
func settle(ctx context.Context, c *client, err error, happened func(context.Context) (bool, error)) error {
	if !errors.Is(err, errUnknown) {
		return err
	}
	c.skip()
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		if yes, lookErr := happened(ctx); lookErr == nil && yes {
			return nil
		} else if lookErr != nil && codeOf(lookErr) != exitUnreachable {
			return err
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// nodeOrder is an order to a node.
type nodeOrder struct {
	node, verb, why string
	body            any
	ends            bool // the node's session ends with it
}

func runNodeOrder(ctx context.Context, a *app, o nodeOrder) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var before api.Node
	if err := c.get(ctx, pathOf("nodes", o.node), nil, &before); err != nil {
		return err
	}
	result := struct {
		Message string `json:"message"`
	}{}
	err = c.send(ctx, call{
		method: http.MethodPost, path: pathOf("nodes", o.node, o.verb), query: because(o.why), body: o.body, once: true,
	}, &result)
	if o.ends {
		lost := false
		err = settle(ctx, c, err, func(ctx context.Context) (bool, error) {
			var now api.Node
			err := c.get(ctx, pathOf("nodes", o.node), nil, &now)
			result.Message = "the node is gone"
			if err == nil && mayLive(before, now) {
				lost = true
				return false, errUnknown
			}
			return now.Epoch != before.Epoch, err
		})
		if lost {
			err = fail(exitUnreachable, "%s was declared lost and may live: it is not known whether it obeyed, or will", o.node)
		}
	}
	if err != nil {
		return err
	}
	return told(a, result, "%s: %s", o.node, orText(result.Message, "done"))
}

// mayLive reports whether the session that a node had before is over and its
// process may live nevertheless.
func mayLive(before, now api.Node) bool {
	if now.Epoch != before.Epoch && now.Epoch != 0 {
		return now.Started.Equal(before.Started) // in another session
	}
	return now.Epoch == 0 && now.LostEpoch >= before.Epoch && before.Epoch != 0
}

func orText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func newNodeStopCommand(a *app) *cobra.Command {
	var noFailover bool
	var why string
	cmd := &cobra.Command{
		Use:   "stop NODE",
		Short: "Stop a node in order",
		Long: `Stop a node in order. It hands its term and its requests over, within two
seconds. With --no-failover its work waits instead until it is back, or until
uac node switchover --to or uac node confirm-lost frees it.`,
		Example:           "  uac node stop c1 --why 'new disks'\n  uac node stop c1 --no-failover",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeOrder(cmd.Context(), a, nodeOrder{
				node: args[0], verb: "stop", why: why, body: map[string]bool{"failover": !noFailover}, ends: true,
			})
		},
	}
	cmd.Flags().BoolVar(&noFailover, "no-failover", false, "nobody takes its work over")
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func newNodeRestartCommand(a *app) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:               "restart NODE",
		Short:             "Stop a node in order and start it again",
		Example:           "  uac node restart c1 --why 'new settings'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeOrder(cmd.Context(), a, nodeOrder{node: args[0], verb: "restart", why: why, ends: true})
		},
	}
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func newNodeAbortCommand(a *app) *cobra.Command {
	var restart, yes bool
	var why string
	cmd := &cobra.Command{
		Use:               "abort NODE",
		Short:             "End a node at once, as if it had crashed",
		Long:              "End a node at once, as if it had crashed. The others take its work over.",
		Example:           "  uac node abort c1 --yes\n  uac node abort c1 --restart --why 'hangs'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, "Node "+args[0]+" ends at once and hands nothing over", args[0]); err != nil {
				return err
			}
			return runNodeOrder(cmd.Context(), a, nodeOrder{
				node: args[0], verb: "abort", why: why, body: map[string]bool{"restart": restart}, ends: true,
			})
		},
	}
	cmd.Flags().BoolVar(&restart, "restart", false, "start it again")
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func newNodeDrainCommand(a *app) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Hand a node's requests over and pause it",
		Long: `Hand a node's requests over to other controllers and pause it. Refused (exit code
6) when no other controller can take them.`,
		Example:           "  uac node drain c1 --why 'moves to another rack'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeOrder(cmd.Context(), a, nodeOrder{node: args[0], verb: "drain", why: why})
		},
	}
	whyFlag(cmd.Flags(), &why)
	return cmd
}

// newNodeFlagCommand returns the command of pause or resume.
func newNodeFlagCommand(a *app, verb, summary, long string) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:               verb + " NODE",
		Short:             summary,
		Long:              long,
		Example:           "  uac node " + verb + " c2",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeSet(cmd.Context(), a, args[0], verb, why, nil)
		},
	}
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func newNodePreferCommand(a *app) *cobra.Command {
	var off bool
	var why string
	cmd := &cobra.Command{
		Use:               "prefer NODE",
		Short:             "Make a controller the first to succeed the Active",
		Example:           "  uac node prefer c1\n  uac node prefer c1 --off",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeSet(cmd.Context(), a, args[0], "prefer", why, map[string]bool{"preferred": !off})
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "no longer prefer it")
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runNodeSet(ctx context.Context, a *app, node, verb, why string, body any) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var n api.Node
	k := call{method: http.MethodPost, path: pathOf("nodes", node, verb), query: because(why), body: body}
	if err := c.send(ctx, k, &n); err != nil {
		return err
	}
	return told(a, n, "%s is %s", n.Name, nodeMode(n))
}

func newNodeRemoveCommand(a *app) *cobra.Command {
	var yes bool
	var why string
	cmd := &cobra.Command{
		Use:               "remove NODE",
		Short:             "Forget an Offline node",
		Example:           "  uac node remove c3 --yes --why 'machine scrapped'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd.Context(), "node", args[0], pathOf("nodes", args[0]),
				"Node "+args[0]+" is forgotten", yes, why)
		},
	}
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func newNodeConfirmLostCommand(a *app) *cobra.Command {
	var yes bool
	var why string
	cmd := &cobra.Command{
		Use:   "confirm-lost NODE...",
		Short: "Take the word of an operator that nodes are lost",
		Long: `Say that nodes are lost and switched off. Where fail-over waits for an operator,
this lets it happen. After the loss of most members it lets the surviving
controller continue alone, in a new generation: name every lost node, and ask
the survivor (--server).

Only a person can know that a machine is off and stays off. If a node named here
still runs, work may be done twice and promises are broken. So this asks for the
statement in words; where nobody can be asked, --yes is that statement.`,
		Example:           "  uac node confirm-lost c1 w1 --why 'fire in room 2'\n  uac node confirm-lost c1 --yes",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeNodes(math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNodeConfirmLost(cmd.Context(), a, args, yes, why)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "I have switched off every node that I name, and they stay off")
	whyFlag(cmd.Flags(), &why)
	return cmd
}

func runNodeConfirmLost(ctx context.Context, a *app, nodes []string, yes bool, why string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	words := strings.Join(nodes, ", ") + " are " + api.LostStatement
	if len(nodes) == 1 {
		words = nodes[0] + " is " + api.LostStatement
	}
	if err := a.confirm(yes, "If a node named here still runs, its work will be done twice", words); err != nil {
		return err
	}
	var result struct {
		Message string `json:"message"`
	}
	err = c.send(ctx, call{
		method: http.MethodPost, path: pathOf("nodes", "confirm-lost"), query: because(why),
		body: map[string]any{"nodes": nodes, "statement": api.LostStatement}, once: true,
	}, &result)
	if err != nil {
		return err
	}
	return told(a, result, "%s", orText(result.Message, "confirmed"))
}
