package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// carryBuffer is the most that is read at a time, in bytes.
const carryBuffer = 16 << 10

// lingering is how long the other direction may go on when one has ended.
const lingering = 5 * time.Second

// buffers are lent to connections that have something to read, and to no others.
type buffers struct{ pool sync.Pool }

func newBuffers() *buffers {
	return &buffers{pool: sync.Pool{New: func() any { return new([carryBuffer]byte) }}}
}

func (b *buffers) lend() *[carryBuffer]byte { return b.pool.Get().(*[carryBuffer]byte) }

// carry joins two connections until one of them ends, and closes both. count is told
// the bytes that were passed on, fromA whether a had sent them.
func (b *buffers) carry(x, y *net.TCPConn, count func(fromX bool, n int)) {
	var wg sync.WaitGroup
	one := func(dst, src *net.TCPConn) {
		if err := b.copy(dst, src, func(n int) { count(src == x, n) }); err == nil {
			err = dst.CloseWrite()
			if err == nil {
				until := time.Now().Add(lingering)
				_, _ = x.SetDeadline(until), y.SetDeadline(until) // fails when it is closed
				return
			}
		}
		_, _ = x.Close(), y.Close() // nobody is left to be told
	}
	wg.Go(func() { one(x, y) })
	one(y, x)
	wg.Wait()
	_, _ = x.Close(), y.Close() // may be closed already
}

// copy passes on what src sends, until its end.
func (b *buffers) copy(dst, src *net.TCPConn, count func(n int)) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		buf, n, err := b.read(raw)
		if n > 0 {
			_, werr := dst.Write(buf[:n])
			b.pool.Put(buf)
			if werr != nil {
				return werr
			}
			count(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// read waits until there is something to read and then borrows a buffer for it, which
// the caller gives back. There is none without bytes.
func (b *buffers) read(raw syscall.RawConn) (buf *[carryBuffer]byte, n int, err error) {
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		buf = b.lend()
		for {
			n, failed = syscall.Read(int(fd), buf[:])
			if !errors.Is(failed, syscall.EINTR) {
				break
			}
		}
		if failed == nil && n > 0 {
			return true
		}
		b.pool.Put(buf)
		buf = nil
		return !errors.Is(failed, syscall.EAGAIN) // else wait
	})
	switch {
	case err != nil: // closed, or past its deadline
		return nil, 0, err
	case failed != nil:
		return nil, 0, failed
	case n == 0:
		return nil, 0, io.EOF
	}
	return buf, n, nil
}
