//go:build unix

package chaos

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// lameDuck has servers go as they do when somebody upgrades them, under two bridges at work and an upstream that hands each
// result out once: one that is alone, and those of a cluster one after the other.
func lameDuck(t *testing.T, row *Row) {
	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		server := configured(t, fmt.Sprintf("jetstream { store_dir: %q }, lame_duck_grace_period: 10s", t.TempDir()))
		s := leaving(t, server.url, server.url, 1, 3*time.Second)
		server.signal(syscall.SIGUSR2)
		for _, p := range s.bridges {
			p.said("the NATS server is about to stop (lame duck mode)")
			p.notReady("the NATS server is about to stop (lame duck mode): ")
		}
		for _, p := range s.bridges {
			p.notReady("not connected to NATS")
		}
		server.gone()
		server.start()
		s.settle(time.Minute)
		require.Equal(t, map[string]int{"completed": len(s.accepted)}, s.judge(row, 1).Endings)
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, "lame_duck_grace_period: 1s")
		s := leaving(t, c.urls(), c.nodes[0].url, 3, 15*time.Second)
		ducks := 1
		if *full {
			ducks = 3
		}
		for _, n := range c.nodes[:ducks] {
			c.whole(s)
			n.signal(syscall.SIGUSR2)
			n.gone()
			if n == c.nodes[0] { // the only one that bridge 1 has been told of
				require.NotEqual(t, n.url, s.bridges[0].said(`msg="connected to NATS again" url=`))
			}
			n.start()
			n.said("Server is ready")
			t.Logf("%s has gone and come back; %d results are stored", n.name, s.stored(s.names.ResultsStream()))
		}
		c.whole(s)
		s.settle(2 * time.Minute)
		require.Equal(t, map[string]int{"completed": len(s.accepted)}, s.judge(row, ducks).Endings)
	})
}

// leaving is a site with two bridges at work; the first knows one server.
func leaving(t *testing.T, urls, first string, replicas int, jobs time.Duration) *site {
	t.Helper()
	const requests = 300
	s := newSite(t, connect(t, urls), urls, "tinker", sim.Script{
		Style: sim.Style{Retention: "once"},
		Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "paused_capacity", Reason: "no trainer free", For: time.Second, RetryAfterMS: 200},
			{State: "active", For: time.Second, Spread: jobs}, {Answer: "completed", ResultBytes: 600},
		}}},
	}, 15*time.Second, replicas)
	s.pace = append(s.pace, "--replicas", fmt.Sprint(replicas), "--http", "127.0.0.1:0", "--max-requests", fmt.Sprint(requests*2/3))
	s.submit(requests)
	s.bridge("1", first)
	s.bridge("2", urls)
	await(t, "results come in", time.Minute, func() bool { return s.stored(s.names.ResultsStream()) > requests/20 })
	return s
}

// gone waits until a server that was told to go has gone.
func (n *node) gone() {
	n.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(time.Minute):
		require.Fail(n.t, "does not go", n.name)
	}
}
