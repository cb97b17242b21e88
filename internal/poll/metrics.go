package poll

import (
	"github.com/prometheus/client_golang/prometheus"

	"futurebridge/internal/api"
)

// Metrics of one engine; every label is there from the start, at zero.
type Metrics struct {
	polls    []prometheus.Counter // by api.Kind
	lateness prometheus.Histogram
	limit    prometheus.Gauge
	upstream []prometheus.Gauge // by phase
}

// NewMetrics registers with reg; nil: nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	polls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridge_polls_total", Help: "Polls of the upstream, by the outcome of each.",
	}, []string{"outcome"})
	m := &Metrics{
		polls: make([]prometheus.Counter, len(api.Kinds)),
		lateness: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bridge_poll_lateness_seconds",
			Help:    "How long after it was due a poll began: high when the limits are too tight.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
	}
	m.limit = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "bridge_poll_rate_limit", Help: "Polls per second that may go out now, by the fixed rate and by the one learnt; +Inf: as many as want to.",
	})
	upstream := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridge_upstream_state", Help: "1 for the state that the upstream is in: up, down (probed), slow_start (after down), paused (after a 429), held (the key is refused).",
	}, []string{"state"})
	for p := up; p <= held; p++ {
		m.upstream = append(m.upstream, upstream.WithLabelValues(p.String()))
	}
	for _, kind := range api.Kinds {
		m.polls[kind] = polls.WithLabelValues(kind.String())
	}
	if reg != nil {
		reg.MustRegister(polls, m.lateness, m.limit, upstream)
	}
	return m
}
