package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"uac/roles"
)

// strict makes every flag of cmd and its verbs that takes one text refuse an empty
// one and a second one. Empty is what a variable of a script leaves that was never
// set: it must not widen an order from one step to a request, or a list to all.
func strict(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Name != "why" { // a reason may be anything
			f.Value = &single{Value: f.Value}
		}
	})
	for _, c := range cmd.Commands() {
		strict(c)
	}
}

// single is the value of a flag that is given once, and not empty.
type single struct {
	pflag.Value
	given bool
}

func (s *single) Set(text string) error {
	switch {
	case text == "":
		return errors.New("it is empty; leave the flag out, or give it a value")
	case s.given:
		return fmt.Errorf("it is given twice, and was %q before", s.String())
	}
	s.given = true
	return s.Value.Set(text)
}

// checked is the value of a flag that takes what a check lets pass.
type checked struct {
	text  *string
	check func(string) error
}

func (c *checked) Type() string   { return "string" }
func (c *checked) String() string { return *c.text }

func (c *checked) Set(text string) error {
	if err := c.check(text); err != nil {
		return err
	}
	*c.text = text
	return nil
}

// choice returns a flag's value that is one of words.
func choice(text *string, words []string) pflag.Value {
	return &checked{text, func(word string) error {
		if slices.Contains(words, word) {
			return nil
		}
		hint := ""
		if near := roles.Nearest(word, words); near != "" {
			hint = "; did you mean " + near + "?"
		}
		return fmt.Errorf("must be one of %s%s", strings.Join(words, ", "), hint)
	}}
}

// timestamp returns a flag's value that is a time, as the API takes it.
func timestamp(text *string) pflag.Value {
	return &checked{text, func(at string) error {
		if _, err := time.Parse(time.RFC3339, at); err != nil {
			return errors.New("must be a time with its zone, like 2026-01-31T15:04:05Z")
		}
		return nil
	}}
}

// idempotencyKey returns a flag's value that fits into a header.
func idempotencyKey(text *string) pflag.Value {
	return &checked{text, func(key string) error {
		if len(key) > 255 || strings.ContainsFunc(key, func(r rune) bool { return r < '!' || r > '~' }) {
			return errors.New("must be at most 255 letters, digits and signs of ASCII, without spaces")
		}
		return nil
	}}
}

// maxList is the most that the API lists at once.
const maxList = 10_000

// checkLimit refuses a number that no list can be limited to.
func checkLimit(n int) error {
	if n < 1 || n > maxList {
		return usageError("--limit %d: must be from 1 to %d", n, maxList)
	}
	return nil
}
