// Package publish makes events durable.
//
// Every request has a log on its state subject, transitions and then one closing record, and one message on its result
// subject. Each publish is fenced by the last sequence that its writer knows on that subject, so that of two bridges
// that believe to hold a request only one can append; the other is told, reads what is stored, and follows it. A
// request has ended when its result and then its closing record are stored: a crash in between is finished from what
// is there, by whoever comes next, without another poll.
package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
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
	slots     chan struct{}
	bytes     *semaphore.Weighted
	metrics   *Metrics
	log       *slog.Logger
	trouble   atomic.Pointer[string] // why publishes are not stored at present
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
		slots: make(chan struct{}, maxInFlight), bytes: semaphore.NewWeighted(maxInFlightBytes),
		metrics: cfg.Metrics, log: cfg.Log,
	}
}

// Trouble says why events cannot be stored at present; empty when the last publish was.
func (p *Publisher) Trouble() string {
	if t := p.trouble.Load(); t != nil {
		return *t
	}
	return ""
}

// Transition implements poll.Sink.
func (p *Publisher) Transition(ctx context.Context, r *poll.Request, t poll.Transition) (ended bool, err error) {
	for {
		msg := p.transitionMessage(r, t)
		ack, err := p.publish(ctx, msg, r.Lease.Trusted)
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
		ack, err := p.publish(ctx, msg, nil)
		if err != nil {
			return stored{}, err
		}
		if ack.tooLarge && large == nil {
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
					return stored{}, p.foreign(ctx, last)
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

// close stores the closing record on top of whatever the log ends in, unless it ends in one.
func (p *Publisher) close(ctx context.Context, r *poll.Request, end stored) error {
	at := time.Now()
	for {
		msg := p.closingMessage(r, end, at)
		ack, err := p.publish(ctx, msg, nil)
		if err != nil {
			return err
		}
		if !ack.conflict {
			p.metrics.events["closing"].Inc()
			r.LogSeq = ack.seq
			return nil
		}
		last, err := p.last(ctx, p.names.StatesStream(), p.names.State(r.ID), ack.seq)
		switch {
		case err != nil:
			return err
		case last == nil:
			r.LogSeq = 0
		case p.resume(r, last) && Terminal(last.Header.Get(HeaderStatus)):
			return nil
		}
	}
}

// resume takes the log's last message into r. A message that no bridge wrote is reported, and only its sequence counts.
func (p *Publisher) resume(r *poll.Request, last *jetstream.RawStreamMsg) (known bool) {
	r.LogSeq = last.Sequence
	e, err := p.names.Decode(last.Subject, last.Header, last.Data)
	var body StateBody
	if err == nil && e.Kind == KindState {
		body, err = e.State()
	}
	if err != nil {
		p.log.Error("a message that no bridge wrote lies on an event subject; only bridges may publish to "+ingest(p.names.prefix+".>"),
			"stream", p.names.StatesStream(), "seq", last.Sequence, "subject", last.Subject, "error", err)
		return false
	}
	if e.Kind == KindState {
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

// foreign waits: somebody published a result that is none, and a second one must not be stored. An operator has to
// remove it; until then this one request is stuck, and says so.
func (p *Publisher) foreign(ctx context.Context, last *jetstream.RawStreamMsg) error {
	reason := fmt.Sprintf("message %d of stream %s on %s is no result of a bridge: remove it", last.Sequence, p.names.ResultsStream(), last.Subject)
	p.trouble.Store(&reason)
	<-ctx.Done()
	return ctx.Err()
}

// upload puts a body into the object store under a name of its own, for as long as it takes.
func (p *Publisher) upload(ctx context.Context, id string, body []byte) (*LargeRef, error) {
	for attempt := 0; ; attempt++ {
		name := Token(id) + "." + nuid.Next()
		bucket, err := p.js.ObjectStore(ctx, p.names.LargeBucket())
		if err == nil {
			var info *jetstream.ObjectInfo
			info, err = bucket.Put(ctx, jetstream.ObjectMeta{Name: name, Description: "result"}, bytes.NewReader(body))
			if err == nil {
				return &LargeRef{Object: name, Bytes: int64(len(body)), Digest: info.Digest}, nil
			}
		}
		p.failing("unknown", p.names.LargeBucket(), err)
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// discard deletes the object of a result that lost a race; what cannot be deleted goes by the bucket's age.
func (p *Publisher) discard(ctx context.Context, large *LargeRef) {
	if large == nil {
		return
	}
	bucket, err := p.js.ObjectStore(ctx, p.names.LargeBucket())
	if err == nil {
		err = bucket.Delete(ctx, large.Object)
	}
	if err != nil {
		p.log.Warn("an object that nothing refers to stays until the bucket's max age", "bucket", p.names.LargeBucket(), "object", large.Object, "error", err)
	}
}

// Reject stores the event that says why submission seq is no request; once, however often it is called.
func (p *Publisher) Reject(ctx context.Context, seq uint64, reason string, msg *nats.Msg) error {
	reject := p.rejection(seq, reason, msg)
	ack, err := p.publish(ctx, reject, nil)
	if err == nil && !ack.conflict {
		p.metrics.events["rejected"].Inc()
	}
	return err
}

// ack is the outcome of a publish that is known.
type ack struct {
	seq      uint64 // of the message; of the subject's last message after a conflict
	conflict bool   // the fence did not hold: nothing was stored now
	tooLarge bool   // for a message: nothing was stored
}

// publish repeats one message until its outcome is known, however long that takes, or ctx ends, or trusted says that
// the writer has no right to go on (ErrLeaseLost).
func (p *Publisher) publish(ctx context.Context, msg *nats.Msg, trusted func() bool) (ack, error) {
	weight := min(int64(len(msg.Data)), maxInFlightBytes)
	for attempt := 0; ; attempt++ {
		if trusted != nil && !trusted() {
			return ack{}, poll.ErrLeaseLost
		}
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ack{}, ctx.Err()
		}
		if err := p.bytes.Acquire(ctx, weight); err != nil {
			<-p.slots
			return ack{}, err
		}
		try, cancel := context.WithTimeout(ctx, ackTimeout)
		reply, err := p.nc.RequestMsgWithContext(try, msg)
		cancel()
		p.bytes.Release(weight)
		<-p.slots
		out, verdict, why := readAck(reply, err)
		p.metrics.publishes[verdict].Inc()
		switch verdict {
		case "stored", "duplicate", "conflict", "too_large":
			if p.trouble.Load() != nil {
				p.trouble.Store(nil)
				p.log.Info("events are stored again")
			}
			return out, nil
		}
		if ctx.Err() != nil {
			return ack{}, ctx.Err()
		}
		if attempt > 0 || verdict == "refused" { // one failure is everyday life at a leader change
			p.failing(verdict, msg.Subject, why)
		}
		if err := pause(ctx, attempt); err != nil {
			return ack{}, err
		}
	}
}

func (p *Publisher) failing(verdict, what string, why error) {
	reason := fmt.Sprintf("%s cannot be stored: %v", kindOf(what), why)
	if p.trouble.Swap(&reason) == nil {
		p.log.Error("events cannot be stored; they are held and tried again", "outcome", verdict, "subject", what, "error", why)
	}
}

// kindOf makes one reason of the many subjects of one stream.
func kindOf(subject string) string {
	if i := strings.LastIndexByte(subject, '.'); i > 0 {
		return subject[:i]
	}
	return subject
}

func pause(ctx context.Context, attempt int) error {
	wait := min(retryMax, retryInitial<<min(attempt, 10))
	timer := time.NewTimer(wait + rand.N(wait/4))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The server's codes for a publish that was not simply stored. They are matched by number: texts change.
const (
	codeWrongLastSequence = 10071 // the fence: somebody else appended, or our own first attempt was stored
	codeQueueFull         = 10167 // not stored; the queue is shared
	codeTooLarge          = 10054
	codeStoreFailed       = 10077 // the stream's limits
	codeNoStorage         = 10047 // the server's or account's limits
	codeNoResources       = 10023
)

var lastSequence = regexp.MustCompile(`\d+$`)

// readAck classifies the answer to a publish. verdict is the label of the publishes metric: whatever is not known to be
// stored, refused or in conflict is "unknown", and the same message will show which it was.
func readAck(reply *nats.Msg, err error) (out ack, verdict string, why error) {
	if errors.Is(err, nats.ErrMaxPayload) {
		return ack{tooLarge: true}, "too_large", err
	}
	if err != nil {
		return ack{}, "unknown", err
	}
	var body struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &body); err != nil {
		return ack{}, "unknown", fmt.Errorf("the answer is no ack of JetStream: %w", err)
	}
	switch {
	case body.Error == nil && body.Stream == "":
		return ack{}, "unknown", errors.New("the answer is no ack of JetStream")
	case body.Error == nil && body.Duplicate:
		return ack{seq: body.Seq}, "duplicate", nil
	case body.Error == nil:
		return ack{seq: body.Seq}, "stored", nil
	}
	switch body.Error.ErrorCode {
	case codeWrongLastSequence:
		// Only the text has the number; without it the read that follows takes what it finds.
		seq, _ := strconv.ParseUint(lastSequence.FindString(body.Error.Description), 10, 64)
		return ack{seq: seq, conflict: true}, "conflict", nil
	case codeTooLarge:
		return ack{tooLarge: true}, "too_large", body.Error
	case codeQueueFull:
		return ack{}, "busy", body.Error
	case codeStoreFailed, codeNoStorage, codeNoResources:
		return ack{}, "refused", body.Error
	}
	return ack{}, "unknown", body.Error
}
