package coord

import "strings"

// The key layout. Keys have no common prefix: the embedded etcd holds nothing
// but uac. Values are JSON. "Epoch" is always the ModRevision of the key that
// is named, so it grows for ever and never needs a counter.
//
//	generation                     raised when history may have been cut: confirm-lost without quorum, restore
//	nodes/<node>                   the node's record, paused, preferred; kept for ever
//	sessions/<node>                a member's session; its ModRevision is the session's epoch
//	active                         who is Active: node and session epoch; its ModRevision is the term's epoch
//	commit/<node>                  the chain key: every group commit compares it and puts it again
//	hold/<node>                    a goodbye without fail-over: the node's work waits for it
//	confirms/<node>                an operator's word that this session is lost (failover: confirm)
//	alive/<node>                   under the node's lease: the backstop
//	losses/<node>                  the last loss decision about the node: who agreed, why
//	terms                          the last term's first write
//	locks/<name>/<lease>           mutexes
//	orders/<node>/<id>             an operator's order to one node
//	claims/<request>               owner of a request: node and session epoch; its ModRevision is the fence
//	requests/<request>/spec        frozen definition and parameters, never changed
//	requests/<request>/status      status of the whole request
//	requests/<request>/steps/<s>   status of one step
//	inbox/<request>/<id>           commands to the owner
//	idem/<key>                     idempotency keys of accepted requests
//	processes/<name>               process definitions
//	agents/<agent>                 enrolled agents
//	relays/<relay>                 relays that were met
//	relaylinks/<relay>/<c>         which controllers hold a link to the relay
//	clusters/<name>                agent clusters
//	links/<agent>/<controller>     which controllers hold a link to the agent, and when they last did
//	away/<role>/<name>             an agent or relay that was told to be out of reach
//	slots/<limit>/<n>              the attempt that was given slot n of a limit on steps
//	tokens/<id>                    API and join tokens, hashed
//	imported/<id>                  first tokens that were stored once and are not stored again
//	told/<id>                      finished requests whose agents may forget them
//	history/<hour>/<file>          files of the history on the shared mount
//	past/<hour>/<file>             files with events on the shared mount
//	moved/<hour>/<file>            idempotency keys of the requests in that file
//	tidied                         the term that tidied the history last
//	mounts/<controller>            how a controller saw the shared mount last
//	collect/<request>              output of the request may not be on the shared mount yet
//	events/<id>                    what happened and who did it
//
// This package owns the keys down to locks/; the others belong to the roles
// above it, which write them through [Session.Commit].
const (
	keyGeneration = "generation"
	keyActive     = "active"
	keyTerms      = "terms"

	prefixNodes    = "nodes/"
	prefixSessions = "sessions/"
	prefixCommit   = "commit/"
	prefixHold     = "hold/"
	prefixConfirms = "confirms/"
	prefixAlive    = "alive/"
	prefixLosses   = "losses/"
	prefixLocks    = "locks/"
)

func nodeKey(node string) string    { return prefixNodes + node }
func sessionKey(node string) string { return prefixSessions + node }
func commitKey(node string) string  { return prefixCommit + node }
func holdKey(node string) string    { return prefixHold + node }
func confirmKey(node string) string { return prefixConfirms + node }
func aliveKey(node string) string   { return prefixAlive + node }
func lossKey(node string) string    { return prefixLosses + node }

// leaf returns what follows prefix in key, or "" if key does not start with
// prefix or has more levels below it.
func leaf(key, prefix string) string {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || strings.Contains(rest, "/") {
		return ""
	}
	return rest
}
