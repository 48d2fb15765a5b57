package main

import (
	"os"
	"os/exec"

	"uac/codestation/mount"
)

// mountChild is a child that touches the shared mount for its parent.
func mountChild(dir string) exitCode {
	if mount.Serve(dir, os.Stdin, os.Stdout) != nil {
		return exitFailed // nobody reads what it would say; the parent sees the end
	}
	return exitDone
}

// mountCommand returns a child, not yet started. It runs this very program, also
// after the file was replaced by another version, and is told nothing that it need
// not know: a child that is stuck can be looked at for a long time.
func mountCommand(dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", mount.ChildVerb, dir) //nolint:noctx // the mount ends it, and never waits for it
	cmd.Args[0] = "uac"
	cmd.Env = []string{}
	return cmd
}
