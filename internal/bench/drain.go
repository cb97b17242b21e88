package bench

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"futurebridge/internal/publish"
)

// duplicates is the duplicate window of the loop's stream, as long as the bridge's.
const duplicates = 10 * time.Second

// drained is how a program emptied a full work stream: requests/s, CPU in µs a request.
type drained struct {
	perSecond, workerCPU, serverCPU float64
	rate                            []float64
	now                             spent // at the end
}

func (d drained) spent() spent { return d.now }

// drain empties a work stream through a bridge, with every promise on, whose upstream answers at once; with Baseline
// through a hand-written loop too, turn by turn.
func drain(ctx context.Context, r *run, n int) ([]Result, error) {
	c := chart{file: "drain", title: "Draining " + count(n) + " requests, upstream answers at once", x: "seconds", y: "results/s"}
	var all []Result
	for _, size := range []struct {
		name  string
		bytes int
	}{{"200 B results", 200}, {"20 KB results", 20_000}} {
		p, err := besideLoop(r, "drain, "+size.name, func() (drained, error) {
			return r.drainOnce(ctx, n, size.bytes, "TINKER_RESULTS", "serve", "--http", "none")
		}, func() (drained, error) { return r.drainOnce(ctx, n, size.bytes, loopStream.Name, "bench-loop") })
		if err != nil {
			return nil, err
		}
		c.add("bridge, "+size.name, p.left[0].rate)
		if r.Baseline {
			c.add("loop, "+size.name, p.right[0].rate)
		}
		all = append(all, Result{Requests: n, Case: size.name, Figures: drainFigures(p)})
	}
	r.report.charts = append(r.report.charts, c)
	return all, nil
}

// drainFigures are medians; ratios are medians of the pairs' ratios.
func drainFigures(p pairs[drained]) []Figure {
	speed := func(d drained) float64 { return d.perSecond }
	cpu := func(d drained) float64 { return d.workerCPU }
	server := func(d drained) float64 { return d.serverCPU }
	figures := []Figure{
		{"bridge: requests", of(p.left, speed), "/s"},
		{"bridge: CPU of a request", of(p.left, cpu), "µs"},
		{"bridge: the NATS server's CPU of a request", of(p.left, server), "µs"},
	}
	figures = append(figures, costs("bridge", p.left, drained.spent)...)
	if len(p.right) == 0 {
		return figures
	}
	figures = append(figures,
		Figure{"loop: requests", of(p.right, speed), "/s"},
		Figure{"loop: CPU of a request", of(p.right, cpu), "µs"},
		Figure{"loop: the NATS server's CPU of a request", of(p.right, server), "µs"},
	)
	figures = append(figures, cost("loop", p.right, func(d drained) usage { return d.now.worker })...)
	return append(figures,
		Figure{"bridge : loop, requests/s", p.ratio(speed), ""},
		Figure{"bridge : loop, CPU", p.ratio(cpu), ""},
		Figure{"bridge : loop, CPU with the NATS server's", p.ratio(func(d drained) float64 { return d.workerCPU + d.serverCPU }), ""},
	)
}

// drainOnce has a worker, which is this program with these arguments, fill the stream of its results.
func (r *run) drainOnce(ctx context.Context, n, bytes int, stream string, args ...string) (d drained, err error) {
	r.profileAs = fmt.Sprintf("drain-%d-bytes-", bytes)
	defer func() { r.profileAs = "" }()
	s, err := r.newSite(ctx, fmt.Sprintf(`{"seed":%d,"profiles":[{"name":"done","steps":[{"answer":"completed","result_bytes":%d}]}]}`, r.Seed, bytes), publish.Options{})
	if err != nil {
		return d, err
	}
	defer s.close()
	if _, err := s.js.CreateStream(ctx, loopStream); err != nil {
		return d, err
	}
	if err := s.submit(ctx, n, 0); err != nil {
		return d, err
	}
	serverBefore, err := s.nats.usage()
	if err != nil {
		return d, err
	}
	begin := time.Since(s.begin)
	sampling := s.sample(ctx, sampleEvery, nil)
	worker, err := s.start(ctx, append(args, "--nats", s.natsURL, "--upstream", s.url)...)
	if err != nil {
		return d, err
	}
	if err := s.awaitResults(ctx, 0, stream, n); err != nil {
		return d, err
	}
	took := time.Since(s.begin) - begin
	now, err := s.spent(worker)
	if err != nil {
		return d, err
	}
	rate := perSecond(curve(sampling.stop(begin), begin, results))
	if r.Profile != "" {
		s.end(syscall.SIGTERM) // profiles are written by an orderly end
	}
	perRequest := 1e6 / float64(n)
	return drained{
		perSecond: float64(n) / took.Seconds(),
		workerCPU: now.worker.cpu * perRequest, serverCPU: (now.server.cpu - serverBefore.cpu) * perRequest,
		rate: rate, now: now,
	}, nil
}
