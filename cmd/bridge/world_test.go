package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// world is everything around bridges, in one synctest bubble: a real JetStream server, the simulated upstream behind a
// real HTTP server over in-memory connections, and whoever submits and subscribes.
type world struct {
	t      *testing.T
	server *testbed.Server
	sim    *sim.Sim
	memory *sim.Memory
	nc     *nats.Conn
	js     jetstream.JetStream
	names  publish.Names

	run      history.Run // what is known of the run; tests add what only they know
	listener *history.Listener
	bridges  []*running
	closed   sync.Once
	regains  bool // a bridge may lose a request and get it back: the upstream's hint is forgotten then
}

func newWorld(t *testing.T, script sim.Script, options ...sim.Option) *world {
	w := &world{t: t, server: testbed.NewServer(t, asEmbedded()), sim: sim.New(script, append(options, sim.WithPollLog())...)}
	w.memory = sim.NewMemory(w.sim)
	w.nc, w.js = w.connect("tester")
	t.Cleanup(w.close)
	var err error
	w.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	w.listener, err = history.Listen(w.nc, w.names, "tester")
	require.NoError(t, err)
	return w
}

// asEmbedded are the options of a server that is like the embedded one.
func asEmbedded() *server.Options { return &server.Options{JetStream: true, SyncAlways: true} }

// restartServer stops the server for a while; its store stays.
func (w *world) restartServer(down time.Duration) {
	w.server.Stop()
	time.Sleep(down)
	w.server.Start()
}

func (w *world) connect(name string) (*nats.Conn, jetstream.JetStream) {
	return w.connectBy(w.server, name)
}

func (w *world) connectBy(way nats.InProcessConnProvider, name string) (*nats.Conn, jetstream.JetStream) {
	flags := natsFlags{Prefix: "tinker", Nats: nats.DefaultURL}
	nc, js, err := flags.dial(dialOptions{name: name, log: w.logger(), inProcess: way, patient: true})
	require.NoError(w.t, err)
	return nc, js
}

// logger is silent, or not when somebody looks for the reason of a failure.
func (w *world) logger() *slog.Logger {
	var out io.Writer = io.Discard
	if os.Getenv("BRIDGE_TEST_LOG") != "" {
		out = os.Stderr
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// running is one bridge of the world.
type running struct {
	*bridge
	w      *world
	ctx    context.CancelFunc
	hard   context.CancelFunc
	ended  chan struct{}
	client *api.Client
	idle   func()
	abrupt bool // it does not drain
	once   sync.Once
}

func (w *world) bridge(name string, args ...string) *running { return w.odd(name, seams{}, args...) }

// odd is a bridge of which something is otherwise.
func (w *world) odd(name string, s seams, args ...string) *running {
	cfg, err := parseServe(w.t, append([]string{up}, args...)...)
	require.NoError(w.t, err)
	var way nats.InProcessConnProvider = w.server
	if s.wire != nil {
		s.wire.server = w.server
		way = s.wire
	}
	nc, js := w.connectBy(way, name)
	consumer, err := publish.Ensure(w.t.Context(), js, w.names, cfg.streamOptions())
	require.NoError(w.t, err)
	transport := w.memory.Transport()
	asking, err := cfg.asking()
	require.NoError(w.t, err)
	asking.Transport, asking.UserAgent = transport, name
	if s.upstream != nil {
		s.upstream(&asking)
	}
	client, err := api.New(asking)
	require.NoError(w.t, err)
	var retriever poll.Retriever = client
	if s.retriever != nil {
		retriever = s.retriever(client)
	}
	log := s.log
	if log == nil {
		log = w.logger()
	}
	b, err := newBridge(cfg, nc, js, consumer, retriever, client.Full, log, prometheus.NewRegistry())
	require.NoError(w.t, err)
	s.fit(b, consumer, retriever)
	w.run.Lease = consumer.AckWait
	ctx, stop := context.WithCancel(context.Background())
	hard, cut := context.WithCancel(context.Background())
	r := &running{bridge: b, w: w, abrupt: s.abrupt, ctx: stop, hard: cut, ended: make(chan struct{}), client: client, idle: client.CloseIdleConnections}
	go func() {
		b.run(ctx, hard)
		close(r.ended)
	}()
	w.bridges = append(w.bridges, r)
	return r
}

// stop drains the bridge, as SIGTERM does.
func (r *running) stop() {
	if r.abrupt {
		r.kill()
		return
	}
	r.once.Do(func() {
		r.ctx()
		<-r.ended
		r.hard()
		r.nc.Close()
		r.idle()
	})
}

// kill is the nearest thing to SIGKILL inside a process: from one moment on nothing it does reaches anybody.
func (r *running) kill() {
	r.once.Do(func() {
		r.nc.Close()
		r.hard()
		r.ctx()
		<-r.ended
		r.idle()
	})
}

func (w *world) submit(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		w.submitFor(id, 0)
	}
}

// submitFor submits an id with a time-out; 0: none is given, and the bridge's default counts.
func (w *world) submitFor(id string, timeout time.Duration) {
	w.t.Helper()
	m := &nats.Msg{Subject: "tinker.submit", Header: nats.Header{publish.HeaderRequestID: {id}}}
	if timeout > 0 {
		m.Header.Set(publish.HeaderTimeoutMS, strconv.FormatInt(timeout.Milliseconds(), 10))
	}
	w.accept(id, cmp.Or(timeout, 24*time.Hour), m)
}

// accept submits a message that asks for an id.
func (w *world) accept(id string, timeout time.Duration, m *nats.Msg) {
	w.t.Helper()
	sent := time.Now()
	_, copies := w.submitMsg(m)
	w.run.Accepted = append(w.run.Accepted, history.Submission{ID: id, Timeout: timeout, Sent: sent, Acked: time.Now(), Copies: copies})
}

// submitMsg returns how often the message may be stored.
func (w *world) submitMsg(m *nats.Msg) (seq uint64, copies int) {
	w.t.Helper()
	for copies = 1; ; copies++ {
		ack, err := w.js.PublishMsg(context.Background(), m)
		if err == nil {
			return ack.Sequence, copies
		}
		time.Sleep(time.Second) // the server may be away
	}
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return out
}

// settled waits until no work is left.
func (w *world) settled(within time.Duration) {
	w.t.Helper()
	if !w.quiet(within) {
		require.Fail(w.t, "work is left", "after %s", within)
	}
}

// quiet reports whether no work was left within a time.
func (w *world) quiet(within time.Duration) bool {
	begin := time.Now()
	for time.Since(begin) < within {
		stream, err := w.js.Stream(w.t.Context(), w.names.WorkStream())
		if err == nil && stream.CachedInfo().State.Msgs == 0 {
			synctest.Wait()
			return true
		}
		time.Sleep(time.Second)
	}
	return false
}

func (w *world) history() (states, results []history.Record) {
	w.t.Helper()
	states, err := history.Read(w.t.Context(), w.js, w.names, w.names.StatesStream())
	require.NoError(w.t, err)
	results, err = history.Read(w.t.Context(), w.js, w.names, w.names.ResultsStream())
	require.NoError(w.t, err)
	return states, results
}

// judge reads everything back.
func (w *world) judge() history.Report {
	w.t.Helper()
	w.run.Upstream, w.run.Live, w.run.Polls = simUpstream{w.sim}, w.listener.Sightings(), nil
	for _, p := range w.sim.Polls() {
		w.run.Polls = append(w.run.Polls, history.Poll{ID: p.ID, Caller: p.Caller, Start: p.Start, End: p.End})
	}
	report, err := w.run.Judge(w.t.Context(), w.js, w.names)
	require.NoError(w.t, err)
	return report
}

// check reads everything back and judges it.
func (w *world) check() history.Report {
	w.t.Helper()
	report := w.judge()
	require.Empty(w.t, report.Violations)
	require.Equal(w.t, report.Accepted, report.Terminal)
	last := map[string]sim.Poll{}
	for _, p := range w.sim.Polls() {
		// A hint is not handed over: the first poll of a new holder may be early, and only that one.
		if p.Early && last[p.ID].Caller == p.Caller && !w.regains {
			require.Fail(w.t, "a poll before the hint had run out", "request %q, %s, at %v", p.ID, p.Caller, p.Start)
		}
		last[p.ID] = p
	}
	return report
}

// close ends everything. A test that failed on its way leaves that to its cleanup: a bubble must not be left with
// goroutines in it.
func (w *world) close() {
	w.closed.Do(func() {
		for _, b := range w.bridges {
			b.stop()
		}
		w.nc.Close()
		w.server.Stop()
		require.NoError(w.t, w.memory.Close())
		synctest.Wait()
	})
}

// everyday is a script of the usual: paused and active jobs, failures, large results, duds of the network.
func everyday() sim.Script {
	script, err := sim.Parse([]byte(`{
		"seed": 7,
		"profiles": [
			{"name": "short", "weight": 4, "steps": [
				{"state": "active", "for": "3s", "spread": "5s"},
				{"answer": "completed", "result_bytes": 300}]},
			{"name": "paused", "weight": 3, "steps": [
				{"state": "paused_rate_limit", "reason": "tokens per minute", "for": "20s", "retry_after_ms": 2500},
				{"state": "active", "for": "10s"},
				{"state": "paused_capacity", "reason": "no trainer free", "for": "5s"},
				{"state": "active", "for": "5s"},
				{"answer": "completed", "result_bytes": 20000}]},
			{"name": "held", "weight": 2, "style": {"hold": "45s"}, "steps": [
				{"state": "active", "for": "70s"},
				{"answer": "completed", "result_bytes": 900}]},
			{"name": "user failure", "weight": 1, "steps": [
				{"state": "active", "for": "4s"},
				{"answer": "failed", "message": "the prompt is too long", "category": "user"}]},
			{"name": "server failure", "weight": 1, "steps": [
				{"state": "active", "for": "4s"},
				{"answer": "failed", "message": "a worker died", "category": "server"}]}
		]}`))
	if err != nil {
		panic(err)
	}
	return script
}
