package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"uac/config"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// benchAgentsOptions are the flags of uac bench agents.
type benchAgentsOptions struct {
	benchOptions // without trials
	agents       int
	idle         time.Duration
}

func newBenchAgentsCommand(a *app) *cobra.Command {
	var opts benchAgentsOptions
	cmd := &cobra.Command{
		Use:   "agents",
		Short: "Measure what many idle agents cost, and how soon they are served after a loss",
		Long: `Measure, on a cluster of its own, what many agents that have nothing to do cost a
controller: memory and processor time, above those of the same controller before
they came. Each agent is a pair of links, one to each controller, with a
certificate of its own; two processes play the agents, one for each controller.

Then the Active is killed. All agents are served again when the new Active answers
ACTIVE and shows that it holds a link to each of them.`,
		Example: `  uac bench agents --agents 10000`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runBenchAgents(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.IntVar(&opts.agents, "agents", 1000, "`NUMBER` of agents")
	fs.DurationVar(&opts.idle, "idle", 20*time.Second, "for this `TIME` processor time is counted")
	opts.addClusterFlags(fs)
	return cmd
}

// agentsResult is what uac bench agents prints.
type agentsResult struct {
	Agents int `json:"agents"`
	// Connect is how long it took until all agents had their links.
	Connect float64 `json:"connect_seconds"`
	// Memory is what a controller takes more for each agent, in KiB.
	Memory map[string]float64 `json:"kib_per_agent"`
	// CPU is the share of one core that a controller takes while all are idle,
	// in percent; Before is the same without agents.
	CPU    map[string]float64 `json:"cpu_percent"`
	Before map[string]float64 `json:"cpu_percent_before"`
	// FirstWrite and Served are from the kill of the Active.
	FirstWrite float64 `json:"first_write_ms"`
	Served     float64 `json:"all_served_ms"`
}

func runBenchAgents(ctx context.Context, a *app, opts benchAgentsOptions) error {
	switch {
	case opts.agents < 1:
		return usageError("--agents: %d is less than 1", opts.agents)
	case opts.idle < time.Second:
		return usageError("--idle: %s is less than 1s", opts.idle)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && uint64(opts.agents)+500 > limit.Max {
		return usageError("--agents: a process may have %d open files here (ulimit -Hn)", limit.Max)
	}
	result := agentsResult{Agents: opts.agents}
	err := withBench(ctx, a, opts.benchOptions, nil, func(ctx context.Context, b *bench) error {
		return b.agents(ctx, opts.idle, &result)
	})
	if err != nil {
		return err
	}
	return printObject(a, result, func(w io.Writer, p paint) error {
		fmt.Fprintf(w, "%d agents, connected within %.1f s\n\n", result.Agents, result.Connect)
		fmt.Fprint(w, p.apply(bold, fmt.Sprintf("%-10s  %14s  %14s  %14s\n", "", "KiB an agent", "CPU idle", "CPU before")))
		for _, n := range []string{"c1", "c2"} {
			fmt.Fprintf(w, "%-10s  %14.1f  %12.1f %%  %12.1f %%\n", n, result.Memory[n], result.CPU[n], result.Before[n])
		}
		_, err := fmt.Fprintf(w, "\nfrom the kill of the Active: first write %.1f ms, all agents served %.0f ms\n", result.FirstWrite, result.Served)
		return err
	})
}

// agents measures what many agents cost.
func (b *bench) agents(ctx context.Context, idle time.Duration, result *agentsResult) error {
	controllers := b.controllers()
	before, cpuBefore, err := b.consumed(ctx, idle)
	if err != nil {
		return err
	}
	result.Before = cpuBefore
	players := map[string]*linkPlayer{}
	defer func() {
		for _, p := range players {
			p.close()
		}
	}()
	began := time.Now()
	for _, n := range controllers {
		if players[n.Name], err = b.play(ctx, n, result.Agents); err != nil {
			return err
		}
	}
	for _, n := range controllers {
		b.a.progress("connecting %d agents to %s", result.Agents, n.Name)
		if err := players[n.Name].expect(ctx, "ready"); err != nil {
			return err
		}
	}
	result.Connect = time.Since(began).Seconds()
	b.a.progress("%d agents are idle", result.Agents)
	// Records are written, garbage is collected, and links become idle ones.
	if err := pause(ctx, 15*time.Second); err != nil {
		return err
	}
	after, cpu, err := b.consumed(ctx, idle)
	if err != nil {
		return err
	}
	result.CPU, result.Memory = cpu, map[string]float64{}
	for _, n := range controllers {
		result.Memory[n.Name] = float64(after[n.Name].resident-before[n.Name].resident) / 1024 / float64(result.Agents)
	}

	victim, err := b.active(ctx)
	if err != nil {
		return err
	}
	heir := b.others(victim.Name)[0]
	ctx, cancel := context.WithTimeoutCause(ctx, benchPatience, errors.New("this took too long"))
	defer cancel()
	killed := time.Now()
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		return err
	}
	for {
		if b.nodes.mode(ctx, heir) == "ACTIVE" {
			break
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	result.FirstWrite = millis(time.Since(killed))
	b.askFirst(heir)
	for {
		var all []api.Agent
		if err := b.api.get(ctx, pathOf("agents"), nil, &all); err != nil {
			return err
		}
		served := 0
		for _, g := range all {
			if strings.HasPrefix(g.Name, playedAgent) && slices.Contains(g.Links, heir.Name) {
				served++
			}
		}
		if served == result.Agents {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%s serves %d of %d agents: %w", heir.Name, served, result.Agents, err)
		}
	}
	result.Served = millis(time.Since(killed))
	return nil
}

// playedAgent is how the names of the agents begin that are played.
const playedAgent = "many"

// consumed returns what the controllers take now, and the share of one core that they
// took meanwhile, in percent.
func (b *bench) consumed(ctx context.Context, d time.Duration) (map[string]usage, map[string]float64, error) {
	first, err := b.usage()
	if err != nil {
		return nil, nil, err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return nil, nil, err
	}
	now, err := b.usage()
	if err != nil {
		return nil, nil, err
	}
	share := map[string]float64{}
	for _, n := range b.controllers() {
		share[n.Name] = 100 * (now[n.Name].cpu - first[n.Name].cpu).Seconds() / time.Since(began).Seconds()
	}
	return now, share, nil
}

// linkPlayer is a process that plays many agents at one controller.
type linkPlayer struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func (b *bench) play(ctx context.Context, n devNode, agents int) (*linkPlayer, error) {
	address, err := linkAddress(n)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.sup.program, "bench", "links", "--pki", b.sup.cluster.file(devPKIDir), "--server", address, "--agents", strconv.Itoa(agents))
	cmd.Env = b.sup.environ
	cmd.Stderr = b.a.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &linkPlayer{cmd: cmd, in: in, lines: bufio.NewScanner(out)}, nil
}

func linkAddress(n devNode) (string, error) {
	if n.Address == "" {
		return "", fmt.Errorf("node %s has no address", n.Name)
	}
	return net.JoinHostPort(n.Address, strconv.Itoa(config.PortLink)), nil
}

// expect waits for a line.
func (p *linkPlayer) expect(ctx context.Context, word string) error {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	for p.lines.Scan() {
		if p.lines.Text() == word {
			return nil
		}
	}
	return fmt.Errorf("the process that plays the agents ended: %w", errors.Join(p.lines.Err(), ctx.Err()))
}

func (p *linkPlayer) close() {
	_ = p.in.Close() // it ends with its input
	_ = p.cmd.Wait() // how does not matter any more
}

// newBenchLinksCommand is what uac bench agents starts.
func newBenchLinksCommand(a *app) *cobra.Command {
	var dir, server string
	var agents int
	cmd := &cobra.Command{
		Use: "links", Short: "Play many agents at one controller", Hidden: true, Args: cobra.NoArgs,
		Example: `  uac bench links --pki DIR --server 127.0.0.2:7602 --agents 100`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return playLinks(cmd.Context(), a, dir, server, agents, os.Stdin)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "pki", "", "`DIR` of the authority")
	fs.StringVar(&server, "server", "", "`ADDRESS` of the controller's links")
	fs.IntVar(&agents, "agents", 1, "`NUMBER` of agents")
	return cmd
}

// playLinks holds links until its input ends. It says "ready" when all agents have been
// welcomed.
func playLinks(ctx context.Context, a *app, dir, server string, agents int, in io.Reader) error {
	authority, err := pki.OpenAuthority(dir)
	if err != nil {
		return err
	}
	tlsOf, err := authority.AgentLinks()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var welcomed atomic.Int64
	all := make(chan struct{}) // closed when all are welcomed
	g, gctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, 64) // handshakes at a time
	for i := range agents {
		g.Go(func() error {
			name := fmt.Sprintf("%s%05d", playedAgent, i)
			first := sync.OnceFunc(func() {
				if welcomed.Add(1) == int64(agents) {
					close(all)
				}
			})
			slots <- struct{}{}
			tc, err := tlsOf(name) // signs a certificate: once, or a lost link would cost the machine as much as all handshakes
			<-slots
			if err != nil {
				return err
			}
			for number := uint64(1); gctx.Err() == nil; number++ {
				slots <- struct{}{}
				stream, conn, err := openLink(gctx, tc, name, server, number)
				<-slots
				if err == nil {
					first()
					err = errors.Join(answerPings(stream), conn.Close())
				}
				if err != nil {
					_ = pause(gctx, time.Second) // gctx ends the loop
				}
			}
			return nil
		})
	}
	g.Go(func() error { // tells, and ends with the input
		defer cancel()
		select {
		case <-all:
			fmt.Fprintln(a.stdout, "ready")
		case <-gctx.Done():
			return nil
		}
		_, _ = io.Copy(io.Discard, in) // however it ends
		return nil
	})
	return g.Wait()
}

type linkStream interface {
	Send(*wire.AgentMessage) error
	Recv() (*wire.ControllerMessage, error)
}

// answerPings serves a link until it ends.
func answerPings(stream linkStream) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if ping := m.GetPing(); ping != nil {
			if err := stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{Number: ping.GetNumber()}}}); err != nil {
				return err
			}
		}
	}
}

func openLink(ctx context.Context, tc *tls.Config, name, server string, number uint64) (linkStream, io.Closer, error) {
	conn, err := wire.NewClient(wire.ClassLink, server, tc, wire.Options{})
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (linkStream, io.Closer, error) { return nil, nil, errors.Join(err, conn.Close()) }
	stream, err := wire.NewLinkClient(conn).Connect(ctx)
	if err != nil {
		return fail(err)
	}
	err = stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Hello{Hello: &wire.Hello{
		Name: name, Host: "bench", Version: "bench", BootId: "bench", Instance: name,
		Journal: &wire.Journal{Id: name, Counter: 1}, Link: &wire.LinkID{Number: number, Nonce: rand.Uint64()}, MaxAttempts: 1,
	}}})
	if err != nil {
		return fail(err)
	}
	if _, err := stream.Recv(); err != nil {
		return fail(err)
	}
	return stream, conn, nil
}
