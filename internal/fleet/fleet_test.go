package fleet

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
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
	mu      sync.Mutex
	changes []int
	before  []int // Size when that was told
	cancel  context.CancelFunc
	ended   chan struct{}
}

func (g *team) join() *member { return g.joinAt(60) }

func (g *team) joinAt(rate float64) *member {
	m := &member{ended: make(chan struct{})}
	var js jetstream.JetStream
	m.nc, js = g.connect()
	m.Member = New(Config{
		JetStream: js, Bucket: bucket, Make: g.make, AckWait: ackWait, Rate: rate, Log: slog.New(slog.NewTextHandler(&m.log, nil)),
		Changed: func(parts int) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.changes, m.before = append(m.changes, parts), append(m.before, m.Size())
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

// changed is what was told so far, and Size at that moment.
func (m *member) changed() (parts, before []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.changes), slices.Clone(m.before)
}

func (m *member) parts() []int {
	parts, _ := m.changed()
	return parts
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
		firsts, firstBefore := first.changed()
		seconds, secondBefore := second.changed()
		require.Equal(t, [][]int{{1, 2}, {2}}, [][]int{firsts, seconds}, "only changes are told")
		require.Equal(t, [][]int{{0, 1}, {0}}, [][]int{firstBefore, secondBefore}, "before Size says so")

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
		require.Equal(t, []int{2, 2}, second.parts())
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
		require.Equal(t, []int{1}, first.parts())
		first.leave()
		left, err := kv.ListKeys(t.Context())
		require.NoError(t, err)
		for key := range left.Keys() {
			t.Errorf("%s is left", key)
		}
	})
}

// told is how often a member's log says something.
func (m *member) told(text string) int { return bytes.Count(m.log.Bytes(), []byte(text)) }

func TestMembersThatDifferKeepToTheLeastRateOfThoseWhoLive(t *testing.T) {
	const differ, same = "bridges differ in --polls-per-second", "all bridges have the same --polls-per-second again"
	bubble(t, func(t *testing.T, g *team) {
		fast, also := g.joinAt(60), g.joinAt(60)
		after(5 * time.Second)
		require.Equal(t, []int{2}, fast.parts())
		require.Zero(t, fast.told(differ))

		slow := g.joinAt(20)
		after(1200 * time.Millisecond)
		require.Equal(t, []int{2, 9}, fast.parts(), "20/3 is 60/9, and the others keep to that")
		require.Zero(t, slow.Size(), "before this one begins")
		after(time.Minute)
		require.Equal(t, []int{3}, slow.parts())
		require.Equal(t, []int{2, 9}, fast.parts())
		for _, m := range []*member{fast, also, slow} {
			require.Equal(t, 1, m.told(differ))
			require.Equal(t, 1, m.told("least=20 most=60 hint="))
			require.Zero(t, m.told(same))
		}

		also.leave()
		after(1100 * time.Millisecond)
		require.Equal(t, []int{2, 9, 6}, fast.parts())
		slow.die()
		after(ackWait)
		require.Equal(t, []int{2, 9, 6}, fast.parts(), "a dead one counts, and so does its rate")
		after(5 * time.Second)
		require.Equal(t, []int{2, 9, 6, 1}, fast.parts())
		require.Equal(t, []int{1, 1}, []int{fast.told(differ), fast.told(same)})
	})
}

func TestARateThatChangesIsKeptToThoughAsManyAreThere(t *testing.T) {
	bubble(t, func(t *testing.T, g *team) {
		first := g.joinAt(60)
		after(5 * time.Second)
		kv, err := g.js.KeyValue(t.Context(), bucket)
		require.NoError(t, err)
		for _, c := range []struct {
			value string
			parts int
		}{{"60", 2}, {"30", 4}, {"", 2}, {"25.5", 5}, {"6e1", 2}, {"rubbish", 2}, {"0", 2}, {"-3", 2}, {"NaN", 2}, {"Inf", 2}, {"1e-300", math.MaxInt32}, {"1e300", 2}} {
			_, err = kv.PutString(t.Context(), "other", c.value)
			require.NoError(t, err)
			after(1100 * time.Millisecond)
			require.Equal(t, 2, first.Size())
			require.Equal(t, c.parts, first.parts()[len(first.parts())-1], c.value)
		}
	})
}

func TestPartsNeverExceedTheLeastRate(t *testing.T) {
	rates := []float64{0.1, 0.3, 0.7, 1, 3, 7.7, 20, 59.99, 60, 1e6}
	for bridges := 1; bridges <= 100; bridges++ {
		for _, least := range rates {
			for _, rate := range rates {
				if rate < least || bridges == 1 && rate != least {
					continue
				}
				parts := (&census{bridges: bridges, least: least}).parts(rate)
				require.LessOrEqual(t, rate/float64(parts), least/float64(bridges)*(1+1e-12), "%d bridges, %v of %v", bridges, rate, least)
				require.Greater(t, rate/float64(parts), rate/(rate/least*float64(bridges)+1.001), "and waste less than a part")
				if rate == least {
					require.Equal(t, bridges, parts, "%v", rate)
				}
			}
		}
	}
}

func TestWhoHasNoRateIsWarnedOfThoseWhoHaveOneAndMakesNoBucket(t *testing.T) {
	const beside, gone = "other bridges of this prefix keep to --polls-per-second", "no other bridge of this prefix has"
	bubble(t, func(t *testing.T, g *team) {
		m := &member{ended: make(chan struct{})}
		var js jetstream.JetStream
		m.nc, js = g.connect()
		ctx, cancel := context.WithCancel(t.Context())
		m.cancel = cancel
		go func() {
			Look(ctx, Config{JetStream: js, Bucket: bucket, AckWait: ackWait, Log: slog.New(slog.NewTextHandler(&m.log, nil))})
			close(m.ended)
		}()
		defer m.leave()
		after(5 * time.Minute)
		_, err := g.js.KeyValue(t.Context(), bucket)
		require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
		require.Empty(t, m.log.String())

		first, second := g.join(), g.join()
		after(5 * time.Minute)
		require.Equal(t, []int{1, 0}, []int{m.told(beside), m.told(gone)}, "once")
		require.Contains(t, m.log.String(), "bridges=2 hint=")
		require.Equal(t, 2, first.Size(), "it is none of them")
		first.leave()
		after(2 * time.Minute)
		require.Zero(t, m.told(gone))
		second.die()
		after(2 * time.Minute)
		require.Equal(t, []int{1, 1}, []int{m.told(beside), m.told(gone)})
	})
}
