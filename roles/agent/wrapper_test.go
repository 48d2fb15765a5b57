package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"uac/roles/wire"
)

// wrapped is an attempt that was launched without an agent.
type wrapped struct {
	t testing.TB
	attemptDir
	process
	pipe *os.File
}

func launchIn(t testing.TB, dir attemptDir, script string, env map[string]string) *wrapped {
	t.Helper()
	l, err := newLauncher(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	j := l.job(&wire.Start{Request: "R", Step: "s", Attempt: 1, Script: script, Env: env}, dir, nil)
	if err := dir.prepare(j, spare(t, dir)); err != nil {
		t.Fatal(err)
	}
	return launchPrepared(t, l, dir, j)
}

// newTestLauncher returns a launcher and the name of a directory for an attempt, which
// any user may pass through to.
func newTestLauncher(t testing.TB) (*launcher, attemptDir) {
	t.Helper()
	root := t.TempDir()
	letPass(t, root)
	l, err := newLauncher(root)
	if err != nil {
		t.Fatal(err)
	}
	return l, attemptDir(filepath.Join(root, "attempt"))
}

// spare returns spare directories on the file system where dir will be.
func spare(t testing.TB, dir attemptDir) *spares {
	t.Helper()
	s, err := newSpares(filepath.Join(filepath.Dir(string(dir)), "spares"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func launchPrepared(t testing.TB, l *launcher, dir attemptDir, j job) *wrapped {
	t.Helper()
	p, pipe, err := l.launch(dir, j)
	if err != nil {
		t.Fatal(err)
	}
	w := &wrapped{t, dir, p, pipe}
	t.Cleanup(func() {
		_ = p.signal(syscall.SIGKILL)
		_, _ = syscall.Wait4(p.pid, nil, 0, nil)
		pipe.Close()
	})
	return w
}

func launch(t testing.TB, script string) *wrapped {
	t.Helper()
	return launchIn(t, attemptDir(filepath.Join(t.TempDir(), "attempt")), script, nil)
}

// news waits for a byte in the pipe, or for its end (false).
func (w *wrapped) news() bool {
	w.t.Helper()
	if err := w.pipe.SetReadDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	n, err := w.pipe.Read(make([]byte, 1))
	if err != nil && err != io.EOF {
		w.t.Fatalf("wait for news: %v", err)
	}
	return n > 0
}

// code waits for the wrapper's word and returns the exit status, -1 if there is none.
func (w *wrapped) code() int32 {
	w.t.Helper()
	w.news()
	st := w.said()
	if !st.exited {
		return -1
	}
	return st.code
}

// said returns what the wrapper has written down.
func (d attemptDir) said() status {
	st, err := d.status()
	if err != nil {
		return status{}
	}
	return st
}

func (w *wrapped) output() string {
	w.t.Helper()
	text, err := os.ReadFile(w.file(fileOutput))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// saying waits until the script has said something.
func (w *wrapped) saying(what string) {
	w.t.Helper()
	eventually(w.t, "output "+what, func() bool { return strings.Contains(w.output(), what) })
}

// eventually waits for something that nothing announces to a test.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func TestWrapperTellsEveryExitStatus(t *testing.T) {
	for code := range 256 {
		if got := launch(t, fmt.Sprintf("exit %d", code)).code(); got != int32(code) {
			t.Errorf("exit %d: %d", code, got)
		}
	}
}

func TestWrapperTellsSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGPIPE, syscall.SIGUSR1} {
		if got := launch(t, fmt.Sprintf("kill -%d $$", sig)).code(); got != 128+int32(sig) {
			t.Errorf("%v: %d", sig, got)
		}
	}
}

// An agent that was started with nohup, or in the background of a shell.
func TestStepsHeedSignalsThatTheAgentIgnores(t *testing.T) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR1)
	w := launch(t, "trap 'echo trapped' USR1\nkill -USR1 $$\nkill -HUP $$")
	if got := w.code(); got != 128+int32(syscall.SIGHUP) || !strings.HasPrefix(w.output(), "trapped\n") {
		t.Errorf("status %d, output %q", got, w.output())
	}
}

func TestScriptStopsAtTheFirstFailure(t *testing.T) {
	w := launch(t, "echo one\nfalse\necho two")
	if code := w.code(); code != 1 || w.output() != "one\n" {
		t.Errorf("exit %d, output %q", code, w.output())
	}
}

// If that came later, a wrapper that is killed in between would look as if it had
// never run the command.
func TestStartedIsWrittenBeforeTheCommandRuns(t *testing.T) {
	w := launch(t, "cat ../status; test \"$(cat ../status)\" = \"started $PPID\"")
	if code := w.code(); code != 0 || w.output() != fmt.Sprintf("started %d\n", w.pid) {
		t.Errorf("exit %d, output %q", code, w.output())
	}
}

func TestScriptMayNameItsInterpreter(t *testing.T) {
	w := launch(t, "#!/usr/bin/env -S awk -f\nBEGIN { print 6*7; exit 4 }")
	if code := w.code(); code != 4 || w.output() != "42\n" {
		t.Errorf("exit %d, output %q", code, w.output())
	}
	if code := launch(t, "#!/no/such/interpreter\n").code(); code != 126 && code != 127 {
		t.Errorf("exit %d without an interpreter", code)
	}
}

func TestWrapperSurvivesSignalsToItsGroup(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		w := launch(t, "echo ready; exec sleep 1000")
		w.saying("ready")
		if err := syscall.Kill(-w.pid, sig); err != nil {
			t.Fatal(err)
		}
		if got := w.code(); got != 128+int32(sig) {
			t.Errorf("%v: %d", sig, got)
		}
	}
}

func TestCommandMayHandleTERM(t *testing.T) {
	w := launch(t, "trap 'echo cleaning; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
	w.saying("ready")
	if err := w.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := w.code(); got != 7 || !strings.Contains(w.output(), "cleaning") {
		t.Errorf("exit %d, output %q", got, w.output())
	}
}

func TestKILLOfTheSessionLeavesNothing(t *testing.T) {
	// One child in the group, one in a group of its own.
	w := launch(t, "sleep 1000 & perl -e 'setpgrp; print \"ready\\n\"; $|=1; print \"\"; sleep 1000' & wait")
	w.saying("ready")
	if err := w.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if w.news() {
		t.Error("there is news from a killed attempt")
	}
	if st := w.said(); st.exited {
		t.Errorf("a killed wrapper wrote exit %d", st.code)
	}
	eventually(t, "an empty session", func() bool {
		members, err := w.session()
		return err == nil && len(members) == 0
	})
}

// The exit status finds room on a full disk, in the block that is there already.
func TestExitStatusFindsRoomOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT CHECKED: mounting a small file system needs root")
	}
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("NOT CHECKED: cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := launchIn(t, attemptDir(filepath.Join(root, "attempt")), "cat /dev/zero >big 2>/dev/null || exit 9", nil)
	if code := w.code(); code != 9 {
		t.Errorf("exit %d", code)
	}
}

func TestOutputMayBeLarge(t *testing.T) {
	const lines = 200_000 // well above what pipes hold
	w := launch(t, fmt.Sprintf("seq %d; seq %d >&2", lines, lines))
	if code := w.code(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	n := 0
	for s := bufio.NewScanner(strings.NewReader(w.output())); s.Scan(); n++ {
		if want := strconv.Itoa(n%lines + 1); s.Text() != want {
			t.Fatalf("line %d is %q, want %q", n, s.Text(), want)
		}
	}
	if n != 2*lines {
		t.Errorf("%d lines, want %d", n, 2*lines)
	}
}

func TestExitIsToldWhileAChildLivesOn(t *testing.T) {
	w := launch(t, "sleep 1000 & echo child $!; exit 5")
	if got := w.code(); got != 5 {
		t.Errorf("exit %d", got)
	}
	if h, err := held(w.pipe); err != nil || !h {
		t.Errorf("pipe held: %v, %v", h, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(w.output(), "child ")))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = syscall.Wait4(w.pid, nil, 0, nil)
	if members, err := w.session(); err != nil || !slices.Equal(members, []int{pid}) {
		t.Errorf("session %v, %v; want %d", members, err, pid)
	}
	// Somebody who only reads the pipe is none.
	reader := exec.Command("sleep", "1000")
	reader.ExtraFiles = []*os.File{w.pipe}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Process.Kill(); _ = reader.Wait() }()
	if pids, err := holders(w.file(fileAlive)); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("holders %v, %v; want %d", pids, err, pid)
	}
	if err := w.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if w.news() {
		t.Error("the pipe is still held")
	}
}

func TestCommandSeesACleanWorld(t *testing.T) {
	t.Setenv("OF_THE_AGENT", "secret")
	w := launchIn(t, attemptDir(filepath.Join(t.TempDir(), "attempt")),
		"pwd; env | sort; cat; readlink /proc/$$/fd/0; tr '\\0' ' ' </proc/$PPID/cmdline; echo; tr '\\0' ' ' </proc/$$/cmdline; ls -l /proc/$$/fd | wc -l",
		map[string]string{"code": "mine", "d": "mine", "PATH": "/usr/bin:/bin"})
	if code := w.code(); code != 0 {
		t.Fatalf("exit %d: %s", code, w.output())
	}
	out := w.output()
	for _, want := range []string{
		w.file(dirWork) + "\n", "\ncode=mine\n", "\nd=mine\n", "\nPATH=/usr/bin:/bin\n", "\nLANG=C.UTF-8\n", "\nHOME=",
		"\nUAC_REQUEST=R\n", "\nUAC_STEP=s\n", "\nUAC_ATTEMPT=1\n", "/dev/null\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	// Neither the agent's environment, nor the script on a command line.
	for _, not := range []string{"OF_THE_AGENT", "sort;"} {
		if strings.Contains(out, not) {
			t.Errorf("output has %q:\n%s", not, out)
		}
	}
}

func TestASecondWrapperRunsNothing(t *testing.T) {
	dir := attemptDir(filepath.Join(t.TempDir(), "attempt"))
	ledger := filepath.Join(t.TempDir(), "ledger")
	script := "echo ran >>" + ledger
	w := launchIn(t, dir, script, nil)
	if code := w.code(); code != 0 {
		t.Fatal(code)
	}
	if err := dir.prepare(job{script: script}, spare(t, dir)); !errors.Is(err, errStartedBefore) {
		t.Errorf("prepare a directory that was used: %v", err)
	}
	// Even if somebody launched it all the same.
	if err := os.Remove(dir.file(fileOutput)); err != nil {
		t.Fatal(err)
	}
	l, err := newLauncher(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	again := launchPrepared(t, l, dir, l.job(&wire.Start{Script: script}, dir, nil))
	for again.news() {
	}
	if got := readFile(t, ledger); got != "ran\n" {
		t.Errorf("ledger: %q", got)
	}
}

func TestPrepareThrowsAwayWhatWasNeverUsed(t *testing.T) {
	dir := attemptDir(filepath.Join(t.TempDir(), "attempt"))
	if err := dir.prepare(job{script: "echo old"}, spare(t, dir)); err != nil {
		t.Fatal(err)
	}
	w := launchIn(t, dir, "echo new", nil)
	if code := w.code(); code != 0 || w.output() != "new\n" {
		t.Errorf("exit %d, output %q", code, w.output())
	}
}

func TestSpares(t *testing.T) {
	root := filepath.Join(t.TempDir(), "spares")
	if err := os.MkdirAll(filepath.Join(root, "1", "left by a crash"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newSpares(root)
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for range 8 {
		g.Go(s.fill)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	stock, err := os.ReadDir(root)
	if err != nil || len(stock) != maxSpares {
		t.Errorf("%d directories in stock, %v", len(stock), err)
	}
	attempts := t.TempDir()
	used := attemptDir(filepath.Join(attempts, "used"))
	if err := os.MkdirAll(used.file(dirWork), 0o700); err != nil {
		t.Fatal(err)
	}
	if s.give(used) {
		t.Error("a directory with something in it was replaced")
	}
	for i := range maxSpares { // one more than are left
		d := attemptDir(filepath.Join(attempts, fmt.Sprint(i)))
		if given, want := s.give(d), i < maxSpares-1; given != want {
			t.Errorf("given %v at %d", given, i)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLaunchThatFailsRunsNothing(t *testing.T) {
	l, err := newLauncher(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		work string
		env  []string
	}{
		"no such directory": {work: "/no/such/directory"},
		"a file":            {work: "/etc/passwd"},
		"huge environment":  {work: "/", env: []string{"X=" + strings.Repeat("x", 4<<20)}},
	}
	for name, tt := range tests {
		dir := attemptDir(filepath.Join(t.TempDir(), "attempt"))
		j := job{script: "true", command: []string{"true"}, work: tt.work, env: tt.env}
		if err := dir.prepare(j, spare(t, dir)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.launch(dir, j); err == nil {
			t.Errorf("%s: launched", name)
		}
		if dir.said().started {
			t.Errorf("%s: started", name)
		}
	}
}

func TestSessionOfAReusedPidIsEmpty(t *testing.T) {
	w := launch(t, "echo ready; exec sleep 1000")
	w.saying("ready")
	if members, err := w.session(); err != nil || len(members) != 2 {
		t.Errorf("session %v, %v", members, err)
	}
	for name, other := range map[string]process{
		"another start": {pid: w.pid, start: w.start + 1},
		"no pid":        {},
	} {
		if members, err := other.session(); err != nil || members != nil {
			t.Errorf("%s: session %v, %v", name, members, err)
		}
	}
}

func TestWrapperIsReplacedWhenItDiffers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "wrapper.sh")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newLauncher(dir); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, path); got != string(wrapperScript) {
		t.Errorf("wrapper: %q", got)
	}
}

func TestWrapperPassesShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("NOT CHECKED: shellcheck is not installed")
	}
	cmd := exec.Command("shellcheck", "--shell=sh", "--severity=style", "-")
	cmd.Stdin = bytes.NewReader(wrapperScript)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// killWrapper kills one process and waits until it is dead.
func killWrapper(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for {
		st, err := readStat(pid)
		if err != nil || st.dead {
			return nil //nolint:nilerr // no such process: it is dead
		}
	}
}
