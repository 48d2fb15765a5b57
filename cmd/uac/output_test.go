package main

import (
	"bytes"
	"errors"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/config"
)

type animal struct {
	Name  string `json:"name"`
	Legs  int    `json:"leg_count"`
	Notes []string
}

var animalColumns = []column[animal]{
	{title: "NAME", cell: func(a animal) string { return a.Name }},
	{title: "NOTE", wide: true, cell: func(a animal) string {
		if len(a.Notes) == 0 {
			return ""
		}
		return a.Notes[0]
	}},
	{title: "KIND", cell: func(animal) string { return "animal" }, color: func(animal) color { return green }},
}

// testApp returns an app that writes to the buffer.
func testApp(f format, terminal bool, vars ...string) (*app, *bytes.Buffer) {
	var out bytes.Buffer
	return &app{output: f, env: env{environ: vars, stdout: stream{Writer: &out, terminal: terminal}}}, &out
}

func TestPrintList(t *testing.T) {
	zoo := []animal{{Name: "cat", Legs: 4}, {Name: "grü\x1b[2Jn", Legs: 0, Notes: []string{"a <b>\nno: 1"}}}
	for _, tt := range []struct {
		name     string
		format   format
		terminal bool
		vars     []string
		items    []animal
		want     string
	}{
		{name: "table", format: formatTable, items: zoo,
			want: "NAME         KIND\ncat          animal\ngrü\\x1b[2Jn  animal\n"},
		{name: "wide", format: formatWide, items: zoo,
			want: "NAME         NOTE          KIND\ncat                        animal\ngrü\\x1b[2Jn  a <b>\\nno: 1  animal\n"},
		{name: "terminal", format: formatTable, terminal: true, items: zoo[:1],
			want: "\x1b[1mNAME\x1b[0m  \x1b[1mKIND\x1b[0m\ncat   \x1b[32manimal\x1b[0m\n"},
		{name: "NO_COLOR", format: formatTable, terminal: true, vars: []string{"NO_COLOR=1"}, items: zoo[:1],
			want: "NAME  KIND\ncat   animal\n"},
		{name: "json", format: formatJSON, terminal: true, items: zoo[1:],
			want: "[\n  {\n    \"name\": \"grü\\u001b[2Jn\",\n    \"leg_count\": 0,\n    \"Notes\": [\n      \"a <b>\\nno: 1\"\n    ]\n  }\n]\n"},
		{name: "yaml", format: formatYAML, items: []animal{{Name: "no", Notes: []string{}}, {Name: "007", Notes: []string{"a: b", "two\nlines"}}},
			want: "- name: \"no\"\n  leg_count: 0\n  Notes: []\n- name: \"007\"\n  leg_count: 0\n  Notes:\n    - \"a: b\"\n    - |-\n      two\n      lines\n"},
		{name: "nothing", format: formatTable, want: "NAME  KIND\n"},
		{name: "nothing as json", format: formatJSON, want: "[]\n"},
		{name: "nothing as yaml", format: formatYAML, want: "[]\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, out := testApp(tt.format, tt.terminal, tt.vars...)
			if err := printList(a, tt.items, animalColumns...); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	recorded := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}}}
	recorded.Main.Version = "v1.2.3"
	for _, tt := range []struct {
		name        string
		build, want buildInfo
	}{
		{"by the linker", buildInfo{Version: "v9", Commit: "c", Date: "d"}, buildInfo{Version: "v9", Commit: "c", Date: "d"}},
		{"recorded", buildInfo{}, buildInfo{Version: "v1.2.3", Commit: "abc", Date: "unknown"}},
	} {
		tt.build.fillFrom(recorded)
		if tt.build != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, tt.build, tt.want)
		}
	}
	a, out := testApp(formatYAML, false)
	if err := runVersion(a, buildInfo{Version: "v1"}); err != nil {
		t.Fatal(err)
	}
	if want := "version: v1\ncommit: \"\"\ndate: \"\"\ngo: \"\"\nplatform: \"\"\n"; out.String() != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestCodeOf(t *testing.T) {
	conflict := fail(exitConflict, "taken")
	for _, tt := range []struct {
		err  error
		want exitCode
	}{
		{nil, exitDone}, {errors.New("x"), exitFailed}, {conflict, exitConflict},
		{fail(exitInDoubt, "%w", conflict), exitInDoubt}, {errors.Join(errors.New("x"), conflict), exitConflict},
	} {
		if got := codeOf(tt.err); got != tt.want {
			t.Errorf("%v: code %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		name     string
		terminal bool
		log      config.Log
		want     func(line string) bool
	}{
		{"a file gets JSON", false, config.Log{Level: "info", Format: "auto"}, isJSON},
		{"a terminal gets text", true, config.Log{Level: "info", Format: "auto"}, hasColor},
		{"unless JSON is asked for", true, config.Log{Level: "info", Format: "json"}, isJSON},
		{"text without a terminal has no colour", false, config.Log{Level: "info", Format: "text"}, func(l string) bool { return !isJSON(l) && !hasColor(l) }},
		{"below the level", false, config.Log{Level: "warn", Format: "json"}, func(l string) bool { return l == "" }},
	} {
		var out bytes.Buffer
		a := &app{env: env{stderr: stream{Writer: &out, terminal: tt.terminal}}}
		newLogger(a, tt.log).Info("hello", "n", 1)
		if !tt.want(out.String()) {
			t.Errorf("%s: %q", tt.name, out.String())
		}
	}
}

func isJSON(line string) bool   { return len(line) > 0 && line[0] == '{' }
func hasColor(line string) bool { return bytes.Contains([]byte(line), []byte("\x1b[")) }
