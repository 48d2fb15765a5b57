package faulttest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"uac/codestation/durable"
)

// stimulus is what makes a node come to a point, beside the work that goes on
// anyway.
type stimulus string

const (
	byWork    stimulus = ""
	byStart   stimulus = "start"  // of the node itself
	byLoss    stimulus = "loss"   // of another controller
	byCancel  stimulus = "cancel" // of a step that does not obey TERM
	byVacancy stimulus = "vacancy"
	byFirst   stimulus = "first"  // only the first start of a cluster, or a new generation, comes there
	byVolume  stimulus = "volume" // only when much has been written
)

// stimulusOf says how a node comes to a point, by the beginning of its name.
func stimulusOf(point string) stimulus {
	for _, s := range []struct {
		prefix string
		by     stimulus
	}{
		{"session-", byStart}, {"alive-", byStart},
		{"loss-", byLoss}, {"vote-", byLoss}, {"claim", byLoss}, {"adopt-", byLoss}, {"fence-", byLoss},
		{"kill-", byCancel}, {"stop-", byCancel}, {"killing-", byCancel},
		{"term-", byVacancy},
		{"origin-", byFirst}, {"generation-", byFirst}, {"never-", byVolume}, {"compact", byVolume},
	} {
		if strings.HasPrefix(point, s.prefix) {
			return s.by
		}
	}
	return byWork
}

// points lists the points of a node, as it has told itself.
func (c *Cluster) points(node string) []string {
	c.t.Helper()
	text, err := os.ReadFile(c.faultFile(node, "points"))
	if err != nil {
		c.t.Fatalf("%s tells no points; was the program built with -tags uacfault? %v", node, err)
	}
	return strings.Split(string(text), "\n")
}

// crashAtRandom lets a node die at one of its points.
func crashAtRandom(t target, chance *rand.Rand) Fault {
	n, which, visit := chance.IntN(100), chance.Float64(), 1+chance.IntN(3)
	f := &crash{what: "crash " + t.name, visit: visit}
	f.choose = func(c *Cluster) {
		f.node = t.pick(c, n)
		all := slices.DeleteFunc(c.points(f.node), func(p string) bool {
			by := stimulusOf(p)
			return slices.Contains([]stimulus{byVacancy, byFirst, byVolume}, by) || by == byLoss && !t.member
		})
		f.point = all[int(which*float64(len(all)))]
	}
	return f
}

// crash kills a node when it comes to a point for the visit-th time.
type crash struct {
	what        string
	node, point string
	visit       int
	choose      func(c *Cluster) // decides on node and point, if it is set
	patient     bool             // the machine may be busy, and time matters less than that it comes there
	killed      string           // another node that had to die for it
}

func (f *crash) Name() string {
	if f.point == "" {
		return f.what
	}
	return fmt.Sprintf("%s (%s) at visit %d of %s", f.what, f.node, f.visit, f.point)
}

func (f *crash) Needs() Need { return 0 }

// met is how long a node has to come to its point.
const met = 2 * time.Second

func (f *crash) Inject(c *Cluster) error {
	if f.choose != nil {
		f.choose(c)
	}
	by := stimulusOf(f.point)
	if by != byWork {
		f.visit = 1 // it does not come there often
	}
	if by == byLoss {
		if f.killed = c.active(); f.killed == f.node {
			f.killed = c.other(f.node)
		}
	}
	pid := c.node(f.node).PID
	switch by {
	case byStart:
		c.kill(f.node)
	case byVacancy:
		// The other one first, or it would take the term over.
		f.killed = c.other(f.node)
		c.kill(f.killed)
		c.kill(f.node)
	}
	c.arm(f.node, f.point, f.visit)
	switch by {
	case byStart, byVacancy:
		_ = c.run.start(f.node) // it may die before anybody has looked
		pid = 0
	case byLoss:
		c.kill(f.killed)
	case byCancel:
		if err := c.cancelOne(f.node); err != nil {
			c.disarm(f.node)
			return err
		}
	}
	wait := met
	if by != byWork {
		wait *= 3
	}
	if f.patient {
		wait = patience / 2
	}
	for began := time.Now(); !c.hit(f.node); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > wait && c.disarm(f.node) {
			return fmt.Errorf("%w: %s does not come to %s", errNotInjected, f.node, f.point)
		}
	}
	c.await(f.node+" is dead", func() string {
		if now := c.node(f.node).PID; now != 0 && (pid == 0 || now == pid) {
			return fmt.Sprintf("process %d runs", now)
		}
		return ""
	})
	return nil
}

func (f *crash) Heal(c *Cluster) error {
	_ = os.Remove(c.faultFile(f.node, "hit"))
	for _, node := range []string{f.killed, f.node} {
		if node != "" && c.node(node).PID == 0 {
			c.start(node)
		}
	}
	return nil
}

// arm tells a node to die when it comes to a point for the n-th time from now on.
func (c *Cluster) arm(node, point string, n int) {
	c.t.Helper()
	_ = os.Remove(c.faultFile(node, "hit"))
	// The last word makes each order another one.
	text := fmt.Appendf(nil, "%s %d %d", point, n, time.Now().UnixNano())
	if err := durable.WriteFile(c.faultFile(node, "armed"), text, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// disarm takes the order back and reports whether it was not obeyed.
func (c *Cluster) disarm(node string) bool { return os.Remove(c.faultFile(node, "armed")) == nil }

// hit reports whether a node has come to its point.
func (c *Cluster) hit(node string) bool {
	_, err := os.Stat(c.faultFile(node, "hit"))
	return err == nil
}

// cancelOne starts a request on each agent whose step runs for long and does not obey
// TERM, and cancels it when that runs, or when the node that is to die of it has: what
// an earlier cancel left to do may be enough. Somebody has to obey, or the request
// would succeed in the end.
func (c *Cluster) cancelOne(dies string) error {
	c.t.Helper()
	for _, agent := range c.names("agent") { // each agent has something to kill
		begin := c.mark()
		id, err := c.submitOne("stubborn-" + agent)
		if err != nil {
			return err
		}
		c.await("the stubborn step runs", func() string {
			if c.hit(dies) {
				return ""
			}
			for _, e := range c.ledger.Read(c.t)[begin:] {
				if e.Request == id && e.Kind == entryStart {
					return ""
				}
			}
			return id + " has not begun"
		})
		c.await("somebody cancels "+id, func() string {
			last := "no controller runs"
			for _, name := range c.running("controller") {
				call := Call{Op: opCancel, Node: name, Request: id, Began: c.now()}
				a, err := c.clients[name].call(c.t.Context(), http.MethodPost, "/v1/requests/"+id+"/cancel", "", nil)
				call.Outcome = outcome(a.Status, err)
				c.called(call)
				if call.Outcome == OutcomeOK || call.Outcome == OutcomeConflict { // or it was cancelled by a call of unknown outcome
					return ""
				}
				last = fmt.Sprintf("%s: %v, %v", name, a, err)
			}
			return last
		})
	}
	return nil
}

// stubborn is a process with one step on an agent that runs for long and does not
// obey TERM.
func stubborn(agent string) Process {
	p := single("120")
	p.Name = "stubborn-" + agent
	p.Steps[0].Agent = Selector{Name: agent}
	p.Steps[0].Run = "trap '' TERM\n" + p.Steps[0].Run
	return p
}
