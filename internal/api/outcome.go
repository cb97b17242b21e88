// Package api makes one attempt to retrieve a future over HTTP and classifies the answer.
//
// It knows every dialect of the "retrieve future" protocol and is the only package that does: whatever an upstream
// says, Retrieve turns it into exactly one Outcome. It never retries, never waits, never follows a redirect, and never
// touches the bytes of a result. What a caller should do about an outcome is decided in package poll.
package api

import (
	"encoding/json"
	"time"
)

// Kind is what an answer means. It is also the label of the polls metric.
type Kind uint8

const (
	Pending      Kind = iota // not finished yet
	Metadata                 // finished, but large: ask again without allow_metadata_only
	Completed                // finished: Result holds the bytes
	Failed                   // the job itself failed: Failure says whose fault it was
	Expired                  // 410: the upstream no longer keeps it
	NotFound                 // 404, "already retrieved": unknown here and now
	Refused                  // another 4xx: asking again will not help
	BlankRefusal             // 400 with an empty body, as proxies inject it
	Unauthorized             // 401, 402, a 403 that says so: the key or the bill, not this request
	Throttled                // 429
	ServerFault              // 5xx
	Malformed                // no answer of this protocol, a redirect among them
	Unreachable              // no answer at all, or one that broke off
	NoAnswer                 // the poll's own time ran out: as good as pending
)

// Kinds lists every kind, for metrics that start at zero.
var Kinds = []Kind{
	Pending, Metadata, Completed, Failed, Expired, NotFound, Refused, BlankRefusal,
	Unauthorized, Throttled, ServerFault, Malformed, Unreachable, NoAnswer,
}

func (k Kind) String() string {
	switch k {
	case Pending:
		return "pending"
	case Metadata:
		return "metadata"
	case Completed:
		return "completed"
	case Failed:
		return "failed"
	case Expired:
		return "expired"
	case NotFound:
		return "not_found"
	case Refused:
		return "refused"
	case BlankRefusal:
		return "blank_400"
	case Unauthorized:
		return "unauthorized"
	case Throttled:
		return "throttled"
	case ServerFault:
		return "server_fault"
	case Malformed:
		return "malformed"
	case Unreachable:
		return "unreachable"
	case NoAnswer:
		return "no_answer"
	}
	return "invalid"
}

// Outcome is one classified attempt. Its strings and bytes are its own: nothing in it aliases a buffer that is reused.
// Whoever is done with the Result calls Release.
type Outcome struct {
	Kind       Kind
	HTTPStatus int // 0: no status line was read

	// Hint is how long the upstream asks to wait, counted from the answer; 0: it did not say. At most MaxHint.
	Hint time.Duration
	// OddHint is a wait that could not be granted as it was asked for: none, too long, over already, or one of several.
	OddHint string

	// QueueState is "active", "paused_rate_limit", "paused_capacity" or "unknown"; empty: the answer had none.
	QueueState string
	// Reason is the upstream's queue_state_reason; a reason that is no string is its JSON text.
	Reason   string
	Progress *Progress // nil: none given

	Result       []byte // Completed: the bytes as they came
	ContentType  string // Completed: as given; "application/json" when the upstream gave none
	PayloadBytes int64  // Metadata: the size that the upstream announces

	// Failure explains every kind but Pending, Metadata, Completed and NoAnswer.
	Failure *Failure

	// StaleKey: the key that was refused is no longer in use, so Unauthorized says nothing about the one that is.
	StaleKey bool
	// BrokeOff: the upstream may have handed the result to this attempt, which did not get it whole.
	BrokeOff bool
	// Fingerprint is a hash of status and body of a ServerFault: a job that failed answers the same for ever.
	Fingerprint uint64

	room *room  // that Result takes; nil: nobody counts
	mend string // of Unreachable
}

// Progress is what else a pending answer may say, as JSON values.
type Progress struct {
	QueuePosition, EstimatedWaitS, Progress, Status json.RawMessage
}

// Failure describes an answer that is no result. Secrets have been taken out of its texts.
type Failure struct {
	Type        FailureType
	Category    Category
	RawCategory string // the upstream's own word, where it is not the category
	Message     string // at most maxText bytes
}

// FailureType is the "type" of an error event.
type FailureType string

const (
	RequestFailed FailureType = "request_failed" // the job failed
	APITimeout    FailureType = "api_timeout"    // the request's deadline passed
	APIStatus     FailureType = "api_status"     // the API refused or kept answering nonsense
	APIConnection FailureType = "api_connection" // the API could not be reached
	Validation    FailureType = "validation"     // the answer broke a limit of this bridge
)

// Category says whose fault a failure is. Failures of category user are never retried.
type Category string

const (
	User    Category = "user"
	Server  Category = "server"
	Unknown Category = "unknown"
)
