//go:build unix

package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/client"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/embedded"
	"futurebridge/internal/history"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func init() { standIn = main }

// process is the program, running.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	once sync.Once
	err  error

	stderr testbed.Log
}

func start(t testing.TB, args ...string) *process { return begin(t, nil, nil, args...) }

// begin is start with more variables, and with somebody who reads its output.
func begin(t testing.TB, stdout io.Writer, env []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &process{t: t, cmd: exec.Command(self, args...)}
	p.cmd.Env = append(append(os.Environ(), asBridge+"=1"), env...)
	p.cmd.Stdout, p.cmd.Stderr = stdout, &p.stderr
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.end(syscall.SIGKILL) })
	return p
}

// end sends a signal and waits for the process to be gone.
func (p *process) end(s os.Signal) error {
	_ = p.cmd.Process.Signal(s)
	return p.wait()
}

func (p *process) wait() error {
	p.once.Do(func() { p.err = p.cmd.Wait() })
	return p.err
}

// value waits for a line of the log with key=… and returns what stands behind it.
func (p *process) value(key string) string {
	p.t.Helper()
	var value string
	require.Eventually(p.t, func() bool {
		_, rest, found := strings.Cut(p.log(), " "+key+"=")
		value, _, _ = strings.Cut(strings.ReplaceAll(rest, "\n", " "), " ")
		return found
	}, 10*time.Second, 5*time.Millisecond)
	return value
}

func (p *process) log() string { return p.stderr.String() }

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	res, err := http.Get(url)
	require.NoError(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(data)
}

// site is a NATS server and a simulated upstream, on ports of their own.
type site struct {
	t        *testing.T
	nats     *embedded.Server
	upstream *sim.Sim
	url      string
	js       jetstream.JetStream
	client   *client.Client
	names    publish.Names
}

func newSite(t *testing.T, script sim.Script, options ...sim.Option) *site {
	t.Helper()
	testbed.ForgetTimers()
	clearEnv(t)
	server, err := embedded.Start(embedded.Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Shutdown)
	s := &site{t: t, nats: server, upstream: sim.New(script, options...)}
	url, stop, err := serveUpstream(s.upstream)
	require.NoError(t, err)
	t.Cleanup(stop)
	s.url = url
	flags := natsFlags{Nats: server.ClientURL(), Prefix: "tinker"}
	nc, js, err := flags.dial(dialOptions{name: "tester", log: silent()})
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	s.js, s.names = js, flags.names()
	s.client, err = client.New(nc)
	require.NoError(t, err)
	return s
}

func (s *site) serve(args ...string) *process {
	s.t.Helper()
	p := start(s.t, append([]string{"serve", "--nats", s.nats.ClientURL(), "--upstream", s.url, "--http", "127.0.0.1:0"}, args...)...)
	p.value("submit_to") // it polls
	return p
}

func (s *site) submit(all []string) {
	s.t.Helper()
	var requests []client.Request
	for _, id := range all {
		requests = append(requests, client.Request{ID: id})
	}
	for r, err := range s.client.SubmitAll(s.t.Context(), slices.Values(requests)) {
		require.NoError(s.t, err, r.ID)
	}
}

func (s *site) stored(stream string) uint64 {
	info, err := s.js.Stream(context.Background(), stream)
	if err != nil {
		return 0
	}
	return info.CachedInfo().State.Msgs
}

func (s *site) await(what string, condition func() bool) {
	s.t.Helper()
	require.Eventually(s.t, condition, 2*time.Minute, 20*time.Millisecond, what)
}

func (s *site) check(accepted []string) {
	s.t.Helper()
	s.await("all work is done", func() bool { return s.stored(s.names.WorkStream()) == 0 })
	states, err := history.Read(s.t.Context(), s.js, s.names, s.names.StatesStream())
	require.NoError(s.t, err)
	results, err := history.Read(s.t.Context(), s.js, s.names, s.names.ResultsStream())
	require.NoError(s.t, err)
	report := history.Check(accepted, states, results, simUpstream{s.upstream})
	require.Empty(s.t, report.Violations)
	require.Equal(s.t, len(accepted), report.Terminal)
}

func quickJobs() sim.Script {
	return sim.Script{Profiles: []sim.Profile{
		{Name: "quick", Weight: 3, Steps: []sim.Step{{State: "active", For: 200 * time.Millisecond, Spread: time.Second}, {Answer: "completed", ResultBytes: 400}}},
		{Name: "paused", Weight: 1, Steps: []sim.Step{
			{State: "paused_rate_limit", Reason: "slow down", For: time.Second, RetryAfterMS: 300},
			{State: "active", For: 500 * time.Millisecond}, {Answer: "completed", ResultBytes: 2000}}},
	}}
}

func TestAKilledBridgeLeavesExactlyOneResultOfEachRequest(t *testing.T) {
	s := newSite(t, quickJobs())
	first := s.serve("--ack-wait", "2s")
	all := ids("req", 5000)
	go s.submit(all)
	s.await("a third is done", func() bool { return s.stored(s.names.ResultsStream()) > 1600 })
	require.ErrorContains(t, first.end(syscall.SIGKILL), "killed")
	require.Less(t, s.stored(s.names.ResultsStream()), uint64(5000), "it was killed in the middle")
	s.serve()
	s.await("everything is done", func() bool { return s.stored(s.names.ResultsStream()) == 5000 })
	s.check(all)
}

func TestASecondBridgeSharesTheWork(t *testing.T) {
	s := newSite(t, quickJobs())
	first, second := s.serve("--max-requests", "300"), s.serve("--max-requests", "300")
	all := ids("req", 2000)
	s.submit(all)
	s.check(all)
	for _, p := range []*process{first, second} {
		_, metrics := get(t, strings.TrimSuffix(p.value("url"), "/")+"/metrics")
		require.Contains(t, metrics, "bridge_requests_held 0")
		require.NotContains(t, metrics, "bridge_events_total{kind=\"result\"} 0\n", "it did its share")
	}
}

func TestTheFirstSignalDrainsAndTheSecondCutsIt(t *testing.T) {
	s := newSite(t, sim.Script{Profiles: []sim.Profile{{Name: "held", Style: &sim.Style{Hold: time.Minute}, Steps: []sim.Step{{State: "active"}}}}})
	p := s.serve()
	s.submit([]string{"req-1"})
	s.await("the poll is out", func() bool { return s.upstream.Stats().PollsNow == 1 })
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	s.await("it says that it drains", func() bool { return strings.Contains(p.log(), "draining") })
	status, body := get(t, p.value("url")+"/readyz")
	require.Equal(t, 503, status)
	require.Contains(t, body, "draining")
	begin := time.Now()
	require.NoError(t, p.end(syscall.SIGTERM), "an orderly end")
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Contains(t, p.log(), "second signal")
}

func TestServeSaysWhatItCannotDo(t *testing.T) {
	s := newSite(t, quickJobs())
	t.Run("streams that stand otherwise", func(t *testing.T) {
		_, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER_RESULTS", Subjects: []string{"mine"}})
		require.NoError(t, err)
		p := start(t, "serve", "--nats", s.nats.ClientURL(), "--upstream", s.url, "--http", "none", "--prefix", "other")
		require.ErrorContains(t, p.wait(), "exit status 1")
		require.Contains(t, p.log(), "stream OTHER_RESULTS: subjects is [mine], want [ingest.other.result.*]")
		require.EqualValues(t, 0, s.stored("OTHER_STATES"), "nothing was made")
	})
	t.Run("a consumer that gives out less", func(t *testing.T) {
		pending := 5000
		names, err := publish.NewNames("small")
		require.NoError(t, err)
		_, err = publish.Ensure(t.Context(), s.js, names, publish.Options{MaxAckPending: &pending})
		require.NoError(t, err)
		serve := func(args ...string) string {
			p := start(t, append([]string{"serve", "--nats", s.nats.ClientURL(), "--upstream", s.url, "--http", "none"}, args...)...)
			require.ErrorContains(t, p.wait(), "exit status 2")
			return p.log()
		}
		require.Contains(t, serve("--prefix=small", "--max-requests=10000", "--max-ack-pending=10000"),
			"max ack pending (--max-ack-pending) is 5000, want 10000: nats consumer edit SMALL_WORK bridge --max-pending=10000")
		require.Contains(t, serve("--prefix=small", "--max-requests=10000"),
			"--max-requests: 10000 is more than the 5000 requests (max ack pending) that the consumer bridge of SMALL_WORK gives to all bridges")
		require.Contains(t, serve("--prefix=new", "--max-requests=250000"), "250000 is more than the 200000 requests (max ack pending) that all bridges share")
		_, err = s.js.Stream(t.Context(), "NEW_WORK")
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound, "nothing was made")
	})
	t.Run("an upstream that is absent", func(t *testing.T) {
		p := start(t, "serve", "--nats", s.nats.ClientURL(), "--upstream", "http://127.0.0.1:1", "--http", "127.0.0.1:0")
		s.await("it says so", func() bool { return strings.Contains(p.log(), "the upstream cannot be reached") })
		status, body := get(t, p.value("url")+"/readyz")
		require.Equal(t, 503, status)
		require.Contains(t, body, "127.0.0.1:1")
		status, _ = get(t, p.value("url")+"/healthz")
		require.Equal(t, 200, status)
		require.NoError(t, p.end(syscall.SIGTERM))
	})
	t.Run("a flag that is wrong", func(t *testing.T) {
		p := start(t, "serve", "--upstream", "ftp://x")
		require.ErrorContains(t, p.wait(), "exit status 2")
		require.Contains(t, p.log(), "--upstream")
	})
}
