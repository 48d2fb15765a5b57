package controller

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// absentAtFirst is when in a term all agents and relays are looked at first. After a
// start of the whole cluster they come back one by one, within agent.reconnect_max; and
// a fail-over has more urgent things to do.
const absentAtFirst = 10 * time.Second

// absences tells, by events, which agents and relays no controller has a link to any
// more, and which are back. The Active does, for one term; what was told last is in
// the store, so each change is told once, whoever is Active. One goroutine runs it.
type absences struct {
	c   *Controller
	s   *coord.Session
	t   *coord.Term
	now func() time.Time
	// missing are those that nobody has a link to, with the time at which that is told.
	missing map[absentee]time.Time
	// first is when all may be looked at first.
	first time.Time

	wake    chan struct{}
	mu      sync.Mutex // guards what follows: what has changed and was not looked at
	changed map[absentee]bool
	all     bool
}

// absentee is an agent or a relay. They may have the same name.
type absentee struct {
	role roles.Role
	name string
}

// awayRecord is the value of away/<role>/<name>: somebody was told to be out of reach.
type awayRecord struct {
	Since time.Time `json:"since,omitzero"`
}

func awayKey(a absentee) string { return prefixAway + string(a.role) + "/" + a.name }

func newAbsences(c *Controller, s *coord.Session, t *coord.Term, now func() time.Time) *absences {
	return &absences{
		c: c, s: s, t: t, now: now, missing: map[absentee]time.Time{}, first: now().Add(absentAtFirst),
		wake: make(chan struct{}, 1), changed: map[absentee]bool{}, all: true,
	}
}

// run tells until ctx ends.
func (b *absences) run(ctx context.Context) error {
	_, stop := b.c.member.View().Follow(b.note)
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.wake:
		case <-timer.C:
		}
		b.round()
		if next := b.next(); !next.IsZero() {
			timer.Reset(next.Sub(b.now()))
		}
	}
}

// note takes in what has changed in the store.
func (b *absences) note(batch coord.Batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range batch.Changes {
		if coord.IsSessionKey(ch.Key) {
			b.all = true
		} else if a, ok := absenteeOf(ch.Key); ok {
			b.changed[a] = true
		}
	}
	if b.all || len(b.changed) > 0 {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// absenteeOf returns whom a key tells of.
func absenteeOf(key string) (absentee, bool) {
	for _, p := range []struct {
		prefix string
		role   roles.Role
	}{
		{prefixLinks, roles.RoleAgent},
		{prefixAgents, roles.RoleAgent},
		{prefixAway + string(roles.RoleAgent) + "/", roles.RoleAgent},
		{prefixRelayLinks, roles.RoleRelay},
		{prefixRelays, roles.RoleRelay},
		{prefixAway + string(roles.RoleRelay) + "/", roles.RoleRelay},
	} {
		if strings.HasPrefix(key, p.prefix) {
			name, _ := requestOf(key, p.prefix)
			return absentee{p.role, name}, true
		}
	}
	return absentee{}, false
}

// everybody lists all agents and relays that the store knows.
func everybody(snap coord.Snapshot) map[absentee]bool {
	all := map[absentee]bool{}
	for _, prefix := range []string{prefixAgents, prefixRelays, prefixAway} {
		for kv := range snap.Range(prefix) {
			if a, ok := absenteeOf(kv.Key); ok {
				all[a] = true
			}
		}
	}
	return all
}

// round looks at all that has changed, and at those whose time has come.
func (b *absences) round() {
	b.mu.Lock()
	changed, all := b.changed, b.all && !b.now().Before(b.first)
	b.changed, b.all = map[absentee]bool{}, b.all && !all
	b.mu.Unlock()
	snap := b.c.member.View().Snapshot()
	if all {
		changed = everybody(snap)
	}
	for a, due := range b.missing {
		if !b.now().Before(due) {
			changed[a] = true
		}
	}
	b.look(snap, changed)
}

// next is when something is to be done though nothing changes, the zero time if nothing
// is.
func (b *absences) next() time.Time {
	var next time.Time
	b.mu.Lock()
	if b.all {
		next = b.first
	}
	b.mu.Unlock()
	for _, due := range b.missing {
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return next
}

// look tells of those among some agents and relays that went away or came back.
func (b *absences) look(snap coord.Snapshot, some map[absentee]bool) {
	for a := range some {
		p, known := b.presence(snap, a)
		told, away := snap.Get(awayKey(a))
		due, missing := b.missing[a]
		here := len(p.links) > 0
		if !known || here || away {
			delete(b.missing, a)
		}
		switch {
		case !known && away: // it was forgotten meanwhile
			b.s.Submit(coord.Tx{Then: []coord.Write{coord.Del(told.Key)}}, func(coord.Result, error) {})
		case !known || here != away:
		case here:
			detail := map[string]string{"links": strings.Join(p.links, ",")}
			if rec, err := decode[awayRecord](told); err == nil && !rec.Since.IsZero() {
				detail["away_since"] = rec.Since.UTC().Format(time.RFC3339)
			}
			b.tell(api.Event{Kind: string(a.role) + ".back", Subject: a.name, Detail: detail},
				coord.ModIs(told.Key, told.Mod), coord.Del(told.Key))
		case !missing:
			b.missing[a] = b.now().Add(unreachableAfter)
		case !b.now().Before(due):
			// Told again if that fails, as long as this term lasts.
			b.missing[a] = b.now().Add(unreachableAfter)
			b.tell(api.Event{Kind: string(a.role) + ".unreachable", Subject: a.name, Detail: p.detail()},
				coord.Absent(awayKey(a)), coord.Put(awayKey(a), encode(awayRecord{Since: p.since})))
		}
	}
}

// tell writes an event in the name of the term, with what makes it the only one.
func (b *absences) tell(e api.Event, cond coord.Cond, mark coord.Write) {
	b.s.Submit(coord.Tx{If: []coord.Cond{b.t.Guard(), cond}, Then: []coord.Write{b.c.event(e), mark}}, func(coord.Result, error) {})
}

// presenceOf is what is known of somebody's links.
type presenceOf struct {
	links []string  // controllers that hold one
	since time.Time // when the last one ended, by the clock of who held it
	// last is the controller that held the last link, via the relays that it came
	// through; empty if that is not known any more.
	last string
	via  []string
	host string
}

func (p presenceOf) detail() map[string]string {
	d := map[string]string{"host": p.host, "link": p.last, "via": strings.Join(p.via, ",")}
	if !p.since.IsZero() {
		d["since"] = p.since.UTC().Format(time.RFC3339)
	}
	maps.DeleteFunc(d, func(_, value string) bool { return value == "" })
	return d
}

// presence returns what the store says of somebody's links. known is false for who was
// never linked, or was forgotten.
func (b *absences) presence(snap coord.Snapshot, a absentee) (p presenceOf, known bool) {
	if a.role == roles.RoleAgent {
		kv, ok := snap.Get(agentKey(a.name))
		if p.links = linksTo(snap, a.name); !ok || len(p.links) > 0 {
			return p, ok // there are many of these
		}
		rec, err := decode[agentRecord](kv)
		newest, controller, met := newestLink(snap, a.name)
		if err != nil || !met {
			return p, false
		}
		return presenceOf{last: controller, via: newest.Via, host: rec.Host, since: lastSeen(snap, a.name)}, true
	}
	kv, ok := snap.Get(relayKey(a.name))
	rec, err := decode[relayRecord](kv)
	if !ok || err != nil {
		return p, false
	}
	p = presenceOf{links: relayControllers(snap, a.name), host: rec.Host, since: rec.LastSeen}
	// One of a controller that is gone stays.
	for range snap.Range(prefixRelayLinks + a.name + "/") {
		return p, true
	}
	return p, !rec.LastSeen.IsZero()
}
