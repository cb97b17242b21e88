package intake

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// elected is a consumer whose leaders are told by a test.
type elected struct {
	Consumer
	since *atomic.Pointer[time.Time]
}

func (e elected) with(info *jetstream.ConsumerInfo) *jetstream.ConsumerInfo {
	told := *info
	told.Cluster = &jetstream.ClusterInfo{Leader: "n1", LeaderSince: e.since.Load()}
	return &told
}

func (e elected) CachedInfo() *jetstream.ConsumerInfo { return e.with(e.Consumer.CachedInfo()) }

func (e elected) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	info, err := e.Consumer.Info(ctx)
	if err != nil {
		return nil, err
	}
	return e.with(info), nil
}

// bridgeWithElections is a bridge whose consumer has another leader after each call of elect.
func (w *world) bridgeWithElections() (b *bridge, elect func()) {
	var since atomic.Pointer[time.Time]
	elect = func() { now := time.Now().UTC(); since.Store(&now) }
	elect()
	return w.bridge(func(c *Config) {
		c.Consumer = func(ctx context.Context) (Consumer, error) {
			found, err := w.consumer(ctx)
			return elected{found, &since}, err
		}
	}), elect
}

func TestWhatANewLeaderMayNotKnowOfIsNotExtended(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, elect := w.bridgeWithElections()
		start := time.Now()
		b.run(true)
		w.submit("old")
		time.Sleep(35 * time.Second) // bursts, with a look each, at 10, 20 and 30 s
		w.submit("new")
		time.Sleep(2 * time.Second)
		elect()
		time.Sleep(4 * time.Second)
		old, fresh := b.held()[0].Lease, b.held()[1].Lease
		w.acks.since()
		time.Sleep(time.Until(start.Add(61 * time.Second)))
		require.True(t, old.Trusted())
		extended := w.acks.since()
		require.Contains(t, extended, "+WPI 1")
		require.NotContains(t, extended, "+WPI 2")
		require.True(t, fresh.Trusted(), "for as long as the delivery alone gave it")
		require.Contains(t, b.log.String(), "leases=1")

		time.Sleep(5 * time.Second)
		require.False(t, fresh.Trusted())
		require.True(t, old.Trusted())
		held := b.held()
		require.Len(t, held, 3, "this consumer did know of it, and delivers it again")
		require.Equal(t, "new", held[2].ID)
		require.True(t, held[2].Redelivered)
		time.Sleep(10 * time.Minute)
		require.True(t, held[0].Lease.Trusted())
		require.True(t, held[2].Lease.Trusted(), "under a leader that delivered it itself")
		require.Len(t, b.held(), 3)
	})
}

// A server that is killed just after a burst counts from the burst before, by which everything may have run out by the time
// that it is back; and an extension now would be answered all the same.
func TestWhatRanOutUnlessTheLastBurstIsRememberedIsNotExtended(t *testing.T) {
	for _, c := range []struct {
		name  string
		down  time.Duration // from 21 s on, just after the second burst
		again int
	}{
		{"not yet", 15 * time.Second, 0},
		{"long ago", 25 * time.Second, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.submitMany(2)
				b := w.bridge(nil)
				b.run(true)
				time.Sleep(21 * time.Second)
				w.Stop()
				time.Sleep(c.down)
				w.Start()
				time.Sleep(time.Minute)
				held := b.held()
				require.Len(t, held, 2+c.again)
				require.Equal(t, c.again == 0, held[0].Lease.Trusted())
				require.True(t, held[len(held)-1].Lease.Trusted())
			})
		})
	}
}

func TestALeaderThatStaysMakesNoDoubt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b := w.bridge(nil)
		b.run(true)
		for range 20 {
			w.submit("")
			time.Sleep(lookupEvery / 10)
		}
		time.Sleep(10 * time.Minute)
		require.NotContains(t, b.log.String(), "another leader")
	})
}
