package main

import "context"

// runWatch runs a node with the role watch.
func runWatch(_ context.Context, _ daemonDeps) error { return errNotWired }
