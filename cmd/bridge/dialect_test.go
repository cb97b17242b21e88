package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

const dialectKey = "key-of-the-dialect"

// playing is the simulator as a server of a dialect, with a long job, one that fails and, where the server knows no ids
// but its own, one that it does not know.
func playing(t *testing.T, dialect string) (script sim.Script, known map[string]string) {
	t.Helper()
	script, ok := sim.Dialect(dialect)
	require.True(t, ok)
	script.Profiles = []sim.Profile{
		{Name: "long", NamedOnly: true, Steps: []sim.Step{{For: 400 * time.Second}, {Answer: "completed", ResultBytes: 2 << 20}}},
		{Name: "fails", NamedOnly: true, Steps: []sim.Step{{For: 5 * time.Second}, {Answer: "failed", Message: "bad prompt", Category: "user"}}},
	}
	return script, map[string]string{"long": "completed", "fails": "failed"}
}

func TestTheBridgeSpeaksEveryDialect(t *testing.T) {
	clearEnv(t)
	t.Setenv(apiKeyVariable, dialectKey)
	for _, d := range api.Dialects {
		t.Run(d.Name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				script, want := playing(t, d.Name)
				w := newWorld(t, script, sim.WithAPIKey(dialectKey))
				w.bridge("bridge-1", "--dialect", d.Name)
				got := map[string]string{}
				for profile := range want {
					w.sim.Add(profile, profile)
					w.submit(profile)
				}
				if script.Unknown != "" {
					want["nobody"] = map[string]string{"404": "failed", "try_again": "timed_out"}[script.Unknown]
					w.submitFor("nobody", time.Minute)
				}
				w.settled(20 * time.Minute)
				_, results := w.history()
				for _, r := range results {
					got[r.RequestID] = r.Status
				}
				require.Equal(t, want, got)
				require.Zero(t, w.sim.Stats().Answers["unauthorized"]+w.sim.Stats().Answers["missing_header"])
				if script.Style.Hold > 0 {
					polls := 0
					for _, p := range w.sim.Polls() {
						if p.ID == "long" {
							polls++
						}
					}
					most := int(400*time.Second/script.Style.Hold) + 2
					require.LessOrEqual(t, polls, most, "a poll is waited for as long as the server holds it")
				}
				w.close()
			})
		})
	}
}

func TestAWrongKeyHoldsEverybodyInEveryDialect(t *testing.T) {
	clearEnv(t)
	t.Setenv(apiKeyVariable, "a-wrong-key")
	for _, d := range api.Dialects {
		t.Run(d.Name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				script, _ := playing(t, d.Name)
				w := newWorld(t, script, sim.WithAPIKey(dialectKey))
				b := w.bridge("bridge-1", "--dialect", d.Name)
				for _, id := range ids("fails", 20) {
					w.sim.Add(id, "fails")
					w.submit(id)
				}
				time.Sleep(10 * time.Minute)
				require.Contains(t, b.notReady(), "refuses the API key")
				_, results := w.history()
				require.Empty(t, results)
				require.NoError(t, b.client.SetKey(dialectKey))
				w.settled(20 * time.Minute)
				w.check()
				w.close()
			})
		})
	}
}

func TestADialectIsNeededWhereItIsNamed(t *testing.T) {
	clearEnv(t)
	t.Setenv(apiKeyVariable, dialectKey)
	for _, d := range api.Dialects {
		auto := api.Dialects[0]
		if d.Path == auto.Path && d.KeyHeader == auto.KeyHeader && d.Header == nil {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			script, _ := playing(t, d.Name)
			server := sim.New(script, sim.WithAPIKey(dialectKey))
			server.Add("fails", "fails")
			url, stop, err := serveUpstream(server)
			require.NoError(t, err)
			defer stop()
			c, err := parseServe(t, "--upstream", url)
			require.NoError(t, err)
			client, _, err := c.upstream(silent())
			require.NoError(t, err)
			got := client.Retrieve(t.Context(), api.Query{RequestID: "fails"})
			require.Contains(t, []api.Kind{api.NotFound, api.Unauthorized, api.Refused}, got.Kind)
		})
	}
}

func TestFlagsWinOverTheDialect(t *testing.T) {
	clearEnv(t)
	c, err := parseServe(t, up, "--dialect=twinkle")
	require.NoError(t, err)
	require.Equal(t, "Authorization", c.APIKeyHeader)
	asking, err := c.asking()
	require.NoError(t, err)
	require.Equal(t, "future-bridge", asking.Header.Get("X-Request-Id"))

	c, err = parseServe(t, up, "--dialect=twinkle", "--api-key-header=X-Mine", "--upstream-path=/mine", "--upstream-header=x-request-id=7", "--poll-timeout=9s")
	require.NoError(t, err)
	asking, err = c.asking()
	require.NoError(t, err)
	require.Equal(t, "X-Mine", asking.KeyHeader)
	require.Equal(t, "/mine", asking.Path)
	require.Equal(t, []string{"7"}, asking.Header.Values("X-Request-Id"))
	require.Equal(t, 9*time.Second, asking.Timeout)

	t.Setenv("BRIDGE_POLL_TIMEOUT", "8s")
	c, err = parseServe(t, up, "--config", write(t, "c.yaml", "dialect: skyrl\nupstream-path: /theirs"))
	require.NoError(t, err)
	require.Equal(t, 8*time.Second, c.PollTimeout)
	require.Equal(t, "/theirs", c.UpstreamPath)
}

func TestFlagsKnowEveryDialect(t *testing.T) {
	var names []string
	for _, d := range api.Dialects {
		names = append(names, d.Name)
		script, ok := sim.Dialect(d.Name)
		require.True(t, ok, d.Name)
		require.Greater(t, d.Timeout, script.Style.Hold, "else polls are given up that the server still holds")
	}
	enum := func(of reflect.Type) string {
		field, ok := of.FieldByName("Dialect")
		require.True(t, ok)
		return field.Tag.Get("enum")
	}
	require.Equal(t, strings.Join(names, ","), enum(reflect.TypeFor[serveConfig]()))
	require.Equal(t, "any,"+strings.Join(names, ","), enum(reflect.TypeFor[simulateCmd]()))
	for flag, want := range map[string]string{"Dialect": names[0], "UpstreamPath": api.Dialects[0].Path, "APIKeyHeader": api.Dialects[0].KeyHeader, "PollTimeout": "65s"} {
		field, _ := reflect.TypeFor[serveConfig]().FieldByName(flag)
		require.Equal(t, want, field.Tag.Get("default"), "what --help says is the default is")
	}
	require.Equal(t, 65*time.Second, api.Dialects[0].Timeout)
}

func TestSimulateIsAServerOfADialect(t *testing.T) {
	for _, c := range []struct {
		args string
		want func(sim.Script) bool
	}{
		{"--dialect tinkerbell", func(s sim.Script) bool { return s.Path == "/retrieve_future" && s.Style.PendingStyle == "202" }},
		{"--dialect skyrl --hold 1s --unknown create", func(s sim.Script) bool {
			return s.Style.Hold == time.Second && s.Unknown == "create" && s.Style.PendingStyle == "408_detail" && s.IDFormat == "int"
		}},
		{"--hold 1s", func(s sim.Script) bool { return s.Path == "" && s.KeyHeader == "" && s.Style.Hold == time.Second }},
	} {
		var grammar simulateOnly
		_, err := parse(&grammar, append([]string{"simulate"}, strings.Fields(c.args)...), nil, nil)
		require.NoError(t, err)
		require.True(t, c.want(grammar.Simulate.script), c.args)
	}
	_, err := parse(new(simulateOnly), []string{"simulate", "--dialect", "tuft", "--script", write(t, "s.json", "{}")}, nil, nil)
	require.ErrorContains(t, err, "--dialect: does nothing beside --script")
}
