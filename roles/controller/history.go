package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// HistoryConfig says how long finished requests are kept, and where.
type HistoryConfig struct {
	// Hot is how long a finished request stays in the store; HotCount is how many
	// do at most.
	Hot      time.Duration
	HotCount int
	// Keep is how long a request stays in the history, 0 for ever.
	Keep time.Duration
}

const (
	historyDir = "history"
	// historyTick is how often the Active looks whether something is to be moved.
	historyTick = time.Second
	// historyRoom is the part of the store's quota above which finished requests
	// move at once: well before new ones are refused.
	historyRoom = 0.50
	// One file, and the transaction that registers it, must not hold up others for
	// long.
	maxMoved      = 64
	maxMovedOps   = 700
	maxMovedBytes = 4 << 20
	// maxTidied bounds the transaction that tidies.
	maxTidied = 1500
	// fanout is how many entries become one of the next level, when there are twice
	// as many.
	fanout = 64
	// untoldFor is how long a finished request waits for agents that must be told
	// and cannot be. An agent that comes back later is answered from the history.
	untoldFor = 7 * 24 * time.Hour
	// keepKeys and maxKeys bound how long the idempotency keys of moved requests
	// are remembered.
	keepKeys = 7 * 24 * time.Hour
	maxKeys  = 200_000
	// hotEvents is how many events the store holds; as many again as fit into one
	// file are moved at a time.
	hotEvents      = 10_000
	maxMovedEvents = 500
	// maxLinger is how long finished requests wait at most until there are enough
	// for a file.
	maxLinger = 10 * time.Minute
	// tidyEvery is how often the history is tidied.
	tidyEvery = time.Minute
	// collectEvery is how often garbage is looked for.
	collectEvery = time.Hour
)

// mover moves finished requests from the store to the shared mount, for one term.
// One goroutine runs it.
//
// A request leaves the store in the transaction that registers the file in which it
// is. That transaction belongs to the term, and holds only if the request's status
// is still the one in the file. So a file that was written and not registered is
// garbage, whoever wrote it; and who lost its term registers nothing.
type mover struct {
	c     *Controller
	cfg   HistoryConfig
	s     *coord.Session
	t     *coord.Term
	files files
	mail  *mailbox
	now   func() time.Time

	// done are the finished requests in the store.
	done map[string]*finished
	// lists count the requests of each list of told ones that are in the store.
	lists map[string]int
	// events are the ids of events in the store.
	events map[string]struct{}
	named  int // files so far
	// keys and hotEvents are how many the store holds at most.
	keys, hotEvents int
	// tidied and collected are when that was done last.
	tidied, collected time.Time
}

// finished is a finished request in the store.
type finished struct {
	since time.Time // when this node saw that, in this term
	told  bool      // its agents may forget it
	list  string    // key of the list that says so
}

func newMover(c *Controller, s *coord.Session, t *coord.Term) *mover {
	return &mover{
		c: c, cfg: c.cfg.History, s: s, t: t, files: c.archive.files, mail: newMailbox(), now: time.Now,
		done: map[string]*finished{}, lists: map[string]int{}, events: map[string]struct{}{}, keys: maxKeys, hotEvents: hotEvents,
	}
}

// run moves until ctx ends.
func (m *mover) run(ctx context.Context) error {
	if m.c.deps.Mount.State().Kind == mount.Unconfigured {
		return nil
	}
	from, stop := m.c.member.View().Follow(func(b coord.Batch) { m.mail.post(func() { m.seen(b) }) })
	defer stop()
	m.first(from)
	m.collected = m.now().Add(tidyEvery - collectEvery)
	tick := time.NewTicker(historyTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.mail.signal:
			m.takeIn()
		case <-tick.C:
			m.takeIn()
			if m.c.deps.Mount.State().Kind != mount.OK {
				continue
			}
			if err := m.round(ctx); err != nil && ctx.Err() == nil {
				m.c.log.Warn("history: not moved; it is tried again", "error", err)
			}
		}
	}
}

func (m *mover) takeIn() {
	for _, f := range m.mail.take() {
		f()
	}
}

// first takes in what is in the store when the term begins.
func (m *mover) first(snap coord.Snapshot) {
	for kv := range snap.Range(prefixRequests) {
		m.note(kv, false)
	}
	for kv := range snap.Range(prefixTold) {
		m.noteTold(kv)
	}
	for kv := range snap.Range(prefixEvents) {
		m.events[strings.TrimPrefix(kv.Key, prefixEvents)] = struct{}{}
	}
}

// seen takes in one change of the view.
func (m *mover) seen(b coord.Batch) {
	for _, ch := range b.Changes {
		switch {
		case strings.HasPrefix(ch.Key, prefixRequests):
			m.note(ch.KV, ch.Deleted)
		case strings.HasPrefix(ch.Key, prefixTold) && !ch.Deleted:
			m.noteTold(ch.KV)
		case strings.HasPrefix(ch.Key, prefixEvents) && ch.Deleted:
			delete(m.events, strings.TrimPrefix(ch.Key, prefixEvents))
		case strings.HasPrefix(ch.Key, prefixEvents):
			m.events[strings.TrimPrefix(ch.Key, prefixEvents)] = struct{}{}
		}
	}
}

func (m *mover) note(kv coord.KV, deleted bool) {
	id, rest := requestOf(kv.Key, prefixRequests)
	if rest != "status" {
		return
	}
	if deleted {
		m.forget(id)
		return
	}
	rec, err := decode[roles.Record](kv)
	if err == nil && rec.Status.Final() && m.done[id] == nil {
		m.done[id] = &finished{since: m.now()}
	}
}

func (m *mover) forget(id string) {
	if f := m.done[id]; f != nil {
		delete(m.done, id)
		if f.list != "" {
			m.lists[f.list]--
		}
	}
}

func (m *mover) noteTold(kv coord.KV) {
	ids, _ := decode[[]string](kv) // one that cannot be read says nothing
	m.lists[kv.Key] += 0
	for _, id := range ids {
		if f := m.done[id]; f != nil && f.list == "" {
			f.told, f.list = true, kv.Key
			m.lists[kv.Key]++
		}
	}
}

// round does what is due.
func (m *mover) round(ctx context.Context) error {
	m.tell()
	due := m.due()
	for len(due) > 0 {
		moved, err := m.move(ctx, due)
		if err != nil {
			return err
		}
		due = due[moved:]
		m.takeIn()
	}
	for len(m.events) >= m.hotEvents+maxMovedEvents && ctx.Err() == nil {
		if err := m.moveEvents(ctx); err != nil {
			return err
		}
	}
	for _, prefix := range []string{prefixHistory, prefixPast} {
		if err := m.rollUp(ctx, prefix); err != nil {
			return err
		}
	}
	if m.now().Sub(m.tidied) < tidyEvery {
		return nil
	}
	m.tidied = m.now()
	if err := m.tidy(ctx); err != nil {
		return err
	}
	if m.now().Sub(m.collected) < collectEvery {
		return nil
	}
	m.collected = m.now()
	return m.collect(ctx)
}

// due lists the requests that are to be moved now, the oldest first. How long one
// is finished is counted by this node, since it saw it: the clocks of two hosts are
// not compared, and the count bounds what a change of the Active adds.
func (m *mover) due() []string {
	cfg := m.cfg
	pressed := m.c.member.CheckRoom(historyRoom) != nil
	var ids []string
	for id, f := range m.done {
		if f.told || m.now().Sub(f.since) > untoldFor {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	over := len(m.done) - cfg.HotCount
	urgent := pressed
	ids = slices.DeleteFunc(ids, func(id string) bool {
		over--
		age := m.now().Sub(m.done[id].since)
		urgent = urgent || age >= cfg.Hot+min(cfg.Hot, maxLinger)
		return over < 0 && !pressed && age < cfg.Hot
	})
	if len(ids) < maxMoved && !urgent {
		return nil // a file for each would make many
	}
	return ids
}

// maxTelling bounds how many requests are looked at in one round for agents that
// nobody told.
const maxTelling = 500

// tell has the agents of finished requests told whose owner is gone and did not say
// that it has.
func (m *mover) tell() {
	d := m.c.desk.Load()
	if d == nil {
		return
	}
	snap := m.c.member.View().Snapshot()
	var ids []string
	for id, f := range m.done {
		// An owner that lives says so within moments, in a list.
		if f.told || m.now().Sub(f.since) < 5*historyTick || len(ids) == maxTelling {
			continue
		}
		kv, ok := snap.Get(claimKey(id))
		if !ok {
			ids = append(ids, id)
			continue
		}
		if claim, err := decode[claimRecord](kv); err != nil || coord.SessionEpoch(snap, claim.Node) != claim.Epoch {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return
	}
	d.mail.post(func() {
		for _, id := range ids {
			if d.tellAgain(id) {
				m.mail.post(func() {
					if f := m.done[id]; f != nil {
						f.told = true
					}
				})
			}
		}
	})
}

// piece is one request that is about to be moved.
type piece struct {
	id     string
	line   []byte
	entry  entry
	conds  []coord.Cond
	writes []coord.Write
	key    string // of idempotency
}

// take reads what is stored of a request. ok is false if it is not to be moved, or not
// yet: who collects its output needs what is stored.
func (m *mover) take(snap coord.Snapshot, id string) (p piece, ok bool, err error) {
	if outputPending(snap, id) {
		return p, false, nil
	}
	state, claim, fence, ok, err := loadRequest(snap, id)
	if !ok || err != nil || !state.Record.Status.Final() || abandons(state) {
		return p, false, err
	}
	spec, _ := snap.Get(specKey(id))
	status, _ := snap.Get(statusKey(id))
	a := archived{ID: id, Spec: spec.Value, Accepted: spec.Mod, Status: status.Value, Steps: map[string]json.RawMessage{}, Claim: claim, ClaimMod: fence.Revision}
	p = piece{id: id, entry: entryOf(state)}
	p.conds = []coord.Cond{coord.ModIs(statusKey(id), status.Mod), coord.Absent(collectKey(id))}
	p.writes = []coord.Write{coord.Del(specKey(id)), coord.Del(statusKey(id))}
	for kv := range snap.Range(stepPrefix(id)) {
		a.Steps[strings.TrimPrefix(kv.Key, stepPrefix(id))] = kv.Value
		p.writes = append(p.writes, coord.Del(kv.Key))
	}
	if claim.Node != "" {
		p.writes = append(p.writes, coord.Del(claimKey(id)))
	}
	if key := state.Request.IdempotencyKey; key != "" {
		if kv, there := snap.Get(idemKey(key)); there {
			rec, err := decode[idemRecord](kv)
			if err == nil && rec.Request == id {
				rec.Final = &idemFinal{
					Status: state.Record.Status, RequestedBy: state.Request.RequestedBy, RequestedAt: state.Request.RequestedAt,
					StartedAt: state.Record.StartedAt, FinishedAt: state.Record.FinishedAt,
				}
				p.key = key
				p.writes = append(p.writes, coord.Put(idemKey(key), encode(rec)))
			}
		}
	}
	p.line, err = json.Marshal(a)
	return p, err == nil, err
}

// move moves the first of the requests, as many as fit into one file, and returns
// how many of them it has dealt with.
func (m *mover) move(ctx context.Context, ids []string) (int, error) {
	snap := m.c.member.View().Snapshot()
	var e entry
	var lines [][]byte
	var conds []coord.Cond
	var writes []coord.Write
	var keys []string
	size, dealt := 0, 0
	for _, id := range ids {
		p, ok, err := m.take(snap, id)
		if err != nil {
			m.c.log.Error("history: a finished request cannot be read and stays where it is", "request", id, "error", err)
		}
		if !ok || err != nil {
			dealt++
			continue
		}
		full := len(lines) == maxMoved || len(conds)+len(writes)+len(p.conds)+len(p.writes) > maxMovedOps || size+len(p.line) > maxMovedBytes
		if full && len(lines) > 0 {
			break
		}
		e.add(p.entry)
		lines, size = append(lines, p.line), size+len(p.line)
		conds, writes = append(conds, p.conds...), append(writes, p.writes...)
		if p.key != "" {
			keys = append(keys, p.key)
		}
		dealt++
	}
	if len(lines) == 0 {
		return dealt, nil
	}
	if err := m.write(ctx, &e, lines); err != nil {
		return 0, err
	}
	if len(keys) > 0 {
		writes = append(writes, coord.Put(movedKey(e.Name), encode(movedRecord{At: roles.StampOf(m.now()), Keys: keys})))
	}
	return dealt, m.register(ctx, prefixHistory, e, conds, writes)
}

// write makes the file that an entry describes.
func (m *mover) write(ctx context.Context, e *entry, lines [][]byte) error {
	data, err := encodeFile(e.Level, lines)
	if err != nil {
		return err
	}
	generation, _ := m.c.member.Generation()
	m.named++ // also if this fails: the file may come to be later
	e.seal(fmt.Sprintf("%s/%s/%d-%d-%d", historyDir, m.now().UTC().Format("2006010215"), generation, m.t.Epoch(), m.named), data)
	return m.files.Create(ctx, e.Name, data)
}

// errNotRegistered is returned when the term is over, or something has changed since
// it was read. What it is now is seen in the next round.
var errNotRegistered = errors.New("file is not part of the history: the store has changed meanwhile")

// register makes a file part of the history together with other writes, if this is
// still the term and the conditions hold.
func (m *mover) register(ctx context.Context, prefix string, e entry, conds []coord.Cond, writes []coord.Write) error {
	return m.commit(ctx, conds, append([]coord.Write{coord.Put(registryKey(prefix, e.Name), encode(e))}, writes...))
}

// moveEvents moves the oldest events.
func (m *mover) moveEvents(ctx context.Context) error {
	ids := slices.Sorted(maps.Keys(m.events))
	snap := m.c.member.View().Snapshot()
	// By these a loss is known to have been told.
	for _, loss := range coord.Losses(snap) {
		if i, there := slices.BinarySearch(ids, lossEvent(loss)); there {
			ids = slices.Delete(ids, i, i+1)
		}
	}
	var e entry
	var lines [][]byte
	var writes []coord.Write
	ids = ids[:min(len(ids), maxMovedEvents)]
	for _, id := range ids {
		kv, ok := snap.Get(eventKey(id))
		if !ok {
			delete(m.events, id)
			continue
		}
		ev, err := decode[api.Event](kv)
		if err != nil {
			return err
		}
		at := roles.StampOf(ev.At)
		e.add(entry{Count: 1, First: id, Last: id, From: at, To: at, Ended: at})
		lines, writes = append(lines, kv.Value), append(writes, coord.Del(kv.Key))
	}
	if len(lines) == 0 {
		return nil
	}
	if err := m.write(ctx, &e, lines); err != nil {
		return err
	}
	// Nobody but the term's mover deletes events, and they never change.
	if err := m.register(ctx, prefixPast, e, nil, writes); err != nil {
		return err
	}
	for _, id := range ids {
		delete(m.events, id) // the view has it, but its change may not have come here yet
	}
	return nil
}

// commit commits in this term and waits until the view shows it. The first write is
// a put.
func (m *mover) commit(ctx context.Context, conds []coord.Cond, writes []coord.Write) error {
	res, err := m.s.Commit(ctx, coord.Tx{If: append([]coord.Cond{m.t.Guard()}, conds...), Then: writes})
	if err == nil && !res.Won {
		err = errNotRegistered
	}
	if err != nil {
		return err
	}
	return m.c.member.View().Wait(ctx, res.Revision)
}

// rollUp replaces the oldest entries of a level by one of the next, so that the
// registry stays small however long the history is.
func (m *mover) rollUp(ctx context.Context, prefix string) error {
	for {
		snap := m.c.member.View().Snapshot()
		entries, err := registry(snap, prefix)
		if err != nil {
			return err
		}
		levels := map[int][]entry{}
		for _, e := range entries {
			levels[e.Level] = append(levels[e.Level], e)
		}
		again := false
		for level, all := range levels {
			if len(all) < 2*fanout {
				continue
			}
			again = true
			up := entry{Level: level + 1}
			var lines [][]byte
			var conds []coord.Cond
			var writes []coord.Write
			for _, e := range all[:fanout] {
				kv, _ := snap.Get(registryKey(prefix, e.Name))
				up.add(e)
				lines = append(lines, encode(e))
				conds = append(conds, coord.ModIs(kv.Key, kv.Mod))
				writes = append(writes, coord.Del(kv.Key))
			}
			if err := m.write(ctx, &up, lines); err != nil {
				return err
			}
			if err := m.register(ctx, prefix, up, conds, writes); err != nil {
				return err
			}
		}
		if !again {
			return nil
		}
	}
}

// tidy removes what has had its time: entries of requests older than the retention,
// idempotency keys, commands that came too late, lists of told requests.
func (m *mover) tidy(ctx context.Context) error {
	snap := m.c.member.View().Snapshot()
	var conds []coord.Cond
	var writes []coord.Write
	if keep := m.cfg.Keep; keep > 0 {
		old := roles.StampOf(m.now().Add(-keep))
		for _, prefix := range []string{prefixHistory, prefixPast} {
			entries, err := registry(snap, prefix)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if e.Ended < old && len(writes) < maxTidied {
					writes = append(writes, coord.Del(registryKey(prefix, e.Name)))
				}
			}
		}
	}
	for kv := range snap.Range(prefixInbox) {
		// It was given before the request was final, and lost the race with the move.
		id, _ := requestOf(kv.Key, prefixInbox)
		if _, there := snap.Get(specKey(id)); !there && len(writes) < maxTidied {
			cmd, _ := decode[command](kv) // whatever it says
			writes = append(writes, coord.Del(kv.Key), m.c.refusal(id, cmd, "the request had ended already"))
		}
	}
	for key, left := range m.lists {
		if left == 0 && len(writes) < maxTidied {
			writes = append(writes, coord.Del(key))
			delete(m.lists, key)
		}
	}
	keyConds, keyWrites := m.oldKeys(snap)
	conds, writes = append(conds, keyConds...), append(writes, keyWrites...)
	if len(writes) == 0 {
		return nil
	}
	mark := coord.Put(keyTidied, encode(map[string]any{"node": m.c.cfg.Name, "term": m.t.Epoch()}))
	return m.commit(ctx, conds, append([]coord.Write{mark}, writes...))
}

// oldKeys returns what forgets the idempotency keys of requests that were moved
// long ago, and the oldest if there are too many.
func (m *mover) oldKeys(snap coord.Snapshot) (conds []coord.Cond, writes []coord.Write) {
	type moved struct {
		kv  coord.KV
		rec movedRecord
	}
	var all []moved
	total := 0
	for kv := range snap.Range(prefixMoved) {
		rec, _ := decode[movedRecord](kv) // one that cannot be read is the oldest
		all = append(all, moved{kv, rec})
		total += len(rec.Keys)
	}
	slices.SortFunc(all, func(a, b moved) int { return cmp.Compare(a.kv.Create, b.kv.Create) })
	old := roles.StampOf(m.now().Add(-keepKeys))
	for _, one := range all {
		if one.rec.At >= old && total <= m.keys || len(writes) > maxTidied {
			break
		}
		total -= len(one.rec.Keys)
		conds = append(conds, coord.ModIs(one.kv.Key, one.kv.Mod))
		writes = append(writes, coord.Del(one.kv.Key))
		for _, key := range one.rec.Keys {
			writes = append(writes, coord.Del(idemKey(key)))
		}
	}
	return conds, writes
}

// collect removes files that are not part of the history: written and never
// registered, or with requests that are older than the retention.
//
// The mount knows no fence. So a file counts as garbage only if its name is of this
// generation and of a term that is not later than this one: whatever earlier terms
// registered is in the view, and what a later one has made is left alone, should
// this node not know yet that its term is over. Files of earlier generations stay,
// because the store may have lost their entries.
func (m *mover) collect(ctx context.Context) error {
	if err := m.t.Check(); err != nil {
		return err
	}
	snap := m.c.member.View().Snapshot()
	known := map[string]bool{}
	for _, prefix := range []string{prefixHistory, prefixPast} {
		entries, err := registry(snap, prefix)
		if err != nil {
			return err
		}
		if err := m.reach(ctx, entries, known); err != nil {
			return err
		}
	}
	hours, err := m.files.List(ctx, historyDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	generation, _ := m.c.member.Generation()
	removed := 0
	for _, hour := range hours {
		dir := historyDir + "/" + hour.Name
		all, err := m.files.List(ctx, dir)
		if err != nil {
			return err
		}
		left := len(all)
		for _, f := range all {
			name := dir + "/" + f.Name
			var gen uint64
			var term int64
			var n int
			if _, err := fmt.Sscanf(f.Name, "%d-%d-%d", &gen, &term, &n); err != nil || known[name] || gen != uint64(generation) || term > m.t.Epoch() { //nolint:gosec // never negative
				continue
			}
			if err := m.files.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			removed++
			left--
		}
		if left == 0 {
			// Somebody may be about to write there, and makes it again then.
			_ = m.files.Remove(ctx, dir)
		}
	}
	if removed > 0 {
		m.c.log.Info("history: garbage removed", "files", removed)
	}
	return nil
}

// reach notes the names of all files that entries lead to.
func (m *mover) reach(ctx context.Context, entries []entry, known map[string]bool) error {
	for _, e := range entries {
		known[e.Name] = true
		if e.Level == 0 {
			continue
		}
		below, err := m.c.archive.below(ctx, e)
		if err != nil {
			return err
		}
		if err := m.reach(ctx, below, known); err != nil {
			return err
		}
	}
	return nil
}
