package main

import (
	"context"
	"encoding/json"
	"fmt"
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
		running, stop := context.WithCancel(t.Context())
		defer stop()
		go f.run(running)
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
		time.Sleep(5 * time.Second)
		poll("req-2", api.Outcome{Kind: api.Pending, OddHint: "soon"})
		time.Sleep(59 * time.Second) // without a poll
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
		synctest.Wait()
		require.Len(t, jsonLines(t, &log), 5, "the odd hint is over too")
		require.Empty(t, f.known)
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

func TestEachCauseIsToldWithItsOwnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testbed.Log
		var answer api.Outcome
		f := newFaultLog(answering(func(api.Query) api.Outcome { return answer }), slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
		poll := func(id string, kind api.Kind, cause string) {
			answer = api.Outcome{Kind: kind, Failure: &api.Failure{Message: cause}}
			f.Retrieve(t.Context(), api.Query{RequestID: id})
		}
		causes := []string{
			"the upstream cannot be reached: read tcp 127.0.0.1:%d->127.0.0.1:80: read: connection reset by peer",
			"the upstream cannot be reached: EOF", "the answer broke off: unexpected EOF",
			`the upstream cannot be reached: net/http: HTTP/1.x transport connection broken: malformed HTTP response "SSH-%d.0 a b"`,
			"the answer broke off: gzip: invalid checksum",
		}
		at := func(i int, cause string) string {
			if strings.Contains(cause, "%d") {
				return fmt.Sprintf(cause, i)
			}
			return cause
		}
		for i := range 100 {
			for j, cause := range causes {
				poll(fmt.Sprintf("req-%d-%d", j, i), api.Malformed, at(i, cause))
			}
			poll("other", api.ServerFault, causes[1])
		}
		lines := jsonLines(t, &log)
		require.Len(t, lines, len(causes)+1)
		for j, cause := range causes {
			require.Equal(t, fmt.Sprintf("req-%d-0", j), lines[j]["request"])
			require.Equal(t, at(0, cause), lines[j]["cause"])
		}
		require.Equal(t, "server_fault", lines[len(causes)]["outcome"])
		time.Sleep(faultEvery)
		poll("req", api.Malformed, causes[1])
		require.InDelta(t, 100, jsonLines(t, &log)[len(causes)+1]["times"], 0)

		// An upstream that invents them is told of no longer, but counted.
		word := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 1+i/26) }
		for i := range 1000 {
			poll("req", api.Malformed, word(i))
			poll("req", api.ServerFault, word(i)+strings.Repeat(" long", 100))
		}
		require.LessOrEqual(t, len(f.known), maxFaults+2)
		require.Len(t, jsonLines(t, &log), len(f.known)+1, "those that are known, and one for the second time")
		f.forget(time.Now().Add(faultEvery))
		require.Empty(t, f.known)
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
