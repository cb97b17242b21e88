package poll

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkDispatch is what the engine's goroutine does for a poll of one of 100,000 requests, but for handing it over:
// the request becomes due, has its turn, is admitted, is answered, and waits again.
func BenchmarkDispatch(b *testing.B) {
	for name, limit := range map[string]float64{"no limit": 0, "fixed rate": 1e9} {
		b.Run(name, func(b *testing.B) {
			const n = 100_000
			g, s := newGate(1024, limit, DefaultPolicy()), newLanes()
			var h dueHeap
			for i := range n {
				h.push(entry{int64(i), &row{lane: s.of(fmt.Sprint(i % 10))}})
			}
			o, at := pending(), epoch
			b.ReportAllocs()
			for b.Loop() {
				s.push(h.pop())
				_ = s.first(false)
				at = at.Add(time.Microsecond)
				if ok, _ := g.admit(at); !ok {
					b.Fatal("refused")
				}
				e := s.pop(false)
				g.observe(&o, at, false, at)
				h.push(entry{e.due + n, e.row})
			}
		})
	}
}
