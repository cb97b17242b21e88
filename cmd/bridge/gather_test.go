package main

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
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
