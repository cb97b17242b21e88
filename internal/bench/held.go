package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"syscall"
	"time"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
)

const mb = 1e6

// scrapeEvery is how often a bridge that is to do nothing is asked for its metrics: that costs it CPU time.
const scrapeEvery = 5 * time.Second

// waits is the script of an upstream whose jobs never end, and that wants to be asked every five minutes.
const waits = `{"seed":%d,"profiles":[{"name":"waits","steps":[{"state":"active","retry_after_s":300}]}]}`

// hold has a new bridge, or loop, hold n requests that have been polled once.
func (s *site) hold(ctx context.Context, n int, polled func() (int, error)) error {
	if err := s.submit(ctx, n, 0); err != nil {
		return err
	}
	return s.await(ctx, "requests polled once", 0, n, polled)
}

// holding is what it costs to take requests, and to hold them: memory in bytes, CPU time in seconds.
type holding struct {
	taking, over        time.Duration
	start, taken, later spent
	heap                float64 // that lives; of a bridge alone
	early               int     // polls; of a bridge alone
	held, rate          []float64
}

// resident is the memory that all requests take.
func (h holding) resident() float64 { return h.later.worker.resident - h.start.worker.resident }
func (h holding) workerCPU() float64 {
	return (h.later.worker.cpu - h.taken.worker.cpu) / h.over.Seconds()
}
func (h holding) serverCPU() float64 {
	return (h.later.server.cpu - h.taken.server.cpu) / h.over.Seconds()
}
func (h holding) spent() spent { return h.later }

// waiting has one bridge hold requests that wait for their next poll, and tells what that costs; with Baseline a
// hand-written loop too, turn by turn.
func waiting(ctx context.Context, r *run, n int) ([]Result, error) {
	p, err := besideLoop(r, fmt.Sprintf("waiting: %s requests are handed over", count(n)),
		func() (holding, error) { return r.waitingOnce(ctx, n, true) },
		func() (holding, error) { return r.waitingOnce(ctx, n, false) })
	if err != nil {
		return nil, err
	}
	c := chart{file: "waiting", title: count(n) + " requests that wait", x: "seconds", y: "requests held", right: "polls/s"}
	c.add("requests held", p.left[0].held)
	c.addRight("polls/s", p.left[0].rate)
	r.report.charts = append(r.report.charts, c)
	return []Result{{Requests: n, Case: "held by one bridge", Figures: waitingFigures(p, float64(n))}}, nil
}

// waitingFigures are medians; ratios are medians of the pairs' ratios.
func waitingFigures(p pairs[holding], n float64) []Figure {
	figures := []Figure{
		{"live heap of a request", of(p.left, func(h holding) float64 { return h.heap }) / n, "B"},
		{"resident memory of a request", of(p.left, holding.resident) / n, "B"},
		{"bridge: CPU while they wait", 100 * of(p.left, holding.workerCPU), "% of a core"},
		{"NATS server: CPU while they wait", 100 * of(p.left, holding.serverCPU), "% of a core"},
		{"bridge: resident memory", of(p.left, func(h holding) float64 { return h.later.worker.resident }) / mb, "MB"},
		{"NATS server: resident memory", of(p.left, func(h holding) float64 { return h.later.server.resident }) / mb, "MB"},
		{"submitted, taken and polled once", n / of(p.left, func(h holding) float64 { return h.taking.Seconds() }), "/s"},
		{"bridge: CPU of a request that is taken and polled once", of(p.left, func(h holding) float64 { return h.taken.worker.cpu - h.start.worker.cpu }) * 1e6 / n, "µs"},
		{"NATS server: CPU of a request that is submitted and taken", of(p.left, func(h holding) float64 { return h.taken.server.cpu - h.start.server.cpu }) * 1e6 / n, "µs"},
		{hints, of(p.left, func(h holding) float64 { return float64(h.early) }), ""},
	}
	figures = append(figures, costs("bridge", p.left, holding.spent)...)
	if len(p.right) == 0 {
		return figures
	}
	figures = append(figures,
		Figure{"loop: resident memory of a request", of(p.right, holding.resident) / n, "B"},
		Figure{"loop: CPU while they wait", 100 * of(p.right, holding.workerCPU), "% of a core"},
		Figure{"loop: the NATS server's CPU while they wait", 100 * of(p.right, holding.serverCPU), "% of a core"},
	)
	figures = append(figures, cost("loop", p.right, func(h holding) usage { return h.later.worker })...)
	return append(figures,
		Figure{"bridge : loop, resident memory of a request", p.ratio(holding.resident), ""},
		Figure{"bridge : loop, CPU while they wait", p.ratio(holding.workerCPU), ""},
		Figure{"bridge : loop, the NATS server's CPU while they wait", p.ratio(holding.serverCPU), ""},
	)
}

// waitingOnce has a new bridge, or a loop, take n requests and hold them.
func (r *run) waitingOnce(ctx context.Context, n int, bridged bool) (h holding, err error) {
	s, err := r.newSite(ctx, fmt.Sprintf(waits, r.Seed), publish.Options{MaxAckPending: &n})
	if err != nil {
		return h, err
	}
	defer s.close()
	var b *bridge // nil: it is the loop
	var worker *process
	if bridged {
		if b, err = s.serve(ctx, "--max-requests", fmt.Sprint(n)); err == nil {
			worker = b.process
		}
	} else {
		worker, err = s.start(ctx, "bench-loop", "--nats", s.natsURL, "--upstream", s.url)
	}
	if err != nil {
		return h, err
	}
	if h.start, err = s.spent(worker); err != nil {
		return h, err
	}
	begin := time.Since(s.begin)
	sampling := s.sample(ctx, scrapeEvery, b)
	polled := func() (int, error) {
		stats, err := s.stats(false)
		return stats.Polls, err
	}
	if err := s.hold(ctx, n, polled); err != nil {
		return h, err
	}
	full := time.Since(s.begin)
	h.taking = full - begin
	if h.taken, err = s.spent(worker); err != nil {
		return h, err
	}
	r.progress.begin("waiting: %s requests are held for %v", count(n), r.Duration)
	since := time.Now()
	if err := s.await(ctx, "seconds", r.Duration, int(math.Ceil(r.Duration.Seconds())), func() (int, error) {
		return int(time.Since(since).Seconds()), nil
	}); err != nil {
		return h, err
	}
	h.over = time.Since(since)
	if h.later, err = s.spent(worker); err != nil {
		return h, err
	}
	taken := sampling.stop(begin)
	consumer, err := s.js.Consumer(ctx, s.names.WorkStream(), s.names.Consumer())
	if err != nil {
		return h, err
	}
	if held := consumer.CachedInfo().NumAckPending; held != n {
		return h, fmt.Errorf("%d requests of %d are held", held, n)
	}
	if bridged {
		stats, err := s.obeyed(false)
		if err != nil {
			return h, err
		}
		h.early = stats.EarlyPolls
		h.heap, h.held, h.rate = heapOf(taken, full), curve(taken, begin, holds), perSecond(curve(taken, begin, polls))
	}
	return h, nil
}

// heapOf is what lives of what came since the first sample, by collections since a time.
func heapOf(taken []sample, since time.Duration) float64 {
	heap := taken[len(taken)-1].metrics[allocated] // with garbage, when there was no collection meanwhile
	before := valueAt(taken, since, func(s sample) float64 { return s.metrics[collected] })
	for _, one := range taken {
		if one.at > since && one.metrics[collected] > before+1 {
			heap = min(heap, one.metrics[live])
		}
	}
	return heap - taken[0].metrics[allocated]
}

// once has requests polled once, and then not for five minutes. That is the bridge's own wait: one that the upstream asks
// for a bridge that is told to stop hands over too, and nobody polls before it is over.
var once = []string{"--backoff-initial", "5m", "--backoff-max", "5m"}

// pending is the script of an upstream whose jobs never end, and that says nothing of when to ask again.
const pending = `{"seed":%d,"profiles":[{"name":"pending","steps":[{"state":"active"}]}]}`

// restart tells how long it takes until a bridge that starts in place of another has polled all that the other held:
// after SIGKILL, which has to wait for AckWait, and after SIGTERM, which hands them over.
func restart(ctx context.Context, r *run, n int) ([]Result, error) {
	ackWait := min(10*time.Second, max(2*time.Second, r.Duration))
	c := chart{file: "restart", title: fmt.Sprintf("%s requests held, AckWait %v: the bridge is replaced", count(n), ackWait), x: "seconds since the signal", y: "requests polled again"}
	var all []Result
	for _, how := range []struct {
		name   string
		signal os.Signal
	}{{"SIGKILL", os.Kill}, {"SIGTERM", syscall.SIGTERM}} {
		r.progress.begin("restart: %s, AckWait %v", how.name, ackWait)
		one, err := r.restartOnce(ctx, n, ackWait, how.signal)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", how.name, err)
		}
		c.add(how.name, one.again)
		turns := []restarted{one}
		all = append(all, Result{Requests: n, Case: how.name, Figures: slices.Concat([]Figure{
			{"every request is polled again after", one.took.Seconds(), "s"},
			{"that is, of AckWait", one.took.Seconds() / ackWait.Seconds(), ""},
		}, cost("first bridge", turns, func(r restarted) usage { return r.first }), costs("second bridge", turns, func(r restarted) spent { return r.now }))})
	}
	r.report.charts = append(r.report.charts, c)
	return all, nil
}

// restarted is how a bridge took another's place.
type restarted struct {
	took  time.Duration
	again []float64 // requests polled again
	first usage     // of the other one, until its signal
	now   spent
}

func (r *run) restartOnce(ctx context.Context, n int, ackWait time.Duration, signal os.Signal) (one restarted, err error) {
	s, err := r.newSite(ctx, fmt.Sprintf(pending, r.Seed), publish.Options{AckWait: &ackWait, MaxAckPending: &n})
	if err != nil {
		return one, err
	}
	defer s.close()
	args := append([]string{"--max-requests", fmt.Sprint(n)}, once...)
	first, err := s.serve(ctx, args...)
	if err != nil {
		return one, err
	}
	if err := s.hold(ctx, n, first.metric(pendings)); err != nil {
		return one, err
	}
	before, err := s.stats(true)
	if err == nil && polledSince(n, nil, before.IDs) < n {
		err = fmt.Errorf("%d requests of %d were polled before the signal", polledSince(n, nil, before.IDs), n)
	}
	if err != nil {
		return one, err
	}
	if one.first, err = first.usage(); err != nil {
		return one, err
	}
	begin := time.Since(s.begin)
	if err := first.cmd.Process.Signal(signal); err != nil {
		return one, err
	}
	s.forget(first.process)
	defer first.end(os.Kill)
	second, err := s.serve(ctx, args...)
	if err != nil {
		return one, err
	}
	sampling := s.sample(ctx, sampleEvery, second)
	polled := second.metric(pendings)
	if err := s.await(ctx, "requests polled again", ackWait, n, func() (int, error) {
		polls, err := polled()
		if err != nil || polls < n {
			return polls, err
		}
		one.took = time.Since(s.begin) - begin // to look at each id takes a while
		after, err := s.stats(true)
		return polledSince(n, before.IDs, after.IDs), err
	}); err != nil {
		return one, err
	}
	stats, err := s.obeyed(false)
	if err == nil && stats.MaxPollsNowOfAnID > 1 {
		err = fmt.Errorf("a request was polled by %d at once", stats.MaxPollsNowOfAnID)
	}
	if err != nil {
		return one, err
	}
	if one.now, err = s.spent(second.process); err != nil {
		return one, err
	}
	one.again = curve(sampling.stop(0), begin, func(s sample) float64 { return s.metrics[pendings] })
	return one, nil
}

// polledSince counts the ids, of n requests, that were polled in between: two polls of one do not stand for those of another.
func polledSince(n int, before, after map[string]sim.IDStats) (polled int) {
	for _, id := range ids(n) {
		if after[id].Polls > before[id].Polls {
			polled++
		}
	}
	return polled
}
