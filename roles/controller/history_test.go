package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"uac/codestation/mount"
	"uac/coord"
	"uac/coord/coordtest"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// mountDir makes a shared mount.
func mountDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := mount.Init(dir, "test"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// hotFor returns options of a world with a mount.
func hotFor(t *testing.T, controllers int, hot time.Duration, count int) worldOptions {
	t.Helper()
	return worldOptions{controllers: controllers, mount: mountDir(t), change: func(c *Config) {
		c.History = HistoryConfig{Hot: hot, HotCount: count}
	}}
}

// awaitMoved waits until a request has left the store.
func (n *node) awaitMoved(id string) {
	n.w.t.Helper()
	coordtest.Await(n.w.t, n.member.View(), "request has moved", func(snap coord.Snapshot) bool {
		for range snap.Range(prefixRequests + id + "/") {
			return false
		}
		return true
	})
}

// awaitMount waits until a controller sees the mount as it is.
func (n *node) awaitMount(want mount.Kind) {
	n.w.t.Helper()
	late := time.After(patience)
	for {
		s, changed := n.deps.Mount.Watch()
		if s.Kind == want {
			return
		}
		select {
		case <-changed:
		case <-late:
			n.w.t.Fatalf("the mount is %s, not %s", s.Kind, want)
		}
	}
}

// finish runs a request to its end, and lets the agent hear that it is over.
func (n *node) finish(a *agent, process, key string) api.Request {
	n.w.t.Helper()
	r, _, err := n.Accept(n.w.t.Context(), operator, api.RunSpec{Process: process}, key)
	if err != nil {
		n.w.t.Fatal(err)
	}
	s := a.start()
	a.exited(s, 0)
	a.ack()
	return n.awaitStatus(r.ID, roles.RequestSucceeded)
}

// A finished request moves to the mount, and nobody notices.
func TestRequestsMoveToTheHistory(t *testing.T) {
	o := hotFor(t, 2, 0, 0)
	w := newWorld(t, o)
	c1, c2 := w.node("c1"), w.node("c2")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	before := c1.finish(a, "p", "key")
	c1.awaitMoved(before.ID)
	c2.awaitMoved(before.ID)
	for _, n := range []*node{c1, c2} {
		got, err := n.GetRequest(t.Context(), before.ID)
		if err != nil {
			t.Fatal(err)
		}
		// Who owned it was told while it was in the store.
		if diff := cmp.Diff(before, got, cmpopts.IgnoreFields(api.Request{}, "Owner")); diff != "" {
			t.Errorf("%s shows it otherwise: %s", n.cfg.Name, diff)
		}
		list, err := n.ListRequests(t.Context(), api.RequestFilter{Limit: 10})
		if err != nil || len(list.Requests) != 1 || list.Note != "" || list.Requests[0].ID != before.ID {
			t.Errorf("%s lists %v, %v", n.cfg.Name, list, err)
		}
		if _, err := n.GetRequest(t.Context(), newID()); !errors.Is(err, api.ErrNotFound) {
			t.Errorf("an unknown request: %v", err)
		}
		if err := n.Steer(t.Context(), operator, before.ID, api.Order{Verb: "cancel"}); !errors.Is(err, api.ErrConflict) {
			t.Errorf("cancel a request that has ended: %v", err)
		}
		again, created, err := n.Accept(t.Context(), operator, api.RunSpec{Process: "p"}, "key")
		if err != nil || created || again.ID != before.ID || len(again.Steps) != 1 {
			t.Errorf("the same call again: %v, created %v, %v", again, created, err)
		}
		if _, _, err := n.Accept(t.Context(), operator, api.RunSpec{Process: "q"}, "key"); !errors.Is(err, api.ErrConflict) {
			t.Errorf("the key with other content: %v", err)
		}
		watched := 0
		if err := n.WatchRequest(t.Context(), before.ID, func(api.Request) error { watched++; return nil }); err != nil || watched != 1 {
			t.Errorf("watch: %d, %v", watched, err)
		}
	}
	// An agent that did not hear it repeats its report, and is answered.
	a.report(before.ID, "one", 1, wire.State_EXITED, &wire.End{})
	if ack := a.ack(); ack.GetRequest() != before.ID || !ack.GetFinal() {
		t.Errorf("answered %v", ack)
	}

	// The mount is away: the cluster works on, and says what it cannot show.
	sentinel := filepath.Join(o.mount, ".uac-mount")
	if err := os.Rename(sentinel, sentinel+"-away"); err != nil {
		t.Fatal(err)
	}
	c1.awaitMount(mount.Absent)
	c1.archive.recent = nil // what it has read lately would do
	live := c1.finish(a, "p", "other")
	list, err := c1.ListRequests(t.Context(), api.RequestFilter{})
	if err != nil || len(list.Requests) != 1 || list.Requests[0].ID != live.ID || !strings.Contains(list.Note, "missing") {
		t.Errorf("without the mount: %v, %v", list, err)
	}
	if _, err := c1.GetRequest(t.Context(), before.ID); !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), "mount") {
		t.Errorf("a request that cannot be read: %v", err)
	}
	again, created, err := c1.Accept(t.Context(), operator, api.RunSpec{Process: "p"}, "key")
	if err != nil || created || again.ID != before.ID || again.Status != roles.RequestSucceeded || again.RequestedAt != before.RequestedAt {
		t.Errorf("the same call again without the mount: %v, created %v, %v", again, created, err)
	}
	if err := os.Rename(sentinel+"-away", sentinel); err != nil {
		t.Fatal(err)
	}
	c1.awaitMoved(live.ID)
	if list, err := c1.ListRequests(t.Context(), api.RequestFilter{}); err != nil || len(list.Requests) != 2 || list.Note != "" {
		t.Errorf("the mount is back: %v, %v", list, err)
	}
}

// Without a mount nothing moves.
func TestNoMountNoHistory(t *testing.T) {
	w := newWorld(t, worldOptions{controllers: 1, change: func(c *Config) { c.History = HistoryConfig{} }})
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.finish(a, "p", "")
	c1.settle()
	if _, ok := c1.member.View().Get(specKey(r.ID)); !ok {
		t.Error("the request is gone")
	}
	if told := c1.dump(prefixTold); len(told) > 0 {
		t.Errorf("lists for nobody: %v", told)
	}
}

// A request stays until its agents were told, also if its owner dies before.
func TestMovedOnlyWhenTold(t *testing.T) {
	w := newWorld(t, hotFor(t, 1, 0, 0))
	c1 := w.node("c1")
	a := w.agent(c1, "a1", nil)
	c1.apply(process("p", step("one", "a1")))
	r := c1.accept("p")
	a.start()
	// The end comes over another link, so that the request is final and the agent
	// has none by which it could be told.
	c1.on(func(d *desk) {
		o := d.owned[r.ID]
		delete(d.agents.routes, "a1")
		d.apply(o, roles.Report{Agent: "a1", Step: "one", Attempt: 1, State: roles.AttemptExited,
			Journal: roles.Journal{ID: a.journal.GetId(), Counter: a.journal.GetCounter()}})
	})
	c1.awaitStatus(r.ID, roles.RequestSucceeded)
	m := quietMover(t, c1)
	m.first(c1.member.View().Snapshot())
	if due := m.due(); len(due) != 0 {
		t.Errorf("a request is moved whose agent was not told: %v", due)
	}
	m.done[r.ID].since = time.Now().Add(-untoldFor - time.Hour)
	if due := m.due(); len(due) != 1 {
		t.Errorf("a request waits for ever: %v", due)
	}
	// Its owner ends; whoever leads then tells the agent and moves it.
	c1 = c1.restart()
	a.connect(c1)
	for {
		if ack := a.next().GetAck(); ack.GetRequest() == r.ID && ack.GetFinal() {
			break
		}
	}
	c1.awaitMoved(r.ID)
}

// awaitLead waits until a controller is Active.
func (n *node) awaitLead() {
	n.w.t.Helper()
	coordtest.Await(n.w.t, n.member.View(), n.cfg.Name+" leads", func(coord.Snapshot) bool { return n.leads() })
}

// leads reports whether a controller is Active, by what it knows itself.
func (n *node) leads() bool {
	s := n.session.Load()
	return s != nil && s.Term() != nil && s.Term().Check() == nil
}

// quietMover returns a mover of its own on a controller whose own one has nothing to do.
func quietMover(t *testing.T, n *node) *mover {
	t.Helper()
	n.awaitMount(mount.OK)
	n.awaitLead()
	m := newMover(n.Controller, n.session.Load(), n.session.Load().Term())
	m.named = int(1_000_000 * n.w.number.Add(1)) // names that no other one uses
	return m
}

// put stores finished requests, told, as they come to be by running.
func putFinished(t *testing.T, n *node, count int, change func(i int, r *roles.RequestOptions)) []string {
	t.Helper()
	p := process("p", step("one", "a1"))
	var ids []string
	var tx coord.Tx
	flush := func() {
		if len(tx.Then) > 0 {
			if err := n.member.View().Wait(t.Context(), n.commit1(tx).Revision); err != nil {
				t.Fatal(err)
			}
			tx = coord.Tx{}
		}
	}
	for i := range count {
		o := roles.RequestOptions{ID: newID(), RequestedBy: "op", RequestedAt: now()}
		if change != nil {
			change(i, &o)
		}
		writes := finishedWrites(t, &p, o)
		ids = append(ids, o.ID)
		if tx.Then = append(tx.Then, writes...); len(tx.Then) > 1000 {
			flush()
		}
	}
	tx.Then = append(tx.Then, coord.Put(toldKey(newID()), encode(ids)))
	flush()
	slices.Sort(ids)
	return ids
}

func finishedWrites(t *testing.T, p *roles.Process, o roles.RequestOptions) []coord.Write {
	t.Helper()
	r, err := roles.NewRequest(p, o)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writes := []coord.Write{
		coord.Put(specKey(o.ID), spec),
		coord.Put(statusKey(o.ID), encode(roles.Record{Status: roles.RequestSucceeded, StartedAt: o.RequestedAt, FinishedAt: o.RequestedAt})),
		coord.Put(stepKey(o.ID, "one"), encode(roles.Step{Name: "one", Status: roles.StepSucceeded, Agent: "a1", Attempt: 1})),
	}
	if o.IdempotencyKey != "" {
		writes = append(writes, coord.Put(idemKey(o.IdempotencyKey), encode(idemRecord{Request: o.ID, Digest: r.Digest})))
	}
	return writes
}

// shown returns how often each request is shown.
func shown(t *testing.T, n *node) map[string]int {
	t.Helper()
	list, err := n.ListRequests(t.Context(), api.RequestFilter{})
	if err != nil || list.Note != "" {
		t.Fatalf("list: %q, %v", list.Note, err)
	}
	times := map[string]int{}
	for _, r := range list.Requests {
		times[r.ID]++
	}
	return times
}

func wantOnce(t *testing.T, n *node, ids []string) {
	t.Helper()
	want := map[string]int{}
	for _, id := range ids {
		want[id] = 1
		if _, err := n.GetRequest(t.Context(), id); err != nil {
			t.Errorf("request %s: %v", id, err)
		}
	}
	if diff := cmp.Diff(want, shown(t, n)); diff != "" {
		t.Errorf("what is shown: %s", diff)
	}
}

// spy is the mount with something that happens after a file was made.
type spy struct {
	files
	created func(name string) error
}

func (s spy) Create(ctx context.Context, name string, data []byte) error {
	if err := s.files.Create(ctx, name, data); err != nil {
		return err
	}
	return s.created(name)
}

// Whatever ends a move between its steps, each request is shown exactly once.
func TestMoveIsAllOrNothing(t *testing.T) {
	w := newWorld(t, hotFor(t, 2, time.Hour, 1_000_000))
	active, _ := w.activeFirst()
	ids := putFinished(t, active, 3*maxMoved/2, nil)
	mover := func() *mover {
		m := quietMover(t, active)
		m.first(active.member.View().Snapshot())
		return m
	}
	crash := errors.New("crash")

	// The file was made, and its maker ended.
	m := mover()
	orphan := ""
	m.files = spy{m.files, func(name string) error { orphan = name; return crash }}
	if _, err := m.move(t.Context(), ids); !errors.Is(err, crash) {
		t.Fatal(err)
	}
	wantOnce(t, active, ids)

	// The same requests are registered twice: in between, the other one does it.
	m, other := mover(), mover()
	m.files = spy{m.files, func(string) error {
		_, err := other.move(t.Context(), ids)
		return err
	}}
	if _, err := m.move(t.Context(), ids); !errors.Is(err, errNotRegistered) {
		t.Errorf("registered twice: %v", err)
	}
	wantOnce(t, active, ids)
	if entries, err := registry(active.member.View().Snapshot(), prefixHistory); err != nil || len(entries) != 1 || entries[0].Count != maxMoved {
		t.Errorf("the registry has %v, %v", entries, err)
	}

	// An old Active registers late: its term has ended.
	late := mover()
	stale := active
	late.files = spy{late.files, func(string) error {
		to, err := active.Switchover(t.Context(), operator, "")
		if err == nil {
			active = w.node(to)
			active.awaitLead()
		}
		return err
	}}
	rest := ids[maxMoved:]
	if _, err := late.move(t.Context(), rest); !errors.Is(err, errNotRegistered) {
		t.Errorf("who was Active once registers: %v", err)
	}
	if _, ok := stale.member.View().Get(specKey(rest[0])); !ok {
		t.Error("who was Active once has moved a request")
	}
	wantOnce(t, active, ids)

	// What came to nothing is collected, what is registered is not. The stale one
	// does not touch what a later term made.
	m = mover()
	if n, err := m.move(t.Context(), rest); err != nil || n != len(rest) {
		t.Fatalf("%d moved, %v", n, err)
	}
	wantOnce(t, active, ids)
	names := func() (all []string) {
		t.Helper()
		_ = filepath.WalkDir(filepath.Join(w.options.mount, historyDir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				all = append(all, path)
			}
			return err
		})
		return all
	}
	if got := names(); len(got) != 5 {
		t.Fatalf("there are %d files: %v", len(got), got)
	}
	if err := late.collect(t.Context()); err == nil {
		t.Error("who is not Active collects")
	}
	if err := m.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(); len(got) != 2 || slices.ContainsFunc(got, func(name string) bool { return strings.HasSuffix(name, orphan) }) {
		t.Errorf("after collecting: %v", got)
	}
	wantOnce(t, active, ids)
}

// A file whose term this node has not heard of is left alone.
func TestCollectLeavesLaterTerms(t *testing.T) {
	w := newWorld(t, hotFor(t, 1, time.Hour, 1_000_000))
	c1 := w.node("c1")
	m := quietMover(t, c1)
	generation, _ := c1.member.Generation()
	later := fmt.Sprintf("%s/2026010100/%d-%d-1", historyDir, generation, m.t.Epoch()+1)
	former := fmt.Sprintf("%s/2026010100/%d-%d-1", historyDir, generation+1, 1)
	mine := fmt.Sprintf("%s/2026010100/%d-%d-1", historyDir, generation, m.t.Epoch())
	for _, name := range []string{later, former, mine} {
		if err := m.files.Create(t.Context(), name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := m.files.List(t.Context(), historyDir+"/2026010100")
	if err != nil || len(got) != 2 {
		t.Errorf("left: %v, %v", got, err)
	}
}

// Old events move too, and are listed all the same.
func TestEventsMove(t *testing.T) {
	w := newWorld(t, hotFor(t, 1, time.Hour, 1_000_000))
	c1 := w.node("c1")
	m := quietMover(t, c1)
	m.hotEvents = 100
	const more = 2*maxMovedEvents + 500
	tx := coord.Tx{}
	for i := range more {
		tx.Then = append(tx.Then, c1.event(api.Event{Kind: "test", Subject: fmt.Sprint(i)}))
		if len(tx.Then) == 500 {
			if err := c1.member.View().Wait(t.Context(), c1.commit1(tx).Revision); err != nil {
				t.Fatal(err)
			}
			tx = coord.Tx{}
		}
	}
	before, err := c1.ListEvents(t.Context(), api.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	m.first(c1.member.View().Snapshot())
	for range 2 {
		if err := m.moveEvents(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c1.dump(prefixEvents)); n >= more-2*maxMovedEvents/2 {
		t.Errorf("%d events are in the store", n)
	}
	ids := func(l api.EventList) (out []string) {
		for _, e := range l.Events {
			out = append(out, e.ID)
		}
		return out
	}
	for _, limit := range []int{0, 10, 700, 2000} {
		after, err := c1.ListEvents(t.Context(), api.EventFilter{Limit: limit})
		if err != nil || after.Note != "" {
			t.Fatal(after.Note, err)
		}
		want := ids(before)
		if limit > 0 {
			want = want[:min(limit, len(want))]
		}
		if diff := cmp.Diff(want, ids(after)); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
	}
	// What is asked for is looked for in the history, too, as far back as it may be.
	oldest := before.Events[len(before.Events)-1]
	for what, f := range map[string]api.EventFilter{
		"subject": {Subject: oldest.Subject, Kind: oldest.Kind},
		"time":    {From: oldest.At, Limit: len(before.Events)},
		"future":  {From: time.Now().Add(2 * clockSlack)},
	} {
		var want []string
		for _, e := range before.Events {
			if f.Match(e) {
				want = append(want, e.ID)
			}
		}
		after, err := c1.ListEvents(t.Context(), f)
		if err != nil || after.Note != "" {
			t.Fatal(after.Note, err)
		}
		if diff := cmp.Diff(want, ids(after)); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
}

// A damaged file is found out and not shown, and hides nothing but what is in it.
func TestDamagedHistory(t *testing.T) {
	w := newWorld(t, hotFor(t, 1, time.Hour, 1_000_000))
	c1 := w.node("c1")
	ids := putFinished(t, c1, 5, nil)
	m := quietMover(t, c1)
	// What lies in the first file ends later: the ids of the files overlap.
	for _, file := range [][]string{{ids[1], ids[3]}, {ids[0], ids[2]}, {ids[4]}} {
		if _, err := m.move(t.Context(), file); err != nil {
			t.Fatal(err)
		}
	}
	damage := func(prefix, last string) {
		t.Helper()
		entries, err := registry(c1.member.View().Snapshot(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(entries, func(e entry) bool { return e.Last == last })
		f, err := os.OpenFile(filepath.Join(w.options.mount, entries[i].Name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("?"), 40); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	damage(prefixHistory, ids[3])
	if _, err := c1.GetRequest(t.Context(), ids[1]); !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged file: %v", err)
	}
	if r, err := c1.GetRequest(t.Context(), ids[2]); err != nil || r.ID != ids[2] {
		t.Errorf("a request of another file: %s, %v", r.ID, err)
	}
	list, err := c1.ListRequests(t.Context(), api.RequestFilter{})
	if err != nil || !strings.Contains(list.Note, "1 damaged") {
		t.Errorf("note %q, %v", list.Note, err)
	}
	var got []string
	for _, r := range list.Requests {
		got = append(got, r.ID)
	}
	if d := cmp.Diff([]string{ids[4], ids[2], ids[0]}, got); d != "" {
		t.Errorf("requests besides the damaged file (-want +got):\n%s", d)
	}

	var events []string
	for range 2 {
		var tx coord.Tx
		for range 2 {
			e := c1.event(api.Event{Kind: "test"})
			tx.Then, events = append(tx.Then, e), append(events, strings.TrimPrefix(e.Key, prefixEvents))
		}
		if err := c1.member.View().Wait(t.Context(), c1.commit1(tx).Revision); err != nil {
			t.Fatal(err)
		}
		m.events = map[string]struct{}{}
		for _, id := range events[len(events)-2:] {
			m.events[id] = struct{}{}
		}
		if err := m.moveEvents(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	damage(prefixPast, events[3])
	left, err := c1.ListEvents(t.Context(), api.EventFilter{Kind: "test"})
	if err != nil || len(left.Events) != 2 || left.Events[0].ID != events[1] || !strings.Contains(left.Note, "1 damaged") {
		t.Errorf("events besides the damaged file: %+v, note %q, %v", left.Events, left.Note, err)
	}
}

// However many requests end, the store holds a bounded number of keys.
func TestStoreStaysSmall(t *testing.T) {
	const total, hot, keys = 10_000, 500, 2_000
	w := newWorld(t, hotFor(t, 1, time.Hour, hot))
	c1 := w.node("c1")
	m := quietMover(t, c1)
	m.keys = keys
	// The controller's own mover is at work, too: who comes second looks again.
	round := func() {
		t.Helper()
		for {
			c1.settle()
			m.takeIn()
			m.tidied = time.Time{}
			err := m.round(t.Context())
			if err == nil {
				break
			}
			if !errors.Is(err, errNotRegistered) {
				t.Fatal(err)
			}
		}
	}
	_, stop := c1.member.View().Follow(func(b coord.Batch) { m.mail.post(func() { m.seen(b) }) })
	defer stop()
	for n := 0; n < total; n += 1000 {
		putFinished(t, c1, 1000, func(i int, o *roles.RequestOptions) { o.IdempotencyKey = fmt.Sprint("key-", n+i) })
		round()
	}
	round()
	snap := c1.member.View().Snapshot()
	count := func(prefix string) (n int) {
		for range snap.Range(prefix) {
			n++
		}
		return n
	}
	for prefix, most := range map[string]int{
		prefixRequests: 3 * (hot + 1000), prefixHistory: 2 * 2 * fanout, prefixIdem: keys + hot + 1000 + maxMoved, prefixTold: 4, prefixMoved: keys/maxMoved + 2 + 20,
	} {
		if n := count(prefix); n > most {
			t.Errorf("%d keys below %s, at most %d are allowed", n, prefix, most)
		}
	}
	entries, err := registry(snap, prefixHistory)
	if err != nil {
		t.Fatal(err)
	}
	archived := 0
	for _, e := range entries {
		archived += e.Count
	}
	if n := archived + count(prefixRequests)/3; n != total {
		t.Errorf("%d requests are left of %d", n, total)
	}
	if !slices.ContainsFunc(entries, func(e entry) bool { return e.Level == 1 }) {
		t.Error("nothing was rolled up: this test shows nothing")
	}
	// Pages: each request once, in order.
	var all []string
	f := api.RequestFilter{Limit: 1000}
	for {
		list, err := c1.ListRequests(t.Context(), f)
		if err != nil || list.Note != "" {
			t.Fatal(list.Note, err)
		}
		for _, r := range list.Requests {
			all = append(all, r.ID)
		}
		if f.Before = list.Next; f.Before == "" {
			break
		}
	}
	if len(all) != total || !slices.IsSortedFunc(all, func(a, b string) int { return strings.Compare(b, a) }) || len(slices.Compact(all)) != total {
		t.Errorf("pages show %d requests", len(all))
	}
	// What has had its time goes, with its files.
	m.cfg.Keep = time.Hour
	m.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := m.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(c1.dump(prefixHistory)); n > 0 {
		t.Errorf("%d entries are left after the retention", n)
	}
	if err := m.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := m.files.List(t.Context(), historyDir); err != nil || len(left) > 0 {
		t.Errorf("left after the retention: %v, %v", left, err)
	}
}
