// Package pki is the cluster's public key infrastructure: it creates the
// certificate authorities, issues and renews certificates, hands out ready TLS
// configurations, and makes and verifies join and API tokens.
//
// # Authorities
//
// An offline root signs three CAs, so that a certificate is only good for what it
// was issued for:
//
//   - members: controllers and watches among themselves (etcd peers, pulses, the
//     members' RPC);
//   - api: the HTTPS servers that operators, browsers and probes talk to;
//   - nodes: the links between agents or relays and controllers.
//
// Each verifier trusts exactly one of the three, never the root: a certificate of
// another CA of the same cluster is as foreign as one of another cluster. The CAs
// carry name constraints (the members CA cannot sign an API host, the api CA cannot
// sign controller.uac) and a path length of zero.
//
// The root key is written to a directory of its own, which the operator takes
// offline; it is needed again only to replace a CA. The keys of the three CAs live
// only with controllers.
//
// # Identity
//
// A certificate names its holder in one URI SAN, uac://<cluster>/<role>/<name>
// (see [Identity]). Peers are verified by name and never by address, so that nodes
// may change addresses: member certificates carry member.uac and
// <name>.member.uac, certificates of the nodes CA <role>.uac and
// <name>.<role>.uac. Only API certificates carry host names and addresses. People
// have no certificates; they use API tokens.
//
// # Files
//
// Every node has one directory:
//
//	ca/root.crt ca/members.crt ca/api.crt ca/nodes.crt   each CA signed by the root
//	ca/members.key ca/api.key ca/nodes.key               controllers only
//	member.crt member.key                                controllers and watches
//	node.crt node.key                                    every node
//	api.crt api.key                                      all but agents
//
// Certificate files hold the leaf and its CA. Keys have mode 0600, and a key that
// others can read is refused. A renewal keeps the private key: it then replaces a
// single file, atomically, and no crash can leave a certificate beside the key of
// another one. Files are read again when they change, so that a renewal needs no
// restart. A new key comes only from a new enrolment or issue.
//
// # Validity
//
// CAs are valid for ten years and leaves for 90 days, from five minutes before they
// are signed, because the clocks of two machines differ a little. Renewal is due
// from two thirds of the lifetime on.
package pki
