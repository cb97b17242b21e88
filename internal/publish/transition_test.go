package publish

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// logs appends a transition that must be stored.
func (g *rig) logs(r *poll.Request, state string, polls int) {
	g.t.Helper()
	ended, err := g.Transition(g.ctx, r, transition(state, r.State.QueueState, polls))
	require.NoError(g.t, err)
	require.False(g.t, ended)
	r.State.QueueState = state
}

func TestTransitionsAreLoggedInOrder(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		a, b := request("a"), request("b")
		g.logs(a, "active", 1)
		g.logs(b, "active", 1)
		g.logs(a, "paused_rate_limit", 2)
		g.logs(a, "active", 3)
		log := g.logOf("a")
		require.Equal(t, []string{"active", "paused_rate_limit", "active"}, statuses(log))
		require.Equal(t, []uint64{1, 3, 4}, []uint64{log[0].seq, log[1].seq, log[2].seq})
		require.Equal(t, uint64(4), a.LogSeq)
		require.Equal(t, uint64(2), b.LogSeq)
		require.Equal(t, map[string]float64{"event state": 4, "stored": 4}, g.counts())
		require.Empty(t, g.Trouble())
	})
}

func TestALongLogKeepsItsLatestStates(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r := request("a")
		for i := range 70 {
			g.logs(r, []string{"active", "paused_capacity"}[i%2], i+1)
		}
		log := g.logOf("a")
		require.Len(t, log, 64)
		require.Equal(t, 7, log[0].Polls)
		require.NoError(t, g.Finish(g.ctx, r, completed("1")))
		require.Equal(t, KindClosing, g.logOf("a")[63].Kind)
	})
}

func TestAStateWhoseAckWasLostIsStoredOnce(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		cut := g.cut(`"stream":"TINKER_STATES"`)
		other := g.another()
		r := request("a")
		other.logs(r, "active", 1)
		require.Equal(t, 1, cut.cuts)
		other.logs(r, "paused_capacity", 2)
		require.Equal(t, []string{"active", "paused_capacity"}, statuses(g.logOf("a")))
		require.Equal(t, uint64(2), r.LogSeq)
		require.Equal(t, map[string]float64{"event state": 2, "stored": 1, "unknown": 1, "conflict": 1}, other.counts())
		require.Empty(t, other.Trouble())
	})
}

func TestTheVeryMessageThatIsStoredAlreadyCountsAsStored(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r, tr := request("a"), transition("active", "", 1)
		_, err := g.js.PublishMsg(g.ctx, g.transitionMessage(r, tr))
		require.NoError(t, err)
		ended, err := g.Transition(g.ctx, r, tr)
		require.NoError(t, err)
		require.False(t, ended)
		require.Equal(t, uint64(1), r.LogSeq)
		require.Len(t, g.logOf("a"), 1)
	})
}

func TestAStaleStateGivesWayToTheOneThatIsStored(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		mine, theirs := request("a"), request("a")
		g.logs(mine, "active", 1)
		theirs.LogSeq, theirs.State.QueueState = 1, "active"
		tr := transition("paused_rate_limit", "active", 9)
		tr.Reason = "slow down"
		_, err := g.Transition(g.ctx, theirs, tr)
		require.NoError(t, err)

		mine.State.QueueState, mine.State.Reason, mine.State.Polls = "paused_capacity", "full", 2 // as Step has it
		ended, err := g.Transition(g.ctx, mine, transition("paused_capacity", "active", 2))
		require.NoError(t, err)
		require.False(t, ended)
		require.Equal(t, []string{"active", "paused_rate_limit"}, statuses(g.logOf("a")), "ours is thrown away, not put on top")
		require.Equal(t, poll.State{Submitted: mine.State.Submitted, QueueState: "paused_rate_limit", Reason: "slow down", Polls: 9}, mine.State)
		require.Equal(t, uint64(2), mine.LogSeq)

		g.logs(mine, "active", 10)
		require.Equal(t, []string{"active", "paused_rate_limit", "active"}, statuses(g.logOf("a")))
		body, err := g.logOf("a")[2].State()
		require.NoError(t, err)
		require.Equal(t, Optional("paused_rate_limit"), body.Previous)
	})
}

func TestPollsAreNeverCountedBackwards(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.logs(request("a"), "active", 3)
		r := request("a")
		r.State.Polls = 5
		_, err := g.Transition(g.ctx, r, transition("active", "", 5))
		require.NoError(t, err)
		require.Equal(t, 5, r.State.Polls)
	})
}

func TestATransitionOfAnEndedRequestEndsIt(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		theirs := request("a")
		g.logs(theirs, "active", 1)
		require.NoError(t, g.Finish(g.ctx, theirs, completed("1")))
		for _, seq := range []uint64{0, 1} {
			mine := request("a")
			mine.LogSeq = seq
			ended, err := g.Transition(g.ctx, mine, transition("paused_capacity", "", 1))
			require.NoError(t, err)
			require.True(t, ended)
		}
		g.ended("a")
		require.Equal(t, []string{"active", "completed"}, statuses(g.logOf("a")))
	})
}

func TestAClosedLogEndsARequestWhoseResultHasAgedAway(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		require.NoError(t, g.whole("a"))
		g.purge("TINKER_RESULTS", "tinker.result.a")
		log := g.logOf("a")
		ended, err := g.Transition(g.ctx, request("a"), transition("active", "", 1))
		require.NoError(t, err)
		require.True(t, ended)
		is, err := g.Lookup(g.ctx, []*poll.Request{request("a")})
		require.NoError(t, err)
		require.Equal(t, []bool{true}, is)
		require.Equal(t, log, g.logOf("a"))
	})
}

func TestARefusedTransitionFindsTheResultAndClosesTheLog(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		theirs, mine := request("a"), request("a")
		g.logs(theirs, "active", 1)
		end, err := g.storeResult(g.ctx, theirs, failing()) // and then it crashed
		require.NoError(t, err)
		ended, err := g.Transition(g.ctx, mine, transition("paused_capacity", "", 1))
		require.NoError(t, err)
		require.True(t, ended)
		result, closing := g.ended("a")
		require.Equal(t, end.ref.Seq, result.seq)
		require.Equal(t, Optional("active"), closing.Previous)
		require.JSONEq(t, string(result.Data), string(closing.Error))
		require.Equal(t, []string{"active", "failed"}, statuses(g.logOf("a")))
	})
}

func TestALogThatWasPurgedBeginsAnew(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r := request("a")
		g.logs(r, "active", 1)
		g.purge("TINKER_STATES", "tinker.state.a")
		g.logs(r, "paused_capacity", 2)
		require.Equal(t, []string{"paused_capacity"}, statuses(g.logOf("a")))
		g.purge("TINKER_STATES", "tinker.state.a")
		require.NoError(t, g.Finish(g.ctx, r, completed("1")))
		g.ended("a")
		require.Len(t, g.logOf("a"), 1)
	})
}

func TestNothingIsLoggedOnceTheLeaseIsLost(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r := request("a")
		r.Lease.(*lease).lost.Store(true)
		ended, err := g.Transition(g.ctx, r, transition("active", "", 1))
		require.ErrorIs(t, err, poll.ErrLeaseLost)
		require.False(t, ended)
		require.Empty(t, g.logOf("a"))
		require.Zero(t, r.LogSeq)

		require.NoError(t, g.Finish(g.ctx, r, completed("1")), "a result in hand is published all the same")
		g.ended("a")
	})
}

func TestALeaseLostWhileTryingEndsTheTrying(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		r := request("a")
		time.AfterFunc(time.Minute, func() { r.Lease.(*lease).lost.Store(true) })
		begin := time.Now()
		_, err := g.Transition(g.ctx, r, transition("active", "", 1))
		require.ErrorIs(t, err, poll.ErrLeaseLost)
		require.WithinRange(t, time.Now(), begin.Add(time.Minute), begin.Add(time.Minute+5*time.Second))
		g.ensure(nil)
		in(time.Minute)
		require.Empty(t, g.logOf("a"))
		require.Empty(t, g.Trouble())
	})
}

func TestTheEndOfTheContextEndsTheTrying(t *testing.T) {
	for name, do := range map[string]func(context.Context, *rig, *poll.Request) error{
		"transition": func(ctx context.Context, g *rig, r *poll.Request) error {
			_, err := g.Transition(ctx, r, transition("active", "", 1))
			return err
		},
		"finish":       func(ctx context.Context, g *rig, r *poll.Request) error { return g.Finish(ctx, r, completed("1")) },
		"large finish": func(ctx context.Context, g *rig, r *poll.Request) error { return g.Finish(ctx, r, sized(1<<20)) },
		"conclude": func(ctx context.Context, g *rig, r *poll.Request) error {
			_, err := g.Conclude(ctx, r)
			return err
		},
		"lookup": func(ctx context.Context, g *rig, r *poll.Request) error {
			_, err := g.Lookup(ctx, []*poll.Request{r})
			return err
		},
		"reject": func(ctx context.Context, g *rig, r *poll.Request) error { return g.Reject(ctx, 1, at, "", &nats.Msg{}) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, noStreams, func(t *testing.T, g *rig) {
				ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
				defer cancel()
				begin := time.Now()
				require.ErrorIs(t, do(ctx, g, request("a")), context.DeadlineExceeded)
				require.Equal(t, time.Minute, time.Since(begin))
				require.Empty(t, g.Trouble(), "what is no longer tried is no trouble")
				require.Contains(t, g.log.String(), "cannot be stored")
			})
		})
	}
}

func TestADomainsStreamsAreReadThroughItsPrefix(t *testing.T) {
	o := setup{without: true}
	o.server.JetStreamDomain = "hub"
	for name, connect := range map[string]func(*nats.Conn) (jetstream.JetStream, error){
		"domain": func(nc *nats.Conn) (jetstream.JetStream, error) { return jetstream.NewWithDomain(nc, "hub") },
		"prefix": func(nc *nats.Conn) (jetstream.JetStream, error) { return jetstream.NewWithAPIPrefix(nc, "$JS.hub.API") },
		"dotted": func(nc *nats.Conn) (jetstream.JetStream, error) {
			return jetstream.NewWithAPIPrefix(nc, "$JS.hub.API.")
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, o, func(t *testing.T, g *rig) {
				var err error
				g.js, err = connect(g.nc)
				require.NoError(t, err)
				g.ensure(nil)
				require.Regexp(t, `^\$JS\.hub\.API\.DIRECT\.GET\.X$`, direct(g.js, "X"))
				r := request("a")
				g.logs(r, "active", 1)
				require.NoError(t, g.Finish(g.ctx, r, completed("1")))
				ended, err := g.Lookup(g.ctx, []*poll.Request{request("a")})
				require.NoError(t, err)
				require.Equal(t, []bool{true}, ended)
				ended0, err := g.Conclude(g.ctx, request("a"))
				require.NoError(t, err)
				require.True(t, ended0)
			})
		})
	}
}
