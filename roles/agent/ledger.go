package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"uac/roles/wire"
)

// ledger is what an agent remembers. Nothing in it waits, reads a clock or touches
// a disk. It changes only through apply; the methods named after commands look at
// it and say which records a command makes. Two phases are set directly, because a
// restart finds out again what they say: starting and intended.
type ledger struct {
	generation generation
	floor      fence // nothing unknown at or below it is obeyed
	opens      uint32
	contact    contact
	requests   map[string]*request
}

func newLedger() *ledger { return &ledger{requests: map[string]*request{}} }

// request is what the agent knows of one request. It is written whole into a
// compacted journal.
type request struct {
	Name    string           `json:"name"`
	Fence   fence            `json:"fence"`
	Final   bool             `json:"final,omitempty"`
	FinalAt int64            `json:"final_at,omitempty"`
	Steps   map[string]*step `json:"steps,omitempty"`

	// seq is the number of the last durable record about the request: no answer
	// about it is sent before that one is on disk.
	seq uint64
	// askedAt is when this process last asked whether it is final, or began to wait for
	// that word.
	askedAt time.Time
}

// step knows the highest attempt that was ever heard of, and those attempts that
// still matter: living or unacknowledged ones, and the highest.
type step struct {
	Highest  uint32              `json:"highest"`
	Attempts map[uint32]*attempt `json:"attempts,omitempty"`
}

type attempt struct {
	Phase    phase  `json:"phase"`
	Boot     string `json:"boot,omitempty"` // of the intent
	Timeout  int64  `json:"timeout,omitempty"`
	Alone    int64  `json:"alone,omitempty"` // how long it may run without a controller
	Grace    int64  `json:"grace,omitempty"`
	Started  int64  `json:"started,omitempty"` // wall clock
	BootTime int64  `json:"boot_time,omitempty"`
	Pid      int    `json:"pid,omitempty"`
	PidStart uint64 `json:"pid_start,omitempty"`
	Stop     stop   `json:"stop,omitempty"`
	Killing  bool   `json:"killing,omitempty"`
	Ended    int64  `json:"ended,omitempty"`
	Code     int32  `json:"code,omitempty"`
	Signal   int32  `json:"signal,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Acked    bool   `json:"acked,omitempty"`
	// Limit of the output in bytes, 0 for none, and how many bytes more were written. A
	// restart finds that out again while the attempt runs.
	Limit   int64 `json:"limit,omitempty"`
	Dropped int64 `json:"dropped,omitempty"`
	// Names of the outputs that are wanted, until the end, and what they are, from the
	// end to its acknowledgement.
	Wanted  []string          `json:"wanted,omitempty"`
	Outputs map[string]string `json:"outputs,omitempty"`

	// Of this process: when its end was last reported, and how often again, and
	// whether its processes are stopped until output is collected.
	sentAt time.Time
	resent int
	frozen bool
}

func (l *ledger) attempt(k key) *attempt {
	if r := l.requests[k.request]; r != nil {
		if s := r.Steps[k.step]; s != nil {
			return s.Attempts[k.attempt]
		}
	}
	return nil
}

// each calls f for every attempt.
func (l *ledger) each(f func(key, *attempt)) {
	for _, r := range l.requests {
		r.each(f)
	}
}

func (r *request) each(f func(key, *attempt)) {
	for name, s := range r.Steps {
		for n, a := range s.Attempts {
			f(key{r.Name, name, n}, a)
		}
	}
}

// any returns one of its attempts, if there is one.
func (r *request) any() (found key, ok bool) {
	r.each(func(k key, _ *attempt) { found, ok = k, true })
	return found, ok
}

// apply makes the change that a record tells of. Replayed in order from the first
// record on, records lead to the same ledger every time. An error means that the
// record is not of this program's making.
func (l *ledger) apply(rec record) error {
	switch rec.Kind {
	case kindJournal:
	case kindState:
		l.generation, l.floor, l.opens, l.contact = rec.Generation, rec.Floor, rec.Opens, rec.Contact
	case kindRequest:
		if rec.Whole == nil || rec.Whole.Name == "" {
			return fmt.Errorf("record %q without a request", rec.Kind)
		}
		for _, s := range rec.Whole.Steps {
			if s == nil || hasNil(s.Attempts) {
				return fmt.Errorf("record %q of an incomplete request %s", rec.Kind, rec.Whole.Name)
			}
		}
		l.requests[rec.Whole.Name] = rec.Whole
	case kindOpened:
		l.opens = rec.Opens
	case kindContact:
		l.contact = contact{rec.Boot, rec.BootTime}
	case kindGeneration:
		l.generation = rec.Generation
	case kindFence:
		l.raise(rec)
	case kindIntent:
		s := l.step(rec)
		if a := s.Attempts[rec.Attempt]; a != nil && a.Phase.ended() {
			break // no decision makes this; an end stays in any case
		}
		s.Highest = max(s.Highest, rec.Attempt)
		s.Attempts[rec.Attempt] = &attempt{
			Phase: phaseAccepted, Boot: rec.Boot, Timeout: rec.Timeout, Grace: rec.Grace,
			Alone: rec.Alone, Limit: rec.Limit, Wanted: rec.Wanted,
		}
		s.forget()
	case kindLaunched:
		if a := l.attempt(rec.key()); a != nil && !a.Phase.ended() {
			a.Phase = phaseRunning
			a.Started, a.BootTime = rec.Time, rec.BootTime
			a.Pid, a.PidStart = rec.Pid, rec.PidStart
		}
	case kindStop:
		if a := l.attempt(rec.key()); a != nil && !a.Phase.ended() && a.Stop == "" {
			a.Stop = rec.Stop
		}
	case kindKilling:
		if a := l.attempt(rec.key()); a != nil && !a.Phase.ended() {
			a.Killing = true
		}
	case kindEnd:
		if !rec.Phase.ended() {
			return fmt.Errorf("record %q with phase %q", rec.Kind, rec.Phase)
		}
		s := l.step(rec)
		s.Highest = max(s.Highest, rec.Attempt)
		a := s.Attempts[rec.Attempt]
		if a == nil {
			a = &attempt{}
			s.Attempts[rec.Attempt] = a
		}
		if a.Phase.ended() {
			break // the first end stays
		}
		a.Phase, a.Ended = rec.Phase, rec.Time
		a.Code, a.Signal, a.Reason = rec.Code, rec.Signal, rec.Reason
		a.Wanted, a.Outputs, a.Dropped = nil, rec.Outputs, rec.Dropped
		s.forget()
	case kindAck:
		r := l.requests[rec.Request]
		if r == nil {
			break
		}
		r.Fence = maxFence(r.Fence, rec.Fence)
		if a := l.attempt(rec.key()); a != nil && a.Phase.ended() {
			a.Acked, a.Outputs = true, nil // whoever acknowledges has them; they may be large
			r.Steps[rec.Step].forget()
		}
		if rec.Final && !r.Final {
			r.Final, r.FinalAt = true, rec.Time
		}
	case kindTrim:
		if r := l.requests[rec.Request]; r != nil {
			l.floor = maxFence(l.floor, r.Fence)
			delete(l.requests, rec.Request)
		}
	default:
		return fmt.Errorf("record of unknown kind %q", rec.Kind)
	}
	return nil
}

func hasNil(m map[uint32]*attempt) bool {
	for _, a := range m {
		if a == nil {
			return true
		}
	}
	return false
}

// raise returns the record's request, made if need be, with at least its fence.
func (l *ledger) raise(rec record) *request {
	r := l.requests[rec.Request]
	if r == nil {
		r = &request{Name: rec.Request}
		l.requests[rec.Request] = r
	}
	r.Fence = maxFence(r.Fence, rec.Fence)
	return r
}

func (l *ledger) step(rec record) *step {
	r := l.raise(rec)
	s := r.Steps[rec.Step]
	if s == nil {
		s = &step{}
		if r.Steps == nil {
			r.Steps = map[string]*step{}
		}
		r.Steps[rec.Step] = s
	}
	if s.Attempts == nil {
		s.Attempts = map[uint32]*attempt{}
	}
	return s
}

// forget drops acknowledged attempts but the highest: that they are below the
// highest says enough.
func (s *step) forget() {
	for n, a := range s.Attempts {
		if a.Acked && n < s.Highest {
			delete(s.Attempts, n)
		}
	}
}

// decision is what a command means.
type decision struct {
	records []record            // to apply and append, before anything else
	refuse  wire.Refusal_Reason // if not zero, nothing else counts
	known   fence               // for a refusal: what the fence was compared with
	detail  string              // for a refusal

	launch bool // start: the attempt is to be run
	report bool // the state of the attempt is the answer
	cancel bool // kill: it was accepted and must not be launched
	stop   bool // kill: it runs and is to be stopped
}

func refused(reason wire.Refusal_Reason, known fence) decision {
	return decision{refuse: reason, known: known}
}

// admit compares the fence of a command with what is known. The request is nil if
// it is unknown and may be taken.
func (l *ledger) admit(name string, f fence) (*request, *decision) {
	var d decision
	r := l.requests[name]
	switch {
	case f.Generation < l.generation.Number:
		d = refused(wire.Refusal_STALE_FENCE, fence{Generation: l.generation.Number})
	case r == nil && !l.floor.less(f):
		d = refused(wire.Refusal_STALE_FLOOR, l.floor)
	case r != nil && f.less(r.Fence):
		d = refused(wire.Refusal_STALE_FENCE, r.Fence)
	default:
		return r, nil
	}
	return nil, &d
}

// raising returns the record that raises the fence of a known request to f, if it
// is lower.
func (r *request) raising(f fence) []record {
	if r.Fence.less(f) {
		return []record{{Kind: kindFence, Request: r.Name, Fence: f}}
	}
	return nil
}

func (l *ledger) start(c *wire.Start, boot string, defaultGrace time.Duration) decision {
	k := key{c.GetRequest(), c.GetStep(), c.GetAttempt()}
	f := fenceOf(c.GetFence())
	r, no := l.admit(k.request, f)
	if no != nil {
		return *no
	}
	intent := record{
		Kind: kindIntent, Request: k.request, Step: k.step, Attempt: k.attempt, Fence: f,
		Boot: boot, Timeout: c.GetTimeoutNanos(), Grace: cmp.Or(c.GetKillGraceNanos(), int64(defaultGrace)),
		Alone: c.GetStopWhenAloneNanos(), Limit: c.GetOutputLimit(), Wanted: c.GetOutputs(),
	}
	if r == nil || r.Steps[k.step] == nil {
		if r != nil && r.Final {
			return refused(wire.Refusal_FINAL, r.Fence)
		}
		return decision{records: []record{intent}, launch: true}
	}
	s := r.Steps[k.step]
	a := s.Attempts[k.attempt]
	switch {
	case a != nil && a.Phase != phaseIntended:
		return decision{records: r.raising(f), report: true}
	case k.attempt < s.Highest || a == nil && k.attempt == s.Highest:
		return refused(wire.Refusal_SUPERSEDED, r.Fence)
	case r.Final:
		return refused(wire.Refusal_FINAL, r.Fence)
	}
	var records []record
	for n, other := range s.Attempts {
		switch {
		case n == k.attempt:
		case other.Phase.living():
			return refused(wire.Refusal_OVERLAP, r.Fence)
		case other.Phase == phaseIntended:
			// It is below the highest from now on, so nothing can start it any more.
			records = append(records, record{
				Kind: kindEnd, Request: k.request, Step: k.step, Attempt: n, Fence: f,
				Phase: phaseNever, Reason: "a higher attempt was started",
			})
		}
	}
	return decision{records: append(records, intent), launch: true}
}

func (l *ledger) kill(c *wire.Kill) decision {
	k := key{c.GetRequest(), c.GetStep(), c.GetAttempt()}
	f := fenceOf(c.GetFence())
	r, no := l.admit(k.request, f)
	if no != nil {
		return *no
	}
	never := record{
		Kind: kindEnd, Request: k.request, Step: k.step, Attempt: k.attempt, Fence: f,
		Phase: phaseNever, Reason: "killed before it started",
	}
	if r == nil || r.Steps[k.step] == nil {
		return decision{records: []record{never}, report: true}
	}
	s := r.Steps[k.step]
	a := s.Attempts[k.attempt]
	switch {
	case a == nil && k.attempt <= s.Highest:
		return refused(wire.Refusal_SUPERSEDED, r.Fence)
	case a == nil, a.Phase == phaseIntended:
		return decision{records: []record{never}, report: true}
	case a.Phase == phaseAccepted:
		return decision{records: []record{never}, report: true, cancel: true}
	case a.Phase.ended():
		return decision{records: r.raising(f), report: true}
	}
	records := r.raising(f)
	if a.Stop == "" {
		records = append(records, record{Kind: kindStop, Request: k.request, Step: k.step, Attempt: k.attempt, Stop: stopKill})
	}
	return decision{records: records, stop: true}
}

func (l *ledger) adopt(c *wire.Adopt) decision {
	f := fenceOf(c.GetFence())
	r, no := l.admit(c.GetRequest(), f)
	switch {
	case no != nil:
		return *no
	case r == nil:
		return decision{records: []record{{Kind: kindFence, Request: c.GetRequest(), Fence: f}}}
	}
	return decision{records: r.raising(f)}
}

// ack is never refused for its fence: it tells of something that the store holds,
// and a controller that is no owner any more, or never was one, may say so.
func (l *ledger) ack(c *wire.Ack, now int64) decision {
	k := key{c.GetRequest(), c.GetStep(), c.GetAttempt()}
	f := fenceOf(c.GetFence())
	r := l.requests[k.request]
	if r == nil {
		return decision{}
	}
	var d decision
	rec := record{Kind: kindAck, Time: now, Request: k.request, Fence: f, Final: c.GetFinal() && !r.Final}
	// What is intended is decided without having run: it must not start any more.
	forbid := func(k key, a *attempt) {
		if a.Phase == phaseIntended {
			d.report = true
			d.records = append(d.records, record{
				Kind: kindEnd, Time: now, Request: k.request, Step: k.step, Attempt: k.attempt, Fence: f,
				Phase: phaseNever, Reason: "decided by its owner before it started",
			})
		}
	}
	if rec.Final {
		r.each(forbid)
	}
	if a := l.attempt(k); a != nil && !a.Acked && (a.Phase.ended() || a.Phase == phaseIntended) {
		if !rec.Final {
			forbid(k, a)
		}
		rec.Step, rec.Attempt = k.step, k.attempt
	}
	if rec.Step != "" || rec.Final || r.Fence.less(f) {
		d.records = append(d.records, rec)
	}
	return d
}

// trim returns the records that forget requests: final ones, all of whose attempts
// are acknowledged, that were final before the given time, and beyond the first max
// of the youngest.
func (l *ledger) trim(before int64, keep int) []record {
	var done []*request
	for _, r := range l.requests {
		if r.Final && r.settled() {
			done = append(done, r)
		}
	}
	slices.SortFunc(done, func(a, b *request) int {
		return cmp.Or(-cmp.Compare(a.FinalAt, b.FinalAt), cmp.Compare(a.Name, b.Name))
	})
	var records []record
	for i, r := range done {
		if i >= keep || r.FinalAt < before {
			records = append(records, record{Kind: kindTrim, Request: r.Name})
		}
	}
	return records
}

func (r *request) settled() bool {
	for _, s := range r.Steps {
		for _, a := range s.Attempts {
			if !a.Acked {
				return false
			}
		}
	}
	return true
}

// snapshot returns records that lead a new ledger to this state.
func (l *ledger) snapshot() []record {
	records := []record{{Kind: kindState, Generation: l.generation, Floor: l.floor, Opens: l.opens, Contact: l.contact}}
	for _, r := range l.requests {
		records = append(records, record{Kind: kindRequest, Whole: r})
	}
	return records
}

// describe returns what the agent tells of an attempt.
func (a *attempt) describe(k key) *wire.Attempt {
	w := &wire.Attempt{
		Step:            k.step,
		Attempt:         k.attempt,
		State:           a.Phase.wire(),
		StartedUnixNano: a.Started,
		Acknowledged:    a.Acked,
		OutputDropped:   a.Dropped,
	}
	if a.Phase.ended() {
		w.EndedUnixNano = a.Ended
		w.End = &wire.End{Code: a.Code, Signal: a.Signal, Stopped: a.Stop.wire(), Reason: a.Reason, Outputs: a.Outputs}
	} else {
		w.Stopping = a.Stop.wire()
		w.Frozen = a.frozen
	}
	return w
}

// describe returns all attempts of the request, in order.
func (r *request) describe() []*wire.Attempt {
	var all []*wire.Attempt
	r.each(func(k key, a *attempt) { all = append(all, a.describe(k)) })
	slices.SortFunc(all, func(a, b *wire.Attempt) int {
		return cmp.Or(cmp.Compare(a.GetStep(), b.GetStep()), cmp.Compare(a.GetAttempt(), b.GetAttempt()))
	})
	return all
}
