package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/client"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
)

// patience is how long a step may take besides the time that it takes by design: slow machines are measured too.
const patience = 5 * time.Minute

// web asks the upstream and the bridge about themselves.
var web = &http.Client{Timeout: 10 * time.Second}

var (
	natsAt     = regexp.MustCompile(`url=(nats://\S+)`)
	upstreamAt = regexp.MustCompile(`listening on (http://[^,\s]+)`)
	metricsAt  = regexp.MustCompile(`url=(http://\S+)`)
)

// site is a NATS server, on which the streams stand, and an upstream.
type site struct {
	run            *run
	dir            string
	nats, upstream *process
	natsURL, url   string // url: of the upstream
	begin          time.Time
	nc             *nats.Conn
	js             jetstream.JetStream
	client         *client.Client
	names          publish.Names
	processes      []*process
	sampling       []*samples
}

// newSite starts them; options are those of the streams, script is the upstream's.
func (r *run) newSite(ctx context.Context, script string, options publish.Options) (s *site, err error) {
	s = &site{run: r}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "future-bridge-bench-"); err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "script.json")
	if err = os.WriteFile(file, []byte(script), 0o600); err != nil {
		return nil, err
	}
	if s.nats, err = s.start(ctx, "bench-nats", "--store-dir", filepath.Join(s.dir, "nats")); err != nil {
		return nil, err
	}
	if s.natsURL, err = s.nats.find(ctx, natsAt); err != nil {
		return nil, err
	}
	if s.upstream, err = s.start(ctx, "simulate", "--listen", "127.0.0.1:0", "--script", file); err != nil {
		return nil, err
	}
	if s.url, err = s.upstream.find(ctx, upstreamAt); err != nil {
		return nil, err
	}
	s.begin = time.Now()
	if s.nc, err = nats.Connect(s.natsURL, nats.Name("bridge bench")); err != nil {
		return nil, err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		return nil, err
	}
	if s.names, err = publish.NewNames("tinker"); err != nil {
		return nil, err
	}
	if _, err = publish.Ensure(ctx, s.js, s.names, options); err != nil {
		return nil, err
	}
	s.client, err = client.New(s.nc, client.WithJetStream(s.js))
	return s, err
}

func (s *site) start(ctx context.Context, args ...string) (*process, error) {
	p, err := s.run.start(ctx, args...)
	if err == nil {
		s.processes = append(s.processes, p)
	}
	return p, err
}

// close ends everything at once and removes what was stored.
func (s *site) close() {
	s.end(os.Kill)
	_ = os.RemoveAll(s.dir)
}

// end ends all processes with a signal, the server last.
func (s *site) end(signal os.Signal) {
	for _, a := range s.sampling {
		a.stop(0)
	}
	if s.nc != nil {
		s.nc.Close()
	}
	for len(s.processes) > 0 {
		last := len(s.processes) - 1
		s.processes[last].end(signal)
		s.processes = s.processes[:last]
	}
}

// forget takes a process that has ended out of those that must live.
func (s *site) forget(p *process) {
	for i := range s.processes {
		if s.processes[i] == p {
			s.processes = append(s.processes[:i], s.processes[i+1:]...)
			return
		}
	}
}

// spent is what a worker, the NATS server and the upstream have taken so far.
type spent struct{ worker, server, upstream usage }

func (s *site) spent(worker *process) (now spent, err error) {
	if now.worker, err = worker.usage(); err != nil {
		return now, err
	}
	if now.server, err = s.nats.usage(); err != nil {
		return now, err
	}
	now.upstream, err = s.upstream.usage()
	return now, err
}

// bridge is `bridge serve`, and where its metrics are.
type bridge struct {
	*process
	url string
}

// serve starts a bridge and waits until it is ready.
func (s *site) serve(ctx context.Context, args ...string) (*bridge, error) {
	p, err := s.start(ctx, append([]string{"serve", "--nats", s.natsURL, "--upstream", s.url, "--http", "127.0.0.1:0"}, args...)...)
	if err != nil {
		return nil, err
	}
	b := &bridge{process: p}
	if b.url, err = p.find(ctx, metricsAt); err != nil {
		return nil, err
	}
	return b, s.await(ctx, "the bridge is ready", 0, 1, func() (int, error) {
		res, err := web.Get(b.url + "/readyz")
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return 0, nil
		}
		return 1, nil
	})
}

// metrics are all values at /metrics, by name with labels.
func (b *bridge) metrics() (map[string]float64, error) {
	res, err := web.Get(b.url + "/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	values := map[string]float64{}
	scanner := bufio.NewScanner(res.Body)
	for scanner.Scan() {
		if name, value, ok := strings.Cut(scanner.Text(), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				values[name] = v
			}
		}
	}
	return values, scanner.Err()
}

// metric gives a function that tells one value, for await.
func (b *bridge) metric(name string) func() (int, error) {
	return func() (int, error) {
		values, err := b.metrics()
		return int(values[name]), err
	}
}

const (
	held      = "bridge_requests_held"
	pendings  = `bridge_polls_total{outcome="pending"}`
	live      = "go_gc_heap_live_bytes"
	allocated = "go_memstats_heap_alloc_bytes"
	collected = "go_gc_duration_seconds_count"
)

// ids are those of n requests, as long as real ones.
func ids(n int) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for i := range n {
			if !yield(i, fmt.Sprintf("3bcb34a3-3037-49fe-b8a2-2eac64c37fc0:train:0:%d", i)) {
				return
			}
		}
	}
}

// submit hands over n requests, spread over a time.
func (s *site) submit(ctx context.Context, n int, over time.Duration) error {
	begin := time.Now()
	for _, err := range s.client.SubmitAll(ctx, func(yield func(client.Request) bool) {
		for i, id := range ids(n) {
			if wait := time.Until(begin.Add(over * time.Duration(i) / time.Duration(n))); wait > time.Millisecond {
				time.Sleep(wait)
			}
			if !yield(client.Request{ID: id, Type: "Sample"}) {
				return
			}
		}
	}) {
		if err != nil {
			return fmt.Errorf("submit: %w", err)
		}
	}
	return nil
}

// stored counts a stream's messages.
func (s *site) stored(ctx context.Context, stream string) (int, error) {
	info, err := s.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return int(info.CachedInfo().State.Msgs), nil
}

// await waits until a count has come up to n, for long by design and patience besides.
func (s *site) await(ctx context.Context, what string, long time.Duration, n int, count func() (int, error)) error {
	last := 0
	err := until(ctx, long+patience, 20*time.Millisecond, func() (bool, error) {
		for _, p := range s.processes {
			if err := p.alive(); err != nil {
				return false, err
			}
		}
		var err error
		if last, err = count(); err != nil {
			return false, err
		}
		s.run.progress.at(last, n)
		return last >= n, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %d of %d: %w", what, last, n, err)
	}
	return nil
}

// awaitResults waits until every request has its one result and no work is left.
func (s *site) awaitResults(ctx context.Context, long time.Duration, stream string, n int) error {
	if err := s.await(ctx, "requests with a result", long, n, func() (int, error) { return s.stored(ctx, stream) }); err != nil {
		return err
	}
	if err := s.await(ctx, "work that is done", 0, n, func() (int, error) {
		left, err := s.stored(ctx, s.names.WorkStream())
		return n - left, err
	}); err != nil {
		return err
	}
	if found, err := s.stored(ctx, stream); err != nil || found != n {
		return errors.Join(err, fmt.Errorf("%d results of %d requests are stored", found, n))
	}
	return nil
}

// stats is what the upstream saw; ids adds what it saw of each.
func (s *site) stats(ids bool) (stats sim.Stats, err error) {
	url := s.url + "/sim/stats"
	if ids {
		url += "?ids=1"
	}
	res, err := web.Get(url)
	if err != nil {
		return stats, err
	}
	defer res.Body.Close()
	return stats, json.NewDecoder(res.Body).Decode(&stats)
}

// hints is the row of the polls for which the upstream had asked to wait longer. There are none, or the scenario fails.
const hints = "polls before a hint ran out"

// obeyed is what the upstream saw, and an error when the bridge did not wait as long as it was asked to.
func (s *site) obeyed(ids bool) (sim.Stats, error) {
	stats, err := s.stats(ids)
	if err == nil {
		err = early(stats)
	}
	return stats, err
}

func early(stats sim.Stats) error {
	if stats.EarlyPolls > 0 {
		return fmt.Errorf("%d of %d polls came before a hint of the upstream had run out", stats.EarlyPolls, stats.Polls)
	}
	return nil
}
