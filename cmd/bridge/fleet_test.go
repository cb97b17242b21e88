package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

// busy is an upstream whose jobs want a poll each second and never end.
func busy() sim.Script {
	return sim.Script{Profiles: []sim.Profile{{Name: "busy", Steps: []sim.Step{{State: "paused_capacity", RetryAfterMS: 1000}}}}}
}

// most checks that so many bridges together never made more polls than a rate allows, and returns when they were made.
func most(t *testing.T, w *world, begin time.Time, rate float64, bridges int) (polls []time.Duration) {
	t.Helper()
	for _, p := range w.sim.Polls() {
		polls = append(polls, p.Start.Sub(begin))
	}
	slices.Sort(polls)
	for _, window := range []time.Duration{200 * time.Millisecond, time.Second, 5 * time.Second, 20 * time.Second} {
		first := 0
		for i, p := range polls {
			for polls[first] <= p-window {
				first++
			}
			// Each bridge may have gathered a token or two.
			require.LessOrEqual(t, float64(i-first+1), rate*window.Seconds()+2*float64(bridges), "polls in %v until %v", window, p)
		}
	}
	return polls
}

func TestBridgesShareTheFixedRateWhileTheyComeAndGo(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		const rate = 50
		w := newWorld(t, busy())
		bridge := func(n int) *running {
			return w.bridge(fmt.Sprint("bridge-", n), "--polls-per-second=50", "--ack-wait=10s", "--max-requests=200")
		}
		begin := time.Now()
		at := func(seconds int) { time.Sleep(time.Until(begin.Add(time.Duration(seconds) * time.Second))) }
		first := bridge(1)
		time.Sleep(time.Second)
		require.Contains(t, first.notReady(), "TINKER_BRIDGES")
		w.submit(ids("req", 800)...)
		at(15)
		require.Empty(t, first.notReady())
		require.Equal(t, 1, first.fleet.Size())
		bridge(2)
		at(25)
		third, fourth := bridge(3), bridge(4)
		at(45)
		require.Equal(t, 4, first.fleet.Size())
		third.kill()
		at(75)
		fourth.stop()
		at(90)
		w.restartServer(3 * time.Second)
		at(120)

		polls := most(t, w, begin, rate, 4)
		between := func(from, to int) (n int) {
			for _, p := range polls {
				if p >= time.Duration(from)*time.Second && p < time.Duration(to)*time.Second {
					n++
				}
			}
			return n
		}
		require.InDelta(t, 50*10, between(5, 15), 25, "one bridge has all of it")
		require.InDelta(t, 50*10, between(35, 45), 25, "four of them too")
		require.InDelta(t, 37.5*10, between(46, 56), 20, "what a dead one had is nobody's while it may be alive,")
		require.InDelta(t, 50*10, between(62, 72), 25, "and then the others'")
		require.InDelta(t, 50*10, between(78, 88), 25, "at once, when one has left")
		require.InDelta(t, 50*15, between(100, 115), 40, "and after the server was away")
		w.close()
	})
}

func TestABridgeThatIsCutOffKeepsItsPartAsLongAsItMayPoll(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, busy())
		begin, wire := time.Now(), &wire{}
		args := []string{"--polls-per-second=50", "--ack-wait=10s"}
		lonely, other := w.odd("bridge-1", seams{wire: wire}, args...), w.bridge("bridge-2", args...)
		w.submit(ids("req", 500)...)
		time.Sleep(5 * time.Second)
		sizes := func() [2]int { return [2]int{lonely.fleet.Size(), other.fleet.Size()} }
		require.Equal(t, [2]int{2, 2}, sizes())
		go wire.sever(40 * time.Second)
		time.Sleep(9 * time.Second)
		require.Equal(t, [2]int{2, 2}, sizes())
		time.Sleep(9 * time.Second)
		require.Equal(t, [2]int{0, 1}, sizes(), "what it held is the other's by now, and it has to join anew")
		time.Sleep(60 * time.Second)
		require.Equal(t, [2]int{2, 2}, sizes())
		w.submit(ids("more", 500)...)
		time.Sleep(10 * time.Second)
		most(t, w, begin, 50, 2)
		w.close()
	})
}

func TestBridgesThatDifferInTheFixedRateKeepToTheLeast(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, busy())
		begin := time.Now()
		slow := w.bridge("bridge-1", "--polls-per-second=20", "--max-requests=200")
		fast := w.bridge("bridge-2", "--polls-per-second=60", "--max-requests=200")
		w.submit(ids("req", 400)...)
		time.Sleep(time.Minute)
		require.Equal(t, [2]int{2, 2}, [2]int{slow.fleet.Size(), fast.fleet.Size()})
		polls := most(t, w, begin, 20, 2)
		require.InDelta(t, 20*55, len(polls), 60, "and use all of that")
		slow.stop()
		time.Sleep(10 * time.Second)
		require.Greater(t, len(most(t, w, begin, 60, 2)), len(polls)+50*8, "which is the other's own when one has left")
		w.close()
	})
}

func TestABridgeWithoutTheFixedRateWarnsOfThoseThatHaveOne(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w, log := newWorld(t, busy()), &testbed.Log{}
		without := w.odd("bridge-1", seams{log: slog.New(slog.NewTextHandler(log, nil))})
		time.Sleep(2 * time.Minute)
		_, err := w.js.KeyValue(t.Context(), w.names.BridgesBucket())
		require.ErrorIs(t, err, jetstream.ErrBucketNotFound, "it makes none")
		with := w.bridge("bridge-2", "--polls-per-second=20")
		time.Sleep(3 * time.Minute)
		require.Equal(t, 1, with.fleet.Size())
		require.Equal(t, 1, strings.Count(log.String(), "this one has none"), log)
		require.Empty(t, without.notReady())
		w.close()
	})
}

// What others keep to is asked beside the work: who may not know it is ready all the same.
func TestABridgeWithoutTheFixedRateNeedsNoPermissionForTheBucket(t *testing.T) {
	for _, missing := range []string{"$JS.API.STREAM.INFO.KV_TINKER_BRIDGES", "$JS.API.DIRECT.GET.KV_TINKER_BRIDGES.$KV.TINKER_BRIDGES.*"} {
		t.Run(missing, func(t *testing.T) {
			opts := permitting(t, strings.Replace(creating(t), fmt.Sprintf("%q", missing), `"nothing"`, 1))
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, busy())
				w.permit(opts)
				state, stop := w.serveAs()
				w.bridge("bridge-2", "--polls-per-second=20")
				time.Sleep(10 * time.Second) // until the first look
				for range 180 {
					require.Empty(t, state.notReady())
					time.Sleep(time.Second)
				}
				require.Nil(t, state.denied.last)
				stop()
				w.close()
			})
		})
	}
}

// A request of one submitter is not stuck behind all those of another.
func TestSubmittersTakeTurnsByTheFirstTokenOfTheirKey(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, busy())
		w.bridge("bridge-1", "--polls-per-second=20")
		submit := func(subject string, all []string) {
			for _, id := range all {
				w.submitMsg(&nats.Msg{Subject: subject, Data: []byte(id)})
			}
		}
		submit("tinker.submit.many.run-7", ids("many", 2000))
		time.Sleep(10 * time.Second)
		submitted := time.Now()
		submit("tinker.submit.few", ids("few", 10))
		time.Sleep(3 * time.Second)
		for _, id := range ids("few", 10) {
			require.NotZero(t, w.sim.StatsOf(id).Polls, "%s was polled within %v", id, time.Since(submitted))
		}
		w.close()
	})
}
