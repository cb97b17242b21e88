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

	memoryEvery = 5 * time.Second
	quietTrims  = 4       // looks from one trim to the next at least: a collection each
	trimLeast   = 8 << 20 // bytes that are worth one,
	trimShare   = 8       // and an eighth of what lives
)

// memory is what the runtime says of the heap, in bytes.
type memory struct {
	live      uint64 // at the end of the last collection
	objects   uint64 // with garbage
	free      uint64 // not in use, and not given back to the system
	allocated uint64 // since the process began
}

func readMemory() memory {
	sample := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(sample)
	return memory{sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64(), sample[3].Value.Uint64()}
}

// percent is GOGC: garbage has room in proportion to what lives.
func (m memory) percent() int {
	live := max(m.live, 4<<20)
	return int(max(garbageLeast, live/garbageShare) * 100 / live)
}

// trims reports whether memory is to be given back to the system: there is much of it, and since the look before nothing
// was done that will soon want it again. What the runtime gives back by itself leaves a tenth above the room for garbage.
func (m memory) trims(before memory) bool {
	quiet := m.allocated-before.allocated < garbageLeast
	spare := m.free + m.objects - min(m.live, m.objects)
	return quiet && spare > max(trimLeast, m.live/trimShare)
}

// tuneGC keeps the collector's work and the garbage's room in proportion until ctx ends. By its default of doubling, a
// bridge with little to hold would collect dozens of times a second while it works, each time through the stacks of
// all pollers; and one that holds very much would keep as much room again for garbage. What a burst took is given back
// after it.
func tuneGC(ctx context.Context) {
	before := debug.SetGCPercent(100)
	if before != 100 { // somebody has set GOGC, and means it
		debug.SetGCPercent(before)
		return
	}
	defer debug.SetGCPercent(before)
	percent := 100
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	last := readMemory()
	for trimmed := 0; ; trimmed++ {
		m := readMemory()
		if want := m.percent(); 10*want > 11*percent || 10*want < 9*percent { // each change stops the world for a moment
			debug.SetGCPercent(want)
			percent = want
		}
		if trimmed >= quietTrims && m.trims(last) {
			debug.FreeOSMemory()
			trimmed = 0
		}
		last = m
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
