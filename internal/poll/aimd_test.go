package poll

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// clocked is an aimd with a clock that tests turn.
type clocked struct {
	aimd
	now time.Time
}

func newClocked() *clocked { return &clocked{newAIMD(), epoch} }

// answers has n polls go out over a while, each answered at once, whether the limit lets them or not.
func (c *clocked) answers(n int, over time.Duration, o api.Outcome, again bool) {
	for range n {
		c.now = c.now.Add(over / time.Duration(n))
		c.ready(c.now)
		c.spend(c.now)
		c.observe(&o, c.now, again, c.now)
	}
}

// rate is the limit at the moment.
func (c *clocked) rate() float64 {
	c.grow(c.now)
	return c.limit
}

func TestThereIsNoLimitUntilSomethingIsRefused(t *testing.T) {
	c := newClocked()
	for _, o := range []api.Outcome{pending(), requestTimeout(), completed("{}"), failed(api.Server), status(api.NotFound, 404), status(api.Refused, 422)} {
		c.answers(1000, time.Second, o, false)
		require.True(t, math.IsInf(c.rate(), 1), "%v", o)
		require.Equal(t, up, c.phase)
	}
}

func TestARefusalCutsTheRateByAFifthEach200msAtMost(t *testing.T) {
	c := newClocked()
	c.answers(1000, time.Second, pending(), false)
	c.answers(1, ms, throttled(0), false)
	require.InDelta(t, 800, c.rate(), 5, "of the rate that was measured")
	c.answers(50, 190*ms, throttled(0), false)
	require.InDelta(t, 820, c.rate(), 20, "not yet again")
	before := c.rate()
	c.answers(1, 20*ms, throttled(0), false)
	require.InDelta(t, 0.8*before, c.rate(), 30)

	late := throttled(0)
	before = c.rate()
	c.now = c.now.Add(300 * ms)
	c.observe(&late, c.now.Add(-400*ms), false, c.now)
	require.GreaterOrEqual(t, c.rate(), before, "it was sent at the rate from before the cut")
}

func TestTheRateComesBackFastLingersAndGrowsOn(t *testing.T) {
	c := newClocked()
	c.answers(1000, time.Second, pending(), false)
	c.answers(1, ms, throttled(0), false)
	var rates []float64
	for range 30 {
		c.now = c.now.Add(time.Second)
		rates = append(rates, c.rate())
	}
	require.InDelta(t, 950, rates[2], 25)
	require.InDelta(t, 1000, rates[8], 10)
	require.InDelta(t, 1020, rates[11], 20)
	require.Greater(t, rates[29], 2000.0)
	c.now = c.now.Add(10 * time.Minute)
	require.True(t, math.IsInf(c.rate(), 1), "it is forgotten")
}

func TestWhatTheUpstreamAsksForIsNoTimeToGrow(t *testing.T) {
	c := newClocked()
	c.answers(1000, time.Second, pending(), false)
	c.answers(1, ms, throttled(0), false)
	c.rest(c.now.Add(time.Minute))
	c.now = c.now.Add(time.Minute)
	require.InDelta(t, 800, c.rate(), 5)
}

func TestMostOfAWindowMustBeFaults(t *testing.T) {
	for _, c := range []struct {
		name          string
		faults, again int // of 100 answers in half a second
		fault         api.Outcome
		want          phase
		limited       bool
	}{
		{"none", 0, 0, fault(500, 1), up, false},
		{"40% of failed jobs", 40, 0, fault(500, 1), up, false},
		{"60% of failed jobs", 60, 0, fault(500, 1), down, false},
		{"60% that said so before", 0, 60, fault(500, 1), up, false},
		{"60% of connections", 0, 60, unreachable(), down, false},
		{"all, that said so before", 0, 100, fault(500, 1), down, false},
		{"3% from a gateway", 3, 0, fault(503, 1), up, false},
		{"10% from a gateway", 10, 0, fault(503, 1), up, true},
		{"10% from a gateway, that said so before", 0, 10, fault(503, 1), up, false},
		{"redirects and pages", 80, 0, status(api.Malformed, 302), down, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newClocked()
			for i := 0; i < 400 && a.phase == up; i++ {
				o, again := pending(), false
				if i*37%100 < c.faults+c.again {
					o, again = c.fault, c.again > 0
				}
				a.answers(1, 5*ms, o, again)
			}
			require.Equal(t, c.want, a.phase)
			require.Equal(t, c.limited, !math.IsInf(a.limit, 1))
		})
	}
}

func TestFewPollsAreNoLoadWhateverTheyBring(t *testing.T) {
	c := newClocked()
	c.answers(1000, 1000*time.Second, unreachable(), false)
	require.Equal(t, up, c.phase)
}

func TestADownUpstreamIsProbedAndThenStartedSlowly(t *testing.T) {
	c := newClocked()
	c.answers(1000, time.Second, unreachable(), false)
	require.Equal(t, down, c.phase)

	gone, fine := unreachable(), pending()
	probe := func(o *api.Outcome, after time.Duration) {
		ok, next := c.ready(c.now)
		require.False(t, ok)
		c.now = next
		ok, _ = c.ready(c.now)
		require.True(t, ok)
		c.spend(c.now)
		began := c.now
		if o != nil {
			c.now = c.now.Add(after)
			c.observe(o, began, false, c.now)
		}
	}
	begin := c.now
	for range 40 {
		probe(&gone, 10*ms)
	}
	require.InDelta(t, 10, c.now.Sub(begin).Seconds(), 0.5, "four a second")
	begin = c.now
	for range 10 {
		probe(nil, 0)
	}
	require.InDelta(t, 10, c.now.Sub(begin).Seconds(), 1, "one a second, if they hang")

	old := c.now.Add(-time.Hour)
	c.observe(&fine, old, false, c.now)
	require.Equal(t, down, c.phase, "what was sent before says nothing")
	probe(&fine, 10*ms)
	require.Equal(t, slowStart, c.phase)
	require.InDelta(t, slowRate, c.rate(), 1)
	polls := 0
	for begin = c.now; c.now.Sub(begin) < 3*time.Second; {
		if ok, _ := c.ready(c.now); ok {
			c.spend(c.now)
			c.observe(&fine, c.now, false, c.now)
			polls++
		}
		c.now = c.now.Add(ms)
	}
	require.Greater(t, c.rate(), 500.0)
	require.Less(t, polls, 2000)
	c.now = c.now.Add(2 * time.Second)
	require.True(t, math.IsInf(c.rate(), 1), "nothing waits for it, and nothing was refused: there is no limit again")
}

func TestASlowStartIsNoLessSlowAfterARest(t *testing.T) {
	for name, o := range map[string]api.Outcome{"429": throttled(time.Minute), "401": status(api.Unauthorized, 401)} {
		t.Run(name, func(t *testing.T) {
			g := newGate(1000, 0, DefaultPolicy())
			now, gone := epoch, unreachable()
			for range 100 {
				now = now.Add(10 * ms)
				ok, _ := g.admit(now)
				if !ok {
					break
				}
				g.observe(&gone, now, false, now)
			}
			require.Equal(t, down, g.aimd.phase)
			now = now.Add(time.Second)
			ok, _ := g.admit(now)
			require.True(t, ok)
			g.observe(&o, now, false, now)
			ok, next := g.admit(now)
			require.False(t, ok)
			fine := pending()
			for now, ok = next, true; ok; {
				if ok, _ = g.admit(now); ok {
					g.observe(&fine, now, false, now)
				}
			}
			require.Equal(t, slowStart, g.aimd.phase)
			require.Less(t, g.aimd.limit, 20.0)
		})
	}
}

func TestAFalseRecoverySaysLittleOfWhatTheUpstreamTakes(t *testing.T) {
	c := newClocked()
	c.answers(1000, time.Second, pending(), false)
	c.answers(1, ms, throttled(0), false)
	ceiling := c.ceiling
	for range 3 {
		c.answers(200, time.Second, unreachable(), false)
		require.Equal(t, down, c.phase)
		c.now = c.now.Add(time.Second)
		c.ready(c.now)
		c.answers(1, ms, pending(), false) // one answer, and then none again
		require.Equal(t, slowStart, c.phase)
	}
	require.Equal(t, ceiling, c.ceiling)
}
