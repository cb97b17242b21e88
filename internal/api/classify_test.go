package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEachAnswerHasOneMeaning(t *testing.T) {
	const jsonType = "application/json"
	failure := func(kind FailureType, category Category, message string) *Failure {
		return &Failure{Type: kind, Category: category, Message: message}
	}
	status := func(category Category, message string) *Failure { return failure(APIStatus, category, message) }
	nonsense := func(why string) *Failure {
		return status(Unknown, "the upstream's answer is not of the retrieve-future protocol: "+why)
	}
	for _, c := range []struct {
		name   string
		answer answer
		want   Outcome
	}{
		{
			"protobuf is a result, whatever its bytes look like",
			said(200, `{"type":"try_again"}`, "Content-Type", "Application/X-Protobuf; v=1"),
			Outcome{Kind: Completed, Result: []byte(`{"type":"try_again"}`), ContentType: "Application/X-Protobuf; v=1"},
		},
		{
			"protobuf that is compressed as nobody asked for",
			said(200, "x", "Content-Type", "application/x-protobuf", "Content-Encoding", "deflate"),
			Outcome{Kind: Malformed, Failure: status(Unknown, "the upstream's answer is not of the retrieve-future protocol: nobody asked for the encoding deflate: x")},
		},
		{
			"protobuf as it is",
			said(200, "x", "Content-Type", "application/x-protobuf", "Content-Encoding", "Identity"),
			Outcome{Kind: Completed, Result: []byte("x"), ContentType: "application/x-protobuf"},
		},
		{
			"no content, of whatever type",
			said(204, "", "Content-Type", "application/x-protobuf"),
			Outcome{Kind: Malformed, Failure: status(Unknown, "the upstream's answer is not of the retrieve-future protocol: the body is empty")},
		},
		{
			"protobuf may be empty",
			said(200, "", "Content-Type", "application/x-protobuf"),
			Outcome{Kind: Completed, Result: []byte{}, ContentType: "application/x-protobuf"},
		},
		{"try_again needs nothing else", said(200, `{"type":"try_again"}`), Outcome{Kind: Pending}},
		{
			"try_again with all it can say",
			said(200, `{"type":"try_again","request_id":"a","queue_state":"paused_capacity","queue_state_reason":"full","retry_after_ms":1500,
				"queue_position":3,"estimated_wait_s":1.50,"progress":{"done": 1},"status":"queued"}`),
			Outcome{Kind: Pending, Hint: 1500 * ms, QueueState: "paused_capacity", Reason: "full", Progress: &Progress{
				QueuePosition: []byte("3"), EstimatedWaitS: []byte("1.50"), Progress: []byte(`{"done": 1}`), Status: []byte(`"queued"`),
			}},
		},
		{
			"the type try_again outranks the status",
			said(200, `{"status":"completed","result":1,"type":"try_again"}`),
			Outcome{Kind: Pending, Progress: &Progress{Status: []byte(`"completed"`)}},
		},
		{"the type try_again outranks an error", said(200, `{"type":"try_again","error":"busy"}`), Outcome{Kind: Pending}},
		{"pending", said(200, `{"status":"pending"}`), Outcome{Kind: Pending}},
		{"a status in another case", said(200, `{"status":"Queued","queue_state":"active"}`), Outcome{Kind: Pending, QueueState: "active"}},
		{"201 is as good as 200", said(201, `{"status":"running"}`), Outcome{Kind: Pending}},
		{"202 with nothing", said(202, ``), Outcome{Kind: Pending}},
		{"202 with no JSON", said(202, `Accepted`), Outcome{Kind: Pending}},
		{"202 with null", said(202, `null`), Outcome{Kind: Pending}},
		{"202 outranks what looks like a result", said(202, `{"status":"completed","result":1,"retry_after_s":2}`), Outcome{Kind: Pending, Hint: 2000 * ms}},
		{
			"metadata only",
			said(200, `{"status":"complete_metadata","response_payload_size":12345}`),
			Outcome{Kind: Metadata, PayloadBytes: 12345},
		},
		{"metadata without a size", said(200, `{"status":"complete_metadata"}`), Outcome{Kind: Metadata}},
		{"metadata with a negative size", said(200, `{"status":"complete_metadata","response_payload_size":-1}`), Outcome{Kind: Metadata}},
		{
			"metadata with a size beyond all integers",
			said(200, `{"status":"complete_metadata","response_payload_size":99999999999999999999}`),
			Outcome{Kind: Metadata, PayloadBytes: 1<<63 - 1},
		},
		{
			"an enveloped result",
			said(200, `{"status":"completed","result":{"a": 1}}`, "Content-Type", "application/vnd.x+json"),
			Outcome{Kind: Completed, Result: []byte(`{"a": 1}`), ContentType: jsonType},
		},
		{"a result that is null", said(200, `{"status":"completed","result":null}`), Outcome{Kind: Completed, Result: []byte(`null`), ContentType: jsonType}},
		{
			"completed without a result",
			said(200, ` {"status":"completed"} `, "Content-Type", "application/json; charset=utf-8"),
			Outcome{Kind: Completed, Result: []byte(` {"status":"completed"} `), ContentType: "application/json; charset=utf-8"},
		},
		{
			"completed with an error beside it",
			said(200, `{"status":"completed","result":1,"error":"a warning"}`),
			Outcome{Kind: Completed, Result: []byte(`1`), ContentType: jsonType},
		},
		{"failed", said(200, `{"status":"failed","error":"bad data"}`), Outcome{Kind: Failed, Failure: failure(RequestFailed, Unknown, "bad data")}},
		{"failed in another case", said(200, `{"status":"FAILED"}`), Outcome{Kind: Failed, Failure: failure(RequestFailed, Unknown, `OK: {"status":"FAILED"}`)}},
		{"an error key", said(200, `{"error":"bad data","category":"user"}`), Outcome{Kind: Failed, Failure: failure(RequestFailed, User, "bad data")}},
		{"an error_message key", said(200, `{"error_message":"bad data"}`), Outcome{Kind: Failed, Failure: failure(RequestFailed, Unknown, "bad data")}},
		{
			"a failure that may pass, with a hint",
			said(200, `{"error":"oom","category":"server","retry_after_ms":700}`),
			Outcome{Kind: Failed, Hint: 700 * ms, Failure: failure(RequestFailed, Server, "oom")},
		},
		{"error: null is no error", said(200, `{"error":null,"error_message":null,"path":"x"}`), Outcome{Kind: Completed, Result: []byte(`{"error":null,"error_message":null,"path":"x"}`), ContentType: jsonType}},
		{"already retrieved is a 404", said(200, `{"status":"failed","error":"Result Already Retrieved"}`), Outcome{Kind: NotFound, Failure: status(User, "Result Already Retrieved")}},
		{"unknown request_id is a 404", said(200, `{"error":{"message":"unknown request_id: 7"}}`), Outcome{Kind: NotFound, Failure: status(User, "unknown request_id: 7")}},
		{"a bare object", said(200, `{"type":"create_model","model_id":"m"}`), Outcome{Kind: Completed, Result: []byte(`{"type":"create_model","model_id":"m"}`), ContentType: jsonType}},
		{"a bare object below a data key", said(200, `{"data":{"status":"failed","error":"x"}}`), Outcome{Kind: Completed, Result: []byte(`{"data":{"status":"failed","error":"x"}}`), ContentType: jsonType}},
		{"a status that means nothing", said(200, `{"status":"ok"}`), Outcome{Kind: Completed, Result: []byte(`{"status":"ok"}`), ContentType: jsonType}},
		{"a bare array", said(200, `[{"error":"x"}]`), Outcome{Kind: Completed, Result: []byte(`[{"error":"x"}]`), ContentType: jsonType}},
		{"a bare string", said(200, `"pending"`), Outcome{Kind: Completed, Result: []byte(`"pending"`), ContentType: jsonType}},
		{"a bare number, with the type it came with", said(200, `0`, "Content-Type", "text/plain"), Outcome{Kind: Completed, Result: []byte(`0`), ContentType: "text/plain"}},
		{"a type too long for a header", said(200, `0`, "Content-Type", strings.Repeat("x", 257)), Outcome{Kind: Completed, Result: []byte(`0`), ContentType: "application/octet-stream"}},
		{"a type that is no text", said(200, `0`, "Content-Type", "text/\xff"), Outcome{Kind: Completed, Result: []byte(`0`), ContentType: "application/octet-stream"}},
		{"null", said(200, " null\n"), Outcome{Kind: Malformed, Failure: nonsense("the body is null: null")}},
		{"an empty body", said(200, ""), Outcome{Kind: Malformed, Failure: nonsense("the body is empty")}},
		{"white space", said(204, " \r\n"), Outcome{Kind: Malformed, Failure: nonsense("the body is empty")}},
		{"no JSON", said(200, "<html>hello", "Content-Type", "text/html"), Outcome{Kind: Malformed, Failure: nonsense("the body is not JSON: <html>hello")}},
		{"half a result", said(200, `{"status":"completed","result":[1,`), Outcome{Kind: Malformed, Failure: nonsense(`the body is not JSON: {"status":"completed","result":[1,`)}},
		{"408 with nothing", said(408, ``), Outcome{Kind: Pending}},
		{"408 with a detail", said(408, `{"detail":"still running"}`), Outcome{Kind: Pending}},
		{
			"408 with all of a try_again",
			said(408, `{"type":"try_again","queue_state":"paused_rate_limit","queue_state_reason":"slow","retry_after_s":3,"queue_position":1}`),
			Outcome{Kind: Pending, Hint: 3000 * ms, QueueState: "paused_rate_limit", Reason: "slow", Progress: &Progress{QueuePosition: []byte("1")}},
		},
		{"410", said(410, `{"detail":"expired"}`), Outcome{Kind: Expired, Failure: status(User, "expired")}},
		{"404", said(404, `{"error":"no such request","category":"server"}`), Outcome{Kind: NotFound, Failure: &Failure{Type: APIStatus, Category: User, Message: "no such request"}}},
		{"404 with nothing", said(404, ``), Outcome{Kind: NotFound, Failure: status(User, "Not Found")}},
		{"400 with nothing", said(400, ``), Outcome{Kind: BlankRefusal, Failure: status(User, "Bad Request")}},
		{"400 with white space", said(400, "\r\n"), Outcome{Kind: BlankRefusal, Failure: status(User, "Bad Request")}},
		{"400", said(400, `{"detail":"bad shape"}`), Outcome{Kind: Refused, Failure: status(User, "bad shape")}},
		{"403 for the key", said(403, `{"detail":"Invalid API key"}`), Outcome{Kind: Unauthorized, Failure: status(User, "Invalid API key")}},
		{"403 without a key", said(403, `{"detail":"Not authenticated"}`), Outcome{Kind: Unauthorized, Failure: status(User, "Not authenticated")}},
		{"403 for a request", said(403, `{"detail":"Invalid API key for this resource"}`), Outcome{Kind: Refused, Failure: status(User, "Invalid API key for this resource")}},
		{"403", said(403, `Forbidden`), Outcome{Kind: Refused, Failure: status(User, "Forbidden: Forbidden")}},
		{"409", said(409, ``), Outcome{Kind: Refused, Failure: status(User, "Conflict")}},
		{"422", said(422, `{"detail":[{"loc":["body"],"msg":"missing"}]}`), Outcome{Kind: Refused, Failure: status(User, `[{"loc":["body"],"msg":"missing"}]`)}},
		{"a 4xx without a name", said(499, ``), Outcome{Kind: Refused, Failure: status(User, "HTTP status 499")}},
		{"401", said(401, `{"error":{"message":"bad key"}}`), Outcome{Kind: Unauthorized, Failure: status(User, "bad key")}},
		{"402", said(402, `pay`), Outcome{Kind: Unauthorized, Failure: status(User, "Payment Required: pay")}},
		{"429", said(429, `{"error":"slow down"}`, "Retry-After", "7"), Outcome{Kind: Throttled, Hint: 7000 * ms, Failure: status(Server, "slow down")}},
		{"500", said(500, `{"detail":"boom"}`), Outcome{Kind: ServerFault, Failure: status(Server, "boom")}},
		{"500 that names the user", said(500, `{"error":"boom","category":"user"}`), Outcome{Kind: ServerFault, Failure: status(User, "boom")}},
		{"503", said(503, ``, "Retry-After", "2"), Outcome{Kind: ServerFault, Hint: 2000 * ms, Failure: status(Server, "Service Unavailable")}},
		{"a 5xx without a name", said(520, `oops`), Outcome{Kind: ServerFault, Failure: status(Server, "HTTP status 520: oops")}},
		{"a redirect", said(307, ``, "Location", "https://elsewhere.example"), Outcome{Kind: Malformed, Failure: status(Unknown, "307 Temporary Redirect: a redirect, which is not followed")}},
		{"a status beyond all classes", said(700, `x`), Outcome{Kind: Malformed, Failure: status(Unknown, "HTTP status 700: x")}},
		{"an informational status", said(101, ``), Outcome{Kind: Malformed, Failure: status(Unknown, "Switching Protocols")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := classify(c.answer)
			require.Equal(t, got.Kind == ServerFault, got.Fingerprint != 0)
			got.Fingerprint = 0
			c.want.HTTPStatus = c.answer.status
			require.Equal(t, c.want, got)
		})
	}
}

func TestEachPendingStatusMeansPending(t *testing.T) {
	for _, word := range []string{
		"pending", "queued", "running", "processing", "in_progress", "waiting", "scheduled", "submitted", "accepted", "started",
	} {
		require.Equal(t, Pending, classify(said(200, `{"status":"`+word+`"}`)).Kind, word)
		require.Equal(t, Pending, classify(said(200, `{"status":"`+strings.ToUpper(word)+`"}`)).Kind, word)
	}
}

func TestShouldRetryOutranksTheStatus(t *testing.T) {
	for _, c := range []struct {
		status  int
		body    string
		yes, no Kind
	}{
		{301, "", ServerFault, Refused},
		{400, "", ServerFault, Refused},
		{400, `{"detail":"x"}`, ServerFault, Refused},
		{401, "", Unauthorized, Unauthorized},
		{402, "", Unauthorized, Unauthorized},
		{404, "", ServerFault, NotFound},
		{408, "", Pending, Refused},
		{409, "", ServerFault, Refused},
		{410, "", ServerFault, Expired},
		{422, `{"detail":"x"}`, ServerFault, Refused},
		{429, "", Throttled, Refused},
		{500, "", ServerFault, Refused},
		{503, "", ServerFault, Refused},
	} {
		yes := classify(said(c.status, c.body, "x-should-retry", " True "))
		require.Equal(t, c.yes, yes.Kind, c.status)
		if yes.Kind == ServerFault {
			require.Zero(t, yes.Fingerprint, "it says itself that it is no failed job")
			require.NotEqual(t, User, yes.Failure.Category, "which is never retried")
		}
		no := classify(said(c.status, c.body, "x-should-retry", "false"))
		require.Equal(t, c.no, no.Kind, c.status)
		require.NotEmpty(t, no.Failure.Message)
		require.Equal(t, classify(said(c.status, c.body)).Kind, classify(said(c.status, c.body, "x-should-retry", "perhaps")).Kind)
	}
	require.Equal(t, Pending, classify(said(200, `{"type":"try_again"}`, "x-should-retry", "false")).Kind, "it is for non-2xx answers")
	require.Equal(t, Failed, classify(said(200, `{"error":"x"}`, "x-should-retry", "true")).Kind)
}

func TestAFingerprintIsOfStatusAndBody(t *testing.T) {
	of := func(status int, body string) uint64 { return classify(said(status, body, "Date", body)).Fingerprint }
	require.Equal(t, of(500, "a"), of(500, "a"))
	require.NotEqual(t, of(500, "a"), of(500, "b"))
	require.NotEqual(t, of(500, "a"), of(503, "a"))
}

func TestEveryKindHasItsOwnName(t *testing.T) {
	names := make(map[string]bool)
	for i, kind := range Kinds {
		require.Equal(t, Kind(i), kind)
		require.NotEqual(t, "invalid", kind.String())
		names[kind.String()] = true
	}
	require.Len(t, names, len(Kinds))
	require.Equal(t, "invalid", Kind(len(Kinds)).String(), "Kinds lists them all")
}
