package faulttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rule is one rule of the protocol: the course of events that breaks a promise without
// it, where it stands in the code, and the test that plays that course. A mutant of the
// product is made by taking the rule out, and the test must fail then: tests that
// cannot fail prove nothing.
type rule struct {
	name    string
	without string // what happens, in short
	file    string
	replacement
	pkg, test string // as for go test -run
	says      string // what the test says then
}

// rules lists all rules, the part of the product that keeps them first.
func rules() []rule {
	return []rule{
		// The store.
		{
			name: "a batch compares its session", without: "c1 proposes a dispatch; its loss is decided; c2 claims; the dispatch is applied",
			file: "coord/chain.go", replacement: replacement{old: "\t\tclientv3.Compare(clientv3.ModRevision(c.session), \"=\", c.epoch),\n"},
			pkg: "./coord", test: "TestChain/fenced", says: "want fenced",
		},
		{
			name: "a batch compares the chain key", without: "a batch is repeated after an unknown outcome, others follow, its first copy is applied: state rolls back",
			file: "coord/chain.go", replacement: replacement{old: "\t\tclientv3.Compare(clientv3.ModRevision(c.key), \"=\", c.rev),\n"},
			pkg: "./coord", test: "TestChain/applied_late_after_repetition", says: "the late copy was applied",
		},
		{
			name: "the chain key carries the session's nonce", without: "a batch of the former run with the same number passes for one of this run, and was never applied",
			file: "coord/chain.go", replacement: replacement{"if rec.Nonce != c.nonce || rec.N != c.n {", "if rec.N != c.n {"},
			pkg: "./coord", test: "TestChain/chain_key_of_somebody_else", says: "want fenced",
		},
		{
			name: "the chain begins with what the session's transaction said", without: "the chain key is read before: a late batch of the former run moves it, and makes \"my number\" true",
			file: "coord/session.go", replacement: replacement{"key: commitKey(m.cfg.Name), rev: epoch, nonce", "key: commitKey(m.cfg.Name), rev: epoch - 1, nonce"},
			pkg: "./coord", test: "TestRestartOpensANewSession", says: "this node was fenced out: chain key commit/c1 holds number 0",
		},
		{
			name: "a repetition reads the keys of nested parts", without: "a claim lost in an earlier copy of the batch; the repetition finds its number and thinks that it won",
			file: "coord/chain.go", replacement: replacement{"results[i].Won = put.Mod == c.rev || put.Create == c.rev", "results[i].Won = put.Mod != 0"},
			pkg: "./coord", test: "TestChain/nested_item_lost_in_an_earlier_copy", says: "Won:true} err:<nil>}, want lost",
		},
		{
			name: "writes of a term compare it", without: "a switchover is decided; what the former Active still writes is applied after the new one's first write",
			file: "coord/term.go", replacement: replacement{"return ModIs(keyActive, t.epoch)", "return ModIsNot(keyActive, 0)"},
			pkg: "./coord", test: "TestSwitchover$", says: "the old term wrote",
		},
		{
			name: "the term is vacant by epoch, not by name", without: "c1 restarts and dies before it gives the term up; the term names c1, nobody campaigns",
			file: "coord/term.go", replacement: replacement{"return kv, rec, snap.mod(sessionKey(rec.Node)) == rec.Epoch", "return kv, rec, snap.mod(sessionKey(rec.Node)) != 0"},
			pkg: "./coord", test: "TestVacantTermIsTaken", says: "gave up waiting: c1 becomes Active again",
		},
		{
			name: "a loss compares the suspect's session", without: "the suspect restarts; the late decision about its old session removes the new one",
			file: "coord/loss.go", replacement: replacement{old: "\t\tModIs(sessionKey(sus.node), sus.epoch).cmp(),\n"},
			pkg: "./coord", test: "TestLateLossOfAFormerSession", says: "removed the one after it",
		},
		{
			name: "a loss compares the successor's session", without: "two controllers propose each other's loss; both are applied; the term names a session that is gone",
			file: "coord/loss.go", replacement: replacement{old: "\t\t\t\ttx.cmps = append(tx.cmps, c.cmp())\n", new: "\t\t\t\t_ = c\n"},
			pkg: "./coord", test: "TestLossTransaction|TestSuccessorLeavesBeforeTheDecision", says: "the term was given to a session that is gone",
		},
		{
			name: "a loss without a successor empties the term", without: "the term names a removed session",
			file: "coord/loss.go", replacement: replacement{old: "\t\t\ttx.then = append(tx.then, clientv3.OpDelete(keyActive))\n"},
			pkg: "./coord", test: "TestNobodyLeftToSucceed", says: "the term names a session that is gone",
		},
		{
			name: "trust ends a margin before anybody may agree to a loss", without: "the old Active acts while its loss is being decided",
			file: "coord/evidence.go", replacement: replacement{"return t.silence * 4 / 5", "return t.silence"},
			pkg: "./coord", test: "TestTrust$", says: "echoed a pulse",
		},
		{
			name: "the end of a lifeline is no death while the port answers", without: "the network resets a connection; the living Active is declared dead while it trusts itself",
			file: "coord/lifeline.go", replacement: replacement{
				"\t\tif err == nil {\n\t\t\tcloseNow(conn)\n\t\t\treturn // it lives, and opens another\n\t\t}\n\t\tif refused(err) {\n",
				"\t\tif _, _ = conn, err; true {\n",
			},
			pkg: "./coord", test: "TestLifelineAloneProvesNothing", says: "takes the end of a lifeline for a death",
		},
		{
			name: "a lifeline's end counts beside a dialed connection", without: "a firewall refuses what is dialed to a node; the network resets a lifeline, and the living Active is declared dead",
			file: "coord/lifeline.go", replacement: replacement{
				"return p.out != nil && p.out.run == run\n",
				"return p.out != nil && p.out.run == run || p.in != nil && p.in.run == run\n",
			},
			pkg: "./coord", test: "TestLifelineOfWhoCannotBeDialed", says: "takes who cannot be dialed for dead",
		},
		{
			name: "a lifeline tells of its own process", without: "a node restarts; what is left of its former process ends late, and the new session is declared dead",
			file: "coord/evidence.go", replacement: replacement{"if o.run == run && o.links == 0 &&", "if o.links == 0 &&"},
			pkg: "./coord", test: "TestLifelineRefused", says: "another process than the session's: evidence \"refused\"",
		},
		{
			name: "trust is computed at each use", without: "who once had trust has it for ever, and acts after its loss",
			file: "coord/mesh.go", replacement: replacement{
				"\treturn m.trust.check(time.Now(), m.standing())\n",
				"\tif m.standing().epoch != 0 {\n\t\treturn nil\n\t}\n\treturn m.trust.check(time.Now(), m.standing())\n",
			},
			pkg: "./coord", test: "TestUnpluggedIsSilent|TestNoTrustWhileTheLossIsOnItsWay", says: "still trusts itself",
		},

		// The owner of a request.
		{
			name: "a claim compares the former owner's session", without: "two views at two revisions: c2 sees c1's old session and c1's newer claim, and takes the request from a living owner",
			file:        "roles/controller/claims.go",
			replacement: replacement{"conds = append(conds, coord.SessionIsNot(r.claim.Node, r.claim.Epoch))", "_ = conds"},
			pkg:         "./roles/controller", test: "TestClaimOfALivingOwner", says: "was taken from",
		},
		{
			name: "a claim compares the former claim", without: "two sweep; the second claims over the first, who goes on",
			file:        "roles/controller/claims.go",
			replacement: replacement{"conds := []coord.Cond{coord.ModIs(key, r.claimMod)}", "conds := []coord.Cond{coord.ModIsNot(key, -1)}"},
			pkg:         "./roles/controller", test: "TestClaimRace", says: " over the claim of ",
		},
		{
			name: "the record is read when the claim shows", without: "the record is older than the former owner's last write, and what that decided is done again",
			file: "roles/controller/claims.go", replacement: replacement{"if view.Revision() < res.Revision {", "if false && view.Revision() < res.Revision {"},
			pkg: "./roles/controller", test: "TestRecordIsReadAfterTheClaim", says: "before the claim shows",
		},
		{
			name: "effects follow what is stored", without: "an end is acknowledged and not stored: the agent forgets it, the step is sent again and runs twice",
			file: "roles/controller/desk.go", replacement: replacement{old: "\tif o.writes > 0 {\n\t\treturn\n\t}\n\tif d.s.Check() != nil {", new: "\tif d.s.Check() != nil {"},
			pkg: "./roles/controller", test: "TestNothingIsSaidBeforeItIsStored", says: "before it was stored",
		},
		{
			name: "a stale floor makes the owner claim again", without: "the agent refuses the request for ever",
			file: "roles/controller/reports.go", replacement: replacement{"\t\td.reclaim(o)\n", "\t\t_ = d.reclaim\n"},
			pkg: "./roles/controller", test: "TestAdopt/the_floor_has_passed", says: "nothing was sent to a-p",
		},
		{
			name: "anybody can acknowledge what is final", without: "the owner dies between its last write and the acknowledgement: nobody owns the request any more, and the agent's journal keeps it for ever",
			file: "roles/controller/reports.go", replacement: replacement{"\tif !state.Record.Status.Final() {\n\t\treturn // nobody's", "\tif state.Record.Status != \"\" {\n\t\treturn // nobody's"},
			pkg: "./roles/controller", test: "TestRun$", says: "nothing was sent to a1",
		},

		// The engine.
		{
			name: "no report counts before the agent has answered adopt", without: "the end is acknowledged under a fence that the agent does not have; it forgets; a frozen owner's start runs the attempt again",
			file: "roles/engine.go", replacement: replacement{"case !adopting && st.Dispatch.Fence != e.Fence:", "case false && !adopting && st.Dispatch.Fence != e.Fence:"},
			pkg: "./roles", test: "TestSemantics/no_report_counts", says: "got  succeeded a=succeeded",
		},
		{
			name: "nothing is sent for a step before adopt is answered", without: "the start or kill of a new owner meets an agent that has run, been acknowledged and forgotten the attempt",
			file: "roles/pending.go", replacement: replacement{"\t\t\tcase st.Dispatch.Fence != s.Fence:\n\t\t\t\tcontinue\n", ""},
			pkg: "./roles", test: "TestSemantics/cancel:_the_new_owner_asks_before_it_kills", says: `pending ["adopt a1" "kill a/1"]`,
		},
		{
			name: "nothing is sent to an agent before adopt is answered", without: "a step dispatched under the new fence overtakes the adopt, and the agent has no fence to refuse the former owner by",
			file: "roles/pending.go", replacement: replacement{" || slices.Contains(silent, st.Agent):\n", ":\n"},
			pkg: "./roles", test: "TestSemantics/nothing_is_sent_to_an_agent_that_has_not_answered", says: `pending ["adopt a1" "send c/1"]`,
		},
		{
			name: "nothing of another journal means nothing", without: "the machine is re-imaged; the attempt ran, is called cancelled, or runs again",
			file: "roles/engine.go", replacement: replacement{"case sent.ID != ev.Journal.ID:", "case false && sent.ID != ev.Journal.ID:"},
			pkg: "./roles", test: "TestSemantics/.*another_journal", says: "got  cancelled a=cancelled",
		},
		{
			name: "nothing of a journal that went back means nothing", without: "a snapshot of the machine is restored; the attempt that it has forgotten is sent again",
			file: "roles/engine.go", replacement: replacement{"case ev.Journal.Counter < sent.Counter:", "case false && ev.Journal.Counter < sent.Counter:"},
			pkg: "./roles", test: "TestSemantics/nothing_of_a_journal_that_went_back", says: "got  running a=dispatched",
		},
		{
			name: "an old answer \"nothing\" does not count after a start was sent again", without: "the step is called cancelled, and then the start arrives",
			file: "roles/engine.go", replacement: replacement{"if !st.Status.out() || st.Agent != ev.Agent || st.Dispatch.Fence == e.Fence {", "if !st.Status.out() || st.Agent != ev.Agent {"},
			pkg: "./roles", test: "TestSemantics/cancel:_nothing_does_not_decide", says: "got  cancelled a=cancelled",
		},
		{
			name: "only a known end is followed by another attempt", without: "\"it was intended and never ran\" is taken for an end: attempt 2 is sent, and a doubled start of attempt 1 runs as well",
			file: "roles/event.go", replacement: replacement{
				"return s == AttemptExited || s == AttemptNeverStarted || s == AttemptUnknown\n",
				"return s == AttemptExited || s == AttemptNeverStarted || s == AttemptUnknown || s == AttemptIntended\n",
			},
			pkg: "./roles", test: "TestSemantics/intended_is_not_running|TestTheEngineKeepsItsPromises", says: "got  failed a=failed",
		},
		{
			name: "a running step is not sent again", without: "an owner sends a start for what runs: the agent's journal alone keeps it from running twice",
			file: "roles/pending.go", replacement: replacement{"case st.Status == StepRunning || s.Record.Held ||", "case s.Record.Held ||"},
			pkg: "./roles", test: "TestSemantics/what_runs_goes_on", says: `pending ["send a/1"]`,
		},
		{
			name: "the same attempt is sent again", without: "a new owner makes attempt 2 while attempt 1, which has no known end, may run",
			file: "roles/engine.go", replacement: replacement{"\t\t\tst := e.step(i)\n\t\t\tst.Dispatch.Fence = e.Fence\n\t\t\tst.Unreachable = false\n", "\t\t\te.again(i)\n"},
			pkg: "./roles", test: "TestSemantics/a_new_owner_sends_the_same_attempt", says: `pending ["send a/2"]`,
		},
		{
			name: "a cancel waits for the agent's word", without: "the step is called cancelled; the start that was on its way runs it",
			file: "roles/orders.go", replacement: replacement{"\t\tif st.Status.derived() {\n\t\t\te.become(i, StepCancelled)\n", "\t\tif st.Status.derived() || st.Status.out() {\n\t\t\te.become(i, StepCancelled)\n"},
			pkg: "./roles", test: "TestSemantics/a_cancel_waits_for_what_has", says: "got  cancelled a=cancelled b=cancelled",
		},
		{
			name: "a changed journal puts what was sent in doubt", without: "the owner waits for ever for a journal that is gone",
			file: "roles/engine.go", replacement: replacement{"\t\te.journalChanged(ev)\n", "\t\t_ = e.journalChanged\n"},
			pkg: "./roles", test: "TestSemantics/a_changed_journal_is_doubt", says: "got  running a=dispatched b=dispatched",
		},
		{
			name: "reports raise the journal's counter", without: "the counter of the dispatch is older than the snapshot that is restored, which seems not to have gone back",
			file: "roles/engine.go", replacement: replacement{old: "\t\tst.Dispatch.Journal.Counter = max(st.Dispatch.Journal.Counter, r.Journal.Counter)\n"},
			pkg: "./roles", test: "TestReportsRaiseTheCounter", says: "counter 10 after running, want 20",
		},

		// The agent.
		{
			name: "the fence is checked by the agent", without: "c1's start is delayed; c2 adopts, hears \"nothing\", records the step as cancelled; the start runs it",
			file: "roles/agent/ledger.go", replacement: replacement{"case r != nil && f.less(r.Fence):", "case false && r != nil && f.less(r.Fence):"},
			pkg: "./roles/agent", test: "TestStartOfFormerOwnerIsRefusedAfterAdopt", says: "no refusal of START R/s/1",
		},
		{
			name: "a fence is on disk before adopt is answered", without: "the same, with a power cut in between",
			file: "roles/agent/record.go", replacement: replacement{"kindGeneration, kindFence, kindIntent", "kindGeneration, kindIntent"},
			pkg: "./roles/agent", test: "TestFenceIsOnDiskBeforeTheAnswer", says: "before it was on disk",
		},
		{
			name: "a tombstone stays until an owner has said that the request is final", without: "a doubled start runs the attempt again",
			file: "roles/agent/ledger.go", replacement: replacement{"if r.Final && r.settled() {", "if r.settled() {"},
			pkg: "./roles/agent", test: "TestTrimForgetsOnlyWhatIsFinalAndAcknowledged", says: "by age (-want +got)",
		},
		{
			name: "forgetting raises the floor", without: "the same, after the request is forgotten",
			file: "roles/agent/ledger.go", replacement: replacement{old: "\t\t\tl.floor = maxFence(l.floor, r.Fence)\n"},
			pkg: "./roles/agent", test: "TestDecisions/start_at_the_floor", says: "decision (-want +got)",
		},
		{
			name: "the acknowledgement carries the fence of the owner that persisted the end", without: "the floor ends at the fence of the start; a claimant frozen since then, with a higher one, sends it again",
			file: "roles/agent/ledger.go", replacement: replacement{"\t\t\tbreak\n\t\t}\n\t\tr.Fence = maxFence(r.Fence, rec.Fence)\n", "\t\t\tbreak\n\t\t}\n"},
			pkg: "./roles/agent", test: "TestFloorRisesToTheFenceOfTheAcknowledgement", says: "start with fence 2",
		},
		{
			name: "every command names the journal", without: "a start on its way reaches a machine that was made anew, after the step was recorded in doubt",
			file: "roles/agent/command.go", replacement: replacement{"case m.GetJournal().GetId() != a.journal.id:", "case false:"},
			pkg: "./roles/agent", test: "TestCommandForAnotherJournalIsRefused", says: "no refusal of START R/s/1",
		},
		{
			name: "every command names the journal's counter", without: "the same with a machine set back to a snapshot",
			file: "roles/agent/command.go", replacement: replacement{"case m.GetJournal().GetCounter() > a.journal.counter():", "case false:"},
			pkg: "./roles/agent", test: "TestCommandForALaterStateOfTheJournalIsRefused", says: "no refusal of START R/s/1",
		},
		{
			name: "a command belongs to its link", without: "the same, for a start that was sent when the counter still fitted",
			file: "roles/agent/command.go", replacement: replacement{"case !m.GetLink().Same(l.id):", "case false:"},
			pkg: "./roles/agent", test: "TestCommandBoundToAnotherLinkIsRefused", says: "no refusal of START R/s/1",
		},
		{
			name: "a kill of an unknown attempt is recorded", without: "the kill overtakes the start; the owner records the step as cancelled; then it runs",
			file: "roles/agent/ledger.go", replacement: replacement{
				"\tif r == nil || r.Steps[k.step] == nil {\n\t\treturn decision{records: []record{never}, report: true}\n",
				"\tif r == nil || r.Steps[k.step] == nil {\n\t\treturn decision{report: true}\n",
			},
			pkg: "./roles/agent", test: "TestStartAfterKillOfUnknownAttemptNeverRuns", says: "no NEVER_STARTED of R/s/1",
		},
		{
			name: "the intent is on disk before the start", without: "the agent dies between start and record; the start is repeated and runs again",
			file: "roles/agent/run.go", replacement: replacement{"\tif a.journal.wait(ctx, seq) != nil {\n\t\treturn\n\t}\n\ta.deps.Point(pointIntentDurable)\n", "\ta.deps.Point(pointIntentDurable)\n"},
			pkg: "./roles/agent", test: "TestIntentIsOnDiskBeforeTheStart", says: "before its intent was on disk",
		},
		{
			name: "what is waited for is on disk", without: "power fails: the journal has forgotten what others were told of, and the attempt runs again",
			file: "roles/agent/journal.go", replacement: replacement{"\t\tif err := j.file.Sync(); err != nil {\n\t\t\treturn false, err\n\t\t}\n", ""},
			pkg: "./roles/agent", test: "TestWhatWasWaitedForSurvivesAPowerCut", says: "is lost",
		},
		{
			name: "an end is on disk before it is reported", without: "the owner stores an end that the agent forgets: after another run it ends otherwise",
			file: "roles/agent/link.go", replacement: replacement{"\t\tif err := a.journal.wait(ctx, seq); err != nil {\n\t\t\treturn err\n\t\t}\n\t\treport :=", "\t\treport :="},
			pkg: "./roles/agent", test: "TestEndIsOnDiskBeforeItIsReported", says: "before it was on disk",
		},
		{
			name: "the wrapper says that the command runs before it does", without: "the wrapper is killed while the command runs; it looks as if it never ran, and is run again",
			file: "roles/agent/wrapper.sh", replacement: replacement{"printf 'started %d\\n' \"$$\" >\"$1/status\" || exit 125\n(\n\tshift\n\texec \"$@\"\n)\ncode=$?\n", "(\n\tshift\n\texec \"$@\"\n)\ncode=$?\nprintf 'started %d\\n' \"$$\" >\"$1/status\" || exit 125\n"},
			pkg: "./roles/agent", test: "TestStartedIsWrittenBeforeTheCommandRuns", says: "cat: ../status: No such file or directory",
		},
		{
			name: "after another boot only a whole exit line counts", without: "the power cut took the sign that it had started; it looks as if it never ran, and is run again",
			file: "roles/agent/attempt.go", replacement: replacement{"case !e.sameBoot:", "case false && !e.sameBoot:"},
			pkg: "./roles/agent", test: "TestJudge", says: "other boot, intent only: 4, want 3",
		},
		{
			name: "what runs is not taken for what never ran", without: "the agent restarts and runs it again",
			file: "roles/agent/recover.go", replacement: replacement{"\tswitch v := judge(e); v {\n", "\tswitch v := judge(e)*0 + verdictNeverRan; v {\n"},
			pkg: "./roles/agent", test: "TestAttemptOutlivesTheAgent", says: "no RUNNING of R/s/1",
		},
		{
			name: "attempts of a step do not overlap at the agent", without: "an owner that is mistaken about an end starts a second attempt beside the first",
			file: "roles/agent/ledger.go", replacement: replacement{"case other.Phase.living():\n\t\t\treturn refused(wire.Refusal_OVERLAP, r.Fence)\n", "case false:\n"},
			pkg: "./roles/agent", test: "TestSecondAttemptMustNotOverlap", says: "no refusal of START R/s/2",
		},
	}
}

// TestRules takes every rule out and lets its test notice. Without UAC_FAULT_MUTANTS=1
// it only makes sure that the rules and their tests are still there.
func TestRules(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules() {
		if only := os.Getenv("UAC_FAULT_RULE"); !strings.Contains(r.pkg+": "+r.name, only) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			dir := t.TempDir()
			list, err := overlay(dir, filepath.Join(root, r.file), r.replacement)
			if err != nil {
				t.Fatal(err)
			}
			var run []string // the same, but no other test that begins so
			for name := range strings.SplitSeq(r.test, "|") {
				name, sub, _ := strings.Cut(strings.TrimSuffix(name, "$"), "/")
				run = append(run, strings.TrimSuffix("^"+name+"$/"+sub, "/"))
				if !hasTest(t, filepath.Join(root, r.pkg), name) {
					t.Errorf("%s has no test %s", r.pkg, name)
				}
			}
			if os.Getenv("UAC_FAULT_MUTANTS") == "" {
				return
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-ldflags=-s -w", "-overlay", list, "-count=1", "-timeout=1m", "-run", strings.Join(run, "|"), r.pkg)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "UAC_FAULT_MUTANTS=")
			out, err := cmd.CombinedOutput()
			switch text := string(out); {
			case err == nil:
				t.Errorf("without this rule %s; %s did not notice:\n%s", r.without, r.test, text)
			case strings.Contains(text, "[build failed]") || strings.Contains(text, "no tests to run"):
				t.Errorf("it cannot be taken out:\n%s", text)
			case !strings.Contains(text, r.says):
				t.Errorf("%s does not say %q:\n%s", r.test, r.says, text)
			}
		})
	}
}

// hasTest reports whether a package has a test of that name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
