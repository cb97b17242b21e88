package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/client"
)

// dialClient connects as a command that a person waits for.
func (f *natsFlags) dialClient(name string, std stdio) (c *client.Client, stop func(), err error) {
	log := slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	nc, js, err := f.dial(dialOptions{name: name, log: log}, jetstream.WithPublishAsyncTimeout(30*time.Second))
	if err != nil {
		return nil, nil, err
	}
	c, err = client.New(nc, client.WithPrefix(f.Prefix), client.WithJetStream(js))
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return c, nc.Close, nil
}

type submitCmd struct {
	natsFlags `embed:""`

	IDs     []string          `arg:"" optional:"" name:"id" help:"Request ids; none: they are read from standard input. Put -- in front of all of them when one begins with a dash."`
	Timeout time.Duration     `name:"timeout" placeholder:"DURATION" help:"From submission to the deadline; not given: the bridge's default."`
	Type    string            `name:"type" help:"What kind of work it is."`
	Label   map[string]string `name:"label" placeholder:"KEY=VALUE" mapsep:"none" help:"Carried into the request's events; may be given several times."`
	Key     string            `name:"key" help:"Routing key: submit on <prefix>.submit.<key>."`
}

func (c *submitCmd) Help() string {
	return `Standard input has one request a line: an id, or a JSON object such as
{"request_id":"r1","timeout_ms":60000,"request_type":"sample","labels":{"team":"a"}}.
Each id is printed once JetStream has stored it. A line that is no request is told on
standard error and stops nothing, but the exit code is then 1.`
}

func (c *submitCmd) validate() error {
	errs := []error{c.natsFlags.validate()}
	if c.Timeout < 0 {
		errs = append(errs, c.given.errorf("timeout", "%v is below 0; give how long the request may take", c.Timeout))
	}
	return errors.Join(errs...)
}

func (c *submitCmd) Run(ctx context.Context, std stdio) error {
	bridge, stop, err := c.dialClient("bridge submit", std)
	if err != nil {
		return err
	}
	defer stop()
	in := &submissions{std: std, cmd: c}
	requests := in.lines()
	if len(c.IDs) > 0 {
		requests = in.ids()
	}
	accepted := 0
	for r, err := range bridge.SubmitAll(ctx, requests) {
		switch {
		case err == nil:
			accepted++
			if _, err := fmt.Fprintln(std.out, r.ID); err != nil {
				return err
			}
		case errors.Is(err, client.ErrNoBridge):
			return err
		default:
			in.refuse("%q: %v", r.ID, err)
		}
	}
	refused, err := in.end()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %d accepted", accepted)
	case err != nil:
		return fmt.Errorf("standard input: %w (%d accepted)", err, accepted)
	case refused > 0:
		return fmt.Errorf("%d accepted, %d not", accepted, refused)
	}
	return nil
}

// submissions are the requests of one `bridge submit`. They are read in another goroutine than the acks are.
type submissions struct {
	std stdio
	cmd *submitCmd

	mu      sync.Mutex
	refused int
	err     error // of standard input
}

func (s *submissions) refuse(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
	fmt.Fprintf(s.std.err, "bridge: "+format+"\n", args...)
}

func (s *submissions) end() (refused int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused, s.err
}

func (s *submissions) ids() iter.Seq[client.Request] {
	return func(yield func(client.Request) bool) {
		for _, id := range s.cmd.IDs {
			if !yield(s.request(id)) {
				return
			}
		}
	}
}

// lines reads standard input: ids, or JSON objects whose fields win over the flags.
func (s *submissions) lines() iter.Seq[client.Request] {
	return func(yield func(client.Request) bool) {
		in := bufio.NewReader(s.std.in)
		for n := 1; ; n++ {
			line, err := in.ReadBytes('\n')
			if line = bytes.TrimSpace(line); len(line) > 0 {
				r := s.request(string(line))
				var bad error
				if line[0] == '{' {
					bad = overlay(&r, line)
				}
				if bad != nil {
					s.refuse("line %d: %v", n, bad)
				} else if !yield(r) {
					return
				}
			}
			if err != nil {
				if err != io.EOF {
					s.mu.Lock()
					s.err = err
					s.mu.Unlock()
				}
				return
			}
		}
	}
}

func (s *submissions) request(id string) client.Request {
	return client.Request{ID: id, Type: s.cmd.Type, Timeout: s.cmd.Timeout, Labels: s.cmd.Label, Key: s.cmd.Key}
}

// overlay sets what a JSON line says. A field that no bridge knows is a misspelling.
func overlay(r *client.Request, line []byte) error {
	var in struct {
		RequestID   string            `json:"request_id"`
		TimeoutMS   *int64            `json:"timeout_ms"`
		RequestType *string           `json:"request_type"`
		Labels      map[string]string `json:"labels"`
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil {
		return fmt.Errorf("not a request: %w; want {\"request_id\":…} with timeout_ms, request_type and labels as you need them", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("more than one JSON value; put each on a line of its own")
	}
	r.ID = in.RequestID
	if in.TimeoutMS != nil {
		const most = int64(1<<63-1) / int64(time.Millisecond)
		if *in.TimeoutMS <= 0 || *in.TimeoutMS > most {
			return fmt.Errorf("timeout_ms is %d; give the milliseconds that the request may take", *in.TimeoutMS)
		}
		r.Timeout = time.Duration(*in.TimeoutMS) * time.Millisecond
	}
	if in.RequestType != nil {
		r.Type = *in.RequestType
	}
	if in.Labels != nil {
		r.Labels = in.Labels
	}
	return nil
}
