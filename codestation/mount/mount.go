package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxInFlight is how many calls the child works on at a time.
	maxInFlight = 8
	// maxChildren is how many processes exist at a time, those included that were
	// killed and do not end.
	maxChildren = 4
	// firstRetry is how soon a mount that does not work is probed again; the wait
	// doubles up to Config.Probe.
	firstRetry = 100 * time.Millisecond
	// partingTime bounds how long Run waits for the children that it has killed.
	partingTime = time.Second
)

// Config of a mount.
type Config struct {
	// Dir is the directory of the mount, absolute. Empty means that there is none:
	// every call then fails.
	Dir string
	// Cluster is the name that the sentinel must have, "" for any.
	Cluster string
	// Timeout is how long one call, of at most 1 MiB, may take.
	Timeout time.Duration
	// Probe is how often the mount is looked at.
	Probe time.Duration
}

// Deps are what a mount works with.
type Deps struct {
	// Command returns a process, not yet started, that calls [Serve] for dir with
	// its standard input and output. Its working directory, files and attributes
	// are set by the caller.
	Command func(dir string) *exec.Cmd
	Log     *slog.Logger
}

// Entry is a file or directory in a list.
type Entry struct {
	Name string `json:"name"` // without the directory
	Size int64  `json:"size"` // 0 for a directory
	Dir  bool   `json:"dir,omitempty"`
}

// Mount is the shared mount, as far as it can be reached. Safe for concurrent use.
// Calls made before [Mount.Run] has probed the mount wait for that.
type Mount struct {
	cfg   Config
	deps  Deps
	slots chan struct{} // one for each call in flight
	wake  chan struct{} // the mount is to be probed now

	mu       sync.Mutex // guards the following; taken before a child's
	state    State
	changed  chan struct{} // closed and replaced when the state's kind changes
	child    *child        // nil: calls fail at once
	children []*child      // those that were started and have not ended
	over     bool          // Run ends
}

// New returns a mount. Nothing runs before [Mount.Run] does.
func New(cfg Config, deps Deps) *Mount {
	m := &Mount{
		cfg: cfg, deps: deps,
		slots: make(chan struct{}, maxInFlight), wake: make(chan struct{}, 1), changed: make(chan struct{}),
		state: State{Dir: cfg.Dir, Kind: Checking, Since: time.Now().UTC(), Error: "not yet looked at"},
	}
	if cfg.Dir == "" {
		m.state.Kind, m.state.Error = Unconfigured, "mount.dir is not set"
	}
	return m
}

// State returns how the mount is.
func (m *Mount) State() State {
	s, _ := m.Watch()
	return s
}

// Watch returns how the mount is, and a channel that is closed when its kind has
// changed.
func (m *Mount) Watch() (State, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	for _, ch := range m.children {
		if ch.isDown() && !ch.isGone() {
			s.Stuck++
		}
	}
	return s, m.changed
}

// Run probes the mount until ctx ends. It returns when every child has ended or was
// killed and abandoned.
func (m *Mount) Run(ctx context.Context) error {
	if m.cfg.Dir == "" {
		<-ctx.Done()
		return nil
	}
	runtime.LockOSThread() // children die with the thread that started them
	defer runtime.UnlockOSThread()
	defer m.part()
	failures := 0
	for {
		m.check(ctx)
		wait := m.cfg.Probe
		wake := m.wake
		if m.State().Kind == OK {
			failures = 0
		} else {
			wait = min(wait, firstRetry<<min(failures, 20))
			failures++
			wake = nil // who finds that nothing works need not say so
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// check probes the mount, with a fresh child if there is none, and notes what it
// finds.
func (m *Mount) check(ctx context.Context) {
	ch := m.start()
	if ch == nil {
		return
	}
	done := make(chan result, 1)
	ch.send(call{Op: opProbe, Cluster: m.cfg.Cluster}, nil, func(r result) { done <- r })
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		return
	}
	if r.err != nil {
		return // lost has noted it
	}
	m.mu.Lock()
	if !ch.isDown() {
		m.child = ch
	}
	m.mu.Unlock()
	switch f := r.answer.Fault; {
	case f == nil:
		m.found(OK, "", r.answer.Found)
	case f.Kind == "":
		m.found(Failed, f.Text, r.answer.Found)
	default:
		m.found(f.Kind, f.Text, r.answer.Found)
	}
}

// start returns the child, or a fresh one, or nil if there can be none.
func (m *Mount) start() *child {
	m.mu.Lock()
	m.children = slices.DeleteFunc(m.children, (*child).isGone)
	ch, alive := m.child, len(m.children)
	m.mu.Unlock()
	if ch != nil {
		return ch
	}
	if alive >= maxChildren {
		m.found(Hung, fmt.Sprintf("%d processes that touched the mount do not end", alive), nil)
		return nil
	}
	ch, err := startChild(m.deps.Command(m.cfg.Dir), m.cfg.Timeout, m.lost)
	if err != nil {
		m.found(Failed, fmt.Sprintf("start a process for the mount: %v", err), nil)
		return nil
	}
	m.mu.Lock()
	m.children = append(m.children, ch)
	m.mu.Unlock()
	return ch
}

// part ends all children and waits a moment for them.
func (m *Mount) part() {
	m.mu.Lock()
	m.over = true
	children := slices.Clone(m.children)
	m.mu.Unlock()
	m.found(Failed, "this node stops", nil)
	late := time.NewTimer(partingTime)
	defer late.Stop()
	for _, ch := range children {
		ch.end(false, errors.New("this node stops"))
	}
	for _, ch := range children {
		select {
		case <-ch.gone:
		case <-late.C:
			m.deps.Log.Warn("processes that touched the mount do not end: left behind", "dir", m.cfg.Dir)
			return
		}
	}
}

// lost notes that a child went down.
func (m *Mount) lost(ch *child, hung bool, err error) {
	m.mu.Lock()
	if m.child == ch {
		m.child = nil
	}
	m.mu.Unlock()
	kind := Failed
	if hung {
		kind = Hung
	}
	m.found(kind, err.Error(), nil)
	m.look()
}

// look has the mount probed soon.
func (m *Mount) look() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// found notes how the mount is.
func (m *Mount) found(kind Kind, why string, f *finding) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Error = why
	if f != nil {
		m.state.Free, m.state.Total = f.Free, f.Total
		if f.ID != "" {
			m.state.ID = f.ID
		}
	}
	if m.state.Kind == kind {
		return
	}
	m.state.Kind, m.state.Since = kind, time.Now().UTC()
	close(m.changed)
	m.changed = make(chan struct{})
	if m.over {
		return
	}
	if kind == OK {
		m.deps.Log.Info("shared mount works", "dir", m.cfg.Dir, "id", m.state.ID)
	} else {
		m.deps.Log.Warn("shared mount does not work", "dir", m.cfg.Dir, "state", kind, "error", why)
	}
}

// do makes one call and returns its answer. Its error is what the caller of the
// package gets.
func (m *Mount) do(ctx context.Context, c call, body []byte) (answer, []byte, error) {
	fail := func(err error) (answer, []byte, error) { return answer{}, nil, err }
	ch, err := m.ready(ctx)
	if err != nil {
		return fail(err)
	}
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return fail(unavailable{text: c.Op + " waited for its turn", cause: ctx.Err()})
	}
	c.Cluster = m.cfg.Cluster
	done := make(chan result, 1)
	// A copy: the frame may be on its way when the caller has given up.
	ch.send(c, bytes.Clone(body), func(r result) {
		<-m.slots
		done <- r
	})
	select {
	case r := <-done:
		if r.err != nil {
			return fail(unavailable{text: r.err.Error()})
		}
		if f := r.answer.Fault; f != nil {
			if f.Kind != "" {
				m.look()
			}
			return fail(f.err(c))
		}
		return r.answer, r.body, nil
	case <-ctx.Done():
		return fail(unavailable{text: c.Op + " was given up", cause: ctx.Err()})
	}
}

// ready returns the child, after the first probe.
func (m *Mount) ready(ctx context.Context) (*child, error) {
	for {
		m.mu.Lock()
		ch, s, changed := m.child, m.state, m.changed
		m.mu.Unlock()
		switch {
		case ch != nil:
			return ch, nil
		case s.Kind != Checking:
			return nil, unavailable{text: fmt.Sprintf("%s: %s", s.Kind, s.Error)}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, unavailable{text: "it was not yet looked at", cause: ctx.Err()}
		}
	}
}

// clean returns a name below the mount in its one form.
func clean(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) || path.IsAbs(name) {
		return "", fmt.Errorf("name %q on the mount: %w", name, fs.ErrInvalid)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("name %q on the mount: %w", name, fs.ErrInvalid)
		}
	}
	if name = path.Clean(name); strings.HasPrefix(name, ownPrefix) {
		return "", fmt.Errorf("name %q on the mount is kept for the mount itself: %w", name, fs.ErrInvalid)
	}
	return name, nil
}

// file is clean for the name of a file.
func file(name string) (string, error) {
	name, err := clean(name)
	if err == nil && name == "." {
		err = fmt.Errorf("name %q on the mount: %w", name, fs.ErrInvalid)
	}
	return name, err
}

// Create makes a file, with the directories above it. It is visible only whole, and
// durable when Create returns. If there is such a file, of whatever content, Create
// returns fs.ErrExist: after an unknown outcome that may be the one of the call
// before. Files are never replaced.
func (m *Mount) Create(ctx context.Context, name string, data []byte) error {
	name, err := file(name)
	if err != nil {
		return err
	}
	tmp := newTemp()
	drop := func() {
		// In passing: what stays is swept later.
		_, _, _ = m.do(context.WithoutCancel(ctx), call{Op: opDrop, Temp: tmp}, nil)
	}
	for at := 0; at == 0 || at < len(data); at += chunk {
		part := data[at:min(at+chunk, len(data))]
		if _, _, err := m.do(ctx, call{Op: opWrite, Name: name, Temp: tmp, At: int64(at)}, part); err != nil {
			drop()
			return err
		}
	}
	_, _, err = m.do(ctx, call{Op: opCommit, Name: name, Temp: tmp}, nil)
	return err
}

// Append writes data at the end of a file, which must be at byte at, and returns
// when it is durable. At 0 it makes the file, and the directories above it, unless
// it exists and is empty. A file that ends elsewhere is a [*SizeError]: after an
// unknown outcome that may be because the call before took effect, in whole or in
// part; [Mount.ReadAt] tells. A file may have one writer at a time; a call that was
// given up may still take effect, so it is repeated with the same bytes or the file
// is left alone.
func (m *Mount) Append(ctx context.Context, name string, at int64, data []byte) error {
	name, err := file(name)
	if err != nil {
		return err
	}
	if at < 0 {
		return fmt.Errorf("append to %s at %d: %w", name, at, fs.ErrInvalid)
	}
	for done := 0; done == 0 || done < len(data); done += chunk {
		end := min(done+chunk, len(data))
		c := call{Op: opAppend, Name: name, At: at + int64(done), Sync: end == len(data)}
		if _, _, err := m.do(ctx, c, data[done:end]); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt returns n bytes of a file from byte off. If the file ends before, it
// returns what there is, perhaps nothing, and io.EOF.
func (m *Mount) ReadAt(ctx context.Context, name string, off int64, n int) ([]byte, error) {
	name, err := file(name)
	if err != nil {
		return nil, err
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("read %d bytes of %s at %d: %w", n, name, off, fs.ErrInvalid)
	}
	var data []byte
	for {
		a, part, err := m.do(ctx, call{Op: opRead, Name: name, At: off + int64(len(data)), N: min(n-len(data), chunk)}, nil)
		if err != nil {
			return nil, err
		}
		if data == nil {
			data = part
		} else {
			data = append(data, part...)
		}
		switch {
		case len(data) >= n:
			return data, nil
		case a.EOF || len(part) == 0:
			return data, io.EOF
		}
	}
}

// List returns what is in a directory, "." being the mount's own, in the order of
// names. A missing directory is fs.ErrNotExist. Files in the making are not shown.
func (m *Mount) List(ctx context.Context, dir string) ([]Entry, error) {
	dir, err := clean(dir)
	if err != nil {
		return nil, err
	}
	var all []Entry
	c := call{Op: opList, Name: dir}
	for {
		a, _, err := m.do(ctx, c, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, a.List...)
		if !a.More || len(a.List) == 0 {
			return all, nil
		}
		c.After = a.List[len(a.List)-1].Name
	}
}

// Remove deletes a file or an empty directory, durably. A missing one is
// fs.ErrNotExist: after an unknown outcome that may be the effect of the call
// before. A directory that is not empty is syscall.ENOTEMPTY.
func (m *Mount) Remove(ctx context.Context, name string) error {
	name, err := file(name)
	if err != nil {
		return err
	}
	_, _, err = m.do(ctx, call{Op: opRemove, Name: name}, nil)
	return err
}
