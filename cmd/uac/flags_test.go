package main

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"

	"uac/roles/controller/api/apitest"
)

// A value that no flag can have is refused before anything is asked, with the name of
// the flag and the value.
func TestFlagValues(t *testing.T) {
	c := newCluster(t, sampleState())
	id := apitest.RequestID(2)
	latin1 := configFile(t, "h\xe9")
	const empty = "it is empty; leave the flag out, or give it a value"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"request", "hold", id, "--step", ""}, `uac request hold: invalid argument "" for "--step" flag: ` + empty},
		{[]string{"request", "release", id, "--step="}, `uac request release: invalid argument "" for "--step" flag: ` + empty},
		{[]string{"request", "logs", id, "--step", ""}, `uac request logs: invalid argument "" for "--step" flag: ` + empty},
		{[]string{"request", "list", "--process", ""}, `uac request list: invalid argument "" for "--process" flag: ` + empty},
		{[]string{"request", "list", "--status", ""}, `uac request list: invalid argument "" for "--status" flag: ` + empty},
		{[]string{"event", "list", "--subject", ""}, `uac event list: invalid argument "" for "--subject" flag: ` + empty},
		{[]string{"node", "switchover", "--to", "", "--yes"}, `uac node switchover: invalid argument "" for "--to" flag: ` + empty},
		{[]string{"agent", "cluster", "suspend", "web", "--agent", ""}, `uac agent cluster suspend: invalid argument "" for "--agent" flag: ` + empty},
		{[]string{"token", "create", "--role", "agent", "--name", ""}, `uac token create: invalid argument "" for "--name" flag: ` + empty},
		{[]string{"process", "run", "nightly", "--idempotency-key", ""}, `uac process run: invalid argument "" for "--idempotency-key" flag: ` + empty},
		{[]string{"process", "list", "--token", ""}, `uac process list: invalid argument "" for "--token" flag: ` + empty},
		{[]string{"export", "--server", ""}, `uac export: invalid argument "" for "--server" flag: ` + empty},
		{[]string{"apply", "-f", "x", "--cacert", ""}, `uac apply: invalid argument "" for "--cacert" flag: ` + empty},

		{[]string{"request", "show", ""}, "uac request show: REQUEST is empty; usage: uac request show REQUEST [flags]"},
		{[]string{"token", "delete", "", "--yes"}, "uac token delete: ID is empty; usage: uac token delete ID [flags]"},
		{[]string{"node", "confirm-lost", "c2", ""}, "uac node confirm-lost: NODE is empty; usage: uac node confirm-lost NODE... [flags]"},
		{[]string{"pki", "issue", ""}, "uac pki issue: DIR is empty; usage: uac pki issue --role ROLE --name NAME [DIR] [flags]"},
		{[]string{"export", ""}, "uac export: PROCESS is empty; usage: uac export [PROCESS...] [flags]"},

		{[]string{"process", "run", "nightly", "-p", "q=1", "-p", "r=a\xffb"}, "uac process run: --param: it is not valid UTF-8: byte 4 is 0xff"},
		{[]string{"process", "run", "nightly", "--param-file", "r=" + latin1}, "--param-file r: " + latin1 + ": it is not valid UTF-8: byte 2 is 0xe9"},
		{[]string{"process", "run", "nightly", "--why", "\xc3\xa9\xc3"}, "uac process run: --why: it is not valid UTF-8: byte 3 is 0xc3"},
		{[]string{"token", "create", "--role", "viewer", "--name", "x\xffy"}, "uac token create: --name: it is not valid UTF-8: byte 2 is 0xff"},
		{[]string{"process", "list", "--token", "\xff"}, "uac process list: --token: it is not valid UTF-8: byte 1 is 0xff"},
		{[]string{"agent", "show", "a\xff"}, "uac agent show: AGENT: it is not valid UTF-8: byte 2 is 0xff"},
		{[]string{"config", "show", "--role", "agent", "--set", "node.name=\xff"}, `uac config show: invalid argument "node.name=\xff" for "--set" flag: it is not valid UTF-8: byte 11 is 0xff`},
		{[]string{"nod\xff"}, "uac: argument 1: it is not valid UTF-8: byte 4 is 0xff"},

		{[]string{"process", "run", "nightly", "--why", strings.Repeat("x", 70_000)}, "why: too long: the path and the query of a call have 70017 bytes, and may have 16384"},
		{[]string{"event", "list", "--by", strings.Repeat("x", 90_000)}, "by: too long: the path and the query of a call have 90023 bytes, and may have 16384"},
		{[]string{"request", "show", strings.Repeat("x", 90_000)}, "the names in the path: too long: the path and the query of a call have 90013 bytes, and may have 16384"},

		{[]string{"request", "list", "--status", "failed", "--status", "cancelled"}, `uac request list: invalid argument "cancelled" for "--status" flag: it is given twice, and was "failed" before`},
		{[]string{"request", "hold", id, "--step", "a", "--step", "b"}, `uac request hold: invalid argument "b" for "--step" flag: it is given twice, and was "a" before`},

		{[]string{"request", "list", "--status", "canceled"}, `uac request list: invalid argument "canceled" for "--status" flag: must be one of ` + strings.Join(requestStatuses, ", ") + "; did you mean cancelled?"},
		{[]string{"request", "list", "--from", "yesterday"}, `uac request list: invalid argument "yesterday" for "--from" flag: must be a time with its zone, like 2026-01-31T15:04:05Z`},
		{[]string{"request", "list", "--to", "2026-01-02"}, `uac request list: invalid argument "2026-01-02" for "--to" flag: must be a time with its zone, like 2026-01-31T15:04:05Z`},
		{[]string{"request", "list", "--limit", "0"}, "--limit 0: must be from 1 to 10000"},
		{[]string{"event", "list", "--limit", "10001"}, "--limit 10001: must be from 1 to 10000"},
		{[]string{"token", "create", "--role", "viewer", "--ttl", "0s"}, "--ttl 0s: must be more than 0; leave the flag out for the default"},
		{[]string{"token", "create", "--role", "agent", "--ttl", "-1h"}, "--ttl -1h0m0s: must be more than 0; leave the flag out for the default"},
		{[]string{"request", "logs", id, "--step", "backup", "--attempt", "0"}, "--attempt 0: must be the number of an attempt, from 1, at --step"},
		{[]string{"request", "logs", id, "--attempt", "1"}, "--attempt 1: must be the number of an attempt, from 1, at --step"},
		{[]string{"request", "resolve", id, "--step", "backup", "--as", "maybe"}, `uac request resolve: invalid argument "maybe" for "--as" flag: must be one of success, failed, rerun`},
		{[]string{"request", "finish", id, "--as", "running"}, `uac request finish: invalid argument "running" for "--as" flag: must be one of succeeded, failed, cancelled`},
		{[]string{"process", "run", "nightly", "--idempotency-key", "a b"}, `uac process run: invalid argument "a b" for "--idempotency-key" flag: must be at most 255 letters, digits and signs of ASCII, without spaces`},
	} {
		got := c.run(t, tt.args...)
		if want := (result{code: exitUsage, stderr: "error: " + tt.want + "\n"}); got != want {
			t.Errorf("%q\ngot  %+v\nwant %+v", tt.args, got, want)
		}
	}
	for _, args := range [][]string{
		{"process", "run", "nightly", "-p", "r=a\ufffdb"}, // the character itself is one
	} {
		if got := c.run(t, args...); strings.Contains(got.stderr, "UTF-8") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	// A reason may be empty, and what is left out is no filter.
	if got := c.run(t, "request", "hold", id, "--why", ""); got.code != exitDone {
		t.Errorf("hold without a reason: %+v", got)
	}
}

// full is a disk on which there is no room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// That nothing can be printed is said once, however many steps have written something.
func TestLogsThatCannotBePrinted(t *testing.T) {
	c := newCluster(t, sampleState())
	for _, flags := range [][]string{nil, {"--follow"}, {"--follow", "--step", "switch"}} {
		var stderr bytes.Buffer
		code := run(t.Context(), env{
			args: append([]string{"request", "logs", apitest.RequestID(1)}, flags...), stdin: strings.NewReader(""),
			environ: c.vars, stdout: stream{Writer: full{}}, stderr: stream{Writer: &stderr},
		}, nil)
		if want := "error: print the output: no space left on device\n"; code != exitFailed || stderr.String() != want {
			t.Errorf("%q: code %d, %q, want %q", flags, code, stderr.String(), want)
		}
	}
}

// A file where a directory is needed is wrong usage, and stays as it is.
func TestAFileIsNoDirectory(t *testing.T) {
	file := configFile(t, "as it was")
	for _, tt := range []struct{ args, want string }{
		{"mount init " + file, file + " is not a directory"},
		{"dev --dir " + file, "--dir: " + file + " is not a directory"},
		{"dev --dir " + file + "/below", "--dir: " + file + " is not a directory"},
		{"dev stop --dir " + file, "--dir: " + file + " is not a directory"},
	} {
		got := execute(t, nil, nil, strings.Fields(tt.args)...)
		if want := (result{code: exitUsage, stderr: "error: " + tt.want + "\n"}); got != want {
			t.Errorf("%s\ngot  %+v\nwant %+v", tt.args, got, want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "as it was" {
		t.Errorf("the file now: %q, %v", text, err)
	}
}
