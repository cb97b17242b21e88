//go:build unix

package chaos

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
)

// point is a step of the protocol at which a bridge is killed.
type point struct {
	name  string
	arm   func(c *cell)
	slow  bool // jobs outlive the first extension of their leases
	drain bool // the bridge is told to stop first
	large bool // results go to the object store, in several chunks
}

const (
	crashRequests = 25
	crashAckWait  = time.Second
	largeResult   = 1_200_000 // three chunks at least, whatever size of chunk below 600 KB the bridge chooses
)

var points = []point{
	{name: "a delivery is read", arm: delivery.read},
	{name: "a poll is sent", arm: func(c *cell) { c.atPoll(false) }},
	{name: "an answer is read", arm: func(c *cell) { c.atPoll(true) }},
	{name: "a state is about to be sent", arm: state.unsent},
	{name: "a state is sent", arm: state.unacked},
	{name: "a state is acked", arm: state.acked},
	{name: "a result is about to be sent", arm: result.unsent},
	{name: "a result is sent", arm: result.unacked},
	{name: "a result is acked", arm: result.acked},
	{name: "a closing record is about to be sent", arm: closing.unsent},
	{name: "a closing record is sent", arm: closing.unacked},
	{name: "a closing record is acked", arm: closing.acked},
	{name: "a work ack is about to be sent", arm: workAck.unsent},
	{name: "a work ack is sent", arm: workAck.unacked},
	{name: "a work ack is confirmed", arm: workAck.acked},
	{name: "leases are extended", arm: extension.unsent, slow: true},
	{name: "a drain hands back", arm: handBack.unsent, slow: true, drain: true},
	{name: "a first chunk is sent", arm: chunk("first").unacked, large: true},
	{name: "a middle chunk is sent", arm: chunk("middle").unacked, large: true},
	{name: "a last chunk is sent", arm: chunk("last").unacked, large: true},
	{name: "an object is about to be named", arm: object.unsent, large: true},
	{name: "an object is named", arm: object.unacked, large: true},
	{name: "an uploaded result is about to be sent", arm: result.unsent, large: true},
}

// message is what a bridge sends, or gets, at a point.
type message func(names publish.Names) Rule

var (
	delivery  message = func(n publish.Names) Rule { return Rule{Direction: ToClient, Subject: n.Submit()} }
	state             = event("state")
	result            = event("result")
	closing           = event("closing")
	workAck           = settlement("+ACK")
	extension         = settlement("+WPI")
	handBack          = settlement("-NAK")
	object    message = func(n publish.Names) Rule { return Rule{Verb: "PUB", Subject: "$O." + n.LargeBucket() + ".M.*"} }
)

func event(kind string) message {
	return func(n publish.Names) Rule {
		return Rule{Verb: "PUB", Subject: "ingest." + n.Prefix() + ".*", Header: "ce-type: futurebridge." + kind + "\r\n"}
	}
}

func settlement(how string) message {
	return func(n publish.Names) Rule {
		return Rule{Verb: "PUB", Subject: "$JS.ACK." + n.WorkStream() + ".*", Payload: how}
	}
}

// chunk is the first of an object, its last, or the first of those between them.
func chunk(place string) message {
	return func(n publish.Names) Rule {
		sent := map[string]int{} // bytes
		middle := map[string]bool{}
		return Rule{Verb: "PUB", Subject: "$O." + n.LargeBucket() + ".C.*", Where: func(f *Frame) bool {
			first := sent[f.Subject] == 0
			sent[f.Subject] += len(f.Payload)
			switch place {
			case "first":
				return first
			case "last":
				return sent[f.Subject] == largeResult
			}
			between := !first && sent[f.Subject] < largeResult && !middle[f.Subject]
			middle[f.Subject] = middle[f.Subject] || between
			return between
		}}
	}
}

// read: the bridge has read the message, and dies.
func (m message) read(c *cell) {
	rule := m(c.names)
	rule.After = c.kill
	c.on(rule)
}

// unsent: the bridge dies just before the message reaches the server.
func (m message) unsent(c *cell) {
	rule := m(c.names)
	rule.Before, rule.Fate = func(*Frame) { c.kill() }, Cut
	c.on(rule)
}

// unacked: the server has stored the message and said so, but the bridge dies before it hears that.
func (m message) unacked(c *cell) {
	rule := m(c.names)
	rule.Answer, rule.Before, rule.Fate = true, func(*Frame) { c.kill() }, Drop
	c.on(rule)
}

// acked: the bridge has read the server's ack, and dies.
func (m message) acked(c *cell) {
	rule := m(c.names)
	rule.Answer, rule.After = true, c.kill
	c.on(rule)
}

// cell is one point at one occurrence.
type cell struct {
	*site
	proxy *Proxy
	nth   int
	first *process
}

func (c *cell) on(rule Rule) {
	rule.Nth = c.nth
	c.proxy.On(rule)
}

func (c *cell) kill() { c.first.kill() }

// atPoll kills when the upstream has the poll, or when the bridge has read the answer's last byte.
func (c *cell) atPoll(answered bool) {
	var polls atomic.Int64
	around := func(w http.ResponseWriter, r *http.Request, upstream http.Handler) {
		mine := polls.Add(1) == int64(c.nth)
		if !mine {
			upstream.ServeHTTP(w, r)
			return
		}
		if answered {
			deliver(w, r, upstream)
		}
		c.kill()
	}
	c.around.Store(&around)
}

// deliver returns when the client has read the whole answer: it is told that nothing follows, and closes the connection.
func deliver(w http.ResponseWriter, r *http.Request, upstream http.Handler) {
	recorded := httptest.NewRecorder()
	upstream.ServeHTTP(recorded, r)
	answer := recorded.Result()
	answer.ContentLength, answer.Close = int64(recorded.Body.Len()), true
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_ = answer.Write(conn)
	_, _ = io.Copy(io.Discard, conn)
}

func crashScript(p point) sim.Script {
	active := sim.Step{State: "active", For: 200 * time.Millisecond, Spread: 300 * time.Millisecond}
	if p.slow {
		active.For = 1200 * time.Millisecond
	}
	if p.drain { // on a slow machine too there is something to hand back when the signal comes
		active.For = 8 * time.Second
	}
	completed := sim.Step{Answer: "completed", ResultBytes: 400}
	if p.large {
		completed.ResultBytes = largeResult
	}
	paused := sim.Step{State: "paused_rate_limit", Reason: "tokens per minute", For: 200 * time.Millisecond, RetryAfterMS: 100}
	return sim.Script{Profiles: []sim.Profile{
		{Name: "active", Steps: []sim.Step{active, completed}},
		{Name: "paused", Steps: []sim.Step{paused, active, completed}},
	}}
}

// crashMatrix kills a bridge at each point, at its first, its tenth and a random occurrence, and has another one finish.
func crashMatrix(t *testing.T, row *Row) {
	_, address := natsServer(t)
	nc := connect(t, "nats://"+address)
	random := chance("crash")
	for i, p := range points {
		occurrences := []int{1, 10, 11 + random.IntN(10)}
		if !*full { // in a slice each point has its turn, at one of the occurrences; at another one with the next seed
			at := (uint64(i) + *seed) % 3
			occurrences = occurrences[at : at+1]
		}
		for _, nth := range occurrences {
			t.Run(fmt.Sprintf("%s, %d", p.name, nth), func(t *testing.T) {
				t.Parallel()
				prefix, ackWait := fmt.Sprintf("cell%d-%d", i, nth), crashAckWait
				if p.drain { // what is handed back is still held, on a slow machine too
					ackWait = 10 * time.Second
				}
				crash(t, row, newSite(t, nc, "nats://"+address, prefix, crashScript(p), ackWait, 1), p, nth)
			})
		}
	}
}

func crash(t *testing.T, row *Row, s *site, p point, nth int) {
	proxy, err := NewProxy(strings.TrimPrefix(s.nats, "nats://"))
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	c := &cell{site: s, proxy: proxy, nth: nth}
	var inline []string
	if p.large {
		inline = []string{"--max-inline-result", "64KiB"}
	}
	s.submit(crashRequests)

	armed := make(chan struct{})
	proxy.On(Rule{Verb: "CONNECT", Before: func(*Frame) { <-armed }}) // c.first is written by then
	p.arm(c)
	c.first = s.bridge("1", proxy.URL(), inline...)
	close(armed)
	if p.drain {
		await(t, "all are polled", time.Minute, func() bool { return s.upstream.Stats().Jobs == crashRequests })
		c.first.signal(syscall.SIGTERM)
	}
	select {
	case <-c.first.exited:
	case <-time.After(time.Minute):
		require.Fail(t, "the point was never reached")
	}
	require.ErrorContains(t, c.first.err, "killed", "the bridge ended before the point was reached")

	ended := s.ended()
	restart := time.Now()
	s.bridge("2", s.nats, inline...)
	s.settle(time.Minute)
	s.judge(row, 1)
	for _, r := range s.read(s.names.ResultsStream()) {
		require.Equal(t, p.large, r.Large != nil, r.RequestID)
	}
	for _, poll := range s.upstream.Polls() {
		if poll.Start.After(restart) {
			require.False(t, ended[poll.ID], "request %q had its result stored, and was polled again", poll.ID)
		}
	}
	require.LessOrEqual(t, s.upstream.Stats().MaxPollsNowOfAnID, 2)
}
