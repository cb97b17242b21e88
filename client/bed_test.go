package client

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

type testingT interface {
	testbed.T
	Context() context.Context
}

// BridgeForExamples is a NATS server on which a bridge has finished the request "req-1" and failed "req-2".
func BridgeForExamples() (nc *nats.Conn, stop func()) {
	t := &exampleT{}
	b := newBed(t)
	b.state("req-1", "queued")
	b.state("req-1", "running")
	b.complete("req-1", `{"loss":0.25}`)
	b.fail("req-2", poll.Failed)
	return b.nc, t.end
}

// exampleT is in the place of the testing.T that an example has not.
type exampleT struct{ cleanups []func() }

func (*exampleT) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleT) FailNow()                          {}
func (*exampleT) Helper()                           {}
func (*exampleT) Context() context.Context          { return context.Background() }
func (t *exampleT) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *exampleT) TempDir() string {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *exampleT) end() {
	for _, cleanup := range slices.Backward(t.cleanups) {
		cleanup()
	}
}

const maxInline = 64 << 10

// bed is a NATS server with a bridge's streams, and a hand that writes what a bridge would.
type bed struct {
	*testbed.Server
	t     testingT
	nc    *nats.Conn
	js    jetstream.JetStream
	names publish.Names

	publisher *publish.Publisher
	held      map[string]*poll.Request
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, test func(t *testing.T, b *bed)) {
	t.Helper()
	testbed.Bubble(t, func(t *testing.T) { test(t, newBed(t)) })
}

func newBed(t testingT) *bed {
	testbed.ForgetTimers()
	b := &bed{t: t, Server: testbed.NewServer(t, nil), held: map[string]*poll.Request{}}
	b.nc = b.connect()
	var err error
	b.js, err = jetstream.New(b.nc)
	require.NoError(t, err)
	b.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	_, err = publish.Ensure(t.Context(), b.js, b.names, publish.Options{})
	require.NoError(t, err)
	b.publisher = publish.New(publish.Config{Conn: b.nc, JetStream: b.js, Names: b.names, MaxInline: maxInline})
	return b
}

// connect is as programs connect by default: what they publish during an outage is kept.
func (b *bed) connect() *nats.Conn {
	return b.Connect(nats.ReconnectBufSize(nats.DefaultReconnectBufSize))
}

func (b *bed) client(opts ...Option) *Client {
	c, err := New(b.nc, opts...)
	require.NoError(b.t, err)
	return c
}

// put stores a result that no bridge would.
func (b *bed) put(id, status string, extra nats.Header, body []byte) {
	b.t.Helper()
	msg := &nats.Msg{Subject: "ingest." + b.names.Result(id), Data: body, Header: nats.Header{
		publish.HeaderRequestID:   {id},
		publish.HeaderStatus:      {status},
		publish.HeaderPolls:       {"3"},
		publish.HeaderSubmittedAt: {time.Now().UTC().Format(time.RFC3339Nano)},
		publish.HeaderContentType: {"application/json"},
	}}
	maps.Copy(msg.Header, extra)
	_, err := b.js.PublishMsg(b.t.Context(), msg)
	require.NoError(b.t, err)
}

// request is the one that a bridge would hold for id.
func (b *bed) request(id string) *poll.Request {
	r := b.held[id]
	if r == nil {
		r = &poll.Request{ID: id, Lease: heldLease{}, State: poll.State{Submitted: time.Now()}}
		b.held[id] = r
	}
	return r
}

func (b *bed) state(id, state string) {
	b.t.Helper()
	r := b.request(id)
	ended, err := b.publisher.Transition(b.t.Context(), r, poll.Transition{
		QueueState: state, Previous: r.State.QueueState, Reason: "because", Poll: 3, Time: time.Now(),
	})
	require.NoError(b.t, err)
	require.False(b.t, ended)
	r.State.QueueState = state
}

func (b *bed) end(id string, result poll.Result) {
	b.t.Helper()
	result.Polls, result.Elapsed, result.Time = 3, 1500*time.Millisecond, time.Now()
	require.NoError(b.t, b.publisher.Finish(b.t.Context(), b.request(id), result))
}

func (b *bed) complete(id, result string) {
	b.t.Helper()
	b.end(id, poll.Result{Status: poll.Completed, Body: []byte(result), ContentType: "application/json"})
}

func (b *bed) fail(id string, status poll.Status) {
	b.t.Helper()
	b.end(id, poll.Result{Status: status, Failure: &api.Failure{Type: api.RequestFailed, Category: api.User, Message: "bad prompt"}})
}

type heldLease struct{}

func (heldLease) Trusted() bool     { return true }
func (heldLease) Ack()              {}
func (heldLease) Nak(time.Duration) {}
func (heldLease) Drop()             {}
