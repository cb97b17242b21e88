//go:build unix

package chaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// behind is a site with one bridge behind a proxy.
func behind(t *testing.T, address, prefix string, ackWait time.Duration, jobs time.Duration) (*site, *Proxy) {
	t.Helper()
	script := sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
		{State: "paused_capacity", Reason: "no trainer free", For: 300 * time.Millisecond, RetryAfterMS: 100},
		{State: "active", For: 200 * time.Millisecond, Spread: jobs},
		{Answer: "completed", ResultBytes: 2000},
	}}}}
	proxy, err := NewProxy(address)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	url := "nats://" + address
	return newSite(t, connect(t, url), url, prefix, script, ackWait, 1), proxy
}

// lostAcks stores what a bridge sends and keeps from it that it is stored, so often that the stream no longer knows the
// message by its id when it comes again.
func lostAcks(t *testing.T, row *Row) {
	const requests, unlucky = 60, 20
	times := 1
	if *full {
		times = 3 // 5 s each; message ids are kept for 10 s
	}
	_, address := natsServer(t)
	for name, sent := range map[string]message{"state": state, "result": result, "closing record": closing, "work ack": workAck} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, proxy := behind(t, address, "lost-"+name[:4], 2*time.Second, time.Second)
			rule := sent(s.names)
			kept := map[string]int{}
			rule.Answer, rule.Fate, rule.Times = true, Drop, -1
			rule.Where = func(f *Frame) bool {
				key := f.Subject + string(f.Payload)
				if _, known := kept[key]; !known && len(kept) == unlucky || kept[key] == times {
					return false
				}
				kept[key]++
				return true
			}
			dropped := proxy.On(rule)
			s.submit(requests)
			s.bridge("1", proxy.URL())
			s.settle(2 * time.Minute)
			require.GreaterOrEqual(t, proxy.Acted(dropped), unlucky)
			s.judge(row, proxy.Acted(dropped))
			for id, stats := range s.upstream.StatsByID() {
				require.Equal(t, 1, stats.Deliveries, "request %q: its result was in hand, and was asked for again", id)
			}
		})
	}
}

// halfOpen has a connection swallow everything without an end. The bridge, which still reaches the upstream, lets go of
// what it can no longer hold, and finds out and connects anew.
func halfOpen(t *testing.T, row *Row) {
	const requests = 100
	_, address := natsServer(t)
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprintf("alone %t", alone), func(t *testing.T) {
			t.Parallel()
			ackWait := 2 * time.Second
			s, proxy := behind(t, address, fmt.Sprintf("half-%t", alone), ackWait, 4*time.Second)
			s.submit(requests)
			s.bridge("1", proxy.URL())
			await(t, "some have ended and others are polled", time.Minute, func() bool { return s.stored(s.names.ResultsStream()) > requests/4 })
			proxy.Vanish()
			begin := time.Now()
			if !alone {
				s.bridge("2", s.nats)
			}
			await(t, "the bridge has connected anew", time.Minute, func() bool { return proxy.Accepted() == 2 })
			require.Less(t, time.Since(begin), 45*time.Second, "two pings without an answer, 5 s apart, and the next one is given up")
			s.settle(time.Minute)
			s.judge(row, 1)
		})
	}
}

// reconnects cuts the connection again and again while work comes in and results go out.
func reconnects(t *testing.T, row *Row) {
	const requests = 300
	storm := 4 * time.Second
	if *full {
		storm = 15 * time.Second
	}
	_, address := natsServer(t)
	for _, handshake := range []bool{false, true} {
		t.Run(fmt.Sprintf("in the handshake %t", handshake), func(t *testing.T) {
			t.Parallel()
			s, proxy := behind(t, address, fmt.Sprintf("storm-%t", handshake), 2*time.Second, storm)
			s.submit(requests)
			p := s.bridge("1", proxy.URL())
			p.said("msg=polling")
			var early *Trigger
			if handshake { // every other connection does not get over its first word
				n := 0
				early = proxy.On(Rule{Verb: "CONNECT", Times: -1, Fate: Cut, Where: func(*Frame) bool { n++; return n%2 == 1 }})
			}
			end := time.After(storm)
			cut := time.NewTicker(200 * time.Millisecond)
			defer cut.Stop()
			for ended := false; !ended; {
				select {
				case <-cut.C:
					proxy.Cut()
				case <-end:
					ended = true
				}
			}
			if early != nil {
				proxy.Off(early)
			}
			s.settle(time.Minute)
			require.Greater(t, proxy.Accepted(), 2)
			s.judge(row, proxy.Accepted()-1)
		})
	}
}

// sideBySide counts polls of one bridge between two polls of another that are so close together that the other's lease
// cannot have run out and been given anew. One of them can be, of an id: it was about to be sent when its bridge was
// stopped.
func sideBySide(polls []sim.Poll, ackWait time.Duration) (astray int) {
	last := map[string]time.Time{} // each bridge's latest poll
	previous := ""
	for _, p := range polls {
		if before, known := last[p.Caller]; known && previous != p.Caller && p.Start.Sub(before) < ackWait*9/10 {
			astray++
		}
		last[p.Caller], previous = p.Start, p.Caller
	}
	return astray
}
