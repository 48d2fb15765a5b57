package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// finish ends all steps of the n-th request.
func finish(b *apitest.Backend, n int, status roles.RequestStatus) {
	b.Update(func(s *apitest.State) {
		r := &s.Requests[n-1]
		r.Status = status
		for i := range r.Steps {
			r.Steps[i].Status = roles.StepSucceeded
			if status == roles.RequestInDoubt {
				r.Steps[i].Status = roles.StepInDoubt
			}
		}
	})
}

// whenWatched calls f once when somebody watches a request.
type whenWatched struct {
	*apitest.Backend
	once *atomic.Bool
	f    func()
}

func (b whenWatched) WatchRequest(ctx context.Context, id string, f func(api.Request) error) error {
	return b.Backend.WatchRequest(ctx, id, func(r api.Request) error {
		err := f(r)
		if b.once.CompareAndSwap(false, true) {
			b.f()
		}
		return err
	})
}

// watchedCluster is a cluster that calls f when somebody watches a request.
func watchedCluster(t *testing.T, f func(b *apitest.Backend)) *cluster {
	t.Helper()
	b := apitest.New(sampleState())
	s := serveAPI(t, whenWatched{b, new(atomic.Bool), func() { f(b) }})
	return &cluster{b, s, clientVars(t, s)}
}

// The exit code of a wait is the outcome of the request, and what is printed is
// its end.
func TestWait(t *testing.T) {
	for _, tt := range []struct {
		status  roles.RequestStatus
		code    exitCode
		message string
	}{
		{roles.RequestSucceeded, exitDone, ""},
		{roles.RequestFailed, exitFailed, "error: request " + apitest.RequestID(3) + " failed\n"},
		{roles.RequestCancelled, exitFailed, "error: request " + apitest.RequestID(3) + " was cancelled\n"},
		{roles.RequestInDoubt, exitInDoubt, "error: request " + apitest.RequestID(3) + " is in doubt; decide with uac request resolve\n"},
	} {
		c := watchedCluster(t, func(b *apitest.Backend) { finish(b, 3, tt.status) })
		got := c.run(t, "process", "run", "nightly", "--wait")
		want := "waiting for request " + apitest.RequestID(3) + "\n" + tt.message
		if got.code != tt.code || got.stderr != want || !strings.Contains(got.stdout, "status     "+string(tt.status)+"\n") {
			t.Errorf("%s: %+v", tt.status, got)
		}
	}
	c := watchedCluster(t, func(b *apitest.Backend) { finish(b, 3, roles.RequestFailed) })
	got := c.run(t, "process", "run", "nightly", "--wait", "-o", "json")
	if got.code != exitFailed || !strings.Contains(got.stdout, `"status": "failed"`) || !strings.HasPrefix(got.stderr, `{"error":`) {
		t.Errorf("as JSON: %+v", got)
	}
	for _, args := range [][]string{
		{"request", "show", apitest.RequestID(2), "--wait"},
		{"request", "cancel", apitest.RequestID(2), "--wait"},
		{"request", "release", apitest.RequestID(2), "--wait"},
	} {
		c := watchedCluster(t, func(b *apitest.Backend) { finish(b, 2, roles.RequestSucceeded) })
		if got := c.run(t, args...); got.code != exitDone || !strings.Contains(got.stdout, "succeeded") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	// A request that is over is not waited for.
	if got := newCluster(t, sampleState()).run(t, "request", "show", apitest.RequestID(1), "--wait"); got.code != exitFailed ||
		got.stderr != "error: request "+apitest.RequestID(1)+" failed: step switch failed\n" {
		t.Errorf("a final request: %+v", got)
	}
}

// slowOwner is a backend that keeps orders to a request, and no owner obeys them
// before the request is watched.
type slowOwner struct {
	whenWatched
}

func (b slowOwner) Steer(context.Context, api.Actor, string, api.Order) error { return nil }

// An order to a request that is in doubt is waited for: that it is still in doubt
// before the owner has obeyed is not the outcome.
func TestWaitAfterAnOrder(t *testing.T) {
	id := apitest.RequestID(2)
	doubt := func(s *apitest.State, attempt int, reason string) {
		r := &s.Requests[1]
		r.Status, r.Reason = roles.RequestInDoubt, reason
		r.Steps = []api.Step{
			{Name: "backup", Status: roles.StepInDoubt, Attempt: attempt, Agent: "db1"},
			{Name: "check", Status: roles.StepInDoubt, Attempt: 1, Agent: "db1"},
			{Name: "later", Needs: []string{"check"}, Status: roles.StepHeld},
			{Name: "done", Status: roles.StepFailed, Attempt: 1, Agent: "db1"},
		}
	}
	for _, tt := range []struct {
		args   string
		obey   func(*apitest.State)
		code   exitCode
		stdout string // some of it
	}{
		{"resolve %s --step backup --as rerun", func(s *apitest.State) {
			s.Requests[1].Status, s.Requests[1].Steps = roles.RequestSucceeded, nil
		}, exitDone, "succeeded"},
		{"resolve %s --step backup --as rerun", func(s *apitest.State) { doubt(s, 2, "") }, exitInDoubt, "in_doubt"},
		{"resolve %s --step backup --as success", func(s *apitest.State) {
			s.Requests[1].Steps[0].Status = roles.StepSucceeded // the other step stays in doubt
		}, exitInDoubt, "succeeded"},
		{"cancel %s", func(s *apitest.State) { doubt(s, 1, "cancelled by alice") }, exitInDoubt, "cancelled by alice"},
		{"release %s", func(s *apitest.State) { doubt(s, 1, "released") }, exitInDoubt, "released"},
		{"release %s --step later", func(s *apitest.State) { s.Requests[1].Steps[2].Status = roles.StepWaiting }, exitInDoubt, "waiting"},
		{"skip %s --step later", func(s *apitest.State) { s.Requests[1].Steps[2].Reason = "skipped by alice" }, exitInDoubt, "skipped by alice"},
		{"rerun %s --step done", func(s *apitest.State) { s.Requests[1].Steps[3].Attempt = 2 }, exitInDoubt, "2"},
		{"insert %s -f testdata/step.yaml --after done", func(s *apitest.State) {
			s.Requests[1].Steps = append(s.Requests[1].Steps, api.Step{Name: "mail", Status: roles.StepWaiting})
		}, exitInDoubt, "mail"},
		{"finish %s --as succeeded", func(s *apitest.State) { s.Requests[1].Status = roles.RequestSucceeded }, exitDone, "succeeded"},
	} {
		b := apitest.New(sampleState())
		b.Update(func(s *apitest.State) {
			doubt(s, 1, "")
			if strings.HasPrefix(tt.args, "release") {
				s.Requests[1].Reason = "held"
			}
		})
		var obeyed atomic.Bool
		server := serveAPI(t, slowOwner{whenWatched{b, &obeyed, func() { b.Update(tt.obey) }}})
		c := &cluster{b, server, clientVars(t, server)}
		got := c.run(t, append([]string{"request"}, strings.Fields(fmt.Sprintf(tt.args, id)+" --wait")...)...)
		if got.code != tt.code || !strings.Contains(got.stdout, tt.stdout) || !obeyed.Load() {
			t.Errorf("%s: obeyed: %v, %+v", tt.args, obeyed.Load(), got)
		}
	}
}

// Interrupting a wait ends the wait and nothing else, and says how to go on.
func TestWaitIsInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	c := watchedCluster(t, func(*apitest.Backend) { interrupt() })
	got := c.runContext(t, ctx, "", false, "process", "run", "nightly", "--wait")
	if got.code != exitFailed || !strings.Contains(got.stderr, "the request goes on: uac request show "+apitest.RequestID(3)+" --wait") {
		t.Errorf("%+v", got)
	}
	if calls := c.Calls(); len(calls) != 1 {
		t.Errorf("calls: %q", calls)
	}
}

// lossy is a controller that dies on chosen calls: it does what it was told,
// and the connection breaks before or in the middle of the answer.
func lossy(t *testing.T, b api.Backend, die func(r *http.Request) (after int, dies bool)) http.HandlerFunc {
	t.Helper()
	rest, err := api.New(api.Config{Heartbeat: 20 * time.Millisecond}, b, api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if after, dies := die(r); dies {
			w = &dyingWriter{ResponseWriter: w, left: after}
		}
		rest.Handler().ServeHTTP(w, r)
		if d, dies := w.(*dyingWriter); dies && d.left >= 0 {
			panic(http.ErrAbortHandler) // the answer was shorter than its life
		}
	}
}

type dyingWriter struct {
	http.ResponseWriter
	left int
}

func (w *dyingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b[:min(len(b), w.left)])
	if n < len(b) {
		if f, ok := w.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		w.left = -1
		panic(http.ErrAbortHandler)
	}
	w.left -= n
	return n, err
}

func (w *dyingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A wait goes on at the next controller whenever one dies, and the process is
// run once, however often the answer was lost.
func TestWaitSurvivesFailover(t *testing.T) {
	b := apitest.New(sampleState())
	var runs, watches atomic.Int32
	die := func(r *http.Request) (int, bool) {
		switch {
		case r.Method == http.MethodPost:
			return 0, runs.Add(1) <= 2 // accepted, and never said so
		case strings.HasSuffix(r.URL.Path, "/watch"):
			n := watches.Add(1)
			if n == 4 {
				finish(b, 3, roles.RequestSucceeded)
			}
			return int(n) * 60, n < 4 // in the middle of the first line
		}
		return 0, false
	}
	s1, s2 := fakeServer(t, lossy(t, b, die)), fakeServer(t, lossy(t, b, die))
	c := &cluster{Backend: b, vars: clientVars(t, s1, s2)}
	got := c.run(t, "process", "run", "nightly", "--wait", "-o", "json")
	if got.code != exitDone || got.stderr != "" || !strings.Contains(got.stdout, `"status": "succeeded"`) {
		t.Errorf("%+v", got)
	}
	if n := runs.Load(); n != 3 {
		t.Errorf("asked for a run %d times", n)
	}
	b.Update(func(s *apitest.State) {
		if len(s.Requests) != 3 {
			t.Errorf("%d requests: it ran more than once", len(s.Requests)-2)
		}
	})
}

func TestIdempotencyKeyFlag(t *testing.T) {
	c := newCluster(t, sampleState())
	first := c.run(t, "process", "run", "nightly", "--idempotency-key", "k", "-o", "json")
	again := c.run(t, "process", "run", "nightly", "--idempotency-key", "k", "-o", "json")
	if first.code != exitDone || first != again {
		t.Errorf("first %+v, again %+v", first, again)
	}
	other := c.run(t, "process", "run", "deploy", "-p", "version=1", "--idempotency-key", "k")
	if other.code != exitConflict || !strings.Contains(other.stderr, "idempotency key k was used for another request") {
		t.Errorf("another process with the key: %+v", other)
	}
}

// Progress is drawn on a terminal, over itself, and leaves nothing behind.
func TestProgress(t *testing.T) {
	c := watchedCluster(t, func(b *apitest.Backend) { finish(b, 3, roles.RequestSucceeded) })
	c.vars = append(c.vars, "NO_COLOR=1")
	got := c.runAt(t, "", true, "process", "run", "nightly", "--wait")
	if got.code != exitDone {
		t.Fatalf("%+v", got)
	}
	if !strings.HasPrefix(got.stderr, "nightly "+apitest.RequestID(3)+"  queued  0 of 1 steps\n\x1b[1A\x1b[J") {
		t.Errorf("begins with %q", got.stderr)
	}
	if !strings.HasSuffix(got.stderr, "\x1b[J") {
		t.Errorf("leaves %q", got.stderr)
	}
}

func TestPicture(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 10, 0, 0, time.UTC)
	req := sampleState().Requests[0]
	req.Status, req.FinishedAt = roles.RequestRunning, ""
	for i := range 12 {
		req.Steps = append(req.Steps, api.Step{Name: fmt.Sprintf("host%d", i), Status: roles.StepDispatched, Agent: "web1", Attempt: 2})
	}
	req.Steps[4].Status = roles.StepRunning
	req.Steps[6].Name = strings.Repeat("x", 100) + "\x1b[2J"
	golden(t, "picture.txt", strings.Join(picture(req, now, paint{}), "\n")+"\n")
}

// A tree shows every step once, whatever the steps need.
func TestTree(t *testing.T) {
	for _, steps := range [][]api.Step{
		nil,
		{{Name: "a"}},
		{{Name: "a"}, {Name: "b", Needs: []string{"a"}}, {Name: "c", Needs: []string{"a", "b"}}},
		{{Name: "b", Needs: []string{"a"}}, {Name: "a"}},                       // needs what comes later
		{{Name: "a", Needs: []string{"b"}}, {Name: "b", Needs: []string{"a"}}}, // cannot be accepted
		{{Name: "a", Needs: []string{"a", "nosuch"}}},
		{{Name: "a"}, {Name: "a@w1", Of: "a"}, {Name: "a@w2", Of: "a"}, {Name: "b", Needs: []string{"a"}}},
		{{Name: "a@w1", Of: "nosuch"}},
	} {
		var names, shown []string
		for _, s := range steps {
			names = append(names, s.Name)
		}
		for _, b := range tree(steps) {
			shown = append(shown, b.Name)
		}
		slices.Sort(names)
		slices.Sort(shown)
		if diff := cmp.Diff(names, shown); diff != "" {
			t.Errorf("%v (-want +got):\n%s", steps, diff)
		}
	}
}

// Instances stand below their step, and its logs are theirs.
func TestInstances(t *testing.T) {
	zero := 0
	s := sampleState()
	s.Requests[1].Steps = []api.Step{
		{Name: "patch", Status: roles.StepRunning},
		{Name: "patch@web1", Of: "patch", Status: roles.StepSucceeded, Attempt: 1, Agent: "web1", ExitCode: &zero},
		{Name: "patch@web2", Of: "patch", Status: roles.StepReady, Reason: "waits"},
		{Name: "report", Needs: []string{"patch"}, Status: roles.StepWaiting},
	}
	id := apitest.RequestID(2)
	s.Output[id+"/patch@web1/1"] = "patched\n"
	c := newCluster(t, s)
	got := c.run(t, "request", "show", id)
	want := `STEP           STATUS     AGENT  DURATION  EXIT  NOTE
patch          running
├─ patch@web1  succeeded  web1             0
├─ patch@web2  ready                             waits
└─ report      waiting
`
	if _, table, _ := strings.Cut(got.stdout, "\n\n"); table != want {
		t.Errorf("got:\n%s\nwant:\n%s", table, want)
	}
	for args, want := range map[string]result{
		"--step patch":                  {stdout: "==> patch@web1 (attempt 1 on web1) <==\npatched\n"},
		"--step patch@web1":             {stdout: "patched\n"},
		"--step patch@web2 --attempt 1": {code: exitNotFound, stderr: "error: step patch@web2 of request " + id + " has no attempt 1: it has not started\n"},
		"--step patch@web9":             {code: exitNotFound, stderr: "error: request " + id + " has no step \"patch@web9\"\n"},
	} {
		if got := c.run(t, append([]string{"request", "logs", id}, strings.Fields(args)...)...); got != want {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestLogs(t *testing.T) {
	c := newCluster(t, sampleState())
	id := apitest.RequestID(1)
	for _, tt := range []struct{ args, want string }{
		{"request logs " + id + " --step fetch", "fetched 1.4.2\n"},
		{"request logs " + id + " --step check", "ok"},
		{"request logs " + id + " --step switch", "third\n\x1b[31mfailed\x1b[0m\n"},
		{"request logs " + id + " --step switch --attempt 1", "first\n"},
		{"request logs " + apitest.RequestID(2), "raw \xff bytes"}, // one step: byte for byte
	} {
		if got := c.run(t, strings.Fields(tt.args)...); got != (result{stdout: tt.want}) {
			t.Errorf("%s: %+v", tt.args, got)
		}
	}
	got := c.run(t, "request", "logs", id)
	want := "==> fetch (attempt 1 on web1) <==\nfetched 1.4.2\n" +
		"\n==> check (attempt 1 on web2) <==\nok\n" +
		"\n==> switch (attempt 3 on web1) <==\nthird\n\x1b[31mfailed\x1b[0m\n" +
		"\n==> rollback (attempt 1 on web1) <==\nrolling back\n"
	if got != (result{stdout: want}) {
		t.Errorf("all steps: %+v", got)
	}
	end := watchedCluster(t, func(b *apitest.Backend) { finish(b, 2, roles.RequestSucceeded) })
	want = "error: step backup of request " + apitest.RequestID(2) + " has no attempt 2: it has 1\n"
	if got := end.run(t, "request", "logs", apitest.RequestID(2), "--step", "backup", "--attempt", "2", "-f"); got != (result{code: exitNotFound, stderr: want}) {
		t.Errorf("an attempt that is never made: %+v", got)
	}
}

// Following loses and repeats nothing, however often controllers die, and ends
// with the request.
func TestFollowLogs(t *testing.T) {
	b := apitest.New(sampleState())
	id := apitest.RequestID(2)
	whole := strings.Repeat("line of output\n", 100)
	b.Update(func(s *apitest.State) { s.Output[id+"/backup/1"] = whole[:1000] })
	var reads atomic.Int32
	die := func(r *http.Request) (int, bool) {
		if strings.HasSuffix(r.URL.Path, "/logs") {
			n := reads.Add(1)
			if n == 4 {
				b.Update(func(s *apitest.State) { s.Output[id+"/backup/1"] = whole })
			}
			if n == 6 {
				finish(b, 2, roles.RequestSucceeded)
			}
			return 170, n < 6
		}
		return 0, false
	}
	c := &cluster{Backend: b, vars: clientVars(t, fakeServer(t, lossy(t, b, die)), fakeServer(t, lossy(t, b, die)))}
	got := c.run(t, "request", "logs", id, "-f")
	if diff := cmp.Diff(result{stdout: whole}, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if reads.Load() < 6 {
		t.Errorf("read %d times: no controller died", reads.Load())
	}
}

// Following several steps tells their lines apart, and later attempts too.
func TestFollowSeveralSteps(t *testing.T) {
	s := sampleState()
	id := apitest.RequestID(2)
	s.Requests[1].Steps = []api.Step{
		{Name: "left", Status: roles.StepRunning, Attempt: 1, Agent: "a1"},
		{Name: "right", Status: roles.StepWaiting},
	}
	s.Output[id+"/left/1"] = "half a li"
	b := apitest.New(s)
	server := serveAPI(t, whenWatched{b, new(atomic.Bool), func() {
		b.Update(func(s *apitest.State) {
			s.Output[id+"/left/1"] += "ne\n"
			s.Output[id+"/left/2"] = "again\n"
			s.Output[id+"/right/1"] = "no end of line"
			s.Requests[1].Steps[0].Attempt = 2
			s.Requests[1].Steps[1] = api.Step{Name: "right", Status: roles.StepRunning, Attempt: 1, Agent: "a2"}
		})
		go finish(b, 2, roles.RequestFailed) // soon; what was written is printed all the same
	}})
	c := &cluster{b, server, clientVars(t, server)}
	got := c.run(t, "request", "logs", id, "--follow")
	if got.code != exitDone || got.stderr != "" {
		t.Fatalf("%+v", got)
	}
	for _, want := range []string{
		"==> left (attempt 1 on a1) <==\nhalf a line\n",
		"==> right (attempt 1 on a2) <==\nno end of line\n",
	} {
		if strings.Count(got.stdout, want) != 1 {
			t.Errorf("%q is not in %q", want, got.stdout)
		}
	}
}

// Output of several attempts is interleaved by whole lines only.
func TestLogWriter(t *testing.T) {
	var out bytes.Buffer
	l := &logWriter{w: &out, headers: true}
	a, b := attempt{"a", 1, "x"}, attempt{"b", 2, ""}
	for _, w := range []struct {
		at   attempt
		text string
	}{{a, "one\ntw"}, {b, "eins\n"}, {a, "o\nthr"}, {a, "ee\nfour"}, {b, "zwei"}} {
		if err := l.write(w.at, []byte(w.text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []attempt{a, b, a} {
		if err := l.flush(at); err != nil {
			t.Fatal(err)
		}
	}
	want := "==> a (attempt 1 on x) <==\none\n\n==> b (attempt 2) <==\neins\n\n==> a (attempt 1 on x) <==\ntwo\nthree\nfour\n\n==> b (attempt 2) <==\nzwei\n"
	if got := out.String(); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	long := strings.Repeat("x", 200<<10)
	out.Reset()
	if err := l.write(a, []byte(long)); err != nil {
		t.Fatal(err)
	}
	if out.Len() < len(long) {
		t.Errorf("%d bytes of a line without end are kept", len(long)-out.Len())
	}
}

// A pipe that is closed by its reader ends the command.
func TestLogsIntoAClosedPipe(t *testing.T) {
	c := newCluster(t, sampleState())
	r, w := io.Pipe()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	a := &app{env: env{environ: c.vars, stdout: stream{Writer: w}, stderr: stream{Writer: io.Discard}}, output: formatTable}
	if err := runRequestLogs(t.Context(), a, logsOptions{id: apitest.RequestID(1)}); err == nil {
		t.Error("writing to a closed pipe succeeded")
	}
}

// gappy is a backend whose output has a part that is gone.
type gappy struct{ *apitest.Backend }

func (gappy) ReadOutput(_ context.Context, _, step string, _ int, offset int64, _ bool, w io.Writer) error {
	switch {
	case step == "check":
		return fmt.Errorf("%w: the agent lost it", api.ErrGone)
	case offset >= 10:
		_, err := io.WriteString(w, "0123456789"[min(10, offset-10):])
		return err
	}
	if _, err := io.WriteString(w, "abcde"[min(5, offset):]); err != nil {
		return err
	}
	return &api.Gap{Next: 10}
}

// A part that is gone is no output: it is told of, and what follows is printed.
func TestLogsTellOfGaps(t *testing.T) {
	s := serveAPI(t, gappy{apitest.New(sampleState())})
	c := &cluster{vars: clientVars(t, s)}
	id := apitest.RequestID(1)
	want := result{stdout: "abcde0123456789", stderr: "the output of step fetch (attempt 1) from byte 5 to 10 is gone\n"}
	if got := c.run(t, "request", "logs", id, "--step", "fetch"); got != want {
		t.Errorf("%+v", got)
	}
	if got := c.run(t, "request", "logs", id, "--step", "check"); got.code != exitNotFound || !strings.Contains(got.stderr, "the agent lost it") {
		t.Errorf("what is gone: %+v", got)
	}
	// Of several steps, that one is gone does not hide the others, and is an error.
	if got := c.run(t, "request", "logs", id); got.code != exitNotFound || !strings.Contains(got.stdout, "rollback") || !strings.Contains(got.stderr, "the agent lost it") {
		t.Errorf("several steps: %+v", got)
	}
}

// Who follows sees each attempt, also those that came and went between two looks.
func TestFreshAttempts(t *testing.T) {
	state := func(a, b int) api.Request {
		return api.Request{Steps: []api.Step{{Name: "a", Attempt: a, Agent: "x"}, {Name: "b", Attempt: b, Agent: "y"}}}
	}
	for _, tt := range []struct {
		opts logsOptions
		want string
	}{
		{logsOptions{}, "[] [{a 2 x}] [{a 3 x} {a 4 x} {b 1 y}] [] [{b 2 y} {b 3 y}]"},
		{logsOptions{step: "b"}, "[] [] [{b 1 y}] [] [{b 2 y} {b 3 y}]"},
		{logsOptions{step: "b", attempt: 2}, "[] [] [] [] [{b 2 }]"},
		{logsOptions{step: "a", attempt: 1}, "[] [{a 1 }] [] [] []"},
	} {
		tails := newTails(nil, tt.opts, nil, nil)
		var got []string
		for _, s := range []api.Request{state(0, 0), state(2, 0), state(4, 1), state(4, 1), state(4, 3)} {
			got = append(got, fmt.Sprint(tails.fresh(s)))
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%+v: %s, want %s", tt.opts, text, tt.want)
		}
	}
}
