package controller

import (
	"fmt"
	"iter"
	"strings"

	"uac/coord"
	"uac/roles"
)

// The keys of the controllers; coord draws the whole tree. Only the owner of a
// request writes below requests/<id>/ after its acceptance, and only through its
// session's chain.
const (
	prefixRequests  = "requests/"
	prefixClaims    = "claims/"
	prefixInbox     = "inbox/"
	prefixIdem      = "idem/"
	prefixProcesses = "processes/"
	prefixAgents    = "agents/"
	prefixLinks     = "links/"
	prefixTokens    = "tokens/"
	prefixEvents    = "events/"
	prefixMounts    = "mounts/"
	prefixAway      = "away/"
	prefixClusters  = "clusters/"
	prefixSlots     = "slots/"
	prefixCollect   = "collect/"
	prefixTold      = "told/"
	prefixHistory   = "history/"
	prefixMoved     = "moved/"
	prefixPast      = "past/"
	keyTidied       = "tidied"
)

func specKey(id string) string       { return prefixRequests + id + "/spec" }
func statusKey(id string) string     { return prefixRequests + id + "/status" }
func stepPrefix(id string) string    { return prefixRequests + id + "/steps/" }
func stepKey(id, step string) string { return stepPrefix(id) + step }
func claimKey(id string) string      { return prefixClaims + id }
func inboxKey(id, msg string) string { return prefixInbox + id + "/" + msg }
func idemKey(key string) string      { return prefixIdem + key }
func processKey(name string) string  { return prefixProcesses + name }
func agentKey(name string) string    { return prefixAgents + name }
func clusterKey(name string) string  { return prefixClusters + name }

// slotsOfAgent is the prefix of the slots of an agent's own limit.
func slotsOfAgent(name string) string { return prefixSlots + "agent/" + name + "/" }
func linkKey(agent, controller string) string {
	return prefixLinks + agent + "/" + controller
}
func tokenKey(id string) string { return prefixTokens + id }

// importedKey remembers that a first token was stored, also after its deletion.
func importedKey(id string) string { return "imported/" + id }
func eventKey(id string) string    { return prefixEvents + id }
func mountKey(node string) string  { return prefixMounts + node }

// toldKey holds a list of finished requests whose agents may forget them.
func toldKey(id string) string { return prefixTold + id }

// registryKey holds the entry of a file of the history: below prefixHistory of one
// with requests, below prefixPast of one with events.
func registryKey(prefix, name string) string {
	return prefix + strings.TrimPrefix(name, historyDir+"/")
}

// movedKey holds the idempotency keys of the requests in a file of the history.
func movedKey(name string) string {
	return prefixMoved + strings.TrimPrefix(name, historyDir+"/")
}

// movedRecord is the value of moved/<file>.
type movedRecord struct {
	At   roles.Stamp `json:"at"`
	Keys []string    `json:"keys"`
}

// claimRecord is the value of claims/<id>: who owns a request.
type claimRecord struct {
	Node  string `json:"node"`
	Epoch int64  `json:"epoch"` // of the node's session
	// Generation of the cluster in which the claim was made.
	Generation uint64 `json:"generation"`
	// From names the owner that handed the request over; empty if the node
	// claimed it itself.
	From string `json:"from,omitempty"`
}

// idemRecord is the value of idem/<key>.
type idemRecord struct {
	Request string `json:"request"`
	Digest  string `json:"digest"`
	// Final is set when the request is in the history: enough to answer a client
	// that repeats itself, also while the history cannot be read.
	Final *idemFinal `json:"final,omitempty"`
}

type idemFinal struct {
	Status      roles.RequestStatus `json:"status"`
	RequestedBy string              `json:"requested_by"`
	RequestedAt roles.Stamp         `json:"requested_at"`
	StartedAt   roles.Stamp         `json:"started_at,omitempty"`
	FinishedAt  roles.Stamp         `json:"finished_at,omitempty"`
}

// linkRecord is the value of links/<agent>/<controller>: the newest link that the
// controller held. It counts only while the controller's session is the one that
// wrote it.
type linkRecord struct {
	Epoch int64       `json:"epoch"`
	Since roles.Stamp `json:"since"`
	// Via names the relays that the link goes through, as the agent says.
	Via []string `json:"via,omitempty"`
	// Until is when the link had ended, empty while it is held.
	Until roles.Stamp `json:"until,omitempty"`
	// Instance is the agent's process, Host where it runs, as the hello said.
	Instance string `json:"instance,omitempty"`
	Host     string `json:"host,omitempty"`
}

// storedLink is a link as the store tells of it.
type storedLink struct {
	*linkRecord
	mod int64 // of the key
}

// linkOf returns the newest link that a controller held to an agent.
func linkOf(snap coord.Snapshot, agent, controller string) (storedLink, bool) {
	kv, ok := snap.Get(linkKey(agent, controller))
	if !ok {
		return storedLink{}, false
	}
	rec, err := coord.Decoded[linkRecord](kv)
	return storedLink{rec, kv.Mod}, err == nil
}

// linksOf yields the links to an agent by the name of the controller.
func linksOf(snap coord.Snapshot, agent string) iter.Seq2[string, storedLink] {
	return func(yield func(string, storedLink) bool) {
		for kv := range snap.Range(linkKey(agent, "")) {
			rec, err := coord.Decoded[linkRecord](kv)
			if _, controller := requestOf(kv.Key, prefixLinks); err == nil && !yield(controller, storedLink{rec, kv.Mod}) {
				return
			}
		}
	}
}

// held reports whether the controller holds the link, by what a snapshot shows.
func (l linkRecord) held(snap coord.Snapshot, controller string) bool {
	return l.Until == "" && coord.SessionEpoch(snap, controller) == l.Epoch
}

// agentRecord is the value of agents/<name>.
type agentRecord struct {
	Name      string            `json:"name"`
	Host      string            `json:"host"`
	Version   string            `json:"version"`
	Labels    map[string]string `json:"labels,omitempty"`
	Suspended bool              `json:"suspended,omitempty"`
	// Limit is how many steps may be out at it, 0 for no limit.
	Limit     int         `json:"limit,omitempty"`
	FirstSeen roles.Stamp `json:"first_seen"`
	// Journal that the agent last showed, with the highest counter seen in a
	// hello: a machine set back to a snapshot is behind it.
	Journal roles.Journal `json:"journal"`

	mod int64 // of the key
}

// requestOf returns the request that a key below requests/, claims/ or inbox/
// belongs to.
func requestOf(key, prefix string) (id, rest string) {
	id, rest, _ = strings.Cut(strings.TrimPrefix(key, prefix), "/")
	return id, rest
}

// loadRequest reads a request as the snapshot shows it, with its claim and the
// fence that the claim gives. ok is false if there is no such request.
func loadRequest(snap coord.Snapshot, id string) (s roles.State, claim claimRecord, fence roles.Fence, ok bool, err error) {
	spec, ok := snap.Get(specKey(id))
	if !ok {
		return s, claim, fence, false, nil
	}
	inconsistent := func(err error) error { return fmt.Errorf("request %s: %w: %w", id, roles.ErrInconsistent, err) }
	req, err := coord.Decoded[roles.Request](spec)
	if err != nil {
		return s, claim, fence, true, inconsistent(err)
	}
	status, _ := snap.Get(statusKey(id))
	record, err := coord.Decoded[roles.Record](status)
	if err != nil {
		return s, claim, fence, true, inconsistent(err)
	}
	steps := map[string]*roles.Step{}
	for kv := range snap.Range(stepPrefix(id)) {
		if steps[strings.TrimPrefix(kv.Key, stepPrefix(id))], err = coord.Decoded[roles.Step](kv); err != nil {
			return s, claim, fence, true, inconsistent(err)
		}
	}
	if kv, claimed := snap.Get(claimKey(id)); claimed {
		c, err := coord.Decoded[claimRecord](kv)
		if err != nil {
			return s, claim, fence, true, err
		}
		claim, fence = *c, roles.Fence{Generation: c.Generation, Revision: kv.Mod}
	}
	s, err = roles.Assemble(req, *record, steps, fence, spec.Mod)
	return s, claim, fence, true, err
}
