package agent

import (
	"cmp"
	"fmt"
	"strings"

	"uac/roles/wire"
)

// kind says what a record of the journal tells.
type kind string

// The kinds of records. Those marked durable are waited for before anybody outside
// the agent learns of them or anything is done that rests on them. The others may be
// lost, and then what they tell is found out again or told again.
const (
	kindJournal    kind = "journal"    // first line: the journal's id and format
	kindState      kind = "state"      // second line: generation, floor, opens
	kindRequest    kind = "request"    // a request whole, in a compacted journal
	kindOpened     kind = "opened"     // durable: an agent process began to write
	kindGeneration kind = "generation" // durable: a higher generation was accepted
	kindFence      kind = "fence"      // durable: a request has a (new) owner
	kindIntent     kind = "intent"     // durable: an attempt is going to be started
	kindLaunched   kind = "launched"   // its wrapper has this pid
	kindStop       kind = "stop"       // durable: it is being stopped, and why
	kindKilling    kind = "killing"    // durable: KILL comes next
	kindContact    kind = "contact"    // when a controller was last heard
	kindEnd        kind = "end"        // durable: it ended, or will never start
	kindAck        kind = "ack"        // an owner has persisted the end
	kindTrim       kind = "trim"       // the request is forgotten, the floor raised
)

// durable reports whether effects wait for records of this kind.
func (k kind) durable() bool {
	switch k {
	case kindOpened, kindGeneration, kindFence, kindIntent, kindStop, kindKilling, kindEnd:
		return true
	}
	return false
}

// record is one line of the journal. Times are in nanoseconds since 1970.
type record struct {
	Kind    kind   `json:"kind"`
	Time    int64  `json:"time,omitempty"`
	Request string `json:"request,omitempty"`
	Step    string `json:"step,omitempty"`
	Attempt uint32 `json:"attempt,omitempty"`
	Fence   fence  `json:"fence,omitzero"`

	Version    int               `json:"version,omitempty"`   // journal
	ID         string            `json:"id,omitempty"`        // journal
	Generation generation        `json:"generation,omitzero"` // state, generation
	Opens      uint32            `json:"opens,omitempty"`     // state, opened
	Floor      fence             `json:"floor,omitzero"`      // state
	Whole      *request          `json:"whole,omitempty"`     // request
	Boot       string            `json:"boot,omitempty"`      // opened, intent, contact
	Timeout    int64             `json:"timeout,omitempty"`   // intent; nanoseconds
	Grace      int64             `json:"grace,omitempty"`     // intent; nanoseconds
	Wanted     []string          `json:"wanted,omitempty"`    // intent; names of outputs
	Alone      int64             `json:"alone,omitempty"`     // intent; nanoseconds
	Contact    contact           `json:"contact,omitzero"`    // state
	Limit      int64             `json:"limit,omitempty"`     // intent; bytes of output
	Pid        int               `json:"pid,omitempty"`       // opened, launched
	PidStart   uint64            `json:"pid_start,omitempty"` // launched; ticks since boot
	BootTime   int64             `json:"boot_time,omitempty"` // launched, contact; nanoseconds since boot
	Stop       stop              `json:"stop,omitempty"`      // stop
	Phase      phase             `json:"phase,omitempty"`     // end
	Code       int32             `json:"code,omitempty"`      // end
	Signal     int32             `json:"signal,omitempty"`    // end
	Reason     string            `json:"reason,omitempty"`    // end
	Outputs    map[string]string `json:"outputs,omitempty"`   // end
	Dropped    int64             `json:"dropped,omitempty"`   // end; bytes of output beyond the limit
	Final      bool              `json:"final,omitempty"`     // ack
	Skipped    uint64            `json:"skipped,omitempty"`   // state; lines up to its file's end that do not count
	Uncounted  bool              `json:"uncounted,omitempty"` // of whatever kind: see journal.counter
}

func (r record) key() key { return key{r.Request, r.Step, r.Attempt} }

// generation is a wire.Generation that can be compared and written as JSON.
type generation struct {
	Number uint64 `json:"number,omitempty"`
	ID     string `json:"id,omitempty"`
}

func (g generation) wire() *wire.Generation { return &wire.Generation{Number: g.Number, Id: g.ID} }

// fence is a wire.Fence that can be compared and written as JSON.
type fence struct {
	Generation uint64 `json:"generation,omitempty"`
	Revision   int64  `json:"revision,omitempty"`
}

func fenceOf(f *wire.Fence) fence { return fence{f.GetGeneration(), f.GetRevision()} }

func (f fence) wire() *wire.Fence {
	return &wire.Fence{Generation: f.Generation, Revision: f.Revision}
}

func (f fence) less(o fence) bool {
	return cmp.Or(cmp.Compare(f.Generation, o.Generation), cmp.Compare(f.Revision, o.Revision)) < 0
}

func (f fence) String() string { return fmt.Sprintf("%d/%d", f.Generation, f.Revision) }

func maxFence(a, b fence) fence {
	if a.less(b) {
		return b
	}
	return a
}

// phase is where an attempt stands, as far as the agent knows.
type phase string

const (
	phaseAccepted phase = "accepted" // the intent is written
	phaseStarting phase = "starting" // its wrapper is being started
	phaseRunning  phase = "running"
	phaseIntended phase = "intended" // accepted by an earlier process of the agent; never ran
	phaseExited   phase = "exited"   // the three ends
	phaseNever    phase = "never"
	phaseUnknown  phase = "unknown"
)

func (p phase) ended() bool { return p == phaseExited || p == phaseNever || p == phaseUnknown }

// living reports whether this process of the agent will do something about the
// attempt by itself.
func (p phase) living() bool {
	return p == phaseAccepted || p == phaseStarting || p == phaseRunning
}

func (p phase) wire() wire.State {
	switch p {
	case phaseAccepted, phaseStarting:
		return wire.State_ACCEPTED
	case phaseRunning:
		return wire.State_RUNNING
	case phaseIntended:
		return wire.State_INTENDED
	case phaseExited:
		return wire.State_EXITED
	case phaseNever:
		return wire.State_NEVER_STARTED
	case phaseUnknown:
		return wire.State_UNKNOWN
	}
	return wire.State_STATE_UNSPECIFIED
}

// stop is why an attempt is being stopped; empty if it is not.
type stop string

const (
	stopKill    stop = "kill"
	stopTimeout stop = "timeout"
	stopAlone   stop = "alone"
)

func (s stop) wire() wire.Stop {
	switch s {
	case stopKill:
		return wire.Stop_KILLED
	case stopTimeout:
		return wire.Stop_TIMED_OUT
	case stopAlone:
		return wire.Stop_ALONE
	}
	return wire.Stop_NOT_STOPPED
}

// key names an attempt.
type key struct {
	request, step string
	attempt       uint32
}

func (k key) String() string { return fmt.Sprintf("%s/%s/%d", k.request, k.step, k.attempt) }

// dir is the name of the attempt's directory: unique, and safe whatever names
// requests and steps have.
func (k key) dir() string {
	return fmt.Sprintf("%s~%s~%d", escape(k.request), escape(k.step), k.attempt)
}

const (
	maxNameBytes = 200
	maxAttempt   = 1 << 30
	maxFileName  = 255
)

// problem says what is wrong with the key, if anything.
func (k key) problem() string {
	if p := problemOfName("request", k.request); p != "" {
		return p
	}
	if p := problemOfName("step", k.step); p != "" {
		return p
	}
	switch {
	case len(k.dir()) > maxFileName:
		return "the names of request and step are too long together"
	case k.attempt == 0 || k.attempt > maxAttempt:
		return fmt.Sprintf("the attempt must be 1 to %d", maxAttempt)
	}
	return ""
}

func problemOfName(what, name string) string {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Sprintf("the name of the %s must have 1 to %d bytes", what, maxNameBytes)
	}
	return ""
}

// escape leaves letters, digits, '-' and '_' alone, and dots that do not come first,
// and writes other bytes as %XX.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
