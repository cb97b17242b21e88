package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

func line(e Event) string {
	if e.Closing {
		return fmt.Sprintf("%s! %s", e.RequestID, e.Status)
	}
	return fmt.Sprintf("%s %s", e.RequestID, e.Status)
}

func TestAWatchOfSomeIDsEndsWhenAllAreClosed(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.state("a", "queued")
		b.state("other", "queued")
		b.state("b.b", "queued")
		b.fail("b.b", poll.Failed)
		time.AfterFunc(time.Hour, func() {
			b.state("a", "running")
			b.complete("a", "12")
		})
		var lines []string
		var last Event
		for e, err := range b.client().Watch(t.Context(), WatchOptions{IDs: []string{"a", "b.b", "a"}}) {
			require.NoError(t, err)
			lines = append(lines, line(e))
			if e.RequestID == "b.b" && e.Closing {
				require.Equal(t, "bad prompt", e.Err.Message)
			}
			last = e
		}
		require.Equal(t, []string{"a queued", "b.b queued", "b.b! failed", "a running", "a! completed"}, lines)
		require.EqualValues(t, 2, last.ResultBytes)
		require.Equal(t, 1500*time.Millisecond, last.Elapsed)
		require.Nil(t, last.Err)
	})
}

func TestAWatchOfManyIDsNeedsNoFilters(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var ids []string
		for i := range maxFilters + 1 {
			ids = append(ids, fmt.Sprint("r", i))
			b.complete(ids[i], "1")
			b.state(fmt.Sprint("s", i), "queued")
		}
		n := 0
		for e, err := range b.client().Watch(t.Context(), WatchOptions{IDs: ids}) {
			require.NoError(t, err)
			require.Equal(t, ids[n], e.RequestID)
			n++
		}
		require.Equal(t, len(ids), n)
	})
}

func TestAWatchOfAllRunsUntilItsContextEnds(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.state("old", "queued")
		time.Sleep(time.Hour)
		since := time.Now()
		b.state("new", "queued")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		time.AfterFunc(24*time.Hour, func() { b.complete("new", "1") })
		var lines []string
		var last error
		for e, err := range b.client().Watch(ctx, WatchOptions{All: true, Since: since}) {
			if last = err; err != nil {
				continue
			}
			lines = append(lines, line(e))
			if e.Closing {
				cancel()
			}
		}
		require.ErrorIs(t, last, context.Canceled)
		require.Equal(t, []string{"new queued", "new! completed"}, lines)

		lines = nil
		for e, err := range b.client().Watch(t.Context(), WatchOptions{IDs: []string{"old", "new"}, Since: since}) {
			require.NoError(t, err)
			lines = append(lines, line(e))
			if e.Closing {
				break
			}
		}
		require.Equal(t, []string{"new queued", "new! completed"}, lines)
	})
}

func TestAWatchSeesEveryEventOnceThroughRestartsAndLostConsumers(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		watcher := b.connect()
		defer watcher.Close()
		c, err := New(watcher)
		require.NoError(t, err)
		var want []string
		go func() {
			for i := range 30 {
				time.Sleep(7 * time.Second)
				switch i % 10 {
				case 3:
					b.Stop()
					time.Sleep(20 * time.Second)
					b.Start()
					for !b.nc.IsConnected() {
						time.Sleep(10 * time.Millisecond)
					}
				case 7: // somebody tidies up
					stream, err := b.js.Stream(t.Context(), b.names.StatesStream())
					if err != nil {
						continue
					}
					for name := range stream.ConsumerNames(t.Context()).Name() {
						_ = stream.DeleteConsumer(t.Context(), name)
					}
				}
				b.state("a", fmt.Sprint("s", i))
			}
			b.complete("a", "1")
		}()
		for i := range 30 {
			want = append(want, fmt.Sprint("a s", i))
		}
		want = append(want, "a! completed")
		var lines []string
		for e, err := range c.Watch(t.Context(), WatchOptions{IDs: []string{"a"}}) {
			require.NoError(t, err)
			lines = append(lines, line(e))
		}
		require.Equal(t, want, lines)
		stream, err := b.js.Stream(t.Context(), b.names.StatesStream())
		require.NoError(t, err)
		time.Sleep(2 * idleThreshold)
		info, err := stream.Info(t.Context())
		require.NoError(t, err)
		require.Zero(t, info.State.Consumers, "nothing is left on the server")
	})
}

func TestAWatchThatCannotBeginSaysWhy(t *testing.T) {
	c, err := New(nil, WithJetStream(new(fakeJetStream)))
	require.NoError(t, err)
	for _, o := range []WatchOptions{{}, {All: true, IDs: []string{"a"}}, {IDs: []string{" "}}} {
		n := 0
		for _, err := range c.Watch(t.Context(), o) {
			require.Error(t, err)
			require.False(t, errors.Is(err, ErrNoBridge))
			n++
		}
		require.Equal(t, 1, n)
	}
}

func TestAWatchGoesOnInAStreamThatWasMadeAnew(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		for i := range 20 {
			b.state("old", fmt.Sprint("s", i))
		}
		time.AfterFunc(10*time.Second, func() {
			require.NoError(t, b.js.DeleteStream(t.Context(), b.names.StatesStream()))
			_, err := publish.Ensure(t.Context(), b.js, b.names, publish.Options{})
			require.NoError(t, err)
		})
		time.AfterFunc(time.Minute, func() {
			b.state("new", "queued")
			b.complete("new", "1")
		})
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		for e, err := range b.client().Watch(ctx, WatchOptions{IDs: []string{"old", "new"}}) {
			require.NoError(t, err)
			if e.RequestID == "new" && e.Closing {
				return
			}
		}
		require.Fail(t, "the watch ended")
	})
}
