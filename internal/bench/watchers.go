package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

// watching is how many programs wait for each request in watchers.
const watching = 10

// watchers compares, turn by turn, the polls that a bridge makes for programs that wait for the same requests, with those
// that they make themselves: at once after an answer, as the official SDK does, or with a back-off.
func watchers(ctx context.Context, r *run, n int) ([]Result, error) {
	backoff := poll.DefaultPolicy()
	atOnce := backoff
	atOnce.BackoffInitial, atOnce.BackoffMax, atOnce.PausedWait = time.Nanosecond, time.Nanosecond, time.Nanosecond
	c := chart{file: "watchers", title: fmt.Sprintf("Polls of a request that %d programs wait for", watching), y: "polls of a request", bars: true}
	var byBridge, byPrograms []float64
	var all []Result
	for _, kind := range []struct {
		name   string
		n      int
		style  string // the upstream's
		policy poll.Policy
	}{
		{"polls held, programs poll at once", n, `{"hold":"20s"}`, atOnce},
		{"not held, programs back off", n, `{}`, backoff},
		// Few requests, as each of the loops makes some 150 polls a second, which is what the official SDK was seen to do.
		{"not held, programs poll at once", max(1, n/100), `{"latency":"6500us"}`, atOnce},
	} {
		w := watch{run: r, n: kind.n, over: r.share(1. / 6), script: fmt.Sprintf(
			`{"seed":%d,"style":%s,"profiles":[{"name":"job","steps":[{"state":"active","for":"%v","spread":"%v"},{"answer":"completed"}]}]}`,
			r.Seed, kind.style, r.share(1./30), r.share(1./15))}
		p, err := pair(r, "watchers, "+kind.name,
			side[watched]{fmt.Sprintf("%d programs", watching), func() (watched, error) { return w.programs(ctx, kind.policy) }},
			side[watched]{"the bridge", func() (watched, error) { return w.bridge(ctx) }})
		if err != nil {
			return nil, err
		}
		bridge, programs := of(p.right, watched.pollsOfARequest), of(p.left, watched.pollsOfARequest)
		byBridge, byPrograms = append(byBridge, bridge), append(byPrograms, programs)
		c.labels = append(c.labels, kind.name)
		figures := []Figure{
			{"polls of a request by the bridge", bridge, ""},
			{fmt.Sprintf("polls of a request by %d programs", watching), programs, ""},
			{"programs : bridge", p.ratio(watched.pollsOfARequest), ""},
		}
		all = append(all, Result{Requests: kind.n, Case: kind.name, Figures: slices.Concat(figures, costs("bridge", p.right, watched.spent),
			cost(fmt.Sprintf("upstream of %d programs", watching), p.left, func(w watched) usage { return w.now.upstream }))})
	}
	c.add("the bridge", byBridge)
	c.add(fmt.Sprintf("%d programs", watching), byPrograms)
	r.report.charts = append(r.report.charts, c)
	return all, nil
}

// watched is what it took until all had their results. Programs are no process of their own.
type watched struct {
	polls float64 // of a request
	now   spent   // at the end
}

func (w watched) pollsOfARequest() float64 { return w.polls }
func (w watched) spent() spent             { return w.now }

// watch is n requests that begin spread over a time.
type watch struct {
	run    *run
	n      int
	over   time.Duration
	script string
}

// bridge makes the polls until each of the subscribers has all results.
func (w *watch) bridge(ctx context.Context) (done watched, err error) {
	s, err := w.run.newSite(ctx, w.script, publish.Options{})
	if err != nil {
		return done, err
	}
	defer s.close()
	var subscribers []*heard
	for range watching {
		h, err := s.listen(s.names.Results())
		if err != nil {
			return done, err
		}
		defer h.nc.Close()
		subscribers = append(subscribers, h)
	}
	b, err := s.serve(ctx)
	if err != nil {
		return done, err
	}
	if err := s.submit(ctx, w.n, w.over); err != nil {
		return done, err
	}
	if err := s.await(ctx, "results heard", w.run.Duration, watching*w.n, func() (total int, err error) {
		for _, h := range subscribers {
			heard, _ := h.count()
			total += heard
		}
		return total, nil
	}); err != nil {
		return done, err
	}
	if err := s.awaitResults(ctx, 0, s.names.ResultsStream(), w.n); err != nil {
		return done, err
	}
	stats, err := s.obeyed(false)
	if err != nil {
		return done, err
	}
	done.polls = float64(stats.Polls) / float64(w.n)
	done.now, err = s.spent(b.process)
	return done, err
}

// programs has as many programs poll without a bridge.
func (w *watch) programs(ctx context.Context, policy poll.Policy) (done watched, err error) {
	s, err := w.run.newSite(ctx, w.script, publish.Options{})
	if err != nil {
		return done, err
	}
	defer s.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for range watching {
		transport := api.NewTransport(api.TransportConfig{MaxConns: w.n})
		defer transport.CloseIdleConnections()
		program, err := api.New(api.Config{BaseURL: s.url, Transport: transport})
		if err != nil {
			return done, err
		}
		for i, id := range ids(w.n) {
			wait := time.Until(begin.Add(w.over * time.Duration(i) / time.Duration(w.n)))
			group.Go(func() error {
				select {
				case <-time.After(wait):
				case <-ctx.Done():
				}
				_, err := poll.Await(ctx, poll.ID(id), poll.AwaitConfig{Retriever: program, Policy: policy})
				return err
			})
		}
	}
	if err := s.await(ctx, "results handed out", w.run.Duration, watching*w.n, func() (int, error) {
		stats, err := s.stats(false)
		return stats.Deliveries, err
	}); err != nil {
		cancel()
		return done, errors.Join(err, group.Wait())
	}
	if err := group.Wait(); err != nil {
		return done, err
	}
	stats, err := s.stats(false)
	if err == nil && stats.Deliveries != watching*w.n {
		err = fmt.Errorf("%d results were handed out to %d programs that wait for %d", stats.Deliveries, watching, w.n)
	}
	if err != nil {
		return done, err
	}
	done.polls = float64(stats.Polls) / float64(w.n)
	done.now.upstream, err = s.upstream.usage()
	return done, err
}
