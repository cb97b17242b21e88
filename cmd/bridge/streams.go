package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"futurebridge/internal/publish"
)

// streamFlags say how streams and consumer are made.
type streamFlags struct {
	Replicas        int           `name:"replicas" group:"streams" default:"1" help:"Copies of each stream: 1 on one server, 3 in a cluster."`
	StatesMaxAge    time.Duration `name:"states-max-age" group:"streams" default:"192h" help:"How long logs are kept; 0 is for ever. Longer than any request's timeout."`
	ResultsMaxAge   time.Duration `name:"results-max-age" group:"streams" default:"192h" help:"How long results are kept; 0 is for ever."`
	ResultsMaxBytes byteSize      `name:"results-max-bytes" group:"streams" default:"0" help:"How much room results may take; when it is full the bridge holds results and takes no work. 0 is no limit."`
	CompressResults bool          `name:"compress-results" group:"streams" help:"Store results compressed (S2), for some of the server's CPU."`
	AckWait         time.Duration `name:"ack-wait" group:"streams" default:"2m" help:"How long another bridge waits before it takes over the requests of one that went silent."`
	MaxAckPending   int           `name:"max-ack-pending" group:"streams" default:"200000" help:"Requests held by all bridges together."`
}

func (f *streamFlags) check(bad complaint) {
	if f.Replicas < 1 {
		bad("replicas", "%d is too small; give at least 1", f.Replicas)
	}
	if f.Replicas > 5 {
		bad("replicas", "%d copies are more than JetStream keeps; give 1, 3 or 5", f.Replicas)
	}
	if f.StatesMaxAge < 0 {
		bad("states-max-age", "%v is too short; give at least 0s", f.StatesMaxAge)
	}
	if f.ResultsMaxAge < 0 {
		bad("results-max-age", "%v is too short; give at least 0s", f.ResultsMaxAge)
	}
	if f.AckWait < time.Second {
		bad("ack-wait", "%v is too short; give at least 1s", f.AckWait)
	}
	if f.MaxAckPending < 1 {
		bad("max-ack-pending", "%d is too small; give at least 1", f.MaxAckPending)
	}
}

// options are the values of those flags that given names.
func (f *streamFlags) options(given func(flag string) bool) publish.Options {
	o := publish.Options{
		Replicas:        ifGiven(given, "replicas", f.Replicas),
		StatesMaxAge:    ifGiven(given, "states-max-age", f.StatesMaxAge),
		ResultsMaxAge:   ifGiven(given, "results-max-age", f.ResultsMaxAge),
		ResultsMaxBytes: ifGiven(given, "results-max-bytes", int64(f.ResultsMaxBytes)),
		CompressResults: ifGiven(given, "compress-results", f.CompressResults),
		AckWait:         ifGiven(given, "ack-wait", f.AckWait),
		MaxAckPending:   ifGiven(given, "max-ack-pending", f.MaxAckPending),
	}
	if o.ResultsMaxBytes != nil && *o.ResultsMaxBytes == 0 {
		*o.ResultsMaxBytes = -1 // JetStream's word for no limit
	}
	return o
}

func ifGiven[T any](given func(flag string) bool, flag string, value T) *T {
	if !given(flag) {
		return nil
	}
	return &value
}

// streamsCmd needs no connection: what it prints depends on nothing but its flags.
type streamsCmd struct {
	Print  bool   `name:"print" xor:"where" required:"" help:"Print them all as one JSON object."`
	Out    string `name:"out" xor:"where" required:"" placeholder:"DIR" help:"Write each into a file of its own in DIR, and print the nats commands that make them."`
	Prefix string `name:"prefix" group:"nats" default:"tinker" help:"First tokens of all subjects; streams are named after them."`

	streamFlags `embed:""`

	given given
	names publish.Names // set by validate
}

func (c *streamsCmd) Help() string {
	return "For servers on which a bridge may not make its streams: an admin makes them from this, with the nats command line or any " +
		"other tool that takes JetStream's JSON. The flags are those of bridge serve, which finds them as it would have made them."
}

func (c *streamsCmd) setGiven(g given) { c.given = g }

func (c *streamsCmd) validate() (err error) {
	var errs []error
	bad := func(flag, format string, args ...any) { errs = append(errs, c.given.errorf(flag, format, args...)) }
	if c.names, err = publish.NewNames(c.Prefix); err != nil {
		bad("prefix", "%v", err)
	}
	c.check(bad)
	return errors.Join(errs...)
}

func (c *streamsCmd) Run(_ context.Context, std stdio) error {
	options := c.options(func(string) bool { return true })
	options.Bridges = true // harmless where none shares a rate
	streams, consumer := c.names.Streams(options), c.names.ConsumerConfig(options)
	if c.Print {
		return printJSON(std.out, struct {
			Streams   any `json:"streams"`
			Consumers any `json:"consumers"`
		}{streams, []any{map[string]any{"stream_name": c.names.WorkStream(), "config": consumer}}})
	}
	if err := os.MkdirAll(c.Out, 0o777); err != nil {
		return usagef("--out: %w; name a directory that can be written", err)
	}
	write := func(command, name string, config any) error {
		var text bytes.Buffer
		if err := printJSON(&text, config); err != nil {
			return err
		}
		path := filepath.Join(c.Out, name+".json")
		if err := os.WriteFile(path, text.Bytes(), 0o666); err != nil {
			return err
		}
		_, err := fmt.Fprintln(std.out, command, "--config", path)
		return err
	}
	for _, stream := range streams {
		if err := write("nats stream add "+stream.Name, stream.Name, stream); err != nil {
			return err
		}
	}
	return write("nats consumer add "+c.names.WorkStream()+" "+consumer.Durable, c.names.WorkStream()+"."+consumer.Durable, consumer)
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
