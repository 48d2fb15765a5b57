package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// result is what a call came to.
type result struct {
	answer answer
	body   []byte
	err    error // the call got no answer
}

// waiting is a call that was sent and not answered.
type waiting struct {
	call  call
	timer *time.Timer
	done  func(result) // called once
}

// child is one process that touches the mount. It is up from its start until the
// first call that gets no answer in time or the end of its output; then it is down
// for good: killed, and gone when the kernel lets it.
type child struct {
	cmd     *exec.Cmd
	in, out *os.File
	timeout time.Duration
	// lost is called once, when the child goes down.
	lost func(ch *child, hung bool, err error)
	// gone is closed when the process has ended and its goroutines have.
	gone chan struct{}

	queue chan sent
	over  chan struct{} // closed when the child is down

	mu      sync.Mutex // guards the following
	pending map[uint64]*waiting
	last    uint64
	down    error // nil while the child is up
}

// sent is a frame on its way.
type sent struct {
	call call
	body []byte
}

// startChild starts a process. It gets no descriptor but its pipes: what a stuck
// process holds stays held. It has a process group of its own, so that signals for
// the parent's do not reach it, and the kernel kills it when the parent dies. The
// caller must stay on one thread, since that signal comes with the thread's end.
func startChild(cmd *exec.Cmd, timeout time.Duration, lost func(*child, bool, error)) (*child, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), in.Close())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = theirIn, theirOut, nil, nil
	cmd.Dir = "/" // not on the mount, and nothing that could not be unmounted
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_, _ = theirIn.Close(), theirOut.Close()
	if err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	ch := &child{
		cmd: cmd, in: in, out: out, timeout: timeout, lost: lost, gone: make(chan struct{}),
		queue: make(chan sent, 2*maxInFlight), over: make(chan struct{}), pending: map[uint64]*waiting{},
	}
	var own sync.WaitGroup
	own.Go(ch.write)
	own.Go(ch.read)
	go func() {
		// The one goroutine that may outlive Run: a process that the kernel cannot
		// kill is waited for until it can.
		defer close(ch.gone)
		err := cmd.Wait()
		ch.end(false, fmt.Errorf("the child ended: %w", orErr(err, errors.New("exit status 0"))))
		own.Wait()
	}()
	return ch, nil
}

func orErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// send makes a call. done is called once: with the answer, or with an error when the
// child goes down, which it does if the answer takes longer than the timeout. It
// must not block.
func (ch *child) send(c call, body []byte, done func(result)) {
	ch.mu.Lock()
	if ch.down != nil {
		err := ch.down
		ch.mu.Unlock()
		done(result{err: err})
		return
	}
	ch.last++
	c.ID = ch.last
	w := &waiting{call: c, done: done}
	ch.pending[c.ID] = w
	w.timer = time.AfterFunc(ch.timeout, func() {
		ch.end(true, fmt.Errorf("%s got no answer in %v", c.Op, ch.timeout))
	})
	ch.mu.Unlock()
	select {
	case ch.queue <- sent{c, body}: // it is longer than there are calls in flight
	case <-ch.over:
	}
}

func (ch *child) write() {
	for {
		select {
		case <-ch.over:
			return
		case s := <-ch.queue:
			if err := writeFrame(ch.in, s.call, s.body); err != nil {
				ch.end(false, fmt.Errorf("write to the child: %w", err))
				return
			}
		}
	}
}

func (ch *child) read() {
	for {
		var a answer
		body, err := readFrame(ch.out, &a)
		if err != nil {
			ch.end(false, fmt.Errorf("read from the child: %w", err))
			return
		}
		ch.mu.Lock()
		w := ch.pending[a.ID]
		delete(ch.pending, a.ID)
		ch.mu.Unlock()
		if w != nil {
			w.timer.Stop()
			w.done(result{answer: a, body: body})
		}
	}
}

// end takes the child down: calls without an answer fail, and the process is killed.
// It never waits for it.
func (ch *child) end(hung bool, err error) {
	ch.mu.Lock()
	if ch.down != nil {
		ch.mu.Unlock()
		return
	}
	ch.down = err
	pending := ch.pending
	ch.pending = nil
	ch.mu.Unlock()
	close(ch.over)
	_ = ch.cmd.Process.Kill()
	// The pipes are ours and are no files of the mount: closing them cannot hang,
	// and it ends the goroutines that read and write them.
	_, _ = ch.in.Close(), ch.out.Close()
	ch.lost(ch, hung, err)
	for _, w := range pending {
		w.timer.Stop()
		w.done(result{err: err})
	}
}

// isDown reports whether the child is down.
func (ch *child) isDown() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.down != nil
}

// isGone reports whether the process has ended.
func (ch *child) isGone() bool {
	select {
	case <-ch.gone:
		return true
	default:
		return false
	}
}
