package api_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// The description is committed, so that every change of the contract shows in a
// review. go generate writes it.
func TestOpenAPIIsCommitted(t *testing.T) {
	s, err := api.New(api.Config{Version: "v1"}, apitest.New(apitest.State{}), api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "..", "docs", "openapi.json")
	text := string(s.OpenAPI()) + "\n"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s is not what the code says; run go generate ./roles/controller/api (-want +got):\n%s", file, diff)
	}
}

// The document has the structure of OpenAPI 3.1: every reference leads
// somewhere, every operation has an id of its own, a success and an error, and
// says all parameters of its path.
func TestOpenAPIStructure(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{})
	got := do(t, http.MethodGet, url+"/openapi.json", "", as("viewer")...)
	if got.header.Get("Content-Type") != "application/openapi+json" {
		t.Errorf("content type %s", got.header.Get("Content-Type"))
	}
	var doc struct {
		OpenAPI    string
		Info       struct{ Title, Version string }
		Components struct {
			Schemas         map[string]json.RawMessage
			SecuritySchemes map[string]struct{ Type, Scheme string }
		}
		Paths map[string]map[string]struct {
			OperationID string
			Summary     string
			Parameters  []struct {
				Name, In string
				Required bool
			}
			RequestBody *struct{ Content map[string]json.RawMessage }
			Responses   map[string]struct {
				Description string
				Content     map[string]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal([]byte(got.body), &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") || doc.Info.Title == "" || doc.Info.Version != "1.2.3" {
		t.Errorf("openapi %q, info %+v", doc.OpenAPI, doc.Info)
	}
	if s := doc.Components.SecuritySchemes["token"]; s.Type != "http" || s.Scheme != "bearer" {
		t.Errorf("security scheme %+v", s)
	}
	for _, ref := range regexp.MustCompile(`"\$ref": ?"([^"]*)"`).FindAllStringSubmatch(got.body, -1) {
		name, local := strings.CutPrefix(ref[1], "#/components/schemas/")
		if !local || doc.Components.Schemas[name] == nil {
			t.Errorf("%s leads nowhere", ref[1])
		}
	}
	ids := map[string]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			at := method + " " + path
			if ids[op.OperationID] != "" || op.OperationID == "" || op.Summary == "" {
				t.Errorf("%s: id %q is of %q already; summary %q", at, op.OperationID, ids[op.OperationID], op.Summary)
			}
			ids[op.OperationID] = at
			for _, name := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(path, -1) {
				found := false
				for _, p := range op.Parameters {
					found = found || p.In == "path" && p.Name == name[1] && p.Required
				}
				if !found {
					t.Errorf("%s: parameter %s is not described", at, name[1])
				}
			}
			if method != "get" && !slices.ContainsFunc(op.Parameters, func(p struct {
				Name, In string
				Required bool
			}) bool {
				return p.Name == "why" && p.In == "query"
			}) {
				t.Errorf("%s: writes, and nobody can say why", at)
			}
			success := slices.ContainsFunc(slices.Collect(maps.Keys(op.Responses)), func(code string) bool { return code[0] == '2' })
			if fail := op.Responses["default"]; !success || fail.Content["application/problem+json"] == nil {
				t.Errorf("%s: responses %v", at, slices.Sorted(maps.Keys(op.Responses)))
			}
			for code, r := range op.Responses {
				if r.Description == "" {
					t.Errorf("%s: response %s has no description", at, code)
				}
			}
		}
	}
	if len(ids) < 30 {
		t.Errorf("only %d operations", len(ids))
	}
}

// The same code gives the same document.
func TestOpenAPIIsStable(t *testing.T) {
	text := func() string {
		s, err := api.New(api.Config{Version: "v1"}, apitest.New(apitest.State{}), api.Deps{})
		if err != nil {
			t.Fatal(err)
		}
		return string(s.OpenAPI())
	}
	first := text()
	for range 3 {
		if text() != first {
			t.Fatal("two documents of one build differ")
		}
	}
}
