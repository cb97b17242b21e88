package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// DefaultPath is where the hosted server answers.
const DefaultPath = "/api/v1/retrieve_future"

// Config describes one upstream.
type Config struct {
	BaseURL   string        // scheme and host, with a path before Path if there is one
	Path      string        // default DefaultPath
	Key       string        // sent in KeyHeader; empty: none
	KeyHeader string        // default X-API-Key; for Authorization a bare key is sent as a Bearer token
	Header    http.Header   // further headers for every poll
	MaxResult int64         // bytes of a body after decompression; default 64 MiB
	Timeout   time.Duration // of one poll, from its start to the last byte of its answer; default 65 s
	UserAgent string        // default "future-bridge"

	Transport http.RoundTripper // default NewTransport
	// Fresh makes polls that must not use a connection that was used before; default: a transport without keep-alives.
	Fresh http.RoundTripper
}

// Query is one attempt to retrieve one future.
type Query struct {
	RequestID   string
	RequestType string // X-Tinker-Request-Type; empty: not sent
	Iteration   int    // X-Tinker-Request-Iteration: polls of this request before this one
	Full        bool   // false: a large result may be answered by its size alone
	Fresh       bool   // use a new connection
}

// Client makes attempts against one upstream. It is safe for concurrent use.
type Client struct {
	url       *url.URL
	header    http.Header
	secrets   []string
	maxResult int64
	timeout   time.Duration
	transport http.RoundTripper
	fresh     http.RoundTripper
	buffers   sync.Pool
}

// New checks a config. Its errors name the field and never contain the key.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, errors.New("upstream: the base URL cannot be parsed; want for example https://api.example.com")
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https" || base.Host == "":
		return nil, fmt.Errorf("upstream %q: want an http or https URL with a host, such as https://api.example.com", base.Redacted())
	case base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return nil, fmt.Errorf("upstream %q: user, query and fragment are not allowed; give the key by file or environment", base.Redacted())
	}
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	if !strings.HasPrefix(cfg.Path, "/") {
		return nil, fmt.Errorf("upstream path %q: must begin with a slash", cfg.Path)
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + cfg.Path
	c := &Client{
		url: base, maxResult: cfg.MaxResult, timeout: cfg.Timeout, transport: cfg.Transport, fresh: cfg.Fresh,
		buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }},
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
			if len(v) >= 8 { // shorter values are no secrets, and taking them out would garble messages
				c.secrets = append(c.secrets, v)
			}
		}
		c.header[http.CanonicalHeaderKey(name)] = values
	}
	if cfg.Key != "" {
		name := http.CanonicalHeaderKey(cfg.KeyHeader)
		if name == "" {
			name = "X-Api-Key"
		}
		value := cfg.Key
		if name == "Authorization" && !strings.Contains(value, " ") {
			value = "Bearer " + value
		}
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("upstream key: header %q and the key must be printable, on one line", name)
		}
		c.header[name] = []string{value}
		c.secrets = append(c.secrets, value, cfg.Key)
	}
	if c.maxResult <= 0 {
		c.maxResult = 64 << 20
	}
	if c.timeout <= 0 {
		c.timeout = 65 * time.Second
	}
	if c.transport == nil {
		c.transport = NewTransport(TransportConfig{})
	}
	if c.fresh == nil {
		c.fresh = c.transport
		if t, ok := c.transport.(*http.Transport); ok {
			fresh := t.Clone()
			fresh.DisableKeepAlives = true
			c.fresh = fresh
		}
	}
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
		IdleConnTimeout:       90 * time.Second,
		MaxConnsPerHost:       cfg.MaxConns,
		MaxIdleConnsPerHost:   cfg.MaxConns,
		ForceAttemptHTTP2:     true,

		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        cfg.TLS,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	if cfg.Proxy != nil {
		t.Proxy = http.ProxyURL(cfg.Proxy)
	}
	return t
}

// Retrieve makes one attempt. Whatever happens, it ends in one outcome, within the client's timeout and ctx's deadline.
func (c *Client) Retrieve(ctx context.Context, q Query) Outcome {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	transport := c.transport
	if q.Fresh {
		transport = c.fresh
	}
	// RoundTrip, not Client.Do: no redirect is followed, no cookie kept, and the request is built only once.
	res, err := transport.RoundTrip(c.request(ctx, q))
	if err != nil {
		return c.redacted(noAnswer(err, !dialing(err)))
	}
	buf := c.buffers.Get().(*bytes.Buffer)
	buf.Reset()
	o := c.read(res, buf)
	if o.Result == nil { // else the buffer goes out with the result
		c.buffers.Put(buf)
	}
	return c.redacted(o)
}

func (c *Client) request(ctx context.Context, q Query) *http.Request {
	header := make(http.Header, len(c.header)+2)
	for name, values := range c.header {
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

func (c *Client) read(res *http.Response, buf *bytes.Buffer) Outcome {
	defer res.Body.Close()
	if res.ContentLength > 0 && res.ContentLength <= c.maxResult {
		buf.Grow(int(res.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(res.Body, c.maxResult+1))
	switch {
	case n > c.maxResult:
		return c.tooLarge(res.StatusCode)
	case err != nil:
		// An answer that broke off midway is a fault of the connection even when it was our own time that ran out:
		// its status line says that there is one.
		o := noAnswer(err, true)
		o.Kind, o.HTTPStatus = Unreachable, res.StatusCode
		o.Failure = &Failure{Type: APIConnection, Category: Unknown, Message: "the answer broke off: " + bounded(err.Error())}
		return o
	}
	a := answer{status: res.StatusCode, header: res.Header, body: buf.Bytes(), at: time.Now()}
	o := classify(a)
	switch {
	case o.Kind == Completed:
		return o // a result's bytes are the submitter's own, whatever is in them
	case o.Kind == Metadata && o.PayloadBytes > c.maxResult:
		return c.tooLarge(res.StatusCode)
	}
	for _, secret := range c.secrets {
		if bytes.Contains(a.body, []byte(secret)) { // before texts are cut to length, or a part of it might stay
			a.body = bytes.ReplaceAll(a.body, []byte(secret), []byte("[redacted]"))
			o = classify(a)
		}
	}
	return o
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
func noAnswer(err error, sent bool) Outcome {
	var timeout net.Error
	if sent && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.As(err, &timeout) && timeout.Timeout()) {
		return Outcome{Kind: NoAnswer, BrokeOff: true}
	}
	return Outcome{Kind: Unreachable, BrokeOff: sent, Failure: &Failure{
		Type: APIConnection, Category: Unknown, Message: "the upstream cannot be reached: " + bounded(err.Error()),
	}}
}

// dialing reports whether an attempt failed before its request was sent, so that no result can have gone to it.
func dialing(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") || errors.As(err, &dns) ||
		errors.As(err, &cert) || errors.As(err, &record) || errors.As(err, &alert)
}

// redacted takes the key out of everything that an upstream may have reflected, whatever way it was escaped in there.
func (c *Client) redacted(o Outcome) Outcome {
	o.Reason = c.redact(o.Reason)
	if f := o.Failure; f != nil {
		f.Message, f.RawCategory = c.redact(f.Message), c.redact(f.RawCategory)
	}
	if p := o.Progress; p != nil {
		for _, field := range []*[]byte{(*[]byte)(&p.QueuePosition), (*[]byte)(&p.EstimatedWaitS), (*[]byte)(&p.Progress), (*[]byte)(&p.Status)} {
			for _, secret := range c.secrets {
				*field = bytes.ReplaceAll(*field, []byte(secret), []byte("[redacted]"))
			}
		}
	}
	return o
}

func (c *Client) redact(s string) string {
	if s == "" {
		return s
	}
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, "[redacted]")
	}
	return s
}
