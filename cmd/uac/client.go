package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"uac/config"
	"uac/roles/controller/api"
)

// Headers of the API.
const (
	headerRequestID      = api.HeaderRequestID
	headerIdempotencyKey = api.HeaderIdempotencyKey
	headerRevision       = api.HeaderRevision
)

// Limits of one try. A controller that is frozen accepts connections and says
// nothing, so every wait for it ends.
const (
	connectTimeout = 2 * time.Second
	answerTimeout  = 15 * time.Second // to the first byte of the answer
	idleTimeout    = 10 * time.Second // between two parts of it; streams show every 2 s that they live
	maxAnswer      = 64 << 20
)

// clientFlags are the flags that say which cluster to talk to.
type clientFlags struct {
	server, token, cacert string
}

// addClientFlags gives a noun whose verbs talk to a cluster their flags.
func (a *app) addClientFlags(noun *cobra.Command) {
	f, fs := &a.cluster, noun.PersistentFlags()
	fs.Var(notEmpty(&f.server), "server", "`ADDRESSES` of the cluster's API, tried in order (UAC_SERVER)")
	fs.Var(notEmpty(&f.token), "token", "`TOKEN` to authenticate with (UAC_TOKEN)")
	fs.Var(notEmpty(&f.cacert), "cacert", "`FILE` with the authority of the API's certificate (UAC_CACERT)")
}

// settings reads the client's settings. exposed is the file of the token if
// others may read it, else "".
func (f *clientFlags) settings(e *env) (c config.Client, exposed string, err error) {
	o := config.Options{Env: e.environ}
	if dir := e.configHome(); dir != "" {
		o.File = filepath.Join(dir, "uac", "client.yaml")
	}
	for _, flag := range []struct{ key, value string }{
		{"server", f.server}, {"token", f.token}, {"cacert", f.cacert},
	} {
		if flag.value != "" {
			o.Flags = append(o.Flags, config.Flag{Key: flag.key, Value: flag.value, Name: "--" + flag.key})
		}
	}
	c, origins, err := config.LoadClient(o)
	if err != nil {
		return c, "", usageError("%w", err)
	}
	if len(c.Server) == 0 {
		return c, "", usageError("no cluster to talk to: set --server, UAC_SERVER or server in %s", cmp.Or(o.File, "client.yaml"))
	}
	if at := origins.Of("token"); at.Source == config.FromFile {
		if info, err := os.Stat(at.Name); err == nil && info.Mode()&0o077 != 0 {
			exposed = at.Name
		}
	}
	return c, exposed, nil
}

// configHome returns the directory of the user's settings, or "".
func (e *env) configHome() string {
	if dir := e.getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	if e.home == "" {
		return ""
	}
	return filepath.Join(e.home, ".config")
}

// client calls the REST API of a cluster. Any controller answers any call, so
// a call that one server cannot answer goes to the next. It is not safe for
// concurrent use.
type client struct {
	servers []string // https://host:port, in the user's order
	token   string
	agent   string // User-Agent: what the go command recorded takes long to read
	http    *http.Client
	// patience is how long all servers may be out of reach before a call
	// fails: long enough for a fail-over.
	patience time.Duration
	// idle is how long a server may be silent in the middle of an answer.
	idle time.Duration

	next     int   // the server to try first: the last one that answered
	revision int64 // of the newest write seen; later reads wait for it
}

// newClient returns a client with the user's settings, and warns if others can
// read its token.
func (a *app) newClient() (*client, error) {
	c, exposed, err := a.cluster.settings(&a.env)
	if err != nil {
		return nil, err
	}
	if exposed != "" && !a.warned {
		a.warned = true
		fmt.Fprintf(a.stderr, "%s %s holds a token and others can read it: chmod 600 %[2]s\n", a.paint(a.stderr).apply(yellow, "warning:"), exposed)
	}
	var roots *x509.CertPool // nil: the system's
	if c.CACert != "" {
		pem, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, usageError("read the API's authority: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, usageError("%s holds no certificate", c.CACert)
		}
	}
	return &client{
		servers:  c.Server,
		token:    c.Token,
		agent:    "uac/" + thisBuild().Version,
		patience: 3 * time.Second,
		idle:     idleTimeout,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
				TLSHandshakeTimeout:   connectTimeout,
				TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots},
				ResponseHeaderTimeout: answerTimeout,
				ForceAttemptHTTP2:     true,
			},
			// The token goes to the servers that the user named, and no further.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// get reads an object into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.send(ctx, call{method: http.MethodGet, path: path, query: query}, out)
}

// post sends in, if it is not nil, and reads the answer into out, if that is
// not nil. It is for what has the same effect once and twice.
func (c *client) post(ctx context.Context, path string, in, out any) error {
	return c.send(ctx, call{method: http.MethodPost, path: path, body: in}, out)
}

// call is one call of the API.
type call struct {
	method string
	path   string // escaped, begins with /
	query  url.Values
	body   any    // encoded as JSON; raw bytes as they are; nil for none
	media  string // of raw bytes
	// key makes repeats of a run take effect once. Empty means a new one for each
	// call of send.
	key string
	// once marks a call that would take effect again if it was repeated. It goes
	// to the next server only if the one before has surely done nothing; else the
	// error is errUnknown.
	once bool
}

// errUnknown is returned by a call that must not be repeated and may have been
// heard.
var errUnknown = errors.New("it is not known whether this took effect")

// unheard is the error of a try that surely had no effect.
type unheard struct{ error }

func (e unheard) Unwrap() error { return e.error }

// send makes a call and reads the answer into out, if that is not nil.
func (c *client) send(ctx context.Context, k call, out any) error {
	resp, err := c.do(ctx, k, readWhole)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is in memory
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: decode the answer: %w", k.method, k.path, err)
	}
	return nil
}

// stream makes a call and returns its answer, whose body the caller closes. A body
// that ends early or goes silent is an error of its reader, who knows from where to
// go on.
func (c *client) stream(ctx context.Context, k call) (*http.Response, error) {
	return c.do(ctx, k, func(*http.Response) error { return nil })
}

// do makes a call. A server whose answer accept cannot take counts as one that
// did not answer.
func (c *client) do(ctx context.Context, k call, accept func(*http.Response) error) (*http.Response, error) {
	if err := k.checkTarget(); err != nil {
		return nil, err
	}
	body, err := k.encode()
	if err != nil {
		return nil, err
	}
	if k.key == "" {
		k.key = ulid.Make().String()
	}
	requestID := ulid.Make().String()

	failures := make([]error, len(c.servers)) // the latest of each server
	heard := false                            // by a server that may have obeyed
	for deadline, pause := time.Now().Add(c.patience), 20*time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		for range c.servers {
			resp, err := c.try(ctx, c.servers[c.next], k, body, requestID)
			if err == nil && resp.StatusCode < 300 {
				if err = accept(resp); err == nil {
					c.remember(k, resp)
					return resp, nil
				}
				_ = resp.Body.Close() // given up
			}
			if err == nil && resp.StatusCode == http.StatusUnauthorized && c.token == "" {
				_ = resp.Body.Close() // it tells programs about headers
				return nil, fail(exitForbidden, "not logged in: set --token, UAC_TOKEN or token in client.yaml")
			}
			if err == nil {
				return nil, fail(codeOfStatus(resp.StatusCode), "%w", problemOf(resp))
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%s %s: %w", k.method, k.path, context.Cause(ctx))
			}
			heard = heard || !errors.As(err, new(unheard))
			if k.once && heard {
				return nil, fail(exitUnreachable, "%s: %w; %w", c.servers[c.next], err, errUnknown)
			}
			failures[c.next] = err
			c.skip()
		}
		if !time.Now().Before(deadline) {
			return nil, c.unreachable(k, failures, heard)
		}
		// Jitter keeps clients that failed together from coming back together.
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%s %s: %w", k.method, k.path, context.Cause(ctx))
		}
	}
}

// skip makes the next call begin with another server.
func (c *client) skip() { c.next = (c.next + 1) % len(c.servers) }

// readWhole takes the body of an answer into memory.
func readWhole(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	_ = resp.Body.Close() // read to its end
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

// remember keeps the revision of a write, for later reads.
func (c *client) remember(k call, resp *http.Response) {
	if k.reads() {
		return
	}
	if revision, err := strconv.ParseInt(resp.Header.Get(headerRevision), 10, 64); err == nil {
		c.revision = max(c.revision, revision)
	}
}

// target returns the path and the query of a call.
func (k *call) target() string {
	if len(k.query) == 0 {
		return k.path
	}
	return k.path + "?" + k.query.Encode()
}

// checkTarget refuses a call that a server would cut off instead of answering it:
// nobody could tell that from a server that has died.
func (k *call) checkTarget() error {
	n := len(k.target())
	if n <= api.MaxTarget {
		return nil
	}
	what := "the names in the path"
	most := len(k.path)
	for name, values := range k.query {
		if size := len(url.QueryEscape(strings.Join(values, ""))); size > most {
			what, most = name, size
		}
	}
	return usageError("%s: too long: the path and the query of a call have %d bytes, and may have %d", what, n, api.MaxTarget)
}

// encode returns the body of a call.
func (k *call) encode() ([]byte, error) {
	switch body := k.body.(type) {
	case nil:
		return nil, nil
	case []byte:
		return body, nil
	default:
		k.media = "application/json"
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: encode: %w", k.method, k.path, err)
		}
		return data, nil
	}
}

// try asks one server. An error means that another server may do better.
func (c *client) try(ctx context.Context, server string, k call, body []byte, requestID string) (*http.Response, error) {
	target := server + k.target()
	ctx, cancel := context.WithCancelCause(ctx)
	var wrote atomic.Bool // something of the call
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, k.method, target, bytes.NewReader(body))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set(headerRequestID, requestID)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if k.media != "" {
		req.Header.Set("Content-Type", k.media)
	}
	if k.reads() {
		if c.revision > 0 {
			req.Header.Set(headerRevision, strconv.FormatInt(c.revision, 10))
		}
	} else if !k.once { // with a key, net/http repeats a call by itself
		req.Header.Set(headerIdempotencyKey, k.key)
	}

	resp, err := c.http.Do(req)
	if err != nil {
		cancel(nil)
		if err = reasonOf(err); !wrote.Load() {
			err = unheard{err}
		}
		return nil, err
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, idle: c.idle}
	switch resp.StatusCode {
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		p := problemOf(resp)
		if p.Type == api.ProblemNotReady {
			return nil, unheard{p}
		}
		return nil, p
	}
	return resp, nil
}

// errSilent is returned by a body whose server stopped in the middle of it.
var errSilent = errors.New("the server went silent")

// watchedBody is a body that does not wait for ever: a server that is frozen
// while it answers keeps its connection open.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	idle   time.Duration
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle, func() { b.cancel(errSilent) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	if err != nil && errors.Is(context.Cause(b.ctx), errSilent) {
		err = errSilent
	}
	return n, err
}

// Close implements io.Closer.
func (b *watchedBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

func (k *call) reads() bool { return k.method == http.MethodGet || k.method == http.MethodHead }

// codeOfStatus maps an HTTP status to an exit code.
func codeOfStatus(status int) exitCode {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return exitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitForbidden
	case http.StatusNotFound, http.StatusGone:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	default:
		return exitFailed
	}
}

// unreachable returns the error of a call that no server answered. heard says
// that one of them may have obeyed it all the same.
func (c *client) unreachable(k call, failures []error, heard bool) error {
	var lines []string
	for i, err := range failures {
		lines = append(lines, fmt.Sprintf("%s: %v", c.servers[i], err))
	}
	text := "no server could answer: " + strings.Join(lines, "; ")
	if len(lines) > 1 {
		text = "no server could answer:\n  " + strings.Join(lines, "\n  ")
	}
	if heard && !k.reads() {
		// Only a repeat can tell.
		text += "\nit is not known whether this took effect; idempotency key: " + k.key
	}
	return fail(exitUnreachable, "%s", text)
}

// problem is an error in the form of RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors,omitempty"`
}

func (p *problem) Error() string {
	var b strings.Builder
	b.WriteString(cmp.Or(p.Detail, p.Title))
	for _, e := range p.Errors {
		b.WriteString("\n  ")
		if e.Location != "" {
			b.WriteString(e.Location + ": ")
		}
		b.WriteString(e.Message)
	}
	return b.String()
}

// problemOf reads the error that a response describes and closes it.
func problemOf(resp *http.Response) *problem {
	defer func() { _ = resp.Body.Close() }() // nothing more is wanted of it
	p := &problem{}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(data, p) != nil || p.Title == "" && p.Detail == "" {
		p = &problem{Title: fmt.Sprintf("the server answered %s", resp.Status)}
	}
	return p
}

// reasonOf takes out of a transport error what the message around it says
// already, and says what to do about the common mistakes.
func reasonOf(err error) error {
	var (
		ue   *url.Error
		cert *tls.CertificateVerificationError
		oe   *net.OpError
	)
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.As(err, &cert) {
		return fmt.Errorf("its certificate is not trusted (--cacert, UAC_CACERT): %w", cert.Err)
	}
	if errors.As(err, &oe) && oe.Op == "dial" {
		return oe.Err
	}
	return err
}
