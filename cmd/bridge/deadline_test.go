package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func endless() sim.Script {
	return sim.Script{Profiles: []sim.Profile{{Name: "endless", Steps: []sim.Step{{State: "active"}}}}}
}

// TestADeadlineCountsFromTheSubmission whatever happens until then. The slack is how long it takes a bridge to be able to
// do something about it: nothing, where one runs and reaches its server.
func TestADeadlineCountsFromTheSubmission(t *testing.T) {
	ackWait := 10 * time.Second
	outage := func(s sim.Script, o sim.Outage) sim.Script {
		s.Outages = []sim.Outage{o}
		return s
	}
	pausedFor := func(hint int) sim.Script {
		return sim.Script{Profiles: []sim.Profile{{Name: "paused", Steps: []sim.Step{{State: "paused_rate_limit", RetryAfterMS: hint}}}}}
	}
	polled := endless()
	polled.Style.Hold = 45 * time.Second
	for _, c := range []struct {
		name    string
		script  sim.Script
		timeout time.Duration
		slack   time.Duration
		play    func(w *world)
	}{
		{"five seconds", endless(), 5 * time.Second, time.Second, func(w *world) { w.bridge("bridge-1") }},
		{"seven days, with a bridge for the first minute and the last", endless(), 7 * 24 * time.Hour, time.Second, func(w *world) {
			first := w.bridge("bridge-1")
			time.Sleep(time.Minute)
			first.stop()
			time.Sleep(7*24*time.Hour - 2*time.Minute)
			w.bridge("bridge-2")
		}},
		{"across a drain", endless(), time.Minute, time.Second, func(w *world) {
			first := w.bridge("bridge-1")
			time.Sleep(30 * time.Second)
			first.stop()
			w.bridge("bridge-2")
		}},
		{"across a bridge that was killed", endless(), time.Minute, time.Second, func(w *world) {
			first := w.bridge("bridge-1")
			time.Sleep(30 * time.Second)
			first.kill()
			w.bridge("bridge-2")
		}},
		{"passed before any bridge ran", endless(), time.Minute, 2 * time.Minute, func(w *world) {
			w.bridge("bridge-1").stop() // it makes the streams
			time.Sleep(2 * time.Minute)
			w.bridge("bridge-2")
		}},
		{"while the upstream is down", outage(endless(), sim.Outage{After: 10 * time.Second, For: time.Hour}), time.Minute, time.Second, func(w *world) {
			w.bridge("bridge-1")
		}},
		{"while the upstream answers 503", outage(endless(), sim.Outage{For: time.Hour, With: &sim.Step{Status: 503}}), time.Minute, time.Second, func(w *world) {
			w.bridge("bridge-1")
		}},
		{"while NATS is down", endless(), time.Minute, 35 * time.Second, func(w *world) {
			w.bridge("bridge-1")
			time.Sleep(50 * time.Second)
			w.restartServer(40 * time.Second)
		}},
		{"while the bridge is cut off from NATS", endless(), time.Minute, 35 * time.Second, func(w *world) {
			wire := &wire{}
			w.odd("bridge-1", seams{wire: wire})
			time.Sleep(50 * time.Second)
			wire.sever(40 * time.Second)
		}},
		{"while it is paused for longer", pausedFor(3_600_000), time.Minute, time.Second, func(w *world) { w.bridge("bridge-1") }},
		{"while a poll is held", polled, time.Minute, time.Second, func(w *world) { w.bridge("bridge-1") }},
		{"while everybody is throttled", outage(endless(), sim.Outage{For: time.Hour, With: &sim.Step{Status: 429, RetryAfterMS: 20_000}}), time.Minute, 21 * time.Second, func(w *world) {
			w.bridge("bridge-1")
		}},
		{"while the key is refused", outage(endless(), sim.Outage{For: time.Hour, With: &sim.Step{Status: 401}}), time.Minute, 35 * time.Second, func(w *world) {
			w.bridge("bridge-1")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, c.script)
				_, err := publish.Ensure(t.Context(), w.js, w.names, publish.Options{AckWait: &ackWait})
				require.NoError(t, err)
				w.run.DeadlineSlack = c.slack
				for _, id := range ids("req", 5) {
					w.submitFor(id, c.timeout)
				}
				c.play(w)
				w.settled(c.timeout + 10*time.Minute)
				report := w.check()
				require.Equal(t, map[string]int{"timed_out": 5}, report.Endings)
				_, results := w.history()
				var body publish.ErrorBody
				require.NoError(t, json.Unmarshal(results[0].Data, &body))
				require.Equal(t, "api_timeout", body.Type)
				require.GreaterOrEqual(t, body.ElapsedMS, c.timeout.Milliseconds())
				w.close()
			})
		})
	}
}

// A deadline takes no poll, so it does not wait for its turn to poll.
func TestADeadlinePassesWhileOthersHaveTheirTurn(t *testing.T) {
	polled := endless()
	polled.Style.Hold = 45 * time.Second
	refused := endless()
	refused.Outages = []sim.Outage{{For: time.Hour, With: &sim.Step{Status: 401}}}
	for _, c := range []struct {
		name   string
		script sim.Script
		flag   string
	}{
		{"more is due than may be polled in a second", endless(), "--polls-per-second=1"},
		{"more is due than may be polled at a time", polled, "--max-polls=3"},
		{"the key is refused, and one probes", refused, "--log-level=error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, c.script)
				w.bridge("bridge-1", c.flag)
				w.run.DeadlineSlack = 5 * time.Second
				for _, id := range ids("long", 10) {
					w.submitFor(id, 5*time.Minute)
				}
				time.Sleep(3 * time.Second)
				for _, id := range ids("req", 200) {
					w.submitFor(id, 30*time.Second)
				}
				w.settled(10 * time.Minute)
				require.Equal(t, map[string]int{"timed_out": 210}, w.check().Endings)
				w.close()
			})
		})
	}
}

func TestALaterSubmissionsEarlierDeadlineDoesNotWaitForTheHint(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "paused", Steps: []sim.Step{{State: "paused_rate_limit", RetryAfterMS: 3_600_000}}}}})
		w.bridge("bridge-1")
		w.run.DeadlineSlack = time.Second
		w.submitFor("req-1", 24*time.Hour)
		time.Sleep(time.Minute)
		w.submitFor("req-1", 20*time.Second)
		w.settled(2 * time.Hour)
		require.Equal(t, "timed_out", only(t, w.check()))
		w.close()
	})
}

// A result that is there in time is delivered, however close its deadline.
func TestAResultJustBeforeItsDeadlineIsDelivered(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		script := job(20 * time.Second)
		script.Style.Hold = 45 * time.Second
		w := newWorld(t, script)
		w.bridge("bridge-1")
		w.run.DeadlineSlack = time.Millisecond
		for _, id := range ids("req", 20) {
			w.submitFor(id, 21*time.Second)
		}
		w.settled(time.Minute)
		require.Equal(t, map[string]int{"completed": 20}, w.check().Endings)
		w.close()
	})
}

func TestOfSeveralSubmissionsTheFirstDeadlineEndsTheRequest(t *testing.T) {
	for name, second := range map[string]string{"at one bridge": "", "at two bridges": "bridge-2"} {
		t.Run(name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, endless())
				w.run.DeadlineSlack = time.Second
				w.bridge("bridge-1", "--max-requests=2")
				w.submitFor("req-1", time.Hour)
				if second != "" {
					w.submitFor("req-2", time.Hour) // now bridge-1 is full
					w.bridge(second)
				}
				time.Sleep(10 * time.Second)
				w.submitFor("req-1", time.Minute)
				begin := time.Now()
				if second == "" {
					w.settled(2 * time.Hour)
					require.InDelta(t, 60, time.Since(begin).Seconds(), 3)
				} else {
					w.settled(2 * time.Hour)
				}
				states, _ := w.history()
				for _, r := range states {
					if r.RequestID == "req-1" && r.Kind == publish.KindClosing {
						require.InDelta(t, 60, r.Time.Sub(begin).Seconds(), 1)
					}
				}
				report := w.check()
				require.Equal(t, "timed_out", only(t, report))
				w.close()
			})
		})
	}
}

// TestABridgeWhoseClockIsWrongHarmsDeadlinesAlone: by how much it is wrong, by so much it is wrong about deadlines, until a
// bridge whose clock is right takes over. Nothing is lost, and nothing is polled early or without a rest.
func TestABridgeWhoseClockIsWrongHarmsDeadlinesAlone(t *testing.T) {
	for _, c := range []struct {
		name  string
		ahead time.Duration
		job   time.Duration
		want  string
		slack time.Duration // after the deadline
	}{
		{"ahead, by less than what is left", 5 * time.Minute, 2 * time.Minute, "completed", 0},
		{"behind by an hour", -time.Hour, 2 * time.Minute, "completed", 0},
		{"behind by an hour, and deadlines pass meanwhile", -time.Hour, time.Hour, "timed_out", 2*time.Minute + 25*time.Second}, // and what is left of a hint, which is handed over
		{"behind by a second", -time.Second, time.Hour, "timed_out", 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "paused", Steps: []sim.Step{
					{State: "paused_rate_limit", For: c.job, RetryAfterMS: 20_000}, {Answer: "completed"},
				}}}})
				// In a bubble all have one clock, but only a deadline is ever compared with it.
				wrong := w.odd("bridge-1", seams{request: func(_ *bridge, r *poll.Request) { r.State.Deadline = r.State.Deadline.Add(-c.ahead) }})
				w.run.DeadlineSlack = c.slack
				for _, id := range ids("req", 5) {
					w.submitFor(id, 8*time.Minute)
				}
				if c.want == "timed_out" {
					time.Sleep(10 * time.Minute)
				} else {
					time.Sleep(time.Minute)
				}
				wrong.stop()
				w.bridge("bridge-2")
				w.settled(20 * time.Minute)
				require.Equal(t, map[string]int{c.want: 5}, w.check().Endings)
				for id, stats := range w.sim.StatsByID() {
					require.LessOrEqual(t, stats.Polls, 33, "request %q", id)
				}
				w.close()
			})
		})
	}
}

// only is how all requests ended.
func only(t *testing.T, r history.Report) string {
	t.Helper()
	require.Len(t, r.Endings, 1)
	for status := range r.Endings {
		return status
	}
	return ""
}
