package publish

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// listen subscribes with a connection of its own; the returned function gives what has come since.
func (g *rig) listen(subject string) (heard func() []*nats.Msg) {
	g.t.Helper()
	nc := g.Connect()
	messages := make(chan *nats.Msg, 1000)
	_, err := nc.ChanSubscribe(subject, messages)
	require.NoError(g.t, err)
	require.NoError(g.t, nc.Flush())
	return func() []*nats.Msg {
		synctest.Wait()
		out := []*nats.Msg{}
		for range len(messages) {
			out = append(out, <-messages)
		}
		return out
	}
}

func TestLiveSubscribersHearWhatIsStoredOnce(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		states, results := g.listen("tinker.state.*"), g.listen("tinker.result.*")
		r := request("a.b")
		_, err := g.Transition(g.ctx, r, transition("active", "", 1))
		require.NoError(t, err)
		_, err = g.Transition(g.ctx, r, transition("paused_capacity", "active", 2))
		require.NoError(t, err)
		require.NoError(t, g.Finish(g.ctx, r, completed(`{"n":12345678901234567890}`)))
		g.ended("a.b")

		for _, c := range []struct {
			heard  []*nats.Msg
			stored []record
			stream string
		}{{states(), g.logOf("a.b"), "TINKER_STATES"}, {results(), g.resultsOf("a.b"), "TINKER_RESULTS"}} {
			require.Len(t, c.heard, len(c.stored))
			last := "0"
			for i, m := range c.heard {
				want := c.stored[i]
				require.Equal(t, want.Subject, m.Subject, "the stream and the live subject use one name")
				require.Equal(t, want.Data, m.Data)
				for name, values := range want.header {
					require.Equal(t, values, m.Header[name], name)
				}
				require.Equal(t, c.stream, m.Header.Get("Nats-Stream"))
				require.Equal(t, strconv.FormatUint(want.seq, 10), m.Header.Get("Nats-Sequence"))
				require.Equal(t, last, m.Header.Get("Nats-Last-Sequence"), "a gap would show")
				last = m.Header.Get("Nats-Sequence")
				e, err := tinker.Decode(m.Subject, m.Header, m.Data)
				require.NoError(t, err)
				require.Equal(t, want.Event, e)
			}
		}
	})
}

func TestAConsumerFiltersByThePublicSubject(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		for _, id := range []string{"a", "b"} {
			r := request(id)
			_, err := g.Transition(g.ctx, r, transition("active", "", 1))
			require.NoError(t, err)
			require.NoError(t, g.Finish(g.ctx, r, completed(id)))
		}
		for stream, want := range map[string][]string{"TINKER_STATES": {"active", "completed"}, "TINKER_RESULTS": {"completed"}} {
			kind := map[string]string{"TINKER_STATES": "state", "TINKER_RESULTS": "result"}[stream]
			consumer, err := g.js.CreateConsumer(g.ctx, stream, jetstream.ConsumerConfig{FilterSubject: "tinker." + kind + ".b"})
			require.NoError(t, err)
			batch, err := consumer.FetchNoWait(10)
			require.NoError(t, err)
			got := []string{}
			for m := range batch.Messages() {
				require.Equal(t, "tinker."+kind+".b", m.Subject())
				got = append(got, m.Headers().Get(HeaderStatus))
			}
			require.Equal(t, want, got)
		}
	})
}

// race has n bridges do the same at once, each with a connection and a request of its own.
func (g *rig) race(n int, do func(i int, g *rig, r *poll.Request) error) ([]*rig, []*poll.Request) {
	g.t.Helper()
	rigs, requests, errs := make([]*rig, n), make([]*poll.Request, n), make([]error, n)
	for i := range n {
		rigs[i], requests[i] = g.another(), request("contested")
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = do(i, rigs[i], requests[i]) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(g.t, err)
	}
	return rigs, requests
}

func TestOfRacingResultsOneIsStoredAndHeard(t *testing.T) {
	const bridges = 8
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		ingest, results, states := g.listen("ingest.tinker.result.*"), g.listen("tinker.result.*"), g.listen("tinker.state.*")
		rigs, requests := g.race(bridges, func(i int, g *rig, r *poll.Request) error {
			result := completed(fmt.Sprint("result ", i))
			result.Polls = i
			if i%2 == 1 {
				result = failing()
				result.Polls = i
			}
			return g.Finish(g.ctx, r, result)
		})
		result, closing := g.ended("contested")
		require.Len(t, results(), 1)
		require.Len(t, states(), 1)
		require.Len(t, ingest(), bridges, "all of them published: that is why nobody may listen there")
		require.Equal(t, result.Polls, closing.Polls)
		require.Equal(t, result.Status == "failed", closing.Error != nil)
		total := map[string]float64{}
		for i, g := range rigs {
			for name, n := range g.counts() {
				total[name] += n
			}
			require.Zero(t, requests[i].LogSeq, "nothing fits on top of a closing record")
		}
		require.Equal(t, 1.0, total["event result"])
		require.GreaterOrEqual(t, total["event closing"], 1.0, "at one instant of virtual time all closing records are one message")
		require.Equal(t, 1.0, total["result "+result.Status])
		require.Equal(t, 2.0, total["stored"])
		require.Equal(t, 2.0*bridges-2, total["conflict"])
	})
}

func TestOfRacingStatesOneIsStoredAndTheOthersFollowIt(t *testing.T) {
	const bridges = 8
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		states := g.listen("tinker.state.*")
		_, requests := g.race(bridges, func(i int, g *rig, r *poll.Request) error {
			tr := transition("active", "", i+1)
			tr.Reason = fmt.Sprint("as seen by ", i)
			r.State.QueueState, r.State.Reason, r.State.Polls = tr.QueueState, tr.Reason, tr.Poll // as Step has it
			ended, err := g.Transition(g.ctx, r, tr)
			if ended {
				return fmt.Errorf("nobody ended it")
			}
			return err
		})
		log := g.logOf("contested")
		require.Equal(t, []string{"active"}, statuses(log))
		require.Len(t, states(), 1)
		body, err := log[0].State()
		require.NoError(t, err)
		for i, r := range requests {
			require.Equal(t, log[0].seq, r.LogSeq)
			require.Equal(t, string(body.Reason), r.State.Reason)
			require.Equal(t, max(i+1, body.Poll), r.State.Polls)
		}
	})
}

func TestOfRacingRejectionsOneIsStored(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		heard := g.listen("tinker.rejected.*")
		rigs, _ := g.race(8, func(i int, g *rig, _ *poll.Request) error {
			return g.Reject(g.ctx, 5, at, "no id", &nats.Msg{Subject: "tinker.submit", Data: []byte("{}")})
		})
		require.Len(t, g.stored("TINKER_REJECTED", "tinker.rejected.5"), 1)
		require.Len(t, heard(), 1)
		rejected := 0.0
		for _, g := range rigs {
			rejected += g.counts()["event rejected"]
		}
		require.GreaterOrEqual(t, rejected, 1.0)
	})
}
