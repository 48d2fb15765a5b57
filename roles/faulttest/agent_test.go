package faulttest

import (
	"testing"
	"time"
)

// TestAgentDies kills agents while steps run: the steps outlive them and are
// found again, whether they have ended meanwhile or still run.
func TestAgentDies(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("1"))
	for range trials(t) {
		for _, away := range []time.Duration{0, 2500 * time.Millisecond} {
			c.healthy()
			begin := c.mark()
			c.submit("chain", 4)
			c.started(begin, 4, "first")
			c.kill("a1", "a2")
			time.Sleep(away) // steps end while nobody is there
			c.start("a1")
			c.start("a2")
			c.submit("chain", 1)
			c.settled().succeeded(t)
		}
	}
}

// TestAgentAndActiveDie kills an agent and the Active together: the new owner
// hears of what ran only from the agent, when that is back.
func TestAgentAndActiveDie(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.5"))
	for range trials(t) {
		active := c.healthy()
		begin := c.mark()
		ids := c.submit("chain", 4)
		c.started(begin, 4, "first")
		c.kill("a1", active)
		c.active()
		c.await("the new owner says that the agent is away", func() string {
			all, err := c.list()
			if err != nil {
				return err.Error()
			}
			for _, id := range ids {
				if st := all[id].step("first"); st.Agent == "a1" && st.Unreachable {
					if st.Status != "running" && st.Status != "dispatched" {
						t.Errorf("unreachable is not dead, but step first of %s is %s", id, st.Status)
					}
					return ""
				}
			}
			return "no step is marked"
		})
		c.start("a1")
		c.settled().succeeded(t)
		c.start(active)
	}
}

// TestFrozenAgent freezes an agent for longer than a fail-over takes, and the
// Active dies meanwhile: when the agent wakes up, commands of the dead owner and
// of the new one are there at once.
func TestFrozenAgent(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.5"))
	for range trials(t) {
		active := c.healthy()
		begin := c.mark()
		c.submit("chain", 4)
		c.started(begin, 4, "first")
		c.freeze("a2")
		c.submit("chain", 2) // some of their commands wait in the frozen agent
		c.started(begin, 6, "first")
		c.kill(active)
		c.active()
		time.Sleep(4 * time.Second) // both its links are given up
		c.start(active)
		c.thaw("a2")
		c.healthy()
		c.settled().succeeded(t)
	}
}
