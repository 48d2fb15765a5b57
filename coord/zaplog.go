package coord

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapToSlog makes etcd's logger write to log, from warnings on: below that
// etcd tells of its own routine. Nothing is written while quiet is set.
func zapToSlog(log *slog.Logger, quiet *atomic.Bool) *zap.Logger {
	return zap.New(slogCore{h: log.With("component", "etcd").Handler(), quiet: quiet})
}

// routine are etcd's warnings about how it is embedded here on purpose.
var routine = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// unwritten is the error that etcd warns of, and tells as an error, when it looks at
// the version of a new store whose backend was not written down yet. It looks again.
const unwritten = "missing term information"

// slogCore is a zapcore.Core on a slog.Handler. After Fatal and Panic entries
// zap itself ends or unwinds the process; no core can prevent that.
type slogCore struct {
	h     slog.Handler
	quiet *atomic.Bool
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !c.quiet.Load() && c.h.Enabled(context.Background(), slogLevel(l))
}

func (c slogCore) With(fs []zapcore.Field) zapcore.Core {
	return slogCore{h: c.h.WithAttrs(attrs(fs)), quiet: c.quiet}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !routine[e.Message] {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fs []zapcore.Field) error {
	as := attrs(fs)
	for _, a := range as {
		if a.Key == "error" && a.Value.String() == unwritten {
			return nil
		}
	}
	r := slog.NewRecord(e.Time, slogLevel(e.Level), e.Message, 0)
	r.AddAttrs(as...)
	return c.h.Handle(context.Background(), r)
}

func (slogCore) Sync() error { return nil }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// maxText is the longest text of etcd's that is logged.
const maxText = 500

func attrs(fs []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fs {
		f.AddTo(enc)
	}
	as := make([]slog.Attr, 0, len(enc.Fields))
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		v := enc.Fields[k]
		if text, ok := v.(string); ok && len(text) > maxText {
			v = text[:maxText] + "..." // etcd writes out whole requests, of hundreds of keys
		}
		as = append(as, slog.Any(k, v))
	}
	return as
}
