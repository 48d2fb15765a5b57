package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts calls. The nil value counts nothing.
type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	streams map[string]bool // patterns whose duration says nothing
}

func newMetrics(reg prometheus.Registerer, streams map[string]bool) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "uac_api_calls_total", Help: "Calls of the API by route and status code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "uac_api_call_seconds", Help: "Time to answer a call by route, without streams.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15},
		}, []string{"route"}),
		streams: streams,
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(route string, status int, took time.Duration) {
	if m == nil {
		return
	}
	if route == "" {
		route = "none" // not the path: anyone could make as many series as they like
	}
	m.calls.WithLabelValues(route, strconv.Itoa(status)).Inc()
	if !m.streams[route] {
		m.seconds.WithLabelValues(route).Observe(took.Seconds())
	}
}
