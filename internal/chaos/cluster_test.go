//go:build unix

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
)

// cluster is three NATS servers, each a process, that keep three copies of everything.
type cluster struct {
	t     *testing.T
	nodes []*node
}

type node struct {
	*process
	t    *testing.T
	name string
	url  string
	args []string
}

// newCluster starts one; config is what servers are told besides how they find each other.
func newCluster(t *testing.T, config string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	ports := freePorts(t, 6)
	var routes []string
	for _, port := range ports[3:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	dir := t.TempDir()
	for i := range 3 {
		n := &node{t: t, name: fmt.Sprintf("n%d", i+1), url: fmt.Sprintf("nats://127.0.0.1:%d", ports[i])}
		n.args = []string{
			"--server_name", n.name, "--cluster_name", "chaos", "--jetstream", "--store_dir", filepath.Join(dir, n.name),
			"--addr", "127.0.0.1", "--port", fmt.Sprint(ports[i]), "--cluster", routes[i], "--routes", strings.Join(routes, ","),
			"--config", filepath.Join(dir, n.name+".conf"),
		}
		n.configure(config)
		c.nodes = append(c.nodes, n)
		n.start()
	}
	for _, n := range c.nodes {
		n.said("Server is ready")
	}
	return c
}

func (n *node) start() { n.process = start(n.t, "nats-server "+n.name, natsProgram, n.args...) }

// freePorts finds ports for servers that have to come back to them: below those that systems give to connections.
func freePorts(t *testing.T, count int) (ports []int) {
	t.Helper()
	for len(ports) < count {
		port := 15000 + rand.IntN(17000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer listener.Close()
		ports = append(ports, port)
	}
	return ports
}

func (c *cluster) urls() string {
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, n.url)
	}
	return strings.Join(urls, ",")
}

// info asks for a stream, nil when nobody answers at the moment.
func (s *site) info(stream string) *jetstream.StreamInfo {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	found, err := s.js.Stream(ctx, stream)
	if err != nil {
		return nil
	}
	return found.CachedInfo()
}

// leader waits until a stream has a leader, which is not one that has just been taken away.
func (c *cluster) leader(s *site, stream string, not *node) (leader *node) {
	c.t.Helper()
	await(c.t, stream+" has a leader", time.Minute, func() bool {
		info := s.info(stream)
		if info == nil || info.Cluster == nil {
			return false
		}
		for _, n := range c.nodes {
			if n.name == info.Cluster.Leader && n != not {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// whole waits until every stream has its three copies, all up to date: only then may the next node be taken away.
func (c *cluster) whole(s *site) {
	c.t.Helper()
	for _, stream := range s.streams() {
		await(c.t, stream+" has three copies", time.Minute, func() bool {
			info := s.info(stream)
			if info == nil || info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != 2 {
				return false
			}
			for _, r := range info.Cluster.Replicas {
				if !r.Current || r.Offline {
					return false
				}
			}
			return true
		})
	}
}

func (s *site) streams() []string {
	return []string{s.names.WorkStream(), s.names.StatesStream(), s.names.ResultsStream()}
}

// clusterLeaders kills the leaders of the streams in turn, and stops one for a while, under two bridges at work.
func clusterLeaders(t *testing.T, row *Row) {
	requests, faults, spread, gap := 1500, 2, 14*time.Second, 2*time.Second
	if *full {
		requests, faults, spread, gap = 10_000, 10, 100*time.Second, 10*time.Second
	}
	// A lease has to be longer than the election of a leader, up to 10 s, in which nobody can extend it.
	const ackWait = 15 * time.Second
	c := newCluster(t, "")
	nc := connect(t, c.urls())
	script := sim.Script{Profiles: []sim.Profile{
		{Name: "active", Weight: 3, Steps: []sim.Step{{State: "active", For: time.Second, Spread: spread}, {Answer: "completed", ResultBytes: 600}}},
		{Name: "paused", Weight: 1, Steps: []sim.Step{
			{State: "paused_rate_limit", Reason: "tokens per minute", For: time.Second, Spread: spread / 2},
			{State: "active", For: time.Second, Spread: spread / 2}, {Answer: "completed", ResultBytes: 600},
		}},
	}}
	s := newSite(t, nc, c.urls(), "tinker", script, ackWait, 3)
	s.gap, s.forgets = 2*gap, true
	var listeners []*history.Listener
	for _, n := range c.nodes {
		l, err := history.Listen(connect(t, n.url), s.names, "the subscriber at "+n.name)
		require.NoError(t, err)
		listeners = append(listeners, l)
	}
	s.pace = []string{"--backoff-initial", "500ms", "--backoff-max", gap.String(), "--replicas", "3"}
	s.bridge("1", s.nats)
	s.bridge("2", s.nats)
	s.submit(requests)
	results := s.names.ResultsStream()
	await(t, "results come in", time.Minute, func() bool { return s.stored(results) > requests/50 })
	begin := time.Now()
	injected := 0
	for i := range faults {
		if s.stored(results) == requests {
			break // a slow machine may spend the whole time on fewer
		}
		stream := s.streams()[i%3]
		c.whole(s)
		victim := c.leader(s, stream, nil)
		injected++
		stopped := i%4 == 1
		if stopped {
			victim.signal(syscall.SIGSTOP)
		} else {
			victim.kill()
		}
		for _, stream := range s.streams() {
			c.leader(s, stream, victim)
		}
		had := s.stored(results)
		await(t, "results come in without "+victim.name, time.Minute, func() bool {
			has := s.stored(results)
			return has == requests || has > had+requests/200
		})
		t.Logf("%.1f s: %s, which led %s, went (stopped: %t), and results came in again", time.Since(begin).Seconds(), victim.name, stream, stopped)
		if stopped {
			victim.signal(syscall.SIGCONT)
		} else {
			victim.start()
		}
	}
	c.whole(s)
	t.Logf("%.1f s: all nodes are there", time.Since(begin).Seconds())
	s.settle(2 * time.Minute)
	t.Logf("%.1f s: no work is left", time.Since(begin).Seconds())
	var seen []history.Sighting
	for _, l := range listeners {
		seen = append(seen, l.Sightings()...)
	}
	require.NotEmpty(t, seen)
	s.judge(row, injected, seen...)
}

// serverKills kills the one server that there is, again and again, under two bridges at work, each time when it has just
// delivered something. It writes down ten times a second or so who was delivered what, and gives what it forgot to whoever
// asks, beside whoever has it.
func serverKills(t *testing.T, row *Row) {
	requests, kills := 400, 2
	if *full {
		requests, kills = 2000, 6
	}
	const ackWait = 3 * time.Second
	port := fmt.Sprint(freePorts(t, 1)[0])
	server := &node{t: t, name: "alone", url: "nats://127.0.0.1:" + port, args: []string{
		"--jetstream", "--store_dir", t.TempDir(), "--addr", "127.0.0.1", "--port", port,
	}}
	server.start()
	server.said("Server is ready")
	s := newSite(t, connect(t, server.url), server.url, "tinker", sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
		{State: "paused_capacity", Reason: "no trainer free", For: ackWait, Spread: ackWait, RetryAfterMS: 200},
		{State: "active", For: 3 * ackWait, Spread: ackWait}, {Answer: "completed", ResultBytes: 600},
	}}}}, ackWait, 1)
	s.forgets = true
	s.bridge("1", server.url, "--max-requests", fmt.Sprint(requests*2/3))
	s.bridge("2", server.url, "--max-requests", fmt.Sprint(requests*2/3))
	for kill := range kills {
		s.submitFrom(kill*(requests/kills), requests/kills)
		await(t, "some of them are polled", time.Minute, func() bool { return s.upstream.Stats().Jobs > kill*(requests/kills) })
		server.kill()
		server.start()
		server.said("Server is ready")
		await(t, "it answers", time.Minute, func() bool { return s.state(s.names.WorkStream()) != nil })
	}
	s.settle(time.Minute)
	s.judge(row, kills)
}
