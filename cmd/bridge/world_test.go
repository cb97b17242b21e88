package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/embedded"
	"futurebridge/internal/history"
	"futurebridge/internal/publish"
)

// world is everything around bridges, in one synctest bubble: a real JetStream server, the simulated upstream behind a
// real HTTP server over in-memory connections, and whoever submits and subscribes.
type world struct {
	t      *testing.T
	dir    string
	server atomic.Pointer[embedded.Server]
	sim    *sim.Sim
	memory *sim.Memory
	nc     *nats.Conn
	js     jetstream.JetStream
	names  publish.Names

	accepted []string
	bridges  []*running
}

// present is when the tests began. The server ages messages by a clock from outside the bubble, and would throw
// everything out that carries a bubble's own date, the year 2000.
var present = time.Now()

func newWorld(t *testing.T, script sim.Script) *world {
	time.Sleep(time.Until(present))
	w := &world{t: t, dir: t.TempDir(), sim: sim.New(script, sim.WithPollLog())}
	w.memory = sim.NewMemory(w.sim)
	w.startServer()
	w.nc, w.js = w.connect("tester")
	var err error
	w.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	return w
}

func (w *world) startServer() {
	server, err := embedded.Start(embedded.Options{StoreDir: w.dir})
	require.NoError(w.t, err)
	w.server.Store(server)
}

// restartServer stops the server for a while; its store stays.
func (w *world) restartServer(down time.Duration) {
	w.server.Load().Shutdown()
	time.Sleep(down)
	w.startServer()
}

// InProcessConn connects to whatever server runs at the moment.
func (w *world) InProcessConn() (net.Conn, error) { return w.server.Load().InProcess().InProcessConn() }

func (w *world) connect(name string) (*nats.Conn, jetstream.JetStream) {
	flags := natsFlags{Prefix: "tinker", Nats: nats.DefaultURL}
	nc, js, err := flags.dial(dialOptions{name: name, log: w.logger(), inProcess: w, patient: true})
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
	once   sync.Once
}

func (w *world) bridge(name string, args ...string) *running {
	cfg, err := parseServe(w.t, append([]string{up}, args...)...)
	require.NoError(w.t, err)
	nc, js := w.connect(name)
	consumer, err := publish.Ensure(w.t.Context(), js, w.names, cfg.streamOptions())
	require.NoError(w.t, err)
	transport := w.memory.Transport()
	client, err := api.New(api.Config{
		BaseURL: "http://upstream", Timeout: cfg.PollTimeout, MaxResult: int64(cfg.MaxResult), Transport: transport, UserAgent: name,
	})
	require.NoError(w.t, err)
	b, err := newBridge(cfg, nc, js, consumer, client, w.logger(), prometheus.NewRegistry())
	require.NoError(w.t, err)
	ctx, stop := context.WithCancel(context.Background())
	hard, cut := context.WithCancel(context.Background())
	r := &running{bridge: b, w: w, ctx: stop, hard: cut, ended: make(chan struct{}), client: client, idle: transport.CloseIdleConnections}
	go func() {
		b.run(ctx, hard)
		close(r.ended)
	}()
	w.bridges = append(w.bridges, r)
	return r
}

// stop drains the bridge, as SIGTERM does.
func (r *running) stop() {
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
		w.submitMsg(&nats.Msg{Subject: "tinker.submit", Header: nats.Header{publish.HeaderRequestID: {id}}})
		w.accepted = append(w.accepted, id)
	}
}

func (w *world) submitMsg(m *nats.Msg) uint64 {
	w.t.Helper()
	for {
		ack, err := w.js.PublishMsg(context.Background(), m)
		if err == nil {
			return ack.Sequence
		}
		time.Sleep(time.Second) // the server may be away; a submission that was stored twice is one request all the same
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
	begin := time.Now()
	for time.Since(begin) < within {
		stream, err := w.js.Stream(w.t.Context(), w.names.WorkStream())
		if err == nil && stream.CachedInfo().State.Msgs == 0 {
			synctest.Wait()
			return
		}
		time.Sleep(time.Second)
	}
	require.Fail(w.t, "work is left", "after %s", within)
}

func (w *world) history() (states, results []history.Record) {
	w.t.Helper()
	states, err := history.Read(w.t.Context(), w.js, w.names, w.names.StatesStream())
	require.NoError(w.t, err)
	results, err = history.Read(w.t.Context(), w.js, w.names, w.names.ResultsStream())
	require.NoError(w.t, err)
	return states, results
}

// check reads everything back and judges it.
func (w *world) check() {
	w.t.Helper()
	states, results := w.history()
	report := history.Check(w.accepted, states, results, scripted{w.sim})
	require.Empty(w.t, report.Violations)
	require.Equal(w.t, len(w.accepted), report.Terminal)
	last := map[string]sim.Poll{}
	for _, p := range w.sim.Polls() {
		// A hint is not handed over: the first poll of a new holder may be early, and only that one.
		if p.Early && last[p.ID].Caller == p.Caller {
			require.Fail(w.t, "a poll before the hint had run out", "request %q, %s, at %v", p.ID, p.Caller, p.Start)
		}
		last[p.ID] = p
	}
}

func (w *world) close() {
	for _, b := range w.bridges {
		b.stop()
	}
	w.nc.Close()
	w.server.Load().Shutdown()
	require.NoError(w.t, w.memory.Close())
	synctest.Wait()
}

// scripted is the simulator as the judge asks it.
type scripted struct{ *sim.Sim }

func (s scripted) States(id string) [][2]string {
	var out [][2]string
	for _, state := range s.Sim.States(id) {
		out = append(out, [2]string{state.State, state.Reason})
	}
	return out
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
