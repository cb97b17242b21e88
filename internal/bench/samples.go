package bench

import (
	"context"
	"slices"
	"time"

	"futurebridge/internal/api/sim"
)

// sampleEvery is how often the upstream and a bridge are looked at where that costs nothing, and the resolution of curves.
const sampleEvery = 250 * time.Millisecond

// sample is what was seen at a time, since the site's begin.
type sample struct {
	at      time.Duration
	stats   sim.Stats
	metrics map[string]float64 // nil while there is no bridge
}

// samples are taken until they are stopped.
type samples struct {
	taken  []sample // once done is closed
	cancel context.CancelFunc
	done   chan struct{}
}

// sample looks at the upstream, and at the bridge if there is one, until stop, and then once more.
func (s *site) sample(ctx context.Context, every time.Duration, b *bridge) *samples {
	ctx, cancel := context.WithCancel(ctx)
	all := &samples{cancel: cancel, done: make(chan struct{})}
	s.sampling = append(s.sampling, all)
	go func() {
		defer close(all.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for last := false; ; last = ctx.Err() != nil {
			at := time.Since(s.begin)
			if stats, err := s.stats(false); err == nil {
				one := sample{at: at, stats: stats}
				if b != nil {
					one.metrics, _ = b.metrics()
				}
				all.taken = append(all.taken, one)
			}
			if last {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return all
}

// stop ends the sampling and returns what was taken since a time.
func (a *samples) stop(since time.Duration) []sample {
	a.cancel()
	<-a.done
	return slices.DeleteFunc(a.taken, func(s sample) bool { return s.at < since })
}

// polls, results and so on are what a sample tells.
func polls(s sample) float64   { return float64(s.stats.Polls) }
func results(s sample) float64 { return float64(s.stats.IDsDelivered) }
func holds(s sample) float64   { return s.metrics[held] }

// curve is a value at each sampleEvery since begin, interpolated.
func curve(taken []sample, begin time.Duration, value func(sample) float64) (ys []float64) {
	if len(taken) == 0 {
		return nil
	}
	i := 0
	for at := begin; at <= taken[len(taken)-1].at; at += sampleEvery {
		for i < len(taken) && taken[i].at < at {
			i++
		}
		ys = append(ys, between(taken, i, at, value))
	}
	return ys
}

// valueAt is a value at a time, interpolated.
func valueAt(taken []sample, at time.Duration, value func(sample) float64) float64 {
	i, _ := slices.BinarySearchFunc(taken, at, func(s sample, at time.Duration) int { return int(s.at - at) })
	return between(taken, i, at, value)
}

// between interpolates between samples i-1 and i; before the first and after the last one it is theirs.
func between(taken []sample, i int, at time.Duration, value func(sample) float64) float64 {
	switch {
	case i == 0:
		return value(taken[0])
	case i == len(taken):
		return value(taken[i-1])
	}
	before, after := taken[i-1], taken[i]
	part := float64(at-before.at) / float64(after.at-before.at)
	return value(before) + part*(value(after)-value(before))
}

// reaches is when a value that only grows comes up to a threshold; ok is false when it does not.
func reaches(taken []sample, threshold float64, value func(sample) float64) (at time.Duration, ok bool) {
	for i, s := range taken {
		v := value(s)
		if v < threshold {
			continue
		}
		if i == 0 {
			return s.at, true
		}
		before := taken[i-1]
		part := (threshold - value(before)) / (v - value(before))
		return before.at + time.Duration(part*float64(s.at-before.at)), true
	}
	return 0, false
}

// perSecond is the slope of a curve over a second each.
func perSecond(ys []float64) (rates []float64) {
	const window = int(time.Second / sampleEvery)
	for i := range ys {
		from := max(0, i-window)
		if i > from {
			rates = append(rates, (ys[i]-ys[from])/(float64(i-from)*sampleEvery.Seconds()))
		}
	}
	return rates
}

// median and quantile sort a copy.
func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
