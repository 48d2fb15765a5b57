package faulttest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutants are products with one rule taken out, and the scenario that must fail
// then. Tests that cannot fail prove nothing.
var mutants = []struct {
	name     string
	file     string
	old, new string
	scenario string
	trials   int // so many that it is all but certain to be caught
}{
	{
		name: "batches do not compare the chain key", file: "coord/chain.go",
		old:      "\t\tclientv3.Compare(clientv3.ModRevision(c.key), \"=\", c.rev),\n",
		scenario: "TestFrozenRaftLeader", trials: 6,
	},
	{
		name: "who once had trust has it for ever", file: "coord/mesh.go",
		old:      "\treturn m.trust.check(time.Now(), m.standing())\n",
		new:      "\tif m.standing().epoch != 0 {\n\t\treturn nil\n\t}\n\treturn m.trust.check(time.Now(), m.standing())\n",
		scenario: "TestFrozenActive", trials: 3,
	},
	{
		name: "an agent takes what runs for what never ran", file: "roles/agent/recover.go",
		old:      "\tswitch v := judge(e); v {\n",
		new:      "\tswitch v := judge(e)*0 + verdictNeverRan; v {\n",
		scenario: "TestAgentDies", trials: 1,
	},
}

// TestMutants builds every mutant and lets its scenario find it. Without
// UAC_FAULT_MUTANTS=1 it only makes sure that the rules are still where the
// mutants look for them.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			file := filepath.Join(root, m.file)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), m.old); n != 1 {
				t.Fatalf("%s has this rule %d times, want once:\n%s", m.file, n, m.old)
			}
			if os.Getenv("UAC_FAULT_MUTANTS") == "" {
				return
			}
			dir := t.TempDir()
			changed, overlay, program := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "uac")
			replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
			if err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string]string{changed: strings.Replace(string(text), m.old, m.new, 1), overlay: string(replaced)} {
				if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			build := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-o", program, "./cmd/uac")
			build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
			scenario := exec.Command(os.Args[0], "-test.v", "-test.run", "^"+m.scenario+"$")
			scenario.Env = append(os.Environ(), "UAC_FAULT_BINARY="+program, "UAC_FAULT_MUTANTS=", "TMPDIR="+t.TempDir(), fmt.Sprintf("UAC_FAULT_TRIALS=%d", m.trials))
			out, err := scenario.CombinedOutput()
			if err == nil {
				t.Errorf("%s did not notice it in %d trials:\n%s", m.scenario, m.trials, out)
			}
			if !strings.Contains(string(out), "the cluster is kept in") {
				t.Errorf("%s failed for another reason:\n%s", m.scenario, out)
			}
			for line := range strings.SplitSeq(string(out), "\n") {
				if strings.Contains(line, "_test.go:") || strings.Contains(line, "BROKEN PROMISE") {
					t.Log(line)
				}
			}
		})
	}
}
