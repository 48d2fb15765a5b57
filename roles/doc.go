// Package roles holds the words that all roles of the cluster share, the documents
// in which operators define work, and the engine that decides what a request does
// next.
//
// A [Process] is the definition of work: named steps that need each other. It is
// read from YAML by [Decode], which is strict and names file, line and column of
// everything that is wrong. A [Request] is one asked-for run of a process, frozen
// when it is accepted; [State] is that and all that has become of it.
//
// The engine is two pure functions, [Next] and [Pending]. DESIGN.md beside this
// file says what they decide, as tables, and why.
//
// Apart from the reader and the writer that Decode and Encode are given, nothing in
// this package does I/O, reads a clock or starts a goroutine. All values are plain
// data: a State and what it points to is never changed after it was returned, so it
// may be read from any number of goroutines.
package roles
