package api

import (
	"bytes"
	"hash/maphash"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

const (
	maxText    = 1 << 10
	maxOddHint = 64

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
	var f fields // once, for it is large: the stacks of all polls in flight hold it
	var h hint
	o := byStatus(a, &f, &h)
	o.HTTPStatus = a.status
	h.header(a.header, a.at)
	if o.Hint = h.wait; h.odd != "" {
		o.OddHint = a.secrets.quote(h.odd, maxOddHint)
	}
	if a.status < 200 || a.status > 299 {
		obeyShouldRetry(&o, a.header.Get("X-Should-Retry"))
	}
	return o
}

func byStatus(a answer, f *fields, h *hint) Outcome {
	if a.status >= 200 && a.status <= 299 {
		return success(a, f, h)
	}
	// Only the fields of interest are read below; a body that is no JSON object has none of them.
	_ = f.scan(a)
	h.body(f.retryAfterMS, f.retryAfterS)
	var o Outcome
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
	case a.status == http.StatusUnauthorized || a.status == http.StatusPaymentRequired || a.status == http.StatusForbidden && f.refusesKey():
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
	if text := statusText(a.status); a.status >= 300 && a.status <= 399 && a.status != http.StatusNotModified && o.Failure.Message == text {
		o.Failure.Message = strconv.Itoa(a.status) + " " + text + ": a redirect, which is not followed"
	}
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

func success(a answer, f *fields, h *hint) Outcome {
	// Nothing else would tell of protobuf, which is not looked into.
	encoding := a.header.Get("Content-Encoding")
	switch {
	case a.status == http.StatusPartialContent:
		return malformed("it is a part only", a)
	case a.status == http.StatusNoContent || a.status == http.StatusResetContent:
		return malformed("the body is empty", a)
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		return malformed("nobody asked for the encoding "+a.secrets.quote(encoding, maxOddHint), a)
	}
	contentType := a.header.Get("Content-Type")
	if len(contentType) > maxContentType || !utf8.ValidString(contentType) { // it goes into a header of the result's message
		contentType = "application/octet-stream"
	} else if contentType != "application/json" {
		contentType = a.secrets.quote(contentType, maxText)
	}
	if isProtobuf(a.header) {
		return Outcome{Kind: Completed, Result: a.body, ContentType: contentType}
	}
	err := f.scan(a)
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
		h.body(f.retryAfterMS, f.retryAfterS)
		o := Outcome{Kind: Pending}
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
		h.body(f.retryAfterMS, f.retryAfterS)
		o := Outcome{Kind: Failed, Failure: failure}
		if gone(failure.Message) {
			o.Kind, failure.Type, failure.Category = NotFound, APIStatus, User
		}
		return o
	}
	return whole
}

func isProtobuf(header http.Header) bool {
	return strings.Contains(strings.ToLower(header.Get("Content-Type")), "application/x-protobuf")
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

// refusesKey recognises servers that say 401 in a 403: TuFT, and the defaults of FastAPI. It takes these very words and no
// others, for it holds everybody: other words may be about one request, which its submitter has chosen.
func (f *fields) refusesKey() bool {
	switch strings.ToLower(f.detail.String()) {
	case "invalid api key", "not authenticated", "could not validate credentials":
		return true
	}
	return false
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

// excerpt quotes the start of the body for an error message.
func (a answer) excerpt() string {
	body := bytes.TrimSpace(a.body)
	if len(body) == 0 {
		return ""
	}
	return ": " + a.secrets.quote(string(body[:min(len(body), maxScanned+1)]), 200)
}

// statusText is never empty.
func statusText(status int) string {
	if text := http.StatusText(status); text != "" {
		return text
	}
	return "HTTP status " + strconv.Itoa(status)
}
