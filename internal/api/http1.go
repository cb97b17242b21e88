package api

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// http1 makes polls over connections of its own to an upstream that speaks HTTP/1.1. A poll is written and its answer read in
// the goroutine that makes it, while net/http has two more for each connection, and waking those is half of what a poll costs
// there. What goes over the wire is written and parsed by net/http all the same. Over TLS that makes the polls until the upstream
// has shown that it speaks HTTP/1.1.
type http1 struct {
	full  *http.Transport // whose settings these connections have too
	tls   *tls.Config
	slots chan struct{} // one for each poll under way; nil: no bound
	spoke atomic.Bool   // over TLS, HTTP/1.1

	mu    sync.Mutex
	idle  []*wire     // the last one used is the last
	sweep *time.Timer // nil: nothing is idle
}

// leaner replaces a transport of net/http where that can be done.
func leaner(transport http.RoundTripper) http.RoundTripper {
	full, ok := transport.(*http.Transport)
	if !ok || !ownConnections || full.Proxy != nil || full.DialTLSContext != nil {
		return transport
	}
	return newHTTP1(full)
}

func newHTTP1(full *http.Transport) *http1 {
	t := &http1{full: full, tls: full.TLSClientConfig.Clone()}
	if t.tls == nil {
		t.tls = &tls.Config{}
	}
	t.tls.NextProtos = []string{"http/1.1"}
	if full.MaxConnsPerHost > 0 {
		t.slots = make(chan struct{}, full.MaxConnsPerHost)
	}
	return t
}

// wire is one connection.
type wire struct {
	net.Conn
	raw   net.Conn // below TLS
	buf   *bufio.Reader
	room  int64 // bytes that may still be read
	since time.Time
}

func (w *wire) Read(p []byte) (int, error) {
	if w.room <= 0 {
		return 0, errHeaders
	}
	n, err := w.Conn.Read(p[:min(int64(len(p)), w.room)])
	w.room -= int64(n)
	return n, err
}

var errHeaders = errors.New("no more is read of the headers")

// saidMore reports whether something came behind an answer. It is no other poll's.
func (w *wire) saidMore() bool {
	secure, ok := w.Conn.(*tls.Conn)
	if !ok || w.buf.Buffered() > 0 {
		return w.buf.Buffered() > 0
	}
	// TLS reads more than it is asked for. At this deadline it gives what it has, and asks the socket for nothing.
	_ = secure.SetReadDeadline(time.Unix(1, 0))
	n, err := secure.Read(make([]byte, 1))
	_ = secure.SetReadDeadline(time.Time{})
	return n > 0 || !errors.Is(err, os.ErrDeadlineExceeded)
}

// cut ends the connection without a word, whoever reads or writes.
func (w *wire) cut() { _ = w.raw.Close() }

// RoundTrip is for one upstream: connections are not told apart by where they go.
func (t *http1) RoundTrip(r *http.Request) (*http.Response, error) {
	overTLS := r.URL.Scheme == "https"
	if overTLS && !t.spoke.Load() {
		res, err := t.full.RoundTrip(r)
		if err == nil && res.ProtoMajor == 1 {
			t.spoke.Store(true)
		}
		return res, err
	}
	ctx := r.Context()
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil {
		trace.GetConn(r.URL.Host)
	}
	if t.slots != nil {
		select {
		case t.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	res, err := t.exchange(ctx, r, overTLS, trace)
	if err != nil {
		t.release()
	}
	return res, err
}

func (t *http1) release() {
	if t.slots != nil {
		<-t.slots
	}
}

// exchange goes on with another connection only while nothing of the poll has left this machine.
func (t *http1) exchange(ctx context.Context, r *http.Request, overTLS bool, trace *httptrace.ClientTrace) (*http.Response, error) {
	compressed := r.Header.Get("Accept-Encoding") == ""
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	if err := serialize(buf, r, compressed); err != nil {
		return nil, err
	}
	for {
		w, used := t.take(), true
		if w == nil {
			var err error
			if w, err = t.dial(ctx, r, overTLS); err != nil {
				return nil, err
			}
			used = false
		}
		if trace != nil {
			trace.GotConn(httptrace.GotConnInfo{Conn: w.Conn, Reused: used})
		}
		stop := context.AfterFunc(ctx, w.cut)
		n, err := w.Write(buf.Bytes())
		if err != nil && used && n == 0 && stop() {
			w.cut()
			continue
		}
		if trace != nil {
			trace.WroteRequest(httptrace.WroteRequestInfo{Err: err})
		}
		var res *http.Response
		if err == nil {
			res, err = t.answer(w, r)
		}
		if err != nil {
			stop()
			w.cut()
			return nil, err
		}
		res.Body = &answerBody{ReadCloser: res.Body, from: t, wire: w, stop: stop, keep: !res.Close && res.StatusCode >= 200}
		if compressed && strings.EqualFold(res.Header.Get("Content-Encoding"), "gzip") {
			res.Body = &unzipped{from: res.Body}
			res.Header.Del("Content-Encoding")
			res.Header.Del("Content-Length")
			res.ContentLength, res.Uncompressed = -1, true
		}
		return res, nil
	}
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// serialize writes headers and body into one buffer, for one write.
func serialize(buf *bytes.Buffer, r *http.Request, compressed bool) error {
	own := r.WithContext(context.Background()) // nobody is told that it was written
	if compressed {
		own.Header = maps.Clone(r.Header)
		own.Header["Accept-Encoding"] = []string{"gzip"}
	}
	return own.Write(buf)
}

// answer reads a status line and headers, those of interim answers too, within one bound for all of them.
func (t *http1) answer(w *wire, r *http.Request) (*http.Response, error) {
	most := cmp.Or(t.full.MaxResponseHeaderBytes, 10<<20)
	w.room = most
	for {
		res, err := http.ReadResponse(w.buf, r)
		switch {
		case errors.Is(err, errHeaders):
			return nil, fmt.Errorf("the headers of the answer exceeded %d bytes", most)
		case err != nil:
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			w.room = math.MaxInt64
			return res, nil
		}
	}
}

// take is the connection that was used last, nil if there is none that is good. One that the upstream has ended meanwhile, or
// on which it has said something unasked, would give this poll that as its answer.
func (t *http1) take() *wire {
	for {
		t.mu.Lock()
		n := len(t.idle) - 1
		if n < 0 {
			t.mu.Unlock()
			return nil
		}
		w := t.idle[n]
		t.idle[n] = nil
		t.idle = t.idle[:n]
		t.mu.Unlock()
		if silent(w.raw) {
			return w
		}
		w.cut()
	}
}

func (t *http1) dial(ctx context.Context, r *http.Request, overTLS bool) (*wire, error) {
	host, err := httpguts.PunycodeHostPort(r.URL.Hostname())
	if err != nil {
		return nil, err
	}
	dial := t.full.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	port := "80"
	if overTLS {
		port = "443"
	}
	raw, err := dial(ctx, "tcp", net.JoinHostPort(host, cmp.Or(r.URL.Port(), port)))
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: raw, raw: raw}
	w.buf = bufio.NewReader(w)
	if !overTLS {
		return w, nil
	}
	if err := t.handshake(ctx, w, host); err != nil {
		w.cut()
		t.spoke.Store(false) // whatever it speaks now, net/http finds out
		return nil, err
	}
	return w, nil
}

func (t *http1) handshake(ctx context.Context, w *wire, host string) error {
	t.full.CloseIdleConnections() // those of before: there shall not be twice as many
	config := t.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = host
	}
	limited, cancel := context.WithTimeout(ctx, cmp.Or(t.full.TLSHandshakeTimeout, time.Minute))
	defer cancel()
	secure := tls.Client(w.raw, config)
	w.Conn = secure
	err := secure.HandshakeContext(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return errors.New("TLS handshake timeout")
	}
	return err
}

// keep has a connection wait for the next poll.
func (t *http1) keep(w *wire) {
	w.since = time.Now()
	t.mu.Lock()
	t.idle = append(t.idle, w)
	if wait := t.full.IdleConnTimeout; t.sweep == nil && wait > 0 {
		t.sweep = time.AfterFunc(wait, t.closeOld)
	}
	t.mu.Unlock()
}

// closeOld closes what has been idle for too long.
func (t *http1) closeOld() {
	t.mu.Lock()
	var n int
	var next time.Duration
	for n < len(t.idle) && next <= 0 {
		if next = t.full.IdleConnTimeout - time.Since(t.idle[n].since); next <= 0 {
			n++
		}
	}
	old := append([]*wire(nil), t.idle[:n]...)
	left := copy(t.idle, t.idle[n:])
	clear(t.idle[left:])
	if t.idle = t.idle[:left]; left > 0 {
		t.sweep.Reset(next)
	} else {
		t.sweep = nil
	}
	t.mu.Unlock()
	for _, w := range old {
		_ = w.Close()
	}
}

func (t *http1) CloseIdleConnections() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.mu.Unlock()
	for _, w := range idle {
		_ = w.Close()
	}
	t.full.CloseIdleConnections()
}

// answerBody gives its connection back when it was read to its end, and ends it otherwise.
type answerBody struct {
	io.ReadCloser
	from *http1
	wire *wire
	stop func() bool // ctx has no say any more; false: it had
	keep bool        // the connection outlives the answer
	err  error       // that ended it
}

func (b *answerBody) Read(p []byte) (n int, err error) {
	if b.wire == nil {
		return 0, b.err
	}
	if n, b.err = b.ReadCloser.Read(p); b.err != nil {
		b.end(errors.Is(b.err, io.EOF))
	}
	return n, b.err
}

func (b *answerBody) Close() error {
	if b.wire != nil {
		b.err = io.ErrClosedPipe
		b.end(false)
	}
	return nil
}

func (b *answerBody) end(whole bool) {
	w := b.wire
	b.wire = nil
	if b.stop() && whole && b.keep && !w.saidMore() {
		b.from.keep(w)
	} else {
		w.cut()
	}
	b.from.release()
}

// unzipped is a body that was compressed on its way.
type unzipped struct {
	from io.ReadCloser
	zip  *gzip.Reader
	err  error
}

var unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }} // 40 KB each

func (u *unzipped) Read(p []byte) (int, error) {
	if u.zip == nil && u.err == nil {
		u.zip = unzippers.Get().(*gzip.Reader)
		u.err = u.zip.Reset(u.from)
	}
	if u.err != nil {
		return 0, u.err
	}
	n, err := u.zip.Read(p)
	u.err = err
	return n, err
}

func (u *unzipped) Close() error {
	if u.zip != nil {
		unzippers.Put(u.zip)
		u.zip, u.err = nil, io.ErrClosedPipe
	}
	return u.from.Close()
}
