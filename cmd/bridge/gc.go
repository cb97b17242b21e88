package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	garbageLeast = 32 << 20 // bytes of garbage that may always gather
	garbageShare = 4        // beyond that, a quarter of what lives
)

// tuneGC keeps the collector's work and the garbage's room in proportion until ctx ends. By its default of doubling, a
// bridge with little to hold would collect dozens of times a second while it works, each time through the stacks of
// all pollers; and one that holds very much would keep as much room again for garbage.
func tuneGC(ctx context.Context) {
	before := debug.SetGCPercent(100)
	if before != 100 { // somebody has set GOGC, and means it
		debug.SetGCPercent(before)
		return
	}
	defer debug.SetGCPercent(before)
	percent := 100
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		live := max(sample[0].Value.Uint64(), 4<<20)
		want := int(max(garbageLeast, live/garbageShare) * 100 / live)
		if 10*want > 11*percent || 10*want < 9*percent { // each change stops the world for a moment
			debug.SetGCPercent(want)
			percent = want
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
