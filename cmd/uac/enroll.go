package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// askToEnroll asks one server after the other until one answers or refuses.
// Repeating is safe: a token that this key has used lets it in again.
func askToEnroll(ctx context.Context, d daemonDeps, servers []string, root string, ask *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	var last error
	for {
		for _, addr := range servers {
			conn, err := wire.NewClient(wire.ClassJoin, addr, pki.JoinClient(root), wire.Options{})
			if err != nil {
				return nil, err
			}
			callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
			resp, err := wire.NewEnrollClient(conn).Enroll(callCtx, ask)
			cancel()
			err = errors.Join(err, conn.Close())
			switch code := status.Code(errors.Unwrap(err)); {
			case err == nil:
				return resp, nil
			case code == codes.PermissionDenied || code == codes.AlreadyExists || code == codes.InvalidArgument:
				return nil, fail(exitForbidden, "enrol at %s: %w", addr, err)
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
