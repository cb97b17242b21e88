package client

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"futurebridge/internal/api"
	"futurebridge/internal/embedded"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

func TestMain(m *testing.M) {
	// The server's process-wide clock goroutine must not be born inside a bubble, where it would never end.
	ats.Register()
	code := m.Run()
	ats.Unregister()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

type testingT interface {
	require.TestingT
	Helper()
	Context() context.Context
}

// BridgeForExamples is a NATS server on which a bridge has finished the request "req-1" and failed "req-2".
func BridgeForExamples() (nc *nats.Conn, stop func()) {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	b := newBed(exampleT{}, dir)
	b.state("req-1", "queued")
	b.state("req-1", "running")
	b.complete("req-1", `{"loss":0.25}`)
	b.fail("req-2", poll.Failed)
	return b.nc, func() { b.close(); _ = os.RemoveAll(dir) }
}

type exampleT struct{}

func (exampleT) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (exampleT) FailNow()                          {}
func (exampleT) Helper()                           {}
func (exampleT) Context() context.Context          { return context.Background() }

const maxInline = 64 << 10

// bed is a NATS server with a bridge's streams, and a hand that writes what a bridge would.
type bed struct {
	t      testingT
	dir    string
	server atomic.Pointer[embedded.Server]
	nc     *nats.Conn
	js     jetstream.JetStream
	names  publish.Names

	publisher *publish.Publisher
	held      map[string]*poll.Request
}

func newBed(t testingT, dir string) *bed {
	// nats.go keeps timers in a sync.Pool; one of another test's bubble is fatal here. Two collections empty it.
	runtime.GC()
	runtime.GC()
	b := &bed{t: t, dir: dir}
	b.start()
	b.nc = b.connect()
	var err error
	b.js, err = jetstream.New(b.nc)
	require.NoError(t, err)
	b.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	_, err = publish.Ensure(t.Context(), b.js, b.names, publish.Options{})
	require.NoError(t, err)
	b.publisher = publish.New(publish.Config{Conn: b.nc, JetStream: b.js, Names: b.names, MaxInline: maxInline})
	b.held = map[string]*poll.Request{}
	return b
}

func (b *bed) start() {
	s, err := embedded.Start(embedded.Options{StoreDir: b.dir})
	require.NoError(b.t, err)
	b.server.Store(s)
}

func (b *bed) stop() { b.server.Load().Shutdown() }

func (b *bed) close() {
	b.nc.Close()
	b.stop()
}

// InProcessConn reaches whichever server runs at the moment.
func (b *bed) InProcessConn() (net.Conn, error) { return b.server.Load().InProcess().InProcessConn() }

func (b *bed) connect() *nats.Conn {
	nc, err := nats.Connect("", nats.InProcessServer(b), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	require.NoError(b.t, err)
	return nc
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

func (heldLease) Trusted() bool { return true }
func (heldLease) Ack()          {}
func (heldLease) Nak()          {}
func (heldLease) Drop()         {}
