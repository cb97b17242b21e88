package bench

import (
	"fmt"
	"slices"
)

// pairs are what two sides did, turn by turn in one run. There is no right one where bridge or loop had no Baseline.
type pairs[T any] struct{ left, right []T }

// side is one of the two that are compared.
type side[T any] struct {
	name string
	play func() (T, error)
}

// pair lets two sides have as many turns each as were asked for. Which of them goes first alternates: what comes second runs on a machine
// that something else has just kept busy.
func pair[T any](r *run, what string, left, right side[T]) (p pairs[T], err error) {
	order := []struct {
		side[T]
		turns *[]T
	}{{left, &p.left}, {right, &p.right}}
	for turn := range r.Pairs {
		for _, s := range order {
			one, err := s.turn(r, what, turn, r.Pairs)
			if err != nil {
				return p, err
			}
			*s.turns = append(*s.turns, one)
		}
		slices.Reverse(order)
	}
	return p, nil
}

// besideLoop lets the bridge have one turn, or with Baseline as many as were asked for, in pairs with the loop.
func besideLoop[T any](r *run, what string, bridge, loop func() (T, error)) (p pairs[T], err error) {
	left := side[T]{"the bridge", bridge}
	if r.Baseline {
		return pair(r, what, left, side[T]{"the loop", loop})
	}
	one, err := left.turn(r, what, 0, 1)
	return pairs[T]{left: []T{one}}, err
}

func (s side[T]) turn(r *run, what string, turn, turns int) (one T, err error) {
	r.progress.begin("%s: %s, %d of %d", what, s.name, turn+1, turns)
	if one, err = s.play(); err != nil {
		err = fmt.Errorf("%s: %w", s.name, err)
	}
	return one, err
}

// of is the median of a value.
func of[T any](turns []T, value func(T) float64) float64 {
	var values []float64
	for _, one := range turns {
		values = append(values, value(one))
	}
	return median(values)
}

// ratio is the median of the pairs' ratios, left to right.
func (p pairs[T]) ratio(value func(T) float64) float64 {
	var values []float64
	for i := range p.right {
		values = append(values, value(p.left[i])/value(p.right[i]))
	}
	return median(values)
}
