package sim

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEachAnswerHasItsWireShape(t *testing.T) {
	yes := true
	for _, test := range []struct {
		name   string
		style  Style
		step   Step
		code   int
		body   string
		header map[string]string
		counts string
	}{
		{"try_again", Style{}, Step{State: "active"}, 200, `{"type":"try_again","request_id":"i\"d","queue_state":"active"}`, nil, "pending"},
		{"try_again without a state", Style{}, Step{}, 200, `{"type":"try_again","request_id":"i\"d"}`, nil, "pending"},
		{"try_again with everything", Style{}, Step{State: "paused_capacity", Reason: `a "b"`, RetryAfterMS: 1500, RetryAfterS: 1.5, Fields: map[string]JSON{"queue_position": "3", "estimated_wait_s": "null"}}, 200,
			`{"type":"try_again","request_id":"i\"d","queue_state":"paused_capacity","queue_state_reason":"a \"b\"","retry_after_ms":1500,"retry_after_s":1.5,"estimated_wait_s":null,"queue_position":3}`, nil, "pending"},
		{"pending", Style{PendingStyle: "pending"}, Step{State: "active"}, 200, `{"status":"pending","request_id":"i\"d"}`, nil, "pending"},
		{"202", Style{PendingStyle: "202"}, Step{}, 202, `{"status":"pending","request_id":"i\"d"}`, nil, "pending"},
		{"408 bare", Style{PendingStyle: "408"}, Step{State: "active", RetryAfter: 2}, 408, ``, map[string]string{"Retry-After": "2"}, "pending"},
		{"408 detail", Style{PendingStyle: "408_detail"}, Step{State: "active"}, 408, `{"detail":"the future is not ready"}`, nil, "pending"},
		{"408 full", Style{PendingStyle: "408_full"}, Step{State: "active"}, 408, `{"type":"try_again","request_id":"i\"d","queue_state":"active"}`, nil, "pending"},
		{"a step's own style", Style{PendingStyle: "408"}, Step{Style: "202"}, 202, `{"status":"pending","request_id":"i\"d"}`, nil, "pending"},
		{"completed", Style{}, Step{Answer: "completed", Result: `{"n": 12345678901234567890}`}, 200, `{"status":"completed","result":{"n": 12345678901234567890}}`, nil, "completed"},
		{"bare", Style{ResultStyle: "bare"}, Step{Answer: "completed", Result: `{"path":"x"}`}, 200, `{"path":"x"}`, nil, "completed"},
		{"protobuf", Style{}, Step{Answer: "completed", Result: "\x08\x96\x01", ContentType: "application/x-protobuf"}, 200, "\x08\x96\x01", map[string]string{"Content-Type": "application/x-protobuf"}, "completed"},
		{"failed flat", Style{}, Step{Answer: "failed", Message: "no", Category: "user"}, 200, `{"error":"no","category":"user"}`, nil, "failed"},
		{"failed enveloped", Style{FailureStyle: "enveloped"}, Step{Answer: "failed", Message: "no", Category: "Server"}, 200, `{"status":"failed","error":{"message":"no","category":"Server"}}`, nil, "failed"},
		{"failed error_message", Style{FailureStyle: "error_message"}, Step{Answer: "failed", Message: "no"}, 200, `{"error_message":"no"}`, nil, "failed"},
		{"failed 400", Style{FailureStyle: "400"}, Step{Answer: "failed", Message: "no"}, 400, `{"detail":"no"}`, nil, "failed"},
		{"failed 422", Style{FailureStyle: "422"}, Step{Answer: "failed", Message: "no"}, 422, `{"detail":"no"}`, nil, "failed"},
		{"failed 500", Style{}, Step{Answer: "failed", Style: "500", Message: "no"}, 500, `{"detail":"no"}`, nil, "failed"},
		{"expired", Style{}, Step{Answer: "expired"}, 410, `{"detail":"the promise has expired"}`, nil, "expired"},
		{"blank 400", Style{}, Step{Answer: "empty", Status: 400}, 400, ``, nil, "empty_400"},
		{"401", Style{}, Step{Status: 401}, 401, `{"detail":"Unauthorized"}`, nil, "status_401"},
		{"402", Style{}, Step{Status: 402, Body: "pay"}, 402, `pay`, nil, "status_402"},
		{"503 with hints", Style{}, Step{Status: 503, RetryAfterMS: 10, RetryAfterMSHeader: 20, ShouldRetry: &yes, Headers: map[string]string{"x-a": "b"}}, 503, `{"detail":"Service Unavailable","retry_after_ms":10}`,
			map[string]string{"Retry-After-Ms": "20", "X-Should-Retry": "true", "X-A": "b"}, "status_503"},
		{"malformed", Style{}, Step{Answer: "malformed"}, 200, `{"status":"completed","result":{"tokens":[1,2,`, nil, "malformed"},
		{"null", Style{}, Step{Status: 200, Body: "null"}, 200, `null`, nil, "status_200"},
		{"redirect", Style{}, Step{Answer: "redirect"}, 307, ``, map[string]string{"Location": "/sim/redirected"}, "redirect"},
		{"reflected key", Style{}, Step{Answer: "reflect_key"}, 500, `{"detail":"no quota for key k-123"}`, nil, "reflect_key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			script := steps(test.step)
			script.Style = test.style
			s := New(script)
			got := ask(s, `i"d`, "X-API-Key", "k-123")
			require.Equal(t, test.code, got.code)
			require.Equal(t, test.body, got.body)
			require.Equal(t, strconv.Itoa(len(test.body)), got.header.Get("Content-Length"))
			for key, value := range test.header {
				require.Equal(t, value, got.header.Get(key), key)
			}
			require.Equal(t, map[string]int{test.counts: 1}, s.Stats().Answers)
		})
	}
}

func TestAnHTTPDateHintIsAheadByWholeSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := ask(New(steps(Step{Status: 503, RetryAfterDate: 90 * time.Second})), "id")
		date, err := http.ParseTime(got.header.Get("Retry-After"))
		require.NoError(t, err)
		require.Equal(t, 90*time.Second, time.Until(date))
	})
}

func TestUnknownIDsGetTheScriptedAnswer(t *testing.T) {
	for style, want := range map[string]got{
		"404":       {code: 404, body: `{"detail":"unknown request_id"}`},
		"error":     {code: 200, body: `{"error":"unknown request_id"}`},
		"try_again": {code: 200, body: `{"type":"try_again","request_id":"id","queue_state":"active"}`},
		"create":    {code: 200, body: `{"status":"completed","result":1}`},
	} {
		t.Run(style, func(t *testing.T) {
			script := steps(Step{Answer: "completed", Result: "1"})
			script.Unknown = style
			s := New(script)
			got := ask(s, "id")
			require.Equal(t, want, got.without())
			s.Add("id", "p")
			require.Equal(t, `{"status":"completed","result":1}`, ask(s, "id").body, "an id may become known later")
			require.Equal(t, 2, s.StatsOf("id").Polls)
		})
	}
}

func TestRetentionTakesTheResultAway(t *testing.T) {
	for _, test := range []struct {
		style Style
		gone  time.Duration // after the first delivery, which is 1 s after the job's end
		want  got
	}{
		{Style{Retention: "once"}, 0, got{code: 404, body: `{"detail":"already retrieved"}`}},
		{Style{Retention: "once", Gone: "error"}, 0, got{code: 200, body: `{"error":"already retrieved"}`}},
		{Style{Retention: "ended", RetentionTTL: time.Minute, Gone: "410"}, 59 * time.Second, got{code: 410, body: `{"detail":"the promise has expired"}`}},
		{Style{Retention: "delivered", RetentionTTL: time.Minute, Gone: "try_again"}, time.Minute, got{code: 200, body: `{"type":"try_again","request_id":"id","queue_state":"active"}`}},
	} {
		t.Run(test.style.Retention+test.style.Gone, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				script := steps(Step{For: time.Second}, Step{Answer: "completed", Result: "1"})
				script.Style = test.style
				s := New(script)
				s.Add("id", "")
				time.Sleep(2 * time.Second)
				require.Equal(t, `{"status":"completed","result":1}`, ask(s, "id").body)
				if test.gone > 0 {
					time.Sleep(test.gone - 1)
					require.Equal(t, `{"status":"completed","result":1}`, ask(s, "id").body)
					time.Sleep(1)
				}
				require.Equal(t, test.want, ask(s, "id").without())
				require.Equal(t, 1, s.Stats().Answers["gone"])
			})
		})
	}
}

func TestLargeResultsAreAnnouncedFirst(t *testing.T) {
	script := steps(Step{Answer: "completed", ResultBytes: 5000})
	script.Style = Style{MetadataThreshold: 4096, Retention: "once"}
	s := New(script)
	size := len(`{"status":"completed","result":}`) + 5000
	require.Equal(t, `{"status":"complete_metadata","response_payload_size":`+strconv.Itoa(size)+`}`, ask(s, "id").body)
	require.Zero(t, s.Stats().Deliveries)
	require.Len(t, askFor(s, "id", false).body, size)
	require.Equal(t, map[string]int{"metadata": 1, "completed": 1}, s.Stats().Answers)
	require.Equal(t, 404, askFor(s, "id", false).code)
}

func TestAKeyIsWantedWhereOneIsSet(t *testing.T) {
	s := New(Script{RequireHeaders: []string{"x-request-id"}}, WithAPIKey("secret"))
	require.Equal(t, 401, ask(s, "id").code)
	require.Equal(t, 401, ask(s, "id", "X-API-Key", "guess", "x-request-id", "1").code)
	require.Equal(t, 400, ask(s, "id", "X-API-Key", "secret").code)
	require.Equal(t, 200, ask(s, "id", "X-API-Key", "secret", "x-request-id", "1").code)
	require.Equal(t, 200, ask(s, "id", "Authorization", "Bearer secret", "x-request-id", "1").code)
	require.Equal(t, map[string]int{"unauthorized": 2, "missing_header": 1, "pending": 2}, s.Stats().Answers)
}

func TestARequestIDIsAString(t *testing.T) {
	for _, body := range []string{``, `{`, `{}`, `{"request_id":12}`, `{"request_id":null}`, `{"request_id":""}`} {
		w := httptest.NewRecorder()
		New(Script{}).ServeHTTP(w, httptest.NewRequest("POST", "/retrieve_future", strings.NewReader(body)))
		require.Equal(t, 422, w.Code, body)
	}
}

func TestAllPathsRetrieve(t *testing.T) {
	for _, path := range []string{"/api/v1/retrieve_future", "/api/v1/future/retrieve", "/retrieve_future"} {
		w := httptest.NewRecorder()
		New(Script{}).ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(queryFor("id", true))))
		require.Equal(t, 200, w.Code, path)
	}
}

func TestGzipIsForWhoAcceptsIt(t *testing.T) {
	script := steps(Step{Answer: "completed", ResultBytes: 5000})
	script.Style.Gzip = true
	s := New(script)
	plain := ask(s, "id")
	require.Empty(t, plain.header.Get("Content-Encoding"))
	packed := ask(s, "id", "Accept-Encoding", "gzip")
	require.Equal(t, "gzip", packed.header.Get("Content-Encoding"))
	z, err := gzip.NewReader(strings.NewReader(packed.body))
	require.NoError(t, err)
	body, err := io.ReadAll(z)
	require.NoError(t, err)
	require.Equal(t, plain.body, string(body))
}

func TestGeneratedResultsFollowFromSeedAndID(t *testing.T) {
	result := func(seed uint64, id string, n int, contentType string) string {
		s := compileStep(Step{Answer: "completed", ResultBytes: n, ContentType: contentType}, Style{})
		return string(newFiller(seed).appendResult(nil, id, &s))
	}
	for _, n := range []int{1, 2, 3, 50, 200, 100_000} {
		require.Len(t, result(1, "a\n", n, ""), n)
		require.True(t, json.Valid([]byte(result(1, "a\n", n, ""))), n)
		require.Len(t, result(1, "a", n, "application/x-protobuf"), n)
	}
	require.Equal(t, result(1, "a", 500, ""), result(1, "a", 500, ""))
	require.NotEqual(t, result(1, "a", 500, ""), result(1, "b", 500, ""))
	require.NotEqual(t, result(1, "a", 500, ""), result(2, "a", 500, ""))
	require.Regexp(t, `"number":\d{20},`, result(1, "a", 500, ""))
}

func TestMintedIDsHaveTheirFormat(t *testing.T) {
	const uuid = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	for format, pattern := range map[string]string{
		"":         uuid,
		"uuid":     uuid,
		"train":    uuid + `:train:\d+:0`,
		"sample":   uuid + `:sample:\d+:\d+`,
		"req":      `req_[0-9a-f]{16}`,
		"req32":    `req_[0-9a-f]{32}`,
		"fut":      `fut_[0-9a-f]{32}`,
		"hex":      `[0-9a-f]{32}`,
		"int":      `\d+`,
		"negative": `-\d+`,
		"gw":       `gw:alias-\d:[0-9a-f]{16}`,
		"unload":   uuid + `:unload`,
		"mixed":    `.+`,
	} {
		s, again := New(Script{IDFormat: format}), New(Script{IDFormat: format})
		seen := make(map[string]bool)
		for range 100 {
			id := s.Mint("")
			require.Regexp(t, regexp.MustCompile(`^`+pattern+`$`), id)
			require.Equal(t, id, again.Mint(""))
			seen[id] = true
		}
		require.Len(t, seen, 100, format)
	}
}

// without drops the headers, for comparing.
func (g got) without() got { return got{code: g.code, body: g.body} }
