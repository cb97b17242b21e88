package publish

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"futurebridge/internal/poll"
)

// benchmark runs do once for each of b.N requests, one at a time and with many in flight, on a real server with
// a real store, in this process.
func benchmark(b *testing.B, do func(g *rig, r *poll.Request) error) {
	for _, parallel := range []int{1, 256} {
		b.Run(fmt.Sprintf("%d-in-flight", parallel), func(b *testing.B) {
			g := newRig(b, setup{})
			var id, failures atomic.Int64
			b.SetParallelism(max(1, parallel/runtime.GOMAXPROCS(0)))
			b.ReportAllocs()
			b.ResetTimer()
			work := func(next func() bool) {
				for next() {
					if do(g, request(fmt.Sprint("request-", id.Add(1)))) != nil {
						failures.Add(1)
					}
				}
			}
			if parallel == 1 {
				work(b.Loop)
			} else {
				b.RunParallel(func(pb *testing.PB) { work(pb.Next) })
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			if failures.Load() > 0 {
				b.Fatal(failures.Load(), "failed")
			}
		})
	}
}

// BenchmarkTransition is one fenced state of a request of its own.
func BenchmarkTransition(b *testing.B) {
	benchmark(b, func(g *rig, r *poll.Request) error {
		_, err := g.Transition(g.ctx, r, transition("active", "", 1))
		return err
	})
}

// BenchmarkFinish is one result and its closing record.
func BenchmarkFinish(b *testing.B) {
	for name, size := range map[string]int{"200B": 200, "20KB": 20_000} {
		result := sized(size)
		b.Run(name, func(b *testing.B) {
			benchmark(b, func(g *rig, r *poll.Request) error { return g.Finish(g.ctx, r, result) })
		})
	}
}

// BenchmarkTransitionMessage is what a state costs before it is sent.
func BenchmarkTransitionMessage(b *testing.B) {
	p, r, tr := pure(), labelled("request-1"), paused()
	b.ReportAllocs()
	for b.Loop() {
		p.recycle(p.transitionMessage(r, tr))
	}
}

// BenchmarkLookup is the look at 500 requests of which none has ended.
func BenchmarkLookup(b *testing.B) {
	g := newRig(b, setup{})
	requests := make([]*poll.Request, 500)
	for i := range requests {
		requests[i] = request(fmt.Sprint("request-", i))
		g.logs(requests[i], "active", 1)
	}
	b.ResetTimer()
	for b.Loop() {
		if _, err := g.Lookup(g.ctx, requests); err != nil {
			b.Fatal(err)
		}
	}
}
