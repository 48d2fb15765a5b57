package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"uac/roles/controller/api"
)

// logsOptions are the flags of uac request logs.
type logsOptions struct {
	id, step string
	attempt  int
	follow   bool
}

func newRequestLogsCommand(a *app) *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use:   "logs REQUEST",
		Short: "Print what the steps of a request wrote",
		Long: `Print what the steps of a request wrote, byte for byte. The output of several
steps is told apart by lines like ==> STEP (attempt 1 on AGENT) <==.

With --follow it goes on until the request ends or is in doubt, across
fail-overs, without losing or repeating anything. Of a step that is tried again
it prints each attempt, otherwise the latest. Where a part of the output is gone,
standard error says so.`,
		Example: `  uac request logs 01JD8Z6V9YB6W7N2Q5T3R4S8XA
  uac request logs 01JD8Z6V9YB6W7N2Q5T3R4S8XA -f
  uac request logs 01JD8Z6V9YB6W7N2Q5T3R4S8XA --step switch --attempt 1 > switch.log`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRequests(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("attempt") && (opts.attempt < 1 || opts.step == "") {
				return usageError("--attempt %d: must be the number of an attempt, from 1, at --step", opts.attempt)
			}
			opts.id = args[0]
			return runRequestLogs(cmd.Context(), a, opts)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&opts.follow, "follow", "f", false, "go on as more is written")
	fs.StringVar(&opts.step, "step", "", "only this `STEP`")
	fs.IntVar(&opts.attempt, "attempt", 0, "`NUMBER` of the attempt at --step (default: the latest)")
	return cmd
}

func runRequestLogs(ctx context.Context, a *app, opts logsOptions) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var req api.Request
	if err := c.get(ctx, pathOf("requests", opts.id), nil, &req); err != nil {
		return err
	}
	if err := opts.find(req); err != nil {
		return err
	}
	out := &logWriter{w: a.stdout, p: a.paint(a.stdout), headers: opts.many(req)}
	t := newTails(c, opts, out, a.stderr)
	if !opts.follow {
		var errs []error
		for _, at := range t.fresh(req) {
			err := t.read(ctx, *c, at, 0)
			if errors.Is(err, errPrint) {
				return err // so would every other
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	return t.follow(ctx)
}

// wants reports whether the output of a step is wanted: that of all, of the one that is
// named, or of its instances.
func (o *logsOptions) wants(s api.Step) bool {
	return o.step == "" || s.Name == o.step || s.Of == o.step
}

// many reports whether more than one step is wanted.
func (o *logsOptions) many(req api.Request) bool {
	n := 0
	for _, s := range req.Steps {
		if o.wants(s) {
			n++
		}
	}
	return n > 1
}

// find returns an error if the request has not what the options name. An attempt
// that may still be made is worth following.
func (o *logsOptions) find(req api.Request) error {
	if o.step == "" {
		return nil
	}
	i := slices.IndexFunc(req.Steps, func(s api.Step) bool { return s.Name == o.step })
	switch {
	case i < 0:
		return fail(exitNotFound, "request %s has no step %q", o.id, o.step)
	case o.attempt <= req.Steps[i].Attempt, o.follow && !settled(req), o.many(req):
		return nil
	case req.Steps[i].Attempt == 0:
		return fail(exitNotFound, "step %s of request %s has no attempt %d: it has not started", o.step, o.id, o.attempt)
	}
	return fail(exitNotFound, "step %s of request %s has no attempt %d: it has %d", o.step, o.id, o.attempt, req.Steps[i].Attempt)
}

// attempt is one attempt at a step.
type attempt struct {
	step   string
	number int
	agent  string
}

// tails print the output of attempts as it grows.
type tails struct {
	c     *client
	opts  logsOptions
	out   *logWriter
	notes io.Writer      // what is no output
	seen  map[string]int // the latest attempt of each step that fresh has returned
}

func newTails(c *client, opts logsOptions, out *logWriter, notes io.Writer) *tails {
	return &tails{c: c, opts: opts, out: out, notes: notes, seen: map[string]int{}}
}

// fresh returns the attempts of a request that were not returned before, in the
// order of its steps: of a step that is seen for the first time the latest, then each.
func (t *tails) fresh(req api.Request) []attempt {
	var out []attempt
	for _, s := range req.Steps {
		from, agent := s.Attempt, s.Agent
		if before := t.seen[s.Name]; before > 0 {
			from = before + 1
		}
		to := s.Attempt
		if n := t.opts.attempt; n > 0 {
			from, to, agent = max(from, n), min(to, n), ""
			if t.seen[s.Name] == 0 {
				from = n
			}
		}
		if !t.opts.wants(s) || from == 0 {
			continue
		}
		for n := from; n <= to; n++ {
			t.seen[s.Name] = n
			out = append(out, attempt{step: s.Name, number: n, agent: agent})
		}
	}
	return out
}

// follow prints until the request is final or in doubt.
func (t *tails) follow(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards errs
	var errs []error
	live, endLive := context.WithCancel(ctx)
	last, err := follow(ctx, t.c, t.opts.id, settled, func(req api.Request) {
		for _, at := range t.fresh(req) {
			c := *t.c // a client serves one goroutine
			wg.Go(func() {
				switch err := t.tail(ctx, live, c, at); {
				case errors.Is(err, errPrint):
					stop(err) // nobody can print any more
				case err != nil:
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				}
			})
		}
	})
	// What was written before the end is there; nothing more is waited for.
	endLive()
	wg.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, errPrint) {
		return cause
	}
	if err == nil {
		err = t.opts.find(last)
	}
	return errors.Join(append(errs, err)...)
}

// tail prints the output of an attempt as it grows, until it ends or live does,
// and then what is there.
func (t *tails) tail(ctx, live context.Context, c client, at attempt) error {
	var offset int64
	c.patience = watchPatience
	for pause := 50 * time.Millisecond; live.Err() == nil; pause = min(2*pause, time.Second) {
		n, err := t.copy(live, c, at, offset, true)
		offset += n
		switch code := codeOf(err); {
		case err == nil:
			return nil
		case errors.Is(err, errPrint):
			return err
		case n > 0:
			pause = 50 * time.Millisecond
		case code == exitForbidden || code == exitUsage:
			return err
		}
		c.skip()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-live.Done():
			timer.Stop()
		}
	}
	if ctx.Err() == nil {
		c.patience = t.c.patience
		return t.read(ctx, c, at, offset)
	}
	return nil // interrupted, which follow reports
}

// read prints what an attempt has written from offset on. Of several steps, one
// that has written nothing is no error.
func (t *tails) read(ctx context.Context, c client, at attempt, offset int64) error {
	for tries := len(c.servers) + 1; ; tries-- {
		n, err := t.copy(ctx, c, at, offset, false)
		offset += n
		if n > 0 {
			tries = len(c.servers) + 1
		}
		if p := (*problem)(nil); errors.As(err, &p) && p.Status == http.StatusNotFound && t.opts.step == "" {
			return nil
		}
		if err == nil || tries == 0 || ctx.Err() != nil || !errors.Is(err, errBroken) {
			return err
		}
		c.skip()
	}
}

// errBroken is returned by a copy that broke off.
var errBroken = errors.New("the output broke off")

// errPrint is returned by a copy whose output cannot be written where the user wants it.
var errPrint = errors.New("print the output")

// copy prints what a server has of an attempt from offset on, and returns how far it
// came. Parts that are gone are left out, and told of.
func (t *tails) copy(ctx context.Context, c client, at attempt, offset int64, follow bool) (int64, error) {
	var all int64
	for {
		n, next, err := t.copyPart(ctx, c, at, offset+all, follow)
		all += n
		if err != nil || next <= offset+all {
			return all, err
		}
		note := fmt.Sprintf("the output of step %s (attempt %d) from byte %d to %d is gone", at.step, at.number, offset+all, next)
		if err := t.out.note(t.notes, note); err != nil {
			return all, err
		}
		all = next - offset
	}
}

// copyPart prints what a server has up to the next part that is gone. It returns how
// much that was, and the offset at which the output goes on, 0 if it does not.
func (t *tails) copyPart(ctx context.Context, c client, at attempt, offset int64, follow bool) (n, next int64, err error) {
	query := url.Values{"step": {at.step}, "attempt": {fmt.Sprint(at.number)}, "offset": {fmt.Sprint(offset)}}
	if follow {
		query.Set("follow", "true")
	}
	resp, err := c.stream(ctx, call{method: http.MethodGet, path: pathOf("requests", t.opts.id, "logs"), query: query})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or given up
	piece := make([]byte, 32<<10)
	for {
		k, err := resp.Body.Read(piece)
		if k > 0 {
			if err := t.out.write(at, piece[:k]); err != nil {
				return n, 0, fmt.Errorf("%w: %w", errPrint, err)
			}
			n += int64(k)
		}
		switch {
		case errors.Is(err, io.EOF):
			next, err := strconv.ParseInt(resp.Trailer.Get(api.HeaderOutputNext), 10, 64)
			if err == nil {
				return n, next, nil
			}
			if err := t.out.flush(at); err != nil {
				return n, 0, fmt.Errorf("%w: %w", errPrint, err)
			}
			return n, 0, nil
		case err != nil:
			return n, 0, fmt.Errorf("output of step %s: %w: %w", at.step, errBroken, err)
		}
	}
}

// logWriter writes the output of several attempts to one stream, in whole lines.
// Safe for concurrent use.
type logWriter struct {
	p       paint
	headers bool

	mu      sync.Mutex // guards what follows
	w       io.Writer
	last    attempt
	begun   bool
	pending map[attempt][]byte // the beginning of a line
}

func (l *logWriter) write(at attempt, b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.headers {
		_, err := l.w.Write(b)
		return err
	}
	if l.pending == nil {
		l.pending = map[attempt][]byte{}
	}
	all := slices.Concat(l.pending[at], b)
	end := bytes.LastIndexByte(all, '\n') + 1
	if len(all)-end > 64<<10 {
		end = len(all) // no line is that long; do not keep it for ever
	}
	l.pending[at] = bytes.Clone(all[end:])
	return l.printLocked(at, all[:end])
}

// flush writes a last line that has no end.
func (l *logWriter) flush(at attempt) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.pending[at]
	delete(l.pending, at)
	if len(rest) == 0 {
		return nil
	}
	return l.printLocked(at, append(rest, '\n'))
}

// note writes something that is no output, in a line of its own.
func (l *logWriter) note(w io.Writer, text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := fmt.Fprintln(w, text)
	return err
}

func (l *logWriter) printLocked(at attempt, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if !l.begun || l.last != at {
		space := ""
		if l.begun {
			space = "\n"
		}
		where := ""
		if at.agent != "" {
			where = " on " + at.agent
		}
		header := fmt.Sprintf("==> %s (attempt %d%s) <==", at.step, at.number, where)
		if _, err := fmt.Fprintf(l.w, "%s%s\n", space, l.p.apply(bold, header)); err != nil {
			return err
		}
		l.begun, l.last = true, at
	}
	_, err := l.w.Write(b)
	return err
}
