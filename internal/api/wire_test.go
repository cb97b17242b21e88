package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func compressed(t testing.TB, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(body)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

func TestABodyThatIsCompressedIsReadWhole(t *testing.T) {
	result := `{"tokens":[` + strings.Repeat("12345678901234567890,", 1000) + `0]}`
	packed := compressed(t, []byte(`{"status":"completed","result":`+result+`}`))
	c := upstream(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed)
	})
	got := retrieve(t, c, Query{RequestID: "id"})
	require.Equal(t, Completed, got.Kind)
	require.Equal(t, result, string(got.Result))
}

func TestTheLimitIsOnTheBodyAsItIsRead(t *testing.T) {
	const limit = 10_000
	packed := compressed(t, bytes.Repeat([]byte{' '}, 64<<20))
	quoted := func(n int) []byte { return []byte(`"` + strings.Repeat("x", n-2) + `"`) }
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		want   Kind
	}{
		{"as large as is allowed", func(w http.ResponseWriter) { _, _ = w.Write(quoted(limit)) }, Completed},
		{"one byte more", func(w http.ResponseWriter) { _, _ = w.Write(quoted(limit + 1)) }, Refused},
		{"announced", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", strconv.Itoa(limit+1))
			_, _ = w.Write(quoted(limit + 1))
		}, Refused},
		{"without an end", func(w http.ResponseWriter) {
			for chunk := quoted(limit); ; { // made once: what it takes counts below
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, Refused},
		{"64 MiB in 64 KiB of gzip", func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed)
		}, Refused},
		{"an error page", func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write(quoted(limit + 1))
		}, Refused},
		{"metadata of as much as is allowed", func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"status":"complete_metadata","response_payload_size":%d}`, limit)
		}, Metadata},
		{"metadata of one byte more", func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"status":"complete_metadata","response_payload_size":%d}`, limit+1)
		}, Refused},
		{"metadata beyond all integers", func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"status":"complete_metadata","response_payload_size":1e30}`)
		}, Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := upstream(t, Config{MaxResult: limit}, func(w http.ResponseWriter, r *http.Request) { c.answer(w) })
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got := retrieve(t, client, Query{RequestID: "id"})
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
			require.Equal(t, c.want, got.Kind)
			if c.want == Refused {
				require.False(t, got.BrokeOff)
				require.Equal(t, Validation, got.Failure.Type)
				require.Equal(t, User, got.Failure.Category)
				require.Contains(t, got.Failure.Message, "10000 bytes")
			}
		})
	}
}

func TestAnAnswerThatBreaksOffIsNoAnswerOfItsKind(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	const body = `{"status":"completed","result":[1,2,3]}`
	half := body[:20]
	packed := string(compressed(t, []byte(body)))
	for _, c := range []struct {
		name  string
		wire  string
		reset bool
		want  Outcome // without its Failure
	}{
		{"whole", head + "Content-Length: 39\r\n\r\n" + body, false, Outcome{Kind: Completed, HTTPStatus: 200}},
		{"a number, ended by its connection", head + "\r\n 123", false, Outcome{Kind: Malformed, HTTPStatus: 200, BrokeOff: true}},
		{"a number, as long as announced", head + "Content-Length: 3\r\n\r\n123", false, Outcome{Kind: Completed, HTTPStatus: 200}},
		{"protobuf, ended by its connection", "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\r\nx", false, Outcome{Kind: Malformed, HTTPStatus: 200, BrokeOff: true}},
		{"protobuf in chunks", "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", false, Outcome{Kind: Completed, HTTPStatus: 200}},
		{"whole, ended by its connection", head + "\r\n" + body, false, Outcome{Kind: Completed, HTTPStatus: 200}},
		{"shorter than its length", head + "Content-Length: 39\r\n\r\n" + half, false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"shorter than its length, and yet JSON", head + "Content-Length: 39\r\n\r\n1", false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"nothing of its length", head + "Content-Length: 39\r\n\r\n", false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"without its last chunk", head + "Transfer-Encoding: chunked\r\n\r\n14\r\n" + half + "\r\n", false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"in a chunk that is none", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + half + "\r\n", false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"half, ended by its connection", head + "\r\n" + half, false, Outcome{Kind: Malformed, HTTPStatus: 200, BrokeOff: true}},
		{"nothing, ended by its connection", head + "\r\n", false, Outcome{Kind: Malformed, HTTPStatus: 200, BrokeOff: true}},
		{"whole and no JSON", head + "Content-Length: 20\r\n\r\n" + half, false, Outcome{Kind: Malformed, HTTPStatus: 200}},
		{"whole chunks and no JSON", head + "Transfer-Encoding: chunked\r\n\r\n14\r\n" + half + "\r\n0\r\n\r\n", false, Outcome{Kind: Malformed, HTTPStatus: 200}},
		{"half of a compressed one", head + "Content-Encoding: gzip\r\n\r\n" + packed[:len(packed)/2], false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"compressed in name only", head + "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + half, false, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true}},
		{"an error page that is cut", "HTTP/1.1 503 X\r\nContent-Length: 9\r\n\r\nab", false, Outcome{Kind: Unreachable, HTTPStatus: 503, BrokeOff: true}},
		{"reset midway", head + "Content-Length: 39\r\n\r\n" + half, true, Outcome{Kind: Unreachable, BrokeOff: true}},
		{"reset before a word", "", true, Outcome{Kind: Unreachable, BrokeOff: true}},
		{"ended before a word", "", false, Outcome{Kind: Unreachable, BrokeOff: true}},
		{"no HTTP", "SSH-2.0-OpenSSH_9.6\r\n", false, Outcome{Kind: Unreachable, BrokeOff: true}},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-", false, Outcome{Kind: Unreachable, BrokeOff: true}},
		{"headers without an end", head + "X: " + strings.Repeat("x", 1<<20), false, Outcome{Kind: Unreachable, BrokeOff: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := upstream(t, Config{}, saying(c.wire, c.reset))
			got := retrieve(t, client, Query{RequestID: "id"})
			if c.reset { // which may overtake the headers
				got.HTTPStatus = 0
			}
			failure := got.Failure
			got.Failure, got.Result, got.ContentType, got.mend, got.room = nil, nil, "", "", nil
			require.Equal(t, c.want, got)
			if c.want.Kind == Unreachable {
				require.Equal(t, APIConnection, failure.Type)
				require.Equal(t, Unknown, failure.Category)
				require.Contains(t, failure.Message, "the ")
			}
		})
	}
}

func TestAPollThatNobodyHeardOfDidNotBreakOff(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	foreign := httptest.NewTLSServer(http.NotFoundHandler())
	defer foreign.Close()
	foreign.Config.ErrorLog = quiet()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, mute.Close()) }()
	go func() {
		for {
			conn, err := mute.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	for name, base := range map[string]string{
		"refused":                          closed.URL,
		"a certificate of nobody":          foreign.URL,
		"TLS to a server that has none":    strings.Replace(plain.URL, "http:", "https:", 1),
		"a handshake that is hung up on":   "https://" + mute.Addr().String(),
		"no port that can be connected to": "http://127.0.0.1:0",
	} {
		t.Run(name, func(t *testing.T) {
			transport := NewTransport(TransportConfig{})
			got := retrieve(t, client(t, Config{BaseURL: base, Transport: transport}), Query{RequestID: "id"})
			require.Equal(t, Unreachable, got.Kind)
			require.False(t, got.BrokeOff, got.Failure.Message)
			require.Equal(t, APIConnection, got.Failure.Type)
			require.Contains(t, got.Failure.Message, "the upstream cannot be reached: ")
		})
	}
}

// roundTripper is a transport that does not tell when it has a connection.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestATransportThatDoesNotTellGetsNoTrust(t *testing.T) {
	c := client(t, Config{BaseURL: "http://host", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}), Timeout: time.Nanosecond})
	require.Equal(t, Outcome{Kind: NoAnswer, BrokeOff: true}, retrieve(t, c, Query{RequestID: "id"}))
	c = client(t, Config{BaseURL: "http://host", Transport: roundTripper(func(*http.Request) (*http.Response, error) {
		return nil, io.ErrUnexpectedEOF
	})})
	for _, fresh := range []bool{false, true} {
		got := retrieve(t, c, Query{RequestID: "id", Fresh: fresh})
		require.Equal(t, Unreachable, got.Kind)
		require.True(t, got.BrokeOff)
	}
}

func TestATimeOutThatIsNotThePollsIsAFault(t *testing.T) {
	c := client(t, Config{BaseURL: "http://host", Transport: roundTripper(func(*http.Request) (*http.Response, error) {
		return nil, &net.OpError{Op: "read", Err: timeoutError{}}
	})})
	require.Equal(t, Unreachable, retrieve(t, c, Query{RequestID: "id"}).Kind)
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "connection timed out" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func TestARedirectIsNotFollowed(t *testing.T) {
	var visits atomic.Int32
	canary := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) }))
	defer canary.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		c := upstream(t, Config{Key: "k-12345678"}, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, canary.URL, status)
		})
		got := retrieve(t, c, Query{RequestID: "id"})
		require.Equal(t, Malformed, got.Kind)
		require.Equal(t, status, got.HTTPStatus)
		require.Equal(t, APIStatus, got.Failure.Type)
		require.False(t, got.BrokeOff)
	}
	require.Zero(t, visits.Load(), "nobody else sees the key")
}

func TestAFreshPollUsesAConnectionOfItsOwn(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprint("tls=", tls), func(t *testing.T) {
			var remote string
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				remote = r.RemoteAddr
				_, _ = fmt.Fprintf(w, `{"status":"completed","result":%d}`, r.ProtoMajor)
			}))
			cfg := Config{}
			want := "1"
			if tls {
				server.EnableHTTP2, want = true, "2"
				server.StartTLS()
				trusted := server.Client().Transport.(*http.Transport).TLSClientConfig
				cfg.Transport = NewTransport(TransportConfig{TLS: trusted})
			} else {
				server.Start()
			}
			defer server.Close()
			cfg.BaseURL = server.URL
			c := client(t, cfg)
			poll := func(fresh bool) string {
				got := retrieve(t, c, Query{RequestID: "id", Fresh: fresh})
				require.Equal(t, want, string(got.Result))
				return remote
			}
			first := poll(false)
			require.Equal(t, first, poll(false), "connections are kept")
			fresh := poll(true)
			require.NotEqual(t, first, fresh)
			require.NotEqual(t, fresh, poll(true), "each fresh poll has its own")
			require.Equal(t, first, poll(false))
		})
	}
}

func TestHTTP2TellsWhatWasSentToo(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig
	c := client(t, Config{BaseURL: server.URL, Transport: NewTransport(TransportConfig{TLS: trusted})})
	for range 2 { // on a new connection, and on one that is there
		got := retrieve(t, c, Query{RequestID: "id"})
		require.Equal(t, Unreachable, got.Kind)
		require.True(t, got.BrokeOff)
	}
	server.Close()
	got := retrieve(t, c, Query{RequestID: "id"})
	require.Equal(t, Unreachable, got.Kind)
}

func TestACancelledPollIsNoAnswer(t *testing.T) {
	arrived := make(chan struct{})
	c := upstream(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		<-arrived
		cancel(errors.New("the end"))
	}()
	got := c.Retrieve(ctx, Query{RequestID: "id"})
	require.True(t, got.BrokeOff)
	require.Zero(t, got.HTTPStatus)
	require.Equal(t, NoAnswer, got.Kind)
}
