package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

func TestAResultIsFoundOnceItIsStored(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		c := b.client()
		id := "a.b *>/ü"
		_, err := c.Result(t.Context(), id)
		require.ErrorIs(t, err, ErrNotYet)
		b.complete(id, `{"n":12345678901234567890}`)
		r, err := c.Result(t.Context(), id)
		require.NoError(t, err)
		data, err := r.Bytes(t.Context())
		require.NoError(t, err)
		require.Equal(t, `{"n":12345678901234567890}`, string(data))
		require.Equal(t, id, r.RequestID)
		require.Equal(t, 3, r.Polls)
		require.EqualValues(t, len(data), r.Size)
		rd, err := r.Open(t.Context())
		require.NoError(t, err)
		again, err := io.ReadAll(rd)
		require.NoError(t, err)
		require.Equal(t, data, again)
		require.NoError(t, rd.Close())

		b.fail("bad", poll.Failed)
		_, err = c.Result(t.Context(), "bad")
		var ended *RequestError
		require.ErrorAs(t, err, &ended)
		require.Equal(t, &RequestError{
			RequestID: "bad", Status: StatusFailed, Type: "request_failed", Category: "user", Message: "bad prompt", Polls: 3,
			Elapsed: 1500 * time.Millisecond, Body: ended.Body,
		}, ended)
		require.Contains(t, string(ended.Body), `"message":"bad prompt"`)
		require.EqualError(t, err, `request "bad" failed: bad prompt`)

		b.put("odd", StatusLost, nil, []byte("no json"))
		_, err = c.Result(t.Context(), "odd")
		require.ErrorAs(t, err, &ended)
		require.Contains(t, ended.Message, "cannot be read")
		_, err = c.Result(t.Context(), " ")
		require.Error(t, err)
	})
}

// foreign are messages that no bridge writes, as a client that checks nothing puts them onto a subject.
var foreign = map[string]string{
	"bare":                    "NATS/1.0\r\nX: y\r\n\r\n",
	"the end of a batch":      "NATS/1.0\r\nStatus: 204\r\nNats-Num-Pending: 0\r\n\r\n",
	"a heartbeat":             "NATS/1.0\r\nStatus: 100\r\nNats-Consumer-Stalled: tinker.submit\r\n\r\n",
	"an absence":              "NATS/1.0\r\nStatus: 404\r\n\r\n",
	"an end by time":          "NATS/1.0\r\nStatus: 408\r\n\r\n",
	"a consumer that is gone": "NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n",
	"no responders":           "NATS/1.0\r\nStatus: 503\r\n\r\n",
	"status line":             "NATS/1.0 503\r\n\r\n",
	"another place":           "NATS/1.0\r\nNats-Sequence: 9999\r\nNats-Subject: tinker.state.b\r\nNats-Time-Stamp: never\r\n\r\n",
	"headers that are none":   "NATS/1.0\r\nno colon\r\n\r\n",
}

// intrude puts an empty message with these headers where only bridges may.
func (b *bed) intrude(subject, header string) {
	b.t.Helper()
	conn, err := b.InProcessConn()
	require.NoError(b.t, err)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_, err = fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB ingest.%s %d %d\r\n%s\r\n", subject, len(header), len(header), header)
	require.NoError(b.t, err)
	time.Sleep(time.Second)
	require.NoError(b.t, conn.Close())
}

func TestWhatNoBridgeWroteIsNoResultAndHidesNone(t *testing.T) {
	for name, header := range foreign {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				c := b.client()
				b.intrude("tinker.result.a", header)
				b.intrude("tinker.result.a", header)
				_, err := c.Result(t.Context(), "a")
				require.ErrorIs(t, err, ErrNotYet)
				waited := make(chan error, 1)
				go func() {
					_, err := c.Wait(t.Context(), "a")
					waited <- err
				}()
				time.Sleep(time.Minute)
				require.Empty(t, waited)
				b.complete("a", "1")
				require.NoError(t, <-waited)
				b.intrude("tinker.result.a", header)
				r, err := c.Result(t.Context(), "a")
				require.NoError(t, err)
				require.EqualValues(t, 3, r.Seq)
			})
		})
	}
}

func TestAWatchPassesOverWhatNoBridgeWrote(t *testing.T) {
	for name, header := range foreign {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				b.intrude("tinker.state.a", header)
				b.state("a", "queued")
				b.intrude("tinker.state.a", header)
				begin := time.Now()
				go func() {
					time.Sleep(time.Minute)
					b.intrude("tinker.state.a", header) // while it is watched
					b.complete("a", "1")
				}()
				var lines []string
				for e, err := range b.client().Watch(t.Context(), WatchOptions{IDs: []string{"a"}}) {
					require.NoError(t, err)
					lines = append(lines, line(e))
				}
				require.Equal(t, []string{"a queued", "a! completed"}, lines)
				require.Less(t, time.Since(begin), 62*time.Second, "nothing held it up")
			})
		})
	}
}

func TestALargeResultComesFromTheObjectStoreAndIsChecked(t *testing.T) {
	b := newBed(t) // the object store reads through a pipe with real deadlines
	c := b.client()
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	b.complete("big", string(data))
	r, err := c.Result(t.Context(), "big")
	require.NoError(t, err)
	require.EqualValues(t, len(data), r.Size)
	got, err := r.Bytes(t.Context())
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))

	store, err := b.js.ObjectStore(t.Context(), b.names.LargeBucket())
	require.NoError(t, err)
	_, err = store.PutBytes(t.Context(), "other", data)
	require.NoError(t, err)
	b.put("forged", StatusCompleted, nats.Header{
		publish.HeaderResultObject: {"other"}, publish.HeaderResultBytes: {fmt.Sprint(len(data))}, publish.HeaderResultDigest: {"SHA-256=AAAA"},
	}, nil)
	r, err = c.Result(t.Context(), "forged")
	require.NoError(t, err)
	_, err = r.Bytes(t.Context())
	require.ErrorIs(t, err, jetstream.ErrDigestMismatch)

	objects, err := store.List(t.Context())
	require.NoError(t, err)
	for _, object := range objects {
		require.NoError(t, store.Delete(t.Context(), object.Name))
	}
	r, err = c.Result(t.Context(), "big")
	require.NoError(t, err)
	_, err = r.Bytes(t.Context())
	require.ErrorIs(t, err, jetstream.ErrObjectNotFound)
}

func TestWaitReturnsAtOnceWhenTheResultComes(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		c := b.client()
		begin := time.Now()
		stored := make(chan struct{})
		time.AfterFunc(17*time.Minute+time.Second, func() { b.complete("a", "1") })
		r, err := c.Wait(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "a", r.RequestID)
		require.Less(t, time.Since(begin), 17*time.Minute+2*time.Second, "not only at the next look")

		_, err = c.Wait(t.Context(), "a") // it is there already
		require.NoError(t, err)
		time.AfterFunc(time.Minute, func() { b.fail("bad", poll.TimedOut); close(stored) })
		_, err = c.Wait(t.Context(), "bad")
		<-stored
		var ended *RequestError
		require.ErrorAs(t, err, &ended)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = c.Wait(ctx, "never")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestWaitFindsAResultThatCameDuringAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		waiter := b.connect()
		defer waiter.Close()
		c, err := New(waiter)
		require.NoError(t, err)
		ended := make(chan struct{})
		time.AfterFunc(time.Minute, b.Stop)
		time.AfterFunc(3*time.Minute, func() {
			b.Start()
			for !b.nc.IsConnected() {
				time.Sleep(10 * time.Millisecond)
			}
			b.complete("a", "1")
			close(ended)
		})
		begin := time.Now()
		_, err = c.Wait(t.Context(), "a")
		require.NoError(t, err)
		require.Less(t, time.Since(begin), 3*time.Minute+40*time.Second)
		<-ended

		waiter.Close()
		_, err = c.Wait(t.Context(), "b")
		require.Error(t, err, "nothing comes over a connection that was closed for good")
	})
}

func TestWhereNoBridgeIsEverythingSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		c := b.client(WithPrefix("other"))
		require.ErrorIs(t, c.Submit(t.Context(), Request{ID: "a"}), ErrNoBridge)
		_, err := c.Result(t.Context(), "a")
		require.ErrorIs(t, err, ErrNoBridge)
		require.ErrorContains(t, err, "stream OTHER_RESULTS does not exist; start `bridge serve`")
		_, err = c.Wait(t.Context(), "a")
		require.ErrorIs(t, err, ErrNoBridge)
		for _, err := range c.Watch(t.Context(), WatchOptions{All: true}) {
			require.ErrorIs(t, err, ErrNoBridge)
		}
		for _, err := range c.SubmitAll(t.Context(), slices.Values([]Request{{ID: "a"}})) {
			require.ErrorIs(t, err, ErrNoBridge)
		}
	})
}
