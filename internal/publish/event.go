package publish

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"futurebridge/internal/poll"
)

// Headers of events and of submissions.
const (
	HeaderRequestID       = "Bridge-Request-Id"
	HeaderRequestType     = "Bridge-Request-Type"
	HeaderTimeoutMS       = "Bridge-Timeout-Ms"
	HeaderStatus          = "Bridge-Status"
	HeaderPolls           = "Bridge-Polls"
	HeaderSubmittedAt     = "Bridge-Submitted-At"
	HeaderRejectedReason  = "Bridge-Rejected-Reason"
	HeaderRejectedSubject = "Bridge-Rejected-Subject"
	HeaderRejectedBytes   = "Bridge-Rejected-Bytes"
	HeaderRejectedDigest  = "Bridge-Rejected-Digest"
	HeaderResultObject    = "Bridge-Result-Object"
	HeaderResultBytes     = "Bridge-Result-Bytes"
	HeaderResultDigest    = "Bridge-Result-Digest"
	HeaderContentType     = "Content-Type"
	HeaderTraceparent     = "traceparent"
)

// Terminal values of Bridge-Status; any other value is a queue state.
const (
	StatusCompleted = string(poll.Completed)
	StatusFailed    = string(poll.Failed)
	StatusTimedOut  = string(poll.TimedOut)
	StatusExpired   = string(poll.Expired)
	StatusLost      = string(poll.Lost)
	StatusCancelled = string(poll.Cancelled)
)

// Terminal says whether a Bridge-Status ends its request.
func Terminal(status string) bool {
	switch status {
	case StatusCompleted, StatusFailed, StatusTimedOut, StatusExpired, StatusLost, StatusCancelled:
		return true
	}
	return false
}

// StateBody is the JSON body of a state event. The upstream's progress fields are absent when it gave none.
type StateBody struct {
	RequestID     string          `json:"request_id"`
	QueueState    string          `json:"queue_state"`
	Previous      Optional        `json:"previous_queue_state"`
	Reason        Optional        `json:"reason"`
	Poll          int             `json:"poll"`
	Time          time.Time       `json:"time"`
	Labels        json.RawMessage `json:"labels,omitempty"`
	QueuePosition json.RawMessage `json:"queue_position,omitempty"`
	EstimatedWait json.RawMessage `json:"estimated_wait_s,omitempty"`
	Progress      json.RawMessage `json:"progress,omitempty"`
	Status        json.RawMessage `json:"status,omitempty"`
}

// ClosingBody is the JSON body of a closing record: how a request ended, without its result's bytes.
type ClosingBody struct {
	RequestID string          `json:"request_id"`
	Status    string          `json:"status"`
	Previous  Optional        `json:"previous_queue_state"`
	Polls     int             `json:"polls"`
	ElapsedMS int64           `json:"elapsed_ms"`
	Time      time.Time       `json:"time"`
	Labels    json.RawMessage `json:"labels,omitempty"`
	Result    ResultRef       `json:"result"`
	Error     json.RawMessage `json:"error,omitempty"`
}

// ResultRef says where a result is stored. Bytes is the result's own size, also when it lies in the object store.
type ResultRef struct {
	Stream      string `json:"stream"`
	Seq         uint64 `json:"seq"`
	Bytes       int64  `json:"bytes"`
	ContentType string `json:"content_type"`
	Object      string `json:"object,omitempty"`
}

// ErrorBody is the JSON body of a result whose request did not complete.
type ErrorBody struct {
	Type        string `json:"type"`     // request_failed | api_timeout | api_status | api_connection | validation
	Category    string `json:"category"` // user | server | unknown
	RawCategory string `json:"raw_category,omitempty"`
	Message     string `json:"message"`
	HTTPStatus  int    `json:"http_status,omitempty"`
	Retryable   bool   `json:"retryable"`
	Polls       int    `json:"polls"`
	ElapsedMS   int64  `json:"elapsed_ms"`
}

// Optional is a string whose absence is JSON null.
type Optional string

func (o Optional) MarshalJSON() ([]byte, error) {
	if o == "" {
		return []byte("null"), nil
	}
	return marshal(string(o)), nil
}

// Kind tells the three events of a request apart.
type Kind string

const (
	KindState   Kind = "state"   // a queue-state transition, in the log
	KindClosing Kind = "closing" // the log's last record
	KindResult  Kind = "result"  // the result or the error

	kindRejected Kind = "rejected" // of a submission that is no request, and has no events
)

// Event is a decoded event message, live or read from a stream.
type Event struct {
	Kind        Kind
	Subject     string
	RequestID   string
	Status      string // queue state, or a terminal status
	Polls       int
	SubmittedAt time.Time
	MsgID       string
	ContentType string
	Data        []byte    // JSON for states and closing records; the upstream's bytes or an ErrorBody for results
	Large       *LargeRef // set when Data is empty because the result lies in the object store
}

// LargeRef points into the object store. Digest is "SHA-256=" + base64url, as the object store writes it.
type LargeRef struct {
	Object string
	Bytes  int64
	Digest string
}

// Decode reads an event of these names. It fails on messages that no bridge wrote.
func (n Names) Decode(subject string, header nats.Header, data []byte) (Event, error) {
	e := Event{
		Subject:     subject,
		RequestID:   header.Get(HeaderRequestID),
		Status:      header.Get(HeaderStatus),
		MsgID:       header.Get(nats.MsgIdHdr),
		ContentType: header.Get(HeaderContentType),
		Data:        data,
	}
	if e.RequestID == "" {
		return e, fmt.Errorf("event on %q has no %s header", subject, HeaderRequestID)
	}
	if e.Status == "" {
		return e, fmt.Errorf("event on %q has no %s header", subject, HeaderStatus)
	}
	rest, ok := strings.CutPrefix(subject, n.prefix+".")
	kind, token, ok2 := strings.Cut(rest, ".")
	switch {
	case !ok || !ok2 || token != Token(e.RequestID):
		return e, fmt.Errorf("subject %q is not that of request %q", subject, e.RequestID)
	case kind == "result" && Terminal(e.Status):
		e.Kind = KindResult
	case kind == "state" && Terminal(e.Status):
		e.Kind = KindClosing
	case kind == "state":
		e.Kind = KindState
	default:
		return e, fmt.Errorf("subject %q carries no event with status %q", subject, e.Status)
	}
	var err error
	if e.Polls, err = strconv.Atoi(header.Get(HeaderPolls)); err != nil || e.Polls < 0 {
		return e, fmt.Errorf("event on %q: bad %s header %q", subject, HeaderPolls, header.Get(HeaderPolls))
	}
	if e.SubmittedAt, err = time.Parse(time.RFC3339Nano, header.Get(HeaderSubmittedAt)); err != nil {
		return e, fmt.Errorf("event on %q: bad %s header: %w", subject, HeaderSubmittedAt, err)
	}
	if object := header.Get(HeaderResultObject); e.Kind == KindResult && object != "" {
		size, err := strconv.ParseInt(header.Get(HeaderResultBytes), 10, 64)
		if err != nil || size < 0 {
			return e, fmt.Errorf("event on %q: bad %s header %q", subject, HeaderResultBytes, header.Get(HeaderResultBytes))
		}
		e.Large = &LargeRef{Object: object, Bytes: size, Digest: header.Get(HeaderResultDigest)}
	}
	return e, nil
}

// State decodes the body of a state event.
func (e Event) State() (StateBody, error) {
	var body StateBody
	err := json.Unmarshal(e.Data, &body)
	return body, err
}

// Closing decodes the body of a closing record.
func (e Event) Closing() (ClosingBody, error) {
	var body ClosingBody
	err := json.Unmarshal(e.Data, &body)
	return body, err
}

// Bytes is the size of a result event's result in bytes, wherever it is stored.
func (e Event) Bytes() int64 {
	if e.Large != nil {
		return e.Large.Bytes
	}
	return int64(len(e.Data))
}
