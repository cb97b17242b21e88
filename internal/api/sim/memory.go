package sim

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
)

// Memory serves a handler by a real http.Server over in-memory connections: held polls, truncation and dead
// connections are what they are over TCP, yet everything runs inside a testing/synctest bubble.
type Memory struct {
	down   func() bool
	conns  chan net.Conn
	done   chan struct{}
	close  sync.Once
	cancel context.CancelFunc
	server *http.Server
	serves sync.WaitGroup // the accept loop
	ended  sync.WaitGroup // the connections

	mu     sync.Mutex
	dialed int
}

// NewMemory starts to serve. If the handler has a method Down() bool, dials are refused while it says true.
func NewMemory(handler http.Handler) *Memory {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Memory{
		down:   func() bool { return false },
		conns:  make(chan net.Conn),
		done:   make(chan struct{}),
		cancel: cancel,
	}
	if h, ok := handler.(interface{ Down() bool }); ok {
		m.down = h.Down
	}
	m.server = &http.Server{
		Handler:     handler,
		BaseContext: func(net.Listener) context.Context { return withServerDone(ctx) },
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				m.ended.Add(1)
			case http.StateClosed, http.StateHijacked:
				m.ended.Done()
			}
		},
	}
	m.serves.Go(func() { _ = m.server.Serve(memoryListener{m}) }) // ends with ErrServerClosed
	return m
}

// DialContext opens a connection to the server whatever the address: plug it into an http.Transport.
func (m *Memory) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if m.down() {
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: memoryAddr("memory"), Err: syscall.ECONNREFUSED}
	}
	m.mu.Lock()
	m.dialed++
	addr := memoryAddr("memory:" + strconv.Itoa(m.dialed))
	m.mu.Unlock()
	client, server := net.Pipe()
	select {
	case m.conns <- memoryConn{server, addr}:
		return memoryConn{client, memoryAddr("memory")}, nil
	case <-m.done:
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: memoryAddr("memory"), Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Transport is a new transport to the server. The caller closes its idle connections when done with it.
func (m *Memory) Transport() *http.Transport {
	return &http.Transport{DialContext: m.DialContext, MaxIdleConnsPerHost: 1024}
}

// Close cuts all connections and returns when every handler has ended.
func (m *Memory) Close() error {
	m.cancel()
	err := m.server.Close()
	m.serves.Wait()
	// A connection that was accepted while the server closed has been missed by it.
	err = errors.Join(err, m.server.Close())
	m.ended.Wait()
	return err
}

type memoryListener struct{ m *Memory }

func (l memoryListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.m.conns:
		return conn, nil
	case <-l.m.done:
		return nil, net.ErrClosed
	}
}

func (l memoryListener) Close() error {
	l.m.close.Do(func() { close(l.m.done) })
	return nil
}

func (l memoryListener) Addr() net.Addr { return memoryAddr("memory") }

type memoryConn struct {
	net.Conn
	remote memoryAddr
}

func (c memoryConn) RemoteAddr() net.Addr { return c.remote }

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }

// A handler that ignores its client's leaving must still end with its server, which a request's context alone cannot
// tell apart.
type serverDoneKey struct{}

func withServerDone(ctx context.Context) context.Context {
	return context.WithValue(ctx, serverDoneKey{}, ctx.Done())
}

// serverDone is nil, which never ends, for servers that did not say.
func serverDone(ctx context.Context) <-chan struct{} {
	done, _ := ctx.Value(serverDoneKey{}).(<-chan struct{})
	return done
}
