package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"uac/config"
	"uac/roles"
)

// asProgram makes the test binary the program itself. The nodes that it starts
// inherit it.
const asProgram = "TEST_BINARY_IS_UAC=1"

func TestMain(m *testing.M) {
	if slices.Contains(os.Environ(), asProgram) {
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns the program with these arguments, not started.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = []string{asProgram, "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	return cmd
}

// uac runs the program as a process of its own.
func uac(t *testing.T, args ...string) result {
	t.Helper()
	cmd := program(t, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return result{code: exitCode(cmd.ProcessState.ExitCode()), stdout: stdout.String(), stderr: stderr.String()}
}

func mustUAC(t *testing.T, args ...string) result {
	t.Helper()
	r := uac(t, args...)
	if r.code != exitDone {
		t.Fatalf("uac %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r
}

// devTestDir returns where a test's cluster goes. The test leaves none running.
func devTestDir(t *testing.T) string {
	t.Helper()
	// A path longer than the kernel allows for sockets.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	t.Cleanup(func() {
		if c, err := loadDevCluster(dir); err != nil || c == nil {
			return
		}
		// Not with the test's context, which has ended.
		if err := runDevStop(context.WithoutCancel(t.Context()), &app{env: env{stdout: stream{Writer: io.Discard}}}, dir); err != nil && codeOf(err) != exitConflict {
			t.Error(err)
		}
	})
	return dir
}

func readCluster(t *testing.T, dir string) *devCluster {
	t.Helper()
	c, err := loadDevCluster(dir)
	if err != nil || c == nil {
		t.Fatalf("%v %v", c, err)
	}
	return c
}

// pids returns the processes of a cluster that runs.
func pids(t *testing.T, c *devCluster) []int {
	t.Helper()
	var all []int
	for _, n := range c.Nodes {
		if n.PID == 0 {
			t.Fatalf("%s does not run", n.Name)
		}
		all = append(all, n.PID)
	}
	return all
}

// awaitGone waits for the end of processes that are not this one's children.
func awaitGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if n != 1 {
			t.Errorf("process %d lives on (%v)", pid, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}

// until polls a condition: what happens in other processes sends no signal.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		if err := pause(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// A cluster in the background: made, killed in part, stopped, and started again.
func TestDevDetached(t *testing.T) {
	t.Parallel()
	dir := devTestDir(t)
	shown := decodeJSON[devCluster](t, mustUAC(t, "dev", "--dir", dir, "--detach", "-o", "json").stdout)
	shown.dir = dir
	c := readCluster(t, dir)
	if diff := cmp.Diff(&shown, c, cmp.AllowUnexported(devCluster{}, devNode{})); diff != "" {
		t.Errorf("cluster.json (-shown +file):\n%s", diff)
	}
	pids(t, c)
	contract := decodeJSON[struct{ Nodes []map[string]any }](t, mustRead(t, filepath.Join(dir, devClusterFile)))
	var names []string
	for _, n := range contract.Nodes {
		names = append(names, fmt.Sprint(n["name"], " ", n["role"]))
		for _, key := range []string{"pid", "api", "data_dir", "log"} {
			if n[key] == nil {
				t.Errorf("cluster.json: %v has no %s", n["name"], key)
			}
		}
	}
	want := []string{"c1 controller", "c2 controller", "w1 watch", "a1 agent", "a2 agent"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if r := uac(t, "dev", "--dir", dir); r.code != exitConflict || !strings.Contains(r.stderr, "uac dev stop --dir") {
		t.Errorf("a second one: %+v", r)
	}

	// D/env is all that a client needs.
	vars := envFile(t, dir)
	client, err := (&app{env: env{environ: vars}}).newClient()
	if err != nil {
		t.Fatal(err)
	}
	var agents []struct{ Connected bool }
	if err := client.get(t.Context(), "/v1/agents", nil, &agents); err != nil || len(agents) != 2 || !agents[0].Connected || !agents[1].Connected {
		t.Errorf("agents when it is ready: %+v, %v", agents, err)
	}

	// Killed is killed, and only that node.
	killed := decodeJSON[devKilled](t, mustUAC(t, "dev", "kill", "c1", "--dir", dir, "-o", "json").stdout)
	if killed.PID != c.Nodes[0].PID || killed.At <= 0 || killed.At > monotonic() {
		t.Errorf("killed %+v, was %+v", killed, c.Nodes[0])
	}
	awaitGone(t, killed.PID)
	after := readCluster(t, dir)
	if after.Nodes[0].PID != 0 || pids(t, &devCluster{Nodes: after.Nodes[1:]})[0] != c.Nodes[1].PID {
		t.Errorf("after the kill: %+v", after.Nodes)
	}
	until(t, "c2 is Active", func() bool {
		list := decodeJSON[[]devStatus](t, mustUAC(t, "dev", "status", "--dir", dir, "-o", "json").stdout)
		return !list[0].Running && list[1].Mode == "ACTIVE"
	})
	if r := uac(t, "dev", "kill", "c1", "--dir", dir); r.code != exitConflict || !strings.Contains(r.stderr, "c1 does not run") {
		t.Errorf("killed twice: %+v", r)
	}
	if r := uac(t, "dev", "start", "c9", "--dir", dir); r.code != exitNotFound || !strings.Contains(r.stderr, "c1, c2, w1, a1, a2") {
		t.Errorf("start of a stranger: %+v", r)
	}
	mustUAC(t, "dev", "start", "c1", "--dir", dir)
	again := readCluster(t, dir)
	if pid := again.Nodes[0].PID; pid == 0 || pid == killed.PID {
		t.Errorf("started again with pid %d", pid)
	}
	if r := uac(t, "dev", "start", "c1", "--dir", dir); r.code != exitConflict {
		t.Errorf("started twice: %+v", r)
	}
	// A node that dies of what is on its disk has not been started.
	mustUAC(t, "dev", "kill", "a1", "--dir", dir)
	journal := filepath.Join(c.Nodes[3].DataDir, "agent", "journal")
	good := mustRead(t, journal)
	if err := os.WriteFile(journal, []byte("not a journal\n"+good), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := uac(t, "dev", "start", "a1", "--dir", dir); r.code != exitFailed || r.stdout != "" ||
		!strings.Contains(r.stderr, "a1 ended at its start (exit status 2)") || !strings.Contains(r.stderr, journal+": the journal is damaged at byte 0") ||
		!strings.Contains(r.stderr, `docs/operations/agents.md, "A damaged journal"`) {
		t.Errorf("start of an agent with a damaged journal: %+v", r)
	}
	if err := os.WriteFile(journal, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	mustUAC(t, "dev", "start", "a1", "--dir", dir)
	again = readCluster(t, dir)
	// One that dies without being asked is known, too.
	if err := unix.Kill(again.Nodes[4].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of a2 is known", func() bool { return readCluster(t, dir).Nodes[4].PID == 0 })

	running := pids(t, &devCluster{Nodes: again.Nodes[:4]})
	if r := mustUAC(t, "dev", "stop", "--dir", dir); !strings.Contains(r.stdout, "stopped all nodes") {
		t.Errorf("stop: %+v", r)
	}
	for _, pid := range running {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d after the stop: %v", pid, err)
		}
	}
	for _, verb := range []string{"stop", "start c1", "kill c1"} {
		if r := uac(t, append(append([]string{"dev"}, strings.Fields(verb)...), "--dir", dir)...); r.code != exitConflict || !strings.Contains(r.stderr, "start it with: uac dev --dir") {
			t.Errorf("%s of a stopped cluster: %+v", verb, r)
		}
	}
	if r := uac(t, "dev", "--dir", dir, "--agents", "3"); r.code != exitConflict || !strings.Contains(r.stderr, "a1, a2") {
		t.Errorf("start with other nodes: %+v", r)
	}
	mustUAC(t, "dev", "--dir", dir, "--detach", "--agents", "2", "--set", "log.level=warn")
	if err := client.get(t.Context(), "/v1/agents", nil, &agents); err != nil || len(agents) != 2 {
		t.Errorf("the old token and data after a restart: %+v, %v", agents, err)
	}
	if now := readCluster(t, dir); now.Nodes[0].API != c.Nodes[0].API || !slices.Equal(now.Set, []string{"log.level=warn"}) {
		t.Errorf("after the restart: %+v", now)
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// envFile reads D/env as a shell does.
func envFile(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `. "$1" && env | grep ^UAC_`, "sh", filepath.Join(dir, devEnvFile))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// foreground runs a small cluster in the foreground until it is ready.
func foreground(t *testing.T, dir string) (cmd *exec.Cmd, nodes []int) {
	t.Helper()
	cmd = program(t, "dev", "--dir", dir, "--controllers", "1", "--watches", "0", "--agents", "1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "Ctrl-C ends it") {
			return cmd, pids(t, readCluster(t, dir))
		}
	}
	t.Fatalf("not ready: %v", cmd.Wait())
	return nil, nil
}

// Nothing is left of a cluster in the foreground, however its command ends. A
// node that another command started is no exception, nor are steps that run.
func TestDevForeground(t *testing.T) {
	t.Parallel()
	dir := devTestDir(t)
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		cmd, nodes := foreground(t, dir)
		mustUAC(t, "dev", "kill", "a1", "--dir", dir)
		mustUAC(t, "dev", "start", "a1", "--dir", dir)
		nodes = append(nodes, pids(t, readCluster(t, dir))...)

		// A step leaves its agent behind like this.
		output := filepath.Join(dir, "a1", "data", "agent", "output")
		step := exec.CommandContext(t.Context(), "sh", "-c", `exec > "$1"; echo; exec cat`, "sh", output)
		input, err := step.StdinPipe()
		if err == nil {
			err = step.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the step runs", func() bool { text, _ := os.ReadFile(output); return len(text) > 0 })

		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		if sig == unix.SIGINT {
			if err != nil {
				t.Errorf("after Ctrl-C: %v", err)
			}
			if err := step.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
				t.Errorf("the step ended with %v", err)
			}
		} else {
			_ = input.Close()
			_ = step.Wait() // not ended: nobody was left to do it
		}
		awaitGone(t, nodes...)
		if err := os.Remove(output); err != nil {
			t.Fatal(err)
		}
	}
	// What a killed command left is no obstacle.
	cmd, nodes := foreground(t, dir)
	mustUAC(t, "dev", "stop", "--dir", dir)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after a stop by another command: %v", err)
	}
	awaitGone(t, nodes...)

	// Nobody could stop a cluster whose directory is gone.
	cmd, nodes = foreground(t, dir)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("no word about the directory that is gone")
	}
	awaitGone(t, nodes...)
}

// A cluster that cannot start says why, and leaves nothing running.
func TestDevFailures(t *testing.T) {
	t.Parallel()
	dir := devTestDir(t)
	small := []string{"dev", "--dir", dir, "--controllers", "1", "--watches", "0", "--agents", "0", "--detach"}
	if r := uac(t, append(small, "--set", "cluster.leas=5s")...); r.code != exitUsage || !strings.Contains(r.stderr, "cluster.lease") {
		t.Errorf("unknown setting: %+v", r)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a directory: %v", err)
	}
	mustUAC(t, small...)
	mustUAC(t, "dev", "stop", "--dir", dir)
	c := readCluster(t, dir)

	taken, err := net.Listen("tcp", net.JoinHostPort(c.Nodes[0].Address, "7602"))
	if err != nil {
		t.Fatal(err)
	}
	if r := uac(t, small...); r.code != exitFailed || !strings.Contains(r.stderr, "the address of c1: "+taken.Addr().String()+" is in use") {
		t.Errorf("port in use: %+v", r)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(c.Nodes[0].DataDir, "pki", "node.crt")); err != nil {
		t.Fatal(err)
	}
	if r := uac(t, small...); r.code != exitFailed || !strings.Contains(r.stderr, "c1 ended while it started (exit status 2); the end of its log, "+c.Nodes[0].Log) || !strings.Contains(r.stderr, "node.crt") {
		t.Errorf("a node without a certificate: %+v", r)
	}
	if lock, err := lockDev(dir); err != nil {
		t.Errorf("somebody still runs the cluster: %v", err)
	} else if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

func TestDevUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for _, tt := range []struct {
		args string
		code exitCode
		want string
	}{
		{"dev --relays -1", exitUsage, "--relays: -1"},
		{"dev --controllers 0", exitUsage, "--controllers: 0"},
		{"dev --watches -1", exitUsage, "--watches: -1"},
		{"dev --controllers 201", exitUsage, "fit into a subnet"},
		{"dev --timeout 0s", exitUsage, "--timeout"},
		{"dev --dir=", exitUsage, "--dir"},
		{"dev --dir " + missing + "/deeper", exitUsage, missing},
		{"dev --dir " + dir, exitUsage, "not empty (precious)"},
		{"dev --dir " + missing + " --set foo", exitUsage, "KEY=VALUE"},
		{"dev strat c1", exitUsage, "did you mean uac dev start?"},
		{"dev kill", exitUsage, "uac dev kill: NODE is missing"},
		{"dev kill c1 --dir " + missing, exitNotFound, "make one with: uac dev --dir"},
		{"dev status --dir " + missing, exitNotFound, "make one with: uac dev --dir"},
		{"dev stop --dir " + dir, exitNotFound, "holds no cluster"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Chdir(t.TempDir())
			r := execute(t, nil, nil, strings.Fields(tt.args)...)
			if r.code != tt.code || !strings.Contains(r.stderr, tt.want) {
				t.Errorf("exit code %d, want %d; says %q, want %q in it", r.code, tt.code, r.stderr, tt.want)
			}
			if left := filesBelow(t); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused command left a directory: %v", err)
	}
}

// Two clusters never get the same addresses, nor addresses that others use.
func TestSubnets(t *testing.T) {
	first, guard, err := findSubnet(t.Context(), "/some/dir", 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = guard.Close() }()
	second, other, err := findSubnet(t.Context(), "/some/dir", 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if second == first {
		t.Errorf("both got %s", first)
	}
	if err := guard.Close(); err != nil {
		t.Fatal(err)
	}
	foreign, err := bind(t.Context(), devAddress(first, 3), config.PortLink)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = foreign.Close() }()
	for hosts, free := range map[int]bool{2: true, 3: false} {
		got, guard, err := findSubnet(t.Context(), "/some/dir", hosts)
		if err != nil {
			t.Fatal(err)
		}
		if (got == first) != free {
			t.Errorf("%d nodes got %s; the third address of %s is in use", hosts, got, first)
		}
		if err := guard.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Agents spread over the relays and controllers, and members know each other.
func TestDevConfig(t *testing.T) {
	c := newDevCluster("/d", devShape{controllers: 2, watches: 1, relays: 2, agents: 2}, []string{"log.level=debug"}, func(i int) string { return fmt.Sprintf("127.9.9.%d", i+1) })
	load := func(name string) config.Config {
		n, err := c.node(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := c.config(*n)
		if err != nil {
			t.Fatal(err)
		}
		cfg, _, err := config.Load(config.Options{File: configFile(t, string(text))})
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		return cfg
	}
	r1 := load("r1")
	if diff := cmp.Diff([]string{"127.9.9.1:7602", "127.9.9.2:7602"}, r1.Relay.Servers); diff != "" || r1.Listen.Link != "127.9.9.4:7602" || r1.Node.Advertise != "127.9.9.4" {
		t.Errorf("r1: %+v %+v; servers (-want +got):\n%s", r1.Listen, r1.Node, diff)
	}
	for name, want := range map[string][]string{
		"a1": {"127.9.9.4:7602", "127.9.9.5:7602", "127.9.9.1:7602", "127.9.9.2:7602"},
		"a2": {"127.9.9.5:7602", "127.9.9.4:7602", "127.9.9.2:7602", "127.9.9.1:7602"},
	} {
		if diff := cmp.Diff(want, load(name).Agent.Servers); diff != "" {
			t.Errorf("servers of %s (-want +got):\n%s", name, diff)
		}
	}
	w1 := load("w1")
	members := []config.Member{
		{Name: "c1", Role: roles.RoleController, Address: "127.9.9.1"},
		{Name: "c2", Role: roles.RoleController, Address: "127.9.9.2"},
		{Name: "w1", Role: roles.RoleWatch, Address: "127.9.9.3"},
	}
	if diff := cmp.Diff(members, w1.Members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if want := (config.Listen{API: "127.9.9.3:7600", Raft: "127.9.9.3:7601", Link: "127.9.9.3:7602"}); w1.Listen != want || w1.Node.DataDir != "/d/w1/data" {
		t.Errorf("w1: %+v %+v", w1.Listen, w1.Node)
	}
}

func TestShellWord(t *testing.T) {
	for _, word := range []string{"/tmp/x-1", "/tmp/a b", "it's", "$HOME", "", "`id`", `\`} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellWord(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q became %q (%v)", word, out, err)
		}
	}
	if got := shellWord("/tmp/plain"); got != "/tmp/plain" {
		t.Errorf("quoted without need: %s", got)
	}
}

func TestSettingsStayOut(t *testing.T) {
	got := withoutSettings([]string{"PATH=/bin", "UAC_TOKEN=x", "UAC_LOG_LEVEL=debug", "MY_UAC_X=y"})
	if diff := cmp.Diff([]string{"PATH=/bin", "MY_UAC_X=y"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// cluster.json of a cluster is what loads again.
func TestDevClusterFile(t *testing.T) {
	c := newDevCluster(t.TempDir(), devShape{controllers: 1}, []string{"a=b"}, func(int) string { return "127.9.9.1" })
	c.Subnet = "127.9.9"
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, readCluster(t, c.dir), cmp.AllowUnexported(devCluster{}, devNode{})); diff != "" {
		t.Errorf("(-saved +loaded):\n%s", diff)
	}
}
