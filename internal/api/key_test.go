package api

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// texts are all the words of an outcome that go out to logs and events, but the result.
func texts(o Outcome) string {
	var b strings.Builder
	fmt.Fprintln(&b, o.Reason, o.QueueState)
	if f := o.Failure; f != nil {
		fmt.Fprintln(&b, f.Message, f.RawCategory)
	}
	if p := o.Progress; p != nil {
		fmt.Fprintf(&b, "%s %s %s %s\n", p.QueuePosition, p.EstimatedWaitS, p.Progress, p.Status)
	}
	return b.String()
}

func TestTheKeyIsTakenOutOfWhatAnUpstreamReflects(t *testing.T) {
	const key = `sk-A/b+c=d&e<f>"g" h`
	// How encoders of JSON, URLs and HTML write this key.
	forms := map[string]string{
		"plain":           `sk-A/b+c=d&e<f>\"g\" h`,
		"slashes":         `sk-A\/b+c=d&e<f>\"g\" h`,
		"Go":              `sk-A/b+c=d\u0026e\u003cf\u003e\"g\" h`,
		"Java":            `sk-A/b+c\u003dd\u0026e\u003cf\u003e\"g\" h`,
		".NET":            `sk-A/b\u002Bc=d\u0026e\u003Cf\u003E\u0022g\u0022 h`,
		"every character": `\u0073\u006B\u002d\u0041\u002f\u0062\u002b\u0063\u003d\u0064\u0026\u0065\u003c\u0066\u003e\u0022\u0067\u0022\u0020\u0068`,
		"JSON in JSON":    `sk-A\\/b\\u002bc=d&e<f>\\\"g\\\" h`,
		"a URL's query":   `sk-A%2Fb%2Bc%3Dd%26e%3Cf%3E%22g%22+h`,
		"a URL's path":    `sk-A%2fb+c=d&e%3cf%3e%22g%22%20h`,
		"HTML":            `sk-A/b+c=d&amp;e&lt;f&gt;&#34;g&#34; h`,
		"HTML in hex":     `sk-A&#x2F;b&#x2b;c&#x3d;d&#x26;e&#x3c;f&#x3e;&quot;g&quot; h`,
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				status int
				body   string // % is the key
				want   string // in the outcome's texts
			}{
				{200, `{"error":"bad key %!","category":"user"}`, "bad key [redacted]!"},
				{200, `{"error":{"message":"%"},"category":"%"}`, "[redacted] [redacted]"},
				{200, `{"error":[{"msg":"%"}]}`, `[{"msg":"[redacted]"}]`},
				{200, `{"type":"try_again","queue_state":"%","queue_state_reason":"for %"}`, "for [redacted] unknown"},
				{200, `{"type":"try_again","queue_state_reason":{"a":"%"}}`, `{"a":"[redacted]"}`},
				{200, `{"type":"try_again","progress":{"a":"%"}}`, `{"a":"[redacted]"}`},
				{200, `{"type":"try_again","status":"%"}`, `"[redacted]"`},
				{200, `not JSON: %`, "not JSON: [redacted]"},
				{401, `{"detail":"bad key %"}`, "bad key [redacted]"},
				{403, `<html>%</html>`, "<html>[redacted]</html>"},
				{500, `{"detail":[{"headers":{"x-api-key":"%"}}]}`, `{"x-api-key":"[redacted]"}`},
				{502, `{"headers":{"x-api-key":"%"}}`, `{"x-api-key":"[redacted]"}`},
			} {
				body := strings.ReplaceAll(c.body, "%", form)
				client := upstream(t, Config{Key: key}, func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("X-API-Key") != key {
						panic("the key did not arrive")
					}
					w.WriteHeader(c.status)
					_, _ = io.WriteString(w, body)
				})
				got := retrieve(t, client, Query{RequestID: "id"})
				require.Contains(t, texts(got), c.want, body)
				require.NotContains(t, texts(got), "sk-", body)
			}
		})
	}
}

func TestNoPartOfTheKeyStaysWhereATextIsCut(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	for pad := maxText - 2*len(key); pad <= maxText+1; pad++ {
		reflected := strings.Repeat("x", pad) + key + strings.Repeat("y", 50)
		for _, body := range []string{`{"error":"` + reflected + `"}`, `{"error":["` + reflected + `"]}`, `{"type":"try_again","queue_state_reason":"` + reflected + `"}`} {
			a := said(200, body)
			a.secrets = newRedactor([]string{key})
			require.NotContains(t, texts(classify(a)), "0")
		}
	}
	for pad := 200 - 2*len(key); pad <= 201; pad++ {
		a := said(503, strings.Repeat("x", pad)+key)
		a.secrets = newRedactor([]string{key})
		require.NotContains(t, texts(classify(a)), "0")
	}
	a := said(503, strings.Repeat("x", maxScanned-8)+key)
	a.secrets = newRedactor([]string{key})
	require.NotContains(t, texts(classify(a)), "0")

	// What is taken out makes a text so much shorter that its end would be quoted.
	var long, escaped strings.Builder
	for c := '!'; c <= '~'; c++ {
		long.WriteString(strings.Repeat(string(c), 5))
		escaped.WriteString(strings.Repeat(fmt.Sprintf(`\\\u%04x`, c), 5))
	}
	secrets := newRedactor([]string{long.String()})
	for _, form := range []string{long.String(), escaped.String()} {
		for pad := range 10 {
			a := said(503, strings.Repeat(" ", 100*pad)+strings.Repeat(form, 40))
			a.secrets = secrets
			require.NotContains(t, texts(classify(a)), "!!", pad)
			require.NotContains(t, texts(classify(a)), "0021", pad)
		}
	}
}

func TestTheKeyIsKnownInBase64AndHex(t *testing.T) {
	const key = "sk-A/b+c=d&e<f>?\xfb~ü"
	for before := range 4 {
		text := "Bearer "[:before] + key + " told"
		for name, form := range map[string]string{
			"base64": base64.StdEncoding.EncodeToString([]byte(text)), "of URLs": base64.URLEncoding.EncodeToString([]byte(text)),
			"without padding": base64.RawStdEncoding.EncodeToString([]byte(text)),
			"hex":             hex.EncodeToString([]byte(text)), "in capitals": strings.ToUpper(hex.EncodeToString([]byte(text))),
		} {
			a := said(403, `{"detail":"`+form+`"}`)
			a.secrets = newRedactor([]string{key})
			message := classify(a).Failure.Message
			require.Contains(t, message, redacted, name)
			require.Less(t, len(message)-len(redacted), len(form)-len(key), "%s: %s", name, message)
		}
	}
	a := said(403, `{"detail":"short keys are like words: `+base64.StdEncoding.EncodeToString([]byte("abcd"))+`"}`)
	a.secrets = newRedactor([]string{"abcd"})
	require.NotContains(t, classify(a).Failure.Message, redacted)
}

func TestTheKeyIsInNoContentType(t *testing.T) {
	for _, kind := range []string{"application/json; key=k-12345678", "application/x-protobuf; key=k-12345678"} {
		a := said(200, `{"a":1}`, "Content-Type", kind)
		a.secrets = newRedactor([]string{"k-12345678"})
		require.Equal(t, strings.Replace(kind, "k-12345678", redacted, 1), classify(a).ContentType)
	}
}

func TestAKeyThatIsAWordChangesNoMeaning(t *testing.T) {
	for _, key := range []string{"try_again", "type", "null", "a", "\"", "status", "1", "true", "[redacted]", "red"} {
		for body, want := range map[string]Kind{
			`{"type":"try_again","retry_after_ms":null,"queue_position":1,"progress":true}`:    Pending,
			`{"status":"failed","error":{"message":"status a 1 true null","category":"user"}}`: Failed,
			`{"status":"complete_metadata","response_payload_size":1}`:                         Metadata,
			`{"status":"completed","result":{"a":1}}`:                                          Completed,
		} {
			c := upstream(t, Config{Key: key}, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
			got := retrieve(t, c, Query{RequestID: "id"})
			require.Equal(t, want, got.Kind, key)
			if got.Failure != nil {
				require.Equal(t, User, got.Failure.Category)
				require.LessOrEqual(t, len(got.Failure.Message), maxText)
			}
			if p := got.Progress; p != nil {
				for _, value := range [][]byte{p.QueuePosition, p.Progress} {
					require.True(t, value == nil || string(value) == "1" || string(value) == "true", "what is no JSON without the key is left out")
				}
			}
		}
	}
}

func TestAResultIsTheSubmittersOwnWhateverIsInIt(t *testing.T) {
	c := upstream(t, Config{Key: "k-12345678"}, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"completed","result":"k-12345678"}`)
	})
	require.Equal(t, `"k-12345678"`, string(retrieve(t, c, Query{RequestID: "id"}).Result))
}

func TestEverySecretIsTakenOut(t *testing.T) {
	for name, c := range map[string]struct {
		config    Config
		says, out string
	}{
		"a bearer token":                    {Config{Key: "k-1", KeyHeader: "Authorization"}, "Bearer k-1, k-1", "[redacted], [redacted]"},
		"a token with its scheme":           {Config{Key: "Basic abcdefgh", KeyHeader: "Authorization"}, "Basic abcdefgh, abcdefgh", "[redacted], [redacted]"},
		"a further header":                  {Config{Header: http.Header{"X-A": {"abcdefgh"}}}, "abcdefgh", "[redacted]"},
		"a further header's token":          {Config{Header: http.Header{"Authorization": {"Bearer abcdefgh"}}}, "abcdefgh", "[redacted]"},
		"a header too short for a secret":   {Config{Header: http.Header{"X-A": {"prod"}}}, "prod", "prod"},
		"a secret that is part of another":  {Config{Key: "abcdefgh", Header: http.Header{"X-A": {"abcdefgh-ijk"}}}, "abcdefgh-ijk abcdefgh", "[redacted] [redacted]"},
		"a secret that begins another":      {Config{Key: "abcdefgh-ijk", Header: http.Header{"X-A": {"abcdefgh"}}}, "abcdefgh-ijk abcdefgh", "[redacted] [redacted]"},
		"a value too large for all escapes": {Config{Key: "k-1", Header: http.Header{"X-A": {strings.Repeat("abcdefgh", 2000)}}}, strings.Repeat("abcdefgh", 2000) + ` k-1 k\\u002d1`, "[redacted] [redacted] [redacted]"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := c.config
			cfg.Transport = roundTripper(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 403, Body: io.NopCloser(strings.NewReader(`{"detail":"` + c.says + `"}`))}, nil
			})
			cfg.BaseURL = "http://host"
			require.Equal(t, c.out, retrieve(t, client(t, cfg), Query{RequestID: "id"}).Failure.Message)
		})
	}
}

func TestTheKeyIsInNoErrorOfTheConnection(t *testing.T) {
	const key = "sk-secret/1"
	for name, wire := range map[string]string{
		"in the status line": "HTTP/1.1 " + key + " hello\r\n\r\n",
		"in a header":        "HTTP/1.1 200 OK\r\nkey " + key + "\r\n\r\n",
		"before anything":    key + "\r\n\r\n",
		"in a chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + key + "\r\n",
		"in a length":        "HTTP/1.1 200 OK\r\nContent-Length: " + key + "\r\n\r\n",
		"after a long text":  "HTTP/1.1 " + strings.Repeat("x", maxText-80) + key + " hello\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got := retrieve(t, upstream(t, Config{Key: key}, saying(wire, false)), Query{RequestID: "id"})
			require.Equal(t, Unreachable, got.Kind)
			require.NotContains(t, got.Failure.Message, "sk-")
			require.LessOrEqual(t, len(got.Failure.Message), maxText)
		})
	}
}

func TestAChangedKeyIsSentFromTheNextPollOn(t *testing.T) {
	var c *Client
	var sent []string
	renew := func() {}
	c = upstream(t, Config{Key: "first-key", KeyHeader: "authorization", KeyRefused: func() { renew() }}, func(w http.ResponseWriter, r *http.Request) {
		sent = append(sent, r.Header.Get("Authorization"))
		w.WriteHeader(401)
		_, _ = io.WriteString(w, `{"detail":"neither first-key nor second-key, not even third-key"}`)
	})
	got := retrieve(t, c, Query{RequestID: "id"})
	require.Equal(t, Unauthorized, got.Kind)
	require.False(t, got.StaleKey)
	require.Equal(t, "neither [redacted] nor second-key, not even third-key", got.Failure.Message)

	renew = func() { require.NoError(t, c.SetKey("second-key")) }
	got = retrieve(t, c, Query{RequestID: "id"})
	require.True(t, got.StaleKey, "another key has come while the poll was out")
	got = retrieve(t, c, Query{RequestID: "id"})
	require.False(t, got.StaleKey, "the same key again is no other")
	require.Equal(t, "neither [redacted] nor [redacted], not even third-key", got.Failure.Message)

	require.NoError(t, c.SetKey("third-key"))
	got = retrieve(t, c, Query{RequestID: "id"})
	require.True(t, got.StaleKey)
	require.Equal(t, "neither first-key nor [redacted], not even [redacted]", got.Failure.Message)
	require.Equal(t, []string{"Bearer first-key", "Bearer first-key", "Bearer second-key", "Bearer third-key"}, sent)
	require.ErrorContains(t, c.SetKey("a\nb"), "on one line")
	require.NoError(t, c.SetKey(""))
	renew = func() {}
	retrieve(t, c, Query{RequestID: "id"})
	require.Empty(t, sent[4])
}

func TestWhatElseIsSecretIsTakenOutToo(t *testing.T) {
	c := upstream(t, Config{Secrets: []string{"", "pw", "dTpwdw=="}}, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(403)
		_, _ = io.WriteString(w, `{"detail":"Basic dTpwdw== (pw)"}`)
	})
	require.Equal(t, "Basic [redacted] ([redacted])", retrieve(t, c, Query{RequestID: "id"}).Failure.Message)
}
