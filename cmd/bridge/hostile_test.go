package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/history"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// attack is one message as a client that checks nothing writes it to its socket. It ends as the request id, or as a
// rejection whose reason begins so, or the server does not even store it.
type attack struct {
	name, subject, reply string
	header               []string // lines
	data                 string
	id, rejected         string
}

// raw writes a message to a socket of its own, and reports its number in the work stream; 0: it is not stored.
func (w *world) raw(a attack) (seq uint64) {
	w.t.Helper()
	before := w.lastWork()
	conn, err := w.server.InProcessConn()
	require.NoError(w.t, err)
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		close(drained)
	}()
	header := ""
	if len(a.header) > 0 {
		header = "NATS/1.0\r\n" + strings.Join(a.header, "\r\n") + "\r\n\r\n"
	}
	subject := a.subject
	if subject == "" {
		subject = "tinker.submit"
	}
	frame := fmt.Sprintf("PUB %s %s %d\r\n", subject, a.reply, len(a.data))
	if header != "" {
		frame = fmt.Sprintf("HPUB %s %s %d %d\r\n", subject, a.reply, len(header), len(header)+len(a.data))
	}
	_, _ = io.WriteString(conn, "CONNECT {\"verbose\":false,\"headers\":true,\"user\":\"submitter\",\"pass\":\"x\"}\r\n"+frame+header+a.data+"\r\nPING\r\n") // it may hang up
	time.Sleep(time.Second)
	require.NoError(w.t, conn.Close())
	<-drained
	if after := w.lastWork(); after > before {
		return before + 1
	}
	return 0
}

func (w *world) lastWork() uint64 {
	w.t.Helper()
	stream, err := w.js.Stream(w.t.Context(), w.names.WorkStream())
	require.NoError(w.t, err)
	return stream.CachedInfo().State.LastSeq
}

// rejections are those stored, by number.
func (w *world) rejections() map[uint64]*jetstream.RawStreamMsg {
	w.t.Helper()
	stream, err := w.js.Stream(w.t.Context(), w.names.RejectedStream())
	require.NoError(w.t, err)
	out := map[uint64]*jetstream.RawStreamMsg{}
	for seq := stream.CachedInfo().State.FirstSeq; seq != 0 && seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(w.t.Context(), seq)
		require.NoError(w.t, err)
		var n uint64
		_, err = fmt.Sscanf(m.Subject, "tinker.rejected.%d", &n)
		require.NoError(w.t, err)
		require.Nil(w.t, out[n], "one rejection of each")
		out[n] = m
	}
	return out
}

func attacks() []attack {
	const empty, noID = "the message is empty", "the JSON object has no request_id"
	longest := strings.Repeat("é", 512)
	flood := make([]string, 1500) // the server stores no more than 64 KiB of headers
	for i := range flood {
		flood[i] = fmt.Sprintf("X-%d: %s", i, strings.Repeat("x", 30))
	}
	list := []attack{
		// What is in a body.
		{name: "nothing", rejected: empty},
		{name: "as much as the server takes", data: strings.Repeat("x", 1<<20), rejected: "the request id has 1048576 bytes"},
		{name: "more", data: strings.Repeat("x", 1<<20+1)},
		{name: "as much JSON as the server takes", data: `{"request_id":"big","x":"` + strings.Repeat("x", 1<<20-100) + `"}`, id: "big"},
		{name: "nul", data: "a\x00b", rejected: "the request id has the control character U+0000"},
		{name: "no UTF-8", data: "\xc3\x28", rejected: "the request id is not valid UTF-8"},
		{name: "a byte order mark", data: "\ufeff{}", rejected: "the message begins with a byte order mark"},
		{name: "nested JSON", data: `{"request_id":"deep","x":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`, rejected: "the message begins like a JSON object but is none"},
		{name: "nested JSON that is allowed", data: `{"request_id":"deep","x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, id: "deep"},
		{name: "two ids", data: `{"request_id":"one","request_id":"two"}`, rejected: `the JSON object has the field "request_id" twice`},
		{name: "an id in two cases", data: `{"request_id":"lower","REQUEST_ID":"upper"}`, id: "lower"},
		{name: "a number for an id", data: `{"request_id":1}`, rejected: `the field "request_id" is a JSON number`},
		{name: "a plain number", data: "42", id: "42"},
		{name: "a time-out in words", data: `{"request_id":"x","timeout_ms":"60000"}`, rejected: `the field "timeout_ms" is a JSON string`},
		{name: "a time-out below zero", data: `{"request_id":"x","timeout_ms":-1}`, rejected: "the time-out is -1 ms"},
		{name: "a time-out that is no number", data: `{"request_id":"x","timeout_ms":NaN}`, rejected: "the message begins like a JSON object but is none"},
		{name: "a time-out of 1e400", data: `{"request_id":"x","timeout_ms":1e400}`, rejected: `the field "timeout_ms" is a JSON number 1e400`},
		{name: "an endless time-out", data: `{"request_id":"x","timeout_ms":` + strings.Repeat("9", 100_000) + `}`, rejected: `the field "timeout_ms" is a JSON number 999`},
		{name: "the longest id", data: longest, id: longest},
		{name: "a longer one", data: longest + "x", rejected: "the request id has 1025 bytes"},
		{name: "a token", data: "=YQ", id: "=YQ"},
		{name: "a token of a hash", data: "~" + strings.Repeat("A", 43), id: "~" + strings.Repeat("A", 43)},
		{name: "wildcards", data: "*.>", id: "*.>"},
		{name: "a path", data: "../../admin?x=1#", id: "../../admin?x=1#"},
		{name: "a format", data: "%s%n{{.Key}}$(id)", id: "%s%n{{.Key}}$(id)"},
		{name: "two lines", data: "a\r\nb", rejected: "the request id has the control character U+000D"},
		{name: "wishes", data: `{"request_id":"wish","url":"http://evil","base_url":"http://evil","path":"/admin","api_key":"k","headers":{"X-Api-Key":"k"}}`,
			header: []string{"X-API-Key: k", "Host: evil", "Authorization: k", "Bridge-Upstream: http://evil", "Transfer-Encoding: chunked"}, id: "wish"},
		{name: "a later bridge's submission", data: `{"version":9,"request_id":"later","priority":{"class":1}}`, header: []string{"Bridge-Version: 9"}, id: "later"},

		// What is in headers.
		{name: "a flood of headers", header: append(flood[:len(flood):len(flood)], "Bridge-Request-Id: flood"), id: "flood"},
		{name: "a flood of headers and no id", header: flood, rejected: empty},
		{name: "two ids in headers", header: []string{"Bridge-Request-Id: a", "Bridge-Request-Id: b"}, rejected: "the header Bridge-Request-Id is given twice"},
		{name: "two ids in headers of two cases", header: []string{"Bridge-Request-Id: a", "bridge-request-id: b"}, rejected: "the header Bridge-Request-Id is given twice"},
		{name: "the same id twice", header: []string{"Bridge-Request-Id: same", "Bridge-Request-Id: same"}, id: "same"},
		{name: "a carriage return in an id", header: []string{"Bridge-Request-Id: a\rNats-Rollup: all"}, rejected: "the request id has the control character U+000D"},
		{name: "a line feed in an id", header: []string{"Bridge-Request-Id: cut\nBridge-Request-Type: evil"}, id: "cut"},
		{name: "a line feed in a type", header: []string{"Bridge-Request-Type: a\rX: y"}, data: "x", rejected: "the request type has characters other"},
		{name: "nul in a header", header: []string{"Bridge-Request-Id: a\x00b"}, rejected: "the request id has the control character U+0000"},
		{name: "no UTF-8 in a header", header: []string{"Bridge-Request-Id: \xff"}, rejected: "the request id is not valid UTF-8"},
		{name: "headers that are none", header: []string{"no colon"}, data: "unheaded", id: "unheaded"},
		{name: "headers that are none, and no body", header: []string{"no colon"}, rejected: empty},
		{name: "names that are none", header: []string{": x", "a b: y", "\x01: z", "ü: ä"}, data: "{", rejected: "the message begins like a JSON object but is none"},
		{name: "an event's headers", header: []string{"Bridge-Status: completed", "Bridge-Polls: 7", "Bridge-Submitted-At: never", "ce-type: x", "Content-Type: y"}, data: "event", id: "event"},
		{name: "a rejection's headers", header: []string{"Bridge-Rejected-Reason: none", "bridge-submitted-at: never"}, data: "{}", rejected: noID},
		{name: "a pin", header: []string{"Nats-Pin-Id: x"}, data: "pinned", id: "pinned"},
		{name: "an acknowledgement's number", header: []string{"Nats-Sequence: 1", "Nats-Stream: X", "Nats-Subject: y", "Nats-Num-Pending: 0"}, data: "numbered", id: "numbered"},

		// Subjects.
		{name: "a stream's answer sent back as a submission", reply: "tinker.submit", data: "echo", id: "echo"},
		{name: "an answer to live subscribers", reply: "tinker.state.good-1", data: "fooling", id: "fooling"},
		{name: "an answer to nobody", reply: "nobody", data: "answered", id: "answered"},
	}
	for _, status := range []string{"100", "204", "400", "404", "408", "409", "423", "500", "503", "x"} {
		list = append(list,
			attack{name: "the status " + status, header: []string{"Status: " + status, "Description: Consumer Deleted"}, rejected: empty},
			attack{name: "the status " + status + " and an id", header: []string{"Status: " + status, "Bridge-Request-Id: status-" + status}, id: "status-" + status},
			attack{name: "the status " + status + " in front", header: []string{"Bridge-Request-Id: first-" + status, "Nats-Pin-Id: x\r\nStatus: " + status}, id: "first-" + status})
	}
	for i, token := range []string{"team.a", "*", ">", "a.*.b", "$JS.API", "\x01\x7f", "\xff\xfe", "ü", strings.Repeat("x", 3000), "a..b", "{}", "%d", "-1", "=", "~"} {
		id := fmt.Sprintf("routed-%d", i)
		list = append(list, attack{name: "the routing key " + token, subject: "tinker.submit." + token, data: id, id: id},
			attack{name: "rubbish with the routing key " + token, subject: "tinker.submit." + token, rejected: empty})
	}
	for _, header := range []string{
		"Nats-Rollup: all", "Nats-Rollup: sub", "Nats-TTL: 1s", "Nats-TTL: never", "Nats-Schedule: @every 1s", "Nats-Schedule-Target: tinker.submit", "Nats-Schedule-TTL: 1s",
		"Nats-Expected-Stream: OTHER", "Nats-Expected-Last-Sequence: 999999", "Nats-Expected-Last-Msg-Id: x", "Nats-Expected-Last-Subject-Sequence: 0",
		"Nats-Incr: 1", "Nats-Batch-Id: b", "Nats-Batch-Sequence: 1", "Nats-Msg-Id: m", "Nats-Marker-Reason: Purge", "Nats-Required-Api-Level: 99",
		"Nats-Trace-Dest: tinker.submit", "Nats-Consumer-Stalled: x", "Nats-Response-Type: x", "Nats-Request-Info: {}",
	} {
		id := "header-" + strings.NewReplacer(":", "", " ", "-", "@", "").Replace(header)
		list = append(list, attack{name: header, header: []string{header}, data: id, id: id})
	}
	return list
}

// asked notes what a bridge asks the upstream for.
type asked struct {
	poll.Retriever
	mu  sync.Mutex
	ids map[string]bool
}

func (a *asked) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	a.mu.Lock()
	a.ids[q.RequestID] = true
	a.mu.Unlock()
	return a.Retriever.Retrieve(ctx, q)
}

func TestHostileSubmissionsEndAndHarmNobody(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, job(2*time.Second))
		w.custom(func(o *server.Options) { o.SyncAlways = false })
		spy := &asked{ids: map[string]bool{}}
		b := w.odd("bridge-1", seams{retriever: func(r poll.Retriever) poll.Retriever {
			spy.Retriever = r
			return spy
		}})
		wanted, stored, ids := map[uint64]attack{}, 0, map[string]bool{}
		begin := time.Now()
		for i, a := range attacks() {
			good := fmt.Sprint("good-", i)
			w.submit(good)
			ids[good] = true
			sent := time.Now()
			seq := w.raw(a)
			if seq == 0 {
				t.Logf("the server itself refuses %s", a.name)
				continue
			}
			stored++
			if a.id != "" {
				ids[a.id] = true
				w.run.Accepted = append(w.run.Accepted, history.Submission{ID: a.id, Timeout: 24 * time.Hour, Sent: sent, Acked: time.Now()})
				continue
			}
			require.NotEmpty(t, a.rejected, "%s: it should not have been stored", a.name)
			wanted[seq] = a
		}
		require.Greater(t, stored, 90, "the server lets most of it through")
		w.settled(time.Minute)
		require.Less(t, time.Since(begin), time.Duration(len(attacks())+60)*time.Second, "nobody had to wait for another delivery")
		require.Empty(t, b.intake.Trouble())

		rejections := w.rejections()
		for seq, a := range wanted {
			m := rejections[seq]
			require.NotNil(t, m, a.name)
			reason := m.Header.Get(publish.HeaderRejectedReason)
			require.True(t, strings.HasPrefix(reason, a.rejected), "%s: %s", a.name, reason)
			require.True(t, bytes.HasPrefix([]byte(a.data), m.Data), a.name)
			require.LessOrEqual(t, len(m.Data), 64<<10)
			delete(rejections, seq)
		}
		for seq, m := range rejections { // answers of the server that were sent back, and notes of its tracing
			require.Contains(t, string(m.Data), "TINKER_WORK", "number %d", seq)
		}
		require.LessOrEqual(t, len(rejections), 2)
		report := w.judge()
		require.Equal(t, map[history.Rule]int{history.Stored: 1}, report.Broken, "live subscribers were fooled once: %s", report.Violations)
		require.Equal(t, report.Accepted, report.Terminal)
		for id := range spy.ids {
			require.True(t, ids[id], "the upstream was asked for %.80q", id)
		}
		w.close()
	})
}

// A server sends its acknowledgement of a submission wherever the submitter says, also where only bridges may publish.
func TestAnAckThatIsSentToAnEventSubjectStopsNobody(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, job(20*time.Second))
		w.custom(func(o *server.Options) {
			o.NoAuthUser = "bridge"
			o.Users = []*server.User{{Username: "bridge", Password: "x"}, {Username: "submitter", Password: "x", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: []string{"tinker.submit"}},
			}}}
		})
		w.bridge("bridge-1")
		w.submit("first") // waits for the connection
		submitter := func(subject string) {
			id := "from-" + strings.ReplaceAll(subject, ".", "-") + time.Now().Format("-05.999")
			sent := time.Now()
			require.NotZero(t, w.raw(attack{reply: subject, data: id}))
			w.run.Accepted = append(w.run.Accepted, history.Submission{ID: id, Timeout: 24 * time.Hour, Sent: sent, Acked: time.Now()})
		}
		submitter("ingest.tinker.result.victim")
		submitter("ingest.tinker.state.victim")
		w.submit("victim")
		time.Sleep(5 * time.Second)
		submitter("ingest.tinker.state.victim") // on its log
		submitter("ingest.tinker.rejected.10")  // in place of a rejection
		w.settled(time.Minute)
		submitter("ingest.tinker.state.victim") // on its closing record
		submitter("ingest.tinker.result.victim")
		w.submit("victim")
		require.Equal(t, uint64(10), w.raw(attack{}))
		w.settled(time.Minute)
		report := w.judge()
		require.Equal(t, map[history.Rule]int{history.Genuine: 5}, report.Broken, "%s", report.Violations)
		require.Equal(t, report.Accepted, report.Terminal)
		w.close()
	})
}

// Submissions that are large together come in several fetches, and one that is larger than a fetch comes alone.
func TestALargeSubmissionBlocksNoOther(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, job(time.Second))
		w.custom(func(o *server.Options) { o.MaxPayload, o.SyncAlways = 24<<20, false })
		w.bridge("bridge-1").stop()
		w.submit("first")
		huge := w.raw(attack{data: strings.Repeat("x", 20<<20)})
		for i := range 5 {
			require.NotZero(t, w.raw(attack{data: fmt.Sprint(i, strings.Repeat("x", 7<<20))}))
		}
		w.submit("last")
		b := w.bridge("bridge-2")
		w.settled(30 * time.Second)
		require.Empty(t, b.intake.Trouble())
		rejections := w.rejections()
		require.Len(t, rejections, 6)
		require.Equal(t, []string{fmt.Sprint(20 << 20)}, rejections[huge].Header[publish.HeaderRejectedBytes])
		w.check()
		w.close()
	})
}

// Rubbish costs a bounded amount of store, and holds up nobody.
func TestAFloodOfRubbishHoldsUpNobody(t *testing.T) {
	const rubbish, good = 20_000, 100
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, job(2*time.Second))
		w.custom(func(o *server.Options) { o.SyncAlways = false })
		b := w.bridge("bridge-1")
		body := bytes.Repeat([]byte("x"), 4000)
		w.submit("first") // waits for the connection
		begin := time.Now()
		for i := range rubbish {
			require.NoError(t, w.nc.Publish("tinker.submit", body))
			if i%(rubbish/good) == 0 {
				w.submit(fmt.Sprint("good-", i))
			}
		}
		w.settled(time.Minute)
		require.Less(t, time.Since(begin), 30*time.Second)
		w.check()
		require.Empty(t, b.notReady())
		stream, err := w.js.Stream(t.Context(), w.names.RejectedStream())
		require.NoError(t, err)
		state := stream.CachedInfo().State
		require.EqualValues(t, rubbish, state.LastSeq, "each was rejected")
		require.LessOrEqual(t, state.Bytes, uint64(64<<20))
		require.Greater(t, state.Msgs, uint64(10_000), "the oldest made room")
		w.close()
	})
}
