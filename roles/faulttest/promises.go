package faulttest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Promise is one of those of docs/GUARANTEES.md, as checks of a history.
type Promise struct {
	Number int
	Name   string
	Text   string
	Checks []func(History) []string // each tells what broke the promise
}

// Promises are those that a history of requests can show. Triggers, artifacts,
// notifications and access have tests of their own.
func Promises() []Promise {
	return []Promise{
		{
			1, "Accepted is kept",
			"A request that was acknowledged to a client reaches a final status, or rests *in doubt* for an operator, once the cluster has been healthy for a while.",
			[]func(History) []string{acceptedIsKept, acceptedOnce},
		},
		{
			2, "One owner",
			"At no time do two controllers own a request, and epochs only grow.",
			[]func(History) []string{oneOwner, oneActive},
		},
		{
			3, "No overlap, no second start",
			"Two attempts of one step never run at the same time, and an attempt starts at most once. A new attempt follows only a known end of the one before, or an unknown end if the step says `repeatable: true` or an operator says so.",
			[]func(History) []string{noOverlap, knownEnds, keepsOrder},
		},
		{
			4, "Truthful ending",
			"A reported exit is what the process did. What is unknown is reported as unknown. A final status of a request never changes; a step that has ended begins anew only by an operator's rerun, as another attempt.",
			[]func(History) []string{truthfulEnding, finalIsFinal},
		},
		{
			5, "Fenced",
			"No write of an old term or session is applied after the first write of a newer one.",
			[]func(History) []string{neverGoesBack},
		},
	}
}

// Validate returns every broken promise.
func (h History) Validate() error {
	var errs []error
	for _, p := range Promises() {
		for _, check := range p.Checks {
			for _, what := range check(h) {
				errs = append(errs, fmt.Errorf("BROKEN PROMISE %d. %s. %s: %s", p.Number, p.Name, p.Text, what))
			}
		}
	}
	return errors.Join(errs...)
}

func acceptedIsKept(h History) (broken []string) {
	for _, id := range h.accepted() {
		switch r, ok := h.Final[id]; {
		case !ok:
			broken = append(broken, id+" is gone")
		case !r.rests():
			broken = append(broken, fmt.Sprintf("%s is still %s: %s", id, r.Status, r.where()))
		}
	}
	return broken
}

func oneOwner(h History) (broken []string) {
	// A fence belongs to one owner for ever. A reader that sees the owner's
	// session gone names none.
	owners := map[string]string{}
	for _, v := range h.Views {
		if v.Request.Fence == "" || v.Request.Owner == "" {
			continue
		}
		key := v.Request.ID + " with fence " + v.Request.Fence
		if other, known := owners[key]; known && other != v.Request.Owner {
			broken = append(broken, fmt.Sprintf("%s has the owners %s and %s", key, other, v.Request.Owner))
		}
		owners[key] = v.Request.Owner
	}
	// Fences grow in every controller's eyes.
	last := map[[2]string]Request{}
	for _, v := range h.Views {
		key := [2]string{v.Source, v.Request.ID}
		if old, seen := last[key]; seen && compareFences(old.Fence, v.Request.Fence) > 0 {
			broken = append(broken, fmt.Sprintf("%s showed %s with fence %s and then %s", v.Source, v.Request.ID, old.Fence, v.Request.Fence))
		}
		last[key] = v.Request
	}
	return broken
}

// oneActive looks at terms: each belongs to one node, and who has heard of a newer
// one acts no more.
func oneActive(h History) (broken []string) {
	nodes := map[int64]string{}
	for _, a := range h.Acting {
		if other, known := nodes[a.Term]; known && other != a.Node {
			broken = append(broken, fmt.Sprintf("term %d was held by %s and %s", a.Term, other, a.Node))
		}
		nodes[a.Term] = a.Node
	}
	for _, then := range h.Acting {
		i := slices.IndexFunc(h.Acting, func(first Acting) bool { return first.Ended < then.Began && first.Term > then.Term })
		if i >= 0 {
			first := h.Acting[i]
			broken = append(broken, fmt.Sprintf("%s acted in term %d at %v, after %s in term %d at %v",
				then.Node, then.Term, then.Began, first.Node, first.Term, first.Ended))
		}
	}
	return broken
}

// compareFences orders fences as agents do: by generation, then by revision.
// None is below all others.
func compareFences(a, b string) int {
	parse := func(s string) (g, r uint64) {
		_, _ = fmt.Sscanf(s, "%d.%d", &g, &r) // none stays 0.0
		return g, r
	}
	ag, ar := parse(a)
	bg, br := parse(b)
	return cmp.Or(cmp.Compare(ag, bg), cmp.Compare(ar, br))
}

func noOverlap(h History) (broken []string) {
	starts := map[string]int{}
	running := map[string]Entry{} // by request and step
	for _, e := range h.Ledger {
		step := e.Request + "/" + e.Step
		switch e.Kind {
		case entryOverlap:
			broken = append(broken, e.attempt()+" started while another attempt was alive")
		case entryStart:
			if starts[e.attempt()]++; starts[e.attempt()] == 2 {
				broken = append(broken, e.attempt()+" started twice")
			}
			running[step] = e
		case entryEnd:
			if r, ok := running[step]; !ok || r.PID != e.PID {
				broken = append(broken, fmt.Sprintf("%s ended as process %d, but %v runs", e.attempt(), e.PID, r))
			}
			delete(running, step)
		}
	}
	return broken
}

func knownEnds(h History) (broken []string) {
	started := h.started()
	ended := map[string]bool{}
	highest := map[string]int{} // attempt, by request and step
	for _, e := range h.Ledger {
		if e.Kind == entryEnd {
			ended[e.attempt()] = true
		}
		if e.Kind != entryStart {
			continue
		}
		step := e.Request + "/" + e.Step
		if e.Attempt < highest[step] {
			broken = append(broken, fmt.Sprintf("%s started after attempt %d had", e.attempt(), highest[step]))
		}
		highest[step] = max(highest[step], e.Attempt)
		if e.Attempt == 1 {
			continue
		}
		before := e
		before.Attempt--
		// What never started has a known end: it never will.
		if started[before.attempt()] && !ended[before.attempt()] && !h.step(e).Repeatable {
			broken = append(broken, fmt.Sprintf("%s started though nobody could know how attempt %d had ended", e.attempt(), before.Attempt))
		}
	}
	return broken
}

// started are all attempts that ever started.
func (h History) started() map[string]bool {
	all := map[string]bool{}
	for _, e := range h.Ledger {
		if e.Kind == entryStart {
			all[e.attempt()] = true
		}
	}
	return all
}

// neverRan reports whether a step is said to have come to an end without having
// run, for instance because there was no room to prepare it, and no attempt of it
// ever started.
func (h History) neverRan(request, step string) bool {
	st := h.Final[request].step(step)
	started := slices.ContainsFunc(h.Ledger, func(e Entry) bool {
		return e.Kind == entryStart && e.Request == request && e.Step == step
	})
	return !started && st.ExitCode == nil && (st.Status == "failed" || st.Status == "skipped" || st.Status == "cancelled")
}

func keepsOrder(h History) (broken []string) {
	ended := map[string]bool{} // by request and step, whatever the attempt
	for _, e := range h.Ledger {
		switch e.Kind {
		case entryEnd:
			ended[e.Request+"/"+e.Step] = true
		case entryStart:
			for _, need := range h.step(e).Needs {
				if !ended[e.Request+"/"+need] && !h.neverRan(e.Request, need) {
					broken = append(broken, fmt.Sprintf("%s started before %s had ended", e.attempt(), need))
				}
			}
		}
	}
	return broken
}

func truthfulEnding(h History) (broken []string) {
	started, codes, agents := map[string]bool{}, map[string]int{}, map[string]string{}
	for _, e := range h.Ledger {
		switch e.Kind {
		case entryStart:
			started[e.attempt()] = true
			agents[e.attempt()] = e.Agent
		case entryEnd:
			codes[e.attempt()] = e.Code
		}
		if _, known := h.Final[e.Request]; !known {
			broken = append(broken, fmt.Sprintf("%s ran, but the cluster knows of no such request", e.attempt()))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(h.Final)) {
		for _, st := range h.Final[id].Steps {
			a := Entry{Request: id, Step: st.Name, Attempt: st.Attempt}.attempt()
			code, ended := codes[a]
			if agent, ran := agents[a]; ran && agent != st.Agent {
				broken = append(broken, fmt.Sprintf("%s is said to have run on %s, but did on %s", a, st.Agent, agent))
			}
			switch st.Status {
			case "succeeded", "failed":
				switch {
				case st.ExitCode != nil && !ended:
					broken = append(broken, fmt.Sprintf("%s is said to have exited with %d, but did not end", a, *st.ExitCode))
				case st.ExitCode != nil && code != *st.ExitCode:
					broken = append(broken, fmt.Sprintf("%s is said to have exited with %d, but did with %d", a, *st.ExitCode, code))
				case st.ExitCode == nil && st.Status == "succeeded":
					broken = append(broken, a+" is said to have succeeded without an exit code")
				case st.Status == "succeeded" && code != 0:
					broken = append(broken, fmt.Sprintf("%s is said to have succeeded, but exited with %d", a, code))
				}
			case "skipped", "waiting", "ready", "held":
				if started[a] && st.Attempt > 0 {
					broken = append(broken, fmt.Sprintf("%s is said to be %s, but started", a, st.Status))
				}
			}
			next := Entry{Request: id, Step: st.Name, Attempt: st.Attempt + 1}.attempt()
			if started[next] {
				broken = append(broken, fmt.Sprintf("%s started, but the cluster knows only of attempt %d", next, st.Attempt))
			}
		}
	}
	return broken
}

// finalIsFinal compares whatever was once shown as final with the end.
func finalIsFinal(h History) (broken []string) {
	for _, v := range h.Views {
		end, known := h.Final[v.Request.ID]
		if !v.Request.final() {
			continue
		}
		if !known {
			broken = append(broken, fmt.Sprintf("%s was %s and is gone", v.Request.ID, v.Request.Status))
		} else if was, is := v.Request.where(), end.where(); was != is || end.Status != v.Request.Status {
			broken = append(broken, fmt.Sprintf("%s was %s (%s) at %s and became %s (%s)", v.Request.ID, v.Request.Status, was, v.Source, end.Status, is))
		}
	}
	return broken
}

// neverGoesBack looks for changes that undo what the same reader saw before: a
// state that came back is a write that came late.
func neverGoesBack(h History) (broken []string) {
	last := map[[2]string]Request{}
	for _, v := range h.Views {
		key := [2]string{v.Source, v.Request.ID}
		old, seen := last[key]
		last[key] = v.Request
		if !seen {
			continue
		}
		if old.final() && !v.Request.final() {
			broken = append(broken, fmt.Sprintf("%s showed %s as %s and then as %s", v.Source, v.Request.ID, old.Status, v.Request.Status))
		}
		for i, st := range v.Request.Steps {
			if i >= len(old.Steps) {
				break
			}
			was := old.Steps[i]
			if st.Attempt < was.Attempt || st.Attempt == was.Attempt && progress(st.Status) < progress(was.Status) {
				broken = append(broken, fmt.Sprintf("%s showed step %s of %s as %s of attempt %d and then as %s of attempt %d",
					v.Source, st.Name, v.Request.ID, was.Status, was.Attempt, st.Status, st.Attempt))
			}
		}
	}
	return broken
}

// progress orders what may follow each other within one attempt. A failed end
// with retries left is ready again with the same number, and in doubt may turn
// out either way.
func progress(status string) int {
	switch status {
	case "waiting":
		return 0
	case "held":
		return 0
	case "dispatched", "running", "ready", "in_doubt":
		return 1
	default: // final
		return 2
	}
}
