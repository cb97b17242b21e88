package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"futurebridge/internal/fleet"
	"futurebridge/internal/intake"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

// bridge is one running bridge: work comes in through intake, is held and polled by engine, and goes out through
// publisher. keeper holds the leases meanwhile.
type bridge struct {
	cfg       *serveConfig
	names     publish.Names
	js        jetstream.JetStream
	nc        *nats.Conn
	log       *slog.Logger
	keeper    *intake.Keeper
	intake    *intake.Intake
	engine    *poll.Engine
	faults    *faultLog
	publisher *publish.Publisher
	keptFor   atomic.Int64  // how long logs are kept, in nanoseconds; 0: for ever
	fleet     *fleet.Member // nil: there is no limit to share
	share     fleet.Config

	saying sync.Mutex
	types  map[string]*poll.About // what submissions say that name a type and nothing else
}

// maxTypes bounds types; what comes beyond says it for each request again.
const maxTypes = 1000

// newBridge wires a bridge on streams that stand; consumer is the configuration in force.
func newBridge(cfg *serveConfig, nc *nats.Conn, js jetstream.JetStream, consumer jetstream.ConsumerConfig,
	retriever poll.Retriever, full func() bool, log *slog.Logger, reg prometheus.Registerer,
) (*bridge, error) {
	names := cfg.names()
	b := &bridge{cfg: cfg, names: names, js: js, nc: nc, log: log, faults: newFaultLog(retriever, log, reg), types: make(map[string]*poll.About)}
	b.publisher = publish.New(publish.Config{
		Conn: nc, JetStream: js, Names: names, MaxInline: int64(cfg.MaxInlineResult),
		Metrics: publish.NewMetrics(reg), Log: log,
	})
	b.engine = poll.NewEngine(poll.Config{
		Policy: cfg.policy(), Retriever: b.faults, Sink: b.publisher,
		MaxPolls: cfg.MaxPolls, PollsPerSecond: cfg.PollsPerSecond, ResultMemory: int64(cfg.ResultMemory), Full: full,
		Adaptive: cfg.Cadence == "adaptive", Metrics: poll.NewMetrics(reg), Log: log,
	})
	metrics := intake.NewMetrics(reg)
	most := cfg.MaxRequests
	if consumer.MaxAckPending > 0 { // else the consumer that stands has no limit
		most = min(most, consumer.MaxAckPending)
	}
	var err error
	if b.keeper, err = intake.NewKeeper(nc, consumer.AckWait, metrics, log); err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	if cfg.Embedded {
		b.keeper.StopsWithServer()
	}
	b.intake = intake.New(intake.Config{
		Keeper: b.keeper, Max: most,
		Consumer: b.consumer, CheckID: publish.CheckID, CheckTimeout: b.checkTimeout,
		Handle: b.handle, Reject: b.publisher.Reject, Paused: b.paused,
		Metrics: metrics, Log: log,
	})
	b.share = fleet.Config{
		JetStream: js, Bucket: names.BridgesBucket(), Make: b.ensure, AckWait: consumer.AckWait,
		Rate: cfg.PollsPerSecond, Changed: func(parts int) { b.engine.Share(parts) }, Log: log,
	}
	if cfg.PollsPerSecond > 0 {
		b.fleet = fleet.New(b.share)
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_requests_held", Help: "Requests that this bridge holds.",
		}, func() float64 { return float64(b.engine.Held()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_oldest_request_seconds", Help: "Age of the oldest request held, since its submission; 0 without any.",
		}, b.oldest),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_bridges", Help: "Bridges that share --polls-per-second, this one included; 0 without it, and until that is known.",
		}, b.bridges),
	)
	return b, nil
}

func (b *bridge) bridges() float64 {
	if b.fleet == nil {
		return 0
	}
	return float64(b.fleet.Size())
}

// look warns when others keep a rate that this bridge was not given. It is asked beside the work: a bridge that is not
// permitted to know is ready all the same, and asks no more.
func (b *bridge) look(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	tell := b.nc.ErrorHandler()
	b.nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if denied := asDenied(err); denied != nil && strings.Contains(denied.subject, b.names.BridgesStream()) {
			stop()
			return
		}
		tell(nc, sub, err)
	})
	fleet.Look(ctx, b.share)
}

func (b *bridge) oldest() float64 {
	submitted := b.engine.Oldest()
	if submitted.IsZero() {
		return 0
	}
	return time.Since(submitted).Seconds()
}

// run works until ctx ends, then drains: what waits goes to other bridges at once, polls in flight end and their
// results are published. hard ends the drain.
func (b *bridge) run(ctx, hard context.Context) {
	hard, cut := context.WithCancel(hard)
	defer cut()
	var running, leases sync.WaitGroup
	keeping, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	leases.Go(func() { b.keeper.Run(keeping) })
	leases.Go(func() { b.faults.run(keeping) })
	running.Go(func() { b.engine.Run(hard) })
	running.Go(func() { b.intake.Run(hard, ctx) })
	if b.fleet != nil {
		leases.Go(func() { b.fleet.Run(keeping) })
	} else {
		leases.Go(func() { b.look(keeping) })
	}

	<-ctx.Done()
	begin := time.Now()
	b.log.Info("draining: what waits goes back, polls in flight end", "held", b.engine.Held(), "at_most", b.cfg.DrainTimeout)
	timer := time.AfterFunc(b.cfg.DrainTimeout, cut)
	defer timer.Stop()
	b.engine.Drain()
	running.Wait()
	release()
	leases.Wait()
	flush, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	if err := b.keeper.Flush(flush); err != nil {
		b.log.Warn("what was settled or handed back last may not have arrived; it comes again when its lease ends", "error", err)
	}
	_ = b.keeper.Close()
	b.log.Info("drained", "took", time.Since(begin).Round(time.Millisecond))
}

// paused says why no work may be taken; empty: it may.
func (b *bridge) paused() string {
	if b.fleet != nil && b.fleet.Size() == 0 {
		return "waiting to share --polls-per-second with the other bridges, in bucket " + b.names.BridgesBucket()
	}
	return b.publisher.Trouble()
}

// ensure makes anew what somebody deleted of streams and consumer.
func (b *bridge) ensure(ctx context.Context) error {
	_, err := publish.Ensure(ctx, b.js, b.names, b.cfg.streamOptions())
	return err
}

// consumer finds the shared consumer, and makes it and its stream anew if somebody deleted them.
func (b *bridge) consumer(ctx context.Context) (intake.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := b.ensure(ctx); err != nil {
		return nil, err
	}
	states, err := b.js.Stream(ctx, b.names.StatesStream())
	if err != nil {
		return nil, err
	}
	b.keptFor.Store(int64(states.CachedInfo().Config.MaxAge))
	found, err := b.js.Consumer(ctx, b.names.WorkStream(), b.names.Consumer())
	if err != nil {
		return nil, err
	}
	return intake.NewPuller(b.nc, publish.APIPrefix(b.js), found), nil
}

// checkTimeout rejects what would outlive its own log.
func (b *bridge) checkTimeout(timeout time.Duration) error {
	if kept := time.Duration(b.keptFor.Load()); kept > 0 && timeout >= kept {
		return fmt.Errorf("the time-out is %d ms, but the stream %s keeps logs for %d ms: ask for less, or have its max age raised",
			timeout.Milliseconds(), b.names.StatesStream(), kept.Milliseconds())
	}
	return nil
}

// handle reads what is stored of each request before it is polled, settles those that have ended, and has the others
// polled.
func (b *bridge) handle(ctx context.Context, items []intake.Item) {
	all := make([]poll.Request, len(items))
	byID := make(map[string]int, len(items))
	requests := make([]*poll.Request, 0, len(items))
	for i := range items {
		all[i] = b.request(&items[i])
		if _, twice := byID[items[i].ID]; !twice {
			byID[items[i].ID] = len(requests)
			requests = append(requests, &all[i])
		}
	}
	ended, err := b.publisher.Lookup(ctx, requests)
	if err != nil { // only the end of ctx
		for i := range items {
			items[i].Lease.Nak(0)
		}
		return
	}
	for i := range all {
		r, found := &all[i], requests[byID[items[i].ID]]
		r.LogSeq, r.State.QueueState, r.State.Reason, r.State.Polls = found.LogSeq, found.State.QueueState, found.State.Reason, found.State.Polls
	}
	open := all[:0]
	for i := range items {
		if ended[byID[items[i].ID]] {
			items[i].Lease.Ack()
			continue
		}
		open = append(open, all[i])
	}
	b.engine.Add(open)
}

func (b *bridge) request(item *intake.Item) poll.Request {
	timeout := item.Timeout
	if timeout == 0 {
		timeout = b.cfg.Timeout
	}
	return poll.Request{
		ID: item.ID, About: b.about(item), Lease: item.Lease, Submitter: b.names.Submitter(item.Subject),
		State: poll.State{Submitted: item.Submitted, Deadline: item.Submitted.Add(timeout), Redelivered: item.Redelivered},
	}
}

// about is what an item says besides its id, once for all that name the same type and nothing else.
func (b *bridge) about(item *intake.Item) *poll.About {
	switch {
	case item.Traceparent != "" || item.Labels != nil:
		return &poll.About{Type: item.Type, Traceparent: item.Traceparent, Labels: item.Labels}
	case item.Type == "":
		return nil
	}
	b.saying.Lock()
	defer b.saying.Unlock()
	about := b.types[item.Type]
	if about == nil {
		about = &poll.About{Type: item.Type}
		if len(b.types) < maxTypes {
			b.types[item.Type] = about
		}
	}
	return about
}

// notReady says why this bridge cannot take work; empty when it can.
func (b *bridge) notReady() string {
	switch {
	case b.nc.Status() != nats.CONNECTED:
		return "not connected to NATS"
	case b.engine.KeyRefused():
		return "the upstream refuses the API key or the bill (401, 402 or 403)"
	}
	return b.intake.Trouble()
}
