package client

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func TestASubmissionIsStoredAsItWasMeant(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		c := b.client()
		require.NoError(t, c.Submit(t.Context(), Request{ID: "plain"}))
		require.NoError(t, c.Submit(t.Context(), Request{
			ID: "{<ü> & \"", Type: "sample", Timeout: time.Minute, Labels: map[string]string{"a": "b"}, Key: "team.ada",
			Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		}))
		stream, err := b.js.Stream(t.Context(), b.names.WorkStream())
		require.NoError(t, err)
		msg, err := stream.GetMsg(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, "tinker.submit", msg.Subject)
		require.JSONEq(t, `{"request_id":"plain"}`, string(msg.Data))
		require.Empty(t, msg.Header.Get("Nats-Msg-Id"), "the same id may be submitted again")
		msg, err = stream.GetMsg(t.Context(), 2)
		require.NoError(t, err)
		require.Equal(t, "tinker.submit.team.ada", msg.Subject)
		require.JSONEq(t, `{"request_id":"{<ü> & \"","timeout_ms":60000,"request_type":"sample","labels":{"a":"b"}}`, string(msg.Data))
		require.NotEmpty(t, msg.Header.Get("traceparent"))
	})
}

func TestARequestThatCannotBeOneIsNotSent(t *testing.T) {
	c, err := New(nil, WithJetStream(new(fakeJetStream)))
	require.NoError(t, err)
	for _, r := range []Request{
		{}, {ID: " a"}, {ID: "a\n"}, {ID: "a\xff"}, {ID: strings.Repeat("x", 1025)},
		{ID: "a", Timeout: -1}, {ID: "a", Timeout: 1}, {ID: "a", Timeout: 1000 * time.Hour}, {ID: "a", Type: "ü"},
		{ID: "a", Labels: map[string]string{"a": strings.Repeat("x", 5000)}},
		{ID: "a", Key: "*"}, {ID: "a", Key: "a..b"}, {ID: "a", Key: "a b"}, {ID: "a", Key: ">"}, {ID: "a", Key: strings.Repeat("x", 300)},
	} {
		require.Error(t, c.Submit(t.Context(), r), "%+v", r)
	}
	_, err = New(nil, WithPrefix("a b"))
	require.Error(t, err)
}

// fakeJetStream panics when it is used.
type fakeJetStream struct{ jetstream.JetStream }

func TestOneBadRequestOfManyStopsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		requests := func(yield func(Request) bool) {
			for i := range 2000 {
				id := fmt.Sprint("r", i)
				if i == 7 {
					id = ""
				}
				if !yield(Request{ID: id}) {
					return
				}
			}
		}
		n := 0
		for r, err := range b.client().SubmitAll(t.Context(), requests) {
			if n == 7 {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint("r", n), r.ID)
			}
			n++
		}
		require.Equal(t, 2000, n)
		stream, err := b.js.Stream(t.Context(), b.names.WorkStream())
		require.NoError(t, err)
		require.EqualValues(t, 1999, stream.CachedInfo().State.Msgs)
	})
}

func TestSubmissionsOutliveARestartOfTheServer(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		c := b.client()
		n := 0
		requests := func(yield func(Request) bool) {
			for i := range 50 {
				if i == 25 {
					b.Stop()
					time.AfterFunc(5*time.Second, b.Start)
				}
				if !yield(Request{ID: fmt.Sprint("r", i)}) {
					return
				}
			}
		}
		for r, err := range c.SubmitAll(t.Context(), requests) {
			require.NoError(t, err, r.ID)
			n++
		}
		require.Equal(t, 50, n)
	})
}

func TestSubmittingEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		block := make(chan struct{})
		requests := func(yield func(Request) bool) {
			_ = yield(Request{ID: "a"})
			<-block // a terminal that nobody types into
		}
		n := 0
		for _, err := range b.client().SubmitAll(ctx, requests) {
			require.NoError(t, err)
			n++
			cancel()
		}
		require.Equal(t, 1, n)
		close(block)
	})
}
