package publish

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

func TestLookupTellsHowFarEachRequestIs(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		waiting := request("waiting")
		g.logs(waiting, "active", 1)
		tr := transition("paused_rate_limit", "active", 7)
		tr.Reason = "slow down"
		_, err := g.Transition(g.ctx, waiting, tr)
		require.NoError(t, err)
		require.NoError(t, g.whole("ended"))
		require.NoError(t, g.Finish(g.ctx, request("failed at once"), failing()))
		crashed := request("crashed")
		g.logs(crashed, "active", 1)
		_, err = g.storeResult(g.ctx, crashed, completed("1"))
		require.NoError(t, err)
		_, err = g.storeResult(g.ctx, request("crashed at once"), failing())
		require.NoError(t, err)

		in(time.Second)
		ids := []string{"fresh", "waiting", "ended", "failed at once", "crashed", "crashed at once", "also.fresh"}
		requests := make([]*poll.Request, len(ids))
		for i, id := range ids {
			requests[i] = request(id)
		}
		before := g.counts()
		ended, err := g.Lookup(g.ctx, requests)
		require.NoError(t, err)
		require.Equal(t, []bool{false, false, true, true, true, true, false}, ended)
		for _, i := range []int{0, 6} {
			require.Equal(t, *request(ids[i]), *requests[i], "nothing is known of a fresh id")
		}
		require.Equal(t, waiting.LogSeq, requests[1].LogSeq)
		require.Equal(t, poll.State{Submitted: requests[1].State.Submitted, QueueState: "paused_rate_limit", Reason: "slow down", Polls: 7}, requests[1].State)
		for _, id := range ids[2:6] {
			g.ended(id)
		}
		require.Equal(t, before["event closing"]+2, g.counts()["event closing"], "only those that lacked it get a closing record")
		_, closing := g.ended("crashed at once")
		require.NotEmpty(t, closing.Error)

		again := []*poll.Request{request("crashed"), request("crashed at once")}
		ended, err = g.Lookup(g.ctx, again)
		require.NoError(t, err)
		require.Equal(t, []bool{true, true}, ended)
		require.Equal(t, before["event closing"]+2, g.counts()["event closing"])

		g.logs(requests[1], "active", 8) // the one that waits goes on
		require.Equal(t, []string{"active", "paused_rate_limit", "active"}, statuses(g.logOf("waiting")))
	})
}

func TestLookupOfNothingAsksNothing(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		ended, err := g.Lookup(g.ctx, nil)
		require.NoError(t, err)
		require.Empty(t, ended)
	})
}

func TestBridgesThatLookAtOnceCloseALogOnce(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		_, err := g.storeResult(g.ctx, request("contested"), completed("1"))
		require.NoError(t, err)
		g.race(8, func(_ int, g *rig, r *poll.Request) error {
			ended, err := g.Lookup(g.ctx, []*poll.Request{r})
			if err == nil && !ended[0] {
				return fmt.Errorf("it has ended")
			}
			return err
		})
		g.ended("contested")
	})
}

func TestAThousandRequestsAreLookedUpAtOnce(t *testing.T) {
	// The last one is a connection that carries hardly anything.
	for payload, most := range map[int32]int{1 << 20: 3, 64 << 10: 20, 4 << 10: 500} {
		t.Run(fmt.Sprint(payload), func(t *testing.T) { lookUpThousand(t, payload, most) })
	}
}

func lookUpThousand(t *testing.T, payload int32, most int) {
	bubble(t, setup{server: server.Options{MaxPayload: payload, MaxPending: 64 << 20}}, func(t *testing.T, g *rig) {
		requests := make([]*poll.Request, MaxLookup)
		for i := range requests {
			// The longest tokens there are.
			requests[i] = request(fmt.Sprint(i, ".", strings.Repeat(".", maxTokenIDLen-5)))
			if i%2 == 0 {
				g.logs(request(requests[i].ID), "active", i+1)
			}
		}
		asked := g.listen("$JS.API.DIRECT.GET.TINKER_STATES")
		begin := time.Now()
		ended, err := g.Lookup(g.ctx, requests)
		require.NoError(t, err)
		require.Zero(t, time.Since(begin))
		require.LessOrEqual(t, len(asked()), most)
		for i, r := range requests {
			require.False(t, ended[i])
			require.Equal(t, i%2 == 0, r.LogSeq != 0)
			if i%2 == 0 {
				require.Equal(t, i+1, r.State.Polls)
			}
		}
	})
}

func TestLookupReadsOnWhereOneAnswerEnds(t *testing.T) {
	bubble(t, setup{maxInline: 1 << 30}, func(t *testing.T, g *rig) {
		const n, size = 40, 500 << 10 // two and a half times what one answer holds
		requests := make([]*poll.Request, n)
		for i := range requests {
			requests[i] = request(fmt.Sprint("r", i))
			if i == 7 {
				continue // one of them has no result
			}
			_, err := g.storeResult(g.ctx, request(requests[i].ID), sized(size+i))
			require.NoError(t, err)
		}
		asked := g.listen("$JS.API.DIRECT.GET.TINKER_RESULTS")
		ended, err := g.Lookup(g.ctx, requests)
		require.NoError(t, err)
		require.Len(t, asked(), 3)
		for i, r := range requests {
			require.Equal(t, i != 7, ended[i])
			if i != 7 {
				_, closing := g.ended(r.ID)
				require.Equal(t, int64(size+i), closing.Result.Bytes)
			}
		}
	})
}
