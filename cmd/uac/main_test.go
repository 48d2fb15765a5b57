package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"uac/config"
	"uac/roles"
	"uac/roles/agent"
)

// result is what one run of the program left behind.
type result struct {
	code           exitCode
	stdout, stderr string
}

// execute runs the program in this process with no environment but vars.
func execute(t *testing.T, roots map[roles.Role]daemon, vars []string, args ...string) result {
	t.Helper()
	return executeContext(t, t.Context(), roots, vars, args...)
}

func executeContext(t *testing.T, ctx context.Context, roots map[roles.Role]daemon, vars []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(ctx, env{
		args: args, stdin: strings.NewReader(""), environ: vars,
		stdout: stream{Writer: &stdout}, stderr: stream{Writer: &stderr},
	}, roots)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// golden compares text with a file of testdata. UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "uac.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// What is wrong on the command line is said in one line, on standard error,
// with exit code 2, and nothing reaches standard output.
func TestWrongUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"nod", `uac has no command "nod"; did you mean uac node?`},
		{"nosuch", `uac has no command "nosuch"; see uac --help`},
		{"confg show", `uac has no command "confg"; did you mean uac config?`},
		{"config sho", `uac config has no command "sho"; did you mean uac config show?`},
		{"config", `uac config: which verb? One of check, sample, show`},
		{"config show extra", `uac config show: "extra" is one argument too many; usage: uac config show [flags]`},
		{"config show --roel=agent", `uac config show: unknown flag: --roel; did you mean --role?`},
		{"config show -z", `uac config show: unknown shorthand flag: 'z' in -z; see uac config show --help`},
		{"config show --config", `uac config show: flag needs an argument: --config`},
		{"version -o jsn", `uac version: invalid argument "jsn" for "-o, --output" flag: must be one of table, wide, json, yaml`},
		{"config show --set lease", `uac config show: invalid argument "lease" for "--set" flag: must be KEY=VALUE`},
		{"completion", `uac completion: bash|zsh|fish is missing; usage: uac completion bash|zsh|fish [flags]`},
		{"agent limit a1", `uac agent limit: STEPS is missing; usage: uac agent limit AGENT STEPS [flags]`},
		{"agent limit a1 -1", `uac agent limit: -1 is below zero; usage: uac agent limit AGENT STEPS [flags]`},
		{"agent limit -- a1 -1", `limit "-1": must be a number from 1 to 10000, or 0 for no limit`},
		{"agent limit a1 many", `limit "many": must be a number from 1 to 10000, or 0 for no limit`},
		{"event list --limit many", `uac event list: --limit: "many" is not a whole number`},
		{"event list --limit 99999999999999999999", `uac event list: --limit: "99999999999999999999" is too large or too small`},
		{"event list --since yesterday", `uac event list: --since: "yesterday" is not a time with a unit, like 90s, 15m or 2h`},
		{"request list --open=maybe", `uac request list: --open: "maybe" is neither true nor false`},
		{"node confirm-lost", `uac node confirm-lost: NODE... is missing; usage: uac node confirm-lost NODE... [flags]`},
		{"completion csh", `no completion for "csh"; there is bash, zsh, fish`},
		{"help nod", `uac has no command "nod"; did you mean uac node?`},
		{"help config sho", `uac config has no command "sho"; did you mean uac config show?`},
		{"--role=controler", `configuration: flag --role: node.role: "controler" is not one of controller, agent, relay, watch; did you mean controller?`},
		{"--role=relay --config " + os.DevNull, `configuration: relay.servers: is not set; a relay needs the controllers or relays to carry links to`},
		{"--role=agent --config " + os.DevNull, `configuration: agent.servers: is not set; an agent needs the controllers or relays to connect to`},
		{"--role=controller --config /nonexistent.yaml", `configuration: /nonexistent.yaml: cannot read: no such file or directory`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := execute(t, nil, nil, strings.Fields(tt.args)...)
			want := result{code: exitUsage, stderr: "error: " + tt.want + "\n"}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, tt := range []struct{ args, golden string }{
		{"", "help.txt"},
		{"help", "help.txt"},
		{"--help", "help.txt"},
		{"help exit-codes", "help-exit-codes.txt"},
		{"config check --help", "help-config-check.txt"},
		{"help config check", "help-config-check.txt"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := execute(t, nil, nil, strings.Fields(tt.args)...)
			if got.code != exitDone || got.stderr != "" {
				t.Errorf("exit code %d, standard error %q", got.code, got.stderr)
			}
			golden(t, tt.golden, got.stdout)
		})
	}
}

// Every code has a meaning in the help, and nothing else is there.
func TestExitCodesAreDocumented(t *testing.T) {
	if len(exitMeanings) != int(exitInDoubt)+1 {
		t.Errorf("%d codes are documented, the last code is %d", len(exitMeanings), exitInDoubt)
	}
	for code, meaning := range exitMeanings {
		if meaning == "" {
			t.Errorf("code %d has no meaning", code)
		}
	}
	if got := execute(t, nil, nil).stdout; !strings.Contains(got, "uac help exit-codes") {
		t.Error("the help does not say where the exit codes are")
	}
}

// Every verb says what it does and shows how.
func TestEveryVerbHasHelp(t *testing.T) {
	a := &app{}
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: the short help is missing or ends with a full stop", cmd.CommandPath())
		}
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Example == "" && cmd.Name() != "help" {
			t.Errorf("%s: there is no example", cmd.CommandPath())
		}
		if cmd.Run != nil {
			t.Errorf("%s: Run hides errors; use RunE", cmd.CommandPath())
		}
		for _, c := range cmd.Commands() {
			check(c)
		}
	}
	check(newRootCommand(a, nil))
}

// Whatever is wrong with the command line, and wherever it asks for JSON.
func TestUsageErrorsAsJSON(t *testing.T) {
	for _, args := range []string{
		"event list --limit x -o json", "event list -ojson --nosuch", "node show --output json", "node show a b --output=json",
		"nod -o json", "event list --since yesterday -o=json",
	} {
		got := execute(t, nil, nil, strings.Fields(args)...)
		var report struct {
			Error    string
			ExitCode int `json:"exit_code"`
		}
		if err := json.Unmarshal([]byte(got.stderr), &report); err != nil || got.code != exitUsage || report.ExitCode != 2 || report.Error == "" {
			t.Errorf("%s: %v, %+v", args, err, got)
		}
	}
	for _, args := range []string{"nod -o jsn", "nod -- -o json", "nod -o"} {
		if got := execute(t, nil, nil, strings.Fields(args)...); !strings.HasPrefix(got.stderr, "error: ") {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestErrorsAsJSON(t *testing.T) {
	got := execute(t, nil, nil, "config", "check", "-o", "json", "--role=agent", "--config", os.DevNull)
	var report struct {
		Error    string
		ExitCode int `json:"exit_code"`
	}
	if err := json.Unmarshal([]byte(got.stderr), &report); err != nil {
		t.Fatalf("%v in %q", err, got.stderr)
	}
	if report.ExitCode != 2 || got.code != 2 || !strings.Contains(report.Error, "agent.servers") {
		t.Errorf("code %d, reported %+v", got.code, report)
	}
}

func TestConfigVerbs(t *testing.T) {
	file := configFile(t, "node: {name: c1}\ncluster: {name: shop}\nmembers:\n- {name: c1, role: controller, address: h1}\n- {name: c2, role: controller, address: h2}\n")

	got := execute(t, nil, []string{"UAC_CLUSTER_LEASE=6s"}, "config", "check", "--role=controller", "--config", file)
	want := result{
		stdout: "settings of controller c1 are valid\n",
		stderr: "warning: members: 2 members survive the loss of no more nodes than 1 do: use an odd number\n",
	}
	if got != want {
		t.Errorf("check: got %+v, want %+v", got, want)
	}

	got = execute(t, nil, []string{"UAC_CLUSTER_LEASE=6s", "UAC_PKI_JOIN=hush-hush"}, "config", "show", "--role=agent", "--config", file,
		"-o", "json", "--set", "log.level=debug", "--set", "agent.servers=c1")
	var settings []config.Setting
	if err := json.Unmarshal([]byte(got.stdout), &settings); err != nil {
		t.Fatalf("%v in %+v", err, got)
	}
	shown := map[string]config.Setting{}
	for _, s := range settings {
		shown[s.Key] = s
	}
	for _, want := range []config.Setting{
		{Key: "node.role", Value: "agent", Origin: "flag --role"},
		{Key: "cluster.name", Value: "shop", Origin: file + ":2"},
		{Key: "cluster.lease", Value: "6s", Origin: "env UAC_CLUSTER_LEASE"},
		{Key: "log.level", Value: "debug", Origin: "flag --set"},
		{Key: "pki.join", Value: "********", Origin: "env UAC_PKI_JOIN"},
		{Key: "cluster.on_stop", Value: "handover", Origin: "default"},
	} {
		if shown[want.Key] != want {
			t.Errorf("show: got %+v, want %+v", shown[want.Key], want)
		}
	}
	if strings.Contains(got.stdout, "hush") {
		t.Error("show prints a secret")
	}

	if got := execute(t, nil, nil, "config", "sample"); got != (result{stdout: config.Sample()}) {
		t.Errorf("sample: %+v", got)
	}
}

func TestDaemon(t *testing.T) {
	file := configFile(t, "node: {name: c1, data_dir: /d}\nlog: {format: json}")
	var got daemonDeps
	roots := func(err error) map[roles.Role]daemon {
		return map[roles.Role]daemon{roles.RoleController: func(ctx context.Context, d daemonDeps) error {
			got = d
			if err == nil {
				<-ctx.Done()
			}
			return err
		}}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop() // the signal to stop
	r := executeContext(t, ctx, roots(nil), []string{"UAC_NODE_DATA_DIR=/from-env"}, "--role=controller", "--config", file, "--data-dir", "/from-flag")
	if r.code != exitDone || r.stdout != "" {
		t.Errorf("stopped by a signal: %+v", r)
	}
	if got.cfg.Node.Name != "c1" || got.cfg.Node.DataDir != "/from-flag" || got.origins.Of("node.name").Line != 1 {
		t.Errorf("the composition root got %+v", got.cfg)
	}
	for _, line := range strings.Split(strings.TrimSpace(r.stderr), "\n") {
		if !json.Valid([]byte(line)) || !strings.Contains(line, `"node":"c1"`) {
			t.Errorf("log line %q", line)
		}
	}
	for _, tt := range []struct {
		err  error
		want exitCode
	}{{errors.New("disk on fire"), exitFailed}, {usageError("wiped"), exitUsage}} {
		r := execute(t, roots(tt.err), nil, "--role=controller", "--config", file)
		if r.code != tt.want || !strings.Contains(r.stderr, "controller c1: "+tt.err.Error()) {
			t.Errorf("%v: %+v", tt.err, r)
		}
	}
}

// What an agent meets that another start does not mend is for an operator.
func TestAgentErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want exitCode
	}{
		{fmt.Errorf("run: %w", context.Canceled), exitDone},
		{fmt.Errorf("%w: /d", agent.ErrInUse), exitUsage},
		{fmt.Errorf("/d: %w", agent.ErrDamaged), exitUsage},
		{errors.New("disk on fire"), exitFailed},
	} {
		if got := codeOf(agentError(tt.err)); got != tt.want {
			t.Errorf("%v: exit code %d, want %d", tt.err, got, tt.want)
		}
	}
}

// A number of members that gives no safety for its last one is allowed; who
// starts a member of such a cluster is told once, and why.
func TestDaemonWarnsOfAnEvenNumberOfMembers(t *testing.T) {
	roots := map[roles.Role]daemon{
		roles.RoleController: func(context.Context, daemonDeps) error { return nil },
		roles.RoleWatch:      func(context.Context, daemonDeps) error { return nil },
	}
	for members, want := range map[int]string{
		1: "", 2: "2 members survive the loss of no more nodes than 1 do", 3: "", 4: "4 members survive the loss of no more nodes than 3 do",
	} {
		text := "log: {format: json}\nmembers:\n- {name: m1, role: controller, address: h1}\n"
		for i := 2; i <= members; i++ {
			text += fmt.Sprintf("- {name: m%[1]d, role: watch, address: h%[1]d}\n", i)
		}
		file := configFile(t, text)
		for _, as := range [][]string{{"--role=controller", "--name=m1"}, {"--role=watch", "--name=m2"}} {
			if as[1] == "--name=m2" && members < 2 {
				continue
			}
			r := execute(t, roots, nil, append(as, "--config", file)...)
			warnings := strings.Count(r.stderr, `"WARN"`)
			if r.code != exitDone || warnings != min(len(want), 1) || !strings.Contains(r.stderr, want) {
				t.Errorf("%d members, %s: %+v", members, as[0], r)
			}
			check := execute(t, nil, nil, append([]string{"config", "check", "--config", file}, as...)...)
			if warnings := strings.Count(check.stderr, "warning:"); check.code != exitDone || warnings != min(len(want), 1) || !strings.Contains(check.stderr, want) {
				t.Errorf("%d members, check of %s: %+v", members, as[0], check)
			}
		}
	}
}

// An address that cannot be bound is named with its setting and where that was
// set.
func TestListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	addr := taken.Addr().String()
	d := daemonDeps{origins: config.Origins{"listen.api": {Source: config.FromFile, Name: "uac.yaml", Line: 7}}}
	for _, tt := range []struct{ key, addr, want string }{
		{"listen.api", addr, "uac.yaml:7: listen.api: " + addr + " is in use by another process"},
		{"listen.link", addr, "listen.link: " + addr + " is in use by another process"},
		{"listen.link", "192.0.2.1:7602", "listen.link: 192.0.2.1:7602 is not an address of this machine"},
	} {
		l, err := d.listen(t.Context(), tt.key, tt.addr)
		if err == nil {
			_ = l.Close()
			t.Fatalf("%s: bound", tt.addr)
		}
		if err.Error() != tt.want || codeOf(err) != exitUsage {
			t.Errorf("got %q (code %d), want %q", err, codeOf(err), tt.want)
		}
	}
	l, err := d.listen(t.Context(), "listen.api", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		got := execute(t, nil, nil, "completion", shell)
		if got.code != exitDone || !strings.Contains(got.stdout, "uac") || got.stderr != "" {
			t.Errorf("%s: code %d, %q", shell, got.code, got.stderr)
		}
	}
	if got := execute(t, nil, nil, "__complete", "config", "s"); got.code != exitDone || !strings.Contains(got.stdout, "show\t") {
		t.Errorf("completing a verb: %+v", got)
	}
}
