package poll

import (
	"cmp"
	"math"
	"time"

	"futurebridge/internal/api"
)

// gate decides whether a poll may go out now. Every limit on dispatching lives here and nowhere else; it is pure of
// I/O and driven by the times it is given.
type gate struct {
	maxPolls int     // in flight
	all      float64 // polls per second, by all bridges together; +Inf: no fixed limit
	rate     float64 // this bridge's part of it
	policy   Policy

	inFlight int
	fixed    bucket
	aimd     aimd

	pausedUntil time.Time // the upstream asked everybody to wait
	pausedAt    time.Time // when it did so last
	pauseProbe  time.Time // while it is paused: when one poll may see whether that was meant for all
	holdWait    time.Duration
	probeAt     time.Time // while the key is refused: when one poll may try again
	held        bool
	probing     bool
	accepted    time.Time // when a poll began whose key was accepted
}

// pauseProbeEvery is how long one request's word can hold up all others.
const pauseProbeEvery = 10 * time.Second

// newGate makes a gate for so many polls in flight and so many a second; 0: no fixed limit.
func newGate(maxPolls int, rate float64, policy Policy) *gate {
	if rate == 0 {
		rate = math.Inf(1)
	}
	return &gate{maxPolls: maxPolls, all: rate, rate: rate, policy: policy, aimd: newAIMD()}
}

// share sets this bridge's part of the fixed rate: it is one of so many.
func (g *gate) share(bridges int) { g.rate = g.all / float64(max(1, bridges)) }

// admit takes a place for one poll. When it refuses it says when to ask again; a zero time means when a poll has ended.
func (g *gate) admit(at time.Time) (ok bool, next time.Time) {
	if ok, next = g.open(at); !ok {
		return false, next
	}
	if ok, next = g.aimd.ready(at); !ok {
		return false, next
	}
	g.take(at)
	return true, time.Time{}
}

// readmit takes a place for a poll that the upstream has held, and that follows at once, ahead of its turn: if the rate
// learnt from quick answers is all that makes it wait. The upstream sets the pace of such polls by holding them.
func (g *gate) readmit(at time.Time) bool {
	if ok, _ := g.open(at); !ok || g.inFlight+1 >= g.maxPolls || !g.aimd.owes(at) {
		return false
	}
	g.take(at)
	return true
}

// open is admit but for the rate that was learnt, and takes nothing.
func (g *gate) open(at time.Time) (ok bool, next time.Time) {
	switch {
	case g.inFlight >= g.maxPolls:
		return false, time.Time{}
	case at.Before(g.pausedUntil) && at.Before(g.pauseProbe):
		return false, earlier(g.pausedUntil, g.pauseProbe)
	case g.held && g.probing:
		return false, time.Time{}
	case g.held && at.Before(g.probeAt):
		return false, g.probeAt
	}
	return g.fixed.ready(at, g.rate)
}

// doubts reports whether polls go out to see whether the upstream takes them: then those are best whose last one it took.
func (g *gate) doubts(at time.Time) bool {
	return g.held || at.Before(g.pausedUntil) || g.aimd.phase == down || g.aimd.phase == slowStart
}

func (g *gate) take(at time.Time) {
	g.fixed.tokens--
	g.aimd.spend(at)
	g.inFlight++
	g.probing = g.held
	if at.Before(g.pausedUntil) {
		g.pauseProbe = at.Add(pauseProbeEvery)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// state is what is known of the upstream, and the rate at which polls may go out.
func (g *gate) state(at time.Time) (phase, float64) {
	switch {
	case g.held:
		return held, 1 / g.holdWait.Seconds()
	case at.Before(g.pausedUntil):
		return paused, 0
	case g.aimd.phase == down:
		return down, 1 / probeEvery.Seconds()
	}
	return g.aimd.phase, min(g.rate, g.aimd.limit)
}

// release gives the place of a poll back that was not made after all.
func (g *gate) release() {
	g.inFlight--
	g.probing = false
}

// observe gives the place back and learns from the answer to a poll that began then. again: the poll before of the same
// request ended in a fault, too.
func (g *gate) observe(o *api.Outcome, began time.Time, again bool, at time.Time) {
	g.inFlight--
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
		if began.After(g.accepted) {
			g.accepted = began
		}
	}
	g.probing = false
	g.aimd.observe(o, began, again, at)
	switch o.Kind {
	case api.Unauthorized:
		g.aimd.rest(g.probeAt)
	case api.Throttled:
		if !at.Before(g.pausedUntil) {
			g.pauseProbe = at.Add(pauseProbeEvery)
		}
		until := at.Add(cmp.Or(o.Hint, time.Second))
		if g.pausedAt = at; until.After(g.pausedUntil) {
			g.pausedUntil = until
		}
		g.aimd.rest(until)
	case api.Unreachable, api.NoAnswer, api.ServerFault, api.Malformed:
	default:
		if began.After(g.pausedAt) && at.Before(g.pausedUntil) { // it was meant for the request that was told so
			g.pausedUntil = time.Time{}
		}
	}
}
