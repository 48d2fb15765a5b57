package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"uac/roles/wire"
)

// Config holds the settings of an agent. Start from [DefaultConfig].
type Config struct {
	// Name is the name in the agent's certificate.
	Name string
	// Version of the program, told to controllers.
	Version string
	// DataDir is the directory of the journal and the attempts, absolute and on a
	// local disk: network file systems promise too little about fsync and pipes.
	DataDir string
	// Servers are the controllers and relays to connect to, host:port, in order of
	// preference.
	Servers []string
	// Shuffle makes the order random at each start, to spread many agents.
	Shuffle bool
	// Labels describe the machine for the selectors of steps.
	Labels map[string]string

	// ReconnectMin and ReconnectMax bound the wait between two rounds through the
	// servers.
	ReconnectMin, ReconnectMax time.Duration
	// WelcomeTimeout bounds the time from the connection to the controller's
	// welcome.
	WelcomeTimeout time.Duration
	// ResendAfter is after how long without an acknowledgement the end of an
	// attempt is reported again.
	ResendAfter time.Duration

	// KillGrace is the time between TERM and KILL when the command names none.
	KillGrace time.Duration
	// MaxAttempts bounds how many attempts run at a time; others wait.
	MaxAttempts int
	// MaxQueued bounds how many attempts wait; others are refused.
	MaxQueued int

	// JournalSize is the size in bytes above which the journal is compacted, if
	// that makes it much smaller.
	JournalSize int64
	// TombstoneKeep is for how long a request is remembered after its owner said
	// that it is final, and TombstoneMax how many such requests at most.
	TombstoneKeep time.Duration
	TombstoneMax  int
	// OutputKeep is for how long the output of an acknowledged attempt is kept, and
	// OutputMaxBytes and OutputMaxAttempts how much of it at most, oldest first.
	OutputKeep        time.Duration
	OutputMaxBytes    int64
	OutputMaxAttempts int
	// SpoolLimit is how much output of one attempt, and SpoolTotal how much of all, may
	// wait to be collected. Attempts that write more are frozen until it is. They mean
	// nothing while nobody collects.
	SpoolLimit, SpoolTotal int64
}

// DefaultConfig returns the settings of an agent that was told nothing. Name,
// DataDir and Servers are to be filled in.
func DefaultConfig() Config {
	return Config{
		ReconnectMin:      50 * time.Millisecond,
		ReconnectMax:      5 * time.Second,
		WelcomeTimeout:    5 * time.Second,
		ResendAfter:       5 * time.Second,
		KillGrace:         10 * time.Second,
		MaxAttempts:       256,
		MaxQueued:         4096,
		JournalSize:       4 << 20,
		TombstoneKeep:     time.Hour,
		TombstoneMax:      10_000,
		OutputKeep:        7 * 24 * time.Hour,
		OutputMaxBytes:    1 << 30,
		OutputMaxAttempts: 10_000,
		SpoolLimit:        256 << 20,
		SpoolTotal:        2 << 30,
	}
}

// Validate returns everything that is wrong with the settings.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Name != "", "name: is empty")
	check(filepath.IsAbs(c.DataDir), "data_dir %q: must be an absolute path", c.DataDir)
	check(len(c.Servers) > 0, "servers: is empty")
	seen := map[string]bool{}
	for _, s := range c.Servers {
		host, port, err := net.SplitHostPort(s)
		check(err == nil && host != "" && port != "", "servers: %q is not host:port", s)
		check(!seen[s], "servers: %q is named twice", s)
		seen[s] = true
	}
	check(c.ReconnectMin > 0, "reconnect_min %v: must be positive", c.ReconnectMin)
	check(c.ReconnectMax >= c.ReconnectMin, "reconnect_max %v: must not be less than reconnect_min %v", c.ReconnectMax, c.ReconnectMin)
	check(c.WelcomeTimeout > 0, "welcome_timeout %v: must be positive", c.WelcomeTimeout)
	check(c.ResendAfter > 0, "resend_after %v: must be positive", c.ResendAfter)
	check(c.KillGrace > 0, "kill_grace %v: must be positive", c.KillGrace)
	check(c.MaxAttempts > 0, "max_attempts %d: must be positive", c.MaxAttempts)
	check(c.MaxQueued >= 0, "max_queued %d: must not be negative", c.MaxQueued)
	check(c.JournalSize > 0, "journal_size %d: must be positive", c.JournalSize)
	check(c.TombstoneKeep >= 0 && c.TombstoneMax >= 0, "tombstones: must not be kept for a negative time or number")
	check(c.OutputKeep >= 0 && c.OutputMaxBytes >= 0 && c.OutputMaxAttempts >= 0, "output: must not be kept for a negative time, size or number")
	check(c.SpoolLimit >= freeUnit, "spool_limit %d: must be at least %d, the smallest part that is freed", c.SpoolLimit, freeUnit)
	check(c.SpoolTotal >= c.SpoolLimit, "spool_total %d: must not be less than spool_limit %d", c.SpoolTotal, c.SpoolLimit)
	return errors.Join(errs...)
}

// Deps are what an agent needs from its surroundings.
type Deps struct {
	// Dial connects to the controller at a server's address, or through a relay there
	// to a controller that is none of not; see [wire.DialLink].
	Dial func(ctx context.Context, server string, not []string) (*wire.Link, error)
	// Log; nil discards.
	Log *slog.Logger
	// Metrics; nil discards.
	Metrics Metrics
	// Point, if set, is called at every named point of the way of a command (see
	// Points). Tests kill the process there.
	Point func(Point)

	// disk, if set, is put between the journal and its file: tests decide when what
	// is written has reached the disk.
	disk func(journalFile) journalFile
}

// Metric names something that an agent counts.
type Metric string

// The metrics. Those that end in _total only grow.
const (
	MetricSyncs       Metric = "agent_journal_syncs_total"       // fsyncs of the journal
	MetricRecords     Metric = "agent_journal_records_total"     // records appended
	MetricCompactions Metric = "agent_journal_compactions_total" // journals rewritten
	MetricStarted     Metric = "agent_attempts_started_total"    // wrappers started
	MetricEnded       Metric = "agent_attempts_ended_total"      // attempts that ended, in any way
	MetricReattached  Metric = "agent_attempts_reattached_total" // found running after a restart
	MetricUnknown     Metric = "agent_attempts_unknown_total"    // ended and nobody knows how
	MetricRunning     Metric = "agent_attempts_running"          // running now
	MetricQueued      Metric = "agent_attempts_queued"           // accepted and waiting now
	MetricFrozen      Metric = "agent_attempts_frozen"           // stopped until output is collected
	MetricRefused     Metric = "agent_commands_refused_total"    // commands refused
	MetricReports     Metric = "agent_reports_sent_total"        // reports sent, repetitions included
	MetricLinks       Metric = "agent_links"                     // links that stand now
	MetricLinksOpened Metric = "agent_links_opened_total"        // links welcomed
)

// Metrics takes what an agent counts. Implementations must be safe for concurrent
// use and fast.
type Metrics interface {
	// Add changes a metric by delta, which is negative only for those that do not
	// end in _total.
	Add(m Metric, delta float64)
}

type noMetrics struct{}

func (noMetrics) Add(Metric, float64) {}

// Point is a place where a process may die with the most interesting consequences.
type Point string

// Points lists all points, in the order in which an attempt meets them.
func Points() []Point {
	return []Point{
		pointIntentAppended, pointPrepared, pointIntentDurable, pointForking, pointForked, pointLaunched,
		pointExitSeen, pointOutputsRead, pointExitDurable, pointReportSent, pointAckAppended,
		pointNeverDurable, pointStopAppended, pointStopDurable, pointKillingDurable, pointFenceDurable,
		pointCompacting, pointCompacted,
	}
}

const (
	pointIntentAppended Point = "intent-appended"
	pointPrepared       Point = "prepared"
	pointIntentDurable  Point = "intent-durable"
	pointForking        Point = "forking"
	pointForked         Point = "forked"
	pointLaunched       Point = "launched"
	pointExitSeen       Point = "exit-seen"
	pointOutputsRead    Point = "outputs-read"
	pointExitDurable    Point = "exit-durable"
	pointReportSent     Point = "report-sent"
	pointAckAppended    Point = "ack-appended"
	pointNeverDurable   Point = "never-durable"
	pointStopAppended   Point = "stop-appended"
	pointStopDurable    Point = "stop-durable"
	pointKillingDurable Point = "killing-durable"
	pointFenceDurable   Point = "fence-durable"
	pointCompacting     Point = "compacting"
	pointCompacted      Point = "compacted"
)
