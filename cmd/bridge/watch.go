package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"

	"futurebridge/client"
)

type watchCmd struct {
	natsFlags `embed:""`

	IDs   []string `arg:"" optional:"" name:"id" help:"Request ids. Put -- in front of all of them when one begins with a dash."`
	All   bool     `name:"all" help:"Watch every request, until interrupted."`
	Since string   `name:"since" placeholder:"TIME" help:"Only events since a time (2026-01-31T12:00:00Z) or a duration ago (10m)."`
	JSON  bool     `name:"json" help:"Print each event's JSON, one a line."`

	since time.Time // set by validate
}

func (c *watchCmd) Help() string {
	return `Prints queue states and ends of requests, first those that are stored, from the start of each request's log, then
those to come. With ids it ends by itself when all of them have ended. A line is: time, id, what happened, details.`
}

func (c *watchCmd) validate() error {
	errs := []error{c.natsFlags.validate(), checkIDs(c.IDs...)}
	switch {
	case c.All && len(c.IDs) > 0:
		errs = append(errs, errors.New("--all: contradicts the ids; leave one of them out"))
	case !c.All && len(c.IDs) == 0:
		errs = append(errs, errors.New("nothing to watch: give request ids, or --all"))
	}
	if c.Since != "" {
		var err error
		if ago, derr := time.ParseDuration(c.Since); derr == nil && ago >= 0 {
			c.since = time.Now().Add(-ago)
		} else if c.since, err = time.Parse(time.RFC3339, c.Since); err != nil {
			errs = append(errs, c.given.errorf("since", "%q is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 10m", c.Since))
		}
	}
	return errors.Join(errs...)
}

func (c *watchCmd) Run(ctx context.Context, std stdio) error {
	bridge, stop, err := c.dialClient("bridge watch", std)
	if err != nil {
		return err
	}
	defer stop()
	for event, err := range bridge.Watch(ctx, client.WatchOptions{IDs: c.IDs, All: c.All, Since: c.since}) {
		switch {
		case ctx.Err() != nil && c.All:
			return nil // that is how it is meant to end
		case ctx.Err() != nil:
			return errors.New("interrupted: not all of these requests have ended")
		case err != nil:
			return err
		}
		if err := c.print(std.out, event); err != nil {
			return err
		}
	}
	return nil
}

func (c *watchCmd) print(out io.Writer, e client.Event) error {
	line := eventLine(e)
	if c.JSON {
		compact, ok := compactJSON(e.Body)
		if !ok {
			return fmt.Errorf("event %d of request %q is not JSON", e.Seq, e.RequestID)
		}
		line = string(compact)
	}
	_, err := io.WriteString(out, line+"\n")
	return err
}

// eventLine is for people. What others have written cannot move the cursor or forge a line.
func eventLine(e client.Event) string {
	fields := []string{e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), visible(e.RequestID)}
	switch {
	case !e.Closing && e.Previous != "":
		fields = append(fields, visible(e.Previous)+" -> "+visible(e.Status))
	default:
		fields = append(fields, visible(e.Status))
	}
	switch {
	case !e.Closing && e.Reason != "":
		fields = append(fields, strconv.Quote(e.Reason))
	case e.Err != nil:
		fields = append(fields, strconv.Quote(e.Err.Message))
	case e.Closing:
		fields = append(fields, humanize.IBytes(uint64(max(0, e.ResultBytes))))
	}
	if e.Closing {
		fields = append(fields, fmt.Sprintf("after %v, %d polls", e.Elapsed.Round(time.Millisecond), e.Polls))
	}
	return strings.Join(fields, "  ")
}

// visible quotes a text that would not be one word on the screen.
func visible(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == '"' }) {
		return strconv.Quote(s)
	}
	return s
}
