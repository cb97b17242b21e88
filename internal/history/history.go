// Package history reads back everything that bridges stored and judges it against what was promised: every accepted
// request has exactly one result and one closing record that agree, its queue states in order before that and nothing
// after, with the upstream's bytes. The demo and the tests share it.
package history

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

// Record is one message of an event stream.
type Record struct {
	Stream  string
	Seq     uint64
	Subject string
	publish.Event
	Err error // why it is no event of a bridge
}

// Read reads a whole event stream. It fails if it got less than the stream holds.
func Read(ctx context.Context, js jetstream.JetStream, names publish.Names, stream string) ([]Record, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return nil, err
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	records := make([]Record, 0, info.State.Msgs)
	for uint64(len(records)) < info.State.Msgs {
		batch, err := consumer.Fetch(int(min(1000, info.State.Msgs-uint64(len(records)))), jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return nil, err
		}
		before := len(records)
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			r := Record{Stream: stream, Seq: meta.Sequence.Stream, Subject: m.Subject()}
			r.Event, r.Err = names.Decode(m.Subject(), m.Headers(), m.Data())
			records = append(records, r)
		}
		if len(records) == before {
			return nil, fmt.Errorf("stream %s holds %d messages, but only %d could be read: %w", stream, info.State.Msgs, len(records), batch.Error())
		}
	}
	return records, nil
}

// Upstream is what an upstream would have told a client that polled for ever.
type Upstream interface {
	// Expected is the terminal status of a request and, when that is completed, its bytes.
	Expected(id string) (status string, body []byte)
	// States are its queue states with their reasons, in order.
	States(id string) [][2]string
}

// Report is the verdict. Each violation names the request and the rule.
type Report struct {
	Accepted, Terminal                         int
	Lost, Duplicate, AfterTerminal, Disordered int
	Violations                                 []string
}

// OK reports whether every promise was kept.
func (r *Report) OK() bool { return len(r.Violations) == 0 }

func (r *Report) violate(count *int, id, format string, args ...any) {
	if count != nil {
		*count++
	}
	r.Violations = append(r.Violations, fmt.Sprintf("request %q: ", id)+fmt.Sprintf(format, args...))
}

// request gathers what was stored of one id.
type request struct {
	log     []Record
	results []Record
}

// Check judges the records of the states and results streams, in stream order. upstream may be nil: then bytes and
// states are not compared.
func Check(accepted []string, states, results []Record, upstream Upstream) Report {
	report := Report{Accepted: len(accepted)}
	if len(accepted) == 0 {
		report.Violations = append(report.Violations, "no request was accepted: nothing has been shown")
	}
	requests := make(map[string]*request, len(accepted))
	for _, id := range accepted {
		requests[id] = &request{}
	}
	for _, r := range slices.Concat(states, results) {
		q := requests[r.RequestID]
		switch {
		case r.Err != nil:
			report.violate(&report.Disordered, r.RequestID, "message %d of %s is no event: %v", r.Seq, r.Stream, r.Err)
		case q == nil:
			report.violate(&report.Disordered, r.RequestID, "has an event on %s, but was never accepted", r.Subject)
		case r.Kind == publish.KindResult:
			q.results = append(q.results, r)
		default:
			q.log = append(q.log, r)
		}
	}
	for _, id := range accepted {
		report.checkResult(id, requests[id], upstream)
		report.checkLog(id, requests[id], upstream)
	}
	return report
}

func (r *Report) checkResult(id string, q *request, upstream Upstream) {
	switch len(q.results) {
	case 0:
		r.violate(&r.Lost, id, "has no result")
		return
	case 1:
		r.Terminal++
	default:
		r.violate(&r.Duplicate, id, "has %d results", len(q.results))
	}
	if upstream == nil {
		return
	}
	result := q.results[0]
	status, body := upstream.Expected(id)
	if result.Status != status {
		r.violate(&r.Disordered, id, "ended as %s, but the upstream says %s", result.Status, status)
	} else if status == publish.StatusCompleted && result.Large == nil && !bytes.Equal(result.Data, body) {
		r.violate(&r.Disordered, id, "has other bytes than the upstream sent")
	}
}

func (r *Report) checkLog(id string, q *request, upstream Upstream) {
	closed := -1
	var last [2]string
	var scripted [][2]string
	if upstream != nil {
		scripted = upstream.States(id)
	}
	for i, record := range q.log {
		if closed >= 0 {
			r.violate(&r.AfterTerminal, id, "has %s after its closing record, at sequence %d of %s", record.Status, record.Seq, record.Stream)
			continue
		}
		if record.Kind == publish.KindClosing {
			closed = i
			r.checkClosing(id, record, q.results)
			continue
		}
		body, err := record.State()
		if err != nil {
			r.violate(&r.Disordered, id, "has a state whose body is no JSON: %v", err)
			continue
		}
		now := [2]string{body.QueueState, string(body.Reason)}
		if i > 0 && now == last {
			r.violate(&r.Disordered, id, "has the state %s twice in a row, at sequence %d", now[0], record.Seq)
		}
		if string(body.Previous) != last[0] {
			r.violate(&r.Disordered, id, "goes to %s from %q, but the log has %q before", now[0], body.Previous, last[0])
		}
		last = now
		if upstream == nil {
			continue
		}
		at := slices.Index(scripted, now)
		if at < 0 {
			r.violate(&r.Disordered, id, "has the state %v, which the upstream did not give at that point", now)
			continue
		}
		scripted = scripted[at+1:]
	}
	if closed < 0 && len(q.results) > 0 {
		r.violate(&r.Lost, id, "has a result, but no closing record")
	}
}

func (r *Report) checkClosing(id string, record Record, results []Record) {
	body, err := record.Closing()
	switch {
	case err != nil:
		r.violate(&r.Disordered, id, "has a closing record whose body is no JSON: %v", err)
	case len(results) == 0:
		r.violate(&r.Disordered, id, "has a closing record without a result")
	case body.Status != results[0].Status || record.Status != results[0].Status:
		r.violate(&r.Disordered, id, "has a closing record that says %s, but the result says %s", body.Status, results[0].Status)
	case body.Result.Seq != results[0].Seq || body.Result.Bytes != results[0].Bytes():
		r.violate(&r.Disordered, id, "has a closing record that names result %d of %d bytes, but the result is %d of %d bytes",
			body.Result.Seq, body.Result.Bytes, results[0].Seq, results[0].Bytes())
	}
}
