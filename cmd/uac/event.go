package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"uac/roles/controller/api"
)

func newEventCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "event", "Show events: what happened, and who did what from where",
		newEventListCommand(a),
	)
}

func newEventListCommand(a *app) *cobra.Command {
	var opts eventOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events, newest first",
		Long: `List events, newest first, with those that have moved to the shared mount. If that
cannot be read, the list has what it can, with a warning.`,
		Example: `  uac event list
  uac event list --since 24h --kind agent
  uac event list --kind agent.unreachable --subject web1
  uac event list --by alice --limit 1000 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEventList(cmd.Context(), a, opts, time.Now()) },
	}
	fs := cmd.Flags()
	fs.StringVar(&opts.kind, "kind", "", "only those of this `KIND`, like agent.back, or of all like agent.*: agent")
	fs.StringVar(&opts.subject, "subject", "", "only those about this `NAME` of a node, agent, process and so on, or request id")
	fs.StringVar(&opts.by, "by", "", "only what this `TOKEN` did")
	fs.DurationVar(&opts.since, "since", 0, "only those of the last `TIME`, like 90m, by the clock of this machine")
	fs.IntVar(&opts.limit, "limit", 50, "at most `N`")
	return cmd
}

// eventOptions are the flags of uac event list.
type eventOptions struct {
	kind, subject, by string
	since             time.Duration
	limit             int
}

func (o eventOptions) query(now time.Time) (url.Values, error) {
	if err := checkLimit(o.limit); err != nil {
		return nil, err
	}
	query := url.Values{"limit": {fmt.Sprint(o.limit)}}
	for _, q := range []struct{ key, value string }{{"kind", o.kind}, {"subject", o.subject}, {"by", o.by}} {
		if q.value != "" {
			query.Set(q.key, q.value)
		}
	}
	switch {
	case o.since < 0:
		return nil, usageError("--since: %s is below zero", o.since)
	case o.since > 0:
		query.Set("from", now.Add(-o.since).UTC().Format(time.RFC3339))
	}
	return query, nil
}

func runEventList(ctx context.Context, a *app, opts eventOptions, now time.Time) error {
	query, err := opts.query(now)
	if err != nil {
		return err
	}
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var events []api.Event
	if err := c.list(ctx, a, pathOf("events"), query, &events); err != nil {
		return err
	}
	return printList(a, events,
		column[api.Event]{title: "AT", cell: func(e api.Event) string { return moment(e.At) }},
		column[api.Event]{title: "KIND", cell: func(e api.Event) string { return e.Kind }},
		column[api.Event]{title: "SUBJECT", cell: func(e api.Event) string { return e.Subject }},
		column[api.Event]{title: "BY", cell: func(e api.Event) string { return e.By }},
		column[api.Event]{title: "FROM", wide: true, cell: func(e api.Event) string { return e.From }},
		column[api.Event]{title: "NODE", cell: func(e api.Event) string { return e.Node }},
		column[api.Event]{title: "WHY", cell: func(e api.Event) string { return e.Why }},
		column[api.Event]{title: "DETAIL", wide: true, cell: func(e api.Event) string { return labels(e.Detail) }},
		column[api.Event]{title: "ID", wide: true, cell: func(e api.Event) string { return e.ID }},
	)
}
