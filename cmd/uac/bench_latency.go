package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

func newBenchLatencyCommand(a *app) *cobra.Command {
	var opts benchOptions
	cmd := &cobra.Command{
		Use:   "latency",
		Short: "Measure how soon after its acceptance a request's first step runs",
		Long: `Measure, on an idle cluster of three members of its own, how long it takes from
the call that asks for a run, and from its answer, until the process of the
request's only step runs. A step may be under way before the answer arrives; that
counts as zero.`,
		Example: `  uac bench latency --trials 500`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runBenchLatency(cmd.Context(), a, opts) },
	}
	opts.addFlags(cmd.Flags(), 200)
	return cmd
}

// latencyResult is what uac bench latency prints. Durations are in milliseconds.
type latencyResult struct {
	Trials   int    `json:"trials"`
	Call     spread `json:"call_to_start_ms"`
	Accepted spread `json:"accepted_to_start_ms"`
	Answer   spread `json:"call_to_accepted_ms"`
	Steps    tally  `json:"steps"`
}

func runBenchLatency(ctx context.Context, a *app, opts benchOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	result := latencyResult{Trials: opts.trials}
	err := withBench(ctx, a, opts, nil, func(ctx context.Context, b *bench) error { return b.latency(ctx, opts.trials, &result) })
	if err != nil {
		return err
	}
	return printObject(a, result, func(w io.Writer, p paint) error {
		fmt.Fprintf(w, "a request of one step, idle cluster: %d trials\n\n", result.Trials)
		return printMeasures(w, p,
			measure{"call to answer", result.Answer},
			measure{"answer to the step's process", result.Accepted},
			measure{"call to the step's process", result.Call})
	})
}

func (b *bench) latency(ctx context.Context, trials int, result *latencyResult) error {
	single := b.chain(loadName, "a1", 1)
	if err := b.apply(ctx, single); err != nil {
		return err
	}
	var call, answer, accepted []time.Duration
	var ids []string
	const warmUp = 5 // connections are made, code is loaded
	for i := range warmUp + trials {
		b.a.progress("trial %d of %d", i+1-warmUp, trials)
		trialCtx, cancel := context.WithTimeoutCause(ctx, benchPatience, errors.New("this took too long"))
		called := monotonic()
		id, err := runProcess(trialCtx, b.api, loadName)
		answered := monotonic()
		var started []stepStart
		if err == nil {
			started, err = b.ledger.await(trialCtx, id, func(s []stepStart) bool { return len(s) > 0 })
		}
		if err == nil {
			_, err = b.final(trialCtx, id)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("trial %d: %w", i+1, err)
		}
		if i < warmUp {
			continue
		}
		ids = append(ids, id)
		at := started[0].at
		call = append(call, time.Duration(at-called))
		answer = append(answer, time.Duration(answered-called))
		accepted = append(accepted, time.Duration(max(0, at-answered)))
	}
	result.Call, result.Answer, result.Accepted = spreadOf(call), spreadOf(answer), spreadOf(accepted)
	counts, err := b.ledger.count()
	for _, id := range ids {
		result.Steps.add(true, stepNames(single), counts[id])
	}
	return err
}
