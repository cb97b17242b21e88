package api

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hole is a connection from which, from some moment on, nothing arrives, while writing to it goes on working.
type hole struct {
	net.Conn
	black *atomic.Bool
}

func (h hole) Read(p []byte) (int, error) {
	for {
		n, err := h.Conn.Read(p)
		if err != nil || !h.black.Load() {
			return n, err
		}
	}
}

// A poll that is held for an hour must not outlive the connection that it is held on.
func TestABlackHoledHTTP2ConnectionIsNoticed(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	roots := certified.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	synctest.Test(t, func(t *testing.T) {
		var black atomic.Bool
		conns := make(chan net.Conn)
		done := make(chan struct{})
		var protocol atomic.Int32
		server := &http.Server{
			TLSConfig: &tls.Config{Certificates: certified.TLS.Certificates},
			ErrorLog:  quiet(),
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				protocol.Store(int32(r.ProtoMajor))
				<-done
			}),
		}
		go func() { _ = server.ServeTLS(pipes{conns, done}, "", "") }()
		transport := NewTransport(TransportConfig{TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"}})
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			conns <- far
			return hole{near, &black}, nil
		}
		c := client(t, Config{BaseURL: "https://example.com", Transport: transport, Timeout: time.Hour})
		begin := time.Now()
		time.AfterFunc(10*time.Minute, func() { black.Store(true) })
		got := retrieve(t, c, Query{RequestID: "id"})
		require.EqualValues(t, 2, protocol.Load())
		require.Equal(t, Unreachable, got.Kind)
		require.True(t, got.BrokeOff)
		require.InDelta(t, (10 * time.Minute).Seconds(), time.Since(begin).Seconds(), 30, "pings keep a held poll, and end a dead one")
		close(done)
		require.NoError(t, server.Close())
		transport.CloseIdleConnections()
	})
}

type pipes struct {
	conns <-chan net.Conn
	done  <-chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (pipes) Close() error   { return nil }
func (pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestConnectionsAreBounded(t *testing.T) {
	require.Equal(t, 7, NewTransport(TransportConfig{MaxConns: 7}).MaxConnsPerHost)
	require.Equal(t, 1024, NewTransport(TransportConfig{}).MaxConnsPerHost)
}

// proxy is a forwarding HTTP proxy that wants a user and a password.
func proxy(t *testing.T, user, password string, passed *atomic.Int32) *url.URL {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := &http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
		if u, p, _ := given.BasicAuth(); u != user || p != password {
			w.WriteHeader(http.StatusProxyAuthRequired)
			_, _ = io.WriteString(w, "no entry with "+r.Header.Get("Proxy-Authorization"))
			return
		}
		passed.Add(1)
		if r.Method == http.MethodConnect {
			tunnel(w, r.Host)
			return
		}
		r.RequestURI = ""
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	}))
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		server.Close()
	})
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	return u
}

func tunnel(w http.ResponseWriter, host string) {
	far, err := net.Dial("tcp", host)
	if err != nil {
		panic(err)
	}
	near, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(far, near)
		far.Close()
	}()
	_, _ = io.Copy(near, far)
	near.Close()
}

func TestAProxyIsUsedWhenAndOnlyWhenItIsGiven(t *testing.T) {
	require.Nil(t, NewTransport(TransportConfig{}).Proxy, "whatever the environment says")
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"a":1}`) })
	plain, secure := httptest.NewServer(answer), httptest.NewTLSServer(answer)
	defer plain.Close()
	defer secure.Close()
	trust := secure.Client().Transport.(*http.Transport).TLSClientConfig
	var passed atomic.Int32
	through := proxy(t, "u", "topsecret", &passed)
	for _, base := range []string{plain.URL, secure.URL} {
		passed.Store(0)
		allowed := *through
		allowed.User = url.UserPassword("u", "topsecret")
		c := client(t, Config{BaseURL: base, Transport: NewTransport(TransportConfig{Proxy: &allowed, TLS: trust})})
		require.Equal(t, Completed, retrieve(t, c, Query{RequestID: "id"}).Kind)
		require.EqualValues(t, 1, passed.Load())

		refused := *through
		refused.User = url.UserPassword("u", "old-secret")
		c = client(t, Config{BaseURL: base, Transport: NewTransport(TransportConfig{Proxy: &refused, TLS: trust})})
		got := retrieve(t, c, Query{RequestID: "id"})
		require.Equal(t, Unreachable, got.Kind, "it is not the request that is refused")
		require.Contains(t, got.Failure.Message, "roxy")
		require.NotContains(t, got.Failure.Message, "old-secret")
		require.NotContains(t, got.Failure.Message, "Basic")
		require.EqualValues(t, 1, passed.Load())
	}
}

func TestAPrivateAuthorityAndAClientCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"a":1}`) }))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = quiet()
	server.StartTLS()
	defer server.Close()
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for name, c := range map[string]struct {
		tls  *tls.Config
		want Kind
	}{
		"a certificate of its own": {&tls.Config{RootCAs: roots, Certificates: server.TLS.Certificates}, Completed},
		"without a certificate":    {&tls.Config{RootCAs: roots}, Unreachable},
		"an unknown authority":     {&tls.Config{Certificates: server.TLS.Certificates}, Unreachable},
	} {
		got := retrieve(t, client(t, Config{BaseURL: server.URL, Transport: NewTransport(TransportConfig{TLS: c.tls})}), Query{RequestID: "id"})
		require.Equal(t, c.want, got.Kind, name)
	}
}
