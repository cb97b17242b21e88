package intake

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestABurstThatNoConsumerTakesEarnsNoTrust(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.submit("a")
		b := w.bridge(nil)
		end := b.run(false)
		lease := b.held()[0].Lease
		end()
		time.Sleep(10 * time.Second)
		extended := time.Now()
		require.NoError(t, b.keeper.extend(t.Context()))
		// As while a consumer in a cluster has no leader: the server that the bridge is connected to is well.
		require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.WorkStream(), w.names.Consumer()))
		time.Sleep(10 * time.Second)
		require.Error(t, b.keeper.extend(t.Context()))
		time.Sleep(time.Until(extended.Add(27*time.Second - 1)))
		require.True(t, lease.Trusted())
		time.Sleep(1)
		require.False(t, lease.Trusted())
	})
}
