package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uac/roles/controller/api/apitest"
)

// writeFiles writes files below a new directory and returns it.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// processDocument is a small process whose script has a comment of some size.
func processDocument(name string, size int) string {
	return fmt.Sprintf("kind: Process\nname: %s\nsteps:\n  - name: s\n    agent: {name: a1}\n    run: |\n      true # %s\n", name, strings.Repeat("x", size))
}

func TestApply(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"b.yaml":          processDocument("b1", 0) + "---\n" + processDocument("b2", 0),
		"a.yml":           processDocument("a1", 0),
		"sub/c.yaml":      processDocument("c1", 0),
		".hidden/d.yaml":  "not: even\na: [process",
		".e.yaml":         "nor this",
		"README.md":       "nor this",
		"sub/deeper/f.md": "nor this",
	})
	c := newCluster(t, apitest.State{})
	got := c.run(t, "apply", "-f", dir, "--dry-run")
	const table = "KIND     NAME  RESULT\nProcess  a1    created\nProcess  b1    created\nProcess  b2    created\nProcess  c1    created\n"
	if got != (result{stdout: table, stderr: "dry run: nothing was changed\n"}) {
		t.Errorf("dry run: %+v", got)
	}
	if got := c.run(t, "apply", "-f", dir, "--why", "first"); got != (result{stdout: table}) {
		t.Errorf("apply: %+v", got)
	}
	got = c.run(t, "apply", "-f", filepath.Join(dir, "a.yml"), "-f", filepath.Join(dir, "b.yaml"), "-o", "json")
	if n := strings.Count(got.stdout, `"result": "unchanged"`); n != 3 || got.code != exitDone {
		t.Errorf("again: %+v", got)
	}
	want := []string{"Apply a1,b1,b2,c1 true by admin", "Apply a1,b1,b2,c1 false by admin because first", "Apply a1,b1,b2 false by admin"}
	if calls := c.Calls(); strings.Join(calls, "\n") != strings.Join(want, "\n") {
		t.Errorf("calls: %q", calls)
	}
	if got := c.runAt(t, processDocument("stdin", 0), false, "apply", "-f", "-"); got.stdout != "KIND     NAME   RESULT\nProcess  stdin  created\n" {
		t.Errorf("standard input: %+v", got)
	}
}

// What export prints, apply takes, and nothing changes by it.
func TestExportIsWhatApplyTakes(t *testing.T) {
	c := newCluster(t, sampleState())
	exported := c.run(t, "export")
	golden(t, "export.txt", exported.stdout)
	other := newCluster(t, apitest.State{})
	if got := other.runAt(t, exported.stdout, false, "apply", "-f", "-"); got.code != exitDone || strings.Count(got.stdout, "created") != 4 {
		t.Errorf("into an empty cluster: %+v", got)
	}
	if got := other.run(t, "export"); got != exported {
		t.Errorf("and out again: %+v", got)
	}
	if got := c.runAt(t, exported.stdout, false, "apply", "-f", "-"); strings.Count(got.stdout, "unchanged") != 2 {
		t.Errorf("into the same cluster: %+v", got)
	}
	if got := c.run(t, "export", "nightly"); strings.Count(got.stdout, "kind: Process") != 1 || !strings.Contains(got.stdout, "name: nightly") {
		t.Errorf("one of them: %+v", got)
	}
}

// With a mistake in any document nothing is sent, and each mistake has its
// place.
func TestApplyRefuses(t *testing.T) {
	good := processDocument("good", 0)
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string // lines, after DIR/ is taken away
	}{
		{"unknown field", map[string]string{"a.yaml": good, "b.yaml": good + "---\nkind: Process\nname: bad\nstep: []\nsteps:\n  - {name: s, agent: {name: a1}, run: x, rum: y}\n"},
			[]string{`b.yaml:11:1: unknown field "step"; did you mean steps?`, `b.yaml:13:42: steps[s]: unknown field "rum"; did you mean run?`}},
		{"twice", map[string]string{"a.yaml": good, "b.yaml": "# again\n" + good}, []string{"b.yaml:2: Process good is in a.yaml:1 already"}},
		{"cycle", map[string]string{"a.yaml": strings.Replace(good, "    run:", "    needs: [s]\n    run:", 1)},
			[]string{"a.yaml:6:12: steps[s].needs: is a cycle: s needs s"}},
		{"invalid UTF-8", map[string]string{"a.yaml": "kind: Process\nname: \xff\n"}, []string{"a.yaml:2:7: is not valid UTF-8"}},
		{"10 MB", map[string]string{"a.yaml": processDocument("big", 10<<20)}, []string{"a.yaml:1: the document has 10485850 bytes, at most 1048576 are allowed"}},
		{"bomb", map[string]string{"a.yaml": "kind: Process\nname: x\na: &a [1,2]\nsteps: [*a, *a]\n"}, []string{"a.yaml:3:4: anchors and aliases are not supported"}},
		{"name with a slash", map[string]string{"a.yaml": strings.Replace(good, "name: s", "name: s/t", 1)}, []string{`a.yaml:4:11: steps[0].name: "s/t" is not a name`}},
		{"negative duration", map[string]string{"a.yaml": strings.Replace(good, "    run:", "    timeout: -1s\n    run:", 1)}, []string{"a.yaml:6:14: steps[s].timeout: -1s must not be negative"}},
		{"not YAML", map[string]string{"a.yaml": "kind: [Process\n"}, []string{"a.yaml:1: is not valid YAML"}},
		{"nothing", map[string]string{"a.yaml": "# only a comment\n"}, []string{"DIR: no documents"}},
		{"no files", map[string]string{"a.txt": good}, []string{"DIR: no *.yaml or *.yml files"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := writeFiles(t, tt.files)
			c := newCluster(t, apitest.State{})
			got := c.run(t, "apply", "-f", dir)
			text := strings.ReplaceAll(strings.ReplaceAll(got.stderr, dir+"/", ""), dir, "DIR")
			if got.code != exitUsage || got.stdout != "" {
				t.Errorf("%+v", got)
			}
			for _, line := range tt.want {
				if !strings.Contains(text, line) {
					t.Errorf("%q is not in %q", line, text)
				}
			}
			if calls := c.Calls(); len(calls) > 0 {
				t.Errorf("sent %q", calls)
			}
		})
	}
	c := newCluster(t, apitest.State{})
	if got := c.run(t, "apply", "-f", "/nonexistent.yaml"); got.code != exitUsage || !strings.Contains(got.stderr, "/nonexistent.yaml: no such file or directory") {
		t.Errorf("no such file: %+v", got)
	}
}

// More than one call can carry goes in several.
func TestApplyInParts(t *testing.T) {
	files := map[string]string{}
	for i := range 10 {
		files[fmt.Sprintf("p%d.yaml", i)] = processDocument(fmt.Sprintf("p%d", i), 240<<10)
	}
	c := newCluster(t, apitest.State{})
	got := c.run(t, "apply", "-f", writeFiles(t, files))
	if got.code != exitDone || strings.Count(got.stdout, "created") != 10 {
		t.Errorf("%+v", got)
	}
	want := []string{"Apply p0,p1,p2,p3 false by admin", "Apply p4,p5,p6,p7 false by admin", "Apply p8,p9 false by admin"}
	if calls := c.Calls(); strings.Join(calls, "\n") != strings.Join(want, "\n") {
		t.Errorf("calls: %q", calls)
	}
}
