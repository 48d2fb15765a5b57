// Package faulttest proves the promises of docs/GUARANTEES.md against real
// processes: it starts whole clusters of the static binary, lets clients work
// with them, lets things go wrong, and then compares three records that were made
// independently of each other:
//
//   - what clients asked and were told: every call with its outcome, where an error
//     means that nobody knows, and every state that a controller showed,
//   - what the cluster says in the end,
//   - the ledger: one file to which every step appends who it is, where and when, when
//     it starts and when it ends, under a lock that shows whether two run at once.
//
// Each promise is a pure function over such a [History]; its error is the promise.
// What goes wrong is a [Fault]: it is injected, it is seen to have happened, and it is
// healed. A run counts only if work flowed beside the faults and the cluster was well
// at the end; a run that does not count fails, too, and says INVALID. Scenarios never
// assert how long something takes; they wait with a generous bound and log what they
// measured.
//
// docs/reliability.md tells how to run it all. The variables below change a run:
//
//	SEED=N               one seed of random faults
//	SEEDS=N              so many (default 2)
//	HOURS=H              as many as fit into this time
//	UAC_FAULT_TRIALS=N   repeat scenarios that depend on chance N times (default 1)
//	UAC_FAULT_POINTS=all crash at every point, not at a third of them
//	UAC_FAULT_CLOCK=1    build a program whose wall clock can be set, and set it
//	UAC_FAULT_MUTANTS=1  take out one rule after the other, and see it noticed
//	UAC_FAULT_RULE=TEXT  only the rules whose package and name contain TEXT
//	UAC_FAULT_CUT=TEXT   only the network cuts whose name contains TEXT
//	UAC_FAULT_CHECK=F    check a history again that was kept
//	UAC_FAULT_BINARY=F   test this binary, built with -tags uacfault
//	UAC_FAULT_KEEP=1     keep the directories of clusters; those of failed tests
//	                     are always kept
package faulttest
