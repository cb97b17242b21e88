package fleet

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

const (
	bucket  = "TEAM"
	ackWait = 10 * time.Second
)

// team is some members of one bucket, on a real server, in virtual time.
type team struct {
	t      *testing.T
	js     jetstream.JetStream
	deny   atomic.Bool // the bucket cannot be made
	made   atomic.Int32
	server *testbed.Server
}

func bubble(t *testing.T, test func(t *testing.T, team *team)) {
	t.Helper()
	testbed.Bubble(t, func(t *testing.T) {
		g := &team{t: t, server: testbed.NewServer(t, nil)}
		_, g.js = g.connect()
		test(t, g)
	})
}

func (g *team) connect() (*nats.Conn, jetstream.JetStream) {
	nc := g.server.Connect()
	js, err := jetstream.New(nc)
	require.NoError(g.t, err)
	return nc, js
}

func (g *team) make(ctx context.Context) error {
	if g.deny.Load() {
		return nats.ErrPermissionViolation
	}
	g.made.Add(1)
	_, err := g.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: time.Hour})
	return err
}

// member is one that runs.
type member struct {
	*Member
	nc      *nats.Conn
	log     bytes.Buffer
	changes []int
	cancel  context.CancelFunc
	ended   chan struct{}
}

func (g *team) join() *member {
	m := &member{ended: make(chan struct{})}
	var js jetstream.JetStream
	m.nc, js = g.connect()
	m.Member = New(Config{
		JetStream: js, Bucket: bucket, Make: g.make, AckWait: ackWait, Log: slog.New(slog.NewTextHandler(&m.log, nil)),
		Changed: func(bridges int) {
			require.NotEqual(g.t, bridges, m.Size(), "it is told before Size says so")
			m.changes = append(m.changes, bridges)
		},
	})
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	go func() {
		m.Run(ctx)
		close(m.ended)
	}()
	g.t.Cleanup(m.leave)
	return m
}

// leave ends a member in order.
func (m *member) leave() {
	m.cancel()
	<-m.ended
}

// die ends a member without a word.
func (m *member) die() {
	m.nc.Close()
	m.leave()
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestANewMemberCountsBeforeItMayPoll(t *testing.T) {
	bubble(t, func(t *testing.T, g *team) {
		first := g.join()
		after(1500 * time.Millisecond)
		require.Zero(t, first.Size())
		after(time.Second)
		require.Equal(t, 1, first.Size())
		require.EqualValues(t, 1, g.made.Load())

		second := g.join()
		after(1200 * time.Millisecond)
		require.Equal(t, 2, first.Size(), "it has made room")
		require.Zero(t, second.Size(), "before the other begins")
		after(time.Second)
		require.Equal(t, 2, second.Size())
		after(time.Minute)
		require.Equal(t, [][]int{{1, 2}, {2}}, [][]int{first.changes, second.changes}, "only changes are told")

		second.leave()
		after(1100 * time.Millisecond)
		require.Equal(t, 1, first.Size(), "at once")
	})
}

func TestAMemberThatDiedCountsUntilItsLeasesAreOver(t *testing.T) {
	bubble(t, func(t *testing.T, g *team) {
		first, second := g.join(), g.join()
		after(10 * time.Second)
		require.Equal(t, 2, first.Size())
		second.die()
		after(ackWait)
		require.Equal(t, 2, first.Size(), "it may have polled until now")
		after(5 * time.Second)
		require.Equal(t, 1, first.Size())
	})
}

func TestAMemberThatCannotReachTheBucketKeepsItsPartForALease(t *testing.T) {
	bubble(t, func(t *testing.T, g *team) {
		first, second := g.join(), g.join()
		after(10 * time.Second)
		g.deny.Store(true)
		require.NoError(t, g.js.DeleteKeyValue(t.Context(), bucket))
		after(ackWait - 2*time.Second)
		require.Equal(t, 2, first.Size())
		after(5 * time.Second)
		require.Zero(t, first.Size(), "it has to join anew")
		require.Zero(t, second.Size())
		require.Equal(t, 1, bytes.Count(first.log.Bytes(), []byte("cannot tell how many bridges share")), "once, not each second")

		g.deny.Store(false) // it is made anew, by whoever comes first
		after(5 * time.Second)
		require.Equal(t, []int{2, 2}, []int{first.Size(), second.Size()})
		require.Equal(t, []int{2, 2}, second.changes)
	})
}

func TestWhatElseIsInTheBucketIsNoMember(t *testing.T) {
	bubble(t, func(t *testing.T, g *team) {
		first := g.join()
		after(5 * time.Second)
		kv, err := g.js.KeyValue(t.Context(), bucket)
		require.NoError(t, err)
		for range 3 { // of members that left
			_, err = kv.PutString(t.Context(), "gone", "")
			require.NoError(t, err)
			require.NoError(t, kv.Delete(t.Context(), "gone"))
		}
		after(2 * time.Second)
		require.Equal(t, 1, first.Size())
		require.Equal(t, []int{1}, first.changes)
		first.leave()
		left, err := kv.ListKeys(t.Context())
		require.NoError(t, err)
		for key := range left.Keys() {
			t.Errorf("%s is left", key)
		}
	})
}
