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
				pass(10 * time.Minute)
				stop()
				require.Len(t, worst, c.requests)
				most := time.Duration(0)
				for id, w := range worst {
					most = max(most, w, 10*time.Minute-due[id].Sub(begin))
				}
				mean := waited / time.Duration(polls)
				t.Logf("%d polls, mean wait %v, worst %v", polls, mean, most)
				require.Less(t, most, 2*mean)
			})
		})
	}
}

// However many requests an upstream gets wrong, and however: the others end.
func TestRequestsThatGoWrongHoldNobodyUp(t *testing.T) {
	const sound = 20
	// So many that are refused before anything is accepted are what a refused key, or a limit on all, looks like.
	const everybody = 100
	for name, wrong := range map[string]func(i int) api.Outcome{
		"pages":                  func(int) api.Outcome { return status(api.Malformed, 200) },
		"a 500 of its own each":  func(i int) api.Outcome { return fault(500, uint64(i+1)) },
		"a gateway's 503":        func(int) api.Outcome { return fault(503, 1) },
		"a 503 for five minutes": func(int) api.Outcome { o := fault(503, 1); o.Hint = 5 * time.Minute; return o },
		"connections that break": func(int) api.Outcome { return unreachable() },
		"the key is refused":     func(int) api.Outcome { return status(api.Unauthorized, 401) },
		"a 429 for five minutes": func(int) api.Outcome { return throttled(5 * time.Minute) },
		"no result is found":     func(int) api.Outcome { return status(api.NotFound, 404) },
		"one after the other": func(i int) api.Outcome {
			return []api.Outcome{status(api.Malformed, 200), fault(500, 9), status(api.Unauthorized, 401), throttled(time.Minute)}[i%4]
		},
		"jobs that failed for now": func(int) api.Outcome { return failed(api.Server) },
	} {
		for _, wrongs := range []int{1, 30, 300} {
			if k := wrong(wrongs - 1).Kind; wrongs > everybody && (k == api.Unauthorized || k == api.Throttled) {
				continue
			}
			t.Run(fmt.Sprint(wrongs, " ", name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var mu sync.Mutex
					ended := map[string]time.Duration{}
					begin := time.Now()
					e, stop := engine(t, retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
						time.Sleep(20 * ms)
						var number int
						if n, _ := fmt.Sscanf(q.RequestID, "req-%d", &number); n == 1 {
							return wrong(number)
						}
						if time.Since(begin) < 5*time.Second {
							return pending()
						}
						return completed("{}")
					}), &fakeSink{finish: func(_ context.Context, r *Request, result Result) error {
						mu.Lock()
						defer mu.Unlock()
						if result.Status == Completed {
							ended[r.ID] = time.Since(begin)
						}
						return nil
					}}, nil)
					crowd(e, wrongs)
					pass(time.Second)
					for i := range sound {
						e.Add([]Request{request(fmt.Sprint("sound-", i), &fakeLease{})})
					}
					pass(2 * time.Minute)
					stop()
					last := time.Duration(0)
					for _, at := range ended {
						last = max(last, at)
					}
					t.Logf("%d of %d ended, the last one after %v", len(ended), sound, last)
					require.Len(t, ended, sound)
					require.Less(t, last, time.Minute)
				})
			})
		}
	}
}
