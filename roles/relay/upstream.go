package relay

import (
	"cmp"
	"slices"

	"uac/roles/wire"
)

// maxPath is through how many relays an ask may go.
const maxPath = 4

// known is what a relay knows of one of its servers.
type known struct {
	// name of the controller or relay, by its certificate; empty before it was met.
	name  string
	relay bool
	// up: an own link goes to it or through it.
	up bool
	// carried is how many links of others go to it or through it.
	carried int
}

// choose lists the servers that an ask may be passed to, in the order in which to try
// them: those that answer first, controllers before relays, those with few links before
// those with many. ruledOut: a controller was left out because of the ask.
func choose(servers []known, q *wire.RelayAsk) (order []int, ruledOut bool) {
	for i, s := range servers {
		switch {
		case s.name == "":
		case s.relay && slices.Contains(q.GetPath(), s.name): // it has asked us
		case !s.relay && slices.Contains(q.GetNot(), s.name):
			ruledOut = true
		default:
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := servers[i], servers[j]
		return cmp.Or(before(a.up, b.up), before(!a.relay, !b.relay), cmp.Compare(a.carried, b.carried))
	})
	return order, ruledOut
}

// before puts what is true first.
func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
