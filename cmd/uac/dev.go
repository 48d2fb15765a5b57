package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"uac/roles"
)

// devOptions are the flags of uac dev.
type devOptions struct {
	devShape
	dir      string
	set      []string // nil: as it was
	shaped   bool     // the numbers of nodes were given
	detach   bool
	patience time.Duration
	// untold and network are for clusters that nobody else knows of.
	untold  bool
	network *devNetwork // nil: the loopback network
	// supervise makes this the process in the background that --detach starts.
	supervise bool
}

func newDevCommand(a *app) *cobra.Command {
	var opts devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine",
		Long: `Run a whole cluster on this machine, to try it and to test with it: each node is
a process of its own, on an address of its own of the loopback network, with the
default ports. The cluster has its own keys and certificates.

Ctrl-C ends it, and whatever kills this command kills its nodes, too. With
--detach it stays in the background until uac dev stop. Its data stays in --dir
in any case: the same command starts it again.

  DIR/env            to source: UAC_SERVER, UAC_TOKEN and UAC_CACERT
  DIR/cluster.json   names, processes, addresses, data and logs of the nodes
  DIR/mount/         the mount that the controllers share
  DIR/NODE/          uac.yaml, log and data of a node

Only its owner can enter DIR. Steps of an agent a1 that name another user (run_as)
have to get through to it: chmod 711 DIR DIR/a1 DIR/a1/data, and what is above.`,
		Example: `  uac dev
  uac dev --dir /tmp/try --detach && . /tmp/try/env && uac node list
  uac dev --dir /tmp/fast --set cluster.silence_timeout=100ms
  uac dev kill c1`,
		GroupID: groupNode,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			for _, name := range []string{"controllers", "watches", "relays", "agents"} {
				opts.shaped = opts.shaped || cmd.Flags().Changed(name)
			}
			return runDev(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&opts.controllers, "controllers", 2, "`NUMBER` of controllers")
	fs.IntVar(&opts.watches, "watches", 1, "`NUMBER` of watches")
	fs.IntVar(&opts.relays, "relays", 0, "`NUMBER` of relays")
	fs.IntVar(&opts.agents, "agents", 2, "`NUMBER` of agents")
	fs.StringArrayVar(&opts.set, "set", nil, "`KEY=VALUE` of a setting of all nodes, for example cluster.silence_timeout=100ms (repeatable)")
	fs.BoolVar(&opts.detach, "detach", false, "return when the cluster serves, and leave it running")
	fs.DurationVar(&opts.patience, "timeout", time.Minute, "`TIME` in which the cluster must be ready")
	fs.BoolVar(&opts.supervise, "supervise", false, "")
	_ = fs.MarkHidden("supervise") // it exists
	fs.SortFlags = false
	devDirFlag(cmd.PersistentFlags(), &opts.dir)
	cmd.AddCommand(
		newDevNodeCommand(a, &opts.dir, "start", "Start one node again, and wait until it is up", runDevStart),
		newDevNodeCommand(a, &opts.dir, "kill", "Kill one node as a power cut would (kill -9)", runDevKill),
		newDevStatusCommand(a, &opts.dir),
		newDevStopCommand(a, &opts.dir),
	)
	return cmd
}

func devDirFlag(fs *pflag.FlagSet, dir *string) {
	fs.StringVar(dir, "dir", "uac-dev", "`DIR` of the cluster")
}

// devDir returns the one name of a directory: absolute and without links, as
// /proc tells of open files.
func devDir(dir string) (string, error) {
	if dir == "" {
		return "", usageError("--dir: must not be empty")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if path, err := filepath.EvalSymlinks(abs); err == nil {
		return path, checkDir(path)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", usageError("--dir: %w", err)
	}
	if err := checkDir(parent); err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// checkDir refuses a file where --dir needs a directory.
func checkDir(path string) error {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return usageError("--dir: %s is not a directory", path)
	}
	return nil
}

func (o devOptions) check() error {
	for _, n := range []struct {
		flag       string
		value, min int
	}{
		{"controllers", o.controllers, 1}, {"watches", o.watches, 0}, {"relays", o.relays, 0}, {"agents", o.agents, 0},
	} {
		if n.value < n.min || n.value > 1000 {
			return usageError("--%s: %d is not between %d and 1000", n.flag, n.value, n.min)
		}
	}
	if o.patience <= 0 {
		return usageError("--timeout: %s is not above zero", o.patience)
	}
	return nil
}

func runDev(ctx context.Context, a *app, opts devOptions) (err error) {
	if err := opts.check(); err != nil {
		return err
	}
	if opts.dir, err = devDir(opts.dir); err != nil {
		return err
	}
	began := time.Now()
	switch {
	case opts.supervise:
		return runDevBackground(ctx, a, opts)
	case opts.detach:
		if err := detachDev(ctx, a, opts); err != nil {
			return err
		}
		c, err := loadDevCluster(opts.dir)
		if err != nil {
			return err
		}
		return printDevReady(a, c, time.Since(began), "uac dev stop --dir "+shellWord(opts.dir)+" ends it")
	default:
		return serveDev(ctx, a, opts, func(c *devCluster) error {
			return printDevReady(a, c, time.Since(began), "Ctrl-C ends it")
		})
	}
}

// serveDev runs a cluster until ctx ends or another command stops it. It calls
// ready when the cluster serves.
func serveDev(ctx context.Context, a *app, opts devOptions, ready func(*devCluster) error) (err error) {
	s, err := openDev(ctx, a, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	l, err := listenDev(ctx, opts.dir)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveOrders(gctx, l, stop) })
	g.Go(func() error { return s.watchDir(gctx) })
	g.Go(func() error {
		defer stop()
		if err := s.startAll(gctx, opts.patience); err != nil {
			return err
		}
		if err := ready(s.snapshot()); err != nil {
			return err
		}
		<-gctx.Done()
		return nil
	})
	err = g.Wait()
	fmt.Fprintln(s.events, "stopping")
	s.stop(context.WithoutCancel(ctx))
	return err
}

// printDevReady tells the user what runs and what to do with it.
func printDevReady(a *app, c *devCluster, took time.Duration, end string) error {
	return printObject(a, c, func(w io.Writer, p paint) error {
		shape := c.shape()
		watches := counted(shape.watches, "watch", "es")
		if shape.relays > 0 {
			watches += ", " + counted(shape.relays, "relay", "s")
		}
		_, err := fmt.Fprintf(w, `%s %s, %s and %s in %s, ready in %.1f s

  . %s
  uac node list
  uac dev kill %s --dir %s

%s; its data stays.
`, p.apply(green, "running:"), counted(shape.controllers, "controller", "s"), watches, counted(shape.agents, "agent", "s"),
			c.dir, took.Seconds(), shellWord(c.file(devEnvFile)), c.Nodes[0].Name, shellWord(c.dir), end)
		return err
	})
}

func counted(n int, noun, plural string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %s%s", n, noun, plural)
}

var plainShellWord = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)

// shellWord is text as one would type it in a shell.
func shellWord(text string) string {
	if plainShellWord.MatchString(text) {
		return text
	}
	return shellQuote(text)
}

// devOutcome is what the process in the background tells the command that
// started it: nothing but how the start went.
type devOutcome struct {
	Error    string   `json:"error,omitempty"`
	ExitCode exitCode `json:"exit_code"`
}

// devOutcomeFD is where.
const devOutcomeFD = 3

// runDevBackground is the process that --detach leaves running.
func runDevBackground(ctx context.Context, a *app, opts devOptions) error {
	pipe := os.NewFile(devOutcomeFD, "outcome")
	told := false
	tell := func(o devOutcome) error {
		told = true
		return errors.Join(json.NewEncoder(pipe).Encode(o), pipe.Close())
	}
	unix.CloseOnExec(devOutcomeFD) // not for the nodes
	err := serveDev(ctx, a, opts, func(*devCluster) error { return tell(devOutcome{}) })
	if errors.Is(err, context.Canceled) {
		err = fail(exitFailed, "interrupted while it started")
	}
	if err != nil && !told {
		return errors.Join(err, tell(devOutcome{Error: err.Error(), ExitCode: codeOf(err)}))
	}
	return err
}

// detachDev starts the process in the background and waits until the cluster
// serves.
func detachDev(ctx context.Context, a *app, opts devOptions) error {
	if err := os.Mkdir(opts.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(opts.dir, devLogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the other process has it
	outcome, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = outcome.Close() }() // only read
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, append(slices.Clone(a.args), "--supervise")...)
	cmd.Env, cmd.Stdout, cmd.Stderr = a.environ, log, log
	cmd.ExtraFiles = []*os.File{pipe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = pipe.Close() // the other process has it
	if err != nil {
		return err
	}
	// Interrupted, it ends what it has started and then tells how that went.
	interrupted := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer interrupted()
	var o devOutcome
	if err := json.NewDecoder(outcome).Decode(&o); err != nil {
		return fmt.Errorf("the process in the background ended; see %s", log.Name())
	}
	if o.Error != "" {
		failed := fail(o.ExitCode, "%s", o.Error)
		err := wait(cmd)
		if c, _ := loadDevCluster(opts.dir); c == nil {
			_ = os.Remove(log.Name())
			_ = os.Remove(opts.dir) // if nothing else is in it
		}
		return errors.Join(failed, err)
	}
	return cmd.Process.Release()
}

// wait waits for a process whose failure has been reported already.
func wait(cmd *exec.Cmd) error {
	var ee *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ee) {
		return err
	}
	return nil
}

func newDevNodeCommand(a *app, dir *string, verb, short string, run func(ctx context.Context, a *app, dir, node string) error) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " NODE",
		Short:   short,
		Example: fmt.Sprintf("  uac dev %s c1 --dir /tmp/try", verb),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := devDir(*dir)
			if err != nil {
				return err
			}
			return run(cmd.Context(), a, path, args[0])
		},
	}
}

func runDevStart(ctx context.Context, a *app, dir, node string) error {
	var n devStarted
	if err := orderDev(ctx, dir, "/nodes/"+node+"/start", &n); err != nil {
		return err
	}
	return printObject(a, n, func(w io.Writer, _ paint) error {
		text := fmt.Sprintf("started %s (pid %d)", n.Name, n.PID)
		if n.WaitsFor != "" {
			text += "; it waits: " + n.WaitsFor
		}
		_, err := fmt.Fprintln(w, text)
		return err
	})
}

func runDevKill(ctx context.Context, a *app, dir, node string) error {
	var k devKilled
	if err := orderDev(ctx, dir, "/nodes/"+node+"/kill", &k); err != nil {
		return err
	}
	return printObject(a, k, func(w io.Writer, _ paint) error {
		_, err := fmt.Fprintf(w, "killed %s (pid %d)\n", k.Node, k.PID)
		return err
	})
}

func newDevStopCommand(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "stop",
		Short:   "Stop the whole cluster in order; its data stays",
		Example: "  uac dev stop --dir /tmp/try",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := devDir(*dir)
			if err != nil {
				return err
			}
			return runDevStop(cmd.Context(), a, path)
		},
	}
}

func runDevStop(ctx context.Context, a *app, dir string) error {
	if err := orderDev(ctx, dir, "/stop", &struct{}{}); err != nil {
		return err
	}
	// The process that runs the cluster gives the lock back when all nodes have
	// ended.
	for {
		lock, err := lockDev(dir)
		if err == nil {
			if err := lock.Close(); err != nil {
				return err
			}
			break
		}
		if !errors.Is(err, errDevRunning) {
			return err
		}
		if err := pause(ctx, devPoll); err != nil {
			return err
		}
	}
	c, err := loadDevCluster(dir)
	if err != nil {
		return err
	}
	return printObject(a, c, func(w io.Writer, _ paint) error {
		_, err := fmt.Fprintf(w, "stopped all nodes; start them again with: uac dev --dir %s\n", shellWord(dir))
		return err
	})
}

// devStatus is a node as uac dev status shows it.
type devStatus struct {
	devNode
	Running bool `json:"running"`
	// Mode is what the node answers to load balancers, "" if it does not.
	Mode string `json:"mode"`
}

func newDevStatusCommand(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the nodes of the cluster, their processes and modes",
		Example: "  uac dev status --dir /tmp/try -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := devDir(*dir)
			if err != nil {
				return err
			}
			return runDevStatus(cmd.Context(), a, path)
		},
	}
}

func runDevStatus(ctx context.Context, a *app, dir string) error {
	c, err := loadDevCluster(dir)
	if err != nil {
		return err
	}
	if c == nil {
		return notRunning(dir)
	}
	// Who gets the lock knows that nobody runs the nodes, whatever was written.
	if lock, err := lockDev(dir); err == nil {
		for i := range c.Nodes {
			c.Nodes[i].PID = 0
		}
		if err := lock.Close(); err != nil {
			return err
		}
	}
	client, err := newDevClient(c)
	if err != nil {
		return err
	}
	all := make([]devStatus, len(c.Nodes))
	var g errgroup.Group
	for i, n := range c.Nodes {
		g.Go(func() error {
			all[i] = devStatus{devNode: n, Running: n.PID != 0}
			if n.PID != 0 && n.API != "" {
				all[i].Mode = client.mode(ctx, n)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return printList(a, all,
		column[devStatus]{title: "NAME", cell: func(s devStatus) string { return s.Name }},
		column[devStatus]{title: "ROLE", cell: func(s devStatus) string { return string(s.Role) }},
		column[devStatus]{
			title: "PID",
			cell: func(s devStatus) string {
				if s.PID == 0 {
					return "-"
				}
				return fmt.Sprint(s.PID)
			},
		},
		column[devStatus]{
			title: "MODE",
			cell: func(s devStatus) string {
				switch {
				case s.Running && s.Role == roles.RoleAgent:
					return "-"
				case s.Running:
					return cmp.Or(s.Mode, "silent")
				}
				return "ended"
			},
			color: func(s devStatus) color {
				switch {
				case !s.Running:
					return red
				case s.Mode == "ACTIVE":
					return green
				}
				return plain
			},
		},
		column[devStatus]{title: "API", cell: func(s devStatus) string { return cmp.Or(s.API, "-") }},
		column[devStatus]{title: "LOG", wide: true, cell: func(s devStatus) string { return s.Log }},
		column[devStatus]{title: "DATA", wide: true, cell: func(s devStatus) string { return s.DataDir }},
	)
}
