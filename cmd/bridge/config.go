package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/api"
	"futurebridge/internal/publish"
)

// serveConfig is everything `bridge serve` can be told. A field's flag is also BRIDGE_<FLAG> in the environment and
// <flag> in the file of --config; given says who gave it.
type serveConfig struct {
	natsFlags `embed:""`

	Config      string `name:"config" placeholder:"FILE" help:"YAML file with one \"flag: value\" a line, flags without dashes in front. Flags and environment win over it."`
	PrintConfig bool   `name:"print-config" help:"Print the effective settings as a config file, secrets masked, and exit."`

	Embedded       bool   `name:"embedded" group:"embedded" help:"Run a NATS server inside this process, with JetStream on disk."`
	EmbeddedListen string `name:"embedded-listen" group:"embedded" default:"127.0.0.1:4222" placeholder:"HOST:PORT" help:"Where the embedded server listens. It has no authentication: keep it on loopback."`
	StoreDir       string `name:"store-dir" group:"embedded" placeholder:"DIR" help:"Where the embedded server keeps its streams (default: $XDG_STATE_HOME/future-bridge or ~/.local/state/future-bridge)."`

	Upstream         string  `name:"upstream" group:"upstream" placeholder:"URL" further:"TINKER_BASE_URL" help:"Base URL of the API that answers \"retrieve future\". Required."`
	Dialect          string  `name:"dialect" group:"upstream" default:"auto" enum:"auto,bearer,skyrl,tinkerbell,tinkex,tuft,twinkle" help:"Kind of server: the defaults of --upstream-path, --api-key-header, --poll-timeout and further headers. How it answers is told from the answers. One of ${enum}; docs/dialects.md describes them."`
	UpstreamPath     string  `name:"upstream-path" group:"upstream" default:"/api/v1/retrieve_future" help:"Path of \"retrieve future\" below the base URL."`
	UpstreamHeader   headers `name:"upstream-header" group:"upstream" placeholder:"NAME=VALUE" help:"A further header of every poll; may be given several times."`
	APIKeyFile       string  `name:"api-key-file" group:"upstream" placeholder:"FILE" help:"File that holds the API key, in one line. It is read again at SIGHUP and when the key is refused. Or put the key into BRIDGE_API_KEY or TINKER_API_KEY; it is never a flag's value."`
	APIKeyHeader     string  `name:"api-key-header" group:"upstream" default:"X-API-Key" help:"Header that carries the API key. With Authorization a key without a space is sent as a Bearer token."`
	InsecureUpstream bool    `name:"insecure-upstream" group:"upstream" help:"Allow plain http to an upstream on another machine: the API key then travels in the clear."`
	UpstreamCA       string  `name:"upstream-ca" group:"upstream" placeholder:"FILE" help:"Certificates that the upstream is checked with (PEM), instead of the system's."`
	UpstreamCert     string  `name:"upstream-cert" group:"upstream" placeholder:"FILE" help:"Client certificate for the upstream (PEM). New connections use what is in the file then."`
	UpstreamKey      string  `name:"upstream-key" group:"upstream" placeholder:"FILE" help:"Key of the client certificate (PEM)."`
	UpstreamProxy    string  `name:"upstream-proxy" group:"upstream" placeholder:"URL" help:"Proxy to the upstream: http://, https:// or socks5://. HTTP_PROXY and the like do not count."`

	streamFlags `embed:""`

	Timeout       time.Duration `name:"timeout" group:"requests" default:"24h" help:"Deadline of a request that names none, from its submission."`
	MaxRequests   int           `name:"max-requests" group:"requests" default:"100000" help:"Requests held by this bridge."`
	NotFoundGrace time.Duration `name:"not-found-grace" group:"requests" default:"10s" help:"How long \"not found\" must last before it is believed."`
	DrainTimeout  time.Duration `name:"drain-timeout" group:"requests" default:"30s" help:"How long polls in flight may take to end when the bridge stops."`

	MaxPolls           int           `name:"max-polls" group:"polling" default:"1024" help:"Polls in flight, of this bridge. Each takes up to 80 KiB, beside its body."`
	PollsPerSecond     float64       `name:"polls-per-second" group:"polling" default:"0" help:"Polls a second, by all bridges together; 0 is no fixed limit: what the upstream takes is learnt from its answers."`
	PollTimeout        time.Duration `name:"poll-timeout" group:"polling" default:"65s" help:"How long one poll may take. Longer than the upstream holds a poll."`
	BackoffInitial     time.Duration `name:"backoff-initial" group:"polling" default:"500ms" help:"First wait between two polls of a request; it doubles."`
	BackoffMax         time.Duration `name:"backoff-max" group:"polling" default:"30s" help:"Longest wait between two polls of a request."`
	PausedWait         time.Duration `name:"paused-wait" group:"polling" default:"1s" help:"Wait when the upstream has paused a request and says no time."`
	ServerFailurePolls int           `name:"server-failure-polls" group:"polling" default:"3" help:"Further polls after a failure that is the upstream's own; -1 is until the deadline."`
	Cadence            string        `name:"cadence" group:"polling" default:"adaptive" enum:"adaptive,fixed" help:"adaptive: once it is known how long requests of a type take, waits suit that, within --backoff-initial and --backoff-max. fixed: they double from one to the other."`

	MaxResult       byteSize `name:"max-result" group:"results" default:"64MiB" help:"Largest result, decompressed."`
	MaxInlineResult byteSize `name:"max-inline-result" group:"results" default:"512KiB" help:"Larger results go to the object store."`
	ResultMemory    byteSize `name:"result-memory" group:"results" default:"256MiB" help:"Memory for bodies while they are read and results that are not yet stored; when it is full no new poll starts, and polls in flight wait."`

	HTTP      string `name:"http" group:"observing" default:"127.0.0.1:8910" placeholder:"HOST:PORT" help:"Where /metrics, /healthz and /readyz are; \"none\": nowhere."`
	LogLevel  string `name:"log-level" group:"observing" default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat string `name:"log-format" group:"observing" default:"text" enum:"text,json" help:"text or json."`

	apiKey   string      // set by validate
	dialect  api.Dialect // set by validate
	warnings []string    // set by validate: what an operator should read once
}

// following are the settings of streams and consumers that stand longer than a bridge: given, they must agree with
// what stands; not given, they follow it.
var following = []string{"replicas", "states-max-age", "results-max-age", "results-max-bytes", "compress-results", "ack-wait", "max-ack-pending"}

// fdReserve is how many file descriptors are left for everything that is not a poll.
const fdReserve = 64

// validate returns one error a line for everything that cannot work, completes what depends on other settings
// (the store directory, the API key, limits that nobody asked for), and fills warnings.
func (c *serveConfig) validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) { errs = append(errs, c.given.errorf(flag, format, args...)) }
	errs = append(errs, c.natsFlags.validate())
	c.checkEmbedded(bad)
	c.speak()
	c.checkUpstream(bad)
	c.streamFlags.check(bad)

	for _, d := range []struct {
		flag  string
		value time.Duration
		least time.Duration
	}{
		{"timeout", c.Timeout, time.Millisecond},
		{"not-found-grace", c.NotFoundGrace, 0},
		{"drain-timeout", c.DrainTimeout, 0},
		{"poll-timeout", c.PollTimeout, time.Millisecond},
		{"backoff-initial", c.BackoffInitial, time.Millisecond},
		{"backoff-max", c.BackoffMax, time.Millisecond},
		{"paused-wait", c.PausedWait, time.Millisecond},
	} {
		if d.value < d.least {
			bad(d.flag, "%v is too short; give at least %v", d.value, d.least)
		}
	}
	for _, n := range []struct {
		flag        string
		value, from int
	}{
		{"max-requests", c.MaxRequests, 1},
		{"max-polls", c.MaxPolls, 1},
		{"server-failure-polls", c.ServerFailurePolls, -1},
		{"max-result", int(c.MaxResult), 1},
		{"max-inline-result", int(c.MaxInlineResult), 1},
		{"result-memory", int(c.ResultMemory), 1},
	} {
		if n.value < n.from {
			bad(n.flag, "%d is too small; give at least %d", n.value, n.from)
		}
	}
	if c.PollsPerSecond < 0 {
		bad("polls-per-second", "%v is below 0; give a rate, or 0 for no fixed limit", c.PollsPerSecond)
	}
	if c.Embedded && c.Replicas > 1 {
		bad("replicas", "the embedded server is one server and keeps 1 copy; use a NATS cluster for %d", c.Replicas)
	}
	if c.BackoffMax < c.BackoffInitial {
		bad("backoff-max", "%v is shorter than --backoff-initial %v; give at least that", c.BackoffMax, c.BackoffInitial)
	}
	if c.StatesMaxAge > 0 && c.StatesMaxAge <= c.Timeout {
		bad("states-max-age", "%v is not longer than --timeout %v: a log would be gone before its request ends; raise it, or lower --timeout", c.StatesMaxAge, c.Timeout)
	}
	if c.ResultMemory < c.MaxResult {
		bad("result-memory", "%v does not hold one result of --max-result %v; give at least that, or lower --max-result", c.ResultMemory, c.MaxResult)
	}
	if c.given.has("max-ack-pending") && c.MaxRequests > c.MaxAckPending { // else it is the consumer's: fit compares
		if c.given.has("max-requests") {
			bad("max-requests", "%d is more than --max-ack-pending %d, which all bridges share; lower it, or raise --max-ack-pending", c.MaxRequests, c.MaxAckPending)
		}
		c.MaxRequests = c.MaxAckPending
	}
	c.checkDescriptors(bad)
	if c.HTTP == "none" {
		c.HTTP = ""
	}
	if c.HTTP != "" && !isListenAddress(c.HTTP) {
		bad("http", "%q is not host:port; give one such as 127.0.0.1:8910, or none", c.HTTP)
	}
	c.warnings = append(c.warnings, strayVariables(os.Environ())...)
	return errors.Join(errs...)
}

// strayVariables warns of BRIDGE_ variables that no flag reads. They are no errors: they may be another program's.
func strayVariables(environ []string) (warnings []string) {
	known := map[string]bool{apiKeyVariable: true}
	eachFlag(reflect.ValueOf(serveConfig{}), func(flag string, _ reflect.Value) { known[envName(flag)] = true })
	for _, entry := range environ {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "BRIDGE_") && !known[name] {
			warnings = append(warnings, name+" in the environment is no setting; bridge serve --help names those there are")
		}
	}
	slices.Sort(warnings)
	return warnings
}

func (c *serveConfig) checkEmbedded(bad complaint) {
	if !c.Embedded {
		for _, flag := range []string{"embedded-listen", "store-dir"} {
			if c.given.rank(flag) == byFlag {
				bad(flag, "says where the embedded NATS server is, but there is none; add --embedded, or leave it out")
			}
		}
		return
	}
	for _, flag := range []string{"nats", "nats-context"} {
		if r := c.given.rank(flag); r > byOtherEnv && r >= c.given.rank("embedded") {
			bad(flag, "contradicts --embedded, which brings its own NATS; leave one of them out")
		}
	}
	if !isListenAddress(c.EmbeddedListen) {
		bad("embedded-listen", "%q is not host:port; give one such as 127.0.0.1:4222", c.EmbeddedListen)
	}
	if c.StoreDir == "" {
		dir, err := stateDir()
		if err != nil {
			bad("store-dir", "there is no default: %v; name a directory", err)
		}
		c.StoreDir = dir
	}
}

// checkDescriptors compares the polls in flight with the connections this process may open.
func (c *serveConfig) checkDescriptors(bad complaint) {
	limit, known := descriptorLimit()
	if !known || c.MaxPolls+fdReserve <= limit {
		return
	}
	most := max(1, limit-fdReserve)
	if c.given.has("max-polls") {
		bad("max-polls", "%d polls in flight need more than the %d file descriptors this process may open; give at most %d, or raise the limit (ulimit -n)", c.MaxPolls, limit, most)
		return
	}
	c.MaxPolls = most
	c.warnings = append(c.warnings, fmt.Sprintf("only %d polls in flight: this process may open no more than %d files (ulimit -n)", most, limit))
}

// fit compares what this bridge is to hold with what the consumer, which may stand for longer than the bridge, gives out.
func (c *serveConfig) fit(consumer jetstream.ConsumerConfig, stands bool) error {
	most := consumer.MaxAckPending
	if most <= 0 || c.MaxRequests <= most { // 0 and below: no limit
		return nil
	}
	bad := func(format string, args ...any) error {
		return &exitError{exitUsage, c.given.errorf("max-requests", "%d is more than the %d requests (max ack pending) that "+format, append([]any{c.MaxRequests, most}, args...)...)}
	}
	work, name := c.names().WorkStream(), c.names().Consumer()
	switch {
	case !c.given.has("max-requests"):
		c.MaxRequests = most
	case stands:
		return bad("the consumer %s of %s gives to all bridges; lower it, or raise the consumer's: nats consumer edit %s %s --max-pending=%d", name, work, work, name, c.MaxRequests)
	default:
		return bad("all bridges share; lower it, or give --max-ack-pending too")
	}
	return nil
}

// streamOptions are what was given about streams and consumer.
func (c *serveConfig) streamOptions() publish.Options {
	o := c.streamFlags.options(c.given.has)
	o.Timeout, o.Bridges = &c.Timeout, c.PollsPerSecond > 0
	return o
}

// logger writes to w as --log-level and --log-format say.
func (c *serveConfig) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // the flag's enum has been checked
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func stateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "future-bridge"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "state", "future-bridge"), nil
}

func isListenAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
