package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// spread sums up durations, in milliseconds.
type spread struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// spreadOf takes each percentile from the sample of that rank, rounded up: it
// was really measured, and no lower one would do.
func spreadOf(samples []time.Duration) spread {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return spread{}
	}
	rank := func(p float64) float64 { return millis(s[int(math.Ceil(p*float64(len(s))))-1]) }
	return spread{N: len(s), P50: rank(0.5), P99: rank(0.99), Max: rank(1)}
}

// millis is a duration in milliseconds, to the microsecond.
func millis(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

// measure is one line of a benchmark's table.
type measure struct {
	name string
	spread
}

// printMeasures writes the table of a benchmark for people.
func printMeasures(w io.Writer, p paint, measures ...measure) error {
	width := 0
	for _, m := range measures {
		width = max(width, len(m.name))
	}
	line := func(name string, cells ...string) string {
		text := fmt.Sprintf("%-*s", width, name)
		for _, c := range cells {
			text += fmt.Sprintf("  %10s", c)
		}
		return strings.TrimRight(text, " ") + "\n"
	}
	text := p.apply(bold, line("", "p50", "p99", "max"))
	for _, m := range measures {
		ms := func(v float64) string {
			if m.N == 0 {
				return "-"
			}
			return fmt.Sprintf("%.1f ms", v)
		}
		text += line(m.name, ms(m.P50), ms(m.P99), ms(m.Max))
	}
	_, err := io.WriteString(w, text)
	return err
}

// settingOf returns the last value of a setting, or a default.
func settingOf(set []string, key, fallback string) string {
	value := ""
	for _, s := range set {
		if v, ok := strings.CutPrefix(s, key+"="); ok {
			value = v
		}
	}
	return cmp.Or(value, fallback)
}
