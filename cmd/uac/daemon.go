package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"uac/config"
	"uac/roles"
)

// daemon is the composition root of one role: it builds the node's components,
// runs them and returns when all of them have ended. A node that was asked to
// stop by ctx returns nil.
type daemon func(ctx context.Context, d daemonDeps) error

// daemonDeps is what a composition root starts from.
type daemonDeps struct {
	cfg     config.Config
	origins config.Origins
	log     *slog.Logger
	build   buildInfo
	// endNow ends the process at once, or replaces it by a new one.
	endNow func(restart bool)
	// point is called at the named points of all components. It is nil in every
	// program but those that are built to be broken (uacfault.go).
	point func(name string)
}

// points makes the points of one component known to who waits at them.
func points[P ~string](d daemonDeps) func(P) {
	if d.point == nil {
		return nil
	}
	return func(p P) { d.point(string(p)) }
}

// daemonOptions are the flags of a daemon, and of the verbs that look at a
// daemon's settings.
type daemonOptions struct {
	file  string
	flags []config.Flag
}

// settingFlags are the settings with a flag of their own. All others are set
// by --set.
var settingFlags = []struct{ flag, key, usage string }{
	{"role", "node.role", "what this node is: `ROLE` is controller, watch, relay or agent"},
	{"name", "node.name", "`NAME` of this node (default: the host name)"},
	{"data-dir", "node.data_dir", "`DIR` for everything that this node must not lose"},
	{"join", "pki.join", "one-time `TOKEN` that gets an agent or relay its certificates; UAC_PKI_JOIN keeps it out of the process list"},
	{"log-level", "log.level", "`LEVEL` of the log: debug, info, warn or error"},
}

// addFlags adds the flags of a daemon.
func (o *daemonOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.file, "config", "", "`FILE` with the settings (default: "+config.DefaultFile+", if it exists)")
	for _, s := range settingFlags {
		fs.Var(&settingFlag{o: o, flag: s.flag, key: s.key}, s.flag, s.usage)
	}
	fs.Var(&settingFlag{o: o, flag: "set"}, "set", "`KEY=VALUE` of any setting, for example cluster.silence_timeout=100ms (repeatable)")
	fs.SortFlags = false
}

// given reports whether the command line asks for a daemon.
func (o *daemonOptions) given() bool { return o.file != "" || len(o.flags) > 0 }

// settingFlag makes a flag a setting of the command line's layer.
type settingFlag struct {
	o    *daemonOptions
	flag string
	key  string // "" if the value names it: KEY=VALUE
}

// String implements pflag.Value.
func (f *settingFlag) String() string { return "" }

// Type implements pflag.Value.
func (f *settingFlag) Type() string { return "string" }

// Set implements pflag.Value.
func (f *settingFlag) Set(text string) error {
	if err := checkUTF8(text); err != nil {
		return err
	}
	setting := config.Flag{Key: f.key, Value: text, Name: "--" + f.flag}
	if f.key == "" {
		var ok bool
		if setting.Key, setting.Value, ok = strings.Cut(text, "="); !ok {
			return errors.New("must be KEY=VALUE")
		}
	}
	f.o.flags = append(f.o.flags, setting)
	return nil
}

// load reads the settings that the options and the environment describe.
func (o *daemonOptions) load(a *app) (config.Config, config.Origins, error) {
	cfg, origins, err := config.Load(config.Options{File: o.file, Env: a.environ, Flags: o.flags})
	if err != nil {
		return cfg, origins, usageError("%w", err)
	}
	return cfg, origins, nil
}

// runDaemon runs a node until it ends or ctx asks it to.
func runDaemon(ctx context.Context, a *app, opts daemonOptions, daemons map[roles.Role]daemon) error {
	cfg, origins, err := opts.load(a)
	if err != nil {
		return err
	}
	serve := daemons[cfg.Node.Role]
	if serve == nil {
		return usageError("role %s is not supported by this version of uac", cfg.Node.Role)
	}
	d := daemonDeps{cfg: cfg, origins: origins, build: thisBuild(), endNow: endNow, point: faultPoint(cfg.Node)}
	d.log = newLogger(a, cfg.Log).With("node", cfg.Node.Name)
	for _, w := range cfg.Warnings() {
		d.log.Warn("questionable configuration", "problem", w)
	}
	if cfg.Node.Role == roles.RoleController || cfg.Node.Role == roles.RoleWatch {
		if err := noCoreDumps(); err != nil {
			d.log.Warn("core dumps not switched off: after a crash they delay a fail-over", "error", err)
		}
	}
	d.log.Info("starting", "role", cfg.Node.Role, "cluster", cfg.Cluster.Name, "version", d.build.Version, "data_dir", cfg.Node.DataDir)
	err = serve(ctx, d)
	if errors.Is(err, errRestart) {
		d.log.Info("starting again")
		reexec()
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", cfg.Node.Role, cfg.Node.Name, err)
	}
	d.log.Info("stopped")
	return nil
}

// noCoreDumps makes a crash of this process quick. While the kernel writes a
// core dump, the connections stay open by which others see that the process is
// dead. A limit of one byte also stops dumps that go to a program, which a limit
// of zero does not (core(5)). Agents are left alone: steps inherit the limit.
func noCoreDumps() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	limit.Cur = min(1, limit.Max)
	return unix.Setrlimit(unix.RLIMIT_CORE, &limit)
}

// listen binds the address of a setting. An address that cannot be bound is a
// mistake in the settings, found before anything was started.
func (d *daemonDeps) listen(ctx context.Context, key, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, d.listenError(key, addr, err)
	}
	return l, nil
}

// free reports whether an address can be bound that a component binds itself,
// later and less clearly.
func (d *daemonDeps) free(ctx context.Context, key, addr string) error {
	l, err := d.listen(ctx, key, addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// listenError says in words why the address of a setting cannot be bound.
func (d *daemonDeps) listenError(key, addr string, err error) error {
	reason := err.Error()
	for _, known := range []struct {
		errno  syscall.Errno
		reason string
	}{
		{syscall.EADDRINUSE, "is in use by another process"},
		{syscall.EADDRNOTAVAIL, "is not an address of this machine"},
		{syscall.EACCES, "is not permitted"},
	} {
		if errors.Is(err, known.errno) {
			reason = known.reason
		}
	}
	origin := d.origins.Of(key)
	where := []string{origin.String(), key, addr + " " + reason}
	if origin.Source == config.FromDefault {
		where = slices.Delete(where, 0, 1)
	}
	return usageError("%s", strings.Join(where, ": "))
}
