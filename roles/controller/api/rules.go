package api

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"uac/roles/wire/pki"
)

// public marks routes that need no login. It is a word and not the zero value,
// so that forgetting the access of a route closes it.
const public pki.Access = "public"

// rule says how the guard treats a route.
type rule struct {
	// access is the least that the caller's token must have.
	access pki.Access
	// stale routes answer from this controller's copy when it cannot know
	// whether that is current, if the caller says stale=true.
	stale bool
	// alone routes answer whatever the state of the cluster is.
	alone bool
	// stream routes answer for as long as they like.
	stream bool
}

// rules is the table of all routes. Whoever adds a route decides here who may
// use it:
//
//	viewer    sees everything but secrets
//	operator  runs and defines work, and steers the cluster without ending a node
//	admin     ends and removes nodes, answers for losses, hands out tokens
func rules() map[string]rule {
	return map[string]rule{
		"GET /healthz":                              {access: public, alone: true},
		"GET /readyz":                               {access: public, alone: true},
		"GET /uc/is_active_node.do":                 {access: public, alone: true},
		"GET /uc/ops_node_info.do":                  {access: public, alone: true},
		"GET /uc/resources/clusternode/healthcheck": {access: public, alone: true},
		"GET /uc/resources/clusternode/list":        {access: public, alone: true},
		"GET /metrics":                              {access: pki.Viewer, alone: true},
		"GET /openapi.json":                         {access: pki.Viewer, alone: true},
		"GET /debug/pprof/{profile}":                {access: pki.Admin, alone: true, stream: true},
		"GET /v1/nodes":                             {access: pki.Viewer, stale: true},
		"GET /v1/nodes/{name}":                      {access: pki.Viewer, stale: true},
		"POST /v1/nodes/switchover":                 {access: pki.Operator},
		"POST /v1/nodes/confirm-lost":               {access: pki.Admin, alone: true},
		"POST /v1/nodes/{name}/pause":               {access: pki.Operator},
		"POST /v1/nodes/{name}/resume":              {access: pki.Operator},
		"POST /v1/nodes/{name}/drain":               {access: pki.Operator},
		"POST /v1/nodes/{name}/prefer":              {access: pki.Operator},
		"POST /v1/nodes/{name}/stop":                {access: pki.Admin},
		"POST /v1/nodes/{name}/restart":             {access: pki.Admin},
		"POST /v1/nodes/{name}/abort":               {access: pki.Admin},
		"DELETE /v1/nodes/{name}":                   {access: pki.Admin},
		"POST /v1/documents":                        {access: pki.Operator},
		"GET /v1/processes":                         {access: pki.Viewer},
		"GET /v1/processes/{name}":                  {access: pki.Viewer},
		"POST /v1/processes":                        {access: pki.Operator},
		"DELETE /v1/processes/{name}":               {access: pki.Operator},
		"POST /v1/requests":                         {access: pki.Operator},
		"GET /v1/requests":                          {access: pki.Viewer},
		"GET /v1/requests/{id}":                     {access: pki.Viewer},
		"GET /v1/requests/{id}/watch":               {access: pki.Viewer, stream: true},
		"GET /v1/requests/{id}/logs":                {access: pki.Viewer, stream: true},
		"POST /v1/requests/{id}/cancel":             {access: pki.Operator},
		"POST /v1/requests/{id}/hold":               {access: pki.Operator},
		"POST /v1/requests/{id}/release":            {access: pki.Operator},
		"POST /v1/requests/{id}/skip":               {access: pki.Operator},
		"POST /v1/requests/{id}/rerun":              {access: pki.Operator},
		"POST /v1/requests/{id}/resolve":            {access: pki.Operator},
		"POST /v1/requests/{id}/finish":             {access: pki.Operator},
		"POST /v1/requests/{id}/insert":             {access: pki.Operator},
		"POST /v1/requests/{id}/change":             {access: pki.Operator},
		"GET /v1/agents":                            {access: pki.Viewer},
		"GET /v1/agents/{name}":                     {access: pki.Viewer},
		"POST /v1/agents/{name}/suspend":            {access: pki.Operator},
		"POST /v1/agents/{name}/resume":             {access: pki.Operator},
		"GET /v1/mounts":                            {access: pki.Viewer},
		"POST /v1/agents/{name}/limit":              {access: pki.Operator},
		"DELETE /v1/agents/{name}":                  {access: pki.Admin},
		"GET /v1/agent-clusters":                    {access: pki.Viewer},
		"GET /v1/agent-clusters/{name}":             {access: pki.Viewer},
		"POST /v1/agent-clusters/{name}/suspend":    {access: pki.Operator},
		"POST /v1/agent-clusters/{name}/resume":     {access: pki.Operator},
		"DELETE /v1/agent-clusters/{name}":          {access: pki.Operator},
		"GET /v1/locks":                             {access: pki.Viewer},
		"DELETE /v1/locks/{name}":                   {access: pki.Operator},
		"GET /v1/events":                            {access: pki.Viewer},
		"GET /v1/tokens":                            {access: pki.Admin},
		"POST /v1/tokens":                           {access: pki.Admin},
		"DELETE /v1/tokens/{id}":                    {access: pki.Admin},
	}
}

// routes is the mux on which everything is registered: it puts the guard
// before each handler and finds out where table and routes differ.
type routes struct {
	mux     *http.ServeMux
	table   map[string]rule
	guard   func(pattern string, r rule, next http.HandlerFunc) http.HandlerFunc
	missing []string // in the table
	known   map[string]bool
}

func newRoutes(table map[string]rule, guard func(string, rule, http.HandlerFunc) http.HandlerFunc) *routes {
	return &routes{mux: http.NewServeMux(), table: table, guard: guard, known: map[string]bool{}}
}

// HandleFunc registers a handler behind the guard. It implements humago.Mux.
func (rs *routes) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	r, ok := rs.table[pattern]
	if !ok || r.access != public && !pki.Admin.Allows(r.access) {
		rs.missing = append(rs.missing, pattern)
		return
	}
	rs.known[pattern] = true
	rs.mux.HandleFunc(pattern, rs.guard(pattern, r, h))
}

// ServeHTTP implements humago.Mux.
func (rs *routes) ServeHTTP(w http.ResponseWriter, r *http.Request) { rs.mux.ServeHTTP(w, r) }

// check returns an error that names the routes without a rule and the rules
// without a route.
func (rs *routes) check() error {
	var errs []error
	for _, pattern := range rs.missing {
		errs = append(errs, fmt.Errorf("route %s: the table does not say who may use it", pattern))
	}
	for _, pattern := range slices.Sorted(maps.Keys(rs.table)) {
		if !rs.known[pattern] && !slices.Contains(rs.missing, pattern) {
			errs = append(errs, fmt.Errorf("route %s: is in the table and does not exist", pattern))
		}
	}
	return errors.Join(errs...)
}
