package roles

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// deployWeb uses every field.
const deployWeb = `kind: Process
name: deploy-web
params:
  - {name: version, required: true}
  - {name: mirror, default: 1.10}
steps:
  - name: fetch
    agent: {name: web1.example.com}
    run: |                               # parameters arrive as environment
      echo "$UAC_PARAM_version"
      exit 0
    dir: /srv/web
    run_as: deploy
    stdin: "no newline"
    outputs: [digest, build.id]
    output_limit: 10MiB
    priority: -5
    success_codes: [0, 3]
    env: {PORT: 8080, DEBUG: true, EMPTY: ""}
  - name: switch
    needs: [fetch]
    agent: {labels: {tier: web, zone: "1"}}
    run: ln -sfn "/srv/web/$UAC_PARAM_version" /srv/web/current
    timeout: 30s
    kill_grace: 1m
    retry: {attempts: 3, delay: 1m30s}
    repeatable: true
    stop_when_alone: 5m
  - name: rollback
    needs: [switch]
    on: failure
    recovers: true
    agent: {labels: {zone: "1", tier: web}}
    argv: [./rollback.sh, --to, 1.10, ""]
  - name: everywhere
    for_each: {labels: {tier: web}}
    max_parallel: 2
    fail_fast: true
    run: "true"
  - name: some
    for_each: {names: [web1, web2]}
    run: "true"
`

func deployWebProcess() *Process {
	web := Selector{Labels: map[string]string{"tier": "web", "zone": "1"}}
	return &Process{
		Name:   "deploy-web",
		Params: []Param{{Name: "version", Required: true}, {Name: "mirror", Default: "1.10"}},
		Steps: []StepDef{
			{
				Name: "fetch", On: OnSuccess, Agent: Selector{Name: "web1.example.com"},
				Run: "echo \"$UAC_PARAM_version\"\nexit 0\n", Dir: "/srv/web", RunAs: "deploy", Stdin: "no newline",
				Outputs: []string{"digest", "build.id"}, OutputLimit: 10 << 20, Priority: -5, SuccessCodes: []int{0, 3},
				Env: map[string]string{"PORT": "8080", "DEBUG": "true", "EMPTY": ""},
			},
			{
				Name: "switch", Needs: []string{"fetch"}, On: OnSuccess, Agent: web,
				Run:     `ln -sfn "/srv/web/$UAC_PARAM_version" /srv/web/current`,
				Timeout: Duration(30 * time.Second), Retry: Retry{Attempts: 3, Delay: Duration(90 * time.Second)},
				Repeatable: true, KillGrace: Duration(time.Minute), StopWhenAlone: Duration(5 * time.Minute),
			},
			{Name: "rollback", Needs: []string{"switch"}, On: OnFailure, Recovers: true, Agent: web, Argv: []string{"./rollback.sh", "--to", "1.10", ""}},
			{Name: "everywhere", On: OnSuccess, ForEach: &Targets{Labels: map[string]string{"tier": "web"}}, MaxParallel: 2, FailFast: true, Run: "true"},
			{Name: "some", On: OnSuccess, ForEach: &Targets{Names: []string{"web1", "web2"}}, Run: "true"},
		},
	}
}

// webCluster uses every field.
const webCluster = `kind: AgentCluster
name: web
labels: {tier: web}
agents: [spare1, spare2]
distribution: least_load
limit: 10
agent_limit: 2
suspended: false
`

func TestDecode(t *testing.T) {
	running := false
	cluster := Document{Kind: KindAgentCluster, Name: "web", File: "web.yaml", Line: 1, AgentCluster: &AgentCluster{
		Name: "web", Labels: map[string]string{"tier": "web"}, Agents: []string{"spare1", "spare2"},
		Distribution: DistributeLeastLoad, Limit: 10, AgentLimit: 2, Suspended: &running,
	}}
	want := Document{Kind: KindProcess, Name: "deploy-web", File: "web.yaml", Line: 1, Process: deployWebProcess()}
	small := "kind: Process\nname: b\nsteps:\n- {name: a, agent: {name: a1}, run: x}\n"
	second := Document{Kind: KindProcess, Name: "b", File: "web.yaml", Process: &Process{
		Name:  "b",
		Steps: []StepDef{{Name: "a", On: OnSuccess, Agent: Selector{Name: "a1"}, Run: "x"}},
	}}
	at := func(d Document, line int) Document { d.Line = line; return d }
	for _, tt := range []struct {
		name, text string
		want       []Document
	}{
		{"nothing", "", nil},
		{"only comments", "# nothing\n---\n# here\n...\n", nil},
		{"one", deployWeb, []Document{want}},
		{"two", "---\n" + deployWeb + "---\n" + small, []Document{at(want, 2), at(second, 45)}},
		{"end marker", small + "...\n# over\n---\n\n" + deployWeb, []Document{at(second, 1), at(want, 9)}},
		{"a cluster", webCluster, []Document{cluster}},
		{"a cluster and a process of one name", strings.ReplaceAll(webCluster, "name: web", "name: b") + "---\n" + small, []Document{
			func(c AgentCluster) Document {
				c.Name = "b"
				return Document{Kind: KindAgentCluster, Name: "b", File: "web.yaml", Line: 1, AgentCluster: &c}
			}(*cluster.AgentCluster),
			at(second, 10),
		}},
		{"CRLF", strings.ReplaceAll(deployWeb, "\n", "\r\n"), []Document{want}},
		{"byte order mark", "\ufeff" + small, []Document{at(second, 1)}},
		{"JSON", `{"kind":"Process","name":"b","steps":[{"name":"a","agent":{"name":"a1"},"run":"x"}]}`, []Document{at(second, 1)}},
		{"on the marker's line", `--- {kind: Process, name: b, steps: [{name: a, agent: {name: a1}, run: x}]}`, []Document{at(second, 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode("web.yaml", strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("documents (-want +got):\n%s", diff)
			}
		})
	}
}

// Every message of the golden files is one that an operator will read.
func TestDecodeRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			documents, err := Decode(filepath.Base(file), bytes.NewReader(text))
			if err == nil || documents != nil {
				t.Fatalf("Decode returned %d documents and error %v", len(documents), err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// What is too large, too deep or no text at all is refused in one line, whatever
// else it contains.
func TestDecodeRefusesHostileInput(t *testing.T) {
	step := func(i int) string { return fmt.Sprintf("- {name: s%d, agent: {name: a1}, run: x}\n", i) }
	head := "kind: Process\nname: p\nsteps:\n"
	var many strings.Builder
	many.WriteString(head)
	for i := range MaxSteps + 1 {
		many.WriteString(step(i))
	}
	for _, tt := range []struct{ name, text, want string }{
		{"document of 10 MB", head + step(1) + "# " + strings.Repeat("x", 10<<20), "f.yaml:1: the document has 10485831 bytes, at most 1048576 are allowed"},
		{"second document too large", head + step(1) + "---\n# " + strings.Repeat("x", MaxDocument), "f.yaml:5: the document has 1048582 bytes, at most 1048576 are allowed"},
		{"input too large", strings.Repeat("# comment\n---\n", 2<<20), "f.yaml: is larger than 16777216 bytes"},
		{"too many documents", strings.Repeat("---\n", 2000), "f.yaml:1001: more than 1000 documents"},
		{"invalid UTF-8", head + "- {name: é\xff}", "f.yaml:4:11: is not valid UTF-8"},
		{"UTF-16", "\xff\xfek\x00i\x00", "f.yaml:1:1: is not valid UTF-8"},
		{"control character", head + "- {name: \x01}", "f.yaml:1: is not valid YAML: control characters are not allowed"},
		{"deep list", strings.Repeat("[", 5000), "f.yaml:1: is not valid YAML: did not find expected node content"},
		{"deep closed list", "kind: Process\nname: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "f.yaml:2:22: is nested deeper than 16 levels"},
		{"deeper list", strings.Repeat("[", 1<<20), "f.yaml:1: is not valid YAML: exceeded max depth of 10000"},
		{"deep mapping", strings.Repeat("{a: ", 200000), "f.yaml:1: is not valid YAML: exceeded max depth of 10000"},
		{"too many steps", many.String(), "f.yaml:4:1: steps: has 1001 steps, at most 1000 are allowed"},
		{"long script", head + "- {name: a, agent: {name: a1}, run: " + strings.Repeat("x", MaxRun+1) + "}", "f.yaml:4:37: steps[a].run: has 262145 bytes, at most 262144 are allowed"},
		{"long value", head + "- {name: a, agent: {name: a1}, run: x, env: {A: " + strings.Repeat("x", MaxValue+1) + "}}", "f.yaml:4:49: steps[a].env.A: has 32769 bytes, at most 32768 are allowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode("f.yaml", strings.NewReader(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("error: %v\nwant:  %s", err, tt.want)
			}
		})
	}
}

func TestDecodeTellsTheFirstProblems(t *testing.T) {
	text := "kind: Process\nname: p\n" + strings.Repeat("nmae: x\n", 10) + "steps:\n" + strings.Repeat("- x\n", 500)
	_, err := Decode("f.yaml", strings.NewReader(text))
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error is %T", err)
	}
	if last := problems[len(problems)-1]; len(problems) != maxProblems+1 || last.Error() != "f.yaml: and 410 more problems" {
		t.Errorf("%d problems, the last: %v", len(problems), last)
	}
}

func TestDecodeReturnsTheReadersError(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Decode("f.yaml", iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("error %v does not wrap the reader's", err)
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../docs/examples/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("%d examples, error %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if documents, err := Decode(file, bytes.NewReader(text)); err != nil || len(documents) == 0 {
			t.Errorf("%d documents, error %v", len(documents), err)
		}
	}
}

func TestEncodeReadsBack(t *testing.T) {
	var b bytes.Buffer
	if err := Encode(&b, deployWebProcess(), &Process{Name: "b", Steps: deployWebProcess().Steps[:1]}); err != nil {
		t.Fatal(err)
	}
	documents, err := Decode("b", &b)
	if err != nil || len(documents) != 2 {
		t.Fatalf("%d documents, error %v", len(documents), err)
	}
	if diff := cmp.Diff(deployWebProcess(), documents[0].Process); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	clusters, err := Decode("web.yaml", strings.NewReader(webCluster))
	if err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if err := Encode(&b, clusters[0].AgentCluster); err != nil || b.String() != webCluster {
		t.Errorf("cluster, error %v (-want +got):\n%s", err, cmp.Diff(webCluster, b.String()))
	}
	rapid.Check(t, func(t *rapid.T) {
		p := genProcess(t)
		var b bytes.Buffer
		if err := Encode(&b, p); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		documents, err := Decode("p.yaml", &b)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(p, documents[0].Process); diff != "" {
			t.Fatalf("process (-want +got):\n%s\n%s", diff, text)
		}
	})
}

// genProcess draws a process with every field and awkward texts.
func genProcess(t *rapid.T) *Process {
	name := rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,12}`)
	text := rapid.OneOf(
		rapid.SampledFrom([]string{"true", "~", "1.10", "0x1f", "yes", "2026-01-01", " lead", "trail ", "a: b", "# x", "- x", "a\tb", "a\n", "\n\na\n", "  a\n b\n", "a\n\tb\n\n  c\n", "a\n \nb", "a \nb\n\n", "a\r\nb", "---", "...", "!x", "&a", "*a", "<<", "é\u2028", "\ufeff"}),
		rapid.StringOf(rapid.Rune().Filter(func(r rune) bool { return r != 0 })),
	)
	value := func(label string) string {
		return rapid.OneOf(text, rapid.Just("")).Filter(func(s string) bool { return checkValue(s) == nil }).Draw(t, label)
	}
	p := &Process{Name: name.Draw(t, "process")}
	for _, n := range rapid.SliceOfNDistinct(rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,8}`), 0, 3, rapid.ID).Draw(t, "params") {
		q := Param{Name: n, Required: rapid.Bool().Draw(t, "required")}
		if !q.Required {
			q.Default = value("default")
		}
		p.Params = append(p.Params, q)
	}
	names := rapid.SliceOfNDistinct(name, 1, 5, rapid.ID).Draw(t, "steps")
	for i, n := range names {
		s := StepDef{Name: n, On: OnSuccess, Repeatable: rapid.Bool().Draw(t, "repeatable")}
		for _, need := range names[:i] {
			if rapid.Bool().Draw(t, "needed") {
				s.Needs = append(s.Needs, need)
			}
		}
		s.On = rapid.SampledFrom([]Condition{OnSuccess, OnFailure, OnAlways}).Draw(t, "on")
		if s.On == OnFailure && len(s.Needs) == 0 {
			s.On = OnAlways
		}
		s.Recovers = s.On == OnFailure && rapid.Bool().Draw(t, "recovers")
		switch rapid.IntRange(0, 5).Draw(t, "where") {
		case 4:
			s.Agent.Cluster = name.Draw(t, "cluster")
		case 5:
			s.ForEach = &Targets{Cluster: name.Draw(t, "cluster")}
		case 0:
			s.ForEach = &Targets{Names: rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{1,3}`), 1, 3, rapid.ID).Draw(t, "names")}
			s.MaxParallel = rapid.IntRange(0, MaxAgents).Draw(t, "parallel")
		case 1:
			s.ForEach = &Targets{Labels: map[string]string{"tier": "web"}}
			s.FailFast = rapid.Bool().Draw(t, "fail fast")
		case 2:
			s.Agent.Name = rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?`).Draw(t, "agent")
		default:
			s.Agent.Labels = rapid.MapOfN(name, rapid.StringMatching(`[A-Za-z0-9._-]{0,5}`), 1, 3).Draw(t, "labels")
		}
		if rapid.Bool().Draw(t, "argv") {
			s.Argv = rapid.SliceOfN(rapid.Just(""), 1, 3).Draw(t, "words")
			for i := range s.Argv {
				s.Argv[i] = value("word")
			}
			s.Argv[0] += "x"
		} else {
			s.Run = text.Filter(func(s string) bool { return strings.TrimSpace(s) != "" && checkText(s) == nil }).Draw(t, "run")
		}
		s.Stdin = value("stdin")
		s.RunAs = rapid.SampledFrom([]string{"", "deploy", "1000"}).Draw(t, "user")
		s.OutputLimit = Size(rapid.Int64Range(0, 1<<40).Draw(t, "output limit"))
		s.Priority = rapid.IntRange(-MaxPriority, MaxPriority).Draw(t, "priority")
		s.KillGrace = Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "grace"))
		if s.Repeatable {
			s.StopWhenAlone = Duration(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(int64(MinAlone), int64(time.Hour))).Draw(t, "alone"))
		}
		if codes := rapid.SliceOfNDistinct(rapid.IntRange(0, 255), 0, 3, rapid.ID).Draw(t, "codes"); len(codes) > 0 {
			s.SuccessCodes = codes
		}
		if rapid.Bool().Draw(t, "has outputs") {
			s.Outputs = []string{fmt.Sprint("out", i)}
		}
		if env := rapid.MapOfN(rapid.StringMatching(`[A-TV-Z][A-Z0-9_]{0,5}`), rapid.Just(""), 0, 3).Draw(t, "env"); len(env) > 0 {
			for k := range env {
				env[k] = value("value")
			}
			s.Env = env
		}
		if rapid.Bool().Draw(t, "has dir") {
			s.Dir = "/srv/" + name.Draw(t, "dir")
		}
		s.Timeout = Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "timeout"))
		s.Retry.Attempts = rapid.IntRange(0, MaxAttempts).Draw(t, "attempts")
		s.Retry.Delay = Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "delay"))
		p.Steps = append(p.Steps, s)
	}
	return p
}

// Whatever the input, Decode returns, with documents that are valid, or with
// problems that each take one line; and what it accepts it can write.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(deployWeb))
	f.Add([]byte(webCluster))
	f.Fuzz(func(t *testing.T, text []byte) {
		documents, err := Decode("f.yaml", bytes.NewReader(text))
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 || documents != nil {
				t.Fatalf("%d documents, error %T", len(documents), err)
			}
			for _, p := range problems {
				if strings.ContainsAny(p.Error(), "\n\r") || p.Message == "" {
					t.Fatalf("problem %q is not one line", p.Error())
				}
			}
			return
		}
		for _, d := range documents {
			if err := d.Definition().Validate(); err != nil || CheckName(d.Name) != nil || d.Line < 1 {
				t.Fatalf("%+v: %v", d, err)
			}
			var b bytes.Buffer
			if err := Encode(&b, d.Definition()); err != nil {
				t.Fatal(err)
			}
			written := b.String()
			again, err := Decode("again.yaml", &b)
			if err != nil || len(again) != 1 {
				t.Fatalf("%d documents, error %v from\n%s", len(again), err, written)
			}
			if diff := cmp.Diff(d.Definition(), again[0].Definition()); diff != "" {
				t.Fatalf("definition (-first +again):\n%s\n%s", diff, written)
			}
		}
	})
}
