package publish

import (
	"github.com/prometheus/client_golang/prometheus"

	"futurebridge/internal/poll"
)

// Metrics of one publisher; every label is there from the start, at zero.
type Metrics struct {
	events    map[Kind]prometheus.Counter
	results   map[poll.Status]prometheus.Counter
	publishes map[string]prometheus.Counter
}

// NewMetrics registers with reg; nil: nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridge_events_total", Help: "Events that this bridge stored, by kind.",
	}, []string{"kind"})
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridge_results_total", Help: "Results that this bridge stored, by how the request ended.",
	}, []string{"status"})
	publishes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridge_publishes_total",
		Help: "Attempts to publish, by outcome: stored, duplicate (stored before), conflict (another bridge was first), unknown (tried again), busy, refused (no room), too_large.",
	}, []string{"outcome"})
	m := &Metrics{
		events: map[Kind]prometheus.Counter{}, results: map[poll.Status]prometheus.Counter{}, publishes: map[string]prometheus.Counter{},
	}
	for _, kind := range []Kind{KindState, KindClosing, KindResult, kindRejected} {
		m.events[kind] = events.WithLabelValues(string(kind))
	}
	for _, status := range []poll.Status{poll.Completed, poll.Failed, poll.TimedOut, poll.Expired, poll.Lost, poll.Cancelled} {
		m.results[status] = results.WithLabelValues(string(status))
	}
	for _, outcome := range []string{"stored", "duplicate", "conflict", "unknown", "busy", "refused", "too_large"} {
		m.publishes[outcome] = publishes.WithLabelValues(outcome)
	}
	if reg != nil {
		reg.MustRegister(events, results, publishes)
	}
	return m
}
