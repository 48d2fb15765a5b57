package faulttest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writer is a process of one step that writes noise over and over: a piece at a time
// until the file stop is there, then a flood.
func writer(noise, stop string) Process {
	p := chain("0")
	p.Name = "writer"
	p.Steps = []StepDef{{Name: "write", Agent: Selector{Name: "a1"}, Run: fmt.Sprintf(`
		sh "$UAC_PARAM_dir/step.sh" 0 >/dev/null
		i=0
		while ! test -e %[2]s; do
			dd if=%[1]s bs=%[3]d skip=$i count=1 2>/dev/null
			i=$(((i + 1) %% %[4]d))
			sleep 0.02
		done
		dd if=%[1]s bs=%[3]d skip=$i 2>/dev/null
		cat %[1]s %[1]s`, noise, stop, noisePiece, noisePieces)}}
	return p
}

const (
	noisePiece  = 10_007 // no power of two, as nothing else is then
	noisePieces = 1000
)

// follower is uac request logs.
type follower struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  lockedBuffer
	err  lockedBuffer
	done chan error
}

func (c *Cluster) follow(args ...string) *follower {
	c.t.Helper()
	var servers []string
	for _, name := range c.controllers() {
		servers = append(servers, c.node(name).API)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "cluster", "pki", "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	f := &follower{t: c.t, cmd: exec.CommandContext(c.t.Context(), program(c.t), append([]string{"request", "logs"}, args...)...), done: make(chan error, 1)}
	f.cmd.Env = append(os.Environ(), "UAC_SERVER="+strings.Join(servers, ","), "UAC_TOKEN="+strings.TrimSpace(string(token)),
		"UAC_CACERT="+filepath.Join(c.dir, "cluster", "pki", "ca", "root.crt"))
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.err
	if err := spawn(f.cmd); err != nil {
		c.t.Fatal(err)
	}
	go func() { f.done <- f.cmd.Wait() }()
	return f
}

func (f *follower) size() int {
	f.out.mu.Lock()
	defer f.out.mu.Unlock()
	return f.out.b.Len()
}

// wrote fails unless the command succeeds and has written noise, over and over, of a
// size that is returned.
func (f *follower) wrote(noise []byte) int {
	f.t.Helper()
	select {
	case err := <-f.done:
		if err != nil || f.err.String() != "" {
			f.t.Fatalf("uac request logs: %v\n%s", err, f.err.String())
		}
	case <-time.After(3 * patience):
		f.t.Fatalf("uac request logs does not end; it wrote %d bytes", f.size())
	}
	got := []byte(f.out.String())
	for at := 0; at < len(got); at += len(noise) {
		part := got[at:min(at+len(noise), len(got))]
		if bytes.Equal(part, noise[:len(part)]) {
			continue
		}
		for i := range part {
			if part[i] != noise[i] {
				f.t.Fatalf("of %d bytes the one at %d is not what was written there", len(got), at+i)
			}
		}
	}
	return len(got)
}

// TestOutput follows what a step writes while controllers and the agent die and the
// term moves: every byte comes, once, in order. Then it is on the shared mount, whole,
// though the step wrote much more than may wait at its agent, and is read from there
// when the agent is gone.
func TestOutput(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--set", "agent.spool_limit=1MiB")
	noise := make([]byte, noisePieces*noisePiece)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise) // never fails
	file, stop := filepath.Join(c.dir, "noise"), filepath.Join(c.dir, "stop")
	if err := os.WriteFile(file, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	c.apply(writer(file, stop))
	active := c.healthy()
	id := c.submit("writer", 1)[0]
	f := c.follow(id, "--step", "write", "--follow")
	// What comes after a failure proves that it was survived.
	flows := func() {
		t.Helper()
		before := f.size()
		c.await("output goes on", func() string {
			if n := f.size(); n < before+20*noisePiece {
				return fmt.Sprintf("%d bytes after %d", n, before)
			}
			return ""
		})
	}
	flows()
	for range trials(t) {
		for _, victim := range []string{active, "a1", c.other(active)} {
			c.kill(victim)
			if victim != "a1" { // what it has is shown when it is back
				flows()
			}
			c.start(victim)
			flows()
		}
		active = c.healthy()
		c.order(active, "/v1/nodes/switchover", nil)
		flows()
		active = c.healthy()
	}
	c.freeze(active)
	flows()
	c.thaw(active)
	c.healthy()
	flows()
	// Without the mount what is written waits, and at last the step does.
	mount := filepath.Join(c.dir, "cluster", "mount")
	if err := os.Rename(mount, mount+".away"); err != nil {
		t.Fatal(err)
	}
	c.await("the step waits for the mount", func() string {
		if log, err := os.ReadFile(c.node("a1").Log); err != nil || !strings.Contains(string(log), "attempt frozen") {
			return fmt.Sprint("it goes on ", err)
		}
		return ""
	})
	if err := os.Rename(mount+".away", mount); err != nil {
		t.Fatal(err)
	}
	flows()
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	size := f.wrote(noise)
	c.settled().succeeded(t)
	if size < 2*len(noise) || size%len(noise) != 0 {
		t.Errorf("%d bytes came: not whole", size)
	}
	c.await("all of it is on the mount", func() string {
		found, err := filepath.Glob(filepath.Join(c.dir, "cluster", "mount", "logs", "*", id, "write.1", "*"))
		for _, name := range found {
			if filepath.Base(name) == fmt.Sprintf("end-%d", size) {
				return ""
			}
		}
		return fmt.Sprintf("%v %v", found, err)
	})
	c.kill("a1")
	if n := c.follow(id, "--step", "write").wrote(noise); n != size {
		t.Errorf("without the agent %d bytes came, of %d", n, size)
	}
	c.start("a1")
}
