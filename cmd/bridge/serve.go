package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"futurebridge/internal/embedded"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
)

type serveCmd struct {
	serveConfig `embed:""`
}

func (c *serveCmd) Help() string {
	return "Takes request ids from the submit subject, polls them, and publishes their queue states and results, until it is " +
		"told to stop: the first SIGTERM or SIGINT drains, a second one breaks that off."
}

// Run is the daemon, from top to bottom: what is started first is stopped last.
func (c *serveCmd) Run(ctx context.Context, io stdio) error {
	if c.PrintConfig {
		return c.print(io.out)
	}
	log := c.logger(io.err)
	for _, warning := range c.warnings {
		log.Warn(warning)
	}
	client, key, err := c.upstream(log)
	if err != nil {
		return usagef("%w", err)
	}
	hangUps := make(chan os.Signal, 1) // from here on SIGHUP does not end the process
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)

	defer tuneGC()()

	state := newReadiness("starting")
	registry := prometheus.NewRegistry()
	live := collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile("^/gc/heap/live:bytes$")}
	registry.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(live)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if c.HTTP != "" {
		stop, err := serveHTTP(c.HTTP, state, registry, log)
		if err != nil {
			return err
		}
		defer stop()
	}

	dialing := dialOptions{name: "bridge", log: log, patient: true, state: state}
	if c.Embedded {
		server, err := embedded.Start(embedded.Options{StoreDir: c.StoreDir, Listen: c.EmbeddedListen, Log: log})
		if err != nil {
			return err
		}
		defer server.Shutdown()
		log.Info("NATS server of its own", "url", server.ClientURL(), "store_dir", c.StoreDir)
		dialing.inProcess = server.InProcess()
	}
	nc, js, err := c.dial(dialing)
	if err != nil {
		return err
	}
	defer nc.Close()

	consumer, err := c.prepare(ctx, nc, js, state, log)
	if err != nil || ctx.Err() != nil {
		return err
	}
	if err := c.reachUpstream(ctx, state, log); err != nil || ctx.Err() != nil {
		return err
	}
	b, err := newBridge(&c.serveConfig, nc, js, consumer, client, client.Full, log, registry)
	if err != nil {
		return err
	}
	state.ask(b.notReady)
	names := c.names()
	log.Info("polling", "upstream", c.Upstream, "submit_to", names.Submit(), "states", names.States(), "results", names.Results(),
		"ack_wait", consumer.AckWait, "max_requests", c.MaxRequests, "max_polls", c.MaxPolls)

	go func() {
		for {
			select {
			case <-hangUps:
				hangUp(key, b.engine)
			case <-ctx.Done():
				return
			}
		}
	}()

	// main has caught the first signal and ended ctx; the second one ends the drain.
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	second := make(chan os.Signal, 1)
	context.AfterFunc(ctx, func() {
		state.set("draining")
		signal.Notify(second, os.Interrupt, syscall.SIGTERM)
		select {
		case <-second:
			log.Warn("stopped by a second signal: what is in flight is dropped and comes again at another bridge")
			cut()
		case <-hard.Done():
		}
		signal.Stop(second)
	})
	b.run(ctx, hard)
	return nil
}

// policy is the poll policy that the flags ask for.
func (c *serveConfig) policy() poll.Policy {
	p := poll.DefaultPolicy()
	p.BackoffInitial, p.BackoffMax, p.PausedWait = c.BackoffInitial, c.BackoffMax, c.PausedWait
	p.ServerFailurePolls, p.NotFoundGrace = c.ServerFailurePolls, c.NotFoundGrace
	return p
}

// prepare waits for NATS, then makes or checks the streams. What stands and does not fit the settings is an error at
// once; what cannot be asked yet is waited for.
func (c *serveConfig) prepare(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, state *readiness, log *slog.Logger) (jetstream.ConsumerConfig, error) {
	options := c.streamOptions()
	options.Check = c.fit
	for told := false; ; told = true {
		var consumer jetstream.ConsumerConfig
		err := errors.New("not connected to NATS")
		if nc.IsConnected() {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			consumer, err = publish.Ensure(try, js, c.names(), options)
			cancel()
		}
		var refused *jetstream.APIError
		var mismatch *publish.MismatchError
		var unfit *exitError
		switch {
		case err == nil:
			return consumer, nil
		case errors.As(err, &mismatch) && mismatch.Asked:
			return consumer, usagef("%w", err)
		case errors.As(err, &mismatch), errors.As(err, &unfit), errors.As(err, &refused) && refused.Code < 500:
			return consumer, err
		}
		state.set("streams: " + err.Error())
		if !told {
			log.Warn("waiting for NATS and its streams", "nats", c.place(), "error", err)
		}
		if !sleep(ctx, 500*time.Millisecond) {
			return consumer, nil
		}
	}
}

// place is where NATS is looked for.
func (c *serveConfig) place() string {
	switch {
	case c.Embedded:
		return "in this process"
	case c.contextWins():
		return fmt.Sprintf("context %q", c.NatsContext)
	}
	return maskURLs(c.Nats)
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// readiness is what /readyz tells: a fixed reason, or whatever a function says, with what the connection to NATS said that
// explains it; empty is ready.
type readiness struct {
	reason   atomic.Value
	denied   denials
	lameDuck atomic.Bool // the server is about to stop
}

func newReadiness(reason string) *readiness {
	r := &readiness{}
	r.set(reason)
	return r
}

func (r *readiness) set(reason string)     { r.ask(func() string { return reason }) }
func (r *readiness) ask(why func() string) { r.reason.Store(why) }
func (r *readiness) notReady() (why string) {
	why = r.denied.explain(r.reason.Load().(func() string)())
	if why != "" && r.lameDuck.Load() {
		why = "the NATS server is about to stop (lame duck mode): " + why
	}
	return why
}

// serveHTTP starts the endpoint for operators; the returned function stops it.
func serveHTTP(addr string, state *readiness, registry *prometheus.Registry, log *slog.Logger) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := state.notReady(); why != "" {
			http.Error(w, "not ready: "+why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--http %s: %w; choose another address, or none", addr, err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the endpoint for metrics and readiness ended", "error", err)
		}
	}()
	log.Info("metrics and readiness", "url", "http://"+listener.Addr().String())
	return func() { _ = server.Close() }, nil
}
