package coord

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Room is kept free in etcd for what must never fail: the state of what runs,
// sessions and fail-over. Under etcd's own space alarm even those are refused.
const (
	// RoomForRequests is the part of the quota above which new requests are
	// refused.
	RoomForRequests = 0.70
	// RoomForGrowth is the part above which every other growth is refused.
	RoomForGrowth = 0.85
	// roomForFile is the size of the file above which both are refused. It holds
	// free space as well, but large values do not fit into every gap, and its
	// size is what etcd's alarm looks at.
	roomForFile = 0.95
)

// ErrNoRoom is returned when the storage quota leaves no room for growth.
var ErrNoRoom = errors.New("etcd storage is too full")

// CheckRoom returns ErrNoRoom if more than limit of the storage quota is used, or
// if etcd has raised its own alarm.
func (m *Member) CheckRoom(limit float64) error {
	if err := m.full(); err != nil {
		return err
	}
	switch used, file := m.Room(); {
	case used > limit:
		return fmt.Errorf("%w: %.0f %% of the quota is in use, the limit for this is %.0f %%", ErrNoRoom, 100*used, 100*limit)
	case file > roomForFile:
		return fmt.Errorf("%w: its file has %.0f %% of the quota, the limit is %.0f %%. Restart %s to make it smaller",
			ErrNoRoom, 100*file, 100*roomForFile, m.cfg.Name)
	}
	return nil
}

// full returns ErrNoRoom if etcd has raised its own alarm.
func (m *Member) full() error {
	if e := m.serving(); e != nil && len(e.full()) > 0 {
		return fmt.Errorf("%w: nothing can be written. Raise etcd.quota or free space on the disk, then restart %s",
			ErrNoRoom, strings.Join(e.full(), ", "))
	}
	return nil
}

// Room is how much of the storage quota is in use, from 0 to 1, and how large
// the file is, from 0 to 1.
func (m *Member) Room() (used, file float64) {
	e := m.serving()
	if e == nil {
		return 0, 0
	}
	b := e.server.Server.Backend()
	q := float64(m.cfg.QuotaBytes)
	return float64(b.SizeInUse()) / q, float64(b.Size()) / q
}

const disarmEvery = 5 * time.Second

// disarm takes back the space alarm that was raised for this member when its
// file is small enough again: it was restarted, which defragments the file, or
// with a larger quota. Until every member has done so, etcd refuses all writes.
func (m *Member) disarm(ctx context.Context, e *etcd) error {
	tick := time.NewTicker(disarmEvery)
	defer tick.Stop()
	for {
		if _, file := m.Room(); file < RoomForGrowth && slices.Contains(e.full(), m.cfg.Name) {
			callCtx, cancel := context.WithTimeout(ctx, time.Second)
			_, err := e.client.AlarmDisarm(callCtx, &clientv3.AlarmMember{
				MemberID: uint64(e.server.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE,
			})
			cancel()
			if err != nil {
				m.log.Debug("space alarm not taken back yet", "error", err)
			} else {
				m.log.Warn("there is room again: space alarm taken back")
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

const housekeepingEvery = 30 * time.Second

// housekeeping looks after what nobody else does: a session sweeps the lock keys
// that failed attempts left under its own lease. The Active also compacts
// history, and revokes the leases of lost sessions so that their locks are free.
// None of this needs trust: it takes nothing from anybody who still has it.
func (s *Session) housekeeping(ctx context.Context) error {
	tick := time.NewTicker(housekeepingEvery)
	defer tick.Stop()
	var again <-chan time.Time
	for {
		compact := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.tidy:
		case <-again:
		case <-tick.C:
			compact = true
		}
		again = nil
		snap := s.m.view.Snapshot()
		done := s.sweepLocks(ctx, snap)
		if s.Term() != nil {
			done = s.releaseLeases(ctx, snap) && done
		}
		if !done {
			again = time.After(time.Second)
		}
		if compact && s.Term() != nil {
			if err := s.compact(ctx, snap.Revision()); err != nil && ctx.Err() == nil {
				s.log.Warn("compaction failed", "error", err)
			}
		}
	}
}

// releaseLeases revokes the leases of lost sessions, and reports whether it did.
func (s *Session) releaseLeases(ctx context.Context, snap Snapshot) bool {
	done := true
	for kv := range snap.Range(prefixAlive) {
		node := leaf(kv.Key, prefixAlive)
		rec, err := decode[aliveRecord](kv)
		// The key names the session that put it: one that is not the node's
		// present one at the same revision is over.
		if err == nil && snap.mod(sessionKey(node)) != rec.Epoch {
			done = s.revoke(ctx, clientv3.LeaseID(rec.Lease)) && done
		}
	}
	return done
}

// compact drops history older than KeepRevisions, and all of it when room gets
// short. Views that are further behind notice and read everything again.
func (s *Session) compact(ctx context.Context, now int64) error {
	rev := now
	if s.m.CheckRoom(RoomForRequests) == nil {
		rev = now - s.m.cfg.KeepRevisions
	}
	if rev <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := s.etcd.client.Compact(ctx, rev); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	return nil
}
