// Package client submits request ids to a bridge, waits for their results and follows their logs.
//
// It talks to NATS only, and to nothing that any other NATS client could not use too: subjects and streams are the
// contract, this package is a convenience. Everything here may be done long before the bridge runs or long after it
// has finished: a submission waits in a stream, and so do results.
//
// What to expect:
//
//   - [Client.Submit] returns nil once JetStream has stored the submission: from then on the request ends in exactly
//     one result. After any other error it may or may not be stored; submitting the same id again is harmless.
//   - [Client.Wait] and [Client.Result] read the stored result. Of one id there is only ever one.
//   - [Client.Watch] reads a request's log, from its start: queue states, in order, each once, then one closing record.
//
// A Client is safe for concurrent use and holds no goroutines; it does not close the connection that it was given.
package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

// Terminal statuses of a request. Any other status is a queue state, as the upstream names them.
const (
	StatusCompleted = publish.StatusCompleted
	StatusFailed    = publish.StatusFailed
	StatusTimedOut  = publish.StatusTimedOut // its deadline passed
	StatusExpired   = publish.StatusExpired  // the upstream no longer has the result
	StatusLost      = publish.StatusLost     // the upstream gave the result to a poll that died
	StatusCancelled = publish.StatusCancelled
)

var (
	// ErrNotYet says that a request has no result yet, or that nobody ever submitted it.
	ErrNotYet = errors.New("there is no result yet")
	// ErrNoBridge says that nothing takes submissions or keeps results under this prefix.
	ErrNoBridge = errors.New("no bridge has been set up here")
)

// RequestError is how a request ended that did not complete.
type RequestError struct {
	RequestID  string
	Status     string        // failed, timed_out, expired, lost or cancelled
	Type       string        // request_failed, api_timeout, api_status, api_connection or validation
	Category   string        // whose fault: user, server or unknown
	Message    string        // what the upstream or the bridge says
	HTTPStatus int           // of the upstream's answer, 0 when that was not the reason
	Retryable  bool          // a new request for the same work may succeed
	Polls      int           // how often the upstream was asked
	Elapsed    time.Duration // from submission to end
	Body       []byte        // the stored error, JSON
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("request %q %s: %s", e.RequestID, e.Status, e.Message)
}

// CheckID says why an id cannot name a request: it has to be valid UTF-8 of 1 to 1,024 bytes, without control
// characters and without white space at its ends.
func CheckID(id string) error { return publish.CheckID(id) }

// Client submits, waits and watches.
type Client struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	names publish.Names
}

// Option of New.
type Option func(*settings)

type settings struct {
	prefix string
	js     jetstream.JetStream
}

// WithPrefix is for bridges that run with another --prefix than "tinker".
func WithPrefix(prefix string) Option { return func(s *settings) { s.prefix = prefix } }

// WithJetStream is for a JetStream domain or API prefix. js has to belong to the connection that New is given, and
// should have a publish async timeout, without which a lost ack blocks SubmitAll until its context ends.
func WithJetStream(js jetstream.JetStream) Option { return func(s *settings) { s.js = js } }

// New returns a client on nc. It fails when an option cannot be used; it does not talk to the server.
func New(nc *nats.Conn, opts ...Option) (*Client, error) {
	s := settings{prefix: "tinker"}
	for _, opt := range opts {
		opt(&s)
	}
	names, err := publish.NewNames(s.prefix)
	if err != nil {
		return nil, err
	}
	if s.js == nil {
		if s.js, err = jetstream.New(nc, jetstream.WithPublishAsyncTimeout(ackTimeout)); err != nil {
			return nil, err
		}
	}
	return &Client{nc: nc, js: s.js, names: names}, nil
}

// explain adds to an error of NATS what it means here; nil stays nil.
func (c *Client) explain(ctx context.Context, stream string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded): // not the caller's deadline: one of our own
		return fmt.Errorf("stream %s does not answer: %w", stream, nats.ErrTimeout)
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%w: stream %s does not exist; start `bridge serve`, or correct the prefix %q", ErrNoBridge, stream, c.names.Prefix())
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: the NATS server has no JetStream for this account: %w", ErrNoBridge, err)
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("stream %s does not answer: %w", stream, err)
	}
	return err
}
