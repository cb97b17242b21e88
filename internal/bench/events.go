package bench

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
)

// heard is when a live subscriber of core NATS got each request's result, by id.
type heard struct {
	mu sync.Mutex
	at map[string]time.Time
	nc *nats.Conn
}

// listen subscribes to results, whose subjects end in their id, over a connection of its own.
func (s *site) listen(subject string) (*heard, error) {
	nc, err := nats.Connect(s.natsURL, nats.Name("bridge bench watcher"))
	if err != nil {
		return nil, err
	}
	h := &heard{at: map[string]time.Time{}, nc: nc}
	sub, err := nc.Subscribe(subject, func(m *nats.Msg) {
		now := time.Now()
		h.mu.Lock()
		h.at[m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]] = now
		h.mu.Unlock()
	})
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return h, nil
}

func (h *heard) count() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.at), nil
}

// delays are the seconds from a moment at the upstream until the event arrived.
func (h *heard) delays(stats sim.Stats, since func(sim.IDStats) time.Time) (seconds []float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, at := range h.at {
		seconds = append(seconds, at.Sub(since(stats.IDs[id])).Seconds())
	}
	return seconds
}

// longPolls is how many polls an upstream holds at a time in latency.
const longPolls = 500

// timed is how long results took on their way, in seconds.
type timed struct {
	delays             []float64
	polls, pollsAtOnce float64 // polls: of a request
	now                spent   // at the end
}

func (t timed) p50() float64             { return quantile(t.delays, 0.5) }
func (t timed) p99() float64             { return quantile(t.delays, 0.99) }
func (t timed) pollsOfARequest() float64 { return t.polls }
func (t timed) spent() spent             { return t.now }

// latency tells how long a result travels from the upstream's send to a live subscriber, while the upstream holds as
// many polls as it gets; with Baseline by a hand-written loop too, turn by turn.
func latency(ctx context.Context, r *run, n int) ([]Result, error) {
	most := []string{"--max-polls", fmt.Sprint(longPolls)}
	p, err := besideLoop(r, fmt.Sprintf("latency: %s requests, %d long polls at a time", count(n), longPolls), func() (timed, error) {
		return r.latencyOnce(ctx, n, "TINKER_RESULTS", "tinker.result.*", append([]string{"serve", "--http", "none"}, most...)...)
	}, func() (timed, error) {
		return r.latencyOnce(ctx, n, loopStream.Name, loopResults+"*", append([]string{"bench-loop"}, most...)...)
	})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%.0f long polls", p.left[0].pollsAtOnce)
	c := chart{file: "latency", title: "From the upstream's send to a live subscriber, " + name, x: "milliseconds", y: "% of results", bars: true}
	c.histogram(p.left[0].delays)
	r.report.charts = append(r.report.charts, c)
	figures := []Figure{
		{"upstream's send to a subscriber, p50", 1e3 * of(p.left, timed.p50), "ms"},
		{"upstream's send to a subscriber, p99", 1e3 * of(p.left, timed.p99), "ms"},
		{"polls of a request", of(p.left, timed.pollsOfARequest), ""},
	}
	figures = append(figures, costs("bridge", p.left, timed.spent)...)
	if len(p.right) > 0 {
		figures = append(figures,
			Figure{"loop: upstream's send to a subscriber, p50", 1e3 * of(p.right, timed.p50), "ms"},
			Figure{"loop: upstream's send to a subscriber, p99", 1e3 * of(p.right, timed.p99), "ms"},
		)
		figures = append(figures, cost("loop", p.right, func(t timed) usage { return t.now.worker })...)
		figures = append(figures,
			Figure{"bridge : loop, p50", p.ratio(timed.p50), ""},
			Figure{"bridge : loop, p99", p.ratio(timed.p99), ""},
		)
	}
	return []Result{{Requests: n, Case: name, Figures: figures}}, nil
}

// latencyOnce has a worker, which is this program with these arguments, publish to a stream and these subjects.
func (r *run) latencyOnce(ctx context.Context, n int, stream, subjects string, args ...string) (t timed, err error) {
	s, err := r.newSite(ctx, fmt.Sprintf(`{"seed":%d,"style":{"hold":"30s"},"profiles":[
		{"name":"held","steps":[{"state":"active","for":"1s","spread":"1s"},{"answer":"completed"}]}]}`, r.Seed), publish.Options{})
	if err != nil {
		return t, err
	}
	defer s.close()
	if _, err := s.js.CreateStream(ctx, loopStream); err != nil {
		return t, err
	}
	h, err := s.listen(subjects)
	if err != nil {
		return t, err
	}
	defer h.nc.Close()
	worker, err := s.start(ctx, append(args, "--nats", s.natsURL, "--upstream", s.url)...)
	if err != nil {
		return t, err
	}
	if err := s.submit(ctx, n, 0); err != nil {
		return t, err
	}
	long := 2 * time.Second * time.Duration(1+n/longPolls)
	if err := s.await(ctx, "results heard", long, n, h.count); err != nil {
		return t, err
	}
	if err := s.awaitResults(ctx, 0, stream, n); err != nil {
		return t, err
	}
	if t.now, err = s.spent(worker); err != nil { // before the upstream writes down each id
		return t, err
	}
	stats, err := s.obeyed(true)
	if err != nil {
		return t, err
	}
	t.delays = h.delays(stats, func(id sim.IDStats) time.Time { return id.Delivered })
	t.polls, t.pollsAtOnce = float64(stats.Polls)/float64(n), float64(stats.MaxPollsNow)
	return t, nil
}

// outage has requests wait while the upstream answers 503 to everything, and then carries no more than a tenth of them
// a second. Meanwhile all jobs get done.
func outage(ctx context.Context, r *run, n int) ([]Result, error) {
	rate := max(500, n/10)
	after := 5*time.Second + 2*time.Second*time.Duration(n)/time.Duration(rate) // for the first polls
	r.progress.begin("outage: %s requests wait, the upstream carries %d polls/s and is down for %v", count(n), rate, r.Duration)
	s, err := r.newSite(ctx, fmt.Sprintf(`{"seed":%d,"rate_limit":{"per_second":%d},"outages":[{"after":"%v","for":"%v","with":{"status":503}}],
		"profiles":[{"name":"waits","steps":[{"state":"active","for":"%v"},{"answer":"completed"}]}]}`,
		r.Seed, rate, after, r.Duration, after), publish.Options{})
	if err != nil {
		return nil, err
	}
	defer s.close()
	b, err := s.serve(ctx)
	if err != nil {
		return nil, err
	}
	sampling := s.sample(ctx, sampleEvery, b)
	if err := s.submit(ctx, n, 0); err != nil {
		return nil, err
	}
	if err := s.awaitResults(ctx, after+r.Duration+time.Minute, s.names.ResultsStream(), n); err != nil {
		return nil, err
	}
	now, err := s.spent(b.process)
	if err != nil {
		return nil, err
	}
	stats, err := s.obeyed(false)
	if err != nil {
		return nil, err
	}
	taken := sampling.stop(0)
	up := after + r.Duration
	if waited := valueAt(taken, after, holds); int(waited) < n {
		return nil, fmt.Errorf("only %.0f of %d requests were waiting when the outage began: give fewer with --requests", waited, n)
	}
	answered, ok := reaches(taken, 0.99*float64(n), results)
	if !ok {
		return nil, fmt.Errorf("the last %d results were stored and not seen to be sent", n/100)
	}
	refused := func(s sample) float64 { return float64(s.stats.Answers["status_429"]) }
	within := func(value func(sample) float64, from, to time.Duration) float64 {
		return valueAt(taken, to, value) - valueAt(taken, from, value)
	}
	end := taken[len(taken)-1].at
	c := chart{file: "outage", title: fmt.Sprintf("%s requests wait; the upstream is down from %.0f s to %.0f s", count(n), after.Seconds(), up.Seconds()), x: "seconds", y: "polls/s", right: "requests waiting"}
	c.add("polls/s", perSecond(curve(taken, 0, polls)))
	c.addRight("requests waiting", curve(taken, 0, holds))
	r.report.charts = append(r.report.charts, c)
	finding := min(5*time.Second, r.Duration/2)
	ideal := float64(n) / float64(rate)
	figures := []Figure{
		{"polls while the upstream is down, on average", within(polls, after, up) / r.Duration.Seconds(), "/s"},
		{fmt.Sprintf("polls of the first %v, that find it out", finding), within(polls, after, after+finding), ""},
		{"polls from then on, until it is up", within(polls, after+finding, up) / (r.Duration - finding).Seconds(), "/s"},
		{"refused (429) after it, of all polls", 100 * within(refused, up, end) / within(polls, up, end), "%"},
		{"99 % answered after", (answered - up).Seconds(), "s"},
		{"that is, of requests ÷ the upstream's rate", (answered - up).Seconds() / ideal, ""},
		{hints, float64(stats.EarlyPolls), ""},
	}
	figures = append(figures, costs("bridge", []spent{now}, func(s spent) spent { return s })...)
	return []Result{{Requests: n, Case: fmt.Sprintf("503 for %v, then %d polls/s", r.Duration, rate), Figures: figures}}, nil
}

// mixed has jobs of exponentially distributed lengths, some of them paused and some failing, for a bridge whose
// cadence follows the lengths that it has seen, and, turn by turn, for one that only ever backs off.
func mixed(ctx context.Context, r *run, n int) ([]Result, error) {
	mean := r.share(1. / 6)
	length := mean.Round(time.Millisecond)
	cadence := func(name string) side[cadenced] {
		return side[cadenced]{name + " cadence", func() (cadenced, error) { return r.mixedOnce(ctx, n, mean, name) }}
	}
	adaptive, fixed := cadence("adaptive"), cadence("fixed")
	p, err := pair(r, fmt.Sprintf("mixed: %s jobs of %v on average", count(n), length), adaptive, fixed)
	if err != nil {
		return nil, err
	}
	c := chart{file: "mixed", title: fmt.Sprintf("%s jobs of %v on average, handed over in %v", count(n), length, r.Duration), x: "seconds", y: "polls/s"}
	c.add(adaptive.name, p.left[0].rate)
	c.add(fixed.name, p.right[0].rate)
	r.report.charts = append(r.report.charts, c)
	return []Result{
		{Requests: n, Case: adaptive.name, Figures: append(cadenceFigures(p.left),
			Figure{"polls of a request, adaptive : fixed", p.ratio(cadenced.pollsOfARequest), ""},
			Figure{"job done to a subscriber, p50, adaptive : fixed", p.ratio(cadenced.p50), ""},
			Figure{"job done to a subscriber, p99, adaptive : fixed", p.ratio(cadenced.p99), ""},
		)},
		{Requests: n, Case: fixed.name, Figures: cadenceFigures(p.right)},
	}, nil
}

// cadenced is how a bridge with some cadence found out that jobs were done: after these seconds, with these polls.
type cadenced struct {
	timed
	early int // polls
	rate  []float64
}

// cadenceFigures are medians.
func cadenceFigures(turns []cadenced) []Figure {
	return append([]Figure{
		{"polls of a request", of(turns, cadenced.pollsOfARequest), ""},
		{"job done to a subscriber, p50", 1e3 * of(turns, cadenced.p50), "ms"},
		{"job done to a subscriber, p99", 1e3 * of(turns, cadenced.p99), "ms"},
		{hints, of(turns, func(c cadenced) float64 { return float64(c.early) }), ""},
	}, costs("bridge", turns, cadenced.spent)...)
}

func (r *run) mixedOnce(ctx context.Context, n int, mean time.Duration, cadence string) (c cadenced, err error) {
	s, err := r.newSite(ctx, mixedScript(r.Seed, mean), publish.Options{})
	if err != nil {
		return c, err
	}
	defer s.close()
	h, err := s.listen(s.names.Results())
	if err != nil {
		return c, err
	}
	defer h.nc.Close()
	b, err := s.serve(ctx, "--cadence", cadence, "--server-failure-polls", "0")
	if err != nil {
		return c, err
	}
	begin := time.Since(s.begin)
	sampling := s.sample(ctx, sampleEvery, nil)
	if err := s.submit(ctx, n, r.Duration); err != nil {
		return c, err
	}
	if err := s.await(ctx, "results heard", 10*mean+time.Minute, n, h.count); err != nil {
		return c, err
	}
	if err := s.awaitResults(ctx, 0, s.names.ResultsStream(), n); err != nil {
		return c, err
	}
	if c.now, err = s.spent(b.process); err != nil {
		return c, err
	}
	stats, err := s.obeyed(true)
	if err != nil {
		return c, err
	}
	c.delays = h.delays(stats, func(id sim.IDStats) time.Time { return id.Done })
	c.polls, c.early = float64(stats.Polls)/float64(n), stats.EarlyPolls
	c.rate = perSecond(curve(sampling.stop(begin), begin, polls))
	return c, nil
}

// mixedScript has the quantiles of an exponential distribution, each as likely: a fifth of the jobs is paused first,
// with or without a hint, and a tenth fails.
func mixedScript(seed uint64, mean time.Duration) string {
	const lengths = 50
	pause := time.Duration(float64(mean) / 5)
	ms := func(d time.Duration) string { return max(time.Millisecond, d.Round(time.Millisecond)).String() }
	var profiles []string
	for i := range lengths {
		length := time.Duration(-float64(mean) * math.Log(1-(float64(i)+0.5)/lengths))
		steps := []string{fmt.Sprintf(`{"state":"active","for":%q,"spread":%q}`, ms(length), ms(mean/lengths))}
		switch i % 10 {
		case 3:
			steps = append([]string{fmt.Sprintf(`{"state":"paused_rate_limit","for":%q}`, ms(pause))}, steps...)
		case 7:
			steps = append([]string{fmt.Sprintf(`{"state":"paused_capacity","for":%q,"retry_after_ms":%d}`, ms(pause), 1+pause.Milliseconds())}, steps...)
		}
		end := `{"answer":"completed","result_bytes":1000}`
		if i%10 == 5 {
			end = fmt.Sprintf(`{"answer":"failed","message":"it did not work","category":%q}`, []string{"user", "server"}[i/10%2])
		}
		profiles = append(profiles, fmt.Sprintf(`{"name":"length %d","steps":[%s]}`, i, strings.Join(append(steps, end), ",")))
	}
	return fmt.Sprintf(`{"seed":%d,"profiles":[%s]}`, seed, strings.Join(profiles, ","))
}
