package poll

import (
	"math"
	"math/rand/v2"
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
	g.observe(&o, epoch, false, epoch)
	ok, _ = g.admit(epoch)
	require.True(t, ok)
}

func TestTheFixedRateIsUsed(t *testing.T) {
	const rate = 200.0
	g := newGate(1<<20, rate, DefaultPolicy())
	polls, o := 0, pending()
	for now := epoch; now.Before(epoch.Add(5 * time.Second)); now = now.Add(7 * ms) {
		for {
			ok, next := g.admit(now)
			if !ok {
				require.True(t, next.After(now), "it says when to come again")
				break
			}
			g.observe(&o, now, false, now)
			polls++
		}
	}
	require.InDelta(t, rate*5, polls, 5)
}

// Whatever rate, whatever answers, whenever asked, and however polls follow each other.
func TestNoWindowHasMorePollsThanTheRateAllows(t *testing.T) {
	answers := []api.Outcome{
		pending(), pending(), completed("{}"), fault(500, 1), fault(503, 2), unreachable(), throttled(0), throttled(50 * ms),
		status(api.Unauthorized, 401), {Kind: api.NoAnswer},
	}
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 0))
		rate := math.Exp(random.Float64()*14 - 5) // 0.007 to 8,000 a second
		good := random.IntN(len(answers)) + 1
		pause := random.Float64() * 20 / rate
		g := newGate(1+random.IntN(100), rate, DefaultPolicy())
		var out []time.Time // when each poll in flight began
		var at []time.Duration
		for now := epoch; len(at) < 500 && now.Before(epoch.Add(100*time.Hour)); {
			if random.IntN(10) == 0 {
				g.share(1 + random.IntN(3)) // of no more than the rate
			}
			ok, next := g.admit(now)
			if !ok && random.IntN(4) == 0 {
				ok = g.readmit(now)
			}
			if ok {
				at, out = append(at, now.Sub(epoch)), append(out, now)
			}
			for len(out) > 0 && (random.IntN(3) == 0 || !ok) {
				o := answers[random.IntN(good)]
				g.observe(&o, out[0], random.IntN(2) == 0, now)
				out = out[1:]
			}
			switch {
			case ok:
			case !next.IsZero() && random.IntN(2) == 0:
				now = next
			default:
				now = now.Add(time.Duration(random.Float64() * pause * float64(time.Second)))
			}
		}
		require.Greater(t, len(at), 20, "seed %d", seed)
		for i := range at {
			for j := i; j < len(at); j++ {
				most := (at[j]-at[i]).Seconds()*rate + max(1, rate/50)
				if float64(j-i+1) > most+1e-6 {
					require.Fail(t, "too many", "seed %d: %d polls in %v at %v a second", seed, j-i+1, at[j]-at[i], rate)
				}
			}
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
		g.observe(&unauthorized, now, false, now)
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
		g.observe(&unauthorized, now, false, now)
	}
	now = now.Add(30 * time.Second)
	ok, _ := g.admit(now)
	require.True(t, ok)
	g.observe(&fine, now, false, now)
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
	g.observe(&api.Outcome{Kind: api.Throttled, Hint: 7 * time.Second}, epoch, false, epoch)
	ok, next := g.admit(epoch.Add(6 * time.Second))
	require.False(t, ok)
	require.Equal(t, epoch.Add(7*time.Second), next)
	ok, _ = g.admit(next)
	require.True(t, ok)
}
