package publish

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func (g *rig) rejected(seq string) record {
	g.t.Helper()
	records := g.stored("TINKER_REJECTED", "tinker.rejected."+seq)
	require.Len(g.t, records, 1)
	return records[0]
}

// own are the headers of a rejection that the bridge itself writes.
func own(seq, reason, subject string, more nats.Header) nats.Header {
	h := nats.Header{
		"Bridge-Rejected-Reason": {reason}, "Bridge-Rejected-Subject": {subject}, "Nats-Msg-Id": {"tinker.rejected." + seq + "." + strconv.FormatInt(at.UnixNano(), 36)}, "Bridge-Submitted-At": {"2026-01-02T03:04:07.5Z"},
		"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"tinker.rejected." + seq},
	}
	maps.Copy(h, more)
	return h
}

func TestASubmissionIsRejectedOnceWithItsReason(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		m := &nats.Msg{Subject: "tinker.submit.team.a", Header: nats.Header{"X-Of-Mine": {"1", "2"}}, Data: []byte("{\xff")}
		require.NoError(t, g.Reject(g.ctx, 7, at, "no <JSON>", m))
		in(time.Hour) // beyond any window for duplicates
		require.NoError(t, g.Reject(g.ctx, 7, at, "another reason", m))
		require.NoError(t, g.Reject(g.ctx, 18446744073709551615, at, "no id", &nats.Msg{Subject: "tinker.submit"}))
		r := g.rejected("7")
		require.Equal(t, "{\xff", string(r.Data))
		require.Equal(t, own("7", "no <JSON>", "tinker.submit.team.a", nats.Header{"X-Of-Mine": {"1", "2"}}), r.header)
		require.Empty(t, g.rejected("18446744073709551615").Data)
		require.Equal(t, 2.0, g.counts()["event rejected"])
		require.Equal(t, nats.Header{"X-Of-Mine": {"1", "2"}}, m.Header, "the submission itself is left alone")
	})
}

func TestALargeSubmissionIsRejectedByItsBeginning(t *testing.T) {
	small := setup{server: server.Options{MaxPayload: 40 << 10, MaxPending: 1 << 20}}
	limited := setup{streams: func(c *jetstream.StreamConfig) {
		if c.Name == "TINKER_REJECTED" {
			c.MaxMsgSize = 2 << 10
		}
	}}
	for _, c := range []struct {
		name       string
		o          setup
		size, kept int
	}{
		{"as large as is carried whole", setup{}, 64 << 10, 64 << 10},
		{"one byte more", setup{}, 64<<10 + 1, 64 << 10},
		{"a megabyte", setup{}, 1 << 20, 64 << 10},
		{"the connection carries less", small, 64 << 10, 16 << 10},
		{"the stream takes less", limited, 64 << 10, 1 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, c.o, func(t *testing.T, g *rig) {
				data := bytes.Repeat([]byte("0123456789abcdef"), c.size/16+1)[:c.size]
				require.NoError(t, g.Reject(g.ctx, 1, at, "too long", &nats.Msg{Subject: "tinker.submit", Data: data}))
				r := g.rejected("1")
				require.True(t, bytes.Equal(data[:c.kept], r.Data))
				want := nats.Header{}
				if c.kept < c.size {
					sum := sha256.Sum256(data)
					want["Bridge-Rejected-Bytes"] = []string{strconv.Itoa(c.size)}
					want["Bridge-Rejected-Digest"] = []string{"SHA-256=" + base64.URLEncoding.EncodeToString(sum[:])}
				}
				require.Equal(t, own("1", "too long", "tinker.submit", want), r.header)
				require.Equal(t, 1.0, g.counts()["event rejected"])
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestASubmissionsHeadersCannotSpeakForTheBridge(t *testing.T) {
	for _, c := range []struct {
		name string
		in   nats.Header
		kept nats.Header
	}{
		{"ordinary", nats.Header{"Bridge-Request-Id": {"a"}, "traceparent": {"t"}}, nats.Header{"Bridge-Request-Id": {"a"}, "traceparent": {"t"}}},
		{"to the server", nats.Header{"Nats-Rollup": {"all"}, "nats-ttl": {"1s"}, "NATS-MSG-ID": {"x"}, "Nats-Expected-Stream": {"Y"}}, nil},
		{"to the client library", nats.Header{"Status": {"503"}, "status": {"404"}}, nil},
		{"in the bridge's name", nats.Header{"Bridge-Rejected-Reason": {"x"}, "bridge-rejected-reason": {"y"}, "Bridge-Rejected-Bytes": {"1"}, "BRIDGE-REJECTED-DIGEST": {"z"}, "bridge-submitted-at": {"w"}}, nil},
		{"with names that cannot be sent", nats.Header{"a b": {"x"}, " a": {"x"}, "ü": {"x"}, "a\x00": {"x"}, "": {"x"}, "a,b": {"x"}, "ok": {"x"}}, nats.Header{"ok": {"x"}}},
		{"with line breaks", nats.Header{"A": {"1\r\nNats-Rollup: all"}}, nats.Header{"A": {"1  Nats-Rollup: all"}}},
		{"of no value", nats.Header{"A": {""}, "B": nil}, nats.Header{"A": {""}}},
		{"in great number", nats.Header{"A": {strings.Repeat("x", 8<<10)}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				require.NoError(t, g.Reject(g.ctx, 1, at, "r\r\nNats-Rollup: all", &nats.Msg{Subject: "tinker.submit", Header: c.in}))
				require.NoError(t, g.Reject(g.ctx, 2, at, "r", &nats.Msg{Subject: "tinker.submit"}))
				require.Equal(t, own("1", "r  Nats-Rollup: all", "tinker.submit", c.kept), g.rejected("1").header)
			})
		})
	}
}

func TestAHostileSubmissionThatWasReallySentIsRejected(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.raw("tinker.submit", "NATS/1.0\r\nbad name: 1\r\nStatus: 503\r\nNats-TTL : 1\r\n: 2\r\nfine:\t3\r\n\r\n", "{")
		consumer, err := g.js.Consumer(g.ctx, "TINKER_WORK", "bridge")
		require.NoError(t, err)
		m, err := consumer.Next()
		require.NoError(t, err)
		require.NoError(t, g.Reject(g.ctx, 1, at, "no JSON", &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}))
		require.Equal(t, own("1", "no JSON", "tinker.submit", nats.Header{"fine": {"3"}}), g.rejected("1").header)
	})
}

// A work stream that was deleted and made anew counts from 1 again, while the rejections of the old one are still there.
func TestASubmissionOfANewWorkStreamIsRejectedBesideTheOldOnes(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		old, fresh := &nats.Msg{Subject: "tinker.submit", Data: []byte("{old")}, &nats.Msg{Subject: "tinker.submit", Data: []byte("{new")}
		later := at.Add(time.Nanosecond) // and within the window for duplicates
		require.NoError(t, g.Reject(g.ctx, 1, at, "r", old))
		require.NoError(t, g.Reject(g.ctx, 1, later, "r", fresh))
		require.NoError(t, g.Reject(g.ctx, 1, later, "r", fresh))
		g.intrude("tinker.rejected.2", "", nats.Header{"Status": {"503"}})
		require.NoError(t, g.Reject(g.ctx, 2, at, "r", old))
		for seq, want := range map[string][]string{"1": {"{old", "{new"}, "2": {"", "{old"}} {
			var got []string
			for _, r := range g.stored("TINKER_REJECTED", "tinker.rejected."+seq) {
				got = append(got, string(r.Data))
			}
			require.Equal(t, want, got)
		}
		require.Equal(t, 3.0, g.counts()["event rejected"])
	})
}

func TestOldRejectionsStreamsThatKeepOneOfANumberTakeTheNew(t *testing.T) {
	bubble(t, setup{streams: func(c *jetstream.StreamConfig) {
		if c.Name == "TINKER_REJECTED" {
			c.MaxMsgsPerSubject = 1
		}
	}}, func(t *testing.T, g *rig) {
		require.NoError(t, g.Reject(g.ctx, 1, at, "r", &nats.Msg{Subject: "tinker.submit", Data: []byte("{old")}))
		require.NoError(t, g.Reject(g.ctx, 1, at.Add(1), "r", &nats.Msg{Subject: "tinker.submit", Data: []byte("{new")}))
		require.Equal(t, "{new", string(g.rejected("1").Data))
	})
}

func TestRejectionsMakeRoomForEachOther(t *testing.T) {
	bubble(t, setup{streams: func(c *jetstream.StreamConfig) {
		if c.Name == "TINKER_REJECTED" {
			c.MaxMsgs = 2
		}
	}}, func(t *testing.T, g *rig) {
		for seq := range uint64(4) {
			require.NoError(t, g.Reject(g.ctx, seq, at, "r", &nats.Msg{Subject: "tinker.submit"}))
		}
		require.Empty(t, g.stored("TINKER_REJECTED", "tinker.rejected.1"))
		require.Len(t, g.stored("TINKER_REJECTED", "tinker.rejected.3"), 1)
	})
}
