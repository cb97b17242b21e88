package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
)

// simulateGrace is how long polls in flight may take to end when the simulator stops.
const simulateGrace = 2 * time.Second

// simulateCmd runs the scripted upstream, shaped by a script or by flags.
type simulateCmd struct {
	Listen     string `default:"127.0.0.1:8900" placeholder:"HOST:PORT" help:"Address to serve on; port 0 picks one."`
	Script     string `placeholder:"FILE" help:"JSON script of the server, instead of the flags that shape it."`
	APIKeyFile string `name:"api-key-file" placeholder:"FILE" help:"Answer 401 to whoever does not send the key in this file. Or put the key into BRIDGE_API_KEY."`
	Mint       int    `placeholder:"N" help:"Make N jobs at once and print their ids."`

	Dialect           string        `group:"shape" default:"any" enum:"any,auto,bearer,skyrl,tinkerbell,tinkex,tuft,twinkle" help:"Be such a server, where other flags do not say otherwise: ${enum} (any: every path, the key in either header)."`
	Duration          time.Duration `group:"shape" default:"2s" help:"How long a job is active before it ends."`
	Spread            time.Duration `group:"shape" default:"0s" help:"Up to so much is added to the duration, another part for each id."`
	Paused            time.Duration `group:"shape" default:"0s" help:"How long a job is paused by a rate limit before it is active."`
	Hold              time.Duration `group:"shape" default:"0s" help:"How long a pending poll is held (long poll)."`
	PendingStyle      string        `group:"shape" default:"try_again" enum:"try_again,pending,202,408,408_detail,408_full" help:"How the server says pending: ${enum}."`
	FailureStyle      string        `group:"shape" default:"flat" enum:"flat,enveloped,error_message,400,422,500" help:"How it says failed: ${enum}."`
	FailureRate       float64       `group:"shape" default:"0" help:"Share of the jobs that fail, from 0 to 1."`
	FailureCategory   string        `group:"shape" default:"user" help:"Whose fault that is: user, server, unknown or any other word."`
	ResultBytes       int           `group:"shape" default:"200" help:"Size of a result."`
	ContentType       string        `group:"shape" default:"application/json" help:"Type of a result, such as application/x-protobuf."`
	MetadataThreshold int           `group:"shape" default:"0" help:"Larger answers are announced as complete_metadata first; 0: none."`
	Retention         string        `group:"shape" default:"forever" help:"forever, once (destroyed by the first delivery), or how long after a job's end."`
	Unknown           string        `group:"shape" default:"create" enum:"create,404,error,try_again" help:"What an id gets that was not minted: ${enum} (create: a job)."`
	RateLimit         float64       `group:"shape" default:"0" help:"Polls a second, beyond which polls get 429; 0: no limit."`
	IDFormat          string        `name:"id-format" group:"shape" default:"uuid" enum:"uuid,train,sample,req,req32,fut,hex,int,negative,gw,unload,mixed" help:"Format of minted ids: ${enum}."`
	Seed              uint64        `group:"shape" default:"0" help:"Ids, results and choices follow from it."`

	given  given
	apiKey string     // set by validate
	script sim.Script // set by validate
}

func (c *simulateCmd) setGiven(g given) { c.given = g }

// validate checks the flags and makes the script of them.
func (c *simulateCmd) validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return c.given.errorf("listen", "%q is no address; give host:port, such as 127.0.0.1:8900", c.Listen)
	}
	if c.Mint < 0 {
		return c.given.errorf("mint", "%d is negative; give how many ids to make", c.Mint)
	}
	if err := c.readKey(); err != nil {
		return err
	}
	if c.Script == "" {
		return c.shape()
	}
	if shaping := c.shapingFlags(); len(shaping) > 0 {
		return c.given.errorf(shaping[0], "does nothing beside --script; say it in the script")
	}
	var err error
	if c.script, err = sim.Load(c.Script); err != nil {
		return c.given.errorf("script", "%v", err)
	}
	return nil
}

func (c *simulateCmd) readKey() error {
	c.apiKey = strings.TrimSpace(os.Getenv("BRIDGE_API_KEY"))
	if c.APIKeyFile == "" {
		return nil
	}
	text, err := os.ReadFile(c.APIKeyFile)
	if err != nil {
		return c.given.errorf("api-key-file", "%v; name a file that can be read", err)
	}
	if c.apiKey = strings.TrimSpace(string(text)); c.apiKey == "" {
		return c.given.errorf("api-key-file", "%s is empty; put the key into it", c.APIKeyFile)
	}
	return nil
}

// shape makes the script that the flags describe.
func (c *simulateCmd) shape() error {
	for _, n := range []struct {
		flag     string
		negative bool
	}{
		{"duration", c.Duration < 0}, {"spread", c.Spread < 0}, {"paused", c.Paused < 0}, {"hold", c.Hold < 0},
		{"result-bytes", c.ResultBytes < 0}, {"metadata-threshold", c.MetadataThreshold < 0}, {"rate-limit", c.RateLimit < 0},
	} {
		if n.negative {
			return c.given.errorf(n.flag, "is negative; give 0 or more")
		}
	}
	if c.ResultBytes == 0 {
		return c.given.errorf("result-bytes", "no JSON is that small; give 1 or more")
	}
	if c.FailureRate < 0 || c.FailureRate > 1 {
		return c.given.errorf("failure-rate", "%v is no share; give a number from 0 to 1", c.FailureRate)
	}
	c.script, _ = sim.Dialect(c.Dialect) // any: a script that says nothing
	style := &c.script.Style
	for flag, take := range map[string]func(){
		"hold":               func() { style.Hold = c.Hold },
		"pending-style":      func() { style.PendingStyle = c.PendingStyle },
		"failure-style":      func() { style.FailureStyle = c.FailureStyle },
		"metadata-threshold": func() { style.MetadataThreshold = c.MetadataThreshold },
		"retention":          func() { style.Retention = c.Retention },
		"id-format":          func() { c.script.IDFormat = c.IDFormat },
		"unknown":            func() { c.script.Unknown = c.Unknown },
	} {
		if c.given.has(flag) {
			take()
		}
	}
	if c.Retention != "forever" && c.Retention != "once" {
		ttl, err := time.ParseDuration(c.Retention)
		if err != nil || ttl <= 0 {
			return c.given.errorf("retention", "%q is not known; give forever, once, or a time such as 300s", c.Retention)
		}
		style.Retention, style.RetentionTTL = "ended", ttl
	}
	var life []sim.Step
	if c.Paused > 0 {
		life = append(life, sim.Step{State: "paused_rate_limit", Reason: "the simulator's rate limit", For: c.Paused})
	}
	if c.Duration+c.Spread > 0 {
		life = append(life, sim.Step{State: "active", For: max(1, c.Duration), Spread: c.Spread})
	}
	completed := sim.Step{Answer: "completed", ResultBytes: c.ResultBytes, ContentType: c.ContentType}
	failed := sim.Step{Answer: "failed", Message: "the simulator was told to fail", Category: c.FailureCategory}
	c.script.Seed, c.script.RateLimit.PerSecond = c.Seed, c.RateLimit
	if c.FailureRate < 1 {
		c.script.Profiles = append(c.script.Profiles, sim.Profile{Name: "completes", Weight: 1 - c.FailureRate, Steps: append(slices.Clone(life), completed)})
	}
	if c.FailureRate > 0 {
		c.script.Profiles = append(c.script.Profiles, sim.Profile{Name: "fails", Weight: c.FailureRate, Steps: append(life, failed)})
	}
	return c.script.Check()
}

// shapingFlags names the given flags that a script says itself.
func (c *simulateCmd) shapingFlags() []string {
	shaping := maps.Clone(c.given)
	maps.DeleteFunc(shaping, func(flag string, _ origin) bool {
		return !c.given.has(flag) || slices.Contains([]string{"listen", "script", "api-key-file", "mint"}, flag)
	})
	return slices.Sorted(maps.Keys(shaping))
}

func (c *simulateCmd) Run(ctx context.Context, io stdio) error {
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w; give another address, or port 0", err)
	}
	upstream := sim.New(c.script, sim.WithAPIKey(c.apiKey))
	for range c.Mint {
		fmt.Fprintln(io.out, upstream.Mint(""))
	}
	server := &http.Server{
		Handler:           upstream,
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.err, "simulate: ", 0),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	url := "http://" + listener.Addr().String()
	fmt.Fprintf(io.err, "simulate: listening on %s, %s\n", url, c.describe())
	fmt.Fprintf(io.err, "simulate: poll POST %s%s, make ids by POST %s/sim/jobs {\"count\":10}, counts at %s/sim/stats\n",
		url, cmp.Or(c.script.Path, api.DefaultPath), url, url)

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving on %s: %w", url, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), simulateGrace)
	defer cancel()
	err = server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // polls that are held longer are cut, as by a server that restarts
	}
	stats := upstream.Stats()
	fmt.Fprintf(io.err, "simulate: stopped; %d polls for %d ids, %d results and failures handed out\n", stats.Polls, stats.Jobs, stats.Deliveries)
	return err
}

// describe says in a line what the server does.
func (c *simulateCmd) describe() string {
	what := fmt.Sprintf("jobs take %v", c.Paused+c.Duration)
	if c.Spread > 0 {
		what += fmt.Sprintf(" to %v", c.Paused+c.Duration+c.Spread)
	}
	if c.FailureRate > 0 {
		what += fmt.Sprintf(", %.4g%% fail", 100*c.FailureRate)
	}
	if hold := c.script.Style.Hold; hold > 0 {
		what += fmt.Sprintf(", polls are held for %v", hold)
	}
	what += ", results are kept " + c.Retention
	if c.Script != "" {
		what = fmt.Sprintf("plays %s (%d profiles)", c.Script, len(c.script.Profiles))
	}
	if c.apiKey != "" {
		what += ", wants the API key"
	}
	return what
}
