package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

var noStreams = setup{without: true}

// standing is all that stands on a server: streams, the bucket among them, and consumers, by name.
func (g *rig) standing() map[string]any {
	g.t.Helper()
	all := map[string]any{}
	streams := g.js.ListStreams(g.ctx)
	for info := range streams.Info() {
		all[info.Config.Name] = []any{info.Config, info.Created}
		stream, err := g.js.Stream(g.ctx, info.Config.Name)
		require.NoError(g.t, err)
		consumers := stream.ListConsumers(g.ctx)
		for c := range consumers.Info() {
			all[info.Config.Name+"/"+c.Name] = []any{c.Config, c.Created}
		}
		require.NoError(g.t, consumers.Err())
	}
	require.NoError(g.t, streams.Err())
	return all
}

func TestEnsureMakesEverythingOnce(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		first, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err)
		require.Equal(t, 2*time.Minute, first.AckWait)
		require.Equal(t, 200_000, first.MaxAckPending)
		require.Equal(t, -1, first.MaxDeliver)
		require.Equal(t, jetstream.AckExplicitPolicy, first.AckPolicy)
		require.Empty(t, first.BackOff)
		before := g.standing()
		names := []string{}
		for name := range before {
			names = append(names, name)
		}
		require.ElementsMatch(t, []string{"TINKER_WORK", "TINKER_WORK/bridge", "TINKER_STATES", "TINKER_RESULTS", "TINKER_REJECTED", "OBJ_TINKER_LARGE"}, names)

		in(time.Minute)
		second, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err)
		require.Equal(t, first, second)
		require.Equal(t, before, g.standing())
	})
}

// A bridge whose user may not create anything can still start where an admin has made everything.
func TestEnsureOnlyReadsWhereEverythingStands(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		_, err := Ensure(g.ctx, g.js, tinker, Options{Bridges: true})
		require.NoError(t, err)
		var asked []string
		_, err = g.nc.Subscribe("$JS.API.>", func(m *nats.Msg) { asked = append(asked, m.Subject) })
		require.NoError(t, err)
		flush, done := context.WithTimeout(g.ctx, time.Second)
		defer done()
		require.NoError(t, g.nc.FlushWithContext(flush))
		_, err = Ensure(g.ctx, g.js, tinker, Options{Bridges: true})
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, []string{
			"$JS.API.STREAM.INFO.TINKER_WORK", "$JS.API.CONSUMER.INFO.TINKER_WORK.bridge", "$JS.API.STREAM.INFO.TINKER_STATES",
			"$JS.API.STREAM.INFO.TINKER_RESULTS", "$JS.API.STREAM.INFO.TINKER_REJECTED", "$JS.API.STREAM.INFO.OBJ_TINKER_LARGE",
			"$JS.API.STREAM.INFO.KV_TINKER_BRIDGES",
		}, asked)
	})
}

func TestStreamsStandAsTheContractSays(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		_, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err)
		config := func(name string) jetstream.StreamConfig {
			s, err := g.js.Stream(g.ctx, name)
			require.NoError(t, err)
			return s.CachedInfo().Config
		}
		work := config("TINKER_WORK")
		require.Equal(t, []string{"tinker.submit", "tinker.submit.>"}, work.Subjects)
		require.Equal(t, jetstream.WorkQueuePolicy, work.Retention)
		require.Equal(t, jetstream.DiscardNew, work.Discard)
		require.Zero(t, work.MaxAge, "a submission waits for ever")
		for _, c := range []struct {
			name, ingest string
			discard      jetstream.DiscardPolicy
			perSubject   int64
		}{
			{"TINKER_STATES", "ingest.tinker.state.*", jetstream.DiscardNew, 64},
			{"TINKER_RESULTS", "ingest.tinker.result.*", jetstream.DiscardNew, 64},
			{"TINKER_REJECTED", "ingest.tinker.rejected.*", jetstream.DiscardOld, 64},
		} {
			s := config(c.name)
			require.Equal(t, []string{c.ingest}, s.Subjects)
			require.Equal(t, c.discard, s.Discard)
			require.Equal(t, c.perSubject, s.MaxMsgsPerSubject)
			require.Equal(t, 8*24*time.Hour, s.MaxAge)
			require.Equal(t, 10*time.Second, s.Duplicates)
			require.Equal(t, jetstream.FileStorage, s.Storage)
			require.True(t, s.AllowDirect && s.DenyDelete)
			require.Greater(t, s.MaxConsumers, 1000)
			require.Equal(t, jetstream.NoCompression, s.Compression)
		}
		require.Equal(t, int64(-1), config("TINKER_RESULTS").MaxBytes)
		require.Positive(t, config("TINKER_REJECTED").MaxBytes, "a flood of rubbish is bounded")
	})
}

func TestOptionsShapeWhatIsMade(t *testing.T) {
	age, bytes, yes, wait, pending := time.Hour, int64(1<<20), true, 30*time.Second, 7
	o := Options{StatesMaxAge: &age, ResultsMaxAge: &age, ResultsMaxBytes: &bytes, CompressResults: &yes, AckWait: &wait, MaxAckPending: &pending}
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		consumer, err := Ensure(g.ctx, g.js, tinker, o)
		require.NoError(t, err)
		require.Equal(t, []any{wait, pending}, []any{consumer.AckWait, consumer.MaxAckPending})
		for _, name := range []string{"TINKER_STATES", "TINKER_RESULTS", "OBJ_TINKER_LARGE"} {
			s, err := g.js.Stream(g.ctx, name)
			require.NoError(t, err)
			require.Equal(t, time.Hour, s.CachedInfo().Config.MaxAge, name)
		}
		s, err := g.js.Stream(g.ctx, "TINKER_RESULTS")
		require.NoError(t, err)
		require.Equal(t, int64(1<<20), s.CachedInfo().Config.MaxBytes)
		require.Equal(t, jetstream.S2Compression, s.CachedInfo().Config.Compression)

		same, err := Ensure(g.ctx, g.js, tinker, o)
		require.NoError(t, err, "what is given and equal is no difference")
		require.Equal(t, consumer, same)
		follows, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err, "what is not given follows what stands")
		require.Equal(t, consumer, follows)
	})
}

func TestAConsumerThatDoesNotSuitIsNotMade(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		unfit := errors.New("too small")
		asked := map[bool]int{}
		check := Options{Check: func(consumer jetstream.ConsumerConfig, stands bool) error {
			asked[stands] = consumer.MaxAckPending
			return unfit
		}}
		before := g.standing()
		_, err := Ensure(g.ctx, g.js, tinker, check)
		require.ErrorIs(t, err, unfit)
		require.Equal(t, before, g.standing())
		pending := 7
		_, err = Ensure(g.ctx, g.js, tinker, Options{MaxAckPending: &pending})
		require.NoError(t, err)
		_, err = Ensure(g.ctx, g.js, tinker, check)
		require.ErrorIs(t, err, unfit)
		require.Equal(t, map[bool]int{false: 200_000, true: 7}, asked)
	})
}

func TestAnOptionThatDiffersFromWhatStandsIsNamed(t *testing.T) {
	three, hour, eightDays, bytes, yes, wait, pending := 3, time.Hour, 8*24*time.Hour, int64(1<<20), true, time.Minute, 5
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"replicas", Options{Replicas: &three}, []string{
			"stream TINKER_WORK: replicas is 1, want 3", "stream TINKER_STATES: replicas is 1, want 3",
			"stream TINKER_RESULTS: replicas is 1, want 3", "stream TINKER_REJECTED: replicas is 1, want 3",
			"stream OBJ_TINKER_LARGE: replicas is 1, want 3",
		}},
		{"age of logs", Options{StatesMaxAge: &hour}, []string{"stream TINKER_STATES: max age is 192h0m0s, want 1h0m0s"}},
		{"age of results", Options{ResultsMaxAge: &hour}, []string{"stream TINKER_RESULTS: max age is 192h0m0s, want 1h0m0s"}},
		{"age of logs that a timeout outlives", Options{Timeout: &eightDays}, []string{"stream TINKER_STATES: max age is 192h0m0s, want more than 192h0m0s (--timeout)"}},
		{"bytes of results", Options{ResultsMaxBytes: &bytes}, []string{"stream TINKER_RESULTS: max bytes is -1, want 1048576"}},
		{"compression", Options{CompressResults: &yes}, []string{"stream TINKER_RESULTS: compression is None, want S2"}},
		{"consumer", Options{AckWait: &wait, MaxAckPending: &pending}, []string{
			"consumer bridge of stream TINKER_WORK: ack wait (--ack-wait) is 2m0s, want 1m0s",
			"consumer bridge of stream TINKER_WORK: max ack pending (--max-ack-pending) is 200000, want 5: nats consumer edit TINKER_WORK bridge --max-pending=5",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, noStreams, func(t *testing.T, g *rig) {
				_, err := Ensure(g.ctx, g.js, tinker, Options{})
				require.NoError(t, err)
				before := g.standing()
				_, err = Ensure(g.ctx, g.js, tinker, c.o)
				var mismatch *MismatchError
				require.ErrorAs(t, err, &mismatch)
				require.Equal(t, c.want, mismatch.Differences)
				require.True(t, mismatch.Asked)
				for _, d := range c.want {
					require.ErrorContains(t, err, d)
				}
				require.Equal(t, before, g.standing())
			})
		})
	}
}

func TestStreamsThatStandOtherwiseAreNamedAndLeftAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*jetstream.StreamConfig) // of one stream, which then stands alone
		which  int
		want   []string
	}{
		{"subjects", func(c *jetstream.StreamConfig) { c.Subjects = []string{"tinker.submit.>"} }, 0,
			[]string{"stream TINKER_WORK: subjects is [tinker.submit.>], want [tinker.submit tinker.submit.>]"}},
		{"retention", func(c *jetstream.StreamConfig) { c.Retention = jetstream.LimitsPolicy }, 0,
			[]string{"stream TINKER_WORK: retention is Limits, want WorkQueue"}},
		{"submissions that age", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, 0,
			[]string{"stream TINKER_WORK: max age is 1h0m0s, want 0s"}},
		{"storage", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, 1,
			[]string{"stream TINKER_STATES: storage is Memory, want File"}},
		{"discard", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, 1,
			[]string{"stream TINKER_STATES: discard is DiscardOld, want DiscardNew"}},
		{"the 65th state refused", func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true }, 1,
			[]string{"stream TINKER_STATES: discard new per subject is true, want false"}},
		{"no acks", func(c *jetstream.StreamConfig) { c.NoAck = true }, 1,
			[]string{"stream TINKER_STATES: no ack is true, want false"}},
		{"no direct gets", func(c *jetstream.StreamConfig) { c.AllowDirect = false }, 1,
			[]string{"stream TINKER_STATES: allow direct is false, want true"}},
		{"messages per subject", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }, 2,
			[]string{"stream TINKER_RESULTS: max msgs per subject is 1, want 64"}},
		{"a stream as people make them", func(c *jetstream.StreamConfig) {
			*c = jetstream.StreamConfig{Name: c.Name, Subjects: []string{"tinker.result.*"}}
		}, 2, []string{
			"stream TINKER_RESULTS: subjects is [tinker.result.*], want [ingest.tinker.result.*]",
			"stream TINKER_RESULTS: discard is DiscardOld, want DiscardNew",
			"stream TINKER_RESULTS: subject transform is { }, want {ingest.tinker.result.* tinker.result.{{wildcard(1)}}}",
			"stream TINKER_RESULTS: republish is {  false}, want {tinker.result.* tinker.result.{{wildcard(1)}} false}",
			"stream TINKER_RESULTS: allow direct is false, want true",
			"stream TINKER_RESULTS: max msgs per subject is -1, want 64",
		}},
		{"the wrong way round", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew }, 3,
			[]string{"stream TINKER_REJECTED: discard is DiscardNew, want DiscardOld"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, noStreams, func(t *testing.T, g *rig) {
				cfg := tinker.Streams(Options{})[c.which]
				c.change(&cfg)
				_, err := g.js.CreateStream(g.ctx, cfg)
				require.NoError(t, err)
				before := g.standing()
				_, err = Ensure(g.ctx, g.js, tinker, Options{})
				var mismatch *MismatchError
				require.ErrorAs(t, err, &mismatch)
				require.Equal(t, c.want, mismatch.Differences)
				require.False(t, mismatch.Asked)
				require.Equal(t, before, g.standing(), "nothing is changed, and nothing that is missing is made")
			})
		})
	}
}

func TestTheBucketOfBridgesKeepsTheirKeysForAsLongAsTheyCount(t *testing.T) {
	for _, c := range []struct{ ackWait, standing, age time.Duration }{
		{ackWait: time.Second, age: 12 * time.Second},
		{ackWait: 2 * time.Minute, age: 250 * time.Second},
		{ackWait: time.Hour, age: 2*time.Hour + 10*time.Second},
		{ackWait: time.Hour, standing: 2 * time.Hour, age: 2 * time.Hour},
		{ackWait: time.Hour, standing: time.Hour},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			bubble(t, noStreams, func(t *testing.T, g *rig) {
				_, err := Ensure(g.ctx, g.js, tinker, Options{AckWait: &c.ackWait})
				require.NoError(t, err)
				if c.standing > 0 {
					_, err := g.js.CreateKeyValue(g.ctx, jetstream.KeyValueConfig{Bucket: "TINKER_BRIDGES", TTL: c.standing})
					require.NoError(t, err, "what the library makes is no difference")
				}
				_, err = Ensure(g.ctx, g.js, tinker, Options{Bridges: true})
				if c.age == 0 {
					require.ErrorContains(t, err, "stream KV_TINKER_BRIDGES: max age is 1h0m0s, want at least 1h0m5s (AckWait and 5s)")
					return
				}
				require.NoError(t, err)
				bucket, err := g.js.KeyValue(g.ctx, "TINKER_BRIDGES")
				require.NoError(t, err)
				status, err := bucket.Status(g.ctx)
				require.NoError(t, err)
				require.Equal(t, c.age, status.TTL(), "it follows the consumer that stands")
				require.EqualValues(t, 1, status.History())
			})
		})
	}
}

func TestASealedStreamIsNoPlaceForEvents(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.update("TINKER_STATES", func(c *jetstream.StreamConfig) { c.Sealed = true })
		_, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.ErrorContains(t, err, "stream TINKER_STATES: sealed is true, want false")
	})
}

func TestAConsumerThatStandsOtherwiseIsNamedAndLeftAlone(t *testing.T) {
	const place = "consumer bridge of stream TINKER_WORK: "
	for _, c := range []struct {
		name   string
		change func(*jetstream.ConsumerConfig)
		want   []string
	}{
		{"deliveries that end", func(c *jetstream.ConsumerConfig) {
			c.MaxDeliver = 5
			c.BackOff = []time.Duration{time.Second, time.Minute}
		}, []string{
			place + "max deliver is 5, want -1", place + "backoff is [1s 1m0s], want []",
		}},
		{"some submissions only", func(c *jetstream.ConsumerConfig) { c.FilterSubject = "tinker.submit.a" },
			[]string{place + "filter subjects is tinker.submit.a, want "}},
		{"no bodies", func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true },
			[]string{place + "headers only is true, want false"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, noStreams, func(t *testing.T, g *rig) {
				_, err := g.js.CreateStream(g.ctx, tinker.Streams(Options{})[0])
				require.NoError(t, err)
				cfg := tinker.ConsumerConfig(Options{})
				c.change(&cfg)
				_, err = g.js.CreateConsumer(g.ctx, "TINKER_WORK", cfg)
				require.NoError(t, err)
				before := g.standing()
				_, err = Ensure(g.ctx, g.js, tinker, Options{})
				var mismatch *MismatchError
				require.ErrorAs(t, err, &mismatch)
				require.Equal(t, c.want, mismatch.Differences)
				require.Equal(t, before, g.standing())
			})
		})
	}
}

func TestAPushConsumerOfThatNameIsADifference(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		_, err := g.js.CreateStream(g.ctx, tinker.Streams(Options{})[0])
		require.NoError(t, err)
		cfg := tinker.ConsumerConfig(Options{})
		cfg.DeliverSubject = "elsewhere"
		_, err = g.js.CreatePushConsumer(g.ctx, "TINKER_WORK", cfg)
		require.NoError(t, err)
		_, err = Ensure(g.ctx, g.js, tinker, Options{})
		var mismatch *MismatchError
		require.ErrorAs(t, err, &mismatch)
		require.Equal(t, []string{"consumer bridge of stream TINKER_WORK: delivery is push, want pull"}, mismatch.Differences)
	})
}

func TestWhatSomebodyDeletedIsMadeAnew(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		_, err := Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err)
		whole := g.standing()
		in(time.Second)
		require.NoError(t, g.js.DeleteConsumer(g.ctx, "TINKER_WORK", "bridge"))
		require.NoError(t, g.js.DeleteStream(g.ctx, "TINKER_RESULTS"))
		require.NoError(t, g.js.DeleteObjectStore(g.ctx, "TINKER_LARGE"))
		_, err = Ensure(g.ctx, g.js, tinker, Options{})
		require.NoError(t, err)
		for name, now := range g.standing() {
			require.Equal(t, whole[name].([]any)[0], now.([]any)[0], name)
			made := []string{"TINKER_WORK/bridge", "TINKER_RESULTS", "OBJ_TINKER_LARGE"}
			require.Equal(t, slices.Contains(made, name), whole[name].([]any)[1] != now.([]any)[1], "made anew or left alone: %s", name)
		}
		require.Len(t, g.standing(), len(whole))
	})
}

func TestBridgesThatStartTogetherAgree(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			js := g.another().js
			wg.Go(func() { _, errs[i] = Ensure(g.ctx, js, tinker, Options{}) })
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		require.Len(t, g.standing(), 6)
	})
}

func TestTwoPrefixesStandSideBySide(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		_, err := Ensure(g.ctx, g.js, must(NewNames("acme.tinker")), Options{})
		require.NoError(t, err)
		require.Len(t, g.standing(), 12)
	})
}

func TestEnsureSaysWhatItCouldNotLookUp(t *testing.T) {
	bubble(t, noStreams, func(t *testing.T, g *rig) {
		g.Stop()
		ctx, cancel := context.WithTimeout(g.ctx, 3*time.Second)
		defer cancel()
		_, err := Ensure(ctx, g.js, tinker, Options{})
		require.ErrorContains(t, err, "look up stream TINKER_WORK")
		var mismatch *MismatchError
		require.NotErrorAs(t, err, &mismatch)
	})
	bubble(t, setup{without: true, server: server.Options{JetStreamMaxStore: 1 << 20}}, func(t *testing.T, g *rig) {
		most := int64(1 << 30)
		_, err := Ensure(g.ctx, g.js, tinker, Options{ResultsMaxBytes: &most})
		require.ErrorContains(t, err, "create stream TINKER_RESULTS")
	})
}
