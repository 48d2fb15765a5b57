package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"uac/roles"
)

// benchLogsOptions are the flags of uac bench logs.
type benchLogsOptions struct {
	benchOptions // without trials
	lines        int
	mib          int
}

func newBenchLogsCommand(a *app) *cobra.Command {
	var opts benchLogsOptions
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Measure how soon and how fast the output of a step can be read",
		Long: `Measure, on a cluster of its own, how long a line takes from a step that writes one
now and then to a follower of its log (uac request logs -f), and how fast a step
that writes as much as it can is followed, with the most memory that each node took
meanwhile. What arrives is compared with what was written.`,
		Example: `  uac bench logs --mib 1024`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runBenchLogs(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.IntVar(&opts.lines, "lines", 200, "`NUMBER` of lines, 20 a second")
	fs.IntVar(&opts.mib, "mib", 256, "`SIZE` of the large output, in MiB")
	opts.addClusterFlags(fs)
	return cmd
}

// logsResult is what uac bench logs prints.
type logsResult struct {
	// Line is from the writing of a line to its arrival at a follower, in ms.
	Line spread `json:"line_ms"`
	MiB  int    `json:"mib"`
	// Seconds is from the call that asks for the run to the last byte.
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"mib_per_second"`
	// Memory is the most that each node took meanwhile, and before, in MiB.
	Memory map[string]float64 `json:"most_mib"`
	Before map[string]float64 `json:"before_mib"`
}

func runBenchLogs(ctx context.Context, a *app, opts benchLogsOptions) error {
	switch {
	case opts.lines < 1:
		return usageError("--lines: %d is less than 1", opts.lines)
	case opts.mib < 1:
		return usageError("--mib: %d is less than 1", opts.mib)
	}
	result := logsResult{MiB: opts.mib}
	err := withBench(ctx, a, opts.benchOptions, nil, func(ctx context.Context, b *bench) error {
		if err := b.logLines(ctx, opts.lines, &result); err != nil {
			return err
		}
		return b.logBulk(ctx, &result)
	})
	if err != nil {
		return err
	}
	return printObject(a, result, func(w io.Writer, p paint) error {
		if err := printMeasures(w, p, measure{"a line, until it is read", result.Line}); err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%d MiB in %.1f s: %.0f MiB a second; most memory (before):", result.MiB, result.Seconds, result.Rate)
		for _, n := range slices.Sorted(maps.Keys(result.Memory)) {
			fmt.Fprintf(w, "  %s %.0f (%.0f) MiB", n, result.Memory[n], result.Before[n])
		}
		_, err := fmt.Fprintln(w)
		return err
	})
}

// followed runs a process of one step and copies its output to w as it comes.
func (b *bench) followed(ctx context.Context, name, script string, w io.Writer) error {
	p := roles.Process{Name: name, Steps: []roles.StepDef{{
		Name: "write", On: roles.OnSuccess, Agent: roles.Selector{Name: "a1"}, Run: script,
	}}}
	if err := b.apply(ctx, p); err != nil {
		return err
	}
	id, err := runProcess(ctx, b.api, name)
	if err != nil {
		return err
	}
	opts := logsOptions{id: id, step: "write", follow: true}
	return newTails(b.api, opts, &logWriter{w: stream{Writer: w}}, b.a.stderr).follow(ctx)
}

// logLines measures how long lines take. Their times are those of one wall clock:
// the step and this process are on one machine.
func (b *bench) logLines(ctx context.Context, lines int, result *logsResult) error {
	b.a.progress("following lines")
	var took []time.Duration
	var rest []byte
	err := b.followed(ctx, "bench-lines", fmt.Sprintf("i=0\nwhile [ $i -lt %d ]; do date +%%s%%N; sleep 0.05; i=$((i+1)); done\n", lines),
		writerFunc(func(p []byte) (int, error) {
			now := time.Now().UnixNano()
			rest = append(rest, p...)
			for {
				line, after, whole := bytes.Cut(rest, []byte("\n"))
				if !whole {
					return len(p), nil
				}
				at, err := strconv.ParseInt(string(line), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("a line that was not written so: %w", err)
				}
				took, rest = append(took, time.Duration(now-at)), after
			}
		}))
	if err != nil {
		return err
	}
	if len(took) != lines {
		return fmt.Errorf("%d lines were written, %d arrived", lines, len(took))
	}
	result.Line = spreadOf(took)
	return nil
}

// logBulk measures how fast much output arrives, and what that takes.
func (b *bench) logBulk(ctx context.Context, result *logsResult) error {
	before, err := b.usage()
	if err != nil {
		return err
	}
	result.Memory, result.Before = map[string]float64{}, map[string]float64{}
	for name, u := range before {
		result.Before[name] = mebibytes(u.resident)
	}
	// Numbered lines of 16 bytes: what is lost or doubled shows.
	size := int64(result.MiB) << 20
	script := fmt.Sprintf("seq -f %%015.0f 0 %d\n", size/16-1)
	var got, wrong int64
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	g.Go(func() error {
		defer close(done)
		var line []byte
		return b.followed(gctx, "bench-bulk", script, writerFunc(func(p []byte) (int, error) {
			line = append(line, p...)
			for ; len(line) >= 16; line = line[16:] {
				if n, err := strconv.ParseInt(string(line[:15]), 10, 64); err != nil || n != got/16 {
					wrong++
				}
				got += 16
			}
			line = slices.Clone(line)
			b.a.progress("%d of %d MiB", got>>20, result.MiB)
			return len(p), nil
		}))
	})
	g.Go(func() error {
		for {
			used, err := b.usage()
			if err != nil {
				return err
			}
			for name, u := range used {
				result.Memory[name] = max(result.Memory[name], mebibytes(u.resident))
			}
			select {
			case <-done:
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	result.Seconds = time.Since(began).Seconds()
	result.Rate = float64(result.MiB) / result.Seconds
	if got != size || wrong > 0 {
		return fmt.Errorf("%d bytes were written, %d arrived, %d lines of them wrong", size, got, wrong)
	}
	return nil
}

func mebibytes(n int64) float64 { return float64(n>>10) / 1024 }

// writerFunc is a function as an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
