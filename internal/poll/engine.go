package poll

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"futurebridge/internal/api"
)

// Lease is the right to poll a request, and the duty to settle it.
type Lease interface {
	Trusted() bool // nobody else can hold the request now
	Ack()          // the request ended and its closing record is stored
	// Nak: somebody else shall have it, after so long; 0: now.
	Nak(after time.Duration)
	Drop() // somebody else has it already
}

// Sink makes events durable. Its methods return when they have, however long that takes, or when ctx ends.
type Sink interface {
	// Transition appends to the request's log. ended: the log or the result says that somebody else ended the request.
	// When somebody else logged another state, that one is adopted into r and t is thrown away. ErrLeaseLost: nothing
	// was stored.
	Transition(ctx context.Context, r *Request, t Transition) (ended bool, err error)
	// Finish stores the result, or accepts the one that somebody else stored, and then the closing record.
	Finish(ctx context.Context, r *Request, result Result) error
	// Conclude looks whether the request has a result already, and stores the closing record if that is missing.
	Conclude(ctx context.Context, r *Request) (ended bool, err error)
}

// Config is what an engine is made of. All but Metrics and Log are required.
type Config struct {
	Policy         Policy
	Retriever      Retriever
	Sink           Sink
	MaxPolls       int         // in flight at a time
	PollsPerSecond float64     // 0: no fixed limit
	ResultMemory   int64       // bytes of results not yet stored, above which no poll starts
	Full           func() bool // polls in flight wait for memory, and none starts; nil: never
	Adaptive       bool        // let the backoff's ceiling follow how long requests of a type take
	Metrics        *Metrics
	Log            *slog.Logger
}

// Engine polls every request that it holds until it ends. Waiting requests are heap entries; one goroutine, Run, owns
// the heap, the index, the limits and the one timer.
type Engine struct {
	cfg     Config
	start   time.Time
	heap    dueHeap // what waits for its time,
	due     *lanes  // and what waits for its turn
	index   map[string]*row
	gate    *gate
	cadence *cadence
	idle    []*poller // last in first out: the warm ones are used first
	spare   int       // of them, those at the front that nothing has needed
	retired int64     // since then

	adds     chan []Request
	shares   chan int
	done     chan verdict
	oldest   chan chan time.Time
	probe    chan struct{}
	draining chan struct{}
	ended    chan struct{}

	eldest  *row  // of all that are held; nil: to be looked for
	ending  int   // requests past their deadline that pollers end, beside the polls that the gate counts
	swept   int64 // when such were last looked for
	told    phase // what the metrics say of the upstream,
	said    phase // and the log,
	warned  [held + 1]int64
	refusal string // of the key, the last one
	cause   string // of what the last poll brought nothing

	held    atomic.Int64 // requests
	bytes   atomic.Int64 // results in memory, and those announced that polls in flight are to bring
	refused atomic.Bool  // the key is refused
}

// NewEngine makes an engine; nothing happens before Run.
func NewEngine(cfg Config) *Engine {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	e := &Engine{
		cfg: cfg, start: time.Now(), due: newLanes(), index: make(map[string]*row),
		gate: newGate(cfg.MaxPolls, cfg.PollsPerSecond, cfg.Policy),
		adds: make(chan []Request), shares: make(chan int), done: make(chan verdict, cfg.MaxPolls),
		oldest: make(chan chan time.Time), probe: make(chan struct{}, 1), draining: make(chan struct{}), ended: make(chan struct{}),
	}
	if cfg.Adaptive {
		e.cadence = &cadence{types: make(map[string]*durations)}
	}
	return e
}

// Held is the number of requests in the engine.
func (e *Engine) Held() int { return int(e.held.Load()) }

// KeyRefused reports whether the upstream refuses the key or the bill, so that everything waits.
func (e *Engine) KeyRefused() bool { return e.refused.Load() }

// Probe lets the next poll out at once although the key was refused: there may be another one now.
func (e *Engine) Probe() {
	select {
	case e.probe <- struct{}{}:
	default: // one is asked for already
	}
}

// Oldest is the submission time of the oldest request held, zero if there is none.
func (e *Engine) Oldest() time.Time {
	reply := make(chan time.Time, 1)
	select {
	case e.oldest <- reply:
		return <-reply
	case <-e.ended:
		return time.Time{}
	}
}

// Add hands requests over; they are polled as soon as the limits allow. After Drain they go back at once.
func (e *Engine) Add(requests []Request) {
	select {
	case e.adds <- requests:
	case <-e.ended:
		for _, r := range requests {
			r.Lease.Nak(0)
		}
	}
}

// Share has this engine keep to its part of PollsPerSecond, as one of so many that poll the same upstream.
func (e *Engine) Share(engines int) {
	select {
	case e.shares <- engines:
	case <-e.ended:
	}
}

// Drain makes Run give back what waits, let the polls in flight end, publish what they brought, and return.
func (e *Engine) Drain() { close(e.draining) }

// Run polls until Drain has done its work, or ctx ends: then polls and publishes in flight are broken off.
func (e *Engine) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	draining := e.draining
	wake := int64(-1) // what the timer is set to
	for {
		next := e.retire(e.dispatch(ctx, draining == nil))
		e.tell()
		if next != wake {
			if wake = next; next >= 0 {
				timer.Reset(time.Duration(next - e.now()))
			}
		}
		select {
		case requests := <-e.adds:
			e.add(requests, draining == nil)
		case engines := <-e.shares:
			e.gate.share(engines)
		case v := <-e.done:
			e.settle(ctx, v, draining == nil)
			for range len(e.done) {
				e.settle(ctx, <-e.done, draining == nil)
			}
		case <-timer.C:
			wake = -1
		case <-e.probe:
			e.gate.probeAt = time.Time{}
		case reply := <-e.oldest:
			reply <- e.oldestHeld()
		case <-draining:
			draining = nil
			e.giveBack()
		case <-ctx.Done():
			if draining != nil {
				draining = nil
				e.giveBack()
			}
			for e.gate.inFlight+e.ending > 0 {
				e.settle(ctx, <-e.done, true)
			}
		}
		if draining == nil && e.gate.inFlight+e.ending == 0 {
			close(e.ended)
			for _, p := range e.idle {
				close(p.jobs)
			}
			return
		}
	}
}

// tell shows what is known of the upstream in the metrics, and in the log when that changes.
func (e *Engine) tell() {
	m := e.cfg.Metrics
	state, limit := e.gate.state(e.at(e.now()))
	m.limit.Set(limit)
	if state != e.told {
		m.upstream[e.told].Set(0)
	}
	m.upstream[state].Set(1)
	e.told = state

	trouble := state == down || state == held
	switch {
	case state == e.said || trouble && e.warned[state] != 0 && e.now()-e.warned[state] < int64(warnEvery):
		return // what comes and goes is told of once a minute
	case state == down:
		e.cfg.Log.Warn("the upstream is down: every request waits, probing with a few polls a second", "held", e.Held())
	case state == held:
		e.cfg.Log.Error("the upstream refuses the key or the bill: every request waits, probing with one poll at a time", "refused", e.refusal,
			"hint", "check the API key, BRIDGE_API_KEY or --api-key-file, and the account; a new key in the file is used by the next poll")
	case e.said == down:
		e.cfg.Log.Info("the upstream answers again: going on slowly")
	case e.said == held:
		e.cfg.Log.Info("the upstream accepts the key again")
	}
	if e.said = state; trouble {
		e.warned[state] = e.now()
	}
}

const warnEvery = time.Minute

func (e *Engine) now() int64 { return int64(time.Since(e.start)) }

func (e *Engine) add(requests []Request, draining bool) {
	now := e.now()
	for i := range requests {
		r := &requests[i]
		if draining {
			r.Lease.Nak(0)
			continue
		}
		if held := e.index[r.ID]; held != nil { // one poll, however many submissions
			held.more = append(held.more, *r)
			if !held.inFlight {
				before := held.deadline
				if held.absorb(); held.deadline != before { // an earlier one
					e.heap.hasten(held, now+int64(held.within(r.State.Deadline.Sub(r.State.Submitted))))
				}
			}
			continue
		}
		r.looked = now
		if r.State.Redelivered || r.State.Polls > 0 {
			r.State.pendings = e.cfg.Policy.pendingsAt(time.Since(r.State.Submitted))
		}
		fresh := &row{id: r.ID, about: r.About, lane: e.due.of(r.Submitter), submitted: r.State.Submitted.UnixNano()}
		fresh.pack(r)
		e.index[r.ID] = fresh
		if e.eldest != nil && fresh.submitted < e.eldest.submitted {
			e.eldest = fresh
		}
		e.held.Add(1)
		e.heap.push(entry{now, fresh})
	}
}

// settle takes back what a poller reports.
func (e *Engine) settle(ctx context.Context, v verdict, draining bool) {
	r := v.row
	repeated := r.faults > 0 // the row still says what was before
	r.pack(&v.poller.request)
	if r.cause == e.cause { // in an outage all have the same one: it is held once
		r.cause = e.cause
	}
	e.cause = r.cause
	r.inFlight = false
	v.poller.request = Request{}
	if !v.polled { // else the poll has put the result itself in its place
		e.bytes.Add(-r.reserved)
	}
	e.idle = append(e.idle, v.poller)
	now := e.now()
	refused := v.outcome.Kind == api.Unauthorized
	alone := refused && repeated && e.gate.accepted.After(e.at(r.pollAt)) // others were accepted since it was refused before
	switch {
	case v.overdue:
		e.ending--
	case v.polled && !v.outcome.StaleKey && !alone:
		e.gate.observe(&v.outcome, v.began, repeated, e.at(now))
	default:
		e.gate.release()
	}
	if refused && !alone {
		e.refusal = fmt.Sprintf("status %d, request %q", v.outcome.HTTPStatus, r.id)
		if v.outcome.Hint == 0 {
			v.wait = 0 // the gate says when, for all requests alike
		}
	}
	r.pollAt, r.asked = now+int64(v.wait), v.polled && v.outcome.Hint > 0
	e.refused.Store(e.gate.held)
	if v.outcome.Kind == api.Completed && v.polled {
		e.cadence.learn(r.about.orNothing().Type, v.took)
	}
	if v.next != ended && len(r.more) > 0 {
		if r.absorb(); v.next == lost && r.lease.Trusted() {
			v.next = again
		}
	}
	switch {
	case v.next == ended:
		e.remove(r, Lease.Ack)
	case v.next == lost:
		e.remove(r, Lease.Drop)
	case draining:
		e.handBack(r)
	case v.held && e.room(r) && e.gate.readmit(e.at(now)):
		e.send(ctx, entry{now, r}, false)
	default:
		e.heap.push(entry{now + int64(r.within(v.wait)), r})
	}
}

func (e *Engine) remove(r *row, how func(Lease)) {
	how(r.lease)
	for _, m := range r.more {
		how(m.Lease)
	}
	delete(e.index, r.id)
	e.due.leave(r.lane)
	if e.held.Add(-1); r == e.eldest {
		e.eldest = nil
	}
}

// giveBack hands what waits to other bridges.
func (e *Engine) giveBack() {
	for _, waiting := range e.heap {
		e.handBack(waiting.row)
	}
	e.heap = nil
	e.due.remove(func(due entry) bool {
		e.handBack(due.row)
		return true
	})
}

// handBack lets the next bridge poll at once, as it does, but not before the upstream wants to be asked again.
func (e *Engine) handBack(r *row) {
	var after time.Duration
	if r.asked {
		after = r.early(e.now())
	}
	e.remove(r, func(l Lease) { l.Nak(after) })
}

func (e *Engine) oldestHeld() time.Time {
	if e.eldest == nil {
		for _, r := range e.index {
			if e.eldest == nil || r.submitted < e.eldest.submitted {
				e.eldest = r
			}
		}
	}
	if e.eldest == nil {
		return time.Time{}
	}
	return time.Unix(0, e.eldest.submitted)
}
