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
	// MaxLookup is how many requests one Lookup can take: the server answers for no more subjects at a time.
	MaxLookup = 1000
	// A lookup reads whole messages; what exceeds this is read in further requests.
	lookupBytes = 8 << 20
)

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
	return DirectLast(ctx, p.nc, p.js, stream, subject)
}

// DirectLast reads the last message of a subject from whichever replica of the stream answers; nil: there is none. It
// needs no permission but that for this subject.
func DirectLast(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, stream, subject string) (*jetstream.RawStreamMsg, error) {
	reply, err := nc.RequestWithContext(ctx, direct(js, stream)+"."+subject, nil)
	if err != nil {
		return nil, err
	}
	return rawMessage(reply)
}

func direct(js jetstream.JetStream, stream string) string {
	o := js.Options()
	prefix := strings.TrimSuffix(jetstream.DefaultAPIPrefix, ".")
	switch {
	case o.APIPrefix != "":
		prefix = strings.TrimSuffix(o.APIPrefix, ".")
	case o.Domain != "":
		prefix = "$JS." + o.Domain + ".API"
	}
	return prefix + ".DIRECT.GET." + stream
}

// rawMessage reads the answer to a direct get; nil: there is no such message.
func rawMessage(m *nats.Msg) (*jetstream.RawStreamMsg, error) {
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

// Lookup reads what is stored of requests that were just delivered, whether for the first time or not, and takes it
// into them. It returns which of them have ended, after storing the closing record of those that lacked it. It tries
// until it succeeds or ctx ends; requests must have different ids, MaxLookup at most.
func (p *Publisher) Lookup(ctx context.Context, requests []*poll.Request) (ended []bool, err error) {
	ended = make([]bool, len(requests))
	logs, err := p.lastOf(ctx, p.names.StatesStream(), requests, p.names.State)
	if err != nil {
		return nil, err
	}
	var open []*poll.Request
	for i, r := range requests {
		if last := logs[p.names.State(r.ID)]; last != nil && p.resume(r, last) && Terminal(last.Header.Get(HeaderStatus)) {
			ended[i] = true
		} else {
			open = append(open, r)
		}
	}
	// Bodies are read only of results that lack their closing record: they are few.
	results, err := p.lastOf(ctx, p.names.ResultsStream(), open, p.names.Result)
	if err != nil {
		return nil, err
	}
	for i, r := range requests {
		last := results[p.names.Result(r.ID)]
		if ended[i] || last == nil {
			continue
		}
		if end, known := p.readEnd(last); known {
			if err := p.close(ctx, r, end); err != nil {
				return nil, err
			}
			ended[i] = true
		}
	}
	return ended, nil
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
	for attempt := 0; ; attempt++ {
		complete, err := p.multiLast(ctx, stream, subjects, found)
		if err == nil && complete {
			return found, nil
		}
		if err == nil { // the server stopped at lookupBytes
			rest := subjects[:0]
			for _, s := range subjects {
				if found[s] == nil {
					rest = append(rest, s)
				}
			}
			subjects, attempt = rest, -1
			continue
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if attempt > 0 {
			trying.failed(p, "unknown", stream, fmt.Errorf("reading it: %w", err))
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// multiLast gets the last message of each subject with one request.
func (p *Publisher) multiLast(ctx context.Context, stream string, subjects []string, found map[string]*jetstream.RawStreamMsg) (complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	sub, err := p.nc.SubscribeSync(p.nc.NewRespInbox())
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
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return false, err
		}
		switch statusOf(m) {
		case "204": // end of batch
			return m.Header.Get("Nats-Num-Pending") == "0", nil
		case "404":
			return true, nil
		case "503":
			return false, errors.New("no stream answers")
		}
		raw, err := rawMessage(m)
		if err != nil {
			return false, err
		}
		found[raw.Subject] = raw
	}
}
