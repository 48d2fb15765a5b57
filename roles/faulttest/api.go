package faulttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The types below are the parts of the API's contract that the tests read. They
// are written down again on purpose: a change that breaks clients breaks these.

// Request is a request as the API shows it.
type Request struct {
	ID      string `json:"id"`
	Process string `json:"process"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Owner   string `json:"owner"`
	Fence   string `json:"fence"`
	Steps   []Step `json:"steps"`
}

// Step is a step of a request.
type Step struct {
	Name        string `json:"name"`
	Status      string `json:"status"`
	Attempt     int    `json:"attempt"`
	Agent       string `json:"agent"`
	ExitCode    *int   `json:"exit_code"`
	Reason      string `json:"reason"`
	Unreachable bool   `json:"unreachable"`
}

func (r Request) final() bool {
	return slices.Contains([]string{"succeeded", "failed", "cancelled"}, r.Status)
}

// rests reports whether nothing more will happen by itself.
func (r Request) rests() bool { return r.final() || r.Status == "in_doubt" }

func (r Request) step(name string) Step {
	for _, st := range r.Steps {
		if st.Name == name {
			return st
		}
	}
	return Step{}
}

// Process is the definition of a process, as a document and as the API takes it.
type Process struct {
	Name   string    `json:"name"`
	Params []Param   `json:"params"`
	Steps  []StepDef `json:"steps"`
}

// Param is a parameter of a process.
type Param struct {
	Name     string `json:"name"`
	Required bool   `json:"required"`
}

// StepDef is the definition of a step.
type StepDef struct {
	Name       string    `json:"name"`
	Needs      []string  `json:"needs,omitempty"`
	On         string    `json:"on,omitempty"`
	Agent      Selector  `json:"agent"`
	Run        string    `json:"run"`
	Repeatable bool      `json:"repeatable,omitempty"`
	Retry      *RetryDef `json:"retry,omitempty"`
	Outputs    []string  `json:"outputs,omitempty"`
}

// Selector says where a step runs.
type Selector struct {
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// RetryDef says how often a failed step is tried again.
type RetryDef struct {
	Attempts int `json:"attempts"`
}

// NodeInfo is a node as the API shows it.
type NodeInfo struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Mode     string `json:"mode"`
	Paused   bool   `json:"paused"`
	Epoch    int64  `json:"epoch"`
	Term     int64  `json:"term"`
	Requests int    `json:"requests"`
	Held     string `json:"held"`
	Failover struct {
		Ready bool   `json:"ready"`
		Why   string `json:"why"`
	} `json:"failover"`
}

// AgentInfo is an agent as the API shows it.
type AgentInfo struct {
	Name      string            `json:"name"`
	Connected bool              `json:"connected"`
	Links     []string          `json:"links"`
	Via       map[string]string `json:"via"`
}

// client calls the API of one node.
type client struct {
	base  string
	token string
	http  *http.Client
}

// dialer opens connections from wherever a client is.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// callPatience bounds one call. A frozen node accepts connections and answers
// nothing.
const callPatience = 3 * time.Second

func newClient(t testing.TB, base, token, cacert string, dial dialer) *client {
	t.Helper()
	pem, err := os.ReadFile(cacert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", cacert)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, DialContext: dial}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{base: base, token: token, http: &http.Client{Transport: tr}}
}

// answer is what a node said to one call.
type answer struct {
	Status   int
	Body     string
	Revision string
}

// problem is the error document of the API.
func (a answer) String() string {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal([]byte(a.Body), &p) == nil && p.Detail != "" {
		return fmt.Sprintf("%d: %s", a.Status, p.Detail)
	}
	return fmt.Sprintf("%d: %s", a.Status, strings.TrimSpace(a.Body))
}

// call makes one call. An error means that nobody knows what came of it.
func (c *client) call(ctx context.Context, method, path, key string, body any) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	return c.callSlow(ctx, method, path, key, body)
}

// callSlow is call with the bound of ctx alone.
func (c *client) callSlow(ctx context.Context, method, path, key string, body any) (answer, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return answer{}, err
	}
	// Without it net/http sends again what has an idempotency key and lost its
	// connection: one call that is written down would be two.
	req.GetBody = nil
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{Status: resp.StatusCode, Body: string(b), Revision: resp.Header.Get("Uac-Revision")}, err
}

// get reads a JSON document.
func (c *client) get(ctx context.Context, path string, out any) error {
	a, err := c.call(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK {
		return fmt.Errorf("GET %s%s: %v", c.base, path, a)
	}
	return json.Unmarshal([]byte(a.Body), out)
}
