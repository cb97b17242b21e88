package intake

import (
	"bytes"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLeasesAreExtendedInBurstsAndNothingIsDeliveredTwice(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const items = 200
		w.submitMany(items)
		b := w.bridge(nil)
		start := time.Now()
		b.run(true)
		time.Sleep(10*time.Minute + time.Second)

		held := b.held()
		require.Len(t, held, items)
		for _, item := range held {
			require.False(t, item.Redelivered)
			require.True(t, item.Lease.Trusted())
		}
		info := w.info()
		require.Equal(t, items, info.NumAckPending)
		require.Zero(t, info.NumRedelivered)
		require.Equal(t, items, b.keeper.Held())
		require.Equal(t, 60*items, b.counted("bridge_lease_extensions_total"))

		bursts := make(map[time.Duration]int)
		for i, ack := range w.acks.since() {
			require.True(t, strings.HasPrefix(ack, "+WPI "), ack)
			bursts[w.acks.times[i].Sub(start).Round(time.Millisecond)]++
		}
		require.Len(t, bursts, 60)
		for i := range 60 {
			require.Equal(t, items+1, bursts[time.Duration(i+1)*10*time.Second], "all at once and the question, every third of AckWait")
		}
	})
}

func TestTrustCountsFromWhenTheFetchWasSent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b := w.bridge(nil)
		start := time.Now()
		b.run(false)
		time.Sleep(1900 * time.Millisecond)
		w.submit("late")
		lease := b.held()[0].Lease
		time.Sleep(27*time.Second - time.Since(start) - 1)
		require.True(t, lease.Trusted())
		time.Sleep(1)
		require.False(t, lease.Trusted(), "although the server keeps it until 31.9 s")
		require.Equal(t, 1, w.info().NumAckPending)
	})
}

func TestTrustCountsFromWhenTheExtensionWasSent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		start := time.Now()
		end := b.run(true)
		time.Sleep(15 * time.Second)
		lease := b.held()[0].Lease
		end()
		time.Sleep(37*time.Second - time.Since(start) - 1)
		require.True(t, lease.Trusted(), "27 s from the burst at 10 s")
		time.Sleep(1)
		require.False(t, lease.Trusted())
	})
}

func TestALeaseThatIsNotTrustedIsLetGo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(3)
		b := w.bridge(nil)
		end := b.run(false)
		items := b.held()
		require.Len(t, items, 3)
		end()
		time.Sleep(27 * time.Second) // of a process that was stopped

		require.NoError(t, b.keeper.extend(t.Context()))
		items[0].Lease.Nak(0)
		items[1].Lease.Drop()
		require.NoError(t, w.nc.Flush())
		require.Empty(t, w.acks.since(), "neither extended nor handed back")
		require.Equal(t, 1, b.keeper.Held())
		require.Empty(t, w.fetch(10))
		time.Sleep(3 * time.Second)
		require.Len(t, w.fetch(10), 3, "they go to others when the server says so")
	})
}

func TestABurstThatIsNotSeenByTheServerIsRepeatedAndEarnsNoTrust(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(2)
		b := w.bridge(nil)
		b.run(true)
		time.Sleep(25 * time.Second)
		lease := b.held()[0].Lease
		w.Stop()
		time.Sleep(10 * time.Second)
		require.Equal(t, 6, b.counted("bridge_failed_lease_bursts_total"), "once a second since the thirtieth")
		require.Contains(t, b.log.String(), "leases could not be extended")
		require.True(t, lease.Trusted())
		w.Start()
		time.Sleep(2 * time.Second)
		require.Equal(t, 6, b.counted("bridge_lease_extensions_total"), "two in each of three bursts")
		time.Sleep(5 * time.Minute)
		require.True(t, lease.Trusted())
		require.Zero(t, w.info().NumRedelivered)
		require.Len(t, b.held(), 2)

		w.Stop()
		time.Sleep(28 * time.Second)
		require.False(t, lease.Trusted())
		w.Start()
		time.Sleep(time.Minute)
		held := b.held()
		require.Len(t, held, 4, "what was let go comes again")
		require.True(t, held[2].Redelivered)
		require.True(t, held[2].Lease.Trusted())
		require.False(t, lease.Trusted())
	})
}

func TestALaterDeliveryVoidsTheEarlierLease(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		b.run(false)
		time.Sleep(ackWait + time.Second)
		items := b.held()
		require.Len(t, items, 2)
		first, second := items[0].Lease, items[1].Lease
		require.Equal(t, items[0].Seq, items[1].Seq)
		require.Equal(t, items[0].Submitted, items[1].Submitted, "a deadline stays where it was")
		require.False(t, first.Trusted())
		require.True(t, second.Trusted())

		time.Sleep(time.Second)
		require.Equal(t, []string{"+WPI 1"}, w.acks.since(), "of a second delivery the server is told that it was taken now")

		first.Ack()
		first.Nak(0)
		first.Drop()
		require.NoError(t, b.keeper.extend(t.Context()))
		require.Equal(t, []string{"+WPI 1", question}, w.acks.since(), "the second's extension alone")
		require.False(t, first.Trusted())
		require.Equal(t, 1, b.keeper.Held())
		second.Ack()
		require.Equal(t, []string{"+ACK 1"}, w.acks.since())
		require.Zero(t, w.work())
		require.Zero(t, b.keeper.Held())
	})
}

func TestTheServerIsToldWhenAnOldItemWasTaken(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("old")
		time.Sleep(ackWait / 5)
		b := w.bridge(nil)
		b.run(false)
		require.Len(t, b.held(), 1)
		time.Sleep(time.Second)
		require.Equal(t, []string{"+WPI 1"}, w.acks.since())
		w.submit("new")
		require.Len(t, b.held(), 2)
		time.Sleep(time.Second)
		require.Empty(t, w.acks.since(), "of a new one it knows")
	})
}

func TestALeaseIsVoidAsSoonAsItsItemIsDeliveredAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		b.run(false)
		first := b.held()[0].Lease
		require.True(t, first.Trusted())
		require.NoError(t, w.other.Publish(first.subject(), []byte("-NAK")), "somebody gives it back")
		require.NoError(t, w.other.Flush())
		items := b.held()
		require.Len(t, items, 2)
		require.False(t, first.Trusted())
		require.True(t, items[1].Lease.Trusted())
	})
}

// slow is a connection whose confirmations of a flush take their time.
type slow struct {
	net.Conn
	wait time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("PONG")) {
		time.Sleep(s.wait)
	}
	return n, err
}

func TestABurstDoesNotReviveALeaseThatIsLostMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(2)
		w.wrap(func(conn net.Conn) net.Conn { return &slow{conn, 4 * time.Second} })
		time.Sleep(9 * time.Second)
		b := w.bridge(nil)
		end := b.run(false)
		time.Sleep(time.Second)
		items := b.held()
		require.Len(t, items, 2)
		end()
		var burst sync.WaitGroup
		burst.Go(func() { require.NoError(t, b.keeper.extend(t.Context())) })
		time.Sleep(time.Second)
		lost, kept := items[0].Lease, items[1].Lease
		again := b.keeper.take(items[0].Seq, lost.subject(), time.Now().Add(-20*time.Second))
		burst.Wait()
		require.False(t, lost.Trusted())
		require.True(t, kept.Trusted())
		time.Sleep(10 * time.Second)
		require.False(t, again.Trusted(), "its own fetch was sent before the burst, which was not about it")
		require.True(t, kept.Trusted())
	})
}

func TestAcknowledgementsGoWhereTheDeliverySays(t *testing.T) {
	const (
		plain  = "$JS.ACK.TINKER_WORK.bridge.1.7.7.1700000000000000000.0"
		domain = "$JS.ACK.hub.ACCOUNT.TINKER_WORK.bridge.1.7.7.1700000000000000000.0"
		random = domain + ".aBcD"
		odd    = "reply"
	)
	for _, c := range []struct{ first, prefix string }{
		{plain, "$JS.ACK.TINKER_WORK.bridge."},
		{domain, "$JS.ACK.hub.ACCOUNT.TINKER_WORK.bridge."},
		{random, "$JS.ACK.hub.ACCOUNT.TINKER_WORK.bridge."},
		{odd, ""},
	} {
		k := &Keeper{live: make(map[uint64]*Lease)}
		require.Equal(t, c.first, k.take(1, c.first, time.Now()).subject())
		require.Equal(t, c.prefix, k.prefix)
		for i, reply := range []string{plain, domain, random} {
			require.Equal(t, reply, k.take(uint64(i), reply, time.Now()).subject(), "after "+c.first)
		}
	}
}

func TestANakHandsTheWorkItemOnAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(100)
		b := w.bridge(nil)
		end := b.run(true)
		items := b.held()
		require.Len(t, items, 100)
		end()
		start := time.Now()
		for _, item := range items {
			item.Lease.Nak(0)
		}
		require.Zero(t, b.keeper.Held())
		require.NoError(t, w.nc.Flush())
		got := w.fetch(200)
		require.Len(t, got, 100)
		require.Less(t, time.Since(start), 10*time.Millisecond)
		meta, err := got[0].Metadata()
		require.NoError(t, err)
		require.EqualValues(t, 2, meta.NumDelivered)
		items[0].Lease.Nak(0)
		require.NoError(t, w.nc.Flush())
		require.Empty(t, w.fetch(200), "it is no longer this bridge's to hand on")
	})
}

func TestWhatIsHandedBackForLaterComesLater(t *testing.T) {
	for _, after := range []time.Duration{5 * time.Second, ackWait / 2, 3 * ackWait} {
		for _, how := range []string{"the server goes on", "the server is started again", "the server stops with the bridge"} {
			t.Run(how+" "+after.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.submitMany(10)
					b := w.bridge(nil)
					if how == "the server stops with the bridge" {
						b.keeper.StopsWithServer()
					}
					end := b.run(true)
					items := b.held()
					time.Sleep(2*ackWait + 900*time.Millisecond) // the server writes down whole seconds
					handed := time.Now()
					for _, item := range items {
						item.Lease.Nak(after)
					}
					end()
					require.NoError(t, b.keeper.Flush(t.Context()))
					if how != "the server goes on" {
						w.Stop()
						w.Start()
					}
					time.Sleep(time.Until(handed.Add(after - time.Millisecond)))
					require.Empty(t, w.fetch(200))
					time.Sleep(3 * time.Second)
					require.Len(t, w.fetch(200), 10)
				})
			})
		}
	}
}

func TestABurstDoesNotTakeBackWhatWasHandedBackForLater(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 3000
		w.submitMany(n)
		b := w.bridge(func(c *Config) { c.Max = 2 * n })
		end := b.run(false)
		items := b.held()
		require.Len(t, items, n)
		end()
		time.Sleep(ackWait / 2)
		var both sync.WaitGroup
		before := w.nc.Stats().OutMsgs
		both.Go(func() { _ = b.keeper.extend(t.Context()) })
		both.Go(func() {
			for w.nc.Stats().OutMsgs < before+20 { // the burst has begun
				runtime.Gosched()
			}
			for _, item := range items {
				item.Lease.Nak(3 * ackWait)
			}
		})
		both.Wait()
		time.Sleep(2 * ackWait)
		require.Empty(t, w.fetch(2*n))
		time.Sleep(ackWait + 2*time.Second)
		require.Len(t, w.fetch(2*n), n)
	})
}

func TestALeaseInDoubtIsNotHandedBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b, elect := w.bridgeWithElections()
		b.run(true)
		time.Sleep(35 * time.Second)
		w.submit("new")
		time.Sleep(2 * time.Second)
		elect()
		time.Sleep(4 * time.Second) // a burst, which finds the new leader
		require.Contains(t, b.log.String(), "leases=1")
		w.acks.since()
		b.held()[0].Lease.Nak(5 * time.Second)
		require.NoError(t, w.nc.Flush())
		require.Empty(t, w.acks.since(), "somebody else may have the item, and would lose it")
	})
}

func TestWhatIsHandedBackToAServerThatStopsIsThereWhenItStartsAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(100)
		b := w.bridge(nil)
		b.keeper.StopsWithServer()
		end := b.run(true)
		items := b.held()
		time.Sleep(ackWait) // they were extended since
		for _, item := range items[:99] {
			item.Lease.Nak(0)
		}
		require.Equal(t, 1, b.keeper.Held())
		require.Empty(t, w.fetch(200), "the server goes on, and they would be forgotten with it")
		items[99].Lease.Nak(0)
		items[99].Lease.Nak(0)
		end()
		w.acks.since()
		require.NoError(t, b.keeper.Flush(t.Context()))
		require.Len(t, w.acks.since(), 101, "each once, and one that is answered when the consumer has them all")
		w.Stop()
		w.Start()
		time.Sleep(stopTime + 2*time.Second)
		require.Len(t, w.fetch(200), 100)
	})
}

func TestALeaseThatRanOutIsNotHandedBackWhenTheServerStops(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		b.keeper.StopsWithServer()
		end := b.run(false)
		lease := b.held()[0].Lease
		end()
		lease.Nak(0)
		time.Sleep(ackWait)
		require.Len(t, w.fetch(1), 1, "somebody else has it")
		w.acks.since()
		require.NoError(t, b.keeper.Flush(t.Context()))
		require.Len(t, w.acks.since(), 1, "the question whether the consumer has them all")
	})
}

func TestAFlushOfAKeeperThatTookNothingIsOverAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		require.NoError(t, w.bridge(nil).keeper.Flush(t.Context()))
		require.Empty(t, w.acks.since())
	})
}
