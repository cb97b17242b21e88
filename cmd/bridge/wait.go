package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"futurebridge/client"
	"futurebridge/internal/publish"
)

type waitCmd struct {
	natsFlags `embed:""`

	IDs     []string      `arg:"" name:"id" help:"Request ids. Put -- in front of all of them when one begins with a dash."`
	Timeout time.Duration `name:"timeout" placeholder:"DURATION" help:"How long to wait; not given: as long as it takes."`
	JSON    bool          `name:"json" help:"Print a JSON object for one id too."`
	Out     string        `name:"out" placeholder:"DIR" help:"Write each result into a file of its own in DIR; the JSON lines then name the file."`
}

func (c *waitCmd) Help() string {
	return `One id: prints its result, byte for byte as the upstream gave it, or the JSON of the error.
Several ids, --json or --out: prints one JSON object a line, as the requests end.
Exit code: 0 completed, 3 failed, 4 timed out, expired, lost or cancelled, 5 not there within --timeout.
Of several the first of 3, 4 and 5 that is true of any.`
}

func (c *waitCmd) validate() error {
	errs := []error{c.natsFlags.validate(), checkIDs(c.IDs...)}
	if c.Timeout < 0 {
		errs = append(errs, c.given.errorf("timeout", "%v is below 0; give how long to wait", c.Timeout))
	}
	return errors.Join(errs...)
}

func (c *waitCmd) Run(ctx context.Context, std stdio) error {
	if c.Out != "" {
		if err := os.MkdirAll(c.Out, 0o777); err != nil {
			return usagef("--out: %w; name a directory that can be written", err)
		}
	}
	bridge, stop, err := c.dialClient("bridge wait", std)
	if err != nil {
		return err
	}
	defer stop()
	waiting := ctx
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	if len(c.IDs) == 1 && !c.JSON && c.Out == "" {
		r, err := bridge.Wait(waiting, c.IDs[0])
		return printRaw(ctx, std.out, c.IDs[0], r, err)
	}
	return c.waitForAll(ctx, waiting, bridge, std)
}

// waitForAll prints terminals as they come. It needs one consumer for all ids: a closing record says that a result is
// there.
func (c *waitCmd) waitForAll(ctx, waiting context.Context, bridge *client.Client, std stdio) error {
	codes := map[int]bool{}
	report := func(id string, r *client.Result, err error) error {
		if err := c.store(ctx, std, id, r, err); err != nil {
			var exit *exitError
			if !errors.As(err, &exit) {
				return err
			}
			codes[exit.code] = true
			tell(err, std.err)
		}
		return nil
	}
	open := map[string]bool{} // every id, true while it is waited for
	var missing []string
	for _, id := range c.IDs {
		if _, twice := open[id]; twice {
			continue
		}
		open[id] = true
		// A result outlives its log: what has ended already is not looked for there.
		r, err := bridge.Result(waiting, id)
		if errors.Is(err, client.ErrNotYet) || waiting.Err() != nil {
			missing = append(missing, id)
			continue
		}
		if err := report(id, r, err); err != nil {
			return err
		}
		open[id] = false
	}
	if len(missing) > 0 {
		for event, err := range bridge.Watch(waiting, client.WatchOptions{IDs: missing}) {
			if err != nil {
				if waiting.Err() == nil || ctx.Err() != nil {
					return terminalError("", err)
				}
				break // --timeout
			}
			if !event.Closing {
				continue
			}
			r, err := bridge.Wait(waiting, event.RequestID)
			if err := report(event.RequestID, r, err); err != nil {
				return err
			}
			open[event.RequestID] = false
		}
		for _, id := range missing {
			if open[id] {
				_ = report(id, nil, client.ErrNotYet)
			}
		}
	}
	for _, code := range []int{exitReqFail, exitReqEnded, exitNotYet} {
		if codes[code] {
			return &exitError{code: code}
		}
	}
	return nil
}

// store prints the line of a terminal, with --out after its file is complete.
func (c *waitCmd) store(ctx context.Context, std stdio, id string, r *client.Result, err error) error {
	if c.Out == "" {
		return printTerminal(ctx, std.out, id, r, err, "")
	}
	path := filepath.Join(c.Out, fileName(id))
	ended := new(client.RequestError)
	switch {
	case errors.As(err, &ended):
		path += ".error.json"
		if err := os.WriteFile(path, ended.Body, 0o666); err != nil {
			return err
		}
	case err != nil:
		return terminalError(id, err)
	default:
		if err := writeResult(ctx, path, r); err != nil {
			return err
		}
	}
	return printTerminal(ctx, std.out, id, r, err, path)
}

// writeResult never leaves half a result under path.
func writeResult(ctx context.Context, path string, r *client.Result) (err error) {
	rd, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = rd.Close() }()
	f, err := os.CreateTemp(filepath.Dir(path), ".result-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, rd)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// fileName is the id's subject token, which is safe in a path, or a hash where that is too long for a file system.
func fileName(id string) string {
	name := publish.Token(id)
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(id))
		name = "~" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return name
}
