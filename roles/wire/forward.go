package wire

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// passedOn marks a call that has been passed on once, in its metadata.
const passedOn = "uac-passed-on"

// Forwarder serves a member's calls and passes on, once, those that name
// another member: two members that cannot reach each other may both reach a
// third.
type Forwarder struct {
	UnimplementedMemberServer
	// Name of this member.
	Name string
	// Own answers what is for this member; nil if it answers nothing itself.
	Own MemberServer
	// Dial returns the service of another member.
	Dial func(ctx context.Context, node string) (MemberClient, error)
}

// next returns who answers a call for the member called to: this one, or
// another by way of client.
func (f *Forwarder) next(ctx context.Context, to string) (own MemberServer, client MemberClient, onward context.Context, err error) {
	if to == f.Name {
		if f.Own == nil {
			return nil, nil, nil, status.Errorf(codes.NotFound, "%s holds no links and owns no requests", f.Name)
		}
		return f.Own, nil, ctx, nil
	}
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(passedOn)) > 0 {
		return nil, nil, nil, status.Errorf(codes.Unavailable, "%s was asked for %s, and the call has been passed on before", f.Name, to)
	}
	client, err = f.Dial(ctx, to)
	if err != nil {
		return nil, nil, nil, status.Error(codes.Unavailable, err.Error())
	}
	return nil, client, metadata.AppendToOutgoingContext(ctx, passedOn, f.Name), nil
}

// Peek implements MemberServer.
func (f *Forwarder) Peek(ctx context.Context, r *PeekRequest) (*PeekResponse, error) {
	own, client, onward, err := f.next(ctx, r.GetTo())
	switch {
	case err != nil:
		return nil, err
	case own != nil:
		return own.Peek(ctx, r)
	}
	return client.Peek(onward, r)
}

// Deliver implements MemberServer.
func (f *Forwarder) Deliver(ctx context.Context, r *DeliverRequest) (*DeliverResponse, error) {
	own, client, onward, err := f.next(ctx, r.GetTo())
	switch {
	case err != nil:
		return nil, err
	case own != nil:
		return own.Deliver(ctx, r)
	}
	return client.Deliver(onward, r)
}

// Report implements MemberServer.
func (f *Forwarder) Report(ctx context.Context, r *ReportRequest) (*ReportResponse, error) {
	own, client, onward, err := f.next(ctx, r.GetTo())
	switch {
	case err != nil:
		return nil, err
	case own != nil:
		return own.Report(ctx, r)
	}
	return client.Report(onward, r)
}

// ReadOutput implements MemberServer.
func (f *Forwarder) ReadOutput(r *ReadOutputRequest, stream grpc.ServerStreamingServer[OutputChunk]) error {
	own, client, onward, err := f.next(stream.Context(), r.GetTo())
	switch {
	case err != nil:
		return err
	case own != nil:
		return own.ReadOutput(r, stream)
	}
	from, err := client.ReadOutput(onward, r)
	if err != nil {
		return err
	}
	for {
		chunk, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(chunk); err != nil {
			return err
		}
	}
}

// Renew implements MemberServer: it is never passed on, because the caller is
// known by the connection that it came over.
func (f *Forwarder) Renew(ctx context.Context, r *RenewRequest) (*Certificate, error) {
	if f.Own == nil {
		return nil, status.Errorf(codes.Unimplemented, "%s signs no certificates", f.Name)
	}
	return f.Own.Renew(ctx, r)
}
