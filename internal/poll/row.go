package poll

import (
	"encoding/json"
	"time"

	"futurebridge/internal/api"
)

// Request is one request at work: what its submission says, what is known of it, and the right to go on with it. The
// engine makes it for a poll, and the Sink may change what it knows better.
type Request struct {
	ID     string
	About  *About // nil: the submission says nothing but the id
	State  State
	LogSeq uint64 // last sequence of the request's log that this holder knows; the Sink's fence
	Lease  Lease
	// Submitter has a share of the polls of its own when limits make requests wait. The engine does not give it back.
	Submitter string

	looked   int64 // when the result was last looked for, on the engine's clock
	reserved int64 // bytes announced by a metadata answer
}

// About is what a submission may say besides its id. It is never changed.
type About struct {
	Type        string
	Traceparent string
	Labels      json.RawMessage
}

// Says is what the submission says besides the id.
func (r *Request) Says() About { return r.About.orNothing() }

func (a *About) orNothing() About {
	if a == nil {
		return About{}
	}
	return *a
}

// started keeps rows' times on the monotonic clock: a step of the wall clock neither cuts nor stretches a grace.
var started = time.Now()

// row is a request that waits. There may be a hundred thousand of them, so it is packed: a third of what a Request
// takes. Its times are in nanoseconds, 0 for none: Unix ones, but notFoundSince counts from started.
type row struct {
	id         string
	about      *About
	lease      Lease
	lane       *lane // its submitter's
	logSeq     uint64
	queueState string // one of a few constants
	reason     string
	failure    *api.Failure
	cause      string

	submitted, deadline, notFoundSince int64
	looked, reserved                   int64
	pollAt                             int64 // on the engine's clock: when its wait is over. Due earlier, it is for its deadline
	streakKey                          uint64

	polls                              uint32
	httpStatus                         uint16
	pendings, faults, serverFailures   uint8
	streak                             uint8
	redelivered, full, fresh, brokeOff bool
	asked                              bool      // for the wait, by the upstream
	inFlight                           bool      // a poller has it
	absorbed                           int32     // of more
	more                               []Request // further submissions of the id
}

func (r *row) unpack() Request {
	q := Request{
		ID: r.id, About: r.about, Lease: r.lease, LogSeq: r.logSeq, looked: r.looked, reserved: r.reserved,
		State: State{
			Submitted: instant(r.submitted), Deadline: instant(r.deadline), Redelivered: r.redelivered,
			QueueState: r.queueState, Reason: r.reason, Polls: int(r.polls), Full: r.full, Fresh: r.fresh,
			brokeOff: r.brokeOff, pendings: r.pendings, faults: r.faults, serverFailures: r.serverFailures,
			streak: r.streak, streakKey: r.streakKey, httpStatus: r.httpStatus,
			failure: r.failure, cause: r.cause,
		},
	}
	if r.notFoundSince != 0 {
		q.State.notFoundSince = started.Add(time.Duration(r.notFoundSince))
	}
	return q
}

func (r *row) pack(q *Request) {
	r.lease, r.logSeq, r.looked, r.reserved = q.Lease, q.LogSeq, q.looked, q.reserved
	s := &q.State
	if r.deadline, r.notFoundSince = nanoseconds(s.Deadline), 0; !s.notFoundSince.IsZero() {
		r.notFoundSince = int64(s.notFoundSince.Sub(started))
	}
	r.redelivered, r.queueState, r.reason, r.polls = s.Redelivered, constant(s.QueueState), s.Reason, uint32(s.Polls)
	r.full, r.fresh, r.brokeOff = s.Full, s.Fresh, s.brokeOff
	r.pendings, r.faults, r.serverFailures = s.pendings, s.faults, s.serverFailures
	r.streak, r.streakKey, r.httpStatus, r.failure, r.cause = s.streak, s.streakKey, s.httpStatus, s.failure, s.cause
}

// constant keeps a usual queue state from being held once for each request.
func constant(queueState string) string {
	for _, usual := range [...]string{"active", "paused_rate_limit", "paused_capacity", "unknown"} {
		if queueState == usual {
			return usual
		}
	}
	return queueState
}

// absorb makes one request of several submissions of an id: the first deadline ends it, the longest log is right, and
// any lease that is trusted will do. Each submission is looked at once: there may be very many of one id.
func (r *row) absorb() {
	for _, m := range r.more[r.absorbed:] {
		if d := nanoseconds(m.State.Deadline); d != 0 && (r.deadline == 0 || d < r.deadline) {
			r.deadline = d
		}
		if m.LogSeq > r.logSeq {
			r.logSeq, r.queueState, r.reason = m.LogSeq, m.State.QueueState, m.State.Reason
		}
		r.redelivered = r.redelivered || m.State.Redelivered
	}
	r.absorbed = int32(len(r.more))
	for len(r.more) > 0 && !r.lease.Trusted() {
		r.lease.Drop()
		r.lease, r.more[0] = r.more[0].Lease, Request{}
		r.more, r.absorbed = r.more[1:], r.absorbed-1
	}
	if len(r.more) == 0 {
		r.more = nil
	}
}

// early is how long a row that is due has to wait all the same: it is due for its deadline, and since it was told when
// that is the wall clock was set back.
func (r *row) early(now int64) time.Duration {
	return r.within(max(0, time.Duration(r.pollAt-now)))
}

// within is a wait that does not go beyond the deadline.
func (r *row) within(wait time.Duration) time.Duration {
	if r.deadline == 0 {
		return wait
	}
	return max(0, min(wait, time.Duration(r.deadline-time.Now().UnixNano())))
}

func instant(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
