package sim

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// inMemory runs a test in virtual time with a transport to a script's server.
func inMemory(t *testing.T, script Script, test func(t *testing.T, s *Sim, transport *http.Transport)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := New(script, WithPollLog())
		m := NewMemory(s)
		transport := m.Transport()
		test(t, s, transport)
		transport.CloseIdleConnections()
		require.NoError(t, m.Close())
	})
}

func TestAPollIsHeldForItsTime(t *testing.T) {
	script := steps(Step{State: "active", For: time.Minute}, Step{Answer: "completed", Result: "1"})
	script.Style.Hold = 45 * time.Second
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		start := time.Now()
		code, body, err := fetch(t.Context(), t, transport, "id")
		require.NoError(t, err)
		require.Equal(t, 200, code)
		require.Contains(t, body, "try_again")
		require.Equal(t, 45*time.Second, time.Since(start))

		_, body, err = fetch(t.Context(), t, transport, "id")
		require.NoError(t, err)
		require.Equal(t, `{"status":"completed","result":1}`, body)
		require.Equal(t, time.Minute, time.Since(start), "the result ends the hold")
	})
}

func TestABodyThatIsCutEndsInAnError(t *testing.T) {
	inMemory(t, steps(Step{Answer: "completed", Wire: "truncated", Polls: 1}, Step{Answer: "completed"}), func(t *testing.T, s *Sim, transport *http.Transport) {
		code, body, err := fetch(t.Context(), t, transport, "id")
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.Equal(t, 200, code)
		require.NotEmpty(t, body)
		stats := s.StatsOf("id")
		require.Equal(t, stats.Done, stats.Delivered, "in virtual time")
		require.Equal(t, IDStats{
			Polls: 1, Deliveries: 1, LostDeliveries: 1, MaxPollsNow: 1, Done: stats.Done, Delivered: stats.Delivered,
		}, stats)
		_, _, err = fetch(t.Context(), t, transport, "id")
		require.NoError(t, err)
		require.Equal(t, map[string]int{"completed/truncated": 1, "completed": 1}, s.Stats().Answers)
	})
}

func TestAResultCanDieWithItsConnection(t *testing.T) {
	for _, wire := range []string{"dead", "reset"} {
		script := steps(Step{Answer: "completed", Wire: wire})
		script.Style.Retention = "once"
		inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
			_, _, err := fetch(t.Context(), t, transport, "id")
			require.ErrorIs(t, err, io.EOF)
			code, _, err := fetch(t.Context(), t, transport, "id")
			require.NoError(t, err)
			require.Equal(t, 404, code)
			status, _ := s.Expected("id")
			require.Equal(t, "lost", status)
		})
	}
}

func TestAResetIsOneOverTCP(t *testing.T) {
	server := httptest.NewServer(New(steps(Step{Answer: "completed", Wire: "reset"})))
	defer server.Close()
	_, err := http.Post(server.URL+"/retrieve_future", "application/json", strings.NewReader(queryFor("id", false)))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestJobsCanBeMadeAnewWhileTheyArePolled(t *testing.T) {
	script := steps(Step{State: "active", Polls: 3}, Step{Answer: "completed", Polls: 1}, Step{Answer: "expired"})
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		var pollers sync.WaitGroup
		for range 8 {
			pollers.Go(func() {
				for range 50 {
					_, _, err := fetch(t.Context(), t, transport, "id")
					if err != nil {
						t.Error(err)
					}
					s.Add("id", "p")
				}
			})
		}
		pollers.Wait()
		require.Equal(t, 400, s.StatsOf("id").Polls)
	})
}

func TestAStalledBodyWaitsForItsClientToLeave(t *testing.T) {
	inMemory(t, steps(Step{Answer: "completed", Wire: "stall"}), func(t *testing.T, s *Sim, transport *http.Transport) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		code, _, err := fetch(ctx, t, transport, "id")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 200, code)
		require.Equal(t, time.Minute, time.Since(start))
	})
}

func TestABodyCanDrip(t *testing.T) {
	inMemory(t, steps(Step{Answer: "completed", Result: `"0123456789"`, Drip: 20 * time.Second}), func(t *testing.T, s *Sim, transport *http.Transport) {
		start := time.Now()
		_, body, err := fetch(t.Context(), t, transport, "id")
		require.NoError(t, err)
		require.Equal(t, `{"status":"completed","result":"0123456789"}`, body)
		require.Equal(t, 20*time.Second, time.Since(start))
	})
}

func TestAClientThatLeavesAHeldPoll(t *testing.T) {
	for _, ignored := range []bool{false, true} {
		script := steps(Step{For: 30 * time.Second}, Step{Answer: "completed"})
		script.Style = Style{Hold: time.Minute, Retention: "once", IgnoreDisconnect: ignored}
		inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, _, err := fetch(ctx, t, transport, "id")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			time.Sleep(time.Minute)
			status, _ := s.Expected("id")
			if ignored {
				require.Equal(t, "lost", status, "the server delivers to nobody")
				require.Equal(t, map[string]int{"completed": 1}, s.Stats().Answers)
				require.Equal(t, 1, s.Stats().LostDeliveries)
			} else {
				require.Equal(t, "completed", status)
				require.Equal(t, map[string]int{"abandoned": 1}, s.Stats().Answers)
			}
			require.Zero(t, s.Stats().PollsNow)
		})
	}
}

func TestCloseEndsHeldPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script := steps(Step{})
		script.Style = Style{Hold: time.Hour, IgnoreDisconnect: true}
		m := NewMemory(New(script))
		start := time.Now()
		ended := make(chan error)
		go func() {
			_, _, err := fetch(t.Context(), t, m.Transport(), "id")
			ended <- err
		}()
		synctest.Wait()
		require.NoError(t, m.Close())
		require.Error(t, <-ended)
		require.Zero(t, time.Since(start))
		_, err := m.DialContext(t.Context(), "tcp", "upstream:80")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}

func TestARestartCutsPollsAndRefusesConnections(t *testing.T) {
	for _, forget := range []bool{false, true} {
		script := Script{Unknown: "404", Profiles: []Profile{{Name: "p", Steps: []Step{{State: "active"}}}}}
		script.Style.Hold = time.Minute
		inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
			s.Add("id", "p")
			time.AfterFunc(10*time.Second, func() { s.Restart(5*time.Second, forget) })
			start := time.Now()
			_, _, err := fetch(t.Context(), t, transport, "id")
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, 10*time.Second, time.Since(start))
			_, _, err = fetch(t.Context(), t, transport, "id")
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			time.Sleep(5 * time.Second)
			code, _, err := fetch(t.Context(), t, transport, "id")
			require.NoError(t, err)
			if forget {
				require.Equal(t, 404, code)
			} else {
				require.Equal(t, 200, code)
			}
		})
	}
}

func TestOutagesComeOnTime(t *testing.T) {
	script := steps(Step{State: "active"})
	script.Style.Hold = 7 * time.Second
	script.Outages = []Outage{
		{After: 10 * time.Second, For: 5 * time.Second, Every: time.Minute, With: &Step{Status: 503}},
		{After: 30 * time.Second, For: 5 * time.Second},
	}
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		start := time.Now()
		poll := func(at time.Duration) int {
			time.Sleep(at - time.Since(start))
			code, _, err := fetch(t.Context(), t, transport, "id")
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNREFUSED) {
				return 0
			}
			require.NoError(t, err)
			return code
		}
		require.Equal(t, 200, poll(0))
		require.Equal(t, 503, poll(8*time.Second), "a held poll meets it")
		require.Equal(t, 10*time.Second, time.Since(start))
		require.Equal(t, 503, poll(14*time.Second))
		require.Equal(t, 200, poll(15*time.Second))
		require.Equal(t, 0, poll(29*time.Second), "a held poll is cut")
		require.Equal(t, 0, poll(34*time.Second))
		require.Equal(t, 200, poll(35*time.Second))
		require.Equal(t, 503, poll(72*time.Second))
	})
}

func TestThePollLogTellsWhoAskedWhat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(steps(Step{Status: 503, RetryAfter: 1, Polls: 1}, Step{Answer: "completed"}), WithPollLog(), WithCallerHeader("X-Bridge"))
		start := time.Now()
		ask(s, "id", "X-Bridge", "one", "X-Tinker-Request-Iteration", "4")
		time.Sleep(time.Millisecond)
		askFor(s, "id", false, "X-Bridge", "two")
		log := s.Polls()
		require.Len(t, log, 2)
		require.Equal(t, Poll{Start: start, End: start, ID: "id", Iteration: 4, MetadataOnly: true, Caller: "one", Conn: log[0].Conn, Status: 503, Answer: "status_503"}, log[0])
		require.Equal(t, Poll{Start: start.Add(time.Millisecond), End: start.Add(time.Millisecond), ID: "id", Iteration: -1, Caller: "two", Conn: log[1].Conn, Status: 200, Answer: "completed", Early: true}, log[1])
	})
}
