package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"futurebridge/internal/api/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted are samples of a count, at the times given.
func counted(counts map[time.Duration]int) (taken []sample) {
	for at := time.Duration(0); at <= time.Minute; at += 10 * time.Millisecond {
		if n, ok := counts[at]; ok {
			taken = append(taken, sample{at: at, stats: sim.Stats{Polls: n}})
		}
	}
	return taken
}

func TestCurvesAreInterpolated(t *testing.T) {
	const s = time.Second
	taken := counted(map[time.Duration]int{s: 0, 2 * s: 100, 4 * s: 500})
	require.Equal(t, []float64{0, 25, 50, 75, 100, 150, 200, 250, 300, 350, 400, 450, 500}, curve(taken, s, polls))
	require.Equal(t, []float64{100, 100, 100, 100, 125, 150, 175, 200, 200, 200, 200, 200}, perSecond(curve(taken, s, polls)), "over a second each")
	require.Empty(t, curve(nil, 0, polls))
	for at, want := range map[time.Duration]float64{0: 0, s: 0, 3 * s / 2: 50, 2 * s: 100, 3 * s: 300, 4 * s: 500, 9 * s: 500} {
		require.Equal(t, want, valueAt(taken, at, polls), at)
	}
	for threshold, want := range map[float64]time.Duration{0: s, 50: 3 * s / 2, 100: 2 * s, 300: 3 * s, 500: 4 * s} {
		at, ok := reaches(taken, threshold, polls)
		require.True(t, ok)
		require.Equal(t, want, at, threshold)
	}
	_, ok := reaches(taken, 501, polls)
	require.False(t, ok)
}

func TestQuantilesAreOfTheValuesThemselves(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	require.Equal(t, 3., median(values))
	require.Equal(t, 5., quantile(values, 0.99))
	require.Equal(t, 1., quantile(values, 0))
	require.Equal(t, 5., quantile(values, 1))
	require.Zero(t, median(nil))
	require.Equal(t, []float64{5, 1, 4, 2, 3}, values, "untouched")
}

func TestRatiosAreMediansOfPairs(t *testing.T) {
	bridges := []drained{{perSecond: 100, workerCPU: 10}, {perSecond: 200, workerCPU: 20}, {perSecond: 400, workerCPU: 30}}
	loops := []drained{{perSecond: 200, workerCPU: 20}, {perSecond: 100, workerCPU: 10}, {perSecond: 100, workerCPU: 10}}
	values := map[string]float64{}
	for _, f := range drainFigures(pairs[drained]{bridges, loops}) {
		values[f.Name] = f.Value
	}
	require.Equal(t, 200., values["bridge: requests"])
	require.Equal(t, 100., values["loop: requests"])
	require.Equal(t, 2., values["bridge : loop, requests/s"], "of 0.5, 2 and 4")
	require.Equal(t, 2., values["bridge : loop, CPU"], "of 0.5, 2 and 3")
	require.Len(t, drainFigures(pairs[drained]{bridges, nil}), 9, "without a loop")
}

func TestWhatWaitsIsMediansOfPairs(t *testing.T) {
	held := func(resident, cpu, took float64) holding { // of two requests, for ten seconds
		return holding{
			taking: time.Duration(took * float64(time.Second)), over: 10 * time.Second,
			start: spent{worker: usage{resident: 100}}, later: spent{worker: usage{cpu: cpu, resident: 100 + resident}},
		}
	}
	values := map[string]float64{}
	for _, f := range waitingFigures(pairs[holding]{
		[]holding{held(10, 1, 1), held(40, 2, 4), held(20, 4, 2)}, []holding{held(20, 1, 1), held(10, 1, 1), held(10, 1, 1)},
	}, 2) {
		values[f.Name] = f.Value
	}
	require.Equal(t, 10., values["resident memory of a request"], "of 5, 20 and 10")
	require.Equal(t, 20., values["bridge: CPU while they wait"])
	require.Equal(t, 1., values["submitted, taken and polled once"])
	require.Equal(t, 5., values["loop: resident memory of a request"])
	require.Equal(t, 2., values["bridge : loop, resident memory of a request"], "of 0.5, 4 and 2")
	require.Equal(t, 2., values["bridge : loop, CPU while they wait"], "of 1, 2 and 4")
}

func TestCostsAreMediansOfEachProcess(t *testing.T) {
	turns := []spent{
		{usage{cpu: 1, peak: 3e6}, usage{cpu: 4, peak: 40e6}, usage{cpu: 7, peak: 10e6}},
		{usage{cpu: 2, peak: 1e6}, usage{cpu: 6, peak: 60e6}, usage{cpu: 9, peak: 30e6}},
		{usage{cpu: 3, peak: 2e6}, usage{cpu: 5, peak: 50e6}, usage{cpu: 8, peak: 20e6}},
	}
	require.Equal(t, []Figure{
		{"loop: CPU time", 2, "s"}, {"loop: peak memory", 2, "MB"},
		{"NATS server: CPU time", 5, "s"}, {"NATS server: peak memory", 50, "MB"},
		{"upstream: CPU time", 8, "s"}, {"upstream: peak memory", 20, "MB"},
	}, costs("loop", turns, func(s spent) spent { return s }))
}

func TestTwoSidesTakeTurnsAtGoingFirst(t *testing.T) {
	var out strings.Builder
	r := &run{Config: Config{Pairs: 3}, progress: &progress{out: &out}}
	n := 0.
	next := func() (float64, error) { n++; return n, nil }
	p, err := pair(r, "mixed", side[float64]{"one", next}, side[float64]{"other", next})
	require.NoError(t, err)
	require.Equal(t, pairs[float64]{[]float64{1, 4, 5}, []float64{2, 3, 6}}, p)
	require.InDelta(t, 5./6, p.ratio(func(v float64) float64 { return v }), 1e-9, "of 1/2, 4/3 and 5/6")
	require.Equal(t, "mixed: one, 1 of 3\nmixed: other, 1 of 3\nmixed: other, 2 of 3\nmixed: one, 2 of 3\nmixed: one, 3 of 3\nmixed: other, 3 of 3\n", out.String())

	p, err = besideLoop(r, "drain", next, next)
	require.NoError(t, err)
	require.Equal(t, pairs[float64]{left: []float64{7}}, p, "there is no baseline")
	r.Baseline = true
	_, err = besideLoop(r, "drain", next, func() (float64, error) { return 0, errors.New("broken") })
	require.EqualError(t, err, "the loop: broken")
}

func TestRatiosToNothingAreNoFigures(t *testing.T) {
	var r Report
	r.add("drain", []Result{{Figures: drainFigures(pairs[drained]{[]drained{{perSecond: 100, workerCPU: 10}}, []drained{{perSecond: 200}}})}})
	r.add("drain", []Result{{Figures: drainFigures(pairs[drained]{[]drained{{perSecond: 100}}, []drained{{perSecond: 200}}})}})
	require.NoError(t, r.Print(io.Discard, true))
	for _, result := range r.Scenarios {
		require.Equal(t, "drain", result.Scenario)
		require.Len(t, result.Figures, 15, "all but two")
	}
}

func TestTheMixedScriptIsExponential(t *testing.T) {
	const mean = 10 * time.Second
	script, err := sim.Parse([]byte(mixedScript(7, mean)))
	require.NoError(t, err)
	var sum time.Duration
	paused, failing := 0, 0
	for _, p := range script.Profiles {
		work := p.Steps[len(p.Steps)-2]
		sum += work.For + work.Spread/2
		if len(p.Steps) > 2 {
			paused++
		}
		if p.Steps[len(p.Steps)-1].Answer == "failed" {
			failing++
		}
	}
	n := len(script.Profiles)
	require.InDelta(t, mean.Seconds(), sum.Seconds()/float64(n), 0.2)
	median := script.Profiles[n/2].Steps[0].For
	require.InDelta(t, 6.93, median.Seconds(), 0.25, "ln 2 of the mean")
	require.Equal(t, n/5, paused)
	require.Equal(t, n/10, failing)
}

func TestARequestPolledTwiceHidesNoneThatWasNot(t *testing.T) {
	seen := func(polls ...int) map[string]sim.IDStats {
		all := map[string]sim.IDStats{"of nobody here": {Polls: 9}}
		for i, id := range ids(len(polls)) {
			all[id] = sim.IDStats{Polls: polls[i]}
		}
		return all
	}
	require.Equal(t, 3, polledSince(3, nil, seen(1, 1, 2)))
	require.Equal(t, 2, polledSince(3, nil, seen(1, 2)), "one was never seen")
	require.Equal(t, 3, polledSince(3, seen(1, 1, 2), seen(2, 2, 3)))
	require.Equal(t, 2, polledSince(3, seen(1, 1, 2), seen(2, 3, 2)), "three polls of two")
}

func TestAPollBeforeAHintRanOutFailsAScenario(t *testing.T) {
	require.NoError(t, early(sim.Stats{Polls: 7}))
	require.ErrorContains(t, early(sim.Stats{Polls: 7, EarlyPolls: 2}), "2 of 7 polls came before a hint of the upstream had run out")
}

func TestWaitingEndsByItselfByAnErrorOrByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		asked := 0
		require.NoError(t, until(t.Context(), time.Minute, time.Second, func() (bool, error) { asked++; return asked == 4, nil }))
		require.Equal(t, 3*time.Second, time.Since(begin))
		broken := errors.New("broken")
		require.ErrorIs(t, until(t.Context(), time.Minute, time.Second, func() (bool, error) { return true, broken }), broken)
		begin = time.Now()
		require.ErrorIs(t, until(t.Context(), time.Minute, time.Second, func() (bool, error) { return false, nil }), context.DeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(begin))
	})
}

func TestAReportIsATableOrJSON(t *testing.T) {
	r := &Report{CPUs: 2, System: "linux/amd64", Go: "go1.26", Seed: 3, Scenarios: []Result{
		{Scenario: "outage", Case: "503 for 1m0s", Requests: 20_000, Figures: []Figure{{"polls while it is down", 81.44, "/s"}, {"a ratio", 0.06789, ""}}},
	}}
	var table, text strings.Builder
	require.NoError(t, r.Print(&table, false))
	require.Equal(t, "2 CPUs, linux/amd64, go1.26, seed 3\n\noutage, 20,000 requests: 503 for 1m0s\n"+
		"  polls while it is down  81.4 /s\n  a ratio                 0.0679\n", table.String())
	require.NoError(t, r.Print(&text, true))
	var again Report
	require.NoError(t, json.Unmarshal([]byte(text.String()), &again))
	require.Equal(t, r, &again)
	for v, want := range map[float64]string{0: "0.00", 1: "1.00", 12.345: "12.3", 99.99: "100.0", 12345.6: "12,346", -1234567: "-1,234,567"} {
		require.Equal(t, want, digits(v))
	}
}

func TestChartsAreSVGFiles(t *testing.T) {
	lines := chart{file: "lines", title: "A title", x: "seconds", y: "polls/s", right: "held"}
	lines.add("one", []float64{1, 2, 3})
	lines.addRight("two", []float64{5})
	bars := chart{file: "bars", title: "Another", x: "milliseconds", y: "% of results", bars: true}
	var seconds []float64
	for i := range 1000 {
		seconds = append(seconds, float64(i)/1e6) // up to a millisecond
	}
	bars.histogram(append(seconds, 5))
	sum := 0.
	for _, share := range bars.lines[0].ys {
		sum += share
	}
	require.InDelta(t, 100, sum, 1e-6)
	require.Len(t, bars.labels, 20, "of 0.05 ms each")
	require.Equal(t, "0.25", bars.labels[5])

	dir := filepath.Join(t.TempDir(), "made", "here")
	require.NoError(t, (&Report{charts: []chart{lines, bars}}).Plot(dir))
	for file, want := range map[string]string{"lines.svg": "A title", "bars.svg": "milliseconds"} {
		svg, err := os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(string(svg), "<svg"), string(svg[:20]))
		require.Contains(t, string(svg), want)
		require.NotContains(t, string(svg), "NaN")
	}
	for v, want := range map[float64]float64{0.011: 0.02, 0.02: 0.02, 0.3: 0.5, 1: 1, 7: 10, 10: 10, 11: 20} {
		require.InDelta(t, want, nice(v), 1e-9, v)
	}
	flat := chart{file: "flat", bars: true}
	flat.histogram([]float64{0, 0})
	require.Len(t, flat.labels, 1)
}

func TestProgressIsABarOnATerminalAndALineElsewhere(t *testing.T) {
	var out strings.Builder
	p := progress{out: &out, terminal: true}
	p.begin("drain")
	p.at(5, 10)
	p.end()
	require.Equal(t, "\r\x1b[K"+strings.Repeat("█", 15)+strings.Repeat("░", 15)+"  5 of 10  drain\r\x1b[K", out.String())
	out.Reset()
	p = progress{out: &out}
	p.begin("drain")
	p.at(5, 10)
	p.end()
	require.Equal(t, "drain\n", out.String())
}
