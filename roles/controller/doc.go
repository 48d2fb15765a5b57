// Package controller accepts requests, owns some of them and drives their steps
// on agents.
//
// A [Controller] works in one session of its coordination member after the
// other. Within a session a desk owns requests: it claims those that nobody
// owns, feeds what happens to the engine of package roles, stores what changed
// through the session's chain, and then performs what is pending. When the
// session is lost the desk is thrown away with all it knew; whoever claims its
// requests starts from the store and from what the agents answer.
//
// Any controller answers any call of the API, from its own copy of the store.
// What only the owner of a request may do is asked of it through the request's
// inbox, and what only one node may do through an order to that node.
//
// DESIGN.md beside this file is about what several owners share: limits on steps,
// the presence of agents, and machines that have one identity.
package controller
