package main

import (
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	gatherMost = 256 << 10              // bytes that wait for those before to be written
	quiet      = 100 * time.Microsecond // since the last write: nobody else is about to write
	briefWrite = 10 * time.Millisecond  // of a writer by itself: it holds the library's lock
	longWrite  = time.Minute            // as the library has it
	lastWrite  = 2 * time.Second        // of what waits when the connection is closed
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

// gatheredConn is a connection whose Write may return before it is written. What cannot be written closes the connection.
type gatheredConn struct {
	net.Conn
	done chan struct{} // nothing more is written

	mu      sync.Mutex
	changed *sync.Cond
	waiting []byte
	writing bool
	wrote   time.Time // when the last write ended
	err     error     // of all writes from now on
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
	if !g.writing && len(g.waiting) == 0 && time.Since(g.wrote) > quiet {
		n, err := g.write(data, briefWrite)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			g.fail(err)
			return n, err
		}
		g.waiting = slices.Insert(g.waiting, 0, data[n:]...) // ahead of what came meanwhile
		if len(g.waiting) > 0 || g.err != nil {              // else nobody need wake up
			g.changed.Broadcast()
		}
		return len(data), nil
	}
	g.waiting = append(g.waiting, data...)
	g.changed.Broadcast()
	return len(data), nil
}

// SetWriteDeadline does nothing: each write has longWrite.
func (g *gatheredConn) SetWriteDeadline(time.Time) error { return nil }

// Close writes what waits, and closes.
func (g *gatheredConn) Close() error {
	g.mu.Lock()
	if g.err == nil {
		g.err = net.ErrClosed
	}
	_ = g.Conn.SetWriteDeadline(time.Now().Add(lastWrite))
	g.changed.Broadcast()
	g.mu.Unlock()
	<-g.done
	return g.Conn.Close()
}

func (g *gatheredConn) run() {
	defer close(g.done)
	g.mu.Lock()
	defer g.mu.Unlock()
	for out := []byte(nil); ; {
		for g.writing || len(g.waiting) == 0 && g.err == nil {
			g.changed.Wait()
		}
		if len(g.waiting) == 0 {
			return
		}
		g.mu.Unlock()
		runtime.Gosched() // whoever is about to write too has its turn first
		g.mu.Lock()
		out, g.waiting = g.waiting, out[:0]
		g.changed.Broadcast() // there is room
		if _, err := g.write(out, longWrite); err != nil {
			g.fail(err)
			return
		}
	}
}

// write lets the mutex go meanwhile.
func (g *gatheredConn) write(data []byte, most time.Duration) (int, error) {
	if g.err == nil {
		_ = g.Conn.SetWriteDeadline(time.Now().Add(most))
	}
	g.writing = true
	g.mu.Unlock()
	n, err := g.Conn.Write(data)
	g.mu.Lock()
	g.writing, g.wrote = false, time.Now()
	return n, err
}

// fail ends the connection, for whoever reads from it too.
func (g *gatheredConn) fail(err error) {
	if g.err == nil {
		g.err = err
	}
	g.waiting = nil
	g.changed.Broadcast()
	_ = g.Conn.Close()
}
