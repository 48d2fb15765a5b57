package coord

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Room is kept free in etcd for what must never fail: the state of what runs,
// sessions and fail-over. Under etcd's own space alarm even those are refused.
const (
	// RoomForRequests is the part of the quota above which new requests are
	// refused.
	RoomForRequests = 0.70
	// RoomForGrowth is the part above which every other growth is refused.
	RoomForGrowth = 0.85
)

// ErrNoRoom is returned when the storage quota leaves no room for growth.
var ErrNoRoom = errors.New("etcd storage is too full")

// CheckRoom returns ErrNoRoom if more than limit of the storage quota is used.
func (m *Member) CheckRoom(limit float64) error {
	if used, _ := m.Room(); used > limit {
		return fmt.Errorf("%w: %.0f %% of the quota is in use, the limit for this is %.0f %%", ErrNoRoom, 100*used, 100*limit)
	}
	return nil
}

const housekeepingEvery = 30 * time.Second

// housekeeping is what the Active does for the cluster's store: it compacts
// history, and revokes the leases of lost sessions so that their locks are
// free. Other sessions only wait for their term.
func (s *Session) housekeeping(ctx context.Context) error {
	tick := time.NewTicker(housekeepingEvery)
	defer tick.Stop()
	for {
		compact := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.tidy:
		case <-tick.C:
			compact = true
		}
		if t := s.Term(); t == nil || t.Check() != nil {
			continue
		}
		snap := s.m.view.Snapshot()
		for kv := range snap.Range(prefixAlive) {
			node := leaf(kv.Key, prefixAlive)
			rec, err := decode[aliveRecord](kv)
			if err == nil && snap.mod(sessionKey(node)) != rec.Epoch {
				if err := s.releaseLease(ctx, node, rec.Epoch); err != nil {
					s.log.Warn("lease of a lost session not revoked, it expires by itself", "node", node, "error", err)
				}
			}
		}
		if compact {
			if err := s.compact(ctx, snap.Revision()); err != nil && ctx.Err() == nil {
				s.log.Warn("compaction failed", "error", err)
			}
		}
	}
}

// compact drops history older than KeepRevisions. Views that are further
// behind notice and read everything again.
func (s *Session) compact(ctx context.Context, now int64) error {
	rev := now - s.m.cfg.KeepRevisions
	if rev <= 0 {
		return nil
	}
	e, err := s.m.server(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := e.client.Compact(ctx, rev); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	return nil
}
