package coord

import (
	"encoding/json"
	"fmt"
	"time"
)

// Role says what a member may become.
type Role string

// The two roles that are members of the coordination cluster.
const (
	// RoleController can become Active and can own requests.
	RoleController Role = "controller"
	// RoleWatch votes and remembers, and never becomes Active.
	RoleWatch Role = "watch"
)

// Mode is what a controller is doing.
type Mode string

// Modes of a controller.
const (
	ModeActive  Mode = "Active"
	ModePassive Mode = "Passive"
	ModeOffline Mode = "Offline"
)

// NodeRecord is what the cluster remembers of a node, for ever: an Offline
// node still shows. Times are text for people; nothing compares them.
type NodeRecord struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	Host      string    `json:"host"`
	IP        string    `json:"ip"`
	API       string    `json:"api"`
	Version   string    `json:"version"`
	BuildDate string    `json:"build_date,omitempty"`
	Started   time.Time `json:"started"`
	Paused    bool      `json:"paused"`
	Preferred bool      `json:"preferred"`
}

// SessionRecord is the value of sessions/<node>.
type SessionRecord struct {
	// Run is the id of the operating system process.
	Run string `json:"run"`
	// Nonce tells one attempt to open a session from another after an
	// unknown outcome.
	Nonce string `json:"nonce"`
	Role  Role   `json:"role"`
	// Started is text for people.
	Started time.Time `json:"started"`
}

// ActiveRecord is the value of the key active. The term is vacant when the key
// is absent or when it names a session that is no longer the node's present
// one.
type ActiveRecord struct {
	Node  string `json:"node"`
	Epoch int64  `json:"epoch"`
}

// chainRecord is the value of commit/<node>. Nonce is the session's, so that a
// late batch of a former run can never look like one of this run.
type chainRecord struct {
	Nonce string `json:"nonce"`
	N     int64  `json:"n"`
}

// HoldRecord is the value of hold/<node>.
type HoldRecord struct {
	By  string    `json:"by"`
	Why string    `json:"why"`
	At  time.Time `json:"at"`
}

// ConfirmRecord is the value of confirms/<node>: an operator confirmed that
// this session is lost.
type ConfirmRecord struct {
	Epoch int64     `json:"epoch"`
	By    string    `json:"by"`
	Why   string    `json:"why"`
	At    time.Time `json:"at"`
}

// LossRecord is the value of losses/<node>: the last decision that the node's
// session is lost.
type LossRecord struct {
	Node     string `json:"node"`
	Epoch    int64  `json:"epoch"`
	Decider  string `json:"decider"`
	Evidence string `json:"evidence"`
	// Ended tells that the evidence proves the end of the process. Without, it may
	// live.
	Ended     bool      `json:"ended,omitempty"`
	Agreed    []string  `json:"agreed"`
	WasActive bool      `json:"was_active"`
	Successor string    `json:"successor,omitempty"`
	At        time.Time `json:"at"`
}

// TermRecord is the value of terms: the first fenced write of a term.
type TermRecord struct {
	Node string `json:"node"`
	// Epoch of the term. 0 in a record that the loss transaction put: it began the
	// term with this record, whose revision is the epoch.
	Epoch int64     `json:"epoch,omitempty"`
	At    time.Time `json:"at"`
}

type aliveRecord struct {
	Epoch int64 `json:"epoch"`
	Lease int64 `json:"lease"`
}

// generationRecord is the value of generation, and what a member keeps of it in
// a file.
type generationRecord struct {
	N  int64  `json:"n"`
	ID string `json:"id"`
	// Alone is the order with which this member is to begin the generation;
	// only in the file, and only until it has begun.
	Alone *AloneOrder `json:"alone,omitempty"`
}

// decode reads the JSON value of a key into T.
func decode[T any](kv KV) (T, error) {
	var v T
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		return v, fmt.Errorf("value of key %s at revision %d: %w", kv.Key, kv.Mod, err)
	}
	return v, nil
}

// encode marshals a record. Only plain structs of strings, numbers and times
// are passed, for which json.Marshal has no error.
func encode(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}
