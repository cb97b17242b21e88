package poll

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// Polls that the upstream holds go out again ahead of their turn, but not so many of them that others get none.
func TestWhereTheLearntRateBindsNobodyWaitsTwiceAsLongEither(t *testing.T) {
	for _, c := range []struct {
		requests int
		hold     time.Duration
	}{{1000, 5 * time.Second}, {3000, 5 * time.Second}, {3000, 20 * time.Second}} {
		t.Run(fmt.Sprint(c.requests, " held for ", c.hold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rate = 100.0 // that the upstream takes, and as many at once after a second
				var mu sync.Mutex
				tokens, filled := rate, time.Now()
				takes := func() bool {
					mu.Lock()
					defer mu.Unlock()
					now := time.Now()
					tokens, filled = min(rate, tokens+rate*now.Sub(filled).Seconds()), now
					if tokens < 1 {
						return false
					}
					tokens--
					return true
				}
				begin := time.Now()
				due, worst, waited, polls := map[string]time.Time{}, map[string]time.Duration{}, time.Duration(0), 0
				e, stop := engine(t, retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
					mu.Lock()
					wait := time.Since(begin)
					if before, ok := due[q.RequestID]; ok {
						wait = time.Since(before)
					}
					if time.Since(begin) > time.Minute { // until then the rate is found out
						worst[q.RequestID] = max(worst[q.RequestID], wait)
						waited += wait
						polls++
					}
					mu.Unlock()
					o := pending()
					if takes() {
						time.Sleep(c.hold)
					} else {
						o = throttled(time.Second)
					}
					mu.Lock()
					due[q.RequestID] = time.Now()
					mu.Unlock()
					return o
				}), &fakeSink{}, func(c *Config) { c.MaxPolls = 1024 })
				crowd(e, c.requests)
				pass(20 * time.Minute)
				stop()
				require.Len(t, worst, c.requests)
				most := time.Duration(0)
				for id, w := range worst {
					most = max(most, w, 20*time.Minute-due[id].Sub(begin))
				}
				mean := waited / time.Duration(polls)
				t.Logf("%d polls, mean wait %v, worst %v", polls, mean, most)
				require.Less(t, most, 2*mean)
			})
		})
	}
}
