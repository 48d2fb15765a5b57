package coord

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// startKind is how a member must begin.
type startKind int

const (
	// startWait: not every member has answered yet.
	startWait startKind = iota
	// startBootstrap: record Set durably, then start etcd with no data.
	startBootstrap
	// startRejoin: start etcd with the data that is there.
	startRejoin
	// startReplace: this member must not start. Votes that it gave earlier are
	// forgotten, and a majority that counts it could lose what was committed.
	startReplace
)

// startDecision is what decideStart found.
type startDecision struct {
	Kind startKind
	// Missing are the members waited for, sorted.
	Missing []string
	// Set holds the incarnation of every member.
	Set map[string]string
	// By is the member whose answer forbids the start.
	By string
	// Reason says for an operator what is wrong and what to do.
	Reason string
}

// decideStart decides how a member begins. others are all other configured
// members; hellos holds the latest hello of each that is connected now.
//
// A member without data bootstraps only when everybody has answered, because
// any single one may be the only one left that knows of its former life.
// Answers of members without data bind nobody: as long as a member has not
// started etcd, it has not voted with anyone.
func decideStart(self string, own origin, others []string, hellos map[string]helloMsg) startDecision {
	if own.HasData {
		return startDecision{Kind: startRejoin}
	}
	replace := func(by, format string, args ...any) startDecision {
		return startDecision{Kind: startReplace, By: by, Reason: fmt.Sprintf(format, args...)}
	}
	set := map[string]string{self: own.Incarnation}
	var missing []string
	for _, name := range slices.Sorted(slices.Values(others)) {
		h, ok := hellos[name]
		if !ok {
			missing = append(missing, name)
			continue
		}
		if h.Incarnation == own.Incarnation {
			return replace(name, "the data directory of %s is a copy of the one of %s: empty it and start again", self, name)
		}
		set[name] = h.Incarnation
		if !h.HasData {
			continue
		}
		switch was, known := h.Recorded[self]; {
		case !known:
			return replace(name, "the cluster of %s was formed without %s: %s", name, self, standAside)
		case was != own.Incarnation:
			return replace(name, "%s has lost its data since the cluster was formed (%s remembers another incarnation): %s",
				self, name, standAside)
		}
	}
	if len(missing) > 0 {
		return startDecision{Kind: startWait, Missing: missing, Reason: "waiting for " + strings.Join(missing, ", ")}
	}
	// Members that started already have the last word about the others: who
	// has another incarnation by now is the one that must be replaced.
	for _, name := range slices.Sorted(maps.Keys(hellos)) {
		if h := hellos[name]; h.HasData && slices.Contains(others, name) {
			for _, other := range others {
				if was, ok := h.Recorded[other]; ok {
					set[other] = was
				}
			}
			break
		}
	}
	return startDecision{Kind: startBootstrap, Set: set}
}
