package api

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// arrival is when the answers made by said arrive.
var arrival = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// said is an answer with these headers, given as name and value in turn.
func said(status int, body string, headers ...string) answer {
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	return answer{status: status, header: h, body: []byte(body), at: arrival}
}

// upstream is a client of a server on loopback that answers by handle.
func upstream(t testing.TB, cfg Config, handle http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	cfg.BaseURL = server.URL
	return client(t, cfg)
}

// client is a client whose idle connections are closed at the end of the test.
func client(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// saying answers every request with these bytes on the wire, and then ends the connection; reset does it by RST.
func saying(wire string, reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, wire)
		if tcp, ok := conn.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

func retrieve(t testing.TB, c *Client, q Query) Outcome {
	t.Helper()
	return c.Retrieve(context.Background(), q)
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
