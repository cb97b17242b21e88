package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	garbageLeast = 32 << 20 // bytes of garbage that may always gather
	garbageShare = 4        // beyond that, a quarter of what lives

	trimEvery  = 20 * time.Second // at most: each trim is a collection
	trimLooks  = 5 * time.Second  // nothing is done that long before one
	trimLeast  = 8 << 20          // bytes that are worth it,
	trimShare  = 8                // and an eighth of what lives
	leastWhole = 4 << 20          // what the runtime takes its percentage of at least
)

// memory is what the runtime says of the heap, in bytes.
type memory struct {
	live      uint64 // at the end of the last collection
	roots     uint64 // stacks and globals, which the percentage is of, too
	objects   uint64 // what lives and garbage
	free      uint64 // not in use, and not given back to the system
	allocated uint64 // since the process began
}

func readMemory() memory {
	of := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(of)
	return memory{
		live: of[0].Value.Uint64(), roots: of[1].Value.Uint64() + of[2].Value.Uint64(),
		objects: of[3].Value.Uint64(), free: of[4].Value.Uint64(), allocated: of[5].Value.Uint64(),
	}
}

// percent is GOGC: garbage has room in proportion to what lives.
func (m memory) percent() int {
	return int(max(garbageLeast, m.live/garbageShare) * 100 / max(m.live+m.roots, leastWhole))
}

// trims reports whether memory is to be given back to the system: there is much of it, and since the look before nothing
// was done that will soon want it again. What the runtime gives back by itself leaves a tenth above the room for garbage.
func (m memory) trims(before memory) bool {
	quiet := m.allocated-before.allocated < garbageLeast
	spare := m.free + m.objects - min(m.live, m.objects)
	return quiet && spare > max(trimLeast, m.live/trimShare)
}

// tuneGC keeps the collector's work and the garbage's room in proportion until stop. By its default of doubling, a
// bridge with little to hold would collect dozens of times a second while it works, each time through the stacks of
// all pollers; and one that holds very much would keep as much room again for garbage. What a burst took is given back
// after it.
func tuneGC() (stop func()) {
	before := debug.SetGCPercent(100)
	if before != 100 { // somebody has set GOGC, and means it
		debug.SetGCPercent(before)
		return func() {}
	}
	t := &tuner{percent: 100, stopped: make(chan struct{})}
	t.tune(0)
	var trimming sync.WaitGroup
	trimming.Go(t.trim)
	return sync.OnceFunc(func() {
		close(t.stopped)
		trimming.Wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		debug.SetGCPercent(before)
	})
}

type tuner struct {
	mu      sync.Mutex
	percent int
	stopped chan struct{}
}

// tune sets the room until the next collection, which calls it again: had it to wait for a timer, what lives could grow
// many times over meanwhile, and the garbage with it.
func (t *tuner) tune(int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.stopped:
		return
	default:
	}
	if want := readMemory().percent(); 10*want > 11*t.percent || 10*want < 9*t.percent { // each change stops the world for a moment
		debug.SetGCPercent(want)
		t.percent = want
	}
	runtime.AddCleanup(&struct{ _ [64]byte }{}, t.tune, 0)
}

// trim gives memory back until the tuner is stopped.
func (t *tuner) trim() {
	tick := time.NewTicker(trimLooks)
	defer tick.Stop()
	trimmed := time.Now()
	for last := readMemory(); ; {
		select {
		case <-tick.C:
		case <-t.stopped:
			return
		}
		m := readMemory()
		if time.Since(trimmed) >= trimEvery && m.trims(last) {
			debug.FreeOSMemory()
			trimmed = time.Now()
		}
		last = m
	}
}
