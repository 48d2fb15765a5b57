package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

func newTokenCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "token", "Create, list and delete tokens",
		newTokenCreateCommand(a),
		newTokenListCommand(a),
		newTokenDeleteCommand(a),
	)
}

// tokenOptions are the flags of uac token create.
type tokenOptions struct {
	role, name, why string
	hosts           []string
	ttl             time.Duration
	replace         bool
}

var tokenRoles = []string{"viewer", "operator", "admin", "agent", "relay"}

func newTokenCreateCommand(a *app) *cobra.Command {
	var opts tokenOptions
	cmd := &cobra.Command{
		Use:   "create --role ROLE",
		Short: "Make a token, and print it this once",
		Long: `Make a token and print it. It is not stored and cannot be shown again.

For a person or program, ROLE is what they may do: viewer sees, operator runs and
defines work and steers the cluster, admin does the rest. --name says whom the
token stands for in the audit trail.

For a node that joins, ROLE is agent or relay. The token is good for one node, for
--ttl, and for the name or pattern --name; the node takes it by uac --role=agent
--join TOKEN. Controllers and watches get their keys from uac pki issue.`,
		Example: `  uac token create --role agent --ttl 1h
  uac token create --role agent --name 'web*' --ttl 10m
  uac token create --role agent --name web1 --replace   # the machine was installed anew
  uac token create --role relay --name r1 --host 10.0.9.1
  uac token create --role operator --name alice --ttl 720h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("ttl") && opts.ttl <= 0 {
				return usageError("--ttl %s: must be more than 0; leave the flag out for the default", opts.ttl)
			}
			return runTokenCreate(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&opts.role, "role", "", "`ROLE`: "+strings.Join(tokenRoles, ", "))
	fs.StringVar(&opts.name, "name", "", "`NAME` of whom it stands for, or name or pattern of the node")
	fs.StringArrayVar(&opts.hosts, "host", nil, "`HOST` name or address of the relay's probes (repeatable)")
	fs.DurationVar(&opts.ttl, "ttl", 0, "`TIME` that it lives (default: 1h to join, else for ever)")
	fs.BoolVar(&opts.replace, "replace", false, "the node may take the place of one with the same name")
	whyFlag(fs, &opts.why)
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(tokenRoles, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// newToken is a token with its text, as the API shows it once.
type newToken struct {
	Text string `json:"token"`
	api.Token
}

func runTokenCreate(ctx context.Context, a *app, opts tokenOptions) error {
	if opts.role == "" {
		return usageError("--role must be given: one of %s", strings.Join(tokenRoles, ", "))
	}
	switch {
	case opts.role == string(roles.RoleController) || opts.role == string(roles.RoleWatch):
		return usageError("--role %s: a %[1]s does not join with a token; make its directory with uac pki issue", opts.role)
	case !slices.Contains(tokenRoles, opts.role):
		return usageError("--role %q: must be one of %s", opts.role, strings.Join(tokenRoles, ", "))
	}
	c, err := a.newClient()
	if err != nil {
		return err
	}
	body := map[string]any{"role": opts.role}
	if opts.name != "" {
		body["name"] = opts.name
	}
	if opts.ttl > 0 {
		body["ttl"] = opts.ttl.String()
	}
	if len(opts.hosts) > 0 {
		body["hosts"] = opts.hosts
	}
	if opts.replace {
		body["replace"] = true
	}
	var t newToken
	k := call{method: http.MethodPost, path: pathOf("tokens"), query: because(opts.why), body: body, once: true}
	if err := c.send(ctx, k, &t); err != nil {
		return err
	}
	return printObject(a, t, func(w io.Writer, _ paint) error {
		_, err := fmt.Fprintln(w, printable(t.Text, false))
		return err
	})
}

func newTokenListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens, without their secrets",
		Example: "  uac token list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runTokenList(cmd.Context(), a) },
	}
}

func runTokenList(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var tokens []api.Token
	if err := c.get(ctx, pathOf("tokens"), nil, &tokens); err != nil {
		return err
	}
	return printList(a, tokens,
		column[api.Token]{title: "ID", cell: func(t api.Token) string { return t.ID }},
		column[api.Token]{title: "KIND", cell: func(t api.Token) string { return t.Kind }},
		column[api.Token]{title: "ROLE", cell: func(t api.Token) string { return t.Role }},
		column[api.Token]{title: "NAME", cell: func(t api.Token) string { return t.Name }},
		column[api.Token]{title: "CREATED", wide: true, cell: func(t api.Token) string { return moment(t.Created) }},
		column[api.Token]{title: "EXPIRES", cell: func(t api.Token) string {
			if t.Expires.IsZero() {
				return "never"
			}
			return moment(t.Expires)
		}},
		column[api.Token]{title: "USED", cell: func(t api.Token) string {
			if t.Kind != "join" {
				return ""
			}
			return yesNo(t.Used)
		}},
	)
}

func newTokenDeleteCommand(a *app) *cobra.Command {
	var yes bool
	var why string
	cmd := &cobra.Command{
		Use:     "delete ID",
		Short:   "Make a token worthless at once",
		Example: "  uac token delete k5pnqxda --yes --why 'laptop lost'",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, namesOf(pathOf("tokens"), nil, func(t api.Token) (string, string) {
			return t.ID, t.Role + " " + t.Name
		})),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd.Context(), "token", args[0], pathOf("tokens", args[0]),
				"Whoever has token "+args[0]+" is locked out", yes, why)
		},
	}
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}
