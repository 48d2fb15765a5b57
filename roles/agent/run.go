package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"uac/roles/wire"
)

// run is an attempt that this process looks after, from the intent to the end.
type run struct {
	key  key
	dir  attemptDir
	kick chan struct{} // the ledger has news about the attempt
	hold chan bool     // it is to be frozen, or thawed

	limit int64 // of its output, 0 for none; guarded by Agent.mu
}

func newRun(k key, dir attemptDir) *run {
	return &run{key: k, dir: dir, kick: make(chan struct{}, 1), hold: make(chan bool, 1)}
}

func (r *run) notify() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

const (
	// termDelay is how long after its start an attempt is left alone: a TERM that
	// reaches the wrapper before it has started the command would pass it by.
	termDelay = 100 * time.Millisecond
	// runningAfter is how long an attempt runs before that is reported. One that ends
	// sooner reports its end only, which says when it was started, too: most steps are
	// short, and each report that is news is a write of the whole cluster.
	runningAfter = 100 * time.Millisecond
	// killAgain is the time between two looks at what is left after KILL.
	killAgain = 50 * time.Millisecond
	// lookAgain is the time between two looks at a session that is alive although
	// nobody holds its pipe any more, which nothing announces.
	lookAgain = 500 * time.Millisecond
)

// spawn starts to look after an attempt whose intent was appended with the number
// seq. The caller holds a.mu.
func (a *Agent) spawn(c *wire.Start, seq uint64) {
	r := newRun(key{c.GetRequest(), c.GetStep(), c.GetAttempt()}, "")
	r.dir = a.dir(r.key)
	a.runs[r.key] = r
	a.queued++
	a.metrics.Add(MetricQueued, 1)
	a.runners.Go(func() {
		queued := sync.OnceFunc(func() { a.dequeued() })
		defer queued()
		defer a.forget(r)
		a.begin(a.ctx, r, c, seq, queued)
	})
}

func (a *Agent) dequeued() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queued--
	a.metrics.Add(MetricQueued, -1)
}

func (a *Agent) forget(r *run) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.runs, r.key)
}

// begin takes an attempt from its intent to its end.
func (a *Agent) begin(ctx context.Context, r *run, c *wire.Start, seq uint64, queued func()) {
	a.deps.Point(pointIntentAppended)
	// While the intent goes to disk the directory can be made: it means nothing
	// without the intent.
	j, err := a.prepare(ctx, r, c)
	a.deps.Point(pointPrepared)
	if a.journal.wait(ctx, seq) != nil {
		return
	}
	a.deps.Point(pointIntentDurable)
	switch {
	case errors.Is(err, errStartedBefore):
		a.end(ctx, r, record{Phase: phaseUnknown, Reason: err.Error()})
		return
	case ctx.Err() != nil:
		return
	case err != nil:
		a.end(ctx, r, record{Phase: phaseNever, Reason: fmt.Sprintf("could not be prepared: %v", err)})
		return
	}
	turn := a.slots.enter(c.GetPriority(), seq)
	defer a.slots.leave(turn)
	if !a.waitTurn(ctx, r, turn) {
		return
	}
	if err := j.check(ctx, r.dir); err != nil {
		if ctx.Err() == nil {
			a.end(ctx, r, record{Phase: phaseNever, Reason: fmt.Sprintf("could not be started: %v", err)})
		}
		return
	}
	if left, limited := a.aloneLeft(r.key); limited && left <= 0 {
		a.end(ctx, r, record{Phase: phaseNever, Reason: "no controller was heard for too long: it may be started elsewhere"})
		return
	}
	if !a.starting(r) {
		return
	}
	queued()
	a.deps.Point(pointForking)
	p, pipe, err := a.launcher.launch(r.dir, j)
	if err != nil {
		a.end(ctx, r, record{Phase: phaseNever, Reason: fmt.Sprintf("could not be started: %v", err)})
		return
	}
	a.deps.Point(pointForked)
	a.metrics.Add(MetricStarted, 1)
	boot, err := bootTime()
	if err != nil {
		a.log.Error("no time since boot: a timeout will not be kept over a restart", "err", err)
	}
	a.mu.Lock()
	a.commit(record{
		Kind: kindLaunched, Request: r.key.request, Step: r.key.step, Attempt: r.key.attempt,
		Pid: p.pid, PidStart: p.start, BootTime: boot,
	})
	a.mu.Unlock()
	a.deps.Point(pointLaunched)
	a.runners.Go(a.stock)
	a.attend(ctx, r, p, pipe)
}

// prepare finds out as whom the attempt is to run, and makes its directory.
func (a *Agent) prepare(ctx context.Context, r *run, c *wire.Start) (job, error) {
	if err := r.dir.unused(); err != nil {
		return job{}, err
	}
	var as *account
	if c.GetRunAs() != "" {
		var err error
		if as, err = lookupAccount(ctx, c.GetRunAs(), os.Geteuid()); err != nil {
			return job{}, err
		}
	}
	j := a.launcher.job(c, r.dir, as)
	return j, r.dir.prepare(j, a.spares)
}

// stock makes directories for the next attempts.
func (a *Agent) stock() {
	if err := a.spares.fill(); err != nil {
		a.log.Debug("no directories in stock: the next attempt makes its own", "err", err)
	}
}

// waitTurn waits until the attempt may run. It returns false if it must not any more, or
// the agent ends.
func (a *Agent) waitTurn(ctx context.Context, r *run, turn *slot) bool {
	select {
	case <-turn.ready:
		return true
	default:
	}
	a.mu.Lock()
	a.notify(r.key)
	a.mu.Unlock()
	for {
		select {
		case <-turn.ready:
			// Those who look after running attempts leave when the agent ends, and give
			// their slots away, though the attempts go on.
			return ctx.Err() == nil
		case <-r.kick:
			a.mu.Lock()
			at := a.ledger.attempt(r.key)
			gone := at == nil || at.Phase != phaseAccepted
			a.mu.Unlock()
			if gone {
				return false
			}
		case <-ctx.Done():
			return false
		}
	}
}

// starting marks the point from which on a kill can no longer prevent the start. It
// returns false if one has.
func (a *Agent) starting(r *run) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.ledger.attempt(r.key)
	if at == nil || at.Phase != phaseAccepted {
		return false
	}
	at.Phase = phaseStarting
	return true
}

// end records how an attempt ended, once, and waits until that is on disk.
func (a *Agent) end(ctx context.Context, r *run, rec record) {
	rec.Kind = kindEnd
	rec.Request, rec.Step, rec.Attempt = r.key.request, r.key.step, r.key.attempt
	a.mu.Lock()
	at := a.ledger.attempt(r.key)
	if at == nil || at.Phase.ended() {
		a.mu.Unlock()
		return
	}
	limit := at.Limit
	a.mu.Unlock()
	rec.Dropped = r.dir.dropped(limit)
	a.mu.Lock()
	if at.Phase.ended() { // a kill has come first
		a.mu.Unlock()
		return
	}
	if at.Stop == stopAlone && rec.Reason == "" {
		rec.Reason = "no controller was heard for too long: it may have been started elsewhere"
	}
	seq := a.commit(rec)
	a.notify(r.key)
	a.mu.Unlock()
	a.metrics.Add(MetricEnded, 1)
	if rec.Phase == phaseUnknown {
		a.metrics.Add(MetricUnknown, 1)
		a.log.Warn("nobody knows how an attempt ended", "request", rec.Request, "step", rec.Step, "attempt", rec.Attempt, "reason", rec.Reason)
	}
	if a.journal.wait(ctx, seq) != nil {
		return
	}
	a.deps.Point(pointExitDurable)
	if rec.Dropped > 0 {
		a.seal(r, limit, rec.Dropped)
	}
}

func (a *Agent) seal(r *run, limit, dropped int64) {
	if err := r.dir.seal(limit, dropped); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("output beyond the limit of an attempt cannot be removed", "attempt", r.key.String(), "err", err)
	}
}

// attend looks after an attempt whose wrapper lives, or lived a moment ago.
func (a *Agent) attend(ctx context.Context, r *run, p process, pipe *os.File) {
	a.metrics.Add(MetricRunning, 1)
	defer a.metrics.Add(MetricRunning, -1)
	defer a.reaper.reap(p.pid)

	w := watchPipe(pipe)
	defer w.close()

	a.mu.Lock()
	state := *a.ledger.attempt(r.key)
	a.mu.Unlock()
	defer a.limitOutput(r, state.Limit)()
	s := stopper{agent: a, run: r, process: p, grace: time.Duration(state.Grace), launched: r.launchedAt(state)}
	defer s.close()
	s.freezer = newFreezer(a, r)
	defer s.freezer.close()
	if state.Timeout > 0 && state.Stop == "" {
		s.timeout = time.NewTimer(time.Until(s.launched.Add(time.Duration(state.Timeout))))
	}
	if state.Alone > 0 && state.Stop == "" {
		s.alone = time.NewTimer(0)
	}
	r.notify() // a stop may be recorded already

	running := time.NewTimer(runningAfter)
	defer running.Stop()
	gone := false
	look := time.NewTicker(lookAgain)
	look.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		case <-w.gone:
			w.gone, gone = nil, true
			look.Reset(lookAgain)
		case err := <-w.failed:
			a.fail(fmt.Errorf("watch attempt %s: %w", r.key, err))
			return
		case <-look.C:
		case <-running.C:
			a.mu.Lock()
			a.notify(r.key)
			a.mu.Unlock()
		case <-r.kick:
			s.kicked()
		case want := <-r.hold:
			s.hold(want)
		case <-timerC(s.timeout):
			s.stop(stopTimeout)
		case <-timerC(s.alone):
			s.lookAlone()
		case <-timerC(s.term):
			s.sendTerm(ctx)
		case <-timerC(s.kill):
			s.sendKill(ctx)
		}
		if a.finished(ctx, r, s.process, gone) {
			return
		}
	}
}

func timerC(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// launchedAt returns when the attempt was launched, on the monotonic clock, as far as
// that is known after a restart.
func (r *run) launchedAt(state attempt) time.Time {
	if now, err := bootTime(); err == nil && state.BootTime > 0 && now > state.BootTime {
		return time.Now().Add(-time.Duration(now - state.BootTime))
	}
	if info, err := os.Stat(r.dir.file(fileStatus)); err == nil {
		if age := time.Since(info.ModTime()); age > 0 {
			return time.Now().Add(-age)
		}
	}
	return time.Now()
}

// finished ends the attempt if it has ended. gone says that nobody holds its pipe.
func (a *Agent) finished(ctx context.Context, r *run, p process, gone bool) bool {
	e := evidence{sameBoot: true, held: !gone}
	var err error
	if e.status, err = r.dir.status(); err != nil {
		a.fail(err)
		return true
	}
	a.mu.Lock()
	at := a.ledger.attempt(r.key)
	e.killing, e.stopping = at.Killing, at.Stop != ""
	a.mu.Unlock()
	if gone && (!e.exited || e.killing || e.stopping) {
		if p.pid == 0 {
			p.pid = e.pid
		}
		members, err := p.session()
		if err != nil {
			a.fail(err)
			return true
		}
		e.session = len(members) > 0
	}
	v := judge(e)
	if v == verdictRunning {
		return false
	}
	a.deps.Point(pointExitSeen)
	rec := v.record(e)
	if v == verdictNeverRan {
		// Nobody but this process could start it, and it will not: that is an end.
		rec = record{Phase: phaseNever, Reason: "its wrapper ended before it could run the command"}
	}
	a.capture(r, e, &rec)
	a.end(ctx, r, rec)
	return true
}

// capture adds to the record of an end what the command has written as outputs. They
// are read once, and are on disk with the end.
func (a *Agent) capture(r *run, e evidence, rec *record) {
	if rec.Phase != phaseExited {
		return
	}
	a.mu.Lock()
	wanted := a.ledger.attempt(r.key).Wanted
	a.mu.Unlock()
	switch {
	case len(wanted) == 0:
		return
	case !e.sameBoot:
		// The exit status has reached the disk, but nobody knows how much of the outputs.
		rec.Reason = "outputs: lost, the machine was booted before they were recorded"
	default:
		rec.Outputs, rec.Reason = r.dir.values(wanted)
	}
	a.deps.Point(pointOutputsRead)
}

// record returns the end that a verdict means; for verdictRunning and verdictNeverRan
// there is none.
func (v verdict) record(e evidence) record {
	switch v {
	case verdictExited:
		return record{Phase: phaseExited, Code: e.code}
	case verdictKilled:
		return record{Phase: phaseExited, Code: 128 + int32(syscall.SIGKILL), Signal: int32(syscall.SIGKILL)}
	case verdictNever:
		return record{Phase: phaseNever, Reason: "stopped before it could run the command"}
	case verdictUnknown:
		if e.sameBoot {
			return record{Phase: phaseUnknown, Reason: "its processes are gone and left no exit status"}
		}
		return record{Phase: phaseUnknown, Reason: "the machine was booted and no exit status had reached the disk"}
	}
	return record{}
}

// stopper brings an attempt to its end: TERM, and KILL after the grace time.
type stopper struct {
	agent    *Agent
	run      *run
	process  process
	grace    time.Duration
	launched time.Time

	timeout, alone, term, kill *time.Timer
	kills                      int
	freezer                    freezer
}

func (s *stopper) close() {
	for _, t := range []*time.Timer{s.timeout, s.alone, s.term, s.kill} {
		if t != nil {
			t.Stop()
		}
	}
}

func (s *stopper) state() attempt {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	return *s.agent.ledger.attempt(s.run.key)
}

// kicked begins to stop the attempt if the ledger says so. After a restart of the
// agent it goes on where the process before had come to.
func (s *stopper) kicked() {
	state := s.state()
	switch {
	case s.term != nil || s.kill != nil:
	case state.Killing:
		s.kill = time.NewTimer(0)
	case state.Stop != "":
		s.term = time.NewTimer(time.Until(s.launched.Add(termDelay)))
	}
}

// stop begins to stop the attempt, unless something else has.
func (s *stopper) stop(why stop) {
	a, k := s.agent, s.run.key
	a.mu.Lock()
	if a.ledger.attempt(k).Stop == "" {
		a.commit(record{Kind: kindStop, Request: k.request, Step: k.step, Attempt: k.attempt, Stop: why})
		a.notify(k)
	}
	a.mu.Unlock()
	s.kicked()
}

// lookAlone stops the attempt if no controller was heard for too long, or comes again.
func (s *stopper) lookAlone() {
	if left, _ := s.agent.aloneLeft(s.run.key); left > 0 {
		s.alone.Reset(min(left, aloneLook))
		return
	}
	s.stop(stopAlone)
}

// sendTerm asks the attempt to end. Why is on disk before: who dies of it must not look
// as if it had ended by itself.
func (s *stopper) sendTerm(ctx context.Context) {
	a := s.agent
	a.deps.Point(pointStopAppended)
	a.mu.Lock()
	seq := a.ledger.requests[s.run.key.request].seq
	a.mu.Unlock()
	if a.journal.wait(ctx, seq) != nil {
		return
	}
	a.deps.Point(pointStopDurable)
	s.find()
	if err := s.process.signal(syscall.SIGTERM); err != nil {
		s.agent.log.Warn("cannot stop an attempt gently", "attempt", s.run.key.String(), "err", err)
	}
	s.freezer.thaw(s.process) // or it could not obey
	s.kill = time.NewTimer(s.grace)
}

// hold freezes or thaws the attempt. One that is being stopped is not frozen: it could
// not obey.
func (s *stopper) hold(want bool) {
	if want && s.state().Stop != "" {
		return
	}
	s.find()
	s.freezer.hold(s.process, want)
}

// find learns the wrapper's pid if an earlier process of the agent died before it
// could record it.
func (s *stopper) find() {
	if s.process.pid == 0 {
		st, _ := s.run.dir.status() // finished tells of errors
		s.process.pid = st.pid
	}
}

// sendKill ends what is left of the attempt, and comes again until nothing is. That
// KILL was sent is recorded before: only then is the lack of an exit status a known
// end.
func (s *stopper) sendKill(ctx context.Context) {
	a, k := s.agent, s.run.key
	a.mu.Lock()
	seq := uint64(0)
	if !a.ledger.attempt(k).Killing {
		seq = a.commit(record{Kind: kindKilling, Request: k.request, Step: k.step, Attempt: k.attempt})
	}
	a.mu.Unlock()
	if a.journal.wait(ctx, seq) != nil {
		return
	}
	if s.kills == 0 {
		a.deps.Point(pointKillingDurable)
	}
	s.find()
	err := s.process.signal(syscall.SIGKILL)
	if s.kills > 0 {
		// Something has left the session and holds the pipe.
		pids, e := holders(s.run.dir.file(fileAlive))
		for _, pid := range pids {
			e = errors.Join(e, ignoreGone(syscall.Kill(pid, syscall.SIGKILL)))
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		a.log.Warn("cannot kill an attempt", "attempt", k.String(), "err", err)
	}
	s.kills++
	s.kill.Reset(killAgain)
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// pipeWatch tells what happens to the reading end of an attempt's pipe.
type pipeWatch struct {
	pipe   *os.File
	news   chan struct{} // a byte came
	gone   chan struct{} // closed when nobody holds the writing end
	failed chan error
	done   sync.WaitGroup
}

func watchPipe(pipe *os.File) *pipeWatch {
	w := &pipeWatch{pipe: pipe, news: make(chan struct{}, 1), gone: make(chan struct{}), failed: make(chan error, 1)}
	gone := w.gone
	w.done.Go(func() {
		buf := make([]byte, 64)
		for {
			_, err := pipe.Read(buf)
			switch {
			case err == nil:
				select {
				case w.news <- struct{}{}:
				default:
				}
				continue
			case errors.Is(err, io.EOF):
				close(gone)
			case !errors.Is(err, os.ErrClosed):
				w.failed <- err
			}
			return
		}
	})
	return w
}

func (w *pipeWatch) close() {
	w.pipe.Close()
	w.done.Wait()
}

// reaper takes the exit status of wrappers that are children of this process. Nobody
// needs it; but who does not ask for it leaves zombies.
type reaper struct {
	mu   sync.Mutex
	pids map[int]struct{}
}

func newReaper() *reaper { return &reaper{pids: map[int]struct{}{}} }

// reap takes pid, which ends soon. It may be a stranger's.
func (r *reaper) reap(pid int) {
	if pid <= 0 {
		return
	}
	r.mu.Lock()
	r.pids[pid] = struct{}{}
	r.mu.Unlock()
	r.sweep()
}

func (r *reaper) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid := range r.pids {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if got == pid || err != nil && !errors.Is(err, unix.EINTR) {
			delete(r.pids, pid)
		}
	}
}

func (r *reaper) run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-died:
			r.sweep()
		case <-ctx.Done():
			r.sweep()
			return
		}
	}
}
