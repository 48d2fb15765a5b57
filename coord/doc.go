// Package coord keeps a small cluster of uac members agreed on who is alive,
// who is Active and who owns what, and lets the survivors go on within
// milliseconds when a member dies.
//
// Every member (each controller and each watch) embeds one etcd server. State
// that must survive lives there, and every change of it is a transaction that
// compares the epoch of its writer, so a member that was declared lost cannot
// write any more, however late its writes arrive. Besides etcd the members
// keep a mesh of dedicated connections and exchange pulses on it: pulses are
// the evidence on which a loss is decided, and their echoes are what lets a
// member trust that nobody has decided its own loss.
//
// The main types:
//
//   - [Member] is the embedded etcd server with its mesh and its [View].
//   - [View] is an in-memory copy of all keys at one consistent revision.
//   - [Session] is the member's time in the cluster, from joining to loss. All
//     its writes go through one chain of group commits ([Session.Commit]).
//   - [Term] is the session's time as Active.
//   - [Lock] is a cluster-wide mutex that dies with the session.
//
// The protocol, the key layout and the reason for each rule are in DESIGN.md
// beside this file. This is the only package that imports etcd.
package coord
