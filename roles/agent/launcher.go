package agent

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"uac/codestation/durable"
	"uac/roles/wire"
)

//go:embed wrapper.sh
var wrapperScript []byte

const (
	shell   = "/bin/sh"
	aliveFD = 9 // beyond the descriptors that scripts like to use

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// launcher starts wrappers.
type launcher struct {
	wrapper string   // path of the wrapper script
	base    []string // environment that every step gets
}

// newLauncher puts the wrapper script into dir. A wrapper that runs goes on reading
// the file that it was started from. From then on the children of this process heed
// the signals that it was started to ignore.
func newLauncher(dir string) (*launcher, error) {
	path := filepath.Join(dir, "wrapper.sh")
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, wrapperScript) {
		if err := durable.WriteFile(path, wrapperScript, 0o700); err != nil {
			return nil, err
		}
	}
	heedSignals()
	return &launcher{wrapper: path, base: baseEnv()}, nil
}

// heedSignals lets children start with none of the signals ignored that end or tell a
// program something, whatever started the agent (nohup, a shell's &): a shell script cannot trap what was ignored when it began.
// Being told of a signal is as good as ignoring it, and children do not inherit it.
func heedSignals() {
	for sig := syscall.Signal(1); sig <= syscall.SIGSYS; sig++ {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// baseEnv is the same whatever environment the agent was started in.
func baseEnv() []string {
	home, name := "/", ""
	if u, err := user.Current(); err == nil {
		home, name = u.HomeDir, u.Username
	}
	env := []string{"HOME=" + home, "LANG=C.UTF-8", "PATH=" + defaultPath, "SHELL=" + shell}
	if name != "" {
		env = append(env, "LOGNAME="+name, "USER="+name)
	}
	return env
}

// job is what an attempt runs, and how.
type job struct {
	script  string
	command []string // what the wrapper runs
	env     []string // of the command
	work    string   // working directory
	stdin   []byte   // standard input; empty: /dev/null
	outputs bool     // the command may write values for others
	as      *account // nil: as the agent
}

// job returns what a start asks for, to be run from the directory d.
func (l *launcher) job(c *wire.Start, d attemptDir, as *account) job {
	j := job{
		script: c.GetScript(), command: c.GetArgv(), env: l.environment(c, d, as), work: c.GetDir(),
		stdin: c.GetStdin(), outputs: len(c.GetOutputs()) > 0, as: as,
	}
	switch {
	case len(j.command) > 0:
	case strings.HasPrefix(j.script, "#!"):
		j.command = []string{d.file(fileScript)}
	default:
		j.command = []string{shell, "-e", d.file(fileScript)}
	}
	if j.work == "" {
		j.work = d.file(dirWork)
	}
	if as != nil {
		j.command = as.wrap(d.file(fileEnv), j.command)
	}
	return j
}

// environment returns the environment of an attempt: the base, the step's own, and
// what uac tells it, which nothing overrides.
func (l *launcher) environment(c *wire.Start, d attemptDir, as *account) []string {
	env := map[string]string{}
	for _, kv := range l.base {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	if as != nil {
		env["HOME"], env["LOGNAME"], env["USER"] = as.home, as.name, as.name
	}
	maps.Copy(env, c.GetEnv())
	for name, value := range c.GetParams() {
		env["UAC_PARAM_"+name] = value
	}
	env["UAC_REQUEST"] = c.GetRequest()
	env["UAC_STEP"] = c.GetStep()
	env["UAC_ATTEMPT"] = strconv.FormatUint(uint64(c.GetAttempt()), 10)
	if len(c.GetOutputs()) > 0 {
		env["UAC_OUTPUTS"] = d.file(fileOutputs)
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// process names a wrapper.
type process struct {
	pid   int
	start uint64 // in ticks since boot: tells it from a later process with its pid
}

// check finds out whether a prepared attempt can be launched.
func (j job) check(ctx context.Context, d attemptDir) error {
	if info, err := os.Stat(j.work); err != nil {
		return fmt.Errorf("working directory: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("working directory: %s is not a directory", j.work)
	}
	if j.as != nil {
		return j.as.canUse(ctx, j.work, d.file(fileScript))
	}
	return nil
}

// launch starts the wrapper of a prepared attempt. It returns the reading end of the
// attempt's pipe too. After an error nothing was run.
func (l *launcher) launch(d attemptDir, j job) (process, *os.File, error) {
	pipe, err := d.openAlive() // first, or the writing end cannot be opened
	if err != nil {
		return process{}, nil, err
	}
	p, err := l.fork(d, j)
	if err != nil {
		pipe.Close()
		return process{}, nil, err
	}
	return p, pipe, nil
}

func (l *launcher) fork(d attemptDir, j job) (process, error) {
	open := func(name string, flags int) (int, error) {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
	stdin := os.DevNull
	if len(j.stdin) > 0 {
		stdin = d.file(fileStdin)
	}
	in, err := open(stdin, unix.O_RDONLY)
	if err != nil {
		return process{}, err
	}
	defer unix.Close(in)
	out, err := open(d.file(fileOutput), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND)
	if err != nil {
		return process{}, err
	}
	defer unix.Close(out)
	env := j.env
	if j.as != nil {
		env = minimalEnv() // the step's own is set by the user, not by root
		// The user may open it once more, as /dev/stdout.
		if err := unix.Fchown(out, int(j.as.uid), int(j.as.gid)); err != nil {
			return process{}, fmt.Errorf("give the output to the user: %w", err)
		}
	}
	// From here until the wrapper has it the agent holds the pipe; after that, and if
	// the agent dies, only the wrapper and its children do.
	alive, err := open(d.file(fileAlive), unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return process{}, err
	}
	defer unix.Close(alive)
	if err := unix.SetNonblock(alive, false); err != nil {
		return process{}, err
	}
	const closed = ^uintptr(0)
	files := slices.Repeat([]uintptr{closed}, aliveFD+1)
	files[0], files[1], files[2], files[aliveFD] = uintptr(in), uintptr(out), uintptr(out), uintptr(alive)
	argv := append([]string{shell, l.wrapper, string(d)}, j.command...)
	pid, err := syscall.ForkExec(shell, argv, &syscall.ProcAttr{
		Dir: j.work, Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", shell, err)
	}
	if len(j.stdin) > 0 {
		_ = os.Remove(stdin) // the command has it open; it goes with the directory otherwise
	}
	p := process{pid: pid}
	if st, err := readStat(pid); err == nil {
		p.start = st.start // it is our child and not waited for: nobody else has its pid
	}
	return p, nil
}

// procStat is what matters here of /proc/<pid>/stat.
type procStat struct {
	pid, session int
	dead         bool
	start        uint64
}

var errStat = errors.New("/proc/<pid>/stat has an unknown format")

func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(pid, text)
}

func parseStat(pid int, text []byte) (procStat, error) {
	// The name of the program, in parentheses, may contain anything.
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return procStat{}, errStat
	}
	f := strings.Fields(string(text[end+1:])) // from the third field on
	if len(f) < 20 {
		return procStat{}, errStat
	}
	session, err1 := strconv.Atoi(f[3])
	start, err2 := strconv.ParseUint(f[19], 10, 64)
	if err1 != nil || err2 != nil {
		return procStat{}, errStat
	}
	return procStat{pid: pid, session: session, dead: f[0] == "Z" || f[0] == "X", start: start}, nil
}

func processes() ([]procStat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []procStat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil && !st.dead {
			all = append(all, st)
		}
	}
	return all, nil
}

// session returns the living processes of the wrapper's session. If the wrapper is
// gone and its number has been given to another process, there are none: the kernel
// gives out no number that still names a session.
func (p process) session() ([]int, error) {
	if p.pid <= 0 {
		return nil, nil
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var members []int
	for _, st := range all {
		if st.pid == p.pid && p.start != 0 && st.start != p.start {
			return nil, nil
		}
		if st.session == p.pid && st.start >= p.start {
			members = append(members, st.pid)
		}
	}
	return members, nil
}

// holders returns the processes, without this one, that have the file open for writing.
// Those that only read it do not matter and must not be killed with the others: such a
// one may be a child that this process was just forking for another attempt, which has
// all its files until it runs a program of its own.
func holders(path string) ([]int, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, err
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, st := range all {
		if st.pid == os.Getpid() {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/fd", st.pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // gone, or not ours to see
		}
		for _, fd := range fds {
			var have unix.Stat_t
			if unix.Stat(filepath.Join(dir, fd.Name()), &have) == nil && have.Dev == want.Dev && have.Ino == want.Ino && writes(st.pid, fd.Name()) {
				pids = append(pids, st.pid)
				break
			}
		}
	}
	return pids, nil
}

// writes reports whether a process has the file open for writing that its descriptor fd
// leads to.
func writes(pid int, fd string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false // gone
	}
	for line := range strings.Lines(string(text)) {
		if octal, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(octal), 8, 32)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// signal sends sig to every process of the session: to the group at once, and to
// those that have made groups of their own.
func (p process) signal(sig syscall.Signal) error {
	members, err := p.session()
	for _, pid := range members {
		// A process that has ended meanwhile is what we want.
		if e := syscall.Kill(pid, sig); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, e))
		}
	}
	return err
}

// bootID names the present boot of the machine.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// bootTime returns the time since boot in nanoseconds, suspended time included.
func bootTime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}
