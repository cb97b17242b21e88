package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAResultIsCarriedUntouched(t *testing.T) {
	for name, result := range map[string]string{
		"a 20-digit integer":       `{"n":12345678901234567890}`,
		"a long fraction":          `[0.1000000000000000055511151231257827, 1E+2, -0.0]`,
		"odd white space":          "{ \"a\" :\t[ 1 ,\r\n2 ] }",
		"escapes":                  `"\u0041\/\ud83d\ude00\ud800\n"`,
		"invalid UTF-8":            "\"\xff\xfe\xc3\"",
		"a key twice":              `{"a":1,"a":2}`,
		"keys that mean something": `{"status":"failed","error":"x","type":"try_again","result":[]}`,
		"a string with brackets":   `"}]}],\"result\":2"`,
		"a very small number":      `1e-999`,
		"empty":                    `""`,
		"HTML":                     `"<a href='&'>\u2028"`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, envelope := range []string{
				`{"status":"completed","result":%}`,
				" \r\n\t{ \"result\"\t: % , \"status\" : \"completed\" }\n",
				`{"result":{"wrong":1},"status":"completed","request_id":"a","result":%}`,
				`{"request_id":"ä\"}{","r\u0065sult":%,"st\u0061tus":"completed"}`,
			} {
				got := classify(said(200, strings.Replace(envelope, "%", result, 1)))
				require.Equal(t, Completed, got.Kind, envelope)
				require.Equal(t, result, string(got.Result), envelope)
			}
			bare := " [" + result + "] "
			require.Equal(t, bare, string(classify(said(200, bare)).Result))
		})
	}
}

func TestAResultIsSlicedNotCopied(t *testing.T) {
	a := said(200, `{"status":"completed","result":[1,2,3]}`)
	got := classify(a)
	require.Same(t, &a.body[len(`{"status":"completed","result":`)], &got.Result[0])
}

func TestDeepNestingIsMalformedAndNoCrash(t *testing.T) {
	nested := func(opening, closing string, depth int) string {
		return strings.Repeat(opening, depth) + "1" + strings.Repeat(closing, depth)
	}
	for _, c := range []struct {
		name string
		body string
		want Kind
	}{
		{"as deep as is allowed", nested("[", "]", maxDepth), Completed},
		{"one more", nested("[", "]", maxDepth+1), Malformed},
		{"100,000 levels", nested("[", "]", 100_000), Malformed},
		{"10 million levels", nested("[", "]", 10_000_000), Malformed},
		{"10 million levels of objects", nested(`{"a":`, "}", 10_000_000), Malformed},
		{"10 million levels without an end", strings.Repeat("[", 10_000_000), Malformed},
		{"in a result", `{"status":"completed","result":` + nested("[", "]", 100_000) + `}`, Malformed},
		{"in an error", `{"error":` + nested(`{"message":`, "}", 100_000) + `}`, Malformed},
		{"an allowed error", `{"error":` + nested(`{"message":`, "}", maxDepth-1) + `}`, Failed},
		{"wide, not deep", "[" + strings.Repeat("[],", 100_000) + "[]]", Completed},
		{"brackets in a string", `"` + strings.Repeat("[{", 100_000) + `"`, Completed},
		{"brackets in a string after a quote", `["\"` + strings.Repeat("[", 100_000) + `\\",1]`, Completed},
		{"brackets after a string that ends in a backslash", `["\\",` + nested("[", "]", 100_000) + `]`, Malformed},
		{"brackets after closing ones", strings.Repeat("]", 100_000) + nested("[", "]", 200_000), Malformed},
		{"a string without an end", `"` + strings.Repeat("[", 100_000) + `\`, Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := classify(said(200, c.body))
			require.Equal(t, c.want, got.Kind)
			if c.want != Completed {
				require.LessOrEqual(t, len(got.Failure.Message), maxText)
			}
			require.Equal(t, ServerFault, classify(said(500, c.body)).Kind)
		})
	}
}
