package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// held is a client, in virtual time, of a server that answers by handle.
func held(t *testing.T, timeout time.Duration, handle http.HandlerFunc, test func(t *testing.T, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := sim.NewMemory(handle)
		transport := server.Transport()
		c, err := New(Config{BaseURL: "http://upstream", Timeout: timeout, Transport: transport})
		require.NoError(t, err)
		test(t, c)
		transport.CloseIdleConnections()
		require.NoError(t, server.Close())
	})
}

func hold(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func TestAPollThatIsHeldForTooLongIsNoAnswer(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{0: 65 * time.Second, 10 * time.Minute: 10 * time.Minute} {
		held(t, timeout, hold, func(t *testing.T, c *Client) {
			start := time.Now()
			require.Equal(t, Outcome{Kind: NoAnswer, BrokeOff: true}, retrieve(t, c, Query{RequestID: "id"}))
			require.Equal(t, want, time.Since(start))
		})
	}
}

func TestADeadlineCutsAHeldPoll(t *testing.T) {
	held(t, time.Minute, hold, func(t *testing.T, c *Client) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		require.Equal(t, Outcome{Kind: NoAnswer, BrokeOff: true}, c.Retrieve(ctx, Query{RequestID: "id"}))
		require.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestAnAnswerThatStallsBreaksOff(t *testing.T) {
	stall := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"status":`)
		_ = http.NewResponseController(w).Flush()
		hold(w, r)
	}
	held(t, time.Minute, stall, func(t *testing.T, c *Client) {
		start := time.Now()
		got := retrieve(t, c, Query{RequestID: "id"})
		require.Equal(t, time.Minute, time.Since(start))
		require.Equal(t, Outcome{Kind: Unreachable, HTTPStatus: 200, BrokeOff: true, mend: mendConnection(context.DeadlineExceeded), Failure: &Failure{
			Type: APIConnection, Category: Unknown, Message: "the answer broke off: context deadline exceeded",
		}}, got)
	})
}

func TestAnAnswerThatDripsInTimeIsWhole(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) {
		for _, c := range []byte(`{"status":"completed","result":12345678901234567890}`) {
			_, _ = w.Write([]byte{c})
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Second)
		}
	}
	held(t, time.Minute, drip, func(t *testing.T, c *Client) {
		start := time.Now()
		got := retrieve(t, c, Query{RequestID: "id"})
		require.Equal(t, Completed, got.Kind)
		require.Equal(t, "12345678901234567890", string(got.Result))
		require.Equal(t, 52*time.Second, time.Since(start))
	})
}

func TestAConnectionThatDoesNotComeIsAFault(t *testing.T) {
	for _, c := range []struct {
		name, base string
		dial       func(ctx context.Context, conns *[]net.Conn) (net.Conn, error)
		timeout    time.Duration
		want       time.Duration
	}{
		{
			"a dial without an end", "http://upstream",
			func(ctx context.Context, _ *[]net.Conn) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			20 * time.Second, 20 * time.Second,
		},
		{
			"a handshake without an end", "https://upstream",
			func(_ context.Context, conns *[]net.Conn) (net.Conn, error) {
				ours, theirs := net.Pipe()
				*conns = append(*conns, theirs)
				go func() { _, _ = io.Copy(io.Discard, theirs) }()
				return ours, nil
			},
			time.Minute, 10 * time.Second,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var conns []net.Conn
				transport := NewTransport(TransportConfig{})
				transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, &conns) }
				client, err := New(Config{BaseURL: c.base, Timeout: c.timeout, Transport: transport})
				require.NoError(t, err)
				start := time.Now()
				got := retrieve(t, client, Query{RequestID: "id"})
				require.Equal(t, c.want, time.Since(start))
				require.Equal(t, Unreachable, got.Kind)
				require.False(t, got.BrokeOff, "no result can have gone to it")
				transport.CloseIdleConnections()
				synctest.Wait()
				for _, conn := range conns {
					require.NoError(t, conn.Close())
				}
			})
		})
	}
}

func TestADateInAHintCountsFromTheArrivalOfTheAnswer(t *testing.T) {
	late := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", time.Now().Add(30*time.Second).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = http.NewResponseController(w).Flush()
		time.Sleep(20 * time.Second)
	}
	held(t, time.Minute, late, func(t *testing.T, c *Client) {
		require.Equal(t, 10*time.Second, retrieve(t, c, Query{RequestID: "id"}).Hint)
	})
}
