package publish

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"
	"golang.org/x/net/http/httpguts"

	"futurebridge/internal/poll"
)

// stored is a request's end as the results stream has it, whoever put it there.
type stored struct {
	status    string
	polls     int
	elapsedMS int64
	ref       ResultRef
	err       json.RawMessage // the body of a result that is an error
}

// marshal writes an event's body, without the escapes that only web pages need. Bodies are structs of plain fields and
// valid JSON: it cannot fail.
func marshal(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

func (p *Publisher) transitionMessage(r *poll.Request, t poll.Transition) *nats.Msg {
	body := StateBody{
		RequestID: r.ID, QueueState: t.QueueState, Previous: Optional(t.Previous), Reason: Optional(t.Reason),
		Poll: t.Poll, Time: t.Time.UTC(), Labels: r.Says().Labels,
	}
	if t.Progress != nil {
		body.QueuePosition, body.EstimatedWait = valid(t.Progress.QueuePosition), valid(t.Progress.EstimatedWaitS)
		body.Progress, body.Status = valid(t.Progress.Progress), valid(t.Progress.Status)
	}
	return p.message(p.names.State(r.ID), r.LogSeq, event{
		r: r, kind: KindState, status: t.QueueState, polls: t.Poll, at: t.Time, contentType: "application/json", body: marshal(body),
	})
}

// valid leaves out what is no JSON any more: a secret was taken out of it.
func valid(raw json.RawMessage) json.RawMessage {
	if !json.Valid(raw) {
		return nil
	}
	return raw
}

func (p *Publisher) closingMessage(r *poll.Request, s stored, at time.Time) *nats.Msg {
	body := ClosingBody{
		RequestID: r.ID, Status: s.status, Previous: Optional(r.State.QueueState), Polls: s.polls, ElapsedMS: s.elapsedMS,
		Time: at.UTC(), Labels: r.Says().Labels, Result: s.ref, Error: s.err,
	}
	return p.message(p.names.State(r.ID), r.LogSeq, event{
		r: r, kind: KindClosing, status: s.status, polls: s.polls, at: at, contentType: "application/json", body: marshal(body),
	})
}

// resultBody is the body of the result event: the upstream's bytes, or the error.
func resultBody(result poll.Result) []byte {
	f := result.Failure
	if f == nil {
		return result.Body
	}
	return marshal(ErrorBody{
		Type: string(f.Type), Category: string(f.Category), RawCategory: f.RawCategory, Message: f.Message,
		HTTPStatus: result.HTTPStatus, Retryable: result.Retryable, Polls: result.Polls, ElapsedMS: result.Elapsed.Milliseconds(),
	})
}

func (p *Publisher) resultMessage(r *poll.Request, expect uint64, result poll.Result, body []byte, large *LargeRef) *nats.Msg {
	e := event{
		r: r, kind: KindResult, status: string(result.Status), polls: result.Polls, at: result.Time,
		contentType: result.ContentType, body: body,
	}
	if large != nil {
		e.body, e.large = nil, *large
	}
	return p.message(p.names.Result(r.ID), expect, e)
}

type event struct {
	r           *poll.Request
	kind        Kind
	status      string
	polls       int
	at          time.Time
	contentType string
	body        []byte
	large       LargeRef // of a body that is stored elsewhere
}

// message makes a fenced event: it is stored only if expect is still the last sequence of its subject. Its message id
// comes from all that it says, so that "duplicate" always means this very message.
func (p *Publisher) message(subject string, expect uint64, e event) *nats.Msg {
	if e.contentType == "" {
		e.contentType = "application/octet-stream"
	}
	about := e.r.Says()
	polls := strconv.Itoa(e.polls)
	at, submitted := e.at.UTC().Format(time.RFC3339Nano), e.r.State.Submitted.UTC().Format(time.RFC3339Nano)
	hash := xxhash.New()
	for _, s := range []string{e.status, e.contentType, e.large.Object, polls, at, submitted, about.Type, about.Traceparent} {
		_, _ = hash.WriteString(s)
		_, _ = hash.Write([]byte{0})
	}
	_, _ = hash.Write(e.body)
	expected := strconv.FormatUint(expect, 10)
	// The subject keeps the ids of two requests apart whatever their hashes are.
	id := subject + "." + expected + "." + strconv.FormatUint(hash.Sum64(), 36)
	size := ""
	if e.large.Object != "" {
		size = strconv.FormatInt(e.large.Bytes, 10)
	}
	msg := p.messages.Get().(*nats.Msg)
	msg.Subject, msg.Data = ingest(subject), e.body
	for _, h := range [...]struct{ name, value string }{
		{nats.ExpectedLastSubjSeqHdr, expected},
		{expectedSubjectHdr, subject},
		{nats.MsgIdHdr, id},
		{HeaderRequestID, e.r.ID},
		{HeaderStatus, e.status},
		{HeaderPolls, polls},
		{HeaderSubmittedAt, submitted},
		{HeaderContentType, e.contentType},
		{HeaderRequestType, about.Type}, // a protobuf result does not say which message it is
		{HeaderTraceparent, about.Traceparent},
		{HeaderResultObject, e.large.Object},
		{HeaderResultBytes, size},
		{HeaderResultDigest, e.large.Digest},
		{"ce-specversion", "1.0"},
		{"ce-type", "futurebridge." + string(e.kind)},
		{"ce-source", p.source},
		{"ce-id", id},
		{"ce-time", at},
		{"ce-subject", subject},
	} {
		switch values := msg.Header[h.name]; {
		case h.value == "":
			delete(msg.Header, h.name)
		case len(values) == 1:
			values[0] = h.value
		default:
			msg.Header[h.name] = []string{h.value}
		}
	}
	return msg
}

// recycle takes back a message whose outcome is known, for its headers: a map of so many, each with a slice of its own, is a
// quarter of all that a request would leave to the garbage collector.
func (p *Publisher) recycle(msg *nats.Msg) {
	msg.Data = nil
	p.messages.Put(msg)
}

// storedFrom reads the end of a request out of its result event.
func (p *Publisher) storedFrom(t tail) stored {
	e := t.event
	s := stored{
		status: e.Status, polls: e.Polls, elapsedMS: max(0, t.at.Sub(e.SubmittedAt).Milliseconds()),
		ref: ResultRef{Stream: p.names.ResultsStream(), Seq: t.seq, Bytes: e.Bytes(), ContentType: e.ContentType},
	}
	if e.Large != nil {
		s.ref.Object = e.Large.Object
	}
	if e.Status != StatusCompleted && json.Valid(e.Data) {
		s.err = e.Data
	}
	return s
}

// expectedSubjectHdr names the subject whose last sequence is expected: the one stored under, not the one published to.
const expectedSubjectHdr = "Nats-Expected-Last-Subject-Sequence-Subject"

const (
	maxRejectedBytes   = 64 << 10
	maxRejectedHeaders = 8 << 10
)

// rejection carries a submission back, whole or at most its beginning with size and digest, with the reason in a header.
func (p *Publisher) rejection(seq uint64, submitted time.Time, expect uint64, reason string, m *nats.Msg, most int) *nats.Msg {
	subject := p.names.Rejected(seq)
	header := nats.Header{}
	size := 0
	for name, values := range m.Header {
		for _, v := range values {
			size += len(name) + len(v)
		}
		if carried(name) {
			header[name] = values
		}
	}
	if size > maxRejectedHeaders {
		header = nats.Header{}
	}
	data := m.Data
	if len(data) > most {
		header[HeaderRejectedBytes] = []string{strconv.Itoa(len(data))}
		header[HeaderRejectedDigest] = []string{digest(data)}
		data = data[:most]
	}
	header[HeaderRejectedReason] = []string{reason}
	header[HeaderRejectedSubject] = []string{m.Subject}
	header[HeaderSubmittedAt] = []string{submitted.UTC().Format(time.RFC3339Nano)}
	header[nats.MsgIdHdr] = []string{subject + "." + strconv.FormatInt(submitted.UnixNano(), 36)}
	header[nats.ExpectedLastSubjSeqHdr] = []string{strconv.FormatUint(expect, 10)}
	header[expectedSubjectHdr] = []string{subject}
	return &nats.Msg{Subject: ingest(subject), Header: header, Data: data}
}

// carried reports whether a rejected submission's header goes on to the rejection: not what speaks to a server or a
// client library, not what a rejection itself says, and no name that a client library refuses to send.
func carried(name string) bool {
	lower := strings.ToLower(name)
	return httpguts.ValidHeaderFieldName(name) && lower != "status" && lower != "bridge-submitted-at" &&
		!strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "bridge-rejected-")
}
