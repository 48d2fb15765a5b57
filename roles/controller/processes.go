package controller

import (
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
	p, err := coord.Decoded[roles.Process](kv)
	if err != nil {
		return roles.Process{}, err
	}
	return *p, nil
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
