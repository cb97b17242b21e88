package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPollsBeforeTheHintAreEarly(t *testing.T) {
	for _, step := range []Step{
		{State: "active", RetryAfter: 2, RetryAfterMS: 5000},
		{State: "active", RetryAfterS: 2},
		{Status: 503, RetryAfterMSHeader: 2000},
		{Status: 429, RetryAfterDate: 2 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(steps(step))
			ask(s, "id")
			time.Sleep(2*time.Second - 1)
			ask(s, "id")
			time.Sleep(2 * time.Second)
			ask(s, "id")
			ask(s, "another")
			require.Equal(t, 1, s.Stats().EarlyPolls)
			require.Equal(t, 1, s.StatsOf("id").EarlyPolls)
		})
	}
}

func TestTheRateLimitAnswers429(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script := steps(Step{State: "active"})
		script.RateLimit = RateLimit{PerSecond: 10, Burst: 5}
		s := New(script)
		for range 8 {
			ask(s, "id")
		}
		require.Equal(t, map[string]int{"pending": 5, "status_429": 3}, s.Stats().Answers)
		time.Sleep(300 * time.Millisecond)
		for range 8 {
			ask(s, "id")
		}
		require.Equal(t, map[string]int{"pending": 8, "status_429": 8}, s.Stats().Answers)
		require.Equal(t, 16, s.Stats().MaxPollsPerSecond)
		time.Sleep(800 * time.Millisecond)
		require.Equal(t, 8, s.Stats().PollsLastSecond)
	})
}

func TestNoiseTakesItsShare(t *testing.T) {
	script := steps(Step{State: "active"})
	script.Noise = []Noise{{0.2, &Step{Status: 503}}, {0.1, &Step{Status: 502}}}
	s := New(script)
	for i := range 1000 {
		ask(s, fmt.Sprint(i))
		ask(s, fmt.Sprint(i))
	}
	answers := s.Stats().Answers
	require.InDelta(t, 400, answers["status_503"], 60)
	require.InDelta(t, 200, answers["status_502"], 50)
	require.Equal(t, 2000, answers["status_503"]+answers["status_502"]+answers["pending"])
}

func TestNoiseOnTheWireBreaksTheAnswerThatWasDue(t *testing.T) {
	script := steps(Step{Answer: "completed"})
	script.Style.Retention = "once"
	script.Noise = []Noise{{1, &Step{Wire: "truncated"}}}
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		_, _, err := fetch(t.Context(), t, transport, "id")
		require.Error(t, err)
		require.Equal(t, map[string]int{"completed/truncated": 1}, s.Stats().Answers)
		status, _ := s.Expected("id")
		require.Equal(t, "lost", status)
	})
}

func TestPollsSideBySideAreSeen(t *testing.T) {
	script := steps(Step{State: "active"})
	script.Style.Hold = 10 * time.Second
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		for _, id := range []string{"a", "a", "b"} {
			go func() { _, _, _ = fetch(t.Context(), t, transport, id) }()
		}
		synctest.Wait()
		require.Equal(t, 3, s.Stats().PollsNow)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		require.Equal(t, 0, s.Stats().PollsNow)
		require.Equal(t, 3, s.Stats().MaxPollsNow)
		require.Equal(t, 2, s.Stats().MaxPollsNowOfAnID)
		require.Equal(t, 1, s.StatsOf("b").MaxPollsNow)
		require.Len(t, s.Polls(), 3)
	})
}

func TestDeliveriesAreCounted(t *testing.T) {
	s := New(steps(Step{Answer: "completed"}))
	ask(s, "a")
	ask(s, "a")
	ask(s, "b")
	stats := s.Stats()
	require.Equal(t, 3, stats.Deliveries)
	require.Equal(t, 2, stats.IDsDelivered)
	require.Equal(t, 1, stats.IDsDeliveredAgain)
	require.Equal(t, 2, stats.MaxPollsOfAnID)
	require.Empty(t, s.Polls(), "the log is off")
}

func TestItIsToldWhenAJobEndedAndWhenItsResultWentOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := New(steps(Step{State: "active", For: 3 * time.Second}, Step{Answer: "failed"}))
		ask(s, "id")
		require.Zero(t, s.StatsOf("id").Done)
		time.Sleep(5 * time.Second)
		ask(s, "id")
		time.Sleep(time.Second)
		ask(s, "id")
		require.Equal(t, begin.Add(3*time.Second), s.StatsOf("id").Done)
		require.Equal(t, begin.Add(5*time.Second), s.StatsOf("id").Delivered, "for the first time")
	})
}

func TestTheControlEndpoints(t *testing.T) {
	s := New(Script{Profiles: []Profile{{Name: "p", Steps: []Step{{Answer: "completed"}}}}}, WithAPIKey("wanted only by polls"))
	call := func(method, path, body string) (int, string) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	code, body := call("POST", "/sim/jobs", `{"count":3,"profile":"p","id_format":"int","ids":["mine"]}`)
	require.Equal(t, 200, code, body)
	var made struct{ IDs []string }
	require.NoError(t, json.Unmarshal([]byte(body), &made))
	require.Len(t, made.IDs, 4)
	require.Equal(t, "mine", made.IDs[0])
	for bad, want := range map[string]string{
		`{"count":-1}`:              `{"error":"count: -1 is out of range: write 0 to 1000000"}`,
		`{"cuont":1}`:               `{"error":"cuont: unknown key: did you mean \"count\"?"}`,
		`{"id_format":"x"}`:         `is not known`,
		`nonsense`:                  `is not an object`,
		``:                          `is not an object`,
		`{"count":`:                 `{"error":`,
		`{"profile":"q","count":1}`: `{"error":"profile: \"q\" is not in the script: use the name of one that is, or none"}`,
	} {
		code, body = call("POST", "/sim/jobs", bad)
		require.Equal(t, 400, code, bad)
		require.Contains(t, body, want)
	}

	ask(s, "mine", "X-API-Key", "wanted only by polls")
	code, body = call("GET", "/sim/stats?ids=1", "")
	require.Equal(t, 200, code)
	var stats Stats
	require.NoError(t, json.Unmarshal([]byte(body), &stats))
	require.Equal(t, 4, stats.Jobs)
	require.Equal(t, map[string]int{"completed": 1}, stats.Answers)
	mine := stats.IDs["mine"]
	require.Equal(t, IDStats{Polls: 1, Deliveries: 1, MaxPollsNow: 1, Done: mine.Done, Delivered: mine.Delivered}, mine)
	require.Len(t, stats.IDs, 4)

	r := httptest.NewRequest("POST", "/sim/redirected", nil)
	r.Header.Set("X-API-Key", "carried along")
	s.ServeHTTP(httptest.NewRecorder(), r)
	require.Equal(t, 1, s.Stats().RedirectsFollowed)
	require.Equal(t, 1, s.Stats().RedirectsWithKey)
}

// sink is a response writer that costs nothing, so that a benchmark measures the Sim.
type sink struct{ header http.Header }

func (s sink) Header() http.Header         { return s.header }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) WriteHeader(int)             {}

func BenchmarkPoll(b *testing.B) {
	for name, step := range map[string]Step{"pending": {State: "active"}, "result20KB": {Answer: "completed", ResultBytes: 20_000}} {
		b.Run(name, func(b *testing.B) {
			s := New(steps(step))
			bodies := make([]string, 100_000)
			for i := range bodies {
				bodies[i] = queryFor(s.Mint(""), false)
			}
			r := httptest.NewRequest("POST", "/api/v1/retrieve_future", nil)
			w := sink{make(http.Header)}
			body := strings.NewReader("")
			r.Body = io.NopCloser(body)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				body.Reset(bodies[i%len(bodies)])
				s.ServeHTTP(w, r)
			}
		})
	}
}
