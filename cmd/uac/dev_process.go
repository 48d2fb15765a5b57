package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"uac/roles"
)

// devSupervisor runs the nodes of a cluster as children of this process. It is
// the only writer of cluster.json. The kernel kills the nodes when this process
// ends, however it ends. Safe for concurrent use.
type devSupervisor struct {
	cluster *devCluster
	program string    // what the nodes run
	environ []string  // of the nodes
	events  io.Writer // what happens, for people
	// untold leaves cluster.json as it was made: nobody reads it.
	untold bool

	lock  *os.File
	guard net.Listener // of the subnet
	fork  chan func()

	mu    sync.Mutex // guards the fields below, and the nodes of cluster
	procs map[string]*devProcess
}

// devProcess is one run of a node.
type devProcess struct {
	cmd      *exec.Cmd
	logStart int64         // where the log of this run begins
	asked    bool          // its end was asked for
	done     chan struct{} // closed when it has ended
	err      error         // how it ended; set before done is closed
}

// errDevRunning is returned when another process runs the cluster.
var errDevRunning = errors.New("this cluster is running")

// lockDev makes this process the one that runs the cluster in dir, until the
// returned file is closed.
func lockDev(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // only a name
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errDevRunning
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// openDev opens the cluster in dir for running it, and makes it first if there
// is none. No node runs yet. The caller closes it.
func openDev(ctx context.Context, a *app, opts devOptions) (_ *devSupervisor, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(opts.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	s := &devSupervisor{
		program: program, environ: withoutSettings(a.environ), events: a.stderr, untold: opts.untold,
		procs: map[string]*devProcess{},
	}
	if s.lock, err = lockDev(opts.dir); err != nil {
		if errors.Is(err, errDevRunning) {
			err = fail(exitConflict, "the cluster in %[1]s is running already; end it with: uac dev stop --dir %[1]s", opts.dir)
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
			_ = os.Remove(opts.dir) // if nothing is in it
		}
	}()
	if s.cluster, err = loadDevCluster(opts.dir); err != nil {
		return nil, err
	}
	if s.cluster != nil {
		err = s.reopen(ctx, opts)
	} else {
		err = s.makeCluster(ctx, opts)
	}
	if err != nil {
		return nil, err
	}
	s.fork = make(chan func())
	go forkThread(s.fork)
	return s, nil
}

// makeCluster makes a new cluster.
func (s *devSupervisor) makeCluster(ctx context.Context, opts devOptions) (err error) {
	shape := opts.devShape
	listening := shape.controllers + shape.watches + shape.relays
	if listening > devMaxListening {
		return usageError("%d controllers, watches and relays are more than the %d that fit into a subnet", listening, devMaxListening)
	}
	if n := opts.network; n != nil {
		s.cluster = newDevCluster(opts.dir, shape, opts.set, n.address)
		for i := range s.cluster.Nodes {
			s.cluster.Nodes[i].namespace = n.namespace(s.cluster.Nodes[i].Name)
		}
		return s.cluster.create()
	}
	subnet := ""
	if subnet, s.guard, err = findSubnet(ctx, opts.dir, listening); err != nil {
		return err
	}
	s.cluster = newDevCluster(opts.dir, shape, opts.set, func(i int) string { return devAddress(subnet, i+1) })
	s.cluster.Subnet = subnet
	return s.cluster.create()
}

// reopen takes an existing cluster, which does not run.
func (s *devSupervisor) reopen(ctx context.Context, opts devOptions) (err error) {
	c := s.cluster
	if opts.shaped && opts.devShape != c.shape() {
		return fail(exitConflict, "the cluster in %s has other nodes (%s): name a new directory, or leave the numbers out", opts.dir, strings.Join(c.names(), ", "))
	}
	if opts.set != nil {
		c.Set = opts.set
	}
	for i := range c.Nodes {
		if err := c.check(c.Nodes[i]); err != nil {
			return err
		}
		c.Nodes[i].PID = 0 // nobody else runs them, or the lock would be taken
	}
	if s.guard, err = takeSubnet(ctx, c.Subnet); err != nil {
		return fmt.Errorf("the cluster's addresses: %w", err)
	}
	for _, n := range c.Nodes {
		if n.Address == "" {
			continue
		}
		if err := awaitFree(ctx, n.Address); err != nil {
			return fmt.Errorf("the address of %s: %w", n.Name, err)
		}
	}
	return c.save()
}

// withoutSettings takes out the variables that are settings of uac: they are
// meant for the command, not for the nodes.
func withoutSettings(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(v string) bool { return strings.HasPrefix(v, "UAC_") })
}

// memberSlack is how late the kernel may wake a thread of a member, as the unit in
// docs/operations/setup.md has it: see there. Agents keep the usual 50 µs, because their
// steps inherit it.
const memberSlack = 2 * time.Millisecond

func slackOf(role roles.Role) time.Duration {
	if role == roles.RoleController || role == roles.RoleWatch {
		return memberSlack
	}
	return 0
}

// withTimerSlack calls f, which starts a process, on a thread whose timer slack the
// process inherits; 0 changes nothing. The calling goroutine must be locked to its thread.
func withTimerSlack(slack time.Duration, f func() error) error {
	if slack == 0 {
		return f()
	}
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return os.NewSyscallError("prctl", err)
	}
	set := func(ns int) error {
		return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(ns), 0, 0, 0))
	}
	if err := set(int(slack.Nanoseconds())); err != nil {
		return err
	}
	defer func() { _ = set(was) }() // what could be changed can be changed back
	return f()
}

// forkThread runs what starts nodes on one thread of the system: the kernel
// ends a node together with the thread that started it.
func forkThread(work <-chan func()) {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	for f := range work {
		f()
	}
}

// start starts a node that does not run.
func (s *devSupervisor) start(ctx context.Context, name string) error {
	s.mu.Lock()
	node, err := s.cluster.node(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	n := *node
	s.mu.Unlock()
	if n.PID != 0 {
		return fail(exitConflict, "%s runs already (pid %d)", name, n.PID)
	}
	if n.Address != "" && s.cluster.Subnet != "" {
		if err := awaitFree(ctx, n.Address); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	log, err := os.OpenFile(n.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the node has it
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	args := []string{"--config", n.Config}
	for _, setting := range s.cluster.Set {
		args = append(args, "--set", setting)
	}
	// The node must outlive ctx.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.program, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.environ, n.DataDir, log, log
	// A group of its own: Ctrl-C is for this process, which stops nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &devProcess{cmd: cmd, logStart: end, done: make(chan struct{})}

	s.mu.Lock()
	defer s.mu.Unlock()
	if node.PID != 0 {
		return fail(exitConflict, "%s runs already (pid %d)", name, node.PID)
	}
	forked := make(chan error)
	s.fork <- func() {
		forked <- withTimerSlack(slackOf(n.Role), func() error { return startIn(n.namespace, cmd) })
	}
	if err := <-forked; err != nil {
		// Of a missing working directory fork/exec says that the program is missing.
		if _, dirErr := os.Stat(n.DataDir); dirErr != nil {
			err = fmt.Errorf("its data directory: %w", dirErr)
		}
		return fmt.Errorf("start %s: %w", name, err)
	}
	node.PID = cmd.Process.Pid
	s.procs[name] = p
	go s.await(name, p)
	return s.tell()
}

// tell writes down what runs. The caller holds mu.
func (s *devSupervisor) tell() error {
	if s.untold {
		return nil
	}
	return s.cluster.save()
}

// await waits for the end of a node. Who waits for p.done may start it again.
func (s *devSupervisor) await(name string, p *devProcess) {
	p.err = p.cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(p.done)
	if node, err := s.cluster.node(name); err == nil && node.PID == p.cmd.Process.Pid {
		node.PID = 0
		if err := s.tell(); err != nil {
			fmt.Fprintln(s.events, "error:", err)
		}
	}
	if !p.asked {
		fmt.Fprintf(s.events, "%s ended by itself: %s\n", name, howItEnded(p.err))
	}
}

func howItEnded(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// run returns the present run of a node, which may have ended.
func (s *devSupervisor) run(name string) (*devProcess, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.cluster.node(name); err != nil {
		return nil, err
	}
	return s.procs[name], nil
}

// devKilled tells of a node that was killed.
type devKilled struct {
	Node string `json:"node"`
	PID  int    `json:"pid"`
	// At is when, on the monotonic clock that all processes of a machine share,
	// in nanoseconds: the logs of nodes tell theirs on the same one.
	At int64 `json:"killed_mono_ns"`
}

// kill kills a node as if its machine had lost power, and returns when it is
// gone.
func (s *devSupervisor) kill(name string) (devKilled, error) {
	p, err := s.run(name)
	if err != nil {
		return devKilled{}, err
	}
	if p == nil || p.hasEnded() {
		return devKilled{}, fail(exitConflict, "%s does not run", name)
	}
	s.mu.Lock()
	p.asked = true
	s.mu.Unlock()
	k := devKilled{Node: name, PID: p.cmd.Process.Pid, At: monotonic()}
	// It is our child and not waited for, or it has ended and this fails: its
	// pid cannot be that of another process.
	if err := p.cmd.Process.Signal(unix.SIGKILL); err != nil {
		return devKilled{}, fail(exitConflict, "%s does not run: %w", name, err)
	}
	<-p.done
	return k, nil
}

func (p *devProcess) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// How long an orderly end of a node may take: a little more than its goodbye.
const devStopPatience = 3 * time.Second

// stop ends all nodes: in order, and those that do not end in time by force. All
// are asked at once, because a goodbye needs a majority that still listens.
func (s *devSupervisor) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, devStopPatience)
	defer cancel()
	var all sync.WaitGroup
	for _, n := range s.nodes() {
		p, err := s.run(n.Name)
		if err != nil || p == nil || p.hasEnded() {
			continue
		}
		s.mu.Lock()
		p.asked = true
		s.mu.Unlock()
		_ = p.cmd.Process.Signal(unix.SIGTERM) // it may just have ended
		all.Go(func() {
			select {
			case <-p.done:
				return
			case <-ctx.Done():
			}
			fmt.Fprintf(s.events, "warning: %s did not end within %s and is killed\n", n.Name, devStopPatience)
			_ = p.cmd.Process.Kill() // the same
			<-p.done
		})
	}
	all.Wait()
}

// watchDir returns an error when the cluster's directory is not there any more:
// nobody could stop the cluster then.
func (s *devSupervisor) watchDir(ctx context.Context) error {
	mine, err := s.lock.Stat()
	if err != nil {
		return err
	}
	for pause(ctx, 500*time.Millisecond) == nil {
		if now, err := os.Stat(s.cluster.dir); err != nil || !os.SameFile(mine, now) {
			return fmt.Errorf("%s was removed", s.cluster.dir)
		}
	}
	return nil
}

// nodes returns all nodes as they are now.
func (s *devSupervisor) nodes() []devNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.cluster.Nodes)
}

// close kills the nodes that still run, ends what is left of steps, and gives
// the cluster free.
func (s *devSupervisor) close() error {
	for _, n := range s.nodes() {
		if p, err := s.run(n.Name); err == nil && p != nil {
			s.mu.Lock()
			p.asked = true
			s.mu.Unlock()
			_ = p.cmd.Process.Kill() // most have ended
			<-p.done
		}
	}
	close(s.fork)
	n, err := endSteps(s.cluster.dir)
	if n > 0 {
		fmt.Fprintf(s.events, "ended %d processes of steps that were still running\n", n)
	}
	return errors.Join(err, s.release())
}

func (s *devSupervisor) release() error {
	var err error
	if s.guard != nil {
		err = s.guard.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// tail returns the last lines that the present run of a node has logged.
func (s *devSupervisor) tail(name string, lines int) string {
	s.mu.Lock()
	node, err := s.cluster.node(name)
	if err != nil {
		s.mu.Unlock()
		return ""
	}
	path, start := node.Log, int64(0)
	if p := s.procs[name]; p != nil {
		start = p.logStart
	}
	s.mu.Unlock()
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // only read
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err.Error()
	}
	var last []string
	for in := bufio.NewScanner(io.LimitReader(f, 16<<20)); in.Scan(); {
		if last = append(last, "  "+in.Text()); len(last) > lines {
			last = last[1:]
		}
	}
	return path + ":\n" + strings.Join(last, "\n")
}

// endSteps ends the processes that the steps of a cluster left. A step outlives
// its agent, so they are found by the files that they write. It returns how
// many there were.
func endSteps(dir string) (int, error) {
	total := 0
	for deadline := time.Now().Add(time.Second); ; {
		pids, err := stepProcesses(dir)
		if err != nil || len(pids) == 0 {
			return total, err
		}
		total = max(total, len(pids))
		sig := unix.SIGTERM // lets it write down how it ended
		if time.Now().After(deadline) {
			sig = unix.SIGKILL
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, sig) // it may have ended
		}
		if err := pause(context.Background(), 20*time.Millisecond); err != nil {
			return total, err
		}
	}
}

// stepProcesses finds the processes that have files of the agents in dir open.
func stepProcesses(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid := 0
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		fds, err := os.ReadDir(filepath.Join("/proc", e.Name(), "fd"))
		if err != nil {
			continue // gone, or not ours
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join("/proc", e.Name(), "fd", fd.Name()))
			if err != nil {
				continue
			}
			rest, inside := strings.CutPrefix(target, dir+"/")
			if inside && strings.Contains(rest, "/data/agent/") {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

// monotonic is the clock that all processes of this machine share, in
// nanoseconds; see the log line "term begun".
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
