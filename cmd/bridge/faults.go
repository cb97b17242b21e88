package main

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
)

// faultEvery is how often a fault that goes on is told, and how long it must be gone to be over.
const faultEvery = time.Minute

// faultLog tells the operator of the upstream's faults: each kind with its first request, the cause and what mends it,
// then how often it came, once a minute, and when it is over. Thousands of polls may meet the same fault.
type faultLog struct {
	poll.Retriever
	log      *slog.Logger
	oddHints prometheus.Counter

	next  atomic.Int64 // when to look for faults that are over, in Unix nanoseconds; 0: there are none
	mu    sync.Mutex
	known map[string]*fault // by what mends them
}

// fault is one kind, while it lasts.
type fault struct {
	outcome      string
	times, since int // in all, and since it was told
	told, last   time.Time
}

func newFaultLog(r poll.Retriever, log *slog.Logger, reg prometheus.Registerer) *faultLog {
	f := &faultLog{
		Retriever: r, log: log, known: map[string]*fault{},
		oddHints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bridge_odd_hints_total",
			Help: "Waits that the upstream asked for in a way that cannot be granted: no number, over already, several, or above 5 minutes.",
		}),
	}
	reg.MustRegister(f.oddHints)
	return f
}

// Retrieve makes an attempt and looks at what came of it.
func (f *faultLog) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	o := f.Retriever.Retrieve(ctx, q)
	if ctx.Err() != nil { // broken off by our own end
		return o
	}
	if o.OddHint != "" {
		f.oddHints.Inc()
		f.tell(q.RequestID, "odd_hint", "the wait "+o.OddHint, "have the upstream say one number of seconds, from 0 to 300; it is kept within that")
	}
	// The engine itself tells of a refused key: it stops everything.
	if mend := o.Mend(); mend != "" && o.Kind != api.Unauthorized {
		cause := "no answer within the time for one poll"
		if o.Failure != nil {
			cause = o.Failure.Message
		}
		f.tell(q.RequestID, o.Kind.String(), cause, mend)
	}
	f.forget()
	return o
}

func (f *faultLog) tell(id, outcome, cause, mend string) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[mend]
	if known == nil {
		known = &fault{outcome: outcome}
		f.known[mend] = known
		f.next.CompareAndSwap(0, now.Add(faultEvery).UnixNano())
	}
	known.times++
	known.since++
	known.last = now
	if !known.told.IsZero() && now.Sub(known.told) < faultEvery {
		return
	}
	f.log.Warn("a fault of the upstream", "outcome", outcome, "times", known.since, "request", id, "cause", cause, "hint", mend)
	known.told, known.since = now, 0
}

// forget says of which faults nothing was heard for a while.
func (f *faultLog) forget() {
	now := time.Now()
	if next := f.next.Load(); next == 0 || now.UnixNano() < next {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := int64(0)
	for mend, known := range f.known {
		over := known.last.Add(faultEvery)
		if now.Before(over) {
			if next == 0 || over.UnixNano() < next {
				next = over.UnixNano()
			}
			continue
		}
		f.log.Info("a fault of the upstream is over", "outcome", known.outcome, "times", known.times, "last", known.last.UTC())
		delete(f.known, mend)
	}
	f.next.Store(next)
}
