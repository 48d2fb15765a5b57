package main

import (
	"context"

	"github.com/spf13/cobra"

	"uac/roles/controller/api"
)

func newLockCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "lock", "Show and release locks",
		newLockListCommand(a),
		newLockReleaseCommand(a),
	)
}

func newLockListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List who holds and who waits for locks",
		Example: "  uac lock list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runLockList(cmd.Context(), a) },
	}
}

func runLockList(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var locks []api.Lock
	if err := c.get(ctx, pathOf("locks"), nil, &locks); err != nil {
		return err
	}
	return printList(a, locks,
		column[api.Lock]{title: "NAME", cell: func(l api.Lock) string { return l.Name }},
		column[api.Lock]{title: "NODE", cell: func(l api.Lock) string { return l.Node }},
		column[api.Lock]{title: "STATE", cell: func(l api.Lock) string {
			if l.Waiting {
				return "waits"
			}
			return "holds"
		}},
	)
}

func newLockReleaseCommand(a *app) *cobra.Command {
	var yes bool
	var why string
	cmd := &cobra.Command{
		Use:   "release LOCK",
		Short: "Take a lock away from its holder",
		Long: `Take a lock away from its holder. What the holder still tries to publish is
refused. The locks of a lost node are released without this.`,
		Example: "  uac lock release web --yes --why 'import hangs'",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, namesOf(pathOf("locks"), nil, func(l api.Lock) (string, string) {
			return l.Name, l.Node
		})),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd.Context(), "lock", args[0], pathOf("locks", args[0]),
				"Lock "+args[0]+" is taken away from its holder", yes, why)
		},
	}
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}
