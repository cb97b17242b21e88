package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/client"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/embedded"
	"futurebridge/internal/history"
	"futurebridge/internal/publish"
)

const demoWatchers = 10

type demoCmd struct {
	Requests int    `name:"requests" default:"1000" help:"How many requests to submit."`
	Seed     uint64 `name:"seed" default:"1" help:"Ids, jobs and results follow from it."`
	JSON     bool   `name:"json" help:"Print the table as JSON."`
}

func (c *demoCmd) Help() string {
	return "Starts a NATS server, a simulated upstream, two bridges and ten watchers, submits requests, kills a bridge " +
		"(SIGKILL) and starts it again on the way, reads everything back and judges it. Fails when a promise is broken. " +
		"Needs nothing, and leaves nothing behind."
}

func (c *demoCmd) validate() error {
	if c.Requests < 1 || c.Requests > 1_000_000 {
		return fmt.Errorf("--requests: %d is not between 1 and 1000000", c.Requests)
	}
	return nil
}

// Run is the whole story in order: a system is built, used, hurt, and judged.
func (c *demoCmd) Run(ctx context.Context, io stdio) error {
	dir, err := os.MkdirTemp("", "future-bridge-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	server, err := embedded.Start(embedded.Options{StoreDir: dir, Listen: "127.0.0.1:0", Log: quiet})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	upstream := sim.New(demoScript(c.Seed))
	upstreamURL, stopUpstream, err := serveUpstream(upstream)
	if err != nil {
		return err
	}
	defer stopUpstream()

	d := &demo{cmd: c, out: io.err, begin: time.Now(), natsURL: server.ClientURL(), upstreamURL: upstreamURL, upstream: upstream}
	for i := range d.bridges {
		if d.bridges[i], err = d.startBridge(ctx, i); err != nil {
			return err
		}
		defer d.bridges[i].kill()
	}
	flags := natsFlags{Nats: d.natsURL, Prefix: "tinker"}
	nc, js, err := flags.dial(dialOptions{name: "demo", log: quiet})
	if err != nil {
		return err
	}
	defer nc.Close()
	report, err := d.run(ctx, nc, js, flags.names())
	if err != nil {
		return err
	}
	if err := report.print(io.out, c.JSON); err != nil {
		return err
	}
	if len(report.Violations) > 0 {
		return fmt.Errorf("%d promises were broken, the first: %s", len(report.Violations), report.Violations[0])
	}
	return nil
}

type demo struct {
	cmd         *demoCmd
	out         io.Writer
	begin       time.Time
	natsURL     string
	upstreamURL string
	upstream    *sim.Sim
	bridges     [2]*bridgeProcess

	said        atomic.Int32 // lines printed of events
	transitions atomic.Int64
	closed      atomic.Int64 // closing records seen by the first watcher
	mu          sync.Mutex
}

// demoScript has what life has: jobs that are quick, slow, paused with and without hints, held, large, and failing.
func demoScript(seed uint64) sim.Script {
	active := func(d time.Duration) sim.Step { return sim.Step{State: "active", For: d, Spread: d} }
	paused := func(state, reason string, d time.Duration, hint int) sim.Step {
		return sim.Step{State: state, Reason: reason, For: d, Spread: d, RetryAfterMS: hint}
	}
	done := func(bytes int) sim.Step { return sim.Step{Answer: "completed", ResultBytes: bytes} }
	return sim.Script{Seed: seed, IDFormat: "mixed", Profiles: []sim.Profile{
		{Name: "short", Weight: 4, Steps: []sim.Step{active(time.Second), done(300)}},
		{Name: "rate limited", Weight: 3, Steps: []sim.Step{
			paused("paused_rate_limit", "tokens per minute", time.Second, 700), active(time.Second), done(20_000)}},
		{Name: "no capacity", Weight: 2, Steps: []sim.Step{
			active(500 * time.Millisecond), paused("paused_capacity", "no trainer is free", 2*time.Second, 0), active(time.Second), done(2_000)}},
		{Name: "held", Weight: 2, Style: &sim.Style{Hold: 5 * time.Second}, Steps: []sim.Step{active(3 * time.Second), done(900)}},
		{Name: "large", Weight: 1, Style: &sim.Style{MetadataThreshold: 100_000}, Steps: []sim.Step{active(time.Second), done(600_000)}, Match: "large-*"},
		{Name: "user failure", Weight: 1, Steps: []sim.Step{active(time.Second), {Answer: "failed", Message: "the prompt is too long", Category: "user"}}},
		{Name: "server failure", Weight: 1, Steps: []sim.Step{active(time.Second), {Answer: "failed", Message: "a worker died", Category: "server"}}},
	}}
}

func serveUpstream(handler http.Handler) (url string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		_ = server.Serve(listener)
		close(done)
	}()
	return "http://" + listener.Addr().String(), func() { _ = server.Close(); <-done }, nil
}

// bridgeProcess is a `bridge serve` of its own, so that it can be killed for real.
type bridgeProcess struct {
	cmd  *exec.Cmd
	once sync.Once
	log  strings.Builder
}

func (d *demo) startBridge(ctx context.Context, n int) (*bridgeProcess, error) {
	cmd, err := ownCommand(ctx, "serve",
		"--nats", d.natsURL, "--upstream", d.upstreamURL, "--http", "none", "--ack-wait", "3s", "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	b := &bridgeProcess{cmd: cmd}
	b.cmd.Stderr = &b.log
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start bridge %d: %w", n+1, err)
	}
	return b, nil
}

// kill is SIGKILL: no word of farewell.
func (b *bridgeProcess) kill() {
	b.once.Do(func() {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait() // says that it was killed
	})
}

func (d *demo) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "%7.2fs  "+format+"\n", append([]any{time.Since(d.begin).Seconds()}, args...)...)
}

func (d *demo) run(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, names publish.Names) (*demoReport, error) {
	d.say("NATS at %s, an upstream at %s, two bridges", d.natsURL, d.upstreamURL)
	if err := awaitStreams(ctx, js, names); err != nil {
		return nil, fmt.Errorf("the bridges did not set up their streams: %w: %s", err, d.bridges[0].log.String())
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	crowd, err := newCrowd(watching, nc, js, names, d)
	if err != nil {
		return nil, err
	}
	c, err := client.New(nc, client.WithJetStream(js))
	if err != nil {
		return nil, err
	}
	submitted := time.Now()
	accepted, err := d.submit(ctx, c)
	if err != nil {
		return nil, err
	}
	d.say("submitted %d requests in %v", len(accepted), time.Since(submitted).Round(time.Millisecond))

	tell := time.NewTicker(time.Second)
	defer tell.Stop()
	killed, late := false, false
	for {
		switch done := d.closed.Load(); {
		case !killed && done >= int64(len(accepted))/3:
			d.bridges[1].kill()
			d.say("killed bridge 2 (SIGKILL) with %d requests done; bridge 1 gets what it held once its leases run out", done)
			if d.bridges[1], err = d.startBridge(ctx, 1); err != nil {
				return nil, err
			}
			defer d.bridges[1].kill()
			killed = true
		case !late && done >= int64(len(accepted))*2/3:
			d.say("a late watcher attaches and reads from the beginning")
			crowd.attachLate(watching)
			late = true
		case done >= int64(len(accepted)) && workLeft(ctx, js, names) == 0 && crowd.complete(len(accepted)):
			took := time.Since(submitted)
			d.say("every request has ended; reading it all back")
			return d.judge(ctx, js, names, accepted, crowd, took, killed)
		}
		select {
		case <-tell.C:
			d.say("done %d of %d, %d queue-state transitions, %d polls of the upstream", d.closed.Load(), len(accepted), d.transitions.Load(), d.upstream.Stats().Polls)
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if time.Since(submitted) > 2*time.Minute+time.Duration(len(accepted))*time.Millisecond {
			return nil, fmt.Errorf("only %d of %d requests ended: %s", d.closed.Load(), len(accepted), d.bridges[0].log.String())
		}
	}
}

func (d *demo) submit(ctx context.Context, c *client.Client) ([]string, error) {
	var requests []client.Request
	for i := range d.cmd.Requests {
		id := fmt.Sprintf("large-%d", i)
		if i%100 != 99 {
			id = d.upstream.Mint("")
		}
		requests = append(requests, client.Request{ID: id})
	}
	var accepted []string
	for r, err := range c.SubmitAll(ctx, slices.Values(requests)) {
		if err != nil {
			return nil, fmt.Errorf("submit %q: %w", r.ID, err)
		}
		accepted = append(accepted, r.ID)
	}
	return accepted, nil
}

// awaitStreams waits until the bridges have made what watchers attach to.
func awaitStreams(ctx context.Context, js jetstream.JetStream, names publish.Names) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := js.Consumer(ctx, names.WorkStream(), names.Consumer())
		if err == nil {
			return nil
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

func workLeft(ctx context.Context, js jetstream.JetStream, names publish.Names) uint64 {
	stream, err := js.Stream(ctx, names.WorkStream())
	if err != nil {
		return 1
	}
	return stream.CachedInfo().State.Msgs
}

// simUpstream is the simulator as history asks it.
type simUpstream struct{ *sim.Sim }

func (s simUpstream) States(id string) [][2]string {
	var states [][2]string
	for _, state := range s.Sim.States(id) {
		states = append(states, [2]string{state.State, state.Reason})
	}
	return states
}

// judge reads both streams back and compares them with what the upstream's script says.
func (d *demo) judge(ctx context.Context, js jetstream.JetStream, names publish.Names, accepted []string, crowd *crowd, took time.Duration, killed bool) (*demoReport, error) {
	states, err := history.Read(ctx, js, names, names.StatesStream())
	if err != nil {
		return nil, err
	}
	results, err := history.Read(ctx, js, names, names.ResultsStream())
	if err != nil {
		return nil, err
	}
	verdict := history.Check(accepted, states, results, simUpstream{d.upstream})
	stats := d.upstream.Stats()
	r := &demoReport{
		Submitted: len(accepted), Terminal: verdict.Terminal, Lost: verdict.Lost, Duplicates: verdict.Duplicate,
		AfterTerminal: verdict.AfterTerminal, Disordered: verdict.Disordered,
		Transitions: len(states) - verdict.Terminal, Watchers: demoWatchers, WatcherEvents: crowd.events(),
		Polls: stats.Polls, EarlyPolls: stats.EarlyPolls, PollsByEveryWatcher: stats.Polls * demoWatchers,
		Seconds: took.Seconds(), Violations: append(append([]string{}, verdict.Violations...), crowd.violations()...),
	}
	if killed {
		r.BridgesKilled = 1
	} else {
		r.Violations = append(r.Violations, "no bridge was killed: too little was shown")
	}
	if stats.EarlyPolls > 0 {
		r.Violations = append(r.Violations, fmt.Sprintf("%d polls came before a hint of the upstream had run out", stats.EarlyPolls))
	}
	return r, nil
}

type demoReport struct {
	Submitted           int      `json:"submitted"`
	Terminal            int      `json:"terminal"`
	Lost                int      `json:"lost"`
	Duplicates          int      `json:"duplicates"`
	AfterTerminal       int      `json:"after_terminal"`
	Disordered          int      `json:"disordered"`
	Transitions         int      `json:"transitions"`
	BridgesKilled       int      `json:"bridges_killed"`
	Watchers            int      `json:"watchers"`
	WatcherEvents       int64    `json:"watcher_events"`
	Polls               int      `json:"upstream_polls"`
	PollsByEveryWatcher int      `json:"upstream_polls_if_each_watcher_polled"`
	EarlyPolls          int      `json:"early_polls"`
	Seconds             float64  `json:"seconds"`
	Violations          []string `json:"violations"`
}

func (r *demoReport) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range []struct {
		name  string
		value any
	}{
		{"requests submitted", r.Submitted},
		{"with exactly one result and one closing record", r.Terminal},
		{"lost", r.Lost},
		{"duplicates", r.Duplicates},
		{"events after the closing record", r.AfterTerminal},
		{"out of order, or not what the upstream said", r.Disordered},
		{"queue-state transitions stored", r.Transitions},
		{"bridges killed on the way", r.BridgesKilled},
		{fmt.Sprintf("events delivered to %d watchers", r.Watchers), r.WatcherEvents},
		{"polls of the upstream", r.Polls},
		{fmt.Sprintf("the same, if each of %d watchers polled for itself", r.Watchers), r.PollsByEveryWatcher},
		{"polls before a hint ran out", r.EarlyPolls},
		{"seconds from the first submission to the last event", fmt.Sprintf("%.1f", r.Seconds)},
	} {
		fmt.Fprintf(t, "%s\t%v\t\n", row.name, row.value)
	}
	return t.Flush()
}
