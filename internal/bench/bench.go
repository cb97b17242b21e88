// Package bench measures the bridge: upstream, NATS server, bridge and, beside it, a hand-written loop run as processes
// of their own, so that each one's CPU time and memory can be told apart.
//
// A scenario starts what it needs, plays, checks that no request is missing, and gives figures and charts. A figure
// that depends on the machine is worth little; ratios of programs that take turns in one run are worth more.
package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"time"
)

// Config of a run.
type Config struct {
	Command  func(ctx context.Context, args ...string) (*exec.Cmd, error) // this program, to run with other arguments
	Requests int                                                          // in each scenario; 0: as many as it has by itself
	Duration time.Duration                                                // how long requests are held, an outage lasts, submissions take
	Pairs    int                                                          // turns of each side, where two are compared
	Baseline bool                                                         // measure a hand-written loop too, where there is one
	Profile  string                                                       // directory for CPU profiles; empty: none
	Seed     uint64                                                       // of the upstream's jobs and results
	Talk     io.Writer                                                    // what is going on
	Terminal bool                                                         // Talk is a terminal: with progress bars
}

// Report is what was measured, where.
type Report struct {
	CPUs      int      `json:"cpus"`
	System    string   `json:"system"`
	Go        string   `json:"go"`
	Seed      uint64   `json:"seed"`
	Scenarios []Result `json:"scenarios"`

	charts []chart
}

// Result is one case of a scenario.
type Result struct {
	Scenario string   `json:"scenario"`
	Case     string   `json:"case"`
	Requests int      `json:"requests"`
	Figures  []Figure `json:"figures"`
}

// Figure is a value with its unit; a ratio has none.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
}

// scenario measures one thing; n is how many requests it takes by itself.
type scenario struct {
	name   string
	n      int
	beside string // what is measured turn by turn with the bridge; empty: nothing
	play   func(ctx context.Context, r *run, n int) ([]Result, error)
}

const (
	theLoop = "the hand-written loop" // with Baseline only
	another = "another way to poll"
)

var scenarios = []scenario{
	{"drain", 50_000, theLoop, drain},
	{"waiting", 100_000, theLoop, waiting},
	{"latency", 10_000, theLoop, latency},
	{"outage", 20_000, "", outage},
	{"watchers", 1_000, another, watchers},
	{"mixed", 5_000, another, mixed},
	{"restart", 50_000, "", restart},
	{"streams", 20_000, "", streams},
}

// Scenarios are the names that there are, in the order in which they are played.
func Scenarios() []string {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// Baselines are the names of the scenarios that have the hand-written loop for a baseline.
func Baselines() []string { return thoseBeside(theLoop) }

// Paired are the names of the scenarios that compare two sides, with a baseline or without.
func Paired() []string { return thoseBeside(another) }

func thoseBeside(what string) (names []string) {
	for _, s := range scenarios {
		if s.beside == what {
			names = append(names, s.name)
		}
	}
	return names
}

// run is one run of some scenarios.
type run struct {
	Config
	progress  *progress
	report    *Report
	profileAs string // what names of profiles begin with; empty: none are written
}

// Run plays the scenarios of these names, all of them when none is given. It fails when a request got lost or was polled
// too early, or a process died, and leaves no process and no file behind.
func Run(ctx context.Context, cfg Config, names []string) (*Report, error) {
	if _, err := usageOfThisProcess(); err != nil {
		return nil, err
	}
	r := &run{Config: cfg, progress: &progress{out: cfg.Talk, terminal: cfg.Terminal}, report: &Report{
		CPUs: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Seed: cfg.Seed,
	}}
	defer r.progress.end()
	for _, s := range scenarios {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		if cfg.Requests > 0 {
			s.n = cfg.Requests
		}
		results, err := s.play(ctx, r, s.n)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: interrupted", s.name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		r.report.add(s.name, results)
	}
	return r.report, nil
}

// add takes the results of a scenario. A ratio to something too small to be measured, as the CPU time of few requests may
// be, is no figure.
func (r *Report) add(scenario string, results []Result) {
	for _, result := range results {
		result.Scenario = scenario
		result.Figures = slices.DeleteFunc(result.Figures, func(f Figure) bool { return math.IsInf(f.Value, 0) || math.IsNaN(f.Value) })
		r.Scenarios = append(r.Scenarios, result)
	}
}

// share of the duration, for what a scenario needs besides it: run for a shorter time, everything is quicker.
func (r *run) share(part float64) time.Duration { return time.Duration(part * float64(r.Duration)) }
