package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"uac/roles/wire"
)

// recover finds out what has become of the attempts that an earlier process left
// behind, and looks after those that live.
func (a *Agent) recover(ctx context.Context) error {
	a.mu.Lock()
	a.recovering = true
	opened := a.commit(record{Kind: kindOpened, Boot: a.boot, Opens: a.ledger.opens + 1, Pid: os.Getpid()})
	a.contact = a.ledger.contactIn(a.boot)
	var keys []key
	unsealed := map[key]attempt{}
	known := map[string]bool{}
	a.ledger.each(func(k key, at *attempt) {
		if !at.Acked {
			known[k.dir()] = true
		}
		if !at.Phase.ended() {
			keys = append(keys, k)
		} else if at.Dropped > 0 {
			unsealed[k] = *at
		}
	})
	a.mu.Unlock()
	if err := a.journal.wait(ctx, opened); err != nil {
		return err
	}
	if err := a.outputs.load(known); err != nil {
		return err
	}
	defer func() {
		a.mu.Lock()
		a.recovering = false
		a.mu.Unlock()
	}()
	for k, at := range unsealed {
		a.seal(newRun(k, a.dir(k)), at.Limit, at.Dropped)
	}
	for _, k := range keys {
		if err := a.recoverAttempt(ctx, k); err != nil {
			return fmt.Errorf("recover attempt %s: %w", k, err)
		}
	}
	return nil
}

func (a *Agent) recoverAttempt(ctx context.Context, k key) error {
	r := newRun(k, a.dir(k))
	a.mu.Lock()
	at := *a.ledger.attempt(k)
	a.mu.Unlock()
	p := process{pid: at.Pid, start: at.PidStart}
	e, pipe, err := gather(r.dir, at, a.boot, p)
	if err != nil {
		return err
	}
	log := a.log.With("request", k.request, "step", k.step, "attempt", k.attempt)
	switch v := judge(e); v {
	case verdictRunning:
		log.Info("attempt is still running")
		a.metrics.Add(MetricReattached, 1)
		a.mu.Lock()
		a.ledger.attempt(k).Phase = phaseRunning
		a.runs[k] = r
		a.mu.Unlock()
		a.runners.Go(func() {
			defer a.forget(r)
			// It runs, whether there is a slot for it or not (fewer are allowed now than
			// were before); but it comes before any that do not run yet.
			defer a.slots.leave(a.slots.enter(math.MaxInt32, 0))
			a.attend(ctx, r, p, pipe)
		})
		return nil
	case verdictNeverRan:
		log.Info("attempt was accepted and never ran")
		a.mu.Lock()
		a.ledger.attempt(k).Phase = phaseIntended
		a.mu.Unlock()
	default:
		rec := v.record(e)
		if info, err := os.Stat(r.dir.file(fileStatus)); err == nil && v == verdictExited {
			rec.Time = info.ModTime().UnixNano()
		}
		a.capture(r, e, &rec)
		a.end(ctx, r, rec)
	}
	if pipe != nil {
		pipe.Close()
	}
	return nil
}

// gather collects the traces of an attempt. The pipe comes first: who holds it may
// still write the exit status, but nobody can once it is free. It is returned open if
// there is one.
func gather(d attemptDir, at attempt, boot string, p process) (evidence, *os.File, error) {
	e := evidence{sameBoot: at.Boot == boot, killing: at.Killing, stopping: at.Stop != ""}
	pipe, err := d.openAlive()
	switch {
	case err == nil:
		if e.held, err = held(pipe); err != nil {
			pipe.Close()
			return e, nil, fmt.Errorf("look at pipe: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return e, nil, err
	}
	if e.status, err = d.status(); err != nil {
		return e, pipe, err
	}
	if !e.held && e.sameBoot {
		if p.pid == 0 {
			p.pid = e.pid
		}
		members, err := p.session()
		if err != nil {
			return e, pipe, err
		}
		e.session = len(members) > 0
		if e.session && pipe == nil {
			return e, nil, fmt.Errorf("processes %v are left and %s is gone", members, d.file(fileAlive))
		}
	}
	return e, pipe, nil
}

// hello describes the agent for a new link.
func (a *Agent) hello(id *wire.LinkID) *wire.Hello {
	host, _ := os.Hostname() // for people only
	a.mu.Lock()
	generation := a.ledger.generation
	a.mu.Unlock()
	return &wire.Hello{
		Name: a.cfg.Name, Version: a.cfg.Version, BootId: a.boot,
		Journal: a.journalState(), Generation: generation.wire(), Link: id,
		Labels: a.cfg.Labels, Host: host, MaxAttempts: uint32(a.cfg.MaxAttempts),
		Instance: a.instance,
	}
}
