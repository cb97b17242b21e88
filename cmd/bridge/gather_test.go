package main

import (
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

// counting counts the writes that reach it.
type counting struct {
	net.Conn
	writes int
}

func (c *counting) Write(data []byte) (int, error) {
	c.writes++
	return c.Conn.Write(data)
}

func TestWhatIsWrittenMeanwhileIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conn := &counting{Conn: near}
		g := gather(conn)
		var want strings.Builder
		write := func(text string) {
			n, err := io.WriteString(g, text)
			require.NoError(t, err)
			require.Equal(t, len(text), n)
			want.WriteString(text)
			synctest.Wait()
		}
		for range 100 { // the first of them is not taken yet, neither from its writer nor in its place
			write("a publish;")
		}
		got := make([]byte, want.Len())
		_, err := io.ReadFull(far, got)
		require.NoError(t, err)
		synctest.Wait()
		write("the last one")
		go func() { require.NoError(t, g.Close()) }()
		last, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, want.String(), string(got)+string(last), "in order, and also what was written before the end")
		require.Equal(t, 4, conn.writes)
		_, err = g.Write([]byte("more"))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestAWriterWaitsForAConnectionThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		g := gather(near)
		blocked := make(chan error)
		go func() {
			for {
				if _, err := g.Write(make([]byte, 32<<10)); err != nil {
					blocked <- err
					return
				}
			}
		}()
		synctest.Wait()
		g.mu.Lock()
		require.Less(t, len(g.waiting), 2*gatherMost)
		g.mu.Unlock()
		require.NoError(t, g.Close(), "which does not wait for ever")
		require.ErrorIs(t, <-blocked, net.ErrClosed)
		require.NoError(t, far.Close())
	})
}

func TestAConnectionThatTakesNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		g := gather(near)
		_, err := g.Write([]byte("x"))
		require.NoError(t, err)
		began := time.Now()
		_, err = g.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.ErrClosedPipe, "whoever reads learns of it")
		require.Equal(t, longWrite, time.Since(began))
		_, err = g.Write([]byte("y"))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		_ = g.Close()
		require.NoError(t, far.Close())
	})
}

func TestAWriteThatFailsEndsTheConnection(t *testing.T) {
	for name, busy := range map[string]bool{"the writer's own": false, "of what was gathered": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				g := gather(near)
				if busy {
					go func() { _, _ = far.Read(make([]byte, 1)) }()
					_, err := g.Write([]byte("x"))
					require.NoError(t, err)
				}
				require.NoError(t, far.Close())
				_, err := g.Write([]byte("x"))
				require.Equal(t, busy, err == nil)
				synctest.Wait()
				_, err = g.Write([]byte("y"))
				require.ErrorIs(t, err, io.ErrClosedPipe)
				_, err = g.Read(make([]byte, 1))
				require.Error(t, err, "whoever reads learns of it")
				_ = g.Close()
			})
		})
	}
}

func TestAWriterWritesByItselfWhenNobodyElseDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conn := &counting{Conn: near}
		g := gather(conn)
		go func() { _, _ = io.Copy(io.Discard, far) }()
		for i := range 3 {
			time.Sleep(time.Millisecond)
			_, err := g.Write([]byte("a lonely publish"))
			require.NoError(t, err)
			require.Equal(t, i+1, conn.writes, "no other goroutine has a hand in it")
		}
		_, err := g.Write([]byte("another one at once"))
		require.NoError(t, err)
		require.NoError(t, g.Close())
		require.Equal(t, 4, conn.writes)
	})
}

func TestAWriteThatTakesTooLongIsFinishedAheadOfWhatCameMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		g := gather(near)
		go func() {
			_, err := g.Write([]byte("first;"))
			require.NoError(t, err)
		}()
		got := make([]byte, 2)
		_, err := io.ReadFull(far, got) // of the first, whose writer goes on trying
		require.NoError(t, err)
		_, err = g.Write([]byte("second;"))
		require.NoError(t, err)
		time.Sleep(2 * briefWrite)
		go func() { require.NoError(t, g.Close()) }()
		rest, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "first;second;", string(got)+string(rest))
	})
}

// One that writes now and then, to a server that answers: what gathering costs it.
func BenchmarkEcho(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer func() { _ = l.Close() }()
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	for _, c := range []struct {
		name string
		of   func(net.Conn) net.Conn
	}{{"plain", func(c net.Conn) net.Conn { return c }}, {"gathered", func(c net.Conn) net.Conn { return gather(c) }}} {
		b.Run(c.name, func(b *testing.B) {
			dialed, err := net.Dial("tcp", l.Addr().String())
			require.NoError(b, err)
			conn, message, took := c.of(dialed), make([]byte, 300), time.Duration(0)
			defer func() { _ = conn.Close() }()
			for b.Loop() {
				time.Sleep(time.Millisecond)
				began := time.Now()
				_, err := conn.Write(message)
				require.NoError(b, err)
				_, err = io.ReadFull(conn, message)
				require.NoError(b, err)
				took += time.Since(began)
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/echo")
		})
	}
}

// countingDialer dials connections whose writes are counted, below what gathers.
type countingDialer struct {
	gathered bool
	writes   *counting
}

func (d *countingDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	d.writes = &counting{Conn: conn}
	if d.gathered {
		return gather(d.writes), nil
	}
	return d.writes, nil
}

// BenchmarkPublish stores messages, 256 at a time, as a bridge does whose upstream is quick; the server's part is in it.
func BenchmarkPublish(b *testing.B) {
	for _, gathered := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "gathered"}[gathered], func(b *testing.B) {
			s := testbed.NewServer(b, &server.Options{Port: server.RANDOM_PORT, JetStream: true})
			defer s.Stop()
			dialer := &countingDialer{gathered: gathered}
			nc, err := nats.Connect(s.Running().ClientURL(), nats.SetCustomDialer(dialer))
			require.NoError(b, err)
			defer nc.Close()
			js, err := jetstream.New(nc)
			require.NoError(b, err)
			_, err = js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}})
			require.NoError(b, err)
			body := make([]byte, 300)
			b.SetParallelism(256 / runtime.GOMAXPROCS(0))
			before := dialer.writes.writes
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := js.Publish(b.Context(), "s.a", body); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(dialer.writes.writes-before)/float64(b.N), "writes/op")
		})
	}
}
