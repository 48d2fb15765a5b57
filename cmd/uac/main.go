package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"uac/codestation/mount"
	"uac/roles"
)

func main() {
	// Before anything else: this process must hold nothing that could be waited for.
	if len(os.Args) == 3 && os.Args[1] == mount.ChildVerb {
		os.Exit(int(mountChild(os.Args[2])))
	}
	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, the second one does not ask.
	context.AfterFunc(ctx, release)
	home, _ := os.UserHomeDir() // without one there is no client.yaml
	world := env{
		args:        os.Args[1:],
		stdin:       os.Stdin,
		stdout:      stream{os.Stdout, term.IsTerminal(int(os.Stdout.Fd()))},
		stderr:      stream{os.Stderr, term.IsTerminal(int(os.Stderr.Fd()))},
		environ:     os.Environ(),
		home:        home,
		interactive: term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd())),
	}
	os.Exit(int(run(ctx, world, daemons())))
}

// daemons returns the composition root of each role.
func daemons() map[roles.Role]daemon {
	return map[roles.Role]daemon{
		roles.RoleController: runController,
		roles.RoleWatch:      runWatch,
		roles.RoleAgent:      runAgent,
		roles.RoleRelay:      runRelay,
	}
}

// env is all that a verb touches of the world outside.
type env struct {
	args    []string // without the program's name
	stdin   io.Reader
	stdout  stream // results, and nothing else
	stderr  stream // everything that is said beside them
	environ []string
	home    string // "" if there is none
	// interactive says that somebody sits at stdin and stderr and can be asked.
	interactive bool
}

// stream is an output of the process.
type stream struct {
	io.Writer
	terminal bool
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, world env, daemons map[roles.Role]daemon) exitCode {
	a := &app{env: world}
	root := newRootCommand(a, daemons)
	started := markRuns(root)
	err := root.ExecuteContext(ctx)
	if err != nil && !*started {
		// cobra refused the command line before any verb saw it.
		err = usageError("%w", err)
		if a.output == formatTable && wantsJSON(a.args) {
			a.output = formatJSON
		}
	}
	if errors.Is(err, context.Canceled) {
		err = fail(exitFailed, "interrupted: %w", err)
	}
	a.reportError(err)
	return codeOf(err)
}
