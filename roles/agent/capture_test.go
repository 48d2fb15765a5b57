package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire"
)

func TestValuesAreReadFromLines(t *testing.T) {
	long := strings.Repeat("x", maxValue)
	for name, tt := range map[string]struct {
		text     string
		want     map[string]string
		problems []string
	}{
		"nothing":             {text: ""},
		"values":              {text: "a=1\nb= two words \n", want: map[string]string{"a": "1", "b": " two words "}},
		"last line is open":   {text: "a=1\nb=2", want: map[string]string{"a": "1", "b": "2"}},
		"empty":               {text: "a=\n", want: map[string]string{"a": ""}},
		"with =":              {text: "a=b=c\n", want: map[string]string{"a": "b=c"}},
		"UTF-8":               {text: "a=é\n", want: map[string]string{"a": "é"}},
		"empty lines":         {text: "\n\na=1\n\n", want: map[string]string{"a": "1"}},
		"the last one counts": {text: "a=1\nb=2\na=3\n", want: map[string]string{"a": "3", "b": "2"}},
		"no =":                {text: "a=1\nhello\n", want: map[string]string{"a": "1"}, problems: []string{"line 2: is not name=value"}},
		"not wanted":          {text: "c=1\n", problems: []string{`line 1: "c" is not among the outputs of the step`}},
		"blank in the name":   {text: "a =1\n", problems: []string{`line 1: "a " is not among the outputs of the step`}},
		"a long name":         {text: strings.Repeat("n", 100) + "=1\n", problems: []string{`line 1: "` + strings.Repeat("n", 40) + `"... is not among the outputs of the step`}},
		"not UTF-8":           {text: "a=\xff\n", problems: []string{"line 1: the value of a is not UTF-8"}},
		"a zero byte":         {text: "a=\x00\n", problems: []string{"line 1: the value of a has a zero byte"}},
		"replaced by rubbish": {text: "a=1\na=\xff\n", problems: []string{"line 2: the value of a is not UTF-8"}},
		"rubbish replaced":    {text: "a=\xff\na=1\n", want: map[string]string{"a": "1"}, problems: []string{"line 1: the value of a is not UTF-8"}},
		"as long as may be":   {text: "a=" + long + "\nb=" + long + "\n", want: map[string]string{"a": long, "b": long}},
		"too long":            {text: "a=" + long + "x\nb=2\n", want: map[string]string{"b": "2"}, problems: []string{"line 1: the value of a has 32769 bytes, at most 32768 are allowed"}},
		"too much":            {text: "z=1\nb=" + long + "\na=" + long + "\n", want: map[string]string{"a": long, "b": long}, problems: []string{"all values together have at most 65536 bytes: z is left out"}},
		"too large a file":    {text: "a=1\n" + strings.Repeat("\n", maxValuesFile-6) + "b=2\n", want: map[string]string{"a": "1"}, problems: []string{"more than 1048576 bytes: what follows is not read"}},
	} {
		got, problems := parseValues([]byte(tt.text), []string{"a", "b", "z"})
		if tt.want == nil {
			tt.want = map[string]string{}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(tt.problems, problems); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", name, diff)
		}
	}
}

// Nothing that a step can write may make the agent send what nobody can read.
func FuzzParseValues(f *testing.F) {
	f.Add([]byte("a=1\nb=\xff\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		values, problems := parseValues(text, []string{"a", "b"})
		size := 0
		for name, value := range values {
			size += len(value)
			if name != "a" && name != "b" || !strings.Contains("\n"+string(text)+"\n", "\n"+name+"="+value+"\n") || strings.ContainsAny(value, "\x00\n") {
				t.Errorf("%q=%q", name, value)
			}
		}
		for _, p := range problems {
			if len(p) > 300 || p != strings.ToValidUTF8(p, "") {
				t.Errorf("problem %q", p)
			}
		}
		if size > maxValues {
			t.Errorf("%d bytes", size)
		}
	})
}

func TestOutputsAreReportedUntilTheyAreAcknowledged(t *testing.T) {
	s := newStage(t)
	start := startOf(k1, 5, `echo version=1.4.2 >>"$UAC_OUTPUTS"; echo nonsense >>"$UAC_OUTPUTS"; exit 3`)
	start.Outputs = []string{"version", "missing"}
	s.l.start(start)
	want := &wire.End{Code: 3, Outputs: map[string]string{"version": "1.4.2"}, Reason: "outputs: line 2: is not name=value"}
	wantEnd(t, s.l.report(k1, wire.State_EXITED), want)
	s.restart()
	wantEnd(t, s.l.report(k1, wire.State_EXITED), want)
	wantEnd(t, &wire.Report{Attempt: s.l.adopt("R", 6).GetAttempts()[0]}, want)
	s.l.ack(k1, 6, false)
	if got := s.l.adopt("R", 6).GetAttempts()[0].GetEnd(); len(got.GetOutputs()) != 0 || got.GetCode() != 3 {
		t.Errorf("after the acknowledgement the end is %v", got)
	}
	// Who asks for none gets no file.
	s.l.start(startOf(k2, 6, `test -z "${UAC_OUTPUTS-}"`))
	wantEnd(t, s.l.report(k2, wire.State_EXITED), &wire.End{})
}

// The agent was away when the step ended; the step was found again before.
func TestOutputsOfAnAttemptThatWasFoundAgain(t *testing.T) {
	s := newStage(t)
	gate := filepath.Join(t.TempDir(), "gate")
	start := startOf(k1, 5, "echo a=1 >>$UAC_OUTPUTS\n"+s.note("begin")+"while ! test -e "+gate+"; do sleep 0.01; done; echo a=2 >>$UAC_OUTPUTS")
	start.Outputs = []string{"a"}
	s.l.start(start)
	s.waitNoted("begin\n")
	s.restart()
	s.l.report(k1, wire.State_RUNNING)
	s.a.stop()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := attemptDir(filepath.Join(s.dir, dirAttempts, k1.dir()))
	eventually(t, "an exit status", func() bool { return dir.said().exited })
	s.boot()
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Outputs: map[string]string{"a": "2"}})
}

// A step may do anything to the file. The agent must neither hang nor fail.
func TestOutputsThatAreNoFile(t *testing.T) {
	s := newStage(t)
	for name, script := range map[string]string{
		"pipe":      "rm $UAC_OUTPUTS; mkfifo $UAC_OUTPUTS",
		"link":      "ln -sf /etc/passwd $UAC_OUTPUTS",
		"directory": "rm $UAC_OUTPUTS; mkdir $UAC_OUTPUTS",
		"gone":      "rm $UAC_OUTPUTS",
		"device":    "rm $UAC_OUTPUTS; ln -s /dev/zero $UAC_OUTPUTS",
	} {
		k := key{"R", name, 1}
		start := startOf(k, 5, script)
		start.Outputs = []string{"a"}
		s.l.start(start)
		wantEnd(t, s.l.report(k, wire.State_EXITED), &wire.End{Outputs: map[string]string{}, Reason: "outputs: "})
	}
}
