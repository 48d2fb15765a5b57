package wire

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// direct reads and writes a TCP connection without telling Go's scheduler. A socket
// of Go's never blocks, so there is nothing for the scheduler to know; but in a
// process that was asleep each announced system call wakes the thread that looks
// after those that may block, which looks again and again until all sleep anew. It
// took a third of the processor time of an idle member.
type direct struct {
	*net.TCPConn
	raw syscall.RawConn
}

// newDirect returns a connection over c that reads and writes directly, or c itself
// if that is no TCP connection.
func newDirect(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c
	}
	return &direct{TCPConn: tcp, raw: raw}
}

// NetConn returns the connection below.
func (c *direct) NetConn() net.Conn { return c.TCPConn }

// Read implements net.Conn.
func (c *direct) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	var errno syscall.Errno
	err = c.raw.Read(func(fd uintptr) bool {
		n, errno = transfer(syscall.SYS_READ, fd, p)
		return errno != syscall.EAGAIN // else f is called again when there is something
	})
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, c.failed("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (c *direct) Write(p []byte) (done int, err error) {
	for done < len(p) {
		var n int
		var errno syscall.Errno
		err = c.raw.Write(func(fd uintptr) bool {
			n, errno = transfer(syscall.SYS_WRITE, fd, p[done:])
			return errno != syscall.EAGAIN
		})
		switch {
		case err != nil:
			return done, err
		case errno != 0:
			return done, c.failed("write", errno)
		}
		done += n
	}
	return done, nil
}

// failed is the error that net gives.
func (c *direct) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// transfer makes one system call that moves bytes of p, which is not empty.
func transfer(call, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
