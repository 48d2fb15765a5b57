package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spool knows the attempts whose output is being collected: what is written faster
// than it is collected must not fill the disk, and what is not collected yet must not
// be removed. It is memory only: whoever collects asks again, and says how far it is.
// Safe for concurrent use.
type spool struct {
	limit, total int64
	kick         chan struct{} // there is something to watch over

	mu     sync.Mutex // guards what follows
	waits  map[key]*waiting
	silent bool // no controller says that output is collected
}

// waiting is output that somebody collects.
type waiting struct {
	kept   int64 // bytes that are durable elsewhere
	end    int64 // of the output, as whoever collects was told; 0: it was not
	freed  int64 // of these, given back to the file system
	frozen bool  // its attempt is
}

func newSpool(limit, total int64) *spool {
	return &spool{limit: limit, total: total, kick: make(chan struct{}, 1), waits: map[key]*waiting{}}
}

// keeps says that all output before offset is kept elsewhere, and that somebody comes
// for the rest. It returns what may be freed.
func (s *spool) keeps(k key, offset int64) (free int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.entry(k)
	w.kept = max(w.kept, offset)
	if w.end > 0 && w.kept >= w.end {
		delete(s.waits, k) // what a process left behind writes after that is no part of it
	}
	if w.kept-w.freed < freeUnit {
		return 0
	}
	w.freed = w.kept - w.kept%freeUnit
	return w.freed
}

// ends says that whoever collects is being told that an attempt has ended, and so has
// its output.
func (s *spool) ends(k key, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waits[k]; w != nil {
		w.end = end
	}
}

// found says that an attempt was frozen when this process began.
func (s *spool) found(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry(k).frozen = true
}

func (s *spool) entry(k key) *waiting {
	w := s.waits[k]
	if w == nil {
		w = &waiting{}
		s.waits[k] = w
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
	return w
}

// wanted returns the directories of the attempts whose output somebody still comes for.
func (s *spool) wanted() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirs := make(map[string]bool, len(s.waits))
	for k := range s.waits {
		dirs[k.dir()] = true
	}
	return dirs
}

func (s *spool) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waits) == 0
}

// hear takes in whether a controller that this agent has a link to says that output is
// collected. If all of them say no, nothing waits any more: who collected has been
// configured not to. Without a link nobody knows, and it stays as it was.
func (s *spool) hear(anyone, collects bool) {
	if !anyone {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = !collects
}

// share is one attempt's part of the output that waits.
type share struct {
	key     key
	bytes   int64
	running bool
	frozen  bool
}

// freeze says which of the running attempts are to be frozen: those above the limit,
// and if all together are above the total, those above an equal part of what is left
// to the running ones. A frozen one is thawed when half of that is free, so that it
// does not stop and go with every piece that is collected.
func freeze(shares []share, limit, total int64) map[key]bool {
	var sum, ended, running int64
	for _, s := range shares {
		sum += s.bytes
		if s.running {
			running++
		} else {
			ended += s.bytes
		}
	}
	bound := limit
	if sum > total && running > 0 {
		bound = min(limit, max(0, total-ended)/running)
	}
	want := map[key]bool{}
	for _, s := range shares {
		if s.running {
			want[s.key] = s.bytes > bound || s.frozen && s.bytes > bound/2
		}
	}
	return want
}

// collected takes in that somebody keeps an attempt's output before offset, and comes
// for the rest.
func (a *Agent) collected(k key, offset int64) {
	free := a.spool.keeps(k, offset)
	if free == 0 {
		return
	}
	if err := a.dir(k).free(free); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("cannot free output that is kept elsewhere", "attempt", k.String(), "err", err)
	}
	a.checkSpool() // who is frozen can go on at once
}

// spoolEvery is the time between two looks at how much output waits. What is written
// in between goes beyond the limits.
const spoolEvery = 100 * time.Millisecond

// keepSpool freezes and thaws attempts until ctx ends. While nobody collects it does
// nothing.
func (a *Agent) keepSpool(ctx context.Context) {
	for {
		wake := a.spool.kick
		var again <-chan time.Time
		if !a.spool.idle() {
			wake, again = nil, time.After(spoolEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
		a.checkSpool()
	}
}

// checkSpool looks once at what waits, and tells those who look after the attempts
// what to do.
func (a *Agent) checkSpool() {
	a.mu.Lock()
	collects := false
	for l := range a.links {
		collects = collects || l.collects
	}
	a.spool.hear(len(a.links) > 0, collects)
	runs, limits := make(map[key]*run, len(a.runs)), map[key]int64{}
	for k, r := range a.runs {
		runs[k], limits[k] = r, r.limit
	}
	a.mu.Unlock()

	s := a.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent {
		for k, w := range s.waits {
			if r := runs[k]; r != nil && w.frozen {
				r.freeze(false)
			}
		}
		clear(s.waits)
		return
	}
	var shares []share
	for k, w := range s.waits {
		r, bytes := runs[k], a.dir(k).waiting(w.kept, limits[k])
		if r == nil && bytes == 0 {
			delete(s.waits, k) // it has ended, and all of it is kept
			continue
		}
		shares = append(shares, share{k, bytes, r != nil, w.frozen})
	}
	for k, want := range freeze(shares, s.limit, s.total) {
		// Again and again while it is to be frozen: it may have been starting processes.
		if w := s.waits[k]; want || w.frozen {
			w.frozen = want
			runs[k].freeze(want)
		}
	}
}

// waiting returns how many bytes of the output are only here, of which kept are not: no
// more than what they take of the disk, and nothing beyond the limit, which nobody comes
// for.
func (d attemptDir) waiting(kept, limit int64) int64 {
	var st unix.Stat_t
	if unix.Stat(d.file(fileOutput), &st) != nil {
		return 0 // it has written nothing, or is gone
	}
	return max(0, min(outputView{limit: limit}.end(st.Size)-kept, st.Blocks*512))
}

// freeze tells whoever looks after the attempt to freeze or thaw it. The newest word
// counts.
func (r *run) freeze(want bool) {
	for {
		select {
		case r.hold <- want:
			return
		default:
		}
		select {
		case <-r.hold:
		default:
		}
	}
}

// fileFrozen is there while the processes of an attempt are stopped, or may be: a
// process of the agent that finds it will let them go on.
const fileFrozen = "frozen"

func (d attemptDir) frozen() bool {
	_, err := os.Lstat(d.file(fileFrozen))
	return err == nil
}

// freezer stops the processes of an attempt and lets them go on. Only the goroutine
// that stops the attempt for good uses it, so that no STOP comes after a TERM that the
// attempt is to obey.
type freezer struct {
	agent  *Agent
	run    *run
	frozen bool
}

// newFreezer takes over an attempt as an earlier process may have left it.
func newFreezer(a *Agent, r *run) freezer {
	f := freezer{agent: a, run: r, frozen: r.dir.frozen()}
	if f.frozen {
		a.spool.found(r.key)
		f.tell()
	}
	return f
}

// hold freezes the processes of p, or lets them go on.
func (f *freezer) hold(p process, want bool) {
	if !want {
		f.thaw(p)
		return
	}
	if !f.frozen {
		// Before its effect. It means nothing after a power cut, so it need not be durable.
		if err := os.WriteFile(f.run.dir.file(fileFrozen), nil, 0o600); err != nil { //nolint:forbidigo // see above
			f.agent.log.Warn("cannot freeze an attempt that writes more than is collected", "attempt", f.run.key.String(), "err", err)
			return
		}
		f.frozen = true
		f.agent.log.Info("attempt frozen: its output waits to be collected", "attempt", f.run.key.String())
		f.tell()
	}
	if err := p.signal(syscall.SIGSTOP); err != nil {
		f.agent.log.Warn("cannot freeze an attempt that writes more than is collected", "attempt", f.run.key.String(), "err", err)
	}
}

// thaw lets the processes of p go on, if they were frozen.
func (f *freezer) thaw(p process) {
	if !f.frozen {
		return
	}
	if err := p.signal(syscall.SIGCONT); err != nil {
		f.agent.log.Warn("cannot thaw an attempt", "attempt", f.run.key.String(), "err", err)
		return
	}
	f.frozen = false
	if err := os.Remove(f.run.dir.file(fileFrozen)); err != nil {
		f.agent.log.Warn("cannot remove the mark of a frozen attempt", "attempt", f.run.key.String(), "err", err)
	}
	f.tell()
}

// tell reports that the attempt is frozen, or is not any more.
func (f *freezer) tell() {
	a := f.agent
	delta := -1.0
	if f.frozen {
		delta = 1
	}
	a.metrics.Add(MetricFrozen, delta)
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.ledger.attempt(f.run.key); at != nil {
		at.frozen = f.frozen
		a.notify(f.run.key)
	}
}

// close says that the attempt is looked after no longer.
func (f *freezer) close() {
	if f.frozen {
		f.agent.metrics.Add(MetricFrozen, -1)
	}
}
