package lifeline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hold moves the socket to a thread. done is closed when it is closed there.
func hold(c *net.TCPConn, done chan<- struct{}) (end func(), err error) {
	var wake [2]int // its write end is this process's, and closing it wakes the thread
	if err := unix.Pipe2(wake[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	err = start(c, wake[0], func(socket int) {
		defer close(done)
		defer unix.Close(socket)
		defer unix.Close(wake[0])
		_, _ = wait(unix.PollFd{Fd: int32(socket), Events: unix.POLLRDHUP}, wake[0])
	})
	unix.Close(wake[0])
	if err != nil {
		unix.Close(wake[1])
		return nil, err
	}
	return func() { unix.Close(wake[1]) }, nil
}

// listen moves the listening socket to a thread, which hands over what it accepts
// through a pair of sockets.
func listen(l *net.TCPListener) (net.Listener, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(pair[0]), "accepted connections")
	defer file.Close()
	defer unix.Close(pair[1])
	accepted, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	own := &listener{addr: l.Addr(), accepted: accepted.(*net.UnixConn), done: make(chan struct{})}
	err = start(l, pair[1], func(socket int) {
		defer close(own.done)
		defer unix.Close(socket)
		defer unix.Close(pair[1])
		serve(socket, pair[1])
	})
	if err != nil {
		return nil, errors.Join(err, own.accepted.Close())
	}
	return own, nil
}

// acceptPause follows an error that will pass.
const acceptPause = 100 * time.Millisecond

// serve passes on what the socket accepts, and errors that will pass, until the other
// end of out is closed.
func serve(socket, out int) {
	for {
		ready, err := wait(unix.PollFd{Fd: int32(socket), Events: unix.POLLIN}, out)
		if err != nil || !ready {
			return
		}
		fd, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		var errno syscall.Errno
		var rights []byte
		switch {
		case err == nil:
			rights = unix.UnixRights(fd)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			continue
		case !errors.As(err, &errno):
			return
		}
		// This waits while nobody accepts; the kernel queues further connections.
		err = unix.Sendmsg(out, binary.NativeEndian.AppendUint32(nil, uint32(errno)), rights, nil, unix.MSG_NOSIGNAL)
		for errors.Is(err, unix.EINTR) {
			err = unix.Sendmsg(out, binary.NativeEndian.AppendUint32(nil, uint32(errno)), rights, nil, unix.MSG_NOSIGNAL)
		}
		if rights != nil {
			unix.Close(fd)
		}
		if err != nil || rights == nil {
			// The kernel has no memory to hand a connection over, which is lost then, or
			// to accept it. The port stays open: a living process that is refused looks
			// dead.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(out)}}, int(acceptPause.Milliseconds()))
		}
	}
}

type listener struct {
	addr     net.Addr
	accepted *net.UnixConn
	done     chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		var message [4]byte
		rights := make([]byte, unix.CmsgSpace(4))
		n, rn, _, _, err := l.accepted.ReadMsgUnix(message[:], rights)
		if err == nil && n < len(message) {
			err = net.ErrClosed // the thread has ended
		}
		if err == nil {
			var c net.Conn
			c, err = taken(syscall.Errno(binary.NativeEndian.Uint32(message[:])), rights[:rn])
			if c == nil && err == nil {
				continue
			}
			if err == nil {
				return c, nil
			}
		}
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: err}
	}
}

// taken makes a connection of what the thread has sent, nil if that has ended already.
func taken(errno syscall.Errno, rights []byte) (net.Conn, error) {
	if errno != 0 {
		return nil, os.NewSyscallError("accept4", errno)
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		// The kernel gives no files to a process that has as many as it may.
		return nil, os.NewSyscallError("recvmsg", unix.EMFILE)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, os.NewSyscallError("recvmsg", unix.EMFILE)
	}
	file := os.NewFile(uintptr(fds[0]), "accepted connection")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	if c.RemoteAddr() == nil {
		return nil, c.Close()
	}
	return c, nil
}

// Close implements net.Listener. On return the port is free.
func (l *listener) Close() error {
	err := l.accepted.Close()
	<-l.done
	return err
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// wait waits for the socket, which it reports, or for the end of the other side of wake.
func wait(socket unix.PollFd, wake int) (ready bool, err error) {
	fds := []unix.PollFd{socket, {Fd: int32(wake)}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil {
			return fds[1].Revents == 0, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return false, os.NewSyscallError("poll", err)
		}
	}
}

// start runs work on a thread that has no files but the socket and wake, and returns
// when they have been copied there: the caller then closes its own. If that fails, work
// does not run.
func start(socket syscall.Conn, wake int, work func(socket int)) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	started := make(chan error)
	onThread(func() {
		var fd int
		var err error
		used := raw.Control(func(s uintptr) {
			fd = int(s)
			err = keepOnly(fd, wake)
		})
		if err = errors.Join(used, err); err != nil {
			started <- err
			return
		}
		started <- nil
		work(fd)
	})
	return <-started
}

// onThread runs f on a thread of its own, which ends with f. It is never the main
// thread: that one's files are what /proc/PID/fd shows.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // and does not unlock it, so the thread ends
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		another := make(chan struct{})
		onThread(func() { close(another); f() })
		<-another
		runtime.UnlockOSThread()
	}()
}

// ownFiles is where a thread finds its files.
const ownFiles = "/proc/thread-self/fd"

// keepOnly gives the thread files of its own, and leaves it these, the standard ones and
// what Go's scheduler needs on any thread: it wakes its poller through an eventfd, and
// asks an epoll whenever it starts the world again.
func keepOnly(keep ...int) error {
	err := unix.Unshare(unix.CLONE_FILES)
	// Containers commonly forbid unshare(2), for what else it can do. The other way closes
	// nothing: there is no file of that number.
	if err != nil && unix.CloseRange(math.MaxUint32, math.MaxUint32, unix.CLOSE_RANGE_UNSHARE) != nil {
		return os.NewSyscallError("unshare", err)
	}
	files, err := os.ReadDir(ownFiles)
	if err != nil {
		return err
	}
	for _, file := range files {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			return fmt.Errorf("%s: %w", ownFiles, err)
		}
		if fd <= 2 || slices.Contains(keep, fd) {
			continue
		}
		switch needed, err := schedulers(fd); {
		case errors.Is(err, unix.EBADF): // the directory itself, closed by now
		case err != nil:
			return err
		case !needed:
			if err := unix.Close(fd); err != nil {
				return os.NewSyscallError("close", err)
			}
		}
	}
	return nil
}

// schedulers reports whether a file of this thread may be one that Go's scheduler needs.
func schedulers(fd int) (bool, error) {
	// Of ten thousand files most are sockets, and to read a name costs more than all else.
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return false, nil
	}
	what, err := os.Readlink(fmt.Sprintf("%s/%d", ownFiles, fd))
	return what == "anon_inode:[eventpoll]" || what == "anon_inode:[eventfd]", err
}
