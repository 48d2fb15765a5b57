package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

func newProcessCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "process", "Show, run and delete processes: definitions of work",
		newProcessListCommand(a),
		newProcessShowCommand(a),
		newProcessRunCommand(a),
		newProcessDeleteCommand(a),
	)
}

func newProcessListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List processes",
		Example: "  uac process list\n  uac process list -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runProcessList(cmd.Context(), a) },
	}
}

func runProcessList(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var ps []roles.Process
	if err := c.get(ctx, pathOf("processes"), nil, &ps); err != nil {
		return err
	}
	return printList(a, ps,
		column[roles.Process]{title: "NAME", cell: func(p roles.Process) string { return p.Name }},
		column[roles.Process]{title: "STEPS", cell: func(p roles.Process) string { return fmt.Sprint(len(p.Steps)) }},
		column[roles.Process]{title: "PARAMS", cell: func(p roles.Process) string {
			var names []string
			for _, q := range p.Params {
				name := q.Name
				if q.Required {
					name += "*"
				}
				names = append(names, name)
			}
			return strings.Join(names, ",")
		}},
		column[roles.Process]{title: "AGENTS", wide: true, cell: func(p roles.Process) string {
			var texts []string
			for _, s := range p.Selectors() {
				texts = append(texts, s.String())
			}
			for _, s := range p.Steps {
				if s.ForEach != nil {
					texts = append(texts, "all:"+s.ForEach.String())
				}
			}
			return strings.Join(texts, " ")
		}},
	)
}

func newProcessShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show PROCESS",
		Short: "Show the definition of a process",
		Long: `Show the definition of a process, as a document that uac apply takes. With -o
json or -o yaml it is the object of the API.`,
		Example:           "  uac process show deploy-web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProcesses(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return runProcessShow(cmd.Context(), a, args[0]) },
	}
}

func runProcessShow(ctx context.Context, a *app, name string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var p roles.Process
	if err := c.get(ctx, pathOf("processes", name), nil, &p); err != nil {
		return err
	}
	return printObject(a, p, func(w io.Writer, _ paint) error { return roles.Encode(w, &p) })
}

// runOptions are the flags of uac process run.
type runOptions struct {
	process    string
	params     []string // key=value
	paramFiles []string // key=file
	key        string
	why        string
	wait       bool
}

func newProcessRunCommand(a *app) *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run PROCESS",
		Short: "Run a process",
		Long: `Ask for a run of a process and print the request. Once it is printed, the run
will happen, whatever dies.

A call that got no answer is repeated with the same idempotency key, so that the
process runs once. --idempotency-key does the same for programs that may call uac
itself again: the same key with the same content is the same request, with
another content it is a conflict (exit code 6).

With --wait the exit code is that of the request: 0 succeeded, 1 failed or
cancelled, 7 in doubt. Interrupting the wait does not stop the request.`,
		Example: `  uac process run deploy-web -p version=1.4.2
  uac process run deploy-web -p version=1.4.2 --wait
  uac process run nightly --idempotency-key nightly-2026-01-02 -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProcesses(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.process = args[0]
			return runProcessRun(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&opts.params, "param", "p", nil, "`KEY=VALUE` of a parameter (repeatable)")
	fs.StringArrayVar(&opts.paramFiles, "param-file", nil, "`KEY=FILE` with the value of a parameter (repeatable)")
	fs.Var(idempotencyKey(&opts.key), "idempotency-key", "`KEY` that stands for this run (default: a new one)")
	waitFlag(fs, &opts.wait)
	whyFlag(fs, &opts.why)
	return cmd
}

// parameters returns the parameters that the flags give.
func (o *runOptions) parameters() (map[string]string, error) {
	params := map[string]string{}
	add := func(flag, text string, value func(string) (string, error)) error {
		key, v, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return usageError("%s %q: must be KEY=VALUE", flag, text)
		}
		if err := roles.CheckParamName(key); err != nil {
			return usageError("%s: %w", flag, err)
		}
		if _, twice := params[key]; twice {
			return usageError("%s: parameter %s is given twice", flag, key)
		}
		v, err := value(v)
		if err != nil {
			return usageError("%s %s: %w", flag, key, err)
		}
		params[key] = v
		return nil
	}
	for _, text := range o.params {
		if err := add("-p", text, func(v string) (string, error) { return v, nil }); err != nil {
			return nil, err
		}
	}
	for _, text := range o.paramFiles {
		if err := add("--param-file", text, readValue); err != nil {
			return nil, err
		}
	}
	return params, nil
}

// readValue reads the value of a parameter from a file.
func readValue(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(f, roles.MaxValue+1))
	if err != nil {
		return "", err
	}
	if len(text) > roles.MaxValue {
		return "", fmt.Errorf("%s is larger than %d bytes", file, roles.MaxValue)
	}
	if err := checkUTF8(string(text)); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return string(text), nil
}

func runProcessRun(ctx context.Context, a *app, opts runOptions) error {
	params, err := opts.parameters()
	if err != nil {
		return err
	}
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var req api.Request
	err = c.send(ctx, call{
		method: http.MethodPost, path: pathOf("requests"), query: because(opts.why),
		body: api.RunSpec{Process: opts.process, Params: params}, key: opts.key,
	}, &req)
	if err != nil {
		return err
	}
	if !opts.wait {
		return printRequest(a, req, time.Now())
	}
	return a.await(ctx, c, req, settled)
}

func newProcessDeleteCommand(a *app) *cobra.Command {
	var yes bool
	var why string
	cmd := &cobra.Command{
		Use:               "delete PROCESS",
		Short:             "Delete a process",
		Long:              "Delete a process. Its requests have a copy of their own and go on.",
		Example:           "  uac process delete deploy-web --yes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProcesses(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd.Context(), "process", args[0], pathOf("processes", args[0]),
				"Process "+args[0]+" is deleted; its requests go on", yes, why)
		},
	}
	yesFlag(cmd.Flags(), &yes)
	whyFlag(cmd.Flags(), &why)
	return cmd
}
