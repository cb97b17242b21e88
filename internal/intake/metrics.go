package intake

import "github.com/prometheus/client_golang/prometheus"

// Metrics of one intake and its keeper.
type Metrics struct {
	deliveries, rejected, failedFetches, extensions, failedBursts prometheus.Counter
}

// NewMetrics registers with reg; nil: nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &Metrics{
		deliveries:    counter("bridge_deliveries_total", "Work items delivered to this bridge."),
		rejected:      counter("bridge_rejected_total", "Submissions that were no requests."),
		failedFetches: counter("bridge_failed_fetches_total", "Fetches of work that failed."),
		extensions:    counter("bridge_lease_extensions_total", "Leases extended."),
		failedBursts:  counter("bridge_failed_lease_bursts_total", "Bursts of lease extensions that may not have reached the server."),
	}
}
