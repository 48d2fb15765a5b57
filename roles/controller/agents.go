package controller

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
)

// route is a way to an agent: a link that this controller holds, or one that
// another controller holds and carries messages over.
type route interface {
	agent() string
	hello() *wire.Hello
	// nonce tells this route from every other one, also from another one over the
	// same link: what was given to a route that failed is lost.
	nonce() string
	// send queues a message and reports whether that was possible. It does not
	// block.
	send(m *wire.ControllerMessage) bool
	// local reports whether this controller holds the link itself.
	local() bool
	// gone reports whether the link has ended.
	gone() bool
	// close ends a route that is not used any more; a link that this controller
	// holds stays.
	close()
}

type localRoute struct{ l *link }

func (r localRoute) agent() string                       { return r.l.agent }
func (r localRoute) hello() *wire.Hello                  { return r.l.hello }
func (r localRoute) nonce() string                       { return linkNonce(r.l.hello) }
func (r localRoute) send(m *wire.ControllerMessage) bool { return r.l.send(m) }
func (r localRoute) local() bool                         { return true }
func (r localRoute) gone() bool                          { return r.l.ctx.Err() != nil }
func (r localRoute) close()                              {}

func linkNonce(h *wire.Hello) string {
	return fmt.Sprintf("%d/%x", h.GetLink().GetNumber(), h.GetLink().GetNonce())
}

// agentBook is what the desk knows of agents.
type agentBook struct {
	*fleet
	// routes are the links in use, by agent.
	routes map[string]route
	// asking are the questions for links that are on their way, missing the
	// agents without a link whose absence may become a mark.
	asking, missing map[string]bool
	// twins are agents that may be two machines.
	twins map[string]bool
	// journals are the last changes of an agent's journal that were told.
	journals map[string]string
}

func newAgentBook() *agentBook {
	return &agentBook{
		fleet:   newFleet(),
		routes:  map[string]route{},
		asking:  map[string]bool{},
		missing: map[string]bool{},
		twins:   map[string]bool{},

		journals: map[string]string{},
	}
}

// targets returns the agents that a step with for_each runs on, connected or not.
// leftOut are those that match and are suspended.
func (b *agentBook) targets(t *roles.Targets) (found, leftOut []string) {
	for _, sel := range t.Selectors() {
		found = append(found, b.meant(sel)...)
		leftOut = append(leftOut, b.suspended(sel)...)
	}
	return found, leftOut
}

// linkTo returns the link in use to an agent, nil if there is none.
func (d *desk) linkTo(agent string) route {
	r, ok := d.agents.routes[agent]
	if !ok {
		return nil
	}
	return r
}

// linkUp takes a checked link into use and does everything that waited for it.
func (d *desk) linkUp(r route) {
	agent := r.agent()
	if r.local() && r.gone() {
		return // a newer link has been told of already, or that there is none
	}
	old := d.linkTo(agent)
	if old != nil && old.local() && !r.local() {
		r.close()
		return // our own link is the shorter way
	}
	if old != nil {
		old.close()
	}
	d.agents.routes[agent] = r
	delete(d.agents.missing, agent)
	journal := journalOf(r.hello().GetJournal())
	for _, o := range d.byAgent[agent] {
		d.meet(o, agent, journal)
	}
	d.waiting.due[dueAgent(agent)] = true
}

// meet tells a request that an agent is there, with this journal.
func (d *desk) meet(o *owned, agent string, journal roles.Journal) {
	other, behind, unreachable := false, false, false
	for _, st := range o.state.Steps {
		if st.Agent != agent {
			continue
		}
		j := st.Dispatch.Journal
		other = other || j.ID != "" && j.ID != journal.ID
		behind = behind || j.ID == journal.ID && journal.Counter < j.Counter
		unreachable = unreachable || st.Unreachable
	}
	if unreachable {
		d.apply(o, roles.AgentReachable{Agent: agent})
	}
	if other {
		d.journalChanged(o, roles.JournalChanged{Agent: agent, Journal: journal.ID})
	}
	if behind && !o.state.Record.Status.Final() {
		// Either reports over another link were faster than this hello, or the
		// machine was set back to a snapshot. A command that names the highest
		// counter ever reported tells: the latter refuses it.
		adopt := roles.Effect{Kind: roles.EffectAdopt, Agent: agent, Fence: o.state.Fence}
		if link := d.linkTo(agent); d.send(o, adopt) {
			o.performed[adopt] = link.nonce() // it may be pending as well
		}
	}
	d.perform(o)
}

// journalChanged tells a request that an agent's journal is not what it was. If that
// puts steps in doubt, operators are told why, once for each journal.
func (d *desk) journalChanged(o *owned, ev roles.JournalChanged) {
	change, told := "another", ev.Journal
	if ev.WentBack {
		change = "went back"
		if r := d.linkTo(ev.Agent); r != nil {
			told += " " + r.nonce()
		}
	}
	var writes []coord.Write
	for _, st := range o.state.Steps {
		lost := st.Agent == ev.Agent && (st.Status == roles.StepDispatched || st.Status == roles.StepRunning) &&
			(ev.WentBack || st.Dispatch.Journal.ID != ev.Journal)
		if lost && d.agents.journals[ev.Agent] != told {
			d.agents.journals[ev.Agent] = told
			writes = append(writes, d.c.event(api.Event{Kind: "agent.journal", Subject: ev.Agent, Detail: map[string]string{
				"change": change, "journal": ev.Journal, "known": st.Dispatch.Journal.ID, "request": o.id,
			}}))
		}
	}
	d.apply(o, ev, writes...)
}

// linkDown takes a link out of use; another controller may still hold one.
func (d *desk) linkDown(r route) {
	r.close()
	if now := d.linkTo(r.agent()); now == nil || now.nonce() != r.nonce() {
		return
	}
	delete(d.agents.routes, r.agent())
	for _, o := range d.byAgent[r.agent()] {
		d.perform(o)
	}
	// What runs there asks for nothing, and is unreachable all the same.
	d.unreachable(r.agent())
	d.lookElsewhere(r.agent())
}

// relink looks at a change of who holds links to an agent.
func (d *desk) relink(key string) {
	agent, _ := requestOf(key, prefixLinks)
	d.settleTwins(agent)
	if d.linkTo(agent) == nil && (len(d.byAgent[agent]) > 0 || len(d.waiting.queues) > 0) {
		d.lookElsewhere(agent)
	}
}

// lookElsewhere asks the controllers that hold a link to the agent to carry
// messages over it. One question at a time to each of them.
func (d *desk) lookElsewhere(agent string) {
	snap := d.c.member.View().Snapshot()
	for controller, rec := range linksOf(snap, agent) {
		asked := agent + "/" + controller
		if controller == d.c.cfg.Name || !rec.held(snap, controller) || d.agents.asking[asked] {
			continue
		}
		d.agents.asking[asked] = true
		d.tasks.do(func() {
			r, err := d.peek(controller, agent)
			d.mail.post(func() {
				delete(d.agents.asking, asked)
				if err != nil {
					d.log.Debug("no link there", "agent", agent, "controller", controller, "error", err)
					return
				}
				d.linkUp(r)
			})
		})
	}
}

// lookAgain looks for links that were not found, because those who might have
// them could not be asked. No change in the store tells when they can.
func (d *desk) lookAgain() {
	for agent, requests := range d.byAgent {
		if len(requests) > 0 && d.linkTo(agent) == nil {
			d.lookElsewhere(agent)
		}
	}
	for agent := range d.agents.twins {
		d.settleTwins(agent)
	}
	d.waiting.due[dueAll] = true
}

// unreachableAfter is how long nobody has had a link to an agent before its
// steps say so: agents come back within moments after every fail-over.
const unreachableAfter = 2 * time.Second

// unreachable marks the steps of an agent that nobody has a link to, if that
// lasts. It changes nothing but the mark: unreachable is not dead.
func (d *desk) unreachable(agent string) {
	if d.agents.missing[agent] {
		return
	}
	d.agents.missing[agent] = true
	d.lookElsewhere(agent)
	d.after(unreachableAfter, func() {
		if !d.agents.missing[agent] || d.linkTo(agent) != nil {
			return
		}
		delete(d.agents.missing, agent)
		for _, o := range d.byAgent[agent] {
			for _, st := range o.state.Steps {
				if st.Agent == agent && !st.Unreachable && (st.Status == roles.StepDispatched || st.Status == roles.StepRunning) {
					d.apply(o, roles.AgentUnreachable{Agent: agent})
					break
				}
			}
		}
	})
}

// offer is an agent for a step.
type offer struct {
	agent   string
	cluster string // that the step was given to, "" for none
	journal roles.Journal
	// gates are the limits that the step passes. Open says that, as far as is known
	// here, each lets another one pass.
	gates []gate
	open  bool
}

// agentFor finds the agent for a ready step: the one that the request's equal
// selectors chose before, else one that matches, is connected, is not suspended and
// has room. It reports false if there is none for now.
func (d *desk) agentFor(state roles.State, eff roles.Effect) (offer, bool) {
	sel := state.Def(state.Index(eff.Step)).Agent
	pick := eff.Agent
	if pick == "" {
		pick = d.pickAgent(state.Request.ID, sel)
	}
	if pick == "" {
		d.askFor(sel)
		return offer{}, false
	}
	r := d.linkTo(pick)
	if r == nil {
		d.lookElsewhere(pick)
		return offer{}, false
	}
	if !uses(state, pick) {
		rec := d.agents.agents[pick]
		cluster, known := d.agents.clusters[sel.Cluster]
		if rec.Suspended || known && !cluster.serves(pick, rec.Labels) {
			return offer{}, false
		}
	}
	off := offer{agent: pick, cluster: sel.Cluster, journal: journalOf(r.hello().GetJournal()), gates: d.agents.gates(sel.Cluster, pick)}
	off.open = d.openFor(off.gates)
	return off, true
}

// openFor reports whether another step may pass all of the gates.
func (d *desk) openFor(gates []gate) bool {
	return !slices.ContainsFunc(gates, func(g gate) bool { return !open(g, d.load) })
}

// pickAgent chooses among the connected agents that a selector means: by the rule of
// its cluster, else by rendezvous hashing among those with the shortest way. Agents
// with room go before those that have reached a limit.
func (d *desk) pickAgent(request string, sel roles.Selector) string {
	var linked, roomy []string
	for _, name := range d.agents.meant(sel) {
		if d.linkTo(name) == nil {
			continue
		}
		linked = append(linked, name)
		if d.openFor(d.agents.gates(sel.Cluster, name)) {
			roomy = append(roomy, name)
		}
	}
	if len(roomy) > 0 {
		linked = roomy
	}
	if len(linked) == 0 {
		return ""
	}
	key := request + sel.String()
	switch d.agents.clusters[sel.Cluster].Distribution {
	case roles.DistributeRoundRobin:
		d.askFor(sel)
		return after(linked, d.load.newest(sel.Cluster))
	case roles.DistributeLeastLoad:
		d.askFor(sel)
		return least(linked, key, func(name string) int { return d.load.of("", name) })
	}
	return least(linked, key, func(name string) int {
		if d.linkTo(name).local() {
			return 0
		}
		return 1
	})
}

// uses reports whether a request has begun to use an agent. It goes on there,
// also after the agent was suspended.
func uses(s roles.State, agent string) bool {
	return slices.ContainsFunc(s.Steps, func(st *roles.Step) bool { return st.Agent == agent })
}

// askFor looks for links at other controllers to agents that a selector means.
func (d *desk) askFor(sel roles.Selector) {
	for _, name := range d.agents.meant(sel) {
		if d.linkTo(name) == nil {
			d.lookElsewhere(name)
		}
	}
}

// reported is the highest counter that an agent's journal ever showed in what
// is stored of this request.
func (o *owned) reported(agent, journal string) uint64 {
	highest := uint64(0)
	for _, st := range o.state.Steps {
		if st.Agent == agent && st.Dispatch.Journal.ID == journal {
			highest = max(highest, st.Dispatch.Journal.Counter)
		}
	}
	return highest
}

// send performs one effect that goes to an agent.
func (d *desk) send(o *owned, eff roles.Effect) bool {
	r := d.linkTo(eff.Agent)
	if r == nil {
		return false
	}
	m := &wire.ControllerMessage{Link: r.hello().GetLink(), Journal: r.hello().GetJournal()}
	fence := &wire.Fence{Generation: eff.Fence.Generation, Revision: eff.Fence.Revision}
	attempt := uint32(eff.Attempt)
	switch eff.Kind {
	case roles.EffectAdopt:
		m.Journal = &wire.Journal{Id: m.Journal.GetId(), Counter: max(o.reported(eff.Agent, m.Journal.GetId()), m.Journal.GetCounter())}
		m.Body = &wire.ControllerMessage_Adopt{Adopt: &wire.Adopt{Request: o.id, Fence: fence}}
	case roles.EffectSend, roles.EffectKill:
		i := o.state.Index(eff.Step)
		if eff.Journal != m.Journal.GetId() {
			return false // JournalChanged decides
		}
		// The highest counter ever reported: a machine set back to a snapshot is
		// behind it and refuses.
		m.Journal = &wire.Journal{Id: eff.Journal, Counter: max(o.state.Steps[i].Dispatch.Journal.Counter, m.Journal.GetCounter())}
		if eff.Kind == roles.EffectKill {
			m.Body = &wire.ControllerMessage_Kill{Kill: &wire.Kill{Request: o.id, Step: eff.Step, Attempt: attempt, Fence: fence}}
			break
		}
		start := startOf(o.state, i)
		start.Attempt, start.Fence = attempt, fence
		m.Body = &wire.ControllerMessage_Start{Start: start}
	case roles.EffectAck:
		m.Body = &wire.ControllerMessage_Ack{Ack: &wire.Ack{
			Request: o.id, Step: eff.Step, Attempt: attempt, Fence: fence, Final: o.state.Record.Status.Final(),
		}}
	case roles.EffectFinish:
		m.Body = &wire.ControllerMessage_Ack{Ack: &wire.Ack{Request: o.id, Fence: fence, Final: true}}
	default:
		return false
	}
	return r.send(m)
}

// startOf says what step i of a request runs, and how.
func startOf(s roles.State, i int) *wire.Start {
	def := s.Def(i)
	env := def.Env
	if outputs := s.Outputs(i); len(outputs) > 0 {
		env = maps.Clone(outputs) // no name of def.Env begins like theirs
		maps.Copy(env, def.Env)
	}
	return &wire.Start{
		Request: s.Request.ID, Step: s.Steps[i].Name,
		Script: def.Run, Argv: def.Argv, Stdin: []byte(def.Stdin), Env: env, Params: s.Request.Params,
		Dir: def.Dir, RunAs: def.RunAs, TimeoutNanos: int64(def.Timeout), KillGraceNanos: int64(def.KillGrace),
		OutputLimit: int64(def.OutputLimit), Outputs: def.Outputs, Priority: int32(def.Priority), //nolint:gosec // Validate limits it
		StopWhenAloneNanos: int64(def.StopWhenAlone),
	}
}
