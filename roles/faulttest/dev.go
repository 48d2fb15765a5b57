package faulttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"uac/codestation/durable"
)

// children starts processes that die with this one. The kernel ends them with
// the thread that forked them, so one thread forks them all and never ends.
var children = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// spawn starts a process that dies with this one.
func spawn(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true
	started := make(chan error)
	children() <- func() { started <- cmd.Start() }
	return <-started
}

// lockedBuffer gathers what a process says.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// devRunner runs a cluster with uac dev. Not with --detach: a cluster in the
// foreground dies with the tests, whatever ends them.
type devRunner struct {
	program string
	dir     string
	cmd     *exec.Cmd
	err     *lockedBuffer
}

// dir makes the directory of a cluster. It is short, and kept if the test fails.
func clusterDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "uac-fault-") //nolint:usetesting // kept if the test fails
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() && os.Getenv("UAC_FAULT_KEEP") == "" {
			_ = os.RemoveAll(dir)
		}
	})
	return dir
}

// startDev starts a cluster on the loopback network: two controllers, a watch
// and two agents.
func startDev(t testing.TB, args ...string) *Cluster {
	t.Helper()
	dir := clusterDir(t)
	r := &devRunner{program: program(t), dir: filepath.Join(dir, "cluster"), err: &lockedBuffer{}}
	faults := filepath.Join(dir, "faults")
	if err := durable.MkdirAll(faults, 0o700); err != nil {
		t.Fatal(err)
	}
	args = append(args, "--set", "agent.kill_grace=500ms")
	r.cmd = exec.CommandContext(context.Background(), r.program, append([]string{"dev", "--dir", r.dir, "-o", "json"}, args...)...) //nolint:usetesting // a clean-up ends it, in order
	r.cmd.Stderr = r.err
	r.cmd.Env = append(os.Environ(), "UACFAULT_DIR="+faults)
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := spawn(r.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	// It describes the cluster when that serves.
	if err := json.NewDecoder(out).Decode(&struct{}{}); err != nil {
		_ = r.cmd.Wait()
		t.Fatalf("uac dev: %v\n%s", err, r.err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until it ends
	token, err := os.ReadFile(filepath.Join(r.dir, "pki", "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return attach(t, dir, r, strings.TrimSpace(string(token)), filepath.Join(r.dir, "pki", "ca", "root.crt"), nil)
}

// stop ends the cluster. Frozen nodes run again by then.
func (r *devRunner) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		_ = r.cmd.Wait() // how it ended is no part of a test
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = r.cmd.Process.Kill()
		<-done
	}
}

func (r *devRunner) nodes() []node {
	// Readers see an old file or a new one, never half of it.
	text, err := os.ReadFile(filepath.Join(r.dir, "cluster.json"))
	var c struct {
		Nodes []node `json:"nodes"`
	}
	if err != nil || json.Unmarshal(text, &c) != nil {
		return nil
	}
	return c.Nodes
}

func (r *devRunner) start(name string) error {
	out, err := exec.CommandContext(context.Background(), r.program, "dev", "start", name, "--dir", r.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (r *devRunner) reaped(name string, pid int) bool {
	for _, n := range r.nodes() {
		if n.Name == name && n.PID == pid {
			return false
		}
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

func (r *devRunner) ends() string { return r.err.String() }
