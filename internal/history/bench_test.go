//go:build unix

package history

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cost is what something needed: the most heap in use at a time, and time of processors, which is the same on a machine
// that does other things too.
func cost(b *testing.B, events int, during func()) {
	b.Helper()
	runtime.GC()
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapInuse))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	begin, before := time.Now(), cpu()
	during()
	took, used := time.Since(begin), cpu()-before
	close(stop)
	<-done
	million := 1e6 / float64(events)
	b.ReportMetric(float64(most.Load())/(1<<20), "MiB")
	b.ReportMetric(took.Seconds()*million, "s/million")
	b.ReportMetric(used.Seconds()*million, "cpu-s/million")
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkJudgeAMillionEvents judges 250,000 requests of four events each, with a sighting of each and 750,000 polls.
// The memory is with all of that in it, which a reading judge has not.
func BenchmarkJudgeAMillionEvents(b *testing.B) {
	k := history(250_000)
	for b.Loop() {
		var report Report
		cost(b, 1_000_000, func() { report = k.judge() })
		require.Empty(b, report.Violations)
		require.Equal(b, 1_000_000, report.Events)
	}
}

// BenchmarkReadAndJudge reads 100,000 events of a real server and judges them as they come. The server is in this process,
// so its cost is in the figures.
func BenchmarkReadAndJudge(b *testing.B) {
	_, js := newServer(b)
	k := history(25_000)
	k.run.Live, k.run.DeadlineSlack = nil, 0 // it is stored now, long after what it says
	store(b, js, k.states)
	store(b, js, k.results)
	k.states, k.results = nil, nil
	for b.Loop() {
		var report Report
		var err error
		cost(b, 100_000, func() { report, err = k.run.Judge(b.Context(), js, tinker) })
		require.NoError(b, err)
		require.Empty(b, report.Violations)
		require.Equal(b, 100_000, report.Events)
	}
}
