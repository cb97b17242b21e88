// Package intake takes work items from the work stream and keeps their leases.
//
// It fetches no more than it has room for, hands what comes on at once, and parses it; what is no request is rejected
// with a reason and terminated. A work item is settled in one of three ways only: acknowledged, once its request's
// closing record is stored; terminated, once its rejection is stored; or handed back when the bridge drains.
package intake

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// MaxBatch is the most items that Handle gets at a time.
	MaxBatch     = 500
	maxFetchWait = 2 * time.Second // drains wait for a fetch to end, and trust counts from its start
	maxRejecting = 64
	maxHandling  = 4 // batches that are looked up while the next are fetched
	fullWait     = 100 * time.Millisecond
	// A consumer that was made anew while this bridge was disconnected gives no error: its next fetch simply works.
	lookupEvery = time.Minute
)

// Item is one work item that is a request.
type Item struct {
	Submission
	Seq         uint64
	Subject     string
	Submitted   time.Time // the stream's timestamp: the same at every delivery
	Redelivered bool      // somebody else may have held it before
	Lease       *Lease
}

// Config is what an Intake is made of. All but Metrics and Log are required.
type Config struct {
	Keeper   *Keeper
	Max      int // items held at a time
	Consumer func(ctx context.Context) (Consumer, error)
	CheckID  func(id string) error
	// CheckTimeout says why a request may not last so long; 0: as long as those do that name no time-out.
	CheckTimeout func(timeout time.Duration) error
	// Handle takes items over, each with the duty to settle its lease. They are MaxBatch at most; up to maxHandling calls
	// run at a time.
	Handle func(ctx context.Context, items []Item)
	// Reject stores the event that says why a submission is no request.
	Reject func(ctx context.Context, seq uint64, submitted time.Time, reason string, m *nats.Msg) error
	// Paused says why no work may be taken at present; empty: it may.
	Paused  func() string
	Metrics *Metrics
	Log     *slog.Logger
}

// Intake is the pull loop.
type Intake struct {
	cfg       Config
	rejecting chan struct{}
	handling  chan struct{}
	busy      sync.WaitGroup // with either
	late      []*Lease       // what the fetch under way brought after the stop
	trouble   atomic.Pointer[string]
	fetching  atomic.Bool
}

// New makes an intake; nothing happens before Run.
func New(cfg Config) *Intake {
	return &Intake{cfg: cfg, rejecting: make(chan struct{}, maxRejecting), handling: make(chan struct{}, maxHandling)}
}

// Trouble says why no work comes in; empty when it can.
func (in *Intake) Trouble() string {
	if !in.fetching.Load() {
		return "not fetching yet"
	}
	if t := in.trouble.Load(); t != nil {
		return *t
	}
	return in.cfg.Paused()
}

// Run fetches until stop ends; items that a fetch under way brings after that go back. ctx bounds what is handed on.
func (in *Intake) Run(ctx, stop context.Context) {
	defer in.busy.Wait()
	var consumer Consumer
	var found time.Time
	for failures := 0; stop.Err() == nil; {
		if consumer == nil || time.Since(found) > lookupEvery {
			asked := time.Now()
			var err error
			if consumer, err = in.cfg.Consumer(stop); err != nil {
				in.failed(stop, err, &failures)
				continue
			}
			found = time.Now()
			in.cfg.Keeper.follow(consumer, asked)
		}
		free := in.cfg.Max - in.cfg.Keeper.Held()
		if free <= 0 || in.cfg.Paused() != "" {
			in.fetching.Store(true)
			wait(stop, in.cfg.Keeper.freed, fullWait)
			continue
		}
		if err := in.fetch(ctx, stop, consumer, min(free, 2*MaxBatch)); err != nil {
			consumer = nil // deleted, perhaps: look it up, and make it anew if need be
			in.failed(stop, err, &failures)
			continue
		}
		if failures > 0 {
			in.cfg.Log.Info("work comes in again")
		}
		failures = 0
		in.trouble.Store(nil)
	}
}

func (in *Intake) failed(stop context.Context, err error, failures *int) {
	if stop.Err() != nil {
		return
	}
	reason := "cannot fetch work: " + err.Error()
	in.trouble.Store(&reason)
	if *failures++; *failures == 1 {
		in.cfg.Log.Error("cannot fetch work; trying again", "error", err)
	}
	in.cfg.Metrics.failedFetches.Inc()
	wait(stop, nil, min(time.Second, 50*time.Millisecond<<min(*failures, 5)))
}

func wait(stop context.Context, wake <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-stop.Done():
	}
}

// fetch hands on what one fetch brings, as it comes.
func (in *Intake) fetch(ctx, stop context.Context, consumer Consumer, most int) error {
	sent := time.Now()
	batch, err := consumer.Fetch(most, min(maxFetchWait, in.cfg.Keeper.ackWait/4))
	if err != nil {
		return err
	}
	in.fetching.Store(true)
	messages := batch.Messages()
	for m := range messages {
		items := in.take(ctx, stop, nil, m, sent)
		for len(items) < MaxBatch && len(messages) > 0 { // whatever else is here already
			items = in.take(ctx, stop, items, <-messages, sent)
		}
		if len(items) > 0 {
			in.handle(ctx, items)
		}
	}
	for _, lease := range in.late { // not before: this fetch would be given it again, and again
		lease.Nak(0)
	}
	in.late = nil
	return batch.Error()
}

// handle hands items on beside the loop: reading what is stored of them takes a round trip to the server or two.
func (in *Intake) handle(ctx context.Context, items []Item) {
	in.handling <- struct{}{}
	in.busy.Go(func() {
		defer func() { <-in.handling }()
		in.cfg.Handle(ctx, items)
	})
}

func (in *Intake) take(ctx, stop context.Context, items []Item, m *nats.Msg, sent time.Time) []Item {
	if m == nil {
		return items
	}
	meta, err := m.Metadata()
	if err != nil {
		in.cfg.Log.Error("a delivery without metadata is ignored", "subject", m.Subject, "error", err)
		return items
	}
	seq := meta.Sequence.Stream
	lease := in.cfg.Keeper.take(seq, m.Reply, sent)
	if stop.Err() != nil {
		in.late = append(in.late, lease)
		return items
	}
	in.cfg.Metrics.deliveries.Inc()
	submission, err := Parse(m.Header, m.Data, in.cfg.CheckID)
	if err == nil {
		err = in.cfg.CheckTimeout(submission.Timeout)
	}
	if err != nil {
		in.reject(ctx, meta, err.Error(), m, lease)
		return items
	}
	if meta.NumDelivered > 1 || time.Since(meta.Timestamp).Abs() > in.cfg.Keeper.ackWait/10 { // old, or our clock is wrong
		lease.announce()
	}
	return append(items, Item{
		Submission: submission, Seq: seq, Subject: m.Subject, Submitted: meta.Timestamp, Redelivered: meta.NumDelivered > 1, Lease: lease,
	})
}

// reject stores the reason, then terminates the item. It takes as long as it takes, beside the loop: rubbish must not
// hold up requests.
func (in *Intake) reject(ctx context.Context, meta *nats.MsgMetadata, reason string, m *nats.Msg, lease *Lease) {
	in.cfg.Metrics.rejected.Inc()
	in.rejecting <- struct{}{}
	in.busy.Go(func() {
		defer func() { <-in.rejecting }()
		if err := in.cfg.Reject(ctx, meta.Sequence.Stream, meta.Timestamp, reason, m); err != nil {
			lease.Nak(0) // only at the end of ctx
			return
		}
		lease.Term()
	})
}
