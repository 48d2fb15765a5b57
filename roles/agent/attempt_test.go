package agent

import (
	"os"
	"strings"
	"testing"
)

// TestJudge is the table of DESIGN.md: what a restart concludes from what it finds.
func TestJudge(t *testing.T) {
	same := evidence{sameBoot: true}
	with := func(e evidence, change func(*evidence)) evidence { change(&e); return e }
	exited := func(e *evidence) { e.exited = true; e.code = 3 }
	held := func(e *evidence) { e.held = true }
	session := func(e *evidence) { e.session = true }
	started := func(e *evidence) { e.started = true }
	killing := func(e *evidence) { e.killing = true }
	stopping := func(e *evidence) { e.stopping = true }
	all := func(changes ...func(*evidence)) func(*evidence) {
		return func(e *evidence) {
			for _, c := range changes {
				c(e)
			}
		}
	}
	tests := []struct {
		name string
		e    evidence
		want verdict
	}{
		{"intent only", same, verdictNeverRan},
		{"wrapper alive, command not yet", with(same, held), verdictRunning},
		{"running", with(same, all(started, held)), verdictRunning},
		{"wrapper gone, child holds the pipe", with(same, all(started, held)), verdictRunning},
		{"wrapper gone, child closed the pipe", with(same, all(started, session)), verdictRunning},
		{"exited", with(same, all(started, exited)), verdictExited},
		{"exited, child holds the pipe", with(same, all(started, exited, held, session)), verdictExited},
		{"exited although being killed", with(same, all(started, exited, killing, stopping)), verdictExited},
		{"exited of TERM, child holds the pipe", with(same, all(started, exited, stopping, held)), verdictRunning},
		{"exited of TERM, child closed the pipe", with(same, all(started, exited, stopping, session)), verdictRunning},
		{"exited, child being killed", with(same, all(started, exited, stopping, killing, held, session)), verdictRunning},
		{"other boot, exited while being stopped", evidence{status: status{started: true, exited: true}, stopping: true, session: true}, verdictExited},
		{"wrapper and command gone", with(same, started), verdictUnknown},
		{"gone after TERM alone", with(same, all(started, stopping)), verdictUnknown},
		{"gone after KILL", with(same, all(started, stopping, killing)), verdictKilled},
		{"not yet gone after KILL", with(same, all(started, killing, held)), verdictRunning},
		{"killed before it started", with(same, all(stopping, killing)), verdictNever},
		{"stopped before it started", with(same, stopping), verdictNever},

		{"other boot, intent only", evidence{}, verdictUnknown},
		{"other boot, was running", evidence{status: status{started: true}}, verdictUnknown},
		{"other boot, was being killed", evidence{status: status{started: true}, killing: true, stopping: true}, verdictUnknown},
		{"other boot, exited", evidence{status: status{started: true, exited: true}}, verdictExited},
		{"other boot, a stranger has the number of the session", evidence{status: status{started: true}, session: true}, verdictUnknown},
	}
	for _, tt := range tests {
		if got := judge(tt.e); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestOnlyWholeLinesOfTheStatusCount(t *testing.T) {
	tests := map[string]status{
		"started 42\nexit 0 end\n":     {started: true, pid: 42, exited: true, code: 0},
		"started 42\nexit 255 end\n":   {started: true, pid: 42, exited: true, code: 255},
		"started 42\n":                 {started: true, pid: 42},
		"started 42\nexit":             {started: true, pid: 42},
		"started 42\nexit 1":           {started: true, pid: 42},
		"started 42\nexit 1 ":          {started: true, pid: 42},
		"started 42\nexit 1 end":       {started: true, pid: 42},
		"started 42\nexit 12 en":       {started: true, pid: 42},
		"started 42\nexit 256 end\n":   {started: true, pid: 42},
		"started 42\nexit -1 end\n":    {started: true, pid: 42},
		"started 42\nexit x end\n":     {started: true, pid: 42},
		"started 42\nexit 1 end\nmore": {started: true, pid: 42},
		"started 42\n\x00\x00\x00":     {started: true, pid: 42},
		"":                             {started: true},
		"started":                      {started: true},
		"started 42":                   {started: true},
		"started 0\n":                  {started: true},
		"started -1\n":                 {started: true},
		"exit 0 end\n":                 {started: true},
		"\x00\x00\x00\x00":             {started: true},
	}
	for text, want := range tests {
		if got := parseStatus(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestStatOfAProcess(t *testing.T) {
	tests := []struct {
		text string
		want procStat
		ok   bool
	}{
		{"42 (sh) S 1 42 41 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9", procStat{pid: 42, session: 41, start: 12345}, true},
		{"42 (a) b (c)) Z 1 42 41 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9", procStat{pid: 42, session: 41, dead: true, start: 12345}, true},
		{"42 (sh) S 1 42", procStat{}, false},
		{"42 sh S 1 42 41 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9", procStat{}, false},
		{"42 (sh) S 1 42 x 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9", procStat{}, false},
		{"", procStat{}, false},
	}
	for _, tt := range tests {
		got, err := parseStat(42, []byte(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %+v, %v", tt.text, got, err)
		}
	}
	if got, err := readStat(os.Getpid()); err != nil || got.start == 0 || got.dead {
		t.Errorf("this process: %+v, %v", got, err)
	}
}

func TestDirectoryNamesAreSafeAndDistinct(t *testing.T) {
	seen := map[string]key{}
	for _, k := range []key{
		{"R", "s", 1}, {"R", "s", 11}, {"R", "s~1", 1}, {"R~s", "1", 1}, {"R", "S", 1},
		{"..", "..", 1}, {".", "s", 1}, {"a/b", "c", 1}, {"a", "b/c", 1}, {"a%2Fb", "c", 1}, {"é", "\n", 1},
	} {
		name := k.dir()
		if strings.ContainsAny(name, "/\n\x00 ") || strings.HasPrefix(name, ".") {
			t.Errorf("%+v: %q", k, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%+v and %+v share %q", k, other, name)
		}
		seen[name] = k
		if p := k.problem(); p != "" {
			t.Errorf("%+v: %s", k, p)
		}
	}
	for _, k := range []key{{"", "s", 1}, {"R", "", 1}, {"R", "s", 0}, {"R", strings.Repeat("x", 201), 1}, {strings.Repeat("/", 100), "s", 1}} {
		if k.problem() == "" {
			t.Errorf("%+v was accepted", k)
		}
	}
}
