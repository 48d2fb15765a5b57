package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

func newBenchSwitchoverCommand(a *app) *cobra.Command {
	var opts benchOptions
	cmd := &cobra.Command{
		Use:   "switchover",
		Short: "Measure the gap of a planned change of the Active",
		Long: `Measure, on a cluster of its own, what a switchover interrupts, to and fro:

  order to first write   from the order until the new Active has committed
                         something as such
  no ACTIVE answer       from the last answer ACTIVE of the old Active to the
                         first of the new one, asked every 2 ms
  gap between writes     the longest time between two acknowledged writes of a
                         client that writes without a break`,
		Example: `  uac bench switchover --trials 100`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runBenchSwitchover(cmd.Context(), a, opts) },
	}
	opts.addFlags(cmd.Flags(), 50)
	return cmd
}

// switchoverResult is what uac bench switchover prints. Durations are in
// milliseconds.
type switchoverResult struct {
	Trials     int    `json:"trials"`
	FirstWrite spread `json:"first_write_ms"`
	NoActive   spread `json:"no_active_ms"`
	WriteGap   spread `json:"write_gap_ms"`
	TwoActive  int    `json:"two_active"`
	Requests   tally  `json:"requests"`
}

func runBenchSwitchover(ctx context.Context, a *app, opts benchOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	result := switchoverResult{Trials: opts.trials}
	err := withBench(ctx, a, opts, nil, func(ctx context.Context, b *bench) error { return b.switchover(ctx, opts.trials, &result) })
	if err != nil {
		return err
	}
	err = printObject(a, result, func(w io.Writer, p paint) error {
		fmt.Fprintf(w, "switchover: %d trials\n\n", result.Trials)
		err := printMeasures(w, p,
			measure{"order to first write", result.FirstWrite},
			measure{"no ACTIVE answer", result.NoActive},
			measure{"gap between writes", result.WriteGap})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "\n%d requests: %d failed, %d steps lost, %d doubled; two answered ACTIVE in %d trials\n",
			result.Requests.Requests, result.Requests.Failed, result.Requests.Lost, result.Requests.Doubled, result.TwoActive)
		return err
	})
	if err == nil && (!result.Requests.clean() || result.TwoActive > 0) {
		err = fail(exitFailed, "a promise was broken")
	}
	return err
}

// writer writes without a break: it suspends and resumes an agent that has
// nothing to do, and leaves it resumed.
type writer struct {
	stop func()
	done chan struct{}

	mu   sync.Mutex // guards the fields below
	acks []int64    // when writes were acknowledged
	err  error
}

func (b *bench) startWriter(ctx context.Context, agent string) (*writer, error) {
	c, err := b.newClient()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for i := 0; ctx.Err() == nil || i%2 == 1; i++ {
			verb := []string{"suspend", "resume"}[i%2]
			err := c.post(context.WithoutCancel(ctx), pathOf("agents", agent, verb), nil, nil)
			w.mu.Lock()
			w.acks = append(w.acks, monotonic())
			w.err = err
			w.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return w, nil
}

// close ends the writer and returns what it met.
func (w *writer) close() error {
	w.stop()
	<-w.done
	if w.err != nil {
		return fmt.Errorf("write: %w", w.err)
	}
	return nil
}

// gap returns the longest time between two writes of which at least one was
// acknowledged in the period.
func (w *writer) gap(from, to int64) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := time.Duration(0)
	for i := 1; i < len(w.acks); i++ {
		if w.acks[i] >= from && w.acks[i-1] <= to {
			longest = max(longest, time.Duration(w.acks[i]-w.acks[i-1]))
		}
	}
	return longest
}

// switchoverLoad is how many requests a second run beside, to see that none is
// lost.
const switchoverLoad = 20

func (b *bench) switchover(ctx context.Context, trials int, result *switchoverResult) error {
	single := b.chain(loadName, "a1", 1)
	if err := b.apply(ctx, single); err != nil {
		return err
	}
	w, err := b.startWriter(ctx, "a2")
	if err != nil {
		return err
	}
	load := b.startLoad(ctx, switchoverLoad)
	var writes, silences, gaps []time.Duration
	for i := range trials {
		b.a.progress("trial %d of %d", i+1, trials)
		write, silence, gap, err := b.switchoverTrial(ctx, w)
		if err != nil {
			return errors.Join(fmt.Errorf("trial %d: %w", i+1, err), w.close(), load.stop())
		}
		writes, gaps = append(writes, write), append(gaps, gap)
		silences = append(silences, max(0, silence))
		if silence < 0 {
			result.TwoActive++
		}
	}
	if err := errors.Join(w.close(), load.stop()); err != nil {
		return err
	}
	result.FirstWrite, result.NoActive, result.WriteGap = spreadOf(writes), spreadOf(silences), spreadOf(gaps)
	result.Requests, err = load.settle(ctx, single)
	return err
}

// switchTo makes a controller Active.
func (b *bench) switchTo(ctx context.Context, name string) error {
	return b.api.send(ctx, call{
		method: http.MethodPost, path: pathOf("nodes", "switchover"), body: map[string]string{"to": name}, once: true,
	}, nil)
}

// switchoverTrial makes the other controller Active.
func (b *bench) switchoverTrial(ctx context.Context, w *writer) (write, silence, gap time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, benchPatience, errors.New("this took too long"))
	defer cancel()
	old, err := b.active(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	next := b.others(old.Name)[0]
	from, to := b.watch(ctx, old, probeEvery), b.watch(ctx, next, probeEvery)
	defer from.close()
	defer to.close()
	for from.activeSince() == 0 {
		if err := pause(ctx, probeEvery); err != nil {
			return 0, 0, 0, err
		}
	}
	ordered := monotonic()
	if err := b.switchTo(ctx, next.Name); err != nil {
		return 0, 0, 0, err
	}
	_, wrote, err := firstWrite(ctx, []devNode{next}, ordered)
	if err != nil {
		return 0, 0, 0, err
	}
	began, err := activeSince(ctx, []*watcher{to})
	if err != nil {
		return 0, 0, 0, err
	}
	// The next write after all this ends the gap.
	if err := pause(ctx, 100*time.Millisecond); err != nil {
		return 0, 0, 0, err
	}
	return time.Duration(wrote - ordered), time.Duration(began - from.activeUntil()), w.gap(ordered, began), nil
}
