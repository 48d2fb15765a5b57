package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"uac/roles"
	"uac/roles/controller/api"
)

// benchRequestsOptions are the flags of uac bench requests.
type benchRequestsOptions struct {
	benchOptions // without trials
	requests     int
	inFlight     int
}

func newBenchRequestsCommand(a *app) *cobra.Command {
	var opts benchRequestsOptions
	cmd := &cobra.Command{
		Use:   "requests",
		Short: "Measure how many requests a second are completed",
		Long: `Measure, on a cluster of its own, how many requests of one step are completed in
a second when so many are always under way. Each is asked for, runs a process of
its own on an agent, and is followed until its end, all through the API of both
controllers, as uac process run --wait does.`,
		Example: `  uac bench requests --requests 20000
  uac bench requests --in-flight 256`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBenchRequests(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.IntVar(&opts.requests, "requests", 10_000, "`NUMBER` of requests")
	fs.IntVar(&opts.inFlight, "in-flight", 64, "`NUMBER` of requests that are under way at a time")
	opts.addClusterFlags(fs)
	return cmd
}

// requestsResult is what uac bench requests prints. Durations are in milliseconds.
type requestsResult struct {
	Requests  int     `json:"requests"`
	InFlight  int     `json:"in_flight"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"per_second"`
	// Answer is from the call to its answer, End to the news of the request's end.
	Answer spread `json:"call_to_accepted_ms"`
	End    spread `json:"call_to_end_ms"`
	Steps  tally  `json:"steps"`
	// CPU is the processor time that each node used, in seconds.
	CPU map[string]float64 `json:"cpu_seconds"`
}

func runBenchRequests(ctx context.Context, a *app, opts benchRequestsOptions) error {
	switch {
	case opts.requests < 1:
		return usageError("--requests: %d is less than 1", opts.requests)
	case opts.inFlight < 1 || opts.inFlight > 4096:
		return usageError("--in-flight: %d is not from 1 to 4096", opts.inFlight)
	}
	result := requestsResult{Requests: opts.requests, InFlight: opts.inFlight}
	err := withBench(ctx, a, opts.benchOptions, nil, func(ctx context.Context, b *bench) error {
		return b.requests(ctx, &result)
	})
	if err != nil {
		return err
	}
	return printObject(a, result, func(w io.Writer, p paint) error {
		fmt.Fprintf(w, "%d requests of one step, %d at a time, in %.1f s: %.0f a second\n\n",
			result.Requests, result.InFlight, result.Seconds, result.PerSecond)
		if err := printMeasures(w, p, measure{"call to answer", result.Answer}, measure{"call to the end", result.End}); err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%d steps: %d lost, %d doubled\nprocessor time:", result.Steps.Steps, result.Steps.Lost, result.Steps.Doubled)
		for _, n := range slices.Sorted(maps.Keys(result.CPU)) {
			fmt.Fprintf(w, "  %s %.1f s", n, result.CPU[n])
		}
		_, err := fmt.Fprintln(w)
		return err
	})
}

// requests keeps requests under way until so many have been completed.
func (b *bench) requests(ctx context.Context, result *requestsResult) error {
	// Both agents run half of them.
	var singles []roles.Process
	for _, agent := range []string{"a1", "a2"} {
		singles = append(singles, b.chain(loadName+"-"+agent, agent, 1))
	}
	if err := b.apply(ctx, singles...); err != nil {
		return err
	}
	before, err := b.usage()
	if err != nil {
		return err
	}
	var (
		next    atomic.Int64
		mu      sync.Mutex // guards the fields below
		answers []time.Duration
		ends    []time.Duration
		ids     = map[string]bool{} // succeeded
	)
	g, gctx := errgroup.WithContext(ctx)
	began := time.Now()
	for worker := range result.InFlight {
		g.Go(func() error {
			c, err := b.newClient()
			if err != nil {
				return err
			}
			defer c.http.CloseIdleConnections()
			c.next = worker % len(c.servers)
			for {
				n := int(next.Add(1))
				if n > result.Requests {
					return nil
				}
				called := time.Now()
				id, err := runProcess(gctx, c, singles[n%len(singles)].Name)
				answered := time.Since(called)
				if err != nil {
					return err
				}
				one, cancel := context.WithTimeoutCause(gctx, benchPatience, errors.New("this took too long"))
				req, err := follow(one, c, id, func(api.Request) bool { return true }, func(api.Request) {})
				cancel()
				if err != nil {
					return err
				}
				mu.Lock()
				answers, ends = append(answers, answered), append(ends, time.Since(called))
				ids[id] = req.Status == roles.RequestSucceeded
				if n%100 == 0 {
					b.a.progress("%d of %d requests", n, result.Requests)
				}
				mu.Unlock()
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	result.Seconds = time.Since(began).Seconds()
	result.PerSecond = float64(result.Requests) / result.Seconds
	result.Answer, result.End = spreadOf(answers), spreadOf(ends)
	after, err := b.usage()
	if err != nil {
		return err
	}
	result.CPU = map[string]float64{}
	for name, used := range after {
		result.CPU[name] = (used.cpu - before[name].cpu).Seconds()
	}
	counts, err := b.ledger.count()
	for id, succeeded := range ids {
		result.Steps.add(succeeded, stepNames(singles[0]), counts[id])
	}
	return err
}
