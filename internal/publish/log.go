package publish

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/poll"
)

// MaxLookup is how many requests one Lookup can take: the server answers for no more subjects at a time.
const MaxLookup = 1000

// tail is how a subject ends: the last message that a bridge wrote there, and whatever lies on top of it.
type tail struct {
	top   uint64    // sequence of the last message, whoever wrote it; 0: the subject is empty
	seq   uint64    // of the last one that a bridge wrote; 0: there is none
	at    time.Time // when that was stored
	event Event
	state StateBody // of an event that is a state
}

// tail reads how a subject of an event stream ends, once the answering replica has seen sequence atLeast.
func (p *Publisher) tail(ctx context.Context, stream, subject string, atLeast uint64) (tail, error) {
	last, err := p.last(ctx, stream, subject, atLeast)
	if err != nil || last == nil {
		return tail{}, err
	}
	return p.tailUnder(ctx, stream, last)
}

// tailUnder is tail for a subject whose last message has been read. What no bridge wrote is reported, and what it lies on
// counts: on top of a closing record nothing is appended, whatever somebody has put there.
func (p *Publisher) tailUnder(ctx context.Context, stream string, last *jetstream.RawStreamMsg) (tail, error) {
	t := tail{top: last.Sequence}
	why := p.take(&t, last)
	if why == nil {
		return t, nil
	}
	var foreign []uint64
	var trying operation
	defer trying.end(p)
	for seq, attempt := uint64(1), 0; seq < last.Sequence; { // a log is short
		msg, err := Next(ctx, p.nc, p.js, stream, last.Subject, seq)
		switch {
		case err != nil && ctx.Err() != nil:
			return t, ctx.Err()
		case err != nil:
			if attempt++; attempt > 1 {
				trying.failed(p, "unknown", last.Subject, err)
			}
			if err := pause(ctx, attempt); err != nil {
				return t, err
			}
			continue
		case msg == nil || msg.Sequence >= last.Sequence: // what came on top meanwhile breaks the fence, and is read then
			seq = last.Sequence
			continue
		}
		if p.take(&t, msg) != nil {
			foreign = append(foreign, msg.Sequence)
		}
		seq, attempt = msg.Sequence+1, 0
	}
	p.log.Error("a message that no bridge wrote lies on an event subject; only bridges may publish to "+ingest(p.names.prefix+".>"),
		"stream", stream, "subject", last.Subject, "seq", append(foreign, last.Sequence), "error", why)
	return t, nil
}

// take makes a message the last one that a bridge wrote, unless none did.
func (p *Publisher) take(t *tail, msg *jetstream.RawStreamMsg) error {
	e, err := p.names.Decode(msg.Subject, msg.Header, msg.Data)
	var state StateBody
	if err == nil && e.Kind == KindState {
		state, err = e.State()
	}
	if err == nil {
		t.seq, t.at, t.event, t.state = msg.Sequence, msg.Time, e, state
	}
	return err
}

// closed reports whether a log has its closing record.
func (t tail) closed() bool { return t.event.Kind == KindClosing }

// resume takes how a log ends into r, which the next event then follows.
func (t tail) resume(r *poll.Request) {
	r.LogSeq = t.top
	if t.event.Kind == KindState {
		r.State.QueueState, r.State.Reason = t.state.QueueState, string(t.state.Reason)
		r.State.Polls = max(r.State.Polls, t.state.Poll)
	}
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
		if last := logs[p.names.State(r.ID)]; last != nil {
			t, err := p.tailUnder(ctx, p.names.StatesStream(), last)
			if err != nil {
				return nil, err
			}
			if t.closed() {
				ended[i] = true
				continue
			}
			t.resume(r)
		}
		open = append(open, r)
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
		t, err := p.tailUnder(ctx, p.names.ResultsStream(), last)
		if err != nil {
			return nil, err
		}
		if t.seq != 0 {
			if err := p.close(ctx, r, p.storedFrom(t)); err != nil {
				return nil, err
			}
			ended[i] = true
		}
	}
	return ended, nil
}
