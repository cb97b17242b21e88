package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

const (
	logLength   = 10     // records of each log that stands
	resultBytes = 20_000 // of each result that stands
	measured    = 10_000 // publishes of each kind, at most
	publishing  = 256    // of them at a time
)

// trusting is a lease that lasts.
type trusting struct{ poll.Lease }

func (trusting) Trusted() bool { return true }

// streams tells what a fenced publish costs, and what memory the server takes, when the streams hold the logs and the
// results of n requests: while the server is warm, and after it was started again.
func streams(ctx context.Context, r *run, n int) ([]Result, error) {
	r.progress.begin("streams: logs and results of %s requests are stored", count(n))
	s, err := r.newSite(ctx, `{}`, publish.Options{})
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.fill(ctx, n); err != nil {
		return nil, err
	}
	each := min(measured, n/2)
	c := chart{file: "streams", title: "Fenced publishes when results of " + count(n) + " requests are stored", y: "per second", bars: true}
	var all []Result
	for turn, when := range []string{"warm", "after a restart"} {
		var figures []Figure
		if turn > 0 {
			took, err := s.again(ctx)
			if err != nil {
				return nil, err
			}
			figures = append(figures, Figure{"until the server serves its streams again", took.Seconds(), "s"})
		}
		start, err := s.nats.usage()
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{"NATS server: resident memory", start.resident / mb, "MB"})
		p := publish.New(publish.Config{Conn: s.nc, JetStream: s.js, Names: s.names, MaxInline: 1 << 20})
		var rates []float64
		for _, kind := range []struct {
			name string
			do   func(i int) error
		}{
			{"states on new logs", func(i int) error { return transit(ctx, p, &poll.Request{ID: when + strconv.Itoa(i)}) }},
			{"states on logs that stand", func(i int) error { // the last record of the log is read for each, from wherever it lies
				i = (turn*each + i) * (n / (2 * each))
				return transit(ctx, p, &poll.Request{ID: stands(i), LogSeq: uint64((logLength-1)*n + i + 1)})
			}},
			{"results and closing records", func(i int) error {
				request := &poll.Request{ID: "ends " + when + strconv.Itoa(i), Lease: trusting{}}
				return p.Finish(ctx, request, poll.Result{Status: poll.Completed, Body: make([]byte, resultBytes), Time: time.Now()})
			}},
		} {
			r.progress.begin("streams, %s: %s", when, kind.name)
			rate, cpu, err := s.measure(ctx, each, kind.do)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", kind.name, err)
			}
			rates = append(rates, rate)
			figures = append(figures, Figure{kind.name, rate, "/s"}, Figure{kind.name + ": the NATS server's CPU", cpu, "µs"})
			if turn == 0 {
				c.labels = append(c.labels, kind.name)
			}
		}
		end, err := s.nats.usage()
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{"NATS server: resident memory then", end.resident / mb, "MB"})
		figures = append(figures, cost("NATS server", []usage{end}, func(u usage) usage { return u })...) // there is no bridge, and nobody polls
		c.add(when, rates)
		all = append(all, Result{Requests: n, Case: when, Figures: figures})
	}
	r.report.charts = append(r.report.charts, c)
	return all, nil
}

// stands is the id of a request whose log and result stand.
func stands(i int) string { return fmt.Sprintf("3bcb34a3-3037-49fe-b8a2-2eac64c37fc0:train:0:%d", i) }

func transit(ctx context.Context, p *publish.Publisher, r *poll.Request) error {
	r.Lease = trusting{}
	_, err := p.Transition(ctx, r, poll.Transition{QueueState: "active", Poll: logLength, Time: time.Now()})
	return err
}

// fill stores logs and results as bridges do, but without their fences: that is what takes the time.
func (s *site) fill(ctx context.Context, n int) error {
	var failed atomic.Pointer[error]
	js, err := jetstream.New(s.nc, jetstream.WithPublishAsyncMaxPending(4096), jetstream.WithPublishAsyncErrHandler(
		func(_ jetstream.JetStream, _ *nats.Msg, err error) { failed.Store(&err) }))
	if err != nil {
		return err
	}
	put := func(subject, id, status string, data []byte) error {
		m := &nats.Msg{Subject: "ingest." + subject, Data: data, Header: nats.Header{
			publish.HeaderRequestID: {id}, publish.HeaderStatus: {status}, publish.HeaderPolls: {"7"},
			publish.HeaderSubmittedAt: {"2026-01-02T15:04:05.123456789Z"}, "Content-Type": {"application/json"},
		}}
		_, err := js.PublishMsgAsync(m, jetstream.WithStallWait(patience))
		return err
	}
	body := make([]byte, resultBytes)
	for record := range logLength {
		for i := range n {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			id := stands(i)
			state := fmt.Appendf(nil, `{"request_id":%q,"queue_state":"active","previous_queue_state":"paused_capacity","poll":%d,"time":"2026-01-02T15:04:05.123456789Z"}`, id, record)
			if err := put(s.names.State(id), id, "active", state); err != nil {
				return err
			}
			if record == logLength-1 {
				if err := put(s.names.Result(id), id, "completed", body); err != nil {
					return err
				}
			}
			if i%1000 == 0 {
				s.run.progress.at(record*n+i, logLength*n)
			}
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	for stream, want := range map[string]int{s.names.StatesStream(): logLength * n, s.names.ResultsStream(): n} {
		if found, err := s.stored(ctx, stream); err != nil || found != want {
			return errors.Join(err, fmt.Errorf("%s holds %d of %d messages", stream, found, want))
		}
	}
	return nil
}

// measure does something n times, and tells how often a second and what CPU time the server took for each, in µs.
func (s *site) measure(ctx context.Context, n int, do func(i int) error) (rate, cpu float64, err error) {
	before, err := s.nats.usage()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	var next, done atomic.Int64
	var failed atomic.Pointer[error]
	var working sync.WaitGroup
	for range publishing {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && failed.Load() == nil; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					failed.Store(&err)
					return
				}
				s.run.progress.at(int(done.Add(1)), n)
			}
		})
	}
	working.Wait()
	took := time.Since(begin)
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	after, err := s.nats.usage()
	return float64(n) / took.Seconds(), 1e6 * (after.cpu - before.cpu) / float64(n), err
}

// again stops the NATS server in its own way and starts it anew on what it stored.
func (s *site) again(ctx context.Context) (took time.Duration, err error) {
	s.nc.Close()
	s.nats.end(os.Interrupt)
	s.forget(s.nats)
	begin := time.Now()
	if s.nats, err = s.start(ctx, "bench-nats", "--store-dir", filepath.Join(s.dir, "nats")); err != nil {
		return 0, err
	}
	err = until(ctx, patience, 20*time.Millisecond, func() (bool, error) {
		found := natsAt.FindStringSubmatch(s.nats.said())
		if found != nil {
			s.natsURL = found[1]
		}
		return found != nil, s.nats.alive()
	})
	if err != nil {
		return 0, err
	}
	if s.nc, err = nats.Connect(s.natsURL, nats.Name("bridge bench")); err != nil {
		return 0, err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		return 0, err
	}
	return time.Since(begin), s.await(ctx, "the streams are there", 0, 1, func() (int, error) {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.stored(asking, s.names.ResultsStream()); err != nil {
			return 0, nil
		}
		took = time.Since(begin)
		return 1, nil
	})
}
