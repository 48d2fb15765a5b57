package main

import (
	"context"
	"fmt"
	"io"
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

func newRequestCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "request", "Show and steer requests: runs of processes",
		newRequestListCommand(a),
		newRequestShowCommand(a),
		newRequestLogsCommand(a),
		newRequestCancelCommand(a),
		newRequestHoldCommand(a),
		newRequestReleaseCommand(a),
		newRequestSkipCommand(a),
		newRequestRerunCommand(a),
		newRequestResolveCommand(a),
		newRequestFinishCommand(a),
		newRequestInsertCommand(a),
		newRequestChangeCommand(a),
	)
}

func waitFlag(fs *pflag.FlagSet, wait *bool) {
	fs.BoolVar(wait, "wait", false, "wait for the end of the request and exit with its outcome")
}

// listOptions are the flags of uac request list.
type listOptions struct {
	status, process, agent, by string
	from, to, before           string
	open                       bool
	limit                      int
}

var requestStatuses = []string{"queued", "running", "cancelling", "succeeded", "failed", "cancelled", "in_doubt"}

func newRequestListCommand(a *app) *cobra.Command {
	var opts listOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List requests, newest first",
		Long: `List requests, newest first, with those that have moved to the shared mount. If
that cannot be read, the list has what it can, with a warning.`,
		Example: `  uac request list
  uac request list --open
  uac request list --status in_doubt -o wide
  uac request list --process deploy-web --limit 5 -o json
  uac request list --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z --by ci`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRequestList(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.Var(choice(&opts.status, requestStatuses), "status", "only those with this `STATUS`: "+strings.Join(requestStatuses, ", "))
	fs.StringVar(&opts.process, "process", "", "only those of this `PROCESS`")
	fs.StringVar(&opts.agent, "agent", "", "only those with a step on this `AGENT`")
	fs.StringVar(&opts.by, "by", "", "only those that this `TOKEN` asked for")
	fs.Var(timestamp(&opts.from), "from", "only those asked for at this `TIME` or later, like 2026-01-31T15:04:05Z")
	fs.Var(timestamp(&opts.to), "to", "only those asked for before this `TIME`")
	fs.StringVar(&opts.before, "before", "", "only those older than this `REQUEST`: the next page")
	fs.BoolVar(&opts.open, "open", false, "only those that are not final")
	fs.IntVar(&opts.limit, "limit", 50, "at most `N`")
	// These fail for unknown flags only.
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(requestStatuses, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("process", a.completeProcesses(1))
	return cmd
}

func runRequestList(ctx context.Context, a *app, opts listOptions) error {
	if err := checkLimit(opts.limit); err != nil {
		return err
	}
	c, err := a.newClient()
	if err != nil {
		return err
	}
	query := url.Values{"limit": {fmt.Sprint(opts.limit)}}
	for _, q := range []struct{ key, value string }{
		{"status", opts.status}, {"process", opts.process}, {"agent", opts.agent}, {"by", opts.by},
		{"from", opts.from}, {"to", opts.to}, {"before", opts.before},
	} {
		if q.value != "" {
			query.Set(q.key, q.value)
		}
	}
	if opts.open {
		query.Set("open", "true")
	}
	var reqs []api.Request
	if err := c.list(ctx, a, pathOf("requests"), query, &reqs); err != nil {
		return err
	}
	return printList(a, reqs,
		column[api.Request]{title: "ID", cell: func(r api.Request) string { return r.ID }},
		column[api.Request]{title: "PROCESS", cell: func(r api.Request) string { return r.Process }},
		column[api.Request]{title: "STATUS", cell: func(r api.Request) string { return string(r.Status) },
			color: func(r api.Request) color { return requestColor(r.Status) }},
		column[api.Request]{title: "STEPS", cell: func(r api.Request) string { return fmt.Sprintf("%d/%d", stepsDone(r), len(r.Steps)) }},
		column[api.Request]{title: "OWNER", wide: true, cell: func(r api.Request) string { return r.Owner }},
		column[api.Request]{title: "FENCE", wide: true, cell: func(r api.Request) string { return r.Fence }},
		column[api.Request]{title: "REQUESTED BY", cell: func(r api.Request) string { return r.RequestedBy }},
		column[api.Request]{title: "REQUESTED AT", cell: func(r api.Request) string { return string(r.RequestedAt) }},
		column[api.Request]{title: "FINISHED AT", wide: true, cell: func(r api.Request) string { return string(r.FinishedAt) }},
		column[api.Request]{title: "REASON", wide: true, cell: func(r api.Request) string { return r.Reason }},
	)
}

func newRequestShowCommand(a *app) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "show REQUEST",
		Short: "Show a request with its steps",
		Long: `Show a request with its steps as a tree: each step below the step that it needs.
With --wait the exit code is that of the request: 0 succeeded, 1 failed or
cancelled, 7 in doubt.`,
		Example:           "  uac request show 01JD8Z6V9YB6W7N2Q5T3R4S8XA\n  uac request show 01JD8Z6V9YB6W7N2Q5T3R4S8XA --wait",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRequestShow(cmd.Context(), a, args[0], wait)
		},
	}
	waitFlag(cmd.Flags(), &wait)
	return cmd
}

func runRequestShow(ctx context.Context, a *app, id string, wait bool) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var req api.Request
	if err := c.get(ctx, pathOf("requests", id), nil, &req); err != nil {
		return err
	}
	if wait {
		return a.await(ctx, c, req, settled)
	}
	return printRequest(a, req, time.Now())
}

// commandOptions are a command to a request.
type commandOptions struct {
	id, verb, why string
	body          any
	wait, once    bool
	// obeyed reports by a request before the command and now whether its owner has
	// obeyed. It is asked while the request is in doubt.
	obeyed func(before, now api.Request) bool
}

// obeyPatience is how long --wait leaves the owner of a request to obey: longer
// than a fail-over. A command that fits the request no more, because another one
// was faster, is never obeyed.
const obeyPatience = 30 * time.Second

// ended returns what --wait waits for. A command is answered when it is kept and
// not when it is obeyed, so the request may rest in doubt as before for a moment,
// which is not the outcome of the command.
func (o *commandOptions) ended(before api.Request) func(api.Request) bool {
	end := time.Now().Add(obeyPatience)
	return func(now api.Request) bool {
		return now.Status.Final() || o.obeyed(before, now) || time.Now().After(end)
	}
}

func runRequestCommand(ctx context.Context, a *app, opts commandOptions) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var before, req api.Request
	if opts.wait {
		if err := c.get(ctx, pathOf("requests", opts.id), nil, &before); err != nil {
			return err
		}
	}
	err = c.send(ctx, call{
		method: http.MethodPost, path: pathOf("requests", opts.id, opts.verb), query: because(opts.why),
		body: opts.body, once: opts.once,
	}, &req)
	if err != nil {
		return err
	}
	if opts.wait {
		return a.await(ctx, c, req, opts.ended(before))
	}
	if a.output == formatTable || a.output == formatWide {
		fmt.Fprintln(a.stderr, recorded(opts, req))
	}
	return printRequest(a, req, time.Now())
}

// recorded says what became of a command: it is answered when it is kept, and what is
// shown of the request may be from before it was obeyed.
func recorded(opts commandOptions, req api.Request) string {
	text := opts.verb + " is recorded; "
	switch {
	case req.Status.Final():
		return text + "the request has ended"
	case req.Owner == "":
		text += "the next owner of the request obeys it"
	default:
		text += req.Owner + " obeys it now"
	}
	return text + ", see uac request show " + req.ID
}

func newRequestCancelCommand(a *app) *cobra.Command {
	// Who cancelled it is its reason; of one that is held, who holds it until then.
	opts := commandOptions{verb: "cancel", obeyed: func(_, now api.Request) bool { return now.Reason != "" }}
	cmd := &cobra.Command{
		Use:   "cancel REQUEST",
		Short: "Cancel a request",
		Long: `Cancel a request: no step of it starts any more, and running steps are ended.
The owner obeys when it can; --wait waits for it, and exits 1 for a cancelled
request.`,
		Example:           "  uac request cancel 01JD8Z6V9YB6W7N2Q5T3R4S8XA --why 'wrong version'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.id = args[0]
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	waitFlag(cmd.Flags(), &opts.wait)
	whyFlag(cmd.Flags(), &opts.why)
	return cmd
}

// resolution is the body of a resolve.
type resolution struct {
	Step  string `json:"step"`
	As    string `json:"as"`
	Force bool   `json:"force,omitempty"`
}

// obeyed reports whether the step was decided. One that is run again may be in
// doubt again, in another attempt.
func (r resolution) obeyed(before, now api.Request) bool {
	return !slices.ContainsFunc(now.Steps, func(s api.Step) bool {
		if s.Name != r.Step {
			return false
		}
		i := slices.IndexFunc(before.Steps, func(s api.Step) bool { return s.Name == r.Step })
		return i >= 0 && s.Attempt == before.Steps[i].Attempt && (s.Status == roles.StepInDoubt || s.Status == before.Steps[i].Status)
	})
}

var resolutions = []string{"success", "failed", "rerun"}

func newRequestResolveCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "resolve", once: true}
	var as resolution
	cmd := &cobra.Command{
		Use:   "resolve REQUEST --step STEP --as success|failed|rerun",
		Short: "Decide a step that is in doubt",
		Long: `Decide a step that is in doubt: nobody knows whether it ran to its end, and
running it again might do harm. Look at what it did, then say so: it counts as
success or failed, or it is run again.

--force also ends a step whose agent is unreachable. It may be running still; if
its agent comes back, the attempt is ended.`,
		Example: `  uac request resolve 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step migrate --as success
  uac request resolve 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step migrate --as rerun --wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if as.Step == "" || as.As == "" {
				return usageError("both --step and --as must be given")
			}
			opts.id, opts.body, opts.obeyed = args[0], as, as.obeyed
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&as.Step, "step", "", "`STEP` to decide")
	fs.Var(choice(&as.As, resolutions), "as", "`VERDICT` on it: success, failed or rerun")
	fs.BoolVar(&as.Force, "force", false, "also if its agent is unreachable and it may be running")
	waitFlag(fs, &opts.wait)
	whyFlag(fs, &opts.why)
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions(resolutions, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// printRequest writes a request with its steps.
func printRequest(a *app, req api.Request, now time.Time) error {
	return printObject(a, req, func(w io.Writer, p paint) error {
		fields := []field{
			{"request", req.ID, plain},
			{"process", req.Process, plain},
			{"status", string(req.Status), requestColor(req.Status)},
			{"reason", req.Reason, plain},
			{"params", labels(req.Params), plain},
			{"owner", req.Owner, plain},
			{"fence", wide(a, req.Fence), plain},
			{"requested", string(req.RequestedAt) + " by " + req.RequestedBy, plain},
			{"started", string(req.StartedAt), plain},
			{"finished", string(req.FinishedAt), plain},
			{"duration", duration(req.StartedAt, req.FinishedAt, now, !req.Status.Final()), plain},
		}
		if err := printFields(w, p, fields); err != nil || len(req.Steps) == 0 {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
		return printSteps(a, req.Steps, now)
	})
}

func wide(a *app, text string) string {
	if a.output == formatWide {
		return text
	}
	return ""
}

// duration is the time between two stamps of one clock. While it runs it is
// counted to now, by the clock of this machine.
func duration(from, to roles.Stamp, now time.Time, running bool) string {
	start, err := time.Parse(time.RFC3339, string(from))
	if err != nil {
		return ""
	}
	end, err := time.Parse(time.RFC3339, string(to))
	if err != nil {
		if !running {
			return ""
		}
		end = now
	}
	return short(end.Sub(start))
}

func requestColor(s roles.RequestStatus) color {
	switch s {
	case roles.RequestSucceeded:
		return green
	case roles.RequestFailed, roles.RequestCancelled:
		return red
	case roles.RequestInDoubt, roles.RequestCancelling:
		return yellow
	case roles.RequestRunning:
		return cyan
	default:
		return plain
	}
}

func stepsDone(r api.Request) int {
	n := 0
	for _, s := range r.Steps {
		if s.Status.Final() {
			n++
		}
	}
	return n
}
