package poll

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

const ms = time.Millisecond

// await runs Await without jitter, so that every wait is exact.
func await(t *testing.T, s *script, change func(*AwaitConfig)) (Result, error) {
	cfg := AwaitConfig{Retriever: s, Jitter: func() float64 { return 0 }}
	if change != nil {
		change(&cfg)
	}
	return Await(t.Context(), ID("req-1"), cfg)
}

func TestCompletedInOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(completed(`{"loss":0.25}`))
		result, err := await(t, s, nil)
		require.NoError(t, err)
		require.Equal(t, Completed, result.Status)
		require.JSONEq(t, `{"loss":0.25}`, string(result.Body))
		require.Equal(t, 1, result.Polls)
		require.Equal(t, 1, s.calls())
		require.Zero(t, result.Elapsed, "nothing was waited for")
		require.Equal(t, []api.Query{{RequestID: "req-1"}}, s.queries)
	})
}

func TestPendingThenCompletedBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(pending(), pending(), pending(), pending(), pending(), pending(), pending(), pending(), completed("{}"))
		result, err := await(t, s, nil)
		require.NoError(t, err)
		require.Equal(t, 9, s.calls())
		require.Equal(t, []time.Duration{
			500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 30000 * ms, 30000 * ms,
		}, s.waits())
		require.Equal(t, 91500*ms, result.Elapsed)
		for i, q := range s.queries {
			require.Equal(t, i, q.Iteration)
		}
	})
}

func TestUserFailureIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(failed(api.User), completed("{}"))
		result, err := await(t, s, nil)
		var ended *ResultError
		require.ErrorAs(t, err, &ended)
		require.Equal(t, 1, s.calls())
		require.Equal(t, Failed, result.Status)
		require.Equal(t, api.Failure{Type: api.RequestFailed, Category: api.User, Message: "it broke"}, *result.Failure)
		require.False(t, result.Retryable)
		require.ErrorContains(t, err, "it broke")
	})
}

func TestServerFailureIsRetried(t *testing.T) {
	for name, category := range map[string]api.Category{"server": api.Server, "unknown": api.Unknown} {
		t.Run(name+" and then a result", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scripted(failed(category), failed(category), failed(category), completed("{}"))
				_, err := await(t, s, nil)
				require.NoError(t, err)
				require.Equal(t, []time.Duration{500 * ms, 1000 * ms, 2000 * ms}, s.waits())
			})
		})
		t.Run(name+" four times is the end", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scripted(failed(category))
				result, err := await(t, s, nil)
				require.Error(t, err)
				require.Equal(t, 4, s.calls(), "the failure, and three re-polls")
				require.Equal(t, Failed, result.Status)
				require.True(t, result.Retryable)
			})
		})
		t.Run(name+" until the deadline returns the failure and no time-out", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scripted(failed(category))
				result, err := await(t, s, func(c *AwaitConfig) {
					c.Policy, c.Timeout = DefaultPolicy(), 5*time.Second
					c.Policy.ServerFailurePolls = -1
				})
				require.Error(t, err)
				require.Equal(t, Failed, result.Status)
				require.Equal(t, api.RequestFailed, result.Failure.Type)
				require.Equal(t, 5*time.Second, result.Elapsed)
				require.Equal(t, []time.Duration{500 * ms, 1000 * ms, 2000 * ms}, s.waits(), "and 1.5 s more to the deadline")
			})
		})
	}
}

func TestPausedRateLimitWaitsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(state("paused_rate_limit", "tokens per minute", 0), completed("{}"))
		var seen [][2]string
		_, err := await(t, s, func(c *AwaitConfig) {
			c.Observer = func(queueState, reason string) { seen = append(seen, [2]string{queueState, reason}) }
		})
		require.NoError(t, err)
		require.Equal(t, 2, s.calls())
		require.Equal(t, []time.Duration{1000 * ms}, s.waits())
		require.Equal(t, [][2]string{{"paused_rate_limit", "tokens per minute"}}, seen)
	})
}

func TestDeadlineGivesAPITimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(pending())
		result, err := await(t, s, func(c *AwaitConfig) { c.Timeout = 3 * time.Second })
		require.Error(t, err)
		require.Equal(t, TimedOut, result.Status)
		require.Equal(t, api.APITimeout, result.Failure.Type)
		require.Equal(t, 3*time.Second, result.Elapsed)
		require.Equal(t, []time.Duration{500 * ms, 1000 * ms}, s.waits(), "the third wait is cut by the deadline")
		require.Equal(t, 3, result.Polls)
	})
	t.Run("which cuts a held poll", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{answers: []answer{{pending(), 45 * time.Second}}}
			result, err := await(t, s, func(c *AwaitConfig) { c.Timeout = 50 * time.Second })
			require.Error(t, err)
			require.Equal(t, TimedOut, result.Status)
			require.Equal(t, 50*time.Second, result.Elapsed)
			require.Equal(t, []time.Duration{45 * time.Second}, s.waits())
		})
	})
}

func TestQueueStateChangeIsObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(
			state("active", "", 0), state("active", "", 0), state("paused_capacity", "full", 0), pending(),
			state("paused_capacity", "full", 0), state("paused_capacity", "still full", 0), state("unknown", "", 0),
			fault(503, 1), state("unknown", "", 0), completed("{}"),
		)
		var events []TelemetryEvent
		result, err := await(t, s, func(c *AwaitConfig) {
			c.Observer = func(string, string) { panic("an observer's panic is its own affair") }
			c.Telemetry = func(e TelemetryEvent) { events = append(events, e); panic("likewise") }
		})
		require.NoError(t, err)
		require.Equal(t, 10, result.Polls)
		var seen [][3]string
		for _, e := range events {
			require.Equal(t, "queue.state_change", e.Name)
			require.Equal(t, "req-1", e.RequestID)
			seen = append(seen, [3]string{e.Previous, e.QueueState, e.Reason})
		}
		require.Equal(t, [][3]string{
			{"", "active", ""},
			{"active", "paused_capacity", "full"},
			{"paused_capacity", "paused_capacity", "still full"},
			{"paused_capacity", "unknown", ""},
		}, seen)
	})
}

// The cases that the seed system's tests cover.
func TestAwaitCoversTheSeedsCases(t *testing.T) {
	metadata := api.Outcome{Kind: api.Metadata, HTTPStatus: 200, PayloadBytes: 1 << 20}
	blank := status(api.BlankRefusal, 400)
	held := func(o api.Outcome) answer { return answer{o, 2 * time.Second} }
	now := func(o api.Outcome) answer { return answer{o, 0} }
	cases := []struct {
		name    string
		answers []answer
		timeout time.Duration
		policy  func(*Policy)
		status  Status
		waits   []time.Duration
		check   func(*testing.T, *script, Result)
	}{
		{
			name: "metadata only and then in full", answers: []answer{now(metadata), now(completed("{}"))},
			status: Completed, waits: []time.Duration{0},
			check: func(t *testing.T, s *script, _ Result) {
				require.False(t, s.queries[0].Full)
				require.True(t, s.queries[1].Full)
			},
		},
		{
			name: "metadata only for ever is a protocol error", answers: []answer{now(metadata)}, status: Failed,
			waits: []time.Duration{0, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 30000 * ms, 30000 * ms, 30000 * ms},
		},
		{
			name: "two blank 400s and then a result", answers: []answer{now(blank), now(blank), now(completed("{}"))},
			status: Completed, waits: []time.Duration{500 * ms, 1000 * ms},
			check: func(t *testing.T, s *script, _ Result) {
				require.Equal(t, []bool{false, true, true}, []bool{s.queries[0].Fresh, s.queries[1].Fresh, s.queries[2].Fresh})
			},
		},
		{
			name: "four blank 400s", answers: []answer{now(blank)}, status: Failed,
			waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms},
		},
		{
			name: "expired ends after the grace", answers: []answer{now(status(api.Expired, 410))}, status: Expired,
			waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 2500 * ms},
		},
		{
			name: "not found ends after the grace", answers: []answer{now(status(api.NotFound, 404))}, status: Failed,
			waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 2500 * ms},
		},
		{
			name: "not found at first is a replica that lags", answers: []answer{now(status(api.NotFound, 404)), now(pending()), now(completed("{}"))},
			status: Completed, waits: []time.Duration{500 * ms, 500 * ms},
		},
		{
			name:    "not found after an answer broke off is lost",
			answers: []answer{now(api.Outcome{Kind: api.Unreachable, BrokeOff: true, Failure: unreachable().Failure}), now(status(api.NotFound, 404))},
			policy:  func(p *Policy) { p.NotFoundGrace = 0 }, status: Lost, waits: []time.Duration{500 * ms},
		},
		{
			name:    "408s that the upstream held do not sleep",
			answers: []answer{held(requestTimeout()), held(requestTimeout()), held(requestTimeout()), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{2000 * ms, 2000 * ms, 2000 * ms},
		},
		{
			name:    "408s at once back off like any pending answer",
			answers: []answer{now(requestTimeout()), now(requestTimeout()), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{500 * ms, 1000 * ms},
		},
		{
			name: "endless 408s end as a time-out that carries the 408", answers: []answer{held(requestTimeout())},
			timeout: 5 * time.Second, status: TimedOut, waits: []time.Duration{2000 * ms, 2000 * ms},
			check: func(t *testing.T, _ *script, r Result) {
				require.Equal(t, api.APITimeout, r.Failure.Type)
				require.Equal(t, 408, r.HTTPStatus)
			},
		},
		{
			name:    "500, 502 and 503 and then a result",
			answers: []answer{now(fault(500, 5)), now(fault(502, 6)), now(fault(503, 7)), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms},
		},
		{
			name:    "408s and 5xx have exponents of their own",
			answers: []answer{now(requestTimeout()), now(fault(500, 5)), now(requestTimeout()), now(fault(502, 5)), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{500 * ms, 500 * ms, 1000 * ms, 500 * ms},
		},
		{
			name: "a backoff of one's own", answers: []answer{now(pending()), now(pending()), now(pending()), now(completed("{}"))},
			policy: func(p *Policy) { p.BackoffInitial, p.BackoffMax = 100*ms, 300*ms },
			status: Completed, waits: []time.Duration{100 * ms, 200 * ms, 300 * ms},
		},
		{
			name: "400 with a message stops", answers: []answer{now(status(api.Refused, 400))}, status: Failed, waits: []time.Duration{},
		},
		{
			name: "a connection error sleeps once", answers: []answer{now(unreachable()), now(completed("{}"))},
			status: Completed, waits: []time.Duration{500 * ms},
		},
		{
			name: "a bare forward-backward result", answers: []answer{now(completed(`{"loss_fn_output_type":"x","metrics":{"loss":1}}`))},
			status: Completed, waits: []time.Duration{},
			check: func(t *testing.T, _ *script, r Result) {
				require.Equal(t, `{"loss_fn_output_type":"x","metrics":{"loss":1}}`, string(r.Body))
			},
		},
		{
			name: "active with hints", answers: []answer{now(state("active", "", 5*time.Second)), now(state("active", "", 10*time.Second)), now(completed("{}"))},
			status: Completed, waits: []time.Duration{5 * time.Second, 10 * time.Second},
		},
		{
			name: "active without a hint", answers: []answer{now(state("active", "", 0)), now(completed("{}"))},
			status: Completed, waits: []time.Duration{500 * ms},
		},
		{
			name:    "paused_rate_limit with hints",
			answers: []answer{now(state("paused_rate_limit", "", 5*time.Second)), now(state("paused_rate_limit", "", 10*time.Second)), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{5 * time.Second, 10 * time.Second},
		},
		{
			name:    "paused_capacity with and without hints",
			answers: []answer{now(state("paused_capacity", "", 0)), now(state("paused_capacity", "", 5*time.Second)), now(state("paused_capacity", "", 10*time.Second)), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{time.Second, 5 * time.Second, 10 * time.Second},
		},
		{
			name:    "an unknown state waits like an active one",
			answers: []answer{now(state("unknown", "", 0)), now(state("unknown", "", 5*time.Second)), now(state("unknown", "", 10*time.Second)), now(completed("{}"))},
			status:  Completed, waits: []time.Duration{500 * ms, 5 * time.Second, 10 * time.Second},
		},
		{
			name: "a refused key fails nobody", answers: []answer{now(status(api.Unauthorized, 401)), now(status(api.Unauthorized, 402)), now(completed("{}"))},
			status: Completed, waits: []time.Duration{1000 * ms, 2000 * ms},
		},
		{
			name: "throttled with a hint", answers: []answer{now(api.Outcome{Kind: api.Throttled, HTTPStatus: 429, Hint: 7 * time.Second}), now(completed("{}"))},
			status: Completed, waits: []time.Duration{7 * time.Second},
		},
		{
			name: "ten malformed answers in a row", answers: []answer{now(status(api.Malformed, 200))}, status: Failed,
			waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 30000 * ms, 30000 * ms, 30000 * ms},
		},
		{
			name: "ten identical 500s in a row are a failed job", answers: []answer{now(fault(500, 77))}, status: Failed,
			waits: []time.Duration{500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 30000 * ms, 30000 * ms, 30000 * ms},
		},
		{
			name: "an outage's 503s are not, however long it takes", answers: []answer{now(fault(503, 77))}, timeout: time.Hour, status: TimedOut,
			check: func(t *testing.T, s *script, _ Result) { require.Greater(t, s.calls(), 100) },
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: c.answers}
				result, err := await(t, s, func(cfg *AwaitConfig) {
					cfg.Policy, cfg.Timeout = DefaultPolicy(), c.timeout
					if c.policy != nil {
						c.policy(&cfg.Policy)
					}
				})
				require.Equal(t, c.status, result.Status)
				require.Equal(t, c.status != Completed, err != nil)
				if c.waits != nil {
					require.Equal(t, c.waits, s.waits())
				}
				if c.check != nil {
					c.check(t, s, result)
				}
			})
		})
	}
}

func TestAwaitStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		s := &script{answers: []answer{{pending(), 45 * time.Second}}}
		_, err := Await(ctx, ID("req-1"), AwaitConfig{Retriever: s})
		require.ErrorIs(t, err, ctx.Err())
		var ended *ResultError
		require.False(t, errors.As(err, &ended), "the request has not ended: the caller has")
	})
}

func TestAFutureIsAPlainIDOrAnObject(t *testing.T) {
	for in, want := range map[string]Future{
		`"req-1"`:                {RequestID: "req-1"},
		`{"request_id":"req-1"}`: {RequestID: "req-1"},
		`{"request_id":"-5","request_type":"Sample","model_id":"m"}`: {RequestID: "-5", Type: "Sample"},
	} {
		var f Future
		require.NoError(t, json.Unmarshal([]byte(in), &f), in)
		require.Equal(t, want, f)
	}
	for _, in := range []string{`{}`, `5`, `[]`, `{"request_id":5}`} {
		var f Future
		require.Error(t, json.Unmarshal([]byte(in), &f), in)
	}
	_, err := Await(t.Context(), Future{}, AwaitConfig{Retriever: scripted(completed("{}"))})
	require.ErrorContains(t, err, "no request id")
}
