package api

import (
	"errors"
	"fmt"
)

// Errors that a Backend returns, wrapped, and that become status codes.
var (
	// ErrNotFound: 404, exit code 4.
	ErrNotFound = errors.New("not found")
	// ErrConflict: 409, exit code 6.
	ErrConflict = errors.New("conflict")
	// ErrInvalid: 422, exit code 2.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthenticated: 401, exit code 5.
	ErrUnauthenticated = errors.New("not logged in")
	// ErrUnavailable: 503, exit code 3: the outcome of a write is unknown.
	ErrUnavailable = errors.New("unavailable")
	// ErrNoRoom: 507, exit code 1.
	ErrNoRoom = errors.New("no room")
	// ErrGone: 410, exit code 4: there was such a thing.
	ErrGone = errors.New("gone")
)

// Gap is the error of output of which a part is gone: it goes on at Next.
type Gap struct{ Next int64 }

func (g *Gap) Error() string { return fmt.Sprintf("the output up to byte %d is gone", g.Next) }
