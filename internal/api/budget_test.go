package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// budgeted is a client, in virtual time, of a server that answers by handle, with a bound on all bodies together.
func budgeted(t *testing.T, cfg Config, handle http.HandlerFunc, test func(t *testing.T, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := sim.NewMemory(handle)
		transport := server.Transport()
		cfg.BaseURL, cfg.Transport = "http://upstream", transport
		c, err := New(cfg)
		require.NoError(t, err)
		test(t, c)
		transport.CloseIdleConnections()
		require.NoError(t, server.Close())
	})
}

func result(bytes int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(bytes))
		_, _ = io.WriteString(w, `"`+strings.Repeat("x", bytes-2)+`"`)
	}
}

func TestAPollWaitsForTheMemoryOfResultsThatAreNotStored(t *testing.T) {
	// One result beside the one that goes ahead.
	budgeted(t, Config{MaxResult: 100_000, Memory: 260_000, Timeout: time.Minute}, result(90_000), func(t *testing.T, c *Client) {
		outcomes := make(chan Outcome)
		for range 4 {
			go func() { outcomes <- retrieve(t, c, Query{RequestID: "id"}) }()
		}
		first, second := <-outcomes, <-outcomes
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Empty(t, outcomes, "the others wait, for longer than a poll may take")
		for _, o := range []Outcome{first, second} {
			require.Equal(t, Completed, o.Kind)
			o.Release()
			o = <-outcomes
			require.Equal(t, Completed, o.Kind, "nothing was lost")
			require.Len(t, o.Result, 90_000)
			o.Release()
		}
		require.EqualValues(t, 260_000, c.budget.left, "all of it came back")
		require.Nil(t, c.budget.ahead)
	})
}

func TestOnePollAtATimeNeedsNoRoom(t *testing.T) {
	budgeted(t, Config{MaxResult: 1 << 20, Memory: 1}, result(1<<20), func(t *testing.T, c *Client) {
		for range 3 {
			o := retrieve(t, c, Query{RequestID: "id"})
			require.Equal(t, Completed, o.Kind)
			o.Release()
		}
	})
}

func TestASmallAnswerWaitsForNobody(t *testing.T) {
	budgeted(t, Config{MaxResult: 100_000, Memory: 1}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "large") {
			result(100_000)(w, r)
			return
		}
		result(freeBody-2*readAtOnce)(w, r)
	}, func(t *testing.T, c *Client) {
		held := retrieve(t, c, Query{RequestID: "large"})
		require.Equal(t, Completed, retrieve(t, c, Query{RequestID: "small"}).Kind)
		held.Release()
	})
}

func TestADeadlineEndsTheWaitForMemory(t *testing.T) {
	budgeted(t, Config{MaxResult: 100_000, Memory: 1, Timeout: time.Minute}, result(50_000), func(t *testing.T, c *Client) {
		held := retrieve(t, c, Query{RequestID: "id"})
		begin := time.Now()
		late := retrieve(t, c, Query{RequestID: "id", Deadline: begin.Add(time.Hour)})
		require.Equal(t, time.Hour, time.Since(begin))
		require.Equal(t, Unreachable, late.Kind)
		require.True(t, late.BrokeOff)

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		require.Equal(t, Unreachable, c.Retrieve(ctx, Query{RequestID: "id"}).Kind)
		require.Equal(t, 3*time.Hour, time.Since(begin))
		held.Release()
		require.Equal(t, Completed, retrieve(t, c, Query{RequestID: "id"}).Kind, "nobody holds what those left")
	})
}

func TestWhatIsNoResultGivesItsMemoryBackAtOnce(t *testing.T) {
	budgeted(t, Config{MaxResult: 100_000, Memory: 1}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		result(200_000)(w, r)
	}, func(t *testing.T, c *Client) {
		for range 3 {
			require.Equal(t, Refused, retrieve(t, c, Query{RequestID: "id"}).Kind)
			require.EqualValues(t, 1, c.budget.left)
		}
	})
}

func TestTheTimeOfAPollGoesOnAfterItsWait(t *testing.T) {
	budgeted(t, Config{MaxResult: 100_000, Memory: 1, Timeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `"`+strings.Repeat("x", 50_000))
		if r.Header.Get("X-Tinker-Request-Iteration") == "1" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
		_, _ = io.WriteString(w, `"`)
	}, func(t *testing.T, c *Client) {
		held := retrieve(t, c, Query{RequestID: "id"})
		begin := time.Now()
		time.AfterFunc(time.Hour, held.Release)
		require.Equal(t, Unreachable, retrieve(t, c, Query{RequestID: "id", Iteration: 1}).Kind)
		require.Equal(t, time.Hour+time.Minute, time.Since(begin))
	})
}

func TestABufferThatWasReleasedHasOneNextResult(t *testing.T) {
	polls := 0
	budgeted(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		polls++
		_, _ = io.WriteString(w, `"`+strings.Repeat(strconv.Itoa(polls), 20_000)+`"`)
	}, func(t *testing.T, c *Client) {
		for range 3 {
			first := retrieve(t, c, Query{RequestID: "id"})
			first.Release()
			first.Release()
			held := []Outcome{retrieve(t, c, Query{RequestID: "id"}), retrieve(t, c, Query{RequestID: "id"})}
			for i, o := range held {
				require.Equal(t, `"`+strings.Repeat(strconv.Itoa(polls-1+i), 20_000)+`"`, string(o.Result))
				o.Release()
			}
		}
	})
}
