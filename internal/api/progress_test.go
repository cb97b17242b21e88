package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAQueueStateIsReadInEveryForm(t *testing.T) {
	for _, c := range []struct{ fields, state, reason string }{
		{`"queue_state":"active"`, "active", ""},
		{`"queue_state":"paused_rate_limit","queue_state_reason":"too fast"`, "paused_rate_limit", "too fast"},
		{`"queue_state":"paused_capacity","queue_state_reason":null`, "paused_capacity", ""},
		{`"queue_state":"ACTIVE"`, "active", ""},
		{`"queue_state":"Paused_Rate_Limit"`, "paused_rate_limit", ""},
		{`"queue_state":" paused_CAPACITY\n"`, "paused_capacity", ""},
		{`"queue_state":"p\u0061used_capacity"`, "paused_capacity", ""},
		{`"queue_state":"paused_moon_phase"`, "unknown", ""},
		{`"queue_state":""`, "unknown", ""},
		{`"queue_state":7`, "unknown", ""},
		{`"queue_state":{"a":1}`, "unknown", ""},
		{`"queue_state":null`, "", ""},
		{`"request_id":"a"`, "", ""},
		{`"queue_state":"active","retry_after_ms":null,"retry_after_s":null`, "active", ""},
		{`"queue_state":"active","queue_state_reason":""`, "active", ""},
		{`"queue_state":"active","queue_state_reason":12345678901234567890`, "active", "12345678901234567890"},
		{`"queue_state":"active","queue_state_reason":{"code": "x"}`, "active", `{"code": "x"}`},
		{`"queue_state":"active","queue_state_reason":["a", 1]`, "active", `["a", 1]`},
		{`"queue_state":"active","queue_state_reason":true`, "active", `true`},
		{`"queue_state":"active","queue_state_reason":"a\"\u00e4\n"`, "active", "a\"ä\n"},
		{`"queue_state_reason":"alone"`, "", "alone"},
	} {
		for _, answer := range []answer{
			said(200, `{"type":"try_again",`+c.fields+`}`),
			said(200, `{"status":"pending",`+c.fields+`}`),
			said(202, `{`+c.fields+`}`),
			said(408, `{`+c.fields+`}`),
		} {
			got := classify(answer)
			require.Equal(t, Outcome{Kind: Pending, HTTPStatus: answer.status, QueueState: c.state, Reason: c.reason}, got, c.fields)
		}
	}
}

func TestProgressFieldsAreCarriedAsTheyAre(t *testing.T) {
	long := `"` + strings.Repeat("x", maxProgress) + `"`
	for _, c := range []struct {
		fields string
		want   *Progress
	}{
		{`"queue_position":0`, &Progress{QueuePosition: []byte(`0`)}},
		{`"queue_position":12345678901234567890`, &Progress{QueuePosition: []byte(`12345678901234567890`)}},
		{`"estimated_wait_s":1.50`, &Progress{EstimatedWaitS: []byte(`1.50`)}},
		{`"progress":{ "step" : [1,2] }`, &Progress{Progress: []byte(`{ "step" : [1,2] }`)}},
		{`"progress":"\u0041"`, &Progress{Progress: []byte(`"\u0041"`)}},
		{`"status":"queued"`, &Progress{Status: []byte(`"queued"`)}},
		{`"queue_position":1,"estimated_wait_s":2,"progress":3,"status":4`, &Progress{
			QueuePosition: []byte(`1`), EstimatedWaitS: []byte(`2`), Progress: []byte(`3`), Status: []byte(`4`),
		}},
		{`"queue_position":null,"estimated_wait_s":null,"progress":null`, nil},
		{`"progress":` + long, nil},
		{`"progress":` + long + `,"queue_position":1`, &Progress{QueuePosition: []byte(`1`)}},
		{"\"progress\":\"\xff\"", &Progress{Progress: []byte(`"` + "\uFFFD" + `"`)}},
	} {
		require.Equal(t, c.want, classify(said(200, `{"type":"try_again",`+c.fields+`}`)).Progress, c.fields)
	}
	require.Nil(t, classify(said(200, `{"status":"pending"}`)).Progress, "a status that is the answer itself is no progress")
}

func TestNothingInAnOutcomeButTheResultAliasesTheBody(t *testing.T) {
	a := said(200, `{"type":"try_again","queue_state":"active","queue_state_reason":"because","queue_position":17}`)
	got := classify(a)
	clear(a.body)
	require.Equal(t, Outcome{
		Kind: Pending, HTTPStatus: 200, QueueState: "active", Reason: "because", Progress: &Progress{QueuePosition: []byte("17")},
	}, got)

	a = said(200, `{"error":{"message":"because","category":"odd"}}`)
	got = classify(a)
	clear(a.body)
	require.Equal(t, &Failure{RequestFailed, Unknown, "odd", "because"}, got.Failure)
}
