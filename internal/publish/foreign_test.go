package publish

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// intrude publishes what no bridge would to where only bridges may.
func (g *rig) intrude(subject, data string, header nats.Header) {
	g.t.Helper()
	delete(header, nats.MsgIdHdr)
	_, err := g.js.PublishMsg(g.ctx, &nats.Msg{Subject: "ingest." + subject, Header: header, Data: []byte(data)})
	require.NoError(g.t, err)
}

// raw publishes as a client that checks nothing does.
func (g *rig) raw(subject, header, data string) {
	g.t.Helper()
	conn, err := g.InProcessConn()
	require.NoError(g.t, err)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_, err = fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB %s %d %d\r\n%s%s\r\n",
		subject, len(header), len(header)+len(data), header, data)
	require.NoError(g.t, err)
	in(time.Second)
	require.NoError(g.t, conn.Close())
}

// intrusions are ways to put something on an event subject that no bridge would, by name.
func intrusions(status string) map[string]func(g *rig, subject string) {
	with := func(data string, header nats.Header) func(*rig, string) {
		return func(g *rig, subject string) { g.intrude(subject, data, header) }
	}
	return map[string]func(g *rig, subject string){
		"bare":                 with("rubbish", nil),
		"another request's":    with("rubbish", headers("b", status)),
		"no JSON":              with("rubbish", headers("a", "active")),
		"a server's sequence":  with("rubbish", nats.Header{"Nats-Sequence": {"99999"}, "Nats-Subject": {"tinker.state.b"}, "Nats-Time-Stamp": {"never"}}),
		"the end of a batch":   with("rubbish", nats.Header{"Status": {"204"}, "Nats-Num-Pending": {"0"}}),
		"an empty end":         with("", nats.Header{"Status": {"204"}, "Nats-Num-Pending": {"0"}}),
		"an absence":           with("", nats.Header{"Status": {"404"}}),
		"a failure of servers": with("", nats.Header{"Status": {"500"}}),
		"no responders":        with("", nats.Header{"Status": {"503"}}),
		"no readable headers": func(g *rig, subject string) {
			g.raw("ingest."+subject, "NATS/1.0\r\nno colon\r\n\r\n", "")
		},
		"an ack of a server": func(g *rig, subject string) { // which publishes it, whatever the submitter himself may do
			require.NoError(g.t, g.nc.PublishRequest("tinker.submit", "ingest."+subject, []byte("x")))
			in(time.Second)
		},
	}
}

func TestAForeignMessageInALogDoesNotStopTheBridge(t *testing.T) {
	for name, intrude := range intrusions("active") {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				r := request("a")
				g.logs(r, "active", 1)
				intrude(g, "tinker.state.a")
				ended, err := g.Conclude(g.ctx, r)
				require.NoError(t, err)
				require.False(t, ended)

				g.logs(r, "paused_capacity", 2)
				require.Equal(t, []string{"active", "foreign", "paused_capacity"}, statuses(g.logOf("a")))
				require.Contains(t, g.log.String(), "a message that no bridge wrote lies on an event subject")
				require.Contains(t, g.log.String(), "ingest.tinker.>")
				require.Contains(t, g.log.String(), "seq=[2]")

				intrude(g, "tinker.state.a")
				intrude(g, "tinker.state.a")
				fresh, other := request("a"), request("b")
				is, err := g.Lookup(g.ctx, []*poll.Request{fresh, other})
				require.NoError(t, err)
				require.Equal(t, []bool{false, false}, is)
				require.Contains(t, g.log.String(), `seq="[2 4 5]"`)
				require.Equal(t, uint64(5), fresh.LogSeq, "the next event goes on top of it")
				require.Equal(t, "paused_capacity", fresh.State.QueueState, "and follows the one below")
				require.Zero(t, other.LogSeq)

				intrude(g, "tinker.state.a")
				require.NoError(t, g.Finish(g.ctx, fresh, completed("1")))
				require.Equal(t, []string{"active", "foreign", "paused_capacity", "foreign", "foreign", "foreign", "completed"}, statuses(g.logOf("a")))
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestAForeignMessageOnAClosingRecordOpensNothing(t *testing.T) {
	for name, intrude := range intrusions("completed") {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				late, stalled := request("a"), request("a")
				g.logs(late, "active", 1)
				stalled.LogSeq = late.LogSeq
				require.NoError(t, g.Finish(g.ctx, late, completed("1")))
				intrude(g, "tinker.state.a")
				before := statuses(g.logOf("a"))
				require.Equal(t, []string{"active", "completed", "foreign"}, before)

				fresh := request("a")
				is, err := g.Lookup(g.ctx, []*poll.Request{fresh})
				require.NoError(t, err)
				require.Equal(t, []bool{true}, is)
				require.NoError(t, g.Finish(g.ctx, fresh, completed("2")))
				ended, err := g.Transition(g.ctx, stalled, transition("paused_capacity", "active", 2))
				require.NoError(t, err)
				require.True(t, ended)
				ended, err = g.Conclude(g.ctx, stalled)
				require.NoError(t, err)
				require.True(t, ended)
				require.Equal(t, before, statuses(g.logOf("a")))
				require.Equal(t, []string{"completed"}, statuses(g.resultsOf("a")))
			})
		})
	}
}

func TestAForeignMessageAroundAResultIsNeitherAResultNorInItsWay(t *testing.T) {
	for name, intrude := range intrusions("completed") {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
				intrude(g, "tinker.result.a")
				r := request("a")
				ended, err := g.Conclude(g.ctx, r)
				require.NoError(t, err)
				require.False(t, ended)
				is, err := g.Lookup(g.ctx, []*poll.Request{r})
				require.NoError(t, err)
				require.Equal(t, []bool{false}, is)
				require.Contains(t, g.log.String(), "a message that no bridge wrote lies on an event subject")
				require.Contains(t, g.log.String(), "stream=TINKER_RESULTS")

				g.race(4, func(i int, g *rig, _ *poll.Request) error {
					return g.Finish(g.ctx, request("a"), completed(fmt.Sprint("a large result ", i)))
				})
				intrude(g, "tinker.result.a")
				is, err = g.Lookup(g.ctx, []*poll.Request{request("a")})
				require.NoError(t, err)
				require.Equal(t, []bool{true}, is)
				require.NoError(t, g.Finish(g.ctx, request("a"), completed("another")))
				require.Equal(t, []string{"foreign", "completed", "foreign"}, statuses(g.resultsOf("a")))
				require.Equal(t, []string{"completed"}, statuses(g.logOf("a")))
				closing, err := g.logOf("a")[0].Closing()
				require.NoError(t, err)
				require.Equal(t, uint64(2), closing.Result.Seq)
				require.Len(t, g.objects(), 1, "that of the result; the others lost")
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestAMessageWithoutReadableHeadersSpoilsNoOthersLookup(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		waiting := request("b")
		g.logs(waiting, "active", 1)
		g.raw("ingest.tinker.state.a", "NATS/1.0\r\nno colon\r\n\r\n", "")
		requests := []*poll.Request{request("a"), request("b"), request("c")}
		ended, err := g.Lookup(g.ctx, requests)
		require.NoError(t, err)
		require.Equal(t, []bool{false, false, false}, ended)
		require.Equal(t, []uint64{2, 1, 0}, []uint64{requests[0].LogSeq, requests[1].LogSeq, requests[2].LogSeq})
		require.Equal(t, "active", requests[1].State.QueueState)
	})
}

// Our own state was stored, its ack was lost, and somebody else's message lies on top.
func TestAnEventUnderAForeignMessageIsKnownAgain(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		r, twin := request("a"), request("a")
		g.logs(r, "active", 1)
		g.intrude("tinker.state.a", "rubbish", nil)
		g.logs(twin, "active", 1)
		require.Equal(t, uint64(2), twin.LogSeq)
		require.Equal(t, []string{"active", "foreign"}, statuses(g.logOf("a")))
	})
}
