package api_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func serveHandler(t *testing.T, h http.Handler) string {
	t.Helper()
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	return ts.URL
}
