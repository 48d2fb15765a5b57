package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// exitCode is the process's status. Scripts depend on these.
type exitCode int

// The exit codes.
const (
	exitDone        exitCode = 0
	exitFailed      exitCode = 1
	exitUsage       exitCode = 2
	exitUnreachable exitCode = 3
	exitNotFound    exitCode = 4
	exitForbidden   exitCode = 5
	exitConflict    exitCode = 6
	exitInDoubt     exitCode = 7
)

// exitMeanings is the table of the help, in order.
var exitMeanings = []string{
	exitDone:        "done",
	exitFailed:      "the operation failed, or the request did",
	exitUsage:       "wrong usage or invalid input: nothing was done",
	exitUnreachable: "no server of the cluster could be reached, or none could serve",
	exitNotFound:    "not found",
	exitForbidden:   "not permitted",
	exitConflict:    "conflict with what is already there",
	exitInDoubt:     "in doubt: the outcome is unknown, an operator must look",
}

// exitHelp is the text of "uac help exit-codes".
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes are the same for all commands:\n\n")
	for code, meaning := range exitMeanings {
		fmt.Fprintf(&b, "  %d  %s\n", code, meaning)
	}
	b.WriteString(`
Commands that wait for a request (--wait) exit with its outcome: 0 succeeded,
1 failed or cancelled, 7 in doubt.

With -o json, an error is one JSON object on standard error:
{"error": "...", "exit_code": N}.`)
	return b.String()
}

// exitError is an error that knows its exit code.
type exitError struct {
	code exitCode
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// fail returns an error that ends the process with the code.
func fail(code exitCode, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

// usageError returns an error that says that the command line or the input is
// wrong.
func usageError(format string, args ...any) error { return fail(exitUsage, format, args...) }

// codeOf returns the exit code of an error: that of the outermost one that
// knows.
func codeOf(err error) exitCode {
	var ee *exitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &ee):
		return ee.code
	default:
		return exitFailed
	}
}

// wantsJSON reports whether a command line that could not be read to its end asks for
// JSON: -o json may stand behind what is wrong.
func wantsJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "--":
			return false
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == string(formatJSON) {
				return true
			}
		case "-ojson", "-o=json", "--output=json":
			return true
		}
	}
	return false
}

// reportError tells the user what went wrong.
func (a *app) reportError(err error) {
	if err == nil {
		return
	}
	if a.output == formatJSON {
		line, jsonErr := json.Marshal(struct {
			Error    string   `json:"error"`
			ExitCode exitCode `json:"exit_code"`
		}{err.Error(), codeOf(err)})
		if jsonErr == nil {
			fmt.Fprintln(a.stderr, string(line))
			return
		}
	}
	fmt.Fprintln(a.stderr, a.paint(a.stderr).apply(red, "error:"), printable(err.Error(), true))
}
