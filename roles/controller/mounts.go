package controller

import (
	"context"
	"strings"
	"time"

	"uac/codestation/mount"
	"uac/coord"
	"uac/roles/controller/api"
)

// mountRecord is the value of mounts/<controller>: how it saw the shared mount when
// that last changed.
type mountRecord struct {
	mount.State
	Seen time.Time `json:"seen"`
}

// watchMount stores how this node sees the shared mount whenever that changes, with
// an event when it is lost and when it is back. Changes are told by what is stored,
// so that each is told once, also when a session or the process ends meanwhile.
func (c *Controller) watchMount(ctx context.Context, s *coord.Session) error {
	// What an earlier session stored last.
	if err := c.member.View().Wait(ctx, s.Epoch()); err != nil {
		return err
	}
	var before mountRecord
	if kv, ok := c.member.View().Get(mountKey(c.cfg.Name)); ok {
		before, _ = decode[mountRecord](kv) // one that cannot be read is written anew
	}
	for {
		state, changed := c.deps.Mount.Watch()
		if writes := c.mountWrites(before, state); len(writes) > 0 {
			if _, err := s.Commit(ctx, coord.Tx{Then: writes}); err == nil {
				before.State = state
			} else if ctx.Err() == nil {
				c.log.Warn("change of the shared mount not stored", "state", state.Kind, "error", err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mountWrites are the record and the event that a change asks for.
func (c *Controller) mountWrites(before mountRecord, state mount.State) []coord.Write {
	was, is := before.Kind, state.Kind
	switch {
	case is == was || is == mount.Checking || is == mount.Unconfigured && was == "":
		return nil
	case is == mount.Unconfigured:
		return []coord.Write{coord.Del(mountKey(c.cfg.Name))}
	}
	writes := []coord.Write{coord.Put(mountKey(c.cfg.Name), encode(mountRecord{State: state, Seen: time.Now().UTC()}))}
	kind := ""
	switch {
	case is == mount.OK && was != "":
		kind = "mount.back"
	case is != mount.OK && (was == mount.OK || was == ""):
		kind = "mount.lost"
	}
	if kind == "" {
		return writes
	}
	detail := map[string]string{"dir": state.Dir, "state": string(is)}
	if state.Error != "" {
		detail["error"] = state.Error
	}
	return append(writes, c.event(api.Event{Kind: kind, Subject: c.cfg.Name, Detail: detail}))
}

// ListMounts lists the shared mount as each controller sees it.
func (c *Controller) ListMounts(context.Context) ([]api.Mount, error) {
	snap := c.member.View().Snapshot()
	out := []api.Mount{}
	for _, n := range c.member.Nodes() {
		if n.Role != coord.RoleController {
			continue
		}
		rec := mountRecord{State: mount.State{Kind: mount.Unconfigured}}
		if n.Name == c.cfg.Name {
			rec = mountRecord{State: c.deps.Mount.State(), Seen: time.Now().UTC()}
		} else if kv, ok := snap.Get(mountKey(n.Name)); ok {
			var err error
			if rec, err = decode[mountRecord](kv); err != nil {
				return nil, err
			}
		}
		v := api.Mount{
			Node: n.Name, State: string(rec.Kind), Since: rec.Since, Error: rec.Error, Dir: rec.Dir, ID: rec.ID,
			FreeBytes: rec.Free, TotalBytes: rec.Total, Seen: rec.Seen, StuckChildren: rec.Stuck,
		}
		if n.Epoch == 0 {
			v.State, v.Error = "unknown", strings.TrimSuffix("the node is Offline; it saw the mount last as "+string(rec.Kind)+": "+rec.Error, ": ")
		}
		out = append(out, v)
	}
	return out, nil
}
