package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"uac/codestation/mount"
	"uac/config"
	"uac/roles"
	"uac/roles/controller/api"
)

// mountChild is a child that touches the shared mount for its parent.
func mountChild(dir string) exitCode {
	if mount.Serve(dir, os.Stdin, os.Stdout) != nil {
		return exitFailed // nobody reads what it would say; the parent sees the end
	}
	return exitDone
}

// mountCommand returns a child, not yet started. It runs this very program, also
// after the file was replaced by another version, and is told nothing that it need
// not know: a child that is stuck can be looked at for a long time.
func mountCommand(dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", mount.ChildVerb, dir) //nolint:noctx // the mount ends it, and never waits for it
	cmd.Args[0] = "uac"
	cmd.Env = []string{}
	return cmd
}

func newMountCommand(a *app) *cobra.Command {
	return newClusterNoun(a, "mount", "Set up and show the mount that controllers share",
		newMountShowCommand(a),
		newMountInitCommand(a),
	)
}

func newMountShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the shared mount as each controller sees it",
		Long: `Show the shared mount as each controller sees it. Controllers with the same id
have the same mount. Free and total are as they were when the state last changed
(-o wide says when); the controller that answers tells what it sees now.`,
		Example: "  uac mount show\n  uac mount show -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runMountShow(cmd.Context(), a) },
	}
}

func runMountShow(ctx context.Context, a *app) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var mounts []api.Mount
	if err := c.get(ctx, pathOf("mounts"), nil, &mounts); err != nil {
		return err
	}
	return printList(a, mounts,
		column[api.Mount]{title: "NODE", cell: func(m api.Mount) string { return m.Node }},
		column[api.Mount]{title: "STATE", cell: func(m api.Mount) string { return m.State }, color: mountColor},
		column[api.Mount]{title: "SINCE", cell: func(m api.Mount) string { return moment(m.Since) }},
		column[api.Mount]{title: "FREE", cell: func(m api.Mount) string { return room(m.FreeBytes, m.TotalBytes) }},
		column[api.Mount]{title: "DIR", cell: func(m api.Mount) string { return m.Dir }},
		column[api.Mount]{title: "ID", wide: true, cell: func(m api.Mount) string { return m.ID }},
		column[api.Mount]{title: "SEEN", wide: true, cell: func(m api.Mount) string { return moment(m.Seen) }},
		column[api.Mount]{title: "ERROR", cell: func(m api.Mount) string { return m.Error }},
	)
}

func mountColor(m api.Mount) color {
	switch mount.Kind(m.State) {
	case mount.OK:
		return green
	case mount.Unconfigured, mount.Checking:
		return plain
	}
	return red
}

// room is how much of a mount is free, "" if that is not known.
func room(free, total uint64) string {
	const gib = 1 << 30
	if total == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f of %.1f GiB", float64(free)/gib, float64(total)/gib)
}

func newMountInitCommand(a *app) *cobra.Command {
	cluster := config.Default().Cluster.Name
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a directory the shared mount of a cluster",
		Long: `Make a directory the shared mount of a cluster: run this once, on one controller,
while the mount is there. It writes the file .uac-mount, by which controllers tell
the mount from the empty directory under it: without that file they write nothing.

The command changes nothing else, and nothing at all when it is repeated.`,
		Example: "  uac mount init /srv/uac\n  uac mount init /srv/uac --cluster prod",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return runMountInit(a, args[0], cluster)
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", cluster, "`NAME` of the cluster: cluster.name of its nodes")
	return cmd
}

func runMountInit(a *app, dir, cluster string) error {
	if err := roles.CheckNodeName(cluster); err != nil {
		return usageError("--cluster: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return usageError("%s is not a directory", dir)
	}
	s, err := mount.Init(dir, cluster)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usageError("%s does not exist: mount the file system first", dir)
	case errors.Is(err, fs.ErrExist):
		return fail(exitConflict, "%w", err)
	case err != nil:
		return err
	}
	if a.output == formatJSON || a.output == formatYAML {
		return a.encode(s)
	}
	_, err = fmt.Fprintf(a.stdout, "%s is the shared mount of cluster %s, id %s\n", dir, s.Cluster, s.ID)
	return err
}
