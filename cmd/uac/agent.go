package main

import (
	"context"
	"errors"
)

// errNotWired is returned by a role whose components are not built in.
var errNotWired = errors.New("this build does not contain the role")

// runAgent runs a node with the role agent.
func runAgent(_ context.Context, _ daemonDeps) error { return errNotWired }
