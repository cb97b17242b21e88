package main

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/intake"
	"futurebridge/internal/poll"
)

func TestGarbageHasRoomInProportionToWhatLives(t *testing.T) {
	for live, percent := range map[uint64]int{0: 800, 4 << 20: 800, 32 << 20: 100, 64 << 20: 50, 128 << 20: 25, 4 << 30: 25} {
		require.Equal(t, percent, memory{live: live}.percent(), live)
	}
	require.Equal(t, 80, memory{live: 32 << 20, roots: 8 << 20}.percent())
}

// What lives may grow many times over in a moment: the room for garbage must not grow with it.
func TestTheRoomForGarbageFollowsWhatLivesAtOnce(t *testing.T) {
	stop := tuneGC()
	defer stop()
	room := func() uint64 {
		of := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/heap/live:bytes"}}
		metrics.Read(of)
		return of[0].Value.Uint64() - of[1].Value.Uint64()
	}
	for _, live := range []int{1 << 20, 200 << 20, 20 << 20} {
		held := make([]byte, live)
		runtime.GC()
		most := uint64(max(garbageLeast, live/garbageShare)) * 5 / 4
		require.Eventually(t, func() bool { is := room(); return is <= most && is > most/2 }, time.Minute, time.Millisecond, "%d bytes live: room that is neither too much nor scarce", live)
		runtime.KeepAlive(held)
	}
	stop()
	runtime.GC()
	percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(percent)
	require.EqualValues(t, 100, percent[0].Value.Uint64())
}

func TestMemoryIsGivenBackWhenThereIsMuchAndNothingWantsItSoon(t *testing.T) {
	for name, c := range map[string]struct {
		now   memory
		trims bool
	}{
		"nothing to give":           {memory{live: 50 << 20, objects: 51 << 20, free: 1 << 20}, false},
		"not worth a collection":    {memory{live: 50 << 20, objects: 54 << 20, free: 4 << 20}, false},
		"free after a burst":        {memory{live: 50 << 20, objects: 51 << 20, free: 9 << 20}, true},
		"garbage of a burst":        {memory{live: 50 << 20, objects: 60 << 20}, true},
		"little of very much":       {memory{live: 1 << 30, objects: 1<<30 + 60<<20, free: 60 << 20}, false},
		"much of very much":         {memory{live: 1 << 30, objects: 1<<30 + 100<<20, free: 60 << 20}, true},
		"busy":                      {memory{live: 50 << 20, objects: 90 << 20, free: 90 << 20, allocated: 40 << 20}, false},
		"swept below what was live": {memory{live: 50 << 20, objects: 49 << 20, free: 9 << 20}, true},
	} {
		require.Equal(t, c.trims, c.now.trims(memory{}), name)
	}
}

func TestTheRuntimeTellsItsMemory(t *testing.T) {
	before := readMemory()
	kept := make([]byte, 1<<20)
	after := readMemory()
	require.GreaterOrEqual(t, after.allocated-before.allocated, uint64(len(kept)))
	require.GreaterOrEqual(t, after.objects, uint64(len(kept)))
}

func TestWhatManyRequestsSayIsHeldOnce(t *testing.T) {
	b := &bridge{types: make(map[string]*poll.About)}
	item := func(kind, trace string) *intake.Item {
		return &intake.Item{Submission: intake.Submission{Type: kind, Traceparent: trace}}
	}
	require.Nil(t, b.about(item("", "")))
	sample := b.about(item("Sample", ""))
	require.Equal(t, &poll.About{Type: "Sample"}, sample)
	require.Same(t, sample, b.about(item("Sample", "")))
	require.NotSame(t, sample, b.about(item("OptimStep", "")))
	require.Equal(t, &poll.About{Type: "Sample", Traceparent: "00-a"}, b.about(item("Sample", "00-a")))
	for i := range 2 * maxTypes {
		require.Equal(t, string(rune('a'+i)), b.about(item(string(rune('a'+i)), "")).Type)
	}
	require.Len(t, b.types, maxTypes)
	require.Same(t, sample, b.about(item("Sample", "")))
}
