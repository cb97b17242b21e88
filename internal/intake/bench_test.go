package intake

import (
	"testing"

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
