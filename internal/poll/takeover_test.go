package poll

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestTheLogGoesOnFromWhatItSaysWhenAStateCouldNotBeLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e *Engine
		first, second := &fakeLease{}, &fakeLease{}
		var logged []Transition
		sink := &fakeSink{transition: func(_ context.Context, _ *Request, tr Transition) (bool, error) {
			if !first.untrusted.Swap(true) { // the lease ran out, and the next delivery came to this very bridge
				e.Add([]Request{request("a", second)})
				return false, ErrLeaseLost
			}
			logged = append(logged, tr)
			return false, nil
		}}
		e, stop := engine(t, scripted(state("paused_capacity", "busy", 0), state("active", "", 0), completed("x")), sink, nil)
		e.Add([]Request{request("a", first)})
		pass(time.Minute)
		stop()
		require.Len(t, logged, 1)
		require.Equal(t, "active", logged[0].QueueState)
		require.Empty(t, logged[0].Previous, "the state before it is in no log")
		require.EqualValues(t, 1, first.drops.Load())
		require.EqualValues(t, 1, second.acks.Load())
	})
}

func TestARequestThatIsTakenOverIsPolledAsRarelyAsItsAgeAsks(t *testing.T) {
	for _, c := range []struct {
		name  string
		state State
		age   time.Duration
		polls int // in a minute
	}{
		{"polled by nobody yet, however long that took", State{}, time.Hour, 7},
		{"delivered again", State{Redelivered: true}, time.Hour, 2},
		{"with a log", State{Polls: 12, QueueState: "active"}, time.Hour, 2},
		{"young", State{Redelivered: true}, 2 * time.Second, 5},
		{"from a clock that is ahead", State{Redelivered: true}, -time.Hour, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				polls := 0
				e, stop := engine(t, retrieverFunc(func(context.Context, api.Query) api.Outcome {
					polls++
					return state("active", "", 0)
				}), &fakeSink{}, nil)
				r := request("a", &fakeLease{})
				submitted := time.Now().Add(-c.age).Round(0)
				c.state.Submitted, c.state.Deadline = submitted, submitted.Add(24*time.Hour)
				r.State = c.state
				e.Add([]Request{r})
				pass(time.Minute)
				stop()
				require.Equal(t, c.polls, polls)
			})
		})
	}
}

func TestTheDoublingGoesOnWhereItWouldBe(t *testing.T) {
	p := DefaultPolicy()
	for n, waited := uint8(0), time.Duration(0); n < 6; n++ {
		require.Equal(t, n, p.pendingsAt(waited), waited)
		waited += backoff(p.BackoffInitial, p.BackoffMax, n)
		require.Equal(t, n, p.pendingsAt(waited-1), waited)
	}
	require.Equal(t, p.BackoffMax, backoff(p.BackoffInitial, p.BackoffMax, p.pendingsAt(7*24*time.Hour)))
	require.Zero(t, p.pendingsAt(-time.Hour))
	p.BackoffInitial = p.BackoffMax
	require.Zero(t, p.pendingsAt(time.Hour))
}
