package faulttest

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var serversLine = regexp.MustCompile(`(?m)^  servers: .*$`)

// behind starts all agents again, with no way to the cluster but these relays.
func (c *Cluster) behind(relays ...string) {
	c.t.Helper()
	var servers []string
	for _, name := range relays {
		u, err := url.Parse(c.node(name).API)
		if err != nil {
			c.t.Fatal(err)
		}
		servers = append(servers, u.Hostname())
	}
	agents := c.names("agent")
	c.kill(agents...)
	for _, name := range agents {
		file := c.node(name).Config
		text, err := os.ReadFile(file)
		if err != nil {
			c.t.Fatal(err)
		}
		changed := serversLine.ReplaceAll(text, []byte("  servers: ["+strings.Join(servers, ", ")+"]"))
		if err := os.WriteFile(file, changed, 0o600); err != nil {
			c.t.Fatal(err)
		}
		c.start(name)
	}
	c.healthy()
	for _, name := range agents {
		if way := c.ways(name); len(way) != 2 || slices.Contains(way, "") {
			c.t.Fatalf("%s is linked by way of %q, want relays only", name, way)
		}
	}
}

// TestRelayDies kills and freezes the relay by which all agents are linked, in the
// middle of steps, with another relay at hand.
func TestRelayDies(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--relays", "2")
	c.apply(chain("0.5"))
	c.behind("r1", "r2")
	for range trials(t) {
		for _, dies := range []string{"r1", "r2"} {
			begin := c.mark()
			c.submit("chain", 4)
			c.started(begin, 4, "first")
			c.kill(dies)
			c.submit("chain", 1)
			c.settled().succeeded(t)
			c.start(dies)
			c.healthy()
		}
		begin := c.mark()
		c.submit("chain", 4)
		c.started(begin, 4, "first")
		c.freeze("r1")
		c.submit("chain", 1)
		c.settled().succeeded(t)
		c.thaw("r1")
		c.healthy()
	}
}

// TestOnlyRelayDies kills the only relay in the middle of steps, and the Active with
// it: steps end while nobody can be told, and all is told when the relay is back.
func TestOnlyRelayDies(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--relays", "1")
	c.apply(chain("0.3"))
	c.behind("r1")
	for range trials(t) {
		for _, with := range []bool{false, true} {
			active := c.healthy()
			begin := c.mark()
			c.submit("chain", 4)
			c.started(begin, 4, "first")
			if with {
				c.kill("r1", active)
			} else {
				c.kill("r1")
			}
			c.submit("chain", 1)
			c.await("the steps that run end, while nobody is there", func() string {
				ended := 0
				for _, e := range c.ledger.Read(t)[begin:] {
					if e.Kind == entryEnd && e.Step == "first" {
						ended++
					}
				}
				if ended < 4 {
					return fmt.Sprintf("%d of 4 have", ended)
				}
				return ""
			})
			for _, e := range c.ledger.Read(t)[begin:] {
				if e.Kind == entryStart && e.Step != "first" {
					t.Errorf("step %s was started, and there is no way to tell the agents", e.Step)
				}
			}
			c.start("r1")
			c.settled().succeeded(t)
			if with {
				c.start(active)
			}
		}
	}
}

// TestRelayDiesDuringOutput kills the relay while somebody follows what a step writes.
func TestRelayDiesDuringOutput(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--relays", "2")
	c.behind("r1", "r2")
	c.apply(Process{
		Name: "talk", Params: []Param{{Name: "dir", Required: true}},
		Steps: []StepDef{{Name: "talk", Agent: Selector{Name: "a1"}, Run: "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.05; done"}},
	})
	id := c.submit("talk", 1)[0]
	env, err := os.ReadFile(filepath.Join(c.dir, "cluster", "env"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	follow := exec.CommandContext(ctx, "sh", "-c", string(env)+`exec "$0" request logs -f "$1"`, program(t), id)
	var got lockedBuffer
	follow.Stdout = &got
	var said bytes.Buffer
	follow.Stderr = &said
	if err := spawn(follow); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 60 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	c.await("output", func() string {
		if !strings.Contains(got.String(), "line 9") {
			return "nothing is written"
		}
		return ""
	})
	c.kill("r1")
	c.await("more output", func() string {
		if !strings.Contains(got.String(), "line 29") {
			return "nothing more is written"
		}
		return ""
	})
	c.start("r1")
	c.kill("r2")
	if err := follow.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	if got.String() != want.String() {
		t.Errorf("the output is\n%s", got.String())
	}
	c.start("r2")
}

// join starts a node with a join token and nothing else, until the test ends.
func (c *Cluster) join(role, name string, settings ...string) {
	c.t.Helper()
	token := decode[struct {
		Token string `json:"token"`
	}](c.t, c.order(c.active(), "/v1/tokens", map[string]any{"role": role, "name": name})).Token
	dir := filepath.Join(c.dir, "joined", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	args := []string{"--role=" + role, "--name=" + name, "--data-dir=" + dir}
	for _, s := range settings {
		args = append(args, "--set", s)
	}
	log := &lockedBuffer{}
	cmd := exec.CommandContext(context.Background(), program(c.t), args...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "UAC_PKI_JOIN="+token), log
	if err := spawn(cmd); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil || c.t.Failed() {
			c.t.Errorf("%s: %v\n%s", name, err, log)
		}
	})
}

// TestJoinThroughRelays lets an agent join that sees a relay only, a relay behind that
// relay, and an agent behind both.
func TestJoinThroughRelays(t *testing.T) {
	t.Parallel()
	c := startDev(t, "--relays", "1")
	u, err := url.Parse(c.node("r1").API)
	if err != nil {
		t.Fatal(err)
	}
	r1 := u.Hostname()
	r9 := r1[:strings.LastIndexByte(r1, '.')] + ".100" // the subnet is the cluster's
	linked := func(agent, way string) {
		t.Helper()
		c.await(agent+" is linked by way of "+way, func() string {
			var a AgentInfo
			err := c.clients[c.active()].get(t.Context(), "/v1/agents/"+agent, &a)
			if err != nil || len(a.Links) != 2 || a.Via["c1"] != way || a.Via["c2"] != way {
				return fmt.Sprintf("%+v, %v", a, err)
			}
			return ""
		})
	}
	c.join("agent", "a8", "agent.servers="+r1)
	linked("a8", "r1")
	c.join("relay", "r9", "relay.servers="+r1, "listen.api="+r9+":7600", "listen.link="+r9+":7602", "listen.raft="+r9+":7601")
	c.await("r9 is known", func() string {
		info, err := c.nodeInfo("c1", "r9")
		if err != nil || info.Mode != "Passive" {
			return fmt.Sprintf("%+v, %v", info, err)
		}
		return ""
	})
	c.join("agent", "a9", "agent.servers="+r9)
	linked("a9", "r9,r1")
}
