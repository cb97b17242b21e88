package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPollIsExactlyThisRequest(t *testing.T) {
	type request struct {
		method, path, body string
		length             int64
		header             http.Header
	}
	var got request
	handle := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		got = request{r.Method, r.URL.RequestURI(), string(body), r.ContentLength, r.Header}
		_, _ = io.WriteString(w, `{"type":"try_again"}`)
	}
	const short = `{"request_id":"id","allow_metadata_only":true}`
	standard := http.Header{
		"Accept": {"application/x-protobuf, application/json"}, "Accept-Encoding": {"gzip"},
		"Content-Type": {"application/json"}, "User-Agent": {"future-bridge"},
		"X-Tinker-Request-Iteration": {"0"}, "Content-Length": {"46"},
	}
	with := func(headers ...string) http.Header {
		h := standard.Clone()
		for i := 0; i < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		return h
	}
	for _, c := range []struct {
		name   string
		config Config
		query  Query
		body   string
		header http.Header
	}{
		{"the first", Config{}, Query{RequestID: "id"}, short, standard},
		{
			"the fourth, for the bytes themselves", Config{},
			Query{RequestID: "id", RequestType: "ForwardBackward", Iteration: 3, Full: true},
			`{"request_id":"id","allow_metadata_only":false}`,
			with("X-Tinker-Request-Iteration", "3", "X-Tinker-Request-Type", "ForwardBackward", "Content-Length", "47"),
		},
		{"on a new connection", Config{}, Query{RequestID: "id", Fresh: true}, short, with("Connection", "close")},
		{"a type that is no header value", Config{}, Query{RequestID: "id", RequestType: "a\nb"}, short, standard},
		{"with a key", Config{Key: "k-1"}, Query{RequestID: "id"}, short, with("X-Api-Key", "k-1")},
		{"with a key in another header", Config{Key: "k-1", KeyHeader: "x-my-key"}, Query{RequestID: "id"}, short, with("X-My-Key", "k-1")},
		{"with a bearer token", Config{Key: "k-1", KeyHeader: "authorization"}, Query{RequestID: "id"}, short, with("Authorization", "Bearer k-1")},
		{"with a scheme of its own", Config{Key: "Basic k-1", KeyHeader: "Authorization"}, Query{RequestID: "id"}, short, with("Authorization", "Basic k-1")},
		{
			"with further headers", Config{Header: http.Header{"x-request-id": {"1"}, "X-Two": {"a", "b"}, "user-agent": {"mine"}}, UserAgent: "theirs"},
			Query{RequestID: "id"}, short,
			func() http.Header {
				h := with("X-Request-Id", "1", "User-Agent", "mine")
				h["X-Two"] = []string{"a", "b"}
				return h
			}(),
		},
		{
			"the key outranks a header of that name", Config{Key: "k-1", Header: http.Header{"x-api-key": {"k-2"}}},
			Query{RequestID: "id"}, short, with("X-Api-Key", "k-1"),
		},
		{"with another agent", Config{UserAgent: "bridge/1"}, Query{RequestID: "id"}, short, with("User-Agent", "bridge/1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := upstream(t, c.config, handle)
			require.Equal(t, Outcome{Kind: Pending, HTTPStatus: 200}, retrieve(t, client, c.query))
			require.Equal(t, request{"POST", DefaultPath, c.body, int64(len(c.body)), c.header}, got)
			require.Equal(t, Pending, retrieve(t, client, c.query).Kind)
			require.Equal(t, c.body, got.body, "the same again on the same connection")
		})
	}
}

func TestAnIDIsSentAsAJSONString(t *testing.T) {
	for id, want := range map[string]string{
		"f629aa6f-d12e:train:0:0": `f629aa6f-d12e:train:0:0`,
		"-12345678901234567890":   `-12345678901234567890`,
		`a"b\c/d`:                 `a\"b\\c/d`,
		"<a>&'b":                  `<a>&'b`,
		"ä😀\u2028":                "ä😀\u2028",
		"a b.*>{}":                `a b.*>{}`,
		"\x00\x1f\x7f\n":          `\u0000\u001f` + "\x7f" + `\u000a`,
		"a\xffb\xc3":              "a\uFFFDb\uFFFD",
		"\uFFFD":                  "\uFFFD",
		"":                        ``,
	} {
		require.Equal(t, `>{"request_id":"`+want+`","allow_metadata_only":true}`, string(appendQuery([]byte(">"), Query{RequestID: id})))
	}
}

func TestThePathIsTheConfigsOwn(t *testing.T) {
	for _, c := range []struct{ base, path, want string }{
		{"http://host", "", "http://host/api/v1/retrieve_future"},
		{"http://host/", "", "http://host/api/v1/retrieve_future"},
		{"https://host:8443/x/", "/retrieve_future", "https://host:8443/x/retrieve_future"},
		{"http://[::1]:80/x/y", "/api/v1/future/retrieve", "http://[::1]:80/x/y/api/v1/future/retrieve"},
		{"HTTP://host", "/a b", "http://host/a%20b"},
	} {
		require.Equal(t, c.want, client(t, Config{BaseURL: c.base, Path: c.path}).url.String())
	}
}

func TestAConfigThatIsWrongIsNamedWithoutItsSecrets(t *testing.T) {
	const key = "sk-very/secret"
	for _, c := range []struct {
		name   string
		config Config
		want   string
	}{
		{"no URL", Config{}, "upstream: want an http or https URL with a host"},
		{"no scheme", Config{BaseURL: "host/" + key}, "want an http or https URL"},
		{"another scheme", Config{BaseURL: "ftp://host/" + key}, "want an http or https URL"},
		{"no host", Config{BaseURL: "http:///" + key}, "want an http or https URL with a host"},
		{"a URL that cannot be parsed", Config{BaseURL: "http://host/%zz" + key}, "the base URL cannot be parsed"},
		{"a user", Config{BaseURL: "https://sk-very%2Fsecret@host"}, `upstream "https://host": user`},
		{"a password", Config{BaseURL: "https://me:sk-very%2Fsecret@host"}, `upstream "https://host": user`},
		{"a query", Config{BaseURL: "https://host/?key=" + key}, `upstream "https://host": user, query`},
		{"a fragment", Config{BaseURL: "https://host/#" + key}, `upstream "https://host": user, query and fragment`},
		{"a path without a slash", Config{BaseURL: "http://host", Path: "x"}, `upstream path "x"`},
		{"a header that is no token", Config{BaseURL: "http://host", Header: http.Header{"a b": {key}}}, `upstream header "a b"`},
		{"a header of two lines", Config{BaseURL: "http://host", Header: http.Header{"A": {key + "\nB: c"}}}, `upstream header "A"`},
		{"a key of two lines", Config{BaseURL: "http://host", Key: key + "\n"}, `header "X-Api-Key" and the key must be printable`},
		{"a key header that is no token", Config{BaseURL: "http://host", KeyHeader: "a:b", Key: key}, `header "a:b"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config.Key == "" {
				c.config.Key = key
			}
			_, err := New(c.config)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestAClientServesManyAtOnce(t *testing.T) {
	c := upstream(t, Config{Key: "k-12345678"}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write([]byte(`{"status":"completed","result":`))
		_, _ = w.Write(body)
		_, _ = w.Write([]byte(`}`))
	})
	results := make(chan Outcome)
	const polls = 100
	for i := range polls {
		go func() { results <- c.Retrieve(context.Background(), Query{RequestID: strings.Repeat("x", i)}) }()
	}
	seen := make(map[string]bool)
	for range polls {
		got := <-results
		require.Equal(t, Completed, got.Kind)
		seen[string(got.Result)] = true
	}
	require.Len(t, seen, polls, "no buffer is used twice")
}
