package poll

import (
	"math"
	"time"

	"futurebridge/internal/api"
)

// aimd finds out what rate of polls the upstream takes, from how it answers. There is no limit until it refuses. What
// it refuses cuts the rate, which then grows back along the curve of CUBIC (RFC 9438): fast at first, slowly near
// the rate that was too much, and faster again beyond it. An upstream that is down gets a few probes; when one is
// answered, slow start follows. Pure of I/O and driven by the times it is given.
type aimd struct {
	phase   phase
	limit   float64 // polls per second; +Inf: none
	ceiling float64 // the rate that was too much last; +Inf: not known

	from    float64   // slow start ends, and the curve towards the ceiling begins, with this rate,
	since   time.Time // at this time
	grown   time.Time // slow start: until when the limit has grown with time
	probe   time.Time // down: when the last probe went out,
	probeAt time.Time // and when the next one may

	before  float64   // the ceiling, if the last cut was for an outage
	changed time.Time // what was polled before says nothing of the present limit
	pressed time.Time // when the limit last held a poll back
	bucket  bucket
	ahead   float64   // polls that may go ahead of their turn,
	aheadAt time.Time // at this time
	sent    meter
	window  window
}

// phase is what is known of the upstream. It is also the label of a metric.
type phase uint8

const (
	up phase = iota
	down
	slowStart
	paused // for a 429; gate knows
	held   // for a refused key; gate knows
)

func (p phase) String() string { return [...]string{"up", "down", "slow_start", "paused", "held"}[p] }

const (
	cut          = 0.8 // of the rate remains after a refusal,
	cutEvery     = 200 * time.Millisecond
	curve        = 15 * time.Second // a fifth below the ceiling is made good after 0.58 of this; twice the ceiling takes it all again
	forgotten    = 1e6              // polls per second: a limit this high is none
	slowest      = 1.0              // polls per second: no cut goes further
	collapsed    = 50.0             // polls per second: fewer are not what makes an upstream fall over
	slowRate     = 10.0             // polls per second that slow start begins with, and grows by each second,
	heldPart     = 0.2              // of the rate may go ahead of its turn
	slowAnswer   = 2.0              // and by this with each answer: it doubles in a third of a second while there is enough to poll
	probeEvery   = 250 * time.Millisecond
	patientProbe = time.Second // while no probe is answered
	lately       = time.Second // before now
)

func newAIMD() aimd { return aimd{limit: math.Inf(1), ceiling: math.Inf(1)} }

// ready reports whether a poll may go out, and if not, when to ask again.
func (a *aimd) ready(at time.Time) (ok bool, next time.Time) {
	if a.phase == down {
		return !at.Before(a.probeAt), a.probeAt
	}
	a.grow(at)
	if ok, next = a.bucket.ready(at, a.limit); !ok {
		a.pressed = at
	}
	return ok, next
}

// spend counts a poll that goes out.
func (a *aimd) spend(at time.Time) {
	a.sent.add(at)
	a.bucket.tokens--
	if a.phase == down {
		a.probe, a.probeAt = at, at.Add(patientProbe)
	}
}

// owes takes leave for a poll that the upstream holds to go out ahead of its turn: while this limit has others wait, who pay
// for it when its token is not there yet. A token that is there does not matter: in its turn, behind all who wait for theirs,
// the poll would not get it. Such polls have a part of the rate, and what they left of it in the last second: with more of it
// requests whose polls are held would go round while others never have a turn.
func (a *aimd) owes(at time.Time) bool {
	a.ready(at)
	part := heldPart * a.limit
	if a.ahead = min(part*lately.Seconds(), a.ahead+part*at.Sub(a.aheadAt).Seconds()); a.ahead < 1 {
		a.aheadAt = at
		return false
	}
	a.aheadAt = at
	if a.phase == down || at.Sub(a.pressed) > lately {
		return false
	}
	a.ahead--
	return true
}

// rest puts growth off until the upstream may be polled again.
func (a *aimd) rest(until time.Time) {
	if until.After(a.since) {
		a.since = until
	}
	if a.phase == slowStart {
		a.grown, a.pressed = until, until
	}
}

func (a *aimd) grow(at time.Time) {
	switch {
	case a.phase == slowStart:
		a.limit += max(0, at.Sub(a.grown).Seconds()) * slowRate
		a.grown = at
		if a.limit >= a.from && !math.IsInf(a.ceiling, 1) {
			a.phase, a.from, a.since = up, a.limit, at
		} else if at.Sub(a.pressed) > lately && math.IsInf(a.ceiling, 1) { // nothing waits for it, and nothing was refused
			a.phase, a.limit = up, a.ceiling
		}
	case !math.IsInf(a.ceiling, 1):
		flat := math.Cbrt(max(0, 1-a.from/a.ceiling)) // when the curve meets the ceiling
		a.limit = a.ceiling * (1 + math.Pow(max(0, at.Sub(a.since).Seconds())/curve.Seconds()-flat, 3))
		if a.limit > forgotten {
			a.limit, a.ceiling = math.Inf(1), math.Inf(1)
		}
	}
}

// observe learns from an answer to a poll that began then. again: the poll before of the same request ended in a fault
// too.
func (a *aimd) observe(o *api.Outcome, began time.Time, again bool, at time.Time) {
	if !began.After(a.changed) {
		return
	}
	fault, refused := false, false
	switch o.Kind {
	case api.Unreachable:
		fault, again = true, false // no single request is the reason
	case api.ServerFault, api.Malformed:
		fault, refused = true, o.HTTPStatus >= 502 && o.HTTPStatus <= 504
	case api.NoAnswer: // was it silent, or had the request no time left?
		if at.Sub(began) < lately {
			return
		}
	}
	switch {
	case a.phase == down && fault:
		a.probeAt = a.probe.Add(probeEvery)
		if wait := at.Add(min(o.Hint, pauseProbeEvery)); wait.After(a.probeAt) {
			a.probeAt = wait
		}
	case a.phase == down:
		a.phase, a.limit, a.bucket = slowStart, slowRate, bucket{}
		a.grown, a.pressed, a.changed, a.before = at, at, at, a.ceiling
	case o.Kind == api.Throttled:
		a.cut(at.Sub(began), 1, at)
	default:
		if a.phase == slowStart && !fault {
			a.limit += slowAnswer
		}
		a.window.add(fault, refused, again, at)
		a.judge(at.Sub(began), at)
	}
}

// judge goes down when most of a window are faults, and cuts when more than a twentieth are a gateway's refusals: a
// lower rate may be all that it wants, and single ones are the noise of any network.
func (a *aimd) judge(took time.Duration, at time.Time) {
	w, length := a.window, windowTime
	if a.phase == slowStart { // the rate is on its way to be too much
		length /= 2
	}
	if w.all < windowLeast || w.all < windowFull && at.Sub(w.begin) < length {
		return
	}
	a.window = window{}
	switch faults, refused := w.sum(); {
	case 2*faults > w.all:
		switch {
		case a.phase == up && at.Sub(a.changed) <= lately: // what it was cut for was the beginning of this
			a.ceiling = a.before
		case at.Sub(a.pressed) <= lately && a.limit >= collapsed: // it fell over at this rate, perhaps
			if half := a.ceiling / 2; math.IsInf(half, 1) || half < a.limit {
				a.ceiling = a.limit
			} else {
				a.ceiling = half
			}
		}
		a.phase, a.from, a.changed, a.probe, a.probeAt = down, cut*a.ceiling, at, at, at.Add(probeEvery)
	case 20*refused > w.all && refused >= 5:
		before := a.ceiling
		a.cut(took, 1-float64(refused)/float64(w.all), at)
		a.before = before
	}
}

// cut lowers the rate after a refusal that took so long to arrive, when this part of what was sent was taken.
func (a *aimd) cut(took time.Duration, taken float64, at time.Time) {
	if a.changed.Add(cutEvery).After(at) {
		return
	}
	rate := a.sent.rate(at)
	if at.Sub(a.pressed) <= lately {
		rate = a.limit
	}
	if a.phase == slowStart { // what was refused went out at the rate of then
		rate *= max(0.5, math.Exp(-slowAnswer*(took+windowTime/2).Seconds()))
	}
	a.ceiling = max(slowest/cut, taken*rate)
	a.before, a.limit = a.ceiling, cut*a.ceiling
	a.phase, a.from, a.since, a.changed, a.window = up, a.limit, at, at, window{}
}
