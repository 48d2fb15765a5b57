package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"uac/roles/wire"
)

// command is what all commands have in common.
type command struct {
	kind    wire.Refusal_Command
	key     key // of an adopt: only the request
	fence   *wire.Fence
	problem string // what is wrong with it in itself
}

// handle obeys one message, or refuses it. It never waits for the disk, so that
// commands which come together share an fsync.
func (a *Agent) handle(ctx context.Context, l *link, m *wire.ControllerMessage) {
	switch body := m.GetBody().(type) {
	case *wire.ControllerMessage_Start:
		a.start(l, m, body.Start)
	case *wire.ControllerMessage_Kill:
		a.kill(l, m, body.Kill)
	case *wire.ControllerMessage_Adopt:
		a.adopt(l, m, body.Adopt)
	case *wire.ControllerMessage_Ack:
		a.ack(l, m, body.Ack)
	case *wire.ControllerMessage_ReadOutput:
		a.readOutput(ctx, l, body.ReadOutput)
	case *wire.ControllerMessage_CancelRead:
		l.cancelRead(body.CancelRead.GetId())
	case *wire.ControllerMessage_OutputTaken:
		l.taken(body.OutputTaken.GetId(), body.OutputTaken.GetChunks())
	case *wire.ControllerMessage_Ping:
		a.answered(l, body.Ping)
		l.answer(func() (*wire.AgentMessage, uint64) {
			return &wire.AgentMessage{Body: &wire.AgentMessage_Pong{Pong: &wire.Pong{Number: body.Ping.GetNumber(), Busy: a.busy()}}}, 0
		})
	default:
		a.log.Warn("message of an unknown kind ignored", "controller", l.controller)
	}
}

func (a *Agent) start(l *link, m *wire.ControllerMessage, c *wire.Start) {
	cmd := command{wire.Refusal_START, key{c.GetRequest(), c.GetStep(), c.GetAttempt()}, c.GetFence(), malformedStart(c)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.addressed(l, m, cmd) {
		return
	}
	d := a.ledger.start(c, a.boot, a.cfg.KillGrace)
	if d.launch && a.queued >= a.cfg.MaxQueued+a.cfg.MaxAttempts {
		d = refused(wire.Refusal_BUSY, fence{})
	}
	if d.launch {
		d.records = append(a.contactRecord(c), d.records...) // the intent stays the last
	}
	seq, ok := a.obey(l, cmd, d)
	if ok && d.launch {
		a.spawn(c, seq)
	}
}

func (a *Agent) kill(l *link, m *wire.ControllerMessage, c *wire.Kill) {
	cmd := command{wire.Refusal_KILL, key{c.GetRequest(), c.GetStep(), c.GetAttempt()}, c.GetFence(), ""}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.addressed(l, m, cmd) {
		a.obey(l, cmd, a.ledger.kill(c))
	}
}

func (a *Agent) adopt(l *link, m *wire.ControllerMessage, c *wire.Adopt) {
	cmd := command{wire.Refusal_ADOPT, key{request: c.GetRequest()}, c.GetFence(), ""}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.addressed(l, m, cmd) {
		return
	}
	if _, ok := a.obey(l, cmd, a.ledger.adopt(c)); ok {
		l.answer(func() (*wire.AgentMessage, uint64) { return a.adopted(c) })
	}
}

func (a *Agent) ack(l *link, m *wire.ControllerMessage, c *wire.Ack) {
	cmd := command{wire.Refusal_ACK, key{c.GetRequest(), c.GetStep(), c.GetAttempt()}, c.GetFence(), ""}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.addressed(l, m, cmd) {
		return
	}
	d := a.ledger.ack(c, time.Now().UnixNano())
	if len(d.records) == 0 {
		return
	}
	a.commit(d.records...)
	for _, rec := range d.records {
		switch rec.Kind {
		case kindEnd:
			a.notify(rec.key())
		case kindAck:
			if rec.Step != "" {
				a.retired = append(a.retired, rec.key())
				a.kickHouse()
			}
		}
	}
	a.deps.Point(pointAckAppended)
}

// addressed reports whether a command is meant for this agent as it is now, and
// refuses it if not. The caller holds a.mu.
func (a *Agent) addressed(l *link, m *wire.ControllerMessage, cmd command) bool {
	d := decision{detail: cmd.problem}
	switch {
	case m.GetJournal().GetId() != a.journal.id:
		d.refuse, d.detail = wire.Refusal_WRONG_JOURNAL, fmt.Sprintf("it is for journal %s", m.GetJournal().GetId())
	case m.GetJournal().GetCounter() > a.journal.counter():
		// What the sender has seen of this journal is not in it any more.
		d.refuse, d.detail = wire.Refusal_WRONG_JOURNAL, fmt.Sprintf("it is for the journal at %d, which has been set back", m.GetJournal().GetCounter())
	case !m.GetLink().Same(l.id):
		d.refuse, d.detail = wire.Refusal_WRONG_LINK, fmt.Sprintf("it is for link %d", m.GetLink().GetNumber())
	case cmd.problem != "":
		d.refuse = wire.Refusal_MALFORMED
	case malformed(cmd) != "":
		d.refuse, d.detail = wire.Refusal_MALFORMED, malformed(cmd)
	default:
		return true
	}
	a.refuse(l, cmd, d)
	return false
}

// obey makes a decision true, and returns the number of its last record. The caller
// holds a.mu.
func (a *Agent) obey(l *link, cmd command, d decision) (seq uint64, ok bool) {
	if d.refuse != 0 {
		a.refuse(l, cmd, d)
		return 0, false
	}
	seq = a.commit(d.records...)
	a.routes[cmd.key.request] = l
	if d.report {
		a.notify(cmd.key)
	}
	for _, rec := range d.records {
		if rec.Kind == kindEnd && rec.key() != cmd.key {
			a.notify(rec.key())
		}
	}
	if r := a.runs[cmd.key]; r != nil && (d.cancel || d.stop) {
		r.notify()
	}
	return seq, true
}

func (a *Agent) refuse(l *link, cmd command, d decision) {
	a.metrics.Add(MetricRefused, 1)
	a.log.Info("command refused", "command", cmd.kind.String(), "request", cmd.key.request, "step", cmd.key.step,
		"attempt", cmd.key.attempt, "fence", fenceOf(cmd.fence).String(), "reason", d.refuse.String(), "detail", d.detail, "controller", l.controller)
	l.answer(func() (*wire.AgentMessage, uint64) {
		r := &wire.Refusal{
			Command: cmd.kind, Request: cmd.key.request, Step: cmd.key.step, Attempt: cmd.key.attempt,
			Fence: cmd.fence, Reason: d.refuse, Detail: d.detail, Journal: a.journalState(),
		}
		if d.known != (fence{}) {
			r.Known = d.known.wire()
		}
		return &wire.AgentMessage{Body: &wire.AgentMessage_Refused{Refused: r}}, 0
	})
}

// adopted returns the answer to an adopt, and what must be on disk before.
func (a *Agent) adopted(c *wire.Adopt) (*wire.AgentMessage, uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := &wire.AdoptAnswer{Request: c.GetRequest(), Fence: c.GetFence()}
	seq := uint64(0)
	if r := a.ledger.requests[c.GetRequest()]; r != nil {
		answer.Attempts, seq = r.describe(), r.seq
	}
	return &wire.AgentMessage{Body: &wire.AgentMessage_Adopted{Adopted: answer}}, seq
}

// malformed says what is wrong with the names and numbers of a command.
func malformed(c command) string {
	switch {
	case fenceOf(c.fence).Revision <= 0:
		return "the fence is missing"
	case c.kind == wire.Refusal_ADOPT || c.kind == wire.Refusal_ACK && c.key.step == "":
		return problemOfName("request", c.key.request)
	}
	return c.key.problem()
}

// malformedStart says what is wrong with what a start wants to be run.
func malformedStart(c *wire.Start) string {
	for name, value := range c.GetEnv() {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return fmt.Sprintf("environment variable %q: cannot be set", name)
		}
	}
	for name, value := range c.GetParams() {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return fmt.Sprintf("parameter %q: cannot be passed", name)
		}
	}
	switch {
	case c.GetDir() != "" && !filepath.IsAbs(c.GetDir()):
		return fmt.Sprintf("working directory %q: must be absolute", c.GetDir())
	case strings.Contains(c.GetDir(), "\x00"):
		return fmt.Sprintf("working directory %q: cannot exist", c.GetDir())
	case c.GetTimeoutNanos() < 0 || c.GetKillGraceNanos() < 0 || c.GetStopWhenAloneNanos() < 0:
		return "timeout, kill grace and stop_when_alone must not be negative"
	case c.GetOutputLimit() < 0:
		return "the limit of the output must not be negative"
	case c.GetScript() != "" && len(c.GetArgv()) > 0:
		return "there is a script and a command line: only one of them can be run"
	}
	if p := malformedArgv(c.GetArgv()); p != "" {
		return p
	}
	if p := malformedOutputs(c.GetOutputs()); p != "" {
		return p
	}
	return malformedRunAs(c)
}

// malformedArgv says what is wrong with a command line.
func malformedArgv(argv []string) string {
	for i, arg := range argv {
		switch {
		case strings.Contains(arg, "\x00"):
			return fmt.Sprintf("argument %d of the command line: cannot be passed", i)
		case i == 0 && (arg == "" || strings.HasPrefix(arg, "-")): // the shell's exec would take it for an option
			return fmt.Sprintf("command %q: no program can have this name", arg)
		}
	}
	return ""
}
