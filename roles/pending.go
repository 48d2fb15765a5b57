package roles

import (
	"slices"
	"time"
)

// Pending returns what is to be done in a state, in a fixed order. It depends on
// what is stored and on nothing else, so whoever loads the request finds the same.
// Doing an effect again is harmless; the caller need not do it again before a link
// or the state has changed.
func Pending(s State) []Effect {
	if s.Fence == (Fence{}) {
		return nil
	}
	var effects []Effect
	if s.Record.Status.Final() {
		return s.finishes(effects)
	}
	// Agents that have yet to answer adopt: nothing is sent to them before.
	var silent []string
	for _, st := range s.Steps {
		if st.out() && st.Dispatch.Fence != s.Fence && !slices.Contains(silent, st.Agent) {
			silent = append(silent, st.Agent)
			effects = append(effects, Effect{Kind: EffectAdopt, Agent: st.Agent, Fence: s.Fence})
		}
	}
	var agents []string // by selector; none until a ready step asks
	parent, before, taken := -1, 0, places{}
	for i, st := range s.Steps {
		if p := s.plan.of(i); p != parent { // instances of one step stand together
			parent, before, taken = p, 0, s.places(p)
		}
		free := taken.free(st, before)
		if st.retries() {
			before++
		}
		switch {
		case st.Abandoned:
			effects = append(effects, s.attempt(EffectKill, st))
		case st.out():
			kind := EffectSend
			switch {
			case st.Dispatch.Fence != s.Fence:
				continue
			case s.Record.Cancel != nil:
				kind = EffectKill
			case st.Status == StepRunning || s.Record.Held || slices.Contains(silent, st.Agent):
				continue
			}
			effects = append(effects, s.attempt(kind, st))
		case st.Status == StepReady && st.BackingOff:
			effects = append(effects, Effect{
				Kind: EffectWait, Step: st.Name, Attempt: st.Attempt, Delay: time.Duration(s.Def(i).Retry.Delay),
			})
		case st.Status == StepReady && s.Def(i).ForEach != nil:
			effects = append(effects, Effect{Kind: EffectExpand, Step: st.Name})
		case st.Status == StepReady:
			if !free {
				continue
			}
			if agents == nil {
				agents = s.choices()
			}
			const asked = "?" // no agent is called so
			agent := agents[s.plan.selector[i]]
			if agent == asked {
				continue // the choice for the step before holds for this one too
			}
			if agent == "" {
				agents[s.plan.selector[i]] = asked
			}
			effects = append(effects, Effect{Kind: EffectChooseAgent, Step: st.Name, Attempt: st.Attempt + 1, Agent: agent})
		}
	}
	return effects
}

// choices returns the agent that each selector has chosen, or nothing.
func (s *State) choices() []string {
	agents := slices.Clone(s.plan.named)
	for i, st := range s.Steps {
		if st.Agent != "" {
			agents[s.plan.selector[i]] = st.Agent
		}
	}
	return agents
}

func (s *State) attempt(kind EffectKind, st *Step) Effect {
	return Effect{Kind: kind, Agent: st.Agent, Step: st.Name, Attempt: st.Attempt, Journal: st.Dispatch.Journal.ID, Fence: s.Fence}
}

// finishes appends what a final request leaves to do: agents that it used may
// forget it, but not while an attempt that an operator gave up may be running.
func (s *State) finishes(effects []Effect) []Effect {
	var told []string
	for _, st := range s.Steps {
		if st.Abandoned {
			effects = append(effects, s.attempt(EffectKill, st))
			told = append(told, st.Agent)
		}
	}
	for _, st := range s.Steps {
		if st.Agent != "" && !slices.Contains(told, st.Agent) {
			effects = append(effects, Effect{Kind: EffectFinish, Agent: st.Agent, Fence: s.Fence})
			told = append(told, st.Agent)
		}
	}
	return effects
}
