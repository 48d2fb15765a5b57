package coord

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// puppet is a peer that a test plays by hand.
type puppet struct {
	t    *testing.T
	conn net.Conn
	in   *frameReader
}

// send writes a message. The mesh reads at any time, so it does not block.
func (p *puppet) send(msg message) {
	p.t.Helper()
	frame, err := appendFrame(nil, &msg)
	if err == nil {
		_, err = p.conn.Write(frame)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *puppet) next() message {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil { // of the bubble
		p.t.Fatal(err)
	}
	m, err := p.in.next()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// expectEnd reads until the mesh ends the connection.
func (p *puppet) expectEnd() {
	p.t.Helper()
	for {
		if _, err := p.in.next(); err != nil {
			return
		}
	}
}

func helloOf(node, run string) message {
	return message{Hello: &helloMsg{Node: node, Run: run, origin: origin{Incarnation: "i-" + node}}}
}

// withPuppets runs a test with the member c2 and puppets in the place of c1 and
// w1: what they dialed, after the hellos.
func withPuppets(t *testing.T, test func(t *testing.T, f *fabric, c2 *testNode, c1, w1 *puppet)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		c := &cluster{voters: []string{"c1", "c2", "w1"}, sessions: map[string]holding{"c1": {10, "r1"}, "c2": {20, "r2"}}}
		c2 := startNode(t, f, c, "c2", "r2")
		synctest.Wait()
		time.Sleep(time.Second)
		c1, w1 := dialPuppet(t, f, "c1"), dialPuppet(t, f, "w1")
		for _, p := range []*puppet{c1, w1} {
			name := p.conn.(*fabricConn).local
			p.send(helloOf(name, map[string]string{"c1": "r1", "w1": "r3"}[name]))
			if h := p.next().Hello; h == nil || h.Node != "c2" || h.Refused != "" {
				t.Fatalf("answer is %+v", h)
			}
		}
		synctest.Wait() // the answer goes out before the connection counts
		defer func() {  // also after a Fatal
			c2.end(t)
			f.drop("c1", "")
			f.drop("w1", "")
		}()
		test(t, f, c2, c1, w1)
	})
}

func dialPuppet(t *testing.T, f *fabric, from string) *puppet {
	t.Helper()
	conn, err := f.dialer(from)(t.Context(), "c2")
	if err != nil {
		t.Fatal(err)
	}
	return &puppet{t: t, conn: conn, in: newFrameReader(conn)}
}

func TestVotesArePushedAndWithdrawn(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, w1 *puppet) {
		pulse := func(seq uint64) message {
			return message{Pulse: &pulseMsg{Seq: seq, Heard: seq - 1, Run: "r1", Epoch: 10, Acting: true}}
		}
		ask := func(number uint64) message { return message{Ask: &askMsg{Suspect: "c1", Epoch: 10, Number: number}} }
		time.Sleep(30 * ms) // out of step with c2's own pulses
		c1.send(pulse(1))
		if e := c1.next().Echo; e == nil || *e != (echoMsg{Seq: 1, Epoch: 10}) {
			t.Fatalf("echo is %+v", e)
		}
		// Asked before there is evidence, c2 answers when there is.
		time.Sleep(900 * ms)
		w1.send(ask(1))
		heard := time.Now()
		yes := w1.next().Vote
		if yes == nil || !yes.Yes || yes.Number != 1 || yes.Evidence != "silence" {
			t.Fatalf("vote is %+v", yes)
		}
		if d := time.Since(heard); d != 100*ms {
			t.Errorf("vote came after %v, want 100ms: when the silence was full", d)
		}
		synctest.Wait()
		if !c2.events.has("voted w1 c1 10") {
			t.Errorf("events are %v", c2.events)
		}
		// A pulse takes it back at once, and is not echoed while the vote may
		// still count somewhere.
		c1.send(pulse(2))
		if no := w1.next().Vote; no == nil || no.Yes || no.Number != 1 {
			t.Fatalf("vote is %+v, want it withdrawn", no)
		}
		time.Sleep(withholdFor - 101*ms) // since the question: the vote took 100 ms
		c1.send(pulse(3))
		synctest.Wait()
		time.Sleep(ms)
		c1.send(pulse(4))
		if e := c1.next().Echo; e == nil || e.Seq != 4 {
			t.Errorf("echo is %+v, want one of pulse 4 only", e)
		}
	})
}

func TestOutOfPlaceMessagesEndOnlyTheirConnection(t *testing.T) {
	bad := map[string]func(p *puppet){
		"garbage":        func(p *puppet) { _, _ = p.conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")) },
		"a long frame":   func(p *puppet) { _, _ = p.conn.Write([]byte{0, 255, 255, 255}) },
		"a wrong type":   func(p *puppet) { _, _ = p.conn.Write(frameOf(`{"pulse":{"seq":"x"}}`)) },
		"a second hello": func(p *puppet) { p.send(helloOf("c1", "r1")) },
		"an echo":        func(p *puppet) { p.send(message{Echo: &echoMsg{Seq: 1}}) },
		"another run":    func(p *puppet) { p.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r9"}}) },
		"a pulse again": func(p *puppet) {
			for range 2 {
				p.send(message{Pulse: &pulseMsg{Seq: 5, Run: "r1"}})
			}
		},
		"half a frame":     func(p *puppet) { _, _ = p.conn.Write([]byte{0, 0, 1}); _ = p.conn.Close() },
		"a vote from here": func(p *puppet) { p.send(sampleMessages[4]) },
	}
	for name, send := range bad {
		t.Run(name, func(t *testing.T) {
			withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, w1 *puppet) {
				send(c1)
				c1.expectEnd()
				synctest.Wait()
				if c2.status("c1").Accepted {
					t.Error("the connection is still up")
				}
				w1.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r3"}})
				if e := w1.next().Echo; e == nil || e.Seq != 1 {
					t.Errorf("the other connection answers %+v", e)
				}
			})
		})
	}
}

func TestUnknownMessagesAreSkipped(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, _ *testNode, c1, _ *puppet) {
		if _, err := c1.conn.Write(frameOf(`{"rumour":{"about":"c2"}}`)); err != nil {
			t.Fatal(err)
		}
		c1.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r1"}})
		if e := c1.next().Echo; e == nil || e.Seq != 1 {
			t.Errorf("echo is %+v", e)
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	tests := []struct {
		name   string
		from   string
		hello  message
		reason string // in the answer, "" for none
	}{
		{"not a member", "x9", helloOf("x9", "r"), ""},
		{"claims another name", "c1", helloOf("w1", "r"), "c1 calls itself w1"},
		{"says no hello", "c1", message{Echo: &echoMsg{Seq: 1}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, _ *puppet) {
				p := dialPuppet(t, f, tt.from)
				go func() { // the mesh may hang up without reading
					frame, _ := appendFrame(nil, &tt.hello)
					_, _ = p.conn.Write(frame)
				}()
				m, err := p.in.next()
				if tt.reason == "" {
					if err == nil {
						t.Errorf("answer is %+v", m)
					}
				} else if err != nil || m.Hello == nil || m.Hello.Refused != tt.reason {
					t.Errorf("answer is %+v, %v; want refusal %q", m.Hello, err, tt.reason)
				}
				p.expectEnd()
			})
		})
	}
}

func TestNewestConnectionCounts(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		again := dialPuppet(t, f, "c1")
		again.send(helloOf("c1", "r1"))
		if h := again.next().Hello; h == nil || h.Refused != "" {
			t.Fatalf("answer is %+v", h)
		}
		c1.expectEnd()
		again.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r1"}})
		if e := again.next().Echo; e == nil || e.Seq != 1 {
			t.Errorf("echo is %+v", e)
		}
		if !c2.status("c1").Accepted {
			t.Error("no connection")
		}
	})
}

func TestMessagesOfAReplacedConnectionDoNotCount(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, _, _ *puppet) {
		old := &link{run: "r1"}
		p := c2.peers["c1"]
		if err := c2.fromDialer(p, old, &message{Pulse: &pulseMsg{Seq: 1, Run: "r1"}}); !errors.Is(err, errReplaced) {
			t.Errorf("a pulse: %v", err)
		}
		if err := c2.fromAcceptor(p, old, &message{Echo: &echoMsg{Seq: 1}}); !errors.Is(err, errReplaced) {
			t.Errorf("an echo: %v", err)
		}
		c2.linkDown(p, old)
		if s := c2.status("c1"); !s.Accepted || s.Heard >= 0 {
			t.Errorf("c1 is %+v", s)
		}
	})
}

func TestQuestionsBeginAnewWithAConnection(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, w1 *puppet) {
		time.Sleep(testTiming.join)
		ask := func(number uint64) message { return message{Ask: &askMsg{Suspect: "c1", Epoch: 10, Number: number}} }
		w1.send(ask(7))
		if v := w1.next().Vote; v == nil || !v.Yes || v.Number != 7 {
			t.Fatalf("vote is %+v", v)
		}
		again := dialPuppet(t, f, "w1")
		again.send(helloOf("w1", "r4"))
		again.next()
		again.send(ask(1))
		if v := again.next().Vote; v == nil || !v.Yes || v.Number != 1 {
			t.Fatalf("vote is %+v", v)
		}
	})
}

// acceptPuppet takes the place of a peer that c2 dials, up to c2's hello.
func acceptPuppet(t *testing.T, f *fabric, name string) *puppet {
	t.Helper()
	l := f.listen(name)
	t.Cleanup(func() { _ = l.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := &puppet{t: t, conn: conn, in: newFrameReader(conn)}
	if h := p.next().Hello; h == nil || h.Node != "c2" {
		t.Fatalf("hello is %+v", h)
	}
	return p
}

// reach lets c2 reach a peer with a dial of its own, for a moment. What it finds out from
// refused dials counts from then on.
func reach(t *testing.T, f *fabric, name, run string) {
	t.Helper()
	l := f.listen(name)
	conn, err := l.Accept()
	_ = l.Close()
	if err != nil {
		t.Fatal(err)
	}
	p := &puppet{t: t, conn: conn, in: newFrameReader(conn)}
	if h := p.next().Hello; h == nil || h.Node != "c2" {
		t.Fatalf("hello is %+v", h)
	}
	p.send(helloOf(name, run))
	synctest.Wait()
	_ = conn.Close()
	synctest.Wait()
}

// nextAsk reads until the next question, echoing pulses.
func (p *puppet) nextAsk(epoch int64) *askMsg {
	p.t.Helper()
	for {
		m := p.next()
		if m.Ask != nil {
			return m.Ask
		}
		if m.Pulse != nil {
			p.send(message{Echo: &echoMsg{Seq: m.Pulse.Seq, Epoch: epoch}})
		}
	}
}

func TestQuestionsAreRepeated(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		w1 := acceptPuppet(t, f, "w1")
		w1.send(helloOf("w1", "r3"))
		time.Sleep(30 * ms) // out of step with c2's own pulses
		c1.send(message{Pulse: &pulseMsg{Seq: 1, Run: "r1", Epoch: 10, Acting: true}})
		c1.next()
		heard := time.Now()
		for i := range 5 {
			q := w1.nextAsk(20)
			want := askMsg{Suspect: "c1", Epoch: 10, Number: uint64(i + 1)}
			if d := time.Since(heard); d != testTiming.silence+time.Duration(i)*50*ms || *q != want {
				t.Errorf("question %d came after %v: %+v", i, d, q)
			}
		}
		w1.send(message{Vote: &voteMsg{Suspect: "c1", Epoch: 10, Number: 5, Yes: true, Evidence: "refused"}})
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "c2 w1")
		if !c2.events.has("agreed c1 10") {
			t.Errorf("events are %v", c2.events)
		}
		w1.send(message{Vote: &voteMsg{Suspect: "c1", Epoch: 10, Number: 5}})
		synctest.Wait()
		wantAgreement(t, c2, "c1", 10, "")
	})
}

// Who asks because the process has ended need not be asked.
func TestAQuestionAboutTheDeadIsAVote(t *testing.T) {
	for _, first := range []string{"question", "own evidence"} {
		withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, w1 *puppet) {
			reach(t, f, "c1", "r1")
			question := func() {
				w1.send(message{Ask: &askMsg{Suspect: "c1", Epoch: 10, Number: 1, Dead: "refused"}})
				synctest.Wait()
			}
			if first == "question" {
				question()
			}
			wantAgreement(t, c2, "c1", 10, "")
			_ = c1.conn.Close()
			synctest.Wait()
			if first != "question" {
				question()
			}
			if !c2.events.has("agreed c1 10") {
				t.Errorf("%s first: events are %v", first, c2.events)
			}
			wantAgreement(t, c2, "c1", 10, "c2 w1")
		})
	}
}

func TestQuestionsTellOfADeath(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, c1, _ *puppet) {
		w1 := acceptPuppet(t, f, "w1")
		w1.send(helloOf("w1", "r3"))
		reach(t, f, "c1", "r1")
		_ = c1.conn.Close()
		if q := w1.nextAsk(20); q.Dead != "refused" {
			t.Errorf("question is %+v", q)
		}
	})
}

// What is known to be dead is dialed no oftener than what has been away for long.
func TestNoHasteToDialTheDead(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		reach(t, f, "c1", "r1")
		time.Sleep(30 * ms)
		_ = c1.conn.Close()
		synctest.Wait()
		if got := c2.status("c1").Evidence; got != "refused" {
			t.Fatalf("evidence is %q, want refused", got)
		}
		began := time.Now()
		l := f.listen("c1")
		defer func() { _ = l.Close() }()
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 100*ms {
			t.Errorf("dialed again after %v", d)
		}
	})
}

// A firewall may refuse what we dial, and let in what dials us: the end of that proves
// nothing.
func TestEndOfTheAcceptedConnectionOfOneNeverReached(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, _ *puppet) {
		_ = c1.conn.Close()
		synctest.Wait()
		if got := c2.status("c1"); got.Evidence != "" {
			t.Errorf("evidence is %q, want none", got.Evidence)
		}
	})
}

// A peer that we had reached, and that has only its own connection to us left, dies.
func TestEndOfTheAcceptedConnectionIsEnough(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		w1 := acceptPuppet(t, f, "w1")
		w1.send(helloOf("w1", "r3"))
		reach(t, f, "c1", "r1")
		time.Sleep(80 * ms) // out of step with c2's own pulses
		began := time.Now()
		_ = c1.conn.Close()
		for i := range 3 {
			q := w1.nextAsk(20)
			if d := time.Since(began); d != time.Duration(i)*50*ms {
				t.Errorf("question %d came after %v: %+v", i, d, q)
			}
		}
		if got := c2.status("c1").Evidence; got != "refused" {
			t.Errorf("evidence is %q, want refused", got)
		}
	})
}

// Whether a peer still lives that ended one connection shows on the other.
func TestEndOfTheAcceptedConnectionProvokesAPulse(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, c1, _ *puppet) {
		acceptor := acceptPuppet(t, f, "c1")
		acceptor.send(helloOf("c1", "r1"))
		acceptor.nextPulse()
		acceptor.nextPulse()
		time.Sleep(30 * ms)
		began := time.Now()
		_ = c1.conn.Close()
		acceptor.nextPulse()
		if d := time.Since(began); d != 0 {
			t.Errorf("next pulse came after %v", d)
		}
	})
}

// A peer that hangs up right after its hello must not be dialed in a hot loop.
func TestRedialSlowsDown(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, _ *puppet) {
		l := f.listen("c1")
		var pauses []time.Duration
		last := time.Time{}
		for range 10 {
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if !last.IsZero() {
				pauses = append(pauses, time.Since(last))
			}
			last = time.Now()
			p := &puppet{t: t, conn: conn, in: newFrameReader(conn)}
			p.next()
			p.send(helloOf("c1", "r1"))
			_ = conn.Close()
		}
		_ = l.Close()
		// It had been refused for a while, so the first pauses are long already.
		if slices.ContainsFunc(pauses, func(d time.Duration) bool { return d != 100*ms }) {
			t.Errorf("pauses are %v", pauses)
		}
	})
}

func TestRedialBeginsAtOnce(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, _ *puppet) {
		acceptor := acceptPuppet(t, f, "c1")
		acceptor.send(helloOf("c1", "r1"))
		for began := time.Now(); time.Since(began) < testTiming.silence; {
			acceptor.nextPulse()
		}
		l := f.listeners["c1"]
		last := time.Now()
		_ = acceptor.conn.Close()
		var pauses []time.Duration
		for range 5 { // accept and hang up, as a process does that is dying
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			pauses = append(pauses, time.Since(last))
			last = time.Now()
		}
		if want := []time.Duration{0, ms, 2 * ms, 4 * ms, 8 * ms}; !slices.Equal(pauses, want) {
			t.Errorf("pauses are %v, want %v", pauses, want)
		}
	})
}

func TestAnotherRunEndsTheOtherConnection(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, c1, _ *puppet) {
		acceptor := acceptPuppet(t, f, "c1")
		acceptor.send(helloOf("c1", "r1"))
		acceptor.nextPulse()
		if s := c2.status("c1"); !s.Dialed || !s.Accepted {
			t.Fatalf("c1 is %+v", s)
		}
		next := dialPuppet(t, f, "c1")
		next.send(helloOf("c1", "r9"))
		next.next()
		acceptor.expectEnd()
		c1.expectEnd()
		synctest.Wait()
		if s := c2.status("c1"); !s.Accepted || s.Run != "r9" || s.Evidence != "new run" {
			t.Errorf("c1 is %+v", s)
		}
	})
}

func (p *puppet) nextPulse() {
	p.t.Helper()
	for p.next().Pulse == nil {
	}
}

func TestRefusedByTheAcceptor(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, _, _ *puppet) {
		acceptor := acceptPuppet(t, f, "c1")
		answer := helloOf("c1", "r1")
		answer.Hello.Refused = "you are old"
		acceptor.send(answer)
		acceptor.expectEnd()
		synctest.Wait()
		if s := c2.status("c1"); s.Dialed || !strings.Contains(s.Trouble, "you are old") {
			t.Errorf("c1 is %+v", s)
		}
		began := time.Now()
		if _, err := f.listeners["c1"].Accept(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != refusalPause {
			t.Errorf("dialed again after %v, want %v", d, refusalPause)
		}
	})
}

func TestAnotherNodeAnswers(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, c2 *testNode, _, _ *puppet) {
		l := f.listen("x9")
		defer l.Close()
		f.mu.Lock()
		f.listeners["c1"] = l // the address of c1 leads to x9
		f.mu.Unlock()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if m, err := newFrameReader(conn).next(); err == nil {
			t.Errorf("x9 was told %+v", m)
		}
		if s := c2.status("c1"); !strings.Contains(s.Trouble, "x9 answers in the place of c1") {
			t.Errorf("c1 is %+v", s)
		}
		f.mu.Lock()
		delete(f.listeners, "c1")
		f.mu.Unlock()
	})
}

// A peer that reads nothing must not hold up anybody, and is cut in the end.
func TestPeerThatDoesNotRead(t *testing.T) {
	withPuppets(t, func(t *testing.T, _ *fabric, c2 *testNode, c1, w1 *puppet) {
		for seq := uint64(1); seq <= 20; seq++ {
			c1.send(message{Pulse: &pulseMsg{Seq: seq, Run: "r1", Epoch: 10}}) // never reads an echo
			w1.send(message{Pulse: &pulseMsg{Seq: seq, Run: "r3"}})
			if e := w1.next().Echo; e == nil || e.Seq != seq {
				t.Fatalf("w1's echo %d is %+v", seq, e)
			}
		}
		time.Sleep(testTiming.silence)
		synctest.Wait()
		if c2.status("c1").Accepted {
			t.Error("c1 reads nothing and is still connected")
		}
		if !c2.status("w1").Accepted {
			t.Error("w1 was cut too")
		}
	})
}

func TestSlowHelloIsGivenUp(t *testing.T) {
	withPuppets(t, func(t *testing.T, f *fabric, _ *testNode, _, _ *puppet) {
		p := dialPuppet(t, f, "c1")
		began := time.Now()
		p.expectEnd()
		if d := time.Since(began); d != testTiming.silence {
			t.Errorf("given up after %v", d)
		}
	})
}
