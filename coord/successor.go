package coord

import (
	"hash/fnv"
	"strconv"
)

// candidate is a member that may become Active.
type candidate struct {
	Name string
	Role Role
	// Epoch of its session, 0 if it has none.
	Epoch int64
	// Preferred and Paused are what operators set.
	Preferred, Paused bool
	// Suspected tells that the chooser has evidence against it.
	Suspected bool
}

// rank orders candidates: the lowest succeeds, 0 never does. A paused node is
// the last resort even if it is preferred: a pause must not cause it to take on
// the cluster while another can.
func (c candidate) rank() int {
	switch {
	case c.Role != RoleController, c.Epoch == 0, c.Suspected:
		return 0
	case c.Preferred && !c.Paused:
		return 1
	case !c.Paused:
		return 2
	case c.Preferred:
		return 3
	default:
		return 4
	}
}

// chooseSuccessor returns who becomes Active when the session with
// suspectEpoch is lost; false if nobody can. The suspect must not be among the
// candidates. All survivors that see the same candidates choose the same, and
// different losses spread over the equals.
func chooseSuccessor(cands []candidate, suspectEpoch int64) (candidate, bool) {
	key := strconv.FormatInt(suspectEpoch, 10)
	var best candidate
	for _, c := range cands {
		r, b := c.rank(), best.rank()
		if r != 0 && (b == 0 || r < b || r == b && outranks(key, c.Name, best.Name)) {
			best = c
		}
	}
	return best, best.rank() != 0
}

// Rendezvous returns the name in the set that the key belongs to, "" if the set
// is empty. Every member computes the same from the same names.
func Rendezvous(key string, set map[string]bool) string {
	names := make([]string, 0, len(set))
	for n := range set {
		names = append(names, n)
	}
	return rendezvous(key, names)
}

// rendezvous returns the name that the key belongs to: every member computes
// the same from the same names, keys spread evenly, and when a name goes away
// only its keys move. "" if there are no names.
func rendezvous(key string, names []string) string {
	best := ""
	for _, n := range names {
		if best == "" || outranks(key, n, best) {
			best = n
		}
	}
	return best
}

// outranks reports whether a comes before b in the order that the key draws.
func outranks(key, a, b string) bool {
	x, y := weight(key, a), weight(key, b)
	return x > y || x == y && a < b
}

// weight is a hash that must never change: members of different versions have
// to agree on it.
func weight(key, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write([]byte(name))
	// FNV alone leaves names that differ in the last byte close together.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}
