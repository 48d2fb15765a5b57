// Package relay carries agents' links to controllers: agents need no way to the
// controllers, only one to a relay.
//
// A link's TLS goes from the agent to the controller. The relay joins two TCP
// connections and sees bytes: it can read nothing, say nothing in another's name and
// repeat nothing; all that it can do is to drop a link, and agents come back over
// another one. Nothing is stored here. Messages are durable at their ends and repeated
// until they are acknowledged, so a relay that dies loses nothing.
//
// Who wants to be connected says so first, see package wire ("Through relays"). Only
// nodes with a certificate of the cluster are; machines that join with a token have
// none and get no further than to the controllers' enrolment, a few at a time.
//
// # Structure
//
//	relay     the node: settings, limits, who asks and who joins
//	upstream  which server an ask is passed to: a pure function of what is known
//	uplink    the relay's own link to every controller, with its beats
//	window    round trips of the last 30 seconds
//	carry     two connections joined, without a buffer while both are silent
//
// A relay knows a controller by its own link to it: the name from the certificate, and
// whether it answers. So it never sends an agent to an address that it has not
// verified itself, and to a controller that is silent only if there is no other.
package relay
