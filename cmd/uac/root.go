package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"uac/roles"
)

// app is what every verb gets: the world outside, and what the flags common to
// all verbs say.
type app struct {
	env
	output  format
	cluster clientFlags
	warned  bool // that others can read the token
}

// newRootCommand builds the whole command line.
func newRootCommand(a *app, daemons map[roles.Role]daemon) *cobra.Command {
	var opts daemonOptions
	root := &cobra.Command{
		Use:   "uac",
		Short: "Runs operations work on fleets of machines and keeps it running while machines die",
		Long: `uac runs multi-step operations work on fleets of machines and keeps it running
while machines die.

  uac --role=ROLE [--config FILE]   runs a node: controller, watch, relay or agent
  uac NOUN VERB [flags]             talks to a cluster, or does local work

A node reads /etc/uac/uac.yaml unless --config names another file; UAC_*
variables win over the file, flags over both. The client finds its cluster by
--server, --token and --cacert, or UAC_SERVER, UAC_TOKEN and UAC_CACERT, or
~/.config/uac/client.yaml. Several servers, separated by commas, are tried in
order.`,
		Example: `  uac --role=controller --config /etc/uac/uac.yaml
  uac config check --role=agent --config agent.yaml`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if !opts.given() {
				return cmd.Help()
			}
			return runDaemon(cmd.Context(), a, opts, daemons)
		},
	}
	opts.addFlags(root.Flags())
	a.output = formatTable
	root.PersistentFlags().VarP(&a.output, "output", "o", "`FORMAT` of results: "+strings.Join(formats, ", "))
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only

	root.AddGroup(
		&cobra.Group{ID: groupCluster, Title: "On a cluster:"},
		&cobra.Group{ID: groupNode, Title: "On this machine:"},
		&cobra.Group{ID: groupTool, Title: "About uac:"},
	)
	root.AddCommand(
		newApplyCommand(a),
		newExportCommand(a),
		newProcessCommand(a),
		newRequestCommand(a),
		newNodeCommand(a),
		newAgentCommand(a),
		newTokenCommand(a),
		newMountCommand(a),
		newLockCommand(a),
		newEventCommand(a),
		newConfigCommand(a),
		newBenchCommand(a),
		newDevCommand(a),
		newPKICommand(a),
		newVersionCommand(a),
		newCompletionCommand(a),
		&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitHelp(), Hidden: true},
	)
	root.SetHelpCommand(newHelpCommand())
	root.SetHelpCommandGroupID(groupTool)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(root.UsageTemplate() + helpTail)
	explainArgs(root)
	root.SetArgs(a.args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return root
}

// The groups of commands in the help.
const (
	groupCluster = "cluster"
	groupNode    = "node"
	groupTool    = "tool"
)

// helpTail ends every help text.
const helpTail = `{{if not .HasParent}}
Exit codes: uac help exit-codes
{{end}}`

// newNounCommand returns a command that only holds verbs.
func newNounCommand(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return usageError("%s: which verb? One of %s", cmd.CommandPath(), strings.Join(verbNames(cmd), ", "))
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// unknownCommand returns the error for a word that is no command below cmd.
func unknownCommand(cmd *cobra.Command, word string) error {
	cmd.SuggestionsMinimumDistance = 2
	hint := "; see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		hint = "; did you mean " + cmd.CommandPath() + " " + strings.Join(near, ", ") + "?"
	}
	return usageError("%s has no command %q%s", cmd.CommandPath(), word, hint)
}

// flagError adds a suggestion to an unknown flag, and says what a number or a time
// looks like.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		var bad *pflag.InvalidValueError
		if errors.As(err, &bad) {
			if want := wanted(bad); want != "" {
				return usageError("%s: --%s: %q is %s", cmd.CommandPath(), bad.GetFlag().Name, bad.GetValue(), want)
			}
		}
		return usageError("%s: %w", cmd.CommandPath(), err)
	}
	if short := unknown.GetSpecifiedShortnames(); short != "" && short[0] >= '0' && short[0] <= '9' {
		return usageError("%s: -%s is below zero; usage: %s", cmd.CommandPath(), short, cmd.UseLine())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near := roles.Nearest(unknown.GetSpecifiedName(), names)
	hint := "; see " + cmd.CommandPath() + " --help"
	if near != "" && len(unknown.GetSpecifiedName()) > 1 {
		hint = "; did you mean --" + near + "?"
	}
	return usageError("%s: %w%s", cmd.CommandPath(), err, hint)
}

// wanted says in words why a flag does not take a value; "" if its error says that.
func wanted(bad *pflag.InvalidValueError) string {
	switch kind := bad.GetFlag().Value.Type(); {
	case kind == "duration":
		return "not a time with a unit, like 90s, 15m or 2h"
	case kind == "bool":
		return "neither true nor false"
	case strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint"):
		if errors.Is(bad, strconv.ErrRange) {
			return "too large or too small"
		}
		return "not a whole number"
	}
	return ""
}

// explainArgs makes every command say which argument is missing, too many or not
// fit to be one.
func explainArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				return checkTexts(cmd, args)
			}
			for n := len(args) - 1; n >= 0; n-- {
				if check(cmd, args[:n]) == nil {
					return usageError("%s: %q is one argument too many; usage: %s", cmd.CommandPath(), args[n], cmd.UseLine())
				}
			}
			// The names of arguments come first in a usage.
			if names := strings.Fields(cmd.Use)[1:]; len(args) < len(names) {
				return usageError("%s: %s is missing; usage: %s", cmd.CommandPath(), names[len(args)], cmd.UseLine())
			}
			return usageError("%s: %w", cmd.CommandPath(), err)
		}
	}
	for _, c := range cmd.Commands() {
		explainArgs(c)
	}
}

// markRuns makes every verb note that it has begun. An error before that is
// cobra's, about the command line.
func markRuns(root *cobra.Command) *bool {
	started := new(bool)
	var mark func(*cobra.Command)
	mark = func(cmd *cobra.Command) {
		if inner := cmd.RunE; inner != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				*started = true
				return inner(cmd, args)
			}
		}
		for _, c := range cmd.Commands() {
			mark(c)
		}
	}
	mark(root)
	return started
}

// newHelpCommand replaces cobra's, which calls an unknown topic a success.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command or topic]",
		Short: "Help about a command or a topic",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || found == nil {
				return usageError("%w", err)
			}
			if len(rest) > 0 {
				return unknownCommand(found, rest[0])
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

func newCompletionCommand(a *app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion " + strings.Join(shells, "|"),
		Short:     "Print a script that completes uac's commands in a shell",
		GroupID:   groupTool,
		ValidArgs: shells,
		Args:      cobra.ExactArgs(1),
		Long: `Print a script that makes the shell complete uac's commands and flags.

  bash   source <(uac completion bash)
  zsh    uac completion zsh > "${fpath[1]}/_uac"
  fish   uac completion fish > ~/.config/fish/completions/uac.fish`,
		Example: "  source <(uac completion bash)",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(shells, args[0]) {
				return usageError("no completion for %q; there is %s", args[0], strings.Join(shells, ", "))
			}
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.stdout)
			default:
				return cmd.Root().GenFishCompletion(a.stdout, true)
			}
		},
	}
}
