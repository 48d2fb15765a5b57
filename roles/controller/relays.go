package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// Relays are known like agents: a record that stays until an operator removes it, and
// one key for every controller that holds a link of theirs.
const (
	prefixRelays     = "relays/"
	prefixRelayLinks = "relaylinks/"
)

func relayKey(name string) string { return prefixRelays + name }
func relayLinkKey(relay, controller string) string {
	return prefixRelayLinks + relay + "/" + controller
}

// relayRecord is the value of relays/<name>.
type relayRecord struct {
	Name      string      `json:"name"`
	Host      string      `json:"host"`
	IP        string      `json:"ip"`
	API       string      `json:"api"`
	Version   string      `json:"version"`
	Started   time.Time   `json:"started,omitzero"`
	FirstSeen roles.Stamp `json:"first_seen"`
	// LastSeen is when a link of it ended last, by the clock of the controller that
	// held it.
	LastSeen time.Time `json:"last_seen,omitzero"`
}

// relayLink is the own link of a relay to this controller.
type relayLink struct {
	hello *wire.RelayHello
	drop  context.CancelCauseFunc

	mu   sync.Mutex // guards what follows
	beat *wire.RelayBeat
	at   time.Time // of the beat
}

func (l *relayLink) hear(b *wire.RelayBeat) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beat, l.at = b, time.Now()
}

// heard returns the last beat, and when it came.
func (l *relayLink) heard() (*wire.RelayBeat, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beat, l.at
}

// relays knows the newest link of every relay. Safe for concurrent use.
type relays struct {
	mu     sync.Mutex // guards byName
	byName map[string]*relayLink
}

func newRelays() *relays { return &relays{byName: map[string]*relayLink{}} }

func (rs *relays) get(name string) *relayLink {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.byName[name]
}

func (rs *relays) all() []*relayLink {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var out []*relayLink
	for _, l := range rs.byName {
		out = append(out, l)
	}
	return out
}

// put makes l the relay's link. A former one is dropped.
func (rs *relays) put(l *relayLink) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if old := rs.byName[l.hello.GetName()]; old != nil {
		old.drop(fmt.Errorf("relay %s opened a newer link", l.hello.GetName()))
	}
	rs.byName[l.hello.GetName()] = l
}

// remove forgets l and reports whether the relay is without a link now.
func (rs *relays) remove(l *relayLink) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byName[l.hello.GetName()] != l {
		return false
	}
	delete(rs.byName, l.hello.GetName())
	return true
}

// Relay carries the own link of a relay from hello to its end.
func (s *linkServer) Relay(stream grpc.BidiStreamingServer[wire.RelayBeat, wire.RelayEcho]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	peer, err := wire.Peer(stream.Context())
	if err != nil || peer.Role != pki.Relay || peer.Name != hello.GetName() {
		return status.Errorf(codes.PermissionDenied, "the certificate is of %s, the hello of relay %q", peer, hello.GetName())
	}
	if _, member := s.c.member.Record(peer.Name); member {
		return status.Errorf(codes.FailedPrecondition, "%s is the name of a controller or watch", peer.Name)
	}
	ctx, drop := context.WithCancelCause(stream.Context())
	defer drop(nil)
	l := &relayLink{hello: hello, drop: drop}
	l.hear(first)
	if err := stream.Send(&wire.RelayEcho{}); err != nil {
		return err
	}
	s.c.relays.put(l)
	s.c.relayUp(l)
	defer func() {
		if s.c.relays.remove(l) {
			s.c.relayDown(l)
		}
	}()
	s.log.Info("relay linked", "relay", peer.Name, "host", hello.GetHost(), "version", hello.GetVersion())

	ended := make(chan error, 1)
	go func() { // ends with the stream, which ends when this handler returns
		for {
			b, err := stream.Recv()
			if err == nil {
				l.hear(b)
				err = stream.Send(&wire.RelayEcho{Number: b.GetNumber()})
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		s.log.Info("relay unlinked", "relay", peer.Name, "error", err)
		return nil
	case <-ctx.Done():
		return status.Error(codes.Aborted, context.Cause(ctx).Error())
	}
}

// relayUp and relayDown tell the store, if there is a session to do so.
func (c *Controller) relayUp(l *relayLink) {
	if s := c.session.Load(); s != nil {
		c.presentRelay(s, l)
	}
}

func (c *Controller) relayDown(l *relayLink) {
	s := c.session.Load()
	if s == nil {
		return
	}
	name := l.hello.GetName()
	s.Submit(coord.Tx{Then: []coord.Write{coord.Del(relayLinkKey(name, c.cfg.Name))}}, func(coord.Result, error) {})
	if kv, known := c.member.View().Get(relayKey(name)); known {
		if rec, err := decode[relayRecord](kv); err == nil {
			_, rec.LastSeen = l.heard()
			rec.LastSeen = rec.LastSeen.UTC()
			// Whoever writes later has seen it later.
			s.Submit(coord.Tx{If: []coord.Cond{coord.ModIs(kv.Key, kv.Mod)}, Then: []coord.Write{coord.Put(kv.Key, encode(rec))}}, func(coord.Result, error) {})
		}
	}
	// The relay may have come back and have been presented before that.
	if newer := c.relays.get(name); newer != nil {
		c.presentRelay(s, newer)
	}
}

// presentRelay writes that this controller holds a link of a relay, and the relay's
// record if it differs from what is stored.
func (c *Controller) presentRelay(s *coord.Session, l *relayLink) {
	h := l.hello
	s.Submit(coord.Tx{Then: []coord.Write{
		coord.Put(relayLinkKey(h.GetName(), c.cfg.Name), encode(linkRecord{Epoch: s.Epoch(), Since: now()})),
	}}, func(coord.Result, error) {})
	kv, known := c.member.View().Get(relayKey(h.GetName()))
	rec, _ := decode[relayRecord](kv)
	next := rec
	next.Name, next.Host, next.IP, next.API, next.Version = h.GetName(), h.GetHost(), h.GetIp(), h.GetApi(), h.GetVersion()
	next.Started = time.Unix(0, h.GetStartedUnixNano()).UTC()
	if next.FirstSeen == "" {
		next.FirstSeen = now()
	}
	if known && next == rec {
		return
	}
	s.Submit(coord.Tx{
		If:   []coord.Cond{coord.ModIs(relayKey(h.GetName()), kv.Mod)},
		Then: []coord.Write{coord.Put(relayKey(h.GetName()), encode(next))},
	}, func(res coord.Result, err error) {
		d := c.desk.Load()
		if err != nil || res.Won || d == nil {
			return
		}
		// Somebody changed the record meanwhile, mostly another controller to the same.
		d.tasks.do(func() {
			if c.member.View().Wait(d.ctx, res.Revision) == nil && c.relays.get(h.GetName()) == l {
				c.presentRelay(s, l)
			}
		})
	})
}

// relayControllers names the controllers that hold a link of a relay.
func relayControllers(snap coord.Snapshot, relay string) []string {
	var names []string
	for kv := range snap.Range(prefixRelayLinks + relay + "/") {
		_, controller := requestOf(kv.Key, prefixRelayLinks)
		l, err := decode[linkRecord](kv)
		if err == nil && coord.SessionEpoch(snap, controller) == l.Epoch {
			names = append(names, controller)
		}
	}
	return names
}

// listRelays lists all relays that the cluster remembers.
func (c *Controller) listRelays(snap coord.Snapshot) ([]api.Node, error) {
	var out []api.Node
	for kv := range snap.Range(prefixRelays) {
		rec, err := decode[relayRecord](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, c.relayView(snap, rec))
	}
	return out, nil
}

func (c *Controller) relayView(snap coord.Snapshot, rec relayRecord) api.Node {
	n := api.Node{
		Name: rec.Name, Role: roles.RoleRelay, Mode: roles.ModeOffline, Host: rec.Host, IP: rec.IP, API: rec.API,
		Version: rec.Version, Started: rec.Started, LastSeen: rec.LastSeen,
		Relay: &api.RelayState{Controllers: relayControllers(snap, rec.Name)},
	}
	if len(n.Relay.Controllers) > 0 {
		n.Mode = roles.ModePassive
		// By two hosts' clocks: for people only.
		n.UptimeSeconds = max(0, int64(time.Since(rec.Started)/time.Second))
	}
	l := c.relays.get(rec.Name)
	if l == nil {
		return n
	}
	b, at := l.heard()
	n.LastSeen = at
	n.Relay.Links = int(b.GetLinks())
	if b.GetRoundTrips() > 0 {
		n.Relay.RoundTrip = &api.RoundTrip{
			MinMicros: b.GetRoundTripMinNanos() / 1e3, MedianMicros: b.GetRoundTripMedianNanos() / 1e3,
			MaxMicros: b.GetRoundTripMaxNanos() / 1e3, Samples: int(b.GetRoundTrips()),
		}
	}
	return n
}

// noMember is the error for a name that is no member's: of a relay, or of nobody.
func (c *Controller) noMember(name string, known []string) error {
	if _, ok := c.member.View().Get(relayKey(name)); ok {
		return fmt.Errorf("%w: %s is a relay: it takes no orders over the cluster; stop it where it runs", api.ErrConflict, name)
	}
	return fmt.Errorf("%w: node %q; there are %s", api.ErrNotFound, name, strings.Join(known, ", "))
}

// errBack says that what was to be removed is in use again.
var errBack = errors.New("it has come back meanwhile")

// removeRelay forgets a relay that nobody has a link to. handled is false if there is
// no relay of that name.
func (c *Controller) removeRelay(ctx context.Context, s *coord.Session, a api.Actor, name string) (handled bool, err error) {
	if err := c.member.Sync(ctx); err != nil {
		return true, unavailable(err)
	}
	snap := c.member.View().Snapshot()
	kv, ok := snap.Get(relayKey(name))
	if !ok {
		return false, nil
	}
	if up := relayControllers(snap, name); len(up) > 0 {
		return true, fmt.Errorf("%w: relay %s is linked to %s; stop it first", api.ErrConflict, name, strings.Join(up, ", "))
	}
	tx := coord.Tx{If: []coord.Cond{coord.ModIs(kv.Key, kv.Mod)}, Then: []coord.Write{
		c.audit(a, "node.removed", name, map[string]string{"role": string(roles.RoleRelay)}), coord.Del(kv.Key),
	}}
	for stale := range snap.Range(prefixRelayLinks + name + "/") {
		tx.If = append(tx.If, coord.ModIs(stale.Key, stale.Mod))
		tx.Then = append(tx.Then, coord.Del(stale.Key))
	}
	res, err := s.Commit(ctx, tx)
	switch {
	case err != nil:
		return true, unavailable(err)
	case !res.Won:
		return true, fmt.Errorf("%w: relay %s: %w", api.ErrConflict, name, errBack)
	}
	return true, unavailable(c.member.View().Wait(ctx, res.Revision))
}
