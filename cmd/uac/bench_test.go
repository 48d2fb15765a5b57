package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	upTo := func(n int) (d []time.Duration) {
		for i := n; i > 0; i-- {
			d = append(d, time.Duration(i)*time.Millisecond)
		}
		return d
	}
	for _, tt := range []struct {
		samples []time.Duration
		want    spread
	}{
		{nil, spread{}},
		{upTo(1), spread{N: 1, P50: 1, P99: 1, Max: 1}},
		{upTo(2), spread{N: 2, P50: 1, P99: 2, Max: 2}},
		{upTo(99), spread{N: 99, P50: 50, P99: 99, Max: 99}},
		{upTo(200), spread{N: 200, P50: 100, P99: 198, Max: 200}},
		{[]time.Duration{1234567}, spread{N: 1, P50: 1.235, P99: 1.235, Max: 1.235}},
	} {
		if diff := cmp.Diff(tt.want, spreadOf(tt.samples)); diff != "" {
			t.Errorf("%d samples (-want +got):\n%s", len(tt.samples), diff)
		}
	}
}

// What a shell writes is what is counted, and the pipe tells of it.
func TestLedger(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := newLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := monotonic()
	step := func(request, name string) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", l.script())
		cmd.Env = []string{"UAC_REQUEST=" + request, "UAC_STEP=" + name, "UAC_ATTEMPT=1"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if counts, err := l.count(); err != nil || len(counts) != 0 {
		t.Errorf("an empty ledger: %v, %v", counts, err)
	}
	step("r1", "a")
	step("r1", "b")
	step("r2", "a")
	step("r1", "b")
	starts, err := l.await(t.Context(), "r1", func(s []stepStart) bool { return len(s) == 3 })
	if err != nil {
		t.Fatal(err)
	}
	last := before
	for i, want := range []string{"a", "b", "b"} {
		if starts[i].step != want || starts[i].at < last || starts[i].at > monotonic() {
			t.Errorf("start %d: %+v, after %d", i, starts[i], last)
		}
		last = starts[i].at
	}
	counts, err := l.count()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]map[string]int{"r1": {"a": 1, "b": 2}, "r2": {"a": 1}}, counts); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}

	var sum tally
	sum.add(true, []string{"a", "b", "c"}, counts["r1"])
	sum.add(false, []string{"a"}, counts["r2"])
	if diff := cmp.Diff(tally{Requests: 2, Failed: 1, Steps: 4, Lost: 1, Doubled: 1}, sum); diff != "" {
		t.Errorf("tally (-want +got):\n%s", diff)
	}
	var clean tally
	clean.add(true, []string{"a"}, counts["r2"])
	if sum.clean() || !clean.clean() {
		t.Error("clean is not what it says")
	}
}

// The first write after the blow counts, of whole lines only.
func TestFirstWrite(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := `{"msg":"starting"}
{"msg":"term begun","term":3,"began_mono_ns":100,"first_write_mono_ns":110}
panic: not JSON
{"msg":"term begun","term":9,"began_mono_ns":200,"first_write_mono_ns":210}
{"msg":"term begun","term":12,"began_mono_ns":300,"first_write_mono_ns":310}
{"msg":"term begun","term":15,"began_mono_ns":400,"first_wri`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for after, want := range map[int64]int64{0: 110, 110: 210, 205: 210, 310: 0} {
		if at, err := firstWriteOf(log, after); err != nil || at != want {
			t.Errorf("after %d: %d, %v; want %d", after, at, err, want)
		}
	}
	if _, err := firstWriteOf(log+"x", 0); err == nil {
		t.Error("a missing log is no error")
	}
}

func TestBenchUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, devClusterFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"bench":                               "which verb",
		"bench failover --trials 0":           "--trials: 0",
		"bench failover --load -1":            "--load: -1",
		"bench failover --fault nap":          `"nap" is not one of kill, stop, cut`,
		"bench failover --raft me":            `"me" is not one of both, active, other`,
		"bench failover --set foo":            "KEY=VALUE",
		"bench latency --dir " + dir:          "needs one of its own",
		"bench latency --set cluster.leas=6s": "cluster.lease",
		"bench requests --requests 0":         "--requests: 0",
		"bench requests --in-flight 5000":     "--in-flight: 5000",
		"bench agents --agents 0":             "--agents: 0",
		"bench agents --idle 1ms":             "--idle: 1ms",
		"bench agents --agents 100000000":     "ulimit -Hn",
		"bench logs --mib 0":                  "--mib: 0",
		"bench logs --lines 0":                "--lines: 0",
		"bench switchover --trials=x":         `--trials: "x" is not a whole number`,
		"bench switchover --dir /nonexist/x":  "/nonexist",
	} {
		t.Run(args, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			if r := execute(t, nil, nil, strings.Fields(args)...); r.code != exitUsage || !strings.Contains(r.stderr, want) {
				t.Errorf("exit code %d; says %q, want %q in it", r.code, r.stderr, want)
			}
		})
	}
}

// Each benchmark measures something, breaks no promise, and leaves nothing. They
// share a cluster here.
func TestBench(t *testing.T) {
	t.Parallel()
	measured := func(name string, s spread, n int) {
		t.Helper()
		if s.N != n || s.P50 <= 0 || s.P50 > s.P99 || s.P99 > s.Max {
			t.Errorf("%s: %+v", name, s)
		}
	}
	var stderr bytes.Buffer
	a := &app{env: env{environ: []string{asProgram, "PATH=" + os.Getenv("PATH")}, stderr: stream{Writer: &stderr}}}
	dir := filepath.Join(t.TempDir(), "bench")
	opts := benchOptions{dir: dir, set: []string{"cluster.silence_timeout=2s"}} // the machine may be busy
	var nodes []int
	err := withBench(t.Context(), a, opts, nil, func(ctx context.Context, b *bench) error {
		var start latencyResult
		if err := b.latency(ctx, 3, &start); err != nil {
			return err
		}
		measured("call to start", start.Call, 3)
		measured("call to answer", start.Answer, 3)
		if start.Steps.Requests != 3 || !start.Steps.clean() {
			t.Errorf("start: %+v", start.Steps)
		}
		var over switchoverResult
		if err := b.switchover(ctx, 1, &over); err != nil {
			return err
		}
		measured("switchover: first write", over.FirstWrite, 1)
		measured("switchover: gap", over.WriteGap, 1)
		if over.TwoActive != 0 || over.Requests.Requests == 0 || !over.Requests.clean() {
			t.Errorf("switchover: %+v", over)
		}
		for _, f := range faults(nil)[:2] {
			var r failoverResult
			if err := b.failover(ctx, f, failoverOptions{benchOptions: benchOptions{trials: 1}, load: 10, raft: raftBoth}, &r); err != nil {
				return err
			}
			measured(f.name+": first write", r.FirstWrite, 1)
			measured(f.name+": next step", r.NextStep, 1)
			measured(f.name+": probe", r.Probe, 1)
			if r.Chains.Requests != 1 || r.Chains.Steps != chainSteps || r.Beside.Requests == 0 || r.broken() {
				t.Errorf("%s: %+v", f.name, r)
			}
			if s := r.Samples[0]; s.Victim == s.Successor || !s.LedRaft || r.NextStep.Max < r.FirstWrite.Max {
				t.Errorf("%s: %+v", f.name, r)
			}
		}
		requests := requestsResult{Requests: 20, InFlight: 4}
		if err := b.requests(ctx, &requests); err != nil {
			return err
		}
		measured("requests: answer", requests.Answer, 20)
		measured("requests: end", requests.End, 20)
		if requests.Steps.Requests != 20 || !requests.Steps.clean() || requests.PerSecond <= 0 || requests.CPU["c1"] <= 0 {
			t.Errorf("requests: %+v", requests)
		}
		logs := logsResult{MiB: 1}
		if err := b.logLines(ctx, 3, &logs); err != nil {
			return err
		}
		measured("logs: line", logs.Line, 3)
		if err := b.logBulk(ctx, &logs); err != nil {
			return err
		}
		if logs.Rate <= 0 || logs.Memory["a1"] <= 0 || logs.Memory["a1"] < logs.Before["a1"] {
			t.Errorf("logs: %+v", logs)
		}
		nodes = pids(t, b.sup.snapshot())
		many := agentsResult{Agents: 5}
		if err := b.agents(ctx, 100*time.Millisecond, &many); err != nil {
			return err
		}
		if many.Connect <= 0 || many.FirstWrite <= 0 || many.Served < many.FirstWrite || len(many.Memory) != 2 {
			t.Errorf("agents: %+v", many)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v\n%s", err, &stderr)
	}
	awaitGone(t, nodes...)
}

func TestFailoverResult(t *testing.T) {
	r := failoverResult{
		SilenceTimeout: "1s", Trials: 2, Closed: spread{2, 3, 4.5, 4.5},
		FirstWrite: spread{2, 7.1, 9.25, 9.25}, FirstWriteLed: spread{1, 9.25, 9.25, 9.25}, FirstWriteNot: spread{1, 7.1, 7.1, 7.1}, NextStep: spread{2, 20, 30, 30}, Probe: spread{2, 6, 8, 8},
		Chains: tally{Requests: 2, Steps: 80},
	}
	var out strings.Builder
	if err := r.print(&out, paint{}, "kill -9 of the Active"); err != nil {
		t.Fatal(err)
	}
	want := `kill -9 of the Active: 2 trials, silence_timeout 1s, 0 requests a second beside

                             p50         p99         max
connections closed        3.0 ms      4.5 ms      4.5 ms
first fenced write        7.1 ms      9.2 ms      9.2 ms
  if it led raft          9.2 ms      9.2 ms      9.2 ms
  if another did          7.1 ms      7.1 ms      7.1 ms
next step started        20.0 ms     30.0 ms     30.0 ms
probe answers ACTIVE      6.0 ms      8.0 ms      8.0 ms

the Active also led raft in 1 of 2 trials; two answered ACTIVE in 0
struck requests: 2 with 80 steps: all ran once
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.broken() {
		t.Error("a clean result counts as broken")
	}
	for name, spoil := range map[string]func(*failoverResult){
		"two Active": func(r *failoverResult) { r.TwoActive = 1 },
		"lost":       func(r *failoverResult) { r.Chains.Lost = 1 },
		"doubled":    func(r *failoverResult) { r.Beside.Doubled = 1 },
		"failed":     func(r *failoverResult) { r.Beside.Failed = 1 },
	} {
		bad := r
		if spoil(&bad); !bad.broken() {
			t.Errorf("%s does not count as broken", name)
		}
	}
}
