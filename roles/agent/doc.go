// Package agent runs the attempts of steps on one machine and remembers what became
// of them.
//
// An [Agent] connects outwards to two controllers, takes commands (start, kill,
// adopt, acknowledge), and reports. What it promises:
//
//   - An attempt starts at most once, whatever is lost, doubled, delayed or killed.
//   - A reported end is what happened; what cannot be known is reported as unknown.
//   - A running attempt outlives the agent, which finds it again after a restart.
//   - A command of a former owner, for another journal, or from another link has no
//     effect.
//
// DESIGN.md beside this file shows the files on disk, the states of an attempt, what
// a restart concludes from what it finds, and for every rule which course of events
// makes it necessary.
//
// # Structure
//
//	ledger    pure: what is remembered, and what each command means for it
//	journal   the ledger on disk: append, group commit, replay, compaction
//	attempt   pure: what the traces of an attempt on disk say about it
//	launcher  starts a wrapper, signals a session
//	run       one goroutine per living attempt, from intent to end
//	link      one connection to a controller
//
// The ledger changes in one way only: a record is made, applied in memory, and
// appended to the journal, all under one lock. Whatever must not happen before the
// record is on disk (running, killing, answering) waits for the journal.
//
// # Locks
//
// Agent.mu guards the ledger and the tables of runs and links. It is held for
// memory operations only, never while waiting. Locks of a link or of the journal may
// be taken under it, not the other way round.
package agent
