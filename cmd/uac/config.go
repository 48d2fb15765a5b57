package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"uac/config"
)

func newConfigCommand(a *app) *cobra.Command {
	cmd := newNounCommand("config", "Check and show the settings of a node",
		newConfigCheckCommand(a),
		newConfigShowCommand(a),
		newConfigSampleCommand(a),
	)
	cmd.GroupID = groupNode
	return cmd
}

func newConfigCheckCommand(a *app) *cobra.Command {
	var opts daemonOptions
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check settings without starting anything",
		Long: `Check the settings with which a node would start: the file, UAC_* variables and
flags. All problems are listed, each with its place; the exit code is 2.`,
		Example: `  uac config check --role=controller
  uac config check --role=agent --config agent.yaml --set agent.servers=c1,c2`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runConfigCheck(a, opts) },
	}
	opts.addFlags(cmd.Flags())
	return cmd
}

func runConfigCheck(a *app, opts daemonOptions) error {
	cfg, _, err := opts.load(a)
	if err != nil {
		return err
	}
	result := struct {
		Role     string   `json:"role"`
		Name     string   `json:"name"`
		Valid    bool     `json:"valid"`
		Warnings []string `json:"warnings"`
	}{string(cfg.Node.Role), cfg.Node.Name, true, append([]string{}, cfg.Warnings()...)}
	return printObject(a, result, func(w io.Writer, p paint) error {
		for _, warning := range result.Warnings {
			fmt.Fprintln(a.stderr, p.apply(yellow, "warning:"), warning)
		}
		_, err := fmt.Fprintf(w, "settings of %s %s are valid\n", result.Role, result.Name)
		return err
	})
}

func newConfigShowCommand(a *app) *cobra.Command {
	var opts daemonOptions
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the settings in effect and where each was set",
		Long: `Show every setting with which a node would start and where it comes from: a line
of the file, a variable, a flag, or the default. Secrets are masked.`,
		Example: "  uac config show --role=controller --config uac.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return runConfigShow(a, opts) },
	}
	opts.addFlags(cmd.Flags())
	return cmd
}

func runConfigShow(a *app, opts daemonOptions) error {
	cfg, origins, err := opts.load(a)
	if err != nil {
		return err
	}
	return printList(a, cfg.Settings(origins),
		column[config.Setting]{title: "KEY", cell: func(s config.Setting) string { return s.Key }},
		column[config.Setting]{title: "VALUE", cell: func(s config.Setting) string { return s.Value }},
		column[config.Setting]{
			title: "ORIGIN",
			cell:  func(s config.Setting) string { return s.Origin },
			color: func(s config.Setting) color {
				if s.Origin == "default" {
					return faint
				}
				return cyan
			},
		},
	)
}

func newConfigSampleCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "sample",
		Short:   "Print an annotated configuration file",
		Example: "  uac config sample > /etc/uac/uac.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.stdout, config.Sample())
			return err
		},
	}
}
