package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"uac/roles/wire/lifeline"
	"uac/roles/wire/pki"
)

// The classes of connections, by the name that ALPN carries.
const (
	ClassPulse    = "uac-pulse/1"
	ClassLifeline = "uac-lifeline/1"
	ClassMember   = "uac-member/1"
	ClassLink     = "uac-link/1"
	ClassJoin     = "uac-join/1"
	ClassRelay    = "uac-relay/1"
)

// Class is one kind of connection that a [Listener] takes.
type Class struct {
	// Name is offered by the client and chosen by the server through ALPN.
	Name string
	// TLS has the certificate to show and, unless Anonymous, the CAs that clients
	// must come from. Its GetConfigForClient, if set, is asked for every
	// connection, so that renewed files are used without a restart. Protocols,
	// least version and the demand for a client certificate are set by Listen.
	TLS *tls.Config
	// Roles lists the roles whose certificates are taken.
	Roles []pki.Role
	// Anonymous classes ask for no client certificate. They take no Roles.
	Anonymous bool
	// Through is for connections whose handshake is another one's to make: the
	// class needs no TLS and no Roles, is taken from clients that offer it alone,
	// and yields [*Through].
	Through bool
	// Urgent handshakes do not wait for their turn behind others.
	Urgent bool
}

// ListenConfig holds the settings of a [Listener].
type ListenConfig struct {
	// Addr is the TCP address to bind, host:port.
	Addr string
	// HandshakeTimeout bounds the time from a connection's arrival to the end of
	// its handshake. 0 means 5 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds how many handshakes are under way at a time; further
	// connections wait in the kernel. 0 means 1024.
	MaxHandshakes int
	// Turns bounds how many handshakes that are not urgent compute at a time. 0 means
	// four for each processor.
	Turns int
	// MaxTurn is how long a handshake keeps its turn at most: long enough for what there
	// is to compute and an answer of the client, too short for a client that sends none
	// to keep the others out. 0 means 50 ms.
	MaxTurn time.Duration
	// Lifeline lets the kernel close the port as soon as the process is killed, where
	// that is possible: see package lifeline.
	Lifeline bool
	// Log gets refused connections. nil discards.
	Log *slog.Logger
}

// ErrUnknownClass is returned by a handshake whose client offered no class that
// the listener takes.
var ErrUnknownClass = errors.New("wire: client offers no class that is served here")

// Listener is one TCP port that several classes share. Its methods are safe for
// concurrent use.
type Listener struct {
	cfg     ListenConfig
	tcp     net.Listener
	classes map[string]*classListener
	through bool // there is a class of that kind
	turns   chan struct{}
}

// Listen binds the address. Connections are accepted once [Listener.Run] runs.
func Listen(cfg ListenConfig, classes ...Class) (*Listener, error) {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 5 * time.Second
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = 1024
	}
	if cfg.Turns == 0 {
		cfg.Turns = 4 * runtime.GOMAXPROCS(0)
	}
	if cfg.MaxTurn == 0 {
		cfg.MaxTurn = 50 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Listener{cfg: cfg, classes: map[string]*classListener{}, turns: make(chan struct{}, cfg.Turns)}
	for _, c := range classes {
		switch {
		case c.Name == "" || (c.TLS == nil) != c.Through:
			return nil, fmt.Errorf("wire: class %q: needs a name and a TLS configuration", c.Name)
		case (c.Anonymous || c.Through) != (len(c.Roles) == 0):
			return nil, fmt.Errorf("wire: class %s: takes either roles or anonymous clients", c.Name)
		case l.classes[c.Name] != nil:
			return nil, fmt.Errorf("wire: class %s is given twice", c.Name)
		}
		cl := &classListener{class: c, conns: make(chan net.Conn), closed: make(chan struct{})}
		if c.Through {
			l.through = true
		} else {
			cl.static = c.serverConfig(c.TLS)
		}
		l.classes[c.Name] = cl
	}
	tcp, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	if cfg.Lifeline {
		if own, err := lifeline.Listen(tcp.(*net.TCPListener)); err == nil {
			tcp = own
		} else {
			cfg.Log.Info("others learn some milliseconds later when this process is killed", "err", err)
		}
	}
	l.tcp = tcp
	for _, c := range l.classes {
		c.addr = tcp.Addr()
	}
	return l, nil
}

// Addr returns the address that is bound.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Class returns the listener of one class, nil if there is no such class. It
// yields *tls.Conn whose handshake is complete, or *Through. Closing it refuses further
// connections of the class and leaves the others alone; connections that nobody
// accepts within the handshake timeout are closed.
func (l *Listener) Class(name string) net.Listener {
	c := l.classes[name]
	if c == nil {
		return nil
	}
	return c
}

// Close stops listening. Run, which does this too, need not have run.
func (l *Listener) Close() error {
	for _, c := range l.classes {
		c.Close()
	}
	return l.tcp.Close()
}

// Run accepts connections until ctx ends or the port fails, then closes the
// listeners of all classes and returns when no handshake is under way any more.
// Connections that a class has been given are not touched.
func (l *Listener) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()

	slots := make(chan struct{}, l.cfg.MaxHandshakes)
	for {
		slots <- struct{}{} // freed by a handshake, each of which ends in time
		conn, err := l.tcp.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if tooManyFiles(err) {
				// The process is out of files. That passes, and the links that
				// stand are worth more than a restart.
				l.cfg.Log.Warn("cannot accept connections", "err", err)
				<-slots
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("wire: accept: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			l.handshake(ctx, conn)
		})
	}
}

func (l *Listener) handshake(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.HandshakeTimeout)
	defer cancel()
	var class *classListener
	end := func() {} // of the turn
	defer func() { end() }()
	seen := &Through{Conn: raw, known: !l.through}
	conn := tls.Server(seen, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, name := range hello.SupportedProtos {
				c := l.classes[name]
				switch {
				case c == nil:
				case !c.class.Through:
					class, seen.known, seen.Hello = c, true, nil
					if !c.class.Urgent {
						var err error
						if end, err = l.turn(ctx); err != nil {
							return nil, err
						}
					}
					return c.configFor(hello)
				case len(hello.SupportedProtos) == 1:
					class, seen.known, seen.mute = c, true, true
					return nil, errThrough
				}
			}
			return nil, fmt.Errorf("%w: %q", ErrUnknownClass, hello.SupportedProtos)
		},
	})
	err := conn.HandshakeContext(ctx)
	end()
	var done net.Conn = conn
	if errors.Is(err, errThrough) {
		seen.mute = false
		done, err = seen, nil
	}
	if err == nil && class.give(ctx, done) {
		return
	}
	raw.Close()
	if err != nil && !errors.Is(err, io.EOF) { // EOF: a port check that says nothing
		l.cfg.Log.Info("connection refused", "remote", raw.RemoteAddr(), "err", err)
	}
}

// turn waits until a handshake may compute, and returns what ends that. When ten
// thousand agents come at once, as they do after a controller has been away, their
// handshakes would otherwise stand before all else that this process has to do, and
// its peers would take it for dead.
func (l *Listener) turn(ctx context.Context) (end func(), err error) {
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		return func() {}, fmt.Errorf("wire: no turn for a handshake: %w", ctx.Err())
	}
	free := sync.OnceFunc(func() { <-l.turns })
	late := time.AfterFunc(l.cfg.MaxTurn, free)
	return func() { late.Stop(); free() }, nil
}

// serverConfig completes what the owner of the class has prepared.
func (c Class) serverConfig(base *tls.Config) *tls.Config {
	cfg := base.Clone()
	cfg.GetConfigForClient = nil
	cfg.NextProtos = []string{c.Name}
	cfg.MinVersion = tls.VersionTLS13
	// A resumed session would skip the certificate, and each ticket costs memory.
	cfg.SessionTicketsDisabled = true
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	if c.Anonymous {
		cfg.ClientAuth = tls.NoClientCert
		return cfg
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if base.VerifyConnection != nil {
			if err := base.VerifyConnection(cs); err != nil {
				return err
			}
		}
		id, err := pki.PeerIdentity(cs)
		if err != nil {
			return err
		}
		if !slices.Contains(c.Roles, id.Role) {
			return fmt.Errorf("wire: class %s does not take role %s", c.Name, id.Role)
		}
		return nil
	}
	return cfg
}

// classListener implements net.Listener for one class.
type classListener struct {
	class  Class
	static *tls.Config
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *classListener) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if c.class.TLS.GetConfigForClient == nil {
		return c.static, nil
	}
	cfg, err := c.class.TLS.GetConfigForClient(hello)
	if err != nil || cfg == nil {
		return c.static, err
	}
	return c.class.serverConfig(cfg), nil
}

// give reports whether somebody has taken the connection.
func (c *classListener) give(ctx context.Context, conn net.Conn) bool {
	select {
	case c.conns <- conn:
		return true
	case <-c.closed:
	case <-ctx.Done():
	}
	return false
}

// Accept implements net.Listener.
func (c *classListener) Accept() (net.Conn, error) {
	select {
	case <-c.closed:
		return nil, net.ErrClosed
	case conn := <-c.conns:
		return conn, nil
	}
}

// Close implements net.Listener.
func (c *classListener) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// Addr implements net.Listener.
func (c *classListener) Addr() net.Addr { return c.addr }
