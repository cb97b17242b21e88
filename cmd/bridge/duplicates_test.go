package main

import (
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/history"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func TestAnIDThatTwoSubmittersSubmitAtOnceIsOneRequest(t *testing.T) {
	for name, bridges := range map[string][]string{"at one bridge": {"bridge-1"}, "at two bridges": {"bridge-1", "bridge-2"}} {
		t.Run(name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, once(job(20*time.Second)))
				for _, name := range bridges {
					w.bridge(name, "--max-requests=400")
				}
				all := ids("req", 100)
				var submitters sync.WaitGroup
				var mu sync.Mutex
				for _, name := range []string{"alice", "bob"} {
					nc, js := w.connect(name)
					submitters.Go(func() {
						defer nc.Close()
						for _, id := range all {
							sent := time.Now()
							_, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "tinker.submit." + name, Data: []byte(id)})
							if err != nil {
								t.Error(err)
							}
							mu.Lock()
							w.run.Accepted = append(w.run.Accepted, history.Submission{ID: id, Timeout: 24 * time.Hour, Sent: sent, Acked: time.Now()})
							mu.Unlock()
						}
					})
				}
				submitters.Wait()
				w.settled(10 * time.Minute)
				report := w.check()
				require.Equal(t, 100, report.Accepted)
				require.Equal(t, map[string]int{"completed": 100}, report.Endings)
				if len(bridges) == 1 {
					require.Equal(t, 1, w.sim.Stats().MaxPollsNowOfAnID)
				}
				w.close()
			})
		})
	}
}

func TestAnIDThatIsSubmittedAfterItsEndIsLeftAlone(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, once(job(time.Second)))
		first := w.bridge("bridge-1")
		w.submit("req-1")
		w.settled(time.Minute)
		states, results := w.history()
		polls := w.sim.StatsOf("req-1").Polls
		for range 3 { // to the same bridge, and to ones that have never heard of it, with other parameters
			w.accept("req-1", time.Second, &nats.Msg{Subject: "tinker.submit", Data: []byte(`{"request_id":"req-1","timeout_ms":1000,"labels":{"run":"8"}}`)})
			w.settled(time.Minute)
			first.stop()
			first = w.bridge("bridge-later")
		}
		require.Equal(t, polls, w.sim.StatsOf("req-1").Polls)
		again, same := w.history()
		require.Equal(t, states, again)
		require.Equal(t, results, same)
		w.check()
		w.close()
	})
}

// What subjects.md says of several submissions of one id: the first deadline to pass ends it, and labels and type are those
// of the submission that the publishing bridge took first.
func TestOfSeveralSubmissionsTheFirstOneTakenGivesLabelsAndType(t *testing.T) {
	submission := func(run, timeout string) *nats.Msg {
		return &nats.Msg{Subject: "tinker.submit", Data: []byte(`{"request_id":"req-1","request_type":"Type` + run + `","timeout_ms":` + timeout + `,"labels":{"run":"` + run + `"}}`)}
	}
	// all records of a world's history carry these labels and this type.
	carried := func(w *world, run string) {
		w.t.Helper()
		states, _ := w.history()
		for _, r := range states {
			require.Contains(w.t, string(r.Data), `"labels":{"run":"`+run+`"}`)
		}
		stream, err := w.js.Stream(w.t.Context(), w.names.ResultsStream())
		require.NoError(w.t, err)
		m, err := stream.GetLastMsgForSubject(w.t.Context(), w.names.Result("req-1"))
		require.NoError(w.t, err)
		require.Equal(w.t, "Type"+run, m.Header.Get(publish.HeaderRequestType))
	}
	t.Run("at one bridge, in one batch", func(t *testing.T) {
		testbed.Bubble(t, func(t *testing.T) {
			w := newWorld(t, paused())
			w.bridge("bridge-1").stop() // it makes the streams
			w.accept("req-1", time.Hour, submission("1", "3600000"))
			w.accept("req-1", time.Minute, submission("2", "60000"))
			w.bridge("bridge-2")
			w.settled(10 * time.Minute)
			require.Equal(t, "completed", only(t, w.check()))
			carried(w, "1")
			w.close()
		})
	})
	t.Run("at one bridge, one after the other, and the later one's deadline is the first", func(t *testing.T) {
		testbed.Bubble(t, func(t *testing.T) {
			w := newWorld(t, endless())
			w.run.DeadlineSlack = time.Second
			w.bridge("bridge-1")
			w.accept("req-1", time.Hour, submission("1", "3600000"))
			time.Sleep(5 * time.Second)
			w.accept("req-1", 20*time.Second, submission("2", "20000"))
			w.settled(10 * time.Minute)
			require.Equal(t, "timed_out", only(t, w.check()))
			carried(w, "1")
			w.close()
		})
	})
	t.Run("at two bridges, and one of them ends it", func(t *testing.T) {
		testbed.Bubble(t, func(t *testing.T) {
			w := newWorld(t, endless())
			w.run.DeadlineSlack = time.Second
			w.bridge("bridge-1", "--max-requests=1")
			w.accept("req-1", time.Hour, submission("1", "3600000"))
			time.Sleep(5 * time.Second)
			w.bridge("bridge-2")
			w.accept("req-1", 20*time.Second, submission("2", "20000"))
			w.settled(10 * time.Minute)
			require.Equal(t, "timed_out", only(t, w.check()))
			states, _ := w.history()
			require.Contains(t, string(states[0].Data), `"labels":{"run":"1"}`, "bridge-1 logged the state")
			require.Contains(t, string(states[1].Data), `"labels":{"run":"2"}`, "bridge-2 ended it")
			w.close()
		})
	})
}
