package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"futurebridge/client"
)

type resultCmd struct {
	natsFlags `embed:""`

	ID   string `arg:"" name:"id" help:"Request id. Put -- in front when it begins with a dash."`
	JSON bool   `name:"json" help:"Print one JSON object with the result in it, instead of the result's bytes."`
}

func (c *resultCmd) Help() string {
	return `Prints the result that is stored now, byte for byte as the upstream gave it, or the JSON of the error.
Exit code: 0 completed, 3 failed, 4 timed out, expired, lost or cancelled, 5 not there yet.`
}

func (c *resultCmd) validate() error {
	return errors.Join(c.natsFlags.validate(), checkIDs(c.ID))
}

func (c *resultCmd) Run(ctx context.Context, std stdio) error {
	bridge, stop, err := c.dialClient("bridge result", std)
	if err != nil {
		return err
	}
	defer stop()
	r, err := bridge.Result(ctx, c.ID)
	if c.JSON {
		return printTerminal(ctx, std.out, c.ID, r, err, "")
	}
	return printRaw(ctx, std.out, c.ID, r, err)
}

func checkIDs(ids ...string) error {
	var errs []error
	for _, id := range ids {
		if err := client.CheckID(id); err != nil {
			errs = append(errs, fmt.Errorf("id %q: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// printRaw writes the bytes of a terminal and returns what the exit code and standard error shall say about it.
func printRaw(ctx context.Context, out io.Writer, id string, r *client.Result, err error) error {
	if ended := new(client.RequestError); errors.As(err, &ended) {
		if _, werr := out.Write(ended.Body); werr != nil {
			return werr
		}
		return terminalError(id, err)
	}
	if err != nil {
		return terminalError(id, err)
	}
	rd, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = rd.Close() }()
	if _, err := io.Copy(out, rd); err != nil {
		return fmt.Errorf("result of %q: what was printed is not all: %w", id, err)
	}
	return nil
}

// terminalLine is a terminal as one line of JSON.
type terminalLine struct {
	RequestID    string          `json:"request_id"`
	Status       string          `json:"status"`
	Polls        int             `json:"polls"`
	ContentType  string          `json:"content_type,omitempty"`
	Bytes        *int64          `json:"bytes,omitempty"`
	File         string          `json:"file,omitempty"`          // where --out put the result
	Result       json.RawMessage `json:"result,omitempty"`        // a result that is JSON
	ResultBase64 string          `json:"result_base64,omitempty"` // any other result
	Error        json.RawMessage `json:"error,omitempty"`
}

// printTerminal writes a terminal as one line of JSON; file is where its result is, when it is not in the line.
func printTerminal(ctx context.Context, out io.Writer, id string, r *client.Result, err error, file string) error {
	line := terminalLine{RequestID: id, File: file}
	if ended := new(client.RequestError); errors.As(err, &ended) {
		line.Status, line.Polls = ended.Status, ended.Polls
		if compact, ok := compactJSON(ended.Body); ok {
			line.Error = compact
		}
	} else if err != nil {
		return terminalError(id, err)
	} else {
		line.Status, line.Polls, line.ContentType, line.Bytes = client.StatusCompleted, r.Polls, r.ContentType, &r.Size
		if file == "" {
			data, err := r.Bytes(ctx)
			if err != nil {
				return err
			}
			if compact, ok := compactJSON(data); ok {
				line.Result = compact
			} else {
				line.ResultBase64 = base64.StdEncoding.EncodeToString(data)
			}
		}
	}
	text := new(bytes.Buffer)
	encoder := json.NewEncoder(text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(line); err != nil {
		return err
	}
	if _, err := out.Write(text.Bytes()); err != nil {
		return err
	}
	return terminalError(id, err)
}

// compactJSON takes the line breaks out of JSON and nothing else: numbers stay as they are written.
func compactJSON(data []byte) (json.RawMessage, bool) {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil {
		return nil, false
	}
	return b.Bytes(), true
}

// terminalError gives the error of looking for a result its exit code.
func terminalError(id string, err error) error {
	ended := new(client.RequestError)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ended) && ended.Status == client.StatusFailed:
		return &exitError{exitReqFail, err}
	case errors.As(err, &ended):
		return &exitError{exitReqEnded, err}
	case errors.Is(err, client.ErrNotYet), errors.Is(err, context.DeadlineExceeded):
		return &exitError{exitNotYet, fmt.Errorf("request %q: %w", id, client.ErrNotYet)}
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	}
	return err
}
