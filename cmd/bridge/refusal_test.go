package main

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// refusal is a way in which a server does not take what a bridge publishes.
type refusal struct {
	name   string
	begins func(w *world)
	ends   func(w *world)
	why    string // notReady says so meanwhile
	away   bool   // the server takes nothing at all meanwhile
	heals  bool   // the bridge ends it by itself, within a minute
	erases bool   // events that were stored are gone
}

// custom runs the server with something otherwise; nil: with nothing.
func (w *world) custom(change func(*server.Options)) {
	w.t.Helper()
	options := asEmbedded()
	if change != nil {
		change(options)
	}
	w.server.Restart(options)
}

// denied lets nobody publish to a subject.
func denied(subject string) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "x", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{subject}},
		}}}
		o.NoAuthUser = "all"
	}
}

// large is an upstream whose results are too large for a small message.
func large() sim.Script {
	return sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{{State: "active", For: 5 * time.Second}, {Answer: "completed", ResultBytes: 9000}}}}}
}

func refusals() []refusal {
	stream := func(what, name, why string) refusal {
		return refusal{
			name: what + " is full", why: why,
			begins: func(w *world) { w.refuse(name) }, ends: func(w *world) { w.unrefuse(name) },
		}
	}
	missing := func(what, name, why string) refusal {
		return refusal{
			name: what + " is deleted", why: why, heals: true,
			begins: func(w *world) { require.NoError(w.t, w.js.DeleteStream(w.t.Context(), name)) },
			ends: func(w *world) {
				_, err := publish.Ensure(w.t.Context(), w.js, w.names, publish.Options{})
				require.NoError(w.t, err)
			},
		}
	}
	logs := missing("the states stream", "TINKER_STATES", "ingest.tinker.state cannot be stored")
	logs.erases = true
	return []refusal{
		stream("the results stream", "TINKER_RESULTS", "ingest.tinker.result cannot be stored"),
		stream("the states stream", "TINKER_STATES", "ingest.tinker.state cannot be stored"),
		missing("the results stream", "TINKER_RESULTS", "ingest.tinker.result cannot be stored"),
		logs,
		{
			name: "the object store is deleted", why: "TINKER_LARGE", heals: true,
			begins: func(w *world) {
				w.limit("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 2000 })
				require.NoError(w.t, w.js.DeleteStream(w.t.Context(), "OBJ_TINKER_LARGE"))
			},
			ends: func(w *world) {
				_, err := publish.Ensure(w.t.Context(), w.js, w.names, publish.Options{})
				require.NoError(w.t, err)
			},
		},
		{
			name: "results are larger than stream and bucket take", why: "TINKER_LARGE",
			begins: func(w *world) {
				w.limit("TINKER_RESULTS", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 2000 })
				w.limit("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 })
			},
			ends: func(w *world) { w.limit("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) { c.MaxMsgSize = -1 }) },
		},
		{
			name: "the account has no room", why: "cannot be stored",
			begins: func(w *world) { w.custom(func(o *server.Options) { o.JetStreamMaxStore = 1 }) },
			ends:   func(w *world) { w.custom(nil) },
			away:   true,
		},
		{
			// A server in lame duck mode goes on as one without JetStream. One that has no listener cannot be put into it.
			name: "the server has shut JetStream down", why: "cannot fetch work",
			begins: func(w *world) {
				w.custom(nil)
				time.Sleep(3 * time.Second)
				require.NoError(w.t, w.server.Running().ShutdownJetStream())
			},
			ends: func(w *world) { w.custom(nil) },
			away: true,
		},
		{
			name: "results may not be published", why: "ingest.tinker.result cannot be stored",
			begins: func(w *world) { w.custom(denied("ingest.tinker.result.>")) }, ends: func(w *world) { w.custom(nil) },
		},
		{
			name: "the server is away", why: "not connected to NATS", away: true,
			begins: func(w *world) { w.server.Stop() }, ends: func(w *world) { w.server.Start() },
		},
	}
}

// TestARefusalHoldsResultsAndWork: whatever a server refuses, results in hand are held, no work is taken, the bridge says
// why, and when the refusal ends everything completes. The upstream hands each result out once: nothing may be lost.
func TestARefusalHoldsResultsAndWork(t *testing.T) {
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, once(large()))
				b := w.bridge("bridge-1")
				w.submit(ids("req", 30)...)
				time.Sleep(2 * time.Second)
				c.begins(w)
				time.Sleep(30 * time.Second)
				require.Contains(t, b.notReady(), c.why)
				delivered := w.sim.Stats().Deliveries
				require.NotZero(t, delivered, "results are in hand")
				if !c.away && !c.heals {
					w.submit("late")
					time.Sleep(time.Minute)
					require.Zero(t, w.sim.StatsOf("late").Polls, "no work is taken meanwhile")
				}
				if !c.heals {
					c.ends(w)
				}
				w.settled(5 * time.Minute)
				time.Sleep(5 * time.Second)
				require.Empty(t, b.notReady())
				c.verdict(t, w)
				w.close()
			})
		})
	}
}

// TestADrainDuringARefusalLosesNothing as long as the refusal ends before the drain's time-out does.
func TestADrainDuringARefusalLosesNothing(t *testing.T) {
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, once(large()))
				b := w.bridge("bridge-1", "--ack-wait=30s", "--drain-timeout=1m")
				w.submit(ids("req", 30)...)
				time.Sleep(2 * time.Second)
				c.begins(w)
				time.Sleep(20 * time.Second)
				go b.stop()
				time.Sleep(20 * time.Second)
				select {
				case <-b.ended:
					require.Fail(t, "it did not wait for its results")
				default:
				}
				c.ends(w)
				<-b.ended
				w.bridge("bridge-2")
				w.settled(5 * time.Minute)
				c.verdict(t, w)
				w.close()
			})
		})
	}
}

// verdict is that everything has completed, and that nothing is gone but what somebody has deleted.
func (c refusal) verdict(t *testing.T, w *world) {
	t.Helper()
	if !c.erases {
		require.Equal(t, "completed", only(t, w.check()))
		return
	}
	report := w.judge()
	require.Equal(t, "completed", only(t, report))
	require.Equal(t, report.Accepted, report.Terminal)
	require.Zero(t, report.Lost)
}

// A server that comes back with a max_payload lower than the bridge was told: results go to the object store instead.
func TestAServerThatTakesLessGetsObjects(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, once(large()))
		w.bridge("bridge-1")
		w.submit(ids("req", 10)...)
		time.Sleep(2 * time.Second)
		w.custom(func(o *server.Options) { o.MaxPayload = 20 << 10 })
		w.settled(5 * time.Minute)
		require.Equal(t, "completed", only(t, w.check()))
		_, results := w.history()
		for _, r := range results {
			require.NotNil(t, r.Large)
		}
		w.close()
	})
}
