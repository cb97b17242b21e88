package intake

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
)

func TestASubmissionIsReadInEveryForm(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, c := range []struct {
		name   string
		header nats.Header
		data   string
		want   Submission
	}{
		{"a plain id", nil, "f629aa6f-d12e:train:0:0", Submission{ID: "f629aa6f-d12e:train:0:0"}},
		{"a plain id, trimmed", nil, " \r\n-123\t\n", Submission{ID: "-123"}},
		{"a plain id that is strange", nil, `a b.*>/ä="`, Submission{ID: `a b.*>/ä="`}},
		{"a plain id like other JSON", nil, `["a"]`, Submission{ID: `["a"]`}},
		{"a JSON object", nil, ` {"request_id":"a"}`, Submission{ID: "a"}},
		{
			"a JSON object with everything", nil,
			`{"request_id":"a","timeout_ms":1500,"request_type":"Forward Backward","labels":{"b":"2","a":"ä"},"other":[1]}`,
			Submission{ID: "a", Type: "Forward Backward", Timeout: 1500 * time.Millisecond, Labels: json.RawMessage(`{"a":"ä","b":"2"}`)},
		},
		{"a JSON object with nulls", nil, `{"request_id":"a","timeout_ms":null,"request_type":null,"labels":null}`, Submission{ID: "a"}},
		{"a JSON object with no labels", nil, `{"request_id":"a","labels":{}}`, Submission{ID: "a"}},
		{"an id with escapes", nil, `{"request_id":"a\"\\\u00e4\ud83d\ude00\/"}`, Submission{ID: `a"\ä😀/`}},
		{"an id with a replacement character of its own", nil, `{"request_id":"\uFFfd"}`, Submission{ID: "\uFFFD"}},
		{"an id with a replacement character as it is", nil, "{\"request_id\":\"\uFFFD\"}", Submission{ID: "\uFFFD"}},
		{"the longest deadline", nil, `{"request_id":"a","timeout_ms":604800000}`, Submission{ID: "a", Timeout: MaxTimeout}},
		{"a header for an id", nats.Header{"Bridge-Request-Id": {"h"}}, "", Submission{ID: "h"}},
		{"a header outranks a plain id", nats.Header{"Bridge-Request-Id": {"h"}}, "a", Submission{ID: "h"}},
		{"a header outranks a JSON id", nats.Header{"Bridge-Request-Id": {"h"}}, `{"request_id":"a","request_type":"T"}`, Submission{ID: "h", Type: "T"}},
		{"a header outranks half a surrogate pair", nats.Header{"Bridge-Request-Id": {"h"}}, `{"request_id":"\ud83d"}`, Submission{ID: "h"}},
		{"a header beside a JSON object without an id", nats.Header{"Bridge-Request-Id": {"h"}}, `{"timeout_ms":1}`, Submission{ID: "h", Timeout: time.Millisecond}},
		{
			"headers for all, in other cases",
			nats.Header{"bridge-request-id": {"h"}, "BRIDGE-TIMEOUT-MS": {" 7 "}, "Bridge-request-type": {"T"}, "Traceparent": {trace}},
			`{"request_id":"a","timeout_ms":1,"request_type":"U"}`,
			Submission{ID: "h", Timeout: 7 * time.Millisecond, Type: "T", Traceparent: trace},
		},
		{"a header that says the same twice", nats.Header{"Bridge-Request-Id": {"h", "h"}, "bridge-request-id": {"h"}}, "", Submission{ID: "h"}},
		{"traces that differ", nats.Header{"traceparent": {trace}, "Traceparent": {strings.Replace(trace, "b7", "b8", 1)}}, "a", Submission{ID: "a"}},
		{"headers of the server's and of a later bridge's", nats.Header{"Status": {"503"}, "Nats-Pin-Id": {"x"}, "Bridge-Priority": {"7"}, "Bridge-Status": {"completed"}}, "a", Submission{ID: "a"}},
		{"fields of a later bridge", nil, `{"version":2,"request_id":"a","priority":{"class":7},"url":"http://evil","path":"/","headers":{"X-API-Key":"k"}}`, Submission{ID: "a"}},
		{"fields that are named otherwise", nil, `{"REQUEST_ID":1,"request_id":"a","Timeout_MS":"x","Labels":7,"request-type":{}}`, Submission{ID: "a"}},
		{"fields of other meanings twice", nil, `{"x":1,"request_id":"a","x":2}`, Submission{ID: "a"}},
		{"an id that looks like a token", nil, "=YS5i", Submission{ID: "=YS5i"}},
		{"a name with escapes", nil, `{"request\u005fid":"a"}`, Submission{ID: "a"}},
		{"a header without a value is none", nats.Header{"Bridge-Request-Id": {}}, "a", Submission{ID: "a"}},
		{"a trace that is none", nats.Header{"traceparent": {"00-x"}}, "a", Submission{ID: "a"}},
		{"a trace in capitals", nats.Header{"traceparent": {strings.ToUpper(trace)}}, "a", Submission{ID: "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.header, []byte(c.data), publish.CheckID)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// hopeless is what can be no request, and what its submitter is told.
var hopeless = []struct {
	name   string
	header nats.Header
	data   string
	reason string // how the error begins
}{
	{"nothing", nil, "", "the message is empty: want a request id, or a JSON object with request_id"},
	{"white space", nil, " \n\t", "the message is empty: want a request id, or a JSON object with request_id"},
	{"no UTF-8", nil, "a\xff", "the request id is not valid UTF-8"},
	{"a control character", nil, "a\x01b", "the request id has the control character U+0001"},
	{"two lines", nil, "a\nb", "the request id has the control character U+000A"},
	{"an id that is too long", nil, strings.Repeat("x", 1025), "the request id has 1025 bytes; at most 1024 are allowed"},
	{"JSON without an id", nil, `{"timeout_ms":1}`, "the JSON object has no request_id"},
	{"JSON with a null id", nil, `{"request_id":null}`, "the JSON object has no request_id"},
	{"JSON with an empty id", nil, `{"request_id":""}`, "the request id is empty"},
	{"JSON with an id that has white space around", nil, `{"request_id":" a"}`, "the request id has white space at its ends"},
	{"JSON with a control character in the id", nil, `{"request_id":"a\u0000"}`, "the request id has the control character U+0000"},
	{"JSON that is no UTF-8", nil, "{\"request_id\":\"a\xff\"}", "the message is not valid UTF-8"},
	{"JSON with half a surrogate pair", nil, `{"request_id":"a\ud83d"}`, "the request_id has half of a surrogate pair"},
	{"JSON with a number for an id", nil, `{"request_id":123}`, `the field "request_id" is a JSON number: want a string`},
	{"JSON with a list for an id", nil, `{"request_id":["a"]}`, `the field "request_id" is a JSON array: want a string`},
	{"JSON with a boolean type", nil, `{"request_id":"a","request_type":true}`, `the field "request_type" is a JSON bool: want a string`},
	{"JSON with a time-out in words", nil, `{"request_id":"a","timeout_ms":"1"}`, `the field "timeout_ms" is a JSON string: want a whole number`},
	{"JSON with half a millisecond", nil, `{"request_id":"a","timeout_ms":0.5}`, `the field "timeout_ms" is a JSON number 0.5: want a whole number`},
	{"JSON with an endless time-out", nil, `{"request_id":"a","timeout_ms":` + strings.Repeat("9", 5000) + `}`, `the field "timeout_ms" is a JSON number ` + strings.Repeat("9", 33) + `: want a whole number`},
	{"half of JSON", nil, `{"request_id":"a"`, "the message begins like a JSON object but is none: "},
	{"JSON and more", nil, `{"request_id":"a"} {}`, "the message begins like a JSON object but is none: "},
	{"braces alone", nil, `{a}`, "the message begins like a JSON object but is none: "},
	{"JSON too deep", nil, `{"labels":` + strings.Repeat("[", 100_000), "the message begins like a JSON object but is none: "},
	{"a byte order mark", nil, "\ufeff{\"request_id\":\"a\"}", "the message begins with a byte order mark: leave it out"},
	{"a byte order mark of another encoding", nil, "\xff\xfe{\x00", "the request id is not valid UTF-8"},
	{"JSON with two ids", nil, `{"request_id":"a","request_id":"b"}`, `the JSON object has the field "request_id" twice`},
	{"JSON with two ids, one of them escaped", nil, `{"request_id":"a","request\u005fid":"b"}`, `the JSON object has the field "request_id" twice`},
	{"JSON with two time-outs", nil, `{"timeout_ms":1,"request_id":"a","timeout_ms":1}`, `the JSON object has the field "timeout_ms" twice`},
	{"JSON with an id in another case", nil, `{"Request_Id":"a"}`, "the JSON object has no request_id"},
	{"JSON with a time-out of 1e400", nil, `{"request_id":"a","timeout_ms":1e400}`, `the field "timeout_ms" is a JSON number 1e400: want a whole number`},
	{"JSON with a time-out of 1e3", nil, `{"request_id":"a","timeout_ms":1e3}`, `the field "timeout_ms" is a JSON number 1e3: want a whole number`},
	{"JSON with a time-out that is no number", nil, `{"request_id":"a","timeout_ms":NaN}`, "the message begins like a JSON object but is none: "},
	{"two headers for an id", nats.Header{"Bridge-Request-Id": {"h", "i"}}, "a", "the header Bridge-Request-Id is given twice, with different values"},
	{"two headers for an id, one in another case", nats.Header{"Bridge-Request-Id": {"h"}, "bridge-request-id": {"i"}}, "a", "the header Bridge-Request-Id is given twice, with different values"},
	{"two headers for a time-out", nats.Header{"Bridge-Timeout-Ms": {"1", "2"}}, "a", "the header Bridge-Timeout-Ms is given twice, with different values"},
	{"two headers for a type", nats.Header{"Bridge-Request-Type": {"A"}, "bridge-request-type": {"a"}}, "a", "the header Bridge-Request-Type is given twice, with different values"},
	{"a type with a line break", nil, `{"request_id":"a","request_type":"T\r\nX-Evil: 1"}`, "the request type has characters other than printable ASCII"},
	{"a time-out of nothing", nil, `{"request_id":"a","timeout_ms":0}`, "the time-out is 0 ms: want 1 to 604800000 (7 days)"},
	{"a negative time-out", nil, `{"request_id":"a","timeout_ms":-1}`, "the time-out is -1 ms: want 1 to 604800000 (7 days)"},
	{"an absurd time-out", nil, `{"request_id":"a","timeout_ms":604800001}`, "the time-out is 604800001 ms: want 1 to 604800000 (7 days)"},
	{"a time-out that would overflow", nil, `{"request_id":"a","timeout_ms":9223372036854775807}`, "the time-out is 9223372036854775807 ms: want 1 to 604800000 (7 days)"},
	{"labels that are a list", nil, `{"request_id":"a","labels":["b"]}`, `the field "labels" is no JSON object whose values are strings`},
	{"labels with a number", nil, `{"request_id":"a","labels":{"b":1}}`, `the field "labels" is no JSON object whose values are strings`},
	{"labels with a null", nil, `{"request_id":"a","labels":{"b":null}}`, `the field "labels" is no JSON object whose values are strings`},
	{"labels that are too large", nil, `{"request_id":"a","labels":{"b":"` + strings.Repeat("x", 4089) + `"}}`, "the labels have 4097 bytes: at most 4096 are carried"},
	{"a type that is too long", nil, `{"request_id":"a","request_type":"` + strings.Repeat("x", 129) + `"}`, "the request type has 129 bytes: at most 128 are allowed"},
	{"a type that is not ASCII", nil, `{"request_id":"a","request_type":"ä"}`, "the request type has characters other than printable ASCII"},
	{"a type with a control character", nil, `{"request_id":"a","request_type":"a\u007f"}`, "the request type has characters other than printable ASCII"},
	{"an empty header for an id", nats.Header{"Bridge-Request-Id": {""}}, "a", "the request id is empty"},
	{"a header for a time-out in words", nats.Header{"Bridge-Timeout-Ms": {"soon" + strings.Repeat("x", 5000)}}, "a", `the header Bridge-Timeout-Ms is "soon` + strings.Repeat("x", 36) + `": want whole milliseconds`},
	{"a header for an absurd time-out", nats.Header{"Bridge-Timeout-Ms": {"-5"}}, "a", "the time-out is -5 ms: want 1 to 604800000 (7 days)"},
	{"a header for a type that is not ASCII", nats.Header{"Bridge-Request-Type": {"ä"}}, "a", "the request type has characters other than printable ASCII"},
	{"a header does not mend JSON", nats.Header{"Bridge-Request-Id": {"h"}}, `{`, "the message begins like a JSON object but is none: "},
	{"a header does not mend an id of another type", nats.Header{"Bridge-Request-Id": {"h"}}, `{"request_id":1}`, `the field "request_id" is a JSON number: want a string`},
}

func TestWhatIsNoRequestIsToldWhatToMend(t *testing.T) {
	for _, c := range hopeless {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.header, []byte(c.data), publish.CheckID)
			require.Error(t, err)
			require.Equal(t, c.reason, err.Error()[:min(len(err.Error()), len(c.reason))])
		})
	}
}

// What clients clean, and a socket written to by hand does not.
func TestALineBreakInAHeaderIsRefused(t *testing.T) {
	for _, value := range []string{"h\rX-Evil: 1", "h\nX-Evil: 1", "h\r\nX-Evil: 1", "h\x00", "h\vx"} {
		_, err := Parse(nats.Header{headerRequestID: {value}}, nil, publish.CheckID)
		require.ErrorContains(t, err, "the request id has the control character")
		_, err = Parse(nats.Header{headerRequestType: {value}}, []byte("a"), publish.CheckID)
		require.ErrorContains(t, err, "the request type has characters other than printable ASCII")
		_, err = Parse(nats.Header{headerTimeoutMS: {value}}, []byte("a"), publish.CheckID)
		require.ErrorContains(t, err, "want whole milliseconds")
		got, err := Parse(nats.Header{headerTraceparent: {value}}, []byte("a"), publish.CheckID)
		require.NoError(t, err)
		require.Empty(t, got.Traceparent)
	}
}

func TestTheLargestLabelsAreCarried(t *testing.T) {
	label := strings.Repeat("x", 4088)
	got, err := Parse(nil, []byte(`{"request_id":"a","labels":{"b":"`+label+`"}}`), publish.CheckID)
	require.NoError(t, err)
	require.Len(t, got.Labels, maxLabelsBytes)
}

func FuzzParse(f *testing.F) {
	for _, c := range hopeless {
		f.Add("", "", "", []byte(c.data))
	}
	for _, data := range []string{"a", ` {"request_id":"a","timeout_ms":5,"request_type":"T","labels":{"a":"b"}} `, `{"REQUEST_ID":"a","labels":{}}`, "\ufeff{}"} {
		f.Add("", "", "", []byte(data))
		f.Add("h", "1500", "T", []byte(data))
		f.Add("\xff", "1e3", "\n", []byte(data))
	}
	f.Fuzz(func(t *testing.T, id, timeout, kind string, data []byte) {
		header := nats.Header{}
		for name, value := range map[string]string{headerRequestID: id, headerTimeoutMS: timeout, headerRequestType: kind, headerTraceparent: kind} {
			if value != "" {
				header[name] = []string{value}
			}
		}
		var allowed []string
		refused := errors.New("refused")
		got, err := Parse(header, data, func(id string) error {
			if err := publish.CheckID(id); err != nil {
				return errors.Join(refused, err)
			}
			allowed = append(allowed, id)
			return nil
		})
		if err != nil {
			require.True(t, utf8.ValidString(err.Error()), "%q", err)
			require.LessOrEqual(t, len(err.Error()), 300)
			return
		}
		require.Equal(t, []string{got.ID}, allowed, "nothing but what was checked")
		require.True(t, id == "" || got.ID == id, "a header wins")
		require.GreaterOrEqual(t, got.Timeout, time.Duration(0))
		require.LessOrEqual(t, got.Timeout, MaxTimeout)
		require.LessOrEqual(t, len(got.Type), maxTypeBytes)
		for _, c := range []byte(got.Type) {
			require.True(t, ' ' <= c && c <= '~', "%q", got.Type)
		}
		if got.Labels != nil {
			var labels map[string]string
			require.NoError(t, json.Unmarshal(got.Labels, &labels))
			require.NotEmpty(t, labels)
			require.LessOrEqual(t, len(got.Labels), maxLabelsBytes)
		}
		require.True(t, got.Traceparent == "" || traceparent.MatchString(got.Traceparent))
	})
}
