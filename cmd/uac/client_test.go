package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

// fakeServer answers like a controller, over TLS.
func fakeServer(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handle)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // broken handshakes are wanted
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// deadAddress returns an address that refuses connections.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return "https://" + addr
}

// silentAddress returns an address that accepts connections and says nothing,
// as a frozen machine does.
func silentAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel completes the handshakes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return "https://" + l.Addr().String()
}

// testClient returns a client of servers that trusts the authority of ca.
func testClient(t *testing.T, ca *httptest.Server, servers ...string) *client {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{env: env{environ: []string{"UAC_TOKEN=sesame", "UAC_CACERT=" + file, "UAC_SERVER=" + strings.Join(servers, ",")}}}
	c, err := a.newClient()
	if err != nil {
		t.Fatal(err)
	}
	c.patience = 50 * time.Millisecond
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client's test sees what is missing
}

func TestClientHeaders(t *testing.T) {
	var seen []http.Header
	s := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Clone())
		w.Header().Set(headerRevision, "41")
		answer(w, http.StatusOK, `{"got":"`+r.Method+" "+r.URL.RequestURI()+`"}`)
	})
	c := testClient(t, s, s.URL)
	var out struct{ Got string }
	if err := c.get(t.Context(), "/v1/nodes", map[string][]string{"a": {"b c"}}, &out); err != nil {
		t.Fatal(err)
	}
	if out.Got != "GET /v1/nodes?a=b+c" {
		t.Errorf("the server got %q", out.Got)
	}
	if err := c.post(t.Context(), "/v1/requests", map[string]int{"x": 1}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.get(t.Context(), "/v1/nodes", nil, nil); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ revision, media string }{{"", ""}, {"", "application/json"}, {"41", ""}} {
		h := seen[i]
		if h.Get("Authorization") != "Bearer sesame" || len(h.Get(headerRequestID)) != 26 {
			t.Errorf("call %d: headers %v", i, h)
		}
		if h.Get(headerRevision) != want.revision || h.Get("Content-Type") != want.media {
			t.Errorf("call %d: revision %q, content type %q, want %+v", i, h.Get(headerRevision), h.Get("Content-Type"), want)
		}
		if (h.Get(headerIdempotencyKey) != "") != (i == 1) {
			t.Errorf("call %d: idempotency key %q", i, h.Get(headerIdempotencyKey))
		}
	}
}

// The longest path and query that the client sends get an answer of a real server; what
// is longer is refused before anybody is asked, with the name of what is too long.
func TestLongCalls(t *testing.T) {
	ca := fakeServer(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- api.Serve(ctx, tls.NewListener(l, &tls.Config{
			Certificates: ca.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13,
		}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Proto)
			answer(w, http.StatusOK, "{}")
		}), slog.New(slog.DiscardHandler))
	}()
	c := testClient(t, ca, "https://"+l.Addr().String())
	c.token = strings.Repeat("t", 1000)
	fill := func(path string) string { return strings.Repeat("~", api.MaxTarget-len(path)) } // which HPACK cannot make shorter
	for _, tt := range []struct{ path, why, refused string }{
		{path: "/v1/x/" + fill("/v1/x/")},
		{path: "/v1/x", why: fill("/v1/x?why=")},
		{path: "/v1/x/" + fill("/v1/x"), refused: "the names in the path"},
		{path: "/v1/x", why: fill("/v1/x?why=") + "~", refused: "why"},
		{path: "/v1/x", why: strings.Repeat("\n", api.MaxTarget/2), refused: "why"},
	} {
		asked = nil
		err := c.send(t.Context(), call{method: http.MethodDelete, path: tt.path, query: because(tt.why), once: true}, nil)
		if tt.refused == "" && (err != nil || !slices.Equal(asked, []string{"HTTP/2.0"})) {
			t.Errorf("at the limit: %v, asked %q", err, asked)
		}
		if tt.refused != "" && (codeOf(err) != exitUsage || !strings.HasPrefix(err.Error(), tt.refused+": too long: ") || asked != nil) {
			t.Errorf("%s: %v, asked %q", tt.refused, err, asked)
		}
	}
	c.http.CloseIdleConnections()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A call survives dead, frozen and refusing servers as long as one answers,
// and its repeats are the same call.
func TestClientFailsOver(t *testing.T) {
	t.Parallel()
	var calls []string
	record := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			calls = append(calls, r.Header.Get(headerIdempotencyKey)+r.Header.Get(headerRequestID))
			answer(w, status, body)
		}
	}
	offline := fakeServer(t, record(http.StatusServiceUnavailable, `{"title":"OFFLINE"}`))
	hangup := fakeServer(t, func(_ http.ResponseWriter, r *http.Request) {
		calls = append(calls, r.Header.Get(headerIdempotencyKey)+r.Header.Get(headerRequestID))
		panic(http.ErrAbortHandler) // after the request was read
	})
	good := fakeServer(t, record(http.StatusOK, `{}`))
	c := testClient(t, good, deadAddress(t), silentAddress(t), offline.URL, hangup.URL, good.URL)
	c.http.Transport.(*http.Transport).TLSHandshakeTimeout = time.Second

	if err := c.post(t.Context(), "/v1/requests", struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 3 || calls[0] != calls[1] || calls[1] != calls[2] || len(calls[0]) != 52 {
		t.Errorf("the servers saw %q, want the same keys three times", calls)
	}
	// The server that answered is asked first from now on.
	calls = nil
	if err := c.get(t.Context(), "/v1/nodes", nil, nil); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 {
		t.Errorf("the next call went to %d servers", len(calls))
	}
}

// A server that stops in the middle of its answer has not answered.
func TestClientFailsOverInTheMiddle(t *testing.T) {
	t.Parallel()
	begin := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		answer(w, http.StatusOK, `{"half":`)
		_ = http.NewResponseController(w).Flush() // the client's test sees what is missing
	}
	killed := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		begin(w)
		panic(http.ErrAbortHandler)
	})
	frozen := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		<-r.Context().Done() // until the client gives up
	})
	good := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, `{"whole":true}`) })
	c := testClient(t, good, killed.URL, frozen.URL, good.URL)
	c.idle = 500 * time.Millisecond
	var out struct{ Whole bool }
	if err := c.get(t.Context(), "/v1/x", nil, &out); err != nil || !out.Whole {
		t.Errorf("got %+v, %v", out, err)
	}

	c = testClient(t, good, frozen.URL)
	c.idle = 500 * time.Millisecond
	resp, err := c.stream(t.Context(), call{method: http.MethodGet, path: "/v1/x"})
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if string(data) != `{"half":` || !errors.Is(err, errSilent) {
		t.Errorf("the stream held %q, then %v", data, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}

// While a fail-over is under way nobody can serve; the client outlasts it.
func TestClientWaitsForFailover(t *testing.T) {
	var calls atomic.Int32
	s := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) < 4 {
			answer(w, http.StatusServiceUnavailable, `{"title":"Service Unavailable","detail":"no trust"}`)
			return
		}
		answer(w, http.StatusOK, `{}`)
	})
	c := testClient(t, s, s.URL)
	c.patience = time.Minute
	if err := c.get(t.Context(), "/v1/nodes", nil, nil); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestClientErrors(t *testing.T) {
	status, body := 0, ""
	s := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, status, body) })
	c := testClient(t, s, s.URL)
	for _, tt := range []struct {
		status int
		body   string
		code   exitCode
		text   string
	}{
		{400, `{"title":"Bad Request","detail":"no such field"}`, exitUsage, "no such field"},
		{422, `{"title":"Unprocessable Entity","detail":"validation failed","errors":[{"message":"expected boolean","location":"body.active"},{"message":"too long"}]}`,
			exitUsage, "validation failed\n  body.active: expected boolean\n  too long"},
		{401, `{"title":"Unauthorized"}`, exitForbidden, "Unauthorized"},
		{403, `{"title":"Forbidden","detail":"needs the role operator"}`, exitForbidden, "needs the role operator"},
		{404, `{"title":"Not Found","detail":"there is no request X"}`, exitNotFound, "there is no request X"},
		{409, `{"detail":"same key, other content"}`, exitConflict, "same key, other content"},
		{412, `{}`, exitConflict, "the server answered 412 Precondition Failed"},
		{500, `<html>`, exitFailed, "the server answered 500 Internal Server Error"},
		{307, ``, exitFailed, "the server answered 307 Temporary Redirect"},
		{503, `{"detail":"the mount is away"}`, exitUnreachable, "no server could answer: " + s.URL + ": the mount is away"},
		{200, `{`, exitFailed, "GET /v1/x: decode the answer: unexpected EOF"},
	} {
		status, body = tt.status, tt.body
		var out struct{}
		err := c.get(t.Context(), "/v1/x", nil, &out)
		if err == nil || err.Error() != tt.text || codeOf(err) != tt.code {
			t.Errorf("%d %s: got code %d, %q; want %d, %q", tt.status, tt.body, codeOf(err), err, tt.code, tt.text)
		}
	}
}

// A call that must not be repeated goes on to the next server only after one
// that has surely done nothing.
func TestClientCallsOnce(t *testing.T) {
	for _, tt := range []struct {
		name    string
		first   http.HandlerFunc // nil: nobody listens
		repeats bool
	}{
		{"nobody listens", nil, true},
		{"not ready", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusServiceUnavailable, `{"type":"urn:uac:problem:not-ready","detail":"no trust"}`)
		}, true},
		{"outcome unknown", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusServiceUnavailable, `{"type":"urn:uac:problem:outcome-unknown","detail":"timeout"}`)
		}, false},
		{"died on it", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls, heard atomic.Int32
			second := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				if r.Header.Get(headerIdempotencyKey) != "" {
					t.Error("net/http would repeat a call with a key")
				}
				answer(w, http.StatusOK, `{}`)
			})
			servers := []string{deadAddress(t), second.URL}
			if tt.first != nil {
				servers[0] = fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
					heard.Add(1)
					tt.first(w, r)
				}).URL
			}
			c := testClient(t, second, servers...)
			err := c.send(t.Context(), call{method: http.MethodPost, path: "/v1/x", once: true}, nil)
			if tt.repeats && (err != nil || calls.Load() != 1) {
				t.Errorf("%v, second server called %d times", err, calls.Load())
			}
			if !tt.repeats && (!errors.Is(err, errUnknown) || codeOf(err) != exitUnreachable || calls.Load() != 0 || heard.Load() != 1) {
				t.Errorf("%v, servers called %d and %d times", err, heard.Load(), calls.Load())
			}
		})
	}
}

func TestClientUnreachable(t *testing.T) {
	s := fakeServer(t, func(http.ResponseWriter, *http.Request) {})
	dead := []string{deadAddress(t), deadAddress(t)}
	c := testClient(t, s, dead...)
	err := c.get(t.Context(), "/v1/x", nil, nil)
	want := fmt.Sprintf("no server could answer:\n  %s: connect: connection refused\n  %s: connect: connection refused", dead[0], dead[1])
	if err == nil || err.Error() != want || codeOf(err) != exitUnreachable {
		t.Errorf("got code %d, %v", codeOf(err), err)
	}
	err = c.send(t.Context(), call{method: http.MethodPost, path: "/v1/x", key: "K"}, nil)
	if err == nil || err.Error() != want || codeOf(err) != exitUnreachable {
		t.Errorf("a write that nobody heard: got code %d, %v", codeOf(err), err)
	}
}

// A write that no server confirms may have taken effect only if one of them may
// have obeyed it.
func TestClientWriteThatNobodyAnswers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handle  http.HandlerFunc
		unknown bool
	}{
		{"not ready", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusServiceUnavailable, `{"type":"urn:uac:problem:not-ready","detail":"no trust"}`)
		}, false},
		{"outcome unknown", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusServiceUnavailable, `{"type":"urn:uac:problem:outcome-unknown","detail":"timeout"}`)
		}, true},
		{"died on it", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fakeServer(t, tt.handle)
			c := testClient(t, s, deadAddress(t), s.URL)
			err := c.send(t.Context(), call{method: http.MethodPost, path: "/v1/x", key: "K"}, nil)
			if codeOf(err) != exitUnreachable {
				t.Fatalf("got code %d, %v", codeOf(err), err)
			}
			const text = "\nit is not known whether this took effect; idempotency key: K"
			if strings.HasSuffix(err.Error(), text) != tt.unknown {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A watch among the servers is passed over; if there is nothing else, it is said
// what it is.
func TestClientAsksAWatch(t *testing.T) {
	self := func() api.Self { return api.Self{Node: api.Node{Name: "w1", Role: roles.RoleWatch}} }
	watch := fakeServer(t, noController(roles.RoleWatch, api.NewProbes(self, nil)).ServeHTTP)
	c := newCluster(t, sampleState())
	c.vars = clientVars(t, watch, c.server)
	for _, args := range [][]string{{"node", "list"}, {"token", "create", "--role", "agent"}} {
		if got := c.run(t, args...); got.code != exitDone || got.stderr != "" {
			t.Errorf("%q: %+v", args, got)
		}
	}
	alone := testClient(t, watch, watch.URL)
	want := "no server could answer: " + watch.URL + ": this node is a watch and no controller: it does not serve the API"
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		err := alone.send(t.Context(), call{method: method, path: "/v1/nodes"}, nil)
		if err == nil || err.Error() != want || codeOf(err) != exitUnreachable {
			t.Errorf("%s: got code %d, %v", method, codeOf(err), err)
		}
	}
	resp, err := alone.http.Get(watch.URL + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a probe: %s, %v", resp.Status, err)
	}
}

// Who has no token is told how to give one, not what a program sends.
func TestClientWithoutAToken(t *testing.T) {
	c := newCluster(t, sampleState())
	c.vars = slices.DeleteFunc(c.vars, func(v string) bool { return strings.HasPrefix(v, "UAC_TOKEN=") })
	want := result{code: exitForbidden, stderr: "error: not logged in: set --token, UAC_TOKEN or token in client.yaml\n"}
	if got := c.run(t, "node", "list"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestClientRefusesAForeignCertificate(t *testing.T) {
	served := false
	s := fakeServer(t, func(http.ResponseWriter, *http.Request) { served = true })
	a := &app{env: env{environ: []string{"UAC_SERVER=" + s.URL, "UAC_TOKEN=sesame"}}}
	c, err := a.newClient() // trusts only what the system trusts
	if err != nil {
		t.Fatal(err)
	}
	c.patience = 0
	err = c.get(t.Context(), "/v1/x", nil, nil)
	if codeOf(err) != exitUnreachable || !strings.Contains(fmt.Sprint(err), "its certificate is not trusted (--cacert, UAC_CACERT)") || served {
		t.Errorf("got %v, served: %v", err, served)
	}
}

func TestClientIsInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	s := fakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		interrupt()
		answer(w, http.StatusServiceUnavailable, "")
	})
	c := testClient(t, s, s.URL)
	c.patience = time.Hour
	if err := c.get(ctx, "/v1/x", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestClientSettings(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, ".config", "uac")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "client.yaml"), []byte("server: [c1, c2:1]\ntoken: t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{env: env{home: home, environ: []string{"UAC_SERVER=ignored"}}, cluster: clientFlags{server: "c3"}}
	c, err := a.newClient()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"https://c3:7600"}, c.servers); diff != "" || c.token != "t" {
		t.Errorf("servers %v, token %q", c.servers, c.token)
	}
	for _, tt := range []struct {
		env  env
		want string
	}{
		{env{}, "no cluster to talk to: set --server, UAC_SERVER or server in client.yaml"},
		{env{environ: []string{"UAC_SERVER=c1", "UAC_CACERT=/nonexistent"}}, "read the API's authority: open /nonexistent: no such file or directory"},
		{env{environ: []string{"UAC_SERVER=c1", "UAC_CACERT=/dev/null"}}, "/dev/null holds no certificate"},
		{env{environ: []string{"UAC_SERVER=http://c1"}}, `configuration: env UAC_SERVER: server[0]: "http://c1" must begin with https://`},
	} {
		a := &app{env: tt.env}
		_, err := a.newClient()
		if err == nil || err.Error() != tt.want || codeOf(err) != exitUsage {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

// A token in a file that others can read is warned about once, but not where a
// shell completes.
func TestClientTokenForAll(t *testing.T) {
	c := newCluster(t, sampleState())
	home := t.TempDir()
	file := filepath.Join(home, "uac", "client.yaml")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	withoutToken := slices.DeleteFunc(slices.Clone(c.vars), func(v string) bool { return strings.HasPrefix(v, "UAC_TOKEN=") })
	warning := "warning: " + file + " holds a token and others can read it: chmod 600 " + file + "\n"
	for _, tt := range []struct {
		text   string
		mode   os.FileMode
		vars   []string
		args   string
		stderr string
	}{
		{"token: admin\n", 0o644, withoutToken, "node switchover", warning},
		{"token: admin\n", 0o640, withoutToken, "node list", warning},
		{"token: admin\n", 0o600, withoutToken, "node list", ""},
		{"token: other\n", 0o644, c.vars, "node list", ""}, // not the one in use
		{"server: other\n", 0o644, c.vars, "node list", ""},
		{"token: admin\n", 0o644, withoutToken, "__completeNoDesc node show c", "Completion ended with directive: ShellCompDirectiveNoFileComp\n"},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, tt.mode); err != nil {
			t.Fatal(err)
		}
		got := execute(t, nil, append(slices.Clone(tt.vars), "XDG_CONFIG_HOME="+home), strings.Fields(tt.args)...)
		if got.code != exitDone || got.stderr != tt.stderr || got.stdout == "" {
			t.Errorf("%q with mode %o, %s: %+v", tt.text, tt.mode, tt.args, got)
		}
	}
}

// The flags of the client may stand before and after the verb.
func TestClientFlags(t *testing.T) {
	for _, line := range []string{
		"--server c1,c2 --token T probe look",
		"probe --server c1,c2 look --token T",
		"probe look --server=c1,c2 --token=T",
	} {
		a := &app{}
		var got *client
		verb := &cobra.Command{Use: "look", RunE: func(*cobra.Command, []string) (err error) {
			got, err = a.newClient()
			return err
		}}
		noun := newNounCommand("probe", "a noun of this test", verb)
		a.addClientFlags(noun)
		command := newRootCommand(a, nil)
		command.AddCommand(noun)
		command.SetArgs(strings.Fields(line))
		if err := command.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if diff := cmp.Diff([]string{"https://c1:7600", "https://c2:7600"}, got.servers); diff != "" || got.token != "T" {
			t.Errorf("%s: token %q, servers %s", line, got.token, diff)
		}
	}
}
