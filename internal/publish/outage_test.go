package publish

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// whole runs a request from its first state to its end.
func (g *rig) whole(id string) error {
	r := request(id)
	for i, state := range []string{"active", "paused_capacity", "active"} {
		if ended, err := g.Transition(g.ctx, r, transition(state, r.State.QueueState, i+1)); err != nil || ended {
			return fmt.Errorf("transition %d of %s: ended %t, %w", i, id, ended, err)
		}
		r.State.QueueState = state
	}
	return g.Finish(g.ctx, r, completed(id))
}

func TestEventsWaitForTheirStreams(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		done := make(chan error, 1)
		go func() { done <- g.whole("a") }()
		in(10 * time.Second)
		require.Empty(t, done)
		require.Contains(t, g.Trouble(), "ingest.tinker.state cannot be stored: "+nats.ErrNoResponders.Error())
		g.ensure(nil)
		require.NoError(t, <-done)
		g.ended("a")
		require.Equal(t, []string{"active", "paused_capacity", "active", "completed"}, statuses(g.logOf("a")))
		require.Empty(t, g.Trouble())
		require.Contains(t, g.log.String(), "events are stored again")
		require.Equal(t, 1, strings.Count(g.log.String(), "level=ERROR"), "trouble is told once")
	})
}

func TestEventsSurviveARestartOfTheServer(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		const requests = 60
		var wg sync.WaitGroup
		errs := make([]error, requests)
		for i := range requests {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				errs[i] = g.whole(fmt.Sprint("r", i))
			})
		}
		in(2 * time.Second)
		g.Stop()
		in(30 * time.Second)
		require.NotEmpty(t, g.Trouble())
		g.Start()
		wg.Wait()
		require.Empty(t, g.Trouble())
		for i := range requests {
			require.NoError(t, errs[i])
			id := fmt.Sprint("r", i)
			g.ended(id)
			require.Equal(t, []string{"active", "paused_capacity", "active", "completed"}, statuses(g.logOf(id)))
		}
		require.Positive(t, g.counts()["unknown"])
		require.Equal(t, 3.0*requests, g.counts()["event state"])
		require.Equal(t, 1.0*requests, g.counts()["event result"])
		require.Equal(t, 1.0*requests, g.counts()["event closing"])
	})
}

func TestAServerThatStopsWithTheMessageInHandHasItOnce(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		// The server stores the message and its answer is lost; when the publisher asks again, it has been restarted.
		cut := g.cut(`"stream":"TINKER_STATES"`)
		other := g.another()
		r := request("a")
		go func() {
			time.Sleep(time.Second)
			g.Stop()
			time.Sleep(20 * time.Second)
			g.Start()
		}()
		other.logs(r, "active", 1)
		require.Equal(t, 1, cut.cuts)
		require.Len(t, g.logOf("a"), 1)
		require.Equal(t, uint64(1), r.LogSeq)
		require.Equal(t, 1.0, other.counts()["event state"])
	})
}

func TestWhatDoesNotFitIsHeldUntilItDoes(t *testing.T) {
	full := func(change func(*jetstream.StreamConfig)) setup {
		return setup{streams: change}
	}
	limit := func(stream string, set func(*jetstream.StreamConfig)) func(*jetstream.StreamConfig) {
		return func(c *jetstream.StreamConfig) {
			if c.Name == stream {
				set(c)
			}
		}
	}
	for _, c := range []struct {
		name    string
		o       setup
		raise   func(g *rig)
		trouble string
		do      func(g *rig) error
	}{
		{
			"states, by number", full(limit("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgs = 2 })),
			func(g *rig) {
				g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgs = -1 })
			}, "ingest.tinker.state cannot be stored: nats: API error: code=503 err_code=10077",
			func(g *rig) error { return g.whole("a") },
		},
		{
			"results, by size", full(limit("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxBytes = 4096 })),
			func(g *rig) {
				g.update("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxBytes = -1 })
			}, "ingest.tinker.result cannot be stored: nats: API error: code=503 err_code=10077",
			func(g *rig) error { return g.Finish(g.ctx, request("a"), sized(5000)) },
		},
		{
			"states, larger than the stream takes", full(limit("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 })),
			func(g *rig) {
				g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgSize = -1 })
			}, "ingest.tinker.state cannot be stored: nats: API error: code=400 err_code=10054",
			func(g *rig) error { return g.whole("a") },
		},
		{
			"the closing record, larger than the stream takes",
			full(limit("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 })),
			func(g *rig) {
				g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.MaxMsgSize = -1 })
			}, "err_code=10054",
			func(g *rig) error { return g.Finish(g.ctx, request("a"), failing()) },
		},
		{
			"the account's limit", setup{},
			func(g *rig) {
				_ = g.Running().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
					"": {MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1},
				})
			}, "err_code=10002",
			func(g *rig) error {
				err := g.Running().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
					"": {MaxMemory: -1, MaxStore: 100, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1},
				})
				if err != nil {
					return err
				}
				return g.whole("a")
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, c.o, func(t *testing.T, g *rig) {
				done := make(chan error, 1)
				go func() { done <- c.do(g) }()
				in(10 * time.Millisecond)
				require.Contains(t, g.Trouble(), c.trouble, "at once")
				in(time.Minute)
				require.Empty(t, done)
				require.Contains(t, g.Trouble(), c.trouble)
				require.Greater(t, g.counts()["refused"]+g.counts()["too_large"], 20.0, "it is tried again and again")
				c.raise(g)
				require.NoError(t, <-done)
				require.Empty(t, g.Trouble())
				g.ended("a")
				if log := g.logOf("a"); len(log) > 1 {
					require.Equal(t, []string{"active", "paused_capacity", "active", "completed"}, statuses(log))
				}
			})
		})
	}
}

func TestTroubleIsNotOverBecauseAnotherStreamHasRoom(t *testing.T) {
	bubble(t, setup{streams: func(c *jetstream.StreamConfig) {
		if c.Name == "TINKER_RESULTS" {
			c.MaxMsgs = 1
		}
	}}, func(t *testing.T, g *rig) {
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("1")))
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if err := g.Finish(g.ctx, request(fmt.Sprint("held", i)), completed("1")); err != nil {
					t.Error(err)
				}
			})
		}
		in(10 * time.Second)
		for i := range 20 {
			g.logs(request(fmt.Sprint("other", i)), "active", 1)
			require.Contains(t, g.Trouble(), "ingest.tinker.result cannot be stored")
		}
		g.update("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxMsgs = 3 })
		in(10 * time.Second)
		require.NotEmpty(t, g.Trouble(), "one of three is held yet")
		g.update("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxMsgs = -1 })
		wg.Wait()
		require.Empty(t, g.Trouble())
		for i := range 3 {
			g.ended(fmt.Sprint("held", i))
		}
	})
}

func TestAReadThatFailsIsTriedUntilItSucceeds(t *testing.T) {
	for name, read := range map[string]func(g *rig) error{
		"conclude": func(g *rig) error {
			ended, err := g.Conclude(g.ctx, request("a"))
			if ended {
				return fmt.Errorf("nobody ended it")
			}
			return err
		},
		"lookup": func(g *rig) error {
			ended, err := g.Lookup(g.ctx, []*poll.Request{request("a")})
			if err == nil && ended[0] {
				return fmt.Errorf("nobody ended it")
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				g.Stop()
				done := make(chan error, 1)
				go func() { done <- read(g) }()
				in(20 * time.Second)
				require.Empty(t, done)
				require.Contains(t, g.Trouble(), "reading it")
				g.Start()
				require.NoError(t, <-done)
				require.Empty(t, g.Trouble(), "no publish is needed to end it")
			})
		})
	}
}

func TestAConflictThatCannotBeReadIsHeldUntilItCan(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.logs(request("a"), "active", 1)
		g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.AllowDirect = false })
		r, done := request("a"), make(chan error, 1)
		go func() {
			_, err := g.Transition(g.ctx, r, transition("paused_capacity", "", 1))
			done <- err
		}()
		in(20 * time.Second)
		require.Empty(t, done)
		require.Contains(t, g.Trouble(), "tinker.state cannot be stored: reading it: "+nats.ErrNoResponders.Error())
		g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.AllowDirect = true })
		require.NoError(t, <-done)
		require.Equal(t, "active", r.State.QueueState)
		require.Empty(t, g.Trouble())
	})
}

func TestPublishesInFlightAreBounded(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		asked := g.answer("ingest.tinker.state.*", "")
		for i := range 3 * maxInFlight {
			go func() { _, _ = g.Transition(g.ctx, request(fmt.Sprint(i)), transition("active", "", 1)) }()
		}
		in(time.Second)
		require.Len(t, asked(), maxInFlight)
		in(ackTimeout)
		require.Len(t, asked(), 2*maxInFlight, "who gets no ack makes room for another")
		in(4 * ackTimeout)
		require.Len(t, asked(), 6*maxInFlight)
	})
	scripted(t, func(t *testing.T, g *rig) {
		asked := g.answer("ingest.tinker.result.*", "")
		for i := range 200 {
			go func() { _ = g.Finish(g.ctx, request(fmt.Sprint(i)), sized(512<<10)) }()
		}
		in(time.Second)
		require.Len(t, asked(), maxInFlightBytes/(512<<10))
	})
	scripted(t, func(t *testing.T, g *rig) {
		g.answer("ingest.tinker.result.*", `{"stream":"TINKER_RESULTS","seq":1}`)
		g.answer("ingest.tinker.state.*", `{"stream":"TINKER_STATES","seq":1}`)
		result := sized(512 << 10)
		for i := range 2 * maxInFlight {
			if i > maxInFlightBytes/(512<<10)+1 {
				result = completed("1")
			}
			require.NoError(t, g.Finish(g.ctx, request(fmt.Sprint(i)), result), "there is room again after each")
		}
	})
}
