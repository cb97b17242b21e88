package publish

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// sized is a result of n bytes.
func sized(n int) poll.Result { return completed(strings.Repeat("x", n)) }

func TestFinishStoresTheResultAndThenTheClosingRecord(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r := request("a")
		g.logs(r, "active", 1)
		const body = " {\"n\": 12345678901234567890, \"x\": \"<\\u003e\"}\n"
		result := completed(body)
		result.Elapsed = 1500 * time.Millisecond
		require.NoError(t, g.Finish(g.ctx, r, result))
		event, closing := g.ended("a")
		require.Equal(t, body, string(event.Data))
		require.Equal(t, Optional("active"), closing.Previous)
		require.Equal(t, int64(1500), closing.ElapsedMS)
		require.Empty(t, closing.Error)
		require.Equal(t, map[string]float64{
			"event state": 1, "event result": 1, "event closing": 1, "result completed": 1, "stored": 3,
		}, g.counts())
	})
}

func TestEveryKindOfEndIsStored(t *testing.T) {
	for _, status := range []poll.Status{poll.Failed, poll.TimedOut, poll.Expired, poll.Lost, poll.Cancelled} {
		t.Run(string(status), func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				result := failing()
				result.Status = status
				require.NoError(t, g.Finish(g.ctx, request("a"), result))
				event, closing := g.ended("a")
				require.Equal(t, string(status), event.Status)
				require.JSONEq(t, string(event.Data), string(closing.Error))
				require.Equal(t, 1.0, g.counts()["result "+string(status)])
			})
		})
	}
}

func TestAnAckLostWhileFinishingChangesNothing(t *testing.T) {
	for _, stream := range []string{"TINKER_RESULTS", "TINKER_STATES"} {
		t.Run(stream, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				cut := g.cut(`"stream":"` + stream + `"`)
				other := g.another()
				result := failing()
				result.Elapsed = time.Hour
				require.NoError(t, other.Finish(g.ctx, request("a"), result))
				require.Equal(t, 1, cut.cuts)
				_, closing := g.ended("a")
				require.Equal(t, time.Hour.Milliseconds(), closing.ElapsedMS, "the result is known to be our own")
				require.Equal(t, map[string]float64{
					"event result": 1, "event closing": 1, "result failed": 1, "stored": 1, "unknown": 1, "conflict": 1,
				}, other.counts())
			})
		})
	}
}

func TestTheSecondResultGivesWayToTheFirst(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		theirs, mine := request("a"), request("a")
		g.logs(mine, "active", 1)
		in(time.Second)
		_, err := g.storeResult(g.ctx, theirs, failing()) // and then it crashed
		require.NoError(t, err)
		in(time.Second)
		result := completed("another")
		result.Elapsed = time.Hour
		require.NoError(t, g.Finish(g.ctx, mine, result))
		event, closing := g.ended("a")
		require.Equal(t, "failed", event.Status)
		require.JSONEq(t, string(event.Data), string(closing.Error))
		require.Equal(t, time.Second.Milliseconds(), closing.ElapsedMS, "from the submission until it was stored")
		require.Equal(t, 0.0, g.counts()["result completed"])
	})
}

func TestTheSameBytesAtAnotherPollAreAnotherResult(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		first := completed("1")
		_, err := g.storeResult(g.ctx, request("a"), first)
		require.NoError(t, err)
		second := completed("1")
		second.Polls = first.Polls + 4
		require.NoError(t, g.Finish(g.ctx, request("a"), second))
		g.ended("a") // the closing record counts the polls of the result that is stored
		require.Equal(t, 1.0, g.counts()["result completed"])
	})
}

func TestFinishingAnEndedRequestStoresNothing(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("1")))
		in(time.Second)
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("2")))
		event, _ := g.ended("a")
		require.Equal(t, "1", string(event.Data))
		require.Equal(t, 1.0, g.counts()["event closing"])
	})
}

func TestTheClosingRecordGoesOnTopOfALateState(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		mine, theirs := request("a"), request("a")
		g.logs(mine, "active", 1)
		theirs.LogSeq, theirs.State.QueueState = 1, "active"
		g.logs(theirs, "paused_capacity", 2)
		require.NoError(t, g.Finish(g.ctx, mine, completed("1")))
		_, closing := g.ended("a")
		require.Equal(t, []string{"active", "paused_capacity", "completed"}, statuses(g.logOf("a")))
		require.Equal(t, Optional("paused_capacity"), closing.Previous, "the closing record is built anew")
	})
}

func TestNothingFollowsTheClosingRecord(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		stalled := request("a")
		g.logs(stalled, "active", 1)
		holder := request("a")
		_, err := g.Lookup(g.ctx, []*poll.Request{holder})
		require.NoError(t, err)
		require.NoError(t, g.Finish(g.ctx, holder, completed("1")))
		ended, err := g.Transition(g.ctx, stalled, transition("paused_capacity", "active", 2))
		require.NoError(t, err)
		require.True(t, ended)
		require.NoError(t, g.Finish(g.ctx, stalled, failing()))
		event, _ := g.ended("a")
		require.Equal(t, "completed", event.Status)
	})
}

func TestConcludeEndsWhatHasAResult(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r := request("a")
		g.logs(r, "active", 1)
		ended, err := g.Conclude(g.ctx, r)
		require.NoError(t, err)
		require.False(t, ended)
		require.Len(t, g.logOf("a"), 1)

		_, err = g.storeResult(g.ctx, request("a"), completed("1"))
		require.NoError(t, err)
		for range 2 {
			in(time.Second)
			ended, err = g.Conclude(g.ctx, r)
			require.NoError(t, err)
			require.True(t, ended)
			g.ended("a")
		}
		require.Equal(t, 1.0, g.counts()["event closing"])
	})
}
