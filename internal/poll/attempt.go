package poll

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"futurebridge/internal/api"
)

const (
	// lookEvery bounds how long a holder goes on polling a request that ended elsewhere.
	lookEvery = 5 * time.Minute
	idleFor   = 30 * time.Second // a poller that nothing needed for so long ends: polls have made its stack grow
)

// ErrLeaseLost is a Sink's way to say that it stored nothing, because somebody else may hold the request by now.
var ErrLeaseLost = errors.New("the lease is lost")

// poller is a goroutine that makes one poll at a time, and the request that it is given meanwhile.
type poller struct {
	jobs    chan job
	request Request
}

type job struct {
	row     *row
	due     int64
	policy  Policy
	overdue bool // its deadline has passed: it is to be ended, and the gate was not asked
	phase   phase
}

// verdict is what a poller reports.
type verdict struct {
	poller  *poller
	row     *row
	overdue bool
	polled  bool
	began   time.Time
	held    bool        // by the upstream, and it is to be polled again at once
	outcome api.Outcome // without its result
	took    time.Duration
	wait    time.Duration
	next    next
}

type next uint8

const (
	again next = iota // poll again after the wait
	ended             // settled: ack
	lost              // the lease is gone
)

// poller takes the idle poller that was busy last, or starts one; admit and sweep have bounded their number.
func (e *Engine) poller(ctx context.Context) *poller {
	if n := len(e.idle); n > 0 {
		p := e.idle[n-1]
		e.idle = e.idle[:n-1]
		e.spare = min(e.spare, n-1)
		return p
	}
	p := &poller{jobs: make(chan job, 1)}
	go func() {
		for j := range p.jobs {
			v := e.attempt(ctx, &p.request, j)
			v.row, v.poller, v.overdue = j.row, p, j.overdue
			e.done <- v
		}
	}()
	return p
}

// retire ends the pollers that were spare for long enough. It returns when to come back, next at the latest; negative is never.
func (e *Engine) retire(next int64) int64 {
	if now := e.now(); now-e.retired >= int64(idleFor) {
		for _, p := range e.idle[:e.spare] {
			close(p.jobs)
		}
		e.idle = slices.Delete(e.idle, 0, e.spare)
		e.spare, e.retired = len(e.idle), now
	}
	if again := e.retired + int64(idleFor); len(e.idle) > 0 && (next < 0 || next > again) {
		return again
	}
	return next
}

// unpolled is why a request may have had no turn.
var unpolled = [...]string{
	up: "limits had it wait", down: "the upstream was down", slowStart: "the upstream had been down",
	paused: "the upstream had asked to wait (429)", held: "the upstream refused the key or the bill",
}

// attempt is one poll of one request with everything that follows from it, in a poller's goroutine. A poller that has
// a result in hand stays with it until it is stored: results are not left lying in queues.
func (e *Engine) attempt(ctx context.Context, r *Request, j job) verdict {
	if !r.Lease.Trusted() {
		return verdict{next: lost}
	}
	if e.now()-r.looked > int64(lookEvery) {
		if v, stop := e.look(ctx, r); stop {
			return v
		}
	}
	begin := time.Now()
	if d := r.State.Deadline; !d.IsZero() && !now(begin).Before(d) {
		if r.State.Polls == 0 {
			r.State.cause = "it was never polled, for " + unpolled[j.phase]
		}
		return e.finish(ctx, r, j.policy.Timeout(r.State, begin), verdict{})
	}

	e.cfg.Metrics.lateness.Observe(time.Duration(e.now() - j.due).Seconds())
	reply := Reply{Start: begin}
	reply.Outcome = e.cfg.Retriever.Retrieve(ctx, query(r.ID, r.Says().Type, r.State))
	reply.End = time.Now()
	e.cfg.Metrics.polls[reply.Outcome.Kind].Inc()
	result := int64(len(reply.Outcome.Result))
	e.bytes.Add(result - r.reserved)
	defer e.bytes.Add(-result)
	defer reply.Outcome.Release()
	r.reserved = reply.Outcome.PayloadBytes

	v := verdict{polled: true, began: begin, outcome: reply.Outcome}
	v.outcome.Result = nil
	if ctx.Err() != nil && reply.Outcome.Kind != api.Completed {
		return v // broken off by our own end: what it says means nothing
	}
	logged := r.State
	state, d := j.policy.Step(r.State, reply, rand.Float64())
	r.State, v.wait = state, d.Wait
	v.held = d.Wait == 0 && reply.End.Sub(begin) >= j.policy.HeldAfter
	if d.Look {
		if looked, stop := e.look(ctx, r); stop {
			v.next = looked.next
			return v
		}
	}
	if d.Emit.QueueState != "" {
		switch over, err := e.cfg.Sink.Transition(ctx, r, d.Emit); {
		case errors.Is(err, ErrLeaseLost):
			// If another delivery of the request is here already, it goes on from what the log says.
			r.State.QueueState, r.State.Reason = logged.QueueState, logged.Reason
			v.next = lost
			return v
		case err != nil: // only ctx's end: nothing is known of what was stored, the next holder reads it
			return v
		case over:
			v.next = ended
			return v
		}
	}
	if d.Terminal.Status != "" {
		return e.finish(ctx, r, d.Terminal, v)
	}
	return v
}

// finish stores a request's end. A result in hand is published even when the lease is lost: its fence keeps order.
func (e *Engine) finish(ctx context.Context, r *Request, result Result, v verdict) verdict {
	if err := e.cfg.Sink.Finish(ctx, r, result); err != nil {
		return v
	}
	v.next, v.took = ended, result.Elapsed
	return v
}

// look asks whether the request ended elsewhere; stop says that the attempt is over.
func (e *Engine) look(ctx context.Context, r *Request) (v verdict, stop bool) {
	over, err := e.cfg.Sink.Conclude(ctx, r)
	switch {
	case errors.Is(err, ErrLeaseLost):
		return verdict{next: lost}, true
	case err != nil:
		return verdict{}, true
	case over:
		return verdict{next: ended}, true
	}
	r.looked = e.now()
	return verdict{}, false
}
