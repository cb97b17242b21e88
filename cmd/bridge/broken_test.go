package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
	"futurebridge/internal/intake"
	"futurebridge/internal/poll"
	"futurebridge/internal/testbed"
)

// TestABrokenBridgeIsFoundOut breaks one rule of the delivery protocol at a time. The same scenario has to pass with a
// bridge that is not broken, and to fail with the one that is, by the rule that it breaks: else it tests nothing.
func TestABrokenBridgeIsFoundOut(t *testing.T) {
	for _, c := range []struct {
		name   string
		rule   history.Rule // that the broken bridge violates
		broken func() seams
		script sim.Script
		play   func(w *world, odd func(name string, args ...string) *running, broken seams)
	}{
		{"acknowledges before the result is stored", history.OneResult, func() seams { return seams{sink: ackFirst} }, job(time.Second), resultsRefused},
		{"acknowledges between result and closing record", history.OneClosing, func() seams { return seams{sink: ackAtResult} }, job(time.Second), closingRefused},
		{"publishes with a message id and no fence", history.OneResult, func() seams { return seams{wire: unfenced(0)} }, job(5 * time.Second), twoHolders},
		{"publishes a result again without its expectation", history.OneResult, func() seams { return seams{wire: unfenced(1)} }, job(5 * time.Second), deafAtResult},
		{"does not read what is stored at a delivery", history.Over, func() seams { return seams{unread: true} }, job(time.Second), submittedAgain},
		{"treats an unknown outcome as a failure", history.Ending, func() seams { return seams{sink: impatient} }, once(job(5 * time.Second)), serverDownAtResult},
		{"publishes a refused state on top", history.Order, func() seams { return seams{sink: insistent} }, paused(), lateState},
		{"goes on polling when its trust has run out", history.OneHolder, func() seams { return seams{request: trusting} }, job(3 * time.Minute), cutOff},
		{"counts trust from the arrival", history.OneHolder, func() seams {
			return seams{consumer: func(c intake.Consumer) intake.Consumer { return &ahead{Consumer: c} }}
		}, job(3 * time.Minute), stopped},
		{"ends a request that somebody else was given", history.Ending, func() seams {
			return seams{policy: func(p *poll.Policy) { p.NotFoundGrace = 0 }}
		}, once(job(5 * time.Second)), slowHolder},
		{"counts the deadline from the arrival", history.Deadline, func() seams { return seams{request: fromArrival} },
			sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{{State: "active"}}}}}, takenOver},
		{"encodes results anew", history.Bytes, func() seams {
			return seams{retriever: func(r poll.Retriever) poll.Retriever { return reencoding{r} }}
		}, job(time.Second), plainLife},
		{"does not drain", history.NothingLost, func() seams { return seams{abrupt: true} }, once(held()), stoppedWhilePolling},
	} {
		t.Run(c.name, func(t *testing.T) {
			verdict := func(s seams) (report history.Report) {
				testbed.Bubble(t, func(t *testing.T) {
					w := newWorld(t, c.script)
					c.play(w, func(name string, args ...string) *running { return w.odd(name, s, args...) }, s)
					report = w.judge()
					w.close()
				})
				return report
			}
			right := verdict(seams{})
			require.Empty(t, right.Violations, "a bridge that is not broken passes")
			require.Equal(t, right.Accepted, right.Terminal)
			broken := verdict(c.broken())
			t.Logf("%d violations: %v; the first: %s", len(broken.Violations), broken.Broken, append(broken.Violations, "none")[0])
			require.NotZero(t, broken.Broken[c.rule], "the broken one fails %q, not %v", c.rule, broken.Violations)
		})
	}
}

// job is an upstream of jobs that take a time.
func job(takes time.Duration) sim.Script {
	return sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{{State: "active", For: takes}, {Answer: "completed", ResultBytes: 500}}}}}
}

func paused() sim.Script {
	return sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
		{State: "paused_rate_limit", Reason: "slow down", For: 4 * time.Second}, {State: "active", For: 30 * time.Second}, {Answer: "completed"},
	}}}}
}

// held is an upstream that holds polls, and goes on when their clients have left.
func held() sim.Script {
	s := job(30 * time.Second)
	s.Style = sim.Style{Hold: 45 * time.Second, IgnoreDisconnect: true}
	return s
}

// once makes an upstream hand out each result once.
func once(s sim.Script) sim.Script {
	s.Style.Retention = "once"
	return s
}

// limit changes a stream that stands.
func (w *world) limit(stream string, change func(*jetstream.StreamConfig)) {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), stream)
	require.NoError(w.t, err)
	config := s.CachedInfo().Config
	change(&config)
	_, err = w.js.UpdateStream(w.t.Context(), config)
	require.NoError(w.t, err)
}

// refuse makes a stream full as it is, and unrefuse gives it room again.
func (w *world) refuse(stream string) {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), stream)
	require.NoError(w.t, err)
	w.limit(stream, func(c *jetstream.StreamConfig) { c.MaxMsgs = max(1, int64(s.CachedInfo().State.Msgs)) })
}

func (w *world) unrefuse(stream string) {
	w.limit(stream, func(c *jetstream.StreamConfig) { c.MaxMsgs = -1 })
}

type play = func(name string, args ...string) *running

func resultsRefused(w *world, odd play, _ seams) {
	first := odd("bridge-1", "--ack-wait=10s")
	w.refuse(w.names.ResultsStream())
	w.submit(ids("req", 20)...)
	time.Sleep(30 * time.Second)
	first.kill()
	w.unrefuse(w.names.ResultsStream())
	odd("bridge-2")
	w.quiet(5 * time.Minute)
}

func closingRefused(w *world, odd play, _ seams) {
	first := odd("bridge-1", "--ack-wait=10s")
	w.submit(ids("req", 20)...)
	time.Sleep(500 * time.Millisecond)
	w.refuse(w.names.StatesStream())
	time.Sleep(30 * time.Second)
	first.kill()
	w.unrefuse(w.names.StatesStream())
	odd("bridge-2")
	w.quiet(5 * time.Minute)
}

// twoHolders: each id at two bridges, of which one is the later to know.
func twoHolders(w *world, odd play, _ seams) {
	odd("bridge-1", "--max-requests=50")
	all := ids("req", 50)
	w.submit(all...)
	time.Sleep(time.Second)
	odd("bridge-2", "--max-requests=50")
	w.submit(all...)
	w.quiet(5 * time.Minute)
}

// deafAtResult: results are stored, and their acks do not arrive until the server has forgotten their message ids.
func deafAtResult(w *world, _ play, broken seams) {
	if broken.wire == nil {
		broken.wire = &wire{}
	}
	w.odd("bridge-1", broken)
	w.submit(ids("req", 20)...)
	time.Sleep(4 * time.Second)
	broken.wire.deafen(30 * time.Second)
	w.quiet(5 * time.Minute)
}

func submittedAgain(w *world, odd play, _ seams) {
	odd("bridge-1")
	w.submit("req-1")
	w.settled(time.Minute)
	time.Sleep(10 * time.Minute)
	w.submit("req-1")
	w.quiet(time.Minute)
}

func serverDownAtResult(w *world, odd play, _ seams) {
	odd("bridge-1")
	w.submit(ids("req", 20)...)
	time.Sleep(4 * time.Second)
	w.restartServer(20 * time.Second)
	w.quiet(5 * time.Minute)
}

// lateState: of two holders one hears of the pause only when the other has logged that it is over.
func lateState(w *world, _ play, broken seams) {
	broken.retriever = func(r poll.Retriever) poll.Retriever {
		return slow{r, 6 * time.Second, func(o api.Outcome) bool { return o.QueueState == "paused_rate_limit" }}
	}
	w.odd("bridge-1", broken, "--max-requests=1")
	w.submit("req-1")
	time.Sleep(100 * time.Millisecond)
	w.bridge("bridge-2", "--max-requests=1")
	time.Sleep(4 * time.Second)
	w.submit("req-1")
	w.quiet(5 * time.Minute)
}

// cutOff: a bridge that still reaches the upstream and no longer the server, where another one takes over.
func cutOff(w *world, _ play, broken seams) {
	broken.wire = &wire{}
	w.odd("bridge-1", broken, "--ack-wait=20s", "--cadence=fixed", "--backoff-max=5s")
	w.submit(ids("req", 10)...)
	time.Sleep(5 * time.Second)
	w.bridge("bridge-2", "--backoff-max=5s")
	broken.wire.sever(2 * time.Minute)
	w.quiet(5 * time.Minute)
}

// stopped: what a fetch brings lies in the socket of a stopped process until its leases are over.
func stopped(w *world, _ play, broken seams) {
	outer, until := broken.consumer, time.Now().Add(30*time.Second)
	broken.consumer = func(c intake.Consumer) intake.Consumer {
		c = &stalled{c, until}
		if outer != nil {
			c = outer(c)
		}
		return c
	}
	w.odd("bridge-1", broken, "--ack-wait=10s", "--backoff-max=5s")
	w.submit(ids("req", 10)...)
	time.Sleep(5 * time.Second)
	w.bridge("bridge-2", "--backoff-max=5s")
	w.quiet(5 * time.Minute)
}

// slowHolder: an upstream that hands a result out once gives it to one of two holders, where it takes time to arrive.
func slowHolder(w *world, odd play, _ seams) {
	w.odd("bridge-1", seams{retriever: func(r poll.Retriever) poll.Retriever {
		return slow{r, 5 * time.Second, func(o api.Outcome) bool { return o.Kind == api.Completed }}
	}}, "--max-requests=20")
	all := ids("req", 20)
	w.submit(all...)
	time.Sleep(time.Second)
	odd("bridge-2", "--max-requests=20")
	w.submit(all...)
	w.quiet(5 * time.Minute)
}

func takenOver(w *world, odd play, _ seams) {
	w.run.DeadlineSlack = 3 * time.Second
	first := odd("bridge-1", "--ack-wait=10s")
	for _, id := range ids("req", 10) {
		w.submitFor(id, time.Minute)
	}
	time.Sleep(30 * time.Second)
	first.kill()
	odd("bridge-2")
	w.quiet(5 * time.Minute)
}

func plainLife(w *world, odd play, _ seams) {
	odd("bridge-1")
	w.submit(ids("req", 10)...)
	w.quiet(time.Minute)
}

func stoppedWhilePolling(w *world, odd play, _ seams) {
	first := odd("bridge-1", "--ack-wait=30s")
	w.submit(ids("req", 20)...)
	time.Sleep(10 * time.Second)
	first.stop()
	w.bridge("bridge-2")
	w.quiet(5 * time.Minute)
}

// The broken bridges.

type sinkFunc struct {
	poll.Sink
	transition func(context.Context, *poll.Request, poll.Transition) (bool, error)
	finish     func(context.Context, *poll.Request, poll.Result) error
}

func (s sinkFunc) Transition(ctx context.Context, r *poll.Request, t poll.Transition) (bool, error) {
	if s.transition == nil {
		return s.Sink.Transition(ctx, r, t)
	}
	return s.transition(ctx, r, t)
}

func (s sinkFunc) Finish(ctx context.Context, r *poll.Request, result poll.Result) error {
	if s.finish == nil {
		return s.Sink.Finish(ctx, r, result)
	}
	return s.finish(ctx, r, result)
}

func ackFirst(b *bridge) poll.Sink {
	return sinkFunc{Sink: b.publisher, finish: func(ctx context.Context, r *poll.Request, result poll.Result) error {
		r.Lease.Ack()
		return b.publisher.Finish(ctx, r, result)
	}}
}

func ackAtResult(b *bridge) poll.Sink {
	return sinkFunc{Sink: b.publisher, finish: func(ctx context.Context, r *poll.Request, result poll.Result) error {
		done := make(chan error, 1)
		lease, subject := r.Lease, b.cfg.names().Result(r.ID)
		go func() { done <- b.publisher.Finish(ctx, r, result) }()
		for {
			select {
			case err := <-done:
				return err
			case <-time.After(100 * time.Millisecond):
			}
			stream, err := b.js.Stream(ctx, b.cfg.names().ResultsStream())
			if err != nil {
				continue
			}
			if _, err := stream.GetLastMsgForSubject(ctx, subject); err == nil {
				lease.Ack()
			}
		}
	}}
}

// unfenced takes the fence off each event, or only off repetitions.
func unfenced(after int) *wire {
	var mu sync.Mutex
	published := map[string]int{}
	return &wire{publish: func(subject string, header nats.Header, _ *[]byte) bool {
		mu.Lock()
		defer mu.Unlock()
		id := header.Get(nats.MsgIdHdr)
		if strings.HasPrefix(subject, "ingest.tinker.result.") && published[id] >= after {
			header.Del(nats.ExpectedLastSubjSeqHdr)
			header.Del("Nats-Expected-Last-Subject-Sequence-Subject")
		}
		published[id]++
		return true
	}}
}

func impatient(b *bridge) poll.Sink {
	return sinkFunc{Sink: b.publisher, finish: func(ctx context.Context, r *poll.Request, result poll.Result) error {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return b.publisher.Finish(ctx, r, result)
	}}
}

func insistent(b *bridge) poll.Sink {
	return sinkFunc{Sink: b.publisher, transition: func(ctx context.Context, r *poll.Request, t poll.Transition) (bool, error) {
		ended, err := b.publisher.Transition(ctx, r, t)
		if err == nil && !ended && (r.State.QueueState != t.QueueState || r.State.Reason != t.Reason) {
			t.Previous, r.State.QueueState, r.State.Reason = r.State.QueueState, t.QueueState, t.Reason
			return b.publisher.Transition(ctx, r, t)
		}
		return ended, err
	}}
}

func trusting(_ *bridge, r *poll.Request) { r.Lease = forever{r.Lease} }

func fromArrival(_ *bridge, r *poll.Request) {
	r.State.Deadline = time.Now().Add(r.State.Deadline.Sub(r.State.Submitted))
}

type reencoding struct{ poll.Retriever }

func (r reencoding) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	o := r.Retriever.Retrieve(ctx, q)
	var v any
	if json.Unmarshal(o.Result, &v) == nil {
		o.Result, _ = json.Marshal(v)
	}
	return o
}
