package publish

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

func TestOnlyTheSixEndsAreTerminal(t *testing.T) {
	for _, status := range []string{"completed", "failed", "timed_out", "expired", "lost", "cancelled"} {
		require.True(t, Terminal(status), status)
	}
	for _, status := range []string{"", "active", "paused_rate_limit", "paused_capacity", "unknown", "Completed"} {
		require.False(t, Terminal(status), status)
	}
}

// headers of a good event; pairs of name and value replace or, when the value is empty, remove some.
func headers(id, status string, pairs ...string) nats.Header {
	h := nats.Header{
		HeaderRequestID: {id}, HeaderStatus: {status}, HeaderPolls: {"7"}, HeaderContentType: {"text/x"},
		HeaderSubmittedAt: {"2026-01-02T03:04:05.000000006Z"}, nats.MsgIdHdr: {"m"},
	}
	for i := 0; i < len(pairs); i += 2 {
		h[pairs[i]] = []string{pairs[i+1]}
		if pairs[i+1] == "" {
			delete(h, pairs[i])
		}
	}
	return h
}

func TestEventsAreDecoded(t *testing.T) {
	long := strings.Repeat("é", 200)
	large := []string{HeaderResultObject, "a.N", HeaderResultBytes, "123456789012", HeaderResultDigest, "SHA-256=x"}
	for _, c := range []struct {
		name, subject string
		header        nats.Header
		data          string
		kind          Kind
		large         *LargeRef
		bytes         int64
	}{
		{"a state", "tinker.state.a", headers("a", "active"), "{}", KindState, nil, 2},
		{"a state this version does not know", "tinker.state.a", headers("a", "dreaming"), "{}", KindState, nil, 2},
		{"a closing record", "tinker.state.a", headers("a", "lost"), "{}", KindClosing, nil, 2},
		{"a result", "tinker.result.a", headers("a", "completed"), "\x00\xff", KindResult, nil, 2},
		{"an empty result", "tinker.result.a", headers("a", "completed"), "", KindResult, nil, 0},
		{"a failure", "tinker.result.a", headers("a", "failed"), "{}", KindResult, nil, 2},
		{"a large result", "tinker.result.a", headers("a", "completed", large...), "", KindResult,
			&LargeRef{Object: "a.N", Bytes: 123456789012, Digest: "SHA-256=x"}, 123456789012},
		{"an object's header on a state means nothing", "tinker.state.a", headers("a", "active", large...), "", KindState, nil, 0},
		{"an encoded id", "tinker.result.=YS5i", headers("a.b", "completed"), "", KindResult, nil, 0},
		{"a hashed id", "tinker.result." + Token(long), headers(long, "completed"), "", KindResult, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := tinker.Decode(c.subject, c.header, []byte(c.data))
			require.NoError(t, err)
			require.Equal(t, c.bytes, e.Bytes())
			require.Equal(t, Event{
				Kind: c.kind, Subject: c.subject, RequestID: c.header.Get(HeaderRequestID), Status: c.header.Get(HeaderStatus), Polls: 7,
				SubmittedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), MsgID: "m", ContentType: "text/x", Data: []byte(c.data), Large: c.large,
			}, e)
		})
	}
}

func TestMessagesThatNoBridgeWroteAreNotDecoded(t *testing.T) {
	for _, c := range []struct {
		name, subject string
		header        nats.Header
		want          string
	}{
		{"no headers at all", "tinker.state.a", nil, "no Bridge-Request-Id"},
		{"no id", "tinker.state.a", headers("a", "active", HeaderRequestID, ""), "no Bridge-Request-Id"},
		{"no status", "tinker.state.a", headers("a", "active", HeaderStatus, ""), "no Bridge-Status"},
		{"another request's subject", "tinker.state.b", headers("a", "active"), "not that of request"},
		{"the id where its token should be", "tinker.state.a.b", headers("a.b", "active"), "not that of request"},
		{"another prefix", "other.state.a", headers("a", "active"), "not that of request"},
		{"a prefix of the prefix", "tinkers.state.a", headers("a", "active"), "not that of request"},
		{"the ingest subject", "ingest.tinker.state.a", headers("a", "active"), "not that of request"},
		{"no token", "tinker.state", headers("a", "active"), "not that of request"},
		{"more tokens", "tinker.state.a.b", headers("a", "active"), "not that of request"},
		{"another kind", "tinker.rejected.a", headers("a", "active"), "carries no event"},
		{"a result that is no end", "tinker.result.a", headers("a", "active"), "carries no event"},
		{"no polls", "tinker.state.a", headers("a", "active", HeaderPolls, ""), "Bridge-Polls"},
		{"polls in words", "tinker.state.a", headers("a", "active", HeaderPolls, "seven"), "Bridge-Polls"},
		{"polls below zero", "tinker.state.a", headers("a", "active", HeaderPolls, "-1"), "Bridge-Polls"},
		{"polls beyond an int", "tinker.state.a", headers("a", "active", HeaderPolls, "9223372036854775808"), "Bridge-Polls"},
		{"no time", "tinker.state.a", headers("a", "active", HeaderSubmittedAt, ""), "Bridge-Submitted-At"},
		{"a time that is none", "tinker.state.a", headers("a", "active", HeaderSubmittedAt, "yesterday"), "Bridge-Submitted-At"},
		{"a large result of unknown size", "tinker.result.a", headers("a", "completed", HeaderResultObject, "o"), "Bridge-Result-Bytes"},
		{"a large result of a size below zero", "tinker.result.a",
			headers("a", "completed", HeaderResultObject, "o", HeaderResultBytes, "-1"), "Bridge-Result-Bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := tinker.Decode(c.subject, c.header, []byte("{}"))
			require.ErrorContains(t, err, c.want)
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("tinker.state.a", "a", "active", "1", "2026-01-02T03:04:05Z", "", "", []byte(`{"queue_state":"active"}`))
	f.Add("tinker.state.=YS5i", "a.b", "completed", "1", "2026-01-02T03:04:05+01:00", "", "", []byte(`{"result":{"seq":1}}`))
	f.Add("tinker.result.a", "a", "failed", "0", "2026-01-02T03:04:05.5Z", "", "", []byte(`{"type":1}`))
	f.Add("tinker.result.a", "a", "completed", "0", "2026-01-02T03:04:05Z", "o", "12", []byte{})
	f.Add("tinker.rejected.1", "", "", "", "", "", "", []byte{0xff})
	f.Fuzz(func(t *testing.T, subject, id, status, polls, submitted, object, size string, data []byte) {
		e, err := tinker.Decode(subject, headers(id, status, HeaderPolls, polls, HeaderSubmittedAt, submitted,
			HeaderResultObject, object, HeaderResultBytes, size), data)
		_, _ = e.State()
		_, _ = e.Closing()
		if err != nil {
			return
		}
		want := map[Kind]string{KindState: tinker.State(id), KindClosing: tinker.State(id), KindResult: tinker.Result(id)}
		require.Equal(t, want[e.Kind], subject)
		require.Equal(t, e.Kind != KindState, Terminal(status))
		require.Equal(t, []string{id, status}, []string{e.RequestID, e.Status})
		require.GreaterOrEqual(t, e.Polls, 0)
		require.GreaterOrEqual(t, e.Bytes(), int64(0))
		require.Equal(t, e.Kind == KindResult && object != "", e.Large != nil)
	})
}
