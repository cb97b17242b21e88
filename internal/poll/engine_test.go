package poll

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// fakeSink is a Sink of functions; those that are nil succeed at once.
type fakeSink struct {
	transition func(ctx context.Context, r *Request, t Transition) (bool, error)
	finish     func(ctx context.Context, r *Request, result Result) error
	conclude   func(ctx context.Context, r *Request) (bool, error)

	mu          sync.Mutex
	transitions map[string][]string
	results     map[string][]Result
}

func (s *fakeSink) Transition(ctx context.Context, r *Request, t Transition) (bool, error) {
	if s.transition != nil {
		if ended, err := s.transition(ctx, r, t); ended || err != nil {
			return ended, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.transitions == nil {
		s.transitions = map[string][]string{}
	}
	s.transitions[r.ID] = append(s.transitions[r.ID], t.QueueState)
	return false, nil
}

func (s *fakeSink) Finish(ctx context.Context, r *Request, result Result) error {
	if s.finish != nil {
		if err := s.finish(ctx, r, result); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.results == nil {
		s.results = map[string][]Result{}
	}
	s.results[r.ID] = append(s.results[r.ID], result)
	return nil
}

func (s *fakeSink) Conclude(ctx context.Context, r *Request) (bool, error) {
	if s.conclude != nil {
		return s.conclude(ctx, r)
	}
	return false, nil
}

// fakeLease remembers how it was settled.
type fakeLease struct {
	untrusted         atomic.Bool
	acks, naks, drops atomic.Int32
	settled           atomic.Bool
	after             time.Duration
}

func (l *fakeLease) Trusted() bool { return !l.untrusted.Load() }
func (l *fakeLease) Ack()          { l.once(); l.acks.Add(1) }
func (l *fakeLease) Nak(after time.Duration) {
	l.once()
	l.naks.Add(1)
	l.after = after
}

func (l *fakeLease) Drop() { l.once(); l.drops.Add(1) }

func (l *fakeLease) once() {
	if l.settled.Swap(true) {
		panic("a lease was settled twice")
	}
}

// engine runs an Engine in the bubble until the test ends.
func engine(t *testing.T, retriever Retriever, sink Sink, change func(*Config)) (e *Engine, stop func()) {
	cfg := Config{Policy: DefaultPolicy(), Retriever: retriever, Sink: sink, MaxPolls: 100, ResultMemory: 1 << 20}
	if change != nil {
		change(&cfg)
	}
	e = NewEngine(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { e.Run(ctx); close(ended) }()
	return e, func() { cancel(); <-ended }
}

// pass lets virtual time pass, and everything that is due by then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func request(id string, lease Lease) Request {
	return Request{ID: id, Lease: lease, State: State{Submitted: time.Now(), Deadline: time.Now().Add(24 * time.Hour)}}
}

func TestTheEngineFinishesEachRequestOnceAndThenAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
			switch q.Iteration {
			case 0:
				return state("paused_capacity", "full", 0)
			case 1:
				return state("active", "", 0)
			}
			return completed(`"` + q.RequestID + `"`)
		})
		var leases [500]fakeLease
		sink := &fakeSink{}
		sink.finish = func(_ context.Context, r *Request, _ Result) error {
			require.Zero(t, r.Lease.(*fakeLease).acks.Load(), "acked before it was stored")
			return nil
		}
		e, stop := engine(t, upstream, sink, nil)
		var batch []Request
		for i := range leases {
			batch = append(batch, request(fmt.Sprint("req-", i), &leases[i]))
		}
		e.Add(batch)
		pass(5 * time.Second)
		require.Zero(t, e.Held())
		for i := range leases {
			id := fmt.Sprint("req-", i)
			require.Equal(t, int32(1), leases[i].acks.Load())
			require.Equal(t, []string{"paused_capacity", "active"}, sink.transitions[id])
			require.Len(t, sink.results[id], 1)
			require.Equal(t, `"`+id+`"`, string(sink.results[id][0].Body))
			require.Equal(t, 3, sink.results[id][0].Polls)
		}
		stop()
	})
}

type retrieverFunc func(ctx context.Context, q api.Query) api.Outcome

func (f retrieverFunc) Retrieve(ctx context.Context, q api.Query) api.Outcome { return f(ctx, q) }

func TestOneIDSubmittedTwiceIsPolledOnceAndSettledTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &script{answers: []answer{{pending(), 0}, {pending(), 20 * time.Second}, {completed("{}"), 0}}}
		sink := &fakeSink{}
		e, stop := engine(t, upstream, sink, nil)
		var first, waiting, inFlight fakeLease
		e.Add([]Request{request("req-1", &first)})
		pass(100 * ms)
		second := request("req-1", &waiting)
		second.State.Deadline = time.Now().Add(time.Hour)
		e.Add([]Request{second}) // while it waits
		pass(5 * time.Second)
		e.Add([]Request{request("req-1", &inFlight)}) // while a poll is out
		require.Equal(t, 1, e.Held())
		pass(20 * time.Second)
		require.Equal(t, 3, upstream.calls())
		require.Len(t, sink.results["req-1"], 1)
		require.Equal(t, int32(3), first.acks.Load()+waiting.acks.Load()+inFlight.acks.Load())
		stop()
	})
}

// asked counts how often it is asked whether it is trusted.
type asked struct {
	fakeLease
	times int
}

func (l *asked) Trusted() bool { l.times++; return true }

func TestHoweverOftenAnIDIsSubmittedEachSubmissionIsLookedAtOnce(t *testing.T) {
	const n = 20_000
	synctest.Test(t, func(t *testing.T) {
		e, stop := engine(t, scripted(pending()), &fakeSink{}, nil)
		var first asked
		leases := make([]fakeLease, n)
		e.Add([]Request{request("a", &first)})
		pass(100 * ms)
		before := first.times
		for i := range leases {
			e.Add([]Request{request("a", &leases[i])})
		}
		synctest.Wait()
		require.Equal(t, 1, e.Held())
		require.LessOrEqual(t, first.times-before, n)
		stop()
		for i := range leases {
			require.EqualValues(t, 1, leases[i].naks.Load())
		}
	})
}

func TestTheFirstDeadlineOfSeveralSubmissionsEndsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &fakeSink{}
		e, stop := engine(t, scripted(pending()), sink, nil)
		var a, b fakeLease
		long, short := request("req-1", &a), request("req-1", &b)
		short.State.Deadline = time.Now().Add(10 * time.Second)
		e.Add([]Request{long, short})
		pass(11 * time.Second)
		require.Len(t, sink.results["req-1"], 1)
		require.Equal(t, TimedOut, sink.results["req-1"][0].Status)
		require.Equal(t, int32(2), a.acks.Load()+b.acks.Load())
		stop()
	})
}

func TestALeaseThatIsNotTrustedIsLetGoWithoutAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := scripted(pending())
		e, stop := engine(t, upstream, &fakeSink{}, nil)
		var dead, dying fakeLease
		dead.untrusted.Store(true)
		e.Add([]Request{request("dead", &dead)})
		synctest.Wait()
		require.Zero(t, upstream.calls())
		require.Equal(t, int32(1), dead.drops.Load())
		e.Add([]Request{request("dying", &dying)})
		pass(2 * time.Second)
		polls := upstream.calls()
		require.NotZero(t, polls)
		dying.untrusted.Store(true)
		pass(time.Minute)
		require.Equal(t, polls, upstream.calls(), "no poll after the trust ran out")
		require.Equal(t, int32(1), dying.drops.Load())
		require.Zero(t, e.Held())
		stop()
	})
}

func TestANewLeaseOfTheSameIDTakesOverFromALostOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := scripted(pending(), pending(), pending(), pending(), completed("{}"))
		sink := &fakeSink{}
		e, stop := engine(t, upstream, sink, nil)
		var old, fresh fakeLease
		e.Add([]Request{request("req-1", &old)})
		pass(100 * ms)
		old.untrusted.Store(true)
		again := request("req-1", &fresh)
		again.LogSeq, again.State.QueueState = 7, "active"
		e.Add([]Request{again})
		pass(time.Minute)
		require.Equal(t, int32(1), old.drops.Load())
		require.Equal(t, int32(1), fresh.acks.Load())
		require.Len(t, sink.results["req-1"], 1)
		stop()
	})
}

func TestAResultInHandIsPublishedAlsoWithoutALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &script{answers: []answer{{completed("{}"), 20 * time.Second}}}
		sink := &fakeSink{}
		e, stop := engine(t, upstream, sink, nil)
		var lease fakeLease
		e.Add([]Request{request("req-1", &lease)})
		pass(10 * time.Second)
		lease.untrusted.Store(true)
		pass(20 * time.Second)
		require.Len(t, sink.results["req-1"], 1)
		stop()
	})
}

func TestATransitionWithoutALeaseIsTheEndOfPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := scripted(state("active", "", 0))
		e, stop := engine(t, upstream, &fakeSink{transition: func(context.Context, *Request, Transition) (bool, error) {
			return false, ErrLeaseLost
		}}, nil)
		var lease fakeLease
		e.Add([]Request{request("req-1", &lease)})
		pass(time.Minute)
		require.Equal(t, 1, upstream.calls())
		require.Equal(t, int32(1), lease.drops.Load())
		stop()
	})
}

func TestARequestThatEndedElsewhereIsNotPolledOn(t *testing.T) {
	for name, c := range map[string]struct {
		answer api.Outcome
		sink   *fakeSink
		within time.Duration
	}{
		"at a refused transition": {state("active", "", 0), &fakeSink{transition: func(context.Context, *Request, Transition) (bool, error) { return true, nil }}, time.Second},
		"at a not-found answer":   {status(api.NotFound, 404), &fakeSink{conclude: func(context.Context, *Request) (bool, error) { return true, nil }}, time.Second},
		"every five minutes":      {pending(), &fakeSink{conclude: func(context.Context, *Request) (bool, error) { return true, nil }}, 6 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, stop := engine(t, scripted(c.answer), c.sink, nil)
				var lease fakeLease
				e.Add([]Request{request("req-1", &lease)})
				pass(c.within)
				require.Equal(t, int32(1), lease.acks.Load())
				require.Empty(t, c.sink.results)
				require.Zero(t, e.Held())
				stop()
			})
		})
	}
}

func TestADrainGivesBackWhatWaitsAndFinishesWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
			switch q.RequestID {
			case "waits":
				return pending()
			case "held then pending":
				time.Sleep(20 * time.Second)
				return state("active", "", 0)
			}
			time.Sleep(20 * time.Second)
			return completed("{}")
		})
		sink := &fakeSink{}
		e, stop := engine(t, upstream, sink, nil)
		var waits, held, heldPending, late fakeLease
		e.Add([]Request{request("waits", &waits), request("held", &held), request("held then pending", &heldPending)})
		pass(time.Second)
		begin := time.Now()
		e.Drain()
		synctest.Wait()
		require.Equal(t, int32(1), waits.naks.Load(), "at once")
		e.Add([]Request{request("late", &late)})
		synctest.Wait()
		require.Equal(t, int32(1), late.naks.Load(), "after a drain began nothing is taken")
		pass(30 * time.Second)
		require.Len(t, sink.results["held"], 1)
		require.Equal(t, int32(1), held.acks.Load())
		require.Equal(t, []string{"active"}, sink.transitions["held then pending"])
		require.Equal(t, int32(1), heldPending.naks.Load())
		require.Zero(t, e.Held())
		e.Add([]Request{request("later", &fakeLease{})})
		require.Zero(t, e.Held())
		require.Less(t, time.Since(begin), time.Minute)
		stop()
	})
}

func TestADrainHandsOverHowLongTheUpstreamAskedToWait(t *testing.T) {
	const hint = time.Minute
	for _, c := range []struct {
		name     string
		says     api.Outcome
		takes    time.Duration
		deadline time.Duration
		from, to time.Duration // of the wait that is handed over, ten seconds after the submission
	}{
		{"a paused request", state("paused_rate_limit", "", hint), 0, time.Hour, hint - 10*time.Second, hint},
		{"a poll in flight brings it", state("active", "", hint), 15 * time.Second, time.Hour, hint, hint * 11 / 10},
		{"a server that is overloaded", api.Outcome{Kind: api.Throttled, HTTPStatus: 429, Failure: &api.Failure{}, Hint: hint}, 0, time.Hour, hint - 10*time.Second, hint},
		{"until the deadline", state("paused_rate_limit", "", hint), 0, 20 * time.Second, 10 * time.Second, 10 * time.Second},
		{"not our own wait", pending(), 0, time.Hour, 0, 0},
		{"not what is over", state("active", "", time.Second), 0, time.Hour, 0, time.Second * 11 / 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, stop := engine(t, &script{answers: []answer{{c.says, c.takes}}}, &fakeSink{}, nil)
				var lease fakeLease
				r := request("a", &lease)
				r.State.Deadline = r.State.Submitted.Add(c.deadline)
				e.Add([]Request{r})
				pass(10 * time.Second)
				e.Drain()
				pass(10 * time.Second)
				stop()
				require.EqualValues(t, 1, lease.naks.Load())
				require.GreaterOrEqual(t, lease.after, c.from)
				require.LessOrEqual(t, lease.after, c.to)
			})
		})
	}
}

func TestATimeOutTellsWhyNothingCame(t *testing.T) {
	for _, c := range []struct {
		says  api.Outcome
		polls int // in flight
		want  string
	}{
		{unreachable(), 1, "; at last: " + unreachable().Failure.Message},
		{pending(), 0, "; at last: it was never polled, for limits had it wait"},
	} {
		synctest.Test(t, func(t *testing.T) {
			sink := &fakeSink{}
			e, stop := engine(t, scripted(c.says), sink, func(cfg *Config) { cfg.MaxPolls = c.polls })
			r := request("a", &fakeLease{})
			r.State.Deadline = r.State.Submitted.Add(10 * time.Second)
			e.Add([]Request{r})
			pass(2 * time.Minute)
			stop()
			require.Len(t, sink.results["a"], 1)
			require.Contains(t, sink.results["a"][0].Failure.Message, c.want)
		})
	}
}

func TestTheEndOfTheContextBreaksPollsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, stop := engine(t, &script{answers: []answer{{completed("{}"), time.Hour}}}, &fakeSink{}, nil)
		var lease fakeLease
		e.Add([]Request{request("req-1", &lease)})
		pass(time.Second)
		begin := time.Now()
		stop()
		require.Zero(t, time.Since(begin))
		require.Equal(t, int32(1), lease.naks.Load())
	})
}

func TestNoPollStartsWithoutRoomForItsResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := make(chan struct{})
		sink := &fakeSink{finish: func(ctx context.Context, _ *Request, _ Result) error { <-stored; return nil }}
		upstream := scripted(completed(string(make([]byte, 1000))))
		e, stop := engine(t, upstream, sink, func(c *Config) { c.ResultMemory = 3000 })
		leases := make([]fakeLease, 50)
		for i := range leases {
			e.Add([]Request{request(fmt.Sprint(i), &leases[i])})
			synctest.Wait()
		}
		pass(time.Minute)
		require.Equal(t, 3, upstream.calls(), "three results fill the memory")
		close(stored)
		pass(time.Minute)
		require.Equal(t, 50, upstream.calls())
		require.Zero(t, e.Held())
		require.Zero(t, e.bytes.Load())
		stop()
	})
}

func TestPollsInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		upstream := retrieverFunc(func(context.Context, api.Query) api.Outcome {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(30 * time.Second)
			return completed("{}")
		})
		e, stop := engine(t, upstream, &fakeSink{}, func(c *Config) { c.MaxPolls = 7 })
		leases := make([]fakeLease, 70)
		for i := range leases {
			e.Add([]Request{request(fmt.Sprint(i), &leases[i])})
		}
		pass(301 * time.Second)
		require.Equal(t, int32(7), most.Load())
		require.Zero(t, e.Held())
		stop()
	})
}

func TestARefusedKeyIsToldAndEndsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := atomic.Bool{}
		bad.Store(true)
		var polls atomic.Int32
		upstream := retrieverFunc(func(context.Context, api.Query) api.Outcome {
			polls.Add(1)
			if bad.Load() {
				return status(api.Unauthorized, 401)
			}
			return completed("{}")
		})
		sink := &fakeSink{}
		e, stop := engine(t, upstream, sink, nil)
		leases := make([]fakeLease, 200)
		for i := range leases {
			e.Add([]Request{request(fmt.Sprint(i), &leases[i])})
		}
		pass(10 * time.Minute)
		require.True(t, e.KeyRefused())
		require.Less(t, polls.Load(), int32(130), "those in flight, then one probe at a time")
		require.Empty(t, sink.results)
		bad.Store(false)
		pass(2 * time.Minute)
		require.False(t, e.KeyRefused())
		require.Zero(t, e.Held())
		require.Len(t, sink.results, 200)
		stop()
	})
}

func TestAKeyThatIsNoLongerInUseHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var polls atomic.Int32
		sink := &fakeSink{}
		var e *Engine
		e, stop := engine(t, retrieverFunc(func(context.Context, api.Query) api.Outcome {
			require.False(t, e.KeyRefused())
			if polls.Add(1) > 20 {
				return completed("{}")
			}
			stale := status(api.Unauthorized, 401)
			stale.StaleKey = true
			return stale
		}), sink, nil)
		leases := make([]fakeLease, 20)
		for i := range leases {
			e.Add([]Request{request(fmt.Sprint(i), &leases[i])})
		}
		pass(time.Second)
		require.Len(t, sink.results, 20, "each is polled again at once")
		require.EqualValues(t, 40, polls.Load())
		stop()
	})
}

func TestAProbeThatIsAskedForGoesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		var polls atomic.Int32
		bad.Store(true)
		e, stop := engine(t, retrieverFunc(func(context.Context, api.Query) api.Outcome {
			polls.Add(1)
			if bad.Load() {
				return status(api.Unauthorized, 401)
			}
			return completed("{}")
		}), &fakeSink{}, nil)
		e.Probe() // nothing is held: nothing happens
		e.Add([]Request{request("a", &fakeLease{})})
		pass(10 * time.Minute)
		before := polls.Load()
		e.Probe()
		e.Probe() // as good as one
		pass(100 * time.Millisecond)
		require.Equal(t, before+1, polls.Load(), "one poll, and no other before its turn")
		bad.Store(false)
		e.Probe()
		pass(100 * time.Millisecond)
		require.Zero(t, e.Held())
		stop()
		e.Probe() // nobody listens
	})
}

func TestTheOldestRequestHeldIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, stop := engine(t, scripted(pending()), &fakeSink{}, nil)
		require.Zero(t, e.Oldest())
		begin := time.Now()
		e.Add([]Request{request("a", &fakeLease{})})
		pass(time.Minute)
		e.Add([]Request{request("b", &fakeLease{})})
		require.True(t, begin.Equal(e.Oldest()))
		before := request("c", &fakeLease{})
		before.State.Submitted, before.State.Deadline = begin.Add(-time.Hour), time.Now().Add(time.Second)
		e.Add([]Request{before})
		require.True(t, begin.Add(-time.Hour).Equal(e.Oldest()))
		pass(time.Minute)
		require.True(t, begin.Equal(e.Oldest()), "the other one has ended")
		stop()
		require.Zero(t, e.Oldest())
	})
}
