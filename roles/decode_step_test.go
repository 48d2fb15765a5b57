package roles

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecodeStep(t *testing.T) {
	got, err := DecodeStep("step.yaml", strings.NewReader("# look\nname: warm\non: failure\nagent: {labels: {tier: web}}\nrun: |\n  warm up\ntimeout: 1m\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &StepDef{Name: "warm", On: OnFailure, Agent: Selector{Labels: map[string]string{"tier": "web"}}, Run: "warm up\n", Timeout: 60e9}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("step (-want +got):\n%s", diff)
	}
	for text, want := range map[string]string{
		"":    "step.yaml: is empty: it must define a step",
		"# x": "step.yaml: is empty: it must define a step",
		"[a]": `step.yaml:1:1: must be a mapping, not a list
step.yaml:1:1: name: is missing or empty
step.yaml:1:1: agent: is missing or empty: give name, labels or cluster
step.yaml:1:1: run: is missing or empty: give run or argv`,
		"a: b: c": "step.yaml:1: is not valid YAML: mapping values are not allowed in this context",
		"name: a\nagent: {name: a1}\nrun: x\n---\nname: b\n": "step.yaml: must define one step and nothing else",
		"name: a/b\nagent: {name: a1}\nrum: x\n": `step.yaml:1:7: name: "a/b" is not a name: use letters, digits, '.', '_' and '-', with a letter or digit first
step.yaml:3:1: unknown field "rum"; did you mean run?`,
		"name: a\nagent: {name: a1}\nrun: x\ntimeout: -1s\n": "step.yaml:4:10: timeout: -1s must not be negative",
		"name: &a a\n": "step.yaml:1:7: anchors and aliases are not supported: write the value where it is used",
		"kind: Process\nname: p\nsteps: []\n": `step.yaml:1:1: unknown field "kind"
step.yaml:1:1: agent: is missing or empty: give name, labels or cluster
step.yaml:1:1: run: is missing or empty: give run or argv
step.yaml:3:1: unknown field "steps"`,
		strings.Repeat("#", MaxDocument+1): "step.yaml: is larger than 1048576 bytes",
		"name: \xff":                       "step.yaml:1:7: is not valid UTF-8",
	} {
		if _, err := DecodeStep("step.yaml", strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

// Whatever the input, DecodeStep returns a step that is valid by itself, or says in
// lines what is wrong.
func FuzzDecodeStep(f *testing.F) {
	f.Add([]byte("name: a\nagent: {name: a1}\nrun: x\n"))
	f.Add([]byte("name: a\nneeds: [b]\non: failure\nagent: {labels: {x: y}}\nargv: [a, b]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := DecodeStep("f.yaml", strings.NewReader(string(text)))
		if (s == nil) == (err == nil) {
			t.Fatalf("step %v, error %v", s, err)
		}
		if s != nil {
			s.check(func(path, format string, _ ...any) { t.Fatalf("%s: %s", path, format) })
		}
	})
}
