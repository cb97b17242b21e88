package poll

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestTheUpstreamsStateAndTheRateAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Pointer[api.Outcome]
		says := func(o api.Outcome) { answer.Store(&o) }
		upstream := retrieverFunc(func(context.Context, api.Query) api.Outcome { return *answer.Load() })
		reg := prometheus.NewRegistry()
		var log bytes.Buffer
		says(pending())
		e, stop := engine(t, upstream, &fakeSink{}, func(c *Config) {
			c.PollsPerSecond, c.Metrics, c.Log = 500, NewMetrics(reg), slog.New(slog.NewTextHandler(&log, nil))
		})
		shows := func(state string, limit float64) {
			t.Helper()
			families, err := reg.Gather()
			require.NoError(t, err)
			found := false
			for _, f := range families {
				switch f.GetName() {
				case "bridge_upstream_state":
					for _, m := range f.GetMetric() {
						is := m.GetLabel()[0].GetValue() == state
						found = found || is
						require.Equal(t, is, m.GetGauge().GetValue() == 1, m)
					}
				case "bridge_poll_rate_limit":
					limited := f.GetMetric()[0].GetGauge().GetValue()
					if state == "slow_start" { // on its way there
						require.Positive(t, limited)
						require.LessOrEqual(t, limited, limit)
					} else {
						require.InDelta(t, limit, limited, limit/10)
					}
				}
			}
			require.True(t, found)
		}
		crowd(e, 5000)
		pass(20 * time.Second)
		shows("up", 500)
		says(unreachable())
		pass(time.Minute)
		shows("down", 4)
		require.Contains(t, log.String(), "the upstream is down")
		says(pending())
		pass(time.Second)
		shows("slow_start", 500)
		require.Contains(t, log.String(), "answers again")
		pass(time.Minute)
		shows("up", 500)
		says(throttled(5 * time.Minute))
		pass(time.Minute)
		shows("paused", 0)
		says(status(api.Unauthorized, 401))
		pass(10 * time.Minute)
		shows("held", 1.0/30)
		stop()
	})
}
