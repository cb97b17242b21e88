package poll

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// limited is an upstream that answers so many polls a second and refuses the others, and that is down for a while.
type limited struct {
	rate    float64
	latency time.Duration
	answer  func(q api.Query, at time.Duration) api.Outcome // to what is within the rate
	refusal api.Outcome                                     // to what is beyond it
	outage  func(at time.Duration) (api.Outcome, bool)

	mu     sync.Mutex
	start  time.Time
	bucket bucket
	polls  []polled
}

type polled struct {
	at   time.Duration
	kind api.Kind
}

func (u *limited) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	at := time.Since(u.start)
	u.mu.Lock()
	o, down := api.Outcome{}, false
	if u.outage != nil {
		o, down = u.outage(at)
	}
	if !down {
		if ok, _ := u.bucket.ready(time.Now(), u.rate); ok {
			u.bucket.tokens--
			o = u.answer(q, at)
		} else {
			o = u.refusal
		}
	}
	u.polls = append(u.polls, polled{at, o.Kind})
	u.mu.Unlock()
	time.Sleep(u.latency)
	return o
}

// between counts polls, and those that were refused.
func (u *limited) between(from, to time.Duration) (all, refused int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.polls {
		if p.at >= from && p.at < to {
			all++
			if p.kind == api.Throttled || p.kind == api.ServerFault {
				refused++
			}
		}
	}
	return all, refused
}

// most is the largest number of polls in a second.
func (u *limited) most(from, to time.Duration) (most int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	first := 0
	for i, p := range u.polls {
		if p.at < from || p.at >= to {
			first = i + 1
			continue
		}
		for u.polls[first].at <= p.at-time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

func throttled(hint time.Duration) api.Outcome {
	return api.Outcome{Kind: api.Throttled, HTTPStatus: 429, Hint: hint}
}

// crowd adds n requests.
func crowd(e *Engine, n int) {
	leases := make([]fakeLease, n)
	batch := make([]Request, n)
	for i := range batch {
		batch[i] = request(fmt.Sprint("req-", i), &leases[i])
	}
	e.Add(batch)
}

// ends is a Sink that notes when requests end.
type ends struct {
	fakeSink
	mu sync.Mutex
	at []time.Time
}

func (s *ends) Finish(context.Context, *Request, Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Now())
	return nil
}

// within is how long after begin this part of n requests had ended.
func (s *ends) within(t *testing.T, part float64, n int, begin time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortFunc(s.at, time.Time.Compare)
	k := int(part*float64(n)+0.5) - 1
	require.Greater(t, len(s.at), k, "they ended")
	return s.at[k].Sub(begin)
}

func TestAfterAnOutageEverybodyIsAnsweredAndFewAreRefused(t *testing.T) {
	const n, rate, length = 20_000, 1000.0, time.Minute
	for _, c := range []struct {
		name    string
		begin   time.Duration // 0: it is down when the bridge comes, and nothing is known of it
		gone    api.Outcome
		refusal api.Outcome
		latency time.Duration
	}{
		{"503", 30 * time.Second, fault(503, 1), throttled(time.Second), 50 * ms},
		{"500, and it answers at once", 30 * time.Second, fault(500, 1), throttled(0), 2 * ms},
		{"no connection", 30 * time.Second, unreachable(), throttled(time.Second), 200 * ms},
		{"503, and 503 when it is too much", 30 * time.Second, fault(503, 1), fault(503, 2), 50 * ms},
		{"while a backlog is worked off", 12 * time.Second, fault(502, 1), throttled(time.Second), 50 * ms},
		{"while a backlog is worked off, and 503 when it is too much", 12 * time.Second, unreachable(), fault(503, 1), 2 * ms},
		{"from the start", 0, unreachable(), throttled(time.Second), 50 * ms},
		{"from the start, and it answers at once", 0, fault(503, 1), fault(503, 1), 2 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &limited{rate: rate, latency: c.latency, start: time.Now(), refusal: c.refusal}
				u.outage = func(at time.Duration) (api.Outcome, bool) { return c.gone, at >= c.begin && at < c.begin+length }
				u.answer = func(_ api.Query, at time.Duration) api.Outcome {
					if at < c.begin {
						return pending()
					}
					return completed("{}")
				}
				sink := &ends{}
				e, stop := engine(t, u, sink, func(c *Config) { c.MaxPolls = 1024 })
				crowd(e, n)
				pass(c.begin + length)
				recovered := time.Now()
				pass(2 * time.Minute)

				require.LessOrEqual(t, u.most(c.begin+2*time.Second, c.begin+length), 5, "polls in a second, once it is known to be down")
				all, refused := u.between(c.begin+length, time.Hour)
				share, p99 := float64(refused)/float64(all), sink.within(t, 0.99, n, recovered)
				t.Logf("%.2f%% refused, 99%% answered after %v", 100*share, p99)
				require.LessOrEqual(t, share, 0.02)
				require.LessOrEqual(t, p99.Seconds(), 1.4*n/rate)
				require.Zero(t, e.Held())
				stop()
			})
		})
	}
}

func TestAFloodIsWorkedOffNearTheRateThatTheUpstreamTakes(t *testing.T) {
	const n, rate = 20_000, 1000.0
	for _, refusal := range []api.Outcome{throttled(time.Second), throttled(0), fault(503, 1)} {
		t.Run(fmt.Sprint(refusal.HTTPStatus, " for ", refusal.Hint), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &limited{rate: rate, latency: 50 * ms, start: time.Now(), refusal: refusal}
				u.answer = func(api.Query, time.Duration) api.Outcome { return completed("{}") }
				sink := &ends{}
				e, stop := engine(t, u, sink, func(c *Config) { c.MaxPolls = 1024 })
				crowd(e, n)
				pass(2 * time.Minute)
				all, refused := u.between(0, time.Hour)
				p99 := sink.within(t, 0.99, n, u.start)
				t.Logf("%d polls, %d refused, 99%% answered after %v", all, refused, p99)
				require.LessOrEqual(t, p99.Seconds(), 1.4*n/rate)
				require.Less(t, float64(refused), 0.1*n, "the first burst tells what it takes")
				stop()
			})
		})
	}
}

func TestAHealthyUpstreamIsNotLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &limited{rate: 1e6, latency: 10 * ms, start: time.Now()}
		polls := 0
		u.answer = func(q api.Query, _ time.Duration) api.Outcome {
			switch polls++; {
			case polls%50 == 0: // the noise of any network
				return fault(502, 1)
			case polls%73 == 0:
				return unreachable()
			case q.Iteration < 3:
				return requestTimeout()
			case q.Iteration == 3:
				return failed(api.Server)
			}
			return completed("{}")
		}
		sink := &ends{}
		e, stop := engine(t, u, sink, func(c *Config) { c.MaxPolls = 1024 })
		crowd(e, 5000)
		pass(20 * time.Second)
		require.Zero(t, e.Held())
		require.True(t, math.IsInf(e.gate.aimd.limit, 1))
		stop()
	})
}

// Halving the rate at each fault let a few jobs that failed stop all others.
func TestJobsThatFailForEverDoNotSlowTheOthersDown(t *testing.T) {
	for _, code := range []int{500, 503} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n, failing = 2000, 400 // each fifth
				u := &limited{rate: 1e6, latency: 50 * ms, start: time.Now()}
				u.answer = func(q api.Query, at time.Duration) api.Outcome {
					var number int
					_, err := fmt.Sscanf(q.RequestID, "req-%d", &number)
					require.NoError(t, err)
					switch {
					case number%5 == 0:
						return fault(code, uint64(number+1))
					case at < 40*time.Second:
						return pending()
					}
					return completed("{}")
				}
				sink := &ends{}
				e, stop := engine(t, u, sink, nil)
				crowd(e, n)
				pass(39 * time.Second)
				require.Equal(t, up, e.gate.aimd.phase)
				pass(35 * time.Second) // the longest wait, and some
				require.GreaterOrEqual(t, len(sink.at), n-failing)
				stop()
			})
		})
	}
}

func TestAPollThatIsHeldDoesNotWaitForTheRateOfQuickOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 200 requests are held for 20 to 30 s each time; 20,000 quick ones find out that the upstream takes 100 polls a second.
		u := &limited{rate: 100, latency: 20 * ms, start: time.Now(), refusal: throttled(100 * ms)}
		u.answer = func(api.Query, time.Duration) api.Outcome { return pending() }
		var mu sync.Mutex
		last, gaps := map[string]time.Time{}, []time.Duration{}
		hold := func(number int) time.Duration { return 20*time.Second + time.Duration(number)*50*ms }
		upstream := retrieverFunc(func(ctx context.Context, q api.Query) api.Outcome {
			if q.RequestType != "held" {
				return u.Retrieve(ctx, q)
			}
			mu.Lock()
			if before, ok := last[q.RequestID]; ok {
				gaps = append(gaps, time.Since(before))
			}
			mu.Unlock()
			var number int
			_, err := fmt.Sscanf(q.RequestID, "held-%d", &number)
			require.NoError(t, err)
			time.Sleep(hold(number))
			mu.Lock()
			last[q.RequestID] = time.Now()
			mu.Unlock()
			return pending()
		})
		e, stop := engine(t, upstream, &fakeSink{}, func(c *Config) { c.MaxPolls = 1024 })
		leases := make([]fakeLease, 200)
		follow := 0 // polls that follow another one of their request in three minutes, if none waits
		for i := range leases {
			follow += int(3 * time.Minute / hold(i))
			r := request(fmt.Sprint("held-", i), &leases[i])
			r.About = &About{Type: "held"}
			e.Add([]Request{r})
		}
		crowd(e, 20_000)
		pass(3 * time.Minute)
		require.False(t, math.IsInf(e.gate.aimd.limit, 1))
		require.Greater(t, e.due.length, 10_000, "the quick ones wait")
		require.Greater(t, len(gaps), follow*19/20, "but for some that end during a 429's pause, none waits among the quick ones")
		require.Less(t, slices.Max(gaps), 200*ms)
		stop()
	})
}
