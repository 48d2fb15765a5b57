package controller

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// The history is a tree of write-once files on the shared mount. Those at the
// bottom hold requests, the others entries of files below them; the entries of the
// topmost are in the store, the registry. A file that no entry names is garbage.
// Every entry sums up what is below it, so that a search skips what cannot match.

// files is what the history needs of the shared mount.
type files interface {
	Create(ctx context.Context, name string, data []byte) error
	ReadAt(ctx context.Context, name string, off int64, n int) ([]byte, error)
	List(ctx context.Context, dir string) ([]mount.Entry, error)
	Remove(ctx context.Context, name string) error
}

// gaps are the errors of damaged files that a search went past.
type gaps []error

// pass notes an error that is about one file, and reports whether it is: what says
// nothing about the file ends a search, because it would meet every other one, too.
func (g *gaps) pass(ctx context.Context, err error) bool {
	if ctx.Err() != nil || errors.Is(err, mount.ErrUnavailable) {
		return false
	}
	*g = append(*g, err)
	return true
}

// note says what is missing in a list of what, and why; empty if nothing is. end is
// what ended the search, nil for nothing.
func (g gaps) note(what string, end error) string {
	var out []string
	if len(g) > 0 {
		out = append(out, fmt.Sprintf("%s in %d damaged files are missing here, the first: %v", what, len(g), g[0]))
	}
	if end != nil {
		out = append(out, fmt.Sprintf("older %s are missing here: %v", what, end))
	}
	return strings.Join(out, "; ")
}

// errHistory is returned when a part of the history cannot be read.
var errHistory = errors.New("the history cannot be read now")

// historyFormat is the version of the files.
const historyFormat = 1

// entry describes one file of the history.
type entry struct {
	Name   string `json:"name"` // on the mount
	Level  int    `json:"level,omitempty"`
	Digest string `json:"digest"` // SHA-256 of the file
	Size   int    `json:"size"`
	Count  int    `json:"count"` // of requests in it or below it
	// First and Last are the lowest and the highest id; From and To the times at
	// which the first and the last of them was asked for; Ended is when the last
	// one ended. Times are by the hosts that set them.
	First string      `json:"first"`
	Last  string      `json:"last"`
	From  roles.Stamp `json:"from"`
	To    roles.Stamp `json:"to"`
	Ended roles.Stamp `json:"ended"`
	// What occurs in it.
	Statuses  names `json:"statuses"`
	Processes names `json:"processes"`
	By        names `json:"by"`
	Agents    names `json:"agents,omitempty"`
}

// names is a sorted set, or anyName alone when it would be too large to tell
// anything.
type names []string

const (
	maxNames = 64
	anyName  = "*"
)

func (n names) may(name string) bool {
	return name == "" || len(n) == 1 && n[0] == anyName || slices.Contains(n, name)
}

func (n names) with(more ...string) names {
	for _, name := range more {
		if i, there := slices.BinarySearch(n, name); !there && name != "" && (len(n) != 1 || n[0] != anyName) {
			n = slices.Insert(n, i, name)
		}
		if name == anyName || len(n) > maxNames {
			return names{anyName}
		}
	}
	return n
}

// add takes in what an entry of one request or file says.
func (e *entry) add(o entry) {
	if e.Count == 0 {
		e.First, e.From = o.First, o.From
	}
	e.Count += o.Count
	e.First, e.Last = min(e.First, o.First), max(e.Last, o.Last)
	e.From, e.To, e.Ended = min(e.From, o.From), max(e.To, o.To), max(e.Ended, o.Ended)
	e.Statuses, e.Processes = e.Statuses.with(o.Statuses...), e.Processes.with(o.Processes...)
	e.By, e.Agents = e.By.with(o.By...), e.Agents.with(o.Agents...)
}

// may reports whether a finished request that the filter lets pass can be in or below
// it.
func (e *entry) may(f api.RequestFilter) bool {
	return !f.Open && e.Statuses.may(string(f.Status)) && e.Processes.may(f.Process) && e.By.may(f.By) && e.Agents.may(f.Agent) &&
		(f.From.IsZero() || e.To >= roles.StampOf(f.From)) && (f.To.IsZero() || e.From < roles.StampOf(f.To)) &&
		(f.Before == "" || e.First < f.Before)
}

// entryOf is the entry of one request.
func entryOf(s roles.State) entry {
	e := entry{
		Count: 1, First: s.Request.ID, Last: s.Request.ID, From: s.Request.RequestedAt, To: s.Request.RequestedAt,
		Ended: s.Record.FinishedAt, Statuses: names{string(s.Record.Status)}, Processes: names{s.Request.Process.Name},
	}
	e.By = e.By.with(s.Request.RequestedBy)
	for _, st := range s.Steps {
		e.Agents = e.Agents.with(st.Agent)
	}
	return e
}

// passes reports whether a filter lets a request pass.
func passes(f api.RequestFilter, s roles.State) bool {
	if f.Open && s.Record.Status.Final() {
		return false
	}
	f.Open = false
	e := entryOf(s)
	return e.may(f)
}

// archived is a request in the history: what was stored of it.
type archived struct {
	ID       string                     `json:"id"`
	Spec     json.RawMessage            `json:"spec"`
	Accepted int64                      `json:"accepted"` // revision
	Status   json.RawMessage            `json:"status"`
	Steps    map[string]json.RawMessage `json:"steps,omitempty"`
	Claim    claimRecord                `json:"claim"`
	ClaimMod int64                      `json:"claim_mod,omitempty"`
}

// load returns the request as loadRequest does.
func (a *archived) load() (roles.State, claimRecord, roles.Fence, error) {
	steps := make(map[string][]byte, len(a.Steps))
	for name, text := range a.Steps {
		steps[name] = text
	}
	fence := roles.Fence{}
	if a.ClaimMod != 0 {
		fence = roles.Fence{Generation: a.Claim.Generation, Revision: a.ClaimMod}
	}
	s, err := roles.Load(a.Spec, a.Status, steps, fence, a.Accepted)
	return s, a.Claim, fence, err
}

// encodeFile returns a file of the history with one JSON document in each line.
func encodeFile(level int, lines [][]byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(z, "{\"format\":%d,\"level\":%d}\n", historyFormat, level); err != nil {
		return nil, err
	}
	for _, line := range lines {
		if _, err := z.Write(append(slices.Clip(line), '\n')); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decodeFile is the reverse of encodeFile.
func decodeFile(data []byte, level int) ([][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(z)
	var lines [][]byte
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, bytes.TrimSuffix(line, []byte("\n")))
	}
	var head struct{ Format, Level int }
	if len(lines) == 0 {
		return nil, errors.New("it is empty")
	}
	if err := json.Unmarshal(lines[0], &head); err != nil {
		return nil, err
	}
	if head.Format != historyFormat || head.Level != level {
		return nil, fmt.Errorf("it has format %d and level %d, not %d and %d", head.Format, head.Level, historyFormat, level)
	}
	return lines[1:], nil
}

// seal names and describes a file with this data.
func (e *entry) seal(name string, data []byte) {
	sum := sha256.Sum256(data)
	e.Name, e.Digest, e.Size = name, hex.EncodeToString(sum[:]), len(data)
}

// archive reads the history. Safe for concurrent use.
type archive struct {
	files files

	mu     sync.Mutex // guards the following: files read lately, the oldest first
	recent []readFile
}

type readFile struct {
	digest string
	lines  [][]byte
}

// maxRecent bounds how many files are remembered.
const maxRecent = 16

// open returns the lines of a file, if it is the one that was registered.
func (a *archive) open(ctx context.Context, e entry) ([][]byte, error) {
	a.mu.Lock()
	for _, r := range a.recent {
		if r.digest == e.Digest {
			a.mu.Unlock()
			return r.lines, nil
		}
	}
	a.mu.Unlock()
	data, err := a.files.ReadAt(ctx, e.Name, 0, e.Size+1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", errHistory, err)
	}
	check := entry{}
	check.seal(e.Name, data)
	if check.Digest != e.Digest {
		return nil, fmt.Errorf("%w: %s was damaged: it is not the file that was written", errHistory, e.Name)
	}
	lines, err := decodeFile(data, e.Level)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errHistory, e.Name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.recent = append(a.recent, readFile{e.Digest, lines}); len(a.recent) > maxRecent {
		a.recent = slices.Delete(a.recent, 0, 1)
	}
	return lines, nil
}

// below returns the entries in a file that is not at the bottom.
func (a *archive) below(ctx context.Context, e entry) ([]entry, error) {
	lines, err := a.open(ctx, e)
	if err != nil {
		return nil, err
	}
	out := make([]entry, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal(line, &out[i]); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errHistory, e.Name, err)
		}
	}
	return out, nil
}

// requests returns the requests in a file at the bottom.
func (a *archive) requests(ctx context.Context, e entry) ([]archived, error) {
	lines, err := a.open(ctx, e)
	if err != nil {
		return nil, err
	}
	out := make([]archived, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal(line, &out[i]); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errHistory, e.Name, err)
		}
	}
	return out, nil
}

// events calls f with the events below entries, the newest first, until it returns
// false. It goes past damaged files and notes them.
func (a *archive) events(ctx context.Context, entries []entry, damaged *gaps, f func(api.Event) bool) (more bool, err error) {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(b.Last, a.Last) })
	for _, e := range entries {
		if e.Level > 0 {
			below, err := a.below(ctx, e)
			if err != nil && !damaged.pass(ctx, err) {
				return false, err
			}
			if more, err := a.events(ctx, below, damaged, f); !more || err != nil {
				return false, err
			}
			continue
		}
		lines, err := a.open(ctx, e)
		if err != nil && !damaged.pass(ctx, err) {
			return false, err
		}
		for _, line := range slices.Backward(lines) {
			var ev api.Event
			if err := json.Unmarshal(line, &ev); err != nil {
				damaged.pass(ctx, fmt.Errorf("%w: %s: %w", errHistory, e.Name, err))
				continue
			}
			if !f(ev) {
				return false, nil
			}
		}
	}
	return true, nil
}

// find looks for a request below entries; nil if there is none. It may be in any of
// several files; one that is damaged matters only if it is in no other.
func (a *archive) find(ctx context.Context, entries []entry, id string) (*archived, error) {
	var damaged gaps
	for _, e := range entries {
		if id < e.First || id > e.Last {
			continue
		}
		if e.Level > 0 {
			below, err := a.below(ctx, e)
			var found *archived
			if err == nil {
				found, err = a.find(ctx, below, id)
			}
			if err != nil && !damaged.pass(ctx, err) || found != nil {
				return found, err
			}
			continue
		}
		all, err := a.requests(ctx, e)
		if err != nil && !damaged.pass(ctx, err) {
			return nil, err
		}
		for i := range all {
			if all[i].ID == id {
				return &all[i], nil
			}
		}
	}
	return nil, errors.Join(damaged...)
}

// search yields the requests below entries that a filter lets pass, the newest
// first. It opens a file only when the newest that may be in it is next, and goes past
// damaged ones.
type search struct {
	a       *archive
	f       api.RequestFilter
	h       searchHeap
	damaged gaps
}

// searchItem is a file that was not opened, or a request.
type searchItem struct {
	id    string // the highest in it
	entry entry
	state *archivedState
}

type archivedState struct {
	state roles.State
	claim claimRecord
	fence roles.Fence
}

type searchHeap []searchItem

func (h searchHeap) Len() int { return len(h) }

// Less puts the highest id first, and of equal ones the request.
func (h searchHeap) Less(i, j int) bool {
	if h[i].id != h[j].id {
		return h[i].id > h[j].id
	}
	return h[i].state != nil && h[j].state == nil
}
func (h searchHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *searchHeap) Push(x any) { *h = append(*h, x.(searchItem)) } //nolint:forcetypeassert // only searchItems are pushed

// Pop implements heap.Interface.
func (h *searchHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (a *archive) search(entries []entry, f api.RequestFilter) *search {
	s := &search{a: a, f: f}
	s.push(entries)
	return s
}

func (s *search) push(entries []entry) {
	for _, e := range entries {
		if e.may(s.f) {
			heap.Push(&s.h, searchItem{id: e.Last, entry: e})
		}
	}
}

// peek returns the next request, nil if there is none. It stays the next one.
func (s *search) peek(ctx context.Context) (*archivedState, error) {
	for len(s.h) > 0 && s.h[0].state == nil {
		e := s.h[0].entry
		if e.Level > 0 {
			below, err := s.a.below(ctx, e)
			if err != nil && !s.damaged.pass(ctx, err) {
				return nil, err
			}
			heap.Pop(&s.h)
			s.push(below)
			continue
		}
		all, err := s.a.requests(ctx, e)
		if err != nil && !s.damaged.pass(ctx, err) {
			return nil, err
		}
		heap.Pop(&s.h)
		for i := range all {
			if s.f.Before != "" && all[i].ID >= s.f.Before {
				continue
			}
			st := &archivedState{}
			if st.state, st.claim, st.fence, err = all[i].load(); err != nil {
				s.damaged.pass(ctx, fmt.Errorf("%w: %s: %w", errHistory, e.Name, err))
				continue
			}
			if passes(s.f, st.state) {
				heap.Push(&s.h, searchItem{id: all[i].ID, state: st})
			}
		}
	}
	if len(s.h) == 0 {
		return nil, nil
	}
	return s.h[0].state, nil
}

// pop goes past the request that peek returned.
func (s *search) pop() { heap.Pop(&s.h) }

// registry returns the entries of requests or events, by prefix, that a snapshot
// shows, the lowest ids first.
func registry(snap coord.Snapshot, prefix string) ([]entry, error) {
	var out []entry
	for kv := range snap.Range(prefix) {
		e, err := decode[entry](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Or(strings.Compare(a.Last, b.Last), strings.Compare(a.Name, b.Name)) })
	return out, nil
}

// stateOf returns a request as loadRequest does, also from the history. Both are
// read at the revision of one snapshot, so a request that is being moved is found
// once.
func (c *Controller) stateOf(ctx context.Context, snap coord.Snapshot, id string) (roles.State, claimRecord, roles.Fence, error) {
	state, claim, fence, ok, err := loadRequest(snap, id)
	if ok || err != nil {
		return state, claim, fence, err
	}
	entries, err := registry(snap, prefixHistory)
	if err != nil {
		return state, claim, fence, err
	}
	found, err := c.archive.find(ctx, entries, id)
	switch {
	case err != nil:
		return state, claim, fence, fmt.Errorf("%w: request %s has ended and was moved to the shared mount, or there is none: %w", api.ErrUnavailable, id, err)
	case found == nil:
		return state, claim, fence, fmt.Errorf("%w: request %q", api.ErrNotFound, id)
	}
	return found.load()
}

// ListRequests lists requests, the newest first.
func (c *Controller) ListRequests(ctx context.Context, f api.RequestFilter) (api.RequestList, error) {
	snap := c.member.View().Snapshot()
	var ids []string
	for kv := range snap.Range(prefixRequests) {
		if id, rest := requestOf(kv.Key, prefixRequests); rest == "status" && (f.Before == "" || id < f.Before) {
			rec, err := decode[roles.Record](kv)
			if err != nil || f.Status != "" && rec.Status != f.Status || f.Open && rec.Status.Final() {
				continue
			}
			ids = append(ids, id)
		}
	}
	list := api.RequestList{Requests: []api.Request{}}
	entries, err := registry(snap, prefixHistory)
	if err != nil {
		return list, err
	}
	old := c.archive.search(entries, f)
	for {
		if f.Limit > 0 && len(list.Requests) == f.Limit {
			list.Next = list.Requests[f.Limit-1].ID
			return list, nil
		}
		var past *archivedState
		if old != nil {
			if past, err = old.peek(ctx); err != nil {
				if ctx.Err() != nil {
					return list, ctx.Err()
				}
			}
			list.Note = old.damaged.note("requests", err)
			if err != nil {
				old, past = nil, nil
			}
		}
		last := len(ids) - 1
		if past != nil && (last < 0 || past.state.Request.ID > ids[last]) {
			old.pop()
			list.Requests = append(list.Requests, c.view(snap, past.state, past.claim, past.fence))
			continue
		}
		if last < 0 {
			return list, nil
		}
		state, claim, fence, ok, err := loadRequest(snap, ids[last])
		ids = ids[:last]
		if err != nil {
			return list, err
		}
		if ok && passes(f, state) {
			list.Requests = append(list.Requests, c.view(snap, state, claim, fence))
		}
	}
}
