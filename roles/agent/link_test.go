package agent

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"uac/roles/wire"
)

func TestHelloSaysWhoTheAgentIs(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	a := w.agent([]*testController{c}, func(cfg *Config, _ *Deps) {
		cfg.Version, cfg.Labels, cfg.MaxAttempts = "v1", map[string]string{"tier": "web"}, 7
	})
	l := c.next()
	select {
	case <-a.Ready():
		t.Error("ready before the welcome")
	default:
	}
	h := l.hello
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	want := &wire.Hello{
		Name: "a1", Version: "v1", BootId: boot, Labels: map[string]string{"tier": "web"}, MaxAttempts: 7,
		Generation: &wire.Generation{}, Journal: h.GetJournal(), Link: h.GetLink(), Host: h.GetHost(),
		Instance: h.GetInstance(),
	}
	if diff := cmp.Diff(want, h, protocmp.Transform()); diff != "" {
		t.Errorf("hello (-want +got):\n%s", diff)
	}
	if h.GetJournal().GetId() == "" || h.GetJournal().GetCounter() == 0 || h.GetLink().GetNumber() == 0 || h.GetHost() == "" {
		t.Errorf("hello is incomplete: %v", h)
	}
	l.welcome(1, "g1", 0)
	select {
	case <-a.Ready():
	case <-time.After(patience):
		t.Error("not ready after the welcome")
	}
}

// A clone of a machine has its certificate and its journal. Only what a process makes
// up tells the two apart.
func TestInstanceIsThatOfTheProcess(t *testing.T) {
	s := newStage(t)
	first := s.l.hello
	s.l.cut()
	s.l = s.c.link()
	if got := s.l.hello.GetInstance(); got == "" || got != first.GetInstance() {
		t.Errorf("on the next link instance %q, on the first %q", got, first.GetInstance())
	}
	s.restart()
	if got := s.l.hello.GetInstance(); got == "" || got == first.GetInstance() {
		t.Errorf("the next process is instance %q again", got)
	}
	if s.l.hello.GetJournal().GetId() != first.GetJournal().GetId() {
		t.Error("the next process has another journal")
	}
}

// One controller may freeze; commands for the agent then come over the other link.
func TestTwoLinksToDifferentControllers(t *testing.T) {
	w := newWorld(t)
	c1, c2, c3 := w.controller("c1"), w.controller("c2"), w.controller("c3")
	w.agent([]*testController{c1, c2, c3})
	l1, l2 := c1.link(), c2.link()
	l1.start(startOf(k1, 5, "exec sleep 1000"))
	l1.report(k1, wire.State_RUNNING)
	if at := l2.adopt("R", 6).GetAttempts()[0]; at.GetState() != wire.State_RUNNING {
		t.Errorf("over the second link: %v", at)
	}
	l1.start(startOf(k1, 5, "true"))
	if r := l1.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_STALE_FENCE {
		t.Errorf("over the first link: %v", r)
	}
	// Reports go where the last command came from.
	l2.kill(k1, 6)
	l2.report(k1, wire.State_EXITED)
	// A lost link is replaced by one to a controller that has none.
	c1.stop()
	l3 := c3.link()
	l3.report(k1, wire.State_EXITED)
	l2.cut()
	c2.link().report(k1, wire.State_EXITED)
	if len(c3.links) != 0 {
		t.Error("a second link to c3")
	}
}

func TestReportsGoOverTheOtherLinkWhenOneIsLost(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	a := w.agent([]*testController{c1, c2})
	l1, l2 := c1.link(), c2.link()
	l2.sync()
	l1.start(startOf(k1, 5, "true"))
	l1.report(k1, wire.State_EXITED)
	l2.sync()
	if slices.ContainsFunc(l2.kept, func(m *wire.AgentMessage) bool { return m.GetReport() != nil }) {
		t.Errorf("the other link got %v", l2.kept)
	}
	// Unacknowledged for too long: everywhere. It may be that c1 cannot pass it on.
	a.repeat(time.Now().Add(time.Hour))
	l2.report(k1, wire.State_EXITED)
	c1.stop()
	l2.report(k1, wire.State_EXITED)
}

func TestServersAreTriedInOrder(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	nowhere := freePort(t)
	w.agent([]*testController{c1, c2}, func(cfg *Config, _ *Deps) {
		cfg.Servers = []string{nowhere, c2.addr, c1.addr}
	})
	c2.link()
	c1.link()
}

func TestShuffleChangesTheOrderOnly(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Name, cfg.DataDir, cfg.Shuffle = "a1", "/nowhere", true
	for _, host := range "abcdefgh" {
		cfg.Servers = append(cfg.Servers, string(host)+":7602")
	}
	before := slices.Clone(cfg.Servers)
	differs := false
	for range 20 {
		a, err := New(cfg, Deps{Dial: dialer(nil)})
		if err != nil {
			t.Fatal(err)
		}
		differs = differs || !slices.Equal(a.cfg.Servers, before)
		if !slices.Equal(slices.Sorted(slices.Values(a.cfg.Servers)), before) || !slices.Equal(cfg.Servers, before) {
			t.Fatalf("servers %v became %v", before, a.cfg.Servers)
		}
	}
	if !differs {
		t.Error("the order never changes")
	}
}

// Two addresses may lead to one controller, which keeps only the newest link of an
// agent. The other one must not be lost to find that out.
func TestNoSecondLinkToOneController(t *testing.T) {
	w := newWorld(t)
	c, same, other := w.controller("c1"), w.controller("c1"), w.controller("c2")
	other.stop()
	tried := make(chan string, 1000)
	w.agent([]*testController{c, same, other}, func(_ *Config, deps *Deps) {
		dial := deps.Dial
		deps.Dial = func(ctx context.Context, server string, not []string) (*wire.Link, error) {
			l, err := dial(ctx, server, not)
			tried <- server
			return l, err
		}
	})
	// A round of the second link ends with the controller that is away.
	for seen := map[string]int{}; seen[c.addr] == 0 || seen[same.addr] == 0 || seen[other.addr] < 3; {
		select {
		case server := <-tried:
			seen[server]++
		case <-time.After(patience):
			t.Fatalf("tried only %v", seen)
		}
	}
	if n := len(c.links) + len(same.links); n != 1 {
		t.Fatalf("%d links to c1", n)
	}
	select {
	case l := <-c.links:
		l.welcome(1, "g1", 0)
		l.sync()
	case l := <-same.links:
		l.welcome(1, "g1", 0)
		l.sync()
	}
}

// A relay gives each of the two links another controller. What it was asked not to give
// is what the other link has.
func TestBothLinksThroughOneRelay(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	asked := make(chan []string, 1000)
	w.agent(nil, func(cfg *Config, deps *Deps) {
		cfg.Servers = []string{"r1:7602"}
		dial := deps.Dial
		deps.Dial = func(ctx context.Context, _ string, not []string) (*wire.Link, error) {
			asked <- not
			for _, c := range []*testController{c1, c2} {
				if slices.Contains(not, c.name) {
					continue
				}
				l, err := dial(ctx, c.addr, nil)
				if err == nil {
					l.Via = []string{"r1", "r9"}
				}
				return l, err
			}
			return nil, wire.ErrNoOther
		}
	})
	l1, l2 := c1.link(), c2.link()
	for _, l := range []*testLink{l1, l2} {
		l.sync()
		if diff := cmp.Diff([]string{"r1", "r9"}, l.hello.GetVia()); diff != "" {
			t.Errorf("the hello to %s says another way (-want +got):\n%s", l.controller, diff)
		}
	}
	for len(asked) > 0 {
		<-asked
	}
	l1.cut()
	if diff := cmp.Diff([]string{"c2"}, <-asked); diff != "" {
		t.Errorf("asked not to be connected to (-want +got):\n%s", diff)
	}
	c1.link().sync()
	l2.sync()
}

// Both links may ask at the same moment, and get the same controller: the one that is
// late asks the same relay again. One that never listens is not asked for ever.
func TestRelayIsAskedAgainAfterARace(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	var mu sync.Mutex
	asked, deaf := map[string][][]string{}, false
	w.agent(nil, func(cfg *Config, deps *Deps) {
		cfg.Servers = []string{"r1:7602", "r2:7602"}
		dial := deps.Dial
		deps.Dial = func(ctx context.Context, server string, not []string) (*wire.Link, error) {
			mu.Lock()
			asked[server] = append(asked[server], not)
			raced := len(asked[server]) == 1 || deaf
			mu.Unlock()
			addr := c1.addr
			if !raced && slices.Contains(not, "c1") {
				addr = c2.addr
			}
			l, err := dial(ctx, addr, nil)
			if err == nil {
				l.Via = []string{strings.TrimSuffix(server, ":7602")}
			}
			return l, err
		}
	})
	l1, l2 := c1.link(), c2.link()
	l1.sync()
	l2.sync()
	if diff := cmp.Diff(l1.hello.GetVia(), l2.hello.GetVia()); diff == "" {
		t.Errorf("both links go through %v", l1.hello.GetVia())
	}
	mu.Lock()
	deaf = true
	before := len(asked["r1:7602"]) + len(asked["r2:7602"])
	mu.Unlock()
	l2.cut()
	for late := time.After(patience); ; {
		mu.Lock()
		n := len(asked["r1:7602"]) + len(asked["r2:7602"]) - before
		both := len(asked["r1:7602"]) > 1 && len(asked["r2:7602"]) > 1
		mu.Unlock()
		if both && n >= 6 { // two rounds
			break
		}
		select {
		case <-late:
			t.Fatalf("%d asks", n)
		case <-time.After(time.Millisecond):
		}
	}
	l1.sync()
	if len(c1.links) != 0 {
		t.Error("a second link to c1")
	}
}

func TestOlderGenerationIsRefusedDurably(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	a := w.agent([]*testController{c})
	l := c.next()
	l.welcome(3, "g3", 0)
	l.sync()
	l.cut()
	l = c.next()
	if g := l.hello.GetGeneration(); g.GetNumber() != 3 || g.GetId() != "g3" {
		t.Errorf("hello in generation %v", g)
	}
	a.stop()
	w.agent([]*testController{c})
	for i, g := range []*wire.Generation{{Number: 2, Id: "g2"}, {Number: 3, Id: "another"}, {}} {
		l = c.next()
		if i == 0 && l.hello.GetGeneration().GetNumber() != 3 {
			t.Errorf("after a restart hello in generation %v", l.hello.GetGeneration())
		}
		l.welcome(g.GetNumber(), g.GetId(), 0)
		l.gone()
	}
	l = c.next()
	l.welcome(4, "g4", 0)
	l.sync()
	// Commands of the former generation have no effect.
	l.start(&wire.Start{Request: "R", Step: "s", Attempt: 1, Fence: &wire.Fence{Generation: 3, Revision: 1 << 40}})
	if r := l.refusal(wire.Refusal_START, k1); r.GetReason() != wire.Refusal_STALE_FENCE {
		t.Errorf("refusal %v", r)
	}
}

func TestNewGenerationEndsLinksOfTheOld(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.controller("c1"), w.controller("c2")
	w.agent([]*testController{c1, c2})
	l1, l2 := c1.link(), c2.next()
	l1.sync()
	l2.welcome(2, "g2", 0)
	l1.gone()
	l2.sync()
}

func TestSilentControllerLosesTheLink(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	w.agent([]*testController{c})
	l := c.next()
	l.welcome(1, "g1", 20*time.Millisecond)
	l.gone() // no ping came
	l = c.next()
	l.welcome(1, "g1", time.Hour)
	l.sync()
}

// Of two machines with one identity the newer is refused again and again. Whoever looks
// at its log should see that, once.
func TestARefusalIsToldOnce(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	var log lockedBuffer
	refusals := 0
	enough := make(chan struct{})
	c.mu.Lock()
	c.refuse = func() error {
		if refusals++; refusals == 5 {
			close(enough)
		}
		return grpcstatus.Error(codes.AlreadyExists, "another machine has this identity")
	}
	c.mu.Unlock()
	a := w.agent([]*testController{c}, func(cfg *Config, d *Deps) {
		cfg.ReconnectMin, cfg.ReconnectMax = time.Millisecond, time.Millisecond
		d.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	})
	select {
	case <-enough:
	case <-time.After(patience):
		t.Fatal("the agent does not try again")
	}
	a.stop()
	if n := strings.Count(log.String(), "another machine has this identity"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestControllerThatDoesNotWelcomeLosesTheLink(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	w.agent([]*testController{c}, func(cfg *Config, _ *Deps) { cfg.WelcomeTimeout = 20 * time.Millisecond })
	c.next().gone()
	c.next().gone()
}

func TestFirstMessageMustBeAWelcome(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	w.agent([]*testController{c})
	l := c.next()
	l.start(startOf(k1, 5, "true"))
	l.gone()
}

func TestControllerThatAsksAndDoesNotListenLosesTheLink(t *testing.T) {
	l := &link{wake: make(chan struct{}, 1)}
	var cause error
	l.cancel = func(err error) { cause = err }
	for range maxAnswers {
		l.answer(nil)
	}
	if cause != nil {
		t.Fatalf("lost after %d answers: %v", maxAnswers, cause)
	}
	l.answer(nil)
	if !errors.Is(cause, errSlow) {
		t.Errorf("cause is %v", cause)
	}
}

// Reports that are not taken do not pile up: what counts is the state at the end.
func TestReportsDoNotPileUp(t *testing.T) {
	l := &link{wake: make(chan struct{}, 1), reports: map[key]struct{}{}}
	for range 1000 {
		l.report(k1)
		l.report(k2)
	}
	if _, reports := l.take(); !slices.Equal(reports, []key{k1, k2}) {
		t.Errorf("%d reports wait", len(reports))
	}
	l.report(k1)
	if _, reports := l.take(); !slices.Equal(reports, []key{k1}) {
		t.Errorf("after sending, %v wait", reports)
	}
}

func TestIdleAgentUsesFewGoroutines(t *testing.T) {
	w := newWorld(t)
	before := runtime.NumGoroutine()
	c := w.controller("c1")
	w.agent([]*testController{c})
	c.link().sync()
	if n := runtime.NumGoroutine() - before; n > 30 { // both ends of the link included
		t.Errorf("%d goroutines", n)
	}
}

func TestConfigIsValidated(t *testing.T) {
	good := DefaultConfig()
	good.Name, good.DataDir, good.Servers = "a1", "/var/lib/uac", []string{"c1:7602", "c2:7602"}
	if err := good.Validate(); err != nil {
		t.Errorf("good settings: %v", err)
	}
	if _, err := New(good, Deps{}); err == nil {
		t.Error("an agent that cannot connect")
	}
	for want, change := range map[string]func(*Config){
		"name":                  func(c *Config) { c.Name = "" },
		"data_dir \"x\"":        func(c *Config) { c.DataDir = "x" },
		"servers: is empty":     func(c *Config) { c.Servers = nil },
		"\"c1\" is not host":    func(c *Config) { c.Servers = []string{"c1"} },
		"\":1\" is not host":    func(c *Config) { c.Servers = []string{":1"} },
		"named twice":           func(c *Config) { c.Servers = []string{"c1:1", "c1:1"} },
		"reconnect_min 0s":      func(c *Config) { c.ReconnectMin = 0 },
		"less than reconnect":   func(c *Config) { c.ReconnectMax = time.Millisecond },
		"welcome_timeout -1ns":  func(c *Config) { c.WelcomeTimeout = -1 },
		"resend_after 0s":       func(c *Config) { c.ResendAfter = 0 },
		"kill_grace 0s":         func(c *Config) { c.KillGrace = 0 },
		"max_attempts 0":        func(c *Config) { c.MaxAttempts = 0 },
		"max_queued -1":         func(c *Config) { c.MaxQueued = -1 },
		"journal_size 0":        func(c *Config) { c.JournalSize = 0 },
		"tombstones: must not":  func(c *Config) { c.TombstoneKeep = -1 },
		"output: must not be k": func(c *Config) { c.OutputMaxBytes = -1 },
	} {
		cfg := good
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := New(cfg, Deps{Dial: dialer(nil)}); err == nil {
			t.Errorf("%s: an agent was made", want)
		}
	}
}
