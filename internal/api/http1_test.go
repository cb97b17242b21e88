package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// counted is a dialer that knows how many of its connections there are.
type counted struct {
	dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	dials, open atomic.Int32
}

func (c *counted) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.dials.Add(1)
	c.open.Add(1)
	return &countedConn{Conn: conn, of: c}, nil
}

type countedConn struct {
	net.Conn
	of   *counted
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.of.open.Add(-1) })
	return c.Conn.Close()
}

func TestNoMorePollsThanConnectionsAndNoConnectionIsIdleForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := sim.NewMemory(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Second)
			_, _ = io.WriteString(w, `{"status":"completed","result":1}`)
		}))
		dialer := &counted{dial: server.DialContext}
		transport := NewTransport(TransportConfig{MaxConns: 3})
		transport.DialContext = dialer.DialContext
		c := client(t, Config{BaseURL: "http://upstream", Transport: transport})
		begin := time.Now()
		var polls sync.WaitGroup
		for range 12 {
			polls.Go(func() {
				if got := retrieve(t, c, Query{RequestID: "id"}); got.Kind != Completed {
					t.Error(got)
				}
			})
		}
		polls.Wait()
		require.Equal(t, 4*time.Second, time.Since(begin))
		require.EqualValues(t, 3, dialer.dials.Load())
		require.EqualValues(t, 3, dialer.open.Load())
		time.Sleep(30 * time.Second)
		require.Equal(t, Completed, retrieve(t, c, Query{RequestID: "id"}).Kind)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, dialer.open.Load(), "the one that was used 10 s ago")
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Zero(t, dialer.open.Load())
		require.EqualValues(t, 3, dialer.dials.Load())
		require.NoError(t, server.Close())
	})
}

func TestAPollThatWaitsForAConnectionWasHeardByNobody(t *testing.T) {
	held(t, time.Minute, hold, func(t *testing.T, c *Client) {
		(*c.transport.Load()).(*http1).slots = make(chan struct{}, 1)
		done := make(chan Outcome)
		go func() { done <- retrieve(t, c, Query{RequestID: "first"}) }()
		synctest.Wait()
		got := retrieve(t, c, Query{RequestID: "second", Deadline: time.Now().Add(time.Second)})
		require.Equal(t, Unreachable, got.Kind)
		require.False(t, got.BrokeOff)
		require.True(t, (<-done).BrokeOff)
	})
}

func TestAnUpstreamThatEndsIdleConnectionsIsAskedOnANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns, done := make(chan net.Conn), make(chan struct{})
		polls := 0
		server := &http.Server{IdleTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			polls++
			_, _ = io.WriteString(w, `{"status":"completed","result":1}`)
		})}
		go func() { _ = server.Serve(pipes{conns, done}) }()
		dialer := &counted{dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			conns <- far
			return near, nil
		}}
		transport := NewTransport(TransportConfig{})
		transport.DialContext = dialer.DialContext
		c := client(t, Config{BaseURL: "http://upstream", Transport: transport})
		for _, pause := range []time.Duration{0, time.Second, 10 * time.Second, time.Second} {
			time.Sleep(pause)
			require.Equal(t, Completed, retrieve(t, c, Query{RequestID: "id"}).Kind)
		}
		require.Equal(t, 4, polls)
		require.EqualValues(t, 2, dialer.dials.Load())
		close(done)
		require.NoError(t, server.Close())
	})
}

func TestOverTLSTheUpstreamShowsWhatItSpeaks(t *testing.T) {
	var remote atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remote.Store(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, `{"status":"completed","result":%d}`, r.ProtoMajor)
	}))
	server.Config.ErrorLog = quiet()
	server.StartTLS() // HTTP/1.1 alone
	defer server.Close()
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig
	dialer := &counted{dial: new(net.Dialer).DialContext}
	transport := NewTransport(TransportConfig{TLS: trusted})
	transport.DialContext = dialer.DialContext
	c := client(t, Config{BaseURL: server.URL, Transport: transport})
	poll := func() any {
		require.Equal(t, "1", string(retrieve(t, c, Query{RequestID: "id"}).Result))
		return remote.Load()
	}
	first, second := poll(), poll()
	require.NotEqual(t, first, second, "now over a connection of its own")
	require.Equal(t, second, poll())
	require.EqualValues(t, 2, dialer.dials.Load())
	require.EqualValues(t, 1, dialer.open.Load(), "the first one is closed")
}

func TestAnUpstreamThatNoLongerSpeaksHTTP1IsAskedOverHTTP2(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"status":"completed","result":%d}`, r.ProtoMajor)
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = quiet()
	server.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.SupportedProtos, "h2") {
			return nil, errors.New("HTTP/2 alone")
		}
		return nil, nil
	}}
	server.StartTLS()
	defer server.Close()
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig
	c := client(t, Config{BaseURL: server.URL, Transport: NewTransport(TransportConfig{TLS: trusted})})
	(*c.transport.Load()).(*http1).spoke.Store(true) // it did, once
	got := retrieve(t, c, Query{RequestID: "id"})
	require.Equal(t, Unreachable, got.Kind)
	require.False(t, got.BrokeOff)
	require.Contains(t, got.Failure.Message, "remote error: tls")
	require.Equal(t, "2", string(retrieve(t, c, Query{RequestID: "id"}).Result))
}

func TestHeadersOfInterimAnswersCountToo(t *testing.T) {
	const interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n" + `{"status":"completed","result":1}`
	for n, want := range map[int]Kind{0: Completed, 100: Completed, 2000: Unreachable} {
		got := retrieve(t, upstream(t, Config{}, saying(strings.Repeat(interim, n)+answer, false)), Query{RequestID: "id"})
		require.Equal(t, want, got.Kind, n)
		if want == Unreachable {
			require.Contains(t, got.Failure.Message, "the headers of the answer exceeded 65536 bytes")
		}
	}
}
