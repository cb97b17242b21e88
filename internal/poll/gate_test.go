package poll

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestTheGateBoundsPollsInFlight(t *testing.T) {
	g := newGate(2, 0, DefaultPolicy())
	ok, _ := g.admit(epoch)
	require.True(t, ok)
	ok, _ = g.admit(epoch)
	require.True(t, ok)
	ok, next := g.admit(epoch)
	require.False(t, ok)
	require.Zero(t, next, "only the end of a poll helps")
	o := pending()
	g.observe(&o, true, epoch)
	ok, _ = g.admit(epoch)
	require.True(t, ok)
}

func TestNoWindowHasMorePollsThanTheRateAllows(t *testing.T) {
	const rate = 200.0
	g := newGate(1<<20, rate, DefaultPolicy())
	var at []time.Time
	o := pending()
	for now := epoch; now.Before(epoch.Add(5 * time.Second)); now = now.Add(time.Millisecond) {
		for {
			ok, next := g.admit(now)
			if !ok {
				require.True(t, next.After(now), "it says when to come again")
				break
			}
			g.observe(&o, true, now)
			at = append(at, now)
		}
	}
	require.InDelta(t, rate*5, len(at), 5, "and the rate is used")
	for i := range at {
		for j := i; j < len(at); j += 7 {
			most := at[j].Sub(at[i]).Seconds()*rate + g.burst()
			require.LessOrEqual(t, float64(j-i+1), most+1e-6)
		}
	}
}

func TestARefusedKeyHoldsEverybodyButOneProbe(t *testing.T) {
	g := newGate(100, 0, DefaultPolicy())
	unauthorized, fine := status(api.Unauthorized, 401), pending()
	now := epoch
	for range 3 { // three polls were in flight when the key went bad
		ok, _ := g.admit(now)
		require.True(t, ok)
	}
	for range 3 {
		g.observe(&unauthorized, true, now)
	}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		ok, next := g.admit(now)
		require.False(t, ok)
		require.Equal(t, now.Add(wait*time.Second), next)
		now = next
		ok, _ = g.admit(now)
		require.True(t, ok, "one probe")
		ok, next = g.admit(now)
		require.False(t, ok, "and no second one")
		require.Zero(t, next)
		g.observe(&unauthorized, true, now)
	}
	now = now.Add(30 * time.Second)
	ok, _ := g.admit(now)
	require.True(t, ok)
	g.observe(&fine, true, now)
	require.False(t, g.held)
	for range 50 {
		ok, _ = g.admit(now)
		require.True(t, ok, "the key is good again")
	}
}

func TestAThrottledPollMakesTheWholeBridgeWait(t *testing.T) {
	g := newGate(100, 0, DefaultPolicy())
	ok, _ := g.admit(epoch)
	require.True(t, ok)
	g.observe(&api.Outcome{Kind: api.Throttled, Hint: 7 * time.Second}, true, epoch)
	ok, next := g.admit(epoch.Add(6 * time.Second))
	require.False(t, ok)
	require.Equal(t, epoch.Add(7*time.Second), next)
	ok, _ = g.admit(next)
	require.True(t, ok)
}
