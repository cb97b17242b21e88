package intake

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// ackWait of the consumer in all tests: bursts every 10 s, and trust for 27 s.
const ackWait = 30 * time.Second

// world is a real server, in virtual time, whose streams and consumer stand.
type world struct {
	*testbed.Server
	t     testing.TB
	names publish.Names
	nc    *nats.Conn // the bridge's
	js    jetstream.JetStream
	other *nats.Conn // somebody else's
	acks  acks
}

func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.other = w.Connect()
		w.acks.watch(t, w.other)
		test(t, w)
	})
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, Server: testbed.NewServer(t, nil)}
	w.nc = w.Connect()
	var err error
	w.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	w.js, err = jetstream.New(w.nc)
	require.NoError(t, err)
	w.ensure()
	return w
}

// wrap makes the bridge's connection anew, with something around it.
func (w *world) wrap(around func(net.Conn) net.Conn) {
	w.t.Helper()
	w.Wrap(around)
	require.NoError(w.t, w.nc.ForceReconnect())
	time.Sleep(time.Second)
}

// ensure makes what is missing of the streams and the consumer.
func (w *world) ensure() {
	wait := ackWait
	_, err := publish.Ensure(w.t.Context(), w.js, w.names, publish.Options{AckWait: &wait})
	require.NoError(w.t, err)
}

func (w *world) submit(data string, header ...string) {
	w.t.Helper()
	m := nats.NewMsg(w.names.Submit())
	m.Data = []byte(data)
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	_, err := w.js.PublishMsg(w.t.Context(), m)
	require.NoError(w.t, err)
}

func (w *world) submitMany(n int) {
	w.t.Helper()
	for i := range n {
		w.submit(fmt.Sprint("id", i))
	}
}

// work is the number of work items that nobody has settled.
func (w *world) work() int {
	w.t.Helper()
	synctest.Wait()
	stream, err := w.js.Stream(w.t.Context(), w.names.WorkStream())
	require.NoError(w.t, err)
	return int(stream.CachedInfo().State.Msgs)
}

func (w *world) consumer(ctx context.Context) (Consumer, error) {
	c, err := w.js.Consumer(ctx, w.names.WorkStream(), w.names.Consumer())
	if err != nil {
		return nil, err
	}
	return NewPuller(w.nc, publish.APIPrefix(w.js), c), nil
}

func (w *world) info() *jetstream.ConsumerInfo {
	w.t.Helper()
	synctest.Wait()
	c, err := w.js.Consumer(w.t.Context(), w.names.WorkStream(), w.names.Consumer())
	require.NoError(w.t, err)
	return c.CachedInfo()
}

// fetch is what another bridge's fetch brings by now.
func (w *world) fetch(most int) []jetstream.Msg {
	w.t.Helper()
	synctest.Wait()
	js, err := jetstream.New(w.other)
	require.NoError(w.t, err)
	c, err := js.Consumer(w.t.Context(), w.names.WorkStream(), w.names.Consumer())
	require.NoError(w.t, err)
	batch, err := c.FetchNoWait(most)
	require.NoError(w.t, err)
	var got []jetstream.Msg
	for m := range batch.Messages() {
		got = append(got, m)
	}
	require.NoError(w.t, batch.Error())
	return got
}

// acks are the acknowledgements that are sent, as "+WPI 7" for work item 7.
type acks struct {
	sub   *nats.Subscription
	mu    sync.Mutex
	sent  []string
	times []time.Time
}

func (a *acks) watch(t *testing.T, nc *nats.Conn) {
	var err error
	a.sub, err = nc.Subscribe("$JS.ACK.>", func(m *nats.Msg) {
		a.mu.Lock()
		defer a.mu.Unlock()
		tokens := strings.Split(m.Subject, ".") // $JS ACK stream consumer delivered seq …
		a.sent = append(a.sent, string(m.Data)+" "+tokens[len(tokens)-4])
		a.times = append(a.times, time.Now())
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
}

// since forgets what it returns.
// question is what the end of a burst and of a Flush asks, so that the consumer answers.
const question = "+WPI 9223372036854775807"

func (a *acks) since() []string {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	sent := a.sent
	a.sent = nil
	return sent
}

// bridge is a keeper and an intake, whose items go nowhere.
type bridge struct {
	w      *world
	keeper *Keeper
	intake *Intake
	reg    *prometheus.Registry
	log    testbed.Log

	mu    sync.Mutex
	items []Item
	times []time.Time
}

// bridge makes a bridge that does nothing yet.
func (w *world) bridge(change func(*Config)) *bridge {
	w.t.Helper()
	b := &bridge{w: w, reg: prometheus.NewRegistry()}
	metrics, log := NewMetrics(b.reg), slog.New(slog.NewTextHandler(&b.log, nil))
	var err error
	b.keeper, err = NewKeeper(w.nc, ackWait, metrics, log)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = b.keeper.Close() })
	publisher := publish.New(publish.Config{Conn: w.nc, JetStream: w.js, Names: w.names, MaxInline: 1 << 10})
	cfg := Config{
		Keeper: b.keeper, Max: 1000, Consumer: w.consumer, CheckID: publish.CheckID,
		CheckTimeout: func(time.Duration) error { return nil },
		Handle:       b.handle, Reject: publisher.Reject, Paused: func() string { return "" }, Metrics: metrics, Log: log,
	}
	if change != nil {
		change(&cfg)
	}
	b.intake = New(cfg)
	return b
}

func (b *bridge) handle(_ context.Context, items []Item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items = append(b.items, items...)
	for range items {
		b.times = append(b.times, time.Now())
	}
}

// held are the items that have come so far, in this order.
func (b *bridge) held() []Item {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Item(nil), b.items...)
}

func (b *bridge) ids() []string {
	var ids []string
	for _, item := range b.held() {
		ids = append(ids, item.ID)
	}
	return ids
}

// run runs the intake, and the keeper if leases are to be extended, until end; all ends with the test.
func (b *bridge) run(leases bool) (end func()) {
	ctx, cut := context.WithCancel(context.Background())
	stop, drain := context.WithCancel(ctx)
	var intake, keeper sync.WaitGroup
	intake.Go(func() { b.intake.Run(ctx, stop) })
	if leases {
		keeper.Go(func() { b.keeper.Run(ctx) })
	}
	var once sync.Once
	end = func() {
		once.Do(func() {
			drain()
			intake.Wait()
			cut()
			keeper.Wait()
		})
	}
	b.w.t.Cleanup(end)
	return end
}

// counted is the value of a counter.
func (b *bridge) counted(name string) int {
	families, err := b.reg.Gather()
	require.NoError(b.w.t, err)
	for _, family := range families {
		if family.GetName() == name {
			return int(family.GetMetric()[0].GetCounter().GetValue())
		}
	}
	require.Fail(b.w.t, "no such counter", name)
	return 0
}
