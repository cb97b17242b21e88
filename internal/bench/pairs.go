package bench

import "fmt"

// pairs are what bridge and loop did, turn by turn in one run. There are no loops without Baseline.
type pairs[T any] struct{ bridges, loops []T }

// pair lets the bridge, and with Baseline the loop after it, have so many turns.
func pair[T any](r *run, turns int, what string, bridge, loop func() (T, error)) (p pairs[T], err error) {
	if !r.Baseline {
		turns = 1
	}
	for turn := range turns {
		r.progress.begin("%s: the bridge, %d of %d", what, turn+1, turns)
		one, err := bridge()
		if err != nil {
			return p, err
		}
		p.bridges = append(p.bridges, one)
		if !r.Baseline {
			break
		}
		r.progress.begin("%s: the loop, %d of %d", what, turn+1, turns)
		if one, err = loop(); err != nil {
			return p, fmt.Errorf("the loop: %w", err)
		}
		p.loops = append(p.loops, one)
	}
	return p, nil
}

// of is the median of a value.
func of[T any](turns []T, value func(T) float64) float64 {
	var values []float64
	for _, one := range turns {
		values = append(values, value(one))
	}
	return median(values)
}

// ratio is the median of the pairs' ratios, bridge to loop.
func (p pairs[T]) ratio(value func(T) float64) float64 {
	var values []float64
	for i := range p.loops {
		values = append(values, value(p.bridges[i])/value(p.loops[i]))
	}
	return median(values)
}
