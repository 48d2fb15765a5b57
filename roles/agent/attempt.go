package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// attemptDir is the directory of one attempt. DESIGN.md shows what is in it.
type attemptDir string

func (d attemptDir) file(name string) string { return filepath.Join(string(d), name) }

const (
	fileScript  = "script"
	fileOutput  = "output"
	fileAlive   = "alive"
	fileStarted = "started"
	fileExit    = "exit"
	dirWork     = "work"
)

// errStartedBefore is returned when the directory of an attempt says that its command
// has already been run.
var errStartedBefore = errors.New("the attempt was started before, by a process that left no record of it")

// prepare makes the directory anew. What an earlier process of the agent prepared and
// never used is thrown away.
func (d attemptDir) prepare(script string) error {
	err := os.Mkdir(string(d), 0o700)
	if errors.Is(err, fs.ErrExist) {
		if d.started() {
			return errStartedBefore
		}
		if err := os.RemoveAll(string(d)); err != nil {
			return err
		}
		err = os.Mkdir(string(d), 0o700)
	}
	if err != nil {
		return err
	}
	if err := os.Mkdir(d.file(dirWork), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(d.file(fileScript), []byte(script), 0o700); err != nil {
		return err
	}
	if err := unix.Mkfifo(d.file(fileAlive), 0o600); err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	return nil
}

// command returns the command line that runs the attempt's script.
func (d attemptDir) command(script string) []string {
	if strings.HasPrefix(script, "#!") {
		return []string{d.file(fileScript)}
	}
	return []string{shell, "-e", d.file(fileScript)}
}

func (d attemptDir) started() bool {
	_, err := os.Lstat(d.file(fileStarted))
	return err == nil
}

// wrapper returns the process id that the wrapper wrote down, 0 if it has not.
func (d attemptDir) wrapper() int {
	text, err := os.ReadFile(d.file(fileStarted))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if err != nil || pid <= 0 || !bytes.HasSuffix(text, []byte("\n")) {
		return 0
	}
	return pid
}

// exit returns the exit status that the wrapper wrote down. Not ok: it has not, or
// not whole.
func (d attemptDir) exit() (code int32, ok bool) {
	text, err := os.ReadFile(d.file(fileExit))
	if err != nil {
		return 0, false
	}
	return parseExit(text)
}

func parseExit(text []byte) (code int32, ok bool) {
	word, rest, ok1 := strings.Cut(string(text), " ")
	number, last, ok2 := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 8)
	if !ok1 || !ok2 || word != "exit" || last != "end\n" || err != nil {
		return 0, false
	}
	return int32(n), true
}

// openAlive opens the reading end of the attempt's pipe.
func (d attemptDir) openAlive() (*os.File, error) {
	return os.OpenFile(d.file(fileAlive), os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// held reports whether anybody holds the writing end of the pipe whose reading end
// this is.
func held(pipe *os.File) (bool, error) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return false, err
	}
	var n int
	var readErr error
	buf := make([]byte, 512)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, readErr = unix.Read(int(fd), buf)
			if readErr != unix.EINTR && n <= 0 {
				return true
			}
		}
	})
	if err != nil {
		return false, err
	}
	if errors.Is(readErr, unix.EAGAIN) {
		return true, nil
	}
	return false, readErr
}

// evidence is what the traces of an attempt say that has no recorded end.
type evidence struct {
	sameBoot bool  // the machine has not been booted since the intent
	exited   bool  // a whole exit file
	code     int32 // in it
	held     bool  // somebody holds the pipe
	session  bool  // a process of the wrapper's session lives
	started  bool  // the command counts as having run
	killing  bool  // the agent had recorded that KILL comes next
	stopping bool  // the agent had begun to stop it
}

// verdict is what follows from evidence.
type verdict int

const (
	verdictRunning  verdict = iota // still alive
	verdictExited                  // ended, with the code of the exit file
	verdictKilled                  // ended by the agent's KILL
	verdictUnknown                 // may have run, and nobody knows how it ended
	verdictNeverRan                // has not run, and nothing is left that could run it
	verdictNever                   // the same, and it must not be run any more
)

// judge is the one place where traces are given a meaning. The order matters.
func judge(e evidence) verdict {
	switch {
	case e.exited:
		// Written once, by the wrapper, after the command. It counts even while a
		// child of the command lives on, and after any number of boots.
		return verdictExited
	case !e.sameBoot:
		// Everything but a whole exit file may be missing only because it had not
		// reached the disk: also `started`, also the exit of a command that we were
		// about to kill.
		return verdictUnknown
	case e.held || e.session:
		return verdictRunning
	case e.started && e.killing:
		return verdictKilled
	case e.started:
		return verdictUnknown
	case e.killing || e.stopping:
		return verdictNever
	}
	// The wrapper makes `started` before it runs the command, it is gone, and nobody
	// else could.
	return verdictNeverRan
}
