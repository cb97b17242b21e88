package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/intake"
	"futurebridge/internal/publish"
)

const (
	ackTimeout = 30 * time.Second // for one pipelined submission
	retryFor   = 30 * time.Second // how long a submission of many is tried again
	pipeline   = 512              // submissions that wait for their acks
	maxKey     = 256              // bytes of a routing key
)

// Request is one id to poll.
type Request struct {
	ID      string            // the upstream's request id; see CheckID
	Type    string            // what kind of work it is, up to 128 printable ASCII characters: the bridge learns its usual duration
	Timeout time.Duration     // from submission to its deadline, 1 ms to 7 days; 0: the bridge's default
	Labels  map[string]string // carried into the request's events, up to 4 KiB as JSON
	// Key routes a submission: it is published on <prefix>.submit.<Key>, so that permissions and partitions can tell
	// submitters apart. One or more subject tokens, or empty.
	Key         string
	Traceparent string // W3C trace context, carried into the request's events
}

// submission is the wire form of a Request.
type submission struct {
	RequestID   string            `json:"request_id"`
	TimeoutMS   int64             `json:"timeout_ms,omitempty"`
	RequestType string            `json:"request_type,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// Submit hands a request to the bridges and returns once JetStream has stored it. A request that cannot be one is an
// error of the caller's and is not sent.
func (c *Client) Submit(ctx context.Context, r Request) error {
	msg, err := c.message(r)
	if err != nil {
		return err
	}
	_, err = c.js.PublishMsg(ctx, msg)
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		// Either there is no such stream, or it has no leader at the moment.
		if _, lookup := c.js.Stream(ctx, c.names.WorkStream()); errors.Is(lookup, jetstream.ErrStreamNotFound) {
			err = lookup
		}
	}
	return c.explain(ctx, c.names.WorkStream(), err)
}

// SubmitAll hands over many requests without waiting for each ack in turn. It yields every request, in order, with
// nil once it is stored, or with the reason why it is not. One bad request stops nothing; during an outage it tries
// again for half a minute each. The sequence ends after the last request, or with ctx: then requests that were sent
// but not acked are yielded with the context's error. requests is ranged over in a goroutine of its own, which ends
// with the item at hand.
func (c *Client) SubmitAll(ctx context.Context, requests iter.Seq[Request]) iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		sent := make(chan pending, pipeline)
		go func() {
			defer close(sent)
			for r := range requests {
				select {
				case sent <- c.send(r):
				case <-ctx.Done():
					return
				}
			}
		}()
		for {
			var p pending
			more := false
			select {
			case p, more = <-sent:
			case <-ctx.Done(): // tell what is in the pipeline; who reads the rest may be blocked
				select {
				case p, more = <-sent:
				default:
				}
			}
			if !more || !yield(p.request, c.acked(ctx, p)) {
				return
			}
		}
	}
}

// pending is a submission on its way.
type pending struct {
	request Request
	ack     jetstream.PubAckFuture // nil: it was not sent, because of err
	err     error
	invalid bool // err is the request's own fault
}

func (c *Client) send(r Request) pending {
	msg, err := c.message(r)
	if err != nil {
		return pending{request: r, err: err, invalid: true}
	}
	ack, err := c.js.PublishMsgAsync(msg)
	return pending{request: r, ack: ack, err: err}
}

// acked waits for a submission's ack and sends it again after a failure that may pass.
func (c *Client) acked(ctx context.Context, p pending) error {
	if p.invalid {
		return p.err
	}
	err := p.err
	if err == nil {
		if err = wait(ctx, p.ack); err == nil {
			return nil
		}
	}
	deadline := time.Now().Add(retryFor)
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, longestRetry) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrNoBridge), time.Now().After(deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if err = c.Submit(ctx, p.request); err == nil {
			return nil
		}
	}
}

// wait prefers an ack that is there to a context that has ended too.
func wait(ctx context.Context, ack jetstream.PubAckFuture) error {
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return err
	default:
	}
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) message(r Request) (*nats.Msg, error) {
	if r.Timeout != 0 && r.Timeout < time.Millisecond {
		return nil, fmt.Errorf("the timeout %v is too short: give at least 1ms, or 0 for the bridge's default", r.Timeout)
	}
	subject := c.names.Submit()
	if r.Key != "" {
		if err := checkKey(r.Key); err != nil {
			return nil, err
		}
		subject += "." + r.Key
	}
	if !utf8.ValidString(r.ID) { // JSON would replace what is invalid, and another id would be polled
		return nil, publish.CheckID(r.ID)
	}
	body, err := json.Marshal(submission{r.ID, r.Timeout.Milliseconds(), r.Type, r.Labels})
	if err != nil {
		return nil, err
	}
	msg := &nats.Msg{Subject: subject, Data: body}
	if r.Traceparent != "" {
		msg.Header = nats.Header{publish.HeaderTraceparent: {r.Traceparent}}
	}
	// The bridge would tell nobody here that it rejects a submission: read it as the bridge will.
	if _, err := intake.Parse(msg.Header, msg.Data, publish.CheckID); err != nil {
		return nil, err
	}
	return msg, nil
}

// checkKey keeps a key from being another subject, or one so long that the server hangs up.
func checkKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("the routing key has %d bytes; at most %d are allowed", len(key), maxKey)
	}
	for token := range strings.SplitSeq(key, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r == '*' || r == '>' || r == 127 }) {
			return errors.New("the routing key has to be subject tokens joined by dots, without white space, '*' and '>'")
		}
	}
	return nil
}
