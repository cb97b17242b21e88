package sim

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheExampleScriptPlays(t *testing.T) {
	script, err := Load("testdata/tour.json")
	require.NoError(t, err)
	script.Noise, script.RateLimit = nil, RateLimit{} // chance has tests of its own
	inMemory(t, script, func(t *testing.T, s *Sim, transport *http.Transport) {
		require.Equal(t, 404, ask(s, "anything").code)

		id := s.Mint("trains")
		require.Equal(t, []QueueState{{"paused_rate_limit", "too many requests"}, {"active", ""}}, s.States(id))
		start := time.Now()
		_, body, err := fetch(t.Context(), t, transport, id)
		require.NoError(t, err)
		require.Equal(t, `{"type":"try_again","request_id":"`+id+`","queue_state":"paused_rate_limit","queue_state_reason":"too many requests","retry_after_ms":1000}`, body)
		require.Equal(t, 2*time.Second, time.Since(start))
		for strings.Contains(body, "try_again") {
			_, body, err = fetch(t.Context(), t, transport, id)
			require.NoError(t, err)
		}
		status, want := s.Expected(id)
		require.Equal(t, "completed", status)
		require.Equal(t, `{"metrics": {"loss:mean": 0.125}, "step": 12345678901234567890}`, string(want))
		require.Equal(t, `{"status":"completed","result":`+string(want)+`}`, body)
		require.GreaterOrEqual(t, time.Since(start), 8*time.Second)
		require.Less(t, time.Since(start), 13*time.Second)

		bad := s.Mint("bad_input")
		_, body, err = fetch(t.Context(), t, transport, bad)
		require.NoError(t, err)
		require.Equal(t, `{"status":"failed","error":{"message":"the input is too long","category":"user"}}`, body)

		s.Add("odd id", "one_shot")
		for _, code := range []int{408, 408, 503, 200, 200} {
			var got int
			got, body, err = fetch(t.Context(), t, transport, "odd id")
			require.NoError(t, err)
			require.Equal(t, code, got)
		}
		require.Equal(t, `{"error":"already retrieved"}`, body)
		_, want = s.Expected("odd id")
		require.Len(t, want, 100_000)
	})
}

func TestAScriptThatCannotBePlayedIsNamedAndMended(t *testing.T) {
	profile := func(steps string) string { return `{"profiles":[{"name":"p","steps":[` + steps + `]}]}` }
	for script, want := range map[string]string{
		"{\n\n]":                           "line 3 is not JSON",
		`[]`:                               "the script: [] is not an object",
		`{"sede":1}`:                       `sede: unknown key: did you mean "seed"?`,
		`{"colour":1}`:                     `colour: unknown key: the keys here are id_format, key_header, key_refusal, noise,`,
		`{"seed":1,"seed":2}`:              `seed: the key stands twice`,
		`{"seed":-1}`:                      `seed: -1 does not fit: write a whole number from 0 on`,
		`{"profiles":{}}`:                  `profiles: {} is not a list`,
		`{"unknown":"maybe"}`:              `unknown: "maybe" is not known: use one of create, 404, error, try_again`,
		`{"path":"retrieve"}`:              `path: "retrieve" cannot be served: write one such as /api/v1/retrieve_future`,
		`{"path":"/sim/jobs"}`:             `path: "/sim/jobs" cannot be served`,
		`{"key_refusal":500}`:              `key_refusal: 500 is no refusal of a key: write 401 or 403`,
		`{"key_header":"Cookie"}`:          `key_header: "Cookie" is not known: use one of X-Api-Key, Authorization`,
		`{"id_format":"x"}`:                `id_format: "x" is not known`,
		`{"style":{"hold":3}}`:             `style.hold: 3 is not a duration: write it like "1500ms" or "3s"`,
		`{"style":{"hold":"-3s"}}`:         `style.hold: "-3s" is not a duration`,
		`{"style":{"gone":"500"}}`:         `style.gone: "500" is not known: use one of 404, error, 410, try_again`,
		`{"style":{"retention":"ended"}}`:  `style.retention_ttl: goes with retention "ended"`,
		`{"style":{"gzip":"yes"}}`:         `style.gzip: "yes" does not fit: write true or false`,
		`{"rate_limit":{"per_second":-1}}`: `rate_limit: negative`,
		`{"noise":[{"rate":2}]}`:           `noise[0].rate: 2 is no share`,
		`{"noise":[{"rate":1}]}`:           `noise[0].with: missing`,
		`{"noise":[{"rate":1,"with":{"answer":"completed"}}]}`:           `noise[0].with.answer: "completed" is for profiles`,
		`{"noise":[{"rate":1,"with":{"status":503,"for":"1s"}}]}`:        `noise[0].with: has no duration of its own`,
		`{"outages":[{"after":"1s"}]}`:                                   `outages[0].for: missing`,
		`{"outages":[{"for":"2s","every":"1s"}]}`:                        `outages[0].every: 1s is not longer than its for`,
		`{"profiles":[{"steps":[{}]}]}`:                                  `profiles[0].name: "" is empty or taken`,
		`{"profiles":[{"name":"p"}]}`:                                    `profiles[0].steps: missing`,
		`{"profiles":[{"name":"p","style":{"holt":"1s"},"steps":[{}]}]}`: `profiles[0].style.holt: unknown key: did you mean "hold"?`,
		profile(`{"for":"1s"}`):                                          `profiles[0].steps[0]: the last step lasts for ever`,
		profile(`{"for":"1s","polls":2},{}`):                             `profiles[0].steps[0]: has for and polls`,
		profile(`{"spread":"1s"},{}`):                                    `profiles[0].steps[0].spread: has no for`,
		profile(`{"answer":"done"}`):                                     `profiles[0].steps[0].answer: "done" is not known`,
		profile(`{"wire":"wet"}`):                                        `profiles[0].steps[0].wire: "wet" is not known`,
		profile(`{"style":"flat"}`):                                      `profiles[0].steps[0].style: "flat" is no style of the answer pending`,
		profile(`{"answer":"completed","state":"active"}`):               `profiles[0].steps[0].state: goes with the answer pending, not completed`,
		profile(`{"answer":"completed","result":1,"result_bytes":9}`):    `profiles[0].steps[0]: has result and result_bytes`,
		profile(`{"reason":{"a":1}}`):                                    `profiles[0].steps[0].reason: {"a":1} does not fit: write a string in quotes`,
		profile(`{"answer":"status"}`):                                   `profiles[0].steps[0].status: missing`,
		profile(`{"status":100}`):                                        `profiles[0].steps[0].status: 100 is no final HTTP status`,
		profile(`{"status":503,"body":{},"retry_after_ms":1}`):           `profiles[0].steps[0].retry_after_ms: there is a body`,
		profile(`{"headers":["a"]}`):                                     `profiles[0].steps[0].headers: ["a"] is not an object`,
	} {
		_, err := Parse([]byte(script))
		require.ErrorContains(t, err, want, script)
	}
	require.PanicsWithValue(t, `sim: unknown: "x" is not known: use one of create, 404, error, try_again`, func() { New(Script{Unknown: "x"}) })
}

func TestAProfilesStyleStartsFromTheScripts(t *testing.T) {
	script, err := Parse([]byte(`{"profiles":[{"name":"p","style":{"hold":"0s"},"steps":[{}]},{"name":"q","steps":[{}]}],"style":{"hold":"45s","gone":"410"}}`))
	require.NoError(t, err)
	require.Equal(t, &Style{Gone: "410"}, script.Profiles[0].Style)
	require.Nil(t, script.Profiles[1].Style)
}

func TestIDsFindTheirProfile(t *testing.T) {
	end := []Step{{Answer: "completed"}}
	s := New(Script{Profiles: []Profile{
		{Name: "train", Match: "*:train:*", Steps: end},
		{Name: "short", Match: "id-?", Steps: end},
		{Name: "often", Weight: 3, Steps: end},
		{Name: "seldom", Steps: end},
		{Name: "never", NamedOnly: true, Steps: end},
	}})
	require.Equal(t, "train", s.choose("x:train:0:0", "").name)
	require.Equal(t, "short", s.choose("id-1", "").name)
	require.Equal(t, "never", s.choose("id-1", "never").name)
	require.Equal(t, "default", s.choose("id-1", "default").name)
	require.Nil(t, s.choose("id-1", "nowhere"))
	count := make(map[string]int)
	for range 4000 {
		count[s.choose(s.Mint(""), "").name]++
	}
	require.InDelta(t, 3000, count["often"], 150)
	require.Equal(t, 4000, count["often"]+count["seldom"])
	require.Panics(t, func() { s.Mint("nowhere") })
}

func TestStepsFollowTheClockAndThePolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(steps(
			Step{State: "a", For: 10 * time.Second},
			Step{State: "b", For: 10 * time.Second},
			Step{State: "c", Polls: 2},
			Step{State: "d", For: 5 * time.Second},
			Step{Answer: "completed"},
		))
		s.Add("id", "")
		state := func() string {
			body := ask(s, "id").body
			_, after, _ := strings.Cut(body, `"queue_state":"`)
			if after == "" {
				return "done"
			}
			return after[:1]
		}
		time.Sleep(10*time.Second - 1)
		require.Equal(t, "a", state())
		time.Sleep(1)
		require.Equal(t, "b", state())
		time.Sleep(time.Hour)
		require.Equal(t, "c", state())
		require.Equal(t, "c", state())
		require.Equal(t, "d", state())
		time.Sleep(5 * time.Second)
		require.Equal(t, "done", state())
	})
}

func TestSpreadEndsJobsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(steps(Step{For: time.Second, Spread: 10 * time.Second}, Step{Answer: "completed"}))
		ids := make([]string, 1000)
		for i := range ids {
			ids[i] = s.Mint("")
		}
		time.Sleep(6 * time.Second)
		for _, id := range ids {
			ask(s, id)
		}
		require.InDelta(t, 500, s.Stats().Answers["completed"], 60)
	})
}
