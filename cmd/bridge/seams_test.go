package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/api"
	"futurebridge/internal/intake"
	"futurebridge/internal/poll"
)

// seams are the places where a test can put something between the parts of a bridge: to hurt it, or to break a rule
// that it keeps. The zero value leaves everything as it is.
type seams struct {
	wire      *wire
	upstream  func(*api.Config) // another one than the simulator, or another way to it
	log       *slog.Logger
	retriever func(poll.Retriever) poll.Retriever
	sink      func(*bridge) poll.Sink
	policy    func(*poll.Policy)
	request   func(*bridge, *poll.Request) // changes a request before it is polled
	unread    bool                         // what is stored of a request is not read at its delivery
	consumer  func(intake.Consumer) intake.Consumer
	abrupt    bool // it does not drain
}

// fit puts them into a bridge that does not run yet.
func (s seams) fit(b *bridge, consumer jetstream.ConsumerConfig, retriever poll.Retriever) {
	if s.sink != nil || s.policy != nil {
		config := poll.Config{
			Policy: b.cfg.policy(), Retriever: retriever, Sink: b.publisher, Log: b.log,
			MaxPolls: b.cfg.MaxPolls, PollsPerSecond: b.cfg.PollsPerSecond, ResultMemory: int64(b.cfg.ResultMemory),
		}
		if s.policy != nil {
			s.policy(&config.Policy)
		}
		if s.sink != nil {
			config.Sink = s.sink(b)
		}
		b.engine = poll.NewEngine(config)
	}
	if s.request == nil && !s.unread && s.consumer == nil {
		return
	}
	find := b.consumer
	if s.consumer != nil {
		find = func(ctx context.Context) (intake.Consumer, error) {
			found, err := b.consumer(ctx)
			if err != nil {
				return nil, err
			}
			return s.consumer(found), nil
		}
	}
	handle := b.handle
	if s.request != nil || s.unread {
		handle = func(ctx context.Context, items []intake.Item) { s.handle(ctx, b, items) }
	}
	b.intake = intake.New(intake.Config{
		Keeper: b.keeper, Max: min(b.cfg.MaxRequests, consumer.MaxAckPending),
		Consumer: find, CheckID: func(string) error { return nil }, CheckTimeout: b.checkTimeout,
		Handle: handle, Reject: b.publisher.Reject, Paused: b.paused,
		Metrics: intake.NewMetrics(nil), Log: b.log,
	})
}

// handle is bridge.handle, one item at a time, and without what is to be left out.
func (s seams) handle(ctx context.Context, b *bridge, items []intake.Item) {
	for i := range items {
		r := b.request(&items[i])
		if !s.unread {
			ended, err := b.publisher.Lookup(ctx, []*poll.Request{&r})
			if err != nil {
				items[i].Lease.Nak(0)
				continue
			}
			if ended[0] {
				items[i].Lease.Ack()
				continue
			}
		}
		if s.request != nil {
			s.request(b, &r)
		}
		b.engine.Add([]poll.Request{r})
	}
}

// slow is an upstream whose answers take a time to arrive.
type slow struct {
	poll.Retriever
	by   time.Duration
	only func(api.Outcome) bool
}

func (s slow) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	o := s.Retriever.Retrieve(ctx, q)
	if s.only(o) {
		time.Sleep(s.by)
	}
	return o
}

// gathered is a batch that is there already.
type gathered struct{ messages chan *nats.Msg }

func (g gathered) Messages() <-chan *nats.Msg { return g.messages }
func (g gathered) Error() error               { return nil }

// stalled is a consumer whose process is stopped during each fetch that brings something, until the time is over.
type stalled struct {
	intake.Consumer
	until time.Time
}

func (s *stalled) Fetch(n int, wait time.Duration) (intake.Batch, error) {
	batch, err := s.Consumer.Fetch(n, wait)
	if err != nil {
		return nil, err
	}
	out := gathered{make(chan *nats.Msg, n)}
	for m := range batch.Messages() {
		out.messages <- m
	}
	if len(out.messages) > 0 {
		time.Sleep(time.Until(s.until))
	}
	close(out.messages)
	return out, batch.Error()
}

// ahead is a consumer that fetches before anybody asks: what it brings was fetched who knows when.
type ahead struct {
	intake.Consumer
	have intake.Batch
}

func (a *ahead) Fetch(n int, wait time.Duration) (intake.Batch, error) {
	have := a.have
	var err error
	a.have, err = a.Consumer.Fetch(n, wait)
	if have == nil {
		empty := gathered{make(chan *nats.Msg)}
		close(empty.messages)
		return empty, err
	}
	return have, err
}

// forever is a lease that is always trusted.
type forever struct{ poll.Lease }

func (forever) Trusted() bool { return true }
