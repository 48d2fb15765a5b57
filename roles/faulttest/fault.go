package faulttest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"uac/codestation/durable"
)

// Fault is one thing that goes wrong. Inject makes it happen and returns when it is
// certain that it has, Heal ends it; both are called once. What is wrong must show:
// a fault of which nothing is seen returns errNotInjected, from either, and does not
// count.
type Fault interface {
	// Name says what goes wrong and where, for people.
	Name() string
	// Needs says what the cluster must have for it.
	Needs() Need
	Inject(c *Cluster) error
	Heal(c *Cluster) error
}

// Need is a set of what faults need beyond processes that can be signalled.
type Need int

// What clusters may have.
const (
	NeedNetwork Need = 1 << iota // every node in a network namespace of its own
	NeedDisk                     // a node with its data on a file system of its own
	NeedMount                    // a shared mount on a file system of its own
	NeedClock                    // wall clocks that can be set
)

// errNotInjected is returned by a fault that did not happen.
var errNotInjected = errors.New("the fault did not happen")

// errRefused is the reason when a node answers that it does not want to.
var errRefused = errors.New("refused")

// Kind is a kind of fault. Where it happens is decided when it is made.
type Kind struct {
	Name  string
	Needs Need
	// Takes says that it may take a member away. The cluster bears one such at a
	// time.
	Takes bool
	// Alone says that no other fault may happen meanwhile.
	Alone bool
	// HealAlways says that Heal is called even if nothing happened.
	HealAlways bool
	// Make draws a fault. It depends on chance alone, so that a seed makes the same
	// faults again.
	Make func(chance *rand.Rand) Fault
	// Holds are the times for which it may last.
	Holds []time.Duration
}

// fault is a Fault made of functions.
type fault struct {
	name         string
	needs        Need
	inject, heal func(c *Cluster) error
}

func (f *fault) Name() string { return f.name }
func (f *fault) Needs() Need  { return f.needs }

func (f *fault) Inject(c *Cluster) error { return f.inject(c) }

func (f *fault) Heal(c *Cluster) error {
	if f.heal == nil {
		return nil
	}
	return f.heal(c)
}

// target is whom a fault hits. It is looked for when the fault begins.
type target struct {
	name   string
	role   string // clusters without a node of this role have no such target
	member bool
	pick   func(c *Cluster, n int) string // n is a number drawn by chance
}

// targets lists everybody that faults may hit.
func (c *Cluster) targets() []target {
	oneOf := func(role string) func(c *Cluster, n int) string {
		return func(c *Cluster, n int) string { return c.one(role, n) }
	}
	all := []target{
		{"the Active", "controller", true, func(c *Cluster, _ int) string { return c.active() }},
		{"the Passive", "controller", true, func(c *Cluster, _ int) string { return c.other(c.active()) }},
		{"the raft leader", "watch", true, func(c *Cluster, _ int) string { return c.raftLeader() }},
		{"the watch", "watch", true, oneOf("watch")},
		{"an agent", "agent", false, oneOf("agent")},
		{"a relay", "relay", false, oneOf("relay")},
	}
	return slices.DeleteFunc(all, func(t target) bool { return len(c.names(t.role)) == 0 })
}

// silence is the silence_timeout of clusters with random faults: short, so that a
// seed does not last long.
const silence = 500 * time.Millisecond

// moments are how long most faults last: less and more than it takes to
// declare a member lost.
var moments = []time.Duration{0, silence / 2, silence, 2 * silence, 3 * silence}

// linkLost is longer than it takes agents and controllers to give up a link over
// which nothing comes.
const linkLost = 4 * time.Second

// Kinds lists all kinds of faults that a cluster can have.
func (c *Cluster) Kinds() []Kind {
	var all []Kind
	for _, t := range c.targets() {
		all = append(all, processKinds(t)...)
	}
	all = append(all, switchover(), killWrappers())
	for _, more := range [][]Kind{c.networkKinds(), diskKinds(), shareKinds(), c.clockKinds()} {
		for _, k := range more {
			if k.Needs&^c.has == 0 {
				all = append(all, k)
			}
		}
	}
	return all
}

// processKinds are the faults of a node's process.
func processKinds(t target) []Kind {
	// at makes a fault of what is to be done to a node.
	at := func(what string, inject, heal func(c *Cluster, node string) error) func(*rand.Rand) Fault {
		return func(chance *rand.Rand) Fault {
			n, node := chance.IntN(100), ""
			return &fault{
				name: what + " " + t.name,
				inject: func(c *Cluster) error {
					node = t.pick(c, n)
					if c.node(node).PID == 0 { // of another fault that it was given at the same time
						return fmt.Errorf("%w: %s does not run", errNotInjected, node)
					}
					return inject(c, node)
				},
				heal: func(c *Cluster) error { return heal(c, node) },
			}
		}
	}
	startAgain := func(c *Cluster, node string) error { c.start(node); return nil }
	freezes := []time.Duration{silence / 2, silence, 3 * silence}
	if !t.member {
		freezes = append(freezes, linkLost)
	}
	kinds := []Kind{
		{Name: "kill -9", Takes: t.member, Holds: moments, Make: at("kill", func(c *Cluster, node string) error { c.kill(node); return nil }, startAgain)},
		{Name: "freeze", Takes: t.member, Holds: freezes, Make: at("freeze",
			func(c *Cluster, node string) error { c.freeze(node); return nil },
			func(c *Cluster, node string) error { c.thaw(node); return nil })},
		{Name: "restart", Takes: t.member, Holds: moments[:1], Make: at("restart", (*Cluster).terminate, startAgain)},
	}
	if t.role != "relay" { // it stores nothing and says nothing of its own
		kinds = append(kinds, Kind{Name: "crash point", Takes: t.member, Alone: true, HealAlways: true, Holds: moments[:3], Make: func(chance *rand.Rand) Fault { return crashAtRandom(t, chance) }})
	}
	return kinds
}

// terminate asks a node to end in order and waits until it has.
func (c *Cluster) terminate(node string) error {
	pid := c.node(node).PID
	if c.isFrozen(node) { // of another fault: it would not hear of it
		return fmt.Errorf("%w: %s is frozen", errNotInjected, node)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	c.awaitEnd(node, pid)
	return nil
}

// switchover moves the term, if the cluster can do so now.
func switchover() Kind {
	return Kind{Name: "switchover", Holds: moments[:1], Make: func(*rand.Rand) Fault {
		return &fault{name: "switchover", inject: func(c *Cluster) error {
			a, err := c.clients[c.active()].call(c.t.Context(), "POST", "/v1/nodes/switchover", "", nil)
			if err != nil || a.Status >= 300 {
				return fmt.Errorf("%w: %v, %w", errNotInjected, a, cmp.Or(err, errRefused))
			}
			return nil
		}}
	}}
}

// killWrappers kills the wrappers of all steps that run, and nothing else of them.
// How such a step ended is known to nobody.
func killWrappers() Kind {
	return Kind{Name: "kill wrapper", Holds: moments[:1], Make: func(*rand.Rand) Fault {
		return &fault{name: "kill the wrappers of steps", inject: func(c *Cluster) error {
			for began := time.Now(); time.Since(began) < met; time.Sleep(5 * time.Millisecond) {
				killed := 0
				for _, pid := range c.wrappers() {
					if syscall.Kill(pid, syscall.SIGKILL) == nil {
						killed++
					}
				}
				if killed > 0 {
					return nil
				}
			}
			return fmt.Errorf("%w: no step runs", errNotInjected)
		}}
	}}
}

// wrappers finds the processes of this cluster that look after one step each.
func (c *Cluster) wrappers() (pids []int) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if args := string(text); strings.Contains(args, c.dir) && strings.Contains(args, "/wrapper.sh\x00") {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// ---- wall clocks ----

// clockKinds set a node's wall clock: forwards by more than anything that is kept
// by time, backwards by less than certificates are dated back.
func (c *Cluster) clockKinds() []Kind {
	return []Kind{{Name: "clock step", Needs: NeedClock, HealAlways: true, Holds: moments, Make: func(chance *rand.Rand) Fault {
		all := c.targets()
		t, n := all[chance.IntN(len(all))], chance.IntN(100)
		step := []time.Duration{2 * time.Hour, time.Minute, -4 * time.Minute}[chance.IntN(3)]
		node := ""
		return &fault{
			name: fmt.Sprintf("set the clock of %s by %v", t.name, step), needs: NeedClock,
			inject: func(c *Cluster) error { node = t.pick(c, n); return c.setClock(node, step) },
			heal:   func(c *Cluster) error { return c.setClock(node, 0) },
		}
	}}}
}

// setClock moves a node's wall clock and waits until the node sees it moved. A node
// that does not run sees it when it starts.
func (c *Cluster) setClock(node string, by time.Duration) error {
	said := c.faultFile(node, "clock.seen")
	_ = os.Remove(said)
	if err := durable.WriteFile(c.faultFile(node, "clock"), []byte(strconv.Itoa(int(by/time.Second))), 0o600); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < 2*time.Second; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(said)
		if err != nil {
			continue
		}
		seen, err := strconv.ParseInt(string(text), 10, 64)
		if off := time.Unix(seen, 0).Sub(time.Now().Add(by)).Abs(); err == nil && off < 10*time.Second {
			return nil
		}
	}
	if by == 0 {
		return nil // it may not run
	}
	return fmt.Errorf("%w: %s does not see another time", errNotInjected, node)
}

// faultFile is a file by which a node that was built for it is told what to do.
func (c *Cluster) faultFile(node, kind string) string {
	return filepath.Join(c.dir, "faults", node+"."+kind)
}
