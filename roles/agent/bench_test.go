package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/roles/wire"
)

// BenchmarkStart measures one step after the other: from the moment at which the
// controller sends the start to the first thing that the command does, with TLS, the
// intent on disk, and real processes. The median and the 99th percentile are reported,
// and the fsyncs a step.
func BenchmarkStart(b *testing.B) {
	m := newCounts()
	s := newStage(b, func(_ *Config, d *Deps) { d.Metrics = m; d.Log = nil })
	fifo := filepath.Join(b.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		b.Fatal(err)
	}
	pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer pipe.Close()
	s.l.sync()
	before := m.of(MetricSyncs)
	var times []time.Duration
	buf := make([]byte, 1)
	for i := 0; b.Loop(); i++ {
		k := key{"R", fmt.Sprint(i), 1}
		begin := time.Now()
		s.l.start(startOf(k, 5, "printf x >"+fifo))
		if _, err := pipe.Read(buf); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(begin))
		s.l.report(k, wire.State_EXITED)
		s.l.ack(k, 5, false)
		s.l.kept = nil
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric((m.of(MetricSyncs)-before)/float64(len(times)), "fsyncs/step")
}

// BenchmarkSteps measures how many steps an agent completes with 64 in flight.
func BenchmarkSteps(b *testing.B) {
	m := newCounts()
	s := newStage(b, func(_ *Config, d *Deps) { d.Metrics = m; d.Log = nil })
	s.l.sync()
	before := m.of(MetricSyncs)
	const inFlight = 64
	next, done := 0, 0
	start := func() {
		s.l.start(startOf(key{"R", fmt.Sprint(next), 1}, 5, ":"))
		next++
	}
	begin, used := time.Now(), processorTime(b)
	for b.Loop() {
		for next-done < inFlight {
			start()
		}
		end := s.l.expect("an end", func(m *wire.AgentMessage) bool {
			return m.GetReport().GetAttempt().GetState() == wire.State_EXITED
		})
		s.l.kept = nil
		s.l.ack(key{"R", end.GetReport().GetAttempt().GetStep(), 1}, 5, false)
		done++
	}
	b.ReportMetric(float64(done)/time.Since(begin).Seconds(), "steps/s")
	b.ReportMetric(float64((processorTime(b)-used).Microseconds())/float64(done), "µs-cpu/step")
	b.ReportMetric((m.of(MetricSyncs)-before)/float64(done), "fsyncs/step")
}

// BenchmarkShells measures what is left of BenchmarkSteps without an agent: a shell that
// starts a shell and waits for it, 64 of them at a time.
func BenchmarkShells(b *testing.B) {
	begin, used := time.Now(), processorTime(b)
	var g errgroup.Group
	g.SetLimit(64)
	n := 0
	for b.Loop() {
		n++
		g.Go(func() error {
			return exec.Command(shell, "-c", "(exec "+shell+" -c :); exit $?").Run()
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "steps/s")
	b.ReportMetric(float64((processorTime(b)-used).Microseconds())/float64(n), "µs-cpu/step")
}

// processorTime is what this process and the children that have ended have used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		if err := syscall.Getrusage(who, &used); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return sum
}
