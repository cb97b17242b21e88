package main

import (
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	gatherMost = 256 << 10       // bytes that wait for those before to be written
	longWrite  = time.Minute     // as the library has it
	lastWrite  = 2 * time.Second // of what waits when the connection is closed
)

// gathering is an option: connections gather what is written to them, however they are dialed.
func gathering(o *nats.Options) error {
	if o.CustomDialer == nil {
		o.CustomDialer = &net.Dialer{Timeout: o.Timeout}
	}
	o.CustomDialer = gatherer{o.CustomDialer}
	return nil
}

// gatherer dials connections that gather what is written to them. The library writes after each publish, however many
// goroutines are about to publish; each write wakes the server, which reads little and answers little.
type gatherer struct{ nats.CustomDialer }

func (g gatherer) Dial(network, address string) (net.Conn, error) {
	conn, err := g.CustomDialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return gather(conn), nil
}

// gatheredConn is a connection whose Write returns before it is written. What cannot be written closes the connection.
type gatheredConn struct {
	net.Conn
	done chan struct{} // nothing more is written

	mu      sync.Mutex
	changed *sync.Cond
	waiting []byte
	err     error // of all writes from now on
}

func gather(conn net.Conn) *gatheredConn {
	g := &gatheredConn{Conn: conn, done: make(chan struct{})}
	g.changed = sync.NewCond(&g.mu)
	go g.run()
	return g
}

func (g *gatheredConn) Write(data []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.waiting) > gatherMost && g.err == nil {
		g.changed.Wait()
	}
	if g.err != nil {
		return 0, g.err
	}
	g.waiting = append(g.waiting, data...)
	g.changed.Broadcast()
	return len(data), nil
}

// SetWriteDeadline does nothing: each write has longWrite.
func (g *gatheredConn) SetWriteDeadline(time.Time) error { return nil }

// Close writes what waits, and closes.
func (g *gatheredConn) Close() error {
	g.fail(net.ErrClosed)
	<-g.done
	return g.Conn.Close()
}

func (g *gatheredConn) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	_ = g.Conn.SetWriteDeadline(time.Now().Add(lastWrite))
	g.changed.Broadcast()
}

func (g *gatheredConn) run() {
	defer close(g.done)
	for out := []byte(nil); ; {
		g.await()
		runtime.Gosched() // whoever is about to write too has its turn first
		g.mu.Lock()
		out, g.waiting = g.waiting, out[:0]
		if g.err == nil {
			_ = g.Conn.SetWriteDeadline(time.Now().Add(longWrite))
		}
		g.changed.Broadcast()
		g.mu.Unlock()
		if len(out) == 0 {
			return
		}
		if _, err := g.Conn.Write(out); err != nil {
			g.fail(err)
			_ = g.Conn.Close()
			return
		}
	}
}

// await returns when there is something to write, or nothing any more.
func (g *gatheredConn) await() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.waiting) == 0 && g.err == nil {
		g.changed.Wait()
	}
}
