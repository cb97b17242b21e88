package poll

import (
	"time"

	"futurebridge/internal/api"
)

// gate decides whether a poll may go out now. Every limit on dispatching lives here and nowhere else; it is pure of
// I/O and driven by the times it is given.
type gate struct {
	maxPolls int     // in flight
	rate     float64 // polls per second; 0: no fixed limit
	policy   Policy

	inFlight int
	tokens   float64
	refilled time.Time

	pausedUntil time.Time // the upstream asked everybody to wait
	holdWait    time.Duration
	probeAt     time.Time // while the key is refused: when one poll may try again
	held        bool
	probing     bool
}

func newGate(maxPolls int, rate float64, policy Policy) *gate {
	return &gate{maxPolls: maxPolls, rate: rate, policy: policy, tokens: 1}
}

// burst is how many tokens gather while nothing is due: as many as one tick of the engine lets out at full rate.
func (g *gate) burst() float64 { return max(1, g.rate*tick.Seconds()) }

// admit takes a place for one poll. When it refuses it says when to ask again; a zero time means when a poll has ended.
func (g *gate) admit(at time.Time) (ok bool, next time.Time) {
	switch {
	case g.inFlight >= g.maxPolls:
		return false, time.Time{}
	case at.Before(g.pausedUntil):
		return false, g.pausedUntil
	case g.held && g.probing:
		return false, time.Time{}
	case g.held && at.Before(g.probeAt):
		return false, g.probeAt
	}
	if g.rate > 0 {
		if !g.refilled.IsZero() {
			g.tokens = min(g.burst(), g.tokens+at.Sub(g.refilled).Seconds()*g.rate)
		}
		if g.refilled = at; g.tokens < 1 {
			return false, at.Add(time.Duration((1 - g.tokens) / g.rate * float64(time.Second)))
		}
		g.tokens--
	}
	g.inFlight++
	g.probing = g.held
	return true, time.Time{}
}

// observe gives the place back and learns from the answer. polled is false when no poll was made after all.
func (g *gate) observe(o *api.Outcome, polled bool, at time.Time) {
	g.inFlight--
	if !polled {
		g.probing = false
		return
	}
	switch o.Kind {
	case api.Unauthorized:
		if !g.held || g.probing {
			g.holdWait = min(max(g.policy.HoldInitial, 2*g.holdWait), g.policy.HoldMax)
			g.probeAt = at.Add(max(g.holdWait, o.Hint))
		}
		g.held = true
	case api.Unreachable, api.NoAnswer: // says nothing about the key
	default:
		g.held, g.holdWait = false, 0
	}
	g.probing = false
	if o.Kind == api.Throttled {
		wait := o.Hint
		if wait == 0 {
			wait = time.Second
		}
		if until := at.Add(wait); until.After(g.pausedUntil) {
			g.pausedUntil = until
		}
	}
}
