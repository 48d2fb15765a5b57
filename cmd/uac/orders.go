package main

import (
	"os"
	"slices"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

// stepOf returns a step of a request, nil if it has none with that name.
func stepOf(r api.Request, name string) *api.Step {
	i := slices.IndexFunc(r.Steps, func(s api.Step) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Steps[i]
}

// stepChanged returns whether a step is not as it was.
func stepChanged(name string) func(before, now api.Request) bool {
	return func(before, now api.Request) bool {
		was, is := stepOf(before, name), stepOf(now, name)
		return was == nil || is == nil || was.Status != is.Status || was.Attempt != is.Attempt || was.Reason != is.Reason
	}
}

// stepBody is the body of an order to one step.
type stepBody struct {
	Step string `json:"step,omitempty"`
	From bool   `json:"from,omitempty"`
}

func newRequestHoldCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "hold"}
	var body stepBody
	cmd := &cobra.Command{
		Use:   "hold REQUEST [--step STEP]",
		Short: "Let nothing more of a request start",
		Long: `Let nothing more of a request start, until uac request release. What runs goes on.
With --step only that step does not start; it must not have begun.`,
		Example: `  uac request hold 01JD8Z6V9YB6W7N2Q5T3R4S8XA --why 'wrong version?'
  uac request hold 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step switch`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.id, opts.body = args[0], body
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	cmd.Flags().StringVar(&body.Step, "step", "", "`STEP` to hold (default: all that has not begun)")
	whyFlag(cmd.Flags(), &opts.why)
	return cmd
}

func newRequestReleaseCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "release"}
	var body stepBody
	cmd := &cobra.Command{
		Use:   "release REQUEST [--step STEP]",
		Short: "Let a held request go on",
		Long: `Let a request go on that is held: by uac request hold, or because the cluster
continued without its majority, or from a backup, and nobody knows what the lost
nodes had still done. Steps that were held one by one stay held; --step lets one
go on.`,
		Example: `  uac request release 01JD8Z6V9YB6W7N2Q5T3R4S8XA
  uac request release 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step switch`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.id, opts.body = args[0], body
			// That the request is held is its reason.
			opts.obeyed = func(before, now api.Request) bool { return now.Reason != before.Reason }
			if body.Step != "" {
				opts.obeyed = stepChanged(body.Step)
			}
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	cmd.Flags().StringVar(&body.Step, "step", "", "`STEP` to let go on (default: the request)")
	waitFlag(cmd.Flags(), &opts.wait)
	whyFlag(cmd.Flags(), &opts.why)
	return cmd
}

func newRequestSkipCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "skip"}
	var body stepBody
	cmd := &cobra.Command{
		Use:   "skip REQUEST --step STEP",
		Short: "Do without a step that does not run",
		Long: `Do without a step that has not begun, or that waits for another attempt. When
its turn comes it is skipped, and the steps that need it go on as if it had
succeeded. uac request rerun takes that back.`,
		Example:           "  uac request skip 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step smoke-test --why 'known to fail today'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.Step == "" {
				return usageError("--step must be given")
			}
			opts.id, opts.body, opts.obeyed = args[0], body, stepChanged(body.Step)
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	cmd.Flags().StringVar(&body.Step, "step", "", "`STEP` to do without")
	waitFlag(cmd.Flags(), &opts.wait)
	whyFlag(cmd.Flags(), &opts.why)
	return cmd
}

func newRequestRerunCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "rerun", once: true}
	var body stepBody
	cmd := &cobra.Command{
		Use:   "rerun REQUEST --step STEP [--from]",
		Short: "Run a step again that has ended",
		Long: `Run a step again that has ended, as long as the request is not final: while
other steps run or are in doubt. With --from, all steps that depend on it and have
ended begin anew, too. Without, they stay as they are; those that have not ended
wait for it.

A step that was to be skipped runs after all. For one in doubt say uac request
resolve --as rerun.`,
		Example: `  uac request rerun 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step fetch
  uac request rerun 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step fetch --from --wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.Step == "" {
				return usageError("--step must be given")
			}
			opts.id, opts.body, opts.obeyed = args[0], body, stepChanged(body.Step)
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	cmd.Flags().StringVar(&body.Step, "step", "", "`STEP` to run again")
	cmd.Flags().BoolVar(&body.From, "from", false, "and everything that depends on it")
	waitFlag(cmd.Flags(), &opts.wait)
	whyFlag(cmd.Flags(), &opts.why)
	return cmd
}

var finalStatuses = []string{"succeeded", "failed", "cancelled"}

func newRequestFinishCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "finish", once: true, obeyed: func(_, now api.Request) bool { return now.Status.Final() }}
	var body struct {
		As string `json:"as"`
	}
	cmd := &cobra.Command{
		Use:   "finish REQUEST --as succeeded|failed|cancelled",
		Short: "Give a request its final status at once",
		Long: `Give a request its final status at once, whatever its steps came to. Nothing more
of it starts, running steps are killed, and steps in doubt are given up. This
cannot be taken back. uac request cancel is gentler: it waits for what runs.`,
		Example:           "  uac request finish 01JD8Z6V9YB6W7N2Q5T3R4S8XA --as failed --why 'machine was scrapped'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.As == "" {
				return usageError("--as must be given: succeeded, failed or cancelled")
			}
			opts.id, opts.body = args[0], body
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.Var(choice(&body.As, finalStatuses), "as", "`STATUS` of the request: succeeded, failed or cancelled")
	waitFlag(fs, &opts.wait)
	whyFlag(fs, &opts.why)
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions(finalStatuses, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// amendment is the body of an insert or a change.
type amendment struct {
	Step       string         `json:"step,omitempty"`
	Before     string         `json:"before,omitempty"`
	After      string         `json:"after,omitempty"`
	Definition *roles.StepDef `json:"definition"`
}

// readStep reads the definition of a step.
func (a *app) readStep(file string) (*roles.StepDef, error) {
	if file == "" {
		return nil, usageError("-f FILE must be given, with the definition of the step")
	}
	def, err := a.decodeStep(file)
	if err != nil {
		return nil, fail(exitUsage, "%w", err)
	}
	return def, nil
}

func (a *app) decodeStep(file string) (*roles.StepDef, error) {
	if file == "-" {
		return roles.DecodeStep("standard input", a.stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return roles.DecodeStep(file, f)
}

func newRequestInsertCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "insert", once: true}
	var body amendment
	var file string
	cmd := &cobra.Command{
		Use:   "insert REQUEST -f FILE --before STEP | --after STEP",
		Short: "Add a step to a request",
		Long: `Add a step to this request; its process stays as it is. FILE has the fields of one
step, as they stand in a process.

With --before STEP, which must not have begun, the new step needs what STEP needs,
and STEP needs the new step. With --after STEP the new step needs STEP, and all
steps that need STEP and have not begun need the new step. With both, it stands
between these two alone. What FILE says in needs comes on top.`,
		Example: `  uac request insert 01JD8Z6V9YB6W7N2Q5T3R4S8XA -f drain.yaml --before switch
  printf 'name: check\nagent: {name: web1}\nrun: ./check\n' |
    uac request insert 01JD8Z6V9YB6W7N2Q5T3R4S8XA -f - --after fetch`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.Before == "" && body.After == "" {
				return usageError("--before or --after must be given")
			}
			def, err := a.readStep(file)
			if err != nil {
				return err
			}
			body.Definition, opts.id, opts.body = def, args[0], &body
			opts.obeyed = func(_, now api.Request) bool { return stepOf(now, def.Name) != nil }
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&file, "file", "f", "", "`FILE` with the step, or - for standard input")
	fs.StringVar(&body.Before, "before", "", "`STEP` that is to need the new one")
	fs.StringVar(&body.After, "after", "", "`STEP` that the new one is to need")
	waitFlag(fs, &opts.wait)
	whyFlag(fs, &opts.why)
	return cmd
}

func newRequestChangeCommand(a *app) *cobra.Command {
	opts := commandOptions{verb: "change"}
	var body amendment
	var file string
	cmd := &cobra.Command{
		Use:   "change REQUEST --step STEP -f FILE",
		Short: "Give a step that does not run another definition",
		Long: `Give a step of this request another definition; its process stays as it is. FILE
has the fields of the step as they shall be, all of them, with the same name. The
step must not have begun, or wait for another attempt; then its agent cannot
change. To mend one that failed: hold the request, rerun the step with --from,
change it, release the request.`,
		Example:           "  uac request change 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step switch -f switch.yaml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.Step == "" {
				return usageError("--step must be given")
			}
			def, err := a.readStep(file)
			if err != nil {
				return err
			}
			body.Definition, opts.id, opts.body = def, args[0], &body
			return runRequestCommand(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&file, "file", "f", "", "`FILE` with the step, or - for standard input")
	fs.StringVar(&body.Step, "step", "", "`STEP` to change")
	whyFlag(fs, &opts.why)
	return cmd
}
