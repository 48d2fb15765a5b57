package faulttest

import (
	"testing"
	"time"
)

// TestQuickRestart kills the Active and starts it again at once: before or after
// the others have decided that it is lost. Its new process must not take the old
// one's term and requests for its own.
func TestQuickRestart(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.2"))
	for range trials(t) {
		active := c.healthy()
		begin := c.mark()
		c.submit("chain", 8)
		c.started(begin, 5, "")
		at := c.kill(active)
		c.start(active)
		c.note("killed %s and started it within %v; %s is Active then", active, time.Since(at).Round(time.Millisecond), c.active())
		c.submit("chain", 2)
		c.healthy()
		c.settled().succeeded(t)

		// Quicker than any supervisor: the process replaces itself.
		active = c.healthy()
		begin = c.mark()
		c.submit("chain", 8)
		c.started(begin, 5, "")
		before, err := c.nodeInfo(active, active)
		if err != nil {
			t.Fatal(err)
		}
		c.order(active, "/v1/nodes/"+active+"/abort", map[string]bool{"restart": true})
		c.awaitSession(active, before.Epoch)
		c.submit("chain", 2)
		c.healthy()
		c.settled().succeeded(t)

		// In order: it hands everything over.
		active = c.healthy()
		begin = c.mark()
		c.submit("chain", 8)
		c.started(begin, 5, "")
		c.restart(active)
		c.submit("chain", 2)
		c.healthy()
		c.settled().succeeded(t)
	}
}

// TestBothControllersRestart ends both controllers at once: the watch keeps what
// they had agreed on, the agents keep what runs.
func TestBothControllersRestart(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.3"))
	for range trials(t) {
		c.healthy()
		begin := c.mark()
		c.submit("chain", 8)
		c.started(begin, 5, "")
		c.kill(c.controllers()...)
		for _, name := range c.controllers() {
			c.start(name)
		}
		c.healthy()
		c.submit("chain", 2)
		c.settled().succeeded(t)
	}
}

// TestWatchRestart kills the watch. Work goes on without it, and with it again
// needs no human.
func TestWatchRestart(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(chain("0.2"))
	for range trials(t) {
		active := c.healthy()
		term, err := c.nodeInfo(active, active)
		if err != nil {
			t.Fatal(err)
		}
		begin := c.mark()
		c.submit("chain", 6)
		c.started(begin, 3, "")
		c.kill("w1")
		c.submit("chain", 3)
		c.settled().succeeded(t)
		if now := c.active(); now != active {
			t.Errorf("the loss of the watch moved the term from %s to %s", active, now)
		}
		// Without the watch the two controllers are a bare majority: neither may be
		// lost, and the cluster says so.
		c.await("the cluster says that it cannot lose another one", func() string {
			switch info, err := c.nodeInfo(active, active); {
			case err != nil:
				return err.Error()
			case info.Failover.Ready:
				return "it says that the Active may fail"
			case info.Term != term.Term:
				t.Errorf("term %d became %d", term.Term, info.Term)
			}
			return ""
		})
		c.start("w1")
		c.healthy()
		c.await("fail-over is possible again", func() string {
			info, err := c.nodeInfo(active, active)
			if err != nil {
				return err.Error()
			}
			return info.Failover.Why
		})
		c.kill(active)
		c.submit("chain", 2)
		c.start(active)
		c.healthy()
		c.settled().succeeded(t)
	}
}
