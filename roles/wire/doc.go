// Package wire carries messages between nodes: the protobuf messages and gRPC
// services of uac.proto, the listener that they all share, and the way to dial it.
//
// # One port, several classes
//
// Everything between nodes except etcd's own traffic goes through one TCP port.
// What a connection is for, its class, is settled in the TLS handshake by ALPN:
//
//	uac-pulse/1    pulses between members; a raw connection
//	uac-lifeline/1 nothing, between members: see package lifeline
//	uac-member/1   gRPC service Member between controllers and watches
//	uac-link/1     gRPC service Link, for agents and relays
//	uac-join/1     gRPC service Enroll, for machines without a certificate
//	uac-relay/1    a way to a controller, asked for at a relay; see below
//
// [Listen] gives every class a net.Listener of its own and its own TLS
// configuration. A connection that offers no known class, or a certificate that the
// class does not take, ends in the handshake: no byte of it reaches a service. So a
// service never meets a peer of another kind, and gRPC sees only finished
// handshakes (see [NewServer]), with the peer's identity in the context of every
// call (see [Peer]).
//
// # Through relays
//
// A relay joins two TCP connections: what is TLS between an agent and its controller
// stays so, and is nothing but bytes to the relay. [DialLink] makes links either way:
// it offers uac-relay/1 and uac-link/1, and whoever is at the address chooses. A relay
// and its client prove to each other who they are, the client asks ([RelayAsk]), the
// relay connects to a controller and answers ([RelayAnswer]); then both take the TCP
// connection from under their TLS session, which has done its work, and the client
// begins the handshake with the controller. Nothing is encrypted twice, and a relay
// keeps no TLS state for an idle link.
//
// A machine without a certificate dials uac-join/1 as if the relay were a controller.
// The relay reads its TLS hello, sees that it is for that class and no other (see
// [Class].Through), and passes it on.
//
// # Memory
//
// A controller holds ten thousand idle links, so what a connection costs when
// nothing happens counts more than throughput: buffers are small and shared,
// session tickets are off, messages and concurrent streams are bounded.
package wire

//go:generate protoc -I . --plugin=../../bin/tools/protoc-gen-go --plugin=../../bin/tools/protoc-gen-go-grpc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative uac.proto
