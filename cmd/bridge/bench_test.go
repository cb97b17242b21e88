//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/client"
	"futurebridge/internal/publish"
)

// The programs beside the bridge in benchmarks, each a process of its own so that its CPU time can be told apart.
var benchPrograms = map[string]func(args []string){"bench-nats": benchNATS, "bench-loop": benchLoop}

// benchNATS is a NATS server as people run it: in particular with its own habits of syncing to disk.
func benchNATS(args []string) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: args[0], NoSigs: true})
	if err != nil {
		panic(err)
	}
	s.Start()
	fmt.Fprintf(os.Stderr, "listening url=%s \n", s.ClientURL())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	s.Shutdown()
	s.WaitForShutdown()
}

// benchLoop is what one would write without the bridge: take an id, poll, publish with a message id, ack. It is tuned
// (many in flight, connections kept, async publishes) and promises much less: no fence, no states, no closing record.
func benchLoop(args []string) {
	natsURL, upstream := args[0], args[1]
	nc, err := nats.Connect(natsURL)
	if err != nil {
		panic(err)
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	consumer, err := js.Consumer(ctx, "TINKER_WORK", "bridge")
	if err != nil {
		panic(err)
	}
	web := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024, MaxConnsPerHost: 1024}}
	slots := make(chan struct{}, 1024)
	running, err := consumer.Consume(func(m jetstream.Msg) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			id := string(m.Data())
			body, _ := json.Marshal(map[string]any{"request_id": id, "allow_metadata_only": false})
			res, err := web.Post(upstream+"/api/v1/retrieve_future", "application/json", bytes.NewReader(body))
			if err != nil {
				panic(err)
			}
			data, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil {
				panic(err)
			}
			var answer struct {
				Status string          `json:"status"`
				Result json.RawMessage `json:"result"`
			}
			if err = json.Unmarshal(data, &answer); err != nil || answer.Status != "completed" {
				panic(fmt.Sprint(err, string(data)))
			}
			future, err := js.PublishMsgAsync(&nats.Msg{Subject: "loop.result." + id, Data: answer.Result}, jetstream.WithMsgID(id))
			if err != nil {
				panic(err)
			}
			select {
			case <-future.Ok():
			case err := <-future.Err():
				panic(err)
			}
			if err := m.Ack(); err != nil {
				panic(err)
			}
		}()
	}, jetstream.PullMaxMessages(2000))
	if err != nil {
		panic(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	running.Stop()
	nc.Close()
}

// measurement is how fast a program drains a work stream of n ids, and at what cost in CPU.
type measurement struct{ perSecond, workerCPU, serverCPU float64 } // requests/s, µs a request

// drainage is a work stream, with everything around it, before somebody drains it.
type drainage struct {
	b                 *testing.B
	nats, sim         *process
	natsURL, upstream string
	nc                *nats.Conn
	js                jetstream.JetStream
	client            *client.Client
}

func newDrain(b *testing.B, simulate ...string) *drainage {
	d := &drainage{b: b, nats: start(b, "bench-nats", b.TempDir())}
	d.sim = start(b, append([]string{"simulate", "--listen", "127.0.0.1:0"}, simulate...)...)
	d.natsURL, d.upstream = d.nats.value("url"), "http://"+between(d.sim, "listening on http://", ",")
	flags := natsFlags{Nats: d.natsURL, Prefix: "tinker"}
	var err error
	d.nc, d.js, err = flags.dial(dialOptions{name: "bench", log: silent()})
	require.NoError(b, err)
	_, err = publish.Ensure(b.Context(), d.js, flags.names(), publish.Options{})
	require.NoError(b, err)
	d.client, err = client.New(d.nc)
	require.NoError(b, err)
	return d
}

func (d *drainage) submit(n int) {
	for _, err := range d.client.SubmitAll(d.b.Context(), func(yield func(client.Request) bool) {
		for i := range n {
			if !yield(client.Request{ID: fmt.Sprintf("3bcb34a3-3037-49fe-b8a2-2eac64c37fc0:train:0:%d", i)}) {
				return
			}
		}
	}) {
		require.NoError(d.b, err)
	}
}

func (d *drainage) stored(stream string) int {
	s, err := d.js.Stream(d.b.Context(), stream)
	require.NoError(d.b, err)
	return int(s.CachedInfo().State.Msgs)
}

func (d *drainage) stop() {
	d.nc.Close()
	_ = d.nats.end(syscall.SIGTERM)
	_ = d.sim.end(syscall.SIGTERM)
}

// drain measures how a worker drains n requests with results of a size into the stream results.
func drain(b *testing.B, n, resultBytes int, results string, worker func(natsURL, upstream string) *process) measurement {
	d := newDrain(b, "--duration", "0s", "--result-bytes", fmt.Sprint(resultBytes))
	_, err := d.js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "LOOP", Subjects: []string{"loop.result.*"}, Duplicates: 10 * time.Second})
	require.NoError(b, err)
	d.submit(n)
	begin := time.Now()
	w := worker(d.natsURL, d.upstream)
	require.Eventually(b, func() bool { return d.stored(results) == n && d.stored("TINKER_WORK") == 0 }, 5*time.Minute, 10*time.Millisecond)
	took := time.Since(begin).Seconds()
	_ = w.end(syscall.SIGTERM)
	d.stop()
	cpu := func(p *process) float64 {
		return (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds() * 1e6 / float64(n)
	}
	return measurement{float64(n) / took, cpu(w), cpu(d.nats)}
}

func between(p *process, before, after string) string {
	var value string
	require.Eventually(p.t, func() bool {
		_, rest, found := strings.Cut(p.log(), before)
		value, _, _ = strings.Cut(rest, after)
		return found
	}, 10*time.Second, 5*time.Millisecond)
	return value
}

// BenchmarkWholePath drains a full work stream through `bridge serve`, with every promise on, and through a hand-written
// loop, one after the other in the same run. The figures are medians of three pairs; ratios are the bridge's to the
// loop's in a pair.
func BenchmarkWholePath(b *testing.B) {
	for _, size := range []int{200, 20_000} {
		b.Run(fmt.Sprintf("result=%dB", size), func(b *testing.B) {
			for b.Loop() {
				wholePath(b, 20_000, size)
			}
		})
	}
}

func wholePath(b *testing.B, n, resultBytes int) {
	var bridges, loops []measurement
	for range 3 {
		bridges = append(bridges, drain(b, n, resultBytes, "TINKER_RESULTS", func(natsURL, upstream string) *process {
			return start(b, "serve", "--nats", natsURL, "--upstream", upstream, "--http", "none")
		}))
		loops = append(loops, drain(b, n, resultBytes, "LOOP", func(natsURL, upstream string) *process {
			return start(b, "bench-loop", natsURL, upstream)
		}))
	}
	report := func(name string, of func(bridge, loop measurement) float64) {
		var values []float64
		for i := range bridges {
			values = append(values, of(bridges[i], loops[i]))
		}
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], name)
	}
	report("bridge-req/s", func(bridge, _ measurement) float64 { return bridge.perSecond })
	report("loop-req/s", func(_, loop measurement) float64 { return loop.perSecond })
	report("speed-ratio", func(bridge, loop measurement) float64 { return bridge.perSecond / loop.perSecond })
	report("bridge-cpu-µs/req", func(bridge, _ measurement) float64 { return bridge.workerCPU })
	report("loop-cpu-µs/req", func(_, loop measurement) float64 { return loop.workerCPU })
	report("cpu-ratio", func(bridge, loop measurement) float64 { return bridge.workerCPU / loop.workerCPU })
	report("cpu-with-server-ratio", func(bridge, loop measurement) float64 {
		return (bridge.workerCPU + bridge.serverCPU) / (loop.workerCPU + loop.serverCPU)
	})
	b.ReportMetric(0, "ns/op") // the time of an iteration means nothing here
}

// BenchmarkWaiting has one bridge hold 100,000 requests that wait for their next poll, and tells what one of them costs:
// in live heap, and in resident memory beyond what the bridge has at its start.
func BenchmarkWaiting(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		script := filepath.Join(b.TempDir(), "script.json")
		require.NoError(b, os.WriteFile(script, []byte(`{"profiles":[{"name":"waits","steps":[{"state":"active","retry_after_s":300}]}]}`), 0o600))
		d := newDrain(b, "--script", script)
		w := start(b, "serve", "--nats", d.natsURL, "--upstream", d.upstream, "--http", "127.0.0.1:0")
		w.value("submit_to")
		before := w.memory(b)
		d.submit(n)
		require.Eventually(b, func() bool { return w.metric("bridge_polls_total{outcome=\"pending\"}") >= n }, 2*time.Minute, 100*time.Millisecond)
		after := w.memory(b)
		require.EqualValues(b, n, w.metric("bridge_requests_held"))
		b.ReportMetric((after.heap-before.heap)/n, "heap-B/req")
		b.ReportMetric((after.resident-before.resident)/n, "resident-B/req")
		b.ReportMetric(0, "ns/op")
		d.stop()
	}
}

// BenchmarkTakeover tells how long it takes until a second bridge has polled all of 20,000 requests that the first one held:
// after SIGKILL, which has to wait for AckWait (10 s), and after SIGTERM, which hands them over. Beside each stands how long
// it may take on two idle cores.
func BenchmarkTakeover(b *testing.B) {
	const n = 20_000
	for b.Loop() {
		ackWait := 10 * time.Second
		for _, c := range []struct {
			name   string
			signal syscall.Signal
			most   time.Duration
		}{{"SIGKILL", syscall.SIGKILL, ackWait + 5*time.Second}, {"SIGTERM", syscall.SIGTERM, 3 * time.Second}} {
			script := filepath.Join(b.TempDir(), "script.json")
			require.NoError(b, os.WriteFile(script, []byte(`{"profiles":[{"name":"waits","steps":[{"state":"active","retry_after_s":300}]}]}`), 0o600))
			d := newDrain(b, "--script", script)
			flags := natsFlags{Prefix: "tinker"}
			_, err := d.js.UpdateConsumer(b.Context(), "TINKER_WORK", flags.names().ConsumerConfig(publish.Options{AckWait: &ackWait}))
			require.NoError(b, err)
			serve := func() *process {
				p := start(b, "serve", "--nats", d.natsURL, "--upstream", d.upstream, "--http", "127.0.0.1:0")
				p.value("submit_to")
				return p
			}
			first := serve()
			d.submit(n)
			holds := func(p *process) func() bool {
				return func() bool { return p.metric("bridge_polls_total{outcome=\"pending\"}") >= n }
			}
			require.Eventually(b, holds(first), time.Minute, 50*time.Millisecond)
			second := serve()
			begin := time.Now()
			require.NoError(b, first.cmd.Process.Signal(c.signal))
			require.Eventually(b, holds(second), 5*time.Minute, 20*time.Millisecond)
			b.ReportMetric(time.Since(begin).Seconds(), c.name+"-s")
			b.ReportMetric(c.most.Seconds(), c.name+"-most-s")
			d.stop()
		}
		b.ReportMetric(0, "ns/op")
	}
}

type memory struct{ heap, resident float64 }

// memory collects garbage in the process and then asks what is left.
func (p *process) memory(b *testing.B) memory {
	collections := p.metric("go_gc_duration_seconds_count")
	require.NoError(b, p.cmd.Process.Signal(syscall.SIGUSR1))
	require.Eventually(b, func() bool { return p.metric("go_gc_duration_seconds_count") > collections }, 10*time.Second, 10*time.Millisecond)
	return memory{p.metric("go_memstats_heap_alloc_bytes"), p.metric("process_resident_memory_bytes")}
}

// metric is a value at /metrics.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	res, err := http.Get(p.value("url") + "/metrics")
	require.NoError(p.t, err)
	defer res.Body.Close()
	for scanner := bufio.NewScanner(res.Body); scanner.Scan(); {
		if rest, found := strings.CutPrefix(scanner.Text(), name+" "); found {
			value, err := strconv.ParseFloat(rest, 64)
			require.NoError(p.t, err)
			return value
		}
	}
	require.Fail(p.t, "no such metric", name)
	return 0
}

// profile writes a CPU profile of the programs in a benchmark, until they are told to stop: BRIDGE_TEST_CPUPROFILE=/dir
// makes /dir/serve.pprof and so on. SIGUSR1 makes them collect their garbage.
func profile() {
	collect := make(chan os.Signal, 1)
	signal.Notify(collect, syscall.SIGUSR1)
	go func() {
		for range collect {
			debug.FreeOSMemory()
		}
	}()
	dir := os.Getenv("BRIDGE_TEST_CPUPROFILE")
	if dir == "" {
		return
	}
	file, err := os.Create(filepath.Join(dir, os.Args[1]+".pprof"))
	if err != nil {
		panic(err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		panic(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		pprof.StopCPUProfile()
		_ = file.Close()
	}()
}
