package roles

import (
	"slices"
	"time"
)

// Event is something that happened to a request: one of the types below.
type Event interface{ event() }

// Claimed says that the caller has claimed the request, anew or again. A fence of
// a higher generation than the record's holds the request.
type Claimed struct{ Fence Fence }

// AgentChosen says which agent a ready step is to run on. The next attempt is
// dispatched to it. Journal is what the hello of the link said that the attempt is
// about to be sent on.
type AgentChosen struct {
	Step    string
	Agent   string
	Journal Journal
}

// Expanded says which agents a ready step with for_each is to run on: those that are
// known and not suspended, connected or not. It begins with an instance for each.
// Without one it fails. LeftOut are those that match and are suspended, for people.
type Expanded struct {
	Step    string
	Agents  []string
	LeftOut []string
}

// AttemptState is what an agent's journal says of an attempt.
type AttemptState string

// The states of an attempt. The last three are ends: the agent will do nothing more
// for the attempt, and repeats the report until it is acknowledged.
const (
	// AttemptAccepted will be started by the agent as soon as it may.
	AttemptAccepted AttemptState = "accepted"
	// AttemptIntended has not run, and the agent does not start it by itself. This
	// is no end: a copy of the start may be on its way.
	AttemptIntended     AttemptState = "intended"
	AttemptRunning      AttemptState = "running"
	AttemptExited       AttemptState = "exited"
	AttemptNeverStarted AttemptState = "never_started"
	AttemptUnknown      AttemptState = "unknown"
)

func (s AttemptState) end() bool {
	return s == AttemptExited || s == AttemptNeverStarted || s == AttemptUnknown
}

func (s AttemptState) valid() bool {
	return s.end() || s == AttemptAccepted || s == AttemptIntended || s == AttemptRunning
}

// Report is what an agent says of one attempt.
type Report struct {
	Agent   string
	Step    string
	Attempt int
	// Journal is the one that the report comes from, with its counter at that time.
	Journal Journal
	State   AttemptState
	// ExitCode, Signal, TimedOut and Killed describe an exit. ExitCode is 128+n
	// after signal n; TimedOut and Killed say that the agent stopped the attempt,
	// for its timeout or because it was told to.
	ExitCode   int
	Signal     int
	TimedOut   bool
	Killed     bool
	Outputs    Outputs
	Reason     string // why never started, or unknown
	Frozen     bool   // its processes are stopped until output is collected
	NoOutput   bool   // it has exited, wrote nothing, and nobody is left who could
	Acked      bool   // the agent knows that its end is stored
	StartedAt  Stamp
	FinishedAt Stamp
}

// Adopted is an agent's answer to adopt: it has recorded the fence, and Attempts is
// all that its journal has of the request. Agent and Journal are taken from here,
// not from the reports.
type Adopted struct {
	Agent    string
	Fence    Fence
	Journal  Journal
	Attempts []Report
}

// JournalChanged says that an agent came back without the journal that it had:
// Journal is another id, or the journal WentBack, as after a return to a snapshot.
// The caller compares counters, because only it can tell a hello that went back
// from one that was overtaken on the way by reports over another link.
type JournalChanged struct {
	Agent    string
	Journal  string // id that it has now
	WentBack bool   // the counter is below the highest that the agent ever reported
}

// AgentUnreachable says that no controller has a link to the agent.
type AgentUnreachable struct{ Agent string }

// AgentReachable says that a controller has a link to the agent again.
type AgentReachable struct{ Agent string }

// RetryDue says that the delay of an effect Wait is over.
type RetryDue struct {
	Step    string
	Attempt int
}

func (Claimed) event()          {}
func (AgentChosen) event()      {}
func (Expanded) event()         {}
func (Report) event()           {}
func (Adopted) event()          {}
func (JournalChanged) event()   {}
func (AgentUnreachable) event() {}
func (AgentReachable) event()   {}
func (RetryDue) event()         {}

// EffectKind says what is to be done.
type EffectKind string

// The kinds of effects. All but EffectChooseAgent, EffectExpand and EffectWait reach
// beyond the caller and may be performed only when the state that asks for them is stored.
const (
	// EffectChooseAgent: find an agent for a ready step and say AgentChosen. If
	// Agent is set, it must be that one. Nothing is due while there is none.
	EffectChooseAgent EffectKind = "choose_agent"
	// EffectExpand: find the agents of a ready step with for_each and say Expanded.
	EffectExpand EffectKind = "expand"
	// EffectWait: say RetryDue after Delay from now.
	EffectWait EffectKind = "wait"
	// EffectAdopt: tell the agent the fence, and say Adopted with its answer.
	EffectAdopt EffectKind = "adopt"
	// EffectSend: send the agent the start of the attempt, to that journal only.
	EffectSend EffectKind = "send"
	// EffectKill: tell the agent to end the attempt or never to start it.
	EffectKill EffectKind = "kill"
	// EffectAck: tell the agent that the end of the attempt is stored.
	EffectAck EffectKind = "ack"
	// EffectFinish: tell the agent that the request is final.
	EffectFinish EffectKind = "finish"
)

// Effect is one thing that is to be done, any number of times. Effects are equal if
// and only if doing one does the other.
type Effect struct {
	Kind    EffectKind
	Agent   string
	Step    string
	Attempt int
	Journal string // id; of send and kill
	Fence   Fence
	Delay   time.Duration // of wait
}

// Change says what an event changed and what answers it.
type Change struct {
	// Record says that the status record must be written.
	Record bool
	// Steps names the steps whose records must be written.
	Steps []string
	// Replies answer the reports in the event, when all that must be written is
	// stored. They are not pending: the agent repeats a report until it is answered.
	Replies []Effect
	// Late are reports of attempts whose end an operator had decided without them.
	// They change nothing, and are worth telling of.
	Late []Report
}

// And returns what two changes in a row say together.
func (c Change) And(next Change) Change {
	c.Record = c.Record || next.Record
	for _, name := range next.Steps {
		if !slices.Contains(c.Steps, name) {
			c.Steps = append(c.Steps, name)
		}
	}
	c.Replies = append(c.Replies, next.Replies...)
	c.Late = append(c.Late, next.Late...)
	return c
}
