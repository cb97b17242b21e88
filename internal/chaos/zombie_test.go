//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
)

const zombieAckWait = 2 * time.Second

// zombies stops a bridge for longer than its leases last, and lets it go on when another has taken over, or finished.
func zombies(t *testing.T, row *Row) {
	_, address := natsServer(t)
	t.Run("any moment", func(t *testing.T) {
		t.Parallel()
		anyMoment(t, row, address)
	})
	// What the bridge was about to say is held up with it, and arrives when it is no longer true. Deliveries reach its
	// socket, and lie there until they are somebody else's.
	for i, step := range []struct {
		name string
		at   message
		held bool
	}{
		{"delivery", delivery, false},
		{"state", state, true},
		{"result", result, true},
		{"closing record", closing, true},
		{"work ack", workAck, true},
		{"extension", extension, true},
	} {
		for _, finished := range []bool{false, true} {
			name := step.name + ", until another has taken over"
			if finished {
				name = step.name + ", until another has finished"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				lateWord(t, row, address, fmt.Sprintf("late%d-%t", i, finished), step.at, step.held, finished)
			})
		}
	}
}

func anyMoment(t *testing.T, row *Row, address string) {
	const requests = 100
	turns := 1
	if *full {
		turns = 4
	}
	s, _ := behind(t, address, "zombie", zombieAckWait, time.Duration(4+6*turns)*time.Second)
	s.submit(requests)
	bridges := []*process{s.bridge("1", s.nats)}
	await(t, "all are polled", time.Minute, func() bool { return s.upstream.Stats().Jobs == requests })
	bridges = append(bridges, s.bridge("2", s.nats))
	for turn := range turns {
		zombie := bridges[turn%2]
		zombie.signal(syscall.SIGSTOP)
		stopped := time.Now()
		open := s.open()
		await(t, "the other polls what is left", time.Minute, func() bool {
			return time.Since(stopped) > zombieAckWait*5/4 && s.takenOver(fmt.Sprint(2-turn%2), stopped, open)
		})
		zombie.signal(syscall.SIGCONT)
	}
	s.settle(2 * time.Minute)
	s.judge(row, turns)
}

// lateWord stops bridge 1 at a message's tenth occurrence.
func lateWord(t *testing.T, row *Row, address, prefix string, at message, hold, finished bool) {
	const requests = 30
	s, proxy := behind(t, address, prefix, zombieAckWait, 8*time.Second)
	s.submit(requests)
	var zombie *process
	armed, stopped, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release() // a proxy that waits could not be closed
	proxy.On(Rule{Verb: "CONNECT", Before: func(*Frame) { <-armed }})
	rule := at(s.names)
	rule.Nth, rule.Before = 10, func(*Frame) {
		zombie.signal(syscall.SIGSTOP)
		close(stopped)
		if hold {
			<-goOn
		}
	}
	proxy.On(rule)
	zombie = s.bridge("1", proxy.URL())
	close(armed)
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		require.Fail(t, "the point was never reached")
	}
	since := time.Now()
	open := s.open()
	s.bridge("2", s.nats)
	await(t, "bridge 2 has taken over, or finished", time.Minute, func() bool {
		if finished {
			state := s.state(s.names.WorkStream())
			return state != nil && state.Msgs == 0
		}
		return time.Since(since) > zombieAckWait*5/4 && s.takenOver("2", since, open)
	})
	zombie.signal(syscall.SIGCONT)
	release()
	s.settle(time.Minute)
	s.judge(row, 1)
}

// twoHolders submits each id twice, so that two bridges hold it by right, and holds up states that one of them has seen
// until the other has logged what came after.
func twoHolders(t *testing.T, row *Row) {
	const requests, enough = 20, 10
	const ackWait = 10 * time.Second // bridge 1 keeps its leases, though extensions stand behind what is held up
	_, address := natsServer(t)
	proxy, err := NewProxy(address)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	var steps []sim.Step
	for i := range 16 {
		steps = append(steps, sim.Step{State: "active", Reason: fmt.Sprintf("phase %02d", i), For: 600 * time.Millisecond, Spread: 600 * time.Millisecond})
	}
	steps = append(steps, sim.Step{Answer: "completed"})
	url := "nats://" + address
	s := newSite(t, connect(t, url), url, "twice", sim.Script{Profiles: []sim.Profile{{Name: "phases", Steps: steps}}}, ackWait, 1)
	// Jobs begin when both poll them all, however long a bridge takes to start.
	var arrived atomic.Int32
	begin := make(chan struct{})
	around := func(w http.ResponseWriter, r *http.Request, upstream http.Handler) {
		arrived.Add(1)
		select {
		case <-begin:
			upstream.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
	s.around.Store(&around)
	s.submit(requests)
	s.bridge("1", proxy.URL(), "--max-requests", fmt.Sprint(requests))
	await(t, "bridge 1 is full", time.Minute, func() bool { return arrived.Load() >= requests })
	s.submit(requests)
	s.bridge("2", s.nats)
	await(t, "bridge 2 polls them too", time.Minute, func() bool { return arrived.Load() >= 2*requests })

	states, err := s.js.Stream(t.Context(), s.names.StatesStream())
	require.NoError(t, err)
	stale := 0
	rule := state(s.names)
	rule.Nth, rule.Times = requests, 10*requests
	rule.Before = func(f *Frame) {
		if stale < enough && until(1500*time.Millisecond, func() bool {
			last, err := states.GetLastMsgForSubject(t.Context(), strings.TrimPrefix(f.Subject, "ingest."))
			return err == nil && reason(last.Data) > reason(f.Payload)
		}) {
			stale++
		}
	}
	proxy.On(rule)
	close(begin)
	s.settle(time.Minute)
	proxy.Close() // nothing is held up any more
	require.NotZero(t, stale)
	s.judge(row, stale)
}

// reason is that of a state event's body.
func reason(body []byte) string {
	var state publish.StateBody
	_ = json.Unmarshal(body, &state)
	return string(state.Reason)
}

// open are the ids without a result.
func (s *site) open() map[string]bool {
	open := map[string]bool{}
	ended := s.ended()
	for _, submission := range s.accepted {
		if !ended[submission.ID] {
			open[submission.ID] = true
		}
	}
	return open
}

// takenOver reports whether a bridge has polled all these ids since then, but for those that have ended.
func (s *site) takenOver(bridge string, since time.Time, ids map[string]bool) bool {
	left := maps.Clone(ids)
	for _, p := range s.upstream.Polls() {
		if p.Caller == bridge && p.Start.After(since) {
			delete(left, p.ID)
		}
	}
	open := s.open()
	for id := range left {
		if open[id] {
			return false
		}
	}
	return true
}

func TestPollsSideBySideAreFoundAndAHandoverIsNot(t *testing.T) {
	at := func(bridge string, ms int) sim.Poll {
		return sim.Poll{Caller: bridge, Start: time.UnixMilli(int64(ms))}
	}
	const ackWait = 2 * time.Second
	require.Zero(t, sideBySide([]sim.Poll{at("1", 0), at("1", 300), at("2", 2500), at("2", 2800), at("1", 5000)}, ackWait))
	require.Equal(t, 1, sideBySide([]sim.Poll{at("2", 0), at("1", 100), at("2", 300), at("2", 600)}, ackWait))
	require.Equal(t, 4, sideBySide([]sim.Poll{at("2", 0), at("1", 100), at("2", 300), at("1", 400), at("2", 600), at("1", 700)}, ackWait))
}
