package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func TestEveryRequestGetsItsStatesAndOneResult(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, everyday())
		w.bridge("bridge-1")
		w.bridge("bridge-2")
		var mu sync.Mutex
		seen := map[string]int{}
		_, err := w.nc.Subscribe("tinker.result.*", func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			seen[m.Header.Get(publish.HeaderRequestID)]++
		})
		require.NoError(t, err)
		odd := []string{"we.ird > *id/", "-5", "=x", "ünïcode", "$JS.API.>", "a b", strings.Repeat("ü", 500), "gw:alias:7"}
		w.submit(ids("req", 400)...)
		w.submit(odd...)
		w.settled(5 * time.Minute)
		w.check()
		require.Len(t, seen, 408, "a core subscriber saw each result")
		for id, n := range seen {
			require.Equal(t, 1, n, "request %q", id)
		}
		require.Equal(t, 1, w.sim.Stats().MaxPollsNowOfAnID)
		w.close()
	})
}

func TestASubmissionSaysHowItWantsToBePolled(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "never", Steps: []sim.Step{{State: "active"}}}}})
		w.bridge("bridge-1")
		begin := time.Now()
		w.accept("req-1", 20*time.Second, &nats.Msg{Subject: "tinker.submit.team-a", Data: []byte(`{"request_id":"req-1","timeout_ms":20000,"request_type":"Sample","labels":{"run":"7"}}`),
			Header: nats.Header{"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}})
		w.settled(time.Minute)
		require.InDelta(t, 20, time.Since(begin).Seconds(), 2)
		states, results := w.history()
		require.Len(t, states, 2)
		require.Len(t, results, 1)
		require.Equal(t, "timed_out", results[0].Status)
		var body publish.ErrorBody
		require.NoError(t, json.Unmarshal(results[0].Data, &body))
		require.Equal(t, "api_timeout", body.Type)
		require.InDelta(t, 20000, body.ElapsedMS, 100)
		closing, err := states[1].Closing()
		require.NoError(t, err)
		require.JSONEq(t, `{"run":"7"}`, string(closing.Labels))
		w.close()
	})
}

func TestWhatIsNoRequestIsRejectedAndHarmsNoOther(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{})
		w.bridge("bridge-1")
		bad := map[uint64]string{}
		for _, body := range []string{"", "  ", "{", `{"request_id":5}`, `{"id":"x"}`, "\xff\xfe", "a\nb", `{"request_id":"x","timeout_ms":-1}`, `{"request_id":"x","labels":[]}`} {
			seq, _ := w.submitMsg(&nats.Msg{Subject: "tinker.submit", Data: []byte(body)})
			bad[seq] = body
		}
		w.submit("good")
		w.settled(time.Minute)
		w.check()
		stream, err := w.js.Stream(t.Context(), w.names.RejectedStream())
		require.NoError(t, err)
		require.EqualValues(t, len(bad), stream.CachedInfo().State.Msgs)
		for seq, body := range bad {
			m, err := stream.GetLastMsgForSubject(t.Context(), w.names.Rejected(seq))
			require.NoError(t, err)
			require.Equal(t, body, string(m.Data))
			require.NotEmpty(t, m.Header.Get(publish.HeaderRejectedReason))
		}
		w.close()
	})
}

// A log has to outlive its request: what asks for a longer time than logs are kept is told so.
func TestWhatWouldOutliveItsLogIsRejected(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{})
		age := time.Hour
		_, err := publish.Ensure(t.Context(), w.js, w.names, publish.Options{StatesMaxAge: &age})
		require.NoError(t, err)
		w.bridge("bridge-1", "--timeout=59m")
		submit := func(id string, ms int64) (seq uint64) {
			seq, _ = w.submitMsg(&nats.Msg{Subject: "tinker.submit", Data: fmt.Appendf(nil, `{"request_id":%q,"timeout_ms":%d}`, id, ms)})
			return seq
		}
		seq := submit("long", age.Milliseconds())
		w.submitFor("short", age-time.Millisecond)
		w.submit("default")
		w.settled(time.Minute)
		rejected, err := w.js.Stream(t.Context(), w.names.RejectedStream())
		require.NoError(t, err)
		require.EqualValues(t, 1, rejected.CachedInfo().State.Msgs)
		m, err := rejected.GetLastMsgForSubject(t.Context(), w.names.Rejected(seq))
		require.NoError(t, err)
		require.Equal(t, "the time-out is 3600000 ms, but the stream TINKER_STATES keeps logs for 3600000 ms: ask for less, or have its max age raised",
			m.Header.Get(publish.HeaderRejectedReason))

		w.limit(w.names.StatesStream(), func(c *jetstream.StreamConfig) { c.MaxAge = 2 * time.Hour })
		time.Sleep(2 * time.Minute) // bridges look now and then
		w.submitFor("long", age)
		w.settled(time.Minute)
		require.Equal(t, map[string]int{"completed": 3}, w.check().Endings)
		w.close()
	})
}

// A consumer that is deleted, by mistake, under polls that will be answered once: what they bring is stored all the same.
func TestAConsumerThatIsDeletedUnderPollsInFlightLosesNothing(t *testing.T) {
	for _, bridges := range []int{1, 2} {
		t.Run(fmt.Sprint(bridges, " bridges"), func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				script := once(job(3 * time.Minute))
				script.Style.Hold = 45 * time.Second
				w := newWorld(t, script)
				for i := range bridges {
					w.bridge(fmt.Sprint("bridge-", i+1), "--max-requests=20")
				}
				w.submit(ids("req", 20*bridges)...)
				for range 2 {
					time.Sleep(70 * time.Second) // a full bridge looks for it once a minute
					require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.WorkStream(), w.names.Consumer()))
				}
				w.settled(10 * time.Minute)
				require.Equal(t, "completed", only(t, w.judge()))
				w.close()
			})
		})
	}
}

func TestAConsumerWithoutALimitIsFetchedFrom(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{})
		_, err := publish.Ensure(t.Context(), w.js, w.names, publish.Options{})
		require.NoError(t, err)
		config := w.names.ConsumerConfig(publish.Options{})
		config.MaxAckPending = -1
		_, err = w.js.UpdateConsumer(t.Context(), w.names.WorkStream(), config)
		require.NoError(t, err)
		w.bridge("bridge-1")
		w.submit(ids("req", 20)...)
		w.settled(time.Minute)
		w.check()
		w.close()
	})
}

func TestAFinishedIDIsNotPolledAgain(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Style: sim.Style{Retention: "once"}})
		w.bridge("bridge-1")
		w.submit("req-1")
		w.settled(time.Minute)
		polls := w.sim.Stats().Polls
		w.submit("req-1")
		w.settled(time.Minute)
		require.Equal(t, polls, w.sim.Stats().Polls)
		w.check()
		w.close()
	})
}

func TestTheSameIDsAtTwoBridgesOfAOneShotUpstreamLoseNothing(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		script := sim.Script{Style: sim.Style{Retention: "once"}, Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: 5 * time.Second, Spread: 5 * time.Second}, {Answer: "completed"},
		}}}}
		w := newWorld(t, script)
		w.bridge("bridge-1", "--max-requests=300")
		w.bridge("bridge-2", "--max-requests=300")
		all := ids("req", 200)
		w.submit(all...)
		w.submit(all...)
		w.settled(5 * time.Minute)
		w.check()
		w.close()
	})
}

func TestAHintIsHandedOverWithItsRequest(t *testing.T) {
	for _, flags := range [][]string{nil, {"--embedded"}} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "paused", Steps: []sim.Step{
					{State: "paused_capacity", For: 3 * time.Minute, RetryAfterMS: 60_000}, {Answer: "completed"},
				}}}})
				first := w.bridge("bridge-1", flags...)
				time.Sleep(900 * time.Millisecond) // the server writes down whole seconds
				w.submit(ids("req", 500)...)
				time.Sleep(20 * time.Second)
				second := w.bridge("bridge-2")
				first.stop()
				if flags != nil {
					second.stop()
					w.restartServer(time.Second)
					w.bridge("bridge-3", flags...)
				}
				w.settled(10 * time.Minute)
				require.Zero(t, w.sim.Stats().EarlyPolls)
				require.LessOrEqual(t, w.sim.Stats().Polls, 5*500)
				w.check()
				w.close()
			})
		})
	}
}

func TestADrainHandsOverAndLosesNothing(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		script := sim.Script{Style: sim.Style{Retention: "once", Hold: 20 * time.Second}, Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: 30 * time.Second, Spread: 30 * time.Second}, {Answer: "completed"},
		}}}}
		w := newWorld(t, script)
		first := w.bridge("bridge-1", "--max-polls=50")
		w.submit(ids("req", 500)...)
		time.Sleep(10 * time.Second)
		w.bridge("bridge-2")
		begin := time.Now()
		go first.stop()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.GreaterOrEqual(t, w.bridges[1].engine.Held(), 450, "all but those in flight, within three seconds")
		<-first.ended
		require.LessOrEqual(t, time.Since(begin), 31*time.Second)
		w.settled(5 * time.Minute)
		w.check()
		w.close()
	})
}

func TestABridgeThatStopsWithItsServerGoesOnWithItAtOnce(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, endless())
		first := w.bridge("bridge-1", "--embedded")
		for _, id := range ids("req", 500) {
			w.submitFor(id, 15*time.Minute)
		}
		time.Sleep(10 * time.Minute)
		first.stop()
		w.restartServer(time.Second)
		again := time.Now()
		second := w.bridge("bridge-2", "--embedded")
		time.Sleep(4 * time.Second)
		synctest.Wait()
		require.Equal(t, 500, second.engine.Held(), "long before AckWait, which is two minutes")
		time.Sleep(time.Minute)
		polls := map[string]int{}
		for _, p := range w.sim.Polls() {
			if p.Start.After(again) {
				polls[p.ID]++
			}
		}
		require.Len(t, polls, 500)
		for id, n := range polls {
			require.LessOrEqual(t, n, 3, "%s is old, and waits as long between polls as before", id)
		}
		w.settled(time.Hour)
		w.check()
		w.close()
	})
}

func TestDeletedStreamsAndConsumersAreMadeAnew(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, everyday())
		b := w.bridge("bridge-1", "--polls-per-second=100")
		time.Sleep(3 * time.Second)
		require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.WorkStream(), w.names.Consumer()))
		w.submit(ids("req", 20)...)
		w.settled(5 * time.Minute)
		require.NoError(t, w.js.DeleteStream(t.Context(), w.names.WorkStream()))
		require.NoError(t, w.js.DeleteKeyValue(t.Context(), w.names.BridgesBucket()))
		time.Sleep(10 * time.Second)
		require.Empty(t, b.notReady())
		_, err := w.js.KeyValue(t.Context(), w.names.BridgesBucket())
		require.NoError(t, err)
		w.submit(ids("more", 20)...)
		w.settled(5 * time.Minute)
		w.check()
		w.close()
	})
}

func TestAFullStreamHoldsResultsAndWork(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		script := sim.Script{Style: sim.Style{Retention: "once"}, Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: time.Second}, {Answer: "completed", ResultBytes: 5000},
		}}}}
		w := newWorld(t, script)
		b := w.bridge("bridge-1")
		stream, err := w.js.Stream(t.Context(), w.names.ResultsStream())
		require.NoError(t, err)
		config := stream.CachedInfo().Config
		config.MaxBytes = 60_000
		_, err = w.js.UpdateStream(t.Context(), config)
		require.NoError(t, err)
		w.submit(ids("req", 50)...)
		time.Sleep(5 * time.Minute)
		require.Contains(t, b.notReady(), "tinker.result")
		w.submit("late")
		time.Sleep(time.Minute)
		require.Zero(t, w.sim.StatsOf("late").Polls, "no work is taken meanwhile")
		config.MaxBytes = -1
		_, err = w.js.UpdateStream(t.Context(), config)
		require.NoError(t, err)
		w.settled(5 * time.Minute)
		require.Empty(t, b.notReady())
		w.check()
		w.close()
	})
}

func TestLargeResultsGoToTheObjectStore(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		script := sim.Script{Style: sim.Style{MetadataThreshold: 100_000}, Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: time.Second}, {Answer: "completed", ResultBytes: 3 << 20},
		}}}}
		w := newWorld(t, script)
		w.bridge("bridge-1")
		w.submit(ids("req", 5)...)
		w.settled(5 * time.Minute)
		w.check()
		_, results := w.history()
		bucket, err := w.js.ObjectStore(t.Context(), w.names.LargeBucket())
		require.NoError(t, err)
		for _, r := range results {
			require.NotNil(t, r.Large)
			data, err := bucket.GetBytes(t.Context(), r.Large.Object)
			require.NoError(t, err)
			_, want := w.sim.Expected(r.RequestID)
			require.Equal(t, want, data)
			require.EqualValues(t, len(want), r.Large.Bytes)
		}
		w.close()
	})
}

func TestABridgeThatFindsNoServerWaitsForIt(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{})
		w.server.Stop()
		cfg, err := parseServe(t, up)
		require.NoError(t, err)
		nc, js := w.connect("bridge-1")
		state := newReadiness("starting")
		prepared := make(chan jetstream.ConsumerConfig)
		go func() {
			consumer, err := cfg.prepare(context.Background(), nc, js, state, w.logger())
			require.NoError(t, err)
			prepared <- consumer
		}()
		time.Sleep(time.Minute)
		require.Contains(t, state.notReady(), "not connected to NATS")
		w.server.Start()
		consumer := <-prepared
		require.Equal(t, publish.DefaultAckWait, consumer.AckWait)
		nc.Close()
		w.close()
	})
}
