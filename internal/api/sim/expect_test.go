package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestExpectedIsWhatACorrectClientEndsUpWith(t *testing.T) {
	no, yes := false, true
	completed := Step{Answer: "completed", Result: `"x"`}
	for _, test := range []struct {
		name   string
		style  Style
		steps  []Step
		status string
		body   string
	}{
		{"completed", Style{}, []Step{{State: "active"}, completed}, "completed", `"x"`},
		{"after faults", Style{}, []Step{{Status: 503}, {Status: 429}, {Answer: "empty", Status: 400}, {Answer: "malformed"}, {Status: 401}, {Status: 404}, {Answer: "redirect"}, completed}, "completed", `"x"`},
		{"user failure", Style{}, []Step{{Answer: "failed", Message: "no", Category: "User", Polls: 1}, completed}, "failed", `no`},
		{"server failure", Style{}, []Step{{Answer: "failed", Message: "no", Category: "server", Polls: 1}, completed}, "completed", `"x"`},
		{"last server failure", Style{}, []Step{{Answer: "failed", Message: "no"}}, "failed", `no`},
		{"expired", Style{}, []Step{{Answer: "expired"}}, "expired", ``},
		{"403", Style{}, []Step{{Status: 403, Polls: 1}, completed}, "failed", `{"detail":"Forbidden"}`},
		{"403 to be retried", Style{}, []Step{{Status: 403, ShouldRetry: &yes}, completed}, "completed", `"x"`},
		{"503 not to be retried", Style{}, []Step{{Status: 503, Body: "x", ShouldRetry: &no}, completed}, "failed", `x`},
		{"503 for ever", Style{}, []Step{{Status: 503, Body: "x"}}, "failed", `x`},
		{"pending for ever", Style{}, []Step{{State: "active"}}, "timed_out", ``},
		{"402 for ever", Style{}, []Step{{Status: 402}}, "timed_out", ``},
		{"truncated, then whole", Style{}, []Step{{Answer: "completed", Wire: "truncated"}, completed}, "completed", `"x"`},
		{"truncated once", Style{Retention: "once"}, []Step{{Answer: "completed", Wire: "truncated"}, completed}, "lost", ``},
		{"dead for ever", Style{}, []Step{{Answer: "completed", Wire: "dead"}}, "timed_out", ``},
		{"a body of the script's own", Style{}, []Step{{Status: 200, Body: "{}"}}, "", ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			script := steps(test.steps...)
			script.Style = test.style
			status, body := New(script).Expected("id")
			require.Equal(t, test.status, status)
			require.Equal(t, test.body, string(body))
		})
	}
	status, _ := New(Script{Unknown: "404"}).Expected("id")
	require.Equal(t, "failed", status)
	status, _ = New(Script{Unknown: "try_again"}).Expected("id")
	require.Equal(t, "timed_out", status)
}

func TestStatesAreWhatAClientCanSee(t *testing.T) {
	s := New(steps(
		Step{State: "active"},
		Step{},
		Step{State: "ACTIVE"},
		Step{State: "Paused_Capacity", Reason: "full"},
		Step{State: "active", Style: "pending"},
		Step{State: "active", Style: "408"},
		Step{State: "paused_rate_limit", Style: "408_full", Fields: map[string]JSON{"queue_state_reason": `{"a": 1}`}},
		Step{State: "asleep", Fields: map[string]JSON{"queue_state_reason": "null"}},
		Step{Answer: "completed"},
	))
	require.Equal(t, []QueueState{{"active", ""}, {"paused_capacity", "full"}, {"paused_rate_limit", `{"a": 1}`}, {"unknown", ""}}, s.States("id"))
}

func TestABareResultIsTheWholeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Script{Style: Style{ResultStyle: "enveloped"}})
		s.play("bare", []Step{{State: "active", For: 3 * time.Second}, {Answer: "completed", Style: "bare", Result: `{"loss": 1}`}})
		s.play("proto", []Step{{Answer: "completed", Style: "bare", Result: "\x00\xff", ContentType: "application/x-protobuf"}})
		s.play("fails", []Step{{Answer: "failed", Message: "no", Category: "user"}})
		require.Contains(t, ask(s, "bare").body, `"queue_state":"active"`)
		time.Sleep(3 * time.Second)
		require.Equal(t, `{"loss": 1}`, ask(s, "bare").body)
		proto := ask(s, "proto")
		require.Equal(t, "\x00\xff", proto.body)
		require.Equal(t, "application/x-protobuf", proto.header.Get("Content-Type"))
		require.Equal(t, `{"error":"no","category":"user"}`, ask(s, "fails").body)
		status, body := s.Expected("bare")
		require.Equal(t, "completed", status)
		require.Equal(t, `{"loss": 1}`, string(body))
	})
}
