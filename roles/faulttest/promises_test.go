package faulttest

import (
	"strings"
	"testing"
	"time"
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
		Step{Name: "build", Status: "succeeded", Attempt: 2, ExitCode: &zero},
		Step{Name: "deploy", Status: "succeeded", Attempt: 1, ExitCode: &zero})
	done.Steps[2].Status = "skipped"
	return History{
		Accepted: []string{"R1"},
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
			{Kind: entryStart, Request: "R1", Step: "build", Attempt: 1, PID: 100},
			{Kind: entryEnd, Request: "R1", Step: "build", Attempt: 1, PID: 100, Code: 7},
			{Kind: entryStart, Request: "R1", Step: "build", Attempt: 2, PID: 101},
			{Kind: entryEnd, Request: "R1", Step: "build", Attempt: 2, PID: 101},
			{Kind: entryStart, Request: "R1", Step: "deploy", Attempt: 1, PID: 102},
			{Kind: entryEnd, Request: "R1", Step: "deploy", Attempt: 1, PID: 102},
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

		{"request lost", func(h *History) { h.Accepted = append(h.Accepted, "R2") }, []string{"accepted is kept|R2 is gone"}},
		{"request stuck", func(h *History) {
			final(h, func(r *Request) { r.Status, r.Steps[1].Status, r.Steps[1].ExitCode = "running", "running", nil })
		}, []string{"accepted is kept|R1 is still running"}},
		{"in doubt is kept", func(h *History) {
			final(h, func(r *Request) { r.Status, r.Steps[1].Status, r.Steps[1].ExitCode = "in_doubt", "in_doubt", nil })
		}, nil},

		{"two owners", func(h *History) { h.Views[1].Request.Owner = "c2"; h.Views = h.Views[:2] }, []string{"one owner|R1 with fence 1.10 has the owners c1 and c2"}},
		{"owner not known", func(h *History) { h.Views[1].Request.Owner = "" }, nil},
		{"fence falls", func(h *History) { h.Views[2].Request.Fence, h.Views[2].Request.Owner = "1.9", "" }, []string{"one owner|c1 showed R1 with fence 1.10 and then 1.9"}},
		{"generation falls", func(h *History) { h.Views[3].Request.Fence, h.Views[1].Request.Fence = "1.20", "2.1" },
			[]string{"one owner|c2 showed R1 with fence 2.1 and then 1.20"}},
		{"one term, two nodes", func(h *History) { h.Acting[1].Term = 5 }, []string{"one owner|term 5 was held by c1 and c2"}},
		{"old Active acts on", func(h *History) {
			h.Acting = append(h.Acting, Acting{"c1", 5, 31 * time.Millisecond, 40 * time.Millisecond})
		}, []string{"one owner|c1 acted in term 5 at 31ms, after c2 in term 15"}},
		{"answers that overlap prove nothing", func(h *History) { h.Acting[0].Ended = 21 * time.Millisecond; h.Acting[1].Began = 1 }, nil},

		{"two at once", func(h *History) {
			h.Ledger = append(h.Ledger, Entry{Kind: entryOverlap, Request: "R1", Step: "build", Attempt: 2, PID: 103})
		}, []string{"no overlap, no second start|R1/build/2 started while another attempt was alive"}},
		{"started twice", func(h *History) {
			h.Ledger = append(h.Ledger,
				Entry{Kind: entryStart, Request: "R1", Step: "deploy", Attempt: 1, PID: 103},
				Entry{Kind: entryEnd, Request: "R1", Step: "deploy", Attempt: 1, PID: 103})
		}, []string{"no overlap, no second start|R1/deploy/1 started twice"}},
		{"retry without an end", func(h *History) { h.Ledger = append(h.Ledger[:1:1], h.Ledger[2:]...) },
			[]string{"a new attempt|R1/build/2 started"}},
		{"retry of a repeatable step", func(h *History) {
			h.Ledger = append(h.Ledger[:1:1], h.Ledger[2:]...)
			h.Processes["p"].Steps[0].Repeatable = true
		}, nil},
		{"wrong order", func(h *History) { h.Ledger = append(h.Ledger[4:6:6], h.Ledger[:4]...) },
			[]string{"steps keep their order|R1/deploy/1 started before build"}},

		{"wrong exit code", func(h *History) {
			final(h, func(r *Request) { r.Steps[1].Status, r.Steps[1].ExitCode = "failed", &one })
		},
			[]string{"truthful ending|R1/deploy/1 is said to have exited with 1, but did with 0"}},
		{"end that did not happen", func(h *History) { h.Ledger = h.Ledger[:5] }, []string{"truthful ending|R1/deploy/1 is said to have exited with 0, but did not end"}},
		{"success without an exit code", func(h *History) { final(h, func(r *Request) { r.Steps[1].ExitCode = nil }) },
			[]string{"truthful ending|R1/deploy/1 is said to have succeeded without an exit code"}},
		{"skipped, but ran", func(h *History) {
			final(h, func(r *Request) { r.Steps[1].Status, r.Steps[1].ExitCode = "skipped", nil })
		},
			[]string{"truthful ending|R1/deploy/1 is said to be skipped, but started"}},
		{"attempt that nobody knows of", func(h *History) {
			final(h, func(r *Request) { r.Steps[0].Attempt = 1; r.Steps[0].Status, r.Steps[0].ExitCode = "in_doubt", nil })
		},
			[]string{"truthful ending|R1/build/2 started, but the cluster knows only of attempt 1"}},
		{"ghost", func(h *History) {
			h.Ledger = append(h.Ledger, Entry{Kind: entryStart, Request: "R9", Step: "build", Attempt: 1, PID: 200})
		}, []string{"truthful ending|R9/build/1 ran, but the cluster knows of no such request"}},

		{"final status changed", func(h *History) {
			r := h.Final["R1"]
			r.Status = "failed"
			h.Final = map[string]Request{"R1": r}
		}, []string{"a final status|R1 was succeeded"}},
		{"final request came back to life", func(h *History) {
			r := h.Views[3].Request
			r.Fence = "1.20"
			h.Views = append(h.Views, View{"c2", r})
		}, []string{
			"fenced|c2 showed R1 as succeeded and then as running",
			"fenced|c2 showed step build of R1 as succeeded of attempt 2 and then as running of attempt 2",
			"fenced|c2 showed step deploy of R1 as succeeded of attempt 1 and then as waiting of attempt 0",
			"fenced|c2 showed step undo of R1 as skipped of attempt 0 and then as waiting of attempt 0",
		}},
		{"attempt went back", func(h *History) {
			r := h.Views[2].Request
			r.Owner, r.Fence = "c2", "1.20"
			h.Views = append(h.Views[:4:4], View{"c2", r})
		}, []string{"fenced|c2 showed step build of R1 as running of attempt 2 and then as ready of attempt 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := good()
			tt.breakIt(&h)
			var got []string
			if err := h.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %d broken promises, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, want := range tt.want {
				promise, part, _ := strings.Cut(want, "|")
				if !strings.HasPrefix(got[i], "BROKEN PROMISE: "+promise) || !strings.Contains(got[i], part) {
					t.Errorf("got %q, want promise %q, %q", got[i], promise, part)
				}
			}
		})
	}
}

func TestParseLedger(t *testing.T) {
	got, err := parseLedger(strings.NewReader("start R1 build 1 100 0\nend R1 build 1 100 7\n"))
	if err != nil || len(got) != 2 || got[1] != (Entry{entryEnd, "R1", "build", 1, 100, 7}) {
		t.Errorf("parseLedger: %v, %v", got, err)
	}
	for _, bad := range []string{"start R1 build\n", "begin R1 build 1 100 0\n", "\n"} {
		if got, err := parseLedger(strings.NewReader(bad)); err == nil {
			t.Errorf("parseLedger(%q) = %v, want an error", bad, got)
		}
	}
}
