package controller

import (
	"bytes"
	"context"
	"fmt"

	"uac/coord"
	"uac/roles"
	"uac/roles/controller/api"
)

// ListProcesses lists all process definitions in order of their names.
func (c *Controller) ListProcesses(context.Context) ([]roles.Process, error) {
	out := []roles.Process{}
	for kv := range c.member.View().Snapshot().Range(prefixProcesses) {
		p, err := decode[roles.Process](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// GetProcess returns one process definition.
func (c *Controller) GetProcess(_ context.Context, name string) (roles.Process, error) {
	return processIn(c.member.View().Snapshot(), name)
}

func processIn(snap coord.Snapshot, name string) (roles.Process, error) {
	kv, ok := snap.Get(processKey(name))
	if !ok {
		return roles.Process{}, fmt.Errorf("%w: process %q", api.ErrNotFound, name)
	}
	return decode[roles.Process](kv)
}

// ApplyProcesses stores all of them or none.
func (c *Controller) ApplyProcesses(ctx context.Context, a api.Actor, ps []roles.Process, dryRun bool) ([]api.Applied, error) {
	s, err := c.growing()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	out := []api.Applied{}
	var writes []coord.Write
	for i := range ps {
		p := &ps[i]
		if seen[p.Name] {
			return nil, fmt.Errorf("%w: process %q is given twice", api.ErrInvalid, p.Name)
		}
		seen[p.Name] = true
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
		text := encode(p)
		result := "created"
		if kv, ok := c.member.View().Get(processKey(p.Name)); ok {
			result = "changed"
			if bytes.Equal(kv.Value, text) {
				result = "unchanged"
			}
		}
		out = append(out, api.Applied{Kind: "Process", Name: p.Name, Result: result})
		if result != "unchanged" {
			writes = append(writes, coord.Put(processKey(p.Name), text),
				c.audit(a, "process."+result, p.Name, nil))
		}
	}
	if dryRun || len(writes) == 0 {
		return out, nil
	}
	return out, c.commit(ctx, s, writes...)
}

// DeleteProcess deletes a definition; requests keep their frozen copies.
func (c *Controller) DeleteProcess(ctx context.Context, a api.Actor, name string) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	if _, err := c.GetProcess(ctx, name); err != nil {
		return err
	}
	return c.commit(ctx, s, coord.Del(processKey(name)), c.audit(a, "process.deleted", name, nil))
}
