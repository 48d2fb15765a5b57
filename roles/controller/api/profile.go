package api

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
)

// profiles are the kinds that /debug/pprof/ serves: those of package
// runtime/pprof, the processor's, and the trace of an execution.
func profiles() []string {
	return []string{"allocs", "block", "goroutine", "heap", "mutex", "profile", "threadcreate", "trace"}
}

// profile serves one profile of this process, as go tool pprof reads it. The
// package's own handlers tell more (the command line, for one); they are not
// served.
func (s *Server) profile(w http.ResponseWriter, r *http.Request) {
	switch name := r.PathValue("profile"); {
	case name == "profile":
		pprof.Profile(w, r)
	case name == "trace":
		pprof.Trace(w, r)
	case slices.Contains(profiles(), name):
		pprof.Handler(name).ServeHTTP(w, r)
	default:
		write(w, r, problem(http.StatusNotFound, fmt.Sprintf("there is no profile %q; there are %s", name, strings.Join(profiles(), ", "))))
	}
}
