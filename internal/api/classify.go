package api

import (
	"bytes"
	"encoding/json"
	"hash/maphash"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"
)

const (
	maxDepth    = 10_000 // nesting of JSON, as in encoding/json: the validator recurses
	maxText     = 1 << 10
	maxProgress = 256

	maxContentType = 256
)

// answer is what came back for one attempt: a status line, headers and a whole, decompressed body.
type answer struct {
	status int
	header http.Header
	body   []byte
	at     time.Time // when the answer had arrived; dates in hints count against it

	secrets *redactor
}

// classify reads an answer: its status first, then its content type, then its body. The outcome's Result aliases the
// body; everything else is a copy.
func classify(a answer) Outcome {
	o := byStatus(a)
	o.HTTPStatus = a.status
	o.Hint = max(o.Hint, headerHint(a.header, a.at))
	if a.status < 200 || a.status > 299 {
		obeyShouldRetry(&o, a.header.Get("X-Should-Retry"))
	}
	return o
}

func byStatus(a answer) Outcome {
	if a.status >= 200 && a.status <= 299 {
		return success(a)
	}
	// Only the fields of interest are read below; a body that is no JSON object has none of them.
	f, _ := scan(a)
	o := Outcome{Hint: bodyHint(f.retryAfterMS, f.retryAfterS)}
	switch {
	case a.status == http.StatusRequestTimeout:
		o.Kind = Pending
		f.progress(&o)
	case a.status == http.StatusGone:
		o.Kind = Expired
	case a.status == http.StatusNotFound:
		o.Kind = NotFound
	case a.status == http.StatusBadRequest && len(bytes.TrimSpace(a.body)) == 0:
		o.Kind = BlankRefusal
	case a.status == http.StatusUnauthorized || a.status == http.StatusPaymentRequired:
		o.Kind = Unauthorized
	case a.status == http.StatusTooManyRequests:
		o.Kind = Throttled
	case a.status >= 400 && a.status <= 499:
		o.Kind = Refused
	case a.status >= 500 && a.status <= 599:
		o.Kind = ServerFault
		o.Fingerprint = fingerprint(a)
	default: // 1xx and 3xx: a redirect is never followed
		o.Kind = Malformed
	}
	if o.Kind == Pending {
		return o
	}
	o.Failure = f.failure(a)
	o.Failure.Type = APIStatus
	switch {
	case o.Kind == Refused || o.Kind == BlankRefusal || o.Kind == NotFound || o.Kind == Expired || o.Kind == Unauthorized:
		o.Failure.Category = User
	case o.Failure.Category == Unknown && o.Kind != Malformed:
		o.Failure.Category = Server
	}
	return o
}

// obeyShouldRetry lets x-should-retry outrank the status. It cannot make a request fail for a bad key, which is
// everybody's trouble and not the request's, nor cut the grace that answers of the not-found kind have.
func obeyShouldRetry(o *Outcome, value string) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true":
		o.Fingerprint = 0 // it says itself that this is no failed job
		switch o.Kind {
		case Expired, NotFound, Refused, BlankRefusal, Malformed:
			o.Kind = ServerFault
			if o.Failure.Category == User { // which would say that it must not be retried
				o.Failure.Category = Server
			}
		}
	case "false":
		switch o.Kind {
		case Pending, BlankRefusal, Throttled, ServerFault, Malformed:
			o.Kind = Refused
			if o.Failure == nil {
				o.Failure = &Failure{Type: APIStatus, Category: Unknown, Message: statusText(o.HTTPStatus)}
			}
		}
	}
}

func success(a answer) Outcome {
	contentType := a.header.Get("Content-Type")
	if len(contentType) > maxContentType || !utf8.ValidString(contentType) { // it goes into a header of the result's message
		contentType = "application/octet-stream"
	}
	if strings.Contains(strings.ToLower(a.header.Get("Content-Type")), "application/x-protobuf") {
		return Outcome{Kind: Completed, Result: a.body, ContentType: contentType}
	}
	f, err := scan(a)
	if err != "" && a.status != http.StatusAccepted {
		return malformed(err, a)
	}
	if contentType == "" {
		contentType = "application/json"
	}
	whole := Outcome{Kind: Completed, Result: a.body, ContentType: contentType}
	status := strings.ToLower(f.status.String())
	switch {
	case f.kind.String() == "try_again" || a.status == http.StatusAccepted || pendingStatus(status):
		o := Outcome{Kind: Pending, Hint: bodyHint(f.retryAfterMS, f.retryAfterS)}
		f.progress(&o)
		return o
	case status == "complete_metadata":
		return Outcome{Kind: Metadata, PayloadBytes: size(f.payloadSize)}
	case status == "completed":
		if f.result.Exists() {
			whole.Result = a.body[f.result.Index : f.result.Index+len(f.result.Raw)]
			whole.ContentType = "application/json"
		}
		return whole
	case status == "failed" || present(f.error) || present(f.errorMessage):
		failure := f.failure(a)
		o := Outcome{Kind: Failed, Hint: bodyHint(f.retryAfterMS, f.retryAfterS), Failure: failure}
		if gone(failure.Message) {
			o.Kind, failure.Type, failure.Category = NotFound, APIStatus, User
		}
		return o
	}
	return whole
}

func pendingStatus(s string) bool {
	switch s {
	case "pending", "queued", "running", "processing", "in_progress", "waiting", "scheduled", "submitted", "accepted", "started":
		return true
	}
	return false
}

// gone recognises servers that say 404 in a 200.
func gone(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "already retrieved") || strings.Contains(m, "unknown request_id") ||
		strings.Contains(m, "unknown request id")
}

// size reads a number of bytes; what is no number, or negative, is 0.
func size(r gjson.Result) int64 {
	switch n := r.Float(); {
	case n >= math.MaxInt64:
		return math.MaxInt64
	case n > 0:
		return int64(n)
	}
	return 0
}

func malformed(why string, a answer) Outcome {
	return Outcome{Kind: Malformed, Failure: &Failure{
		Type: APIStatus, Category: Unknown,
		Message: "the upstream's answer is not of the retrieve-future protocol: " + why + a.excerpt(),
	}}
}

var seed = maphash.MakeSeed()

func fingerprint(a answer) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.WriteByte(byte(a.status))
	h.Write(a.body)
	return h.Sum64()
}

// fields are the top-level members that mean something. They alias the body.
type fields struct {
	secrets *redactor

	kind, status                                gjson.Result
	queueState, reason                          gjson.Result
	retryAfterMS, retryAfterS                   gjson.Result
	payloadSize, result                         gjson.Result
	error, errorMessage, detail                 gjson.Result
	message, category                           gjson.Result
	queuePosition, estimatedWaitS, progressInfo gjson.Result
}

// scan looks at the top level of a JSON body once; a result is validated but never decoded. why is empty for any
// valid JSON value but null. Of a key that is there twice the last counts, as in most decoders.
func scan(a answer) (f fields, why string) {
	body := a.body
	f.secrets = a.secrets
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return f, "the body is empty"
	case tooDeep(body):
		return f, "the body is nested too deeply"
	case !gjson.ValidBytes(body):
		return f, "the body is not JSON"
	}
	// No copy: the body outlives the fields, and nothing here writes to it.
	root := gjson.Parse(unsafe.String(unsafe.SliceData(body), len(body)))
	if root.Type == gjson.Null {
		return f, "the body is null"
	}
	if !root.IsObject() {
		return f, ""
	}
	root.ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "type":
			f.kind = value
		case "status":
			f.status = value
		case "queue_state":
			f.queueState = value
		case "queue_state_reason":
			f.reason = value
		case "retry_after_ms":
			f.retryAfterMS = value
		case "retry_after_s":
			f.retryAfterS = value
		case "response_payload_size":
			f.payloadSize = value
		case "result":
			f.result = value
		case "error":
			f.error = value
		case "error_message":
			f.errorMessage = value
		case "detail":
			f.detail = value
		case "message":
			f.message = value
		case "category":
			f.category = value
		case "queue_position":
			f.queuePosition = value
		case "estimated_wait_s":
			f.estimatedWaitS = value
		case "progress":
			f.progressInfo = value
		}
		return true
	})
	return f, ""
}

// tooDeep guards the recursive validator. Counting brackets is nearly free; only a body with very many is walked.
func tooDeep(body []byte) bool {
	if bytes.Count(body, []byte{'['})+bytes.Count(body, []byte{'{'}) <= maxDepth {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

func present(r gjson.Result) bool { return r.Exists() && r.Type != gjson.Null }

func (f *fields) progress(o *Outcome) {
	if f.queueState.Type == gjson.String {
		switch s := strings.ToLower(strings.TrimSpace(f.queueState.Str)); s {
		case "active", "paused_rate_limit", "paused_capacity":
			o.QueueState = strings.Clone(s)
		default:
			o.QueueState = "unknown"
		}
	} else if present(f.queueState) {
		o.QueueState = "unknown"
	}
	o.Reason = f.text(f.reason)
	p := Progress{f.raw(f.queuePosition), f.raw(f.estimatedWaitS), f.raw(f.progressInfo), nil}
	if f.kind.String() == "try_again" { // elsewhere the status is what says "pending"
		p.Status = f.raw(f.status)
	}
	if p.QueuePosition != nil || p.EstimatedWaitS != nil || p.Progress != nil || p.Status != nil {
		o.Progress = &p
	}
}

// failure reads every form of error that is known; it always returns one with a message.
func (f *fields) failure(a answer) *Failure {
	out := &Failure{Type: RequestFailed, Category: Unknown}
	category := f.category
	for _, r := range []gjson.Result{f.error, f.errorMessage, f.detail, f.message} {
		if !present(r) {
			continue
		}
		if r.IsObject() {
			if c := r.Get("category"); present(c) {
				category = c
			}
			if m := r.Get("message"); present(m) {
				r = m
			}
		}
		if out.Message = f.text(r); out.Message != "" {
			break
		}
	}
	if present(category) {
		word := f.text(category)
		out.Category = categoryOf(word)
		if word != string(out.Category) {
			out.RawCategory = word
		}
	}
	if out.Message == "" {
		out.Message = statusText(a.status) + a.excerpt()
	}
	return out
}

func categoryOf(word string) Category {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "user", "user_error":
		return User
	case "server", "server_error", "application", "system":
		return Server
	}
	return Unknown
}

// text is a JSON value as text of bounded length: a string's content, anything else as its JSON.
func (f *fields) text(r gjson.Result) string {
	switch r.Type {
	case gjson.Null:
		return ""
	case gjson.String:
		return f.secrets.quote(r.Str, maxText)
	}
	return f.secrets.quote(r.Raw, maxText)
}

// raw copies a small JSON value; what is absent, null or large is left out, and so is what is no JSON without its
// secrets.
func (f *fields) raw(r gjson.Result) json.RawMessage {
	if !present(r) || len(r.Raw) > maxProgress {
		return nil
	}
	quoted := f.secrets.quote(r.Raw, 4*maxProgress)
	if !gjson.Valid(quoted) {
		return nil
	}
	return json.RawMessage(quoted)
}

// excerpt quotes the start of the body for an error message.
func (a answer) excerpt() string {
	body := bytes.TrimSpace(a.body)
	if len(body) == 0 {
		return ""
	}
	return ": " + a.secrets.quote(string(body[:min(len(body), maxScanned)]), 200)
}

// statusText is never empty.
func statusText(status int) string {
	if text := http.StatusText(status); text != "" {
		return text
	}
	return "HTTP status " + strconv.Itoa(status)
}
