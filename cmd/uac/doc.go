// Command uac is the whole program: every role of a cluster and the client.
//
//	uac --role=ROLE [--config FILE]   runs a node until it is told to stop
//	uac NOUN VERB [flags]             does one thing and exits
//
// This package is the only one that exits the process, reads its arguments or
// chooses colours. A verb is three things: an options struct with its flags, a
// constructor of its cobra command, and a plain function runX(ctx, app, opts)
// that a test calls without a process. Constructors are listed in root.go;
// nothing registers itself. A daemon is one straight function per role that
// builds its components from the top down.
//
// Errors carry the exit code (exit.go). Scripts depend on the codes, on JSON
// field names and on what goes to standard output: they are part of the
// contract, tables and messages are not.
package main
