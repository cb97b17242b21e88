package poll

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// set sets the wall clock forward, or back, for the requests that an engine holds. In a bubble the clock cannot be set,
// but only a deadline is ever compared with it.
func set(e *Engine, forward time.Duration) {
	synctest.Wait()
	for _, r := range e.index {
		r.deadline -= int64(forward)
	}
	e.Oldest() // a word to its goroutine, which owns the rows
}

// TestAStepOfTheWallClockMovesDeadlinesAndNothingElse: what is past is ended, within a minute of the step; no wait
// becomes shorter, longer or endless, and none is over at once, again and again.
func TestAStepOfTheWallClockMovesDeadlinesAndNothingElse(t *testing.T) {
	long := state("paused_rate_limit", "", 5*time.Minute)
	for _, c := range []struct {
		name     string
		deadline time.Duration // from the submission
		answer   api.Outcome
		after    time.Duration
		step     time.Duration
		ended    time.Duration // from the submission, at the latest
		polls    int
	}{
		{"forward over the deadline, in a long wait", time.Hour, long, 30 * time.Second, 2 * time.Hour, time.Minute, 1},
		{"forward, not as far as the deadline", 10 * time.Minute, long, 30 * time.Second, 3 * time.Minute, 7 * time.Minute, 2},
		{"forward by days, as after a sleep of the machine", 7 * 24 * time.Hour, long, time.Hour, 8 * 24 * time.Hour, time.Hour + time.Minute, 12},
		{"back, in a wait that the deadline had cut", 3 * time.Minute, long, 2 * time.Minute, -20 * time.Minute, 23 * time.Minute, 5},
		{"back by a moment, in a wait that the deadline had cut", 3 * time.Minute, long, 2 * time.Minute, -time.Millisecond, 3*time.Minute + time.Second, 1},
		{"back, in a backoff that the deadline had cut", time.Minute, pending(), 50 * time.Second, -10 * time.Minute, 11 * time.Minute, 28},
		{"back by days", time.Hour, long, time.Minute, -7 * 24 * time.Hour, 7*24*time.Hour + time.Hour, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, sink := scripted(c.answer), &fakeSink{}
				e, stop := engine(t, s, sink, nil)
				r := request("a", &fakeLease{})
				r.State.Deadline = r.State.Submitted.Add(c.deadline)
				e.Add([]Request{r})
				pass(c.after)
				set(e, c.step)
				pass(c.ended - c.after)
				stop()
				require.Len(t, sink.results["a"], 1)
				require.Equal(t, TimedOut, sink.results["a"][0].Status)
				if c.step < 0 {
					require.GreaterOrEqual(t, sink.results["a"][0].Time.Sub(s.at[0]), c.deadline-c.step, "not before its deadline")
				}
				require.LessOrEqual(t, s.calls(), c.polls)
				for i, wait := range s.waits() {
					require.GreaterOrEqual(t, wait, max(c.answer.Hint, 500*time.Millisecond), "wait %d", i)
					require.LessOrEqual(t, wait, 331*time.Second, "wait %d", i)
				}
			})
		})
	}
}

func TestAStepOfTheWallClockLeavesTheGraceOfNotFoundAlone(t *testing.T) {
	since := time.Now()
	r := row{}
	r.pack(&Request{State: State{Submitted: since, notFoundSince: since}})
	since = r.unpack().State.notFoundSince
	require.NotEqual(t, now(since), since, "it still has its monotonic reading")
	require.Less(t, time.Since(since), time.Minute)
}
