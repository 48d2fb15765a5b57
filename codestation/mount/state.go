package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"
)

// ErrUnavailable is wrapped by every error that says nothing about the file that
// was asked for: the mount is absent, full, read-only, stale or hung, or not
// configured. The outcome of a write is unknown.
var ErrUnavailable = errors.New("shared mount is unavailable")

// SizeError is returned by [Mount.Append] when a file does not end where the bytes
// were to begin.
type SizeError struct {
	Name string
	At   int64 // where the bytes were to begin
	Size int64 // of the file; 0 if there is none
}

// Error implements error.
func (e *SizeError) Error() string {
	return fmt.Sprintf("append to %s at %d: the file has %d bytes", e.Name, e.At, e.Size)
}

// Kind says in one word how the mount is.
type Kind string

// The kinds.
const (
	OK           Kind = "ok"
	Unconfigured Kind = "unconfigured" // there is no directory in the settings
	Checking     Kind = "checking"     // not yet probed since the start
	Absent       Kind = "absent"       // no directory, or no sentinel in it
	Foreign      Kind = "foreign"      // the sentinel is of another cluster, or unreadable
	ReadOnly     Kind = "read_only"
	Full         Kind = "full"
	Stale        Kind = "stale" // the file server is gone or has forgotten the mount
	Hung         Kind = "hung"
	Failed       Kind = "failed" // anything else: see the error
)

// State is how the mount is, as this process sees it.
type State struct {
	Dir  string `json:"dir"`
	Kind Kind   `json:"state"`
	// Since is when the kind last changed.
	Since time.Time `json:"since"`
	// Error is why the mount is not OK, "" if it is.
	Error string `json:"error,omitempty"`
	// ID is that of the sentinel that was seen last: nodes with the same id have
	// the same mount.
	ID    string `json:"id,omitempty"`
	Free  uint64 `json:"free_bytes"`
	Total uint64 `json:"total_bytes"`
	// Stuck is how many abandoned children have not ended.
	Stuck int `json:"stuck_children,omitempty"`
}

// fault is an error on its way from the child.
type fault struct {
	Text  string        `json:"text"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Kind  Kind          `json:"kind,omitempty"` // set if the mount is to blame
	Size  int64         `json:"size,omitempty"` // with sizeText
}

// sizeText marks the fault that becomes a SizeError.
const sizeText = "size"

// errSize is a SizeError within the child.
type errSize int64

func (e errSize) Error() string { return sizeText }

// errSentinel says what is wrong with the sentinel.
type errSentinel struct {
	kind Kind
	text string
}

func (e errSentinel) Error() string { return e.text }

func faultOf(err error) *fault {
	f := &fault{Text: err.Error()}
	var size errSize
	var sentinel errSentinel
	switch {
	case errors.As(err, &size):
		f.Size = int64(size)
	case errors.As(err, &sentinel):
		f.Kind = sentinel.kind
	case errors.Is(err, errInvalid):
		f.Errno = syscall.EINVAL
	case errors.As(err, &f.Errno):
		f.Kind = kindOf(f.Errno)
	default:
		f.Kind = Failed
	}
	return f
}

// kindOf says what an error tells of the mount, "" for nothing: it is about the
// file then.
func kindOf(e syscall.Errno) Kind {
	switch e {
	case syscall.ENOENT, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EISDIR, syscall.ENAMETOOLONG, syscall.EINVAL:
		return ""
	case syscall.EROFS:
		return ReadOnly
	case syscall.ENOSPC, syscall.EDQUOT:
		return Full
	case syscall.ESTALE, syscall.ENOTCONN, syscall.EIO, syscall.ENODEV, syscall.ENXIO, syscall.ETIMEDOUT, syscall.EHOSTDOWN,
		syscall.ESHUTDOWN, syscall.ECONNABORTED, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EHOSTUNREACH:
		return Stale
	}
	return Failed
}

// err returns the fault of a call as what the caller gets.
func (f *fault) err(c call) error {
	what := c.Op + " " + c.Name
	switch {
	case f.Text == sizeText:
		return &SizeError{Name: c.Name, At: c.At, Size: f.Size}
	case f.Kind != "":
		err := unavailable{text: fmt.Sprintf("%s: %s", f.Kind, f.Text)}
		if f.Errno != 0 {
			err.cause = f.Errno
		}
		return err
	case f.Errno == syscall.ENOENT:
		return fmt.Errorf("%s: %w", what, fs.ErrNotExist)
	case f.Errno == syscall.EEXIST:
		return fmt.Errorf("%s: %w", what, fs.ErrExist)
	}
	return fmt.Errorf("%s: %s: %w", what, f.Text, f.Errno)
}

// unavailable is ErrUnavailable for a reason.
type unavailable struct {
	text  string
	cause error // nil for none
}

// Error implements error.
func (e unavailable) Error() string { return ErrUnavailable.Error() + ": " + e.text }

// Unwrap lets errors.Is find ErrUnavailable and the cause.
func (e unavailable) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrUnavailable}
	}
	return []error{ErrUnavailable, e.cause}
}
