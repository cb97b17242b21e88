package history

import (
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// newServer is a real one, with the streams of a bridge.
func newServer(t testing.TB) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc := testbed.NewServer(t, nil).Connect()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = publish.Ensure(t.Context(), js, tinker, publish.Options{})
	require.NoError(t, err)
	return nc, js
}

// message is a record as a bridge publishes it.
func message(r Record) *nats.Msg {
	return &nats.Msg{Subject: "ingest." + r.Subject, Data: r.Data, Header: nats.Header{
		publish.HeaderRequestID: {r.RequestID}, publish.HeaderStatus: {r.Status}, publish.HeaderPolls: {strconv.Itoa(r.Polls)},
		publish.HeaderSubmittedAt: {r.SubmittedAt.Format(time.RFC3339Nano)}, publish.HeaderContentType: {r.ContentType},
		nats.MsgIdHdr: {r.MsgID}, "ce-id": {r.MsgID}, "ce-time": {r.Time.Format(time.RFC3339Nano)}, "ce-source": {"/tinker"},
		"ce-specversion": {"1.0"}, "ce-type": {"futurebridge." + string(r.Kind)}, "ce-subject": {r.Subject},
	}}
}

func store(t testing.TB, js jetstream.JetStream, records []Record) {
	t.Helper()
	for _, r := range records {
		_, err := js.PublishMsgAsync(message(r), jetstream.WithStallWait(time.Minute))
		require.NoError(t, err)
	}
	<-js.PublishAsyncComplete()
}

func TestWhatWasReadBackIsJudgedAsItWasStored(t *testing.T) {
	nc, js := newServer(t)
	listener, err := Listen(nc, tinker, "watcher")
	require.NoError(t, err)
	k := history(10)
	k.run.DeadlineSlack = 0 // the server stores it now
	store(t, js, k.states)
	store(t, js, k.results)
	require.NoError(t, nc.Flush())
	require.Eventually(t, func() bool { return len(listener.Sightings()) == 40 }, 10*time.Second, time.Millisecond)
	k.run.Live = listener.Sightings()
	report, err := k.run.Judge(t.Context(), js, tinker)
	require.NoError(t, err)
	require.Empty(t, report.Violations)
	require.Equal(t, 40, report.Events)
	require.Equal(t, 40, report.Sighted)

	_, err = js.Publish(t.Context(), "tinker.submit", []byte("left"))
	require.NoError(t, err)
	lacking := message(k.results[0])
	lacking.Header.Del("ce-time")
	lacking.Header.Set(nats.MsgIdHdr, "another")
	lacking.Subject = "ingest.tinker.result.req-11"
	lacking.Header.Set(publish.HeaderRequestID, "req-11")
	_, err = js.PublishMsg(t.Context(), lacking)
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "ingest.tinker.state.req-3", []byte("by hand"))
	require.NoError(t, err)
	k.run.Accepted = append(k.run.Accepted, Submission{ID: "req-11"})
	report, err = k.run.Judge(t.Context(), js, tinker)
	require.NoError(t, err)
	require.Equal(t, map[Rule]int{WorkDone: 1, Headers: 1, Genuine: 1, Bytes: 1, OneClosing: 1}, report.Broken)
	require.Contains(t, report.Violations[0], `"": only bridges write events: message 31 of TINKER_STATES, on tinker.state.req-3`)
	require.Contains(t, report.Violations[1], `"req-11": required headers: message 11 of TINKER_RESULTS lacks, or has wrong: ce-id, ce-subject, ce-time`)
}

func TestALiveMessageThatWasNotStoredIsFound(t *testing.T) {
	nc, js := newServer(t)
	listener, err := Listen(nc, tinker, "watcher")
	require.NoError(t, err)
	k := history(2)
	k.run.DeadlineSlack = 0
	store(t, js, k.states)
	store(t, js, k.results)
	forged := message(k.results[1])
	forged.Subject = "tinker.result.req-1"
	require.NoError(t, nc.PublishMsg(forged))
	require.Eventually(t, func() bool { return len(listener.Sightings()) == 9 }, 10*time.Second, time.Millisecond)
	k.run.Live = listener.Sightings()
	report, err := k.run.Judge(t.Context(), js, tinker)
	require.NoError(t, err)
	require.Equal(t, map[Rule]int{Stored: 1}, report.Broken)
	require.Contains(t, report.Violations[0], `request "req-1"`)
}

func TestReadingFailsWhenTheStreamIsGoneOrStillWrittenTo(t *testing.T) {
	_, js := newServer(t)
	k := history(3)
	store(t, js, k.states)
	added := false
	err := readEach(t.Context(), js, tinker, tinker.StatesStream(), func(Record) {
		if !added {
			added = true
			store(t, js, history(4).states[9:10])
		}
	})
	require.ErrorContains(t, err, "it is still written to")
	require.NoError(t, js.DeleteStream(t.Context(), tinker.StatesStream()))
	_, err = Read(t.Context(), js, tinker, tinker.StatesStream())
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	_, err = k.run.Judge(t.Context(), js, tinker)
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
}
