package faulttest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// good is a history in which nothing is wrong: one request with a step that
// failed once and one that was skipped, and a fail-over in the middle.
func good() History {
	zero := 0
	request := func(status, owner, fence string, build, deploy Step) Request {
		return Request{
			ID: "R1", Process: "p", Status: status, Owner: owner, Fence: fence,
			Steps: []Step{build, deploy, {Name: "undo", Status: "waiting"}},
		}
	}
	step := func(name, status string, attempt int) Step { return Step{Name: name, Status: status, Attempt: attempt} }
	done := request("succeeded", "", "1.20",
		Step{Name: "build", Status: "succeeded", Attempt: 2, Agent: "a1", ExitCode: &zero},
		Step{Name: "deploy", Status: "succeeded", Attempt: 1, Agent: "a1", ExitCode: &zero})
	done.Steps[2].Status = "skipped"
	return History{
		Calls: []Call{
			{Op: opAccept, Node: "c1", Key: "k1", Content: "p", Outcome: OutcomeUnknown, Began: 1, Ended: 5},
			{Op: opAccept, Node: "c2", Key: "k1", Content: "p", Request: "R1", Outcome: OutcomeOK, Began: 6, Ended: 9},
			{Op: opAccept, Node: "c1", Key: "k1", Content: "q", Outcome: OutcomeConflict, Began: 7, Ended: 12},
			{Op: opLookup, Node: "c1", Key: "k1", Request: "R1", Outcome: OutcomeOK, Began: 10, Ended: 11},
			{Op: opCancel, Node: "c1", Request: "R1", Outcome: OutcomeConflict, Began: 20, Ended: 21},
		},
		Processes: map[string]Process{"p": {Name: "p", Steps: []StepDef{
			{Name: "build"}, {Name: "deploy", Needs: []string{"build"}}, {Name: "undo", Needs: []string{"deploy"}, On: "failure"},
		}}},
		Views: []View{
			{"c1", request("running", "c1", "1.10", step("build", "running", 1), step("deploy", "waiting", 0))},
			{"c2", request("running", "c1", "1.10", step("build", "running", 1), step("deploy", "waiting", 0))},
			{"c1", request("running", "c1", "1.10", step("build", "ready", 1), step("deploy", "waiting", 0))},
			{"c2", request("running", "c2", "1.20", step("build", "running", 2), step("deploy", "waiting", 0))},
			{"c2", done},
		},
		Acting: []Acting{
			{"c1", 5, 0, 10 * time.Millisecond},
			{"c2", 15, 20 * time.Millisecond, 30 * time.Millisecond},
		},
		Ledger: []Entry{
			{Kind: entryStart, Request: "R1", Step: "build", Attempt: 1, PID: 100, Agent: "a1"},
			{Kind: entryEnd, Request: "R1", Step: "build", Attempt: 1, PID: 100, Agent: "a1", Code: 7},
			{Kind: entryStart, Request: "R1", Step: "build", Attempt: 2, PID: 101, Agent: "a1"},
			{Kind: entryEnd, Request: "R1", Step: "build", Attempt: 2, PID: 101, Agent: "a1"},
			{Kind: entryStart, Request: "R1", Step: "deploy", Attempt: 1, PID: 102, Agent: "a1"},
			{Kind: entryEnd, Request: "R1", Step: "deploy", Attempt: 1, PID: 102, Agent: "a1"},
		},
		Final: map[string]Request{"R1": done},
	}
}

// Each case breaks the good history in one way; exactly that must be found.
func TestPromises(t *testing.T) {
	one := 1
	final := func(h *History, f func(r *Request)) {
		r := h.Final["R1"]
		steps := append([]Step(nil), r.Steps...)
		r.Steps = steps
		f(&r)
		h.Final["R1"] = r
		h.Views = h.Views[:len(h.Views)-1] // else it would have changed
	}
	for _, tt := range []struct {
		name    string
		breakIt func(h *History)
		want    []string // of each error the name of the promise, and a part
	}{
		{"nothing", func(*History) {}, nil},

		{"request lost", func(h *History) {
			h.Calls = append(h.Calls, Call{Op: opAccept, Key: "k2", Request: "R2", Created: true, Outcome: OutcomeOK})
		}, []string{"1|R2 is gone"}},
		{"request stuck", func(h *History) {
			final(h, func(r *Request) { r.Status, r.Steps[1].Status, r.Steps[1].ExitCode = "running", "running", nil })
		}, []string{"1|R1 is still running"}},
		{"accepted twice", func(h *History) {
			h.Calls[1].Request, h.Calls[1].Created, h.Calls[1].Key = "R2", true, "k1"
			h.accept("R1")
		},
			[]string{"1|R2 is gone", "1|no order of these calls explains their answers"}},
		{"made by two calls", func(h *History) {
			h.Calls[1].Created = true
			h.Calls = append(h.Calls, Call{Op: opAccept, Key: "k1", Content: "p", Request: "R1", Created: true, Outcome: OutcomeOK, Began: 13, Ended: 14})
		}, []string{"1|no order"}},
		{"acknowledged and not found", func(h *History) { h.Calls[3].Outcome = OutcomeNotFound }, []string{"1|no order"}},
		{"not found while it was being accepted", func(h *History) { h.Calls[3].Outcome, h.Calls[3].Began = OutcomeNotFound, 8 }, nil},
		{"other content taken for the same", func(h *History) { h.Calls[2].Outcome, h.Calls[2].Request = OutcomeOK, "R1" }, []string{"1|no order"}},
		{"what is unknown may have happened or not", func(h *History) { h.Calls[1].Created = true }, nil},
		{"in doubt is kept", func(h *History) {
			final(h, func(r *Request) { r.Status, r.Steps[1].Status, r.Steps[1].ExitCode = "in_doubt", "in_doubt", nil })
		}, nil},

		{"two owners", func(h *History) { h.Views[1].Request.Owner = "c2"; h.Views = h.Views[:2] }, []string{"2|R1 with fence 1.10 has the owners c1 and c2"}},
		{"owner not known", func(h *History) { h.Views[1].Request.Owner = "" }, nil},
		{"fence falls", func(h *History) { h.Views[2].Request.Fence, h.Views[2].Request.Owner = "1.9", "" }, []string{"2|c1 showed R1 with fence 1.10 and then 1.9"}},
		{"generation falls", func(h *History) { h.Views[3].Request.Fence, h.Views[1].Request.Fence = "1.20", "2.1" },
			[]string{"2|c2 showed R1 with fence 2.1 and then 1.20"}},
		{"one term, two nodes", func(h *History) { h.Acting[1].Term = 5 }, []string{"2|term 5 was held by c1 and c2"}},
		{"old Active acts on", func(h *History) {
			h.Acting = append(h.Acting, Acting{"c1", 5, 31 * time.Millisecond, 40 * time.Millisecond})
		}, []string{"2|c1 acted in term 5 at 31ms, after c2 in term 15"}},
		{"answers that overlap prove nothing", func(h *History) { h.Acting[0].Ended = 21 * time.Millisecond; h.Acting[1].Began = 1 }, nil},

		{"two at once", func(h *History) {
			h.Ledger = append(h.Ledger, Entry{Kind: entryOverlap, Request: "R1", Step: "build", Attempt: 2, PID: 103, Agent: "a1"})
		}, []string{"3|R1/build/2 started while another attempt was alive"}},
		{"started twice", func(h *History) {
			h.Ledger = append(h.Ledger,
				Entry{Kind: entryStart, Request: "R1", Step: "deploy", Attempt: 1, PID: 103, Agent: "a1"},
				Entry{Kind: entryEnd, Request: "R1", Step: "deploy", Attempt: 1, PID: 103, Agent: "a1"})
		}, []string{"3|R1/deploy/1 started twice"}},
		{"retry without an end", func(h *History) { h.Ledger = append(h.Ledger[:1:1], h.Ledger[2:]...) },
			[]string{"3|R1/build/2 started"}},
		{"retry of what never started", func(h *History) { h.Ledger = h.Ledger[2:] }, nil},
		{"an attempt after a higher one", func(h *History) { h.Ledger = append(h.Ledger[2:4:4], append(h.Ledger[:2:2], h.Ledger[4:]...)...) },
			[]string{"3|R1/build/2 started though", "3|R1/build/1 started after attempt 2 had"}},
		{"after what could not be prepared", func(h *History) {
			h.Ledger = h.Ledger[4:]
			final(h, func(r *Request) { r.Steps[0].Status, r.Steps[0].ExitCode = "failed", nil })
		}, nil},
		{"retry of a repeatable step", func(h *History) {
			h.Ledger = append(h.Ledger[:1:1], h.Ledger[2:]...)
			h.Processes["p"].Steps[0].Repeatable = true
		}, nil},
		{"wrong order", func(h *History) { h.Ledger = append(h.Ledger[4:6:6], h.Ledger[:4]...) },
			[]string{"3|R1/deploy/1 started before build"}},

		{"wrong exit code", func(h *History) {
			final(h, func(r *Request) { r.Steps[1].Status, r.Steps[1].ExitCode = "failed", &one })
		},
			[]string{"4|R1/deploy/1 is said to have exited with 1, but did with 0"}},
		{"end that did not happen", func(h *History) { h.Ledger = h.Ledger[:5] }, []string{"4|R1/deploy/1 is said to have exited with 0, but did not end"}},
		{"success without an exit code", func(h *History) { final(h, func(r *Request) { r.Steps[1].ExitCode = nil }) },
			[]string{"4|R1/deploy/1 is said to have succeeded without an exit code"}},
		{"ran elsewhere", func(h *History) { h.Ledger[4].Agent = "a2" }, []string{"4|R1/deploy/1 is said to have run on a1, but did on a2"}},
		{"skipped, but ran", func(h *History) {
			final(h, func(r *Request) { r.Steps[1].Status, r.Steps[1].ExitCode = "skipped", nil })
		},
			[]string{"4|R1/deploy/1 is said to be skipped, but started"}},
		{"attempt that nobody knows of", func(h *History) {
			final(h, func(r *Request) { r.Steps[0].Attempt = 1; r.Steps[0].Status, r.Steps[0].ExitCode = "in_doubt", nil })
		},
			[]string{"4|R1/build/2 started, but the cluster knows only of attempt 1"}},
		{"ghost", func(h *History) {
			h.Ledger = append(h.Ledger, Entry{Kind: entryStart, Request: "R9", Step: "build", Attempt: 1, PID: 200, Agent: "a1"})
		}, []string{"4|R9/build/1 ran, but the cluster knows of no such request"}},

		{"final status changed", func(h *History) {
			r := h.Final["R1"]
			r.Status = "failed"
			h.Final = map[string]Request{"R1": r}
		}, []string{"4|R1 was succeeded"}},
		{"final request came back to life", func(h *History) {
			r := h.Views[3].Request
			r.Fence = "1.20"
			h.Views = append(h.Views, View{"c2", r})
		}, []string{
			"5|c2 showed R1 as succeeded and then as running",
			"5|c2 showed step build of R1 as succeeded of attempt 2 and then as running of attempt 2",
			"5|c2 showed step deploy of R1 as succeeded of attempt 1 and then as waiting of attempt 0",
			"5|c2 showed step undo of R1 as skipped of attempt 0 and then as waiting of attempt 0",
		}},
		{"attempt went back", func(h *History) {
			r := h.Views[2].Request
			r.Owner, r.Fence = "c2", "1.20"
			h.Views = append(h.Views[:4:4], View{"c2", r})
		}, []string{"5|c2 showed step build of R1 as running of attempt 2 and then as ready of attempt 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := good()
			tt.breakIt(&h)
			var got []string
			if err := h.Validate(); err != nil {
				got = strings.Split(strings.ReplaceAll(err.Error(), "\n\t", " "), "\n")
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %d broken promises, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, want := range tt.want {
				promise, part, _ := strings.Cut(want, "|")
				if !strings.HasPrefix(got[i], "BROKEN PROMISE "+promise+".") || !strings.Contains(got[i], part) {
					t.Errorf("got %q, want promise %q, %q", got[i], promise, part)
				}
			}
		})
	}
}

// accept adds a call that was told of a request that exists.
func (h *History) accept(id string) {
	h.Calls = append(h.Calls, Call{Op: opAccept, Key: "k1", Content: "p", Request: id, Outcome: OutcomeOK, Began: 30, Ended: 31})
}

// The texts of the promises are those of the document.
func TestPromisesAreThoseOfTheDocument(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "GUARANTEES.md"))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range Promises() {
		if line := fmt.Sprintf("\n%d. **%s.** %s\n", i+1, p.Name, p.Text); p.Number != i+1 || !strings.Contains(string(doc), line) {
			t.Errorf("docs/GUARANTEES.md does not have this promise: %s", line)
		}
	}
}

func TestHistoryIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.json")
	if err := good().save(path); err != nil {
		t.Fatal(err)
	}
	got, err := loadHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(good(), got); diff != "" {
		t.Error(diff)
	}
}

func TestOutcome(t *testing.T) {
	for status, want := range map[int]Outcome{
		200: OutcomeOK, 201: OutcomeOK, 404: OutcomeNotFound, 409: OutcomeConflict, 422: OutcomeRefused, 500: OutcomeUnknown, 503: OutcomeUnknown,
	} {
		if got := outcome(status, nil); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
	if got := outcome(200, io.ErrUnexpectedEOF); got != OutcomeUnknown {
		t.Errorf("half an answer is %s", got)
	}
}

func TestParseLedger(t *testing.T) {
	got, err := parseLedger(strings.NewReader("start R1 build 1 100 a1 7.25 0\nend R1 build 1 100 a1 8.50 7\n"))
	if err != nil || len(got) != 2 || got[1] != (Entry{entryEnd, "R1", "build", 1, 100, "a1", 8.5, 7}) {
		t.Errorf("parseLedger: %v, %v", got, err)
	}
	for _, bad := range []string{"start R1 build\n", "begin R1 build 1 100 a1 7.25 0\n", "\n"} {
		if got, err := parseLedger(strings.NewReader(bad)); err == nil {
			t.Errorf("parseLedger(%q) = %v, want an error", bad, got)
		}
	}
}
