package intake

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

func TestWhatIsNoRequestIsRejectedWholeAndHarmsNobody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for i, c := range hopeless {
			w.submit(fmt.Sprint("good", i))
			m := nats.NewMsg(w.names.Submit() + ".team.a")
			m.Header, m.Data = nats.Header{"Mine": {"x"}}, []byte(c.data)
			for name, values := range c.header {
				m.Header[name] = values
			}
			_, err := w.js.PublishMsg(t.Context(), m)
			require.NoError(t, err)
		}
		b := w.bridge(nil)
		b.run(true)
		time.Sleep(time.Second)
		var good []string
		for i := range hopeless {
			good = append(good, fmt.Sprint("good", i))
		}
		require.ElementsMatch(t, good, b.ids())
		require.Equal(t, len(hopeless), w.work(), "what is rejected is settled")
		require.Equal(t, len(hopeless), b.keeper.Held())
		require.Equal(t, len(hopeless), b.counted("bridge_rejected_total"))
		require.Equal(t, 2*len(hopeless), b.counted("bridge_deliveries_total"))

		stream, err := w.js.Stream(t.Context(), w.names.RejectedStream())
		require.NoError(t, err)
		require.EqualValues(t, len(hopeless), stream.CachedInfo().State.Msgs)
		for i, c := range hopeless {
			got, err := stream.GetLastMsgForSubject(t.Context(), w.names.Rejected(uint64(2*i+2)))
			require.NoError(t, err, c.name)
			require.True(t, c.data[:min(len(c.data), 64<<10)] == string(got.Data), c.name)
			reason := got.Header.Get("Bridge-Rejected-Reason")
			require.True(t, strings.HasPrefix(reason, c.reason), "%s: %q", c.name, reason)
			require.Equal(t, "x", got.Header.Get("Mine"))
		}
		time.Sleep(5 * time.Minute)
		require.Len(t, b.held(), len(hopeless), "and never comes again")
	})
}

func TestARejectionThatTakesLongHoldsUpNoRequest(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for range maxRejecting - 1 {
			w.submit("")
		}
		w.submitMany(5)
		stored := make(chan struct{})
		b := w.bridge(func(c *Config) {
			c.Reject = func(context.Context, uint64, time.Time, string, *nats.Msg) error {
				<-stored
				return nil
			}
		})
		b.run(true)
		require.Len(t, b.held(), 5)
		time.Sleep(5 * time.Minute)
		require.Equal(t, maxRejecting+4, w.work(), "nothing is terminated before its rejection is stored")
		require.Zero(t, w.info().NumRedelivered)
		close(stored)
		require.Equal(t, 5, w.work())
		require.Equal(t, 5, b.keeper.Held())
	})
}

func TestARejectionThatWasNotStoredIsForTheNextBridge(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("")
		b := w.bridge(func(c *Config) {
			c.Reject = func(ctx context.Context, seq uint64, submitted time.Time, reason string, m *nats.Msg) error {
				<-ctx.Done()
				return ctx.Err()
			}
		})
		ctx, cut := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cut()
		}()
		b.intake.Run(ctx, ctx)
		require.Zero(t, b.keeper.Held())
		require.Equal(t, []string{"-NAK 1", "-NAK 1"}, w.acks.since(), "once more for the fetch under way, which was given it again")
		require.Len(t, w.fetch(10), 1)
		require.Equal(t, 1, w.work())
	})
}
