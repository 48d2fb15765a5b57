package main

import (
	"fmt"
	"io"
	"strings"
)

// field is one line of the description of one thing.
type field struct {
	name, value string
	color       color
}

// printFields writes the fields that have a value, in columns.
func printFields(w io.Writer, p paint, fields []field) error {
	width := 0
	for _, f := range fields {
		if f.value != "" {
			width = max(width, len(f.name))
		}
	}
	var b strings.Builder
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		fmt.Fprintf(&b, "%s%s%s%s\n", p.apply(bold, f.name), strings.Repeat(" ", width-len(f.name)), gap,
			p.apply(f.color, printable(f.value, false)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
