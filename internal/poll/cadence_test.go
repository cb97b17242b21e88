package poll

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// played is what jobs cost: polls of each, and how long after a job's end that was seen.
type played struct {
	polls    float64
	p50, p99 time.Duration
}

// play has an engine poll 5,000 jobs of exponential lengths, handed over in a minute, as `bridge bench mixed` does: a fifth is paused first.
func play(t *testing.T, mean time.Duration, adaptive bool, seed uint64) (p played) {
	const n, lengths = 5000, 50
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		polls, begun, late := 0, make([]time.Time, n), []time.Duration{}
		e, stop := engine(t, retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
			i, err := strconv.Atoi(q.RequestID)
			require.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			polls++
			job := rand.New(rand.NewPCG(seed, uint64(i)))
			kind := job.IntN(lengths)
			length := time.Duration(float64(mean) * (job.Float64()/lengths - math.Log(1-(float64(kind)+0.5)/lengths)))
			pause := time.Duration(0)
			if kind%10 == 3 || kind%10 == 7 {
				pause = mean / 5
			}
			switch age := time.Since(begun[i]); {
			case age >= pause+length:
				late = append(late, age-pause-length)
				return completed("{}")
			case age >= pause:
				return state("active", "", 0)
			case kind%10 == 3:
				return state("paused_rate_limit", "", 0)
			default:
				return state("paused_capacity", "", pause)
			}
		}), &fakeSink{}, func(c *Config) { c.Adaptive, c.MaxPolls = adaptive, 1000 })
		for i := range n {
			mu.Lock()
			begun[i] = time.Now()
			mu.Unlock()
			r := request(fmt.Sprint(i), &fakeLease{})
			r.About = &About{Type: "Sample"}
			e.Add([]Request{r})
			pass(time.Minute / n)
		}
		for e.Held() > 0 {
			pass(time.Second)
		}
		stop()
		slices.Sort(late)
		require.Len(t, late, n)
		p = played{float64(polls) / n, late[n/2], late[n*99/100]}
	})
	return p
}

func TestAKnownPaceFindsResultsEarlierForAsManyPolls(t *testing.T) {
	for mean, most := range map[time.Duration][3]float64{
		10 * time.Second: {1.07, 0.52, 0.35}, // of polls, of the median lateness, of its 99th percentile
		20 * time.Second: {1.17, 0.5, 0.65},
		time.Minute:      {1.2, 0.5, 1},
	} {
		fixed, adaptive := play(t, mean, false, 1), play(t, mean, true, 1)
		t.Logf("jobs of %v: %v and %v", mean, fixed, adaptive)
		require.LessOrEqual(t, adaptive.polls/fixed.polls, most[0], "jobs of %v", mean)
		require.LessOrEqual(t, adaptive.p50.Seconds()/fixed.p50.Seconds(), most[1], "jobs of %v", mean)
		require.LessOrEqual(t, adaptive.p99.Seconds()/fixed.p99.Seconds(), most[2], "jobs of %v", mean)
	}
}
