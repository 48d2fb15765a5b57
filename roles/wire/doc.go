// Package wire carries messages between nodes: the protobuf messages and gRPC
// services of uac.proto, the listener that they all share, and the way to dial it.
//
// # One port, several classes
//
// Everything between nodes except etcd's own traffic goes through one TCP port.
// What a connection is for, its class, is settled in the TLS handshake by ALPN:
//
//	uac-pulse/1    pulses between members; a raw connection
//	uac-member/1   gRPC service Member between controllers and watches
//	uac-link/1     gRPC service Link, for agents and relays
//	uac-join/1     gRPC service Enroll, for machines without a certificate
//
// [Listen] gives every class a net.Listener of its own and its own TLS
// configuration. A connection that offers no known class, or a certificate that the
// class does not take, ends in the handshake: no byte of it reaches a service. So a
// service never meets a peer of another kind, and gRPC sees only finished
// handshakes (see [NewServer]), with the peer's identity in the context of every
// call (see [Peer]).
//
// # Memory
//
// A controller holds ten thousand idle links, so what a connection costs when
// nothing happens counts more than throughput: buffers are small and shared,
// session tickets are off, messages and concurrent streams are bounded.
package wire

//go:generate protoc -I . --plugin=../../bin/tools/protoc-gen-go --plugin=../../bin/tools/protoc-gen-go-grpc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative uac.proto
