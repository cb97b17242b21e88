package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

func refusal(code int, text string) string {
	return fmt.Sprintf(`{"error":{"code":503,"err_code":%d,"description":%q},"stream":"TINKER_STATES","seq":0}`, code, text)
}

func TestEveryAnswerToAPublishHasOneMeaning(t *testing.T) {
	for _, c := range []struct {
		name    string
		answer  string
		err     error
		ack     ack
		verdict string
	}{
		{"stored", `{"stream":"S","seq":5}`, nil, ack{seq: 5}, "stored"},
		{"stored in a domain", `{"type":"x","stream":"S","domain":"hub","seq":5,"val":"1"}`, nil, ack{seq: 5}, "stored"},
		{"duplicate", `{"stream":"S","seq":5,"duplicate":true}`, nil, ack{seq: 5}, "duplicate"},
		{"wrong last sequence", refusal(10071, "wrong last sequence: 42"), nil, ack{seq: 42, conflict: true}, "conflict"},
		{"wrong last sequence of an empty log", refusal(10071, "wrong last sequence: 0"), nil, ack{conflict: true}, "conflict"},
		{"wrong last sequence, told otherwise", refusal(10071, "not what you expected"), nil, ack{conflict: true}, "conflict"},
		{"wrong last sequence, not told which", refusal(10164, "wrong last sequence"), nil, ack{}, "unknown"},
		{"duplicate in process", refusal(10158, "duplicate message id is in process"), nil, ack{}, "unknown"},
		{"no quorum", refusal(503, ""), nil, ack{}, "unknown"},
		{"a code of the future", refusal(19999, "?"), nil, ack{}, "unknown"},
		{"the stream's queue is full", refusal(10167, "too many requests"), nil, ack{}, "busy"},
		{"the stream is full", refusal(10077, "maximum bytes exceeded"), nil, ack{}, "refused"},
		{"the server is full", refusal(10047, "insufficient storage resources available"), nil, ack{}, "refused"},
		{"the server has no resources", refusal(10023, "insufficient resources"), nil, ack{}, "refused"},
		{"the account is full", refusal(10002, "resource limits exceeded for account"), nil, ack{}, "refused"},
		{"too large for the stream", refusal(10054, "message size exceeds maximum allowed"), nil, ack{tooLarge: true}, "too_large"},
		{"too large for the connection", "", nats.ErrMaxPayload, ack{tooLarge: true}, "too_large"},
		{"no responders", "", nats.ErrNoResponders, ack{}, "unknown"},
		{"no answer", "", context.DeadlineExceeded, ack{}, "unknown"},
		{"disconnected", "", nats.ErrReconnectBufExceeded, ack{}, "unknown"},
		{"closed", "", nats.ErrConnectionClosed, ack{}, "unknown"},
		{"empty", "", nil, ack{}, "unknown"},
		{"no JSON", "+OK", nil, ack{}, "unknown"},
		{"JSON of somebody else", `{"ok":true}`, nil, ack{}, "unknown"},
		{"a sequence of no stream", `{"seq":5}`, nil, ack{}, "unknown"},
		{"null", `null`, nil, ack{}, "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, verdict, why := readAck(&nats.Msg{Data: []byte(c.answer)}, c.err)
			require.Equal(t, c.ack, out)
			require.Equal(t, c.verdict, verdict)
			switch verdict {
			case "stored", "duplicate", "conflict":
				require.NoError(t, why)
			default:
				require.Error(t, why)
				require.True(t, c.err == nil || errors.Is(why, c.err))
			}
			require.Contains(t, NewMetrics(nil).publishes, verdict)
		})
	}
}

func TestWhatIsNotKnownToBeStoredIsSentAgainUnchanged(t *testing.T) {
	const acked = `{"stream":"TINKER_STATES","seq":5}`
	for _, c := range []struct {
		name    string
		answers []string
		verdict string
	}{
		{"no quorum", []string{refusal(10164, ""), refusal(10158, ""), refusal(503, ""), acked}, "unknown"},
		{"time-outs", []string{"", "", "", `{"stream":"TINKER_STATES","seq":5,"duplicate":true}`}, "unknown"},
		{"the queue is full", []string{refusal(10167, ""), refusal(10167, ""), refusal(10167, ""), acked}, "busy"},
		{"the stream is full", []string{refusal(10077, ""), refusal(10047, ""), refusal(10023, ""), acked}, "refused"},
		{"nonsense", []string{"+OK", "{}", "null", acked}, "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, func(t *testing.T, g *rig) {
				asked := g.answer("ingest.tinker.state.a", c.answers...)
				r := request("a")
				ended, err := g.Transition(g.ctx, r, transition("active", "", 1))
				require.NoError(t, err)
				require.False(t, ended)
				require.Equal(t, uint64(5), r.LogSeq)
				got := asked()
				require.Len(t, got, 4)
				for _, m := range got {
					require.Equal(t, got[0].Header, m.Header)
					require.Equal(t, got[0].Data, m.Data)
				}
				require.Equal(t, 3.0, g.counts()[c.verdict])
				require.Equal(t, 1.0, g.counts()["event state"])
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestTriesAreSpacedOutUpToTwoSeconds(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		var at []time.Time
		nc := g.Connect()
		_, err := nc.Subscribe("ingest.tinker.state.a", func(m *nats.Msg) {
			at = append(at, time.Now())
			_ = m.Respond([]byte(refusal(10167, "")))
		})
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
		defer cancel()
		_, err = g.Transition(ctx, request("a"), transition("active", "", 1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		in(0)
		want := 50 * time.Millisecond
		for i := 1; i < len(at); i++ {
			require.GreaterOrEqual(t, at[i].Sub(at[i-1]), want)
			require.Less(t, at[i].Sub(at[i-1]), want+want/4)
			want = min(2*want, 2*time.Second)
		}
		require.Greater(t, len(at), 25)
	})
}

// entry is a state of request a as a direct get tells it.
func entry(seq uint64, state string) string {
	return directAnswer("tinker.state.a", seq, headers("a", state), `{"queue_state":"`+state+`"}`)
}

const absent = "NATS/1.0 404 Message Not Found\r\n\r\n"

func TestARefusedPublisherWaitsForAReplicaThatLags(t *testing.T) {
	const conflict = "wrong last sequence: 9"
	for _, c := range []struct {
		name  string
		reads []string
		state string
		seq   uint64
		least time.Duration
	}{
		{"it catches up", []string{entry(7, "active"), absent, entry(9, "paused_capacity")}, "paused_capacity", 9, 0},
		{"it is ahead", []string{entry(12, "paused_capacity")}, "paused_capacity", 12, 0},
		{"it fails now and then", []string{"NATS/1.0 408 Bad Request\r\n\r\n", "nonsense", "", entry(9, "active")}, "active", 9, 5 * time.Second},
		{"it never does: what it has must do", []string{entry(7, "active")}, "active", 7, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, func(t *testing.T, g *rig) {
				g.answer("ingest.tinker.state.a", refusal(10071, conflict))
				reads := g.answer("$JS.API.DIRECT.GET.TINKER_STATES.tinker.state.a", c.reads...)
				g.answer("$JS.API.DIRECT.GET.TINKER_RESULTS.tinker.result.a", absent)
				r, begin := request("a"), time.Now()
				ended, err := g.Transition(g.ctx, r, transition("active", "", 1))
				require.NoError(t, err)
				require.False(t, ended)
				require.Equal(t, c.state, r.State.QueueState)
				require.Equal(t, c.seq, r.LogSeq)
				require.GreaterOrEqual(t, time.Since(begin), c.least)
				require.GreaterOrEqual(t, len(reads()), len(c.reads))
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestAConflictWithoutANumberTakesWhatIsStored(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		result := completed("1")
		mine := g.resultMessage(request("a"), 0, result, result.Body, nil)
		g.answer("ingest.tinker.result.a", refusal(10071, "not what you expected"))
		g.answer("$JS.API.DIRECT.GET.TINKER_RESULTS.tinker.result.a", directAnswer("tinker.result.a", 9, mine.Header, "1"))
		closing := g.answer("ingest.tinker.state.a", `{"stream":"TINKER_STATES","seq":3}`)
		require.NoError(t, g.Finish(g.ctx, request("a"), result))
		require.Contains(t, string(closing()[0].Data), `"result":{"stream":"TINKER_RESULTS","seq":9,`)
		require.Equal(t, 1.0, g.counts()["event result"])
	})
}

func TestAnAckThatComesTooLateIsNotTakenForAnother(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		nc := g.Connect()
		_, err := nc.Subscribe("ingest.tinker.state.*", func(m *nats.Msg) {
			earlier := m.Reply[:strings.LastIndexByte(m.Reply, '.')] + ".0" // the same waiter's, when it asked before
			for range lateAcks {
				_ = nc.Publish(earlier, []byte(`{"stream":"TINKER_STATES","seq":1}`))
			}
			_ = m.Respond([]byte(`{"stream":"TINKER_STATES","seq":2}`))
		})
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		begin := time.Now()
		for i := range 2 * maxInFlight { // every waiter has its turn
			r := request(fmt.Sprint(i))
			_, err = g.Transition(g.ctx, r, transition("active", "", 1))
			require.NoError(t, err)
			require.Equal(t, uint64(2), r.LogSeq)
		}
		require.Zero(t, time.Since(begin), "nobody's own ack is lost among the late ones")
	})
}

func TestALogThatIsPurgedBetweenRefusalAndReadBeginsAnew(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		asked := g.answer("ingest.tinker.state.a", refusal(10071, "wrong last sequence: 9"), `{"stream":"TINKER_STATES","seq":10}`)
		g.answer("$JS.API.DIRECT.GET.TINKER_STATES.tinker.state.a", absent)
		r := request("a")
		r.LogSeq = 7
		ended, err := g.Transition(g.ctx, r, transition("active", "", 1))
		require.NoError(t, err)
		require.False(t, ended)
		require.Equal(t, uint64(10), r.LogSeq)
		got := asked()
		require.Len(t, got, 2)
		require.Equal(t, "7", got[0].Header.Get(nats.ExpectedLastSubjSeqHdr))
		require.Equal(t, "0", got[1].Header.Get(nats.ExpectedLastSubjSeqHdr))
		require.NotEqual(t, got[0].Header.Get(nats.MsgIdHdr), got[1].Header.Get(nats.MsgIdHdr))
	})
}

func TestAResultThatAgesAwayBetweenRefusalAndReadIsStoredAgain(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		results := g.answer("ingest.tinker.result.a", refusal(10071, "wrong last sequence: 9"), `{"stream":"TINKER_RESULTS","seq":10}`)
		g.answer("$JS.API.DIRECT.GET.TINKER_RESULTS.tinker.result.a", absent)
		g.answer("ingest.tinker.state.a", `{"stream":"TINKER_STATES","seq":3}`)
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("1")))
		got := results()
		require.Len(t, got, 2)
		require.Equal(t, got[0].Header, got[1].Header)
	})
}

func TestALookupThatFailsIsRepeated(t *testing.T) {
	scripted(t, func(t *testing.T, g *rig) {
		g.answer("$JS.API.DIRECT.GET.TINKER_RESULTS", "NATS/1.0 404 No Results\r\n\r\n")
		asked := g.answer("$JS.API.DIRECT.GET.TINKER_STATES", "NATS/1.0 413 Too Many Results\r\n\r\n", "nonsense", "", "NATS/1.0 503\r\n\r\n",
			"NATS/1.0 500 disk\r\n\r\n", "NATS/1.0 404 No Results\r\n\r\n")
		ended, err := g.Lookup(g.ctx, []*poll.Request{request("a")})
		require.NoError(t, err)
		require.Equal(t, []bool{false}, ended)
		require.Len(t, asked(), 6)
		require.Contains(t, g.log.String(), "subject=TINKER_STATES error=\"reading it")
		require.Empty(t, g.Trouble())
	})
}
