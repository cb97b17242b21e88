//go:build unix

package chaos

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/client"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
	"futurebridge/internal/publish"
)

// site is what bridges work in: streams of their own on a NATS server that others may share, an upstream, and requests.
type site struct {
	t        *testing.T
	names    publish.Names
	nats     string // URLs
	ackWait  time.Duration
	nc       *nats.Conn
	js       jetstream.JetStream
	upstream *sim.Sim
	url      string // of the upstream
	// around, if set, stands between the bridges and the upstream.
	around   atomic.Pointer[func(w http.ResponseWriter, r *http.Request, upstream http.Handler)]
	accepted []history.Submission
	bridges  []*process
	pace     []string      // flags: how often bridges poll
	gap      time.Duration // longer than any wait between two polls; 0: AckWait
	forgets  bool          // its server is killed, forgets deliveries, and two bridges may have an id for as long as a lease
}

// caller is the header by which the upstream tells the bridges apart.
const caller = "X-Bridge"

// newSite sets up the streams of a prefix. It may share nc with others.
func newSite(t *testing.T, nc *nats.Conn, urls, prefix string, script sim.Script, ackWait time.Duration, replicas int) *site {
	t.Helper()
	s := &site{t: t, nats: urls, nc: nc, ackWait: ackWait, pace: []string{"--backoff-initial", "50ms", "--backoff-max", "300ms"},
		upstream: sim.New(script, sim.WithPollLog(), sim.WithCallerHeader(caller))}
	var err error
	s.names, err = publish.NewNames(prefix)
	require.NoError(t, err)
	s.js, err = jetstream.New(nc)
	require.NoError(t, err)
	await(t, "streams stand", time.Minute, func() bool { // a cluster that has no leader yet does not even answer
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = publish.Ensure(ctx, s.js, s.names, publish.Options{AckWait: &ackWait, Replicas: &replicas})
		return err == nil
	})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.url = "http://" + listener.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if around := s.around.Load(); around != nil {
			(*around)(w, r, s.upstream)
			return
		}
		s.upstream.ServeHTTP(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return s
}

func connect(t testing.TB, urls string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(urls, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(10*time.Second),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2)) // a server that was stopped says nothing
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// bridge runs a bridge with a NATS connection by these URLs.
func (s *site) bridge(name, urls string, args ...string) *process {
	s.t.Helper()
	p := start(s.t, "bridge "+name, bridgeProgram, slices.Concat([]string{
		"serve", "--nats", urls, "--prefix", s.names.Prefix(), "--upstream", s.url, "--http", "none",
		"--upstream-header", caller + "=" + name, "--cadence", "fixed",
	}, s.pace, args)...)
	s.bridges = append(s.bridges, p)
	return p
}

// submit hands over so many requests and returns when all are accepted.
func (s *site) submit(n int) {
	s.t.Helper()
	s.submitFrom(0, n)
}

// submitFrom is submit for requests whose numbers begin with first.
func (s *site) submitFrom(first, n int) {
	s.t.Helper()
	c, err := client.New(s.nc, client.WithPrefix(s.names.Prefix()))
	require.NoError(s.t, err)
	begin := time.Now()
	for r, err := range c.SubmitAll(s.t.Context(), func(yield func(client.Request) bool) {
		for i := range n {
			if !yield(client.Request{ID: fmt.Sprintf("req-%d", first+i)}) {
				return
			}
		}
	}) {
		require.NoError(s.t, err)
		s.accepted = append(s.accepted, history.Submission{ID: r.ID, Sent: begin, Acked: time.Now()})
	}
}

// state is what a stream holds; nil when it cannot be asked at the moment.
func (s *site) state(stream string) *jetstream.StreamState {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Second)
	defer cancel()
	found, err := s.js.Stream(ctx, stream)
	if err != nil {
		return nil
	}
	return &found.CachedInfo().State
}

func (s *site) stored(stream string) int {
	if state := s.state(stream); state != nil {
		return int(state.Msgs)
	}
	return 0
}

// settle waits until no work is left, and stops the bridges.
func (s *site) settle(within time.Duration) {
	s.t.Helper()
	var work history.Work
	defer func() { s.t.Logf("work that is left: %+v", work) }()
	await(s.t, "no work is left", within, func() bool { // a server that was killed may have forgotten that an ack came
		ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Second)
		defer cancel()
		var err error
		work, err = history.ReadWork(ctx, s.js, s.names)
		return err == nil && work == history.Work{}
	})
	for _, p := range s.bridges {
		select {
		case <-p.exited:
		default:
			p.said("msg=polling") // else it does not know yet how to stop
			p.stop()
		}
	}
}

func (s *site) read(stream string) []history.Record {
	s.t.Helper()
	records, err := history.Read(s.t.Context(), s.js, s.names, stream)
	require.NoError(s.t, err)
	return records
}

// ended are the ids that have a result, while others may still get theirs.
func (s *site) ended() map[string]bool {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), s.names.ResultsStream())
	require.NoError(s.t, err)
	info, err := stream.Info(s.t.Context(), jetstream.WithSubjectFilter(s.names.Results()))
	require.NoError(s.t, err)
	ended := map[string]bool{}
	for subject := range info.State.Subjects {
		id, ok := publish.ID(subject[strings.LastIndexByte(subject, '.')+1:])
		require.True(s.t, ok)
		ended[id] = true
	}
	return ended
}

// judge reads back what is stored, once all bridges have ended, and enters the verdict into the row. seen is what
// core subscribers saw.
func (s *site) judge(row *Row, faults int, seen ...history.Sighting) history.Report {
	s.t.Helper()
	run := history.Run{
		Accepted: s.accepted, Upstream: scripted{s.upstream}, Lease: s.ackWait, PollGap: max(s.gap, s.ackWait),
		Live: seen, Cluster: strings.Contains(s.nats, ","), WantFaults: true, Faults: faults,
	}
	copies, byID := map[string]int{}, map[string][]sim.Poll{}
	for _, submission := range s.accepted {
		copies[submission.ID]++
	}
	for _, p := range s.upstream.Polls() {
		run.Polls = append(run.Polls, history.Poll{ID: p.ID, Caller: p.Caller, Start: p.Start, End: p.End})
		byID[p.ID] = append(byID[p.ID], p)
	}
	var report history.Report
	await(s.t, "everything is read", 2*time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
		defer cancel()
		var err error
		if report, err = run.Judge(ctx, s.js, s.names); err != nil {
			s.t.Log(err) // a cluster that lost a node may still be busy with that
		}
		return err == nil
	})
	for id, polls := range byID {
		if astray := sideBySide(polls, s.ackWait); astray > 1 && copies[id] == 1 && !s.forgets {
			report.Duplicate++
			report.Violations = append(report.Violations, fmt.Sprintf("request %q: %d polls of one bridge between those of another", id, astray))
		}
	}
	row.Add(report, faults)
	require.Empty(s.t, report.Violations, strings.Join(report.Violations, "\n"))
	return report
}

// scripted is the upstream as the judge asks it.
type scripted struct{ *sim.Sim }

func (s scripted) States(id string) [][2]string {
	var out [][2]string
	for _, state := range s.Sim.States(id) {
		out = append(out, [2]string{state.State, state.Reason})
	}
	return out
}
