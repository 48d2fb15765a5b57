package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"uac/roles"
	"uac/roles/controller/api"
	"uac/roles/controller/api/apitest"
)

// opened is an answer that goes on.
type opened struct {
	status  int
	header  http.Header
	body    io.Reader
	trailer func() http.Header // once the body was read
}

// open begins a call that ends with the test.
func open(t *testing.T, ctx context.Context, url string) opened {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer viewer")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return opened{resp.StatusCode, resp.Header, resp.Body, func() http.Header { return resp.Trailer }}
}

// nextState reads lines until one is a request, and counts the heartbeats before.
func nextState(t *testing.T, r *bufio.Reader) (req api.Request, beats int) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, line)
		}
		if line == "\n" {
			beats++
			continue
		}
		if err := json.Unmarshal([]byte(line), &req); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		return req, beats
	}
}

const requestPath = "/v1/requests/01JD0000000000000000000001"

func setStep(b *apitest.Backend, status roles.StepStatus, request roles.RequestStatus) {
	b.Update(func(s *apitest.State) {
		s.Requests[0].Status = request
		s.Requests[0].Steps[1].Status = status
	})
}

func TestWatch(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	resp := open(t, t.Context(), url+requestPath+"/watch")
	if got := resp.header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("content type %s", got)
	}
	lines := bufio.NewReader(resp.body)
	if req, _ := nextState(t, lines); req.Status != roles.RequestRunning {
		t.Errorf("first: %+v", req)
	}
	if line, err := lines.ReadString('\n'); line != "\n" || err != nil {
		t.Errorf("no heartbeat while nothing happens: %q, %v", line, err)
	}
	setStep(b, roles.StepFailed, roles.RequestRunning)
	if req, _ := nextState(t, lines); req.Steps[1].Status != roles.StepFailed {
		t.Errorf("second: %+v", req)
	}
	setStep(b, roles.StepFailed, roles.RequestFailed)
	if req, _ := nextState(t, lines); req.Status != roles.RequestFailed {
		t.Errorf("third: %+v", req)
	}
	if rest, err := io.ReadAll(lines); err != nil || strings.TrimSpace(string(rest)) != "" {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// A request in doubt may rest for days; nobody waits that long for it.
func TestWatchEndsInDoubt(t *testing.T) {
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	resp := open(t, t.Context(), url+requestPath+"/watch")
	setStep(b, roles.StepInDoubt, roles.RequestInDoubt)
	if all, err := io.ReadAll(resp.body); err != nil || !strings.Contains(string(all), "in_doubt") {
		t.Errorf("%q, %v", all, err)
	}
}

// watched tells when the backend's watches have ended.
type watched struct {
	*apitest.Backend
	ended chan error
}

func (b watched) WatchRequest(ctx context.Context, id string, f func(api.Request) error) error {
	err := b.Backend.WatchRequest(ctx, id, f)
	b.ended <- err
	return err
}

func (b watched) ReadOutput(ctx context.Context, id, step string, attempt int, offset int64, follow bool, w io.Writer) error {
	err := b.Backend.ReadOutput(ctx, id, step, attempt, offset, follow, w)
	b.ended <- err
	return err
}

func TestStreamEndsWhenTheCallerLeaves(t *testing.T) {
	for _, path := range []string{"/watch", "/logs?step=switch&follow=true"} {
		b := watched{apitest.New(sample()), make(chan error, 1)}
		s, err := api.New(api.Config{Heartbeat: 10 * time.Millisecond}, b, api.Deps{Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		resp := open(t, ctx, serveHandler(t, s.Handler())+requestPath+path)
		if _, err := resp.body.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		leave()
		if err := <-b.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the backend's call ended with %v", path, err)
		}
	}
}

// A stream that breaks off must not look like one that ended.
func TestStreamIsCut(t *testing.T) {
	for _, tt := range []struct {
		name string
		cut  func(b *apitest.Backend, stop func())
	}{
		{"without trust", func(b *apitest.Backend, _ func()) {
			b.Update(func(s *apitest.State) { s.Ready = errors.New("no majority echoes") })
		}},
		{"by an error", func(b *apitest.Backend, _ func()) {
			b.Update(func(s *apitest.State) {
				s.Errors = map[string]error{"WatchRequest": errors.New("lost"), "ReadOutput": errors.New("lost")}
			})
		}},
		{"at the stop of the controller", func(_ *apitest.Backend, stop func()) { stop() }},
	} {
		for _, path := range []string{"/watch", "/logs?step=switch&follow=true"} {
			b := apitest.New(sample())
			addr, stop := listen(t, b)
			resp := open(t, t.Context(), "http://"+addr+requestPath+path)
			if _, err := resp.body.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			tt.cut(b, stop)
			if _, err := io.Copy(io.Discard, resp.body); err == nil {
				t.Errorf("%s %s: looks complete", tt.name, path)
			}
			stop()
		}
	}
}

func TestFollowOutput(t *testing.T) {
	id := apitest.RequestID(1)
	b := apitest.New(sample())
	url := serve(t, b, api.Deps{})
	resp := open(t, t.Context(), url+requestPath+"/logs?step=switch&follow=true&offset=7")
	body := bufio.NewReader(resp.body)
	read := func(n int) string {
		piece := make([]byte, n)
		if _, err := io.ReadFull(body, piece); err != nil {
			t.Fatal(err)
		}
		return string(piece)
	}
	if got := read(3); got != "ng\n" {
		t.Errorf("from offset 7: %q", got)
	}
	b.Update(func(s *apitest.State) { s.Output[id+"/switch/2"] += "\x00\xff more" })
	if got := read(7); got != "\x00\xff more" {
		t.Errorf("then %q", got)
	}
	setStep(b, roles.StepSucceeded, roles.RequestRunning)
	if rest, err := io.ReadAll(body); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// A follower of a quiet step learns soon that it is connected, although there
// is nothing to read.
func TestFollowQuietOutput(t *testing.T) {
	state := sample()
	delete(state.Output, apitest.RequestID(1)+"/switch/2")
	b := apitest.New(state)
	url := serve(t, b, api.Deps{})
	resp := open(t, t.Context(), url+requestPath+"/logs?step=switch&follow=true") // returns with the header
	if resp.status != http.StatusOK {
		t.Errorf("status %d", resp.status)
	}
	setStep(b, roles.StepSucceeded, roles.RequestRunning)
	if rest, err := io.ReadAll(resp.body); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// Before its first byte a stream can still fail like any other call.
func TestStreamErrors(t *testing.T) {
	state := sample()
	state.Errors = map[string]error{"WatchRequest": api.ErrUnavailable, "ReadOutput": api.ErrConflict}
	b := apitest.New(state)
	url := serve(t, b, api.Deps{})
	for path, want := range map[string]int{"/watch": 503, "/logs?step=fetch": 409, "/logs?step=fetch&follow=true": 409} {
		got := do(t, http.MethodGet, url+requestPath+path, "", as("viewer")...)
		if got.status != want || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	b.Update(func(s *apitest.State) {
		s.Errors = nil
		s.Output[apitest.RequestID(1)+"/fetch/1"] = ""
	})
	if got := do(t, http.MethodGet, url+requestPath+"/logs?step=fetch", "", as("viewer")...); got.status != 200 || got.body != "" {
		t.Errorf("a step that wrote nothing: %d %q", got.status, got.body)
	}
}

// slow is a backend whose switchover lasts until it is let go.
type slow struct {
	*apitest.Backend
	begun, letGo chan struct{}
}

func (b slow) Switchover(ctx context.Context, a api.Actor, to string) (string, error) {
	close(b.begun)
	select {
	case <-b.letGo:
		return b.Backend.Switchover(ctx, a, to)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// A call that is being served when the controller is told to stop is answered.
func TestStopAnswersWhatItServes(t *testing.T) {
	b := slow{apitest.New(sample()), make(chan struct{}), make(chan struct{})}
	s, err := api.New(api.Config{}, b, api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	l := newListener(t)
	served := make(chan error, 1)
	go func() { served <- api.Serve(ctx, l, s.Handler(), testLog(t)) }()
	got := make(chan answer, 1)
	go func() {
		got <- do(t, http.MethodPost, "http://"+l.Addr().String()+"/v1/nodes/switchover", "", as("operator")...)
	}()
	<-b.begun
	stop()
	close(b.letGo)
	if a := <-got; a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A call that does not end is abandoned, and Serve still waits for its handler.
func TestStopAbandonsWhatLasts(t *testing.T) {
	b := slow{apitest.New(sample()), make(chan struct{}), nil}
	s, err := api.New(api.Config{}, b, api.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	l := newListener(t)
	served := make(chan error, 1)
	go func() { served <- api.Serve(ctx, l, s.Handler(), testLog(t)) }()
	failed := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "http://"+l.Addr().String()+"/v1/nodes/switchover", nil)
		req.Header.Set("Authorization", "Bearer operator")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		failed <- err
	}()
	<-b.begun
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("the call was answered")
	}
}

func TestServeFails(t *testing.T) {
	l := newListener(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := api.Serve(t.Context(), l, http.NotFoundHandler(), testLog(t)); err == nil {
		t.Error("serving a closed listener succeeded")
	}
}

// gappy is a backend whose output has a part that is gone, and an end that is.
type gappy struct{ *apitest.Backend }

func (gappy) ReadOutput(_ context.Context, _, _ string, _ int, offset int64, _ bool, w io.Writer) error {
	switch {
	case offset >= 20:
		return fmt.Errorf("%w: the rest", api.ErrGone)
	case offset >= 10:
		_, err := io.WriteString(w, "0123456789"[offset-10:])
		return err
	case offset < 5:
		if _, err := io.WriteString(w, "abcde"[offset:]); err != nil {
			return err
		}
	}
	return &api.Gap{Next: 10}
}

// An answer ends, in order, before a part that is gone, and says where to go on. That
// it did not break off can be seen by every client.
func TestOutputWithAGap(t *testing.T) {
	url := serve(t, gappy{apitest.New(sample())}, api.Deps{})
	for _, tt := range []struct {
		offset, body, next string
	}{{"0", "abcde", "10"}, {"5", "", "10"}, {"12", "23456789", ""}} {
		resp := open(t, t.Context(), url+requestPath+"/logs?step=fetch&offset="+tt.offset)
		body, err := io.ReadAll(resp.body)
		if err != nil || resp.status != http.StatusOK || string(body) != tt.body {
			t.Errorf("from %s: status %d, %q, %v", tt.offset, resp.status, body, err)
		}
		if next := resp.trailer().Get(api.HeaderOutputNext); next != tt.next {
			t.Errorf("from %s: goes on at %q, want %q", tt.offset, next, tt.next)
		}
	}
	if got := do(t, http.MethodGet, url+requestPath+"/logs?step=fetch&offset=20", "", as("viewer")...); got.status != http.StatusGone {
		t.Errorf("what is gone: status %d", got.status)
	}
}
