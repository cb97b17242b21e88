//go:build unix

package chaos

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/embedded"
)

// proxied is a server and a proxy in front of it.
func proxied(t *testing.T) (*Proxy, *embedded.Server) {
	t.Helper()
	server, err := embedded.Start(embedded.Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Shutdown)
	p, err := NewProxy(strings.TrimPrefix(server.ClientURL(), "nats://"))
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p, server
}

func dial(t *testing.T, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.ReconnectWait(10 * time.Millisecond)}, options...)...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func TestFramesPassUnchanged(t *testing.T) {
	p, server := proxied(t)
	out, in := dial(t, p.URL()), dial(t, server.ClientURL())
	sub, err := in.SubscribeSync("a.*")
	require.NoError(t, err)
	require.NoError(t, in.Flush())
	for _, m := range []*nats.Msg{
		{Subject: "a.empty"},
		{Subject: "a.reply", Reply: "b", Data: []byte("PUB a.x 3\r\nabc\r\n")},
		{Subject: "a.header", Header: nats.Header{"K": {"v", "w"}}, Data: []byte("x\r\n")},
		{Subject: "a.large", Header: nats.Header{"K": {"v"}}, Data: []byte(strings.Repeat("0123456789", 90_000))},
	} {
		require.NoError(t, out.PublishMsg(m))
		got, err := sub.NextMsg(10 * time.Second)
		require.NoError(t, err)
		require.Equal(t, m.Subject, got.Subject)
		require.Equal(t, m.Reply, got.Reply)
		require.Equal(t, m.Header, got.Header)
		require.Equal(t, string(m.Data), string(got.Data))
	}
	require.Empty(t, out.DiscoveredServers())
}

func TestAnAckIsKnownByItsPublishAndCanBeLost(t *testing.T) {
	p, server := proxied(t)
	js, err := jetstream.New(dial(t, server.ClientURL()))
	require.NoError(t, err)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}})
	require.NoError(t, err)
	nc := dial(t, p.URL())
	lost := p.On(Rule{Answer: true, Verb: "PUB", Subject: "s.*", Header: "Kind: bad\r\n", Payload: "be", Nth: 2, Fate: Drop})
	publish := func(kind, data string) error {
		_, err := nc.RequestMsg(&nats.Msg{Subject: "s.1", Header: nats.Header{"Kind": {kind}}, Data: []byte(data)}, 200*time.Millisecond)
		return err
	}
	require.NoError(t, publish("bad", "begin"), "the first occurrence")
	require.NoError(t, publish("good", "begin"), "another header")
	require.NoError(t, publish("bad", "end"), "another payload")
	require.ErrorIs(t, publish("bad", "begin"), nats.ErrTimeout)
	require.NoError(t, publish("bad", "begin"), "once only")
	require.Equal(t, 1, p.Acted(lost))
	info, err := stream.Info(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 5, info.State.Msgs, "the server stored what it was sent")
}

func TestAMessageThatIsCutOffDoesNotArriveButThoseBeforeItDo(t *testing.T) {
	p, server := proxied(t)
	in := dial(t, server.ClientURL())
	sub, err := in.SubscribeSync("x")
	require.NoError(t, err)
	require.NoError(t, in.Flush())
	back := make(chan struct{}, 1)
	out := dial(t, p.URL(), nats.ReconnectBufSize(-1), nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
	before := 0
	cut := p.On(Rule{Verb: "PUB", Subject: "x", Nth: 100, Before: func(*Frame) { before++ }, Fate: Cut})
	for range 200 {
		_ = out.Publish("x", []byte("payload"))
	}
	<-cut.Reached()
	<-back
	for range 99 {
		_, err := sub.NextMsg(10 * time.Second)
		require.NoError(t, err)
	}
	require.NoError(t, out.Publish("x", []byte("after")))
	next, err := sub.NextMsg(10 * time.Second)
	require.NoError(t, err)
	require.Equal(t, "after", string(next.Data))
	require.Equal(t, 1, before)
	require.Equal(t, 2, p.Accepted())
}

func TestAConnectionThatVanishesIsNoticedByPingsOnly(t *testing.T) {
	p, _ := proxied(t)
	ended := make(chan error, 1)
	nc := dial(t, p.URL(), nats.PingInterval(100*time.Millisecond), nats.MaxPingsOutstanding(1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { ended <- err }))
	require.NoError(t, nc.Flush())
	p.Vanish()
	require.ErrorIs(t, nc.FlushTimeout(50*time.Millisecond), nats.ErrTimeout)
	require.ErrorIs(t, <-ended, nats.ErrStaleConnection)
	await(t, "it connects anew", 10*time.Second, nc.IsConnected)
	require.NoError(t, nc.Flush())
}

func TestAfterIsWhenTheClientHasRead(t *testing.T) {
	p, _ := proxied(t)
	nc := dial(t, p.URL())
	var read atomic.Bool
	done := make(chan struct{})
	p.On(Rule{Direction: ToClient, Verb: "MSG", Subject: "y", After: func() {
		// The client's reader has queued it for the subscription; all of the statistics are its reader's too.
		read.Store(nc.Stats().InMsgs == 1)
		close(done)
	}})
	_, err := nc.SubscribeSync("y")
	require.NoError(t, err)
	require.NoError(t, nc.Publish("y", nil))
	<-done
	require.True(t, read.Load())
	require.NoError(t, nc.Flush(), "the proxy's own PING has no consequences")
}

func TestTheServersOtherAddressesAreKeptFromTheClient(t *testing.T) {
	info, err := keepAddress(`{"server_id":"X","max_payload":1048576,"connect_urls":["127.0.0.1:1"],"client_ip":"::1"}`)
	require.NoError(t, err)
	require.Equal(t, "INFO {\"client_ip\":\"::1\",\"max_payload\":1048576,\"server_id\":\"X\"}\r\n", string(info))
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"a.b", "a.b", true},
		{"a.b", "a.bc", false},
		{"a.*", "a.", true},
		{"a.*", "a.b.c", true},
		{"*.c", "a.b.c", true},
		{"$O.*.C.*", "$O.TINKER_LARGE.C.xyz", true},
		{"$O.*.C.*", "$O.TINKER_LARGE.M.xyz", false},
		{"*", "", true},
	} {
		require.Equal(t, c.want, glob(c.pattern, c.text), "%s %s", c.pattern, c.text)
	}
}
