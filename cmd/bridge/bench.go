package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"futurebridge/internal/bench"
	"futurebridge/internal/embedded"
)

type benchCmd struct {
	Scenarios []string      `arg:"" optional:"" name:"scenario" help:"drain, waiting, latency, outage, watchers, mixed, restart, streams; none: all of them."`
	Requests  int           `name:"requests" placeholder:"N" help:"Requests in each scenario; not given: what each has by itself, 1,000 to 100,000."`
	Duration  time.Duration `name:"duration" default:"1m" help:"How long requests are held (waiting), the upstream is down (outage) and submissions take (mixed)."`
	Baseline  bool          `name:"baseline" help:"Measure a hand-written loop too, in drain, waiting and latency, turn by turn with the bridge."`
	Pairs     int           `name:"pairs" default:"3" help:"Turns of each side in watchers and mixed, and with --baseline in drain, waiting and latency; figures are medians. Else there is one turn."`
	JSON      bool          `name:"json" help:"Print the figures as JSON."`
	Plot      string        `name:"plot" placeholder:"DIR" help:"Write a chart of each scenario into this directory, as SVG."`
	Profile   string        `name:"profile" placeholder:"DIR" help:"Write CPU profiles of bridge, loop and NATS server while they drain into this directory, for go tool pprof."`
	Seed      uint64        `name:"seed" default:"1" help:"Lengths of jobs and results follow from it."`

	given given
}

func (c *benchCmd) Help() string {
	return "Measures the bridge beside an upstream and a NATS server of its own, each a process, on Linux:\n\n" +
		"drain: a full work stream, an upstream that answers at once, small and large results.\n\n" +
		"waiting: what requests cost that are held and do nothing.\n\n" +
		"latency: from the upstream's send to a live subscriber, with 500 long polls.\n\n" +
		"outage: an upstream that is down, and then slower than all want it to be.\n\n" +
		"watchers: polls for ten programs, beside ten programs that poll.\n\n" +
		"mixed: jobs of exponential length, paused and failing ones; adaptive cadence beside a plain back-off.\n\n" +
		"restart: the bridge is killed, or told to stop, and replaced.\n\n" +
		"streams: fenced publishes on streams that hold ten records and 20 KB of each request, before and after the server is started again. " +
		"A million requests are ten million records and take 25 GB of disk.\n\n" +
		"It fails when a request got lost or was polled before a wait that the upstream asked for was over, and leaves nothing behind."
}

func (c *benchCmd) setGiven(g given) { c.given = g }

// validate returns one error a line.
func (c *benchCmd) validate() error {
	var errs []error
	for _, name := range c.Scenarios {
		if !slices.Contains(bench.Scenarios(), name) {
			errs = append(errs, fmt.Errorf("there is no scenario %q; give some of %s, or none for all", name, strings.Join(bench.Scenarios(), ", ")))
		}
	}
	if c.given.has("requests") && (c.Requests < 10 || c.Requests > 1_000_000) {
		errs = append(errs, c.given.errorf("requests", "%d is not between 10 and 1000000", c.Requests))
	}
	if c.Duration < time.Second {
		errs = append(errs, c.given.errorf("duration", "%v is too short to measure anything; give 1s or more", c.Duration))
	}
	if c.Pairs < 1 {
		errs = append(errs, c.given.errorf("pairs", "%d is no number of turns; give 1 or more", c.Pairs))
	}
	asked := strings.Join(c.Scenarios, ", ")
	baselines, paired := bench.Baselines(), bench.Paired()
	switch {
	case c.Baseline && !c.plays(baselines):
		errs = append(errs, c.given.errorf("baseline", "there is no loop beside %s; leave it out, or name one of %s", asked, strings.Join(baselines, ", ")))
	case c.given.has("pairs") && !c.plays(paired) && !c.plays(baselines):
		errs = append(errs, c.given.errorf("pairs", "%s has one turn; leave it out, or name one of %s", asked, strings.Join(append(paired, baselines...), ", ")))
	case c.given.has("pairs") && !c.plays(paired) && !c.Baseline:
		errs = append(errs, c.given.errorf("pairs", "does nothing in %s without --baseline; give both", asked))
	}
	return errors.Join(errs...)
}

// plays says whether any of some scenarios is asked for.
func (c *benchCmd) plays(any []string) bool {
	return len(c.Scenarios) == 0 || slices.ContainsFunc(c.Scenarios, func(name string) bool { return slices.Contains(any, name) })
}

func (c *benchCmd) Run(ctx context.Context, io stdio) error {
	for _, into := range []struct{ flag, dir string }{{"plot", c.Plot}, {"profile", c.Profile}} {
		if into.dir == "" {
			continue
		}
		if err := os.MkdirAll(into.dir, 0o755); err != nil { // before anything takes minutes
			return &exitError{exitUsage, c.given.errorf(into.flag, "%v; name a directory that can be made", err)}
		}
	}
	report, err := bench.Run(ctx, bench.Config{
		Command: ownCommand, Requests: c.Requests, Duration: c.Duration, Pairs: c.Pairs, Baseline: c.Baseline,
		Profile: c.Profile, Seed: c.Seed, Talk: io.err, Terminal: isTerminal(io.err),
	}, c.Scenarios)
	if err != nil {
		return err
	}
	if c.Plot != "" {
		if err := report.Plot(c.Plot); err != nil {
			return err
		}
	}
	return report.Print(io.out, c.JSON)
}

// ownCommand is this program as a process of its own, which ends with ctx.
func ownCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	for _, v := range os.Environ() { // somebody's real settings must not leak into a demo or a benchmark
		if !strings.HasPrefix(v, "BRIDGE_") && !strings.HasPrefix(v, "TINKER_") && !strings.HasPrefix(v, "NATS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd, nil
}

// isTerminal says whether somebody looks at w while it is written.
func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// benchNATSCmd is the NATS server of `bridge bench`: as people run it, with a server's own habits of syncing.
type benchNATSCmd struct {
	StoreDir string `name:"store-dir" required:""`
}

func (c *benchNATSCmd) Run(ctx context.Context, io stdio) error {
	server, err := embedded.Start(embedded.Options{StoreDir: c.StoreDir, Listen: "127.0.0.1:0", SyncLater: true})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	slog.New(slog.NewTextHandler(io.err, nil)).Info("NATS server", "url", server.ClientURL())
	<-ctx.Done()
	return nil
}

// benchLoopCmd is the hand-written loop beside which `bridge bench --baseline` measures.
type benchLoopCmd struct {
	NATS     string `name:"nats" required:""`
	Upstream string `name:"upstream" required:""`
	MaxPolls int    `name:"max-polls" default:"1024"`
}

func (c *benchLoopCmd) Run(ctx context.Context) error {
	return bench.Loop(ctx, c.NATS, c.Upstream, c.MaxPolls)
}
