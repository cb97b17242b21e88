package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/poll"
)

// ack is the outcome of a publish that is known.
type ack struct {
	seq      uint64 // of the message; of the subject's last message after a conflict
	conflict bool   // the fence did not hold: nothing was stored now
	tooLarge bool   // for a message: nothing was stored
}

// publish repeats one message until its outcome is known, however long that takes, or ctx ends, or trusted says that
// the writer has no right to go on (ErrLeaseLost). A message that is too large is an outcome only if the writer can make
// a smaller one; else the limit is in the way, as a full stream is.
func (p *Publisher) publish(ctx context.Context, msg *nats.Msg, trusted func() bool, shrinks bool) (ack, error) {
	var trying operation
	defer trying.end(p)
	weight := min(int64(len(msg.Data)), maxInFlightBytes)
	for attempt := 0; ; attempt++ {
		if trusted != nil && !trusted() {
			return ack{}, poll.ErrLeaseLost
		}
		if err := p.bytes.Acquire(ctx, weight); err != nil {
			return ack{}, err
		}
		reply, err := p.replies.ask(ctx, msg)
		p.bytes.Release(weight)
		out, verdict, why := readAck(reply, err)
		p.metrics.publishes[verdict].Inc()
		switch {
		case verdict == "stored", verdict == "duplicate", verdict == "conflict", verdict == "too_large" && shrinks:
			return out, nil
		case ctx.Err() != nil:
			return ack{}, ctx.Err()
		case attempt > 0, verdict == "refused", verdict == "too_large": // else it is everyday life at a leader change
			trying.failed(p, verdict, msg.Subject, why)
		}
		if err := pause(ctx, attempt); err != nil {
			return ack{}, err
		}
	}
}

// operation is one thing that is tried until it succeeds. While any fails, the publisher is in trouble.
type operation struct{ failing bool }

func (o *operation) failed(p *Publisher, verdict, what string, why error) {
	reason := fmt.Sprintf("%s cannot be stored: %v", kindOf(what), why)
	p.reason.Store(&reason)
	if o.failing {
		return
	}
	o.failing = true
	if p.failing.Add(1) == 1 {
		p.log.Error("events cannot be stored; they are held and tried again", "outcome", verdict, "subject", what, "error", why)
	}
}

func (o *operation) end(p *Publisher) {
	if o.failing && p.failing.Add(-1) == 0 {
		p.log.Info("events are stored again")
	}
}

// kindOf makes one reason of the many subjects of one stream.
func kindOf(subject string) string {
	if i := strings.LastIndexByte(subject, '.'); i > 0 {
		return subject[:i]
	}
	return subject
}

func pause(ctx context.Context, attempt int) error {
	wait := min(retryMax, retryInitial<<min(attempt, 10))
	return sleep(ctx, wait+rand.N(wait/4))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The server's codes for a publish that was not simply stored. They are matched by number: texts change.
const (
	codeWrongLastSequence = 10071 // the fence: somebody else appended, or our own first attempt was stored
	codeQueueFull         = 10167 // not stored; the queue is shared
	codeTooLarge          = 10054
	codeStoreFailed       = 10077 // the stream's limits
	codeNoStorage         = 10047 // the server's or account's limits
	codeNoResources       = 10023
	codeAccountFull       = 10002
)

var lastSequence = regexp.MustCompile(`\d+$`)

// readAck classifies the answer to a publish. verdict is the label of the publishes metric: whatever is not known to be
// stored, refused or in conflict is "unknown", and the same message will show which it was.
func readAck(reply *nats.Msg, err error) (out ack, verdict string, why error) {
	if errors.Is(err, nats.ErrMaxPayload) {
		return ack{tooLarge: true}, "too_large", err
	}
	if err != nil {
		return ack{}, "unknown", err
	}
	if seq, ok := plainAck(reply.Data); ok {
		return ack{seq: seq}, "stored", nil
	}
	var body struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &body); err != nil {
		return ack{}, "unknown", fmt.Errorf("the answer is no ack of JetStream: %w", err)
	}
	switch {
	case body.Error == nil && body.Stream == "":
		return ack{}, "unknown", errors.New("the answer is no ack of JetStream")
	case body.Error == nil && body.Duplicate:
		return ack{seq: body.Seq}, "duplicate", nil
	case body.Error == nil:
		return ack{seq: body.Seq}, "stored", nil
	}
	switch body.Error.ErrorCode {
	case codeWrongLastSequence:
		// Only the text has the number; without it the read that follows takes what it finds.
		seq, _ := strconv.ParseUint(lastSequence.FindString(body.Error.Description), 10, 64)
		return ack{seq: seq, conflict: true}, "conflict", nil
	case codeTooLarge:
		return ack{tooLarge: true}, "too_large", body.Error
	case codeQueueFull:
		return ack{}, "busy", body.Error
	case codeStoreFailed, codeNoStorage, codeNoResources, codeAccountFull:
		return ack{}, "refused", body.Error
	}
	return ack{}, "unknown", body.Error
}

// plainAck reads the ack that nearly every publish gets, {"stream":"…","seq":N}. Anything else is for a real decoder.
func plainAck(data []byte) (seq uint64, ok bool) {
	const begin, middle, end = `{"stream":"`, `","seq":`, `}`
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(data), []byte(begin))
	if !ok {
		return 0, false
	}
	name, rest, ok := bytes.Cut(rest, []byte(middle))
	if !ok || len(name) == 0 || bytes.ContainsAny(name, `"\\`) {
		return 0, false
	}
	digits, ok := bytes.CutSuffix(rest, []byte(end))
	if !ok || len(digits) == 0 || digits[0] == '0' || digits[0] == '+' {
		return 0, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	return seq, err == nil
}
