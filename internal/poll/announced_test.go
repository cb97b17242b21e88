package poll

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestAnnouncedResultsTakeTurnsInTheResultMemory(t *testing.T) {
	for name, size := range map[string]int{"small ones": 1000, "ones larger than all of it": 5000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now, most atomic.Int64
				upstream := retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
					if !q.Full {
						return api.Outcome{Kind: api.Metadata, HTTPStatus: 200, PayloadBytes: int64(size)}
					}
					most.Store(max(most.Load(), now.Add(1)))
					time.Sleep(time.Second)
					return completed(string(make([]byte, size)))
				})
				sink := &fakeSink{finish: func(context.Context, *Request, Result) error {
					time.Sleep(time.Second)
					now.Add(-1)
					return nil
				}}
				e, stop := engine(t, upstream, sink, func(c *Config) { c.ResultMemory = 3000 })
				leases := make([]fakeLease, 60)
				for i := range leases {
					e.Add([]Request{request(fmt.Sprint(i), &leases[i])})
				}
				pass(5 * time.Minute)
				require.Zero(t, e.Held(), "every one of them got its turn")
				require.Len(t, sink.results, 60)
				require.EqualValues(t, max(1, 3000/size), most.Load())
				require.Zero(t, e.bytes.Load())
				stop()
			})
		})
	}
}
