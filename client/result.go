package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

const (
	lookTimeout   = 5 * time.Second
	firstLook     = 5 * time.Second  // waiters look at the stream this often at first,
	longestLook   = 30 * time.Second // and this often in the end
	objectTimeout = time.Hour        // for reading a large result under a context without a deadline
)

// Result is what the upstream answered: its bytes as they came.
type Result struct {
	RequestID   string
	ContentType string
	Size        int64     // bytes
	Polls       int       // how often the upstream was asked
	SubmittedAt time.Time // when the submission was stored, by the server's clock
	Seq         uint64    // its sequence number in the results stream

	data  []byte
	large *publish.LargeRef
	c     *Client
}

// Open reads the result's bytes. A large result comes from the object store in pieces: a Read fails with an error that
// wraps [jetstream.ErrDigestMismatch] when what was stored is not what the bridge put there. Close has to be called.
func (r *Result) Open(ctx context.Context) (io.ReadCloser, error) {
	if r.large == nil {
		return io.NopCloser(bytes.NewReader(r.data)), nil
	}
	bucket := r.c.names.LargeBucket()
	// Without a deadline the object store would give up after seconds, however long the object is.
	cancel := context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, objectTimeout)
	}
	store, err := r.c.js.ObjectStore(ctx, bucket)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("result of %q: object store %s: %w", r.RequestID, bucket, err)
	}
	object, err := store.Get(ctx, r.large.Object)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("result of %q: object %s in %s: %w", r.RequestID, r.large.Object, bucket, err)
	}
	if info, err := object.Info(); err != nil || info.Digest != r.large.Digest || int64(info.Size) != r.large.Bytes {
		_ = object.Close()
		cancel()
		return nil, fmt.Errorf("result of %q: object %s in %s is not the one that was stored: %w",
			r.RequestID, r.large.Object, bucket, jetstream.ErrDigestMismatch)
	}
	return &objectReader{object, cancel}, nil
}

// Bytes is the whole result. For an inline result it costs nothing; do not change the bytes.
func (r *Result) Bytes(ctx context.Context) ([]byte, error) {
	if r.large == nil {
		return r.data, nil
	}
	rd, err := r.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rd.Close() }()
	buf := bytes.NewBuffer(make([]byte, 0, r.Size+bytes.MinRead))
	if _, err := buf.ReadFrom(rd); err != nil {
		return nil, fmt.Errorf("result of %q: %w", r.RequestID, err)
	}
	return buf.Bytes(), nil
}

type objectReader struct {
	jetstream.ObjectResult
	cancel context.CancelFunc
}

func (r *objectReader) Close() error {
	defer r.cancel()
	return r.ObjectResult.Close()
}

// Result is the stored result of a request that has completed, a *RequestError when it ended otherwise, or ErrNotYet.
// In a cluster a result that is milliseconds old may still be ErrNotYet.
func (c *Client) Result(ctx context.Context, id string) (*Result, error) {
	if err := publish.CheckID(id); err != nil {
		return nil, err
	}
	return c.look(ctx, id)
}

// Wait returns as Result does, once the request has ended. It costs the server a subscription and a read now and
// then, no consumer. It waits for a request that nobody has submitted yet, and through outages of NATS once it has
// begun: give ctx a deadline.
func (c *Client) Wait(ctx context.Context, id string) (*Result, error) {
	if err := publish.CheckID(id); err != nil {
		return nil, err
	}
	if r, err := c.look(ctx, id); !errors.Is(err, ErrNotYet) {
		return r, err
	}
	// A live message only says that it is time to look: what is stored is the truth, and core NATS may miss a message.
	live := make(chan struct{}, 1)
	sub, err := c.nc.Subscribe(c.names.Result(id), func(*nats.Msg) {
		select {
		case live <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	connected := c.nc.StatusChanged(nats.CONNECTED) // what ended during an outage was not told to us
	defer c.nc.RemoveStatusListener(connected)
	if c.nc.IsConnected() {
		// Only after the server has the subscription does a look miss nothing that the subscription misses too. That it
		// could not be told in time is no failure: later looks make up for it.
		if err := c.flush(ctx); err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	pause := firstLook
	for {
		r, err := c.look(ctx, id)
		if final(err) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-live:
			if r, err := c.lookAgain(ctx, id); final(err) {
				return r, err
			}
		case <-connected:
		case <-time.After(pause):
			pause = min(pause*3/2, longestLook)
		}
	}
}

// lookAgain looks for a result that has just been announced: a replica that lags behind the leader answers "nothing
// there" for a moment.
func (c *Client) lookAgain(ctx context.Context, id string) (r *Result, err error) {
	for pause := 10 * time.Millisecond; pause < time.Second; pause *= 2 {
		if r, err = c.look(ctx, id); final(err) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
	return nil, err
}

// final says that looking again would give the same.
func final(err error) bool {
	var ended *RequestError
	return err == nil || errors.As(err, &ended) || errors.Is(err, nats.ErrConnectionClosed)
}

func (c *Client) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return c.nc.FlushWithContext(ctx)
}

// look reads the stored result, once.
func (c *Client) look(ctx context.Context, id string) (*Result, error) {
	look, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	msg, e, err := c.stored(look, c.names.Result(id))
	if err != nil {
		return nil, c.explain(ctx, c.names.ResultsStream(), err)
	}
	if msg == nil {
		return nil, ErrNotYet
	}
	r := &Result{
		RequestID: e.RequestID, ContentType: e.ContentType, Size: e.Bytes(), Polls: e.Polls, SubmittedAt: e.SubmittedAt,
		Seq: msg.Sequence, data: e.Data, large: e.Large, c: c,
	}
	if e.Status == StatusCompleted {
		return r, nil
	}
	body, err := r.Bytes(ctx)
	if err != nil {
		return nil, err
	}
	return nil, requestError(e.RequestID, e.Status, body)
}

// stored is the message of a result's subject that a bridge wrote; nil: there is none yet.
func (c *Client) stored(ctx context.Context, subject string) (*jetstream.RawStreamMsg, publish.Event, error) {
	msg, err := publish.DirectLast(ctx, c.nc, c.js, c.names.ResultsStream(), subject)
	switch {
	case errors.Is(err, publish.ErrUnreadable):
		return c.lookUnder(ctx, subject)
	case errors.Is(err, nats.ErrNoResponders):
		// Either there is no such stream, or nothing that could answer for it at the moment.
		if _, lookup := c.js.Stream(ctx, c.names.ResultsStream()); lookup != nil {
			err = lookup
		}
		return nil, publish.Event{}, err
	case err != nil || msg == nil:
		return nil, publish.Event{}, err
	}
	if e, err := c.names.Decode(msg.Subject, msg.Header, msg.Data); err == nil {
		return msg, e, nil
	}
	return c.lookUnder(ctx, subject)
}

// lookUnder is stored where a message that no bridge wrote lies on top.
func (c *Client) lookUnder(ctx context.Context, subject string) (*jetstream.RawStreamMsg, publish.Event, error) {
	for seq := uint64(1); ; {
		msg, err := publish.Next(ctx, c.nc, c.js, c.names.ResultsStream(), subject, seq)
		if err != nil || msg == nil {
			return nil, publish.Event{}, err
		}
		if e, err := c.names.Decode(msg.Subject, msg.Header, msg.Data); err == nil {
			return msg, e, nil
		}
		seq = msg.Sequence + 1
	}
}

func requestError(id, status string, body []byte) *RequestError {
	var b publish.ErrorBody
	if err := json.Unmarshal(body, &b); err != nil {
		b.Message = "its stored error cannot be read: " + err.Error()
	}
	return &RequestError{
		RequestID: id, Status: status, Type: b.Type, Category: b.Category, Message: b.Message, HTTPStatus: b.HTTPStatus,
		Retryable: b.Retryable, Polls: b.Polls, Elapsed: time.Duration(b.ElapsedMS) * time.Millisecond, Body: body,
	}
}
