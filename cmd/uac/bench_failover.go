package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// failoverOptions are the flags of uac bench failover.
type failoverOptions struct {
	benchOptions
	fault string
	load  int
	raft  string
}

// Who leads raft when the Active is struck.
const (
	raftBoth   = "both" // by turns
	raftActive = "active"
	raftOther  = "other"
)

func newBenchFailoverCommand(a *app) *cobra.Command {
	var opts failoverOptions
	var names []string
	for _, f := range faults(nil) {
		names = append(names, f.name)
	}
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Measure how long a cluster is without its Active",
		Long: `Measure fail-over on a cluster of its own, on this machine: in each trial a
request with a chain of short steps runs under the Active when that is struck.
Measured from the blow on:

  first fenced write     the new Active has committed something as such
  next step started      the request goes on: a process was started after that
  probe answers ACTIVE   a load balancer can know, if it asks every 5 ms

After kill -9 it is shown, too, when the kernel has closed the connections of the
process. Members know of its death sooner, from the end of its lifeline.

Every step appends a line to a ledger when it starts; lost and doubled steps are
counted from that. Exit code 1 if there are any, or if the old Active ever
answered ACTIVE when another one was.

  --fault kill   kill -9
  --fault stop   SIGSTOP; SIGCONT when another is Active
  --fault cut    all packets to and from it vanish (needs root, ip and nft)

If the Active also leads raft, a new leader must be elected first. By default it
does in every other trial; --raft active or other makes it always or never so.`,
		Example: `  uac bench failover
  uac bench failover --trials 200 --load 50 -o json
  uac bench failover --fault stop --set cluster.silence_timeout=100ms`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBenchFailover(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.StringVar(&opts.fault, "fault", "kill", "`FAULT` that strikes the Active: "+strings.Join(names, ", "))
	fs.IntVar(&opts.load, "load", 0, "`NUMBER` of requests a second that run beside")
	fs.StringVar(&opts.raft, "raft", raftBoth, "`WHO` leads raft: active, other, or both by turns")
	opts.addFlags(fs, 20)
	return cmd
}

// failoverResult is what uac bench failover prints.
type failoverResult struct {
	Fault          string `json:"fault"`
	SilenceTimeout string `json:"silence_timeout"`
	Trials         int    `json:"trials"`
	Load           int    `json:"load"`
	// Durations are in milliseconds, from the blow on. Closed is when the kernel closed
	// the connections of a process that was killed.
	Closed     spread `json:"closed_ms"`
	FirstWrite spread `json:"first_write_ms"`
	NextStep   spread `json:"next_step_ms"`
	Probe      spread `json:"probe_ms"`
	// FirstWriteLed and FirstWriteNot are the first writes of the trials in which
	// the Active also led raft, and of the others.
	FirstWriteLed spread `json:"first_write_led_raft_ms"`
	FirstWriteNot spread `json:"first_write_not_led_raft_ms"`
	// TwoActive counts the trials in which the old Active answered ACTIVE when
	// the new one did already.
	TwoActive int             `json:"two_active"`
	Chains    tally           `json:"chains"`
	Beside    tally           `json:"beside"`
	Samples   []failoverTrial `json:"samples"`
}

// failoverTrial is one trial.
type failoverTrial struct {
	Victim     string  `json:"victim"`
	Successor  string  `json:"successor"`
	LedRaft    bool    `json:"led_raft"`
	Closed     float64 `json:"closed_ms,omitempty"`
	FirstWrite float64 `json:"first_write_ms"`
	NextStep   float64 `json:"next_step_ms"`
	Probe      float64 `json:"probe_ms"`
	Request    string  `json:"request"`
	TwoActive  bool    `json:"two_active"`

	struck, closed, firstWrite, nextStep, probe int64
	succeeded                                   bool
}

const (
	chainName  = "bench-chain"
	chainSteps = 40
)

func runBenchFailover(ctx context.Context, a *app, opts failoverOptions) (err error) {
	if err := opts.check(); err != nil {
		return err
	}
	i := slices.IndexFunc(faults(nil), func(f fault) bool { return f.name == opts.fault })
	if i < 0 {
		return usageError("--fault: %q is not one of kill, stop, cut", opts.fault)
	}
	if !slices.Contains([]string{raftBoth, raftActive, raftOther}, opts.raft) {
		return usageError("--raft: %q is not one of both, active, other", opts.raft)
	}
	if opts.load < 0 {
		return usageError("--load: %d is negative", opts.load)
	}
	var network *devNetwork
	if opts.fault == "cut" {
		if network, err = newDevNetwork(ctx, "c1", "c2", "w1"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, network.close(context.WithoutCancel(ctx))) }()
	}
	f := faults(network)[i]
	result := failoverResult{Fault: f.name, Trials: opts.trials, Load: opts.load}
	err = withBench(ctx, a, opts.benchOptions, network, func(ctx context.Context, b *bench) error {
		result.SilenceTimeout = b.silenceTimeout()
		return b.failover(ctx, f, opts, &result)
	})
	if err != nil {
		return err
	}
	if err := printObject(a, result, func(w io.Writer, p paint) error { return result.print(w, p, f.what) }); err != nil {
		return err
	}
	if result.broken() {
		return fail(exitFailed, "a promise was broken")
	}
	return nil
}

// broken reports whether something happened that never must.
func (r *failoverResult) broken() bool {
	return !r.Chains.clean() || !r.Beside.clean() || r.TwoActive > 0
}

func (r *failoverResult) print(w io.Writer, p paint, what string) error {
	fmt.Fprintf(w, "%s: %d trials, silence_timeout %s, %d requests a second beside\n\n", what, r.Trials, r.SilenceTimeout, r.Load)
	measures := []measure{
		{"first fenced write", r.FirstWrite},
		{"  if it led raft", r.FirstWriteLed},
		{"  if another did", r.FirstWriteNot},
		{"next step started", r.NextStep},
		{"probe answers ACTIVE", r.Probe},
	}
	if r.Closed.N > 0 {
		measures = slices.Insert(measures, 0, measure{"connections closed", r.Closed})
	}
	err := printMeasures(w, p, measures...)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nthe Active also led raft in %d of %d trials; two answered ACTIVE in %d\n", r.FirstWriteLed.N, r.Trials, r.TwoActive)
	for _, t := range []struct {
		what string
		tally
	}{{"struck requests", r.Chains}, {"requests beside", r.Beside}} {
		if t.Requests == 0 {
			continue
		}
		verdict := p.apply(green, "all ran once")
		if !t.clean() {
			verdict = p.apply(red, fmt.Sprintf("%d requests failed, %d steps lost, %d doubled", t.Failed, t.Lost, t.Doubled))
		}
		if _, err := fmt.Fprintf(w, "%s: %d with %d steps: %s\n", t.what, t.Requests, t.tally.Steps, verdict); err != nil {
			return err
		}
	}
	return nil
}

// failover makes all trials.
func (b *bench) failover(ctx context.Context, f fault, opts failoverOptions, result *failoverResult) error {
	chain, single := b.chain(chainName, "a1", chainSteps), b.chain(loadName, "a2", 1)
	if err := b.apply(ctx, chain, single); err != nil {
		return err
	}
	load := b.startLoad(ctx, opts.load)
	var trials []failoverTrial
	for i := range opts.trials {
		b.a.progress("trial %d of %d", i+1, opts.trials)
		lead := opts.raft == raftActive || opts.raft == raftBoth && i%2 == 0
		t, err := b.failoverTrial(ctx, f, lead)
		if err != nil {
			return errors.Join(fmt.Errorf("trial %d: %w", i+1, err), load.stop())
		}
		trials = append(trials, t)
	}
	if err := load.stop(); err != nil {
		return err
	}
	b.a.progress("counting")
	counts, err := b.ledger.count()
	if err != nil {
		return err
	}
	var closed, writes, led, not, steps, probes []time.Duration
	for i := range trials {
		t := &trials[i]
		since := func(at int64) time.Duration { return time.Duration(at - t.struck) }
		writes, steps, probes = append(writes, since(t.firstWrite)), append(steps, since(t.nextStep)), append(probes, since(t.probe))
		t.FirstWrite, t.NextStep, t.Probe = millis(since(t.firstWrite)), millis(since(t.nextStep)), millis(since(t.probe))
		if t.closed != 0 {
			closed, t.Closed = append(closed, since(t.closed)), millis(since(t.closed))
		}
		result.Chains.add(t.succeeded, stepNames(chain), counts[t.Request])
		if t.LedRaft {
			led = append(led, since(t.firstWrite))
		} else {
			not = append(not, since(t.firstWrite))
		}
		if t.TwoActive {
			result.TwoActive++
		}
	}
	result.FirstWrite, result.NextStep, result.Probe = spreadOf(writes), spreadOf(steps), spreadOf(probes)
	result.Closed = spreadOf(closed)
	result.FirstWriteLed, result.FirstWriteNot = spreadOf(led), spreadOf(not)
	result.Samples = trials
	result.Beside, err = load.settle(ctx, single)
	return err
}

// placeRaft sees to it that the Active leads raft, or does not. Leadership itself
// cannot be moved from outside, but the Active can, and a leader can be killed.
func (b *bench) placeRaft(ctx context.Context, lead bool) error {
	for {
		leader, active := "", ""
		for _, n := range b.controllers() {
			if b.leadsRaft(ctx, n) {
				leader = n.Name
			}
			if b.nodes.mode(ctx, n) == "ACTIVE" {
				active = n.Name
			}
		}
		switch {
		case active == "":
		case (leader == active) == lead:
			return nil
		case leader != "":
			to := b.others(active)[0].Name
			if err := b.switchTo(ctx, to); err != nil {
				return err
			}
		default: // the watch leads
			if _, err := b.sup.kill("w1"); err != nil {
				return err
			}
			if err := b.sup.start(ctx, "w1"); err != nil {
				return err
			}
		}
		if err := b.sup.awaitReady(ctx, benchPatience); err != nil {
			return err
		}
	}
}

// failoverTrial strikes the Active once, in the middle of a request. lead says
// whether it then leads raft.
func (b *bench) failoverTrial(ctx context.Context, f fault, lead bool) (t failoverTrial, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, benchPatience, errors.New("this took too long"))
	defer cancel()
	if err := b.placeRaft(ctx, lead); err != nil {
		return t, fmt.Errorf("place the leader of raft: %w", err)
	}
	victim, err := b.active(ctx)
	if err != nil {
		return t, err
	}
	t.Victim, t.LedRaft = victim.Name, b.leadsRaft(ctx, victim)
	survivors := b.others(victim.Name)
	var watchers []*watcher
	for _, n := range survivors {
		w := b.watch(ctx, n, survivorEvery)
		defer w.close()
		watchers = append(watchers, w)
	}
	// The old one is asked when it is struck. The connection is made before.
	old := b.newWatcher(victim)
	defer old.close()
	old.ask(ctx)

	b.askFirst(victim) // who accepts a request owns it
	if t.Request, err = runProcess(ctx, b.api, chainName); err != nil {
		return t, err
	}
	// Anywhere in a step, and between steps.
	some := 5 + rand.N(10)
	if _, err := b.ledger.await(ctx, t.Request, func(s []stepStart) bool { return len(s) >= some }); err != nil {
		return t, fmt.Errorf("the request does not run: %w", err)
	}
	if err := pause(ctx, rand.N(15*time.Millisecond)); err != nil {
		return t, err
	}

	var closed <-chan int64
	if !f.survives {
		if closed, err = whenClosed(ctx, victim); err != nil {
			return t, err
		}
	}
	if t.struck, err = f.strike(ctx, b, victim); err != nil {
		return t, err
	}
	if closed != nil {
		t.closed = <-closed
	}
	healed := false
	heal := func() error {
		healed = true
		return f.heal(context.WithoutCancel(ctx), b, victim)
	}
	defer func() {
		if !healed {
			err = errors.Join(err, heal())
		}
	}()
	if f.survives && !f.frozen {
		old.start(ctx, probeEvery)
	}
	if t.Successor, t.firstWrite, err = firstWrite(ctx, survivors, t.struck); err != nil {
		return t, err
	}
	// A step that the old Active sent in its last moment may start late. One that
	// starts after the first fenced write comes from the new Active, almost
	// certainly; it is never too early a one.
	started, err := b.ledger.await(ctx, t.Request, func(s []stepStart) bool { return s[len(s)-1].at > t.firstWrite })
	if err != nil {
		return t, fmt.Errorf("request %s does not go on: %w", t.Request, err)
	}
	t.nextStep = started[slices.IndexFunc(started, func(s stepStart) bool { return s.at > t.firstWrite })].at
	if t.probe, err = activeSince(ctx, watchers); err != nil {
		return t, err
	}
	if f.frozen {
		// The first question waits for it when it wakes.
		old.start(ctx, probeEvery)
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return t, err
		}
	}
	if err := heal(); err != nil {
		return t, err
	}
	b.askFirst(survivors[0])
	if t.succeeded, err = b.final(ctx, t.Request); err != nil {
		return t, err
	}
	if err := b.sup.awaitReady(ctx, benchPatience); err != nil {
		return t, fmt.Errorf("after the fault: %w", err)
	}
	// ACTIVE to a question that was asked after another had answered so is wrong.
	t.TwoActive = f.survives && old.activeUntil() > t.probe
	return t, nil
}

// activeSince waits until one of the nodes answers ACTIVE and returns when.
func activeSince(ctx context.Context, watchers []*watcher) (int64, error) {
	for {
		for _, w := range watchers {
			if at := w.activeSince(); at != 0 {
				return at, nil
			}
		}
		if err := pause(ctx, probeEvery); err != nil {
			return 0, fmt.Errorf("no probe answers ACTIVE: %w", err)
		}
	}
}
