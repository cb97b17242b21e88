package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/testbed"
)

// answering is an upstream that answers what it is told.
type answering func(q api.Query) api.Outcome

func (a answering) Retrieve(_ context.Context, q api.Query) api.Outcome { return a(q) }

func TestAFaultIsToldOnceThenCountedThenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testbed.Log
		var answer api.Outcome
		f := newFaultLog(answering(func(api.Query) api.Outcome { return answer }), slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
		poll := func(id string, o api.Outcome) {
			answer = o
			f.Retrieve(t.Context(), api.Query{RequestID: id})
		}
		busy := api.Outcome{Kind: api.ServerFault, Failure: &api.Failure{Message: "Service Unavailable"}}
		good := api.Outcome{Kind: api.Pending}
		poll("healthy", good)
		require.Empty(t, jsonLines(t, &log))
		for range 90 { // 1.5 minutes
			for range 100 {
				poll("req-1", busy)
			}
			time.Sleep(time.Second)
		}
		poll("req-2", api.Outcome{Kind: api.Pending, OddHint: "soon"})
		time.Sleep(59 * time.Second)
		poll("healthy", good)
		lines := jsonLines(t, &log)
		require.Len(t, lines, 4)
		for i, want := range []map[string]any{
			{"level": "WARN", "outcome": "server_fault", "times": 1., "request": "req-1", "cause": "Service Unavailable", "hint": busy.Mend()},
			{"level": "WARN", "outcome": "server_fault", "times": 6000.},
			{"level": "WARN", "outcome": "odd_hint", "times": 1., "request": "req-2", "cause": "the wait soon"},
			{"level": "INFO", "msg": "a fault of the upstream is over", "outcome": "server_fault", "times": 9000.},
		} {
			for key, value := range want {
				require.Equal(t, value, lines[i][key], "line %d: %s", i, key)
			}
		}
		time.Sleep(time.Minute)
		poll("healthy", good)
		require.Len(t, jsonLines(t, &log), 5, "the odd hint is over too")
		require.Empty(t, f.known)
		require.Zero(t, f.next.Load())
		var counted dto.Metric
		require.NoError(t, f.oddHints.Write(&counted))
		require.InDelta(t, 1, counted.GetCounter().GetValue(), 0)

		poll("req-3", busy)
		require.Len(t, jsonLines(t, &log), 6, "it is told anew")
		poll("req-3", api.Outcome{Kind: api.Unauthorized, Failure: &api.Failure{Message: "bad key"}})
		require.Len(t, jsonLines(t, &log), 6, "the engine tells of a refused key")
		ended, end := context.WithCancel(t.Context())
		end()
		answer = api.Outcome{Kind: api.NoAnswer}
		f.Retrieve(ended, api.Query{RequestID: "req-4"})
		require.Len(t, jsonLines(t, &log), 6, "a poll that our own end broke off is nobody's fault")
	})
}

// jsonLines are a log's lines of JSON.
func jsonLines(t *testing.T, log *testbed.Log) (lines []map[string]any) {
	text := log.String()
	require.NotContains(t, text, faultsKey)
	for text := range strings.Lines(text) {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		lines = append(lines, line)
	}
	return lines
}
