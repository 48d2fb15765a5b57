package agent

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"uac/codestation/durable"
	"uac/roles/wire"
)

// Agent runs attempts on this machine. Make it with [New].
type Agent struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics Metrics
	// instance names this process in every hello. Of two that live at a time under one
	// name (a machine and its clone: same certificate, same journal) the controllers
	// can tell which is the newer, and refuse it. Random, because a clone has
	// everything that is kept on disk.
	instance string
	ready    chan struct{}
	isReady  sync.Once

	// Set by Run before anything else uses them.
	ctx      context.Context // of Run: attempts outlive the links they came by
	boot     string
	journal  *journal
	launcher *launcher
	spares   *spares
	reaper   *reaper
	outputs  *outputs
	spool    *spool
	limiter  *limiter
	slots    *slots
	fail     context.CancelCauseFunc // ends Run
	house    chan struct{}           // something is to be tidied up
	runners  sync.WaitGroup          // one for each run

	mu     sync.Mutex // guards what follows; see the package comment
	ledger *ledger
	runs   map[key]*run
	queued int // runs that have not started
	links  map[*link]struct{}
	routes map[string]*link  // by request: where its last command came from
	used   map[string]int    // links by server, those that are being opened too
	direct map[string]string // the controller that answered at a server's address itself
	taken  map[string]bool   // controllers that a link leads to, or is being opened to
	opened uint32            // links opened by this process
	// recovering is set until it is known what became of the attempts of earlier processes.
	recovering bool
	refused    map[string]string // by server: why its controller refuses this agent, as was told
	contact    int64             // when a controller that may act was last heard, since boot
	retired    []key             // acknowledged and not yet tidied up
}

// New returns an agent with the given settings. Nothing is opened before Run.
func New(cfg Config, deps Deps) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("agent settings: %w", err)
	}
	if deps.Dial == nil {
		return nil, errors.New("agent: no way to connect")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Metrics == nil {
		deps.Metrics = noMetrics{}
	}
	if deps.Point == nil {
		deps.Point = func(Point) {}
	}
	cfg.Servers = slices.Clone(cfg.Servers)
	if cfg.Shuffle {
		rand.Shuffle(len(cfg.Servers), func(i, j int) {
			cfg.Servers[i], cfg.Servers[j] = cfg.Servers[j], cfg.Servers[i]
		})
	}
	return &Agent{
		cfg: cfg, deps: deps, log: deps.Log, metrics: deps.Metrics,
		instance: cryptorand.Text(),
		ready:    make(chan struct{}),
		runs:     map[key]*run{},
		links:    map[*link]struct{}{},
		routes:   map[string]*link{},
		used:     map[string]int{},
		direct:   map[string]string{},
		taken:    map[string]bool{},
		refused:  map[string]string{},
		house:    make(chan struct{}, 1),
	}, nil
}

// Ready is closed when the attempts of earlier processes have been looked after and
// the first controller has welcomed the agent.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// ErrInUse is returned by Run when another process has the data directory.
var ErrInUse = errors.New("the data directory is in use by another process")

// Run works until ctx ends, and returns when everything that it started has ended,
// except the attempts: those go on, and the next Run finds them. It may be called
// once. An error means that the agent cannot go on: its directory is in use or
// damaged, or its journal cannot be written.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := a.open(ctx)
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w; nothing was changed, and steps that run go on. "+
			"Make sure that none of them runs any more, move %s away as a whole and start again: "+
			"what was out here is in doubt then, and waits for uac request resolve "+
			"(docs/operations/agents.md, \"A damaged journal\")", err, a.cfg.DataDir)
	}
	if err != nil {
		return err
	}
	defer unlock()

	outer := ctx
	ctx, a.fail = context.WithCancelCause(ctx)
	a.ctx = ctx
	defer a.fail(nil)

	// The journal ends last, because what ends before may still write to it.
	var last sync.WaitGroup
	defer last.Wait()
	stopped := make(chan struct{})
	defer close(stopped)
	journal, stopJournal := context.WithCancel(context.WithoutCancel(ctx))
	last.Go(func() { <-stopped; stopJournal() })
	last.Go(func() {
		if err := a.journal.run(journal); err != nil {
			a.fail(err)
		}
	})

	var wg sync.WaitGroup
	wg.Go(func() { a.reaper.run(ctx) })
	wg.Go(func() { a.limiter.run(ctx) })
	if err := a.recover(ctx); err != nil {
		a.fail(err)
	}
	wg.Go(func() { a.keepHouse(ctx) })
	wg.Go(func() { a.keepSpool(ctx) })
	for range 2 { // one server may be a relay, and lead to two controllers
		wg.Go(func() { a.keepLink(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	a.runners.Wait()
	a.mu.Lock()
	a.noteContact(true)
	a.mu.Unlock()
	if cause := context.Cause(ctx); outer.Err() == nil && cause != nil {
		return cause
	}
	return nil
}

// open takes possession of the data directory and reads it.
func (a *Agent) open(ctx context.Context) (unlock func(), err error) {
	attempts := filepath.Join(a.cfg.DataDir, dirAttempts)
	if err := durable.MkdirAll(attempts, 0o700); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		// Steps of other users have to get through to the directories of their attempts.
		for _, dir := range []string{a.cfg.DataDir, attempts} {
			if err := os.Chmod(dir, 0o711); err != nil {
				return nil, err
			}
		}
	}
	lock, err := os.OpenFile(filepath.Join(a.cfg.DataDir, fileLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	switch err := lockFile(ctx, lock); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, fmt.Errorf("%w: %s", ErrInUse, a.cfg.DataDir)
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if a.boot, err = bootID(); err != nil {
		return nil, err
	}
	path := filepath.Join(a.cfg.DataDir, fileJournal)
	if err := refuseOrphans(path, attempts); err != nil {
		return nil, err
	}
	if a.journal, a.ledger, err = openJournal(path, a.cfg.JournalSize, a.metrics, a.deps.Point); err != nil {
		return nil, err
	}
	if a.deps.disk != nil {
		a.journal.file = a.deps.disk(a.journal.file)
	}
	if a.launcher, err = newLauncher(a.cfg.DataDir); err != nil {
		a.journal.file.Close()
		return nil, err
	}
	if a.spares, err = newSpares(filepath.Join(a.cfg.DataDir, dirSpares)); err != nil {
		a.journal.file.Close()
		return nil, err
	}
	a.stock()
	a.reaper = newReaper()
	a.spool = newSpool(a.cfg.SpoolLimit, a.cfg.SpoolTotal)
	a.outputs = newOutputs(attempts, a.cfg, a.spool.wanted, a.log)
	a.limiter = newLimiter(a.log)
	a.slots = newSlots(a.cfg.MaxAttempts)
	return func() { lock.Close() }, nil
}

// lockPatience is for how long a lock is waited for that should be free. A child that
// an agent was just starting when it died has the lock until it runs another program.
const lockPatience = time.Second

func lockFile(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	again := time.NewTicker(lockPatience / 50)
	defer again.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

const (
	dirAttempts = "attempts"
	dirSpares   = "spares"
	fileLock    = "lock"
	fileJournal = "journal"
)

// refuseOrphans refuses a directory that has attempts and no journal: they may still
// run, and an agent that knows nothing of them could start them again.
func refuseOrphans(journal, attempts string) error {
	if _, err := os.Lstat(journal); err == nil {
		return nil
	}
	entries, err := os.ReadDir(attempts)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: %w: it is missing, but %s is not empty", journal, ErrDamaged, attempts)
	}
	return nil
}

func (a *Agent) dir(k key) attemptDir {
	return attemptDir(filepath.Join(a.cfg.DataDir, dirAttempts, k.dir()))
}

// commit applies records and appends them to the journal, and returns the number of
// the last. The caller holds a.mu.
func (a *Agent) commit(records ...record) uint64 {
	for i := range records {
		if records[i].Time == 0 {
			records[i].Time = time.Now().UnixNano()
		}
		records[i].Uncounted = a.recovering || records[i].Kind == kindContact
		if err := a.ledger.apply(records[i]); err != nil {
			// A record of our own that we would not read again.
			a.fail(fmt.Errorf("apply record: %w", err))
		}
	}
	seq := a.journal.append(records...)
	if a.journal.bloated() {
		a.kickHouse()
	}
	for i, rec := range records {
		if r := a.ledger.requests[rec.Request]; r != nil && rec.Kind.durable() {
			r.seq = seq - uint64(len(records)-1-i)
		}
	}
	return seq
}

// notify sees to it that the state of an attempt is reported: where the last command
// for its request came from, or everywhere. The caller holds a.mu.
func (a *Agent) notify(k key) {
	if l := a.routes[k.request]; l != nil {
		l.report(k)
		return
	}
	for l := range a.links {
		l.report(k)
	}
}

// reportOf returns what is to be reported of an attempt now, and what must be on disk
// before. nil: nothing any more.
func (a *Agent) reportOf(k key) (*wire.AgentMessage, uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.ledger.attempt(k)
	if at == nil {
		return nil, 0
	}
	at.sentAt = time.Now()
	r := a.ledger.requests[k.request]
	w := at.describe(k)
	// What was written before a boot need not have reached the disk.
	w.NoOutput = at.Phase == phaseExited && at.Boot == a.boot
	return &wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
		Request: k.request,
		Fence:   r.Fence.wire(),
		Attempt: w,
		// Once r.seq is on disk, the journal is filled in, and it is seen whether there
		// is really no output: until then the wrapper, too, has ended.
	}}}, r.seq
}

func (a *Agent) journalState() *wire.Journal {
	return &wire.Journal{Id: a.journal.id, Counter: a.journal.counter()}
}

// keepHouse repeats reports, forgets what may be forgotten, and keeps the journal
// small.
func (a *Agent) keepHouse(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	n := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.house:
			a.mu.Lock()
			retired := a.retired
			a.retired = nil
			a.mu.Unlock()
			now := time.Now()
			for _, k := range retired {
				a.outputs.keep(k, now)
			}
			a.compact()
		case now := <-tick.C:
			n++
			a.repeat(now)
			a.mu.Lock()
			a.noteContact(false)
			a.mu.Unlock()
			if n%10 == 0 {
				a.trim(now)
				a.ask(now)
				a.outputs.expire(now)
			}
		}
	}
}

// repeat marks ends that have been reported and not acknowledged for too long. They
// go over all links, because the one that was used may lead nowhere.
func (a *Agent) repeat(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ledger.each(func(k key, at *attempt) {
		if !at.Phase.ended() || at.Acked || at.sentAt.IsZero() {
			return
		}
		if now.Sub(at.sentAt) < a.cfg.ResendAfter<<min(at.resent, 4) {
			return
		}
		at.resent++
		for l := range a.links {
			l.report(k)
		}
	})
}

// askEvery is the time after which the agent asks again about a request of which all is
// acknowledged, and which is not final as far as it knows.
const askEvery = time.Hour

// ask reports an attempt once more that is acknowledged, now and then, of each request
// that is not final. Whoever answers says whether it is: that it is may have been said
// over a link that ended just then, and nobody says it again by himself.
func (a *Agent) ask(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.ledger.requests {
		switch {
		case r.Final || !r.settled():
			r.askedAt = time.Time{}
		case r.askedAt.IsZero():
			r.askedAt = now
		case now.Sub(r.askedAt) >= askEvery:
			r.askedAt = now
			if k, ok := r.any(); ok {
				a.notify(k)
			}
		}
	}
}

func (a *Agent) kickHouse() {
	select {
	case a.house <- struct{}{}:
	default:
	}
}

func (a *Agent) trim(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	records := a.ledger.trim(now.Add(-a.cfg.TombstoneKeep).UnixNano(), a.cfg.TombstoneMax)
	if len(records) == 0 {
		return
	}
	a.commit(records...)
	for _, rec := range records {
		delete(a.routes, rec.Request)
	}
}

func (a *Agent) compact() {
	if !a.journal.bloated() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.journal.compact(a.ledger)
}
