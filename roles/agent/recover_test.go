package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uac/roles/wire"
)

// found is what an earlier process of the agent has left of attempt 1.
type found struct {
	records   []record          // after the intent
	otherBoot bool              // the intent is of another boot
	wanted    []string          // names of outputs
	files     map[string]string // in the attempt's directory; nil: there is none
	noPipe    bool              // the directory has no pipe
	held      bool              // somebody holds the pipe
	torn      int               // bytes cut off the end of the journal
}

// lay writes it down.
func (f found) lay(t *testing.T, w *testWorld) {
	t.Helper()
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	if f.otherBoot {
		boot = "another boot"
	}
	in := intent(k1, 5)
	in.Boot, in.Grace, in.Wanted = boot, 1, f.wanted
	records := []record{in}
	for _, rec := range f.records {
		rec.Request, rec.Step, rec.Attempt = "R", "s", 1
		records = append(records, rec)
	}
	dir := attemptDir(filepath.Join(w.dir, dirAttempts, k1.dir()))
	if err := os.MkdirAll(filepath.Dir(string(dir)), 0o700); err != nil {
		t.Fatal(err)
	}
	text := journalText(records...)
	if err := os.WriteFile(filepath.Join(w.dir, fileJournal), text[:len(text)-f.torn], 0o600); err != nil {
		t.Fatal(err)
	}
	if f.files == nil {
		return
	}
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range f.files {
		if err := os.WriteFile(dir.file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f.noPipe {
		return
	}
	if err := unix.Mkfifo(dir.file(fileAlive), 0o600); err != nil {
		t.Fatal(err)
	}
	if f.held {
		pipe, err := os.OpenFile(dir.file(fileAlive), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer pipe.Close()
		cmd := exec.Command("sleep", "1000")
		cmd.ExtraFiles = []*os.File{pipe}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
}

// TestRestartConcludes is the table of DESIGN.md once more, with real files.
func TestRestartConcludes(t *testing.T) {
	launched := record{Kind: kindLaunched, Time: 7, Pid: 1 << 22, PidStart: 1}
	stopping := record{Kind: kindStop, Stop: stopKill}
	killing := record{Kind: kindKilling}
	ended := record{Kind: kindEnd, Phase: phaseExited, Code: 4}
	files := func(namesAndTexts ...string) map[string]string {
		m := map[string]string{fileScript: "true"}
		for i := 0; i < len(namesAndTexts); i += 2 {
			m[namesAndTexts[i]] = namesAndTexts[i+1]
		}
		return m
	}
	const gone = "started 4194304\n" // no process has this pid
	tests := []struct {
		name  string
		found found
		state wire.State
		end   *wire.End
	}{
		{"intent, no directory", found{}, wire.State_INTENDED, nil},
		{"intent, empty directory", found{files: files(), noPipe: true}, wire.State_INTENDED, nil},
		{"prepared", found{files: files()}, wire.State_INTENDED, nil},
		{"wrapper alive, nothing started, not recorded", found{files: files(), held: true}, wire.State_RUNNING, nil},
		{"launched, wrapper gone before it started", found{records: []record{launched}, files: files()}, wire.State_INTENDED, nil},
		{"running, not recorded", found{files: files(fileStatus, gone), held: true}, wire.State_RUNNING, nil},
		{"running", found{records: []record{launched}, files: files(fileStatus, gone), held: true}, wire.State_RUNNING, nil},
		{"gone without an exit", found{records: []record{launched}, files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{Reason: "no exit status"}},
		{"gone without an exit, launch not recorded", found{files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{}},
		{"gone, status torn", found{records: []record{launched}, files: files(fileStatus, "star")}, wire.State_UNKNOWN, &wire.End{}},
		{"gone, exit torn", found{records: []record{launched}, files: files(fileStatus, gone+"exit 0")}, wire.State_UNKNOWN, &wire.End{}},
		{"exited", found{records: []record{launched}, files: files(fileStatus, gone+"exit 3 end\n")}, wire.State_EXITED, &wire.End{Code: 3}},
		{"exited, launch not recorded", found{files: files(fileStatus, gone+"exit 3 end\n")}, wire.State_EXITED, &wire.End{Code: 3}},
		{"exited, a child holds the pipe", found{records: []record{launched}, files: files(fileStatus, gone+"exit 3 end\n"), held: true}, wire.State_EXITED, &wire.End{Code: 3}},
		{"exited while being killed", found{records: []record{launched, stopping, killing}, files: files(fileStatus, gone+"exit 0 end\n")}, wire.State_EXITED, &wire.End{Stopped: wire.Stop_KILLED}},
		{"killed", found{records: []record{launched, stopping, killing}, files: files(fileStatus, gone)}, wire.State_EXITED, &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_KILLED}},
		{"asked to stop and gone", found{records: []record{launched, stopping}, files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{Stopped: wire.Stop_KILLED}},
		{"killed before it started", found{records: []record{launched, stopping, killing}, files: files()}, wire.State_NEVER_STARTED, &wire.End{Stopped: wire.Stop_KILLED}},
		{"stopped for being alone", found{records: []record{launched, {Kind: kindStop, Stop: stopAlone}, killing}, files: files(fileStatus, gone)}, wire.State_EXITED, &wire.End{Code: 137, Signal: 9, Stopped: wire.Stop_ALONE}},
		{"asked to stop for being alone and gone", found{records: []record{launched, {Kind: kindStop, Stop: stopAlone}}, files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{Stopped: wire.Stop_ALONE}},
		{"asked to stop for being alone, and exited", found{records: []record{launched, {Kind: kindStop, Stop: stopAlone}}, files: files(fileStatus, gone+"exit 143 end\n")}, wire.State_EXITED, &wire.End{Code: 143, Stopped: wire.Stop_ALONE}},
		{"asked to stop before it started", found{records: []record{launched, stopping}, files: files()}, wire.State_NEVER_STARTED, &wire.End{Stopped: wire.Stop_KILLED}},
		{"end recorded", found{records: []record{launched, ended}, files: files(fileStatus, gone+"exit 3 end\n")}, wire.State_EXITED, &wire.End{Code: 4}},
		{"end torn in the journal, exit on disk", found{records: []record{launched, ended}, files: files(fileStatus, gone+"exit 3 end\n"), torn: 5}, wire.State_EXITED, &wire.End{Code: 3}},
		{"end torn in the journal, exit lost", found{records: []record{launched, ended}, files: files(fileStatus, gone), torn: 5}, wire.State_UNKNOWN, &wire.End{}},

		{"exited with outputs", found{wanted: []string{"a"}, files: files(fileStatus, gone+"exit 3 end\n", fileOutputs, "a=1\nb=2\n")}, wire.State_EXITED, &wire.End{Code: 3, Outputs: map[string]string{"a": "1"}, Reason: `line 2: "b" is not among`}},
		{"exited, outputs gone", found{wanted: []string{"a"}, files: files(fileStatus, gone+"exit 0 end\n")}, wire.State_EXITED, &wire.End{Outputs: map[string]string{}, Reason: "no such file"}},
		{"end recorded with outputs, file changed since", found{wanted: []string{"a"}, records: []record{{Kind: kindEnd, Phase: phaseExited, Outputs: map[string]string{"a": "1"}}}, files: files(fileStatus, gone+"exit 0 end\n", fileOutputs, "a=2\n")}, wire.State_EXITED, &wire.End{Outputs: map[string]string{"a": "1"}}},
		{"other boot: exited with outputs", found{otherBoot: true, wanted: []string{"a"}, files: files(fileStatus, gone+"exit 3 end\n", fileOutputs, "a=1\n")}, wire.State_EXITED, &wire.End{Code: 3, Outputs: map[string]string{}, Reason: "outputs: lost"}},
		{"other boot: intent", found{otherBoot: true, files: files()}, wire.State_UNKNOWN, &wire.End{Reason: "booted"}},
		{"other boot: no directory", found{otherBoot: true}, wire.State_UNKNOWN, &wire.End{Reason: "booted"}},
		{"other boot: running", found{otherBoot: true, records: []record{launched}, files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{}},
		{"other boot: being killed", found{otherBoot: true, records: []record{launched, stopping, killing}, files: files(fileStatus, gone)}, wire.State_UNKNOWN, &wire.End{Stopped: wire.Stop_KILLED}},
		{"other boot: exited", found{otherBoot: true, records: []record{launched}, files: files(fileStatus, gone+"exit 3 end\n")}, wire.State_EXITED, &wire.End{Code: 3}},
		{"other boot: exit torn", found{otherBoot: true, records: []record{launched}, files: files(fileStatus, gone+"\x00\x00\x00\x00")}, wire.State_UNKNOWN, &wire.End{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			tt.found.lay(t, w)
			c := w.controller("c1")
			a := w.agent([]*testController{c})
			l := c.link()
			l.counter = 0
			check := func(revision int64, state wire.State) {
				t.Helper()
				all := l.adopt("R", revision).GetAttempts()
				if len(all) != 1 || all[0].GetState() != state {
					t.Fatalf("attempts are %v, want one that is %v", all, state)
				}
				if tt.end != nil {
					wantEnd(t, &wire.Report{Attempt: all[0]}, tt.end)
				}
			}
			check(6, tt.state)
			// What was concluded is concluded again by the next process.
			a.stop()
			w.agent([]*testController{c})
			l = c.link()
			check(7, tt.state)

			// And a start of the same attempt runs exactly what never ran.
			ledger := filepath.Join(t.TempDir(), "ledger")
			l.start(startOf(k1, 7, "echo ran >"+ledger))
			switch tt.state {
			case wire.State_INTENDED:
				wantEnd(t, l.report(k1, wire.State_EXITED), &wire.End{})
				if got := readFile(t, ledger); got != "ran\n" {
					t.Errorf("ledger: %q", got)
				}
			case wire.State_RUNNING:
				kill := killMessage(k1, 7)
				l.report(k1, wire.State_RUNNING)
				l.send(kill)
				l.expect("end", func(m *wire.AgentMessage) bool {
					return m.GetReport().GetAttempt().GetEnd() != nil
				})
			default:
				l.report(k1, tt.state)
			}
			if _, err := os.Stat(ledger); (err == nil) != (tt.state == wire.State_INTENDED) {
				t.Errorf("ran: %v", err == nil)
			}
		})
	}
}

func TestDirectoryHasOneAgent(t *testing.T) {
	s := newStage(t)
	cfg, deps := s.config([]*testController{s.c})
	other, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), cfg.DataDir) {
		t.Errorf("a second agent in one directory: %v", err)
	}
}

func TestAttemptsWithoutAJournalAreRefused(t *testing.T) {
	s := newStage(t)
	s.l.start(startOf(k1, 5, "true"))
	s.l.report(k1, wire.State_EXITED)
	s.a.stop()
	if err := os.Remove(filepath.Join(s.dir, fileJournal)); err != nil {
		t.Fatal(err)
	}
	err := s.agent([]*testController{s.c}).failed()
	if err == nil || !strings.Contains(err.Error(), "it is missing") {
		t.Errorf("got %v", err)
	}
}

func TestDamagedJournalStopsTheAgent(t *testing.T) {
	w := newWorld(t)
	found{}.lay(t, w)
	path := filepath.Join(w.dir, fileJournal)
	if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.agent([]*testController{w.controller("c1")}).failed(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

// What cannot be made durable has no effect and is told to nobody.
func TestUnwritableJournalStopsTheAgent(t *testing.T) {
	running := key{"R", "running", 1}
	for name, do := range map[string]func(s *stage, gate string){
		"start": func(s *stage, _ string) { s.l.start(startOf(k1, 5, s.note("ran"))) },
		"kill":  func(s *stage, _ string) { s.l.kill(k1, 5) },
		"adopt": func(s *stage, _ string) {
			s.l.send(&wire.ControllerMessage{Body: &wire.ControllerMessage_Adopt{Adopt: &wire.Adopt{Request: "Q", Fence: rev(5)}}})
		},
		"exit": func(_ *stage, gate string) {
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var forks atomic.Int32
			s := newStage(t, func(_ *Config, d *Deps) {
				d.Point = func(p Point) {
					if p == pointForking {
						forks.Add(1)
					}
				}
			})
			gate := filepath.Join(t.TempDir(), "gate")
			// The step ends with the gate, or with the directory when the test is over.
			s.l.start(startOf(running, 5, "while test -d "+filepath.Dir(gate)+" && ! test -e "+gate+"; do sleep 0.01; done"))
			s.l.report(running, wire.State_RUNNING)
			// The descriptor now leads to a disk that is always full.
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			s.l.sync()
			if err := unix.Dup3(int(full.Fd()), descriptorOf(t, filepath.Join(s.dir, fileJournal)), unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			do(s, gate)
			if err := s.a.failed(); err == nil || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
				t.Errorf("agent ended with %v", err)
			}
			s.l.gone()
			for len(s.l.got) > 0 {
				s.l.kept = append(s.l.kept, <-s.l.got)
			}
			if len(s.l.kept) != 0 {
				t.Errorf("the agent told %v", s.l.kept)
			}
			if n := forks.Load(); n != 1 {
				t.Errorf("%d wrappers were started, want the one from before", n)
			}
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// descriptorOf returns the descriptor by which this process has the file open.
func descriptorOf(t *testing.T, path string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target == path {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	t.Fatalf("%s is not open", path)
	return -1
}

func TestOldOutputsAreRemoved(t *testing.T) {
	few := func(c *Config, _ *Deps) { c.OutputMaxAttempts = 2 }
	s := newStage(t, few)
	run := func(step, script string) attemptDir {
		t.Helper()
		k := key{"R", step, 1}
		s.l.start(startOf(k, 5, script))
		s.l.report(k, wire.State_EXITED)
		return s.a.dir(k)
	}
	var dirs []attemptDir
	for i := range 3 {
		dirs = append(dirs, run(fmt.Sprint(i), "true"))
		s.l.ack(key{"R", fmt.Sprint(i), 1}, 5, false)
	}
	exists := func(d attemptDir) bool { _, err := os.Stat(string(d)); return err == nil }
	eventually(t, "the oldest is removed", func() bool { return !exists(dirs[0]) })
	eventually(t, "working directory is removed", func() bool {
		_, err := os.Stat(dirs[2].file(dirWork))
		return os.IsNotExist(err)
	})
	if !exists(dirs[1]) || !exists(dirs[2]) {
		t.Error("a younger one was removed")
	}
	// The next process knows them, and does not touch what is not acknowledged.
	unacked := run("unacked", "true")
	s.restart(few)
	last := run("last", "true")
	s.l.ack(key{"R", "last", 1}, 5, false)
	eventually(t, "the oldest is removed", func() bool { return !exists(dirs[1]) })
	if !exists(dirs[2]) || !exists(last) || !exists(unacked) {
		t.Error("a younger or unacknowledged one was removed")
	}
}

func TestWhichOutputsAreKept(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	kept := func() []keptOutput {
		return []keptOutput{
			{"a", now.Add(-3 * time.Hour), 10}, {"b", now.Add(-2 * time.Hour), 20}, {"c", now.Add(-time.Hour), 30},
		}
	}
	for name, tt := range map[string]struct {
		attempts int
		bytes    int64
		age      time.Duration
		want     []string
	}{
		"all":       {3, 60, 3 * time.Hour, []string{"a", "b", "c"}},
		"by number": {1, 60, 3 * time.Hour, []string{"c"}},
		"by size":   {3, 59, 3 * time.Hour, []string{"b", "c"}},
		"by age":    {3, 60, 90 * time.Minute, []string{"c"}},
		"none":      {0, 0, 0, nil},
	} {
		o := newOutputs(t.TempDir(), Config{OutputMaxAttempts: tt.attempts, OutputMaxBytes: tt.bytes, OutputKeep: tt.age}, func() map[string]bool { return nil }, slog.New(slog.DiscardHandler))
		for _, k := range kept() {
			if err := os.Mkdir(filepath.Join(o.root, k.name), 0o700); err != nil {
				t.Fatal(err)
			}
			o.add(k)
		}
		o.expire(now)
		entries, err := os.ReadDir(o.root)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, tt.want) || len(o.kept) != len(got) {
			t.Errorf("%s: kept %v, want %v", name, got, tt.want)
		}
	}
}
