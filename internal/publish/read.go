package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/poll"
)

const (
	// A replica that answers a direct get may lag behind the leader that refused a publish.
	lagPatience = 5 * time.Second
	readTimeout = 5 * time.Second
	// A lookup reads whole messages; what exceeds this is read in further requests.
	lookupBytes = 8 << 20
	// The most that one request to look up names; less where the connection carries less.
	maxLookupRequest = 256 << 10
	codeNoMessage    = 10037
)

// ErrUnreadable is a stored message whose headers the client library cannot decode, so that it has not even a sequence.
var ErrUnreadable = errors.New("a message's headers cannot be decoded")

// last reads the last message of a subject, nil if there is none, once the answering replica has seen sequence atLeast.
func (p *Publisher) last(ctx context.Context, stream, subject string, atLeast uint64) (*jetstream.RawStreamMsg, error) {
	var trying operation
	defer trying.end(p)
	begin := time.Now()
	for attempt := 0; ; attempt++ {
		msg, err := p.directLast(ctx, stream, subject)
		switch {
		case err == nil && msg != nil && msg.Sequence >= atLeast:
			return msg, nil
		case err == nil && atLeast == 0:
			return nil, nil
		case err == nil && time.Since(begin) > lagPatience:
			return msg, nil // purged, then; or written anew since
		case err != nil && ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && attempt > 0:
			trying.failed(p, "unknown", subject, fmt.Errorf("reading it: %w", err))
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

func (p *Publisher) directLast(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	// Not by a request of the library: an empty message whose submitter gave it the status 503 would be "no responders".
	reply, err := p.replies.ask(ctx, &nats.Msg{Subject: direct(p.js, stream) + "." + subject})
	if err != nil {
		return nil, err
	}
	msg, err := rawMessage(reply)
	if errors.Is(err, ErrUnreadable) {
		return fromLeader(ctx, p.nc, p.js, stream, map[string]any{"last_by_subj": subject})
	}
	return msg, err
}

// fromLeader reads a message, nil if there is none, in the form that survives headers that cannot be decoded: it has
// none then. It loads the leader alone; only what is rare is read so.
func fromLeader(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, stream string, which map[string]any) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	reply, err := nc.RequestWithContext(ctx, APIPrefix(js)+".STREAM.MSG.GET."+stream, marshal(which))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Message struct {
			Subject string
			Seq     uint64
			Hdrs    []byte
			Data    []byte
			Time    time.Time
		}
		Error *jetstream.APIError
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	switch e := answer.Error; {
	case e != nil && e.ErrorCode == codeNoMessage:
		return nil, nil
	case e != nil:
		return nil, e
	}
	m := answer.Message
	header, _ := nats.DecodeHeadersMsg(m.Hdrs)
	return &jetstream.RawStreamMsg{Subject: m.Subject, Sequence: m.Seq, Header: header, Data: m.Data, Time: m.Time}, nil
}

// DirectLast reads the last message of a subject from whichever replica of the stream answers; nil: there is none. It
// needs no permission but that for this subject. It fails with ErrUnreadable where Next helps.
func DirectLast(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, stream, subject string) (*jetstream.RawStreamMsg, error) {
	answer := make(chan *nats.Msg, 1) // not by a request of the library: see directLast
	sub, err := nc.ChanSubscribe(nc.NewInbox(), answer)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(direct(js, stream)+"."+subject, sub.Subject, nil); err != nil {
		return nil, err
	}
	select {
	case m := <-answer:
		if len(m.Data) == 0 && statusOf(m) == "503" {
			return nil, nats.ErrNoResponders
		}
		return rawMessage(m)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Next reads the first message of a subject from a sequence on, whoever wrote it and whatever its headers are; nil: there
// is none. It asks the stream's leader, which takes a permission of its own.
func Next(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, stream, subject string, from uint64) (*jetstream.RawStreamMsg, error) {
	return fromLeader(ctx, nc, js, stream, map[string]any{"seq": from, "next_by_subj": subject})
}

func direct(js jetstream.JetStream, stream string) string {
	return APIPrefix(js) + ".DIRECT.GET." + stream
}

// APIPrefix is what the subjects of the server's JetStream API begin with, without a dot at its end: "$JS.API", unless js
// is for a domain or has a prefix of its own.
func APIPrefix(js jetstream.JetStream) string {
	switch o := js.Options(); {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".")
	case o.Domain != "":
		return "$JS." + o.Domain + ".API"
	default:
		return strings.TrimSuffix(jetstream.DefaultAPIPrefix, ".")
	}
}

// rawMessage reads the answer to a direct get; nil: there is no such message.
func rawMessage(m *nats.Msg) (*jetstream.RawStreamMsg, error) {
	if m.Header == nil { // every answer has some
		return nil, ErrUnreadable
	}
	switch status := statusOf(m); status {
	case "":
	case "404":
		return nil, nil
	default:
		return nil, fmt.Errorf("direct get: %s %s", status, m.Header.Get("Description"))
	}
	out := &jetstream.RawStreamMsg{Subject: added(m, "Nats-Subject"), Header: m.Header, Data: m.Data}
	var err error
	if out.Sequence, err = strconv.ParseUint(added(m, "Nats-Sequence"), 10, 64); err == nil {
		out.Time, err = time.Parse(time.RFC3339Nano, added(m, "Nats-Time-Stamp"))
	}
	if err != nil {
		return nil, fmt.Errorf("direct get: the answer is no stored message: %w", err)
	}
	return out, nil
}

// statusOf is the status of an answer that is no stored message. A stored message may have a header of that name.
func statusOf(m *nats.Msg) string {
	if added(m, "Nats-Sequence") != "" {
		return ""
	}
	return m.Header.Get("Status")
}

// added is a header that the server put behind those of the stored message, which may have one of that name.
func added(m *nats.Msg, name string) string {
	if values := m.Header[name]; len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

func (p *Publisher) lastOf(ctx context.Context, stream string, requests []*poll.Request, subject func(string) string) (map[string]*jetstream.RawStreamMsg, error) {
	found := make(map[string]*jetstream.RawStreamMsg)
	if len(requests) == 0 {
		return found, nil
	}
	subjects := make([]string, len(requests))
	for i, r := range requests {
		subjects[i] = subject(r.ID)
	}
	var trying operation
	defer trying.end(p)
	for attempt := 0; len(subjects) > 0; attempt++ {
		asked := atMost(subjects, min(maxLookupRequest, p.nc.MaxPayload()/2))
		complete, err := p.multiLast(ctx, stream, asked, found)
		if errors.Is(err, ErrUnreadable) {
			err = p.oneByOne(ctx, stream, asked, found)
			complete = err == nil
		}
		switch {
		case complete:
			subjects, attempt = subjects[len(asked):], -1
			continue
		case err == nil: // the server stopped at lookupBytes
			rest := subjects[:0]
			for _, s := range subjects {
				if found[s] == nil {
					rest = append(rest, s)
				}
			}
			subjects, attempt = rest, -1
			continue
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case attempt > 0:
			trying.failed(p, "unknown", stream, fmt.Errorf("reading it: %w", err))
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// atMost are as many of the subjects, at least one, as a request of this size can name.
func atMost(subjects []string, size int64) []string {
	for i, s := range subjects {
		if size -= int64(len(s)) + 3; size < 0 && i > 0 {
			return subjects[:i]
		}
	}
	return subjects
}

// oneByOne gets what multiLast has not found, or could not tell whose it is.
func (p *Publisher) oneByOne(ctx context.Context, stream string, subjects []string, found map[string]*jetstream.RawStreamMsg) error {
	for _, s := range subjects {
		if found[s] != nil {
			continue
		}
		msg, err := p.directLast(ctx, stream, s)
		if err != nil {
			return err
		}
		if msg != nil {
			found[s] = msg
		}
	}
	return nil
}

// multiLast gets the last message of each subject with one request.
func (p *Publisher) multiLast(ctx context.Context, stream string, subjects []string, found map[string]*jetstream.RawStreamMsg) (complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	// Of a channel, because NextMsg makes an error of a message with the status 503, whoever gave it that. And not in the
	// inbox of the library's requests, which takes a stray answer for that of the only one under way.
	answers := make(chan *nats.Msg, len(subjects)+1)
	sub, err := p.nc.ChanSubscribe(p.nc.NewInbox(), answers)
	if err != nil {
		return false, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	request, err := json.Marshal(map[string]any{"multi_last": subjects, "max_bytes": lookupBytes})
	if err != nil {
		return false, err
	}
	if err := p.nc.PublishRequest(direct(p.js, stream), sub.Subject, request); err != nil {
		return false, err
	}
	var unreadable error
	for {
		var m *nats.Msg
		select {
		case m = <-answers:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		switch statusOf(m) {
		case "204": // end of batch
			return unreadable == nil && m.Header.Get("Nats-Num-Pending") == "0", unreadable
		case "404":
			return true, nil
		case "503":
			return false, errors.New("no stream answers")
		}
		raw, err := rawMessage(m)
		switch {
		case errors.Is(err, ErrUnreadable):
			unreadable = err
		case err != nil:
			return false, err
		default:
			found[raw.Subject] = raw
		}
	}
}
