package lifeline_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"uac/roles/wire/lifeline"
)

const (
	// addrVariable makes this program the process that TestKilled kills.
	addrVariable = "LIFELINE_TEST_ADDR"
	// sizeVariable makes it the one of BenchmarkKilled, with so many MiB of memory.
	sizeVariable = "LIFELINE_TEST_MIB"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(addrVariable); addr != "" {
		victim(addr)
	}
	if size := os.Getenv(sizeVariable); size != "" {
		large(size)
	}
	goleak.VerifyTestMain(m)
}

func TestHold(t *testing.T) {
	ours, theirs := connect(t)
	inode := socketOf(t, ours)
	held, err := lifeline.Hold(ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection was left to its owner, too: %v", err)
	}
	if where := holders(t, os.Getpid(), inode); len(where) != 1 || strings.HasSuffix(where[0], fmt.Sprintf("task/%d", os.Getpid())) {
		t.Errorf("held by the threads %v, want one that is not the main one", where)
	}
	select {
	case <-held.Done():
		t.Error("ended by itself")
	default:
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	<-held.Done()
	if err := held.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	wantEnd(t, theirs)
}

func TestHeldEndsWithTheOtherSide(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn) error{
		"close": (*net.TCPConn).Close,
		"half":  (*net.TCPConn).CloseWrite,
		"reset": func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := connect(t)
			held, err := lifeline.Hold(ours)
			if err != nil {
				t.Fatal(err)
			}
			if err := end(theirs); err != nil {
				t.Fatal(err)
			}
			<-held.Done()
			_ = held.Close()
		})
	}
}

func TestHoldWhatCannotBeHeld(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := lifeline.Hold(a); err == nil || !strings.Contains(err.Error(), "*net.pipe") {
		t.Errorf("a pipe: %v", err)
	}
	ours, _ := connect(t)
	_ = ours.Close()
	if _, err := lifeline.Hold(ours); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection: %v", err)
	}
}

func TestListen(t *testing.T) {
	l := listen(t)
	own, err := lifeline.Listen(l)
	if err != nil {
		t.Fatal(err)
	}
	if own.Addr().String() != l.Addr().String() {
		t.Errorf("listens on %v, want %v", own.Addr(), l.Addr())
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the socket was left to its owner, too: %v", err)
	}
	for range 20 {
		theirs, err := net.Dial("tcp", own.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ours, err := own.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if ours.RemoteAddr().String() != theirs.LocalAddr().String() {
			t.Errorf("accepted %v, want %v", ours.RemoteAddr(), theirs.LocalAddr())
		}
		if _, err := theirs.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		if got := make([]byte, 8); true {
			if _, err := io.ReadFull(ours, got); err != nil || string(got) != "question" {
				t.Fatalf("read %q, %v", got, err)
			}
		}
		// Nobody else holds it open.
		_ = ours.Close()
		wantEnd(t, theirs)
		_ = theirs.Close()
	}

	waits := make(chan error)
	go func() { _, err := own.Accept(); waits <- err }()
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept ended with %v", err)
	}
	if _, err := net.Dial("tcp", own.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after the end: %v", err)
	}
	again, err := net.Listen("tcp", own.Addr().String())
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	_ = again.Close()
}

// Connections wait in the kernel while nobody accepts, and none is lost.
func TestListenWhileNobodyAccepts(t *testing.T) {
	own, err := lifeline.Listen(listen(t))
	if err != nil {
		t.Fatal(err)
	}
	const many = 400
	var conns []net.Conn
	for range many {
		c, err := net.Dial("tcp", own.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for range many {
		c, err := own.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	for _, c := range conns {
		wantEnd(t, c)
		_ = c.Close()
	}

	// With connections that nobody takes it ends as well.
	for range many {
		c, err := net.Dial("tcp", own.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}

// A process out of files says so, as an ordinary listener would, and goes on when it
// has some again.
func TestListenOutOfFiles(t *testing.T) {
	own, err := lifeline.Listen(listen(t))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	theirs, err := net.Dial("tcp", own.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 3
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err = own.Accept()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("accept: %v, want EMFILE", err)
	}
	again, err := net.Dial("tcp", own.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for { // the first one, if it was not lost, and some more errors may come before
		ours, err := own.Accept()
		if err != nil && !errors.Is(err, syscall.EMFILE) {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		_ = ours.Close()
		if ours.RemoteAddr().String() == again.LocalAddr().String() {
			return
		}
	}
}

// Where the kernel has no memory to hand over a connection, that one is lost, and not
// the port: a process that is refused looks dead.
func TestListenWithoutMemory(t *testing.T) {
	if !without(t, unix.SYS_SENDMSG, unix.ENOBUFS) {
		return
	}
	own, err := lifeline.Listen(listen(t))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for range 3 {
		theirs, err := net.Dial("tcp", own.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		wantEnd(t, theirs)
	}
}

// Containers commonly forbid unshare.
func TestHoldInContainer(t *testing.T) {
	if !without(t, unix.SYS_UNSHARE, unix.EPERM) {
		return
	}
	t.Run("hold", TestHold)
	t.Run("listen", TestListen)
}

// What a killed process held ends although its other files live on: here a child has
// inherited all of them.
func TestKilled(t *testing.T) {
	reports := listen(t)
	defer reports.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), addrVariable+"="+reports.Addr().String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := false
	defer func() {
		if !reaped {
			_, _ = cmd.Process.Kill(), cmd.Wait()
		}
	}()
	held, err := reports.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ordinary, err := reports.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer ordinary.Close()
	line := make([]byte, 64)
	n, err := ordinary.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	var addr string
	var child int
	if _, err := fmt.Sscan(string(line[:n]), &addr, &child); err != nil {
		t.Fatalf("the process says %q: %v", line[:n], err)
	}
	defer func() { _ = syscall.Kill(child, syscall.SIGKILL) }()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("it does not listen: %v", err)
	}
	defer c.Close()

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, held)
	_ = cmd.Wait()
	reaped = true
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want refused", err)
	}
	if err := ordinary.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := ordinary.Read(line); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the ordinary connection ended with the process, so this test shows nothing: %v", err)
	}
}

// victim holds a connection, listens, has an ordinary connection, and a child that
// shares what the process itself has open.
func victim(addr string) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	c, err := net.Dial("tcp", addr)
	must(err)
	ordinary, err := net.Dial("tcp", addr)
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	_, err = lifeline.Hold(c)
	must(err)
	own, err := lifeline.Listen(l.(*net.TCPListener))
	must(err)
	// All that it could inherit, it inherits.
	files, err := os.ReadDir("/proc/self/fd")
	must(err)
	for _, f := range files {
		var fd int
		_, err := fmt.Sscan(f.Name(), &fd)
		must(err)
		_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0)
	}
	child := exec.Command("sleep", "600")
	must(child.Start())
	_, err = fmt.Fprintln(ordinary, own.Addr(), child.Process.Pid)
	must(err)
	for {
		_, err := own.Accept()
		must(err)
	}
}

// The scheduler of Go works on the threads as on any other: it wakes its poller from
// there, and starts the world again.
func TestSchedulerOnTheThread(t *testing.T) {
	err := lifeline.OnOwnThread(func() {
		for i := range 200 {
			late := make(chan struct{})
			time.AfterFunc(time.Microsecond, func() { close(late) })
			<-late
			timer := time.NewTimer(time.Hour - time.Duration(i)*time.Second) // each earlier than the last
			defer timer.Stop()
			a, b := make(chan int), make(chan int)
			go func() { b <- <-a }()
			a <- i
			<-b
			if i%20 == 0 {
				runtime.GC()
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// withoutVariable tells a process that it is the one of [without].
const withoutVariable = "LIFELINE_TEST_WITHOUT"

// without runs the test once more in a process of its own, in which a system call fails,
// and reports whether this is that process.
func without(t *testing.T, call uint32, errno syscall.Errno) bool {
	t.Helper()
	if os.Getenv(withoutVariable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), withoutVariable+"="+t.Name())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return false
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // from here the filter comes to all threads, which needs the first
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	if failed != 0 {
		t.Fatalf("seccomp: %v", failed)
	}
	return true
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// connect returns both ends of a connection.
func connect(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l := listen(t)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	ours = c.(*net.TCPConn)
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return ours, theirs
}

// wantEnd waits until the other side has closed the connection.
func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("there was something to read")
	}
}

// socketOf returns what /proc calls the connection's socket.
func socketOf(t *testing.T, c *net.TCPConn) (name string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// holders returns the threads of a process among whose files the socket is.
func holders(t *testing.T, pid int, socket string) (threads []string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if what, err := os.Readlink(f); err == nil && what == socket {
			threads = append(threads, filepath.Dir(filepath.Dir(f)))
		}
	}
	return threads
}
