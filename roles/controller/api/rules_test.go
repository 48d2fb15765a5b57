package api

import (
	"net/http"
	"strings"
	"testing"
)

func TestRouteWithoutRule(t *testing.T) {
	table := rules()
	delete(table, "GET /v1/nodes")
	table["GET /v1/processes"] = rule{}             // forgot to say who
	table["GET /v1/agents"] = rule{access: "root"}  // no such access
	table["GET /v1/made-up"] = rule{access: public} // no such route
	_, err := newServer(Config{}, nobody{}, Deps{}, table)
	want := []string{
		"route GET /v1/nodes: the table does not say who may use it",
		"route GET /v1/processes: the table does not say who may use it",
		"route GET /v1/agents: the table does not say who may use it",
		"route GET /v1/made-up: is in the table and does not exist",
	}
	if err == nil || err.Error() != strings.Join(want, "\n") {
		t.Errorf("got %v\nwant %s", err, strings.Join(want, "\n"))
	}
}

func TestPublicRoutesAreProbes(t *testing.T) {
	known := map[string]bool{}
	new(probes).register(func(pattern string, _ func(http.ResponseWriter, *http.Request)) { known[pattern] = true })
	for pattern, r := range rules() {
		if (r.access == public) != known[pattern] {
			t.Errorf("%s: access %q, is a probe: %v", pattern, r.access, known[pattern])
		}
	}
}

// nobody is a backend that is never called.
type nobody struct{ Backend }
