package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

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

var errEmpty = errors.New("it is empty; leave the flag out, or give it a value")

// single is the value of a flag that is given once, and not empty.
type single struct {
	pflag.Value
	given bool
}

func (s *single) Set(text string) error {
	switch {
	case text == "":
		return errEmpty
	case s.given:
		return fmt.Errorf("it is given twice, and was %q before", s.String())
	}
	s.given = true
	return s.Value.Set(text)
}

// checkTexts refuses what a command line cannot mean: an argument that is empty, which
// is what a variable of a script leaves that was never set, and texts that are not
// UTF-8. JSON has no way to carry those, and would put other characters in their place.
func checkTexts(cmd *cobra.Command, args []string) error {
	names := argNames(cmd.Use)
	for i, arg := range args {
		name := fmt.Sprintf("argument %d", i+1)
		if len(names) > 0 {
			name = names[min(i, len(names)-1)]
			if arg == "" {
				return usageError("%s: %s is empty; usage: %s", cmd.CommandPath(), name, cmd.UseLine())
			}
		}
		if err := checkUTF8(arg); err != nil {
			return usageError("%s: %s: %w", cmd.CommandPath(), name, err)
		}
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		texts := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			texts = list.GetSlice()
		}
		for _, text := range texts {
			if bad := checkUTF8(text); bad != nil && err == nil {
				err = usageError("%s: --%s: %w", cmd.CommandPath(), f.Name, bad)
			}
		}
	})
	return err
}

// argNames returns the names of the arguments in the usage of a command.
func argNames(use string) []string {
	var names []string
	words := strings.Fields(use)[1:]
	for i := 0; i < len(words); i++ {
		if strings.HasPrefix(strings.TrimPrefix(words[i], "["), "-") {
			i++ // a flag, and what it takes
			continue
		}
		names = append(names, strings.Trim(words[i], "[]."))
	}
	return names
}

// checkUTF8 says where a text is not UTF-8.
func checkUTF8(text string) error {
	for i, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)) {
			return fmt.Errorf("it is not valid UTF-8: byte %d is 0x%02x", i+1, text[i])
		}
	}
	return nil
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

// notEmpty returns a flag's value that is not empty.
func notEmpty(text *string) pflag.Value {
	return &checked{text, func(word string) error {
		if word == "" {
			return errEmpty
		}
		return nil
	}}
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
