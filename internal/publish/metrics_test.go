package publish

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
)

func valueOf(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	require.NoError(t, c.Write(&m))
	return m.GetCounter().GetValue()
}

func TestEveryLabelIsThereFromTheStart(t *testing.T) {
	reg := prometheus.NewRegistry()
	NewMetrics(reg)
	families, err := reg.Gather()
	require.NoError(t, err)
	labels := map[string][]string{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			require.Zero(t, m.GetCounter().GetValue())
			labels[family.GetName()] = append(labels[family.GetName()], m.GetLabel()[0].GetValue())
		}
	}
	require.Equal(t, map[string][]string{
		"bridge_events_total":    {"closing", "rejected", "result", "state"},
		"bridge_results_total":   {"cancelled", "completed", "expired", "failed", "lost", "timed_out"},
		"bridge_publishes_total": {"busy", "conflict", "duplicate", "refused", "stored", "too_large", "unknown"},
	}, labels)
}
