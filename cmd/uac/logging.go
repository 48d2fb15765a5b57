package main

import (
	"log/slog"
	"time"

	"github.com/lmittmann/tint"

	"uac/config"
)

// newLogger returns the logger of a daemon: for people on a terminal, JSON for
// everything else, unless the settings say otherwise.
func newLogger(a *app, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // Validate allows only known words
	}
	if c.Format == "json" || c.Format == "auto" && !a.stderr.terminal {
		return slog.New(slog.NewJSONHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(a.stderr, &tint.Options{
		Level:      level,
		TimeFormat: time.StampMilli,
		NoColor:    !a.paint(a.stderr).on,
	}))
}
