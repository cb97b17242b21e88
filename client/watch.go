package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

const (
	// maxFilters is how many logs one consumer is asked for by name; a server looks through the list for each message.
	// For more ids the whole stream is read and sorted out here.
	maxFilters = 500

	idleThreshold = time.Minute // the server removes a consumer whose watcher died
	longestRetry  = 5 * time.Second
)

// WatchOptions choose the logs to watch.
type WatchOptions struct {
	IDs   []string  // these requests' logs; the watch ends when all of them are closed
	All   bool      // every request's log; the watch ends with its context
	Since time.Time // only events stored at this time or later
}

// Event is one record of a request's log.
type Event struct {
	RequestID   string
	Seq         uint64    // its sequence number in the states stream
	Closing     bool      // the log's last record: the request has ended
	Status      string    // the queue state; on the closing record how the request ended
	Previous    string    // the queue state before, if there was one
	Reason      string    // the upstream's words for the state, if it gave any
	Polls       int       // how often the upstream had been asked
	Time        time.Time // when the bridge learnt of it, by the bridge's clock
	SubmittedAt time.Time // when the submission was stored, by the server's clock

	// Of a closing record:
	Elapsed     time.Duration // from submission to end
	ResultBytes int64         // size of the result, which Client.Result returns
	ContentType string        // of the result
	Err         *RequestError // how it ended, when it did not complete

	Body json.RawMessage // the record as it is stored, with further fields
}

// Watch follows logs, each from its start (or from Since): first what is stored, then what comes, in the order of the
// stream, every record once. It reads through outages and restarts of NATS. It ends when every one of IDs is closed;
// otherwise its last pair is an error: the context's, or one that says why it cannot begin. Records that no bridge
// wrote are passed over.
func (c *Client) Watch(ctx context.Context, o WatchOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		w, err := c.newWatch(o)
		if err != nil {
			yield(Event{}, err)
			return
		}
		// By its name: a server finds no stream by the subjects that this one stores.
		stream, err := c.js.Stream(ctx, c.names.StatesStream())
		if err != nil {
			yield(Event{}, c.explain(ctx, c.names.StatesStream(), err))
			return
		}
		for retry := 100 * time.Millisecond; ; retry = min(2*retry, longestRetry) {
			before := w.last
			done, err := w.session(ctx, stream, yield)
			if done {
				return
			}
			if w.last > before {
				retry = 100 * time.Millisecond
			}
			if ctx.Err() == nil && (errors.Is(err, nats.ErrConnectionClosed) || !w.begun && refused(err)) {
				yield(Event{}, c.explain(ctx, c.names.StatesStream(), err))
				return
			}
			select {
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			case <-time.After(retry):
			}
		}
	}
}

// watch is what survives from one consumer to the next.
type watch struct {
	c      *Client
	config jetstream.ConsumerConfig
	open   map[string]bool // ids whose closing record has not come; nil: all are wanted
	since  time.Time
	last   uint64    // stream sequence of the last message seen,
	made   time.Time // in the stream that was made then
	begun  bool      // there has been a consumer
}

func (c *Client) newWatch(o WatchOptions) (*watch, error) {
	if o.All == (len(o.IDs) > 0) {
		return nil, errors.New("watch either some ids or all")
	}
	w := &watch{c: c, config: jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		InactiveThreshold: idleThreshold,
		MemoryStorage:     true,
		Replicas:          1,
	}}
	if o.All {
		if !o.Since.IsZero() {
			w.config.DeliverPolicy, w.config.OptStartTime = jetstream.DeliverByStartTimePolicy, &o.Since
		}
		return w, nil
	}
	// Logs of some ids are read from their start in any case: a closing record before Since ends the watch too.
	w.since = o.Since
	w.open = make(map[string]bool, len(o.IDs))
	for _, id := range o.IDs {
		if err := publish.CheckID(id); err != nil {
			return nil, err
		}
		if !w.open[id] && len(o.IDs) <= maxFilters {
			w.config.FilterSubjects = append(w.config.FilterSubjects, c.names.State(id))
		}
		w.open[id] = true
	}
	return w, nil
}

// refused says that the server does not want to give us a consumer, and will not change its mind.
func refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code < 500
}

// session reads with one consumer until it breaks. done says that the watch is over.
func (w *watch) session(ctx context.Context, stream jetstream.Stream, yield func(Event, error) bool) (done bool, err error) {
	ctx, stop := w.untilReconnected(ctx)
	defer stop()
	config := w.config
	if err := w.recognise(ctx, stream); err != nil {
		return false, err
	}
	if w.last > 0 {
		config.DeliverPolicy, config.OptStartSeq, config.OptStartTime = jetstream.DeliverByStartSequencePolicy, w.last+1, nil
	}
	create, cancel := context.WithTimeout(ctx, lookTimeout)
	consumer, err := stream.CreateConsumer(create, config)
	cancel()
	if err != nil {
		return false, err
	}
	w.begun = true
	defer w.remove(ctx, stream, consumer.CachedInfo().Name)
	messages, err := w.c.pull(consumer.CachedInfo())
	if err != nil {
		return false, err
	}
	defer messages.stop()
	for delivered := uint64(1); ; delivered++ {
		msg, err := messages.next(ctx)
		if err != nil {
			return false, err
		}
		meta, err := msg.Metadata()
		if err != nil || meta.Sequence.Consumer != delivered {
			return false, nil // a message between was lost on the way
		}
		w.last = meta.Sequence.Stream
		e, ok := w.decode(msg, meta)
		if !ok {
			continue
		}
		if !meta.Timestamp.Before(w.since) && !yield(e, nil) {
			return true, nil
		}
		if e.Closing && w.open != nil {
			delete(w.open, e.RequestID)
			if len(w.open) == 0 {
				return true, nil
			}
		}
	}
}

// recognise has a stream that was made anew read from its start: its sequences begin again, and a server waits for one that
// is still to come.
func (w *watch) recognise(ctx context.Context, stream jetstream.Stream) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	info := stream.CachedInfo()
	if w.begun {
		var err error
		if info, err = stream.Info(ctx); err != nil {
			return err
		}
	}
	if !info.Created.Equal(w.made) {
		w.made, w.last = info.Created, 0
	}
	return nil
}

// untilReconnected ends a session when the connection is there again: a consumer in memory may not have survived
// what happened, and a new one costs less than the wait for heartbeats that do not come.
func (w *watch) untilReconnected(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	connected := w.c.nc.StatusChanged(nats.CONNECTED)
	go func() {
		select {
		case <-connected:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		w.c.nc.RemoveStatusListener(connected)
	}
}

func (w *watch) remove(ctx context.Context, stream jetstream.Stream, name string) {
	if !w.c.nc.IsConnected() {
		return // it is gone, or will be after its idle threshold
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()
	_ = stream.DeleteConsumer(ctx, name)
}

func (w *watch) decode(msg *nats.Msg, meta *nats.MsgMetadata) (Event, bool) {
	d, err := w.c.names.Decode(msg.Subject, msg.Header, msg.Data)
	if err != nil || w.open != nil && !w.open[d.RequestID] {
		return Event{}, false
	}
	e := Event{
		RequestID: d.RequestID, Seq: meta.Sequence.Stream, Status: d.Status, Polls: d.Polls, SubmittedAt: d.SubmittedAt,
		Time: meta.Timestamp, Body: json.RawMessage(d.Data),
	}
	switch d.Kind {
	case publish.KindState:
		b, err := d.State()
		if err != nil {
			return Event{}, false
		}
		e.Previous, e.Reason, e.Time = string(b.Previous), string(b.Reason), b.Time
	case publish.KindClosing:
		b, err := d.Closing()
		if err != nil {
			return Event{}, false
		}
		e.Closing, e.Previous, e.Time = true, string(b.Previous), b.Time
		e.Elapsed = time.Duration(b.ElapsedMS) * time.Millisecond
		e.ResultBytes, e.ContentType = b.Result.Bytes, b.Result.ContentType
		if e.Status != StatusCompleted {
			e.Err = requestError(e.RequestID, e.Status, b.Error)
		}
	default:
		return Event{}, false
	}
	return e, true
}
