package controller

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"uac/codestation/mount"
	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// dirStore keeps output in a directory, and fails as it is told.
type dirStore struct {
	dir string

	mu sync.Mutex // guards what follows
	// fail, if set, says how a call fails, and whether it takes effect all the same.
	fail func(call, name string) (err error, effect bool)
	// largest is the largest append so far.
	largest int
}

func newDirStore(t *testing.T) *dirStore { return &dirStore{dir: t.TempDir()} }

func (s *dirStore) failing(f func(call, name string) (err error, effect bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// do performs f unless the call is to fail before.
func (s *dirStore) do(call, name string, f func(path string) error) error {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail == nil {
		return f(filepath.Join(s.dir, name))
	}
	err, effect := fail(call, name)
	if err == nil || effect {
		err = errors.Join(err, f(filepath.Join(s.dir, name)))
	}
	return err
}

func (s *dirStore) Create(_ context.Context, name string, data []byte) error {
	return s.do("create", name, func(path string) error {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	})
}

func (s *dirStore) Append(_ context.Context, name string, at int64, data []byte) error {
	s.mu.Lock()
	s.largest = max(s.largest, len(data))
	s.mu.Unlock()
	return s.do("append", name, func(path string) error {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		info, err := os.Stat(path)
		switch {
		case err == nil && info.Size() != at, err != nil && at != 0:
			return errors.New("the file does not end there")
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	})
}

func (s *dirStore) ReadAt(_ context.Context, name string, off int64, n int) (data []byte, err error) {
	err = s.do("read", name, func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		data = make([]byte, n)
		n, err := f.ReadAt(data, off)
		data = data[:n]
		return err
	})
	return data, err
}

func (s *dirStore) List(_ context.Context, dir string) (files []mount.Entry, err error) {
	err = s.do("list", dir, func(path string) error {
		entries, err := os.ReadDir(path)
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				files = append(files, mount.Entry{Name: e.Name(), Size: info.Size()})
			}
		}
		return err
	})
	return files, err
}

// speaker is an agent whose link is served by a goroutine: it answers reads from what
// its attempts are said to have written. What else it is sent, it passes on.
type speaker struct {
	*agent
	other chan *wire.ControllerMessage

	mu     sync.Mutex // guards what follows
	output map[string]*written
}

// written is the output of one attempt of one step.
type written struct {
	data  []byte
	over  bool
	freed int  // what is before is gone here
	acked int  // what a collector said is kept
	asked bool // a collector has asked for it
	lost  bool
}

func (w *world) speaker(n *node, name string) *speaker {
	s := &speaker{agent: w.agent(n, name, nil), other: make(chan *wire.ControllerMessage, 1000), output: map[string]*written{}}
	s.serve()
	return s
}

// serve answers on the present link until it ends.
func (s *speaker) serve() {
	l, at := s.link, s.at
	done := make(chan struct{})
	s.t.Cleanup(func() { <-done })
	s.t.Cleanup(func() { l.drop(nil) })
	go func() {
		defer close(done)
		for {
			select {
			case <-l.ctx.Done():
				return
			case m := <-l.sent():
				switch q := m.GetReadOutput(); {
				case q != nil:
					for _, c := range s.answer(q) {
						c.Id = q.GetId()
						at.fromAgent(l, &wire.AgentMessage{Body: &wire.AgentMessage_Output{Output: c}})
					}
				case m.GetCancelRead() != nil, m.GetOutputTaken() != nil:
				default:
					s.other <- m
				}
			}
		}
	}()
}

// move ends the link and opens one to another controller.
func (s *speaker) move(n *node) {
	s.connect(n)
	s.serve()
}

func (s *speaker) answer(q *wire.ReadOutput) []*wire.OutputChunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.output[q.GetStep()]
	if o != nil && q.GetCollect() {
		o.asked = true
	}
	if o == nil || o.lost {
		return []*wire.OutputChunk{{Eof: true, Gone: true, Error: "not here"}}
	}
	offset := int(q.GetOffset())
	if q.GetCollect() {
		o.acked = max(o.acked, offset)
	}
	offset = max(offset, o.freed)
	var out []*wire.OutputChunk
	end := len(o.data)
	if n := int(q.GetLimit()); n > 0 {
		end = min(end, offset+n)
	}
	for offset < end && len(out) < readWindow {
		n := min(64<<10, end-offset)
		out = append(out, &wire.OutputChunk{Offset: int64(offset), Data: bytes.Clone(o.data[offset : offset+n])})
		offset += n
	}
	return append(out, &wire.OutputChunk{Offset: int64(offset), Eof: true, Complete: o.over && offset == len(o.data)})
}

// on changes what a step has written.
func (s *speaker) on(step string, f func(o *written)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.output[step] == nil {
		s.output[step] = &written{}
	}
	f(s.output[step])
}

func (s *speaker) write(step string, data []byte, over bool) {
	s.on(step, func(o *written) { o.data, o.over = append(o.data, data...), over })
}

func (s *speaker) start() *wire.Start {
	s.t.Helper()
	for {
		select {
		case m := <-s.other:
			if st := m.GetStart(); st != nil {
				s.fences[st.GetRequest()] = st.GetFence()
				return st
			}
		case <-time.After(patience):
			s.t.Fatal("no start was sent")
		}
	}
}

// await waits for something that collecting brings about.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not so: %s", what)
		}
	}
}

func (s *speaker) acked(step string) (n int) {
	s.on(step, func(o *written) { n = o.acked })
	return n
}

// awaitKept waits until nothing of a request's output is left to collect.
func (n *node) awaitKept(id string) {
	n.w.t.Helper()
	coordtest.Await(n.w.t, n.member.View(), "output of "+id+" is kept", func(snap coord.Snapshot) bool { return !outputPending(snap, id) })
}

// whole reads the output of a step to its end, over gaps, which it returns too.
func (n *node) whole(id, step string) (string, []int64, error) {
	var b bytes.Buffer
	var gaps []int64
	offset := int64(0)
	for {
		before := b.Len()
		err := n.ReadOutput(n.w.t.Context(), id, step, 0, offset, false, &b)
		offset += int64(b.Len() - before)
		var gap *api.Gap
		if !errors.As(err, &gap) {
			return b.String(), gaps, err
		}
		if gap.Next <= offset {
			n.w.t.Fatalf("a gap from %d to %d", offset, gap.Next)
		}
		gaps = append(gaps, offset, gap.Next)
		offset = gap.Next
	}
}

// wantWhole checks that the output of step s is data, without gaps, to its end.
func (n *node) wantWhole(id string, data []byte) {
	n.w.t.Helper()
	if got, gaps, err := n.whole(id, "s"); got != string(data) || len(gaps) != 0 || err != nil {
		n.w.t.Errorf("%d bytes, gaps %v, error %v; want all %d", len(got), gaps, err, len(data))
	}
}

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

// The output of a request is on the mount when it is over, whatever its size, and is
// read from there when the agent has forgotten it.
func TestOutputIsCollected(t *testing.T) {
	store := newDirStore(t)
	w := newWorld(t, worldOptions{output: store})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	sizes := map[string]int{"none": 0, "small": 10, "exact": collectSize, "large": 3*collectSize + 17}
	steps := []roles.StepDef{step("none", "a1"), step("small", "a1"), step("exact", "a1"), step("large", "a1"), step("skipped", "a1", "none")}
	steps[4].On = roles.OnFailure
	c1.apply(process("p", steps...))
	r := c1.accept("p")
	for range 4 {
		st := a.start()
		a.write(st.GetStep(), noise(1, sizes[st.GetStep()]), true)
		a.running(st)
		a.exited(st, 0)
	}
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	c1.awaitKept(r.ID)
	for name, size := range sizes {
		if n := a.acked(name); n != size {
			t.Errorf("%s: the agent was told of %d bytes of %d", name, n, size)
		}
		a.on(name, func(o *written) { o.lost = true })
	}
	a.disconnect()
	for name, size := range sizes {
		if got, gaps, err := c1.whole(r.ID, name); err != nil || got != string(noise(1, size)) || gaps != nil {
			t.Errorf("%s: %d bytes, gaps %v, error %v", name, len(got), gaps, err)
		}
	}
	if store.largest > collectSize {
		t.Errorf("%d bytes were on their way at a time", store.largest)
	}
	if got := c1.collected.Load(); got != int64(sizes["small"]+sizes["exact"]+sizes["large"]) {
		t.Errorf("%d bytes were counted", got)
	}
}

// What runs is collected as it grows; what the agent has freed is read from the mount,
// and the live end from the agent.
func TestRunningOutputIsJoined(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	st := a.start()
	data := noise(2, 2*collectSize+5)
	a.write("s", data, false)
	a.running(st)
	await(t, "it is collected", func() bool { return a.acked("s") == len(data) })
	a.on("s", func(o *written) { o.freed = 2 * collectSize })
	a.write("s", []byte("live"), false)
	if got, gaps, err := c1.whole(r.ID, "s"); err != nil || got != string(data)+"live" || gaps != nil {
		t.Errorf("%d bytes, gaps %v, error %v", len(got), gaps, err)
	}
	// Nobody reaches the agent: what is on the mount is shown, and that it is not all.
	a.disconnect()
	c1.settle()
	got, _, err := c1.whole(r.ID, "s")
	if !isErr(err, api.ErrUnavailable) || !strings.HasPrefix(string(data)+"live", got) || len(got) < len(data) {
		t.Errorf("without the agent: %d bytes, error %v", len(got), err)
	}
}

// What was thrown away at the agent is missing on the mount too, and says so; what the
// agent lost as a whole ends with that. Of what never ran nothing is lost.
func TestGoneOutputIsToldOf(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("part", "a1"), step("all", "a1"), step("never", "a1")))
	r := c1.accept("p")
	data := noise(3, 100_000)
	for range 3 {
		st := a.start()
		a.write(st.GetStep(), data, true)
		a.on(st.GetStep(), func(o *written) { o.freed, o.lost = 70_000, st.GetStep() != "part" })
		if st.GetStep() == "never" {
			a.report(r.ID, "never", 1, wire.State_NEVER_STARTED, &wire.End{})
			continue
		}
		a.ran(st)
	}
	c1.awaitKept(r.ID)
	a.disconnect()
	c1.settle()
	if got, gaps, err := c1.whole(r.ID, "part"); err != nil || got != string(data[70_000:]) || len(gaps) != 2 || gaps[1] != 70_000 {
		t.Errorf("%d bytes, gaps %v, error %v", len(got), gaps, err)
	}
	if got, _, err := c1.whole(r.ID, "all"); got != "" || !isErr(err, api.ErrGone) {
		t.Errorf("%d bytes, error %v, want gone", len(got), err)
	}
	if got, _, err := c1.whole(r.ID, "never"); got != "" || err != nil {
		t.Errorf("of what never ran: %d bytes, error %v", len(got), err)
	}
}

// An agent that is away keeps its requests in the store, because it may be back with
// what they wrote. One that an operator has removed does not.
func TestOutputOfARemovedAgentIsGivenUp(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	c1.apply(process("p", step("s", "a1")), process("q", step("s", "a2")))
	data := noise(4, 1000)
	left := func(agent, process string) string { // by an agent whose last words are missing
		s := w.speaker(c1, agent)
		r := c1.accept(process)
		st := s.start()
		s.running(st)
		s.write("s", data, false)
		await(t, "the first part is kept", func() bool { return s.acked("s") == len(data) })
		s.ran(st)
		c1.awaitStatus(r.ID, roles.RequestSucceeded)
		s.disconnect()
		return r.ID
	}
	p, q := left("a1", "p"), left("a2", "q")
	c1.settle()
	pending := func(id string) bool { return outputPending(c1.member.View().Snapshot(), id) }
	if !pending(p) || !pending(q) {
		t.Fatal("what agents have that are away was given up")
	}
	if err := c1.RemoveAgent(t.Context(), operator, "a1", false); err != nil {
		t.Fatal(err)
	}
	c1.awaitKept(p)
	if got, gaps, err := c1.whole(p, "s"); got != string(data) || len(gaps) != 0 || !isErr(err, api.ErrGone) {
		t.Errorf("%d bytes, gaps %v, error %v; want %d bytes, and then gone", len(got), gaps, err, len(data))
	}
	if !pending(q) {
		t.Error("so was what another agent has")
	}
}

// An agent that is removed while it is connected is back in a moment, with all it has.
func TestOutputOfAnAgentRemovedWhileConnectedIsKept(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	st := a.start()
	a.running(st)
	data := noise(5, 1000)
	a.write("s", data[:500], false)
	a.ran(st)
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	c1.settle()
	if err := c1.RemoveAgent(t.Context(), operator, "a1", true); err != nil {
		t.Fatal(err)
	}
	<-a.link.ctx.Done() // the controller gives it up
	a.disconnect()
	coordtest.Await(t, c1.member.View(), "the link has ended", func(snap coord.Snapshot) bool { return len(linksTo(snap, "a1")) == 0 })
	if _, known := c1.member.View().Get(agentKey("a1")); known || c1.removed("a1") {
		t.Fatalf("there is a record: %v; it counts as removed: %v", known, c1.removed("a1"))
	}
	a.write("s", data[500:], true)
	a.move(c1)
	c1.awaitKept(r.ID)
	a.disconnect()
	c1.settle()
	c1.wantWhole(r.ID, data)
	if err := c1.RemoveAgent(t.Context(), operator, "a1", false); err != nil || !c1.removed("a1") {
		t.Errorf("removed: %v, error %v", c1.removed("a1"), err)
	}
	if err := c1.RemoveAgent(t.Context(), operator, "a1", false); !isErr(err, api.ErrNotFound) || !c1.removed("a1") {
		t.Errorf("removed again: %v, error %v, want not found", c1.removed("a1"), err)
	}
}

// What an agent says that it does not have, while the attempt runs, may come back: a copy
// of it may have answered under its name.
func TestOutputIsNotGivenUpWhileItRuns(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	st := a.start()
	a.running(st)
	data := noise(6, 1000)
	a.write("s", data[:500], false)
	await(t, "the first part is kept", func() bool { return a.acked("s") == 500 })
	a.on("s", func(o *written) { o.lost, o.asked = true, false })
	await(t, "it is asked for once more", func() (asked bool) {
		a.on("s", func(o *written) { asked = o.asked })
		return asked
	})
	c1.settle()
	a.on("s", func(o *written) { o.lost = false })
	a.write("s", data[500:], true)
	a.ran(st)
	c1.awaitKept(r.ID)
	a.disconnect()
	c1.settle()
	c1.wantWhole(r.ID, data)
}

// Errors of the mount leave nothing but files that are not used: before their effect,
// after it, and half way.
func TestCollectionOutlastsTheMount(t *testing.T) {
	store := newDirStore(t)
	w := newWorld(t, worldOptions{output: store})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))

	n := 0
	store.failing(func(string, string) (error, bool) {
		n++
		return map[int]error{0: nil, 1: errors.New("lost"), 2: errors.New("no answer")}[n%3], n%3 == 2
	})
	r := c1.accept("p")
	st := a.start()
	data := noise(4, 2*collectSize+100)
	a.write("s", data, true)
	a.exited(st, 0)
	// A mount that hangs, or is away, keeps nothing from running.
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	if a.acked("s") > len(data) {
		t.Error("more was kept than there is")
	}
	c1.awaitKept(r.ID)
	store.failing(nil)
	a.disconnect()
	c1.settle()
	if got, gaps, err := c1.whole(r.ID, "s"); err != nil || !bytes.Equal([]byte(got), data) || gaps != nil {
		t.Errorf("%d bytes, gaps %v, error %v", len(got), gaps, err)
	}
	store.failing(func(string, string) (error, bool) { return errors.New("away"), false })
	if _, _, err := c1.whole(r.ID, "s"); !isErr(err, api.ErrUnavailable) {
		t.Errorf("while the mount is away: %v, want unavailable", err)
	}
}

// Whoever comes next goes on where the one before was, also for requests that are over
// and that nobody owns any more.
func TestCollectionOutlivesItsController(t *testing.T) {
	store := newDirStore(t)
	w := newWorld(t, worldOptions{controllers: 2, watches: 1, output: store})
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	data := noise(5, 2*collectSize)
	r := c1.accept("p")
	st := a.start()
	a.write("s", data, false)
	a.running(st)
	await(t, "it is collected", func() bool { return a.acked("s") == len(data) })
	a.on("s", func(o *written) { o.freed = collectSize })
	away := make(chan struct{})
	once := sync.OnceFunc(func() { close(away) })
	store.failing(func(string, string) (error, bool) {
		once()
		return errors.New("away"), false
	})
	a.write("s", noise(6, collectSize+3), true)
	a.exited(st, 0)
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	<-away
	w.kill("c1")
	if !outputPending(c2.member.View().Snapshot(), r.ID) {
		t.Fatal("what is not on the mount was forgotten")
	}
	a.move(c2)
	store.failing(nil)
	c2.awaitKept(r.ID)
	a.on("s", func(o *written) { o.lost = true })
	want := string(data) + string(noise(6, collectSize+3))
	if got, gaps, err := c2.whole(r.ID, "s"); err != nil || got != want || gaps != nil {
		t.Errorf("%d bytes, gaps %v, error %v", len(got), gaps, err)
	}
}

// A frozen attempt says so, and is not frozen any more when it has ended.
func TestFrozenIsShown(t *testing.T) {
	w := newWorld(t, worldOptions{output: newDirStore(t)})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	st := a.start()
	a.write("s", []byte("x"), true)
	tell := func(frozen bool) {
		a.journal.Counter++
		a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
			Request: r.ID, Fence: a.fences[r.ID], Journal: a.journalNow(),
			Attempt: &wire.Attempt{Step: "s", Attempt: 1, State: wire.State_RUNNING, Frozen: frozen},
		}}})
	}
	shown := func(want string) {
		t.Helper()
		c1.await(r.ID, "the reason is "+want, func(r api.Request) bool {
			return stepOf(r, "s").Reason == want && stepOf(r, "s").Status != roles.StepDispatched
		})
	}
	const frozen = "frozen: its output waits for the shared mount"
	tell(true)
	shown(frozen)
	tell(false)
	shown("")
	tell(true)
	shown(frozen)
	a.exited(st, 0)
	shown("")
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
}

// Without a mount nothing is left to be done.
func TestNothingIsCollectedWithoutAMount(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("s", "a1")))
	r := c1.accept("p")
	st := a.start()
	a.write("s", []byte("abc"), true)
	a.exited(st, 0)
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	if got := c1.dump(prefixCollect); len(got) != 0 {
		t.Errorf("left to be collected: %v", got)
	}
	if got, _, err := c1.whole(r.ID, "s"); got != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// While the mount is away an agent knows all the same that somebody comes for what its
// attempts write.
func TestAgentsKnowOfCollectionWithoutTheMount(t *testing.T) {
	store := newDirStore(t)
	away := errors.New("the mount is away")
	store.failing(func(_, _ string) (error, bool) { return away, false })
	w := newWorld(t, worldOptions{output: store})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	st := a.start()
	a.write("one", []byte("text"), false)
	a.running(st)
	await(t, "the agent was asked", func() (asked bool) {
		a.on("one", func(o *written) { asked = o.asked })
		return asked
	})
	store.failing(nil)
	a.write("one", nil, true)
	a.exited(st, 0)
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	c1.awaitKept(r.ID)
	a.disconnect()
	if got, gaps, err := c1.whole(r.ID, "one"); err != nil || got != "text" || gaps != nil {
		t.Errorf("%q, gaps %v, error %v", got, gaps, err)
	}
}

// What has written nothing costs the mount nothing, and is read without anybody's help.
func TestNothingToCollect(t *testing.T) {
	store := newDirStore(t)
	var touched []string // names on the mount; guarded by store.mu
	store.failing(func(_, name string) (error, bool) {
		touched = append(touched, name) // one call at a time: one attempt is collected
		return nil, false
	})
	w := newWorld(t, worldOptions{output: store})
	c1 := w.node("c1")
	a := w.speaker(c1, "a1")
	c1.apply(process("quiet", step("one", "a1"), step("two", "a1", "one")), process("mixed", step("one", "a1"), step("two", "a1", "one")))
	run := func(process string, output map[string]string) string {
		r := c1.accept(process)
		for range 2 {
			st := a.start()
			text := output[st.GetStep()]
			a.write(st.GetStep(), []byte(text), true)
			a.say(&wire.AgentMessage{Body: &wire.AgentMessage_Report{Report: &wire.Report{
				Request: r.ID, Fence: a.fences[r.ID], Journal: a.journalNow(),
				Attempt: &wire.Attempt{Step: st.GetStep(), Attempt: 1, State: wire.State_EXITED, End: &wire.End{}, NoOutput: text == ""},
			}}})
		}
		c1.awaitStatus(r.ID, roles.RequestSucceeded)
		c1.awaitKept(r.ID)
		return r.ID
	}
	together := make(chan bool, 2) // a request became final: was its key removed with it?
	_, stop := c1.member.View().Follow(func(b coord.Batch) {
		removed, final := false, false
		for _, ch := range b.Changes {
			removed = removed || strings.HasPrefix(ch.Key, prefixCollect) && ch.Deleted
			if id, rest := requestOf(ch.Key, prefixRequests); id != "" && rest == "status" && !ch.Deleted {
				rec, err := decode[roles.Record](ch.KV)
				final = err == nil && rec.Status.Final()
			}
		}
		if final {
			together <- removed
		}
	})
	defer stop()
	quiet := run("quiet", nil)
	if len(touched) > 0 {
		t.Errorf("on the mount: %v", touched)
	}
	if !<-together {
		t.Error("that nothing is left to collect was not stored with the last end")
	}
	mixed := run("mixed", map[string]string{"two": "text"})
	for _, name := range touched {
		if dir := outputDir(attemptKey{mixed, "two", 1}); !strings.HasPrefix(name, dir) {
			t.Errorf("on the mount: %s, want only what is in %s", name, dir)
		}
	}
	a.disconnect()
	for _, tt := range []struct{ id, step, want string }{{quiet, "one", ""}, {quiet, "two", ""}, {mixed, "one", ""}, {mixed, "two", "text"}} {
		if got, gaps, err := c1.whole(tt.id, tt.step); err != nil || got != tt.want || gaps != nil {
			t.Errorf("%s of %s: %q, gaps %v, error %v", tt.step, tt.id, got, gaps, err)
		}
	}
}
