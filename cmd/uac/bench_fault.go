package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fault is what a benchmark does to a node.
type fault struct {
	name string
	what string // for people
	// strike does it and returns when, on the monotonic clock.
	strike func(ctx context.Context, b *bench, victim devNode) (int64, error)
	// heal undoes it.
	heal func(ctx context.Context, b *bench, victim devNode) error
	// The victim lives on, frozen or not, and must know when it is not Active any
	// more.
	survives, frozen bool
}

func faults(network *devNetwork) []fault {
	return []fault{
		{
			name: "kill", what: "kill -9 of the Active",
			strike: func(_ context.Context, b *bench, victim devNode) (int64, error) {
				k, err := b.sup.kill(victim.Name)
				return k.At, err
			},
			heal: func(ctx context.Context, b *bench, victim devNode) error { return b.sup.start(ctx, victim.Name) },
		},
		{
			name: "stop", what: "the Active frozen (SIGSTOP)", survives: true, frozen: true,
			strike: func(_ context.Context, b *bench, victim devNode) (int64, error) {
				at := monotonic()
				return at, b.sup.signal(victim.Name, unix.SIGSTOP)
			},
			heal: func(_ context.Context, b *bench, victim devNode) error {
				return b.sup.signal(victim.Name, unix.SIGCONT)
			},
		},
		{
			name: "cut", what: "the Active cut off the network", survives: true,
			strike: func(ctx context.Context, _ *bench, victim devNode) (int64, error) {
				at := monotonic()
				return at, network.cut(ctx, victim.Name)
			},
			heal: func(ctx context.Context, _ *bench, _ devNode) error { return network.heal(ctx) },
		},
	}
}

// signal sends a signal to a node.
func (s *devSupervisor) signal(name string, sig unix.Signal) error {
	p, err := s.run(name)
	if err != nil {
		return err
	}
	if p == nil {
		return fail(exitConflict, "%s does not run", name)
	}
	return p.cmd.Process.Signal(sig)
}

// whenClosed connects to a node and tells when that connection has ended, or ctx has.
func whenClosed(ctx context.Context, n devNode) (<-chan int64, error) {
	api, err := url.Parse(n.API)
	if err != nil {
		return nil, err
	}
	conn, err := dialIn(ctx, n.namespace, api.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	closed := make(chan int64, 1)
	go func() {
		defer stop()
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 1)) // nothing is ever sent
		closed <- monotonic()
	}()
	return closed, nil
}

// probeEvery is how often the load balancer's probe is asked. Real ones ask
// every second or so; this is to see when they could know. The survivors of a blow
// are asked less often: the answers take the time of the processors that they need.
const (
	probeEvery    = 2 * time.Millisecond
	survivorEvery = 5 * time.Millisecond
)

// watcher asks one node again and again whether it is Active, like a load
// balancer.
type watcher struct {
	node   devNode
	client *http.Client
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu sync.Mutex // guards the fields below
	// first is when the first answer ACTIVE was there, last when the question
	// was asked to which ACTIVE was last the answer. Zero: never.
	first, last int64
}

// watch starts to ask a node.
func (b *bench) watch(ctx context.Context, n devNode, every time.Duration) *watcher {
	w := b.newWatcher(n)
	w.start(ctx, every)
	return w
}

// newWatcher returns a watcher that has asked nothing yet. From inside the
// node's network namespace an answer can be had even while it is cut off.
func (b *bench) newWatcher(n devNode) *watcher {
	conf := b.nodes.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.NextProtos = []string{"http/1.1"} // half the work
	return &watcher{node: n, stop: func() {}, client: &http.Client{
		// Longer than a node is frozen: the question must get its late answer.
		Timeout: benchPatience,
		Transport: &http.Transport{
			TLSClientConfig: conf,
			TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				return dialIn(ctx, n.namespace, address)
			},
		},
	}}
}

// start begins to ask again and again.
func (w *watcher) start(ctx context.Context, every time.Duration) {
	ctx, w.stop = context.WithCancel(ctx)
	w.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			w.ask(ctx)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// ask asks once.
func (w *watcher) ask(ctx context.Context) {
	asked := monotonic()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.node.API+probeActive, nil)
	if err != nil {
		return
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close() // read to its end
	if err != nil || resp.StatusCode != http.StatusOK {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == 0 {
		w.first = monotonic()
	}
	w.last = asked
}

// activeSince returns when the node first answered ACTIVE, 0 if it never did.
func (w *watcher) activeSince() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

// activeUntil returns when the node was last asked that answered ACTIVE.
func (w *watcher) activeUntil() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *watcher) close() {
	w.stop()
	w.done.Wait()
	w.client.CloseIdleConnections()
}

// termBegun is what a new Active writes into its log.
type termBegun struct {
	Message    string `json:"msg"`
	Began      int64  `json:"began_mono_ns"`
	FirstWrite int64  `json:"first_write_mono_ns"`
}

// firstWrite waits for the first fenced write of a term that began after a
// moment, on any of the nodes. It returns who wrote it and when.
func firstWrite(ctx context.Context, nodes []devNode, after int64) (string, int64, error) {
	for {
		name, first := "", int64(0)
		for _, n := range nodes {
			at, err := firstWriteOf(n.Log, after)
			if err != nil {
				return "", 0, err
			}
			if at != 0 && (first == 0 || at < first) {
				name, first = n.Name, at
			}
		}
		if first != 0 {
			return name, first, nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return "", 0, fmt.Errorf("no controller has begun a term: %w", err)
		}
	}
}

func firstWriteOf(log string, after int64) (at int64, err error) {
	f, err := os.Open(log)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // only read
	for in := bufio.NewReader(f); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return at, nil // a line without its end is being written
		}
		if err != nil {
			return 0, err
		}
		if !bytes.Contains(line, []byte(`"term begun"`)) {
			continue
		}
		var t termBegun
		if err := json.Unmarshal(line, &t); err != nil {
			return 0, fmt.Errorf("%s: %w in %q", log, err, line)
		}
		if t.FirstWrite > after && at == 0 {
			at = t.FirstWrite
		}
	}
}
