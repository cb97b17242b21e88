package poll

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func replyAt(at time.Duration, took time.Duration, o api.Outcome) Reply {
	return Reply{Start: epoch.Add(at), End: epoch.Add(at + took), Outcome: o}
}

func TestWaitsOfPendingRequestsCountFromThePollsStart(t *testing.T) {
	p := DefaultPolicy()
	_, d := p.Step(State{}, replyAt(0, 300*ms, pending()), 0)
	require.Equal(t, 200*ms, d.Wait)
	_, d = p.Step(State{}, replyAt(0, 900*ms, pending()), 0)
	require.Zero(t, d.Wait, "the poll took longer than the wait")
}

func TestHintsCountFromTheAnswer(t *testing.T) {
	p := DefaultPolicy()
	_, d := p.Step(State{}, replyAt(0, 900*ms, state("active", "", 5*time.Second)), 0)
	require.Equal(t, 5*time.Second, d.Wait)
}

func TestAHeldPollStartsTheBackoffAnew(t *testing.T) {
	p := DefaultPolicy()
	s := State{}
	var d Decision
	for range 5 {
		s, _ = p.Step(s, replyAt(0, 0, pending()), 0)
	}
	s, d = p.Step(s, replyAt(0, time.Second, pending()), 0)
	require.Zero(t, d.Wait)
	_, d = p.Step(s, replyAt(0, 0, pending()), 0)
	require.Equal(t, 500*ms, d.Wait)
}

func TestJitterIsOnlyAdded(t *testing.T) {
	p := DefaultPolicy()
	for _, o := range []api.Outcome{pending(), state("paused_capacity", "", 0), state("active", "", 3*time.Second), fault(500, 1), status(api.Unauthorized, 401), status(api.NotFound, 404)} {
		_, exact := p.Step(State{}, replyAt(0, 0, o), 0)
		for range 100 {
			_, d := p.Step(State{}, replyAt(0, 0, o), rand.Float64())
			require.GreaterOrEqual(t, d.Wait, exact.Wait)
			require.LessOrEqual(t, d.Wait, exact.Wait+exact.Wait/10)
		}
	}
}

func TestAFailedPollChangesNoQueueState(t *testing.T) {
	p := DefaultPolicy()
	s, d := p.Step(State{}, replyAt(0, 0, state("paused_capacity", "full", 0)), 0)
	require.Equal(t, "paused_capacity", d.Emit.QueueState)
	for _, o := range []api.Outcome{fault(500, 1), unreachable(), status(api.Throttled, 429), status(api.Malformed, 200), status(api.Unauthorized, 401), status(api.NotFound, 404), failed(api.Server)} {
		s, d = p.Step(s, replyAt(0, 0, o), 0)
		require.Empty(t, d.Emit.QueueState)
		require.Equal(t, "paused_capacity", s.QueueState)
		require.Equal(t, "full", s.Reason)
	}
	_, d = p.Step(s, replyAt(0, 0, state("paused_capacity", "full", 0)), 0)
	require.Empty(t, d.Emit.QueueState, "it is still the same state")
}

func TestNotFoundAnswersAskForALookAtTheResult(t *testing.T) {
	p := DefaultPolicy()
	for _, o := range []api.Outcome{status(api.NotFound, 404), status(api.Expired, 410)} {
		s, d := p.Step(State{}, replyAt(0, 0, o), 0)
		require.True(t, d.Look)
		require.Empty(t, d.Terminal.Status)
		_, d = p.Step(s, replyAt(10*time.Second, 0, o), 0)
		require.True(t, d.Look, "also before it is believed")
		require.NotEmpty(t, d.Terminal.Status)
	}
}

func TestNotFoundEndsAsWhatItIs(t *testing.T) {
	p := DefaultPolicy()
	p.NotFoundGrace = 0
	broke := api.Outcome{Kind: api.NoAnswer, BrokeOff: true}
	for _, c := range []struct {
		name  string
		state State
		first *api.Outcome
		then  api.Outcome
		want  Status
	}{
		{"404", State{}, nil, status(api.NotFound, 404), Failed},
		{"410", State{}, nil, status(api.Expired, 410), Expired},
		{"404 of a request that was delivered before", State{Redelivered: true}, nil, status(api.NotFound, 404), Lost},
		{"410 of a request that was delivered before", State{Redelivered: true}, nil, status(api.Expired, 410), Lost},
		{"404 after an answer broke off", State{}, &broke, status(api.NotFound, 404), Lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.state
			if c.first != nil {
				s, _ = p.Step(s, replyAt(0, time.Second, *c.first), 0)
			}
			_, d := p.Step(s, replyAt(0, 0, c.then), 0)
			require.Equal(t, c.want, d.Terminal.Status)
		})
	}
}

func TestADeadlineEndsWhatHasNoResultInHand(t *testing.T) {
	p := DefaultPolicy()
	s := State{Submitted: epoch, Deadline: epoch.Add(10 * time.Second)}
	_, d := p.Step(s, replyAt(8*time.Second, 0, state("active", "", time.Minute)), 0.5)
	require.Empty(t, d.Terminal.Status)
	require.Equal(t, 63*time.Second, d.Wait, "how much of it is left before the deadline is the wall clock's to say, until it is over")
	_, d = p.Step(s, replyAt(8*time.Second, 2*time.Second, pending()), 0)
	require.Equal(t, TimedOut, d.Terminal.Status)
	require.Equal(t, 10*time.Second, d.Terminal.Elapsed)
	_, d = p.Step(s, replyAt(8*time.Second, 3*time.Second, completed("{}")), 0)
	require.Equal(t, Completed, d.Terminal.Status, "a result in hand beats the deadline")
}

func TestOnlyIdenticalBodiesInARowCount(t *testing.T) {
	p := DefaultPolicy()
	s := State{}
	var d Decision
	for i := range 100 {
		s, d = p.Step(s, replyAt(0, 0, fault(500, uint64(1+i%2))), 0)
		require.Empty(t, d.Terminal.Status, "poll %d: the bodies differ", i)
	}
	for i := range 10 {
		s, d = p.Step(s, replyAt(0, 0, fault(500, 9)), 0)
		require.Equal(t, i == 9, d.Terminal.Status == Failed, "poll %d", i)
	}
}

func TestStepAllocatesNothing(t *testing.T) {
	p := DefaultPolicy()
	outcomes := []api.Outcome{pending(), state("paused_capacity", "full", time.Second), fault(500, 1), unreachable(), failed(api.Server), completed("{}"), status(api.NotFound, 404)}
	s := State{Submitted: epoch, Deadline: epoch.Add(time.Hour)}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		state := s
		for _, o := range outcomes {
			state, _ = p.Step(state, replyAt(0, 0, o), 0.5)
		}
	}))
}

func TestTheHeapGivesTheEarliestFirst(t *testing.T) {
	var h dueHeap
	var want []int64
	for range 5000 {
		due := rand.Int64N(1000)
		want = append(want, due)
		h.push(entry{due, nil})
		if rand.IntN(3) == 0 {
			slices.Sort(want)
			require.Equal(t, want[0], h.pop().due)
			want = want[1:]
		}
	}
	slices.Sort(want)
	for _, due := range want {
		require.Equal(t, due, h.pop().due)
	}
	require.Empty(t, h)
}

func TestTheCadenceFollowsTheMedianOfAType(t *testing.T) {
	c := &cadence{types: map[string]*durations{}}
	waits := func(c *cadence, requestType string) (waits []time.Duration) {
		p := c.pace(DefaultPolicy(), requestType)
		for n, age := range []time.Duration{0, 20 * time.Second, 28 * time.Second, 10 * time.Minute, -time.Hour} {
			_, d := p.Step(State{Submitted: epoch.Add(-age), pendings: uint8(3 * n)}, replyAt(0, 0, pending()), 0)
			waits = append(waits, d.Wait)
		}
		return waits
	}
	seconds := func(all ...float64) (waits []time.Duration) {
		for _, s := range all {
			waits = append(waits, time.Duration(s*float64(time.Second)))
		}
		return waits
	}
	unknown := seconds(0.5, 4, 30, 30, 30)
	require.Equal(t, unknown, waits(c, "Sample"))
	for range cadenceKnown {
		c.learn("Sample", 25*time.Second)
		c.learn("Train", time.Second)
		c.learn("Unload", time.Hour)
	}
	require.Equal(t, seconds(5, 5, 7, 30, 5), waits(c, "Sample"), "a fifth of the median, then a quarter of its age, whatever the clocks say")
	require.Equal(t, seconds(2, 5, 7, 30, 2), waits(c, "Train"), "not less than two seconds")
	require.Equal(t, seconds(30, 30, 30, 30, 30), waits(c, "Unload"), "not more than the policy's")
	require.Equal(t, unknown, waits(c, "another"))
	for range cadenceSamples {
		c.learn("Sample", 50*time.Second)
	}
	require.Equal(t, seconds(10, 10, 10, 30, 10), waits(c, "Sample"), "the median follows")
	p := c.pace(DefaultPolicy(), "Unload")
	_, d := p.Step(State{Submitted: epoch}, replyAt(0, 0, api.Outcome{Kind: api.ServerFault, HTTPStatus: 503, Failure: &api.Failure{}}), 0)
	require.Equal(t, 500*time.Millisecond, d.Wait, "a fault has nothing to do with it")
	var fixed *cadence
	fixed.learn("Sample", time.Second)
	require.Equal(t, unknown, waits(fixed, "Sample"))
}

func BenchmarkStep(b *testing.B) {
	p := DefaultPolicy()
	s := State{Submitted: epoch, Deadline: epoch.Add(time.Hour)}
	reply := replyAt(0, 0, state("paused_capacity", "full", time.Second))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = p.Step(s, reply, 0.5)
	}
}
