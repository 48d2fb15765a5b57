package api_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// Nothing that is wrong with a call reaches the backend, and each is refused
// with a reason.
func TestHostileBodies(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	const good = `{"process":"deploy","params":{"version":"1"}}`
	for _, tt := range []struct {
		name, body string
		headers    []string
		status     int
		detail     string
	}{
		{"10 MB", `{"process":"` + strings.Repeat("x", 10<<20) + `"}`, nil, 413, "larger than 1048576 bytes (1 MiB)"},
		{"one byte too long", good + strings.Repeat(" ", api.MaxBody-len(good)+1), nil, 413, "larger than 1048576 bytes (1 MiB)"},
		{"invalid UTF-8", `{"process":"dep` + "\xff" + `loy"}`, nil, 400, "not valid UTF-8"},
		{"a form", "process=deploy", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "must be application/json"},
		{"YAML", "process: deploy", []string{"Content-Type", "application/yaml"}, 415, "must be application/json"},
		{"another charset", good, []string{"Content-Type", "application/json; charset=latin1"}, 415, "must be application/json"},
		{"no media type", good, []string{"Content-Type", ";;"}, 415, "must be application/json"},
		{"compressed", good, []string{"Content-Encoding", "gzip"}, 415, "must not be compressed"},
		{"deep", strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000), nil, 400, "validation failed"},
		{"two keys", good, []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 400, `"is given twice","location":"header.Idempotency-Key"`},
		{"two revisions", good, []string{"Uac-Revision", "1", "Uac-Revision", "1"}, 400, `"is given twice","location":"header.Uac-Revision"`},
		{"NUL in a parameter's name", `{"process":"deploy","params":{"\u0000":"1"}}`, nil, 422, "the input is not valid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := do(t, http.MethodPost, url+"/v1/requests", tt.body, append(as("operator"), tt.headers...)...)
			if got.status != tt.status || !strings.Contains(got.body, tt.detail) {
				t.Errorf("got %d %.300s", got.status, got.body)
			}
			if len(got.body) > 2000 {
				t.Errorf("the refusal has %d bytes", len(got.body))
			}
		})
	}
	for _, c := range b.Calls() {
		if !strings.HasPrefix(c, "Accept deploy map[\x00:1]") {
			t.Errorf("reached the backend: %s", c)
		}
	}
	// The limit is not one byte lower than it says.
	full := good + strings.Repeat(" ", api.MaxBody-len(good))
	if got := do(t, http.MethodPost, url+"/v1/requests", full, append(as("operator"), "Content-Type", "application/json; charset=UTF-8")...); got.status != 201 {
		t.Errorf("a body at the limit: %d %s", got.status, got.body)
	}
	// Nobody reads a body before knowing whose it is. The client waits for that, else the
	// connection could end before the answer has come.
	if got := do(t, http.MethodPost, url+"/v1/requests", strings.Repeat("x", 100<<10), append(as("wrong"), "Expect", "100-continue")...); got.status != 401 {
		t.Errorf("a body with a wrong token: %d", got.status)
	}
}

// What only looks like half a character or the same twice is taken.
func TestBodiesThatAreClear(t *testing.T) {
	url := serve(t, apitest.New(sample()), api.Deps{})
	for _, body := range []string{
		`{"process":"deploy","params":{"version":"\ud83d\ude00\ud83d\ude00"}}`,
		`{"process":"deploy","params":{"version":"\\ud800"}}`,
		`{"process":"deploy","params":{"version":"\ufffd"}}`,
		`{"process":"deploy","params":{"version":"version"}}`,
		`{"params":{"version":"1"},"process":"deploy"}`,
	} {
		if got := do(t, http.MethodPost, url+"/v1/requests?why=%EF%BF%BD", body, as("operator")...); got.status != 201 {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
}

func TestHostilePaths(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	for _, path := range []string{
		"//v1/nodes", "/v1//nodes", "/v1/./nodes", "/v1/x/../nodes", "/v1/nodes/", "/v1/nodes/%2e%2e/processes",
		"/v1/processes/%2e%2e%2ftokens", "/v1/processes/a%00b", "/v1/processes/" + strings.Repeat("a", 64),
		"/v1/processes/%ff", "/v1/nodes/C1", "/v1/nodes/c1%20", "/v1/requests/" + strings.ToLower(apitest.RequestID(1)),
		"/V1/nodes", "/v1", "/metrics/..", "/uc/is_active_node.do/", "/healthz/x",
	} {
		got := do(t, http.MethodGet, url+path, "", as("admin")...)
		if got.status != 404 || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s %s", path, got.status, got.header, got.body)
		}
		if len(got.body) > 500 {
			t.Errorf("%s: the refusal has %d bytes", path, len(got.body))
		}
	}
}

// listen runs Serve on loopback until the test ends, and returns its address.
func listen(t *testing.T, b *apitest.Backend) (addr string, stop func()) {
	t.Helper()
	s, err := api.New(api.Config{Heartbeat: 10 * time.Millisecond}, b, api.Deps{Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, s.Handler(), testLog(t)) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// raw sends bytes and returns the status line of the answer.
func raw(t *testing.T, addr, text string) string {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	go func() { _, _ = io.WriteString(conn, text) }() // ends with the connection
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func TestHostileHeaders(t *testing.T) {
	addr, _ := listen(t, apitest.New(sample()))
	for _, tt := range []struct{ name, text, want string }{
		{"sane", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"},
		{"one huge header", "GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"many headers", "GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 20_000) + "\r\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"no host", "GET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request: missing required Host header"},
		{"two lengths", "POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "HTTP/1.1 400 Bad Request"},
		{"a path that is none", "GET healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"a proxy's call", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"another host's path", "GET http://example.com/healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"},
		{"line feeds in a header", "GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", "HTTP/1.1 400 Bad Request"},
	} {
		if got := raw(t, addr, tt.text); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
