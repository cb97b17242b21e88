// Package poll decides when to poll a request and what its answers mean for it, and does it for very many at once.
//
// Step is the whole decision, a pure function: state and reply in, state and decision out. Await runs it for one
// request; Engine runs it for as many as memory holds, waiting requests being entries in a heap. The package knows
// neither NATS nor HTTP: it reaches them through Retriever, Sink and Lease.
package poll

import (
	"fmt"
	"strings"
	"time"

	"futurebridge/internal/api"
)

// Policy is how patient the bridge is. Durations are exact; jitter of up to a tenth is added to each wait, never taken off.
type Policy struct {
	BackoffInitial     time.Duration // first wait of a pending request, doubling; also of a faulty upstream
	BackoffMax         time.Duration // where doubling ends
	pace               time.Duration // the least wait of a pending request whose type is known; 0: it is not
	PausedWait         time.Duration // between polls of a paused request
	HeldAfter          time.Duration // a pending poll that took this long was held by the upstream, and is repeated at once
	HoldInitial        time.Duration // first wait after a refused key, doubling up to HoldMax
	HoldMax            time.Duration
	ServerFailurePolls int           // polls after a failure that is not the user's, before it counts; negative: until the deadline
	NotFoundGrace      time.Duration // from the first answer of the not-found kind until it counts
	BadAnswers         int           // malformed answers, or identical bodies of server faults, in a row, before they count
	BlankRefusals      int           // retries of blank 400s in a row
}

// DefaultPolicy is what `bridge serve` does without flags.
func DefaultPolicy() Policy {
	return Policy{
		BackoffInitial: 500 * time.Millisecond, BackoffMax: 30 * time.Second,
		PausedWait: time.Second, HeldAfter: time.Second,
		HoldInitial: time.Second, HoldMax: 30 * time.Second,
		ServerFailurePolls: 3, NotFoundGrace: 10 * time.Second, BadAnswers: 10, BlankRefusals: 3,
	}
}

// State is what is known of a request. The zero State, with its times set, is a request that was never polled.
type State struct {
	Submitted time.Time // by the clock of the stream that holds the submission
	Deadline  time.Time // zero: none
	// Redelivered: somebody else may have polled this request before, and may have been handed its result.
	Redelivered bool

	QueueState string // of the last transition
	Reason     string
	Polls      int // by all holders, as far as is known

	Full  bool // ask for the result itself: its size was announced
	Fresh bool // use a new connection for the next poll

	brokeOff       bool // an answer to this holder broke off: the result may have been in it
	pendings       uint8
	faults         uint8
	serverFailures uint8
	streak         uint8  // answers in a row with the same streakKey
	streakKey      uint64 // 0: none
	httpStatus     uint16 // of the last answer
	notFoundSince  time.Time
	failure        *api.Failure // the job's last failure that may pass
	cause          string       // why the last poll brought nothing; empty: it did, or there was none
}

// Reply is one poll and what came of it.
type Reply struct {
	Start, End time.Time
	Outcome    api.Outcome
}

// Decision is what a reply asks for. All of it may be zero: poll again at once.
type Decision struct {
	Emit     Transition    // publish this, if QueueState is set
	Terminal Result        // the request ends so, if Status is set
	Wait     time.Duration // on the monotonic clock. Whoever waits also has to see when the deadline passes, on the wall clock
	Look     bool          // somebody else may have ended the request: look before acting on this
}

// Transition is a change of the queue state or of its reason.
type Transition struct {
	QueueState, Previous, Reason string
	Poll                         int
	Time                         time.Time
	Progress                     *api.Progress
}

// Status is how a request ended.
type Status string

const (
	Completed Status = "completed"
	Failed    Status = "failed"
	TimedOut  Status = "timed_out" // its deadline passed
	Expired   Status = "expired"   // the upstream no longer kept it
	Lost      Status = "lost"      // the upstream handed the result to a poll that died
	Cancelled Status = "cancelled"
)

// Result is a request's end.
type Result struct {
	Status      Status
	Body        []byte // Completed: the upstream's bytes
	ContentType string
	Failure     *api.Failure // every other status
	HTTPStatus  int          // of the last answer; 0: none
	Retryable   bool         // the same work, submitted anew, may succeed
	Polls       int
	Elapsed     time.Duration // since the submission
	Time        time.Time
}

// Step is the poll engine's one decision. jitter is in [0, 1).
func (p Policy) Step(s State, r Reply, jitter float64) (State, Decision) {
	s.Polls++
	s.Fresh = false
	o := &r.Outcome
	s.brokeOff = s.brokeOff || o.BrokeOff
	if o.Kind != api.NoAnswer {
		s.httpStatus = uint16(o.HTTPStatus)
	}
	s.count(o)
	switch {
	case o.Failure != nil:
		s.cause = clip(o.Failure.Message)
	case o.Kind != api.NoAnswer:
		s.cause = ""
	case s.cause == "":
		s.cause = "no answer within the time for one poll"
	}

	var d Decision
	switch o.Kind {
	case api.Completed:
		return s, Decision{Terminal: s.result(Completed, r.End, nil, o)}
	case api.Refused:
		return s, Decision{Terminal: s.result(Failed, r.End, o.Failure, o)}

	case api.Pending, api.NoAnswer:
		s.faults, s.notFoundSince = 0, time.Time{}
		if o.QueueState != "" && (o.QueueState != s.QueueState || o.Reason != s.Reason) {
			d.Emit = Transition{
				QueueState: o.QueueState, Previous: s.QueueState, Reason: o.Reason,
				Poll: s.Polls, Time: r.End, Progress: o.Progress,
			}
			s.QueueState, s.Reason = o.QueueState, o.Reason
		}
		switch held := r.End.Sub(r.Start) >= p.HeldAfter; {
		case o.Hint > 0:
			d.Wait = spread(o.Hint, jitter)
		case o.QueueState == "paused_rate_limit" || o.QueueState == "paused_capacity":
			d.Wait = spread(p.PausedWait, jitter)
		case held:
			s.pendings = 0
		default:
			// Counted from the poll's start: a slow answer is part of the wait.
			d.Wait = max(0, spread(p.pendingWait(&s, r.Start), jitter)-r.End.Sub(r.Start))
			s.pendings = bump(s.pendings)
		}

	case api.Metadata:
		s.notFoundSince = time.Time{}
		if s.Full { // it was asked for the bytes themselves
			d = p.badAnswer(&s, r, jitter)
			break
		}
		s.Full, s.faults, d.Wait = true, 0, o.Hint

	case api.Failed:
		if o.Failure.Category == api.User || p.ServerFailurePolls >= 0 && int(s.serverFailures) >= p.ServerFailurePolls {
			return s, Decision{Terminal: s.result(Failed, r.End, o.Failure, o)}
		}
		s.failure = o.Failure
		s.serverFailures = bump(s.serverFailures)
		d.Wait = p.faultWait(&s, o.Hint, jitter)

	case api.NotFound, api.Expired:
		d = p.notFound(&s, r, jitter)

	case api.BlankRefusal:
		if int(s.streak) > p.BlankRefusals {
			return s, Decision{Terminal: s.result(Failed, r.End, o.Failure, o)}
		}
		s.Fresh = true
		d.Wait = p.faultWait(&s, o.Hint, jitter)

	case api.Unauthorized:
		d.Wait = spread(max(o.Hint, backoff(p.HoldInitial, p.HoldMax, s.faults)), jitter)
		s.faults = bump(s.faults)

	case api.Malformed, api.ServerFault:
		d = p.badAnswer(&s, r, jitter)

	default: // Throttled, Unreachable
		d.Wait = p.faultWait(&s, o.Hint, jitter)
	}
	if d.Terminal.Status != "" || s.Deadline.IsZero() {
		return s, d
	}
	if !now(r.End).Before(s.Deadline) {
		d.Terminal = p.Timeout(s, r.End)
	}
	return s, d
}

// pendingWait doubles, or, where it is known how long requests of a type take, follows the request's age: one that
// has taken long already will take long.
func (p Policy) pendingWait(s *State, start time.Time) time.Duration {
	if p.pace == 0 {
		return backoff(p.BackoffInitial, p.BackoffMax, s.pendings)
	}
	return min(max(p.pace, now(start).Sub(s.Submitted)/cadenceAge), p.BackoffMax)
}

// pendingsAt is how often a request was found pending by an age, if it was polled all along: where the doubling goes on
// when another holder takes it over.
func (p Policy) pendingsAt(age time.Duration) (n uint8) {
	for wait := p.BackoffInitial; wait <= age && wait < p.BackoffMax; wait = backoff(p.BackoffInitial, p.BackoffMax, n) {
		age -= wait
		n++
	}
	return n
}

// Timeout is the end of a request whose deadline passed: the job's own failure if it had one, else a time-out.
func (p Policy) Timeout(s State, at time.Time) Result {
	if s.failure != nil {
		return s.result(Failed, at, s.failure, nil)
	}
	message := fmt.Sprintf("no result %s after the submission", s.Deadline.Sub(s.Submitted).Round(time.Millisecond))
	if s.httpStatus != 0 {
		message += fmt.Sprintf("; the upstream's last answer had the status %d", s.httpStatus)
	}
	if s.cause != "" {
		message += "; at last: " + s.cause
	}
	return s.result(TimedOut, at, &api.Failure{Type: api.APITimeout, Category: api.Unknown, Message: message}, nil)
}

// clip keeps of a cause what is told at the end. Every request may have one.
func clip(cause string) string {
	const most = 200
	if len(cause) <= most {
		return cause
	}
	return strings.ToValidUTF8(cause[:most], "") + "…"
}

// now strips the monotonic clock: deadlines are points on the wall clock.
func now(t time.Time) time.Time { return t.Round(0) }

// count keeps the streak of answers that are only tolerated so many times in a row.
func (s *State) count(o *api.Outcome) {
	var key uint64
	switch o.Kind {
	case api.Malformed:
		key = 1
	case api.BlankRefusal:
		key = 2
	case api.Metadata:
		if s.Full {
			key = 1
		}
	case api.ServerFault:
		// A failed job's 500 is the same for ever. What a gateway says (502, 503, 504) is about the upstream, and an
		// outage must not end everybody's requests.
		if o.HTTPStatus < 502 || o.HTTPStatus > 504 {
			key = o.Fingerprint
		}
	}
	if key == 0 || key != s.streakKey {
		s.streak = 0
	}
	if s.streakKey = key; key != 0 {
		s.streak = bump(s.streak)
	}
}

func (p Policy) badAnswer(s *State, r Reply, jitter float64) Decision {
	if int(s.streak) >= p.BadAnswers {
		failure := r.Outcome.Failure
		if failure == nil {
			failure = &api.Failure{Type: api.APIStatus, Category: api.Unknown, Message: "the upstream answers with metadata only, although it was asked for the result"}
		}
		return Decision{Terminal: s.result(Failed, r.End, failure, &r.Outcome)}
	}
	return Decision{Wait: p.faultWait(s, r.Outcome.Hint, jitter)}
}

// notFound gives the holder that has the bytes, or a replica that lags, the time to show.
func (p Policy) notFound(s *State, r Reply, jitter float64) Decision {
	if s.notFoundSince.IsZero() {
		s.notFoundSince, s.faults = r.End, 0
	}
	left := p.NotFoundGrace - r.End.Sub(s.notFoundSince)
	if left > 0 {
		return Decision{Look: true, Wait: max(r.Outcome.Hint, min(p.faultWait(s, 0, jitter), left))}
	}
	d := Decision{Look: true}
	switch {
	case s.brokeOff || s.Redelivered:
		failure := *r.Outcome.Failure
		failure.Category, failure.Message = api.Unknown, "the upstream handed the result to a poll that broke off, and no longer has it: "+failure.Message
		d.Terminal = s.result(Lost, r.End, &failure, &r.Outcome)
	case r.Outcome.Kind == api.Expired:
		d.Terminal = s.result(Expired, r.End, r.Outcome.Failure, &r.Outcome)
	default:
		d.Terminal = s.result(Failed, r.End, r.Outcome.Failure, &r.Outcome)
	}
	return d
}

// faultWait has an exponent of its own: what ails the upstream says nothing about how long a job takes.
func (p Policy) faultWait(s *State, hint time.Duration, jitter float64) time.Duration {
	wait := backoff(p.BackoffInitial, p.BackoffMax, s.faults)
	s.faults = bump(s.faults)
	if hint > 0 {
		wait = hint
	}
	return spread(wait, jitter)
}

func (s *State) result(status Status, at time.Time, failure *api.Failure, o *api.Outcome) Result {
	r := Result{
		Status: status, Failure: failure, HTTPStatus: int(s.httpStatus), Polls: s.Polls,
		Elapsed: max(0, now(at).Sub(s.Submitted)), Time: at,
	}
	if o != nil {
		r.Body, r.ContentType = o.Result, o.ContentType
	}
	if failure != nil {
		r.ContentType = "application/json"
		r.Retryable = status == Expired || failure.Category != api.User && status != Cancelled
	}
	return r
}
