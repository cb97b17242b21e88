package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

func TestAWaitHintIsReadInEveryForm(t *testing.T) {
	date := func(in time.Duration, layout string) string { return arrival.Add(in).Format(layout) }
	for _, c := range []struct {
		name    string
		headers []string
		body    string
		want    time.Duration
	}{
		{"none", nil, `{}`, 0},
		{"seconds", []string{"Retry-After", "7"}, ``, 7 * time.Second},
		{"seconds with a fraction", []string{"Retry-After", " 1.5 "}, ``, 1500 * ms},
		{"milliseconds", []string{"retry-after-ms", "250"}, ``, 250 * ms},
		{"half a millisecond", []string{"retry-after-ms", "0.5"}, ``, ms / 2},
		{"a date", []string{"Retry-After", date(90*time.Second, http.TimeFormat)}, ``, 90 * time.Second},
		{"a date of RFC 850", []string{"Retry-After", date(time.Minute, "Monday, 02-Jan-06 15:04:05 GMT")}, ``, time.Minute},
		{"a date of ANSI C", []string{"Retry-After", date(time.Minute, time.ANSIC)}, ``, time.Minute},
		{"a date that is past", []string{"Retry-After", date(-time.Hour, http.TimeFormat)}, ``, 0},
		{"a date in a year", []string{"Retry-After", date(365*24*time.Hour, http.TimeFormat)}, ``, MaxHint},
		{"a date in centuries", []string{"Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"}, ``, MaxHint},
		{"body milliseconds", nil, `{"retry_after_ms":5000}`, 5 * time.Second},
		{"body seconds", nil, `{"retry_after_s":2.25}`, 2250 * ms},
		{"body numbers as strings", nil, `{"retry_after_ms":"800","retry_after_s":"0.5"}`, 800 * ms},
		{"body with an exponent", nil, `{"retry_after_ms":1e3}`, time.Second},
		{"body null", nil, `{"retry_after_ms":null,"retry_after_s":null}`, 0},
		{"body of another type", nil, `{"retry_after_ms":true,"retry_after_s":{"a":1}}`, 0},
		{"body list", nil, `{"retry_after_ms":[5]}`, 0},
		{"zero", []string{"Retry-After", "0"}, `{"retry_after_ms":0}`, 0},
		{"negative", []string{"Retry-After", "-7", "Retry-After-Ms", "-1"}, `{"retry_after_ms":-5,"retry_after_s":-1}`, 0},
		{"NaN", []string{"Retry-After", "NaN", "Retry-After-Ms", "nan"}, `{"retry_after_s":"NaN"}`, 0},
		{"infinite", []string{"Retry-After", "+Inf"}, ``, MaxHint},
		{"negative infinity", []string{"Retry-After", "-Inf"}, ``, 0},
		{"a year", []string{"Retry-After", "31536000"}, ``, MaxHint},
		{"a number beyond all floats", []string{"Retry-After", "1e999"}, `{"retry_after_ms":1e999}`, MaxHint},
		{"just under the most", nil, `{"retry_after_ms":299999}`, MaxHint - ms},
		{"words", []string{"Retry-After", "soon", "Retry-After-Ms", ""}, `{"retry_after_ms":"later"}`, 0},
		{"of two headers the longer", []string{"Retry-After", "1", "Retry-After-Ms", "1700"}, ``, 1700 * ms},
		{"of one header twice the longer", []string{"Retry-After", "1", "Retry-After", "4"}, ``, 4 * time.Second},
		{"of one line with several the longest", []string{"Retry-After", "1, 6,2"}, ``, 6 * time.Second},
		{"of one line of milliseconds the longest", []string{"Retry-After-Ms", "100,600"}, ``, 600 * ms},
		{"one line, a number and a date", []string{"Retry-After", "2, " + date(time.Minute, http.TimeFormat)}, ``, time.Minute},
		{"one line, a date and a number", []string{"Retry-After", date(time.Minute, http.TimeFormat) + ",90"}, ``, 90 * time.Second},
		{"one line, dates", []string{"Retry-After", strings.Join([]string{
			date(time.Minute, "Monday, 02-Jan-06 15:04:05 GMT"), date(2*time.Minute, time.ANSIC), date(time.Second, http.TimeFormat),
		}, ",")}, ``, 2 * time.Minute},
		{"one line, with nothing between commas", []string{"Retry-After", ", 3,,"}, ``, 3 * time.Second},
		{"one line, a number and words", []string{"Retry-After", "7, soon"}, ``, 7 * time.Second},
		{"hexadecimal", []string{"Retry-After", "0x1p4", "Retry-After-Ms", "0X10"}, `{"retry_after_s":"0x1p4"}`, 0},
		{"of header and body the longer", []string{"Retry-After", "1"}, `{"retry_after_ms":1200}`, 1200 * ms},
		{"one that is wrong beside one that is not", []string{"Retry-After", "soon"}, `{"retry_after_s":3}`, 3 * time.Second},
		{"in the body of no object", nil, `[{"retry_after_s":3}]`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, status := range []int{202, 408, 429, 503, 400, 404} {
				require.Equal(t, c.want, classify(said(status, c.body, c.headers...)).Hint, status)
			}
		})
	}
}

func TestAHintComesWithEveryKindOfAnswer(t *testing.T) {
	for body, kind := range map[string]Kind{
		`{"type":"try_again"}`:                             Pending,
		`{"status":"complete_metadata"}`:                   Metadata,
		`{"status":"completed","result":1}`:                Completed,
		`{"status":"failed","error":"x"}`:                  Failed,
		`{"status":"failed","error":"unknown request id"}`: NotFound,
		`half`: Malformed,
	} {
		got := classify(said(200, body, "Retry-After", "9"))
		require.Equal(t, kind, got.Kind)
		require.Equal(t, 9*time.Second, got.Hint, body)
	}
}

func TestAWaitThatCannotBeGrantedIsToldOf(t *testing.T) {
	for _, c := range []struct {
		name    string
		headers []string
		body    string
		want    string
	}{
		{"none", nil, `{"retry_after_ms":null}`, ""},
		{"one that can", []string{"Retry-After", "300"}, `{"retry_after_ms":0}`, ""},
		{"a date to come", []string{"Retry-After", arrival.Add(time.Minute).Format(http.TimeFormat)}, ``, ""},
		{"this very second", []string{"Retry-After", arrival.Format(http.TimeFormat)}, ``, ""},
		{"a date that is past", []string{"Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"}, ``, "Fri, 31 Dec 1999 23:59:59 GMT"},
		{"too long", []string{"Retry-After", "301"}, ``, "301"},
		{"negative", nil, `{"retry_after_s":-1}`, "-1"},
		{"words", []string{"Retry-After-Ms", "soon"}, ``, "soon"},
		{"two", []string{"Retry-After", "1", "Retry-After", "2"}, ``, "1, 2"},
		{"two in one line", []string{"Retry-After", "1,6"}, ``, "1, 6"},
		{"one and a comma", []string{"Retry-After", "1,"}, ``, ""},
		{"hexadecimal", []string{"Retry-After", "0x1p4"}, ``, "0x1p4"},
		{"a long one", []string{"Retry-After", strings.Repeat("9", 400)}, ``, strings.Repeat("9", maxOddHint-len("…")) + "…"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, classify(said(503, c.body, c.headers...)).OddHint)
		})
	}
}
