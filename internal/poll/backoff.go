package poll

import "time"

// backoff is initial × 2ⁿ, at most ceiling.
func backoff(initial, ceiling time.Duration, n uint8) time.Duration {
	if n > 40 || initial > ceiling>>n {
		return ceiling
	}
	return initial << n
}

// spread adds up to a tenth, so that requests that were submitted together do not stay together.
func spread(d time.Duration, jitter float64) time.Duration {
	return d + time.Duration(float64(d)*jitter/10)
}

func bump(n uint8) uint8 {
	if n < 255 {
		n++
	}
	return n
}
