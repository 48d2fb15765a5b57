// Package api is the HTTPS face of a controller: the REST API under /v1/, the
// probes of load balancers, and metrics.
//
// A call goes through three layers:
//
//	front    gives it an id, logs and counts it, turns panics and unknown
//	         paths into problems (RFC 9457)
//	guard    looks its route up in one table (rules.go): is this controller able
//	         to answer, who calls, may they; then waits for the revision that the
//	         caller has seen and reads the body
//	route    a function from typed input to typed output, described by OpenAPI
//
// A route that the table does not name cannot be built, so there is no route
// without a decision about its access.
//
// Everything behind the routes is a [Backend], which the controller implements.
// This package holds no state of the cluster. Its words follow HTTP in one
// point: what comes in over HTTP is a call, because a request is a run of a
// process.
package api

// The description of the API in docs/ is what a test writes and compares.
//
//go:generate env UPDATE_GOLDEN=1 go test -run ^TestOpenAPIIsCommitted$ .
