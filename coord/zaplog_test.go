package coord

import (
	"bytes"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestZapToSlog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
	quiet := new(atomic.Bool)
	log := zapToSlog(slog.New(handler), quiet)
	tests := map[string]struct {
		do   func()
		want string
	}{
		"below warnings": {func() { log.Info("routine"); log.Debug("detail") }, ""},
		"warning": {
			func() { log.Warn("slow", zap.Int("ms", 7), zap.String("a", "b c"), zap.Error(errors.New("why"))) },
			"level=WARN msg=slow component=etcd a=\"b c\" error=why ms=7\n",
		},
		"error with context": {
			func() { log.With(zap.String("id", "1")).Error("failed", zap.Bool("x", true)) },
			"level=ERROR msg=failed component=etcd id=1 x=true\n",
		},
		"above errors": {func() { log.DPanic("odd") }, "level=ERROR msg=odd component=etcd\n"},
		"on purpose":   {func() { log.Warn("simple token is not cryptographically signed") }, ""},
		"of a new store": {func() {
			log.Error("failed to update storage version", zap.Error(errors.New(unwritten)))
		}, ""},
		"while it stops": {func() {
			quiet.Store(true)
			defer quiet.Store(false)
			log.With(zap.String("id", "1")).Error("closed")
		}, ""},
	}
	for name, tc := range tests {
		out.Reset()
		tc.do()
		if diff := cmp.Diff(tc.want, out.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
