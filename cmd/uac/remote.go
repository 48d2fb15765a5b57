package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"uac/roles"
	"uac/roles/controller/api"
)

// newClusterNoun returns a noun whose verbs talk to a cluster.
func newClusterNoun(a *app, use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := newNounCommand(use, short, verbs...)
	cmd.GroupID = groupCluster
	a.addClientFlags(cmd)
	strict(cmd)
	return cmd
}

// whyFlag adds the flag of all verbs that change something.
func whyFlag(fs *pflag.FlagSet, why *string) {
	fs.StringVar(why, "why", "", "`REASON`, for the audit trail")
}

// list reads a list into out, and warns if something is missing in it.
func (c *client) list(ctx context.Context, a *app, path string, query url.Values, out any) error {
	resp, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, readWhole)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is in memory
	if note := resp.Header.Get(api.HeaderNote); note != "" {
		fmt.Fprintf(a.stderr, "%s %s\n", a.paint(a.stderr).apply(yellow, "warning:"), note)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("GET %s: decode the answer: %w", path, err)
	}
	return nil
}

// because is the query of a call with a reason.
func because(why string) url.Values {
	q := url.Values{}
	if why != "" {
		q.Set("why", why)
	}
	return q
}

// yesFlag adds the flag of verbs that ask first.
func yesFlag(fs *pflag.FlagSet, yes *bool) {
	fs.BoolVarP(yes, "yes", "y", false, "do not ask")
}

// confirm makes sure that the user means it: it asks whoever sits at the
// terminal to type want, and wants --yes where nobody sits.
func (a *app) confirm(yes bool, warning, want string) error {
	if yes {
		return nil
	}
	if !a.interactive {
		return usageError("%s: there is nobody to ask here, so --yes must be given", warning)
	}
	fmt.Fprintf(a.stderr, "%s.\nType %s to go on: ", printable(warning, false), a.paint(a.stderr).apply(bold, want))
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(line) != want {
		return fail(exitFailed, "not confirmed: nothing was done")
	}
	return nil
}

// pathOf is the escaped path of something below /v1/.
func pathOf(parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// told prints what has been done; object is the result for programs.
func told(a *app, object any, format string, args ...any) error {
	return printObject(a, object, func(w io.Writer, _ paint) error {
		_, err := fmt.Fprintln(w, printable(fmt.Sprintf(format, args...), false))
		return err
	})
}

// removed is the result of a verb that deletes something.
type removed struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Deleted bool   `json:"deleted"`
}

// remove deletes something after asking.
func (a *app) remove(ctx context.Context, kind, name, path, warning string, yes bool, why string) error {
	return a.removeWith(ctx, kind, name, path, because(why), warning, yes)
}

func (a *app) removeWith(ctx context.Context, kind, name, path string, query url.Values, warning string, yes bool) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	if err := a.confirm(yes, warning, name); err != nil {
		return err
	}
	if err := c.send(ctx, call{method: http.MethodDelete, path: path, query: query, once: true}, nil); err != nil {
		return err
	}
	word := "deleted"
	if kind == "lock" {
		word = "released"
	}
	return told(a, removed{kind, name, true}, "%s %s is %s", kind, name, word)
}

// Cells of tables.

// moment shows a time in UTC, to the second.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// short shows a duration with its two largest units.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d/time.Second%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d/time.Minute%60)
	default:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d/time.Hour%24)
	}
}

// labels shows labels in order.
func labels(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// completer completes the names of things by asking the cluster. A shell waits
// for it, and there is nothing to say to it: it is quick and never complains.
type completer func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeTimeout is how long a shell may be kept waiting.
const completeTimeout = time.Second

// complete returns the completer of a verb that takes up to most names, which
// names lists.
func (a *app) complete(most int, names func(context.Context, *client) ([]cobra.Completion, error)) completer {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const nothing = cobra.ShellCompDirectiveNoFileComp
		if len(args) >= most {
			return nil, nothing
		}
		a.warned = true // a shell would show it in the middle of a line
		c, err := a.newClient()
		if err != nil {
			return nil, nothing
		}
		c.patience = 0
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		all, err := names(ctx, c)
		if err != nil {
			return nil, nothing
		}
		return slices.DeleteFunc(all, func(n cobra.Completion) bool {
			name, _, _ := strings.Cut(n, "\t")
			return !strings.HasPrefix(name, toComplete) || slices.Contains(args, name)
		}), nothing
	}
}

// namesOf returns a lister for complete: of each item of a list, its name and
// a word about it.
func namesOf[T any](path string, query url.Values, of func(T) (name, about string)) func(context.Context, *client) ([]cobra.Completion, error) {
	return func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		var items []T
		if err := c.get(ctx, path, query, &items); err != nil {
			return nil, err
		}
		var out []cobra.Completion
		for _, item := range items {
			name, about := of(item)
			out = append(out, cobra.CompletionWithDesc(name, about))
		}
		return out, nil
	}
}

func (a *app) completeNodes(most int) completer {
	return a.complete(most, namesOf(pathOf("nodes"), nil, func(n api.Node) (string, string) {
		return n.Name, string(n.Role) + ", " + string(n.Mode)
	}))
}

// completeControllers completes the nodes that can become Active.
func (a *app) completeControllers() completer {
	return a.complete(math.MaxInt, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		var nodes []api.Node
		if err := c.get(ctx, pathOf("nodes"), nil, &nodes); err != nil {
			return nil, err
		}
		var out []cobra.Completion
		for _, n := range nodes {
			if n.Role == roles.RoleController {
				out = append(out, cobra.CompletionWithDesc(n.Name, string(n.Mode)))
			}
		}
		return out, nil
	})
}

func (a *app) completeProcesses(most int) completer {
	return a.complete(most, namesOf(pathOf("processes"), nil, func(p roles.Process) (string, string) {
		return p.Name, fmt.Sprintf("%d steps", len(p.Steps))
	}))
}

func (a *app) completeRequests(open bool) completer {
	query := url.Values{"limit": {"50"}}
	if open {
		query.Set("open", "true")
	}
	return a.complete(1, namesOf(pathOf("requests"), query, func(r api.Request) (string, string) {
		return r.ID, r.Process + ", " + string(r.Status)
	}))
}

func (a *app) completeAgents() completer {
	return a.complete(1, namesOf(pathOf("agents"), nil, func(g api.Agent) (string, string) { return g.Name, g.Host }))
}

func (a *app) completeAgentClusters() completer {
	return a.complete(1, namesOf(pathOf("agent-clusters"), nil, func(g api.AgentClusterStatus) (string, string) {
		return g.Name, fmt.Sprintf("%d members", len(g.Members))
	}))
}
