package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	"futurebridge/internal/publish"
)

const mb = 1e6

// waits is the script of an upstream whose jobs never end, and that wants to be asked every five minutes.
const waits = `{"seed":%d,"profiles":[{"name":"waits","steps":[{"state":"active","retry_after_s":300}]}]}`

// hold has a new bridge hold n requests that have been polled once.
func (s *site) hold(ctx context.Context, n int, b *bridge) error {
	if err := s.submit(ctx, n, 0); err != nil {
		return err
	}
	return s.await(ctx, "requests polled once", 0, n, b.metric(pendings))
}

// waiting has one bridge hold requests that wait for their next poll, and tells what that costs.
func waiting(ctx context.Context, r *run, n int) ([]Result, error) {
	r.progress.begin("waiting: %s requests are handed over", count(n))
	s, err := r.newSite(ctx, fmt.Sprintf(waits, r.Seed), publish.Options{MaxAckPending: &n})
	if err != nil {
		return nil, err
	}
	defer s.close()
	b, err := s.serve(ctx, "--max-requests", fmt.Sprint(n))
	if err != nil {
		return nil, err
	}
	before, err := b.metrics()
	if err != nil {
		return nil, err
	}
	first, err := s.spent(b.process)
	if err != nil {
		return nil, err
	}
	begin := time.Since(s.begin)
	sampling := s.sample(ctx, time.Second, b) // an answer with metrics costs the bridge CPU
	if err := s.hold(ctx, n, b); err != nil {
		return nil, err
	}
	taking := time.Since(s.begin) - begin
	full, err := b.metrics()
	if err != nil {
		return nil, err
	}
	then, err := s.spent(b.process)
	if err != nil {
		return nil, err
	}
	r.progress.begin("waiting: %s requests are held for %v", count(n), r.Duration)
	since := time.Now()
	if err := s.await(ctx, "seconds", r.Duration, int(math.Ceil(r.Duration.Seconds())), func() (int, error) {
		return int(time.Since(since).Seconds()), nil
	}); err != nil {
		return nil, err
	}
	over := time.Since(since).Seconds()
	after, err := b.metrics()
	if err != nil {
		return nil, err
	}
	now, err := s.spent(b.process)
	if err != nil {
		return nil, err
	}
	if int(after[held]) != n {
		return nil, fmt.Errorf("the bridge holds %v requests of %d", after[held], n)
	}
	taken := sampling.stop(begin)
	heap := after[allocated] // with garbage, when there was no collection meanwhile
	for _, one := range taken {
		if one.metrics[collected] > full[collected] {
			heap = min(heap, one.metrics[live])
		}
	}
	c := chart{file: "waiting", title: count(n) + " requests that wait", x: "seconds", y: "requests held", right: "polls/s"}
	c.add("requests held", curve(taken, begin, holds))
	c.addRight("polls/s", perSecond(curve(taken, begin, polls)))
	r.report.charts = append(r.report.charts, c)
	return []Result{{Requests: n, Case: "held by one bridge", Figures: []Figure{
		{"live heap of a request", (heap - before[allocated]) / float64(n), "B"},
		{"resident memory of a request", (now.worker.resident - first.worker.resident) / float64(n), "B"},
		{"bridge: CPU while they wait", 100 * (now.worker.cpu - then.worker.cpu) / over, "% of a core"},
		{"NATS server: CPU while they wait", 100 * (now.server.cpu - then.server.cpu) / over, "% of a core"},
		{"bridge: resident memory", now.worker.resident / mb, "MB"},
		{"NATS server: resident memory", now.server.resident / mb, "MB"},
		{"submitted, taken and polled once", float64(n) / taking.Seconds(), "/s"},
		{"bridge: CPU of a request that is taken and polled once", 1e6 * (then.worker.cpu - first.worker.cpu) / float64(n), "µs"},
		{"NATS server: CPU of a request that is submitted and taken", 1e6 * (then.server.cpu - first.server.cpu) / float64(n), "µs"},
	}}}, nil
}

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
		took, again, err := r.restartOnce(ctx, n, ackWait, how.signal)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", how.name, err)
		}
		c.add(how.name, again)
		all = append(all, Result{Requests: n, Case: how.name, Figures: []Figure{
			{"every request is polled again after", took.Seconds(), "s"},
			{"that is, of AckWait", took.Seconds() / ackWait.Seconds(), ""},
		}})
	}
	r.report.charts = append(r.report.charts, c)
	return all, nil
}

func (r *run) restartOnce(ctx context.Context, n int, ackWait time.Duration, signal os.Signal) (took time.Duration, again []float64, err error) {
	s, err := r.newSite(ctx, fmt.Sprintf(waits, r.Seed), publish.Options{AckWait: &ackWait, MaxAckPending: &n})
	if err != nil {
		return 0, nil, err
	}
	defer s.close()
	first, err := s.serve(ctx, "--max-requests", fmt.Sprint(n))
	if err != nil {
		return 0, nil, err
	}
	if err := s.hold(ctx, n, first); err != nil {
		return 0, nil, err
	}
	begin := time.Since(s.begin)
	if err := first.cmd.Process.Signal(signal); err != nil {
		return 0, nil, err
	}
	s.forget(first.process)
	defer first.end(os.Kill)
	second, err := s.serve(ctx, "--max-requests", fmt.Sprint(n))
	if err != nil {
		return 0, nil, err
	}
	sampling := s.sample(ctx, sampleEvery, second)
	if err := s.await(ctx, "requests polled again", ackWait, n, second.metric(pendings)); err != nil {
		return 0, nil, err
	}
	took = time.Since(s.begin) - begin
	stats, err := s.stats(false)
	if err == nil && stats.MaxPollsNowOfAnID > 1 {
		err = fmt.Errorf("a request was polled by %d at once", stats.MaxPollsNowOfAnID)
	}
	if err != nil {
		return 0, nil, err
	}
	return took, curve(sampling.stop(0), begin, func(s sample) float64 { return s.metrics[pendings] }), nil
}
