package relay

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"uac/roles/wire"
)

// metrics reads what a relay measures when it is asked for.
type metrics struct {
	r                                           *Relay
	links, carried, bytes, refused, joins, trip *prometheus.Desc
}

// RegisterMetrics registers what the relay measures of itself.
func (r *Relay) RegisterMetrics(reg prometheus.Registerer) error {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("uac_relay_"+name, help, labels, nil)
	}
	return reg.Register(&metrics{
		r:       r,
		links:   desc("links", "Links that the relay carries now."),
		carried: desc("carried_total", "Connections that it has carried, those of machines that join included."),
		bytes:   desc("bytes_total", "Bytes that it has carried, from nodes or to nodes.", "direction"),
		refused: desc("refused_total", "Asks that it has refused.", "reason"),
		joins:   desc("joins_total", "Machines without a certificate that it has connected (passed) or not (refused), because they were too many.", "result"),
		trip:    desc("round_trip_seconds", "Idle round trip to a controller within the last 30 seconds: min, median or max.", "controller", "stat"),
	})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.links, m.carried, m.bytes, m.refused, m.joins, m.trip} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	r := m.r
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.links, float64(r.Links()))
	counter(m.carried, r.total.Load())
	counter(m.bytes, r.fromNodes.Load(), "from_nodes")
	counter(m.bytes, r.toNodes.Load(), "to_nodes")
	for reason := range r.refused {
		if reason != int(wire.RelayAnswer_REASON_UNSPECIFIED) {
			counter(m.refused, r.refused[reason].Load(), strings.ToLower(wire.RelayAnswer_Reason(reason).String()))
		}
	}
	counter(m.joins, r.joined.Load(), "passed")
	counter(m.joins, r.joinsRefused.Load(), "refused")
	for controller, rt := range r.RoundTrips() {
		gauge(m.trip, rt.Min.Seconds(), controller, "min")
		gauge(m.trip, rt.Median.Seconds(), controller, "median")
		gauge(m.trip, rt.Max.Seconds(), controller, "max")
	}
}

// Links is how many links the relay carries.
func (r *Relay) Links() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links
}

// RoundTrips returns the idle round trip to every controller that has answered lately.
func (r *Relay) RoundTrips() map[string]RoundTrip {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]RoundTrip{}
	for _, s := range r.servers {
		for u := range s.uplinks {
			if rt := u.window.stats(now); rt.Samples > 0 {
				all[u.controller] = rt
			}
		}
	}
	return all
}
