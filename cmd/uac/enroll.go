package main

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// askToEnroll asks one server after the other until one answers or refuses.
// Repeating is safe: a token that this key has used lets it in again. A refusal is
// final: whoever refuses has looked at the state that all controllers share, and
// the token and the name do not become better.
func askToEnroll(ctx context.Context, d daemonDeps, servers []string, root string, ask *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	var last error
	for {
		for _, addr := range servers {
			resp, err := enrollAt(ctx, addr, root, ask)
			if err == nil {
				return resp, nil
			}
			if answer := status.Convert(err); refuses(answer.Code()) {
				return nil, fail(exitForbidden, "enrol at %s: refused: %s", addr, answer.Message())
			}
			d.log.Warn("not enrolled yet", "server", addr, "error", err)
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, fail(exitUnreachable, "enrol: no server answered: %w", last)
		case <-time.After(time.Second):
		}
	}
}

// enrollAt asks one server.
func enrollAt(ctx context.Context, addr, root string, ask *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	conn, err := wire.NewClient(wire.ClassJoin, addr, pki.JoinClient(root), wire.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // the answer is there, or there will be none
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return wire.NewEnrollClient(conn).Enroll(ctx, ask)
}

// refuses reports whether an answer means no for good.
func refuses(c codes.Code) bool {
	return c == codes.PermissionDenied || c == codes.AlreadyExists || c == codes.InvalidArgument
}
