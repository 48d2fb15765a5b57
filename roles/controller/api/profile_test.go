package api_test

import (
	"bytes"
	"strings"
	"testing"

	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

func TestProfile(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{})
	gzipped := []byte{0x1f, 0x8b}
	for _, tt := range []struct {
		role, path string
		status     int
	}{
		{"admin", "heap", 200},
		{"admin", "goroutine", 200},
		{"admin", "profile?seconds=1", 200},
		{"admin", "trace?seconds=0.1", 200},
		{"admin", "cmdline", 404},
		{"admin", "nonsense", 404},
		{"operator", "heap", 403},
		{"viewer", "heap", 403},
	} {
		got := do(t, "GET", url+"/debug/pprof/"+tt.path, "", as(tt.role)...)
		switch {
		case got.status != tt.status:
			t.Errorf("%s %s: %d %s, want %d", tt.role, tt.path, got.status, got.body, tt.status)
		case tt.status == 200 && !strings.HasPrefix(tt.path, "trace") && !bytes.HasPrefix([]byte(got.body), gzipped):
			t.Errorf("%s: no profile", tt.path)
		case tt.status == 404 && !strings.Contains(got.body, "heap"):
			t.Errorf("%s: %s does not say what there is", tt.path, got.body)
		}
	}
	if got := do(t, "GET", url+"/debug/pprof/heap", ""); got.status != 401 {
		t.Errorf("without a token: %d", got.status)
	}
}
