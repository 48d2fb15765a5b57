package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire"
)

// other is a user that every machine has and that is not the one of the tests.
const other = "nobody"

// newOtherStage is a stage on which steps of another user can run. The ledger is
// writable for all.
func newOtherStage(t *testing.T, settings ...setting) *stage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT CHECKED: running steps as another user needs root")
	}
	s := newStage(t, settings...)
	for _, file := range []string{s.dir, s.ledger} {
		letPass(t, filepath.Dir(file))
	}
	if err := os.WriteFile(s.ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.ledger, 0o666); err != nil {
		t.Fatal(err)
	}
	return s
}

// letPass opens a directory that t.TempDir made for other users.
func letPass(t testing.TB, dir string) {
	t.Helper()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
}

func asOther(k key, script string) *wire.Start {
	start := startOf(k, 5, script)
	start.RunAs = other
	return start
}

// outputOf returns what an attempt has written.
func (s *stage) outputOf(k key) string {
	s.t.Helper()
	return readFile(s.t, s.a.dir(k).file(fileOutput))
}

func TestStepRunsAsItsUser(t *testing.T) {
	s := newOtherStage(t)
	start := asOther(k1, `id -u; id -g; id -G; echo "$HOME $USER $LOGNAME $SHELL"; pwd -P
echo "$COLOUR"; echo "$UAC_PARAM_version"; echo "$MULTI"
touch mine; ls -A
cat
echo name=value >>"$UAC_OUTPUTS"
echo to the terminal >>/dev/stderr
env | grep -c '^OF_THE_AGENT' || :
exit 3`)
	t.Setenv("OF_THE_AGENT", "secret")
	start.Env = map[string]string{"COLOUR": `it's "blue" $HOME`, "MULTI": "two\nlines"}
	start.Params = map[string]string{"version": "1.2; rm -rf /"}
	start.Stdin = []byte("input\n")
	start.Outputs = []string{"name"}
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 3})
	u, err := user.Lookup(other)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := exec.Command("id", "-G", other).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		u.Uid, u.Gid, strings.TrimSpace(string(groups)),
		u.HomeDir + " " + other + " " + other + " /bin/sh", s.a.dir(k1).file(dirWork),
		`it's "blue" $HOME`, "1.2; rm -rf /", "two\nlines", "mine", "input", "to the terminal", "0", "",
	}, "\n")
	if diff := cmp.Diff(want, s.outputOf(k1)); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if got := readFile(t, s.a.dir(k1).file(fileOutputs)); got != "name=value\n" {
		t.Errorf("outputs: %q", got)
	}
}

func TestStepMayNameTheAgentsOwnUser(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t)
	start := startOf(k1, 5, s.note("$(id -u)"))
	start.RunAs = u.Username
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{})
	s.wantNoted(u.Uid + "\n")
}

// Else a step that is going to fail could say that it has succeeded.
func TestTheUserCannotForgeTheExit(t *testing.T) {
	s := newOtherStage(t)
	start := asOther(k1, `set +e
dir=$(dirname "$PWD")
try() { "$@" 2>/dev/null && echo "worked: $*"; }
forge() { echo 'exit 0 end' >>"$dir/status"; }
try forge
try rm -f "$dir/status"
try mv "$dir/status" "$dir/other"
try ln -sf /etc/passwd "$UAC_OUTPUTS"
try rm -f "$UAC_OUTPUTS" "$dir/output" "$dir/alive"
try mv "$dir" "$dir.gone"
try ls "$dir"
try cat "$dir/alive"
try kill -TERM "$PPID"
try kill -KILL "$PPID"
printf x >&9
exit 3`)
	start.Outputs = []string{"a"}
	s.l.start(start)
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 3})
	if got := s.outputOf(k1); got != "" {
		t.Errorf("output: %q", got)
	}
	pid := s.a.dir(k1).said().pid
	if got, want := readFile(t, s.a.dir(k1).file(fileStatus)), fmt.Sprintf("started %d\nexit 3 end\n", pid); got != want {
		t.Errorf("status: %q, want %q", got, want)
	}
}

// What is still root must not see variables of the step: LD_PRELOAD would be enough to
// make any code of the user's run as root.
func TestWhatIsRootSeesNothingOfTheStep(t *testing.T) {
	s := newOtherStage(t)
	gate := filepath.Join(filepath.Dir(s.ledger), "gate")
	start := asOther(k1, s.note("begin")+"while ! test -e "+gate+"; do sleep 0.01; done")
	start.Env = map[string]string{"LD_PRELOAD": "/of/the/step.so", "PATH": "/usr/bin:/bin"}
	start.Params = map[string]string{"password": "of-the-step"}
	start.Stdin = []byte("of-the-step")
	s.l.start(start)
	s.waitNoted("begin\n")
	pid := s.a.dir(k1).said().pid
	members, err := process{pid: pid}.session()
	if err != nil || len(members) < 2 {
		t.Fatalf("session %v, %v", members, err)
	}
	for _, member := range members {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", member))
		if errors.Is(err, fs.ErrNotExist) && member != pid {
			continue // one of many that wait for the gate
		} else if err != nil {
			t.Fatal(err)
		}
		if line := string(line); strings.Contains(line, "of-the-step") || strings.Contains(line, "of/the/step") {
			t.Errorf("command line %q", line)
		}
	}
	env := readFile(t, fmt.Sprintf("/proc/%d/environ", pid))
	if want := strings.Join(minimalEnv(), "\x00") + "\x00"; env != want {
		t.Errorf("environment of the wrapper %q, want %q", env, want)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.l.report(k1, wire.State_EXITED)
	s.l.ack(k1, 5, false)
	for _, name := range []string{fileEnv, fileStdin} {
		eventually(t, name+" is removed", func() bool { _, err := os.Lstat(s.a.dir(k1).file(name)); return os.IsNotExist(err) })
	}
}

func TestStepOfAnotherUserIsStoppedAndFoundAgain(t *testing.T) {
	s := newOtherStage(t)
	gate := filepath.Join(filepath.Dir(s.ledger), "gate")
	stubborn, gentle, timed := key{"R", "stubborn", 1}, key{"R", "gentle", 1}, key{"R", "timed", 1}
	// The second process leaves the group.
	start := asOther(stubborn, "trap '' TERM; setsid sh -c 'trap \"\" TERM; "+strings.TrimSpace(s.note("ready"))+"; sleep 1000' & while :; do sleep 0.01; done")
	start.KillGraceNanos = int64(10 * time.Millisecond)
	s.l.start(start)
	s.waitNoted("ready\n")
	s.l.start(asOther(gentle, "trap 'exit 7' TERM; "+s.note("gentle")+"while :; do sleep 0.01; done"))
	s.waitNoted("ready\ngentle\n")
	s.l.start(asOther(k1, s.note("begin")+"while ! test -e "+gate+"; do sleep 0.01; done; exit 6"))
	s.waitNoted("ready\ngentle\nbegin\n")
	s.restart()
	for _, k := range []key{stubborn, gentle, k1} {
		s.l.report(k, wire.State_RUNNING)
	}
	s.l.kill(stubborn, 5)
	wantEnd(t, s.l.report(stubborn, wire.State_EXITED), &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_KILLED})
	s.l.kill(gentle, 5)
	wantEnd(t, s.l.report(gentle, wire.State_EXITED), &wire.End{Code: 7, Stopped: wire.Stop_KILLED})
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, s.l.report(k1, wire.State_EXITED), &wire.End{Code: 6})
	start = asOther(timed, "exec sleep 1000")
	start.TimeoutNanos = int64(20 * time.Millisecond)
	s.l.start(start)
	wantEnd(t, s.l.report(timed, wire.State_EXITED), &wire.End{Code: 143, Stopped: wire.Stop_TIMED_OUT})
}

func TestWhoCannotRunNeverStarts(t *testing.T) {
	s := newOtherStage(t)
	closed := filepath.Join(filepath.Dir(s.ledger), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct{ user, dir, reason string }{
		{"no-such-user", "", "run as no-such-user: this machine has no such user"},
		{other, closed, "user nobody cannot use " + closed},
		{other, "/no/such/directory", "/no/such/directory"},
	} {
		k := key{"R", strconv.Itoa(i), 1}
		start := startOf(k, 5, s.note("ran"))
		start.RunAs, start.Dir = tt.user, tt.dir
		s.l.start(start)
		wantEnd(t, s.l.report(k, wire.State_NEVER_STARTED), &wire.End{Reason: tt.reason})
		if s.a.dir(k).said().started {
			t.Errorf("%+v: a wrapper began", tt)
		}
	}
	s.barrier()
	s.wantNoted("")
}

// The node's directory is often closed to others (systemd's StateDirectoryMode=0700).
func TestAUserWhoCannotPassTheDataDirectoryNeverStarts(t *testing.T) {
	s := newOtherStage(t)
	above := filepath.Dir(s.dir)
	if err := os.Chmod(above, 0o700); err != nil {
		t.Fatal(err)
	}
	s.l.start(asOther(k1, s.note("ran")))
	wantEnd(t, s.l.report(k1, wire.State_NEVER_STARTED), &wire.End{Reason: "each directory above must let that user pass"})
	s.wantNoted("")
}

func TestLookupOfUsers(t *testing.T) {
	u, err := user.Lookup(other)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := lookupAccount(t.Context(), other, uid); a != nil || err != nil {
		t.Errorf("the agent's own user: %+v, %v", a, err)
	}
	if _, err := lookupAccount(t.Context(), other, uid-1); err == nil || !strings.Contains(err.Error(), "the agent is not root") {
		t.Errorf("an agent that is not root: %v", err)
	}
	if a, err := lookupAccount(t.Context(), other, 0); err != nil || a.name != other || int(a.uid) != uid || len(a.groups) == 0 {
		t.Errorf("an agent that is root: %+v, %v", a, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lookupAccount(gone, other, 0); err == nil || strings.Contains(err.Error(), "no such user") {
		t.Errorf("no answer is taken for a missing user: %v", err)
	}
	for _, text := range []string{"", "\n", "a:b\n", "alice:x:one:1:::/bin/sh\n", "alice:x:1:-1:::/bin/sh\n", ":x:1:1:::/bin/sh\n", "alice:x:4294967296:1:::/bin/sh"} {
		if a, err := parseAccount(text); err == nil {
			t.Errorf("%q is %+v", text, a)
		}
	}
	want := &account{name: "alice", uid: 4294967294, gid: 100, home: "/"}
	if a, err := parseAccount("alice:x:4294967294:100:Alice, A:::\n"); err == nil {
		t.Errorf("eight fields are %+v", a)
	} else if a, err = parseAccount("alice:x:4294967294:100:Alice, A::\n"); err != nil || !cmp.Equal(a, want, cmp.AllowUnexported(account{})) {
		t.Errorf("%+v, %v", a, err)
	}
	if g, err := parseGroups("100 27\n"); err != nil || !cmp.Equal(g, []uint32{100, 27}) {
		t.Errorf("groups %v, %v", g, err)
	}
	if g, err := parseGroups("staff"); err == nil {
		t.Errorf("groups %v", g)
	}
}
