package intake

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAnAckIsConfirmedAndRemovesTheWorkItem(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(3)
		b := w.bridge(nil)
		b.run(true)
		items := b.held()
		items[0].Lease.Ack()
		items[2].Lease.Term()
		require.Equal(t, []string{"+ACK 1", "+TERM 3"}, w.acks.since())
		require.Equal(t, 1, b.keeper.Held())
		require.Equal(t, 1, w.work())
		require.Equal(t, 1, w.info().NumAckPending)
		time.Sleep(10 * time.Minute)
		require.Len(t, b.held(), 3, "nothing comes again")
		for _, ack := range w.acks.since() {
			require.Contains(t, []string{"+WPI 2", question}, ack, "what is settled is neither repeated nor extended")
		}
	})
}

// lossy is the bridge's connection, on which some reads or writes do not arrive.
type lossy struct {
	net.Conn
	lost          *atomic.Int32
	write, answer []byte // what must be in those that are lost
}

func (l *lossy) Write(p []byte) (int, error) {
	if l.write != nil && bytes.Contains(p, l.write) && l.lost.Add(-1) >= 0 {
		return len(p), nil
	}
	return l.Conn.Write(p)
}

func (l *lossy) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if l.answer != nil && bytes.Contains(p[:n], l.answer) && l.lost.Add(-1) >= 0 {
		return l.Read(p)
	}
	return n, err
}

func TestAnAckIsRepeatedUntilItIsConfirmed(t *testing.T) {
	for name, c := range map[string]struct {
		write, answer string
		arrive        []string // of three, two are lost
	}{
		"the ack is lost":          {"+ACK", "", []string{"+ACK 1"}},
		"its confirmation is lost": {"", "MSG _INBOX", []string{"+ACK 1", "+ACK 1", "+ACK 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.submit("a")
				lost := &atomic.Int32{}
				w.wrap(func(conn net.Conn) net.Conn {
					l := &lossy{Conn: conn, lost: lost}
					if c.write != "" {
						l.write = []byte(c.write)
					} else {
						l.answer = []byte(c.answer)
					}
					return l
				})
				b := w.bridge(nil)
				end := b.run(false)
				lease := b.held()[0].Lease
				end()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go b.keeper.Run(ctx)

				lost.Store(2)
				start := time.Now()
				lease.Ack()
				time.Sleep(5*time.Second + confirmEvery - time.Since(start))
				require.Negative(t, lost.Load())
				require.Equal(t, c.arrive, w.acks.since())
				require.Zero(t, b.keeper.Held())
				require.Zero(t, w.work())
				time.Sleep(time.Minute)
				require.Empty(t, w.acks.since(), "it is not repeated for ever")
				cancel()
			})
		})
	}
}

func TestAnAckOutlivesARestartOfTheServer(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		b.run(true)
		lease := b.held()[0].Lease
		w.Stop()
		lease.Ack()
		time.Sleep(5 * time.Second)
		require.Equal(t, 1, b.keeper.Held(), "it is not settled before the server says so")
		w.Start()
		time.Sleep(5 * time.Second)
		require.Zero(t, b.keeper.Held())
		require.Zero(t, w.work())
		require.Len(t, b.held(), 1)
	})
}

func TestAnAckThatNobodyConfirmsIsGivenUpWhenTrustRunsOut(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		end := b.run(false)
		lease := b.held()[0].Lease
		end()
		require.NoError(t, w.acks.sub.Unsubscribe(), "the server answers for a consumer that is gone only if nobody listens")
		require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.WorkStream(), w.names.Consumer()))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.keeper.Run(ctx)
		lease.Ack()
		time.Sleep(20 * time.Second)
		require.Equal(t, 1, b.keeper.Held(), "that nobody listens is no confirmation")
		time.Sleep(9 * time.Second)
		require.Zero(t, b.keeper.Held())
		require.Equal(t, 1, w.work())
		cancel()
	})
}

func TestAnItemThatComesAgainBeforeItsAckIsConfirmedIsHeldOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		lost := &atomic.Int32{}
		w.wrap(func(conn net.Conn) net.Conn { return &lossy{Conn: conn, lost: lost, write: []byte("+ACK")} })
		b := w.bridge(nil)
		b.run(true)
		time.Sleep(time.Second)
		first := b.held()[0].Lease
		lost.Store(1)
		first.Ack()
		synctest.Wait() // it is lost alone, and nothing with it
		require.NoError(t, w.other.Publish(first.subject(), []byte("-NAK")), "somebody gives it back")
		require.NoError(t, w.other.Flush())
		items := b.held()
		require.Len(t, items, 2)
		require.Equal(t, 1, b.keeper.Held())
		time.Sleep(time.Second)
		require.Equal(t, []string{"-NAK 1", "+WPI 1"}, w.acks.since(), "the second delivery is announced")
		time.Sleep(2 * confirmEvery)
		require.Empty(t, w.acks.since(), "the first is not repeated")
		items[1].Lease.Ack()
		require.Zero(t, w.work())
		require.Zero(t, b.keeper.Held())
	})
}

func TestASlotIsFreeOnlyWhenTheAckIsConfirmed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submitMany(2)
		lost := &atomic.Int32{}
		w.wrap(func(conn net.Conn) net.Conn { return &lossy{Conn: conn, lost: lost, write: []byte("+ACK")} })
		b := w.bridge(func(c *Config) { c.Max = 1 })
		b.run(true)
		time.Sleep(time.Second)
		require.Equal(t, []string{"id0"}, b.ids())
		lost.Store(1)
		b.held()[0].Lease.Ack()
		time.Sleep(time.Second)
		require.Equal(t, []string{"id0"}, b.ids())
		time.Sleep(2 * confirmEvery)
		require.Equal(t, []string{"id0", "id1"}, b.ids())
	})
}
