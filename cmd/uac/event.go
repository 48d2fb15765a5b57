package main

import (
	"context"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"uac/roles/controller/api"
)

func newEventCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "event", "Show events: what happened, and who did what from where",
		newEventListCommand(a),
	)
}

func newEventListCommand(a *app) *cobra.Command {
	limit := 50
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List events, newest first",
		Example: "  uac event list\n  uac event list --limit 1000 -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runEventList(cmd.Context(), a, limit) },
	}
	cmd.Flags().IntVar(&limit, "limit", limit, "at most `N`")
	return cmd
}

func runEventList(ctx context.Context, a *app, limit int) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var events []api.Event
	if err := c.list(ctx, a, pathOf("events"), url.Values{"limit": {fmt.Sprint(limit)}}, &events); err != nil {
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
