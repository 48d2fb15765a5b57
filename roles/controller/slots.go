package controller

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"uac/coord"
)

// slotRecord is the value of slots/<gate>/<n>: the attempt that was given the slot.
// Nobody gives it back: it is free as soon as that attempt is not out any more, by
// the record of its step. So an owner that dies leaves nothing behind.
type slotRecord struct {
	Request string `json:"request"`
	Step    string `json:"step"`
	Attempt int    `json:"attempt"`
}

type slot struct {
	slotRecord
	mod int64
}

// slots knows who was given which slot, and which ones this desk is taking. It
// belongs to the goroutine of the desk.
type slots struct {
	known  map[string]map[int]slot // by prefix and number
	taking map[string]bool         // keys
}

func newSlots() *slots { return &slots{known: map[string]map[int]slot{}, taking: map[string]bool{}} }

func slotKey(prefix string, n int) string { return prefix + strconv.Itoa(n) }

func (s *slots) note(kv coord.KV, deleted bool) {
	i := strings.LastIndexByte(kv.Key, '/') + 1
	n, err := strconv.Atoi(kv.Key[i:])
	if err != nil {
		return
	}
	prefix := kv.Key[:i]
	if deleted {
		delete(s.known[prefix], n)
		return
	}
	if s.known[prefix] == nil {
		s.known[prefix] = map[int]slot{}
	}
	if kv.Mod <= s.known[prefix][n].mod {
		return
	}
	rec, _ := decode[slotRecord](kv) // one that cannot be read is held by nobody
	s.known[prefix][n] = slot{rec, kv.Mod}
}

// open reports whether another step may pass a gate.
func open(g gate, l *load) bool { return l.of(g.cluster, g.agent) < g.limit }

// pick returns the key and ModRevision of a slot that another step of the gate may
// take. Of those that are free only the first few may be taken, as many as the limit
// leaves: see DESIGN.md. Owners that look at the same time mostly pick different
// ones.
func (s *slots) pick(g gate, l *load) (key string, mod int64, ok bool) {
	const most = 16
	left := g.limit - l.of(g.cluster, g.agent)
	if left <= 0 {
		return "", 0, false
	}
	skip := rand.N(min(left, most))
	for n := range g.limit {
		key := slotKey(g.prefix, n)
		have := s.known[g.prefix][n]
		if s.taking[key] || have.mod != 0 && l.is(stepKey(have.Request, have.Step), have.Attempt) {
			continue
		}
		if skip == 0 {
			return key, have.mod, true
		}
		skip--
	}
	return "", 0, false
}

// heldBy says for people who holds a gate.
func heldBy(g gate, holders []string) string {
	const most = 3
	more := ""
	if n := len(holders) - most; n > 0 {
		holders, more = holders[:most], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("waits: %s has a limit of %d, which %s%s hold", g.name, g.limit, strings.Join(holders, ", "), more)
}
