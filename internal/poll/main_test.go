package poll

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"futurebridge/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is one scripted poll: what it ends in, and how long the upstream takes over it.
type answer struct {
	outcome api.Outcome
	takes   time.Duration
}

// script is a Retriever that gives its answers in order and the last one for ever, and remembers when each poll began.
type script struct {
	answers []answer

	mu      sync.Mutex
	at      []time.Time
	queries []api.Query
}

func scripted(outcomes ...api.Outcome) *script {
	s := &script{}
	for _, o := range outcomes {
		s.answers = append(s.answers, answer{outcome: o})
	}
	return s
}

func (s *script) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	s.mu.Lock()
	a := s.answers[min(len(s.at), len(s.answers)-1)]
	s.at = append(s.at, time.Now())
	s.queries = append(s.queries, q)
	s.mu.Unlock()
	if !q.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.Deadline)
		defer cancel()
	}
	if a.takes > 0 {
		timer := time.NewTimer(a.takes)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return api.Outcome{Kind: api.NoAnswer, BrokeOff: true}
		}
	}
	return a.outcome
}

// waits are the times between the beginnings of polls.
func (s *script) waits() []time.Duration {
	waits := []time.Duration{}
	for i := 1; i < len(s.at); i++ {
		waits = append(waits, s.at[i].Sub(s.at[i-1]))
	}
	return waits
}

func (s *script) calls() int { return len(s.at) }

// The outcomes that tests are scripted with.
func completed(body string) api.Outcome {
	return api.Outcome{Kind: api.Completed, HTTPStatus: 200, Result: []byte(body), ContentType: "application/json"}
}

func pending() api.Outcome { return api.Outcome{Kind: api.Pending, HTTPStatus: 200} }

func requestTimeout() api.Outcome { return api.Outcome{Kind: api.Pending, HTTPStatus: 408} }

func state(name, reason string, hint time.Duration) api.Outcome {
	return api.Outcome{Kind: api.Pending, HTTPStatus: 200, QueueState: name, Reason: reason, Hint: hint}
}

func failed(category api.Category) api.Outcome {
	return api.Outcome{Kind: api.Failed, HTTPStatus: 200, Failure: &api.Failure{Type: api.RequestFailed, Category: category, Message: "it broke"}}
}

func status(kind api.Kind, code int) api.Outcome {
	return api.Outcome{Kind: kind, HTTPStatus: code, Failure: &api.Failure{Type: api.APIStatus, Category: api.Server, Message: "no"}}
}

func fault(code int, fingerprint uint64) api.Outcome {
	o := status(api.ServerFault, code)
	o.Fingerprint = fingerprint
	return o
}

func unreachable() api.Outcome {
	return api.Outcome{Kind: api.Unreachable, Failure: &api.Failure{Type: api.APIConnection, Category: api.Unknown, Message: "connection refused"}}
}
