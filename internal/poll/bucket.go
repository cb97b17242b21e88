package poll

import (
	"math"
	"time"
)

// bucket is a token bucket: in no window of whatever length are more tokens taken than burst(rate) + rate × window.
// Its rate may change from one call to the next.
type bucket struct {
	tokens   float64
	refilled time.Time
}

// burst is how many tokens gather while nothing is due: what two ticks of the engine let out, so that a late one costs
// nothing.
func burst(rate float64) float64 { return max(1, rate*2*tick.Seconds()) }

// ready reports whether a token can be taken at a rate per second, above 0 and perhaps infinite, and if not, when.
func (b *bucket) ready(at time.Time, rate float64) (ok bool, next time.Time) {
	switch {
	case math.IsInf(rate, 1):
		b.tokens = 1
	case b.refilled.IsZero():
		b.tokens = min(1, b.tokens+1)
	default:
		b.tokens = min(burst(rate), b.tokens+at.Sub(b.refilled).Seconds()*rate)
	}
	b.refilled = at
	const enough = 1 - 1e-9 // times are whole nanoseconds
	if b.tokens >= enough {
		return true, at
	}
	wait := min((1-b.tokens)/rate, time.Hour.Seconds())
	return false, at.Add(time.Duration(wait*float64(time.Second)) + 1)
}

// meter tells how many events there were in the last second, on the assumption that those of the second before were
// spread evenly.
type meter struct {
	second       int64
	now, earlier float64
}

func (m *meter) turn(at time.Time) {
	switch second := at.Unix(); second - m.second {
	case 0:
	case 1:
		m.second, m.earlier, m.now = second, m.now, 0
	default:
		m.second, m.earlier, m.now = second, 0, 0
	}
}

func (m *meter) add(at time.Time) {
	m.turn(at)
	m.now++
}

func (m *meter) rate(at time.Time) float64 {
	m.turn(at)
	return m.now + m.earlier*(1-float64(at.Nanosecond())/1e9)
}
