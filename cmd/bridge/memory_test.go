package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

// perPoll is what a poll in flight takes beside the room of its body: connection, headers, decompression, what is free of
// each body, and what HTTP/2 sends ahead.
const perPoll = 80 << 10

// aLargeBodyThatStalls keeps all that it may have.
var aLargeBodyThatStalls = upstreamFault{ends: "timed_out", says: saying{status: "200 OK", body: strings.Repeat(" ", 900_000), missing: 100_000}.always}

// TestMemoryIsBoundedUnderAllFaultsAtOnce has a thousand polls meet all faults of the table together, and bodies that stop
// just before their end, beside an upstream that hands its large results out once.
func TestMemoryIsBoundedUnderAllFaultsAtOnce(t *testing.T) {
	const (
		polls  = 1000
		memory = 16 << 20
	)
	faults := concurrent()
	for range len(faults) / 2 {
		faults = append(faults, aLargeBodyThatStalls)
	}
	peak := watchHeap(t)
	var before, most uint64
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Style: sim.Style{Retention: "once"}, Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: 5 * time.Second, Spread: time.Minute}, {Answer: "completed", ResultBytes: 100_000},
		}}}})
		f := &faulty{sim: w.sim, polls: map[string]int{}, fault: func(id string, n int) *upstreamFault {
			if who, i := about(id); who == "ever" {
				return &faults[i%len(faults)]
			}
			return nil
		}}
		b := w.odd("bridge-1", seams{upstream: func(c *api.Config) {
			transport := api.NewTransport(api.TransportConfig{})
			transport.DialContext = f.DialContext
			c.Transport = transport
		}}, "--max-result=1MiB", fmt.Sprintf("--result-memory=%d", memory), fmt.Sprintf("--max-polls=%d", 2*polls))
		before = peak()
		w.submit(ids("sound", 20)...)
		for i := range polls {
			w.submitFor(fmt.Sprintf("ever-%d", i), 80*time.Second)
		}
		w.settled(time.Hour)
		most = peak()
		b.stop()
		run := w.run
		run.Upstream = expecting{simUpstream{w.sim}, faults}
		run.WantFaults, run.Faults = true, len(faults)
		report, err := run.Judge(t.Context(), w.js, w.names)
		require.NoError(t, err)
		require.Empty(t, report.Violations)
		w.close()
		require.Zero(t, f.open)
	})
	bound := uint64(memory + polls*perPoll)
	t.Logf("%d MiB before, %d MiB at most: %d MiB more, with a bound of %d MiB", before>>20, most>>20, (most-before)>>20, bound>>20)
	require.LessOrEqual(t, most-before, bound+bound/5)
}

// watchHeap returns the most memory that was live at the end of a collection since it was asked last.
func watchHeap(t *testing.T) (peak func() uint64) {
	percent := debug.SetGCPercent(25)
	asked, answers, stop := make(chan struct{}), make(chan uint64), make(chan struct{})
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		close(stop)
	})
	live := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		most := uint64(0)
		for {
			select {
			case <-tick.C:
				most = max(most, live())
			case <-asked:
				runtime.GC()
				answers <- max(most, live())
				most = 0
			case <-stop:
				return
			}
		}
	}()
	return func() uint64 {
		asked <- struct{}{}
		return <-answers
	}
}
