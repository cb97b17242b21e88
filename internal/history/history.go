// Package history reads back everything that bridges stored and judges it against what was promised: every accepted
// request has exactly one result and one closing record that agree, its queue states in order before that and nothing
// after, with the upstream's bytes; and, where the caller knows more of the run, that live subscribers saw nothing
// else, that no request was polled by two bridges beyond a lease, that deadlines were kept and that no work is left.
// The demo and the tests share it.
//
// A judgement that could not fail says nothing. So a run in which nothing was accepted, a history that was read only
// in part, and a run that was to have faults and had none are violations too.
package history

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

// Record is one message of an event stream.
type Record struct {
	Stream string
	Seq    uint64
	Time   time.Time // when the stream stored it
	publish.Event
	Missing string // the headers that every event must have, and this one has not, or has wrong
	Err     error  // why it is no event of a bridge
}

// Read reads a whole event stream. It fails if it got less than the stream holds, or if the stream changed meanwhile.
func Read(ctx context.Context, js jetstream.JetStream, names publish.Names, stream string) ([]Record, error) {
	var records []Record
	err := readEach(ctx, js, names, stream, func(r Record) { records = append(records, r) })
	return records, err
}

const (
	readBatch = 5000 // messages asked for at a time
	readBytes = 16 << 20
	readWait  = 10 * time.Second // between two messages of a stream that stands still
)

// readEach is Read without a copy of everything in memory.
func readEach(ctx context.Context, js jetstream.JetStream, names publish.Names, stream string, each func(Record)) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", stream, err)
	}
	holds := s.CachedInfo().State
	if err := readMessages(ctx, s, holds.Msgs, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		r := Record{Stream: stream, Seq: meta.Sequence.Stream, Time: meta.Timestamp}
		r.Event, r.Err = names.Decode(m.Subject(), m.Headers(), m.Data())
		if r.Err == nil {
			r.Missing = missing(r.Event, m.Headers())
		}
		each(r)
	}); err != nil {
		return err
	}
	after, err := s.Info(ctx)
	if err != nil {
		return fmt.Errorf("stream %s: %w", stream, err)
	}
	if now := after.State; now.Msgs != holds.Msgs || now.LastSeq != holds.LastSeq {
		return fmt.Errorf("stream %s held %d messages before it was read and %d after: it is still written to", stream, holds.Msgs, now.Msgs)
	}
	return nil
}

func readMessages(ctx context.Context, s jetstream.Stream, count uint64, each func(jetstream.Msg, *jetstream.MsgMetadata)) error {
	if count == 0 {
		return nil
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(readBatch, readBytes))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for got := range count {
		m, err := messages.Next(jetstream.NextMaxWait(readWait))
		if err == nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("stream %s holds %d messages, but only %d could be read: %w", s.CachedInfo().Config.Name, count, got, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		each(m, meta)
	}
	return nil
}

// missing checks the headers that Decode does not need.
func missing(e publish.Event, header nats.Header) string {
	var wrong []string
	for name, want := range map[string]string{
		nats.MsgIdHdr: e.MsgID, publish.HeaderContentType: e.ContentType, "ce-id": header.Get(nats.MsgIdHdr), "ce-time": "", "ce-source": "",
		"ce-specversion": "1.0", "ce-type": "futurebridge." + string(e.Kind), "ce-subject": e.Subject,
	} {
		if have := header.Get(name); have == "" || want != "" && have != want {
			wrong = append(wrong, name)
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, ", ")
}

// objects reads results that were too large for a message.
func objects(ctx context.Context, js jetstream.JetStream, names publish.Names) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		bucket, err := js.ObjectStore(ctx, names.LargeBucket())
		if err != nil {
			return nil, err
		}
		return bucket.GetBytes(ctx, name)
	}
}

// Work is what is left of the work stream.
type Work struct {
	Messages   uint64 // submissions not settled
	Pending    uint64 // of those, not delivered
	AckPending int    // delivered, not acknowledged
}

// ReadWork asks for what is left of the work.
func ReadWork(ctx context.Context, js jetstream.JetStream, names publish.Names) (Work, error) {
	stream, err := js.Stream(ctx, names.WorkStream())
	if err != nil {
		return Work{}, err
	}
	consumer, err := stream.Consumer(ctx, names.Consumer())
	if err != nil {
		return Work{}, err
	}
	info := consumer.CachedInfo()
	return Work{Messages: stream.CachedInfo().State.Msgs, Pending: info.NumPending, AckPending: info.NumAckPending}, nil
}
