package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// DefaultPath is where the hosted server answers, DefaultKeyHeader where it looks for the key.
const (
	DefaultPath      = "/api/v1/retrieve_future"
	DefaultKeyHeader = "X-API-Key"
)

// Config describes one upstream.
type Config struct {
	BaseURL   string        // scheme and host, with a path before Path if there is one
	Path      string        // default DefaultPath
	Key       string        // sent in KeyHeader; empty: none
	KeyHeader string        // default DefaultKeyHeader; for Authorization a bare key is sent as a Bearer token
	Header    http.Header   // further headers for every poll
	MaxResult int64         // bytes of a body after decompression; default 64 MiB
	Memory    int64         // bytes of all bodies together, until their outcomes are released; 0: no bound
	Timeout   time.Duration // of one poll, from its start to the last byte of its answer; default 65 s
	UserAgent string        // default "future-bridge"

	// KeyRefused is called when the upstream refuses the key, by whoever polls, before Retrieve returns. It may call
	// SetKey. Optional.
	KeyRefused func()
	Secrets    []string // what else must be in no text of an outcome, such as a proxy's password

	Transport http.RoundTripper // default NewTransport
	// Fresh makes polls that must not use a connection that was used before; default: a transport without keep-alives.
	Fresh http.RoundTripper
}

// Query is one attempt to retrieve one future.
type Query struct {
	RequestID   string
	RequestType string    // X-Tinker-Request-Type; empty: not sent
	Iteration   int       // X-Tinker-Request-Iteration: polls of this request before this one
	Full        bool      // false: a large result may be answered by its size alone
	Fresh       bool      // use a new connection
	Deadline    time.Time // cuts the attempt, on the wall clock; zero: none
}

// Client makes attempts against one upstream. It is safe for concurrent use.
type Client struct {
	url        *url.URL
	identity   atomic.Pointer[identity]
	keyRefused func()
	maxResult  int64
	budget     *budget // nil: none
	timeout    time.Duration
	transport  atomic.Pointer[http.RoundTripper]
	fresh      http.RoundTripper
	buffers    sync.Pool // of *[]byte, of freeBody at most

	keyHeader string
	header    http.Header // without the key
	secrets   []string    // without the key
	rekeying  sync.Mutex
}

// New checks a config. Its errors name the field and never contain the key.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, errors.New("upstream: the base URL cannot be parsed; want for example https://api.example.com")
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https" || base.Host == "":
		return nil, errors.New("upstream: want an http or https URL with a host, such as https://api.example.com")
	case base.User != nil || base.RawQuery != "" || base.Fragment != "": // there may be a key in them
		return nil, fmt.Errorf("upstream %q: user, query and fragment are not allowed; give the key by file or environment", base.Scheme+"://"+base.Host)
	}
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	if !strings.HasPrefix(cfg.Path, "/") {
		return nil, fmt.Errorf("upstream path %q: must begin with a slash", cfg.Path)
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + cfg.Path
	c := &Client{
		url: base, maxResult: cfg.MaxResult, timeout: cfg.Timeout, fresh: cfg.Fresh,
		buffers:    sync.Pool{New: func() any { b := make([]byte, 0, 2*readAtOnce); return &b }},
		keyRefused: cfg.KeyRefused, keyHeader: http.CanonicalHeaderKey(cmp.Or(cfg.KeyHeader, DefaultKeyHeader)),
		secrets: slices.DeleteFunc(slices.Clone(cfg.Secrets), func(s string) bool { return s == "" }),
		header: http.Header{
			"Accept":       {"application/x-protobuf, application/json"}, // the official SDK's order
			"Content-Type": {"application/json"},
			"User-Agent":   {"future-bridge"},
		},
	}
	if cfg.UserAgent != "" {
		c.header["User-Agent"] = []string{cfg.UserAgent}
	}
	for name, values := range cfg.Header {
		for _, v := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
				return nil, fmt.Errorf("upstream header %q: the name must be a token and the value printable", name)
			}
			c.secrets = append(c.secrets, tokens(v)...)
		}
		c.header[http.CanonicalHeaderKey(name)] = values
	}
	if err := c.SetKey(cfg.Key); err != nil {
		return nil, err
	}
	if c.maxResult <= 0 {
		c.maxResult = 64 << 20
	}
	if cfg.Memory > 0 {
		c.budget = newBudget(cfg.Memory, c.maxResult)
	}
	if c.timeout <= 0 {
		c.timeout = 65 * time.Second
	}
	transport := cfg.Transport
	if transport == nil {
		transport = NewTransport(TransportConfig{})
	}
	if c.fresh == nil {
		c.fresh = transport
		if t, ok := transport.(*http.Transport); ok {
			fresh := t.Clone()
			fresh.DisableKeepAlives = true
			c.fresh = fresh
		}
	}
	transport = leaner(transport)
	c.transport.Store(&transport)
	return c, nil
}

// TransportConfig is what differs between upstreams below HTTP.
type TransportConfig struct {
	MaxConns int // connections to the upstream; default 1024
	TLS      *tls.Config
	Proxy    *url.URL // nil: none, whatever the environment says
}

// NewTransport makes a transport that stays usable when connections go bad: dials and handshakes are bounded, and
// HTTP/2 connections are pinged, as one that is black-holed would otherwise swallow every poll for ever.
func NewTransport(cfg TransportConfig) *http.Transport {
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 1024
	}
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       40 * time.Second,
		MaxConnsPerHost:       cfg.MaxConns,
		MaxIdleConnsPerHost:   cfg.MaxConns,
		ForceAttemptHTTP2:     true,

		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        cfg.TLS,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second,
			// What arrives for a poll that waits for memory is memory too. The connection's own window stays large: polls
			// that wait must not hold up those that share it.
			MaxReceiveBufferPerStream: 64 << 10,
		},
	}
	if cfg.Proxy != nil {
		t.Proxy = http.ProxyURL(cfg.Proxy)
	}
	return t
}

// Retrieve makes one attempt. Whatever happens, it ends in one outcome, within the client's timeout and the query's
// deadline.
func (c *Client) Retrieve(ctx context.Context, q Query) Outcome {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	clock := newClock(c.timeout, q.Deadline, func() { cancel(context.DeadlineExceeded) })
	defer clock.timer.Stop()
	transport := c.transport.Load()
	if q.Fresh {
		transport = &c.fresh
	}
	// Until a connection is there, no result can have gone to this attempt, nor until it is written. A transport that does
	// not tell gets no such trust.
	sent := true
	var unwritten atomic.Bool // HTTP/2 writes in another goroutine
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { sent = false; unwritten.Store(true) },
		GotConn:      func(httptrace.GotConnInfo) { sent = true },
		WroteRequest: func(w httptrace.WroteRequestInfo) { unwritten.Store(w.Err != nil) },
	})
	// RoundTrip, not Client.Do: no redirect is followed, no cookie kept, and the request is built only once.
	id := c.identity.Load()
	res, err := (*transport).RoundTrip(c.request(ctx, q, id.header))
	if err != nil {
		if sent && unwritten.Load() && !time.Now().Before(clock.end) {
			c.leave(transport)
			return id.unreachable("the upstream cannot be reached", errStuck, false)
		}
		return id.noAnswer(ctx, err, sent)
	}
	o := c.read(ctx, res, clock, id)
	if o.Kind == Unauthorized {
		if c.keyRefused != nil {
			c.keyRefused()
		}
		o.StaleKey = c.identity.Load().key != id.key
	}
	return o
}

var errStuck = errors.New("the connection took no poll within the time for one")

// leave goes on with new connections. One that takes no polls would be used for ever: HTTP/2 answers pings on it, and a
// connection on which polls wait is not closed for being idle.
func (c *Client) leave(transport *http.RoundTripper) {
	var anew http.RoundTripper
	switch old := (*transport).(type) {
	case *http1:
		anew = newHTTP1(old.full.Clone())
	case *http.Transport:
		anew = old.Clone()
	default:
		return
	}
	c.transport.CompareAndSwap(transport, &anew)
	closeIdle(*transport)
}

func closeIdle(transport http.RoundTripper) {
	if t, ok := transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// CloseIdleConnections is for the end of a client.
func (c *Client) CloseIdleConnections() {
	closeIdle(*c.transport.Load())
	closeIdle(c.fresh)
}

func (c *Client) request(ctx context.Context, q Query, own http.Header) *http.Request {
	header := make(http.Header, len(own)+2)
	for name, values := range own {
		header[name] = values
	}
	header["X-Tinker-Request-Iteration"] = []string{strconv.Itoa(q.Iteration)}
	if q.RequestType != "" && httpguts.ValidHeaderFieldValue(q.RequestType) {
		header["X-Tinker-Request-Type"] = []string{q.RequestType}
	}
	body := appendQuery(make([]byte, 0, len(q.RequestID)+56), q)
	reader := bytes.NewReader(body)
	return (&http.Request{
		Method: http.MethodPost, URL: c.url, Host: c.url.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		// net/http knows what is in this reader: one write for headers and body, and a retry on a connection that the
		// server closed while it was idle.
		Body: io.NopCloser(reader), ContentLength: int64(len(body)),
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}).WithContext(ctx)
}

func (c *Client) read(ctx context.Context, res *http.Response, clock *clock, id *identity) Outcome {
	defer res.Body.Close()
	room := &room{budget: c.budget, buffer: c.buffers.Get().(*[]byte), pool: &c.buffers}
	body := body{from: res.Body, size: res.ContentLength, most: c.maxResult, room: room, clock: clock}
	if res.StatusCode < 200 { // the connection is another protocol's now, and has no end
		body.from = http.NoBody
	}
	buf, err := body.read(ctx, (*room.buffer)[:0])
	if err != nil && ctx.Err() != nil && !errors.Is(err, errTooLarge) {
		err = context.Cause(ctx) // HTTP/2 says that it was cancelled, not by what
	}
	*room.buffer = buf
	o := c.classify(res, buf, err, id)
	if o.Result != nil { // it takes the buffer along
		o.room = room
	} else {
		room.release()
	}
	return o
}

func (c *Client) classify(res *http.Response, buf []byte, err error, id *identity) Outcome {
	switch {
	case errors.Is(err, errTooLarge):
		return c.tooLarge(res.StatusCode)
	case err != nil:
		// An answer that broke off midway is a fault of the connection even when it was our own time that ran out:
		// its status line says that there is one.
		o := id.unreachable("the answer broke off", err, true)
		o.HTTPStatus = res.StatusCode
		return o
	}
	if res.StatusCode == http.StatusProxyAuthRequired { // never the upstream's own word
		o := id.unreachable("the upstream cannot be reached", errProxy, false)
		o.HTTPStatus = res.StatusCode
		return o
	}
	o := classify(answer{status: res.StatusCode, header: res.Header, body: buf, at: time.Now(), secrets: id.secrets})
	switch {
	case o.Kind == Metadata && o.PayloadBytes > c.maxResult:
		return c.tooLarge(res.StatusCode)
	case res.ContentLength >= 0 || len(res.TransferEncoding) > 0 || res.ProtoMajor >= 2 || res.Uncompressed:
	// Nothing but the end of its connection ends such a body: it may have been cut.
	case o.Kind == Malformed && res.StatusCode <= 299:
		o.BrokeOff = true
	case o.Kind == Completed && !endsItself(res.Header, buf):
		o = malformed("nothing tells whether it is whole, neither a length nor chunks", answer{})
		o.HTTPStatus, o.BrokeOff = res.StatusCode, true
	}
	return o
}

// endsItself reports whether a part of a body could not be taken for all of it: protobuf could, and of JSON a number.
func endsItself(header http.Header, body []byte) bool {
	if isProtobuf(header) {
		return false
	}
	body = bytes.TrimSpace(body)
	return len(body) > 0 && body[0] != '-' && (body[0] < '0' || body[0] > '9')
}

// tooLarge ends the request: an answer over the limit will not shrink.
func (c *Client) tooLarge(status int) Outcome {
	return Outcome{Kind: Refused, HTTPStatus: status, Failure: &Failure{
		Type: Validation, Category: User,
		Message: fmt.Sprintf("the answer is larger than %d bytes, the limit for results of this bridge (--max-result)", c.maxResult),
	}}
}

// noAnswer classifies an attempt that brought no status line. The time-out of a poll that the upstream holds is as good
// as pending; either way the upstream may have handed out the result to it.
func (id *identity) noAnswer(ctx context.Context, err error, sent bool) Outcome {
	if sent && ctx.Err() != nil { // our own time: a handshake or a connection that times out is a fault
		return Outcome{Kind: NoAnswer, BrokeOff: true}
	}
	return id.unreachable("the upstream cannot be reached", err, sent)
}

var errProxy = errors.New("the proxy refuses user and password (407)")

func (id *identity) unreachable(what string, err error, brokeOff bool) Outcome {
	return Outcome{Kind: Unreachable, BrokeOff: brokeOff, mend: mendConnection(err), Failure: &Failure{
		Type: APIConnection, Category: Unknown, Message: id.secrets.quote(what+": "+err.Error(), maxText),
	}}
}
