package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"uac/roles/wire"
)

// childEnv holds, in the environment of this test program, what an agent is to do
// that runs in a process of its own: a child as JSON.
const childEnv = "UAC_AGENT_TEST_CHILD"

// child tells the test program to be an agent, and where to kill itself.
type child struct {
	Config Config
	CA     []byte // DER, like the rest
	Cert   []byte
	Key    []byte
	Point  Point // where to die; empty: nowhere
	Visit  int32 // at which visit
}

func childMain() int {
	var c child
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ca, err1 := x509.ParseCertificate(c.CA)
	key, err2 := x509.ParsePKCS8PrivateKey(c.Key)
	if err1 != nil || err2 != nil {
		fmt.Fprintln(os.Stderr, err1, err2)
		return 2
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	var visits atomic.Int32
	a, err := New(c.Config, Deps{
		Dial: dialer(&tls.Config{
			RootCAs: roots, ServerName: "controller.uac",
			Certificates: []tls.Certificate{{Certificate: [][]byte{c.Cert}, PrivateKey: key}},
		}),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Point: func(p Point) {
			if p == c.Point && visits.Add(1) == c.Visit {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := a.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// childAgent is an agent in a process of its own.
type childAgent struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (w *testWorld) child(c *testController, p Point, visit int32) *childAgent {
	w.t.Helper()
	cfg, _ := w.config([]*testController{c})
	cfg.JournalSize = 1 // compact whenever it helps
	cfg.ReconnectMin, cfg.ReconnectMax = time.Millisecond, 10*time.Millisecond
	cert, err := w.tls.GetClientCertificate(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(child{Config: cfg, CA: w.ca.Certificate().Raw, Cert: cert.Certificate[0], Key: key, Point: p, Visit: visit})
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ca := &childAgent{t: w.t, cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(ca.done) }()
	w.t.Cleanup(ca.kill)
	return ca
}

func (c *childAgent) kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// owner plays the owner of request R over any number of links and deaths of the agent:
// it dispatches its steps, adopts after every loss, sends again what never ran, and
// acknowledges what ended.
type owner struct {
	t        *testing.T
	revision int64
	ledger   string
	ends     map[string]*wire.Attempt
}

// steps returns what is to be started, of every feature one that uses it.
func (o *owner) steps() map[string]*wire.Start {
	note := func(step string) string { return fmt.Sprintf("echo %s >>%s\n", step, o.ledger) }
	steps := map[string]*wire.Start{
		"ok":   {Script: note("ok") + "echo a=1 >>$UAC_OUTPUTS", Outputs: []string{"a"}},
		"fail": {Script: note("fail") + "cat; exit 3", Stdin: []byte("0123456789"), OutputLimit: 4},
		"slow": {
			Script:         "trap '' TERM\n" + note("slow") + "while :; do sleep 0.01; done",
			KillGraceNanos: int64(20 * time.Millisecond), StopWhenAloneNanos: int64(time.Hour),
		},
	}
	if os.Geteuid() == 0 {
		steps["other"] = &wire.Start{Argv: []string{"sh", "-c", note("other") + "exit 4"}, RunAs: other}
	}
	for name, s := range steps {
		s.Request, s.Step, s.Attempt = "R", name, 1
	}
	return steps
}

// all returns the names of the steps, with that of one that is killed and never sent.
func (o *owner) all() []string {
	return append(slices.Sorted(maps.Keys(o.steps())), "cancel")
}

func newOwner(t *testing.T, w *testWorld) *owner {
	t.Helper()
	o := &owner{t: t, ledger: filepath.Join(t.TempDir(), "ledger"), ends: map[string]*wire.Attempt{}}
	for _, file := range []string{w.dir, o.ledger} {
		letPass(t, filepath.Dir(file))
	}
	if err := os.WriteFile(o.ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.ledger, 0o666); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *owner) noted(step string) int {
	f, err := os.Open(o.ledger)
	if err != nil {
		return 0
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if s.Text() == step {
			n++
		}
	}
	return n
}

func (o *owner) send(l *testLink, m *wire.ControllerMessage) {
	m.Journal = &wire.Journal{Id: l.hello.GetJournal().GetId(), Counter: l.counter}
	m.Link = l.hello.GetLink()
	_ = l.stream.Send(m) // a lost link shows itself when nothing comes any more
}

// dispatch sends what the step needs next.
func (o *owner) dispatch(l *testLink, step string, state wire.State) {
	k := key{"R", step, 1}
	switch {
	case step == "cancel", step == "slow" && o.noted("slow") > 0:
		o.send(l, killMessage(k, o.revision))
	case state == wire.State_STATE_UNSPECIFIED, state == wire.State_INTENDED:
		start := o.steps()[step]
		start.Fence = rev(o.revision)
		o.send(l, &wire.ControllerMessage{Body: &wire.ControllerMessage_Start{Start: start}})
	}
}

// serve works over one link until everything is decided and acknowledged (true) or the
// link is lost (false).
func (o *owner) serve(l *testLink) bool {
	all := o.all()
	o.revision++
	l.counter = 0
	o.send(l, &wire.ControllerMessage{Body: &wire.ControllerMessage_Welcome{Welcome: &wire.Welcome{
		Controller: "c1", Generation: &wire.Generation{Number: 1, Id: "g1"}, Trusted: true,
	}}})
	o.send(l, &wire.ControllerMessage{Body: &wire.ControllerMessage_Adopt{Adopt: &wire.Adopt{Request: "R", Fence: rev(o.revision)}}})
	adopted, pinged := false, false
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	timeout := time.After(patience)
	decide := func(at *wire.Attempt) {
		switch at.GetState() {
		case wire.State_EXITED, wire.State_NEVER_STARTED, wire.State_UNKNOWN:
			// An acknowledged one is known already, with its outputs, which the agent has
			// let go.
			if known := o.ends[at.GetStep()]; known == nil || !at.GetAcknowledged() {
				o.ends[at.GetStep()] = at
			} else if known.GetState() != at.GetState() || known.GetEnd().GetCode() != at.GetEnd().GetCode() {
				o.t.Errorf("end %v became %v", known, at)
			}
		}
	}
	for {
		if adopted && len(o.ends) == len(all) && !pinged {
			pinged = true
			for i, step := range all {
				o.send(l, &wire.ControllerMessage{Body: &wire.ControllerMessage_Ack{Ack: &wire.Ack{
					Request: "R", Step: step, Attempt: 1, Fence: rev(o.revision), Final: i == len(all)-1,
				}}})
			}
			o.send(l, &wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: 7}}})
		}
		select {
		case m := <-l.got:
			switch {
			case m.GetAdopted() != nil:
				adopted = true
				states := map[string]wire.State{}
				for _, at := range m.GetAdopted().GetAttempts() {
					states[at.GetStep()] = at.GetState()
					decide(at)
				}
				for _, step := range all {
					if o.ends[step] == nil {
						o.dispatch(l, step, states[step])
					}
				}
			case m.GetReport() != nil && adopted:
				decide(m.GetReport().GetAttempt())
				if at := m.GetReport().GetAttempt(); at.GetState() == wire.State_INTENDED {
					o.dispatch(l, at.GetStep(), at.GetState())
				}
			case m.GetPong() != nil:
				return true
			case m.GetRefused() != nil && m.GetRefused().GetReason() != wire.Refusal_FINAL:
				o.t.Errorf("refused: %v", m.GetRefused())
			}
		case <-look.C:
			if adopted && o.ends["slow"] == nil && o.noted("slow") > 0 {
				o.dispatch(l, "slow", wire.State_RUNNING)
			}
		case <-l.lost:
			return false
		case <-timeout:
			o.t.Fatalf("stuck; decided are %v", o.ends)
		}
	}
}

func (o *owner) check() {
	o.t.Helper()
	want := map[string]struct {
		state wire.State
		code  int32
		ran   int
	}{
		"ok":     {wire.State_EXITED, 0, 1},
		"fail":   {wire.State_EXITED, 3, 1},
		"slow":   {wire.State_EXITED, 137, 1},
		"other":  {wire.State_EXITED, 4, 1},
		"cancel": {wire.State_NEVER_STARTED, 0, 0},
	}
	for _, step := range o.all() {
		at, w := o.ends[step], want[step]
		if at.GetState() != w.state || at.GetEnd().GetCode() != w.code {
			o.t.Errorf("%s ended as %v, want %v with %d", step, at, w.state, w.code)
		}
		if got := at.GetEnd().GetOutputs()["a"]; step == "ok" && got != "1" {
			o.t.Errorf("%s has output %q, want 1", step, got)
		}
		if got := at.GetOutputDropped(); step == "fail" && got != 6 {
			o.t.Errorf("%s has %d bytes of output thrown away, want 6", step, got)
		}
		if n := o.noted(step); n != w.ran {
			o.t.Errorf("%s ran %d times, want %d", step, n, w.ran)
		}
	}
}

// TestKilledAnywhereAnAttemptStartsAtMostOnce kills a real agent at every point, and
// sees to it that every step still ends once, as it did.
func TestKilledAnywhereAnAttemptStartsAtMostOnce(t *testing.T) {
	for _, p := range Points() {
		for _, visit := range []int32{1, 2} {
			t.Run(fmt.Sprintf("%s %d", p, visit), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				c := w.controller("c1")
				o := newOwner(t, w)
				agent := w.child(c, p, visit)
				died := false
				for done := false; !done; {
					select {
					case l := <-c.links:
						done = o.serve(l)
					case <-agent.done:
						if died {
							t.Fatal("the agent died again")
						}
						died = true
						agent = w.child(c, "", 0)
					case <-time.After(patience):
						t.Fatal("no link")
					}
				}
				o.check()
				if visit == 1 && !died {
					t.Errorf("point %s was not visited", p)
				}
				// The next process knows it all, and runs nothing again.
				agent.kill()
				w.child(c, "", 0)
				l := c.link()
				l.counter = 0
				l.adopt("R", o.revision+1)
				for step, start := range o.steps() {
					start.Fence = rev(o.revision + 1)
					l.start(start)
					l.report(key{"R", step, 1}, wire.State_EXITED)
				}
				o.check()
				dir := attemptDir(filepath.Join(w.dir, dirAttempts, key{"R", "fail", 1}.dir()))
				if got, want := readFile(t, dir.file(fileOutput)), "0123"+droppedLine(4, 6); got != want {
					t.Errorf("output beyond the limit: %q, want %q", got, want)
				}
			})
		}
	}
}

// TestKilledAgainAndAgain kills the agent at moments that nobody chose.
func TestKilledAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	ledger := filepath.Join(t.TempDir(), "ledger")
	const steps = 40
	revision := int64(1)
	ended := map[string]*wire.Attempt{}
	for round := 0; len(ended) < steps; round++ {
		agent := w.child(c, "", 0)
		l := c.link()
		l.counter = 0
		revision++
		known := map[string]wire.State{}
		for _, at := range l.adopt("R", revision).GetAttempts() {
			known[at.GetStep()] = at.GetState()
		}
		for i := range steps {
			step := fmt.Sprint(i)
			if s := known[step]; s == wire.State_STATE_UNSPECIFIED || s == wire.State_INTENDED {
				l.start(startOf(key{"R", step, 1}, revision, fmt.Sprintf("echo %s >>%s\nexit %d", step, ledger, i)))
			}
		}
		// Enough progress for one life.
		for want := min(steps, len(ended)+5); len(ended) < want; {
			m := l.expect("an end", func(m *wire.AgentMessage) bool { return m.GetReport().GetAttempt().GetEnd() != nil })
			ended[m.GetReport().GetAttempt().GetStep()] = m.GetReport().GetAttempt()
		}
		agent.kill()
		if round > 10*steps {
			t.Fatal("no progress")
		}
	}
	lines := strings.Fields(readFile(t, ledger))
	ran := map[string]int{}
	for _, step := range lines {
		ran[step]++
	}
	for i := range steps {
		step := fmt.Sprint(i)
		if ran[step] != 1 {
			t.Errorf("step %s ran %d times", step, ran[step])
		}
		if at := ended[step]; at.GetState() != wire.State_EXITED || at.GetEnd().GetCode() != int32(i) {
			t.Errorf("step %s ended as %v", step, at)
		}
	}
}
