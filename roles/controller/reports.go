package controller

import (
	"context"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/wire"
)

// fromAgent takes in what an agent says of a request, over whatever link it
// came. Not every report is about a request of ours: what is not is answered
// from the store, or passed on to its owner.
func (d *desk) fromAgent(agent string, m *wire.AgentMessage) {
	switch body := m.GetBody().(type) {
	case *wire.AgentMessage_Report:
		rep := body.Report
		o := d.owned[rep.GetRequest()]
		if o == nil {
			d.strange(agent, rep.GetRequest(), rep.GetFence(), m)
			return
		}
		d.apply(o, reportOf(agent, journalOf(rep.GetJournal()), rep.GetAttempt()))
	case *wire.AgentMessage_Adopted:
		ans := body.Adopted
		o := d.owned[ans.GetRequest()]
		if o == nil {
			d.strange(agent, ans.GetRequest(), ans.GetFence(), m)
			return
		}
		ev := roles.Adopted{Agent: agent, Fence: fenceOf(ans.GetFence()), Journal: journalOf(ans.GetJournal())}
		for _, a := range ans.GetAttempts() {
			ev.Attempts = append(ev.Attempts, reportOf(agent, ev.Journal, a))
		}
		d.apply(o, ev)
	case *wire.AgentMessage_Refused:
		ref := body.Refused
		o := d.owned[ref.GetRequest()]
		if o == nil {
			d.strange(agent, ref.GetRequest(), ref.GetFence(), m)
			return
		}
		d.refused(o, agent, ref)
	}
}

// refusedRetry is how soon a command is sent again that the agent could not
// take now.
const refusedRetry = time.Second

// refused deals with a command that had no effect at the agent.
func (d *desk) refused(o *owned, agent string, ref *wire.Refusal) {
	d.log.Info("agent refused a command", "agent", agent, "request", o.id, "step", ref.GetStep(), "attempt", ref.GetAttempt(),
		"command", ref.GetCommand().String(), "reason", ref.GetReason().String(), "detail", ref.GetDetail())
	if fenceOf(ref.GetFence()) != o.state.Fence {
		return // of an earlier claim
	}
	switch ref.GetReason() {
	case wire.Refusal_STALE_FLOOR:
		d.reclaim(o)
	case wire.Refusal_WRONG_JOURNAL:
		// A journal changes with the link. What else was refused on this one, and
		// comes late from another controller, must not be held against what was
		// dispatched since.
		if l := d.linkTo(agent); l != nil {
			if o.changed[agent] == l.nonce() {
				return
			}
			o.changed[agent] = l.nonce()
		}
		// The command named a journal and a counter that had been reported before
		// it was sent. With the same id, the journal has gone back since.
		id := ref.GetJournal().GetId()
		d.journalChanged(o, roles.JournalChanged{Agent: agent, Journal: id, WentBack: o.reported(agent, id) > 0})
	case wire.Refusal_SUPERSEDED, wire.Refusal_FINAL, wire.Refusal_MALFORMED:
		// The agent will never run it, and what it knows is not what is stored
		// here: for an operator to look at.
		if ref.GetCommand() == wire.Refusal_START {
			d.apply(o, roles.Report{
				Agent: agent, Step: ref.GetStep(), Attempt: int(ref.GetAttempt()), Journal: journalOf(ref.GetJournal()),
				State: roles.AttemptUnknown, Reason: "the agent refused to start it: " + ref.GetDetail(),
			})
		}
	case wire.Refusal_WRONG_LINK, wire.Refusal_OVERLAP, wire.Refusal_BUSY:
		// Sent over a link that was replaced, or too early, or to an agent that has
		// enough to do: again, later, and only what was refused. If each refusal
		// repeated all that the agent was told, they would multiply.
		kind := effectOf[ref.GetCommand()]
		d.after(refusedRetry, func() {
			if d.owned[o.id] != o {
				return
			}
			for eff := range o.performed {
				if eff.Kind == kind && eff.Agent == agent && eff.Step == ref.GetStep() && eff.Attempt == int(ref.GetAttempt()) {
					delete(o.performed, eff)
				}
			}
			d.perform(o)
		})
	}
}

// effectOf says which effect a command performs.
var effectOf = map[wire.Refusal_Command]roles.EffectKind{
	wire.Refusal_START: roles.EffectSend,
	wire.Refusal_KILL:  roles.EffectKill,
	wire.Refusal_ADOPT: roles.EffectAdopt,
	wire.Refusal_ACK:   roles.EffectFinish,
}

// catchUp bounds the wait for what an agent knows already.
const catchUp = time.Second

// strange answers for a request that this desk does not own. Known is a fence that
// the agent was shown for it: an agent that is linked here may have been told of a
// claim by the owner before this view shows it.
func (d *desk) strange(agent, id string, known *wire.Fence, m *wire.AgentMessage) {
	view := d.c.member.View()
	generation, _ := d.c.member.Generation()
	if claimed := known.GetRevision(); known.GetGeneration() == uint64(generation) && view.Revision() < claimed {
		d.tasks.do(func() {
			ctx, cancel := context.WithTimeout(d.ctx, catchUp)
			defer cancel()
			if err := view.Wait(ctx, claimed); err != nil {
				d.log.Debug("report dropped; the agent repeats it", "agent", agent, "request", id, "error", err)
				return
			}
			d.mail.post(func() { d.fromAgent(agent, m) })
		})
		return
	}
	snap := view.Snapshot()
	state, claim, fence, ok, err := loadRequest(snap, id)
	if !ok && err == nil {
		d.fromHistory(snap, agent, id, m)
		return
	}
	if err != nil {
		d.log.Warn("agent reports a request that cannot be read", "agent", agent, "request", id, "error", err)
		return
	}
	if claim.Node != "" && claim.Node != d.c.cfg.Name && coord.SessionEpoch(snap, claim.Node) == claim.Epoch {
		d.tasks.do(func() {
			if err := d.c.passOn(d.ctx, claim.Node, agent, m); err != nil {
				d.log.Debug("report not passed on; the agent repeats it", "request", id, "owner", claim.Node, "error", err)
			}
		})
		return
	}
	if !state.Record.Status.Final() {
		return // nobody's at the moment: its next owner asks the agent
	}
	d.sayAgain(agent, id, state, fence, m)
}

// fromHistory is strange for a request that is not in the store.
func (d *desk) fromHistory(snap coord.Snapshot, agent, id string, m *wire.AgentMessage) {
	d.tasks.do(func() {
		ctx, cancel := context.WithTimeout(d.ctx, catchUp)
		defer cancel()
		state, _, fence, err := d.c.stateOf(ctx, snap, id)
		if err != nil {
			d.log.Warn("agent reports an unknown request", "agent", agent, "request", id, "error", err)
			return
		}
		d.mail.post(func() { d.sayAgain(agent, id, state, fence, m) })
	})
}

// sayAgain acknowledges a report of a final request: whoever is asked can say again
// what its last owner said.
func (d *desk) sayAgain(agent, id string, state roles.State, fence roles.Fence, m *wire.AgentMessage) {
	o := &owned{id: id, state: state}
	rep := m.GetReport()
	if rep == nil {
		return
	}
	d.send(o, roles.Effect{
		Kind: roles.EffectAck, Agent: agent, Step: rep.GetAttempt().GetStep(),
		Attempt: int(rep.GetAttempt().GetAttempt()), Fence: fence,
	})
}

func fenceOf(f *wire.Fence) roles.Fence {
	return roles.Fence{Generation: f.GetGeneration(), Revision: f.GetRevision()}
}

func journalOf(j *wire.Journal) roles.Journal {
	return roles.Journal{ID: j.GetId(), Counter: j.GetCounter()}
}

var attemptStates = map[wire.State]roles.AttemptState{
	wire.State_ACCEPTED:      roles.AttemptAccepted,
	wire.State_INTENDED:      roles.AttemptIntended,
	wire.State_RUNNING:       roles.AttemptRunning,
	wire.State_EXITED:        roles.AttemptExited,
	wire.State_NEVER_STARTED: roles.AttemptNeverStarted,
	wire.State_UNKNOWN:       roles.AttemptUnknown,
}

func reportOf(agent string, journal roles.Journal, a *wire.Attempt) roles.Report {
	stopped := a.GetEnd().GetStopped()
	return roles.Report{
		Agent: agent, Journal: journal, Step: a.GetStep(), Attempt: int(a.GetAttempt()), State: attemptStates[a.GetState()],
		ExitCode: int(a.GetEnd().GetCode()), Signal: int(a.GetEnd().GetSignal()), Reason: a.GetEnd().GetReason(),
		// The time without a controller is a time limit, too: who exits with 0 because of
		// it has not succeeded.
		TimedOut: stopped == wire.Stop_TIMED_OUT || stopped == wire.Stop_ALONE, Killed: stopped == wire.Stop_KILLED,
		Frozen: a.GetFrozen(), NoOutput: a.GetNoOutput(), Acked: a.GetAcknowledged(),
		Outputs:   a.GetEnd().GetOutputs(),
		StartedAt: stampOf(a.GetStartedUnixNano()), FinishedAt: stampOf(a.GetEndedUnixNano()),
	}
}

func stampOf(nanos int64) roles.Stamp {
	if nanos == 0 {
		return ""
	}
	return roles.StampOf(time.Unix(0, nanos))
}
