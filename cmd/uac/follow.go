package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"uac/roles"
	"uac/roles/controller/api"
)

// watchPatience is how long a follower goes on without any server: a fail-over
// takes milliseconds, a power cut minutes.
const watchPatience = 10 * time.Minute

// follow calls seen with a request after every change until it has ended, and
// returns it; ended is asked about states that are final or in doubt. It goes on
// at the next server when one dies, stops or goes silent. It only reads, so it
// can be tried for ever.
func follow(ctx context.Context, c *client, id string, ended func(api.Request) bool, seen func(api.Request)) (api.Request, error) {
	patient := *c
	patient.patience = watchPatience
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		resp, err := patient.stream(ctx, call{method: http.MethodGet, path: pathOf("requests", id, "watch")})
		if err != nil {
			return api.Request{}, err
		}
		last, err := readStates(resp.Body, seen)
		_ = resp.Body.Close() // read to its end, or given up
		switch {
		case err == nil && settled(last) && ended(last):
			return last, nil
		case ctx.Err() != nil:
			return last, fmt.Errorf("follow request %s: %w", id, context.Cause(ctx))
		}
		if last.ID != "" && !settled(last) {
			pause = 50 * time.Millisecond // it did tell something new
		}
		patient.skip()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last, fmt.Errorf("follow request %s: %w", id, context.Cause(ctx))
		}
	}
}

// settled reports whether nobody but an operator changes the request any more.
func settled(r api.Request) bool { return r.Status.Final() || r.Status == roles.RequestInDoubt }

// readStates reads the lines of a watch and returns the last state.
func readStates(r io.Reader, seen func(api.Request)) (last api.Request, err error) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		if len(line) == 1 {
			continue // a sign of life
		}
		var req api.Request
		if err := json.Unmarshal(line, &req); err != nil {
			return last, fmt.Errorf("decode the state of a request: %w", err)
		}
		last = req
		seen(req)
	}
}

// await waits until a request has ended, prints it and returns its outcome as an
// error.
func (a *app) await(ctx context.Context, c *client, req api.Request, ended func(api.Request) bool) error {
	if !settled(req) || !ended(req) {
		show := a.newProgress(req)
		last, err := follow(ctx, c, req.ID, ended, show.update)
		show.close()
		if err != nil {
			if ctx.Err() != nil {
				return fail(exitFailed, "no longer waiting; the request goes on: uac request show %s --wait", req.ID)
			}
			return err
		}
		req = last
	}
	if err := printRequest(a, req, time.Now()); err != nil {
		return err
	}
	return outcome(req)
}

// outcome is the end of a request as an error.
func outcome(req api.Request) error {
	reason := ""
	if req.Reason != "" {
		reason = ": " + req.Reason
	}
	switch req.Status {
	case roles.RequestSucceeded:
		return nil
	case roles.RequestInDoubt:
		return fail(exitInDoubt, "request %s is in doubt%s; decide with uac request resolve", req.ID, reason)
	default:
		return fail(exitFailed, "request %s %s%s", req.ID, verbOf(req.Status), reason)
	}
}

func verbOf(s roles.RequestStatus) string {
	if s == roles.RequestCancelled {
		return "was cancelled"
	}
	return string(s)
}

// progress shows on a terminal what a request is doing. Elsewhere it says once
// which request it is, so that the log of a pipeline that is killed has it.
type progress struct {
	a    *app
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex // guards req, lines
	req   api.Request
	lines int // of the last picture
}

func (a *app) newProgress(req api.Request) *progress {
	p := &progress{a: a, req: req, stop: make(chan struct{})}
	switch {
	case a.stderr.terminal:
		p.draw(time.Now())
		p.done.Go(p.tick)
	case a.output == formatTable || a.output == formatWide:
		fmt.Fprintf(a.stderr, "waiting for request %s\n", req.ID)
	}
	return p
}

// tick redraws every second, for the durations.
func (p *progress) tick() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case now := <-ticker.C:
			p.draw(now)
		}
	}
}

func (p *progress) update(req api.Request) {
	p.mu.Lock()
	p.req = req
	p.mu.Unlock()
	if p.a.stderr.terminal {
		p.draw(time.Now())
	}
}

// close removes the picture.
func (p *progress) close() {
	close(p.stop)
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lines > 0 {
		_, _ = fmt.Fprintf(p.a.stderr, "\x1b[%dA\x1b[J", p.lines) // only looks
	}
}

// Size of the picture: small enough for every terminal, so that no line wraps
// and the cursor finds back.
const (
	progressWidth = 78
	progressSteps = 8
)

func (p *progress) draw(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	if p.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.lines)
	}
	lines := picture(p.req, now, p.a.paint(p.a.stderr))
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	p.lines = len(lines)
	_, _ = io.WriteString(p.a.stderr, b.String()) // only looks
}

// picture is what a request is doing, in a few lines.
func picture(req api.Request, now time.Time, p paint) []string {
	head := fmt.Sprintf("%s %s  %s  %d of %d steps", req.Process, req.ID, req.Status, stepsDone(req), len(req.Steps))
	if d := duration(req.StartedAt, req.FinishedAt, now, true); d != "" {
		head += "  " + d
	}
	lines := []string{p.apply(requestColor(req.Status), cut(head))}
	at := slices.DeleteFunc(slices.Clone(req.Steps), func(s api.Step) bool {
		return s.Status.Final() || s.Status == roles.StepWaiting
	})
	for i, s := range at {
		if i == progressSteps {
			lines = append(lines, fmt.Sprintf("  and %d more", len(at)-i))
			break
		}
		line := "  " + s.Name + "  " + string(s.Status)
		if s.Agent != "" {
			line += " on " + s.Agent
		}
		if s.Attempt > 1 {
			line += fmt.Sprintf(", attempt %d", s.Attempt)
		}
		if d := duration(s.StartedAt, s.FinishedAt, now, s.Status == roles.StepRunning); d != "" {
			line += "  " + d
		}
		if s.Unreachable {
			line += "  (agent unreachable)"
		}
		lines = append(lines, p.apply(stepColor(s.Status), cut(line)))
	}
	return lines
}

// cut shortens a line to the picture's width and makes it safe for a terminal.
func cut(line string) string {
	runes := []rune(printable(line, false))
	if len(runes) > progressWidth {
		return string(runes[:progressWidth-1]) + "…"
	}
	return string(runes)
}
