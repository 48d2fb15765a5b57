// Package watch is the role of a member that votes and remembers but never
// becomes Active and never runs work: the third opinion of a cluster with two
// controllers.
package watch
