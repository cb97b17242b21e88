package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
)

const (
	// faultEvery is how often a fault that goes on is told, and how long it must be gone to be over.
	faultEvery = time.Minute
	// maxFaults bounds the faults that are told apart by their causes, which an upstream may invent without end. Beyond it
	// those that the same mends are one.
	maxFaults  = 48
	longestTag = 80 // bytes
)

// faultLog tells the operator of the upstream's faults: each kind with its first request, the cause and what mends it,
// then how often it came, once a minute, and when it is over. Thousands of polls may meet the same fault.
type faultLog struct {
	poll.Retriever
	log      *slog.Logger
	oddHints prometheus.Counter

	mu    sync.Mutex
	known map[string]*fault // by outcome and kind of cause
}

// fault is one kind, while it lasts.
type fault struct {
	outcome, cause string
	times, since   int // in all, and since it was told
	told, last     time.Time
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
		f.tell(q.RequestID, "odd_hint", "", "the wait "+o.OddHint, "have the upstream say one number of seconds, from 0 to 300; it is kept within that")
	}
	// The engine itself tells of a refused key: it stops everything.
	if mend := o.Mend(); mend != "" && o.Kind != api.Unauthorized {
		cause := "no answer within the time for one poll"
		if o.Failure != nil {
			cause = o.Failure.Message
		}
		f.tell(q.RequestID, o.Kind.String(), tag(cause), cause, mend)
	}
	return o
}

// tag is what all causes of a kind have in common: their words without what is quoted or has digits, as addresses, sizes
// and ids do.
func tag(cause string) string {
	var common strings.Builder
	quoted := false
	for word := range strings.FieldsSeq(cause) {
		if common.Len() >= longestTag {
			break
		}
		within := quoted
		if strings.Count(word, `"`)%2 == 1 {
			quoted = !quoted
		}
		if !within && !strings.ContainsAny(word, `"0123456789`) {
			common.WriteString(word + " ")
		}
	}
	return common.String()[:min(common.Len(), longestTag)]
}

func (f *faultLog) tell(id, outcome, tag, cause, mend string) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	key := outcome + " " + tag
	known := f.known[key]
	if known == nil && len(f.known) >= maxFaults {
		key = mend
		known = f.known[key]
	}
	if known == nil {
		known = &fault{outcome: outcome, cause: cause}
		f.known[key] = known
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

// run says of which faults nothing was heard for a while, until ctx ends: also when nothing is polled any more.
func (f *faultLog) run(ctx context.Context) {
	ticker := time.NewTicker(faultEvery / 12)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			f.forget(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

func (f *faultLog) forget(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, known := range f.known {
		if now.Sub(known.last) < faultEvery {
			continue
		}
		f.log.Info("a fault of the upstream is over", "outcome", known.outcome, "times", known.times, "last", known.last.UTC(), "cause", known.cause)
		delete(f.known, key)
	}
}
