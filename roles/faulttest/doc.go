// Package faulttest proves the promises of docs/GUARANTEES.md against real
// processes: it starts whole clusters of the static binary, lets clients work
// with them, kills, freezes, stops and cuts off nodes, and then compares three
// things that were recorded independently of each other:
//
//   - what clients were told (every acknowledged request, every state that a
//     controller showed),
//   - what the cluster says in the end,
//   - the ledger: one file to which every step appends a line when it starts and
//     when it ends, under a lock that shows whether two run at once.
//
// Each promise is a pure function over such a [History]; its error says which
// promise was broken. Scenarios never assert how long something takes; they wait
// with a generous bound and log what they measured.
//
// The variables below change a run:
//
//	UAC_FAULT_TRIALS=N   repeat what is random N times (default 2)
//	UAC_FAULT_BINARY=F   test this binary instead of building one
//	UAC_FAULT_CUT=TEXT   only the network cuts whose name contains TEXT
//	UAC_FAULT_SEED=N     the order of random faults of an earlier run
//	UAC_FAULT_MUTANTS=1  also break the product on purpose, and see it noticed
//	UAC_FAULT_KEEP=1     keep the directories of clusters; those of failed tests
//	                     are always kept
package faulttest
