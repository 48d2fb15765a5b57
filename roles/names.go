package roles

import (
	"fmt"
	"strings"
	"time"
)

// Role is what a node does in the cluster.
type Role string

// The roles of nodes.
const (
	RoleController Role = "controller"
	RoleAgent      Role = "agent"
	RoleRelay      Role = "relay"
	RoleWatch      Role = "watch"
)

// ParseRole returns the role called s.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleController, RoleAgent, RoleRelay, RoleWatch:
		return r, nil
	}
	return "", fmt.Errorf("role %q: must be controller, agent, relay or watch", s)
}

// Mode is what a controller is at this moment.
type Mode string

// The modes of a controller.
const (
	// ModeActive is the one controller that does automated work.
	ModeActive Mode = "Active"
	// ModePassive has a session and can become Active.
	ModePassive Mode = "Passive"
	// ModeOffline has no session, or no majority to trust in.
	ModeOffline Mode = "Offline"
)

// Stamp is a moment as text, RFC 3339 in UTC with milliseconds, by the clock of
// whoever made it. Stamps of different machines are for people: nothing compares
// them or computes with them.
type Stamp string

// StampOf returns the stamp of t. The zero time has the empty stamp.
func StampOf(t time.Time) Stamp {
	if t.IsZero() {
		return ""
	}
	return Stamp(t.UTC().Format("2006-01-02T15:04:05.000Z"))
}

// MaxName is the longest name of anything, in bytes.
const MaxName = 63

// CheckNodeName returns an error that says what is wrong with s as the name of a
// node. Names become DNS names in certificates: lower-case letters, digits and
// '-', in labels separated by '.', each beginning and ending with a letter or
// digit.
func CheckNodeName(s string) error {
	if s == "" {
		return fmt.Errorf("must not be empty")
	}
	if len(s) > MaxName {
		return fmt.Errorf("%s has %d characters, at most %d are allowed", quote(s), len(s), MaxName)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || !all(label, isNodeByte) {
			return fmt.Errorf("%s is not a node name: use lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part", quote(s))
		}
	}
	return nil
}

// CheckName returns an error that says what is wrong with s as the name of a
// process, a step or a label: a letter or digit, then letters, digits, '.', '_'
// and '-', at most [MaxName] of them. So a name is always one element of a path or
// a key.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is missing or empty")
	case len(s) > MaxName:
		return fmt.Errorf("%s has %d characters, at most %d are allowed", quote(s), len(s), MaxName)
	case !isAlnum(s[0]) || !all(s, isNameByte):
		return fmt.Errorf("%s is not a name: use letters, digits, '.', '_' and '-', with a letter or digit first", quote(s))
	}
	return nil
}

// CheckStepName returns an error that says what is wrong with s as the name of a
// step of a request: that of a step of its process or, for one of the instances of
// such a step, that and the name of an agent, with '@' in between.
func CheckStepName(s string) error {
	step, agent, instance := strings.Cut(s, "@")
	if err := CheckName(step); err != nil || !instance {
		return err
	}
	return CheckNodeName(agent)
}

// OutputVariable returns the environment variable in which later steps find an
// output: what no variable's name may contain is replaced by '_'. Validate refuses
// a process in which two outputs would meet.
func OutputVariable(step, output string) string {
	name := []byte("UAC_OUTPUT_" + step + "_" + output)
	for i, c := range name {
		if !isVarByte(c) {
			name[i] = '_'
		}
	}
	return string(name)
}

// CheckParamName returns an error that says what is wrong with s as the name of a
// parameter or an environment variable.
func CheckParamName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is missing or empty")
	case len(s) > MaxName:
		return fmt.Errorf("%s has %d characters, at most %d are allowed", quote(s), len(s), MaxName)
	case isDigit(s[0]) || !all(s, isVarByte):
		return fmt.Errorf("%s is not a parameter name: use letters, digits and '_', without a digit first", quote(s))
	}
	return nil
}

// CheckLabel returns an error that says what is wrong with a label of an agent. A
// key is a name; a value has the characters of a name, or is empty.
func CheckLabel(key, value string) error {
	if err := CheckName(key); err != nil {
		return fmt.Errorf("label key: %w", err)
	}
	if len(value) > MaxName || !all(value, isNameByte) {
		return fmt.Errorf("label value: %s is not allowed: use at most %d letters, digits, '.', '_' and '-'", quote(value), MaxName)
	}
	return nil
}

// checkID returns an error unless s is a ULID in its canonical form.
func checkID(s string) error {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	if len(s) != 26 || s[0] > '7' || !all(s, func(c byte) bool { return strings.IndexByte(digits, c) >= 0 }) {
		return fmt.Errorf("request id %s is not a ULID", quote(s))
	}
	return nil
}

func isDigit(c byte) bool    { return '0' <= c && c <= '9' }
func isLower(c byte) bool    { return 'a' <= c && c <= 'z' }
func isAlnum(c byte) bool    { return isDigit(c) || isLower(c) || 'A' <= c && c <= 'Z' }
func isNodeByte(c byte) bool { return isDigit(c) || isLower(c) || c == '-' }
func isNameByte(c byte) bool { return isAlnum(c) || c == '.' || c == '_' || c == '-' }
func isVarByte(c byte) bool  { return isAlnum(c) || c == '_' }

// all reports whether ok holds for every byte of s.
func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

// quote returns s in quotes, cut to a length that fits a line.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
