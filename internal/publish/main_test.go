package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

var tinker = must(NewNames("tinker"))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// rig is a publisher on a real server.
type rig struct {
	*testbed.Server
	*Publisher
	t   testing.TB
	ctx context.Context
	log testbed.Log
}

type setup struct {
	server    server.Options
	maxInline int64 // default 512 KiB
	without   bool  // no streams
	streams   func(*jetstream.StreamConfig)
}

// bubble runs a test in virtual time, on a server of its own whose streams stand.
func bubble(t *testing.T, o setup, test func(t *testing.T, g *rig)) {
	t.Helper()
	testbed.Bubble(t, func(t *testing.T) { test(t, newRig(t, o)) })
}

func newRig(t testing.TB, o setup) *rig {
	t.Helper()
	o.server.JetStream = true
	g := newBridge(t, testbed.NewServer(t, &o.server), o.maxInline)
	if !o.without {
		g.ensure(o.streams)
	}
	return g
}

// another is another bridge: a publisher on the same server with a connection of its own.
func (g *rig) another() *rig { return newBridge(g.t, g.Server, g.maxInline) }

func newBridge(t testing.TB, s *testbed.Server, maxInline int64) *rig {
	nc := s.Connect()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	g := &rig{Server: s, t: t, ctx: t.Context()}
	g.Publisher = New(Config{
		Conn: nc, JetStream: js, Names: tinker, MaxInline: cmp.Or(maxInline, 512<<10),
		Metrics: NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.NewTextHandler(&g.log, nil)),
	})
	return g
}

// ensure makes the streams, each with a change to its configuration.
func (g *rig) ensure(change func(*jetstream.StreamConfig)) {
	g.t.Helper()
	for _, cfg := range tinker.Streams(Options{}) {
		if change != nil {
			change(&cfg)
		}
		_, err := g.js.CreateStream(g.ctx, cfg)
		require.NoError(g.t, err)
	}
	_, err := Ensure(g.ctx, g.js, tinker, Options{})
	require.NoError(g.t, err)
}

// update changes a stream that stands, as an operator would.
func (g *rig) update(name string, change func(*jetstream.StreamConfig)) {
	g.t.Helper()
	stream, err := g.js.Stream(g.ctx, name)
	require.NoError(g.t, err)
	cfg := stream.CachedInfo().Config
	change(&cfg)
	_, err = g.js.UpdateStream(g.ctx, cfg)
	require.NoError(g.t, err)
}

func (g *rig) purge(stream, subject string) {
	g.t.Helper()
	s, err := g.js.Stream(g.ctx, stream)
	require.NoError(g.t, err)
	require.NoError(g.t, s.Purge(g.ctx, jetstream.WithPurgeSubject(subject)))
}

// record is a stored event.
type record struct {
	Event
	seq    uint64
	header nats.Header
}

// stored reads all that a stream has on a subject, from the leader and without trusting a message's own headers. What no
// bridge wrote is an Event without a Kind.
func (g *rig) stored(stream, subject string) []record {
	g.t.Helper()
	records := []record{}
	for next := uint64(1); ; {
		reply, err := g.nc.RequestWithContext(g.ctx, "$JS.API.STREAM.MSG.GET."+stream, fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q}`, next, subject))
		require.NoError(g.t, err)
		var answer struct {
			Message struct {
				Subject    string
				Seq        uint64
				Hdrs, Data []byte
			}
			Error *jetstream.APIError
		}
		require.NoError(g.t, json.Unmarshal(reply.Data, &answer))
		if answer.Error != nil {
			require.ErrorIs(g.t, answer.Error, jetstream.ErrMsgNotFound)
			return records
		}
		m := answer.Message
		header, _ := nats.DecodeHeadersMsg(m.Hdrs)
		e, err := tinker.Decode(m.Subject, header, m.Data)
		if err == nil && e.Kind == KindState {
			_, err = e.State()
		}
		if err != nil {
			e = Event{Subject: m.Subject, Data: m.Data}
		}
		records = append(records, record{e, m.Seq, header})
		next = m.Seq + 1
	}
}

func (g *rig) logOf(id string) []record {
	g.t.Helper()
	return g.stored("TINKER_STATES", tinker.State(id))
}

func (g *rig) resultsOf(id string) []record {
	g.t.Helper()
	return g.stored("TINKER_RESULTS", tinker.Result(id))
}

// statuses are the queue states and terminal statuses of a log, in order.
func statuses(records []record) []string {
	out := []string{}
	for _, r := range records {
		if r.Kind == "" {
			out = append(out, "foreign")
			continue
		}
		out = append(out, r.Status)
	}
	return out
}

// ended asserts that a request has its one result and one closing record, the log's last, which names that result.
func (g *rig) ended(id string) (result record, closing ClosingBody) {
	g.t.Helper()
	results, log := g.resultsOf(id), g.logOf(id)
	require.Len(g.t, results, 1, "one result")
	require.NotEmpty(g.t, log)
	for i, r := range log {
		require.Equal(g.t, i == len(log)-1, r.Kind == KindClosing, "one closing record, at the end: %v", statuses(log))
	}
	result = results[0]
	closing, err := log[len(log)-1].Closing()
	require.NoError(g.t, err)
	require.Equal(g.t, result.seq, closing.Result.Seq)
	require.Equal(g.t, "TINKER_RESULTS", closing.Result.Stream)
	require.Equal(g.t, result.Bytes(), closing.Result.Bytes)
	require.Equal(g.t, result.ContentType, closing.Result.ContentType)
	require.Equal(g.t, result.Status, closing.Status)
	require.Equal(g.t, result.Status, log[len(log)-1].Status)
	require.Equal(g.t, result.Polls, closing.Polls)
	return result, closing
}

// counts are the counters of a publisher that are not zero.
func (g *rig) counts() map[string]float64 {
	out := map[string]float64{}
	add := func(name string, c prometheus.Counter) {
		if v := valueOf(g.t, c); v != 0 {
			out[name] = v
		}
	}
	for kind, c := range g.metrics.events {
		add("event "+string(kind), c)
	}
	for status, c := range g.metrics.results {
		add("result "+string(status), c)
	}
	for outcome, c := range g.metrics.publishes {
		add(outcome, c)
	}
	return out
}

// lease is a poll.Lease that may be lost.
type lease struct {
	poll.Lease
	lost atomic.Bool
}

func (l *lease) Trusted() bool { return !l.lost.Load() }

func request(id string) *poll.Request {
	return &poll.Request{ID: id, Lease: &lease{}, State: poll.State{Submitted: time.Now()}}
}

func transition(state, previous string, polls int) poll.Transition {
	return poll.Transition{QueueState: state, Previous: previous, Poll: polls, Time: time.Now()}
}

func completed(body string) poll.Result {
	return poll.Result{Status: poll.Completed, Body: []byte(body), ContentType: "application/json", HTTPStatus: 200, Polls: 3, Time: time.Now()}
}

// in waits in the bubble's time until nothing else happens.
func in(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
