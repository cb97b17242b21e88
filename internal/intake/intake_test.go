package intake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAnItemSaysWhatTheSubmissionAndTheStreamSay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		submitted := time.Now()
		w.submit(`{"request_id":"a","timeout_ms":5000,"request_type":"Sample","labels":{"k":"v"}}`, "Bridge-Request-Id", "b")
		time.Sleep(time.Minute)
		b := w.bridge(nil)
		b.run(true)
		item := b.held()[0]
		require.WithinDuration(t, submitted, item.Submitted, time.Millisecond)
		require.Equal(t, Item{
			Submission: Submission{ID: "b", Type: "Sample", Timeout: 5 * time.Second, Labels: []byte(`{"k":"v"}`)},
			Seq:        1, Subject: item.Subject, Submitted: item.Submitted, Lease: item.Lease,
		}, item)
		require.Equal(t, 1, b.counted("bridge_deliveries_total"))
	})
}

func TestWhatIsSubmittedIsHandedOnAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b := w.bridge(nil)
		b.run(true)
		for i := range 100 {
			time.Sleep(137 * time.Millisecond) // at every point of a fetch
			before := time.Now()
			w.submit(fmt.Sprint("id", i))
			require.Len(t, b.held(), i+1)
			require.Less(t, b.times[i].Sub(before), 10*time.Millisecond)
		}
	})
}

func TestABacklogComesInBatches(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const items = 2*MaxBatch + 100
		w.submitMany(items)
		var largest, calls, most atomic.Int32
		b := w.bridge(func(c *Config) { c.Max = 10 * items })
		b.intake.cfg.Handle = func(ctx context.Context, items []Item) {
			largest.Store(max(largest.Load(), int32(len(items))))
			most.Store(max(most.Load(), calls.Add(1)))
			b.handle(ctx, items)
			time.Sleep(10 * time.Millisecond)
			calls.Add(-1)
		}
		start := time.Now()
		b.run(true)
		time.Sleep(time.Minute)
		held := b.held()
		require.Len(t, held, items)
		require.Greater(t, largest.Load(), int32(1))
		require.LessOrEqual(t, largest.Load(), int32(MaxBatch))
		require.LessOrEqual(t, most.Load(), int32(maxHandling))
		for _, at := range b.times {
			require.Less(t, at.Sub(start), 5*time.Second)
		}
		ids := make(map[string]bool)
		for _, item := range held {
			require.Equal(t, fmt.Sprint("id", item.Seq-1), item.ID)
			ids[item.ID] = true
		}
		require.Len(t, ids, items)
	})
}

func TestAFetchIsBoundedByTheFreeSlots(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(20)
		b := w.bridge(func(c *Config) { c.Max = 5 })
		b.run(true)
		time.Sleep(5 * time.Minute)
		require.Len(t, b.held(), 5)
		require.Equal(t, 5, w.info().NumAckPending)
		require.Empty(t, b.intake.Trouble(), "to be full is no trouble")
		require.Zero(t, w.info().NumWaiting, "it does not ask for what it has no room for")

		before := time.Now()
		b.held()[0].Lease.Ack()
		b.held()[3].Lease.Nak(0)
		items := b.held()
		require.Len(t, items, 7, "slots that come free are filled at once")
		require.Less(t, time.Since(before), 10*time.Millisecond)
		require.Equal(t, 5, b.keeper.Held())
		for i := 0; i < len(items); i++ {
			items[i].Lease.Ack()
			items = b.held()
		}
		require.Zero(t, w.work())
	})
}

func TestAPausedIntakeFetchesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var why atomic.Pointer[string]
		pause := func(s string) { why.Store(&s) }
		pause("the results stream is full")
		b := w.bridge(func(c *Config) { c.Paused = func() string { return *why.Load() } })
		require.Equal(t, "not fetching yet", b.intake.Trouble())
		b.run(true)
		w.submit("a")
		time.Sleep(time.Minute)
		require.Empty(t, b.held())
		require.Zero(t, w.info().NumWaiting)
		require.Equal(t, "the results stream is full", b.intake.Trouble())

		pause("")
		time.Sleep(fullWait)
		require.Equal(t, []string{"a"}, b.ids())
		require.Empty(t, b.intake.Trouble())
		require.Equal(t, 1, w.info().NumWaiting)

		pause("again")
		time.Sleep(2 * maxFetchWait)
		w.submit("b")
		time.Sleep(time.Minute)
		require.Equal(t, []string{"a"}, b.ids())
		require.True(t, b.held()[0].Lease.Trusted(), "what is held is kept")
	})
}

func TestWhatComesAfterTheStopGoesBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		ctx := t.Context()
		stop, drain := context.WithCancel(ctx)
		ended := make(chan time.Time, 1)
		go func() {
			b.intake.Run(ctx, stop)
			ended <- time.Now()
		}()
		time.Sleep(4*maxFetchWait + time.Second)
		require.Equal(t, []string{"a"}, b.ids())
		stopped := time.Now()
		drain()
		time.Sleep(time.Millisecond)
		w.submit("b")
		w.submit("c")
		require.LessOrEqual(t, (<-ended).Sub(stopped), maxFetchWait)
		require.Equal(t, []string{"a"}, b.ids(), "the others were not handed on")
		require.ElementsMatch(t, []string{"-NAK 2", "-NAK 3"}, w.acks.since(), "once, and not to the fetch that brought them")
		require.Len(t, w.fetch(10), 2, "they are there for others")
		require.Equal(t, 1, b.keeper.Held())
		require.Equal(t, 1, b.counted("bridge_deliveries_total"))
	})
}

func TestRunEndsAfterWhatItHandedOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		b.intake.cfg.Handle = func(ctx context.Context, items []Item) {
			time.Sleep(time.Minute)
			b.handle(ctx, items)
		}
		end := b.run(true)
		time.Sleep(time.Second)
		start := time.Now()
		end()
		require.Equal(t, 59*time.Second, time.Since(start))
		require.Equal(t, []string{"a"}, b.ids())
	})
}

func TestAConsumerThatCannotBeHadIsAskedForAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		var calls int
		b := w.bridge(func(c *Config) {
			consumer := c.Consumer
			c.Consumer = func(ctx context.Context) (Consumer, error) {
				if calls++; calls <= 20 {
					return nil, errors.New("not now")
				}
				return consumer(ctx)
			}
		})
		start := time.Now()
		b.run(true)
		time.Sleep(10 * time.Second)
		require.Equal(t, "not fetching yet", b.intake.Trouble())
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"a"}, b.ids())
		require.Less(t, b.times[0].Sub(start), 20*time.Second)
		require.Greater(t, b.times[0].Sub(start), 15*time.Second, "once a second at most")
		require.Empty(t, b.intake.Trouble())
		require.Equal(t, 20, b.counted("bridge_failed_fetches_total"))
		require.Equal(t, 1, strings.Count(b.log.String(), "cannot fetch work"), "told once")
		time.Sleep(maxFetchWait)
		require.Contains(t, b.log.String(), "work comes in again")
	})
}

// remaking makes what is missing anew, as cmd/bridge does.
func remaking(w *world) func(*Config) {
	return func(c *Config) {
		c.Consumer = func(ctx context.Context) (Consumer, error) {
			w.ensure()
			return w.consumer(ctx)
		}
	}
}

func TestAConsumerThatIsDeletedIsMadeAnew(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(3)
		b := w.bridge(remaking(w))
		b.run(true)
		time.Sleep(11 * time.Second)
		old := b.held()
		require.Len(t, old, 3)
		require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.WorkStream(), w.names.Consumer()))
		time.Sleep(time.Second)
		require.Equal(t, 1, b.counted("bridge_failed_fetches_total"))
		require.Contains(t, b.log.String(), "cannot fetch work")
		require.Contains(t, b.log.String(), "made anew")

		items := b.held()
		require.Len(t, items, 6, "what was held comes again")
		require.ElementsMatch(t, b.ids()[:3], b.ids()[3:])
		w.acks.since()
		for _, item := range old {
			require.False(t, item.Lease.Trusted(), "anybody may have it now")
			item.Lease.Ack()
			item.Lease.Nak(0)
		}
		require.Empty(t, w.acks.since())
		require.Equal(t, 3, b.keeper.Held())
		time.Sleep(5 * time.Minute)
		require.Len(t, b.held(), 6)
		for _, item := range items[3:] {
			require.True(t, item.Lease.Trusted())
			item.Lease.Ack()
		}
		require.Zero(t, w.work())
		require.Empty(t, b.intake.Trouble())
	})
}

func TestTheLeasesOfAStreamThatIsDeletedDoNotTouchItsSuccessors(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(2)
		b := w.bridge(remaking(w))
		b.run(true)
		time.Sleep(time.Second)
		old := b.held()
		require.Len(t, old, 2)
		old[1].Lease.Ack()
		require.NoError(t, w.js.DeleteStream(t.Context(), w.names.WorkStream()))
		time.Sleep(time.Second)
		require.Zero(t, b.keeper.Held())
		w.submit("new")
		require.Len(t, b.held(), 3)
		fresh := b.held()[2]
		require.EqualValues(t, 1, fresh.Seq, "the new stream begins to count anew")
		old[0].Lease.Ack()
		time.Sleep(time.Minute)
		require.Equal(t, 1, w.work(), "it is not the old request's to settle")
		require.True(t, fresh.Lease.Trusted())
		fresh.Lease.Ack()
		require.Zero(t, w.work())
	})
}

func TestAConsumerThatComesBackAsItWasKeepsItsLeases(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(3)
		b := w.bridge(remaking(w))
		b.intake.cfg.Consumer = w.consumer // which fails while the server is down
		b.run(true)
		time.Sleep(25 * time.Second) // long enough for the server to have written down what it delivered
		w.Stop()
		time.Sleep(5 * time.Second)
		w.Start()
		time.Sleep(10 * time.Second)
		w.submit("later")
		require.Equal(t, []string{"id0", "id1", "id2", "later"}, slices.Sorted(slices.Values(b.ids())))
		time.Sleep(5 * time.Minute)
		require.Len(t, b.held(), 4)
		for _, item := range b.held() {
			require.True(t, item.Lease.Trusted())
		}
		require.Equal(t, 4, w.info().NumAckPending)
		require.Zero(t, w.info().NumRedelivered)
	})
}
