package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func FuzzClassify(f *testing.F) {
	for _, body := range []string{
		``, ` `, `null`, `1`, `"x"`, `[]`, `{}`, `<html>`, "\xff", `{"a":"` + "\xff" + `"}`, `[[[[`, `{"status":`,
		`{"type":"try_again","queue_state":"active","queue_state_reason":"x","retry_after_ms":5,"queue_position":1,"progress":{"a":[1]},"status":"queued"}`,
		`{"status":"pending"}`,
		`{"status":"complete_metadata","response_payload_size":1e30}`,
		` {"status":"completed" , "result" : {"n":12345678901234567890} } `,
		`{"status":"completed","result":1,"result":[2]}`,
		`{"status":"failed","error":{"message":"sk-fuzz/1","category":"Application"}}`,
		`{"error":["sk-fuzz\/1"],"category":"user"}`,
		`{"error_message":"already retrieved"}`,
		`{"detail":[{"msg":"sk-fuzz\u002f1"}]}`,
		strings.Repeat("[", maxDepth+1),
	} {
		for _, status := range []int{200, 202, 302, 400, 401, 404, 408, 410, 422, 429, 500, 503, 599} {
			f.Add(status, "", []byte(body))
		}
		f.Add(200, "Content-Type: application/x-protobuf", []byte(body))
		f.Add(500, "X-Should-Retry: false\nRetry-After: 7", []byte(body))
		f.Add(404, "X-Should-Retry: true\nRetry-After: Sun, 01 Mar 2026 12:00:30 GMT\nRetry-After-Ms: 1e9", []byte(body))
	}
	const key = "sk-fuzz/1"
	secrets := newRedactor([]string{key})
	f.Fuzz(func(t *testing.T, status int, header string, body []byte) {
		a := answer{status: status, header: http.Header{}, body: body, at: arrival}
		for line := range strings.Lines(header) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				a.header.Add(name, strings.TrimSpace(value))
			}
		}
		sent := slices.Clone(body)
		open := classify(a)
		a.secrets = secrets
		got := classify(a)
		require.Equal(t, sent, body, "the body is left as it is")

		require.Equal(t, open.Kind, got.Kind, "what is taken out of texts changes no meaning")
		require.Equal(t, open.Result, got.Result)
		require.NotContains(t, texts(got), key)
		for _, o := range []Outcome{open, got} {
			requireOutcome(t, a, o)
		}
	})
}

func requireOutcome(t *testing.T, a answer, o Outcome) {
	t.Helper()
	text := func(s string) {
		require.True(t, utf8.ValidString(s), "%q", s)
		require.LessOrEqual(t, len(s), maxText)
	}
	require.Contains(t, Kinds[:Unreachable], o.Kind)
	require.Equal(t, a.status, o.HTTPStatus)
	require.GreaterOrEqual(t, o.Hint, 0*ms)
	require.LessOrEqual(t, o.Hint, MaxHint)
	require.Contains(t, []string{"", "active", "paused_rate_limit", "paused_capacity", "unknown"}, o.QueueState)
	require.False(t, o.BrokeOff)
	text(o.Reason)
	if p := o.Progress; p != nil {
		for _, value := range [][]byte{p.QueuePosition, p.EstimatedWaitS, p.Progress, p.Status} {
			require.True(t, value == nil || json.Valid(value), "%q", value)
			text(string(value))
		}
	}

	explained := o.Kind != Pending && o.Kind != Metadata && o.Kind != Completed
	require.Equal(t, explained, o.Failure != nil)
	if failure := o.Failure; failure != nil {
		require.Contains(t, []FailureType{RequestFailed, APIStatus}, failure.Type)
		require.Equal(t, o.Kind == Failed, failure.Type == RequestFailed)
		require.Contains(t, []Category{User, Server, Unknown}, failure.Category)
		require.NotEmpty(t, failure.Message)
		text(failure.Message)
		text(failure.RawCategory)
	}
	require.True(t, o.Fingerprint == 0 || o.Kind == ServerFault || o.Kind == Refused)
	require.GreaterOrEqual(t, o.PayloadBytes, int64(0))
	require.True(t, o.PayloadBytes == 0 || o.Kind == Metadata)

	if o.Kind != Completed {
		require.Nil(t, o.Result)
		require.Empty(t, o.ContentType)
		return
	}
	text(o.ContentType)
	require.NotEmpty(t, o.ContentType)
	if !strings.Contains(strings.ToLower(a.header.Get("Content-Type")), "protobuf") {
		require.True(t, json.Valid(a.body))
		require.True(t, json.Valid(o.Result))
	}
	if len(o.Result) > 0 {
		require.Same(t, &a.body[cap(a.body)-cap(o.Result)], &o.Result[0], "a result is a part of the body")
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"", "0", "7", "-7", "1.5", "NaN", "Inf", "-Inf", "1e999", "1e-999", "0x1p4", "1_000", "soon", " 3 ", "9223372036854775807", "18446744073709551616",
		"Sun, 01 Mar 2026 12:00:30 GMT", "Sunday, 01-Mar-26 12:00:30 GMT", "Sun Mar  1 12:00:30 2026", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT",
		"1, 6", ",", "Sun, 01 Mar 2026 12:00:30 GMT, 6", "Sun,Sun, 01 Mar 2026 12:00:30 GMT", "null", "true", `"5000"`, `{"a":1}`, "[1]",
	} {
		f.Add(value, value)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		within := func(a answer) {
			hint := classify(a).Hint
			require.GreaterOrEqual(t, hint, 0*ms)
			require.LessOrEqual(t, hint, MaxHint)
		}
		within(said(503, "", "Retry-After", one, "Retry-After-Ms", two))
		within(said(200, `{"type":"try_again","retry_after_ms":`+one+`,"retry_after_s":`+two+`}`))
		quoted, err := json.Marshal([]string{one, two})
		require.NoError(t, err)
		within(said(200, `{"type":"try_again","retry_after_ms":`+string(quoted)+`,"retry_after_s":`+string(quoted[1:len(quoted)-1])+`}`))
	})
}

func FuzzAppendQuery(f *testing.F) {
	for _, id := range []string{"", "id", `a"b\c/d`, "\x00\x1f\x7f", "ä😀\u2028\uFFFD", "a\xffb\xc3", "-1", "<a>&"} {
		f.Add(id, true)
		f.Add(id, false)
	}
	f.Fuzz(func(t *testing.T, id string, full bool) {
		body := appendQuery(nil, Query{RequestID: id, Full: full})
		require.True(t, utf8.Valid(body))
		var got map[string]any
		require.NoError(t, json.Unmarshal(body, &got))
		require.Equal(t, map[string]any{"request_id": string([]rune(id)), "allow_metadata_only": !full}, got)
	})
}
