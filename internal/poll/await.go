package poll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"futurebridge/internal/api"
)

// Retriever makes one attempt at a future. It never retries and always ends in one outcome, by the query's deadline.
type Retriever interface {
	Retrieve(ctx context.Context, q api.Query) api.Outcome
}

// Future is what an API returned when work was started. In JSON it is a plain id, or an object with request_id.
type Future struct {
	RequestID string `json:"request_id"`
	Type      string `json:"request_type,omitempty"`
}

// ID is the future of a plain id.
func ID(id string) Future { return Future{RequestID: id} }

func (f *Future) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte{'"'}) {
		return json.Unmarshal(data, &f.RequestID)
	}
	type plain Future
	if err := json.Unmarshal(data, (*plain)(f)); err != nil {
		return err
	}
	if f.RequestID == "" {
		return errors.New("a future is an id, or an object with a request_id")
	}
	return nil
}

// AwaitConfig is everything that Await depends on. Only Retriever is required.
type AwaitConfig struct {
	Retriever Retriever
	Policy    Policy        // the zero Policy means DefaultPolicy
	Timeout   time.Duration // from the call; 0: none

	// Observer and Telemetry are told of each transition, in order. A panic in either changes nothing.
	Observer  func(queueState, reason string)
	Telemetry func(TelemetryEvent)

	Jitter func() float64 // in [0, 1); default rand.Float64
}

// TelemetryEvent reports a transition to whatever collects such things.
type TelemetryEvent struct {
	Name      string // "queue.state_change"
	RequestID string
	Transition
}

// ResultError is the error of a request that ended without completing.
type ResultError struct {
	RequestID string
	Result    Result
}

func (e *ResultError) Error() string {
	f := e.Result.Failure
	return fmt.Sprintf("request %q %s after %d polls: %s (%s, category %s)",
		e.RequestID, e.Result.Status, e.Result.Polls, f.Message, f.Type, f.Category)
}

// Await polls one request until it ends or ctx does. It returns a *ResultError when the request ended without
// completing, and ctx's error when ctx ended first.
func Await(ctx context.Context, future Future, cfg AwaitConfig) (Result, error) {
	if future.RequestID == "" {
		return Result{}, errors.New("await: the future has no request id")
	}
	if cfg.Policy == (Policy{}) {
		cfg.Policy = DefaultPolicy()
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	state := State{Submitted: now(time.Now())}
	if cfg.Timeout > 0 {
		state.Deadline = state.Submitted.Add(cfg.Timeout)
	}
	for {
		reply := Reply{Start: time.Now()}
		reply.Outcome = cfg.Retriever.Retrieve(ctx, query(future.RequestID, future.Type, state))
		if ctx.Err() != nil && reply.Outcome.Kind != api.Completed {
			return Result{}, ctx.Err()
		}
		reply.End = time.Now()
		var d Decision
		state, d = cfg.Policy.Step(state, reply, cfg.Jitter())
		if d.Emit.QueueState != "" {
			if cfg.Observer != nil {
				guard(func() { cfg.Observer(d.Emit.QueueState, d.Emit.Reason) })
			}
			if cfg.Telemetry != nil {
				guard(func() { cfg.Telemetry(TelemetryEvent{"queue.state_change", future.RequestID, d.Emit}) })
			}
		}
		for until := time.Now().Add(d.Wait); d.Terminal.Status == ""; {
			at := time.Now()
			left := min(until.Sub(at), clockEvery)
			if !state.Deadline.IsZero() {
				if !now(at).Before(state.Deadline) {
					d.Terminal = cfg.Policy.Timeout(state, at)
					break
				}
				left = min(left, state.Deadline.Sub(now(at)))
			}
			if left <= 0 {
				break
			}
			timer := time.NewTimer(left)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return Result{}, ctx.Err()
			}
		}
		switch d.Terminal.Status {
		case "":
		case Completed:
			return d.Terminal, nil
		default:
			return d.Terminal, &ResultError{future.RequestID, d.Terminal}
		}
	}
}

// query is the attempt that state calls for.
func query(id, requestType string, s State) api.Query {
	return api.Query{
		RequestID: id, RequestType: requestType, Iteration: s.Polls, Full: s.Full, Fresh: s.Fresh, Deadline: s.Deadline,
	}
}

// guard runs a caller's function, whose panic is the caller's own affair.
func guard(f func()) {
	defer func() { _ = recover() }()
	f()
}
