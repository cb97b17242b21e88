//go:build unix

package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// sockets are two ends of a connection. What one has written the other can read at once, unlike over TCP.
func sockets(t *testing.T) (near, far net.Conn) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	var conns [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	return conns[0], conns[1]
}

type when int

const (
	never when = iota
	behind
	idle // when the answer was read
)

// corked is a connection on which all that is written goes out at once.
type corked struct {
	net.Conn
	written bytes.Buffer
}

func (c *corked) Write(p []byte) (int, error) { return c.written.Write(p) }

func (c *corked) uncork() {
	_, _ = c.Conn.Write(c.written.Bytes())
	c.written.Reset()
}

// Over TLS what came behind an answer may be in no buffer that can be seen.
func TestWhatComesBehindAnAnswerOverTLSIsNoOtherAnswer(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n"
	for behind, dials := range map[string]int{"": 1, head + `{"status":"completed","result":6}`: 2, "x": 2} {
		certified := httptest.NewUnstartedServer(nil)
		certified.StartTLS()
		certified.Close()
		var serving sync.WaitGroup
		dialed := 0
		transport := NewTransport(TransportConfig{TLS: certified.Client().Transport.(*http.Transport).TLSClientConfig})
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			near, far := sockets(t)
			dialed++
			serving.Go(func() {
				defer far.Close()
				cork := &corked{Conn: far}
				secure := tls.Server(handshaking{cork}, &tls.Config{Certificates: certified.TLS.Certificates})
				for in := bufio.NewReader(secure); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(secure, head+`{"status":"completed","result":2}`)
					_, _ = io.WriteString(secure, behind)
					cork.uncork()
				}
			})
			return near, nil
		}
		client, err := New(Config{BaseURL: "https://example.com", Transport: transport})
		require.NoError(t, err)
		(*client.transport.Load()).(*http1).spoke.Store(true)
		for range 2 {
			require.Equal(t, "2", string(retrieve(t, client, Query{RequestID: "id"}).Result))
		}
		require.Equal(t, dials, dialed, behind)
		client.CloseIdleConnections()
		serving.Wait()
	}
}

// handshaking uncorks when it is the other side's turn.
type handshaking struct{ *corked }

func (h handshaking) Read(p []byte) (int, error) {
	h.uncork()
	return h.Conn.Read(p)
}

// What a connection brought besides the answer must not become the answer to another request.
func TestWhichConnectionsAreUsedAgain(t *testing.T) {
	const result = `{"status":"completed","result":1}`
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n" + `{"status":"completed","result":6}`
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n" + result
	packed := string(compressed(t, []byte(result)))
	for _, c := range []struct {
		name    string
		answer  string
		asIdle  string // is said when the answer was read
		hangsUp when
		again   bool
	}{
		{"a length", whole, "", never, true},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n21\r\n" + result + "\r\n0\r\n\r\n", "", never, true},
		{"chunks and a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n21\r\n" + result + "\r\n0\r\nX: y\r\n\r\n", "", never, true},
		{"compressed chunks", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(packed), packed) + "0\r\n\r\n", "", never, true},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", "", never, true},
		{"an empty body", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", "", never, true},
		{"behind an interim answer", "HTTP/1.1 102 Processing\r\n\r\n" + whole, "", never, true},
		{"HTTP/1.0 that keeps it", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 33\r\n\r\n" + result, "", never, true},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 33\r\n\r\n" + result, "", never, false},
		{"told that it ends", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 33\r\n\r\n" + result, "", never, false},
		{"ended by its connection", "HTTP/1.1 200 OK\r\n\r\n" + result, "", behind, false},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "", never, false},
		{"hung up while idle", whole, "", idle, false},
		{"more than its length", whole + forged, "", never, false},
		{"an answer that nobody asked for", whole, forged, never, false},
		{"more than the limit", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + strings.Repeat(" ", 5000), "", never, false},
		{"no gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 33\r\n\r\n" + result, "", never, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var dials, answered int
			var serving sync.WaitGroup
			read, said := make(chan struct{}), make(chan struct{})
			defer serving.Wait()
			transport := NewTransport(TransportConfig{})
			transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				near, far := sockets(t)
				dials++
				serving.Go(func() {
					defer far.Close()
					for in := bufio.NewReader(far); ; {
						r, err := http.ReadRequest(in)
						if err != nil {
							return
						}
						_, _ = io.Copy(io.Discard, r.Body)
						if answered++; answered > 1 {
							_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n"+`{"status":"completed","result":2}`)
							continue
						}
						_, _ = io.WriteString(far, c.answer)
						if c.hangsUp == behind {
							_ = far.Close()
						}
						<-read
						_, _ = io.WriteString(far, c.asIdle)
						if c.hangsUp == idle {
							_ = far.Close()
						}
						close(said)
					}
				})
				return near, nil
			}
			client, err := New(Config{BaseURL: "http://upstream", MaxResult: 4000, Transport: transport})
			require.NoError(t, err)
			defer client.CloseIdleConnections()
			retrieve(t, client, Query{RequestID: "first"})
			close(read)
			<-said
			require.Equal(t, "2", string(retrieve(t, client, Query{RequestID: "second"}).Result))
			require.Equal(t, 2, answered)
			require.Equal(t, map[bool]int{true: 1, false: 2}[c.again], dials)
		})
	}
}
