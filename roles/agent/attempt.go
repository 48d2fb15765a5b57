package agent

import (
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
	fileStdin   = "stdin"
	fileEnv     = "environment"
	fileOutputs = "outputs"
	fileOutput  = "output"
	fileAlive   = "alive"
	fileStatus  = "status"
	dirWork     = "work"
)

// errStartedBefore is returned when the directory of an attempt says that its command
// has already been run.
var errStartedBefore = errors.New("the attempt was started before, by a process that left no record of it")

// unused returns errStartedBefore unless no wrapper has begun here.
func (d attemptDir) unused() error {
	if _, err := os.Lstat(d.file(fileStatus)); err == nil {
		return errStartedBefore
	}
	return nil
}

// prepare makes the directory anew, out of one in stock if it can. What an earlier
// process of the agent prepared and never used is thrown away.
func (d attemptDir) prepare(j job, stock *spares) error {
	if err := d.unused(); err != nil {
		return err
	}
	if !stock.give(d) {
		if err := os.RemoveAll(string(d)); err != nil {
			return err
		}
		if err := d.make(); err != nil {
			return err
		}
	}
	files := []string{dirWork}
	// Need not survive: after a power cut the attempt is not run again.
	write := func(name string, text []byte, mode os.FileMode) error {
		files = append(files, name)
		return os.WriteFile(d.file(name), text, mode) //nolint:forbidigo // see above
	}
	err := write(fileScript, []byte(j.script), 0o700)
	if err == nil && len(j.stdin) > 0 {
		err = write(fileStdin, j.stdin, 0o600)
	}
	if err == nil && j.outputs {
		err = write(fileOutputs, nil, 0o600)
	}
	if err == nil && j.as != nil {
		if err = write(fileEnv, environmentScript(j.env), 0o600); err == nil {
			err = j.as.own(d, files...)
		}
	}
	return err
}

// make makes the directory with what is the same for all attempts.
func (d attemptDir) make() error {
	for _, dir := range []string{string(d), d.file(dirWork)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mkfifo(d.file(fileAlive), 0o600); err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	return nil
}

// status is what the wrapper has written down.
type status struct {
	started bool  // it has begun to run the command, or was about to
	pid     int   // its process id; 0: not known
	exited  bool  // the command has ended
	code    int32 // with this exit status
}

func (d attemptDir) status() (status, error) {
	text, err := os.ReadFile(d.file(fileStatus))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status{}, nil
	case err != nil:
		return status{}, fmt.Errorf("read status: %w", err)
	}
	return parseStatus(string(text)), nil
}

// parseStatus reads the file that the wrapper makes, with a line "started PID", before
// it runs the command, and to which it adds a line "exit STATUS end" after that. Only
// whole lines count; but that there is a file at all says that the command may have
// been run.
func parseStatus(text string) status {
	st := status{started: true}
	first, rest, whole := strings.Cut(text, "\n")
	number, ok := strings.CutPrefix(first, "started ")
	pid, err := strconv.ParseUint(number, 10, 31)
	if !whole || !ok || err != nil || pid == 0 {
		return st
	}
	st.pid = int(pid)
	number, ok1 := strings.CutPrefix(rest, "exit ")
	number, ok2 := strings.CutSuffix(number, " end\n")
	code, err := strconv.ParseUint(number, 10, 8)
	if ok1 && ok2 && err == nil {
		st.exited, st.code = true, int32(code)
	}
	return st
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
	sameBoot bool // the machine has not been booted since the intent
	status        // what the wrapper has written down
	held     bool // somebody holds the pipe
	session  bool // a process of the wrapper's session lives
	killing  bool // the agent had recorded that KILL comes next
	stopping bool // the agent had begun to stop it
}

// verdict is what follows from evidence.
type verdict int

const (
	verdictRunning  verdict = iota // still alive
	verdictExited                  // ended, with the exit status written down
	verdictKilled                  // ended by the agent's KILL
	verdictUnknown                 // may have run, and nobody knows how it ended
	verdictNeverRan                // has not run, and nothing is left that could run it
	verdictNever                   // the same, and it must not be run any more
)

// judge is the one place where traces are given a meaning. The order matters.
func judge(e evidence) verdict {
	switch {
	case e.exited && e.sameBoot && (e.stopping || e.killing) && (e.held || e.session):
		// The command has died of TERM, and something that it started has not. It was to
		// be stopped as a whole: the next attempt must not run beside it.
		return verdictRunning
	case e.exited:
		// Written once, by the wrapper, after the command. It counts even while a
		// child of the command lives on that nobody stops, and after any number of boots.
		return verdictExited
	case !e.sameBoot:
		// Whatever is missing may be missing only because it had not reached the disk:
		// also that the command was started, also the exit of one that was about to
		// be killed.
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
	// The wrapper makes its file before it runs the command, it is gone, and nobody
	// else could.
	return verdictNeverRan
}
