// Package publish makes events durable.
//
// Every request has a log on its state subject, transitions and then one closing record, and one message on its result
// subject. Each publish is fenced by the last sequence that its writer knows on that subject, so that of two bridges
// that believe to hold a request only one can append; the other is told, reads what is stored, and follows it. A
// request has ended when its result and then its closing record are stored: a crash in between is finished from what
// is there, by whoever comes next, without another poll.
package publish

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"futurebridge/internal/poll"
)

const (
	ackTimeout   = 5 * time.Second
	retryInitial = 50 * time.Millisecond
	retryMax     = 2 * time.Second
	// The server's queue of a stream is shared by all bridges; 512 publishes in flight lose no speed.
	maxInFlight      = 512
	maxInFlightBytes = 64 << 20
	headerRoom       = 16 << 10 // for what a result's message has besides its body
)

// Config is what a Publisher is made of. All but Metrics and Log are required.
type Config struct {
	Conn      *nats.Conn
	JetStream jetstream.JetStream
	Names     Names
	MaxInline int64 // bytes of a result above which it goes to the object store
	Metrics   *Metrics
	Log       *slog.Logger
}

// Publisher is the poll engine's Sink. It is safe for concurrent use.
type Publisher struct {
	names     Names
	nc        *nats.Conn
	js        jetstream.JetStream
	maxInline int64
	source    string
	replies   *replies
	messages  sync.Pool // of *nats.Msg with the headers of an event
	bytes     *semaphore.Weighted
	metrics   *Metrics
	log       *slog.Logger
	failing   atomic.Int64           // operations that fail at present, and are tried again
	reason    atomic.Pointer[string] // why the latest of them does
}

// New makes a publisher; the streams must stand before it is used (see Ensure).
func New(cfg Config) *Publisher {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	return &Publisher{
		names: cfg.Names, nc: cfg.Conn, js: cfg.JetStream, maxInline: cfg.MaxInline, source: "/" + cfg.Names.Prefix(),
		replies: newReplies(cfg.Conn, maxInFlight), bytes: semaphore.NewWeighted(maxInFlightBytes),
		messages: sync.Pool{New: func() any { return &nats.Msg{Header: nats.Header{}} }},
		metrics:  cfg.Metrics, log: cfg.Log,
	}
}

// Trouble says why events cannot be stored, or read, at present; empty when nothing that was tried is still failing.
func (p *Publisher) Trouble() string {
	if p.failing.Load() == 0 {
		return ""
	}
	return *p.reason.Load()
}

// Transition implements poll.Sink.
func (p *Publisher) Transition(ctx context.Context, r *poll.Request, t poll.Transition) (ended bool, err error) {
	for {
		msg := p.transitionMessage(r, t)
		ack, err := p.publish(ctx, msg, r.Lease.Trusted, false)
		if err != nil {
			return false, err
		}
		if !ack.conflict {
			p.recycle(msg)
			r.LogSeq = ack.seq
			p.metrics.events[KindState].Inc()
			return false, nil
		}
		log, err := p.tail(ctx, p.names.StatesStream(), p.names.State(r.ID), ack.seq)
		switch {
		case err != nil:
			return false, err
		case log.top == 0: // purged, or too old: the log begins anew
			r.LogSeq = 0
		case log.event.MsgID == msg.Header.Get(nats.MsgIdHdr): // stored by an attempt whose ack was lost
			r.LogSeq = log.top
			p.metrics.events[KindState].Inc()
			return false, nil
		case log.closed():
			return true, nil
		case log.seq <= r.LogSeq && log.seq < log.top: // only foreign messages came: append to them
			r.LogSeq = log.top
		default:
			// Ours is stale. On top of the other's it would stand out of order: follow the log, and let the next poll
			// tell what is true now.
			log.resume(r)
			return p.Conclude(ctx, r)
		}
	}
}

// Finish implements poll.Sink.
func (p *Publisher) Finish(ctx context.Context, r *poll.Request, result poll.Result) error {
	end, err := p.storeResult(ctx, r, result)
	if err != nil {
		return err
	}
	return p.close(ctx, r, end)
}

// Conclude implements poll.Sink.
func (p *Publisher) Conclude(ctx context.Context, r *poll.Request) (ended bool, err error) {
	end, err := p.tail(ctx, p.names.ResultsStream(), p.names.Result(r.ID), 0)
	if err != nil || end.seq == 0 {
		return false, err
	}
	return true, p.close(ctx, r, p.storedFrom(end))
}

// storeResult stores the one result, and returns the one that is stored: whoever comes second takes the first's.
func (p *Publisher) storeResult(ctx context.Context, r *poll.Request, result poll.Result) (stored, error) {
	body := resultBody(result)
	var large *LargeRef
	if int64(len(body)) > min(p.maxInline, p.nc.MaxPayload()-headerRoom) {
		var err error
		if large, err = p.upload(ctx, r.ID, body); err != nil {
			return stored{}, err
		}
	}
	var top uint64 // of what no bridge wrote; there is no result below it
	for {
		msg := p.resultMessage(r, top, result, body, large)
		ack, err := p.publish(ctx, msg, nil, large == nil)
		if err != nil {
			return stored{}, err
		}
		if ack.tooLarge {
			if large, err = p.upload(ctx, r.ID, body); err != nil {
				return stored{}, err
			}
			continue
		}
		seq := ack.seq
		if ack.conflict {
			last, err := p.tail(ctx, p.names.ResultsStream(), p.names.Result(r.ID), ack.seq)
			if err != nil {
				return stored{}, err
			}
			if last.seq == 0 { // gone by age, or foreign: ours is the first one again
				top = last.top
				continue
			}
			if seq = last.seq; last.event.MsgID != msg.Header.Get(nats.MsgIdHdr) {
				p.discard(ctx, large)
				return p.storedFrom(last), nil
			}
		}
		p.metrics.events[KindResult].Inc()
		p.metrics.results[result.Status].Inc()
		end := stored{
			status: string(result.Status), polls: result.Polls, elapsedMS: result.Elapsed.Milliseconds(),
			ref: ResultRef{Stream: p.names.ResultsStream(), Seq: seq, Bytes: int64(len(body)), ContentType: msg.Header.Get(HeaderContentType)},
		}
		p.recycle(msg)
		if large != nil {
			end.ref.Object = large.Object
		}
		if result.Failure != nil {
			end.err = body
		}
		return end, nil
	}
}

// close stores the closing record on top of whatever the log ends in, unless it ends in one. A closing record's sequence
// never becomes r's fence: nothing that is published for r fits on top of it.
func (p *Publisher) close(ctx context.Context, r *poll.Request, end stored) error {
	at := time.Now()
	for {
		msg := p.closingMessage(r, end, at)
		ack, err := p.publish(ctx, msg, nil, false)
		if err != nil {
			return err
		}
		if !ack.conflict {
			p.recycle(msg)
			p.metrics.events[KindClosing].Inc()
			return nil
		}
		log, err := p.tail(ctx, p.names.StatesStream(), p.names.State(r.ID), ack.seq)
		switch {
		case err != nil:
			return err
		case log.closed():
			if log.event.MsgID == msg.Header.Get(nats.MsgIdHdr) { // stored by an attempt whose ack was lost
				p.metrics.events[KindClosing].Inc()
			}
			return nil
		default:
			log.resume(r)
		}
	}
}

// Reject stores the event that says why a submission is no request: number seq of the work stream, which stored it at
// this time; once, however often it is called. A work stream that was made anew counts from 1 again: what lies there of
// an earlier one stays, below.
func (p *Publisher) Reject(ctx context.Context, seq uint64, submitted time.Time, reason string, msg *nats.Msg) error {
	var top uint64
	for most := maxRejectedBytes; ; {
		rejection := p.rejection(seq, submitted, top, reason, msg, most)
		ack, err := p.publish(ctx, rejection, nil, most > 0)
		switch {
		case err != nil:
			return err
		case ack.tooLarge: // for this server, or for the stream
			most /= 4
			continue
		case !ack.conflict:
			p.metrics.events[kindRejected].Inc()
			return nil
		}
		last, err := p.last(ctx, p.names.RejectedStream(), p.names.Rejected(seq), ack.seq)
		switch {
		case err != nil:
			return err
		case last == nil:
			top = 0
		case last.Header.Get(HeaderSubmittedAt) == rejection.Header.Get(HeaderSubmittedAt):
			return nil
		default:
			top = last.Sequence
		}
	}
}
