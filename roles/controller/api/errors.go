package api

import "errors"

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
)
