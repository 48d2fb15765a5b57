package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"uac/codestation/mount"
	"uac/roles"
	"uac/roles/controller/api"
)

// memory is a mount in memory that counts what is read.
type memory struct {
	all   map[string][]byte
	reads int
}

func (m *memory) Create(_ context.Context, name string, data []byte) error {
	if m.all[name] != nil {
		return fs.ErrExist
	}
	m.all[name] = data
	return nil
}

func (m *memory) ReadAt(_ context.Context, name string, off int64, n int) ([]byte, error) {
	m.reads++
	data, ok := m.all[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if off != 0 || n <= len(data) {
		return nil, errors.New("only whole files are read")
	}
	return data, io.EOF
}

func (m *memory) List(context.Context, string) ([]mount.Entry, error) { return nil, fs.ErrNotExist }
func (m *memory) Remove(context.Context, string) error                { return fs.ErrNotExist }

// library is a history in memory, with what is in it.
type library struct {
	*memory
	archive *archive
	entries []entry
	states  []roles.State // the newest first
}

// month is the first moment of a month.
func month(i int) time.Time { return time.Date(2026, time.Month(i+1), 1, 0, 0, 0, 0, time.UTC) }

// id is the i-th id.
func idOf(i int) string { return fmt.Sprintf("01%024d", i) }

// newLibrary fills one with requests in files of size each; many of those make one
// of the next level. shape says what the i-th request is.
func newLibrary(t testing.TB, count, size int, shape func(i int) (process, by, agent string, at time.Time, status roles.RequestStatus)) *library {
	t.Helper()
	l := &library{memory: &memory{all: map[string][]byte{}}}
	l.archive = &archive{files: l.memory}
	write := func(e entry, lines [][]byte) entry {
		data, err := encodeFile(e.Level, lines)
		if err != nil {
			t.Fatal(err)
		}
		e.seal(fmt.Sprintf("f%d", len(l.all)), data)
		if err := l.Create(t.Context(), e.Name, data); err != nil {
			t.Fatal(err)
		}
		return e
	}
	var e entry
	var lines [][]byte
	for i := range count {
		name, by, agent, at, status := shape(i)
		p := process(name, step("one", agent))
		r, err := roles.NewRequest(&p, roles.RequestOptions{ID: idOf(i), RequestedBy: by, RequestedAt: roles.StampOf(at)})
		if err != nil {
			t.Fatal(err)
		}
		spec, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		a := archived{ID: r.ID, Spec: spec, Accepted: 1,
			Status: encode(roles.Record{Status: status, FinishedAt: roles.StampOf(at)}),
			Steps:  map[string]json.RawMessage{"one": encode(roles.Step{Name: "one", Status: roles.StepSucceeded, Agent: agent, Attempt: 1})}}
		state, _, _, err := a.load()
		if err != nil {
			t.Fatal(err)
		}
		l.states = append(l.states, state)
		e.add(entryOf(state))
		if lines = append(lines, encode(a)); len(lines) == size || i == count-1 {
			l.entries = append(l.entries, write(e, lines))
			e, lines = entry{}, nil
		}
	}
	slices.Reverse(l.states)
	for level := 1; len(l.entries) > fanout; level++ {
		var up []entry
		for chunk := range slices.Chunk(l.entries, fanout) {
			e, lines := entry{Level: level}, [][]byte(nil)
			for _, one := range chunk {
				e.add(one)
				lines = append(lines, encode(one))
			}
			up = append(up, write(e, lines))
		}
		l.entries = up
	}
	return l
}

// search returns the ids that a search finds.
func (l *library) search(t testing.TB, f api.RequestFilter) (ids []string) {
	t.Helper()
	s := l.archive.search(l.entries, f)
	for f.Limit == 0 || len(ids) < f.Limit {
		next, err := s.peek(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			break
		}
		ids = append(ids, next.state.Request.ID)
		s.pop()
	}
	return ids
}

// want returns the ids that it should find.
func (l *library) want(f api.RequestFilter) (ids []string) {
	for _, s := range l.states {
		if passes(f, s) && (f.Limit == 0 || len(ids) < f.Limit) {
			ids = append(ids, s.Request.ID)
		}
	}
	return ids
}

// A search finds exactly what passes its filter, the newest first, in whatever
// files it is.
func TestSearchFindsWhatPasses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		of := func(name string, all ...string) func(int) string {
			picks := rapid.SliceOfN(rapid.SampledFrom(all), 40, 40).Draw(rt, name)
			return func(i int) string { return picks[i%len(picks)] }
		}
		processes, by, agents := of("processes", "p", "q", "r"), of("by", "ann", "bob"), of("agents", "a1", "a2", "a3")
		statuses := of("statuses", "succeeded", "failed", "cancelled")
		months := rapid.SliceOfN(rapid.IntRange(0, 11), 40, 40).Draw(rt, "months")
		l := newLibrary(t, rapid.IntRange(0, 60).Draw(rt, "count"), rapid.IntRange(1, 7).Draw(rt, "size"),
			func(i int) (string, string, string, time.Time, roles.RequestStatus) {
				return processes(i), by(i), agents(i), month(months[i%40]), roles.RequestStatus(statuses(i))
			})
		f := api.RequestFilter{
			Process: rapid.SampledFrom([]string{"", "p", "r", "x"}).Draw(rt, "process"),
			By:      rapid.SampledFrom([]string{"", "ann"}).Draw(rt, "who"),
			Agent:   rapid.SampledFrom([]string{"", "a2"}).Draw(rt, "agent"),
			Status:  rapid.SampledFrom([]roles.RequestStatus{"", "failed", "running"}).Draw(rt, "status"),
			Limit:   rapid.IntRange(0, 9).Draw(rt, "limit"),
			Open:    rapid.IntRange(0, 9).Draw(rt, "open") == 0,
		}
		if rapid.Bool().Draw(rt, "from") {
			f.From = month(rapid.IntRange(0, 11).Draw(rt, "first month"))
		}
		if rapid.Bool().Draw(rt, "to") {
			f.To = month(rapid.IntRange(0, 11).Draw(rt, "last month"))
		}
		if rapid.Bool().Draw(rt, "before") {
			f.Before = idOf(rapid.IntRange(0, 60).Draw(rt, "id"))
		}
		if diff := cmp.Diff(l.want(f), l.search(t, f)); diff != "" {
			rt.Errorf("%+v: %s", f, diff)
		}
	})
}

// Files that cannot hold what is looked for are not read, however many there are.
func TestSearchReadsLittle(t *testing.T) {
	const count, size = 20_000, 20 // 1000 files, 16 above them
	l := newLibrary(t, count, size, func(i int) (string, string, string, time.Time, roles.RequestStatus) {
		name := fmt.Sprintf("p%d", i%30)
		if i == 5000 {
			name = "rare"
		}
		return name, "ann", "a1", month(0).Add(time.Duration(i) * time.Minute), roles.RequestSucceeded
	})
	for _, tt := range []struct {
		name string
		f    api.RequestFilter
		find int
		most int // files read
	}{
		{"newest", api.RequestFilter{Limit: 50}, 50, 1 + 3},
		{"a page in the middle", api.RequestFilter{Limit: 50, Before: idOf(count / 2)}, 50, 1 + 3},
		{"rare process", api.RequestFilter{Process: "rare"}, 1, 2},
		{"no such process", api.RequestFilter{Process: "none"}, 0, 0},
		{"another status", api.RequestFilter{Status: roles.RequestFailed}, 0, 0},
		{"another agent", api.RequestFilter{Agent: "a2"}, 0, 0},
		{"an hour", api.RequestFilter{From: month(0).Add(1000 * time.Minute), To: month(0).Add(1060 * time.Minute)}, 60, 1 + 4},
		{"open ones", api.RequestFilter{Open: true}, 0, 0},
	} {
		l.archive.recent, l.reads = nil, 0
		if got := l.search(t, tt.f); len(got) != tt.find || l.reads > tt.most {
			t.Errorf("%s: %d found in %d files, want %d in at most %d", tt.name, len(got), l.reads, tt.find, tt.most)
		}
	}
	l.archive.recent, l.reads = nil, 0
	found, err := l.archive.find(t.Context(), l.entries, idOf(7777))
	if err != nil || found == nil || found.ID != idOf(7777) || l.reads > 2 {
		t.Errorf("one request: %v, %v in %d files", found, err, l.reads)
	}
	if found, err := l.archive.find(t.Context(), l.entries, "01ZZZZZZZZZZZZZZZZZZZZZZZZ"); found != nil || err != nil {
		t.Errorf("no request: %v, %v", found, err)
	}
}

func TestNames(t *testing.T) {
	var n names
	n = n.with("b", "a", "b", "")
	if diff := cmp.Diff(names{"a", "b"}, n); diff != "" {
		t.Error(diff)
	}
	if !n.may("a") || n.may("c") || !n.may("") {
		t.Error("may")
	}
	for i := range maxNames {
		n = n.with(fmt.Sprint(i))
	}
	if !n.may("whatever") || len(n) != 1 {
		t.Errorf("too many names are %v", n)
	}
	if n = n.with("z"); len(n) != 1 || !names(nil).with(n...).may("whatever") {
		t.Errorf("and stay %v", n)
	}
}

func TestFilesOfTheHistory(t *testing.T) {
	lines := [][]byte{[]byte(`{"a":1}`), []byte(`{"b":"` + strings.Repeat("x", 100_000) + `"}`)}
	data, err := encodeFile(1, lines)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeFile(data, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines, got); diff != "" {
		t.Error(diff)
	}
	if _, err := decodeFile(data, 0); err == nil {
		t.Error("a file of another level is read")
	}
	for _, bad := range [][]byte{nil, []byte("x"), data[:len(data)-3], bytes.Repeat([]byte{0}, 30)} {
		if _, err := decodeFile(bad, 1); err == nil {
			t.Errorf("%d bytes of rubbish are read", len(bad))
		}
	}
}
