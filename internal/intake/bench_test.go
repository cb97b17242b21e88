package intake

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
)

// BenchmarkParse is one submission as the package client writes it.
func BenchmarkParse(b *testing.B) {
	data := []byte(`{"request_id":"3bcb34a3-3037-49fe-b8a2-2eac64c37fc0:train:0:4711","request_type":"Sample"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(nil, data, publish.CheckID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAck is one work item's acknowledgement, until the server in this process has confirmed it.
func BenchmarkAck(b *testing.B) {
	const batch = 1000
	w := newWorld(b)
	keeper, err := NewKeeper(w.nc, ackWait, NewMetrics(nil), slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	defer keeper.Close()
	consumer, err := w.consumer(b.Context())
	require.NoError(b, err)
	b.ResetTimer()
	for left := b.N; left > 0; left -= batch {
		b.StopTimer()
		n := min(left, batch)
		for i := range n {
			_, err := w.js.PublishAsync(w.names.Submit(), fmt.Append(nil, "id", i))
			require.NoError(b, err)
		}
		sent := time.Now()
		items, err := consumer.Fetch(n, 10*time.Second)
		require.NoError(b, err)
		var leases []*Lease
		for m := range items.Messages() {
			meta, err := m.Metadata()
			require.NoError(b, err)
			leases = append(leases, keeper.take(meta.Sequence.Stream, m.Reply, sent))
		}
		require.Len(b, leases, n)
		b.StartTimer()
		for _, l := range leases {
			l.Ack()
		}
		for keeper.Held() > 0 {
			<-keeper.freed
		}
	}
}
