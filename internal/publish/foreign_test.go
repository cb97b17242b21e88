package publish

import (
	"context"
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

// intrusions are what somebody might put on an event subject, by name.
func intrusions(status string) map[string]nats.Header {
	return map[string]nats.Header{
		"bare":                 nil,
		"another request's":    headers("b", status),
		"no JSON":              headers("a", "active"),
		"a server's sequence":  {"Nats-Sequence": {"99999"}, "Nats-Subject": {"tinker.state.b"}, "Nats-Time-Stamp": {"never"}},
		"the end of a batch":   {"Status": {"204"}, "Nats-Num-Pending": {"0"}},
		"an absence":           {"Status": {"404"}},
		"a failure of servers": {"Status": {"500"}},
	}
}

func TestAForeignMessageInALogDoesNotStopTheBridge(t *testing.T) {
	for name, header := range intrusions("active") {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				r := request("a")
				g.logs(r, "active", 1)
				g.intrude("tinker.state.a", "rubbish", header)
				ended, err := g.Conclude(g.ctx, r)
				require.NoError(t, err)
				require.False(t, ended)

				g.logs(r, "paused_capacity", 2)
				require.Equal(t, []string{"active", "foreign", "paused_capacity"}, statuses(g.logOf("a")))
				require.Contains(t, g.log.String(), "a message that no bridge wrote lies on an event subject")
				require.Contains(t, g.log.String(), "ingest.tinker.>")

				g.intrude("tinker.state.a", "rubbish", header)
				fresh, other := request("a"), request("b")
				is, err := g.Lookup(g.ctx, []*poll.Request{fresh, other})
				require.NoError(t, err)
				require.Equal(t, []bool{false, false}, is)
				require.Equal(t, uint64(4), fresh.LogSeq, "the next event goes on top of it")
				require.Empty(t, fresh.State.QueueState)
				require.Zero(t, other.LogSeq)

				g.intrude("tinker.state.a", "rubbish", header)
				require.NoError(t, g.Finish(g.ctx, fresh, completed("1")))
				require.Equal(t, []string{"active", "foreign", "paused_capacity", "foreign", "foreign", "completed"}, statuses(g.logOf("a")))
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestAForeignMessageInPlaceOfAResultStopsOnlyItsRequest(t *testing.T) {
	for name, header := range intrusions("completed") {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
				g.intrude("tinker.result.a", "rubbish", header)
				r := request("a")
				ended, err := g.Conclude(g.ctx, r)
				require.NoError(t, err)
				require.False(t, ended)
				is, err := g.Lookup(g.ctx, []*poll.Request{r})
				require.NoError(t, err)
				require.Equal(t, []bool{false}, is)

				done := make(chan error, 1)
				go func() { done <- g.Finish(g.ctx, r, completed("a large result")) }()
				in(5 * time.Minute)
				require.Empty(t, done, "a second result must not be stored")
				require.Contains(t, g.log.String(), "a message that no bridge wrote lies on a result subject")
				require.Empty(t, g.Trouble(), "other requests go on")
				require.NoError(t, g.whole("b"))
				g.ended("b")
				require.Less(t, g.counts()["conflict"], 20.0, "it is looked at again now and then, not all the time")

				g.purge("TINKER_RESULTS", "tinker.result.a")
				require.NoError(t, <-done)
				g.storedLarge("a", []byte("a large result"))
				require.Len(t, g.objects(), 1)
			})
		})
	}
}

func TestAForeignMessageCanBeHeldUntilTheBridgeEnds(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.intrude("tinker.result.a", "rubbish", nil)
		ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
		defer cancel()
		require.Error(t, g.Finish(ctx, request("a"), completed("1")))
		require.Empty(t, g.logOf("a"))
	})
}
