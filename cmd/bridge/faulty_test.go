package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// faulty is an upstream that speaks HTTP by hand, over in-memory connections, to answer as no HTTP library would. A poll
// that has no fault is answered by the simulator.
type faulty struct {
	sim  http.Handler
	dial func(ctx context.Context, f *faulty) (net.Conn, error) // nil: as it should be
	tls  func() *tls.Config                                     // nil: plain
	// fault is what the n-th poll of an id gets, from 0; nil: an answer of the simulator.
	fault func(id string, n int) *upstreamFault
	wait  func(id string, n int) // before it is answered; nil: at once

	mu      sync.Mutex
	polls   map[string]int
	open    int      // connections
	strange []string // what should never have come: dials of other hosts, cookies
}

// upstreamHost is where polls should go, and nowhere else.
const upstreamHost = "upstream"

func (f *faulty) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	if host, _, _ := net.SplitHostPort(addr); host != upstreamHost {
		f.note("a connection to " + addr)
	}
	if f.dial != nil {
		return f.dial(ctx, f)
	}
	return f.connect(), nil
}

func (f *faulty) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.strange = append(f.strange, what)
}

func (f *faulty) connect() net.Conn { return f.talk((*line).greet) }

// serve is this server on real sockets, until the listener is closed.
func (f *faulty) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		f.count(1)
		go func() {
			defer f.count(-1)
			defer conn.Close()
			l := &line{f: f, conn: conn, reset: func() { _ = conn.(*net.TCPConn).SetLinger(0) }}
			l.greet()
		}()
	}
}

// talk is a new connection to this server, which does what it is told on it.
func (f *faulty) talk(does func(*line)) net.Conn {
	ours, theirs := net.Pipe()
	buffered := &eager{theirs, make(chan []byte, 256), nil}
	reset := new(atomic.Bool)
	l := &line{f: f, conn: buffered, reset: func() { reset.Store(true) }}
	f.count(1)
	go buffered.read()
	go func() {
		defer f.count(-1)
		defer theirs.Close()
		does(l)
	}()
	return &resettable{ours, reset}
}

func (f *faulty) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += n
}

// next is the fault of this poll.
func (f *faulty) next(id string) (fault *upstreamFault, n int) {
	f.mu.Lock()
	n = f.polls[id]
	f.polls[id]++
	f.mu.Unlock()
	if f.wait != nil {
		f.wait(id, n)
	}
	return f.fault(id, n), n
}

// answer is what the simulator says to a poll.
func (f *faulty) answer(r *http.Request, body string) *http.Response {
	if r.Header.Get("Cookie") != "" {
		f.note("a cookie")
	}
	sent := httptest.NewRequest(r.Method, r.URL.Path, strings.NewReader(body))
	sent.Header = r.Header
	w := httptest.NewRecorder()
	f.sim.ServeHTTP(w, sent)
	return w.Result()
}

// line is one connection, seen from the upstream, with the poll that came over it last.
type line struct {
	f     *faulty
	conn  net.Conn // TLS is taken off
	reset func()   // makes the end of the connection one by RST
	ended bool     // by a fault
}

// greet finds out what the other side speaks, and answers in it.
func (l *line) greet() {
	if l.f.tls != nil {
		secure := tls.Server(l.conn, l.f.tls())
		if secure.Handshake() != nil {
			return
		}
		defer secure.Close()
		l.conn = secure
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			serveHTTP2(l.f, secure)
			return
		}
	}
	l.serve()
}

func (l *line) serve() {
	reader := bufio.NewReader(l.conn)
	for !l.ended {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if fault, n := l.f.next(requestID(body)); fault != nil {
			if fault.says != nil {
				l.tell(fault.says(n))
			} else {
				fault.http1(l)
			}
			continue
		}
		if l.f.answer(r, string(body)).Write(l.conn) != nil {
			return
		}
	}
}

func requestID(body []byte) string {
	var query struct {
		RequestID string `json:"request_id"`
	}
	_ = json.Unmarshal(body, &query)
	return query.RequestID
}

// saying is a whole answer.
type saying struct {
	status, header, body string // header: lines
	endless              bool   // the body comes again and again, until the other side has left
	missing              int    // bytes that are announced but do not come
}

func (s saying) always(int) *saying { return &s }

// tell gives an answer.
func (l *line) tell(s *saying) {
	length := fmt.Sprintf("Content-Length: %d\r\n", len(s.body)+s.missing)
	if s.endless {
		length = ""
	}
	// Not in one: what waits for the other side would be a copy of the body each.
	ok := l.say("HTTP/1.1 "+s.status+"\r\n"+s.header+length+"\r\n") && l.say(s.body)
	for ok && s.endless {
		ok = l.say(s.body)
	}
	if s.missing > 0 {
		l.listen()
	}
}

// say writes to the connection, and reports whether the other side still takes it.
func (l *line) say(text string) bool {
	for len(text) > 0 { // in pieces: what waits is not copied whole
		n := min(len(text), 4<<10)
		if _, err := l.conn.Write([]byte(text[:n])); err != nil {
			l.ended = true
			return false
		}
		text = text[n:]
	}
	return true
}

// hangUp ends the connection.
func (l *line) hangUp() {
	l.ended = true
	_ = l.conn.Close()
}

// breakOff ends the connection as RST does.
func (l *line) breakOff() {
	l.reset()
	l.hangUp()
}

// listen waits until the other side has left.
func (l *line) listen() {
	_, _ = io.Copy(io.Discard, l.conn)
	l.ended = true
}

// drip says one byte a second until the other side leaves.
func (l *line) drip() {
	for l.say("1") {
		time.Sleep(time.Second)
	}
}

// resettable is a connection whose end may be a reset.
type resettable struct {
	net.Conn
	reset *atomic.Bool
}

func (c *resettable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) && c.reset.Load() {
		err = &net.OpError{Op: "read", Net: "memory", Err: syscall.ECONNRESET}
	}
	return n, err
}

// eager takes what the other side writes before anybody asks, as a kernel does: two that write to each other at the same
// time would else wait for ever.
type eager struct {
	net.Conn
	arrived chan []byte
	rest    []byte
}

func (e *eager) read() {
	for {
		buf := make([]byte, 4<<10)
		n, err := e.Conn.Read(buf)
		if n > 0 {
			e.arrived <- buf[:n]
		}
		if err != nil {
			close(e.arrived)
			return
		}
	}
}

func (e *eager) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		var ok bool
		if e.rest, ok = <-e.arrived; !ok {
			return 0, io.EOF
		}
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}
