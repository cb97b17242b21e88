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
	// foreignWait is the time between looks whether an operator has removed what is no result.
	foreignWait = 30 * time.Second
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
		metrics: cfg.Metrics, log: cfg.Log,
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
			r.LogSeq = ack.seq
			p.metrics.events["state"].Inc()
			return false, nil
		}
		last, err := p.last(ctx, p.names.StatesStream(), p.names.State(r.ID), ack.seq)
		switch {
		case err != nil:
			return false, err
		case last == nil: // purged, or too old: the log begins anew
			r.LogSeq = 0
			continue
		case last.Header.Get(nats.MsgIdHdr) == msg.Header.Get(nats.MsgIdHdr): // stored by an attempt whose ack was lost
			r.LogSeq = last.Sequence
			p.metrics.events["state"].Inc()
			return false, nil
		}
		if known := p.resume(r, last); !known {
			continue // a foreign message: append to it
		}
		if Terminal(last.Header.Get(HeaderStatus)) {
			return true, nil
		}
		// Ours is stale. On top of the other's it would stand out of order: follow the log, and let the next poll tell
		// what is true now.
		return p.Conclude(ctx, r)
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
	last, err := p.last(ctx, p.names.ResultsStream(), p.names.Result(r.ID), 0)
	if err != nil || last == nil {
		return false, err
	}
	end, known := p.readEnd(last)
	if !known {
		return false, nil
	}
	return true, p.close(ctx, r, end)
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
	for {
		msg := p.resultMessage(r, result, body, large)
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
			last, err := p.last(ctx, p.names.ResultsStream(), p.names.Result(r.ID), ack.seq)
			if err != nil {
				return stored{}, err
			}
			if last == nil {
				continue // it was there and is gone by age: ours is the first again
			}
			if seq = last.Sequence; last.Header.Get(nats.MsgIdHdr) != msg.Header.Get(nats.MsgIdHdr) {
				end, known := p.readEnd(last)
				if !known {
					// Somebody published a result that is none, and a second one must not be stored. Only an operator can
					// remove it; until then this one request is stuck, and the log says so again and again.
					if err := sleep(ctx, foreignWait); err != nil {
						return stored{}, err
					}
					continue
				}
				p.discard(ctx, large)
				return end, nil
			}
		}
		p.metrics.events["result"].Inc()
		p.metrics.results[result.Status].Inc()
		end := stored{
			status: string(result.Status), polls: result.Polls, elapsedMS: result.Elapsed.Milliseconds(),
			ref: ResultRef{Stream: p.names.ResultsStream(), Seq: seq, Bytes: int64(len(body)), ContentType: msg.Header.Get(HeaderContentType)},
		}
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
			p.metrics.events["closing"].Inc()
			return nil
		}
		last, err := p.last(ctx, p.names.StatesStream(), p.names.State(r.ID), ack.seq)
		switch {
		case err != nil:
			return err
		case last == nil:
			r.LogSeq = 0
		case p.resume(r, last) && Terminal(last.Header.Get(HeaderStatus)):
			if last.Header.Get(nats.MsgIdHdr) == msg.Header.Get(nats.MsgIdHdr) { // stored by an attempt whose ack was lost
				p.metrics.events["closing"].Inc()
			}
			return nil
		}
	}
}

// resume takes the log's last message into r. A message that no bridge wrote is reported, and only its sequence counts.
func (p *Publisher) resume(r *poll.Request, last *jetstream.RawStreamMsg) (known bool) {
	e, err := p.names.Decode(last.Subject, last.Header, last.Data)
	var body StateBody
	if err == nil && e.Kind == KindState {
		body, err = e.State()
	}
	if err != nil {
		r.LogSeq = last.Sequence
		p.log.Error("a message that no bridge wrote lies on an event subject; only bridges may publish to "+ingest(p.names.prefix+".>"),
			"stream", p.names.StatesStream(), "seq", last.Sequence, "subject", last.Subject, "error", err)
		return false
	}
	if e.Kind == KindState {
		r.LogSeq = last.Sequence
		r.State.QueueState, r.State.Reason = body.QueueState, string(body.Reason)
		r.State.Polls = max(r.State.Polls, body.Poll)
	}
	return true
}

func (p *Publisher) readEnd(last *jetstream.RawStreamMsg) (stored, bool) {
	e, err := p.names.Decode(last.Subject, last.Header, last.Data)
	if err != nil {
		p.log.Error("a message that no bridge wrote lies on a result subject; only bridges may publish to "+ingest(p.names.prefix+".>"),
			"stream", p.names.ResultsStream(), "seq", last.Sequence, "subject", last.Subject, "error", err)
		return stored{}, false
	}
	return p.storedFrom(e, last.Sequence, last.Time), true
}

// Reject stores the event that says why submission seq is no request; once, however often it is called.
func (p *Publisher) Reject(ctx context.Context, seq uint64, reason string, msg *nats.Msg) error {
	for most := maxRejectedBytes; ; most /= 4 {
		ack, err := p.publish(ctx, p.rejection(seq, reason, msg, most), nil, most > 0)
		if err == nil && ack.tooLarge { // for this server, or for the stream
			continue
		}
		if err == nil && !ack.conflict {
			p.metrics.events["rejected"].Inc()
		}
		return err
	}
}
