package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"uac/roles"
	"uac/roles/controller/api"
)

// branch is a step in the tree of a request.
type branch struct {
	api.Step
	lines string // that lead to it
	also  []string
}

// tree orders steps so that each stands below one step that it needs: the last
// of them to end or, before that, the last in order. A step has one line, so
// its other needs are named beside it. Instances stand below their step.
func tree(steps []api.Step) []branch {
	index := map[string]int{}
	for i, s := range steps {
		index[s.Name] = i
	}
	below := make([][]int, len(steps)+1) // the last is the root
	root := len(steps)
	also := make([][]string, len(steps))
	for i, s := range steps {
		parent := root
		if j, known := index[s.Of]; s.Of != "" && known {
			below[j] = append(below[j], i)
			continue
		}
		for _, need := range s.Needs {
			j, known := index[need]
			switch {
			case !known || j == i:
			case parent == root || later(steps, j, parent):
				parent = j
			}
		}
		for _, need := range s.Needs {
			if parent != root && need != steps[parent].Name {
				also[i] = append(also[i], need)
			}
		}
		below[parent] = append(below[parent], i)
	}

	var out []branch
	var walk func(i int, lines, rest string)
	seen := make([]bool, len(steps))
	walk = func(i int, lines, rest string) {
		if seen[i] {
			return
		}
		seen[i] = true
		out = append(out, branch{Step: steps[i], lines: lines, also: also[i]})
		for k, child := range below[i] {
			if k < len(below[i])-1 {
				walk(child, rest+"├─ ", rest+"│  ")
			} else {
				walk(child, rest+"└─ ", rest+"   ")
			}
		}
	}
	for _, i := range below[root] {
		walk(i, "", "")
	}
	for i := range steps { // a cycle: no such process is accepted, but nothing is hidden
		walk(i, "", "")
	}
	return out
}

// later reports whether step j ended after step i, or would be listed after it.
func later(steps []api.Step, j, i int) bool {
	a, b := steps[j].FinishedAt, steps[i].FinishedAt
	if a != "" && b != "" && a != b {
		return a > b
	}
	return j > i
}

// printSteps writes steps as a tree.
func printSteps(a *app, steps []api.Step, now time.Time) error {
	branches := tree(steps)
	attempts := slices.ContainsFunc(steps, func(s api.Step) bool { return s.Attempt > 1 })
	columns := []column[branch]{
		{title: "STEP", cell: func(b branch) string { return b.lines + b.Name }},
		{title: "STATUS", cell: func(b branch) string { return string(b.Status) }, color: func(b branch) color { return stepColor(b.Status) }},
		{title: "AGENT", cell: func(b branch) string { return b.Agent }},
	}
	if attempts || a.output == formatWide {
		columns = append(columns, column[branch]{title: "ATTEMPT", cell: func(b branch) string { return nonZero(int64(b.Attempt)) }})
	}
	columns = append(columns,
		column[branch]{title: "DURATION", cell: func(b branch) string {
			return duration(b.StartedAt, b.FinishedAt, now, b.Status == roles.StepRunning)
		}},
		column[branch]{title: "EXIT", cell: func(b branch) string {
			if b.ExitCode == nil {
				return ""
			}
			return fmt.Sprint(*b.ExitCode)
		}},
		column[branch]{title: "STARTED", wide: true, cell: func(b branch) string { return string(b.StartedAt) }},
		column[branch]{title: "FINISHED", wide: true, cell: func(b branch) string { return string(b.FinishedAt) }},
		column[branch]{title: "NOTE", cell: note},
	)
	return printTable(a, branches, columns)
}

// note says what is not ordinary about a step.
func note(b branch) string {
	var parts []string
	if b.On != "" && b.On != roles.OnSuccess {
		parts = append(parts, "on "+string(b.On))
	}
	if len(b.also) > 0 {
		parts = append(parts, "also needs "+strings.Join(b.also, ", "))
	}
	if b.Unreachable {
		parts = append(parts, "agent unreachable")
	}
	if b.Reason != "" {
		parts = append(parts, b.Reason)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Outputs)) {
		parts = append(parts, name+"="+oneLine(b.Outputs[name]))
	}
	return strings.Join(parts, "; ")
}

// oneLine returns the value of an output as it fits into a table.
func oneLine(value string) string {
	const most = 80 // a digest is shorter
	if short := []rune(value); len(short) > most {
		value = string(short[:most]) + "..."
	}
	if strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(value)
	}
	return value
}

func stepColor(s roles.StepStatus) color {
	switch s {
	case roles.StepSucceeded:
		return green
	case roles.StepFailed, roles.StepCancelled:
		return red
	case roles.StepInDoubt, roles.StepHeld:
		return yellow
	case roles.StepRunning, roles.StepDispatched:
		return cyan
	default:
		return faint
	}
}
