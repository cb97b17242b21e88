package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/bench"
)

// Small and short: that figures are there and possible, not what they are.
func TestEachBenchmarkGivesItsFigures(t *testing.T) {
	for scenario, want := range map[string]map[string][]string{
		"drain": {"200 B results": {"bridge: requests", "bridge: CPU of a request", "loop: requests", "bridge : loop, requests/s", "bridge : loop, CPU with the NATS server's"},
			"20 KB results": {"bridge: peak memory", "bridge : loop, CPU"}},
		"waiting": {"held by one bridge": {"live heap of a request", "resident memory of a request", "NATS server: resident memory", "bridge : loop, resident memory of a request"}},
		"latency": {"50 long polls": {"upstream's send to a subscriber, p50", "upstream's send to a subscriber, p99", "polls of a request", "bridge : loop, p50", "bridge : loop, p99"}},
		"outage":  {"503 for 6s, then 500 polls/s": {"polls of the first 3s, that find it out", "polls from then on, until it is up", "99 % answered after", "that is, of requests ÷ the upstream's rate"}},
		"watchers": {"polls held, programs poll at once": {"programs : bridge"}, "not held, programs back off": {"programs : bridge"},
			"not held, programs poll at once": {"polls of a request by the bridge", "polls of a request by 10 programs"}},
		"mixed": {"adaptive cadence": {"polls of a request", "job done to a subscriber, p99", "polls of a request, adaptive : fixed"},
			"fixed cadence": {"job done to a subscriber, p50"}},
		"streams": {"warm": {"NATS server: resident memory", "states on new logs", "states on logs that stand: the NATS server's CPU"},
			"after a restart": {"until the server serves its streams again", "results and closing records"}},
		"restart": {"SIGKILL": {"every request is polled again after", "that is, of AckWait"}, "SIGTERM": {"every request is polled again after"}},
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			tmp, plots := t.TempDir(), t.TempDir()
			args := []string{"bench", scenario, "--requests", "50", "--json", "--plot", plots, "--duration", "1s"}
			switch scenario {
			case "waiting", "latency":
				args = append(args, "--baseline", "--pairs", "1")
			case "watchers", "mixed":
				args = append(args, "--pairs", "1")
			case "outage":
				args[len(args)-1] = "6s" // waits have doubled to some seconds when it begins
			case "drain":
				args[3] = "1000" // so that CPU times can be told
				args = append(args, "--baseline", "--pairs", "1", "--profile", plots)
			}
			var stdout bytes.Buffer
			p := begin(t, &stdout, []string{"TMPDIR=" + tmp}, args...)
			require.NoError(t, p.wait(), p.log())
			var report bench.Report
			require.NoError(t, json.Unmarshal(stdout.Bytes(), &report))
			require.Len(t, report.Scenarios, len(want))
			for _, result := range report.Scenarios {
				require.Equal(t, scenario, result.Scenario)
				require.Positive(t, result.Requests)
				require.Contains(t, want, result.Case)
				figures := map[string]float64{}
				for _, f := range result.Figures {
					figures[f.Name] = f.Value
				}
				if slices.Contains([]string{"waiting", "outage", "mixed"}, scenario) {
					require.Contains(t, figures, "polls before a hint ran out")
					require.Zero(t, figures["polls before a hint ran out"])
				}
				processes := []string{"bridge", "NATS server", "upstream"}
				switch scenario {
				case "watchers":
					processes = append(processes, "upstream of 10 programs")
				case "restart":
					processes = []string{"first bridge", "second bridge", "NATS server", "upstream"}
				case "streams":
					processes = []string{"NATS server"}
				}
				for _, process := range processes {
					require.Contains(t, figures, process+": CPU time") // which may be less than can be told
					require.Greater(t, figures[process+": peak memory"], 1., process)
				}
				for _, name := range want[result.Case] {
					require.Contains(t, figures, name)
					// Of so few the heap may be less than the garbage at the start, and the time of publishes less than can be told.
					if name != "live heap of a request" && !(scenario == "streams" && strings.HasSuffix(name, "CPU")) {
						require.Positive(t, figures[name], name)
					}
				}
			}
			svg, err := os.ReadFile(filepath.Join(plots, scenario+".svg"))
			require.NoError(t, err)
			require.Contains(t, string(svg), "<path")
			if scenario == "drain" {
				for _, program := range []string{"serve", "bench-loop", "bench-nats"} {
					info, err := os.Stat(filepath.Join(plots, "drain-200-bytes-"+program+".pprof"))
					require.NoError(t, err)
					require.Positive(t, info.Size())
				}
			}
			left, err := filepath.Glob(filepath.Join(tmp, "*"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// children are the processes that a process has started.
func children(t *testing.T, parent int) (found []procfs.Proc) {
	all, err := procfs.AllProcs()
	require.NoError(t, err)
	for _, p := range all {
		if stat, err := p.Stat(); err == nil && stat.PPID == parent {
			found = append(found, p)
		}
	}
	return found
}

func TestABenchmarkThatIsBrokenOffLeavesNothingBehind(t *testing.T) {
	for name, c := range map[string]struct {
		hurt func(t *testing.T, p *process, children []procfs.Proc)
		want string
	}{
		"interrupted": {func(t *testing.T, p *process, _ []procfs.Proc) {
			require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
		}, "waiting: interrupted"},
		"a process of it dies": {func(t *testing.T, _ *process, children []procfs.Proc) {
			i := slices.IndexFunc(children, func(p procfs.Proc) bool {
				command, _ := p.CmdLine()
				return slices.Contains(command, "simulate")
			})
			require.NoError(t, syscall.Kill(children[i].PID, syscall.SIGKILL))
		}, "bridge simulate ended (signal: killed)"},
	} {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			p := begin(t, nil, []string{"TMPDIR=" + tmp}, "bench", "waiting", "--requests", "50", "--duration", "10m")
			require.Eventually(t, func() bool { return strings.Contains(p.log(), "are held for") }, 2*time.Minute, 20*time.Millisecond)
			started := children(t, p.cmd.Process.Pid)
			require.Len(t, started, 3, "NATS server, upstream, bridge")
			c.hurt(t, p, started)
			require.ErrorContains(t, p.wait(), "exit status 1")
			require.Contains(t, p.log(), c.want)
			for _, child := range started {
				require.ErrorIs(t, syscall.Kill(child.PID, 0), syscall.ESRCH)
			}
			left, err := filepath.Glob(filepath.Join(tmp, "*"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestABenchmarkSaysWhatIsWrongWithItsFlags(t *testing.T) {
	clearEnv(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for want, args := range map[string][]string{
		`there is no scenario "drian"; give some of drain, waiting, latency, outage, watchers, mixed, restart, streams, or none for all`: {"drian"},
		"--requests: 5 is not between 10 and 1000000":                                                             {"--requests", "5"},
		"--duration: 10ms is too short to measure anything; give 1s or more":                                      {"--duration", "10ms"},
		"--pairs: 0 is no number of turns; give 1 or more":                                                        {"--baseline", "--pairs", "0"},
		"--pairs: does nothing in drain, outage without --baseline; give both":                                    {"drain", "outage", "--pairs", "5"},
		"--pairs: restart has one turn; leave it out, or name one of watchers, mixed, drain, waiting, latency":    {"restart", "--pairs", "2"},
		"--baseline: there is no loop beside outage, mixed; leave it out, or name one of drain, waiting, latency": {"outage", "mixed", "--baseline"},
		"--plot: mkdir " + file + ": not a directory; name a directory that can be made":                          {"--plot", filepath.Join(file, "x")},
	} {
		var stderr bytes.Buffer
		err := run(t.Context(), append([]string{"bench"}, args...), nil, &stderr, &stderr)
		require.ErrorContains(t, err, want)
		require.Equal(t, exitUsage, report(err, &stderr))
	}
}
