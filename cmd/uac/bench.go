package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"uac/config"
	"uac/roles"
	"uac/roles/controller/api"
)

func newBenchCommand(a *app) *cobra.Command {
	cmd := newNounCommand("bench", "Measure what this version does, on a cluster of its own",
		newBenchFailoverCommand(a),
		newBenchSwitchoverCommand(a),
		newBenchLatencyCommand(a),
		newBenchRequestsCommand(a),
		newBenchLogsCommand(a),
		newBenchAgentsCommand(a),
		newBenchLinksCommand(a),
	)
	cmd.GroupID = groupNode
	return cmd
}

// benchOptions are the flags of all benchmarks.
type benchOptions struct {
	dir    string
	set    []string
	trials int
}

func (o *benchOptions) addFlags(fs *pflag.FlagSet, trials int) {
	fs.IntVar(&o.trials, "trials", trials, "`NUMBER` of trials")
	o.addClusterFlags(fs)
}

// addClusterFlags adds the flags of a benchmark's cluster, after its own ones.
func (o *benchOptions) addClusterFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.set, "set", nil, "`KEY=VALUE` of a setting of all nodes, for example cluster.silence_timeout=100ms (repeatable)")
	fs.StringVar(&o.dir, "dir", "", "new `DIR` for the cluster, which stays (default: one that is removed)")
	fs.SortFlags = false
}

func (o *benchOptions) check() error {
	if o.trials < 1 {
		return usageError("--trials: %d is less than 1", o.trials)
	}
	return nil
}

// benchPatience is how long a benchmark waits for anything before it gives up.
const benchPatience = 30 * time.Second

// bench is a cluster to measure: two controllers, a watch, two agents. It is
// not safe for concurrent use.
type bench struct {
	a      *app
	sup    *devSupervisor
	nodes  *devClient // asks single nodes
	api    *client    // asks the cluster
	ledger *ledger
}

// withBench runs f on a new cluster. network is nil for the loopback network.
func withBench(ctx context.Context, a *app, opts benchOptions, network *devNetwork, f func(context.Context, *bench) error) (err error) {
	dir, temporary := opts.dir, opts.dir == ""
	if temporary {
		if dir, err = os.MkdirTemp("", "uac-bench-"); err != nil {
			return err
		}
		defer func() {
			if err == nil || errors.Is(err, context.Canceled) {
				err = errors.Join(err, os.RemoveAll(dir))
				return
			}
			fmt.Fprintln(a.stderr, "logs and data are in", dir)
		}()
	}
	if dir, err = devDir(dir); err != nil {
		return err
	}
	if c, err := loadDevCluster(dir); err != nil || c != nil {
		return errors.Join(err, usageError("--dir: %s holds a cluster; a benchmark needs one of its own", dir))
	}
	a.progress("starting a cluster")
	defer a.progress("")
	b := &bench{a: a}
	// Writing cluster.json would disturb what is measured.
	b.sup, err = openDev(ctx, a, devOptions{
		dir: dir, set: opts.set, devShape: devShape{controllers: 2, watches: 1, agents: 2}, network: network, untold: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.sup.close()) }()
	if b.ledger, err = newLedger(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.ledger.close()) }()
	if err := b.sup.startAll(ctx, time.Minute); err != nil {
		return err
	}
	if b.nodes, err = newDevClient(b.sup.cluster); err != nil {
		return err
	}
	defer b.nodes.http.CloseIdleConnections()
	if b.api, err = b.newClient(); err != nil {
		return err
	}
	if err := f(ctx, b); err != nil {
		return err
	}
	b.sup.stop(ctx)
	return nil
}

// newClient returns a client of the cluster.
func (b *bench) newClient() (*client, error) {
	var servers []string
	for _, n := range b.controllers() {
		servers = append(servers, n.API)
	}
	user := &app{env: env{environ: []string{
		"UAC_SERVER=" + strings.Join(servers, ","), "UAC_TOKEN=" + b.nodes.token, "UAC_CACERT=" + b.sup.cluster.cacert(),
	}}}
	c, err := user.newClient()
	if err == nil {
		c.patience = benchPatience // a machine that is too busy spoils figures enough
	}
	return c, err
}

func (b *bench) controllers() []devNode {
	return slices.DeleteFunc(b.sup.nodes(), func(n devNode) bool { return n.Role != roles.RoleController })
}

// active returns the controller that is Active.
func (b *bench) active(ctx context.Context) (devNode, error) {
	for _, n := range b.controllers() {
		if b.nodes.mode(ctx, n) == "ACTIVE" {
			return n, nil
		}
	}
	return devNode{}, errors.New("no controller is Active")
}

// others returns the controllers without one.
func (b *bench) others(name string) []devNode {
	return slices.DeleteFunc(b.controllers(), func(n devNode) bool { return n.Name == name })
}

// leadsRaft reports whether a node leads raft.
func (b *bench) leadsRaft(ctx context.Context, n devNode) bool {
	_, text, err := b.nodes.get(ctx, n, "/metrics")
	return err == nil && strings.Contains(text, "\nuac_raft_leader 1\n")
}

// chain is a process of steps that follow each other at once.
func (b *bench) chain(name, agent string, steps int) roles.Process {
	p := roles.Process{Name: name}
	for i := range steps {
		step := roles.StepDef{Name: fmt.Sprintf("s%03d", i), On: roles.OnSuccess, Agent: roles.Selector{Name: agent}, Run: b.ledger.script()}
		if i > 0 {
			step.Needs = []string{p.Steps[i-1].Name}
		}
		p.Steps = append(p.Steps, step)
	}
	return p
}

func stepNames(p roles.Process) []string {
	var names []string
	for _, s := range p.Steps {
		names = append(names, s.Name)
	}
	return names
}

// apply stores processes.
func (b *bench) apply(ctx context.Context, ps ...roles.Process) error {
	body := struct {
		Processes []roles.Process `json:"processes"`
	}{ps}
	return b.api.send(ctx, call{method: http.MethodPost, path: pathOf("processes"), body: body}, nil)
}

// run asks for a run of a process and returns the request's id. The client asks
// the server first that it asked last.
func runProcess(ctx context.Context, c *client, process string) (string, error) {
	var req api.Request
	err := c.post(ctx, pathOf("requests"), api.RunSpec{Process: process}, &req)
	return req.ID, err
}

// askFirst makes a node the one that the cluster's client asks first.
func (b *bench) askFirst(n devNode) { b.api.next = slices.Index(b.api.servers, n.API) }

// final waits for the end of a request and reports whether it succeeded.
func (b *bench) final(ctx context.Context, id string) (bool, error) {
	for {
		var req api.Request
		if err := b.api.get(ctx, pathOf("requests", id), nil, &req); err != nil {
			return false, err
		}
		if req.Status.Final() || req.Status == roles.RequestInDoubt {
			return req.Status == roles.RequestSucceeded, nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return false, fmt.Errorf("request %s is %s: %w", id, req.Status, err)
		}
	}
}

// progress shows on a terminal what is being done, on one line.
func (a *app) progress(format string, args ...any) {
	if !a.stderr.terminal {
		return
	}
	fmt.Fprintf(a.stderr, "\r\x1b[K"+format, args...)
}

// silenceTimeout is the setting that decides how soon silence is noticed.
func (b *bench) silenceTimeout() string {
	return settingOf(b.sup.cluster.Set, "cluster.silence_timeout", config.Default().Cluster.SilenceTimeout.String())
}
