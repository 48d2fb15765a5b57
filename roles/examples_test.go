package roles

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The example that publishes a site does what it says, for real: the engine decides
// and each step that it sends is run by sh.
func TestPublishSite(t *testing.T) {
	for _, tool := range []string{"sh", "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: the example needs %s: %v", tool, err)
		}
	}
	text, err := os.ReadFile("../docs/examples/publish-site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := Decode("publish-site.yaml", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	site := filepath.Join(t.TempDir(), "site")
	served := func() string {
		version, err := os.ReadFile(filepath.Join(site, "current", "version.txt"))
		if err != nil {
			return "nothing"
		}
		return strings.TrimSpace(string(version))
	}
	const allRun = "prepare=succeeded build=succeeded check=succeeded switch=succeeded "
	for _, tt := range []struct {
		name, version, fault string
		want                 string
		serves               string
	}{
		{"broken page", "0.9", "check", "failed prepare=succeeded build=succeeded check=failed switch=skipped smoke=skipped rollback=skipped clean=succeeded", "nothing"},
		{"first publication fails", "0.9", "smoke", "succeeded " + allRun + "smoke=failed rollback=succeeded clean=succeeded", "nothing"},
		{"first", "1.0", "none", "succeeded " + allRun + "smoke=succeeded rollback=skipped clean=succeeded", "1.0"},
		{"again", "1.0", "none", "succeeded " + allRun + "smoke=succeeded rollback=skipped clean=succeeded", "1.0"},
		{"next", "1.1", "none", "succeeded " + allRun + "smoke=succeeded rollback=skipped clean=succeeded", "1.1"},
		{"rolled back", "1.2", "smoke", "succeeded " + allRun + "smoke=failed rollback=succeeded clean=succeeded", "1.1"},
		{"not a version", "../x", "none", "failed prepare=failed build=skipped check=skipped switch=skipped smoke=skipped rollback=skipped clean=succeeded", "1.1"},
	} {
		port := freePort(t)
		r, err := NewRequest(documents[0].Process, RequestOptions{ID: testID, Params: map[string]string{
			"directory": site, "version": tt.version, "fault": tt.fault, "port": fmt.Sprint(port),
		}})
		if err != nil {
			t.Fatal(err)
		}
		s := runWithShell(t, r)
		if got := summary(s); got != tt.want || served() != tt.serves {
			t.Errorf("%s:\ngot  %s, serving %s\nwant %s, serving %s", tt.name, got, served(), tt.want, tt.serves)
		}
		left, err := filepath.Glob(filepath.Join(site, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range left {
			if name := filepath.Base(path); name != "releases" && name != "current" {
				t.Errorf("%s: %s is left behind", tt.name, name)
			}
		}
	}
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// runWithShell is the smallest owner and agent: no store, no faults, no delays.
func runWithShell(t *testing.T, r *Request) State {
	s, err := NewState(r, 1)
	if err != nil {
		t.Fatal(err)
	}
	journal := Journal{ID: "j", Counter: 1}
	next := func(ev Event) {
		if s, _, err = Next(s, ev, "now"); err != nil {
			t.Fatal(err)
		}
	}
	next(Claimed{Fence{1, 1}})
	for !s.Record.Status.Final() {
		effects := Pending(s)
		if len(effects) == 0 {
			t.Fatalf("nothing to do in %s", summary(s))
		}
		for _, e := range effects {
			switch e.Kind {
			case EffectChooseAgent:
				next(AgentChosen{Step: e.Step, Agent: e.Agent, Journal: journal})
			case EffectWait:
				next(RetryDue{Step: e.Step, Attempt: e.Attempt})
			case EffectSend:
				code, output := shell(t, r, s.Def(s.Index(e.Step)))
				t.Logf("%s: exit %d\n%s", e.Step, code, output)
				next(Report{Agent: e.Agent, Step: e.Step, Attempt: e.Attempt, Journal: journal, State: AttemptExited, ExitCode: code})
			default:
				t.Fatalf("effect %+v", e)
			}
		}
	}
	return s
}

func shell(t *testing.T, r *Request, def *StepDef) (int, string) {
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", def.Run)
	cmd.Dir = t.TempDir()
	cmd.Env = os.Environ()
	for k, v := range r.Params {
		cmd.Env = append(cmd.Env, "UAC_PARAM_"+k+"="+v)
	}
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(output)
}
