package main

import "context"

// runController runs a node with the role controller.
func runController(_ context.Context, _ daemonDeps) error { return errNotWired }
