package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

var (
	soakSeed  = flag.Uint64("seed", 0, "play this one hour of misfortune again")
	soakSeeds = flag.Int("seeds", 2, "how many hours of misfortune to play")
	soakTime  = flag.Int("minutes", 60, "how many minutes an hour of misfortune has")
	soakFor   = flag.Duration("soak", 0, "play hours of misfortune with new seeds until so much real time has passed")
)

// TestAnHourOfMisfortune is scripted life with random faults, in virtual time: bridges are killed, drain, are cut off from
// their server and come back; the server restarts and refuses; the upstream has outages, breaks answers off, and hands some
// results out once. The seed is in each test's name; -seed plays the same faults again, -seeds more hours.
func TestAnHourOfMisfortune(t *testing.T) {
	seeds := []uint64{*soakSeed}
	if *soakSeed == 0 {
		seeds = nil
		for n := range *soakSeeds {
			seeds = append(seeds, uint64(n+1))
		}
		seeds[len(seeds)-1] = rand.Uint64N(1_000_000) // a new one each time
	}
	play := func(seed uint64) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) { newHour(t, seed).play() })
			if t.Failed() {
				t.Logf("go test ./cmd/bridge -run TestAnHourOfMisfortune -seed %d -minutes %d", seed, *soakTime)
			}
		})
	}
	for _, seed := range seeds {
		play(seed)
	}
	for begin := time.Now(); time.Since(begin) < *soakFor && !t.Failed(); {
		play(rand.Uint64N(1_000_000))
	}
}

// hour is one such hour.
type hour struct {
	*world
	random  *rand.Rand
	bridges [2]*running
	wires   [2]*wire
	started int
	told    map[string]int // faults by kind
}

const hourAckWait = 30 * time.Second

func newHour(t *testing.T, seed uint64) *hour {
	random := rand.New(rand.NewPCG(seed, 0))
	script := everyday()
	script.Seed = seed
	script.Profiles = append(script.Profiles,
		sim.Profile{Name: "once", Match: "once-*", Style: &sim.Style{Retention: "once"}, Steps: []sim.Step{
			{State: "active", For: 10 * time.Second, Spread: time.Minute}, {Answer: "completed", ResultBytes: 2000}}},
		sim.Profile{Name: "once and held", Match: "once-*", Style: &sim.Style{Retention: "once", Hold: 40 * time.Second}, Steps: []sim.Step{
			{State: "paused_capacity", Reason: "no trainer free", For: 20 * time.Second, Spread: time.Minute}, {Answer: "completed", ResultBytes: 700}}},
		sim.Profile{Name: "large", Match: "large-*", Style: &sim.Style{MetadataThreshold: 100_000}, Steps: []sim.Step{
			{State: "active", For: 30 * time.Second}, {Answer: "completed", ResultBytes: 700_000}}},
		sim.Profile{Name: "never", Match: "never-*", Steps: []sim.Step{
			{State: "paused_rate_limit", For: 30 * time.Second, RetryAfterMS: 4000}, {State: "active", For: time.Minute}, {State: "paused_capacity"}}},
		sim.Profile{Name: "slow to send", Match: "drip-*", Steps: []sim.Step{
			{State: "active", For: 20 * time.Second}, {Answer: "completed", ResultBytes: 30_000, Drip: 8 * time.Second}}},
	)
	outage := func(with *sim.Step) sim.Outage {
		return sim.Outage{After: time.Duration(random.IntN(*soakTime*50)) * time.Second, For: time.Duration(30+random.IntN(150)) * time.Second, With: with}
	}
	script.Outages = []sim.Outage{outage(&sim.Step{Answer: "status", Status: 503}), outage(nil)}
	script.Noise = []sim.Noise{
		{Rate: 0.02, With: &sim.Step{Wire: "reset"}}, {Rate: 0.02, With: &sim.Step{Answer: "status", Status: 502}},
		{Rate: 0.01, With: &sim.Step{Wire: "truncated"}}, {Rate: 0.01, With: &sim.Step{Answer: "status", Status: 429, RetryAfterMS: 3000}},
	}
	h := &hour{world: newWorld(t, script), random: random, told: map[string]int{}}
	h.regains = true
	// A server that is away, a bridge that is dead and a lease that is over: all of it may lie before a deadline's end.
	h.run.DeadlineSlack = 3 * time.Minute
	h.run.WantFaults, h.run.Faults = true, len(script.Outages)
	h.run.MayLose = func(id string) bool { return strings.HasPrefix(id, "once-") }
	for n := range h.bridges {
		h.start(n)
	}
	return h
}

func (h *hour) start(n int) {
	h.started++
	h.wires[n] = &wire{}
	h.bridges[n] = h.odd(fmt.Sprint("bridge-", h.started), seams{wire: h.wires[n]}, "--ack-wait="+hourAckWait.String())
}

func (h *hour) seconds(most int) time.Duration {
	return time.Duration(h.random.IntN(most*1000)) * time.Millisecond
}

func (h *hour) play() {
	for minute := range *soakTime {
		if minute < *soakTime*5/6 {
			h.submitSome(minute)
		}
		time.Sleep(h.seconds(60))
		h.misfortune()
	}
	for _, kind := range []string{"kill", "drain", "server restart", "cut off", "deaf", "upstream restart", "results refused", "states refused"} {
		h.run.Faults += h.told[kind]
	}
	h.settled(30 * time.Minute)
	report := h.check()
	h.t.Logf("%d requests, %d events, %d polls, endings %v, faults %v", report.Accepted, report.Events, report.Polls, report.Endings, h.told)
	require.Less(h.t, report.Endings["lost"], report.Endings["completed"]/10, "that is not the rule")
	h.close()
}

func (h *hour) submitSome(minute int) {
	name := func(kind string, n int) string { return fmt.Sprintf("%s%d-%d", kind, minute, n) }
	all := ids(name("req", 0), 8)
	h.submit(all...)
	for n := range 2 {
		h.submit(name("once-", n))
		h.submitFor(name("never-", n), time.Duration(5+h.random.IntN(600))*time.Second)
	}
	h.submit(name("drip-", 0))
	if minute%10 == 0 {
		h.submit(name("large-", 0))
	}
	again := all[h.random.IntN(len(all))]
	h.submitFor(again, time.Duration(60+h.random.IntN(3600))*time.Second)
}

// misfortune happens, or does not.
func (h *hour) misfortune() {
	n := h.random.IntN(2)
	tell := func(kind string) { h.told[kind]++ }
	switch h.random.IntN(16) {
	case 0, 1:
		tell("kill")
		h.bridges[n].kill()
		time.Sleep(h.seconds(60))
		h.start(n)
	case 2:
		tell("drain")
		h.bridges[n].stop()
		h.start(n)
	case 3, 4:
		tell("server restart")
		h.restartServer(h.seconds(20))
	case 5:
		tell("cut off")
		h.wires[n].sever(h.seconds(90))
	case 6:
		tell("deaf")
		h.wires[n].deafen(h.seconds(20))
	case 7:
		tell("upstream restart")
		h.sim.Restart(h.seconds(30), false)
	case 8:
		tell("results refused")
		h.refuse(h.names.ResultsStream())
		time.Sleep(h.seconds(60))
		h.unrefuse(h.names.ResultsStream())
	case 9:
		tell("states refused")
		h.refuse(h.names.StatesStream())
		time.Sleep(h.seconds(60))
		h.unrefuse(h.names.StatesStream())
	}
}
